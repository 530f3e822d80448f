//! What is done from time to time, between batches: checkpoints, closing segments, and what comes of packed ones.

use std::borrow::Cow;
use std::time::{Duration, Instant, SystemTime};

use super::pack::Packed;
use super::{Log, LogError, Marks};
use crate::audit::clock::Clock;
use crate::audit::mark::Mark;
use crate::audit::record::{Record, op};

/// How long after closing a segment failed it is tried again.
const PATIENCE: Duration = Duration::from_mins(1);

impl Log {
    /// Orders what is due. Never while the lines of a batch may have to be found again in the file.
    pub fn tend(&mut self) -> Result<(), LogError> {
        let lost_by_disk = self.queue.state().lost_by_disk.take();
        if let Some(what) = lost_by_disk {
            self.news(op::ALARM, what);
        }
        self.tell_news()?;
        while let Some(packed) = self.packer.done() {
            self.take_over(packed)?;
        }
        if self.must_turn() {
            self.checkpoint()?;
            self.then.turn = true;
            self.submit()?;
        } else if self.mark_is_due() {
            self.checkpoint()?;
            self.then.head = true;
            self.submit()?;
        } else if self.has_waiting() {
            self.submit()?;
        }
        Ok(())
    }

    /// When [`Log::tend`] has something to do that nobody tells of.
    pub fn due(&self) -> Option<Instant> {
        if self.has_waiting() || self.lost > 0 {
            // That comes first, and the writer tells when there is room.
            return None;
        }
        let now = Instant::now();
        let mark = (self.unmarked > 0 && self.marks.is_some())
            .then(|| self.marked + self.options.checkpoint_every());
        let state = self.queue.state();
        let is_empty = state.size + state.waiting() == 0;
        let turn = self
            .options
            .segment_age()
            .filter(|_| !is_empty && !state.turning);
        let turn = turn.map(|age| {
            let is = SystemTime::now().duration_since(state.began);
            let at = now + age.saturating_sub(is.unwrap_or_default());
            state.stuck.map_or(at, |since| at.max(since + PATIENCE))
        });
        [mark, turn].into_iter().flatten().min()
    }

    fn mark_is_due(&self) -> bool {
        self.unmarked > 0
            && self.marks.is_some()
            && (self.unmarked >= self.options.checkpoint_records
                || self.marked.elapsed() >= self.options.checkpoint_every())
    }

    fn must_turn(&self) -> bool {
        let state = self.queue.state();
        let size = state.size + state.waiting();
        let is_old = || {
            let age = SystemTime::now().duration_since(state.began);
            let most = self.options.segment_age();
            most.is_some_and(|most| age.is_ok_and(|age| age >= most))
        };
        !state.turning
            && state.stuck.is_none_or(|since| since.elapsed() > PATIENCE)
            && (size >= self.options.segment_bytes() || (size > 0 && is_old()))
    }

    /// Signs the record before, in a record of its own.
    pub(super) fn checkpoint(&mut self) -> Result<(), LogError> {
        let (seq, hash) = (self.next - 1, self.prev);
        let Some(Marks {
            key,
            log: Some(log),
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

    /// A segment is packed: that is recorded, and when the disk has that, the plain file goes.
    pub(super) fn take_over(&mut self, packed: Packed) -> Result<(), LogError> {
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
        self.then.remove.push(packed.plain);
        self.submit()?;
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::missing_panics_doc, reason = "only tests call it")]
impl Log {
    /// Closes the segment.
    pub(super) fn turn(&mut self) {
        self.checkpoint().unwrap();
        self.then.turn = true;
        self.submit().unwrap();
        self.flush().unwrap();
    }

    /// Closes the segment, and waits until it is packed if that is wanted.
    pub fn turn_for_test(&mut self, packed: bool) {
        self.turn();
        let done = self.packer.wait().unwrap();
        if packed {
            self.take_over(done).unwrap();
            self.flush().unwrap();
        } else {
            std::fs::remove_file(&done.path).unwrap();
        }
    }
}
