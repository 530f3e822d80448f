//! The files of one log: the one that is written, and closed segments beside it.
//!
//! `audit.jsonl` is written. When it is closed it becomes `audit.jsonl.N`, with N the number of its first
//! record in 16 digits, and later `audit.jsonl.N.zst`. Where both are there, packing was cut off and the
//! plain one counts.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::disk;

/// Digits of a record's number in the name of a segment.
const DIGITS: usize = 16;
/// What packed segments end in.
pub const PACKED: &str = ".zst";

/// One file of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The file.
    pub path: PathBuf,
    /// The number of its first record, as its name says. `None` for the one that is written.
    pub first: Option<u64>,
    /// Whether it is compressed.
    pub packed: bool,
}

/// A file beside the log: its name and more.
pub fn beside(log: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = log.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The name of a closed segment.
pub fn closed(log: &Path, first: u64) -> PathBuf {
    beside(log, &format!(".{first:016}"))
}

/// What the log becomes for a moment while it is closed. If it is found, a rotation was cut off.
pub fn leaving(log: &Path) -> PathBuf {
    beside(log, ".next")
}

/// The number and kind that a name beside the log says, if it is one of a segment.
fn parse(log: &str, name: &str) -> Option<(u64, bool)> {
    let rest = name.strip_prefix(log)?.strip_prefix('.')?;
    let (digits, packed) = match rest.strip_suffix(PACKED) {
        Some(digits) => (digits, true),
        None => (rest, false),
    };
    let whole = digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    let first = whole.then(|| digits.parse().ok()).flatten()?;
    Some((first, packed))
}

/// The closed segments of a log, oldest first.
pub fn closed_of(log: &Path) -> io::Result<Vec<Segment>> {
    let folder = disk::folder_of(log);
    let name = log.file_name().unwrap_or_default().to_string_lossy();
    let mut segments = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let found = entry.file_name();
        if let Some((first, packed)) = found.to_str().and_then(|found| parse(&name, found)) {
            segments.push(Segment {
                path: entry.path(),
                first: Some(first),
                packed,
            });
        }
    }
    // The plain one before the packed one of the same number, which goes.
    segments.sort_by_key(|segment| (segment.first, segment.packed));
    segments.dedup_by_key(|segment| segment.first);
    Ok(segments)
}

/// All files of a log, oldest first: the closed ones, and the one that is written if it is there.
pub fn all_of(log: &Path) -> io::Result<Vec<Segment>> {
    let mut segments = closed_of(log)?;
    let leaving = leaving(log);
    for path in [leaving.as_path(), log] {
        let is_used = fs::metadata(path).is_ok_and(|file| path == log || file.len() > 0);
        if is_used {
            segments.push(Segment {
                path: path.to_owned(),
                first: None,
                packed: false,
            });
        }
    }
    if segments.is_empty() {
        // The error that names the log.
        File::open(log)?;
    }
    Ok(segments)
}

impl Segment {
    /// Its text, from the beginning.
    pub fn open(&self) -> io::Result<Box<dyn BufRead + Send>> {
        let file = File::open(&self.path)?;
        if self.packed {
            let decoder = zstd::stream::read::Decoder::new(file)?;
            Ok(Box::new(BufReader::with_capacity(256 << 10, decoder)))
        } else {
            Ok(Box::new(BufReader::with_capacity(256 << 10, file)))
        }
    }

    /// All of its text.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        self.open()?.read_to_end(&mut text)?;
        Ok(text)
    }

    /// Bytes on the disk; 0 if it cannot be said.
    pub fn size(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |file| file.len())
    }

    /// The name of its file.
    pub fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_found_by_name_and_ordered_by_number() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("audit.jsonl");
        assert!(all_of(&log).is_err());
        let names = [
            "audit.jsonl",
            "audit.jsonl.0000000000000001.zst",
            "audit.jsonl.0000000000000100",
            "audit.jsonl.0000000000000020.zst",
            "audit.jsonl.0000000000000020",
            "audit.jsonl.0000000000000020.zst.part",
            "audit.jsonl.head",
            "audit.jsonl.20",
            "audit-7.jsonl.0000000000000001",
        ];
        for name in names {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found = all_of(&log).unwrap();
        let found: Vec<_> = found.iter().map(Segment::name).collect();
        assert_eq!(found, [names[1], names[4], names[2], names[0]]);
    }
}
