//! The recorder end to end: bytes in, chained lines out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentguard_common::record::{Destination, record_flags};
use agentguard_common::verdict::{Lock, Operation, Reason, Verdict, access};
use zerocopy::IntoBytes;

use super::recorder::REFUSED_KEPT;
use super::{Log, Record, Recorder, Tally, chain, read::Reader, record::op};
use crate::event::sample::Sample;
use crate::policy::{LoadOptions, load_text};

const POLICY: &str = r#"
version: 1
name: sample
files:
  read:
    allow: ["/work/**"]
    deny:
      - { path: "/work/.env", id: no-secrets, reason: "secrets stay secret" }
exec:
  allow:
    - { path: "/usr/bin/git" }
  deny:
    - { command: "git push --force **", id: no-force }
network:
  allow:
    - { cidr: "127.0.0.0/8" }
"#;

struct Bench {
    folder: tempfile::TempDir,
    recorder: Recorder,
}

impl Bench {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(&folder.path().join("audit.jsonl")).unwrap();
        let mut recorder = Recorder::new(log, [0, 0]);
        let policy = load_text(Path::new("/p/sample.yaml"), text, &LoadOptions::default()).unwrap();
        recorder.judge().add(3, Arc::new(policy), &[3]);
        recorder.begin_session(7, "claude");
        Self { folder, recorder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("audit.jsonl")
    }

    fn send(&mut self, sample: &Sample) {
        self.recorder.record(&sample.bytes());
    }

    /// Records whose chain is whole.
    fn records(&mut self) -> Vec<Record<'static>> {
        self.recorder.settle();
        let mut reader = Reader::open(&self.path()).unwrap();
        let mut prev = chain::GENESIS;
        let mut records = Vec::new();
        while let Some(line) = reader.next_line().unwrap() {
            prev = chain::verify(&line.text, &prev).unwrap();
            records.push(line.record.unwrap());
        }
        records
    }
}

fn open(verdict: Verdict, reason: Reason, path: &str) -> Sample {
    Sample::new(Operation::Open, verdict, reason, path.as_bytes())
        .with(|header| header.access = access::READ)
}

#[test]
fn a_denial_names_its_rule() {
    let mut bench = Bench::new(POLICY);
    bench.send(&open(Verdict::Deny, Reason::Rule, "/work/.env"));
    let records = bench.records();
    let record = &records[0];
    assert_eq!(record.agent.as_deref(), Some("claude"));
    assert_eq!(record.rule.as_deref(), Some("no-secrets"));
    assert_eq!(record.reason.as_deref(), Some("secrets stay secret"));
    assert_eq!(record.policy.as_deref(), Some("sample"));
    assert_eq!(record.verdict.as_deref(), Some("deny"));
    assert_eq!(record.access.as_deref(), Some("read"));
    assert_eq!(record.rule_at.as_deref(), Some("/p/sample.yaml:8"));
    assert_eq!(records.len(), 1, "no alarm");
}

#[test]
fn every_kind_of_agreement_is_silent() {
    let mut bench = Bench::new(POLICY);
    let destination = Destination {
        family: 2,
        protocol: 6,
        port: 80,
        kind: 1,
        address: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1],
    };
    let unix = Destination {
        family: 1,
        ..Destination::default()
    };
    let exec = |verdict, reason| {
        Sample::new(Operation::Exec, verdict, reason, b"/usr/bin/git")
            .with(|h| h.access = access::EXEC)
    };
    let samples = [
        open(Verdict::Allow, Reason::Rule, "/work/a"),
        open(Verdict::Deny, Reason::Default, "/etc/shadow"),
        open(Verdict::Deny, Reason::PathUnreadable, ""),
        exec(Verdict::Allow, Reason::Rule).argv(&["git", "push"]),
        exec(Verdict::Deny, Reason::Rule).argv(&["git", "push", "--force"]),
        open(Verdict::Allow, Reason::Rule, "/usr/bin/git").with(|h| {
            h.access = access::EXEC;
            h.flags = record_flags::FOR_EXEC;
        }),
        open(Verdict::Deny, Reason::Default, "/usr/bin/nc").with(|h| {
            h.access = access::EXEC;
            h.flags = record_flags::FOR_EXEC;
        }),
        Sample::new(
            Operation::Connect,
            Verdict::Allow,
            Reason::Rule,
            destination.as_bytes(),
        ),
        Sample::new(
            Operation::Connect,
            Verdict::Deny,
            Reason::UnixSocket,
            unix.as_bytes(),
        ),
    ];
    for sample in &samples {
        bench.send(sample);
    }
    let records = bench.records();
    for record in &records {
        assert_ne!(record.op, op::ALARM, "{record:?}");
    }
    assert_eq!(records.len(), samples.len());
    assert_eq!(records[7].target.as_deref(), Some("127.0.0.1:80"));
    assert_eq!(records[4].rule.as_deref(), Some("no-force"));
    let tally = Tally {
        allowed: 4,
        denied: 5,
        would_deny: 0,
    };
    assert_eq!(bench.recorder.tally(7), tally);
    assert_eq!(bench.recorder.refusals(7).len(), 5);
}

#[test]
fn a_disagreement_is_an_alarm() {
    let mut bench = Bench::new(POLICY);
    bench.send(&open(Verdict::Allow, Reason::Rule, "/work/.env"));
    bench.send(&open(Verdict::Allow, Reason::Rule, "/work/a").with(|h| h.generation = 99));
    let records = bench.records();
    let ops: Vec<_> = records.iter().map(|record| &*record.op).collect();
    assert_eq!(ops, ["open", "alarm", "open", "alarm"]);
    let detail = records[1].detail.as_deref().unwrap();
    assert!(
        detail.contains("the kernel says allow, the reference says deny by no-secrets"),
        "{detail}"
    );
    assert_eq!(bench.recorder.totals().alarms, 2);
}

#[test]
fn in_shadow_mode_a_denial_would_be_one() {
    let mut bench = Bench::new(&format!("{POLICY}mode: shadow\n"));
    bench.send(&open(Verdict::WouldDeny, Reason::Rule, "/work/.env"));
    bench.send(&open(Verdict::Deny, Reason::Rule, "/work/.env"));
    let records = bench.records();
    let ops: Vec<_> = records.iter().map(|record| &*record.op).collect();
    assert_eq!(ops, ["open", "open", "alarm"]);
    assert_eq!(records[0].verdict.as_deref(), Some("would-deny"));
}

#[test]
fn the_acting_program_is_named_by_its_exec() {
    let mut bench = Bench::new(POLICY);
    let exec = Sample::new(
        Operation::Exec,
        Verdict::Allow,
        Reason::Rule,
        b"/usr/bin/git",
    )
    .argv(&["git", "st\natus"])
    .with(|h| h.new_exec_id = 42);
    bench.send(&exec);
    bench.send(&open(Verdict::Allow, Reason::Rule, "/work/a").with(|h| h.exec_id = 42));
    let records = bench.records();
    assert_eq!(records[0].exe, None);
    assert_eq!(records[0].argv.as_ref().unwrap()[1], r"st\x0aatus");
    assert_eq!(records[1].exe.as_deref(), Some("/usr/bin/git"));
}

#[test]
fn what_is_malformed_or_lost_is_a_record() {
    let mut bench = Bench::new(POLICY);
    bench.recorder.record(b"nonsense\n");
    bench.recorder.losses([5, 2]);
    bench.recorder.losses([5, 2]);
    bench.recorder.losses([6, 2]);
    let records = bench.records();
    let seen: Vec<_> = records
        .iter()
        .map(|record| (&*record.op, record.class.as_deref(), record.lost))
        .collect();
    assert_eq!(
        seen,
        [
            (op::MALFORMED, None, None),
            (op::GAP, Some("allowed"), Some(5)),
            (op::GAP, Some("denied"), Some(2)),
            (op::GAP, Some("allowed"), Some(1)),
        ]
    );
    assert!(
        records[0]
            .detail
            .as_deref()
            .unwrap()
            .ends_with(r"nonsense\x0a")
    );
}

#[test]
fn subscribers_get_the_lines_of_the_log() {
    let mut bench = Bench::new(POLICY);
    let mut all = bench.recorder.subscribe();
    let mut refused = bench.recorder.subscribe_refusals();
    bench.send(&open(Verdict::Allow, Reason::Rule, "/work/a"));
    bench.send(&open(Verdict::Deny, Reason::Rule, "/work/.env"));
    bench.recorder.settle();
    let text = std::fs::read_to_string(bench.path()).unwrap();
    for line in text.lines() {
        assert_eq!(&*all.try_recv().unwrap().line, line);
    }
    let notice = refused.try_recv().unwrap();
    assert_eq!(
        (notice.session, &*notice.line),
        (7, text.lines().nth(1).unwrap())
    );
    assert!(refused.try_recv().is_err());
}

#[test]
fn refusals_are_kept_of_the_sessions_that_ended_last() {
    let mut bench = Bench::new(POLICY);
    let sessions = 100..=100 + u32::try_from(REFUSED_KEPT).unwrap();
    for session in sessions.clone() {
        bench.recorder.begin_session(session, "late");
        let refused = open(Verdict::Deny, Reason::Rule, "/work/.env");
        bench.send(&refused.with(|header| header.session = session));
        bench.recorder.settle();
        assert_eq!(bench.recorder.refusals(session).len(), 1);
        bench.recorder.end_session(session);
    }
    let kept = |session| bench.recorder.refusals(session).len();
    assert_eq!(sessions.map(kept).collect::<Vec<_>>(), {
        let mut kept = vec![1; REFUSED_KEPT + 1];
        kept[0] = 0;
        kept
    });
}

/// Prints the cost of a record: `cargo test --release -- --ignored --nocapture throughput`.
#[test]
#[ignore = "a measurement, not a test"]
fn throughput() {
    let mut bench = Bench::new(POLICY);
    let records: Vec<_> = (0..1000)
        .map(|number| {
            open(
                Verdict::Allow,
                Reason::Rule,
                &format!("/work/src/module/file{number}.rs"),
            )
            .bytes()
        })
        .collect();
    bench.send(
        &Sample::new(
            Operation::Exec,
            Verdict::Allow,
            Reason::Rule,
            b"/usr/bin/git",
        )
        .argv(&["git"])
        .with(|h| h.new_exec_id = 1),
    );
    let begun = std::time::Instant::now();
    let rounds = 500;
    for _ in 0..rounds {
        for bytes in &records {
            bench.recorder.record(bytes);
        }
        bench.recorder.settle();
    }
    let count = rounds * u32::try_from(records.len()).unwrap();
    let rate = f64::from(count) / begun.elapsed().as_secs_f64();
    println!(
        "{count} records, {rate:.0} records/s, {:?}",
        bench.recorder.totals()
    );
}

#[test]
fn what_was_refused_unseen_is_not_described() {
    let mut bench = Bench::new(POLICY);
    let refused = |operation, reason, aux| {
        Sample::new(operation, Verdict::Deny, reason, b"").with(|header| header.aux = aux)
    };
    let lock = Lock::Capabilities as u32;
    bench.send(&refused(Operation::Open, Reason::LabelUnavailable, 0));
    bench.send(&refused(Operation::Socket, Reason::LabelUnavailable, 0));
    bench.send(&refused(Operation::Mkdir, Reason::NoPolicy, 0));
    bench.send(&refused(Operation::Kernel, Reason::LabelUnavailable, lock));
    // What is known is told: the family of a socket, and which capability.
    bench.send(&refused(Operation::Socket, Reason::NoPolicy, 17));
    bench.send(&refused(Operation::Kernel, Reason::NoPolicy, lock));
    let records = bench.records();
    let told: Vec<_> = records
        .iter()
        .map(|record| {
            assert_eq!(record.agent.as_deref(), Some("claude"));
            let facts = (record.open_flags, record.mode.as_deref());
            assert_eq!(facts, (None, None));
            (record.target.as_deref(), record.family.as_deref())
        })
        .collect();
    let packet = (records[4].target.as_deref(), Some("packet"));
    let expected = [
        (None, None),
        (None, None),
        (None, None),
        (Some("capabilities"), None),
        packet,
        (Some("capabilities:chown"), None),
    ];
    assert_eq!(told, expected);
    assert!(packet.0.is_some());
}
