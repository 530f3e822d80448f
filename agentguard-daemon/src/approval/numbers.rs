//! Numbers of what waits. None is ever given to two acts, whatever dies in between: who answers `7` has seen a list, and
//! means the act that it had there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::disk;

/// Numbers are written down so many at a time, before the first of them is given out.
const BLOCK: u64 = 10;
/// No larger number is believed: JSON's readers are exact up to here.
const LARGEST: u64 = 1 << 53;

/// The numbers of one book.
#[derive(Debug, Default)]
pub struct Numbers {
    /// Where they outlive the daemon, if they do.
    file: Option<PathBuf>,
    /// The last one that was given out.
    last: u64,
    /// Up to here the disk says that they were; `None` before it was asked.
    written: Option<u64>,
    /// Whether it was told that none can be had.
    is_told: bool,
}

impl Numbers {
    /// Numbers that go on after those of an earlier daemon.
    pub fn kept_at(file: PathBuf) -> Self {
        Self {
            file: Some(file),
            ..Self::default()
        }
    }

    /// The last one that may have been given out.
    pub fn last(&mut self) -> u64 {
        self.look();
        self.last
    }

    /// None up to this one is given out any more.
    pub fn skip_to(&mut self, number: u64) {
        self.last = self.last.max(number);
    }

    /// A number of its own. `None` where the disk does not take it: after a restart it would come again.
    pub fn next(&mut self) -> Option<u64> {
        self.look();
        if let Some(file) = &self.file
            && self.written.is_none_or(|written| self.last >= written)
        {
            let up_to = self.last + BLOCK;
            if let Err(what) = write(file, up_to) {
                if !self.is_told {
                    tracing::error!("nothing new is listed for approval: {what}");
                    self.is_told = true;
                }
                return None;
            }
            self.written = Some(up_to);
            self.is_told = false;
        }
        self.last += 1;
        Some(self.last)
    }

    /// What the disk says, once.
    fn look(&mut self) {
        let Some(file) = self.file.as_ref().filter(|_| self.written.is_none()) else {
            return;
        };
        let number = match fs::read_to_string(file) {
            Ok(text) => text.trim().parse().ok().filter(|it| *it < LARGEST),
            // Nothing was ever granted either: nobody had a number yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.last == 0 => Some(0),
            Err(_) => None,
        };
        let number = number.unwrap_or_else(|| {
            // The seconds since 1970 are more than all numbers that were ever given out.
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let now = now.map_or(0, |it| it.as_secs());
            tracing::error!(
                "{} is lost or damaged: what waits is numbered from {now} on, so that no number comes twice",
                file.display()
            );
            now
        });
        self.last = self.last.max(number);
        self.written = Some(number);
    }
}

fn write(file: &Path, number: u64) -> Result<(), String> {
    let folder = disk::folder_of(file);
    disk::make_folder(folder)
        .map_err(|error| format!("failed to make {}: {error}", folder.display()))?;
    disk::replace(file, format!("{number}\n").as_bytes()).map_err(|failed| {
        let path = failed.path.display();
        format!("failed to {} {path}: {}", failed.call, failed.source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_comes_twice_whenever_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state/approval-numbers");
        let mut before = 0;
        for lives in 0..40 {
            let mut numbers = Numbers::kept_at(file.clone());
            assert!(numbers.last() >= before);
            for _ in 0..lives % 13 {
                let number = numbers.next().unwrap();
                assert!(number > before, "{number} after {before}");
                before = number;
            }
        }
        // They stay short.
        assert!(before < 40 * (13 + BLOCK), "{before}");
    }

    #[test]
    fn what_is_lost_or_damaged_leads_behind_all_that_were() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("approval-numbers");
        let first = || {
            let mut numbers = Numbers::kept_at(file.clone());
            numbers.skip_to(7);
            numbers.next().unwrap()
        };
        // There was a number seven, and nothing says what came after it.
        assert!(first() > 1_000_000_000);
        for text in [
            "",
            "many",
            "-1",
            "99999999999999999999",
            "18446744073709551615",
        ] {
            fs::write(&file, text).unwrap();
            assert!(first() > 1_000_000_000, "{text}");
        }
        fs::write(&file, "3\n").unwrap();
        assert_eq!(first(), 8);
    }

    #[test]
    fn without_the_disk_there_is_no_number() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("approval-numbers");
        let mut numbers = Numbers::kept_at(file.clone());
        fs::create_dir(folder.path().join("approval-numbers.partial")).unwrap();
        assert_eq!((numbers.next(), numbers.next()), (None, None));
        fs::remove_dir(folder.path().join("approval-numbers.partial")).unwrap();
        assert_eq!(numbers.next(), Some(1));
        assert_eq!(Numbers::default().next(), Some(1));
    }
}
