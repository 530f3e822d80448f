//! Counts that the kernel has, over crashes and restarts: no unit comes back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use agentguard_common::budget::{CELLS, Charge, LIVE, Meter};
use tokio::sync::mpsc::unbounded_channel;

use super::clock::tests::{Hands, Shared};
use super::*;
use crate::policy::limits::Budget;
use crate::policy::{LoadOptions, load_text};

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600 * SECOND;

fn budgets(rules: &str) -> Vec<Budget> {
    let text = format!("version: 1\nbudgets:\n{rules}");
    let policy = load_text(Path::new("p.yaml"), &text, &LoadOptions::default()).unwrap();
    policy.limits().budgets.clone()
}

/// The kernel's side, written plainly.
#[derive(Clone, Default)]
struct Kernel {
    meters: BTreeMap<u32, Meter>,
}

impl Kernel {
    fn read(&self, number: u32) -> Meter {
        self.meters.get(&number).copied().unwrap_or(Meter::EMPTY)
    }

    fn take(&mut self, charge: &Charge, now: u64, amount: u64) -> bool {
        let mut meter = self.read(charge.meter);
        if meter.epoch < charge.epoch {
            meter.epoch = charge.epoch;
            meter.window = charge.base_window;
            meter.sum = charge.base;
            meter.cells = [0; CELLS];
            meter.cells[charge.base_window as usize % CELLS] = charge.base;
        }
        let window = now.checked_div(charge.length).unwrap_or(0);
        let sliding = charge.sliding != 0;
        while sliding && meter.window < window {
            meter.window += 1;
            let gone = meter.window.wrapping_sub(LIVE) as usize % CELLS;
            meter.sum -= std::mem::take(&mut meter.cells[gone]);
        }
        if meter.window < window {
            (meter.window, meter.sum) = (window, 0);
        }
        let known = sliding || meter.window == charge.ceiling_window;
        let ceiling = if known { charge.ceiling } else { charge.chunk };
        let fits = meter.sum + amount <= charge.limit.min(ceiling);
        meter.refused = if fits { 0 } else { amount as u32 };
        if fits {
            meter.sum += amount;
            meter.cells[window as usize % CELLS] += amount;
        }
        self.meters.insert(charge.meter, meter);
        fits
    }
}

/// A ledger, the kernel beside it, and what the kernel was told last.
struct Bench {
    folder: tempfile::TempDir,
    hands: Shared,
    kernel: Kernel,
    told: Option<Charged>,
    list: Vec<Budget>,
}

impl Bench {
    fn new(rules: &str) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            hands: Shared(Arc::new(Hands::new())),
            kernel: Kernel::default(),
            told: None,
            list: budgets(rules),
        }
    }

    fn open(&self) -> Arc<Ledger> {
        let (sender, _) = unbounded_channel();
        let ledger = Ledger::open(self.folder.path(), Box::new(self.hands.clone()), sender);
        ledger.adopt(&["a"], |number| Some(self.kernel.read(number)));
        ledger
    }

    fn tell(&mut self, ledger: &Ledger) {
        ledger.take_over("a", |number| Some(self.kernel.read(number)));
        self.told = Some(ledger.charged("a", 1, &self.list).unwrap());
    }

    /// Tries to take one of the first budget as often as asked; how often that was granted.
    fn act(&mut self, times: u64) -> u64 {
        let limits = self.told.as_ref().unwrap().limits;
        let now = self.hands.read().boot + limits.offset;
        let charge = limits.charges[0];
        (0..times)
            .filter(|_| self.kernel.take(&charge, now, 1))
            .count() as u64
    }

    fn spent(&self, ledger: &Ledger) -> u64 {
        ledger.take_over("a", |number| Some(self.kernel.read(number)));
        ledger.report("a", 1, &self.list)[0].spent
    }

    /// The folder as it is now, for a ledger of another life.
    fn at_crash(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(self.folder.path()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
        copy
    }
}

#[test]
fn a_small_budget_is_granted_to_its_end_without_us() {
    let mut bench = Bench::new("  - {id: few, opens: 100, per: hour}\n");
    let ledger = bench.open();
    bench.tell(&ledger);
    assert_eq!(bench.act(150), 100);
    assert_eq!(bench.spent(&ledger), 100);
    // The next hour, without us: as much again.
    bench.hands.0.pass(HOUR);
    assert_eq!(bench.act(150), 100);
}

#[test]
fn a_restart_of_the_daemon_alone_is_exact() {
    for rules in [
        "  - {id: a, opens: 100, per: session}\n",
        "  - {id: a, opens: 100, per: minute}\n",
        "  - {id: a, opens: 100, per: hour, window: sliding}\n",
    ] {
        let mut bench = Bench::new(rules);
        let ledger = bench.open();
        bench.tell(&ledger);
        assert_eq!(bench.act(30), 30);
        // Killed: nothing was taken over, and the kernel goes on.
        bench.folder = bench.at_crash();
        assert_eq!(bench.act(20), 20);
        drop(ledger);
        let ledger = bench.open();
        bench.tell(&ledger);
        assert_eq!(bench.spent(&ledger), 50, "{rules}");
        assert_eq!(bench.act(100), 50, "{rules}");
    }
}

#[test]
fn what_a_crash_of_the_host_forgets_counts_as_spent() {
    for (rules, limit) in [
        ("  - {id: a, opens: 100, per: total}\n", 100),
        ("  - {id: a, opens: 1000000, per: total}\n", 1_000_000),
        ("  - {id: a, opens: 1000000, per: day}\n", 1_000_000),
        (
            "  - {id: a, opens: 1000000, per: day, window: sliding}\n",
            1_000_000,
        ),
        ("  - {id: a, opens: 100, per: minute}\n", 100),
    ] {
        let mut bench = Bench::new(rules);
        let mut granted = 0;
        for _ in 0..3 {
            let ledger = bench.open();
            bench.tell(&ledger);
            granted += bench.act(limit / 3);
            // The power goes: the kernel has nothing any more, and time stands still.
            bench.folder = bench.at_crash();
            bench.kernel = Kernel::default();
            drop(ledger);
        }
        let ledger = bench.open();
        bench.tell(&ledger);
        granted += bench.act(2 * limit);
        assert!(granted <= limit, "{rules}: {granted}");
    }
}

#[test]
fn the_kernel_never_goes_beyond_what_the_disk_has() {
    let mut bench = Bench::new("  - {id: a, opens: 1000000, per: session}\n");
    let ledger = bench.open();
    bench.tell(&ledger);
    // A quarter, and no more before it is told again.
    assert_eq!(bench.act(400_000), 250_000);
    bench.tell(&ledger);
    assert_eq!(bench.act(100_000), 100_000);
    bench.tell(&ledger);
    assert_eq!(bench.act(2_000_000), 150_000);
    let mut granted = 500_000;
    for _ in 0..6 {
        bench.tell(&ledger);
        granted += bench.act(2_000_000);
    }
    assert_eq!(granted, 1_000_000);
}

#[test]
fn an_orderly_end_with_agents_running_counts_on() {
    let mut bench = Bench::new("  - {id: a, opens: 100, per: session}\n");
    let ledger = bench.open();
    bench.tell(&ledger);
    assert_eq!(bench.act(10), 10);
    ledger.take_over("a", |number| Some(bench.kernel.read(number)));
    ledger.close().unwrap();
    drop(ledger);
    assert_eq!(bench.act(10), 10);
    let ledger = bench.open();
    bench.tell(&ledger);
    assert_eq!(bench.spent(&ledger), 20);
    // And one where nobody charges any more is exact.
    ledger.take_over("a", |number| Some(bench.kernel.read(number)));
    ledger.give_back_slots("a");
    ledger.close().unwrap();
    drop(ledger);
    bench.kernel = Kernel::default();
    let ledger = bench.open();
    assert_eq!(bench.spent(&ledger), 20);
}

#[test]
fn grants_and_resets_reach_the_kernel() {
    let mut bench = Bench::new("  - {id: a, opens: 10, per: session}\n");
    let ledger = bench.open();
    bench.tell(&ledger);
    assert_eq!(bench.act(20), 10);
    ledger.grant("a", 1, &bench.list[0], 5).unwrap();
    bench.tell(&ledger);
    assert_eq!(bench.act(20), 5);
    ledger.reset(Some("a")).unwrap();
    bench.tell(&ledger);
    assert_eq!(bench.act(20), 10);
}

#[test]
fn another_limit_keeps_the_count() {
    let mut bench = Bench::new("  - {id: a, opens: 100, per: session}\n");
    let ledger = bench.open();
    bench.tell(&ledger);
    assert_eq!(bench.act(60), 60);
    bench.list = budgets("  - {id: b, opens: 70, per: session}\n");
    bench.tell(&ledger);
    assert_eq!(bench.act(60), 10);
    bench.list = budgets("  - {id: b, opens: 20000, per: session}\n");
    bench.tell(&ledger);
    assert_eq!(bench.act(60), 60);
}

#[test]
fn a_spent_budget_may_deny_the_network() {
    let mut bench = Bench::new(
        "  - {id: a, opens: 10, per: session, at_limit: deny-network}\n  - {id: t, wall_time: 1s, per: session, at_limit: deny-network}\n",
    );
    let ledger = bench.open();
    bench.tell(&ledger);
    let told = bench.told.clone().unwrap();
    assert_eq!((told.limits.count, told.cut.len()), (1, 0));
    assert_eq!(bench.act(20), 10);
    bench.tell(&ledger);
    let told = bench.told.clone().unwrap();
    assert_eq!((told.limits.count, told.cut.as_slice()), (2, &[0][..]));
    let cut = told.limits.charges[1];
    assert_eq!(
        (
            cut.limit,
            cut.kinds & agentguard_common::budget::kind::CONNECTS
        ),
        (0, 4)
    );
    ledger.observe("a", 1, &bench.list, Sight::default());
    bench.hands.0.pass(2 * SECOND);
    ledger.observe("a", 1, &bench.list, Sight::default());
    bench.tell(&ledger);
    assert_eq!(bench.told.clone().unwrap().cut, [0, 1]);
}

#[test]
fn refusals_are_counted_once() {
    let bench = Bench::new("  - {id: a, denials: 10, per: session, at_limit: kill}\n");
    let ledger = bench.open();
    let seen = |denied| {
        let sight = Sight {
            denied,
            ..Sight::default()
        };
        ledger.observe("a", 1, &bench.list, sight).len()
    };
    assert_eq!((seen(4), seen(9), seen(9)), (0, 0, 0));
    // Another daemon begins at nothing.
    assert_eq!(seen(1), 1);
}

#[test]
fn packets_that_do_not_fit_close_the_network_only_while_they_do_not() {
    let rules = "  - {id: a, bytes_sent: 5kB, per: hour}\n";
    let cut = |bench: &Bench| bench.told.as_ref().unwrap().cut.clone();
    let mut bench = Bench::new(rules);
    let ledger = bench.open();
    let send = |bench: &mut Bench, times: u64| -> u64 {
        let limits = bench.told.as_ref().unwrap().limits;
        let now = bench.hands.read().boot + limits.offset;
        let take = |_: &u64| bench.kernel.take(&limits.charges[0], now, 1000);
        (0..times).filter(take).count() as u64
    };
    bench.tell(&ledger);
    assert_eq!(send(&mut bench, 4), 4);
    let large = bench.told.clone().unwrap().limits.charges[0];
    let now = bench.hands.read().boot + bench.told.clone().unwrap().limits.offset;
    assert!(!bench.kernel.take(&large, now, 1500));
    bench.tell(&ledger);
    assert_eq!(
        cut(&bench),
        [0],
        "1,000 bytes are left, and 1,500 were wanted"
    );
    // More is there, whoever gave it, and nobody had to send anything first.
    ledger.grant("a", 1, &bench.list[0], 1000).unwrap();
    bench.tell(&ledger);
    assert!(cut(&bench).is_empty());
    assert_eq!(send(&mut bench, 9), 2);
    bench.tell(&ledger);
    assert_eq!(cut(&bench), [0]);
    bench.hands.0.pass(HOUR);
    bench.tell(&ledger);
    assert!(cut(&bench).is_empty());
    assert_eq!(send(&mut bench, 9), 5);
    ledger.reset(Some("a")).unwrap();
    bench.tell(&ledger);
    assert!(cut(&bench).is_empty());
}

#[test]
fn an_account_without_agents_has_no_meters_after_a_start() {
    let mut bench = Bench::new("  - {id: a, opens: 100, per: day}\n");
    let ledger = bench.open();
    bench.tell(&ledger);
    assert_eq!(bench.act(30), 30);
    drop(ledger);
    let (sender, _) = unbounded_channel();
    let ledger = Ledger::open(bench.folder.path(), Box::new(bench.hands.clone()), sender);
    ledger.adopt(&[], |number| Some(bench.kernel.read(number)));
    let before = bench.told.clone().unwrap().limits.charges[0];
    assert_eq!(ledger.report("a", 1, &bench.list)[0].spent, 30);
    bench.tell(&ledger);
    assert!(bench.told.clone().unwrap().limits.charges[0].epoch > before.epoch);
    assert_eq!(bench.act(100), 70);
}
