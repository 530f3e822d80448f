//! Finding records: a filter over records, and the search through the files of a log.
//!
//! The index says where not to look; each record that is given was read from the log and fits the filter.

mod filter;
mod sieve;

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::Path;

pub use self::filter::Filter;
use self::filter::Needles;
pub use self::sieve::Sieve;
use self::sieve::take_in;
use super::index::{Frame, Index};
use super::record::Record;
use super::segment::{self, Segment};

/// Bytes that are searched at once.
const BLOCK: u64 = 256 << 10;
/// The most segments that are searched at the same time: each takes memory for its index.
const THREADS: usize = 8;

/// How a search is made, and what it has done.
#[derive(Debug, Default)]
pub struct Search {
    /// Look everywhere, whatever an index says.
    pub everywhere: bool,
    /// Frames or files that were read.
    pub read: u64,
    /// Frames that need not be read.
    pub skipped: u64,
    /// Indexes that had to be made.
    pub made: u64,
    /// Lines that are no records.
    pub strange: u64,
}

impl Search {
    /// Gives each record that fits, in the order of the log, until `take` says that it has enough.
    pub fn each(
        &mut self,
        log: &Path,
        filter: &Filter,
        mut take: impl FnMut(&[u8], Record<'_>) -> bool,
    ) -> io::Result<()> {
        let mut family: HashSet<u32> = filter.tree.into_iter().collect();
        for segment in segment::all_of(log)? {
            if !self.segment(&segment, filter, &mut family, &mut take)? {
                break;
            }
        }
        Ok(())
    }

    /// How many records fit.
    pub fn count(&mut self, log: &Path, filter: &Filter) -> io::Result<u64> {
        let mut count = 0;
        if filter.tree.is_some() {
            self.each(log, filter, |_, _| {
                count += 1;
                true
            })?;
            return Ok(count);
        }
        let segments = segment::all_of(log)?;
        for some in segments.chunks(threads()) {
            let counts = self.beside(some, |search, segment| {
                let mut count = 0_u64;
                search.segment(segment, filter, &mut HashSet::new(), &mut |_, _| {
                    count += 1;
                    true
                })?;
                Ok(count)
            })?;
            count += counts.iter().sum::<u64>();
        }
        Ok(count)
    }

    /// The last `count` lines that fit, in the order of the log.
    pub fn last(&mut self, log: &Path, filter: &Filter, count: usize) -> io::Result<Vec<Vec<u8>>> {
        let mut found: Vec<Vec<u8>> = Vec::new();
        if filter.tree.is_some() {
            // Who belongs to the tree is only known from the beginning on.
            let mut last = Last::of(count, &found);
            self.each(log, filter, last.taker())?;
            last.add(&mut found);
            found.reverse();
            return Ok(found);
        }
        let mut segments = segment::all_of(log)?;
        segments.reverse();
        let mut rest = &segments[..];
        // Where much fits, one is enough.
        let mut together = 1;
        while found.len() < count && !rest.is_empty() {
            let (some, later) = rest.split_at(together.min(rest.len()));
            let room = count - found.len();
            let lists = self.beside(some, |search, segment| {
                let mut found = Vec::new();
                search.last_of(segment, filter, room, &mut found)?;
                Ok(found)
            })?;
            found.extend(lists.into_iter().flatten().take(room));
            (rest, together) = (later, threads());
        }
        found.reverse();
        Ok(found)
    }

    /// Searches some segments at the same time; what is found in each, in their order.
    fn beside<T: Send>(
        &mut self,
        segments: &[Segment],
        work: impl Fn(&mut Self, &Segment) -> io::Result<T> + Sync,
    ) -> io::Result<Vec<T>> {
        let everywhere = self.everywhere;
        let one = |segment| {
            let mut search = Self {
                everywhere,
                ..Self::default()
            };
            (work(&mut search, segment), search)
        };
        let outcomes: Vec<_> = match segments {
            [only] => vec![one(only)],
            _ => std::thread::scope(|scope| {
                let started = segments.iter().map(|it| scope.spawn(move || one(it)));
                let started: Vec<_> = started.collect();
                let ended = started.into_iter().map(std::thread::ScopedJoinHandle::join);
                ended
                    .map(|outcome| outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                    .collect()
            }),
        };
        let found = outcomes.into_iter().map(|(found, search)| {
            self.read += search.read;
            self.skipped += search.skipped;
            self.made += search.made;
            self.strange += search.strange;
            found
        });
        found.collect()
    }

    /// Adds what fits in one segment to what was found in later ones, the latest first.
    fn last_of(
        &mut self,
        segment: &Segment,
        filter: &Filter,
        count: usize,
        found: &mut Vec<Vec<u8>>,
    ) -> io::Result<()> {
        let needles = filter.needles();
        let Some((file, frames)) = self.frames(segment)? else {
            self.read += 1;
            let mut last = Last::of(count, found);
            let mut text = segment.open()?;
            self.lines(
                &mut *text,
                filter,
                &needles,
                &mut HashSet::new(),
                &mut last.taker(),
            )?;
            last.add(found);
            return Ok(());
        };
        let words = filter.words();
        for frame in frames.iter().rev() {
            if found.len() >= count {
                break;
            }
            if !filter.may_be_in(frame, &words, &HashSet::new()) {
                self.skipped += 1;
                continue;
            }
            self.read += 1;
            let text = frame.read(&file)?;
            if needles.are_in(&text) {
                let mut last = Last::of(count, found);
                self.block(
                    &text,
                    filter,
                    &needles,
                    &mut HashSet::new(),
                    &mut last.taker(),
                );
                last.add(found);
            }
        }
        Ok(())
    }

    /// The frames of a packed segment, unless all of it is to be read.
    fn frames(&mut self, segment: &Segment) -> io::Result<Option<(File, Vec<Frame>)>> {
        if !segment.packed || self.everywhere {
            return Ok(None);
        }
        let index = Index::of(&segment.path, &mut || self.made += 1)?;
        Ok(Some((File::open(&segment.path)?, index.frames)))
    }

    fn segment(
        &mut self,
        segment: &Segment,
        filter: &Filter,
        family: &mut HashSet<u32>,
        take: &mut dyn FnMut(&[u8], Record<'_>) -> bool,
    ) -> io::Result<bool> {
        let needles = filter.needles();
        let Some((file, frames)) = self.frames(segment)? else {
            self.read += 1;
            return self.lines(&mut *segment.open()?, filter, &needles, family, take);
        };
        let words = filter.words();
        for frame in &frames {
            if !filter.may_be_in(frame, &words, family) {
                self.skipped += 1;
                continue;
            }
            self.read += 1;
            let text = frame.read(&file)?;
            // Forks are looked at whatever is asked for.
            let may_fit = filter.tree.is_some() || needles.are_in(&text);
            if may_fit && !self.block(&text, filter, &needles, family, take) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The lines of a file, block by block.
    fn lines(
        &mut self,
        text: &mut dyn BufRead,
        filter: &Filter,
        needles: &Needles,
        family: &mut HashSet<u32>,
        take: &mut dyn FnMut(&[u8], Record<'_>) -> bool,
    ) -> io::Result<bool> {
        let mut block = Vec::new();
        loop {
            let read = (&mut *text).take(BLOCK).read_to_end(&mut block)?;
            // A writer may be in the middle of the last one.
            let end = memchr::memrchr(b'\n', &block).map_or(0, |at| at + 1);
            if !self.block(&block[..end], filter, needles, family, take) {
                return Ok(false);
            }
            block.drain(..end);
            if read == 0 {
                return Ok(true);
            }
        }
    }

    /// Whole lines. False if there is enough.
    fn block(
        &mut self,
        mut text: &[u8],
        filter: &Filter,
        needles: &Needles,
        family: &mut HashSet<u32>,
        take: &mut dyn FnMut(&[u8], Record<'_>) -> bool,
    ) -> bool {
        while !text.is_empty() {
            // Forks are looked at whatever is asked for.
            if filter.tree.is_none() {
                let Some(begin) = needles.next_line(text) else {
                    return true;
                };
                text = &text[begin..];
            }
            let end = memchr::memchr(b'\n', text).unwrap_or(text.len());
            let line = &text[..end];
            text = text.get(end + 1..).unwrap_or_default();
            let may_fit = needles.are_in(line);
            if filter.tree.is_none() && !may_fit {
                continue;
            }
            match take_in(filter, family, may_fit, line) {
                Ok(None) => {}
                Ok(Some(record)) => {
                    if !take(line, record) {
                        return false;
                    }
                }
                Err(_) => self.strange += 1,
            }
        }
        true
    }
}

/// The last lines of a part, of which the whole has some from later parts already.
struct Last {
    room: usize,
    lines: VecDeque<Vec<u8>>,
}

impl Last {
    fn of(count: usize, found: &[Vec<u8>]) -> Self {
        Self {
            room: count.saturating_sub(found.len()),
            lines: VecDeque::new(),
        }
    }

    fn taker(&mut self) -> impl FnMut(&[u8], Record<'_>) -> bool {
        |line, _| {
            self.lines.push_back(line.to_vec());
            if self.lines.len() > self.room {
                self.lines.pop_front();
            }
            true
        }
    }

    fn add(self, found: &mut Vec<Vec<u8>>) {
        found.extend(self.lines.into_iter().rev());
    }
}

/// Segments that are searched at the same time.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(THREADS))
}
