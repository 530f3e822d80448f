//! Approvals: on the disk before they are in the kernel, out of the kernel before they are forgotten, and never given
//! back by a death.

use agentguard_common::verdict::{Operation, Reason, Verdict, access};

use super::*;
use crate::approval::Scope;
use crate::cli::exit::Exit;
use crate::event::sample::Sample;

pub(super) const ASKS: &str = "\
version: 1
files: {read: {default: allow, ask: [{id: look, path: \"/asked/**\"}]}}
";

/// What the kernel records of a read that a rule asks about.
pub(super) fn ask(bench: &Bench, session: u32, path: &str) {
    let asked = Sample::new(Operation::Open, Verdict::Ask, Reason::Rule, path.as_bytes());
    let asked = asked.with(|it| {
        (it.agent, it.session, it.generation) = (1, session, 1);
        it.access = access::READ;
    });
    let mut recorder = bench.engine.recorder();
    recorder.record(&asked.bytes());
    recorder.settle();
}

pub(super) fn waiting(bench: &Bench) -> Vec<u64> {
    let approvals = bench.engine.approvals(Some("a")).unwrap();
    approvals.waiting.iter().map(|it| it.id).collect()
}

pub(super) fn numbers(bench: &Bench) -> Vec<u32> {
    bench.kernel(|kernel| kernel.approved.iter().map(|it| it.1.number).collect())
}

#[tokio::test]
async fn what_is_asked_waits_and_is_granted_to_the_byte() {
    let bench = Bench::new();
    bench.write("p", ASKS);
    bench.attach("a", "/one").await.unwrap();
    ask(&bench, 1, "/asked/x");
    ask(&bench, 1, "/asked/x");
    assert_eq!(waiting(&bench), [1]);
    let granted = bench.engine.approve(1, Scope::Once, "root").await.unwrap();
    assert_eq!((granted.what.tries, granted.by.as_str()), (2, "root"));
    assert!(waiting(&bench).is_empty());
    let (key, grant) = bench.kernel(|kernel| kernel.approved[0]);
    assert_eq!((key.agent, key.session, key.access), (1, 1, 1));
    assert_eq!(&key.object[..key.len as usize], b"/asked/x");
    assert_eq!((grant.most, grant.until, grant.used), (1, 0, 0));
    // The kernel says that it was used, and the log names the approval.
    let used = Sample::new(
        Operation::Open,
        Verdict::Allow,
        Reason::Approved,
        b"/asked/x",
    );
    let used = used.with(|it| {
        (it.agent, it.session, it.generation) = (1, 1, 1);
        it.access = access::READ;
        it.errno = grant.number as u16;
    });
    let forged = used.bytes();
    bench.kernel(|kernel| kernel.approved[0].1.used = 1);
    {
        let mut recorder = bench.engine.recorder();
        recorder.record(&forged);
        recorder.settle();
    }
    let records = bench.records();
    let last = records.last().unwrap();
    assert_eq!(last.approval, Some(1), "{last:?}");
    assert_eq!(
        (last.cause.as_deref(), last.rule.as_deref()),
        (Some("approved"), Some("look"))
    );
    let shown = bench.engine.approvals(None).unwrap();
    assert!(shown.granted[0].over && shown.granted[0].used == 1);
    bench.engine.detach("a").await.unwrap();
    assert!(numbers(&bench).is_empty());
    assert!(bench.engine.approve(1, Scope::Once, "root").await.is_err());
}

#[tokio::test]
async fn a_use_that_nobody_granted_is_an_alarm() {
    let bench = Bench::new();
    bench.write("p", ASKS);
    bench.attach("a", "/one").await.unwrap();
    ask(&bench, 1, "/asked/x");
    bench
        .engine
        .approve(1, Scope::Session, "root")
        .await
        .unwrap();
    let number = numbers(&bench)[0] as u16;
    let claims = [
        ("/asked/y", number, 1, "another object"),
        ("/asked/x", number + 1, 1, "another number"),
        ("/free", number, 1, "what no rule asks about"),
        ("/asked/x", number, 2, "another access"),
    ];
    for (path, number, access, what) in claims {
        let before = bench.engine.recorder().totals().alarms;
        let used = Sample::new(
            Operation::Open,
            Verdict::Allow,
            Reason::Approved,
            path.as_bytes(),
        );
        let used = used.with(|it| {
            (it.agent, it.session, it.generation) = (1, 1, 1);
            (it.access, it.errno) = (access, number);
        });
        bench.engine.recorder().record(&used.bytes());
        assert_eq!(
            bench.engine.recorder().totals().alarms,
            before + 1,
            "{what}"
        );
    }
}

#[tokio::test]
async fn what_the_kernel_does_not_take_is_not_granted() {
    let bench = Bench::new();
    bench.write("p", ASKS);
    bench.attach("a", "/one").await.unwrap();
    ask(&bench, 1, "/asked/x");
    bench.kernel(|kernel| kernel.fails = Some("approve"));
    assert!(bench.engine.approve(1, Scope::Once, "root").await.is_err());
    bench.kernel(|kernel| kernel.fails = None);
    assert!(bench.engine.approvals(None).unwrap().granted.is_empty());
    assert!(numbers(&bench).is_empty());
    assert!(bench.engine.revoke(1, "root").await.is_err());
    // It asks again, and waits again.
    ask(&bench, 1, "/asked/x");
    assert_eq!(waiting(&bench), [2]);
    for seconds in [0, u64::MAX] {
        let scope = Scope::Seconds(seconds);
        assert!(bench.engine.approve(2, scope, "root").await.is_err());
    }
    let granted = bench.engine.approve(2, Scope::Seconds(60), "root").await;
    assert!(granted.unwrap().until.is_some());
    assert!(bench.kernel(|kernel| kernel.approved[0].1.until) > 0);
}

#[tokio::test]
async fn a_death_takes_nothing_away_and_gives_nothing_back() {
    let mut bench = Bench::new();
    bench.write("p", ASKS);
    bench.attach("a", "/one").await.unwrap();
    for path in ["/asked/kept", "/asked/revoked", "/asked/lost"] {
        ask(&bench, 1, path);
    }
    for id in 1..=3 {
        bench
            .engine
            .approve(id, Scope::Session, "root")
            .await
            .unwrap();
    }
    bench.engine.revoke(2, "root").await.unwrap();
    // Of one the kernel's entry is gone, as after a death in the middle of taking it back; of one the disk's.
    let stray = bench.kernel(|kernel| {
        let lost = kernel.approved.pop().unwrap();
        let mut stray = lost;
        stray.0.object[0] = b'!';
        stray.1.number = 77;
        kernel.approved.push(stray);
        stray.1.number
    });
    bench.die();
    bench.restore().unwrap();
    let granted = bench.engine.approvals(None).unwrap().granted;
    let ids: Vec<u64> = granted.iter().map(|it| it.what.id).collect();
    assert_eq!(ids, [1]);
    assert!(!numbers(&bench).contains(&stray) && numbers(&bench).len() == 1);
    ask(&bench, 1, "/asked/new");
    let again = waiting(&bench);
    assert!(again.len() == 1 && again[0] > 3, "numbers go on: {again:?}");
    // What cannot be read grants nothing.
    std::fs::write(bench.folder.path().join("state/approvals.json"), "{").unwrap();
    bench.die();
    bench.restore().unwrap();
    assert!(bench.engine.approvals(None).unwrap().granted.is_empty());
    assert!(numbers(&bench).is_empty());
}

#[tokio::test]
async fn a_number_from_before_a_restart_means_no_other_act() {
    let mut bench = Bench::new();
    bench.write("p", ASKS);
    bench.attach("a", "/one").await.unwrap();
    // Somebody sees this in a list. It was never granted, so nothing but its number is on the disk.
    ask(&bench, 1, "/asked/harmless");
    let [seen] = waiting(&bench)[..] else {
        panic!("one act waits");
    };
    bench.die();
    bench.restore().unwrap();
    ask(&bench, 1, "/asked/other");
    let [other] = waiting(&bench)[..] else {
        panic!("one act waits");
    };
    assert_ne!(seen, other);
    let granted = bench.engine.approve(seen, Scope::Session, "root").await;
    let denied = bench.engine.refuse(seen, "root").await;
    for error in [granted.unwrap_err(), denied.unwrap_err()] {
        let said = error.to_string();
        assert!(said.contains("does not wait any more"), "{said}");
        assert_eq!(Exit::from(&error), Exit::Missing);
    }
    let unknown = bench.engine.refuse(999_999, "root").await.unwrap_err();
    assert!(unknown.to_string().contains("nothing waits under 999999"));
    let shown = bench.engine.approvals(None).unwrap();
    assert!(shown.granted.is_empty() && numbers(&bench).is_empty());
    assert_eq!(shown.waiting[0].denied_by, None);
    // The number that is listed now is the one to use; once granted, it is not granted again.
    let granted = bench.engine.approve(other, Scope::Once, "root").await;
    assert_eq!(granted.unwrap().what.target, "/asked/other");
    let again = bench.engine.approve(other, Scope::Once, "root").await;
    let said = again.unwrap_err().to_string();
    assert!(
        said.contains("is granted already (read /asked/other)"),
        "{said}"
    );
}

#[tokio::test]
async fn where_nobody_can_answer_nothing_waits() {
    let mut bench = Bench::new();
    bench.write("p", ASKS);
    bench.die();
    // As under `agentguard run` without a daemon.
    let root = bench.folder.path().canonicalize().unwrap();
    bench.engine = engine(&root.join("nowhere"), &bench.kernel);
    let mut parts = parts(&root, &bench.kernel);
    parts.store = None;
    bench.engine = Arc::new(Engine::assemble(parts));
    bench.attach("a", "/one").await.unwrap();
    ask(&bench, 1, "/asked/x");
    assert!(waiting(&bench).is_empty());
    let records = bench.records();
    let last = records.last().unwrap();
    assert_eq!(
        (last.verdict.as_deref(), last.approval),
        (Some("ask"), None)
    );
    assert!(!root.join("state/approval-numbers").exists());
}

#[tokio::test]
async fn a_script_is_granted_with_its_arguments_and_its_interpreter_started() {
    let bench = Bench::new();
    let text = "version: 1\nexec: {default: allow, ask: [{id: script, command: \"/s **\"}]}\n";
    bench.write("p", text);
    bench.attach("a", "/one").await.unwrap();
    let start = |verdict, reason, path: &[u8], argv: &[&str], number| {
        let sample = Sample::new(Operation::Exec, verdict, reason, path).argv(argv);
        let sample = sample.with(|it| {
            (it.agent, it.session, it.generation) = (1, 1, 1);
            (it.access, it.errno) = (access::EXEC, number);
        });
        let mut recorder = bench.engine.recorder();
        recorder.record(&sample.bytes());
        recorder.settle();
        recorder.totals().alarms
    };
    let asked = ["s", "one", "two"];
    assert_eq!(start(Verdict::Ask, Reason::Rule, b"/s", &asked, 0), 0);
    bench.engine.approve(1, Scope::Once, "root").await.unwrap();
    let number = numbers(&bench)[0] as u16;
    let (allow, approved) = (Verdict::Allow, Reason::Approved);
    let given = ["/bin/sh", "/s", "one", "two"];
    assert_eq!(start(allow, approved, b"/bin/sh", &given, number), 0);
    let records = bench.records();
    let last = records.last().unwrap();
    assert_eq!(
        (last.approval, last.rule.as_deref()),
        (Some(1), Some("script"))
    );
    let other = ["/bin/sh", "/s", "one", "three"];
    assert_eq!(start(allow, approved, b"/bin/sh", &other, number), 1);
    assert_eq!(start(allow, approved, b"/bin/sh", &given, number + 1), 2);
}
