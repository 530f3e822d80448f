//! Answers that were found, by name and type, until their time is over. Shared by all agents: what is found does
//! not depend on who asks; what is permitted does, and is judged at every hit.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::rr::{Record, RecordType};

/// Answers kept. At most about 64 records each, so at worst some 100 MiB, and a few MiB in practice.
pub(super) const ENTRIES: usize = 16_384;
/// The shortest and the longest time that an answer is kept, whatever its TTL says.
pub(super) const KEPT: (Duration, Duration) = (Duration::from_secs(5), Duration::from_hours(1));
/// The same for "there is no such name" and "no such record".
pub(super) const KEPT_NEGATIVE: (Duration, Duration) =
    (Duration::from_secs(5), Duration::from_mins(5));

/// What a name and type resolve to.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Whether the name exists (as far as the chain of aliases leads).
    pub(super) exists: bool,
    /// The aliases, in order.
    pub(super) chain: Vec<Record>,
    /// The records at its end.
    pub(super) records: Vec<Record>,
    /// For an answer without records: who says so.
    pub(super) authority: Option<Record>,
    /// Until when it may be used.
    pub(super) until: Instant,
}

/// A name in lower case without a dot at its end, and a type.
pub(super) type Key = (String, RecordType);

#[derive(Debug, Default)]
struct Entries {
    found: HashMap<Key, Arc<Found>>,
    /// Oldest first. Each key is in it once.
    order: VecDeque<Key>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Cache {
    entries: Mutex<Entries>,
    most: usize,
}

impl Cache {
    pub(super) fn new(most: usize) -> Self {
        Self {
            entries: Mutex::default(),
            most,
        }
    }

    /// An answer that may still be used.
    pub(super) fn get(&self, key: &Key, now: Instant) -> Option<Arc<Found>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let found = entries.found.get(key)?;
        (found.until > now).then(|| found.clone())
    }

    pub(super) fn put(&self, key: Key, found: Arc<Found>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.found.insert(key.clone(), found).is_none() {
            entries.order.push_back(key);
        }
        while entries.found.len() > self.most {
            match entries.order.pop_front() {
                Some(oldest) => entries.found.remove(&oldest),
                None => break,
            };
        }
    }

    pub(super) fn clear(&self) {
        *self.entries.lock().unwrap_or_else(PoisonError::into_inner) = Entries::default();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(entries.found.len(), entries.order.len());
        entries.found.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(until: Instant) -> Arc<Found> {
        Arc::new(Found {
            exists: false,
            chain: Vec::new(),
            records: Vec::new(),
            authority: None,
            until,
        })
    }

    #[test]
    fn answers_are_used_in_their_time_and_the_oldest_make_room() {
        let (cache, now) = (Cache::new(3), Instant::now());
        let key = |name: &str| (name.to_owned(), RecordType::A);
        let later = now + Duration::from_secs(10);
        for name in ["a", "b", "c", "a", "d"] {
            cache.put(key(name), found(later));
        }
        assert_eq!(cache.len(), 3);
        assert!(cache.get(&key("a"), now).is_none(), "the oldest went");
        assert!(cache.get(&key("d"), now).is_some());
        assert!(cache.get(&key("d"), later).is_none(), "its time is over");
        assert!(
            cache
                .get(&("d".to_owned(), RecordType::AAAA), now)
                .is_none()
        );
    }
}
