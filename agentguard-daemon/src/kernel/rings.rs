//! Reading the ring buffers. Denials come first: they have their own ring and wake the reader at once;
//! allowed actions wake it rarely and are polled.

use std::io;
use std::time::Duration;

use agentguard_common::record::{ALLOWED_RING, DENIED_RING, HEADER_LEN, class};
use aya::maps::{MapData, RingBuf};
use tokio::io::unix::AsyncFd;

/// How often allowed records are collected when nothing wakes the reader.
const POLL: Duration = Duration::from_millis(50);
/// What the kernel puts before each record.
const ITEM_HEADER: usize = 8;

/// The two rings.
pub struct Rings {
    denied: AsyncFd<RingBuf<MapData>>,
    allowed: RingBuf<MapData>,
    /// Whether the last reading of each class stopped before its ring was empty.
    more: [bool; class::COUNT as usize],
}

impl Rings {
    pub(super) fn new(denied: RingBuf<MapData>, allowed: RingBuf<MapData>) -> io::Result<Self> {
        // SAFETY: the ring owns its descriptor for as long as it lives, and always gives the same one.
        let denied = unsafe { AsyncFd::register(denied)? };
        Ok(Self {
            denied,
            allowed,
            more: [false; class::COUNT as usize],
        })
    }

    /// Waits until there may be something to read: at once for denials, within 50 ms for the rest.
    pub async fn ready(&mut self) -> io::Result<()> {
        if self.more.contains(&true) {
            tokio::task::yield_now().await;
            return Ok(());
        }
        tokio::select! {
            guard = self.denied.readable_mut() => guard?.clear_ready(),
            () = tokio::time::sleep(POLL) => {}
        }
        Ok(())
    }

    /// Hands the records of one class to `take`, and says how many there were: everything that was there
    /// at the call, and no more than a full ring, so that a flood cannot keep the reader.
    /// Call it for [`class::DENIED`] first.
    pub fn drain(&mut self, class: u32, mut take: impl FnMut(&[u8])) -> usize {
        let (ring, size) = if class == class::DENIED {
            (self.denied.get_mut(), DENIED_RING)
        } else {
            (&mut self.allowed, ALLOWED_RING)
        };
        let (count, more) = up_to(size, || {
            let item = ring.next()?;
            take(record(&item));
            Some(item.len())
        });
        if let Some(slot) = self.more.get_mut(class as usize) {
            *slot = more;
        }
        count
    }
}

/// The record in an item of a ring. One that was built in the ring is shorter than what was reserved for
/// it, and what follows is left from others: nobody shall see it. A length that cannot be is left to the
/// decoder, which says so.
fn record(item: &[u8]) -> &[u8] {
    let said = item
        .first_chunk::<4>()
        .map_or(usize::MAX, |len| u32::from_ne_bytes(*len) as usize);
    item.get(..said.max(HEADER_LEN)).unwrap_or(item)
}

/// Calls `take_one`, which gives the length of what it took, until nothing is left or `size` bytes of
/// a ring are read; how many there were, and whether it was the size that ended it.
fn up_to(size: usize, mut take_one: impl FnMut() -> Option<usize>) -> (usize, bool) {
    let (mut count, mut read) = (0, 0);
    while read < size {
        let Some(len) = take_one() else {
            return (count, false);
        };
        read += (len + ITEM_HEADER).next_multiple_of(ITEM_HEADER);
        count += 1;
    }
    (count, true)
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
            assert_eq!(record(&item).len(), given);
        }
        assert_eq!(record(&[1, 2]), [1, 2]);
    }

    #[test]
    fn a_flood_ends_after_one_full_ring() {
        assert_eq!(up_to(160, || Some(9)), (7, true));
        let mut few = vec![9; 3];
        assert_eq!(up_to(160, || few.pop()), (3, false));
    }
}
