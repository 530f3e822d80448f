//! What a check says of logs that were changed, cut, replaced or not signed.

use std::borrow::Cow;
use std::path::Path;

use super::{Kind, Report, verify};
use crate::audit::key::Key;
use crate::audit::mark::{Head, Mark};
use crate::audit::{Log, LogOptions, Record};

/// Makes a signed log of segments.
pub(super) fn make(log: &Path, state: &Path, segments: usize, records: usize) {
    let key = Key::of_state(state).unwrap().0;
    let options = LogOptions {
        checkpoint_records: 100,
        ..LogOptions::default()
    };
    let mut log = Log::open_after(log, 0..0, options, Some(key)).unwrap();
    for segment in 0..segments {
        for number in 0..records {
            let target = format!("/work/{segment}/{number}");
            let verdict = if number % 10 == 0 { "deny" } else { "allow" };
            let mut record = Record {
                time: Cow::Borrowed("2026-11-23T04:05:06.000000000Z"),
                agent: Some(Cow::Borrowed("claude")),
                exe: Some(Cow::Borrowed("/usr/bin/git")),
                target: Some(Cow::Owned(target)),
                verdict: Some(Cow::Borrowed(verdict)),
                ..Record::new("open")
            };
            log.append(&mut record).unwrap();
        }
        log.sync().unwrap();
        log.tend().unwrap();
        if segment + 1 < segments {
            // Every other segment stays plain, as if packing had been cut off.
            log.turn_for_test(segment % 2 == 0);
        }
    }
    log.sync().unwrap();
}

fn check(log: &Path, state: &Path, anchors: Vec<Mark>) -> Report {
    let key = Key::of_state(state).unwrap().0.public();
    verify(log, &[key], anchors, &mut |_| {}).unwrap()
}

#[test]
fn the_first_bad_record_is_named_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let (log, state) = (
        folder.path().join("audit.jsonl"),
        folder.path().join("state"),
    );
    make(&log, &state, 1, 20);
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::write(&log, text.replace("/work/0/7\"", "/work/0/x\"")).unwrap();
    let report = check(&log, &state, vec![]);
    let first = &report.findings[0];
    assert_eq!(first.kind, Kind::Changed);
    assert_eq!(first.segment.as_deref(), Some("audit.jsonl"));
    assert_eq!((first.seq, first.line), (Some(9), Some(9)));
    let byte = text
        .lines()
        .take(8)
        .map(|line| line.len() + 1)
        .sum::<usize>();
    assert_eq!(first.byte, Some(byte as u64));
    // What comes behind is judged by itself.
    assert_eq!(report.findings.len(), 1);
    let lines: Vec<&str> = text.lines().collect();
    let without = [&lines[..4], &lines[7..]].concat().join("\n") + "\n";
    std::fs::write(&log, without).unwrap();
    let report = check(&log, &state, vec![]);
    assert_eq!(report.missing, 3);
    let gap = report.findings.iter().find(|found| found.kind == Kind::Gap);
    assert_eq!(gap.unwrap().message, "records 5 to 7 are missing: 3");
}

#[test]
fn a_replaced_log_is_found_by_its_anchor() {
    let folder = tempfile::tempdir().unwrap();
    let (log, state) = (
        folder.path().join("one/audit.jsonl"),
        folder.path().join("state"),
    );
    make(&log, &state, 2, 50);
    let anchor = Head::read(&log).unwrap().unwrap();
    assert!(check(&log, &state, vec![anchor.clone()]).is_proved());
    // Somebody who has the key makes another one, whole and signed, and longer.
    std::fs::remove_dir_all(log.parent().unwrap()).unwrap();
    make(&log, &state, 2, 80);
    assert!(check(&log, &state, vec![]).is_proved());
    let report = check(&log, &state, vec![anchor.clone()]);
    assert_eq!(report.findings[0].kind, Kind::Replaced, "{report:#?}");
    // Or one that is shorter.
    std::fs::remove_dir_all(log.parent().unwrap()).unwrap();
    make(&log, &state, 1, 5);
    let report = check(&log, &state, vec![anchor.clone()]);
    assert_eq!(report.findings[0].kind, Kind::Replaced, "{report:#?}");
    // An anchor that somebody else signed says nothing.
    let other = Key::generate().unwrap();
    let forged = Mark::sign(&other, &[b'0'; 64], 3, &[b'0'; 64], "now");
    let report = check(&log, &state, vec![forged]);
    assert_eq!(report.findings[0].kind, Kind::OtherKey, "{report:#?}");
}

#[test]
fn what_is_not_signed_is_not_called_proved() {
    let folder = tempfile::tempdir().unwrap();
    let (log, state) = (
        folder.path().join("audit.jsonl"),
        folder.path().join("state"),
    );
    make(&log, &state, 1, 5);
    assert!(check(&log, &state, vec![]).is_proved());
    let without_key = verify(&log, &[], vec![], &mut |_| {}).unwrap();
    assert!(without_key.is_whole() && !without_key.is_proved());
    let other = Key::generate().unwrap().public();
    let report = verify(&log, &[other], vec![], &mut |_| {}).unwrap();
    assert!(!report.is_whole());
    std::fs::remove_file(Head::path(&log)).unwrap();
    let report = check(&log, &state, vec![]);
    assert_eq!(report.findings[0].kind, Kind::Unsigned);
}
