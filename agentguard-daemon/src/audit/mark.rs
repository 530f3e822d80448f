//! A mark: the signed statement that record N of a log has hash H.
//!
//! There is one such statement, used in three places: as a checkpoint within the log, in the file of
//! the log's head, and as an anchor that is kept elsewhere.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::chain::Hash;
use super::key::{Key, PublicKey};

/// Bytes of one of the two places in the file of the head.
const PLACE: usize = 1024;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// The log: hash of its first record.
    pub log: String,
    /// Number of a record.
    pub seq: u64,
    /// Hash of that record, and by the chain of all before it.
    pub hash: String,
    /// When the statement was made.
    pub time: String,
    /// Name of the key.
    pub key: String,
    /// Signature of all of this.
    pub signature: String,
}

/// What is signed.
fn statement(log: &str, seq: u64, hash: &str, time: &str) -> String {
    format!("agentguard audit mark 1\n{log}\n{seq}\n{hash}\n{time}\n")
}

impl Mark {
    /// Signs that record `seq` of `log` has `hash`.
    pub fn sign(key: &Key, log: &Hash, seq: u64, hash: &Hash, time: &str) -> Self {
        let log = String::from_utf8_lossy(log).into_owned();
        let hash = String::from_utf8_lossy(hash).into_owned();
        let signature = key.sign(statement(&log, seq, &hash, time).as_bytes());
        Self {
            log,
            seq,
            hash,
            time: time.to_owned(),
            key: key.public().id(),
            signature,
        }
    }

    /// Whether the key made it.
    pub fn is_by(&self, key: &PublicKey) -> bool {
        self.key == key.id()
            && key.verify(
                statement(&self.log, self.seq, &self.hash, &self.time).as_bytes(),
                &self.signature,
            )
    }

    /// All marks in a text: in each line, what begins at its first `{`. So a line of a system log will do.
    pub fn all_in(text: &str) -> Vec<Self> {
        text.lines()
            .filter_map(|line| line.get(line.find('{')?..))
            .filter_map(|json| {
                let mut values = serde_json::Deserializer::from_str(json).into_iter::<Self>();
                values.next()?.ok()
            })
            .collect()
    }

    /// As one line of JSON.
    pub fn line(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The file that says how far a log is on the disk, beside the log.
///
/// Two places are written in turn, so that a power cut in the middle of one leaves the other. It is written
/// after the log, so it never says more than the log has: a log that has less was cut.
#[derive(Debug)]
pub struct Head {
    file: File,
    next: u64,
}

impl Head {
    /// The file of a log's head.
    pub fn path(log: &Path) -> PathBuf {
        super::segment::beside(log, ".head")
    }

    /// Opens it for writing; it is made if there is none.
    pub fn open(log: &Path) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC)
            .open(Self::path(log))?;
        Ok(Self { file, next: 0 })
    }

    /// Writes a mark into the older place.
    pub fn write(&mut self, mark: &Mark) -> io::Result<()> {
        let mut text = mark.line().into_bytes();
        if text.len() >= PLACE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        text.resize(PLACE - 1, b' ');
        text.push(b'\n');
        self.file.write_all_at(&text, self.next * PLACE as u64)?;
        self.next ^= 1;
        Ok(())
    }

    /// Waits for the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The latest mark in a head's file; `None` if there is no file, or no mark in it.
    pub fn read(log: &Path) -> io::Result<Option<Mark>> {
        match std::fs::read(Self::path(log)) {
            Ok(bytes) => {
                let marks = Mark::all_in(&String::from_utf8_lossy(&bytes));
                Ok(marks.into_iter().max_by_key(|mark| mark.seq))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_mark_is_signed() {
        let key = Key::generate().unwrap();
        let mark = Mark::sign(&key, &[b'a'; 64], 7, &[b'b'; 64], "now");
        assert!(mark.is_by(&key.public()));
        let changes: [fn(&mut Mark); 6] = [
            |mark| mark.log.replace_range(0..1, "c"),
            |mark| mark.seq += 1,
            |mark| mark.hash.replace_range(0..1, "c"),
            |mark| mark.time.push('x'),
            |mark| mark.key.replace_range(0..1, "x"),
            |mark| mark.signature.replace_range(0..1, "x"),
        ];
        for change in changes {
            let mut changed = mark.clone();
            change(&mut changed);
            assert!(!changed.is_by(&key.public()), "{changed:?}");
        }
        let text = format!("Nov 25 host agentguard[1]: {}\nother\n", mark.line());
        assert_eq!(Mark::all_in(&text), [mark]);
    }

    #[test]
    fn a_head_survives_a_write_that_was_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("audit.jsonl");
        assert_eq!(Head::read(&log).unwrap(), None);
        let key = Key::generate().unwrap();
        let mark = |seq| Mark::sign(&key, &[b'a'; 64], seq, &[b'b'; 64], "now");
        let mut head = Head::open(&log).unwrap();
        for seq in 1..=5 {
            head.write(&mark(seq)).unwrap();
            assert_eq!(Head::read(&log).unwrap(), Some(mark(seq)));
        }
        let path = Head::path(&log);
        let whole = std::fs::read(&path).unwrap();
        // The fifth lies in the first place.
        for cut in 0..PLACE {
            let mut torn = whole.clone();
            torn[..cut].fill(0);
            std::fs::write(&path, torn).unwrap();
            let read = Head::read(&log).unwrap().unwrap();
            assert!(read.is_by(&key.public()) && read.seq >= 4, "{cut}");
        }
    }
}
