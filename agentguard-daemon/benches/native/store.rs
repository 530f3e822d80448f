//! The way of a record on one core: from the bytes of the kernel's ring to sealed lines on the disk, as the
//! daemon does it, but without a kernel.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use agentguard::audit::key::Key;
use agentguard::audit::{Log, LogOptions, Recorder, segment};
use agentguard::policy::{LoadOptions, load_text};
use agentguard_common::record::{HEADER_LEN, RecordHeader};
use agentguard_common::verdict::{Operation, Reason, Verdict, access};
use anyhow::Context as _;
use zerocopy::IntoBytes;

/// Bytes of records after which the daemon's pump ends a batch.
const BATCH: usize = 512 << 10;
/// Different files that are opened, as in a build.
const FILES: usize = 4_000;

const POLICY: &str = r#"
version: 1
name: build
files:
  default: deny
  read:
    allow: ["/work/**", "/usr/**"]
    deny:
      - { path: "/work/project/secret/**", id: no-secrets, reason: "secrets stay secret" }
exec:
  allow: [{ path: "/usr/bin/cc" }]
"#;

/// One open, as the ring has it.
pub fn open(number: usize, time: u64, to: &mut Vec<u8>) {
    let file = number % FILES;
    let refused = number % 100 == 99;
    let path = if refused {
        format!("/work/project/secret/key-{file}.pem")
    } else {
        format!("/work/project/src/module_{}/part_{file}.c", file % 37)
    };
    let header = RecordHeader {
        len: (HEADER_LEN + path.len()) as u32,
        operation: Operation::Open as u8,
        verdict: if refused {
            Verdict::Deny
        } else {
            Verdict::Allow
        } as u8,
        reason: Reason::Rule as u16,
        access: access::READ,
        agent: 1,
        session: 7,
        generation: 3,
        pid: 5_000_000 + (number / 50 % 500) as u32,
        tid: 5_000_000 + (number / 50 % 500) as u32,
        ppid: 4_999_999,
        uid: 1000,
        euid: 1000,
        exec_id: 1 + (number / 50 % 500) as u64,
        inode: 70_000 + file as u64,
        device: 0x80_0001,
        aux: 0x8000,
        target_len: path.len() as u32,
        time,
        ..RecordHeader::default()
    };
    to.extend_from_slice(header.as_bytes());
    to.extend_from_slice(path.as_bytes());
}

/// Fills a log with so many records, and returns how many nanoseconds one took, and the recorder.
pub fn fill(folder: &Path, total: u32) -> anyhow::Result<(f64, Recorder)> {
    let mut recorder = recorder(folder)?;
    let count = total as usize;
    let mut ring = Vec::with_capacity(2 * BATCH);
    let mut spent = std::time::Duration::ZERO;
    let mut done = 0;
    while done < count {
        // What the kernel does is not measured.
        ring.clear();
        let mut ends = Vec::new();
        while ring.len() < BATCH && done < count {
            open(done, 1 + done as u64, &mut ring);
            ends.push(ring.len());
            done += 1;
        }
        let begin = Instant::now();
        let mut batch = Vec::with_capacity(ring.len());
        batch.extend_from_slice(&ring);
        let mut start = 0;
        for end in ends {
            recorder.record(&batch[start..end]);
            start = end;
        }
        anyhow::ensure!(
            recorder.flush() && recorder.settle(),
            "the log was not written"
        );
        recorder.tend();
        spent += begin.elapsed();
    }
    let begin = Instant::now();
    recorder.sync();
    spent += begin.elapsed();
    let totals = recorder.totals();
    anyhow::ensure!(totals.alarms == 0 && totals.malformed == 0, "{totals:?}");
    Ok((spent.as_secs_f64() * 1e9 / f64::from(total), recorder))
}

/// A recorder that knows the policy, the agent and its programs.
fn recorder(folder: &Path) -> anyhow::Result<Recorder> {
    let (key, _) = Key::of_state(folder)?;
    let path = folder.join("audit.jsonl");
    let log = Log::open_after(&path, 0..0, LogOptions::default(), Some(key))?;
    let mut recorder = Recorder::new(log, [0, 0]);
    let policy = load_text(Path::new("/p/build.yaml"), POLICY, &LoadOptions::default())
        .context("failed to read the policy")?;
    recorder.judge().add(3, Arc::new(policy), &[3]);
    recorder.begin_session(7, "build");
    for process in 0..500 {
        recorder.name_program(1 + process, "/usr/bin/cc");
    }
    Ok(recorder)
}

/// Waits until what is closed is compressed, so that the folder can be used to measure searches.
pub fn pack(folder: &Path, mut recorder: Recorder) -> anyhow::Result<()> {
    let path = folder.join("audit.jsonl");
    while segment::closed_of(&path)?
        .iter()
        .any(|closed| !closed.packed)
    {
        std::thread::sleep(std::time::Duration::from_millis(200));
        recorder.tend();
    }
    recorder.sync();
    Ok(())
}
