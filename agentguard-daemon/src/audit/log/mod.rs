//! The log: appended to by one writer, whole lines, chained, in segments.
//!
//! It must never follow a symbolic link, share the file with another writer, or lose a record
//! without counting it: when the disk is full, lines wait in memory, and what does not fit there
//! becomes a gap record.

mod error;
mod open;
mod options;
mod pack;
mod repair;
#[cfg(test)]
mod tests;
mod turn;
mod work;

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use agentguard_common::record::class;
use nix::fcntl::Flock;

use super::chain::{self, Hash};
use super::clock::Clock;
use super::key::Key;
use super::line;
use super::mark::{Head, Mark};
use super::record::{Record, op};

pub use self::error::LogError;
use self::error::failed;
pub use self::options::{LogOptions, Sync};
use self::pack::Packer;
pub use self::work::LogWork;

/// Bytes of lines that wait in memory while the file cannot be written.
const WAITING_MAX: usize = 64 << 20;
/// Bytes that the lines of one batch can have: records in a ring are less, and escaping makes them longer.
const BATCH_MAX: u64 = 64 << 20;

/// The writer of one log.
#[derive(Debug)]
pub struct Log {
    file: Flock<File>,
    path: PathBuf,
    options: LogOptions,
    marks: Option<Marks>,
    waiting: Vec<u8>,
    next: u64,
    prev: Hash,
    /// The number after the last record that was found at the start.
    resumed_at: u64,
    /// Records that did not fit into `waiting`.
    lost: u64,
    /// Whether a denial waits to be written, or to be on the disk.
    urgent: bool,
    /// Whether something is in the file that may not be on the disk.
    dirty: bool,
    synced: Instant,
    /// Records after the last checkpoint.
    unmarked: u64,
    marked: Instant,
    /// Bytes in the file.
    size: u64,
    /// Number of the file's first record.
    first: u64,
    /// When that was written.
    began: SystemTime,
    /// When closing a segment failed.
    stuck: Option<Instant>,
    packer: Packer,
    work: LogWork,
    /// What was found at the start and is to be recorded.
    news: Vec<Record<'static>>,
    /// The last record that was found at the start, if its writer did not stop behind it.
    left: Option<Left>,
}

/// Where a writer was that did not stop: killed, or without power.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Number of its last record.
    pub seq: u64,
    /// When that happened.
    pub time: String,
}

/// What marks are made with.
#[derive(Debug)]
struct Marks {
    key: Key,
    head: Head,
    /// Hash of the log's first record.
    log: Option<Hash>,
}

/// What a log has of a batch of lines whose writer died.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Lines that are records from the kernel.
    pub records: usize,
    /// Whether there is a gap record of a class, by class.
    pub gaps: [bool; class::COUNT as usize],
    /// Whether all of it is there.
    pub whole: bool,
}

impl Log {
    /// The log's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Numbers and seals a record and lets it wait for [`Log::flush`]. Gives the sealed line; none where it
    /// became part of a gap.
    ///
    /// `time` must be set; `seq`, `prev` and `hash` are set here.
    pub fn append(&mut self, record: &mut Record<'_>) -> Result<&[u8], LogError> {
        if self.waiting.len() > WAITING_MAX {
            self.lost += 1;
            self.work.lost += 1;
            return Ok(&[]);
        }
        if self.lost > 0 {
            let mut gap = Record {
                time: record.time.clone(),
                class: Some(Cow::Borrowed("log")),
                lost: Some(self.lost),
                ..Record::new(op::GAP)
            };
            self.seal(&mut gap)?;
            self.lost = 0;
        }
        self.urgent |= matches!(
            record.verdict.as_deref(),
            Some("deny" | "ask" | "would-deny")
        );
        let start = self.seal(record)?;
        Ok(&self.waiting[start..])
    }

    fn seal(&mut self, record: &mut Record<'_>) -> Result<usize, LogError> {
        let start = self.waiting.len();
        record.seq = self.next;
        // The hash consists of hexadecimal digits: always text.
        let prev = std::str::from_utf8(&self.prev).unwrap_or_default();
        record.prev = Cow::Owned(prev.to_owned());
        record.hash = Cow::Borrowed("");
        if let Err(error) = line::write(record, &mut self.waiting) {
            self.waiting.truncate(start);
            return Err(error.into());
        }
        self.prev = chain::seal(&mut self.waiting, start, &self.prev);
        self.next += 1;
        self.unmarked += 1;
        self.work.records += 1;
        if let Some(marks) = &mut self.marks {
            marks.log.get_or_insert(self.prev);
        }
        Ok(start)
    }

    /// The last record that was found at the start, if its writer did not stop behind it: where the rings did not
    /// outlive it, records of after that are missing, and nobody knows how many.
    pub fn left(&self) -> Option<&Left> {
        self.left.as_ref()
    }

    /// Whether lines wait to be written.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Writes all waiting lines, and waits for the disk if one is a denial or the options say so. After an
    /// error what was not written waits for the next call.
    pub fn flush(&mut self) -> Result<(), LogError> {
        self.write()?;
        let waits = match self.options.sync {
            Sync::Batch => self.dirty,
            Sync::Denials => self.urgent,
            Sync::Checkpoints => false,
        };
        if waits {
            self.settle()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), LogError> {
        let mut written = 0;
        let outcome = loop {
            if written == self.waiting.len() {
                break Ok(());
            }
            match (&*self.file).write(&self.waiting[written..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.dirty |= written > 0;
        self.size += written as u64;
        self.work.bytes += written as u64;
        self.waiting.drain(..written);
        outcome.map_err(failed("write to", &self.path))
    }

    /// Waits for the disk, and then says in the head how far it is. All lines must be written.
    fn settle(&mut self) -> Result<(), LogError> {
        let begun = Instant::now();
        let synced = self.file.sync_data();
        self.work.syncs.observe(begun.elapsed().as_secs_f64());
        if let Err(error) = synced {
            // The kernel tells this once, and may have dropped what it could not write: that stays known.
            if self.news.is_empty() {
                let last = self.next - 1;
                let what = format!(
                    "the disk failed ({error}): records up to {last} that are not signed may be lost with the power"
                );
                self.news(op::ALARM, what);
            }
            return Err(failed("sync", &self.path)(error));
        }
        self.dirty = false;
        self.urgent = false;
        self.synced = Instant::now();
        let (seq, hash) = (self.next - 1, self.prev);
        if let Some(Marks {
            key,
            head,
            log: Some(log),
        }) = &mut self.marks
        {
            let mark = Mark::sign(key, log, seq, &hash, Clock::new().now());
            // The head is behind then, and the log says more than it: no record is at risk.
            if let Err(error) = head.write(&mark) {
                tracing::error!(
                    "the head of {} was not written: {error}",
                    self.path.display()
                );
            }
        }
        Ok(())
    }

    /// Signs a checkpoint if there is something new, writes all waiting lines and waits until the disk has them.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.tell_news()?;
        self.checkpoint()?;
        self.write()?;
        self.settle()?;
        if let Some(marks) = &self.marks {
            let synced = marks.head.sync();
            synced.map_err(failed("sync the head of", &self.path))?;
        }
        Ok(())
    }

    /// What the file has of the lines from `first` to before `end`.
    ///
    /// A segment is never closed while a batch is open, so all of it is in one file.
    pub fn written_of(&self, first: u64, end: u64) -> Result<Written, LogError> {
        let mut written = Written {
            whole: self.resumed_at.max(self.next_by_now()) >= end,
            ..Written::default()
        };
        if self.next <= first {
            return Ok(written);
        }
        let failed = || failed("read", &self.path);
        let size = self.file.metadata().map_err(failed())?.size();
        let mut tail = Vec::new();
        let mut file = &*self.file;
        file.seek(SeekFrom::Start(size.saturating_sub(BATCH_MAX)))
            .map_err(failed())?;
        file.read_to_end(&mut tail).map_err(failed())?;
        for line in tail
            .rsplit(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let Ok(record) = serde_json::from_slice::<Record<'_>>(line) else {
                break;
            };
            if record.seq < first {
                break;
            }
            if record.seq >= end {
                continue;
            }
            match (&*record.op, record.class.as_deref()) {
                (op::GAP, Some("allowed")) => written.gaps[class::ALLOWED as usize] = true,
                (op::GAP, Some("denied")) => written.gaps[class::DENIED as usize] = true,
                (
                    op::GAP
                    | op::ALARM
                    | op::LOG_REPAIR
                    | op::LOG_KEY
                    | op::CHECKPOINT
                    | op::SEGMENT,
                    _,
                ) => {}
                _ => written.records += 1,
            }
        }
        Ok(written)
    }

    /// The number that the next line gets, unless numbers were left out because the log was cut.
    fn next_by_now(&self) -> u64 {
        if self.news.is_empty() { self.next } else { 0 }
    }

    /// The number that the next line gets.
    pub fn next_seq(&self) -> u64 {
        self.next
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Err(error) = self.tell_news().and_then(|()| self.flush()) {
            tracing::error!("audit records are lost: {error}");
        }
    }
}
