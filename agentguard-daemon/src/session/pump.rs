//! The pump: from the kernel's rings into the recorder, batch by batch, in the order of time.
//!
//! Denials are read first and allowed actions after them: whatever a task did before it was denied
//! is in its ring by then, so a record never comes before its cause.

use std::sync::{Arc, Mutex, PoisonError};

use agentguard_common::record::class;
use tokio::sync::{mpsc, oneshot};

use super::Enforcer;
use crate::audit::Recorder;
use crate::kernel::Rings;

/// Where a record's time is: see [`agentguard_common::record::RecordHeader`].
const TIME: std::ops::Range<usize> = 8..16;
/// Most bytes of one batch before it is handed on.
const BATCH_BYTES: usize = 16 << 20;

/// Asks the pump to read what is there now.
#[derive(Clone, Debug)]
pub struct Pump {
    requests: mpsc::Sender<oneshot::Sender<()>>,
}

impl Pump {
    /// Starts pumping on the current runtime.
    pub fn start(
        mut rings: Rings,
        recorder: Arc<Mutex<Recorder>>,
        enforcer: Arc<Mutex<Box<dyn Enforcer>>>,
    ) -> Self {
        let (requests, mut asked) = mpsc::channel::<oneshot::Sender<()>>(16);
        tokio::spawn(async move {
            let mut batch = Batch::default();
            loop {
                let request = tokio::select! {
                    ready = rings.ready() => {
                        if let Err(error) = ready {
                            tracing::error!("failed to wait for the kernel's records: {error}");
                        }
                        None
                    }
                    request = asked.recv() => match request {
                        Some(request) => Some(request),
                        None => break,
                    },
                };
                drain(&mut rings, &mut batch, &recorder, &enforcer);
                if let Some(request) = request {
                    // Whoever asked may have gone.
                    let _ = request.send(());
                }
            }
        });
        Self { requests }
    }

    /// A pump with nothing behind it.
    #[cfg(test)]
    pub fn idle() -> Self {
        Self {
            requests: mpsc::channel(1).0,
        }
    }

    /// Returns when everything that was in the rings at the call is in the log.
    pub async fn drain(&self) {
        let (done, wait) = oneshot::channel();
        if self.requests.send(done).await.is_ok() {
            // An error means that the pump has ended: nothing is left to wait for.
            let _ = wait.await;
        }
    }
}

fn drain(
    rings: &mut Rings,
    batch: &mut Batch,
    recorder: &Mutex<Recorder>,
    enforcer: &Mutex<Box<dyn Enforcer>>,
) {
    rings.drain(class::DENIED, |bytes| batch.add(bytes));
    rings.drain(class::ALLOWED, |bytes| batch.add(bytes));
    // An agent may change its policy just now; the counters only grow, the next time will do.
    let losses = enforcer.try_lock().ok().and_then(|mut enforcer| {
        settle(enforcer.as_mut());
        enforcer.losses().ok()
    });
    if batch.is_empty() && losses.is_none() {
        return;
    }
    let mut recorder = recorder.lock().unwrap_or_else(PoisonError::into_inner);
    let any = !batch.is_empty();
    batch.hand_over(|bytes| recorder.record(bytes));
    if let Some(losses) = losses {
        recorder.losses(losses);
    }
    if any || recorder.has_waiting() {
        recorder.flush();
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
    /// Time, offset, length.
    records: Vec<(u64, usize, usize)>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn add(&mut self, bytes: &[u8]) {
        // A record too short for a time is malformed; it is handed on all the same.
        let time = bytes
            .get(TIME)
            .and_then(|time| time.try_into().ok())
            .map_or(0, u64::from_ne_bytes);
        self.records.push((time, self.bytes.len(), bytes.len()));
        self.bytes.extend_from_slice(bytes);
    }

    /// Gives all records, oldest first, and forgets them.
    fn hand_over(&mut self, mut take: impl FnMut(&[u8])) {
        // Both rings are nearly sorted: the stable sort merges such runs in one pass.
        self.records.sort_by_key(|(time, ..)| *time);
        for (_, start, len) in self.records.drain(..) {
            take(&self.bytes[start..start + len]);
        }
        self.bytes.clear();
        self.bytes.shrink_to(BATCH_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_both_rings_come_in_the_order_of_time() {
        let mut batch = Batch::default();
        let record = |time: u64, mark: u8| {
            let mut bytes = [mark; 32];
            bytes[TIME].copy_from_slice(&time.to_ne_bytes());
            bytes
        };
        for (time, mark) in [(5, 1), (9, 2), (1, 3), (5, 4), (7, 5)] {
            batch.add(&record(time, mark));
        }
        batch.add(b"short");
        let mut marks = Vec::new();
        batch.hand_over(|bytes| marks.push(bytes.last().copied().unwrap_or_default()));
        assert_eq!(marks, [b't', 3, 1, 4, 5, 2]);
        assert!(batch.is_empty());
    }
}
