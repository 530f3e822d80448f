//! Reading the ring buffers. Denials come first: they have their own ring and wake the reader at once;
//! allowed actions wake it rarely and are polled.

use std::io;
use std::time::Duration;

use agentguard_common::record::class;
use aya::maps::{MapData, RingBuf};
use tokio::io::unix::AsyncFd;

/// How often allowed records are collected when nothing wakes the reader.
const POLL: Duration = Duration::from_millis(50);

/// The two rings.
pub struct Rings {
    denied: AsyncFd<RingBuf<MapData>>,
    allowed: RingBuf<MapData>,
}

impl Rings {
    pub(super) fn new(denied: RingBuf<MapData>, allowed: RingBuf<MapData>) -> io::Result<Self> {
        // SAFETY: the ring owns its descriptor for as long as it lives, and always gives the same one.
        let denied = unsafe { AsyncFd::register(denied)? };
        Ok(Self { denied, allowed })
    }

    /// Waits until there may be something to read: at once for denials, within 50 ms for the rest.
    pub async fn ready(&mut self) -> io::Result<()> {
        tokio::select! {
            guard = self.denied.readable_mut() => guard?.clear_ready(),
            () = tokio::time::sleep(POLL) => {}
        }
        Ok(())
    }

    /// Hands every record of one class to `take`, and says how many there were.
    /// Call it for [`class::DENIED`] first.
    pub fn drain(&mut self, class: u32, mut take: impl FnMut(&[u8])) -> usize {
        let ring = if class == class::DENIED {
            self.denied.get_mut()
        } else {
            &mut self.allowed
        };
        let mut count = 0;
        while let Some(item) = ring.next() {
            take(&item);
            count += 1;
        }
        count
    }
}
