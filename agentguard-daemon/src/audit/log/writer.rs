//! The thread that writes the file, waits for the disk, and closes segments.
//!
//! It must never go on behind something that failed, or say of a record that it is where it is not.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::Flock;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::error::failed;
use super::pack::Orders;
use super::queue::{Order, Point, Queue, Work};
use super::{LogError, open};
use crate::audit::clock::Clock;
use crate::audit::key::Key;
use crate::audit::mark::{Head, Mark};
use crate::audit::segment;
use crate::disk;

/// Bytes that are copied at once.
const CHUNK: usize = 256 << 10;

/// What the thread has for itself.
pub struct Writer {
    pub queue: Arc<Queue>,
    /// The file's lines before they are written.
    pub stage: File,
    pub file: Flock<File>,
    pub path: PathBuf,
    /// Number of the file's first record.
    pub first: u64,
    pub head: Option<(Arc<Key>, Head)>,
    /// After how long the disk is waited for although nobody does.
    pub sync_every: Option<Duration>,
    pub packer: Orders,
    /// What is in the file and may not be on the disk: its last record, and since when.
    pub dirty: Option<(Point, Instant)>,
    pub buffer: Vec<u8>,
}

impl Writer {
    /// Begins to work.
    pub fn start(mut self) -> io::Result<JoinHandle<()>> {
        self.buffer = vec![0; CHUNK];
        std::thread::Builder::new()
            .name("audit-writer".to_owned())
            .spawn(move || self.run())
    }

    fn run(mut self) {
        let queue = self.queue.clone();
        loop {
            let (count, outcome) = match queue.next(self.due()) {
                Work::Orders(count, order) => (count, self.perform(&order)),
                Work::Sync => (0, self.settle_dirty()),
                Work::End => break,
            };
            match outcome {
                Ok(()) => queue.finish(count),
                Err(error) => {
                    tracing::error!("{error}; audit records wait in memory");
                    if !queue.failed(&error) {
                        break;
                    }
                }
            }
        }
        queue.ended();
    }

    /// When the disk is to be waited for.
    fn due(&self) -> Option<Instant> {
        let (_, since) = self.dirty.as_ref()?;
        Some(*since + self.sync_every?)
    }

    fn perform(&mut self, order: &Order) -> Result<(), LogError> {
        self.write(order)?;
        if order.tasks.sync {
            self.settle(&order.last)?;
        }
        if order.tasks.head
            && let Some((_, head)) = &self.head
        {
            let synced = head.sync();
            synced.map_err(failed("sync the head of", &self.path))?;
        }
        if order.tasks.turn {
            self.turn(order.last.seq + 1);
        }
        for path in &order.tasks.remove {
            if let Err(error) = fs::remove_file(path) {
                tracing::error!("{}", failed("remove", path)(error));
                self.queue.changed(|state| state.failures += 1);
            }
        }
        Ok(())
    }

    /// Waits for the disk with what is in the file.
    fn settle_dirty(&mut self) -> Result<(), LogError> {
        match &self.dirty {
            Some((last, _)) => self.settle(&last.clone()),
            None => Ok(()),
        }
    }

    fn write(&mut self, order: &Order) -> Result<(), LogError> {
        loop {
            let (from, offset) = {
                let state = self.queue.state();
                (state.done, state.stage.offset(state.done))
            };
            if from >= order.end {
                break;
            }
            let len = usize::try_from(order.end - from).map_or(CHUNK, |left| left.min(CHUNK));
            #[cfg(test)]
            let len = match self.fitting(len) {
                0 => {
                    return Err(failed("write to", &self.path)(
                        io::ErrorKind::StorageFull.into(),
                    ));
                }
                fits => fits,
            };
            let chunk = &mut self.buffer[..len];
            let read = self.stage.read_exact_at(chunk, offset);
            read.map_err(failed("read what waits for", &self.path))?;
            let written = match self.file.write(chunk) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                outcome => outcome,
            };
            let written = written.map_err(failed("write to", &self.path))?;
            // A line stays in the stage until all of it is written: the next writer needs it from its beginning.
            let whole = chunk[..written].iter().rposition(|byte| *byte == b'\n');
            let whole = whole.map(|at| from + at as u64 + 1);
            let written = written as u64;
            self.dirty
                .get_or_insert_with(|| (order.last.clone(), Instant::now()));
            let mut state = self.queue.state();
            state.done += written;
            state.size += written;
            state.bytes += written;
            if let Some(whole) = whole {
                state.stage.done_to(whole);
            }
        }
        if let Some((last, _)) = &mut self.dirty {
            *last = order.last.clone();
        }
        self.queue.changed(|state| state.written = order.last.seq);
        Ok(())
    }

    /// How much of so many bytes fits into the file.
    #[cfg(test)]
    fn fitting(&self, len: usize) -> usize {
        let state = self.queue.state();
        let room = state.most.map(|most| most.saturating_sub(state.size));
        room.map_or(len, |room| len.min(usize::try_from(room).unwrap_or(len)))
    }

    /// Waits for the disk, and then says in the head how far it is. All lines up to `last` are written.
    fn settle(&mut self, last: &Point) -> Result<(), LogError> {
        let begun = Instant::now();
        let synced = self.file.sync_data();
        let took = begun.elapsed().as_secs_f64();
        if let Err(error) = synced {
            // The kernel tells this once, and may have dropped what it could not write: that stays known.
            let what = format!(
                "the disk failed ({error}): records up to {} that are not signed may be lost with the power",
                last.seq
            );
            self.queue.changed(|state| {
                state.syncs.observe(took);
                state.lost_by_disk.get_or_insert(what);
            });
            return Err(failed("sync", &self.path)(error));
        }
        self.dirty = None;
        if let (Some((key, head)), Some(log)) = (&mut self.head, &last.log) {
            let mark = Mark::sign(key, log, last.seq, &last.hash, Clock::new().now());
            // The head is behind then, and the log says more than it: no record is at risk.
            if let Err(error) = head.write(&mark) {
                tracing::error!(
                    "the head of {} was not written: {error}",
                    self.path.display()
                );
            }
        }
        self.queue.changed(|state| {
            state.syncs.observe(took);
            state.durable = last.seq;
        });
        Ok(())
    }

    /// Closes the segment and begins the next, with record `first`. The chain goes on. If it fails, the log goes on in the
    /// same file.
    fn turn(&mut self, first: u64) {
        let turned = self.exchange(first);
        self.queue.changed(|state| {
            state.turning = false;
            state.stuck = turned.is_err().then(Instant::now);
            state.failures += u64::from(turned.is_err());
        });
        if let Err(error) = turned {
            tracing::error!("{error}");
        }
    }

    fn exchange(&mut self, first: u64) -> Result<(), LogError> {
        let leaving = segment::leaving(&self.path);
        let failed = |call| failed(call, &self.path);
        let next = open::make(&leaving).map_err(failed("make the next segment of"))?;
        // In one step, so that there is always a file with this name, and it is locked by us.
        let swapped = renameat_with(CWD, &leaving, CWD, &self.path, RenameFlags::EXCHANGE);
        if let Err(error) = swapped {
            let _ = fs::remove_file(&leaving);
            return Err(failed("close the segment")(error.into()));
        }
        let closed = segment::closed(&self.path, self.first);
        // From here on the next segment is the log, whatever fails; a start finishes it.
        let renamed = open::rename_new(&leaving, &closed)
            .and_then(|()| disk::sync_folder(&self.path))
            .map_err(failed("name the closed segment of"));
        self.file = next;
        self.first = first;
        self.queue.changed(|state| {
            state.size = 0;
            state.began = SystemTime::now();
            state.segments += 1;
        });
        renamed?;
        self.packer.begin(&closed);
        Ok(())
    }
}
