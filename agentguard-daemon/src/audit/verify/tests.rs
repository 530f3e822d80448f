//! Random manipulations of a log, every one of which must be found.

use std::borrow::Cow;
use std::io::Cursor;
use std::path::Path;

use super::{Kind, Piece, Report, Walk, packed, verify};
use crate::audit::key::{Key, PublicKey};
use crate::audit::mark::{Head, Mark};
use crate::audit::segment::{self, Segment};
use crate::audit::{Log, LogOptions, Record};

/// A sequence of numbers that looks random (splitmix64), so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides.max(1) as u64) as usize
    }
}

/// Makes a signed log of segments.
fn make(log: &Path, state: &Path, segments: usize, records: usize) {
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

/// One file of the log in memory.
#[derive(Clone)]
struct File {
    segment: Segment,
    bytes: Vec<u8>,
}

fn walk_through(walk: &mut Walk, files: &[File]) {
    for file in files {
        let name = file.segment.name();
        let piece = Piece {
            name: &name,
            first: file.segment.first,
        };
        if file.segment.packed {
            packed(walk, Cursor::new(&file.bytes), piece, &mut |_| {}).unwrap();
        } else {
            walk.piece(piece, &mut Cursor::new(&file.bytes), false, &mut |_| {});
        }
        if !walk.report().is_whole() {
            return;
        }
    }
}

/// Changes one of the files; says how.
fn manipulate(files: &mut Vec<File>, dice: &mut Dice) -> (usize, &'static str) {
    let at = dice.roll(files.len());
    let kind = dice.roll(8);
    let place = dice.roll(files[at].bytes.len());
    let lines = |bytes: &[u8]| -> Vec<Vec<u8>> {
        bytes
            .split_inclusive(|byte| *byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect()
    };
    let is_packed = files[at].segment.packed;
    if kind == 4 {
        files.remove(at);
        return (at, "the file was removed");
    }
    let bytes = &mut files[at].bytes;
    match kind {
        0 => {
            bytes[place] ^= 1 << dice.roll(8);
            (at, "a bit was flipped")
        }
        1 => {
            bytes.remove(place);
            (at, "a byte was removed")
        }
        2 => {
            bytes.insert(place, dice.roll(256) as u8);
            (at, "a byte was inserted")
        }
        3 => {
            bytes.truncate(place);
            (at, "the file was cut")
        }
        5 if !is_packed => {
            let mut parts = lines(bytes);
            parts.remove(dice.roll(parts.len()));
            *bytes = parts.concat();
            (at, "a line was removed")
        }
        6 if !is_packed => {
            let mut parts = lines(bytes);
            let line = parts[dice.roll(parts.len())].clone();
            let to = dice.roll(parts.len() + 1);
            parts.insert(to, line);
            *bytes = parts.concat();
            (at, "a line was put in again")
        }
        7 if !is_packed => {
            let mut parts = lines(bytes);
            let (one, other) = (dice.roll(parts.len()), dice.roll(parts.len()));
            let other = if one == other {
                (one + 1) % parts.len()
            } else {
                other
            };
            parts.swap(one, other);
            *bytes = parts.concat();
            (at, "two lines changed places")
        }
        _ => {
            bytes[place] = bytes[place].wrapping_add(1 + dice.roll(255) as u8);
            (at, "a byte was changed")
        }
    }
}

/// Manipulates a log so many times, each time from the untouched one, and counts what is not found.
///
/// The state before the file that was changed is that of the untouched log, so the walk begins there.
fn found_of(log: &Path, key: PublicKey, count: usize, seed: u64) -> Vec<String> {
    let files: Vec<File> = segment::all_of(log)
        .unwrap()
        .into_iter()
        .map(|segment| File {
            bytes: std::fs::read(&segment.path).unwrap(),
            segment,
        })
        .collect();
    let mut walk = Walk::new(String::new(), &[key]);
    walk.expect(Head::read(log).unwrap().unwrap(), "head");
    let mut states = vec![walk.clone()];
    for file in &files {
        walk_through(&mut walk, std::slice::from_ref(file));
        states.push(walk.clone());
    }
    let whole = walk.finish(false);
    assert!(whole.is_proved(), "{whole:#?}");
    let mut dice = Dice(seed);
    let mut missed = Vec::new();
    for round in 0..count {
        // Copying one file is enough: the others are as they were.
        let mut changed = files.clone();
        let (at, what) = manipulate(&mut changed, &mut dice);
        let mut walk = states[at].clone();
        walk_through(&mut walk, &changed[at..]);
        if walk.finish(false).is_whole() {
            missed.push(format!("round {round}: {what} in file {at}"));
        }
    }
    missed
}

#[test]
fn every_manipulation_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (log, state) = (
        folder.path().join("audit.jsonl"),
        folder.path().join("state"),
    );
    make(&log, &state, 6, 60);
    let key = Key::of_state(&state).unwrap().0.public();
    let missed = found_of(&log, key, 10_000, 1);
    assert!(missed.is_empty(), "{} of 10,000: {missed:#?}", missed.len());
}

/// `cargo test --release -p agentguard-daemon --lib a_million_records -- --ignored --nocapture`
#[test]
#[ignore = "takes minutes and 700 MB: run it by name, in release"]
fn every_manipulation_of_a_million_records_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (log, state) = (
        folder.path().join("audit.jsonl"),
        folder.path().join("state"),
    );
    make(&log, &state, 200, 5_000);
    let key = Key::of_state(&state).unwrap().0.public();
    let missed = found_of(&log, key, 10_000, 2);
    println!(
        "{} of 10,000 manipulations were found",
        10_000 - missed.len()
    );
    assert!(missed.is_empty(), "{missed:#?}");
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
