//! The two rings together: denials have their own, and are read at once; allowed actions are gathered for a moment.
//! Programs wake the reader where it has read everything before, so that nothing happens while nothing is recorded.
//! What was read stays there until [`Rings::commit`].

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use agentguard_common::record::{ALLOWED_RING, DENIED_RING, HEADER_LEN, class};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::ring::{Glimpse, Ring};

/// How long allowed records are gathered after the first. Programs wake nobody meanwhile.
const GATHER: Duration = Duration::from_millis(50);
/// Where a record's time is: see [`agentguard_common::record::RecordHeader`].
const TIME: std::ops::Range<usize> = 8..16;
/// Number of rings, one for each class.
const COUNT: usize = class::COUNT as usize;

/// A position in each ring, by class.
pub type Positions = [u64; COUNT];

/// The two rings.
pub struct Rings {
    denied: AsyncFd<Ring>,
    allowed: AsyncFd<Ring>,
    /// Since allowed records are there: when they are read.
    gathered: Option<Instant>,
    /// Whether the last reading stopped before the rings were empty.
    more: bool,
}

impl Rings {
    pub(super) fn new(denied: OwnedFd, allowed: OwnedFd) -> io::Result<Self> {
        let denied = Ring::open(denied, DENIED_RING)?;
        let allowed = Ring::open(allowed, ALLOWED_RING)?;
        // SAFETY: a ring owns its descriptor for as long as it lives, and always gives the same one.
        let (denied, allowed) =
            unsafe { (AsyncFd::register(denied)?, AsyncFd::register(allowed)?) };
        Ok(Self {
            denied,
            allowed,
            gathered: None,
            more: false,
        })
    }

    /// Waits until there may be something to read: at once for denials, within 50 ms for the rest. What waits for it
    /// may stop and begin again.
    pub async fn ready(&mut self) -> io::Result<()> {
        if self.more {
            self.more = false;
            tokio::task::yield_now().await;
            return Ok(());
        }
        loop {
            let until = self.gathered;
            let gathered = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                guard = self.denied.readable_mut() => {
                    guard?.clear_ready();
                    return Ok(());
                }
                guard = self.allowed.readable_mut(), if self.gathered.is_none() => {
                    guard?.clear_ready();
                    self.gathered = Some(Instant::now() + GATHER);
                }
                () = gathered => {
                    self.gathered = None;
                    return Ok(());
                }
            }
        }
    }

    /// For one who looks whether there is something: see [`crate::session`].
    pub fn glimpses(&self) -> [Glimpse; COUNT] {
        [&self.denied, &self.allowed].map(|ring| ring.get_ref().glimpse())
    }

    /// Says that the reader gave up before the rings were empty: [`Rings::ready`] returns at once.
    pub fn stopped_early(&mut self) {
        self.more = true;
    }

    /// Where a reading that begins now ends: what is there. Denials first: whatever a task did before it was
    /// denied is in its ring by the time that one is asked.
    pub fn ends(&self) -> Positions {
        let mut ends = [0; COUNT];
        ends[class::DENIED as usize] = self.denied.get_ref().produced();
        ends[class::ALLOWED as usize] = self.allowed.get_ref().produced();
        ends
    }

    /// Up to where records were read.
    pub fn read_to(&self) -> Positions {
        let mut read = [0; COUNT];
        read[class::DENIED as usize] = self.denied.get_ref().read_to();
        read[class::ALLOWED as usize] = self.allowed.get_ref().read_to();
        read
    }

    /// Hands records of both rings to `take`, the oldest first as far as the rings are sorted, up to `ends`
    /// or about `limit` bytes.
    pub fn take(&mut self, ends: Positions, limit: usize, mut take: impl FnMut(u32, &[u8])) {
        let (denied, allowed) = (self.denied.get_mut(), self.allowed.get_mut());
        let mut bytes = 0;
        while bytes < limit {
            let first = denied.head(ends[class::DENIED as usize]);
            let second = allowed.head(ends[class::ALLOWED as usize]);
            let (class, record) = match (first, second) {
                (None, None) => return,
                (Some(record), None) => (class::DENIED, record),
                (None, Some(record)) => (class::ALLOWED, record),
                (Some(first), Some(second)) if time(first) <= time(second) => {
                    (class::DENIED, first)
                }
                (Some(_), Some(second)) => (class::ALLOWED, second),
            };
            take(class, trimmed(record));
            let len = record.len();
            bytes += len;
            if class == class::DENIED {
                denied.step(len);
            } else {
                allowed.step(len);
            }
        }
    }

    /// Bytes that are in use in each, by class: what was not given back yet.
    pub fn used(&self) -> Positions {
        let mut used = [0; COUNT];
        used[class::DENIED as usize] = self.denied.get_ref().used();
        used[class::ALLOWED as usize] = self.allowed.get_ref().used();
        used
    }

    /// Gives back everything that was read.
    pub fn commit(&mut self) {
        self.denied.get_mut().commit();
        self.allowed.get_mut().commit();
    }

    /// The reader is about to wait. Nobody was woken for what came before the others were given back.
    pub fn before_waiting(&mut self) {
        if self.denied.get_ref().is_readable() {
            self.more = true;
        }
        if self.allowed.get_ref().is_readable() {
            self.gathered.get_or_insert_with(|| Instant::now() + GATHER);
        }
    }

    /// Bytes that both take.
    pub fn size(&self) -> usize {
        (self.denied.get_ref().size() + self.allowed.get_ref().size()) as usize
    }
}

/// The record in an item of a ring. One that was built in the ring is shorter than what was reserved for
/// it, and what follows is left from others: nobody shall see it. A length that cannot be is left to the
/// decoder, which says so.
fn trimmed(item: &[u8]) -> &[u8] {
    let said = item
        .first_chunk::<4>()
        .map_or(usize::MAX, |len| u32::from_ne_bytes(*len) as usize);
    item.get(..said.max(HEADER_LEN)).unwrap_or(item)
}

/// The time of a record. One too short for a time is malformed; it is handed on all the same.
pub fn time(record: &[u8]) -> u64 {
    record
        .get(TIME)
        .and_then(|time| time.try_into().ok())
        .map_or(0, u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_a_record_is_not_given_on() {
        let mut item = [7; HEADER_LEN + 40];
        for (said, given) in [
            (HEADER_LEN + 9, HEADER_LEN + 9),
            (HEADER_LEN + 40, HEADER_LEN + 40),
            (HEADER_LEN + 41, HEADER_LEN + 40),
            (3, HEADER_LEN),
        ] {
            item[..4].copy_from_slice(&(said as u32).to_ne_bytes());
            assert_eq!(trimmed(&item).len(), given);
        }
        assert_eq!(trimmed(&[1, 2]), [1, 2]);
    }
}
