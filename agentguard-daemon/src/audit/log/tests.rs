//! The log as its writer keeps it: resumed, repaired, closed and packed.

use std::fs::OpenOptions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::SystemTime;

use super::*;
use crate::audit::chain::GENESIS;
use crate::audit::mark::Head;
use crate::audit::read::Reader;
use crate::audit::segment;

fn write(log: &mut Log, target: &str) {
    let mut record = Record {
        time: Cow::Borrowed("2026-11-23T04:05:06.000000000Z"),
        target: Some(Cow::Borrowed(target)),
        ..Record::new("open")
    };
    log.append(&mut record).unwrap();
}

/// The targets of a log whose chain is whole and whose numbers have no holes.
fn verified(path: &Path) -> Vec<String> {
    let mut prev = GENESIS;
    let mut reader = Reader::open(path).unwrap();
    let mut targets = Vec::new();
    while let Some(line) = reader.next_line().unwrap() {
        prev = chain::verify(&line.text, &prev).unwrap();
        let record = line.record.unwrap();
        targets.push(record.target.unwrap_or(record.op).into_owned());
        assert_eq!(record.seq, targets.len() as u64);
    }
    targets
}

#[test]
fn a_log_resumes_where_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/audit.jsonl");
    for target in ["/a", "/b", "/c"] {
        write(&mut Log::open(&path).unwrap(), target);
    }
    assert_eq!(verified(&path), ["/a", "/b", "/c"]);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let parent = path.parent().unwrap().metadata().unwrap();
    assert_eq!(parent.permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_second_writer_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let first = Log::open(&path).unwrap();
    assert!(matches!(Log::open(&path), Err(LogError::Busy(_))));
    drop(first);
    Log::open(&path).unwrap();
}

#[test]
fn a_link_or_device_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("link");
    symlink(folder.path().join("target"), &link).unwrap();
    assert!(matches!(Log::open(&link), Err(LogError::Symlink(_))));
    assert!(!folder.path().join("target").exists());
    assert!(matches!(
        Log::open(Path::new("/dev/null")),
        Err(LogError::NotAFile(_))
    ));
}

#[test]
fn a_torn_line_is_removed_and_that_is_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    {
        let mut log = Log::open(&path).unwrap();
        write(&mut log, "/a");
        write(&mut log, "/b");
    }
    let size = path.metadata().unwrap().size();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(size - 20).unwrap();
    write(&mut Log::open(&path).unwrap(), "/c");
    assert_eq!(verified(&path), ["/a", op::LOG_REPAIR, "/c"]);
}

#[test]
fn a_torn_line_of_a_batch_that_is_written_again_is_no_loss() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    {
        let mut log = Log::open(&path).unwrap();
        for target in ["/before", "/a", "/b", "/c"] {
            write(&mut log, target);
        }
    }
    let size = path.metadata().unwrap().size();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(size - 20).unwrap();
    let mut log = Log::open_after(&path, 2..6, LogOptions::default(), None).unwrap();
    let written = log.written_of(2, 6).unwrap();
    assert_eq!((written.records, written.whole), (2, false));
    write(&mut log, "/c");
    let mut gap = Record {
        time: Cow::Borrowed("2026-11-23T04:05:06.000000000Z"),
        class: Some(Cow::Borrowed("denied")),
        lost: Some(3),
        ..Record::new(op::GAP)
    };
    log.append(&mut gap).unwrap();
    log.flush().unwrap();
    let written = log.written_of(2, 6).unwrap();
    assert_eq!((written.records, written.whole), (3, true));
    assert_eq!(written.gaps, [false, true]);
    // Of lines that come after it nothing is counted.
    write(&mut log, "/after");
    log.flush().unwrap();
    assert_eq!(log.written_of(2, 6).unwrap(), written);
    drop(log);
    assert_eq!(
        verified(&path),
        ["/before", "/a", "/b", "/c", op::GAP, "/after"]
    );
}

#[test]
fn a_line_that_lacks_only_its_end_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    write(&mut Log::open(&path).unwrap(), "/a");
    let size = path.metadata().unwrap().size();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(size - 1).unwrap();
    write(&mut Log::open(&path).unwrap(), "/b");
    assert_eq!(verified(&path), ["/a", "/b"]);
}

#[test]
fn a_changed_last_line_is_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    write(&mut Log::open(&path).unwrap(), "/a");
    let changed = std::fs::read_to_string(&path).unwrap().replace("/a", "/x");
    std::fs::write(&path, &changed).unwrap();
    assert!(matches!(Log::open(&path), Err(LogError::Damaged { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), changed);
}

#[test]
fn what_does_not_fit_into_memory_becomes_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let mut log = Log::open(&path).unwrap();
    let long = "x".repeat(WAITING_MAX);
    write(&mut log, &long);
    write(&mut log, "/lost");
    write(&mut log, "/lost");
    log.flush().unwrap();
    write(&mut log, "/after");
    drop(log);
    let targets = verified(&path);
    assert_eq!(targets[1..], [op::GAP, "/after"]);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(r#""class":"log","lost":2"#));
}

/// A log that is signed, with segments of a few records.
fn signed(path: &Path, state: &Path) -> Log {
    let (key, _) = Key::of_state(state).unwrap();
    let mut log = Log::open_after(path, 0..0, LogOptions::default(), Some(key)).unwrap();
    log.options.checkpoint_records = 5;
    log
}

fn check(path: &Path, state: &Path) -> crate::audit::verify::Report {
    let key = Key::of_state(state).unwrap().0.public();
    crate::audit::verify::verify(path, &[key], vec![], &mut |_| {}).unwrap()
}

/// Closes the segment, because of its age.
fn turn(log: &mut Log) {
    log.flush().unwrap();
    log.queue
        .changed(|state| state.began = SystemTime::UNIX_EPOCH);
    log.tend().unwrap();
    log.flush().unwrap();
}

/// Takes the next packed segment over.
fn pack_one(log: &mut Log) {
    let packed = log.packer.wait().unwrap();
    log.take_over(packed).unwrap();
    log.flush().unwrap();
}

#[test]
fn segments_are_closed_packed_and_chained() {
    let folder = tempfile::tempdir().unwrap();
    let (path, state) = (
        folder.path().join("audit.jsonl"),
        folder.path().join("state"),
    );
    let mut log = signed(&path, &state);
    for segment in 0..3 {
        for record in 0..7 {
            write(&mut log, &format!("/{segment}/{record}"));
            log.flush().unwrap();
            log.tend().unwrap();
        }
        turn(&mut log);
        pack_one(&mut log);
    }
    write(&mut log, "/last");
    log.sync().unwrap();
    let report = check(&path, &state);
    assert!(report.is_proved(), "{report:#?}");
    assert_eq!(report.segments, 4);
    assert!(report.live);
    assert_eq!(report.unsigned, 0);
    drop(log);
    let closed = segment::closed_of(&path).unwrap();
    assert!(closed.iter().all(|segment| segment.packed), "{closed:?}");
    // A second start goes on with the same chain, also where nothing is in the file yet.
    let mut log = signed(&path, &state);
    turn(&mut log);
    drop(log);
    let mut log = signed(&path, &state);
    write(&mut log, "/after");
    log.sync().unwrap();
    drop(log);
    let report = check(&path, &state);
    assert!(report.is_proved(), "{report:#?}");
    assert!(!report.live);
    assert_eq!(report.last, Some(report.records));
}

#[test]
fn a_rotation_that_was_cut_off_is_finished() {
    let folder = tempfile::tempdir().unwrap();
    let (path, state) = (
        folder.path().join("audit.jsonl"),
        folder.path().join("state"),
    );
    let mut log = signed(&path, &state);
    write(&mut log, "/a");
    log.sync().unwrap();
    drop(log);
    // As after the exchange: the full file has the passing name, the new one is empty.
    std::fs::rename(&path, segment::leaving(&path)).unwrap();
    std::fs::write(&path, "").unwrap();
    assert!(check(&path, &state).is_whole());
    let mut log = signed(&path, &state);
    write(&mut log, "/b");
    log.sync().unwrap();
    drop(log);
    assert!(!segment::leaving(&path).exists());
    let report = check(&path, &state);
    assert!(report.is_proved() && report.segments == 2, "{report:#?}");
    // As before the exchange.
    std::fs::write(segment::leaving(&path), "").unwrap();
    drop(signed(&path, &state));
    assert!(!segment::leaving(&path).exists());
    assert!(check(&path, &state).is_whole());
}

#[test]
fn an_end_that_was_cut_off_stays_a_hole() {
    let folder = tempfile::tempdir().unwrap();
    let (path, state) = (
        folder.path().join("audit.jsonl"),
        folder.path().join("state"),
    );
    let mut log = signed(&path, &state);
    for number in 0..20 {
        write(&mut log, &format!("/{number}"));
    }
    log.sync().unwrap();
    let last = log.next_seq() - 1;
    drop(log);
    let text = std::fs::read_to_string(&path).unwrap();
    let kept: Vec<&str> = text.lines().take(12).collect();
    std::fs::write(&path, kept.join("\n") + "\n").unwrap();
    let report = check(&path, &state);
    assert_eq!(
        report.findings[0].kind,
        crate::audit::verify::Kind::Replaced
    );
    assert_eq!(report.findings[0].missing, Some(last - 12));
    // The next start does not cover it up.
    let mut log = signed(&path, &state);
    write(&mut log, "/after");
    log.sync().unwrap();
    drop(log);
    let report = check(&path, &state);
    assert!(!report.is_whole());
    assert_eq!(report.missing, last - 12, "{report:#?}");
}

#[test]
fn a_log_that_was_replaced_while_nobody_wrote_is_seen_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let (path, state) = (
        folder.path().join("audit.jsonl"),
        folder.path().join("state"),
    );
    let forged = folder.path().join("forged/audit.jsonl");
    for (path, target) in [(&path, "/true"), (&forged, "/false")] {
        let mut log = if target == "/true" {
            signed(path, &state)
        } else {
            Log::open(path).unwrap()
        };
        for _ in 0..10 {
            write(&mut log, target);
        }
        write(&mut log, "/more");
        if target == "/false" {
            write(&mut log, "/longer");
            write(&mut log, "/longer");
            write(&mut log, "/longer");
        }
        log.sync().unwrap();
    }
    std::fs::copy(&forged, &path).unwrap();
    let mut log = signed(&path, &state);
    write(&mut log, "/after");
    log.sync().unwrap();
    drop(log);
    let report = check(&path, &state);
    assert_eq!(
        report.findings[0].kind,
        crate::audit::verify::Kind::Replaced,
        "{report:#?}"
    );
}

#[test]
fn what_was_found_at_the_start_comes_after_a_batch_that_is_finished() {
    let folder = tempfile::tempdir().unwrap();
    let (path, state) = (
        folder.path().join("audit.jsonl"),
        folder.path().join("state"),
    );
    let mut log = signed(&path, &state);
    for target in ["/a", "/b", "/c"] {
        write(&mut log, target);
    }
    log.flush().unwrap();
    let end = log.next_seq() + 2;
    drop(log);
    std::fs::remove_file(Head::path(&path)).unwrap();
    let (key, _) = Key::of_state(&state).unwrap();
    let mut log = Log::open_after(&path, 2..end, LogOptions::default(), Some(key)).unwrap();
    let written = log.written_of(2, end).unwrap();
    assert_eq!((written.records, written.whole), (3, false));
    write(&mut log, "/d");
    write(&mut log, "/e");
    log.flush().unwrap();
    log.sync().unwrap();
    drop(log);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(
        text.contains(
            r#""seq":6,"time":"2026-11-23T04:05:06.000000000Z","op":"open","target":"/e""#
        )
    );
    assert!(text.contains("no signed head was found"));
    assert!(check(&path, &state).is_proved());
}

/// What waits in a stage, as a writer that died left it.
fn staged(folder: &Path, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let path = folder.join("audit.stage");
    let other = folder.join("other.jsonl");
    std::fs::copy(folder.join("audit.jsonl"), &other).unwrap();
    let before = std::fs::read(&other).unwrap().len();
    let mut log = Log::open(&other).unwrap();
    write(&mut log, "/staged/a");
    write(&mut log, "/staged/b");
    drop(log);
    let mut lines = std::fs::read(&other).unwrap().split_off(before);
    std::fs::remove_file(&other).unwrap();
    change(&mut lines);
    std::fs::write(&path, lines).unwrap();
    path
}

fn open_staged(folder: &Path) -> Log {
    Log::open_staged(
        &folder.join("audit.jsonl"),
        Some(&folder.join("audit.stage")),
        0..0,
        LogOptions::default(),
        None,
    )
    .unwrap()
}

#[test]
fn what_waited_for_the_disk_when_its_writer_died_is_written_by_the_next() {
    // As it is, torn in its last line, with what was written already and freed, and after half a line of the log.
    for case in 0..4 {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let path = folder.join("audit.jsonl");
        write(&mut Log::open(&path).unwrap(), "/before");
        let before = std::fs::read(&path).unwrap();
        let mut first = Vec::new();
        staged(folder, |lines| {
            first = lines[..lines.len() / 4].to_vec();
            match case {
                1 => lines.extend_from_slice(br#"{"seq":4,"time":"#),
                2 => {
                    let mut all = vec![0; 4096];
                    all.extend_from_slice(&before);
                    all.append(lines);
                    *lines = all;
                }
                _ => {}
            }
        });
        if case == 3 {
            let mut torn = before.clone();
            torn.extend_from_slice(&first);
            std::fs::write(&path, torn).unwrap();
        }
        let mut log = open_staged(folder);
        write(&mut log, "/after");
        drop(log);
        assert_eq!(
            verified(&path),
            ["/before", "/staged/a", "/staged/b", "/after"],
            "case {case}"
        );
        assert_eq!(std::fs::read(folder.join("audit.stage")).unwrap(), b"");
        // It is there once.
        drop(open_staged(folder));
        assert_eq!(verified(&path).len(), 4);
    }
}

#[test]
fn what_does_not_go_on_where_the_log_ends_is_not_written() {
    let changes: [fn(&mut Vec<u8>); 2] = [
        // Another record's.
        |lines| {
            let text = String::from_utf8(lines.clone()).unwrap();
            *lines = text.replacen("\"prev\":\"", "\"prev\":\"0", 1).into_bytes();
        },
        // One of them is changed.
        |lines| {
            let text = String::from_utf8(lines.clone()).unwrap();
            *lines = text.replace("/staged/a", "/staged/x").into_bytes();
        },
    ];
    for change in changes {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let path = folder.join("audit.jsonl");
        write(&mut Log::open(&path).unwrap(), "/before");
        staged(folder, change);
        let mut log = open_staged(folder);
        write(&mut log, "/after");
        drop(log);
        assert_eq!(verified(&path), ["/before", op::LOG_REPAIR, "/after"]);
    }
}

#[test]
fn whoever_makes_records_does_not_wait_for_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let stage = folder.path().join("audit.stage");
    let mut log = Log::open_staged(&path, Some(&stage), 0..0, LogOptions::default(), None).unwrap();
    write(&mut log, "/written");
    log.flush().unwrap();
    // The writer cannot go on: as long as the disk stands still.
    let queue = log.queue.clone();
    queue.changed(|state| state.held = true);
    let long = "x".repeat(1 << 20);
    let mut handed = 1;
    while log.hand_over().unwrap() {
        write(&mut log, &long);
        handed += 1;
    }
    assert!(log.has_waiting());
    assert_eq!(log.reached().0, 1);
    assert_eq!(verified(&path), ["/written"]);
    let waits = log.queue.state().waiting();
    assert!(
        (STAGE_MAX..STAGE_MAX + (2 << 20)).contains(&waits),
        "{waits}"
    );
    // What the next would find is all but the one without room.
    assert_eq!(std::fs::metadata(&stage).unwrap().size(), waits);
    queue.changed(|state| state.held = false);
    queue.go_on();
    log.flush().unwrap();
    assert_eq!(log.reached().0, handed);
    drop(log);
    assert_eq!(verified(&path).len() as u64, handed);
    assert_eq!(std::fs::metadata(&stage).unwrap().size(), 0);
}

#[test]
fn a_full_disk_loses_nothing_and_denials_are_not_told_before_they_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let mut log = Log::open(&path).unwrap();
    write(&mut log, "/before");
    log.flush().unwrap();
    let limit = path.metadata().unwrap().size() + 300;
    log.queue.changed(|state| {
        state.most = Some(limit);
        state.held = true;
    });
    for target in ["/a", "/b", "/c", "/d"] {
        let mut record = Record {
            time: Cow::Borrowed("2026-11-23T04:05:06.000000000Z"),
            target: Some(Cow::Borrowed(target)),
            verdict: Some(Cow::Borrowed("deny")),
            ..Record::new("open")
        };
        log.append(&mut record).unwrap();
        assert!(log.hand_over().unwrap());
    }
    log.queue.changed(|state| state.held = false);
    let error = log.flush().unwrap_err();
    assert!(
        matches!(
            error,
            LogError::Io {
                call: "write to",
                ..
            }
        ),
        "{error}"
    );
    assert!(log.is_troubled() && log.failures() > 0);
    assert_eq!(log.reached().1, 0);
    // A part is there, and it ends in the middle of a line.
    assert_eq!(path.metadata().unwrap().size(), limit);
    log.queue.changed(|state| state.most = None);
    log.flush().unwrap();
    assert!(!log.is_troubled());
    assert_eq!(log.reached(), (5, 5));
    drop(log);
    assert_eq!(verified(&path), ["/before", "/a", "/b", "/c", "/d"]);
}

#[test]
fn a_line_that_is_half_written_when_its_writer_dies_is_written_whole_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (path, stage) = (folder.join("audit.jsonl"), folder.join("audit.stage"));
    let mut log = open_staged(folder);
    // The disk is full in the middle of a line, after more than is kept in the stage.
    let limit = (6 << 20) + 12_345;
    log.queue.changed(|state| {
        state.most = Some(limit);
        state.held = true;
    });
    let targets: Vec<String> = (0..80)
        .map(|number| format!("/{number}/{}", "x".repeat(100 << 10)))
        .collect();
    for target in &targets {
        write(&mut log, target);
        assert!(log.hand_over().unwrap());
    }
    log.queue.changed(|state| state.held = false);
    log.flush().unwrap_err();
    drop(log);
    assert_eq!(path.metadata().unwrap().size(), limit);
    assert_ne!(std::fs::read(&path).unwrap().last(), Some(&b'\n'));
    let left = stage.metadata().unwrap();
    assert!(left.blocks() * 512 < left.size() - (4 << 20), "{left:?}");
    drop(open_staged(folder));
    assert_eq!(verified(&path), targets);
    assert_eq!(stage.metadata().unwrap().size(), 0);
}
