//! A log replayed: nothing differs under its own policy, and under another exactly what a plain evaluation of the
//! same actions finds.

mod names;

use std::path::Path;
use std::sync::Arc;

use agentguard_common::record::{Destination, record_flags};
use agentguard_common::verdict::{Operation, Reason, Verdict, access};
use zerocopy::IntoBytes;

use super::{Outcome, Replay};
use crate::audit::read::Reader;
use crate::audit::{Log, Record, Recorder};
use crate::event::sample::Sample;
use crate::kernel::NameBook;
use crate::policy::generate::Generator;
use crate::policy::{LoadOptions, OwnedAction, Policy, load_text};

fn load(text: &str) -> Policy {
    load_text(Path::new("/p.yaml"), text, &LoadOptions::default()).unwrap()
}

/// The record of an action as the kernel would send it under a policy.
fn sample(action: &OwnedAction, policy: &Policy) -> Option<Sample> {
    match action {
        // The kernel sends no such records: it asks about starting alone, and no file has an empty path.
        OwnedAction::Path { access, .. }
            if access & access::EXEC != 0 && *access != access::EXEC =>
        {
            return None;
        }
        OwnedAction::Path { path, .. } | OwnedAction::Exec { path, .. } if path.is_empty() => {
            return None;
        }
        _ => {}
    }
    let judgement = action.with(|action| policy.judge(action));
    if judgement.verdict == Verdict::None {
        return None;
    }
    let make = |operation, target: &[u8]| {
        Sample::new(operation, judgement.verdict, judgement.reason, target)
    };
    Some(match action {
        OwnedAction::Path { path, access } => {
            make(Operation::Open, path).with(|header| header.access = *access)
        }
        OwnedAction::Exec { path, argv } if !argv.is_empty() => {
            let mut sample =
                make(Operation::Exec, path).with(|header| header.access = access::EXEC);
            sample.header.aux = argv.len() as u32;
            for argument in argv {
                sample.arguments.extend_from_slice(argument);
                sample.arguments.push(0);
            }
            sample
        }
        OwnedAction::Network(to) if matches!(to.family, 2 | 10) && to.port != 53 => {
            make(Operation::Connect, to.as_bytes())
        }
        OwnedAction::Listen(at) if matches!(at.family, 2 | 10) => {
            make(Operation::Listen, at.as_bytes())
        }
        OwnedAction::Unix { name, listen } => {
            let is_path = name.first() == Some(&b'/') && !name.contains(&0);
            // A path is made, and not listened at by a rule.
            if !(is_path && !listen || name.len() > 1 && name[0] == 0) {
                return None;
            }
            let operation = if *listen {
                Operation::Listen
            } else {
                Operation::Send
            };
            let mut sample = make(operation, UNIX.as_bytes());
            sample.target.extend_from_slice(name);
            sample
        }
        _ => return None,
    })
}

const UNIX: Destination = Destination {
    family: 1,
    protocol: 0,
    port: 0,
    kind: 1,
    address: [0; 16],
};

fn replay(path: &Path, policy: Policy) -> Outcome {
    let mut replay = Replay::new(Arc::new(policy));
    let mut reader = Reader::open(path).unwrap();
    while let Some(line) = reader.next_line().unwrap() {
        replay.add(&line.record.unwrap());
    }
    replay.finish()
}

fn recorder(path: &Path, policy: &Policy) -> Recorder {
    let mut recorder = Recorder::new(Log::open(path).unwrap(), [0, 0]);
    recorder.judge().add(3, Arc::new(policy.clone()), &[3]);
    let book = NameBook::default();
    for (number, name) in names::NAMES.iter().enumerate() {
        book.enter(number as u32 + 1, name);
    }
    recorder.judge().set_names(book);
    recorder.begin_session(7, "agent");
    recorder
}

/// Records so many random actions under a policy, and replays them under it and under others. How many would be
/// decided otherwise.
fn compare(count: u64, mut actions: Generator, before: &Policy, others: &[Policy]) -> Vec<u64> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let mut recorder = recorder(&path, before);
    let mut expected = vec![0; others.len()];
    let mut written = 0;
    while written < count {
        if before.has_name_rules() && written % 16 == 15 {
            for (expected, other) in expected.iter_mut().zip(others) {
                *expected += u64::from(names::differs(written, before, other));
            }
            names::record(written, before, &mut recorder);
            written += 1;
            continue;
        }
        let action = actions.action();
        let Some(sample) = sample(&action, before) else {
            continue;
        };
        let verdict = |policy: &Policy| action.with(|action| policy.judge(action).verdict);
        for (expected, other) in expected.iter_mut().zip(others) {
            *expected += u64::from(verdict(before) != verdict(other));
        }
        recorder.record(&sample.bytes());
        written += 1;
        if written % 1000 == 0 {
            recorder.settle();
        }
    }
    recorder.settle();
    assert_eq!(recorder.totals().alarms, 0);
    drop(recorder);
    let same = replay(&path, before.clone());
    assert_eq!((same.asked, same.not_asked), (count, 0));
    assert_eq!(same.different, 0, "{:#?}", same.differences);
    for (expected, other) in expected.iter().zip(others) {
        let found = replay(&path, other.clone());
        assert_eq!(found.different, *expected);
        let listed: u64 = found.differences.iter().map(|it| it.count).sum();
        assert_eq!(listed, *expected);
    }
    expected
}

#[test]
fn a_log_of_a_hundred_thousand_records_is_replayed() {
    let mut actions = Generator::new(7);
    let text = names::with_rules(&actions.policy(), names::SOME);
    let before = load(&text);
    // Another default, other names, and another policy altogether.
    let changed = load(&text.replacen("default: deny", "default: allow", 1));
    let renamed = load(&text.replacen(names::SOME, names::OTHERS, 1));
    let other = load(&names::with_rules(
        &Generator::new(4_000).policy(),
        names::OTHERS,
    ));
    let different = compare(100_000, actions, &before, &[changed, renamed, other]);
    assert!(
        different[0] > 0 && different[1] > 500 && different[2] > 10_000,
        "{different:?}"
    );
}

#[test]
fn logs_are_replayed_under_their_own_policy_and_under_others() {
    let mut differences = 0;
    for seed in 0..40 {
        let mut actions = Generator::new(seed);
        let mut text = actions.policy();
        if seed % 2 == 0 {
            text = names::with_rules(&text, names::SOME);
        }
        let before = load(&text);
        let after = load(&Generator::new(seed + 5_000).policy());
        differences += compare(500, actions, &before, &[after])[0];
    }
    assert!(differences > 2_000, "only {differences}");
}

/// What is found when one record, made under the first policy, is replayed under the second.
fn one(sample: &Sample, before: &str, after: &str) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let mut recorder = recorder(&path, &load(before));
    recorder.record(&sample.bytes());
    recorder.settle();
    assert_eq!(recorder.totals().alarms, 0);
    drop(recorder);
    replay(&path, load(after))
}

#[test]
fn what_only_the_kernel_can_answer_is_counted_and_not_asked() {
    let all = "version: 1\nfiles: { default: allow }\n";
    for reason in [
        Reason::PathUnreadable,
        Reason::ProtectedObject,
        Reason::NameWidens,
    ] {
        let sample = Sample::new(Operation::Open, Verdict::Deny, reason, b"/x");
        let outcome = one(&sample, all, all);
        assert_eq!(
            (outcome.asked, outcome.not_asked, outcome.different),
            (0, 1, 0)
        );
    }
}

const PROGRAMS: &str = "version: 1\nfiles: { default: allow }\nexec:\n  default: allow\n";
const COMMANDS: &str =
    "version: 1\nfiles: { default: allow }\nexec:\n  default: allow\n  deny: [\"git push **\"]\n";

#[test]
fn arguments_that_a_record_lacks_are_not_guessed() {
    let exec = |path: &[u8], flags| {
        let sample = Sample::new(Operation::Exec, Verdict::Allow, Reason::Default, path);
        sample.argv(&["git", "push"]).with(|header| {
            header.access = access::EXEC;
            header.flags = flags;
        })
    };
    let whole = one(&exec(b"/usr/bin/git", 0), PROGRAMS, COMMANDS);
    assert_eq!((whole.would_refuse, whole.not_asked), (1, 0));
    let cut = record_flags::ARGS_TRUNCATED;
    let cut_off = one(&exec(b"/usr/bin/git", cut), PROGRAMS, COMMANDS);
    assert_eq!((cut_off.different, cut_off.not_asked), (0, 1));
    // Where the path decides, no argument is missed.
    let other = one(&exec(b"/usr/bin/ls", cut), PROGRAMS, COMMANDS);
    assert_eq!((other.asked, other.different), (1, 0));
    let none = "version: 1\nfiles: { default: allow }\n";
    let refused = one(&exec(b"/usr/bin/git", cut), PROGRAMS, none);
    assert_eq!((refused.asked, refused.would_refuse), (1, 1));
}

#[test]
fn a_file_that_is_opened_to_be_started_is_asked_as_the_kernel_asks() {
    let open = |access| {
        let sample = Sample::new(
            Operation::Open,
            Verdict::Allow,
            Reason::Default,
            b"/lib/ld.so",
        );
        sample.with(|header| {
            header.access = access;
            header.flags = record_flags::FOR_EXEC;
        })
    };
    let reads = "version: 1\nfiles: { default: allow }\n";
    let denies = "version: 1\nfiles: { default: allow }\nexec:\n  deny: [{ path: /lib/ld.so }]\n";
    let nothing = "version: 1\n";
    // No rule speaks of starting it: it was read, and may be read.
    assert_eq!(one(&open(access::READ), reads, reads).different, 0);
    // It was permitted as a program, and may be read as a library.
    assert_eq!(one(&open(access::EXEC), PROGRAMS, reads).different, 0);
    assert_eq!(one(&open(access::READ), reads, denies).would_refuse, 1);
    assert_eq!(one(&open(access::READ), reads, nothing).would_refuse, 1);
}

#[test]
fn mappings_are_asked_as_the_kernel_asks() {
    let sample = Sample::new(
        Operation::Map,
        Verdict::Deny,
        Reason::Default,
        b"/work/x.so",
    )
    .with(|header| header.access = access::EXEC);
    let writes = "version: 1\nfiles: { default: allow }\n";
    let reads = "version: 1\nfiles:\n  read: { default: allow }\n";
    let denies = "version: 1\nexec:\n  deny: [{ path: \"/work/**\" }]\n";
    assert_eq!(one(&sample, writes, writes).different, 0);
    assert_eq!(one(&sample, writes, PROGRAMS).would_permit, 1);
    // What it cannot write is a library.
    assert_eq!(one(&sample, writes, reads).would_permit, 1);
    assert_eq!(one(&sample, writes, denies).different, 0);
}

#[test]
fn a_move_that_would_permit_reading_is_refused() {
    let mut sample = Sample::new(Operation::Rename, Verdict::Allow, Reason::Default, b"/a/x")
        .with(|header| header.access = access::WRITE);
    sample.arguments = b"/b/x".to_vec();
    let all = "version: 1\nfiles: { default: allow }\n";
    let hides = "version: 1\nfiles:\n  default: allow\n  read:\n    deny: [\"/a/**\"]\n";
    let keeps = "version: 1\nfiles:\n  default: allow\n  write:\n    deny: [\"/b/**\"]\n";
    assert_eq!(one(&sample, all, all).different, 0);
    let hidden = one(&sample, all, hides);
    assert_eq!(hidden.differences[0].by, Reason::NameWidens.name());
    assert_eq!(one(&sample, all, keeps).would_refuse, 1);
}

#[test]
fn records_in_which_nothing_was_decided_are_left_out() {
    let mut replay = Replay::new(Arc::new(load("version: 1\n")));
    replay.add(&Record::new("gap"));
    let outcome = replay.finish();
    assert_eq!(
        (outcome.records, outcome.asked, outcome.not_asked),
        (1, 0, 0)
    );
}
