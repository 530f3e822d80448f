//! `audit_fill FOLDER RECORDS [HOURS]`: a log of so many records of several agents, in compressed segments with
//! their indexes, as if they had been made in the last hours (24). For measuring searches:
//!
//! ```text
//! cargo run --profile guest -p agentguard-daemon --example audit_fill -- /tmp/log 10000000
//! time agentguard audit query --file /tmp/log/audit.jsonl --agent codex --verdict deny --count
//! ```

#[path = "../tests/support/workload.rs"]
mod workload;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use agentguard::audit::clock::boot_nanoseconds;
use agentguard::audit::{LogOptions, Sync, segment};
use anyhow::Context as _;
use workload::Workload;

/// Records between two writes.
const BATCH: u64 = 4_000;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().context("name a folder for the log")?);
    let total: u64 = arguments.next().context("how many records?")?.parse()?;
    let hours: u64 = arguments.next().map_or(Ok(24), |text| text.parse())?;
    std::fs::create_dir_all(&folder)?;
    let mut workload = Workload::new(0x5eed)?;
    // Nobody waits for these records.
    let options = LogOptions {
        sync: Sync::Checkpoints,
        ..LogOptions::default()
    };
    let mut recorder = workload.recorder(&folder, options)?;
    let end = u64::try_from(boot_nanoseconds())?;
    let step = (hours * 3_600_000_000_000).min(end) / total.max(1);
    let begin = end - step * total;
    let begun = Instant::now();
    let mut bytes = Vec::new();
    for number in 0..total {
        for (session, name) in workload.shifts() {
            recorder.begin_session(session, name);
        }
        bytes.clear();
        workload.record(begin + number * step, &mut bytes);
        recorder.record(&bytes);
        if number % BATCH == BATCH - 1 {
            anyhow::ensure!(recorder.settle(), "the log was not written");
            recorder.tend();
        }
    }
    recorder.sync();
    let log = folder.join("audit.jsonl");
    while segment::closed_of(&log)?.iter().any(|it| !it.packed) {
        std::thread::sleep(Duration::from_millis(100));
        recorder.tend();
    }
    recorder.sync();
    let totals = recorder.totals();
    anyhow::ensure!(totals.alarms == 0 && totals.malformed == 0, "{totals:?}");
    let segments = segment::all_of(&log)?;
    let bytes: u64 = segments.iter().map(segment::Segment::size).sum();
    println!(
        "{total} records in {} files, {} MiB, made in {:.0} s",
        segments.len(),
        bytes >> 20,
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}
