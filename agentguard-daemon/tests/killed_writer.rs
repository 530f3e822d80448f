//! A writer that is killed, again and again: what it said was on the disk is there, and the log stays whole.
//!
//! This stands in for power cuts as far as a process can: what the kernel had not written yet is kept here.

use std::borrow::Cow;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use agentguard::audit::key::Key;
use agentguard::audit::verify::{Kind, Report, verify};
use agentguard::audit::{Log, LogOptions, Record};

const FOLDER: &str = "AGENTGUARD_TEST_LOG_FOLDER";
const KILLS: u32 = 100;

fn log_in(folder: &Path) -> PathBuf {
    folder.join("audit.jsonl")
}

fn open(folder: &Path) -> Log {
    let (key, _) = Key::of_state(folder).expect("a key");
    let options = LogOptions {
        checkpoint_records: 500,
        segment_mib: 1,
        ..LogOptions::default()
    };
    Log::open_after(&log_in(folder), 0..0, options, Some(key)).expect("the log")
}

/// Not a test: the writer, which never ends. It prints the number of each denial that is on the disk.
#[test]
fn writer() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let mut log = open(Path::new(&folder));
    for number in 0_u64.. {
        let refused = number % 37 == 0;
        let mut record = Record {
            time: Cow::Borrowed("2026-11-23T04:05:06.000000000Z"),
            target: Some(Cow::Owned(format!("/work/{number}"))),
            verdict: Some(Cow::Borrowed(if refused { "deny" } else { "allow" })),
            ..Record::new("open")
        };
        log.append(&mut record).expect("a line");
        if refused || number % 5 == 0 {
            log.flush().expect("written");
            log.tend().expect("tended");
        }
        if refused {
            println!("durable {}", record.seq);
        }
    }
}

fn check(folder: &Path) -> Report {
    let key = Key::of_state(folder).expect("a key").0.public();
    verify(&log_in(folder), &[key], vec![], &mut |_| {}).expect("it can be read")
}

#[test]
fn what_was_said_to_be_durable_is_there_after_every_kill() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = std::env::current_exe().expect("this program");
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let (mut torn, mut segments) = (0, 0);
    for kill in 0..KILLS {
        let mut child = Command::new(&program)
            .args(["--exact", "writer", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the writer");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut durable = 0;
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // After so many denials, and a little later: somewhere in its work.
        for _ in 0..=random % 20 {
            let line = lines.next().expect("it goes on").expect("text");
            if let Some(number) = line.split("durable ").nth(1) {
                durable = number.trim().parse().expect("a number");
            }
        }
        std::thread::sleep(Duration::from_micros(random % 7_000));
        child.kill().expect("killed");
        child.wait().expect("gone");
        for line in lines.map_while(Result::ok) {
            if let Some(number) = line.strip_prefix("durable ") {
                durable = number.trim().parse().unwrap_or(durable);
            }
        }
        let report = check(folder.path());
        let others = report
            .findings
            .iter()
            .filter(|found| found.kind != Kind::Torn);
        assert_eq!(others.count(), 0, "kill {kill}: {:#?}", report.findings);
        assert!(
            report.last >= Some(durable),
            "kill {kill}: {durable} is not there: {report:#?}"
        );
        assert!(
            report.head >= Some(durable),
            "kill {kill}: the head is behind: {report:#?}"
        );
        torn += u32::from(!report.findings.is_empty());
        // The next start repairs, and says so.
        drop(open(folder.path()));
        let repaired = check(folder.path());
        assert!(
            repaired.is_proved(),
            "kill {kill}: {:#?}",
            repaired.findings
        );
        // A line that lacks only its end is kept, and that is no repair.
        assert!(repaired.repairs.len() <= report.repairs.len() + report.findings.len());
        segments = repaired.segments;
    }
    println!("{KILLS} kills, {torn} torn lines, {segments} segments");
    assert!(segments > 1, "no segment was closed on the way");
}
