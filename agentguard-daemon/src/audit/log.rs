//! The log file: appended to by one writer, whole lines, chained.
//!
//! It must never follow a symbolic link, share the file with another writer, or lose a record
//! without counting it: when the disk is full, lines wait in memory, and what does not fit there
//! becomes a gap record.

use std::borrow::Cow;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use agentguard_common::record::class;
use nix::fcntl::{Flock, FlockArg};
use nix::libc::{O_APPEND, O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};
use thiserror::Error;

use super::chain::{self, GENESIS, Hash};
use super::record::{Record, op};
use crate::event::escape::escape;

/// Bytes of lines that wait in memory while the file cannot be written.
const WAITING_MAX: usize = 64 << 20;
/// Bytes that the lines of one batch can have: records in a ring are less, and escaping makes them longer.
const BATCH_MAX: u64 = 64 << 20;
/// Longest line that a log may end in: longer than any record can be.
const LINE_MAX: u64 = 4 << 20;

/// Why a log cannot be used.
#[derive(Debug, Error)]
pub enum LogError {
    /// A call failed.
    #[error("failed to {call} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried.
        call: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The path is a symbolic link.
    #[error("{path} is a symbolic link: an audit log is never written through one (name the file itself)", path = .0.display())]
    Symlink(PathBuf),
    /// The path is not a regular file.
    #[error("{path} is not a regular file: an audit log needs one", path = .0.display())]
    NotAFile(PathBuf),
    /// Somebody else writes it.
    #[error("{path} is in use by another agentguard: name another file with --audit, or end the other one", path = .0.display())]
    Busy(PathBuf),
    /// The last line is not a record, or was changed.
    #[error("the last line of {path} is no audit record ({what}): keep the file as evidence and move it away, a new one will be begun", path = .path.display())]
    Damaged {
        /// The log.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A record could not be put into JSON.
    #[error("failed to write a record as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The writer of one log.
#[derive(Debug)]
pub struct Log {
    file: Flock<File>,
    path: PathBuf,
    waiting: Vec<u8>,
    next: u64,
    prev: Hash,
    /// Records that did not fit into `waiting`.
    lost: u64,
}

/// What a log has of a batch of lines whose writer died.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Lines that are records from the kernel.
    pub records: usize,
    /// Whether there is a gap record of a class, by class.
    pub gaps: [bool; class::COUNT as usize],
    /// Whether all of it is there.
    pub whole: bool,
}

impl Log {
    /// Opens or begins a log. Missing folders are made (mode 0700), the file has mode 0600.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        Self::open_after(path, 0..0)
    }

    /// The same after the death of a writer that was writing the lines with these numbers: one of them that
    /// was cut off is written again by whoever has it, so that nothing was lost.
    pub fn open_after(path: &Path, unfinished: Range<u64>) -> Result<Self, LogError> {
        let failed = |call| {
            move |source| LogError::Io {
                call,
                path: path.to_owned(),
                source,
            }
        };
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(|source| LogError::Io {
                    call: "make the folder",
                    path: folder.to_owned(),
                    source,
                })?;
        }
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
            .open(path)
            .map_err(|source| match source.raw_os_error() {
                Some(nix::libc::ELOOP) => LogError::Symlink(path.to_owned()),
                _ => failed("open")(source),
            })?;
        if !file.metadata().map_err(failed("stat"))?.is_file() {
            return Err(LogError::NotAFile(path.to_owned()));
        }
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            if errno == nix::errno::Errno::EWOULDBLOCK {
                LogError::Busy(path.to_owned())
            } else {
                failed("lock")(errno.into())
            }
        })?;
        let mut log = Self {
            file,
            path: path.to_owned(),
            waiting: Vec::with_capacity(1 << 20),
            next: 1,
            prev: GENESIS,
            lost: 0,
        };
        log.resume(&unfinished)?;
        Ok(log)
    }

    /// The log's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Numbers and seals a record and lets it wait for [`Log::flush`]. Gives the sealed line.
    ///
    /// `time` must be set; `seq`, `prev` and `hash` are set here.
    pub fn append(&mut self, record: &mut Record<'_>) -> Result<&[u8], LogError> {
        if self.waiting.len() > WAITING_MAX {
            self.lost += 1;
            return Ok(&[]);
        }
        if self.lost > 0 {
            let mut gap = Record {
                time: record.time.clone(),
                class: Some(Cow::Borrowed("log")),
                lost: Some(self.lost),
                ..Record::new(op::GAP)
            };
            self.seal(&mut gap)?;
            self.lost = 0;
        }
        let start = self.seal(record)?;
        Ok(&self.waiting[start..])
    }

    fn seal(&mut self, record: &mut Record<'_>) -> Result<usize, LogError> {
        let start = self.waiting.len();
        record.seq = self.next;
        // The hash consists of hexadecimal digits: always text.
        record.prev = Cow::Owned(String::from_utf8_lossy(&self.prev).into_owned());
        record.hash = Cow::Borrowed("");
        if let Err(error) = serde_json::to_writer(&mut self.waiting, record) {
            self.waiting.truncate(start);
            return Err(error.into());
        }
        self.prev = chain::seal(&mut self.waiting, start, &self.prev);
        self.next += 1;
        Ok(start)
    }

    /// Whether lines wait to be written.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Writes all waiting lines. After an error what was not written waits for the next call.
    pub fn flush(&mut self) -> Result<(), LogError> {
        let mut written = 0;
        let outcome = loop {
            if written == self.waiting.len() {
                break Ok(());
            }
            match (&*self.file).write(&self.waiting[written..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.waiting.drain(..written);
        outcome.map_err(|source| LogError::Io {
            call: "write to",
            path: self.path.clone(),
            source,
        })
    }

    /// Writes all waiting lines and waits until the disk has them.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.flush()?;
        self.file.sync_data().map_err(|source| LogError::Io {
            call: "sync",
            path: self.path.clone(),
            source,
        })
    }

    /// Finds where an existing log ends, and repairs a last line that was cut off.
    fn resume(&mut self, unfinished: &Range<u64>) -> Result<(), LogError> {
        let failed = |call| {
            let path = self.path.clone();
            move |source| LogError::Io { call, path, source }
        };
        let size = self.file.metadata().map_err(failed("stat"))?.size();
        let from = size.saturating_sub(2 * LINE_MAX);
        let mut tail = Vec::new();
        let mut file = &*self.file;
        file.seek(SeekFrom::Start(from)).map_err(failed("read"))?;
        file.read_to_end(&mut tail).map_err(failed("read"))?;

        let whole = tail
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        if whole == 0 && from > 0 {
            return Err(self.damaged("no line end in its last megabytes"));
        }
        let torn = tail.split_off(whole);
        if let Some(line) = tail.strip_suffix(b"\n") {
            let start = line
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |at| at + 1);
            (self.next, self.prev) =
                last_link(&line[start..]).map_err(|what| self.damaged(&what))?;
        }
        if torn.is_empty() {
            return Ok(());
        }
        let keep = from + whole as u64;
        if unfinished.contains(&self.next) {
            return self.cut(keep);
        }
        self.repair(&torn, keep)
    }

    fn cut(&mut self, keep: u64) -> Result<(), LogError> {
        self.file.set_len(keep).map_err(|source| LogError::Io {
            call: "remove the torn last line of",
            path: self.path.clone(),
            source,
        })
    }

    /// What the file has of the lines from `first` to before `end`.
    pub fn written_of(&self, first: u64, end: u64) -> Result<Written, LogError> {
        let failed = |source| LogError::Io {
            call: "read",
            path: self.path.clone(),
            source,
        };
        let mut written = Written {
            whole: self.next >= end,
            ..Written::default()
        };
        if self.next <= first {
            return Ok(written);
        }
        let size = self.file.metadata().map_err(failed)?.size();
        let mut tail = Vec::new();
        let mut file = &*self.file;
        file.seek(SeekFrom::Start(size.saturating_sub(BATCH_MAX)))
            .map_err(failed)?;
        file.read_to_end(&mut tail).map_err(failed)?;
        for line in tail
            .rsplit(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let Ok(record) = serde_json::from_slice::<Record<'_>>(line) else {
                break;
            };
            if record.seq < first {
                break;
            }
            if record.seq >= end {
                continue;
            }
            match (&*record.op, record.class.as_deref()) {
                (op::GAP, Some("allowed")) => written.gaps[class::ALLOWED as usize] = true,
                (op::GAP, Some("denied")) => written.gaps[class::DENIED as usize] = true,
                (op::GAP | op::ALARM | op::LOG_REPAIR, _) => {}
                _ => written.records += 1,
            }
        }
        Ok(written)
    }

    /// The number that the next line gets.
    pub fn next_seq(&self) -> u64 {
        self.next
    }

    /// Ends or removes a last line without newline, and records that.
    fn repair(&mut self, torn: &[u8], keep: u64) -> Result<(), LogError> {
        if let Ok(hash) = chain::verify(torn, &self.prev) {
            // Only the newline is missing.
            self.waiting.push(b'\n');
            self.next += 1;
            self.prev = hash;
            return self.flush();
        }
        self.cut(keep)?;
        let shown = &torn[..torn.len().min(256)];
        let detail = format!(
            "{} bytes without a line end were removed: {}",
            torn.len(),
            escape(shown)
        );
        let mut clock = super::clock::Clock::new();
        let mut record = Record {
            time: Cow::Borrowed(clock.now()),
            detail: Some(Cow::Owned(detail)),
            ..Record::new(op::LOG_REPAIR)
        };
        self.append(&mut record)?;
        self.sync()
    }

    fn damaged(&self, what: &str) -> LogError {
        LogError::Damaged {
            path: self.path.clone(),
            what: what.to_owned(),
        }
    }
}

/// Number after, and hash of, the last line of a log.
fn last_link(line: &[u8]) -> Result<(u64, Hash), String> {
    let record: Record<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let prev: Hash = record
        .prev
        .as_bytes()
        .try_into()
        .map_err(|_| "its `prev` is not a hash".to_owned())?;
    let hash = chain::verify(line, &prev).map_err(|broken| broken.to_string())?;
    let next = record.seq.checked_add(1).ok_or("its `seq` is too large")?;
    Ok((next, hash))
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            tracing::error!("audit records are lost: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::audit::read::Reader;

    fn write(log: &mut Log, target: &str) {
        let mut record = Record {
            time: Cow::Borrowed("2026-11-23T04:05:06.000000000Z"),
            target: Some(Cow::Borrowed(target)),
            ..Record::new("open")
        };
        log.append(&mut record).unwrap();
    }

    /// The targets of a log whose chain is whole and whose numbers have no holes.
    fn verified(path: &Path) -> Vec<String> {
        let mut prev = GENESIS;
        let mut reader = Reader::open(path).unwrap();
        let mut targets = Vec::new();
        while let Some(line) = reader.next_line().unwrap() {
            prev = chain::verify(&line.text, &prev).unwrap();
            let record = line.record.unwrap();
            targets.push(record.target.unwrap_or(record.op).into_owned());
            assert_eq!(record.seq, targets.len() as u64);
        }
        targets
    }

    #[test]
    fn a_log_resumes_where_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/audit.jsonl");
        for target in ["/a", "/b", "/c"] {
            write(&mut Log::open(&path).unwrap(), target);
        }
        assert_eq!(verified(&path), ["/a", "/b", "/c"]);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let parent = path.parent().unwrap().metadata().unwrap();
        assert_eq!(parent.permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_second_writer_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let first = Log::open(&path).unwrap();
        assert!(matches!(Log::open(&path), Err(LogError::Busy(_))));
        drop(first);
        Log::open(&path).unwrap();
    }

    #[test]
    fn a_link_or_device_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        symlink(folder.path().join("target"), &link).unwrap();
        assert!(matches!(Log::open(&link), Err(LogError::Symlink(_))));
        assert!(!folder.path().join("target").exists());
        assert!(matches!(
            Log::open(Path::new("/dev/null")),
            Err(LogError::NotAFile(_))
        ));
    }

    #[test]
    fn a_torn_line_is_removed_and_that_is_recorded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        {
            let mut log = Log::open(&path).unwrap();
            write(&mut log, "/a");
            write(&mut log, "/b");
        }
        let size = path.metadata().unwrap().size();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(size - 20).unwrap();
        write(&mut Log::open(&path).unwrap(), "/c");
        assert_eq!(verified(&path), ["/a", op::LOG_REPAIR, "/c"]);
    }

    #[test]
    fn a_torn_line_of_a_batch_that_is_written_again_is_no_loss() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        {
            let mut log = Log::open(&path).unwrap();
            for target in ["/before", "/a", "/b", "/c"] {
                write(&mut log, target);
            }
        }
        let size = path.metadata().unwrap().size();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(size - 20).unwrap();
        let mut log = Log::open_after(&path, 2..6).unwrap();
        let written = log.written_of(2, 6).unwrap();
        assert_eq!((written.records, written.whole), (2, false));
        write(&mut log, "/c");
        let mut gap = Record {
            time: Cow::Borrowed("2026-11-23T04:05:06.000000000Z"),
            class: Some(Cow::Borrowed("denied")),
            lost: Some(3),
            ..Record::new(op::GAP)
        };
        log.append(&mut gap).unwrap();
        log.flush().unwrap();
        let written = log.written_of(2, 6).unwrap();
        assert_eq!((written.records, written.whole), (3, true));
        assert_eq!(written.gaps, [false, true]);
        // Of lines that come after it nothing is counted.
        write(&mut log, "/after");
        log.flush().unwrap();
        assert_eq!(log.written_of(2, 6).unwrap(), written);
        drop(log);
        assert_eq!(
            verified(&path),
            ["/before", "/a", "/b", "/c", op::GAP, "/after"]
        );
    }

    #[test]
    fn a_line_that_lacks_only_its_end_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        write(&mut Log::open(&path).unwrap(), "/a");
        let size = path.metadata().unwrap().size();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(size - 1).unwrap();
        write(&mut Log::open(&path).unwrap(), "/b");
        assert_eq!(verified(&path), ["/a", "/b"]);
    }

    #[test]
    fn a_changed_last_line_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        write(&mut Log::open(&path).unwrap(), "/a");
        let changed = std::fs::read_to_string(&path).unwrap().replace("/a", "/x");
        std::fs::write(&path, &changed).unwrap();
        assert!(matches!(Log::open(&path), Err(LogError::Damaged { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), changed);
    }

    #[test]
    fn what_does_not_fit_into_memory_becomes_a_gap() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let mut log = Log::open(&path).unwrap();
        let long = "x".repeat(WAITING_MAX);
        write(&mut log, &long);
        write(&mut log, "/lost");
        write(&mut log, "/lost");
        log.flush().unwrap();
        write(&mut log, "/after");
        drop(log);
        let targets = verified(&path);
        assert_eq!(targets[1..], [op::GAP, "/after"]);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(r#""class":"log","lost":2"#));
    }
}
