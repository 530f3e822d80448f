//! The ledger against a plain reference, in races, and over crashes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::clock::tests::{Hands, Shared};
use super::*;
use crate::policy::limits::Budget;
use crate::policy::{LoadOptions, load_text};

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400 * SECOND;

fn budgets(rules: &str) -> Vec<Budget> {
    let text = format!("version: 1\nmodels: {{providers: [x]}}\nbudgets:\n{rules}");
    let policy = load_text(Path::new("p.yaml"), &text, &LoadOptions::default()).unwrap();
    policy.limits().budgets.clone()
}

struct Bench {
    folder: tempfile::TempDir,
    hands: Shared,
}

impl Bench {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            hands: Shared(Arc::new(Hands::new())),
        }
    }

    fn open(&self) -> (Arc<Ledger>, UnboundedReceiver<Event>) {
        let (sender, events) = unbounded_channel();
        (
            Ledger::open(self.folder.path(), Box::new(self.hands.clone()), sender),
            events,
        )
    }

    /// The folder as a crash leaves it.
    fn crash(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(
            self.folder.path().join("budgets.json"),
            folder.path().join("budgets.json"),
        )
        .unwrap();
        Self {
            folder,
            hands: self.hands.clone(),
        }
    }

    fn left(ledger: &Ledger, budgets: &[Budget]) -> Vec<u64> {
        ledger
            .report("a", 1, budgets)
            .into_iter()
            .map(|it| it.left)
            .collect()
    }
}

fn tokens(input: u64, output: u64) -> Amounts {
    Amounts {
        input,
        output,
        ..Amounts::default()
    }
}

fn sight(cpu: u64, active: bool) -> Sight {
    Sight {
        cpu,
        active,
        denied: 0,
    }
}

#[test]
fn what_is_reserved_is_settled_or_released() {
    let bench = Bench::new();
    let (ledger, _events) = bench.open();
    let list = budgets("  - {tokens: 100, per: day}\n  - {requests: 3, per: day}\n");
    let first = ledger.reserve("a", 1, &list, tokens(30, 30)).unwrap();
    let refused = ledger.reserve("a", 1, &list, tokens(30, 30)).unwrap_err();
    assert!(
        matches!(refused.why, Why::Spent { ref budget, .. } if budget == "p:budgets/1"),
        "{refused:?}"
    );
    assert!(
        refused.message.contains("60 reserved"),
        "{}",
        refused.message
    );
    first.settle(&tokens(10, 5));
    assert_eq!(Bench::left(&ledger, &list), [85, 2]);
    ledger
        .reserve("a", 1, &list, tokens(50, 35))
        .unwrap()
        .release();
    assert_eq!(Bench::left(&ledger, &list), [85, 1]);
    // Dropped: nobody knows what it took.
    drop(ledger.reserve("a", 1, &list, tokens(50, 30)).unwrap());
    assert_eq!(Bench::left(&ledger, &list), [5, 0]);
    let refused = ledger.reserve("a", 1, &list, tokens(1, 0)).unwrap_err();
    assert!(matches!(refused.why, Why::Spent { ref budget, .. } if budget == "p:budgets/2"));
    assert!(refused.retry_after.is_some_and(|it| it.as_secs() <= 86_400));
    // Another name has its own account.
    ledger
        .reserve("b", 1, &list, tokens(50, 50))
        .unwrap()
        .release();
}

#[test]
fn exactly_the_limit_is_granted_to_threads_that_race() {
    for run in 0..100 {
        let bench = Bench::new();
        let (ledger, _events) = bench.open();
        let list = Arc::new(budgets(
            "  - {tokens: 1000, per: day}\n  - {requests: 37, per: minute}\n",
        ));
        let granted = Arc::new(AtomicU64::new(0));
        let start = Arc::new(std::sync::Barrier::new(64));
        let threads: Vec<_> = (0..64)
            .map(|_| {
                let (ledger, list, granted, start) =
                    (ledger.clone(), list.clone(), granted.clone(), start.clone());
                std::thread::spawn(move || {
                    start.wait();
                    for _ in 0..2 {
                        if let Ok(it) = ledger.reserve("a", 1, &list, tokens(20, 5)) {
                            granted.fetch_add(1, Ordering::Relaxed);
                            it.settle(&tokens(20, 5));
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(granted.load(Ordering::Relaxed), 37, "run {run}");
        assert_eq!(Bench::left(&ledger, &list), [1000 - 37 * 25, 0]);
    }
}

#[test]
fn two_hundred_reservations_never_overshoot() {
    let bench = Bench::new();
    let (ledger, _events) = bench.open();
    let list = budgets("  - {tokens: 100_000, per: total}\n  - {usd: 1, per: total}\n");
    let open: Vec<_> = (0..200)
        .filter_map(|_| {
            ledger
                .reserve(
                    "a",
                    1,
                    &list,
                    Amounts {
                        money: 7_000_000_000,
                        ..tokens(700, 300)
                    },
                )
                .ok()
        })
        .collect();
    assert_eq!(open.len(), 100);
    for reservation in open {
        reservation.settle(&Amounts {
            money: 7_000_000_000,
            ..tokens(700, 300)
        });
    }
    assert_eq!(Bench::left(&ledger, &list)[0], 0);
    assert!(ledger.reserve("a", 1, &list, tokens(1, 0)).is_err());
}

#[test]
fn a_crash_gives_nothing_back_and_an_orderly_end_takes_nothing() {
    let list = budgets(
        "  - {tokens: 100_000, per: day}\n  - {requests: 50, per: total}\n  - {requests: 5, per: minute}\n  - {usd: 5, per: session}\n",
    );
    for is_orderly in [true, false] {
        let mut bench = Bench::new();
        let (ledger, _events) = bench.open();
        for _ in 0..3 {
            let it = ledger.reserve(
                "a",
                1,
                &list,
                Amounts {
                    money: 1_000_000,
                    ..tokens(900, 100)
                },
            );
            it.unwrap().settle(&Amounts {
                money: 700_000,
                ..tokens(500, 10)
            });
        }
        let before = Bench::left(&ledger, &list);
        assert_eq!(
            before,
            [100_000 - 3 * 510, 47, 2, 5_000_000_000_000 - 2_100_000]
        );
        let open = if is_orderly {
            ledger.close().unwrap();
            None
        } else {
            let open = ledger.reserve("a", 1, &list, tokens(100, 0)).unwrap();
            bench = bench.crash();
            Some(open)
        };
        drop(ledger);
        bench.hands.0.pass(5);
        bench.hands.0.set_back(DAY);
        let (ledger, _events) = bench.open();
        assert_eq!(ledger.broken(), None);
        if is_orderly {
            assert_eq!(Bench::left(&ledger, &list), before);
        } else {
            // The call that was under way, and what was below the ceilings.
            let after = Bench::left(&ledger, &list);
            assert!(
                after[0] <= before[0] - 100 && after[0] >= before[0] - 3100,
                "{after:?}"
            );
            assert_eq!(after[1], 46);
            assert!(
                ledger.reserve("a", 1, &list, tokens(1, 0)).is_err(),
                "the minute is spent"
            );
            bench.hands.0.pass(60 * SECOND);
            ledger.reserve("a", 1, &list, tokens(1, 0)).unwrap();
        }
        drop(open);
    }
}

#[test]
fn a_run_beside_the_holder_counts_for_itself_and_writes_nothing() {
    let bench = Bench::new();
    let budgets = budgets("  - {requests: 2, per: minute}\n");
    let (holder, _events) = bench.open();
    drop(
        holder
            .reserve("a", 1, &budgets, Amounts::default())
            .unwrap(),
    );
    bench.hands.0.set_back(DAY);
    let file = std::fs::read(bench.folder.path().join(LEDGER)).unwrap();
    let (sender, _events) = unbounded_channel();
    let own = Ledger::for_one_run(bench.folder.path(), Box::new(bench.hands.clone()), sender);
    assert!(own.broken().is_none() && !own.keeps() && holder.keeps());
    // The clock cannot be set back behind what the file has.
    assert!(own.wall().0 >= holder.wall().0 && own.wall().1 < own.wall().0);
    for _ in 0..2 {
        drop(own.reserve("a", 2, &budgets, Amounts::default()).unwrap());
    }
    assert!(own.reserve("a", 2, &budgets, Amounts::default()).is_err());
    own.close().unwrap();
    assert_eq!(
        std::fs::read(bench.folder.path().join(LEDGER)).unwrap(),
        file
    );
    std::fs::write(bench.folder.path().join(LEDGER), "{}").unwrap();
    let (sender, _events) = unbounded_channel();
    let own = Ledger::for_one_run(bench.folder.path(), Box::new(bench.hands.clone()), sender);
    assert!(own.broken().is_some());
    assert!(own.reserve("a", 2, &budgets, Amounts::default()).is_err());
}

#[test]
fn two_do_not_hold_one_ledger() {
    let bench = Bench::new();
    let list = budgets("  - {requests: 5, per: total}\n");
    let (_first, _events) = bench.open();
    let (second, _events) = bench.open();
    let refused = second.reserve("a", 1, &list, tokens(1, 1)).unwrap_err();
    assert!(refused.message.contains("in use"), "{refused:?}");
    assert!(second.reset(None).is_err());
}

#[test]
fn a_damaged_file_grants_nothing_until_an_operator_resets_it() {
    let list = budgets("  - {requests: 5, per: total}\n  - {wall_time: 1h, per: session}\n");
    for damage in ["", "{", "{\"version\":1}\nabc\n"] {
        let bench = Bench::new();
        let (ledger, _events) = bench.open();
        ledger
            .reserve("a", 1, &list, tokens(1, 1))
            .unwrap()
            .release();
        ledger.close().unwrap();
        let path = bench.folder.path().join("budgets.json");
        let good = std::fs::read_to_string(&path).unwrap();
        drop(ledger);
        std::fs::write(&path, damage).unwrap();
        let (ledger, _events) = bench.open();
        let refused = ledger.reserve("a", 1, &list, tokens(1, 1)).unwrap_err();
        assert_eq!(refused.why, Why::Ledger);
        assert!(
            refused.message.contains("budget reset --all"),
            "{}",
            refused.message
        );
        assert_eq!(ledger.observe("a", 1, &list, sight(0, false)).len(), 1);
        ledger.close().unwrap_err();
        // Every single byte counts.
        for at in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert!(
                state::load(&path).is_err()
                    || bytes.trim_ascii_end() == good.as_bytes().trim_ascii_end()
                    || at + 1 == good.len(),
                "byte {at}"
            );
        }
        std::fs::write(&path, damage).unwrap();
        ledger.reset(None).unwrap();
        assert!(bench.folder.path().join("budgets.damaged-1").exists());
        ledger.reserve("a", 1, &list, tokens(1, 1)).unwrap();
    }
}

#[test]
fn what_cannot_be_written_is_not_granted() {
    let bench = Bench::new();
    let (ledger, _events) = bench.open();
    let list = budgets("  - {requests: 5, per: total}\n");
    ledger.reserve("a", 1, &list, tokens(1, 1)).unwrap();
    let partial = bench.folder.path().join("budgets.partial");
    std::fs::create_dir(&partial).unwrap();
    let refused = ledger.reserve("a", 1, &list, tokens(1, 1)).unwrap_err();
    assert_eq!(refused.why, Why::Ledger, "{refused:?}");
    std::fs::remove_dir(&partial).unwrap();
    ledger.reserve("a", 1, &list, tokens(1, 1)).unwrap();
}

#[test]
fn grants_last_as_long_as_the_window_and_warnings_come_once() {
    let bench = Bench::new();
    let (ledger, mut events) = bench.open();
    let list = budgets("  - {requests: 4, per: day, warn: [50, 75]}\n");
    let call = || ledger.reserve("a", 1, &list, tokens(0, 0)).is_ok();
    assert!([call(), call(), call(), call(), call()] == [true, true, true, true, false]);
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        told.push(event.what);
    }
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].starts_with("50 %") && told[1].starts_with("75 %"),
        "{told:?}"
    );
    ledger.grant("a", 1, &list[0], 2).unwrap();
    assert!(call() && call() && !call());
    bench.hands.0.pass(DAY);
    assert!([call(), call(), call(), call(), call()] == [true, true, true, true, false]);
    ledger.reset(Some("a")).unwrap();
    assert!(call());
}

#[test]
fn times_are_charged_also_while_nobody_looks() {
    let bench = Bench::new();
    let list = budgets(
        "  - {id: wall, wall_time: 1h, per: session}\n  - {id: cpu, cpu_time: 10m, per: day, at_limit: kill}\n  - {id: idle, idle_time: 30m}\n",
    );
    let ids = |overruns: Vec<Overrun>| overruns.into_iter().map(|it| it.budget).collect::<Vec<_>>();
    let (ledger, _events) = bench.open();
    assert!(
        ledger
            .observe("a", 1, &list, sight(1_000_000, false))
            .is_empty()
    );
    bench.hands.0.pass(20 * 60 * SECOND);
    assert!(
        ledger
            .observe("a", 1, &list, sight(300_000_000, false))
            .is_empty()
    );
    ledger.checkpoint().unwrap();
    drop(ledger);
    // The daemon is dead for 39 minutes, and the clock goes back.
    bench.hands.0.pass(39 * 60 * SECOND);
    bench.hands.0.set_back(DAY);
    let (ledger, _events) = bench.open();
    assert_eq!(
        ids(ledger.observe("a", 1, &list, sight(300_000_001, false))),
        ["idle"]
    );
    bench.hands.0.pass(60 * SECOND);
    assert_eq!(
        ids(ledger.observe("a", 1, &list, sight(500_000_000, false))),
        ["wall"]
    );
    // A cgroup that was made anew begins at nothing: what it did counts all the same.
    assert_eq!(
        ids(ledger.observe("a", 1, &list, sight(102_000_000, true))),
        ["wall", "cpu"]
    );
    ledger.end_session("a", 1);
    // A new session has its own hour, and the same day.
    assert_eq!(ids(ledger.observe("a", 2, &list, sight(0, false))), ["cpu"]);
}

#[derive(Clone, Debug)]
enum Step {
    Reserve(u64),
    Settle(u64),
    Release,
    Drop,
    Pass(u64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..400_u64).prop_map(Step::Reserve),
        3 => (0..400_u64).prop_map(Step::Settle),
        1 => Just(Step::Release),
        1 => Just(Step::Drop),
        1 => (0..2 * DAY).prop_map(Step::Pass),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Against a plain list of what was spent when: the same calls are granted, over orderly restarts too.
    #[test]
    fn a_plain_reference_agrees(steps in proptest::collection::vec(step(), 1..60)) {
        let bench = Bench::new();
        let list = budgets("  - {tokens: 1000, per: day}\n  - {output_tokens: 2500, per: total}\n");
        let (mut ledger, mut _events) = bench.open();
        let mut open: Vec<(Reservation, u64)> = Vec::new();
        let mut spent: Vec<(u64, u64)> = Vec::new();
        let mut now = bench.hands.read().wall;
        for step in steps {
            let mut end = |open: &mut Vec<(Reservation, u64)>, amount: Option<u64>, now| {
                if let Some((reservation, reserved)) = open.pop() {
                    let amount = amount.unwrap_or(reserved);
                    reservation.settle(&tokens(0, amount));
                    spent.push((now, amount));
                }
            };
            match step {
                Step::Reserve(amount) => {
                    let granted = ledger.reserve("a", 1, &list, tokens(0, amount));
                    let reserved: u64 = open.iter().map(|it| it.1).sum();
                    let day: u64 = spent.iter().filter(|it| it.0 / DAY == now / DAY).map(|it| it.1).sum();
                    let all: u64 = spent.iter().map(|it| it.1).sum();
                    let fits = day + reserved + amount <= 1000 && all + reserved + amount <= 2500;
                    prop_assert_eq!(granted.is_ok(), fits);
                    open.extend(granted.ok().map(|it| (it, amount)));
                }
                Step::Settle(amount) => end(&mut open, Some(amount), now),
                Step::Release => end(&mut open, Some(0), now),
                Step::Drop => end(&mut open, None, now),
                Step::Pass(time) => {
                    bench.hands.0.pass(time);
                    now += time;
                }
                Step::Restart => {
                    while !open.is_empty() {
                        end(&mut open, None, now);
                    }
                    ledger.close().unwrap();
                    drop(ledger);
                    (ledger, _events) = bench.open();
                }
            }
        }
    }
}
