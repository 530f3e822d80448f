//! How far a sink has come: the last record that its receiver has, on the disk.
//!
//! It must never be ahead of the receiver. Behind it may be: then records are sent again, with the same number.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::Begin;
use super::feed;
use crate::audit::Record;
use crate::audit::find::{Filter, Search};
use crate::audit::mark::Head;
use crate::disk;

/// The last record that a receiver has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Its number; 0 before the first.
    pub seq: u64,
    /// Its hash, by which another log is told. Empty where it was never sent.
    pub hash: String,
    /// Records that were gone from the log before they were sent.
    #[serde(default)]
    pub missing: u64,
    /// Up to which number such records are counted.
    #[serde(default)]
    pub gone_to: u64,
    /// Records that the receiver took and then said that it has thrown away.
    #[serde(default)]
    pub rejected: u64,
    /// Records that an operator had it leave out.
    #[serde(default)]
    pub skipped: u64,
}

/// The file of one sink's position.
#[derive(Clone, Debug)]
pub struct Cursor {
    path: PathBuf,
}

impl Cursor {
    /// In the folder of state, for the sink with this name.
    pub fn of(state: &Path, name: &str) -> Self {
        Self {
            path: state.join("sinks").join(format!("{name}.json")),
        }
    }

    /// Where it is kept.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The position that was written last; none for a sink that is new. One that cannot be read is an error: to
    /// begin again would send everything twice, and to go on somewhere would leave something out.
    pub fn read(&self) -> io::Result<Option<Position>> {
        match std::fs::read(&self.path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes it; when this returns, the disk has it.
    pub fn write(&self, position: &Position) -> io::Result<()> {
        disk::make_folder(disk::folder_of(&self.path))?;
        let text = serde_json::to_vec(position)?;
        disk::replace(&self.path, &text).map_err(|failed| failed.source)
    }
}

/// The position to go on from, and what is to be said about it.
pub fn resume(cursor: &Cursor, log: &Path, begin: Begin) -> io::Result<(Position, Option<String>)> {
    let Some(position) = cursor.read()? else {
        let first = match begin {
            Begin::Oldest => start(log)?,
            Begin::Now => newest(log)?,
        };
        return Ok((first, None));
    };
    if is_of(log, &position)? {
        return Ok((position, None));
    }
    let told = format!(
        "record {} is not the one that was sent: this is another log, and is sent from its beginning",
        position.seq
    );
    let begun = Position {
        missing: position.missing,
        gone_to: 0,
        rejected: position.rejected,
        skipped: position.skipped,
        ..start(log)?
    };
    Ok((begun, Some(told)))
}

/// Just before the oldest record.
fn start(log: &Path) -> io::Result<Position> {
    let seq = feed::oldest(log)?.map_or(0, |first| first.saturating_sub(1));
    Ok(Position {
        seq,
        ..Position::default()
    })
}

/// At the newest record that is on the disk.
fn newest(log: &Path) -> io::Result<Position> {
    let seq = match Head::read(log)? {
        Some(mark) => mark.seq,
        None => last(log)?.map_or(0, |(seq, _)| seq),
    };
    Ok(Position {
        seq,
        ..Position::default()
    })
}

/// Whether the log can be the one that a position is of.
fn is_of(log: &Path, position: &Position) -> io::Result<bool> {
    if position.hash.is_empty() {
        return Ok(true);
    }
    let only = Filter {
        seqs: Some((position.seq, position.seq)),
        ..Filter::default()
    };
    match last_of(log, &only)? {
        Some((_, hash)) => Ok(hash == position.hash),
        // It may have been moved away, but then there are later ones.
        None => Ok(last(log)?.is_none_or(|(seq, _)| seq > position.seq)),
    }
}

fn last(log: &Path) -> io::Result<Option<(u64, String)>> {
    last_of(log, &Filter::default())
}

fn last_of(log: &Path, filter: &Filter) -> io::Result<Option<(u64, String)>> {
    let lines = match Search::default().last(log, filter, 1) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        lines => lines?,
    };
    let record = lines
        .first()
        .and_then(|line| serde_json::from_slice::<Record<'_>>(line).ok());
    Ok(record.map(|record| (record.seq, record.hash.into_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(range: std::ops::RangeInclusive<u64>, salt: &str) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        for seq in range {
            writeln!(
                text,
                r#"{{"seq":{seq},"time":"","op":"open","prev":"","hash":"{salt}{seq}"}}"#
            )
            .unwrap();
        }
        text
    }

    #[test]
    fn a_position_is_of_one_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("audit.jsonl");
        let cursor = Cursor::of(folder.path(), "siem");
        std::fs::write(&log, lines(5..=9, "a")).unwrap();
        let begun = |begin| resume(&cursor, &log, begin).unwrap();
        assert_eq!(begun(Begin::Oldest).0.seq, 4);
        assert_eq!(begun(Begin::Now).0.seq, 9);
        let position = Position {
            seq: 7,
            hash: "a7".to_owned(),
            missing: 3,
            gone_to: 2,
            rejected: 1,
            skipped: 4,
        };
        cursor.write(&position).unwrap();
        assert_eq!(begun(Begin::Now), (position.clone(), None));
        // Older ones were moved away: it is the same log, with a hole.
        std::fs::write(&log, lines(20..=22, "a")).unwrap();
        assert_eq!(begun(Begin::Now), (position.clone(), None));
        // Another log, longer or shorter than where we were.
        for text in [lines(1..=9, "b"), lines(1..=2, "b")] {
            std::fs::write(&log, text).unwrap();
            let (anew, told) = begun(Begin::Now);
            assert_eq!((anew.seq, anew.missing), (0, 3));
            assert!(told.unwrap().contains("another log"));
        }
        // A damaged position is no position, and not the beginning either.
        std::fs::write(cursor.path(), "{").unwrap();
        assert!(resume(&cursor, &log, Begin::Oldest).is_err());
    }
}
