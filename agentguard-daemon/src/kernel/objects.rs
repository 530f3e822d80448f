//! Protected objects in the kernel: the inodes behind denied paths, and the filter in front of them.
//! The filter has a bit before an entry is there and keeps it until the last one is gone; it must never lack one.

use std::collections::HashMap;

use agentguard_common::identity::{FILTER_WORDS, Object, filter_bit, filter_word};
use aya::maps::{Array, Map, MapData, MapError};

use super::KernelError;
use super::guard::Bytes;
use super::load::{failed, open};

/// Inode, device in the kernel's form, and the accesses that are denied.
pub type Protection = (u64, u32, u32);

// SAFETY: a `repr(C)` struct of integers without padding.
unsafe impl aya::Pod for Bytes<Object> {}

/// The maps of protected objects, and what is in them.
pub(super) struct Objects {
    maps: Kernel,
    books: Books,
}

impl Objects {
    /// Takes the maps over, with what an earlier daemon left in them.
    pub fn open(objects: Map, filter: Map) -> Result<Self, KernelError> {
        let mut maps = Kernel {
            objects: open("OBJECTS", objects)?,
            filter: open("OBJECT_FILTER", filter)?,
        };
        let mut books = Books::new();
        for entry in &maps.objects {
            let (object, accesses) = entry.map_err(|error| failed("OBJECTS", &error))?;
            books.adopt(object.0, accesses);
        }
        for word in 0..FILTER_WORDS as u32 {
            maps.set_word(word, books.word(word))?;
        }
        Ok(Self { maps, books })
    }

    /// Replaces what is protected from an agent.
    pub fn replace(&mut self, agent: u32, objects: &[Protection]) -> Result<(), KernelError> {
        self.books.replace(&mut self.maps, agent, objects)
    }

    /// Agents from which something is protected.
    pub fn agents(&self) -> Vec<u32> {
        self.books.held.keys().copied().collect()
    }
}

/// Writing the two maps.
trait Maps {
    fn put(&mut self, object: Object, accesses: u32) -> Result<(), KernelError>;
    fn remove(&mut self, object: Object) -> Result<(), KernelError>;
    fn set_word(&mut self, word: u32, bits: u64) -> Result<(), KernelError>;
}

struct Kernel {
    objects: aya::maps::HashMap<MapData, Bytes<Object>, u32>,
    filter: Array<MapData, u64>,
}

impl Maps for Kernel {
    fn put(&mut self, object: Object, accesses: u32) -> Result<(), KernelError> {
        self.objects
            .insert(Bytes(object), accesses, 0)
            .map_err(|error| failed("OBJECTS", &error))
    }

    fn remove(&mut self, object: Object) -> Result<(), KernelError> {
        match self.objects.remove(&Bytes(object)) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(())
            }
            Err(error) => Err(failed("OBJECTS", &error)),
        }
    }

    fn set_word(&mut self, word: u32, bits: u64) -> Result<(), KernelError> {
        self.filter
            .set(word, bits, 0)
            .map_err(|error| failed("OBJECT_FILTER", &error))
    }
}

/// What is in the maps, and how many entries need each bit of the filter.
struct Books {
    held: HashMap<u32, HashMap<(u64, u32), u32>>,
    uses: Vec<u32>,
}

impl Books {
    fn new() -> Self {
        Self {
            held: HashMap::new(),
            uses: vec![0; FILTER_WORDS * 64],
        }
    }

    fn adopt(&mut self, object: Object, accesses: u32) {
        let of_agent = self.held.entry(object.agent).or_default();
        of_agent.insert((object.inode, object.device), accesses);
        self.uses[place(object.inode)] += 1;
    }

    /// A word of the filter, as it has to be.
    fn word(&self, word: u32) -> u64 {
        let first = word as usize * 64;
        (0..64)
            .filter(|bit| self.uses[first + bit] > 0)
            .fold(0, |bits, bit| bits | 1 << bit)
    }

    fn replace(
        &mut self,
        maps: &mut impl Maps,
        agent: u32,
        objects: &[Protection],
    ) -> Result<(), KernelError> {
        let mut wanted: HashMap<(u64, u32), u32> = HashMap::new();
        for (inode, device, accesses) in objects.iter().filter(|it| it.2 != 0) {
            *wanted.entry((*inode, *device)).or_default() |= accesses;
        }
        for (key, accesses) in &wanted {
            self.put(maps, agent, *key, *accesses)?;
        }
        let held = self.held.get(&agent);
        let old: Vec<(u64, u32)> = held
            .into_iter()
            .flat_map(HashMap::keys)
            .filter(|key| !wanted.contains_key(key))
            .copied()
            .collect();
        for key in old {
            maps.remove(object(agent, key))?;
            if let Some(held) = self.held.get_mut(&agent) {
                held.remove(&key);
            }
            self.give(maps, key.0)?;
        }
        if wanted.is_empty() {
            self.held.remove(&agent);
        }
        Ok(())
    }

    fn put(
        &mut self,
        maps: &mut impl Maps,
        agent: u32,
        key: (u64, u32),
        accesses: u32,
    ) -> Result<(), KernelError> {
        let before = self.held.get(&agent).and_then(|held| held.get(&key));
        if before == Some(&accesses) {
            return Ok(());
        }
        let is_new = before.is_none();
        if is_new {
            self.take(maps, key.0)?;
        }
        if let Err(error) = maps.put(object(agent, key), accesses) {
            if is_new {
                self.give(maps, key.0)?;
            }
            return Err(error);
        }
        self.held.entry(agent).or_default().insert(key, accesses);
        Ok(())
    }

    /// One entry more needs the bit of an inode.
    fn take(&mut self, maps: &mut impl Maps, inode: u64) -> Result<(), KernelError> {
        let place = place(inode);
        self.uses[place] += 1;
        if self.uses[place] == 1
            && let Err(error) = maps.set_word(filter_word(inode), self.word(filter_word(inode)))
        {
            self.uses[place] -= 1;
            return Err(error);
        }
        Ok(())
    }

    fn give(&mut self, maps: &mut impl Maps, inode: u64) -> Result<(), KernelError> {
        let place = place(inode);
        self.uses[place] -= 1;
        if self.uses[place] == 0 {
            // A bit too many costs a lookup and nothing else.
            maps.set_word(filter_word(inode), self.word(filter_word(inode)))?;
        }
        Ok(())
    }
}

fn object(agent: u32, (inode, device): (u64, u32)) -> Object {
    Object {
        inode,
        device,
        agent,
    }
}

/// Where the uses of an inode's bit are counted.
fn place(inode: u64) -> usize {
    filter_word(inode) as usize * 64 + filter_bit(inode).trailing_zeros() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Maps in memory, which see to it that the filter has the bit of each entry at any time.
    struct Memory {
        objects: HashMap<Object, u32>,
        filter: Vec<u64>,
        /// Entries that the map takes.
        room: usize,
    }

    impl Memory {
        fn new() -> Self {
            Self {
                objects: HashMap::new(),
                filter: vec![0; FILTER_WORDS],
                room: usize::MAX,
            }
        }

        fn has_bit(&self, inode: u64) -> bool {
            self.filter[filter_word(inode) as usize] & filter_bit(inode) != 0
        }
    }

    impl Maps for Memory {
        fn put(&mut self, object: Object, accesses: u32) -> Result<(), KernelError> {
            assert!(self.has_bit(object.inode), "the entry before the bit");
            if self.objects.len() >= self.room && !self.objects.contains_key(&object) {
                return Err(KernelError::Slot(0));
            }
            self.objects.insert(object, accesses);
            Ok(())
        }

        fn remove(&mut self, object: Object) -> Result<(), KernelError> {
            assert!(self.has_bit(object.inode));
            self.objects.remove(&object);
            Ok(())
        }

        fn set_word(&mut self, word: u32, bits: u64) -> Result<(), KernelError> {
            self.filter[word as usize] = bits;
            let objects: Vec<u64> = self.objects.keys().map(|it| it.inode).collect();
            assert!(objects.into_iter().all(|inode| self.has_bit(inode)));
            Ok(())
        }
    }

    const ALIKE: u64 = (FILTER_WORDS * 64) as u64;

    #[test]
    fn a_set_replaces_the_one_before_and_bits_go_with_their_last_entry() {
        let (mut books, mut maps) = (Books::new(), Memory::new());
        let set = |agent, of: &[Protection], books: &mut Books, maps: &mut Memory| {
            books.replace(maps, agent, of).unwrap();
        };
        // Two inodes with the same bit, one named twice, one for nothing.
        let first = [(5, 1, 1), (5 + ALIKE, 1, 2), (5, 1, 4), (9, 1, 0)];
        set(1, &first, &mut books, &mut maps);
        assert_eq!(maps.objects[&object(1, (5, 1))], 5);
        assert_eq!(maps.objects.len(), 2);
        set(2, &[(5, 1, 1)], &mut books, &mut maps);
        set(1, &[(6, 1, 3)], &mut books, &mut maps);
        assert_eq!(maps.objects.len(), 2);
        assert!(maps.has_bit(5) && maps.has_bit(6));
        set(2, &[], &mut books, &mut maps);
        assert!(!maps.has_bit(5) && maps.has_bit(6));
        set(1, &[(6, 1, 1)], &mut books, &mut maps);
        assert_eq!(maps.objects[&object(1, (6, 1))], 1);
        set(1, &[], &mut books, &mut maps);
        assert!(maps.objects.is_empty() && maps.filter.iter().all(|word| *word == 0));
        assert!(books.held.is_empty());
    }

    #[test]
    fn a_full_map_is_an_error_and_the_books_stay_right() {
        let (mut books, mut maps) = (Books::new(), Memory::new());
        maps.room = 2;
        let many: Vec<Protection> = (1..10).map(|inode| (inode, 1, 1)).collect();
        assert!(books.replace(&mut maps, 1, &many).is_err());
        assert_eq!(books.held[&1].len(), maps.objects.len());
        let bits: u32 = maps.filter.iter().map(|word| word.count_ones()).sum();
        assert_eq!(bits, 2);
        books.replace(&mut maps, 1, &[]).unwrap();
        assert!(maps.filter.iter().all(|word| *word == 0));
    }

    #[test]
    fn what_an_earlier_daemon_left_is_counted() {
        let (mut books, mut maps) = (Books::new(), Memory::new());
        let left = object(3, (77, 8));
        maps.objects.insert(left, 1);
        books.adopt(left, 1);
        for word in 0..FILTER_WORDS as u32 {
            let bits = books.word(word);
            maps.filter[word as usize] = bits;
        }
        assert!(maps.has_bit(77));
        books.replace(&mut maps, 3, &[(78, 8, 1)]).unwrap();
        assert!(!maps.has_bit(77) && maps.has_bit(78));
        assert_eq!(maps.objects.len(), 1);
    }
}
