//! Records as they come, across the ends of segments.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::audit::Record;
use crate::audit::glance::Glance;
use crate::audit::segment;

/// Reads a log from behind a record, and goes on for as long as it is asked.
#[derive(Debug)]
pub struct Follow {
    log: PathBuf,
    file: BufReader<File>,
    /// Number of the last record that was read.
    last: u64,
    line: Vec<u8>,
    /// How often the disk was waited for.
    #[cfg(test)]
    syncs: u32,
}

/// Bytes of lines that are held while the disk is waited for.
const HELD: usize = 4 << 20;

/// A line that was read, and whether it records a refusal.
struct Read {
    line: Vec<u8>,
    seq: Option<u64>,
    refused: bool,
}

impl Follow {
    /// Behind record `last`.
    pub fn after(log: &Path, last: u64) -> io::Result<Self> {
        Ok(Self {
            log: log.to_owned(),
            file: BufReader::with_capacity(256 << 10, File::open(log)?),
            last,
            line: Vec::new(),
            #[cfg(test)]
            syncs: 0,
        })
    }

    /// Hands what is new to `take`. A denial is on the disk before it is handed on.
    pub fn poll(&mut self, take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        // In this order: what is written before the file gets another name is read from it.
        let there = fs::metadata(&self.log).map(|file| (file.dev(), file.ino()));
        self.read(take)?;
        let have = self.file.get_ref().metadata()?;
        if there.is_ok_and(|there| there != (have.dev(), have.ino())) {
            self.read(take)?;
            // Segments that came and went meanwhile; what is in them and was read is known by its number.
            for closed in segment::closed_of(&self.log)? {
                let mut text = closed.open()?;
                let mut line = Vec::new();
                while text.read_until(b'\n', &mut line)? > 0 {
                    // What is closed is on the disk.
                    if line.pop_if(|byte| *byte == b'\n').is_some() {
                        self.hand_over(&Read::of(std::mem::take(&mut line)), take);
                    }
                    line.clear();
                }
            }
            self.file = BufReader::with_capacity(256 << 10, File::open(&self.log)?);
            self.line.clear();
            self.read(take)?;
        }
        Ok(())
    }

    fn read(&mut self, take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let mut ended = false;
        while !ended {
            let mut lines = Vec::new();
            let mut bytes = 0;
            while bytes < HELD && !ended {
                ended = self.file.read_until(b'\n', &mut self.line)? == 0
                    // A writer is in the middle of it.
                    || self.line.pop_if(|byte| *byte == b'\n').is_none();
                if !ended {
                    bytes += self.line.len();
                    lines.push(Read::of(std::mem::take(&mut self.line)));
                }
            }
            // Only now, when all of them were read: the writer goes on meanwhile, and what it adds later may not be
            // on the disk yet.
            if lines.iter().any(|line| line.refused) {
                // Fails on what cannot be written, a copy on a CD, say: that is on the disk.
                let _ = self.file.get_ref().sync_data();
                #[cfg(test)]
                {
                    self.syncs += 1;
                }
            }
            for line in lines {
                self.hand_over(&line, take);
            }
        }
        Ok(())
    }

    fn hand_over(&mut self, read: &Read, take: &mut dyn FnMut(&[u8])) {
        // What is no record has no number, and is shown as what it is.
        if let Some(seq) = read.seq {
            if seq <= self.last {
                return;
            }
            self.last = seq;
        }
        take(&read.line);
    }
}

impl Read {
    fn of(line: Vec<u8>) -> Self {
        let record = serde_json::from_slice::<Record<'_>>(&line).ok();
        Self {
            seq: record.as_ref().map(|record| record.seq),
            refused: record.is_some_and(|record| Glance::from(&record).is_refused()),
            line,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::audit::Log;

    fn deny(log: &mut Log, target: &str) {
        let mut record = Record {
            time: Cow::Borrowed("2026-11-23T04:05:06.000000000Z"),
            target: Some(Cow::Borrowed(target)),
            verdict: Some(Cow::Borrowed("deny")),
            ..Record::new("open")
        };
        log.append(&mut record).unwrap();
        log.flush().unwrap();
    }

    #[test]
    fn a_denial_that_comes_while_others_are_shown_waits_for_the_disk_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let mut log = Log::open(&path).unwrap();
        deny(&mut log, "first");
        let mut follow = Follow::after(&path, 0).unwrap();
        let mut shown = 0;
        for _ in 0..3 {
            let polled = follow.poll(&mut |_| {
                shown += 1;
                if shown < 3 {
                    deny(&mut log, "while it is shown");
                }
            });
            polled.unwrap();
        }
        assert_eq!((shown, follow.syncs), (3, 3));
    }

    #[test]
    fn nothing_is_missed_or_shown_twice_where_segments_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let mut log = Log::open(&path).unwrap();
        let write = |log: &mut Log, target: u32| {
            let mut record = Record {
                time: Cow::Borrowed("2026-11-23T04:05:06.000000000Z"),
                target: Some(Cow::Owned(target.to_string())),
                verdict: Some(Cow::Borrowed("deny")),
                ..Record::new("open")
            };
            log.append(&mut record).unwrap();
            log.flush().unwrap();
        };
        write(&mut log, 0);
        write(&mut log, 1);
        let mut follow = Follow::after(&path, 1).unwrap();
        let mut seen = Vec::new();
        for number in 2..60 {
            write(&mut log, number);
            if number % 7 == 0 {
                log.turn_for_test(number % 2 == 0);
            }
            if number % 5 == 0 {
                let polled = follow.poll(&mut |line| {
                    let record: Record<'_> = serde_json::from_slice(line).unwrap();
                    if record.op == "open" {
                        seen.push(record.target.unwrap().parse::<u32>().unwrap());
                    }
                });
                polled.unwrap();
            }
        }
        let polled = follow.poll(&mut |line| {
            let record: Record<'_> = serde_json::from_slice(line).unwrap();
            if record.op == "open" {
                seen.push(record.target.unwrap().parse::<u32>().unwrap());
            }
        });
        polled.unwrap();
        assert_eq!(seen, (1..60).collect::<Vec<_>>());
    }
}
