//! Opening a log: the one that is there is gone on with, or one is begun.

use std::borrow::Cow;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Instant, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use nix::libc::{O_APPEND, O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};

use super::error::failed;
use super::pack::Packer;
use super::{Log, LogError, LogOptions, LogWork, Marks};
use crate::audit::chain::GENESIS;
use crate::audit::key::Key;
use crate::audit::mark::Head;
use crate::audit::record::{Record, op};
use crate::audit::segment;
use crate::disk;

impl Log {
    /// Opens or begins a log that is not signed. Missing folders are made (mode 0700), the file has mode 0600.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        Self::open_after(path, 0..0, LogOptions::default(), None)
    }

    /// The same with a key, and after the death of a writer that was writing the lines with these numbers: one
    /// of them that was cut off is written again by whoever has it, so that nothing was lost.
    pub fn open_after(
        path: &Path,
        unfinished: Range<u64>,
        options: LogOptions,
        key: Option<Key>,
    ) -> Result<Self, LogError> {
        let folder = disk::folder_of(path);
        disk::make_folder(folder).map_err(failed("make the folder", folder))?;
        let file = take(path)?;
        let marks = key.map(|key| {
            let head = Head::open(path).map_err(failed("open the head of", path))?;
            Ok::<_, LogError>(Marks {
                key,
                head,
                log: None,
            })
        });
        let now = Instant::now();
        let mut log = Self {
            file,
            path: path.to_owned(),
            options,
            marks: marks.transpose()?,
            waiting: Vec::with_capacity(1 << 20),
            next: 1,
            prev: GENESIS,
            resumed_at: 1,
            lost: 0,
            urgent: false,
            dirty: false,
            synced: now,
            unmarked: 0,
            marked: now,
            size: 0,
            first: 1,
            began: SystemTime::now(),
            stuck: None,
            packer: Packer::default(),
            work: LogWork::default(),
            news: Vec::new(),
            left: None,
        };
        log.finish_turn()?;
        log.resume(&unfinished)?;
        log.resumed_at = log.next;
        log.compare_with_head()?;
        if unfinished.is_empty() {
            log.tell_news()?;
            log.flush()?;
            if log.dirty {
                // What was found is on the disk, and there is a head from the beginning.
                log.settle()?;
            }
        }
        Ok(log)
    }

    /// Records what was found at the start. Not before the lines of an unfinished batch: they have their numbers.
    pub(super) fn tell_news(&mut self) -> Result<(), LogError> {
        for mut record in std::mem::take(&mut self.news) {
            self.append(&mut record)?;
        }
        Ok(())
    }

    /// Something is to be recorded about the log itself.
    pub(super) fn news(&mut self, op: &'static str, detail: String) -> &mut Record<'static> {
        let time = crate::audit::clock::Clock::new().now().to_owned();
        self.news.push(Record {
            time: Cow::Owned(time),
            detail: Some(Cow::Owned(detail)),
            ..Record::new(op)
        });
        let last = self.news.len() - 1;
        &mut self.news[last]
    }

    /// A rotation that was cut off is brought to its end, and segments that are not packed are.
    fn finish_turn(&mut self) -> Result<(), LogError> {
        let leaving = segment::leaving(&self.path);
        match fs::symlink_metadata(&leaving) {
            Ok(metadata) if metadata.is_file() && metadata.len() > 0 => {
                // The exchange was made: this is the segment that was closed.
                let first = super::repair::first_number(&leaving)
                    .map_err(|what| self.damaged(&format!("{}: {what}", leaving.display())))?;
                let closed = segment::closed(&self.path, first);
                rename_new(&leaving, &closed).map_err(failed("close the segment", &leaving))?;
            }
            Ok(_) => fs::remove_file(&leaving).map_err(failed("remove", &leaving))?,
            Err(_) => {}
        }
        let closed =
            segment::closed_of(&self.path).map_err(failed("list the segments of", &self.path))?;
        for left in closed.iter().filter(|segment| !segment.packed) {
            self.packer.begin(&left.path);
        }
        Ok(())
    }

    /// The key that signs from now on, if the head does not know it.
    pub(super) fn introduce_key(&mut self) {
        let Some(marks) = &self.marks else { return };
        let public = marks.key.public();
        let id = public.id();
        let record = self.news(op::LOG_KEY, format!("ed25519 {}", public.hex()));
        record.key = Some(Cow::Owned(id));
    }
}

/// Opens and locks the file of a log; it is made if there is none.
fn take(path: &Path) -> Result<Flock<File>, LogError> {
    loop {
        let opened = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
            .open(path);
        let file = opened.map_err(|source| match source.raw_os_error() {
            Some(nix::libc::ELOOP) => LogError::Symlink(path.to_owned()),
            _ => failed("open", path)(source),
        })?;
        let opened = file.metadata().map_err(failed("stat", path))?;
        if !opened.is_file() {
            return Err(LogError::NotAFile(path.to_owned()));
        }
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            if errno == nix::errno::Errno::EWOULDBLOCK {
                LogError::Busy(path.to_owned())
            } else {
                failed("lock", path)(errno.into())
            }
        })?;
        // Its writer may have closed the segment between our opening and our locking.
        let there = fs::symlink_metadata(path).map_err(failed("stat", path))?;
        if (there.dev(), there.ino()) == (opened.dev(), opened.ino()) {
            return Ok(file);
        }
    }
}

/// A new file with a lock, that nobody else has.
pub(super) fn make(path: &Path) -> io::Result<Flock<File>> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(O_APPEND | O_CLOEXEC | O_NOFOLLOW)
        .open(path)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
}

/// Renames, and never over something.
pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}
