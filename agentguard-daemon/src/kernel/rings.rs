//! The two rings together: denials have their own and wake the reader at once; allowed actions wake it
//! rarely and are polled. What was read stays there until [`Rings::commit`].

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use agentguard_common::record::{ALLOWED_RING, DENIED_RING, HEADER_LEN, class};
use tokio::io::unix::AsyncFd;

use super::ring::Ring;

/// How often allowed records are collected when nothing wakes the reader.
const POLL: Duration = Duration::from_millis(50);
/// Where a record's time is: see [`agentguard_common::record::RecordHeader`].
const TIME: std::ops::Range<usize> = 8..16;
/// Number of rings, one for each class.
const COUNT: usize = class::COUNT as usize;

/// A position in each ring, by class.
pub type Positions = [u64; COUNT];

/// The two rings.
pub struct Rings {
    denied: AsyncFd<Ring>,
    allowed: Ring,
    /// Whether the last reading stopped before the rings were empty.
    more: bool,
}

impl Rings {
    pub(super) fn new(denied: OwnedFd, allowed: OwnedFd) -> io::Result<Self> {
        let denied = Ring::open(denied, DENIED_RING)?;
        // SAFETY: the ring owns its descriptor for as long as it lives, and always gives the same one.
        let denied = unsafe { AsyncFd::register(denied)? };
        Ok(Self {
            denied,
            allowed: Ring::open(allowed, ALLOWED_RING)?,
            more: false,
        })
    }

    /// Waits until there may be something to read: at once for denials, within 50 ms for the rest.
    pub async fn ready(&mut self) -> io::Result<()> {
        if self.more {
            self.more = false;
            tokio::task::yield_now().await;
            return Ok(());
        }
        tokio::select! {
            guard = self.denied.readable_mut() => guard?.clear_ready(),
            () = tokio::time::sleep(POLL) => {}
        }
        Ok(())
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
        ends[class::ALLOWED as usize] = self.allowed.produced();
        ends
    }

    /// Up to where records were read.
    pub fn read_to(&self) -> Positions {
        let mut read = [0; COUNT];
        read[class::DENIED as usize] = self.denied.get_ref().read_to();
        read[class::ALLOWED as usize] = self.allowed.read_to();
        read
    }

    /// Hands records of both rings to `take`, the oldest first as far as the rings are sorted, up to `ends`
    /// or about `limit` bytes.
    pub fn take(&mut self, ends: Positions, limit: usize, mut take: impl FnMut(u32, &[u8])) {
        let denied = self.denied.get_mut();
        let mut bytes = 0;
        while bytes < limit {
            let first = denied.head(ends[class::DENIED as usize]);
            let second = self.allowed.head(ends[class::ALLOWED as usize]);
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
                self.allowed.step(len);
            }
        }
    }

    /// Bytes that are in use in each, by class: what was not given back yet.
    pub fn used(&self) -> Positions {
        let mut used = [0; COUNT];
        used[class::DENIED as usize] = self.denied.get_ref().used();
        used[class::ALLOWED as usize] = self.allowed.used();
        used
    }

    /// Gives back everything that was read.
    pub fn commit(&mut self) {
        self.denied.get_mut().commit();
        self.allowed.commit();
    }

    /// Whether there may be a denial to read.
    pub fn has_denials(&self) -> bool {
        self.denied.get_ref().has_more()
    }

    /// Bytes that both take.
    pub fn size(&self) -> usize {
        (self.denied.get_ref().size() + self.allowed.size()) as usize
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
