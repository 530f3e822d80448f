//! Where to look in a packed segment: for each frame its place, its numbers and times, and a filter of the
//! words in it.
//!
//! An index only says where *not* to look. What is found is read from the log and judged there. The filter (of
//! Bloom) may say "perhaps" for nothing, and never "no" wrongly. An index that is missing, damaged or of another
//! file is made again from the segment.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::record::Record;
use super::segment;
use crate::disk;

/// Raised on every change of the format or of what is a word.
const VERSION: u32 = 1;
/// Bits of a filter for each word: one "perhaps" in a hundred is for nothing.
const BITS: usize = 10;
const PROBES: u64 = 4;
/// Longest frame that is unpacked.
const FRAME_MAX: usize = 64 << 20;

/// One frame of a packed segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Where it begins in the file, and its length there.
    pub at: u64,
    /// Bytes in the file.
    pub len: u64,
    /// Number of its first record.
    pub first: u64,
    /// Number of its last record.
    pub last: u64,
    /// The earliest and the latest time in it, as the records have them.
    pub from: String,
    /// The latest.
    pub to: String,
    #[serde(with = "base")]
    filter: Vec<u64>,
}

/// The index of one packed segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    version: u32,
    /// Length, time of change and inode of the packed file.
    of: (u64, i128, u64),
    /// Its frames, in order.
    pub frames: Vec<Frame>,
}

/// A word as filters have it: what kind it is, and its text.
pub fn word(kind: char, text: &[u8]) -> u64 {
    // FNV-1a, mixed at the end: the same in every build, unlike the standard library's.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in std::iter::once(kind as u8).chain(text.iter().copied()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

/// The words of a record: what can be asked for.
pub fn words(record: &Record<'_>, mut take: impl FnMut(u64)) {
    let mut text = |kind, text: Option<&str>| {
        if let Some(text) = text {
            take(word(kind, text.as_bytes()));
        }
    };
    text('a', record.agent.as_deref());
    text('v', record.verdict.as_deref());
    text('o', Some(&record.op));
    text('r', record.rule.as_deref());
    if let Some(exe) = record.exe.as_deref() {
        text('e', Some(exe));
        text('n', exe.rsplit('/').next());
    }
    for target in [record.target.as_deref(), record.to.as_deref()]
        .into_iter()
        .flatten()
    {
        for part in target.split('/') {
            text('c', Some(part));
        }
    }
    let mut number = |kind, number: Option<u64>| {
        if let Some(number) = number {
            take(word(kind, &number.to_le_bytes()));
        }
    };
    number('s', record.session.map(u64::from));
    number('p', record.pid.map(u64::from));
    number('k', record.child.map(u64::from));
    number('x', record.new_exec_id);
}

impl Frame {
    /// Whether a word may be in one of its records.
    pub fn may_have(&self, word: u64) -> bool {
        probes(word, self.filter.len() * 64)
            .all(|bit| self.filter[bit / 64] & (1 << (bit % 64)) != 0)
    }

    /// The lines of it.
    pub fn read(&self, file: &File) -> io::Result<Vec<u8>> {
        let len = usize::try_from(self.len).map_err(io::Error::other)?;
        if len > FRAME_MAX {
            return Err(io::Error::other("the frame is too long"));
        }
        let mut packed = vec![0; len];
        file.read_exact_at(&mut packed, self.at)?;
        unpack(&packed)
    }
}

fn unpack(frame: &[u8]) -> io::Result<Vec<u8>> {
    zstd::bulk::decompress(frame, FRAME_MAX.min(capacity(frame)))
}

/// Bytes of a frame when it is unpacked, as it says.
fn capacity(frame: &[u8]) -> usize {
    zstd::zstd_safe::get_frame_content_size(frame)
        .ok()
        .flatten()
        .and_then(|size| usize::try_from(size).ok())
        .unwrap_or(FRAME_MAX)
}

fn probes(word: u64, bits: usize) -> impl Iterator<Item = usize> {
    let step = (word >> 32) | 1;
    (0..PROBES)
        .map(move |probe| (word.wrapping_add(probe.wrapping_mul(step)) % bits as u64) as usize)
}

fn filter(words: &mut Vec<u64>) -> Vec<u64> {
    words.sort_unstable();
    words.dedup();
    let mut filter = vec![0_u64; (words.len() * BITS).div_ceil(64).max(1)];
    for word in words.drain(..) {
        for bit in probes(word, filter.len() * 64) {
            filter[bit / 64] |= 1 << (bit % 64);
        }
    }
    filter
}

impl Index {
    /// The file of a packed segment's index.
    pub fn path(packed: &Path) -> PathBuf {
        segment::beside(packed, ".idx")
    }

    /// The index of a packed segment: the one beside it if that is good, and otherwise a new one, which is left
    /// there if that is possible. `made` is told before one is made.
    pub fn of(packed: &Path, made: &mut dyn FnMut()) -> io::Result<Self> {
        let file = File::open(packed)?;
        let of = identity(&file)?;
        if let Some(index) = Self::read(packed).filter(|index| index.of == of) {
            return Ok(index);
        }
        made();
        let index = Self::make(&file)?;
        // Who may only read has to make it each time.
        let _ = index.write(packed);
        Ok(index)
    }

    fn read(packed: &Path) -> Option<Self> {
        let bytes = fs::read(Self::path(packed)).ok()?;
        let (digest, body) = bytes.split_first_chunk::<32>()?;
        if Sha256::digest(body)[..] != digest[..] {
            return None;
        }
        let text = zstd::stream::decode_all(body).ok()?;
        let index: Self = serde_json::from_slice(&text).ok()?;
        (index.version == VERSION).then_some(index)
    }

    /// Makes the index of a packed segment from the segment.
    pub fn make(file: &File) -> io::Result<Self> {
        let of = identity(file)?;
        let mut packed = vec![0; usize::try_from(of.0).map_err(io::Error::other)?];
        file.read_exact_at(&mut packed, 0)?;
        let mut frames = Vec::new();
        let mut at = 0;
        let mut words_of = Vec::new();
        while at < packed.len() {
            let rest = &packed[at..];
            let len = zstd::zstd_safe::find_frame_compressed_size(rest)
                .map_err(|_| io::Error::other("it is no packed segment"))?;
            if len == 0 {
                return Err(io::Error::other("it is no packed segment"));
            }
            let text = unpack(&rest[..len])?;
            let mut frame = Frame {
                at: at as u64,
                len: len as u64,
                first: u64::MAX,
                last: 0,
                from: String::new(),
                to: String::new(),
                filter: Vec::new(),
            };
            for line in text
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty())
            {
                // What is no record is never found; `verify` says what it is.
                let Ok(record) = serde_json::from_slice::<Record<'_>>(line) else {
                    continue;
                };
                frame.first = frame.first.min(record.seq);
                frame.last = frame.last.max(record.seq);
                if frame.from.is_empty() || *record.time < *frame.from {
                    frame.from = record.time.clone().into_owned();
                }
                if *record.time > *frame.to {
                    frame.to = record.time.clone().into_owned();
                }
                words(&record, |word| words_of.push(word));
            }
            frame.filter = filter(&mut words_of);
            frames.push(frame);
            at += len;
        }
        Ok(Self {
            version: VERSION,
            of,
            frames,
        })
    }

    /// Leaves it beside the segment.
    pub fn write(&self, packed: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        let body = zstd::bulk::compress(&text, 1)?;
        let path = Self::path(packed);
        let part = segment::beside(&path, ".part");
        let mut file = disk::begin(&part)?;
        file.write_all(&Sha256::digest(&body))?;
        file.write_all(&body)?;
        fs::rename(&part, &path)
    }
}

fn identity(file: &File) -> io::Result<(u64, i128, u64)> {
    let metadata = file.metadata()?;
    let time = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    Ok((metadata.len(), time, metadata.ino()))
}

/// Filters as hexadecimal digits: a third of what a list of numbers takes.
mod base {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::hex::hex;

    pub fn serialize<S: Serializer>(words: &[u64], to: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        to.serialize_str(&hex(&bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u64>, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        let words = text.as_bytes().chunks(16).map(|digits| {
            let digits = std::str::from_utf8(digits).unwrap_or_default();
            u64::from_str_radix(digits, 16)
        });
        let words: Result<Vec<u64>, _> = words.collect();
        match words {
            Ok(words) if !words.is_empty() => Ok(words),
            _ => Err(serde::de::Error::custom("no filter")),
        }
    }
}
