//! Lines on their way to the file, in memory that outlives their maker: whoever makes lines never waits for the disk,
//! and a daemon that dies leaves them to the next.
//!
//! It must never say that a line is there before it is. A daemon's stage is a file below `/run`, which is memory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::libc::{O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use serde::Deserialize;

use crate::audit::chain::{self, Hash};

/// Bytes of lines that wait for the disk. It is memory that is taken only while they do.
pub const STAGE_MAX: u64 = 128 << 20;
/// Bytes that were written and whose memory is still held.
const SLACK: u64 = 4 << 20;

/// See the module. Places in it are counted from its opening on, and never come again.
#[derive(Debug)]
pub struct Stage {
    file: File,
    /// The place that is at the beginning of the file.
    base: u64,
    /// The place before which no memory is held.
    freed: u64,
    end: u64,
}

impl Stage {
    /// One that is gone with us.
    pub fn in_memory() -> io::Result<Self> {
        let memory = memfd_create("audit-stage", MemfdFlags::CLOEXEC)?;
        Ok(Self::of(memory.into()))
    }

    /// The one with this name, which may have what an earlier writer left: see [`Stage::left`].
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK)
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        Ok(Self::of(file))
    }

    fn of(file: File) -> Self {
        Self {
            file,
            base: 0,
            freed: 0,
            end: 0,
        }
    }

    /// What an earlier writer left, before anything is added: whole lines, and maybe a part of one.
    pub fn left(&mut self) -> io::Result<Vec<u8>> {
        let mut left = Vec::new();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_to_end(&mut left)?;
        // What had been given back reads as zeros.
        let begins = left.iter().position(|byte| *byte != 0);
        left.drain(..begins.unwrap_or(left.len()));
        Ok(left)
    }

    /// Forgets what was left.
    pub fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)
    }

    /// The same file, for whoever takes lines out of it.
    pub fn reader(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Where the next line gets.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Where in the file a place is.
    pub fn offset(&self, place: u64) -> u64 {
        place - self.base
    }

    /// Adds lines, unless those that wait are too many; whether they are there.
    pub fn add(&mut self, lines: &[u8]) -> io::Result<bool> {
        if self.end - self.freed >= STAGE_MAX {
            return Ok(false);
        }
        let outcome = self.file.write_all_at(lines, self.end - self.base);
        match outcome {
            // The memory has its own limit.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(false),
            outcome => outcome?,
        }
        self.end += lines.len() as u64;
        Ok(true)
    }

    /// Lines before this place are in the log: their memory is given back.
    pub fn done_to(&mut self, place: u64) {
        if place == self.end {
            // An error leaves memory in use, and lines that the log has already.
            if self.base != self.end && self.file.set_len(0).is_ok() {
                self.base = self.end;
                self.freed = self.end;
            }
        } else if place - self.freed >= SLACK {
            let to = self.offset(place);
            if fallocate(
                &self.file,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                0,
                to,
            )
            .is_ok()
            {
                self.freed = place;
            }
        }
    }
}

/// What of a line says where it belongs.
#[derive(Deserialize)]
struct Link<'a> {
    seq: u64,
    #[serde(borrow)]
    prev: &'a str,
}

/// What a stage has for a log.
#[derive(Debug, PartialEq, Eq)]
pub enum Left<'a> {
    /// The log has all of it.
    Nothing,
    /// Whole lines that go on where the log ends.
    Lines(&'a [u8]),
    /// Lines up to this number, which do not go on where the log ends.
    Others(u64),
}

/// What of `left` belongs behind the record before `next`, whose hash is `prev`.
pub fn continuing<'a>(left: &'a [u8], next: u64, prev: &Hash) -> Left<'a> {
    let (mut begin, mut at, mut last) = (None, 0, 0);
    let mut prev = *prev;
    for line in left.split_inclusive(|byte| *byte == b'\n') {
        let Some(text) = line.strip_suffix(b"\n") else {
            // Nobody was told that it is there, and whoever made it makes it again.
            break;
        };
        if let Ok(link) = serde_json::from_slice::<Link<'_>>(text) {
            last = link.seq;
            if begin.is_none() && link.seq == next && link.prev.as_bytes() == prev {
                begin = Some(at);
            }
        }
        if begin.is_some() {
            let Ok(hash) = chain::verify(text, &prev) else {
                break;
            };
            prev = hash;
        }
        at += line.len();
    }
    match begin {
        Some(begin) if begin < at => Left::Lines(&left[begin..at]),
        _ if last >= next => Left::Others(last),
        _ => Left::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_and_its_memory_given_back() {
        let mut stage = Stage::in_memory().unwrap();
        let reader = stage.reader().unwrap();
        let block = vec![b'x'; 16 << 20];
        let mut added = 0;
        while stage.add(&block).unwrap() {
            added += block.len() as u64;
        }
        assert_eq!(added, STAGE_MAX);
        let blocks = || {
            use std::os::unix::fs::MetadataExt as _;
            reader.metadata().unwrap().blocks() * 512
        };
        assert!(blocks() >= STAGE_MAX);
        // A part is done: there is room for as much.
        stage.done_to(block.len() as u64);
        assert!(blocks() <= STAGE_MAX - block.len() as u64);
        assert!(stage.add(&block).unwrap());
        assert!(!stage.add(&block).unwrap());
        stage.done_to(stage.end());
        assert_eq!(blocks(), 0);
        let at = stage.end();
        assert!(stage.add(b"again").unwrap());
        let mut read = [0; 5];
        reader.read_exact_at(&mut read, stage.offset(at)).unwrap();
        assert_eq!(&read, b"again");
    }
}
