//! Records in their order from any place of the log on, through closed and packed segments, as far as they are on
//! the disk.
//!
//! It must never leave a record out in silence. What is not there any more is counted.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::audit::index::{Frame, Index};
use crate::audit::mark::Head;
use crate::audit::segment::{self, Segment};

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its number.
    pub seq: u64,
    /// Its hash.
    pub hash: String,
    /// The line, without its newline.
    pub line: Vec<u8>,
}

/// What of a line says where it belongs.
#[derive(Deserialize)]
struct Numbered<'a> {
    seq: u64,
    #[serde(default, borrow)]
    hash: std::borrow::Cow<'a, str>,
}

/// Reads a log from behind a record on.
#[derive(Debug)]
pub struct Feed {
    log: PathBuf,
    /// Number of the last record that was read.
    last: u64,
    source: Option<Source>,
    /// The closed segment that was read to its end.
    done: Option<u64>,
    /// One that was read and is not on the disk yet.
    held: Option<Item>,
    /// Numbers, from the first to the last, of records that are gone.
    gone: Vec<(u64, u64)>,
    /// Lines that are no records.
    strange: u64,
    /// Number of the last record that is known to be on the disk.
    newest: u64,
}

/// The file that is read.
#[derive(Debug)]
enum Source {
    Plain {
        file: BufReader<File>,
        line: Vec<u8>,
        /// Number of its first record, if it has one.
        first: Option<u64>,
        /// Whether nothing more will be written to it.
        ended: bool,
    },
    Packed {
        file: File,
        first: u64,
        frames: VecDeque<Frame>,
        text: io::Cursor<Vec<u8>>,
    },
}

impl Feed {
    /// From behind record `last` on.
    pub fn behind(log: &Path, last: u64) -> Self {
        Self {
            log: log.to_owned(),
            last,
            source: None,
            done: None,
            held: None,
            gone: Vec::new(),
            strange: 0,
            newest: 0,
        }
    }

    /// The next records, at most so many and about so many bytes; fewer if there are no more on the disk.
    pub fn next(&mut self, most: usize, bytes: usize) -> io::Result<Vec<Item>> {
        // What the head speaks of, a loss of power cannot take back. A log without a head is nobody's live log.
        let head = Head::read(&self.log)?.map(|mark| mark.seq);
        let until = head.unwrap_or(u64::MAX);
        let mut items = Vec::new();
        let mut size = 0;
        while items.len() < most && size < bytes {
            match self.read()? {
                Some(item) if item.seq <= until => {
                    size += item.line.len();
                    items.push(item);
                }
                Some(item) => {
                    self.held = Some(item);
                    break;
                }
                None => break,
            }
        }
        self.newest = head.unwrap_or(self.last);
        Ok(items)
    }

    /// Number of the last record that is on the disk, as of the last reading.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// The records that were found to be gone since the last time that this was asked.
    pub fn take_gone(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.gone)
    }

    /// How many lines were no records, since the last time that this was asked.
    pub fn take_strange(&mut self) -> u64 {
        std::mem::take(&mut self.strange)
    }

    fn read(&mut self) -> io::Result<Option<Item>> {
        if let Some(item) = self.held.take() {
            return Ok(Some(item));
        }
        loop {
            if self.source.is_none() && !self.open()? {
                return Ok(None);
            }
            let Some(source) = &mut self.source else {
                return Ok(None);
            };
            if let Some(line) = source.line(self.last)? {
                if let Some(item) = self.item(line) {
                    return Ok(Some(item));
                }
                continue;
            }
            match source.end(&self.log)? {
                End::Over => {
                    self.done = source.first().or(self.done);
                    self.source = None;
                }
                End::Again => {}
                End::Open => return Ok(None),
            }
        }
    }

    /// The record in a line, unless it was read before.
    fn item(&mut self, line: Vec<u8>) -> Option<Item> {
        let Ok(Numbered { seq, hash }) = serde_json::from_slice::<Numbered<'_>>(&line) else {
            self.strange += 1;
            return None;
        };
        if seq <= self.last {
            return None;
        }
        if seq > self.last + 1 {
            self.gone.push((self.last + 1, seq - 1));
        }
        self.last = seq;
        let hash = hash.into_owned();
        Some(Item { seq, hash, line })
    }

    /// Opens the file that has the next record; whether there is one to read.
    ///
    /// In this order: the file that is written, the one that is about to be closed, the closed ones. So a segment
    /// that is closed meanwhile is seen in one place at least.
    fn open(&mut self) -> io::Result<bool> {
        let wanted = self.last + 1;
        let live = absent(open_plain(&self.log))?;
        let leaving = absent(fs::metadata(segment::leaving(&self.log)))?;
        let Some((live, begins)) = live else {
            return Ok(false);
        };
        if begins.is_some_and(|begins| begins <= wanted) {
            self.source = Some(Source::plain(live, begins, false));
            return Ok(true);
        }
        if leaving.is_some_and(|file| file.len() > 0) {
            // It gets its name in a moment, or at the daemon's next start.
            return Ok(false);
        }
        let closed = segment::closed_of(&self.log)?;
        let mut left = closed
            .iter()
            .filter(|it| self.done.is_none_or(|done| it.first > Some(done)));
        let before = left.clone().rfind(|it| it.first <= Some(wanted));
        let Some(next) = before.or_else(|| left.next()) else {
            self.source = Some(Source::plain(live, begins, false));
            return Ok(true);
        };
        // It may be packed or moved away at this moment: then it is looked for again.
        self.source = absent(Source::closed(next))?;
        Ok(self.source.is_some())
    }
}

impl Source {
    fn plain(file: File, first: Option<u64>, ended: bool) -> Self {
        Self::Plain {
            file: BufReader::with_capacity(256 << 10, file),
            line: Vec::new(),
            first,
            ended,
        }
    }

    fn closed(segment: &Segment) -> io::Result<Self> {
        if !segment.packed {
            return Ok(Self::plain(File::open(&segment.path)?, segment.first, true));
        }
        let index = Index::of(&segment.path, &mut || {})?;
        Ok(Self::Packed {
            file: File::open(&segment.path)?,
            first: segment.first.unwrap_or_default(),
            frames: index.frames.into(),
            text: io::Cursor::default(),
        })
    }

    fn first(&self) -> Option<u64> {
        match self {
            Self::Plain { first, .. } => *first,
            Self::Packed { first, .. } => Some(*first),
        }
    }

    /// The next whole line, where it need not be one up to `last`.
    fn line(&mut self, last: u64) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Plain { file, line, .. } => {
                if file.read_until(b'\n', line)? == 0 || line.pop_if(|it| *it == b'\n').is_none() {
                    // A writer may be in the middle of it.
                    return Ok(None);
                }
                Ok(Some(std::mem::take(line)))
            }
            Self::Packed {
                file, frames, text, ..
            } => loop {
                let mut line = Vec::new();
                if text.read_until(b'\n', &mut line)? > 0 {
                    line.pop_if(|it| *it == b'\n');
                    return Ok(Some(line));
                }
                let Some(frame) = frames.pop_front() else {
                    return Ok(None);
                };
                if frame.last > last {
                    *text = io::Cursor::new(frame.read(file)?);
                }
            },
        }
    }

    /// What it means that there is no further line.
    fn end(&mut self, log: &Path) -> io::Result<End> {
        let Self::Plain { file, ended, .. } = self else {
            return Ok(End::Over);
        };
        if *ended {
            return Ok(End::Over);
        }
        let have = file.get_ref().metadata()?;
        let there = absent(fs::metadata(log))?;
        if there.is_some_and(|it| (it.dev(), it.ino()) == (have.dev(), have.ino())) {
            return Ok(End::Open);
        }
        // It has another name now. What was written before that is read, and then it is over.
        *ended = true;
        Ok(End::Again)
    }
}

/// What the end of a file means.
enum End {
    /// Nothing more will come.
    Over,
    /// It is to be read once more.
    Again,
    /// Something may come.
    Open,
}

fn open_plain(path: &Path) -> io::Result<(File, Option<u64>)> {
    let mut file = File::open(path)?;
    let mut line = Vec::new();
    BufReader::new(&file).read_until(b'\n', &mut line)?;
    let begins = line
        .ends_with(b"\n")
        .then(|| serde_json::from_slice::<Numbered<'_>>(&line).ok())
        .flatten();
    let begins = begins.map(|it| it.seq);
    file.rewind()?;
    Ok((file, begins))
}

/// What is not there is none, and no error.
fn absent<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(it) => Ok(Some(it)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The number of the oldest record of a log, if it has any.
pub fn oldest(log: &Path) -> io::Result<Option<u64>> {
    let closed = segment::closed_of(log)?;
    if let Some(first) = closed.first() {
        return Ok(first.first);
    }
    Ok(absent(open_plain(log))?.and_then(|(_, begins)| begins))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::audit::{Log, Record};

    fn write(log: &mut Log, target: u64) {
        let mut record = Record {
            time: Cow::Borrowed("2026-11-23T04:05:06.000000000Z"),
            target: Some(Cow::Owned(target.to_string())),
            ..Record::new("open")
        };
        log.append(&mut record).unwrap();
        log.flush().unwrap();
    }

    fn numbers(feed: &mut Feed) -> Vec<u64> {
        let mut all = Vec::new();
        loop {
            let items = feed.next(7, 1 << 20).unwrap();
            if items.is_empty() {
                return all;
            }
            all.extend(items.iter().map(|item| item.seq));
        }
    }

    #[test]
    fn every_record_comes_once_through_rotation_and_packing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let mut log = Log::open(&path).unwrap();
        let mut feed = Feed::behind(&path, 0);
        let mut seen = Vec::new();
        for number in 0..200 {
            write(&mut log, number);
            if number % 17 == 0 {
                log.turn_for_test(number % 2 == 0);
            }
            if number % 13 == 0 {
                seen.extend(numbers(&mut feed));
            }
        }
        seen.extend(numbers(&mut feed));
        let last = log.next_seq() - 1;
        assert_eq!(seen, (1..=last).collect::<Vec<_>>());
        assert_eq!(feed.take_gone(), []);
        // From anywhere on, by a feed that opens the files anew.
        for from in 0..=last {
            let mut feed = Feed::behind(&path, from);
            assert_eq!(
                numbers(&mut feed),
                (from + 1..=last).collect::<Vec<_>>(),
                "{from}"
            );
            assert_eq!(feed.take_gone(), [], "{from}");
        }
    }

    #[test]
    fn what_was_moved_away_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let mut log = Log::open(&path).unwrap();
        for number in 0..30 {
            write(&mut log, number);
            if number % 10 == 9 {
                log.turn_for_test(true);
            }
        }
        let closed = segment::closed_of(&path).unwrap();
        let (second, third) = (closed[1].first.unwrap(), closed[2].first.unwrap());
        fs::remove_file(&closed[1].path).unwrap();
        assert_eq!(oldest(&path).unwrap(), Some(1));
        let mut feed = Feed::behind(&path, 3);
        let last = log.next_seq() - 1;
        let there = (4..second).chain(third..=last).collect::<Vec<_>>();
        assert_eq!(numbers(&mut feed), there);
        assert_eq!(feed.take_gone(), [(second, third - 1)]);
        // One that stood within it.
        let mut feed = Feed::behind(&path, second + 1);
        assert_eq!(numbers(&mut feed), (third..=last).collect::<Vec<_>>());
        assert_eq!(feed.take_gone(), [(second + 2, third - 1)]);
    }

    #[test]
    fn a_line_that_is_being_written_waits_and_one_that_is_no_record_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let mut feed = Feed::behind(&path, 0);
        assert!(numbers(&mut feed).is_empty());
        fs::write(&path, "{\"seq\":1}\nnot a record\n{\"seq\":2").unwrap();
        assert_eq!(numbers(&mut feed), [1]);
        assert_eq!(feed.take_strange(), 1);
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        io::Write::write_all(&mut file, b"}\n").unwrap();
        assert_eq!(numbers(&mut feed), [2]);
    }
}
