//! Between the log and the thread that writes it: what is to be done, and how far it is.
//!
//! Its lock is held for copying in memory, and never while the disk is waited for.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, watch};

use super::LogError;
use super::stage::Stage;
use crate::audit::chain::Hash;
use crate::metrics::Histogram;

/// Bytes of lines after which the disk is waited for, if somebody waits for it.
const STEP: u64 = 8 << 20;
/// How long after a failure it is tried again.
const PAUSE: Duration = Duration::from_millis(200);

/// What is to be done when lines are in the file.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    /// Whether the disk is waited for.
    pub sync: bool,
    /// Whether the disk is waited for with the head as well.
    pub head: bool,
    /// Whether the segment ends behind them.
    pub turn: bool,
    /// Files that are not needed any more when the lines are on the disk.
    pub remove: Vec<PathBuf>,
}

/// Lines that are in the stage, and what is to be done when they are in the file.
#[derive(Debug)]
pub struct Order {
    /// The place behind them.
    pub end: u64,
    /// The last record.
    pub last: Point,
    /// What is to be done then.
    pub tasks: Tasks,
}

/// A record of a log.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its number.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
    /// Hash of the log's first record.
    pub log: Option<Hash>,
}

/// What the writer does next.
#[derive(Debug)]
pub enum Work {
    /// So many orders are carried out together, as if they were this one.
    Orders(usize, Order),
    /// The disk is waited for, because it is time.
    Sync,
    /// Nothing any more.
    End,
}

/// See the module.
#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    /// There is something to do.
    work: Condvar,
    /// Something was done.
    progress: Condvar,
    /// The same for those who do not wait in a thread.
    pub notify: Arc<Notify>,
    /// The number of the last record that is on the disk.
    pub durable: watch::Sender<u64>,
}

/// What both sides know.
#[derive(Debug)]
#[cfg_attr(
    test,
    expect(clippy::struct_excessive_bools, reason = "one is only there for tests")
)]
pub struct State {
    /// The lines.
    pub stage: Stage,
    orders: VecDeque<Order>,
    ordered: u64,
    finished: u64,
    /// The place up to which lines are in the file.
    pub done: u64,
    /// Number of the last record that is in the file.
    pub written: u64,
    /// Number of the last record that is on the disk.
    pub durable: u64,
    /// Bytes in the file.
    pub size: u64,
    /// When its first record was written.
    pub began: SystemTime,
    /// Whether the segment is about to be closed.
    pub turning: bool,
    /// When that failed.
    pub stuck: Option<Instant>,
    /// How often something failed.
    pub failures: u64,
    trouble: Option<Trouble>,
    retry_at: Option<Instant>,
    /// The disk said that it may have lost something.
    pub lost_by_disk: Option<String>,
    ending: bool,
    ended: bool,
    /// The disk stands still.
    #[cfg(test)]
    pub held: bool,
    /// The disk has room for a file of so many bytes.
    #[cfg(test)]
    pub most: Option<u64>,
    /// Bytes that were written.
    pub bytes: u64,
    /// Segments that were closed.
    pub segments: u64,
    /// How long the disk was waited for, in seconds.
    pub syncs: Histogram,
}

/// What failed, to be told more than once.
#[derive(Clone, Debug)]
struct Trouble {
    call: &'static str,
    path: PathBuf,
    errno: Option<i32>,
    kind: io::ErrorKind,
}

impl Trouble {
    fn error(&self) -> LogError {
        let source = match self.errno {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => self.kind.into(),
        };
        LogError::Io {
            call: self.call,
            path: self.path.clone(),
            source,
        }
    }
}

impl Queue {
    /// Nothing is to be done yet.
    pub fn new(stage: Stage) -> Self {
        let state = State {
            done: stage.end(),
            stage,
            orders: VecDeque::new(),
            ordered: 0,
            finished: 0,
            written: 0,
            durable: 0,
            size: 0,
            began: SystemTime::now(),
            turning: false,
            stuck: None,
            failures: 0,
            trouble: None,
            retry_at: None,
            lost_by_disk: None,
            ending: false,
            ended: false,
            #[cfg(test)]
            held: false,
            #[cfg(test)]
            most: None,
            bytes: 0,
            segments: 0,
            syncs: Histogram::new(Histogram::DISK),
        };
        Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            progress: Condvar::new(),
            notify: Arc::default(),
            durable: watch::Sender::new(0),
        }
    }

    /// The file has `size` bytes, up to record `written`.
    pub fn begin(&self, written: u64, size: u64, began: SystemTime) {
        let mut state = self.state();
        state.written = written;
        state.size = size;
        state.began = began;
    }

    /// What both sides know. Nobody may wait while they hold it.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds lines with what is to be done with them; whether there was room.
    pub fn add(&self, lines: &[u8], mut order: Order) -> io::Result<bool> {
        let mut state = self.state();
        if !state.stage.add(lines)? {
            return Ok(false);
        }
        order.end = state.stage.end();
        state.turning |= order.tasks.turn;
        state.orders.push_back(order);
        state.ordered += 1;
        drop(state);
        self.work.notify_one();
        Ok(true)
    }

    /// Waits until everything that was ordered is done. An attempt of after the call that fails is an error.
    pub fn wait(&self) -> Result<(), LogError> {
        let mut state = self.state();
        let (ordered, failures) = (state.ordered, state.failures);
        if state.finished < ordered {
            // Who waits need not wait for the next try as well.
            state.retry_at = None;
            self.work.notify_one();
        }
        while state.finished < ordered {
            if state.failures > failures || state.ended {
                let trouble = state.trouble.clone();
                return Err(trouble.map_or_else(
                    || {
                        Trouble {
                            call: "write",
                            path: PathBuf::from("the audit log"),
                            errno: None,
                            kind: io::ErrorKind::BrokenPipe,
                        }
                        .error()
                    },
                    |trouble| trouble.error(),
                ));
            }
            state = self.after(state);
        }
        Ok(())
    }

    /// Waits until there may be room again; an error if writing fails. Whether there was anything to wait for.
    pub fn wait_for_room(&self) -> Result<bool, LogError> {
        let mut state = self.state();
        let (done, failures) = (state.done, state.failures);
        if state.orders.is_empty() {
            return Ok(false);
        }
        while state.done == done && !state.orders.is_empty() {
            if state.failures > failures
                && let Some(trouble) = &state.trouble
            {
                return Err(trouble.error());
            }
            state = self.after(state);
        }
        Ok(true)
    }

    fn after<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let waited = self.progress.wait(state);
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that was ordered is done once more, and then the writer ends.
    pub fn end(&self) {
        let mut state = self.state();
        state.ending = true;
        state.retry_at = None;
        drop(state);
        self.work.notify_one();
    }

    /// For the writer: what is next. At `due` the disk is to be waited for.
    pub fn next(&self, due: Option<Instant>) -> Work {
        let mut state = self.state();
        loop {
            #[cfg(test)]
            if state.held {
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let now = Instant::now();
            let until = if let Some(at) = state.retry_at.filter(|at| *at > now) {
                Some(at)
            } else if let Some((count, order)) = state.together() {
                return Work::Orders(count, order);
            } else if state.ending {
                return Work::End;
            } else {
                due
            };
            let Some(until) = until else {
                let waited = self.work.wait(state);
                state = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            if until <= now {
                return Work::Sync;
            }
            let waited = self.work.wait_timeout(state, until - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The disk goes on.
    #[cfg(test)]
    pub fn go_on(&self) {
        self.work.notify_one();
    }

    /// For the writer: something has changed.
    pub fn changed(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        let durable = state.durable;
        change(&mut state);
        if state.durable != durable {
            self.durable.send_replace(state.durable);
        }
        drop(state);
        self.progress.notify_all();
        self.notify.notify_one();
    }

    /// For the writer: orders were carried out.
    pub fn finish(&self, orders: usize) {
        self.changed(|state| {
            state.orders.drain(..orders);
            state.finished += orders as u64;
            state.trouble = None;
            state.retry_at = None;
        });
    }

    /// For the writer: a job failed. Whether it is tried again.
    pub fn failed(&self, error: &LogError) -> bool {
        let mut again = true;
        self.changed(|state| {
            state.failures += 1;
            state.retry_at = Some(Instant::now() + PAUSE);
            if let LogError::Io { call, path, source } = error {
                state.trouble = Some(Trouble {
                    call,
                    path: path.clone(),
                    errno: source.raw_os_error(),
                    kind: source.kind(),
                });
            }
            again = !state.ending;
        });
        again
    }

    /// For the writer: nobody works any more.
    pub fn ended(&self) {
        self.changed(|state| state.ended = true);
    }
}

impl State {
    /// Orders that can be carried out together: how many, and what they come to.
    fn together(&self) -> Option<(usize, Order)> {
        let (mut count, mut tasks) = (0_usize, Tasks::default());
        for order in &self.orders {
            count += 1;
            tasks.sync |= order.tasks.sync;
            tasks.head |= order.tasks.head;
            tasks.turn = order.tasks.turn;
            tasks.remove.extend_from_slice(&order.tasks.remove);
            // What failed may have been written already, up to behind the first of them.
            if tasks.turn || order.end.saturating_sub(self.done) >= STEP {
                break;
            }
        }
        let Order { end, last, .. } = self.orders.get(count.checked_sub(1)?)?;
        let (end, last) = (*end, last.clone());
        Some((count, Order { end, last, tasks }))
    }

    /// Bytes of lines that wait to be written.
    pub fn waiting(&self) -> u64 {
        self.stage.end() - self.done
    }

    /// What failed last, if nothing went well since.
    pub fn is_troubled(&self) -> bool {
        self.trouble.is_some()
    }
}
