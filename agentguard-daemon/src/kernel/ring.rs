//! One ring buffer, read without giving anything back: records stay in the kernel until they are in the
//! log, so that the death of a reader loses none. It must never trust a length that it has not bounded.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Set while a program still writes the record.
const BUSY: u32 = 1 << 31;
/// Set when the record is to be skipped.
const DISCARD: u32 = 1 << 30;
/// What the kernel puts before each record.
const HEADER: u64 = 8;

/// A mapping that is undone when dropped.
struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone; what is behind it is read by atomic loads, or is a record
// that the kernel does not change before it is given back.
unsafe impl Send for Mapping {}

// SAFETY: what several threads may see of it are positions, which are atomic.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: &OwnedFd, len: usize, offset: usize, writable: bool) -> io::Result<Self> {
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        // SAFETY: a new mapping of a live descriptor, at a place that the kernel chooses.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                offset.cast_signed() as libc::off_t,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { at, len })
    }

    /// The position at the beginning of a page.
    fn position(&self) -> &AtomicU64 {
        // SAFETY: the first word of a page that is mapped for as long as `self` lives, aligned as pages are.
        unsafe { self.at.cast().as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nothing refers to it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// Whether there is something in a ring, for those who do not read it.
pub struct Glimpse {
    consumer: Arc<Mapping>,
    producer: Arc<Mapping>,
}

impl Glimpse {
    /// Whether something was not given back.
    pub fn is_used(&self) -> bool {
        let given_back = self.consumer.position().load(Ordering::Acquire);
        self.producer.position().load(Ordering::Acquire) != given_back
    }
}

/// See the module. (Anything that is laid out as the kernel does it will do.)
pub struct Ring {
    fd: OwnedFd,
    consumer: Arc<Mapping>,
    /// The producer's page, then the data. (The kernel has the data twice in a row, but what is mapped twice counts
    /// twice as memory of ours.)
    producer: Arc<Mapping>,
    /// A record that begins at the end of the data and goes on at its beginning.
    split: Vec<u8>,
    page: usize,
    size: u64,
    /// Up to where records were read; behind the consumer's position lies what was not given back.
    read: u64,
}

impl Ring {
    /// Maps a ring of `size` bytes, and begins where its last reader stopped.
    pub fn open(fd: OwnedFd, size: usize) -> io::Result<Self> {
        // SAFETY: a plain question.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) })
            .map_err(io::Error::other)?;
        let consumer = Arc::new(Mapping::new(&fd, page, 0, true)?);
        let producer = Arc::new(Mapping::new(&fd, page + size, page, false)?);
        let read = consumer.position().load(Ordering::Acquire);
        Ok(Self {
            fd,
            consumer,
            producer,
            split: Vec::new(),
            page,
            size: size as u64,
            read,
        })
    }

    /// For one who only wants to know whether there is something.
    pub fn glimpse(&self) -> Glimpse {
        Glimpse {
            consumer: self.consumer.clone(),
            producer: self.producer.clone(),
        }
    }

    /// Where the programs are.
    pub fn produced(&self) -> u64 {
        self.producer.position().load(Ordering::Acquire)
    }

    /// Up to where records were read.
    pub fn read_to(&self) -> u64 {
        self.read
    }

    /// Whether there may be something to read.
    pub fn has_more(&self) -> bool {
        self.read != self.produced()
    }

    /// The next record before `end`; `None` if there is none, or it is still being written.
    pub fn head(&mut self, end: u64) -> Option<&[u8]> {
        while self.read < end {
            let offset = usize::try_from(self.read % self.size).ok()?;
            let word = self.word(offset)?;
            if word & BUSY != 0 {
                return None;
            }
            let len = u64::from(word & !DISCARD);
            if len > self.size {
                // The kernel never writes this.
                return None;
            }
            if word & DISCARD == 0 {
                return Some(self.record(offset + HEADER as usize, len as usize));
            }
            self.step(len as usize);
        }
        None
    }

    /// The first word of a header, if it is within the data.
    fn word(&self, offset: usize) -> Option<u32> {
        if offset as u64 + HEADER > self.size || !(offset as u64).is_multiple_of(HEADER) {
            return None;
        }
        // SAFETY: an aligned word within the data, as was checked.
        let word = unsafe {
            self.producer
                .at
                .add(self.page + offset)
                .cast::<AtomicU32>()
                .as_ref()
        };
        Some(word.load(Ordering::Acquire))
    }

    /// The `len` bytes at `start`, of which some may be at the beginning of the data; `len` is at most its size.
    fn record(&mut self, start: usize, len: usize) -> &[u8] {
        let size = self.size as usize;
        let first = len.min(size.saturating_sub(start));
        // SAFETY: from `start`, which is at most `size`, `first` bytes are within the data. The kernel does not change a
        // record before it is given back, which takes `&mut self`.
        let head = unsafe {
            std::slice::from_raw_parts(self.producer.at.add(self.page + start).as_ptr(), first)
        };
        if first == len {
            return head;
        }
        // SAFETY: as above; a record is not longer than the data.
        let tail = unsafe {
            std::slice::from_raw_parts(self.producer.at.add(self.page).as_ptr(), len - first)
        };
        self.split.clear();
        self.split.extend_from_slice(head);
        self.split.extend_from_slice(tail);
        &self.split
    }

    /// Whether the next record can be read. If not, whoever finishes it wakes us.
    pub fn is_readable(&self) -> bool {
        self.has_more()
            && usize::try_from(self.read % self.size)
                .ok()
                .and_then(|offset| self.word(offset))
                .is_some_and(|word| word & BUSY == 0)
    }

    /// Goes on behind a record of `len` bytes.
    pub fn step(&mut self, len: usize) {
        self.read += (len as u64 + HEADER).next_multiple_of(HEADER);
    }

    /// Gives back everything that was read.
    pub fn commit(&mut self) {
        self.consumer.position().store(self.read, Ordering::Release);
        // Either the next look sees a new record, or its producer sees the new position and wakes us.
        fence(Ordering::SeqCst);
    }

    /// Bytes that are in use: up to where programs are, from where readers gave back.
    pub fn used(&self) -> u64 {
        let given_back = self.consumer.position().load(Ordering::Acquire);
        self.produced().saturating_sub(given_back)
    }

    /// Bytes that it takes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn records_are_read_whole_across_the_end_of_the_data() {
        const SIZE: u64 = 8192;
        let memory: File = rustix::fs::memfd_create("ring", rustix::fs::MemfdFlags::CLOEXEC)
            .unwrap()
            .into();
        memory.set_len(2 * 4096 + SIZE).unwrap();
        let mut ring = Ring::open(memory.try_clone().unwrap().into(), SIZE as usize).unwrap();
        let mut position = 0_u64;
        let mut splits = 0;
        for number in 0..500_u64 {
            let len = 8 + number * 37 % 900;
            let record: Vec<u8> = (0..len).map(|at| (at + number) as u8).collect();
            let put = |at: u64, bytes: &[u8]| {
                for (index, byte) in (at..).zip(bytes) {
                    memory.write_all_at(&[*byte], 8192 + index % SIZE).unwrap();
                }
            };
            put(position, &(len as u32 | BUSY).to_ne_bytes());
            put(position + HEADER, &record);
            splits += u64::from(position % SIZE + HEADER + len > SIZE);
            let end = position + (len + HEADER).next_multiple_of(HEADER);
            memory.write_all_at(&end.to_ne_bytes(), 4096).unwrap();
            assert!(!ring.is_readable() && ring.head(end).is_none());
            put(position, &(len as u32).to_ne_bytes());
            assert!(ring.is_readable());
            assert_eq!(ring.head(end), Some(&record[..]), "{number}");
            ring.step(record.len());
            ring.commit();
            position = end;
        }
        assert!(splits > 20, "{splits}");
    }
}
