//! The way of a record from the ring to the disk, under load, all of it on one core: the real reader of the ring,
//! decoding, judging again, line and chain, the thread that writes the file and waits for the disk as shipped, and the
//! one that compresses.
//! Only the ring's other end stands in for the kernel: records of several agents are written into memory that is
//! laid out as the kernel's ring of allowed records, of the same size, and one that does not fit is lost.
//!
//! ```text
//! cargo build --profile guest -p agentguard-daemon --example audit_load
//! target/guest/examples/audit_load FOLDER full 2000000     # as many a second as can be
//! target/guest/examples/audit_load FOLDER 100000 300       # so many a second, for so many seconds
//! target/guest/examples/audit_load FOLDER 3000 300 1       # with segments of so many MiB
//! ```

#[path = "../tests/support/workload.rs"]
mod workload;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agentguard::audit::clock::boot_nanoseconds;
use agentguard::audit::{LogOptions, Recorder, segment};
use agentguard::kernel::Ring;
use agentguard_common::record::ALLOWED_RING;
use anyhow::Context as _;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use workload::Workload;

/// Bytes of records after which the daemon's pump ends a batch.
const BATCH: usize = 512 << 10;
const PAGE: u64 = 4096;
const SIZE: u64 = ALLOWED_RING as u64;
/// What the kernel puts before each record, and the step of its positions.
const HEADER: u64 = 8;

/// The kernel's end of the ring.
struct Producer {
    memory: File,
    workload: Workload,
    position: u64,
    /// Records that were made, and those of them that did not fit.
    made: u64,
    lost: u64,
    bytes: Vec<u8>,
    record: Vec<u8>,
}

impl Producer {
    fn new() -> anyhow::Result<(Self, Ring)> {
        let memory: File =
            rustix::fs::memfd_create("ring", rustix::fs::MemfdFlags::CLOEXEC)?.into();
        // The reader's page, the writer's, and the data.
        memory.set_len(2 * PAGE + SIZE)?;
        let ring = Ring::open(memory.try_clone()?.into(), ALLOWED_RING)?;
        let producer = Self {
            memory,
            workload: Workload::new(0x5eed)?,
            position: 0,
            made: 0,
            lost: 0,
            bytes: Vec::new(),
            record: Vec::new(),
        };
        Ok((producer, ring))
    }

    /// Writes `count` records, of which those are lost for which there is no room; `waits` makes none then.
    fn write(
        &mut self,
        count: u64,
        waits: bool,
        ring: &Ring,
        recorder: &mut Recorder,
    ) -> anyhow::Result<()> {
        let room = SIZE - ring.used();
        let now = u64::try_from(boot_nanoseconds())?;
        self.bytes.clear();
        for _ in 0..count {
            if waits && self.bytes.len() as u64 + PAGE > room {
                break;
            }
            let shifts = self.workload.shifts();
            for (session, name) in &shifts {
                recorder.begin_session(*session, name);
                // The agent's last.
                if let Some(before) = session.checked_sub(u32::try_from(shifts.len())?) {
                    recorder.end_session(before);
                }
            }
            self.record.clear();
            self.workload.record(now, &mut self.record);
            self.made += 1;
            let len = (self.record.len() as u64 + HEADER).next_multiple_of(HEADER);
            if self.bytes.len() as u64 + len > room {
                self.lost += 1;
                continue;
            }
            let word = u64::from(u32::try_from(self.record.len())?);
            let end = self.bytes.len() + usize::try_from(len)?;
            self.bytes.extend_from_slice(&word.to_ne_bytes());
            self.bytes.extend_from_slice(&self.record);
            self.bytes.resize(end, 0);
        }
        self.put()
    }

    /// The data, and then the position: the reader is of the same thread.
    fn put(&mut self) -> anyhow::Result<()> {
        let mut rest = &self.bytes[..];
        while !rest.is_empty() {
            let at = self.position % SIZE;
            let fits = usize::try_from(SIZE - at)?.min(rest.len());
            let (now, later) = rest.split_at(fits);
            self.memory.write_all_at(now, 2 * PAGE + at)?;
            self.position += now.len() as u64;
            rest = later;
        }
        self.memory
            .write_all_at(&self.position.to_ne_bytes(), PAGE)?;
        Ok(())
    }
}

/// What the daemon's pump does.
#[derive(Default)]
struct Pump {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Whether there was no room for the lines of the last batch, which is not given back then.
    open: bool,
    /// How often.
    full: u64,
}

impl Pump {
    /// A batch from the ring into the log, and back to the ring. Gives how many records it had.
    fn batch(&mut self, ring: &mut Ring, recorder: &mut Recorder, lost: u64) -> usize {
        if self.open {
            if !recorder.flush() {
                return 0;
            }
            self.open = false;
            ring.commit();
        }
        self.bytes.clear();
        self.ends.clear();
        let end = ring.produced();
        while self.bytes.len() < BATCH {
            let Some(record) = ring.head(end) else { break };
            let len = record.len();
            self.bytes.extend_from_slice(record);
            self.ends.push(self.bytes.len());
            ring.step(len);
        }
        let mut start = 0;
        for end in &self.ends {
            recorder.record(&self.bytes[start..*end]);
            start = *end;
        }
        recorder.losses([lost, 0]);
        if recorder.flush() {
            ring.commit();
            recorder.tend();
        } else {
            self.open = true;
            self.full += 1;
        }
        self.ends.len()
    }
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().context("name a folder for the log")?);
    let rate = arguments.next().context("`full`, or records a second?")?;
    let rate: Option<u64> = (rate != "full").then(|| rate.parse()).transpose()?;
    let much: u64 = arguments
        .next()
        .context("how many records, or seconds?")?
        .parse()?;
    let options = LogOptions {
        segment_mib: arguments.next().map_or(Ok(64), |text| text.parse())?,
        ..LogOptions::default()
    };
    one_core()?;
    std::fs::create_dir_all(&folder)?;
    let (mut producer, mut ring) = Producer::new()?;
    let mut recorder = producer.workload.recorder(&folder, options)?;
    println!("begun");
    let mut pump = Pump::default();
    let (mut own, mut worst) = (Duration::ZERO, Duration::ZERO);
    let begun = Instant::now();
    loop {
        let before = core_time()?;
        match rate {
            None if producer.made >= much => break,
            None => producer.write(much - producer.made, true, &ring, &mut recorder)?,
            Some(_) if begun.elapsed().as_secs() >= much => break,
            Some(rate) => {
                let due = begun.elapsed().as_millis() as u64 * rate / 1000;
                let count = due.saturating_sub(producer.made);
                producer.write(count, false, &ring, &mut recorder)?;
            }
        }
        own += core_time()?.saturating_sub(before);
        let at = Instant::now();
        while pump.batch(&mut ring, &mut recorder, producer.lost) > 0 && rate.is_none() {}
        worst = worst.max(at.elapsed());
        if pump.open || (rate.is_some() && !ring.has_more()) {
            // As long as the daemon gathers records.
            std::thread::sleep(Duration::from_millis(if pump.open { 1 } else { 50 }));
        }
    }
    while pump.batch(&mut ring, &mut recorder, producer.lost) > 0 || pump.open {
        std::thread::sleep(Duration::from_millis(u64::from(pump.open)));
    }
    recorder.sync();
    recorder.log().waiter().wait()?;
    let recorded = begun.elapsed();
    pack(&folder, &mut recorder)?;
    tell(&producer, &recorder, recorded, worst, pump.full)?;
    let packing = thread_time("pack")?;
    let all = clock(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.saturating_sub(own);
    let records = f64::from(u32::try_from(recorder.totals().records)?);
    for (what, time) in [
        ("recorded and written", all.saturating_sub(packing)),
        ("with compressing and indexing", all),
    ] {
        let seconds = time.as_secs_f64();
        println!(
            "{what}: {:.0} a second of one core ({:.2} µs each)",
            records / seconds,
            seconds * 1e6 / records
        );
    }
    Ok(())
}

fn tell(
    producer: &Producer,
    recorder: &Recorder,
    recorded: Duration,
    worst: Duration,
    full: u64,
) -> anyhow::Result<()> {
    let totals = recorder.totals();
    anyhow::ensure!(totals.alarms == 0 && totals.malformed == 0, "{totals:?}");
    let seconds = recorded.as_secs_f64();
    println!(
        "{} records made, {} lost, {} recorded and judged again, 0 alarms",
        producer.made, producer.lost, totals.records
    );
    println!(
        "by the clock: {:.0} a second ({seconds:.1} s), the longest round of the reader {} ms",
        f64::from(u32::try_from(totals.records)?) / seconds,
        worst.as_millis()
    );
    let syncs = recorder.log().work().syncs;
    println!(
        "the writer waited for the disk {} times, {:.2} s; {full} batches found no room for their lines",
        syncs.count(),
        syncs.sum()
    );
    let status = std::fs::read_to_string("/proc/self/status")?;
    let wanted = ["VmHWM", "VmRSS", "RssAnon", "RssShmem"];
    for line in status.lines() {
        if wanted.iter().any(|name| line.starts_with(name)) {
            println!("{line}");
        }
    }
    Ok(())
}

/// Waits until what is closed is compressed.
fn pack(folder: &Path, recorder: &mut Recorder) -> anyhow::Result<()> {
    let log = folder.join("audit.jsonl");
    while segment::closed_of(&log)?.iter().any(|it| !it.packed) {
        std::thread::sleep(Duration::from_millis(20));
        recorder.tend();
    }
    recorder.sync();
    Ok(())
}

/// This process, with the threads that it will have, stays on the processor where it is.
fn one_core() -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(nix::sched::sched_getcpu()?)?;
    sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
    Ok(())
}

/// What a thread of ours has taken.
fn thread_time(name: &str) -> anyhow::Result<Duration> {
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if std::fs::read_to_string(task.join("comm"))?.trim_end() == name {
            let times = std::fs::read_to_string(task.join("schedstat"))?;
            let own = times.split_whitespace().next().context("no times")?;
            return Ok(Duration::from_nanos(own.parse()?));
        }
    }
    Ok(Duration::ZERO)
}

fn core_time() -> anyhow::Result<Duration> {
    clock(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

fn clock(clock: ClockId) -> anyhow::Result<Duration> {
    Ok(clock_gettime(clock)?.into())
}
