//! Opening a log: the one that is there is gone on with, or one is begun.

use std::borrow::Cow;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use nix::libc::{O_APPEND, O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};

use super::error::failed;
use super::pack::Packer;
use super::queue::{Point, Queue, Tasks};
use super::stage::Stage;
use super::writer::Writer;
use super::{Log, LogError, LogOptions, LogWork, Marks, Sync};
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
        Self::open_staged(path, None, unfinished, options, key)
    }

    /// The same with a stage that outlives the writer; what the one before left there is written first.
    pub fn open_staged(
        path: &Path,
        stage: Option<&Path>,
        unfinished: Range<u64>,
        options: LogOptions,
        key: Option<Key>,
    ) -> Result<Self, LogError> {
        let folder = disk::folder_of(path);
        disk::make_folder(folder).map_err(failed("make the folder", folder))?;
        let file = take(path)?;
        let mut stage = match stage {
            Some(stage) => Stage::open(stage).map_err(failed("open the stage", stage)),
            None => Stage::in_memory().map_err(failed("make a stage for", path)),
        }?;
        let left = stage.left().map_err(failed("read the stage of", path))?;
        let lines = stage.reader().map_err(failed("share the stage of", path))?;
        let head = key.is_some().then(|| Head::open(path)).transpose();
        let head = head.map_err(failed("open the head of", path))?;
        let key = key.map(Arc::new);
        let now = Instant::now();
        let queue = Arc::new(Queue::new(stage));
        let packer = Packer::new(queue.notify.clone());
        let mut log = Self {
            path: path.to_owned(),
            options,
            marks: key.clone().map(|key| Marks { key, log: None }),
            waiting: Vec::with_capacity(1 << 20),
            next: 1,
            prev: GENESIS,
            resumed_at: 1,
            lost: 0,
            then: Tasks::default(),
            unmarked: 0,
            marked: now,
            packer,
            work: LogWork::default(),
            news: Vec::new(),
            left: None,
            queue,
            writer: None,
        };
        let mut found = Found {
            file,
            size: 0,
            first: 1,
            began: SystemTime::now(),
            changed: false,
        };
        log.finish_turn()?;
        log.resume(&mut found, &unfinished, &left)?;
        log.queue
            .state()
            .stage
            .clear()
            .map_err(failed("empty the stage of", path))?;
        log.resumed_at = log.next;
        log.compare_with_head(&found)?;
        log.queue.begin(log.next - 1, found.size, found.began);
        let sync_every = (log.options.sync != Sync::Checkpoints).then(|| log.options.sync_every());
        let writer = Writer {
            queue: log.queue.clone(),
            stage: lines,
            file: found.file,
            path: path.to_owned(),
            first: found.first,
            head: key.zip(head),
            sync_every,
            packer: log.packer.orders(),
            dirty: found.changed.then(|| (log.last(), now)),
            buffer: Vec::new(),
        };
        let started = writer.start();
        log.writer = Some(started.map_err(failed("start the writer of", path))?);
        if unfinished.is_empty() {
            log.tell_news()?;
            if found.changed || log.has_waiting() {
                // What was found is on the disk, and there is a head from the beginning.
                log.then.sync = true;
                log.submit()?;
                log.flush()?;
            }
        }
        Ok(log)
    }

    /// The last record.
    pub(super) fn last(&self) -> Point {
        Point {
            seq: self.next - 1,
            hash: self.prev,
            log: self.marks.as_ref().and_then(|marks| marks.log),
        }
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
            self.packer.orders().begin(&left.path);
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

/// The file of a log as it is found.
pub(super) struct Found {
    pub file: Flock<File>,
    /// Bytes of whole lines.
    pub size: u64,
    /// Number of its first record.
    pub first: u64,
    /// When that was written.
    pub began: SystemTime,
    /// Whether it was written to.
    pub changed: bool,
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
