//! The pump: from the kernel's rings into the recorder, batch by batch, in the order of time.
//!
//! A batch is given back to the kernel only when its lines are in the log's stage, which outlives us, and the journal
//! says which lines those are before they get there. So a record is neither lost nor written twice, wherever we die,
//! and reading never waits for the disk: only when the stage is full, records wait in the rings.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agentguard_common::record::class;
use tokio::sync::{Notify, mpsc, oneshot};

use super::Enforcer;
use super::look::Look;
use crate::audit::{LogError, Recorder};
use crate::kernel::{Batch as Lines, Journal, Rings, time};

/// Bytes of records after which a batch ends: then there is room in the rings again.
const BATCH_BYTES: usize = 512 << 10;

/// How often a place for lines is looked for while there is none.
const AGAIN: Duration = Duration::from_millis(200);

type Request = oneshot::Sender<()>;

/// Asks the pump to read what is there now.
#[derive(Clone, Debug)]
pub struct Pump {
    requests: mpsc::Sender<Request>,
}

impl Pump {
    /// A pump that works as soon as there is a [`Well`] for the requests.
    pub fn new() -> (Self, mpsc::Receiver<Request>) {
        let (requests, asked) = mpsc::channel(16);
        (Self { requests }, asked)
    }

    /// A pump with nothing behind it.
    #[cfg(test)]
    pub fn idle() -> Self {
        Self::new().0
    }

    /// Returns when everything that was in the rings at the call is in the log, denials on the disk.
    pub async fn drain(&self) {
        let (done, wait) = oneshot::channel();
        if self.requests.send(done).await.is_ok() {
            // An error means that the pump has ended: nothing is left to wait for.
            let _ = wait.await;
        }
    }
}

/// What the pump pumps from, and to.
pub struct Well {
    rings: Rings,
    recorder: Arc<Mutex<Recorder>>,
    enforcer: Arc<Mutex<Box<dyn Enforcer>>>,
    /// Only pinned rings outlive us.
    journal: Option<Journal>,
    batch: Batch,
    /// Whether a batch is read, and its lines have no place yet.
    open: bool,
}

impl Well {
    /// Nothing is read yet.
    pub fn new(
        rings: Rings,
        recorder: Arc<Mutex<Recorder>>,
        enforcer: Arc<Mutex<Box<dyn Enforcer>>>,
        journal: Option<Journal>,
    ) -> Self {
        Self {
            rings,
            recorder,
            enforcer,
            journal,
            batch: Batch::default(),
            open: false,
        }
    }

    /// Pumps for as long as somebody may ask.
    pub fn start(mut self, mut asked: mpsc::Receiver<Request>) {
        let found = Arc::new(Notify::new());
        let look = Look::new(&self.enforcer, self.rings.glimpses(), found.clone());
        if let Err(error) = look.start() {
            tracing::error!(
                "what is only counted will be seen late: no thread could be started: {error}"
            );
        }
        tokio::spawn(async move {
            let progress = locked(&self.recorder).log().progress();
            let mut waiting: Vec<(u64, Request)> = Vec::new();
            loop {
                let (due, blocked) = {
                    let recorder = locked(&self.recorder);
                    (recorder.log().due(), self.open || recorder.has_waiting())
                };
                // What has no place waits until the writer says that something was done.
                let wake = tokio::select! {
                    ready = self.rings.ready(), if !self.open => {
                        if let Err(error) = ready {
                            tracing::error!("failed to wait for the kernel's records: {error}");
                        }
                        Wake::Records
                    }
                    () = found.notified() => Wake::Due,
                    () = progress.notified() => Wake::Progress,
                    () = at(due) => Wake::Due,
                    // The memory may have been taken by others, who do not tell.
                    () = tokio::time::sleep(AGAIN), if blocked => Wake::Due,
                    request = asked.recv() => match request {
                        Some(request) => Wake::Asked(request),
                        None => break,
                    },
                };
                match wake {
                    Wake::Progress => {
                        let mut recorder = locked(&self.recorder);
                        recorder.tell();
                        drop(recorder);
                        if blocked {
                            self.drain();
                        } else if !self.open {
                            locked(&self.recorder).tend();
                        }
                    }
                    Wake::Records | Wake::Due => self.drain(),
                    Wake::Asked(request) => {
                        self.drain();
                        let last = locked(&self.recorder).next_seq() - 1;
                        waiting.push((last, request));
                    }
                }
                self.answer(&mut waiting);
            }
        });
    }

    /// Tells those who asked that what they asked for is in the log, or that it cannot be written now.
    fn answer(&self, waiting: &mut Vec<(u64, Request)>) {
        if waiting.is_empty() {
            return;
        }
        let recorder = locked(&self.recorder);
        let is_troubled = recorder.log().is_troubled();
        for (_, request) in
            waiting.extract_if(.., |(last, _)| is_troubled || recorder.has_told(*last))
        {
            // Whoever asked may have gone.
            let _ = request.send(());
        }
    }

    /// Brings the log to where the one before us was, and the rings with it.
    pub fn recover(&mut self) -> Result<(), LogError> {
        let Some(journal) = self.journal.clone() else {
            return Ok(());
        };
        let entry = match journal.read() {
            Ok(entry) => entry,
            Err(error) => {
                tracing::error!("the journal cannot be read: {error}");
                return Ok(());
            }
        };
        let recorder = self.recorder.clone();
        let mut recorder = locked(&recorder);
        recorder.account(entry.accounted);
        let lines = entry.batch;
        if lines.open == 0 {
            return Ok(());
        }
        let written = recorder.written_of(lines.first, lines.end)?;
        let mut accounted = entry.accounted;
        for (index, lost) in lines.losses.into_iter().enumerate() {
            if written.gaps[index] {
                accounted[index] = lost;
            }
        }
        recorder.account(accounted);
        self.rings.take(lines.read_to, usize::MAX, |class, bytes| {
            self.batch.add(class, bytes);
        });
        // Where all lines are there, some records may have been given back already: the rest is in the log.
        let mut known = if written.whole {
            usize::MAX
        } else {
            written.records
        };
        self.batch.hand_over(|bytes| {
            if known > 0 {
                known -= 1;
                recorder.replay(bytes);
            } else {
                recorder.record(bytes);
            }
        });
        let end = recorder.next_seq().max(lines.end);
        self.begin(&recorder, lines.first, end);
        if !recorder.flush() || !recorder.settle() {
            return Err(LogError::Io {
                call: "write the records of an earlier daemon to",
                path: recorder.log_path().to_owned(),
                source: std::io::ErrorKind::Other.into(),
            });
        }
        self.give_back();
        Ok(())
    }

    fn drain(&mut self) {
        if let Ok(mut enforcer) = self.enforcer.try_lock() {
            settle(enforcer.as_mut());
        }
        locked(&self.recorder).counts().rings(self.rings.used());
        let mut read = 0;
        let mut ends = self.rings.ends();
        // What was there at the call, and no more than full rings, so that a flood cannot keep us.
        loop {
            if self.open && !self.finish() {
                // There is no room: records wait in the kernel, which counts what does not fit.
                return;
            }
            self.rings.take(ends, BATCH_BYTES, |class, bytes| {
                self.batch.add(class, bytes);
            });
            let losses = self.losses();
            read += self.batch.len();
            if self.batch.is_empty() && losses.is_none() {
                break;
            }
            self.record(losses);
            if self.batch_was_small() {
                break;
            }
            if read > self.rings.size() {
                self.rings.stopped_early();
                break;
            }
            ends = self.rings.ends();
        }
        if !self.open {
            locked(&self.recorder).tend();
        }
        self.rings.before_waiting();
    }

    /// The loss counters. An agent may change its policy just now; they only grow, the next time will do.
    fn losses(&self) -> Option<[u64; class::COUNT as usize]> {
        self.enforcer.try_lock().ok()?.losses().ok()
    }

    fn batch_was_small(&self) -> bool {
        self.batch.last < BATCH_BYTES
    }

    /// Makes the lines of the batch and writes them.
    fn record(&mut self, losses: Option<[u64; class::COUNT as usize]>) {
        let recorder = self.recorder.clone();
        let mut recorder = locked(&recorder);
        let first = recorder.next_seq();
        if !self.batch.is_empty() {
            // A batch of more would not fit into the rings.
            let records = u32::try_from(self.batch.records.len()).unwrap_or(u32::MAX);
            recorder.counts().batches.observe(f64::from(records));
        }
        self.batch.hand_over(|bytes| recorder.record(bytes));
        if let Some(losses) = losses {
            recorder.losses(losses);
        }
        if first == recorder.next_seq() && self.batch.last == 0 {
            if recorder.has_waiting() {
                recorder.flush();
            }
            return;
        }
        self.begin(&recorder, first, recorder.next_seq());
        if recorder.flush() {
            self.give_back();
        }
    }

    fn begin(&mut self, recorder: &Recorder, first: u64, end: u64) {
        self.open = true;
        let lines = Lines {
            open: 1,
            first,
            end,
            read_to: self.rings.read_to(),
            losses: recorder.accounted(),
        };
        if let Some(journal) = &self.journal
            && let Err(error) = journal.begin(lines)
        {
            tracing::error!("the journal cannot be written: {error}");
        }
    }

    /// Whether the lines of the open batch have their place now.
    fn finish(&mut self) -> bool {
        let written = locked(&self.recorder).flush();
        if written {
            self.give_back();
        }
        written
    }

    fn give_back(&mut self) {
        self.open = false;
        self.rings.commit();
        if let Some(journal) = &self.journal
            && let Err(error) = journal.end()
        {
            tracing::error!("the journal cannot be written: {error}");
        }
    }
}

fn locked(recorder: &Mutex<Recorder>) -> MutexGuard<'_, Recorder> {
    recorder.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the pump goes on for.
enum Wake {
    Records,
    Progress,
    Due,
    Asked(Request),
}

/// At that time, or never.
async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Labels tasks that somebody moved into an agent's cgroup in bulk. Until then the kernel judges
/// them by their cgroup, which costs everybody.
fn settle(enforcer: &mut dyn Enforcer) {
    let settled = match enforcer.unsettled() {
        Ok(0) => return,
        Ok(_) => enforcer.label_members().map(|_| ()),
        Err(error) => Err(error),
    };
    if let Err(error) = settled {
        tracing::error!("tasks that entered an agent's cgroup could not be labelled: {error}");
    }
}

/// Records of one reading, in one block of memory that is used again.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Time, class, offset, length.
    records: Vec<(u64, u32, usize, usize)>,
    /// Bytes of the batch that was handed over last.
    last: usize,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn add(&mut self, class: u32, bytes: &[u8]) {
        self.records
            .push((time(bytes), class, self.bytes.len(), bytes.len()));
        self.bytes.extend_from_slice(bytes);
    }

    /// Gives all records, oldest first, and forgets them. The same records always come in the same order,
    /// however they were read: whoever writes the rest of a batch relies on it.
    fn hand_over(&mut self, mut take: impl FnMut(&[u8])) {
        // Both rings are nearly sorted: the stable sort merges such runs in one pass.
        self.records
            .sort_by_key(|(time, class, ..)| (*time, *class));
        for (.., start, len) in self.records.drain(..) {
            take(&self.bytes[start..start + len]);
        }
        self.last = self.bytes.len();
        self.bytes.clear();
        self.bytes.shrink_to(2 * BATCH_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_both_rings_come_in_the_order_of_time() {
        let record = |time: u64, mark: u8| {
            let mut bytes = [mark; 32];
            bytes[8..16].copy_from_slice(&time.to_ne_bytes());
            bytes
        };
        let (denied, allowed) = ([(5, 1), (9, 2)], [(1, 3), (5, 4), (7, 5)]);
        let mut batch = Batch::default();
        for turn in [true, false] {
            let mut both: Vec<_> = denied.map(|it| (class::DENIED, it)).to_vec();
            both.extend(allowed.map(|it| (class::ALLOWED, it)));
            if turn {
                both.rotate_left(denied.len());
            }
            for (class, (time, mark)) in both {
                batch.add(class, &record(time, mark));
            }
            batch.add(class::ALLOWED, b"short");
            let mut marks = Vec::new();
            batch.hand_over(|bytes| marks.push(bytes.last().copied().unwrap_or_default()));
            assert_eq!(marks, [b't', 3, 4, 1, 5, 2]);
            assert!(batch.is_empty());
        }
    }
}
