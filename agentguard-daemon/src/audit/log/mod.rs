//! The log: appended to by one writer, whole lines, chained, in segments.
//!
//! Whoever makes records numbers, chains and signs them here, and hands them over through the stage; a thread writes
//! them and waits for the disk. It must never follow a symbolic link, share the file with another writer, or lose a
//! record without counting it: when the disk is full, lines wait in memory, and what does not fit there becomes a gap
//! record.

mod error;
mod open;
mod options;
mod pack;
mod queue;
mod repair;
mod stage;
#[cfg(test)]
mod tests;
mod turn;
mod work;
mod writer;

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use agentguard_common::record::class;
use tokio::sync::{Notify, watch};

use super::chain::{self, Hash};
use super::key::Key;
use super::line;
use super::record::{Record, op};

pub use self::error::LogError;
use self::error::failed;
pub use self::options::{LogOptions, Sync};
use self::pack::Packer;
use self::queue::{Order, Queue, Tasks};
pub use self::stage::STAGE_MAX;
pub use self::work::LogWork;

/// Bytes of lines that wait in memory while the stage is full.
const WAITING_MAX: usize = 64 << 20;
/// Of that, what is kept for the next lines.
const WAITING_KEPT: usize = 4 << 20;
/// Bytes that the lines of one batch can have: records in a ring are less, and escaping makes them longer.
const BATCH_MAX: u64 = 64 << 20;

/// One log, as those see it who make its records.
#[derive(Debug)]
pub struct Log {
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
    /// What is to be done when the waiting lines are in the file.
    then: Tasks,
    /// Records after the last checkpoint.
    unmarked: u64,
    marked: Instant,
    packer: Packer,
    work: LogWork,
    /// What was found at the start and is to be recorded.
    news: Vec<Record<'static>>,
    /// The last record that was found at the start, if its writer did not stop behind it.
    left: Option<Left>,
    queue: Arc<Queue>,
    writer: Option<JoinHandle<()>>,
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
    key: Arc<Key>,
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
    /// `time` must be set; `seq` is set here, and `prev` and `hash` are in the line only.
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
        let refused = matches!(
            record.verdict.as_deref(),
            Some("deny" | "ask" | "would-deny")
        );
        self.then.sync |= refused && self.options.sync == Sync::Denials;
        let start = self.seal(record)?;
        Ok(&self.waiting[start..])
    }

    fn seal(&mut self, record: &mut Record<'_>) -> Result<usize, LogError> {
        let start = self.waiting.len();
        record.seq = self.next;
        // The hash consists of hexadecimal digits: always text.
        let prev = std::str::from_utf8(&self.prev).unwrap_or_default();
        record.hash = Cow::Borrowed("");
        if let Err(error) = line::write(record, prev, &mut self.waiting) {
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

    /// Hands all waiting lines over to be written, and to be on the disk if one is a denial or the options say so.
    /// It waits for nobody; whether there was room. Where there was none, lines wait for the next call.
    pub fn hand_over(&mut self) -> Result<bool, LogError> {
        if self.waiting.is_empty() {
            return Ok(true);
        }
        self.submit()
    }

    /// The same, also where only something is to be done.
    fn submit(&mut self) -> Result<bool, LogError> {
        let mut tasks = self.then.clone();
        tasks.head |= tasks.turn;
        tasks.sync |= tasks.head || !tasks.remove.is_empty() || self.options.sync == Sync::Batch;
        let order = Order {
            end: 0,
            last: self.last(),
            tasks,
        };
        let added = self.queue.add(&self.waiting, order);
        let added = added.map_err(failed("hand records over to the writer of", &self.path))?;
        if added {
            self.waiting.clear();
            self.waiting.shrink_to(WAITING_KEPT);
            self.then = Tasks::default();
        }
        Ok(added)
    }

    /// Writes all waiting lines, and waits for the disk if one is a denial or the options say so. After an
    /// error what was not written waits for the next call.
    pub fn flush(&mut self) -> Result<(), LogError> {
        self.with_room(Self::hand_over)?;
        self.queue.wait()
    }

    /// Signs a checkpoint if there is something new, writes all waiting lines and waits until the disk has them.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.order_sync()?;
        self.with_room(Self::hand_over)?;
        self.queue.wait()
    }

    /// The same without waiting.
    pub fn order_sync(&mut self) -> Result<(), LogError> {
        self.tell_news()?;
        self.checkpoint()?;
        self.then.head = true;
        self.submit().map(|_| ())
    }

    fn with_room(
        &mut self,
        mut act: impl FnMut(&mut Self) -> Result<bool, LogError>,
    ) -> Result<(), LogError> {
        while !act(self)? {
            if !self.queue.wait_for_room()? && !act(self)? {
                // Nothing is there to be written, and yet there is no room: others have taken it.
                let source = std::io::ErrorKind::StorageFull.into();
                return Err(failed("find memory for the lines of", &self.path)(source));
            }
        }
        Ok(())
    }

    /// Numbers of the last records that are in the file, and on the disk.
    pub fn reached(&self) -> (u64, u64) {
        let state = self.queue.state();
        (state.written, state.durable)
    }

    /// Whether the last try to write, or to wait for the disk, has failed.
    pub fn is_troubled(&self) -> bool {
        self.queue.state().is_troubled()
    }

    /// Told whenever lines were written, are on the disk, or could not be: for one who listens.
    pub fn progress(&self) -> Arc<Notify> {
        self.queue.notify.clone()
    }

    /// The number of the last record that is on the disk, as it goes on.
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.queue.durable.subscribe()
    }

    /// Who waits for what is handed over, without holding the log.
    pub fn waiter(&self) -> Waiter {
        Waiter(self.queue.clone())
    }

    /// Whether denials are told only when they are on the disk.
    pub fn holds_denials(&self) -> bool {
        self.options.sync != Sync::Checkpoints
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
        let mut file = File::open(&self.path).map_err(failed())?;
        let size = file.metadata().map_err(failed())?.size();
        let mut tail = Vec::new();
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

/// See [`Log::waiter`].
#[derive(Debug)]
pub struct Waiter(Arc<Queue>);

impl Waiter {
    /// Waits until what was handed over is written, and on the disk where that was asked for.
    pub fn wait(&self) -> Result<(), LogError> {
        self.0.wait()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let Some(writer) = self.writer.take() else {
            return;
        };
        if let Err(error) = self.tell_news().and_then(|()| self.flush()) {
            tracing::error!("audit records are lost: {error}");
        }
        self.queue.end();
        if writer.join().is_err() {
            tracing::error!("the writer of the audit log failed");
        }
    }
}
