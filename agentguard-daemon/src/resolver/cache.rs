//! Answers that were found, by name and type, until their time is over. Shared by all agents: what is found does
//! not depend on who asks; what is permitted does, and is judged at every hit.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::rr::{Record, RecordType};
use hickory_proto::serialize::binary::BinEncodable as _;

/// Answers kept, and bytes that they may take together: a few MiB in practice, but who answers for a permitted
/// zone can make each as large as a message, and larger in memory.
pub(super) const MOST: Bounds = Bounds {
    entries: 16_384,
    bytes: 64 << 20,
};
/// Bytes of memory that a byte of a record may become, at most: a text of one-letter strings has two bytes for each,
/// and keeps a pointer, a length and a piece of the heap.
const SWELLS: usize = 24;
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

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) entries: usize,
    pub(super) bytes: usize,
}

#[derive(Debug)]
struct Entry {
    found: Arc<Found>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Entries {
    found: HashMap<Key, Entry>,
    /// Oldest first. Each key is in it once.
    order: VecDeque<Key>,
    /// Bytes of all.
    bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Cache {
    entries: Mutex<Entries>,
    most: Bounds,
}

impl Cache {
    pub(super) fn new(most: Bounds) -> Self {
        Self {
            entries: Mutex::default(),
            most,
        }
    }

    /// An answer that may still be used.
    pub(super) fn get(&self, key: &Key, now: Instant) -> Option<Arc<Found>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let found = &entries.found.get(key)?.found;
        (found.until > now).then(|| found.clone())
    }

    pub(super) fn put(&self, key: Key, found: Arc<Found>) {
        let bytes = bytes(&key, &found);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.bytes += bytes;
        let entry = Entry { found, bytes };
        match entries.found.insert(key.clone(), entry) {
            Some(before) => entries.bytes -= before.bytes,
            None => entries.order.push_back(key),
        }
        while entries.found.len() > self.most.entries || entries.bytes > self.most.bytes {
            let Some(oldest) = entries.order.pop_front() else {
                break;
            };
            if let Some(gone) = entries.found.remove(&oldest) {
                entries.bytes -= gone.bytes;
            }
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

/// What an answer takes in memory, at most.
fn bytes(key: &Key, found: &Found) -> usize {
    let all = found.chain.iter().chain(&found.records);
    let records: usize = all
        .chain(&found.authority)
        .map(|record| {
            // What cannot be written is as large as a message can be.
            let written = record
                .to_bytes()
                .map_or(usize::from(u16::MAX), |it| it.len());
            size_of::<Record>() + written * SWELLS
        })
        .sum();
    size_of::<Found>() + size_of::<Entry>() + 2 * (size_of::<Key>() + key.0.len()) + records
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
        let bounds = Bounds {
            entries: 3,
            bytes: MOST.bytes,
        };
        let (cache, now) = (Cache::new(bounds), Instant::now());
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
    #[test]
    fn large_answers_make_room_for_each_other() {
        use hickory_proto::rr::rdata::TXT;
        use hickory_proto::rr::{Name, RData};
        let now = Instant::now();
        let later = now + Duration::from_secs(10);
        let large = |letters: usize| {
            let text = TXT::new(vec!["x".to_owned(); letters]);
            let mut found = Found::clone(&found(later));
            let record = Record::from_rdata(Name::root(), 60, RData::TXT(text));
            found.records = vec![record];
            Arc::new(found)
        };
        let cache = Cache::new(MOST);
        let key = |name: usize| (name.to_string(), RecordType::TXT);
        for name in 0..100 {
            cache.put(key(name), large(30_000));
        }
        let kept = cache.len();
        assert!((10..60).contains(&kept), "{kept}");
        assert!(cache.get(&key(99), now).is_some());
        // What is put again is counted once.
        for _ in 0..100 {
            cache.put(key(99), large(30_000));
        }
        assert_eq!(cache.len(), kept);
        cache.put(key(99), large(1));
        cache.put(key(100), large(30_000));
        assert_eq!(cache.len(), kept + 1);
    }
}
