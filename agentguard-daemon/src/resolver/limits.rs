//! What one agent may take of the resolver, so that no other agent and no other work of the daemon suffers.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bounds for one agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Queries a second that are read. The others wait in the socket, whose buffer the kernel bounds: what does not
    /// fit there is lost before anybody has seen it.
    pub rate: u32,
    /// Questions that wait for other resolvers at once. One more is answered with SERVFAIL.
    pub lookups: usize,
    /// Connections at once. One more is closed.
    pub connections: usize,
    /// How long a connection may stand still.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rate: 25_000,
            lookups: 64,
            connections: 32,
            idle: Duration::from_secs(10),
        }
    }
}

/// The way to keep to a rate: a query takes its share of a second, and a tenth of a second may be saved up.
#[derive(Debug)]
pub(super) struct Pace {
    share: Duration,
    /// When the next query may be read.
    next: Mutex<Instant>,
}

/// What may be saved up.
const SAVED: Duration = Duration::from_millis(100);

impl Pace {
    pub(super) fn new(rate: u32) -> Self {
        Self {
            share: Duration::from_secs(1) / rate.max(1),
            next: Mutex::new(Instant::now()),
        }
    }

    /// Takes so many queries' share; gives how long to wait before the next one is read.
    pub(super) fn take(&self, queries: u32, now: Instant) -> Duration {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(SAVED).unwrap_or(now);
        *next = (*next).max(earliest) + self.share * queries;
        next.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_and_little_is_saved_up() {
        let pace = Pace::new(1_000);
        let mut now = Instant::now() + Duration::from_mins(1);
        let start = now;
        let mut read = 0;
        while now < start + Duration::from_secs(2) {
            now += pace.take(1, now);
            read += 1;
        }
        assert!((2_000..=2_102).contains(&read), "{read}");
    }
}
