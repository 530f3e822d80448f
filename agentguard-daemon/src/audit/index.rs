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

use super::glance::Glance;
use super::record::Record;
use super::segment;
use crate::disk;

/// Raised on every change of the format or of what is a word.
const VERSION: u32 = 2;
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
    /// Words of the filter, which follow all frames in the file.
    size: usize,
    #[serde(skip)]
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
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let mut hash = step(0xcbf2_9ce4_8422_2325, kind as u8);
    for byte in text {
        hash = step(hash, *byte);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

/// The words of a record: what can be asked for. A refusal has each word twice: the second, of a kind in capitals,
/// says that it was refused, so that what was refused to one agent is found among all that it was permitted.
pub fn words(seen: &Glance<'_>, take: impl FnMut(u64)) {
    words_behind(None, seen, take);
}

/// The same without most of those that the record before had as well.
fn words_behind<'t>(before: Option<&Glance<'t>>, seen: &Glance<'t>, mut take: impl FnMut(u64)) {
    let refused = seen.is_refused();
    let before = before.filter(|before| before.is_refused() == refused);
    let mut both = |kind: char, text: &[u8]| {
        take(word(kind, text));
        if refused {
            take(word(kind.to_ascii_uppercase(), text));
        }
    };
    let mut text = |kind, text: Option<&[u8]>, before: Option<&[u8]>| {
        if let Some(text) = text
            && before != Some(text)
        {
            both(kind, text);
        }
    };
    let bytes = |text: Option<&'t str>| text.map(str::as_bytes);
    let of_before = |field: fn(&Glance<'t>) -> Option<&'t str>| bytes(before.and_then(field));
    text('a', bytes(seen.agent), of_before(|it| it.agent));
    text('v', bytes(seen.verdict), of_before(|it| it.verdict));
    text('o', Some(seen.op.as_bytes()), of_before(|it| Some(it.op)));
    text('r', bytes(seen.rule), of_before(|it| it.rule));
    if let Some(exe) = bytes(seen.exe)
        && of_before(|it| it.exe) != Some(exe)
    {
        text('e', Some(exe), None);
        let name = memchr::memrchr(b'/', exe).map_or(0, |at| at + 1);
        text('n', Some(&exe[name..]), None);
    }
    let is_slash = |byte: &u8| *byte == b'/';
    let mut parts = of_before(|it| it.target).map(|it| it.split(is_slash));
    for target in [seen.target, seen.to].into_iter().flatten() {
        for part in target.as_bytes().split(is_slash) {
            text('c', Some(part), parts.as_mut().and_then(Iterator::next));
        }
        parts = None;
    }
    let mut number = |kind, number: Option<u64>| {
        if let Some(number) = number {
            both(kind, &number.to_le_bytes());
        }
    };
    if before.is_none_or(|it| it.session != seen.session) {
        number('s', seen.session.map(u64::from));
    }
    number('p', seen.pid.map(u64::from));
    number('k', seen.child.map(u64::from));
    number('x', seen.new_exec_id);
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

/// The words of one frame, each once.
#[derive(Debug, Default)]
struct Words {
    /// Each word is at the place that it says itself, or behind it where that is taken. Zero is no word.
    places: Vec<u64>,
    /// Those that are there, as they came.
    all: Vec<u64>,
    zero: bool,
}

impl Words {
    fn add(&mut self, word: u64) {
        if word == 0 {
            self.zero = true;
            return;
        }
        if self.places.len() <= 2 * self.all.len() {
            self.grow();
        }
        if self.place(word) {
            self.all.push(word);
        }
    }

    /// Puts a word where it belongs; whether it was not there.
    fn place(&mut self, word: u64) -> bool {
        let mask = self.places.len() - 1;
        let mut at = word as usize & mask;
        loop {
            match self.places[at] {
                0 => break,
                there if there == word => return false,
                _ => at = (at + 1) & mask,
            }
        }
        self.places[at] = word;
        true
    }

    fn grow(&mut self) {
        let size = (4 * self.all.len()).next_power_of_two().max(1 << 12);
        self.places.clear();
        self.places.resize(size, 0);
        for at in 0..self.all.len() {
            let word = self.all[at];
            self.place(word);
        }
    }

    /// Gives all, and has none then.
    fn take(&mut self) -> Vec<u64> {
        self.places.fill(0);
        let mut all = std::mem::take(&mut self.all);
        all.extend(std::mem::take(&mut self.zero).then_some(0));
        all
    }
}

fn filter(words: &mut Words) -> Vec<u64> {
    let words = words.take();
    let mut filter = vec![0_u64; (words.len() * BITS).div_ceil(64).max(1)];
    for word in words {
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
        let content = zstd::stream::decode_all(body).ok()?;
        let (len, rest) = content.split_first_chunk::<8>()?;
        let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
        let (head, mut filters) = rest.split_at_checked(len)?;
        let mut index: Self = serde_json::from_slice(head).ok()?;
        for frame in &mut index.frames {
            let (filter, after) = filters.split_at_checked(frame.size.checked_mul(8)?)?;
            let (words, _) = filter.as_chunks::<8>();
            frame.filter = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
            filters = after;
        }
        let has_filters = index.frames.iter().all(|frame| frame.size > 0);
        (index.version == VERSION && has_filters && filters.is_empty()).then_some(index)
    }

    /// Makes the index of a packed segment from the segment.
    pub fn make(file: &File) -> io::Result<Self> {
        let (len, ..) = identity(file)?;
        let mut packed = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        file.read_exact_at(&mut packed, 0)?;
        let mut builder = Builder::default();
        let mut at = 0;
        while at < packed.len() {
            let rest = &packed[at..];
            let len = zstd::zstd_safe::find_frame_compressed_size(rest)
                .map_err(|_| io::Error::other("it is no packed segment"))?;
            if len == 0 {
                return Err(io::Error::other("it is no packed segment"));
            }
            builder.frame(len as u64, &unpack(&rest[..len])?);
            at += len;
        }
        builder.finish(file)
    }

    /// Leaves it beside the segment.
    pub fn write(&self, packed: &Path) -> io::Result<()> {
        let head = serde_json::to_vec(self)?;
        let mut content = (head.len() as u64).to_le_bytes().to_vec();
        content.extend_from_slice(&head);
        for word in self.frames.iter().flat_map(|frame| &frame.filter) {
            content.extend_from_slice(&word.to_le_bytes());
        }
        let body = zstd::bulk::compress(&content, 1)?;
        let path = Self::path(packed);
        let part = segment::beside(&path, ".part");
        let mut file = disk::begin(&part)?;
        file.write_all(&Sha256::digest(&body))?;
        file.write_all(&body)?;
        fs::rename(&part, &path)
    }
}

/// Makes an index frame by frame.
#[derive(Debug, Default)]
pub struct Builder {
    frames: Vec<Frame>,
    words: Words,
}

impl Builder {
    /// The next frame: its length in the file, and its lines.
    pub fn frame(&mut self, len: u64, text: &[u8]) {
        let mut frame = Frame {
            at: self.frames.last().map_or(0, |last| last.at + last.len),
            len,
            first: u64::MAX,
            last: 0,
            from: String::new(),
            to: String::new(),
            size: 0,
            filter: Vec::new(),
        };
        let mut before = None;
        let mut begin = 0;
        while begin < text.len() {
            let end = memchr::memchr(b'\n', &text[begin..]).map_or(text.len(), |at| begin + at);
            let line = &text[begin..end];
            begin = end + 1;
            if let Some(seen) = Glance::at(line) {
                self.record(&mut frame, before.as_ref(), &seen);
                before = Some(seen);
            } else if let Ok(record) = serde_json::from_slice::<Record<'_>>(line) {
                self.record(&mut frame, None, &Glance::from(&record));
            }
            // What is no record is never found; `verify` says what it is.
        }
        frame.filter = filter(&mut self.words);
        frame.size = frame.filter.len();
        self.frames.push(frame);
    }

    fn record<'t>(&mut self, frame: &mut Frame, before: Option<&Glance<'t>>, seen: &Glance<'t>) {
        frame.first = frame.first.min(seen.seq);
        frame.last = frame.last.max(seen.seq);
        if frame.from.is_empty() || *seen.time < *frame.from {
            seen.time.clone_into(&mut frame.from);
        }
        if *seen.time > *frame.to {
            seen.time.clone_into(&mut frame.to);
        }
        words_behind(before, seen, |word| self.words.add(word));
    }

    /// The index of a file, which is whole now.
    pub fn finish(self, file: &File) -> io::Result<Index> {
        Ok(Index {
            version: VERSION,
            of: identity(file)?,
            frames: self.frames,
        })
    }
}

fn identity(file: &File) -> io::Result<(u64, i128, u64)> {
    let metadata = file.metadata()?;
    let time = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    Ok((metadata.len(), time, metadata.ino()))
}
