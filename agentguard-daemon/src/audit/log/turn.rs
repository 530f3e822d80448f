//! What is done from time to time, between batches: checkpoints, waiting for the disk, closing segments.

use std::borrow::Cow;
use std::fs;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::error::failed;
use super::pack::Packed;
use super::{Log, LogError, Marks, open};
use crate::audit::clock::Clock;
use crate::audit::mark::Mark;
use crate::audit::record::{Record, op};
use crate::audit::segment;
use crate::disk;

/// How long after closing a segment failed it is tried again.
const PATIENCE: Duration = Duration::from_mins(1);

impl Log {
    /// Does what is due. Never while the lines of a batch may have to be found again in the file.
    pub fn tend(&mut self) -> Result<(), LogError> {
        self.tell_news()?;
        while let Some(packed) = self.packer.done() {
            self.take_over(&packed)?;
        }
        let has_new = self.unmarked > 0 && self.marks.is_some();
        let mark_is_due = self.unmarked >= self.options.checkpoint_records
            || self.marked.elapsed() >= self.options.checkpoint_every();
        let old = self.options.segment_age().is_some_and(|age| {
            SystemTime::now()
                .duration_since(self.began)
                .is_ok_and(|is| is >= age)
        });
        let is_full = self.size >= self.options.segment_bytes() || (old && self.size > 0);
        let may_turn = self.stuck.is_none_or(|since| since.elapsed() > PATIENCE);
        if is_full && may_turn {
            let turned = self.turn();
            self.stuck = turned.is_err().then(Instant::now);
            turned?;
        } else if has_new && mark_is_due {
            self.sync()?;
        } else if self.dirty
            && self.options.sync != super::Sync::Checkpoints
            && self.synced.elapsed() >= self.options.sync_every()
        {
            self.write()?;
            self.settle()?;
        }
        Ok(())
    }

    /// Signs the record before, in a record of its own.
    pub(super) fn checkpoint(&mut self) -> Result<(), LogError> {
        let (seq, hash) = (self.next - 1, self.prev);
        let Some(Marks {
            key,
            log: Some(log),
            ..
        }) = &self.marks
        else {
            return Ok(());
        };
        if self.unmarked == 0 || self.lost > 0 {
            return Ok(());
        }
        let time = Clock::new().now().to_owned();
        let mark = Mark::sign(key, log, seq, &hash, &time);
        let mut record = Record {
            time: Cow::Owned(time),
            log: Some(Cow::Owned(mark.log)),
            key: Some(Cow::Owned(mark.key)),
            signature: Some(Cow::Owned(mark.signature)),
            ..Record::new(op::CHECKPOINT)
        };
        self.seal(&mut record)?;
        self.unmarked = 0;
        self.marked = Instant::now();
        Ok(())
    }

    /// Closes the segment and begins the next. The chain goes on.
    fn turn(&mut self) -> Result<(), LogError> {
        self.sync()?;
        let leaving = segment::leaving(&self.path);
        let failed = |call| failed(call, &self.path);
        let next = open::make(&leaving).map_err(failed("make the next segment of"))?;
        // In one step, so that there is always a file with this name, and it is locked by us.
        let swapped = renameat_with(CWD, &leaving, CWD, &self.path, RenameFlags::EXCHANGE);
        if let Err(error) = swapped {
            let _ = fs::remove_file(&leaving);
            return Err(failed("close the segment")(error.into()));
        }
        let closed = segment::closed(&self.path, self.first);
        // From here on the next segment is the log, whatever fails; a start finishes it.
        let renamed = open::rename_new(&leaving, &closed)
            .and_then(|()| disk::sync_folder(&self.path))
            .map_err(failed("name the closed segment of"));
        self.file = next;
        self.size = 0;
        self.first = self.next;
        self.began = SystemTime::now();
        self.work.segments += 1;
        renamed?;
        self.packer.begin(&closed);
        Ok(())
    }

    /// A segment is packed: that is recorded, and then the plain file goes.
    pub(super) fn take_over(&mut self, packed: &Packed) -> Result<(), LogError> {
        let name = packed.path.file_name().unwrap_or_default();
        let mut record = Record {
            time: Cow::Owned(Clock::new().now().to_owned()),
            target: Some(Cow::Owned(name.to_string_lossy().into_owned())),
            digest: Some(Cow::Borrowed(&packed.digest)),
            detail: Some(Cow::Owned(format!(
                "{} bytes of {}",
                packed.bytes, packed.plain_bytes
            ))),
            ..Record::new(op::SEGMENT)
        };
        self.append(&mut record)?;
        self.write()?;
        self.settle()?;
        fs::remove_file(&packed.plain).map_err(failed("remove", &packed.plain))
    }
}

#[cfg(test)]
#[expect(clippy::missing_panics_doc, reason = "only tests call it")]
impl Log {
    /// Closes the segment, and waits until it is packed if that is wanted.
    pub fn turn_for_test(&mut self, packed: bool) {
        self.turn().unwrap();
        let done = self.packer.wait().unwrap();
        if packed {
            self.take_over(&done).unwrap();
        } else {
            fs::remove_file(&done.path).unwrap();
        }
    }
}
