//! Where a log ends, and whether that is where it should end.
//!
//! What is found wrong is recorded, never only mended: a later `verify` must still see it.

use std::borrow::Cow;
use std::io::{BufRead, Read, Seek, SeekFrom, Write as _};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use super::error::failed;
use super::open::Found;
use super::stage::{Left as Staged, continuing};
use super::{Left, Log, LogError};
use crate::audit::chain::{self, Hash};
use crate::audit::mark::Head;
use crate::audit::record::{Record, op};
use crate::audit::segment::{self, Segment};
use crate::event::escape::escape;

/// Longest line that a log may end in: longer than any record can be.
const LINE_MAX: u64 = 4 << 20;
/// Bytes at the end of a file in which the record of the head is looked for before all is read.
const NEAR: u64 = 8 << 20;

impl Log {
    /// Finds where an existing log ends, writes what waited for the disk (`staged`) when its writer died, and repairs a
    /// last line that was cut off.
    pub(super) fn resume(
        &mut self,
        found: &mut Found,
        unfinished: &Range<u64>,
        staged: &[u8],
    ) -> Result<(), LogError> {
        let metadata = found.file.metadata().map_err(failed("stat", &self.path))?;
        let size = metadata.size();
        let from = size.saturating_sub(2 * LINE_MAX);
        let tail = self.tail(found, from)?;
        let whole = tail
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        if whole == 0 && from > 0 {
            return Err(self.damaged("no line end in its last megabytes"));
        }
        let (lines, torn) = tail.split_at(whole);
        match last_line(lines) {
            Some(line) => {
                (self.next, self.prev) = last_link(line).map_err(|what| self.damaged(&what))?;
                found.first = first_number(&self.path).map_err(|what| self.damaged(&what))?;
                found.began = first_time(&self.path).unwrap_or_else(SystemTime::now);
                // Unknown, so that there is a checkpoint soon.
                self.unmarked = 1;
                self.left = left(lines);
            }
            None => self.resume_closed(found)?,
        }
        found.size = from + whole as u64;
        match continuing(staged, self.next, &self.prev) {
            // A line that was being written is the first of them.
            Staged::Lines(rest) if rest.starts_with(torn) => {
                self.write_staged(found, rest)?;
                return self.resume(found, unfinished, &[]);
            }
            Staged::Nothing => {}
            Staged::Lines(_) | Staged::Others(_) => {
                let what = format!(
                    "{} bytes that waited for the disk do not go on where the log ends, and were not written",
                    staged.len()
                );
                tracing::error!("ALARM: {what}");
                self.news(op::LOG_REPAIR, what);
            }
        }
        if torn.is_empty() {
            return Ok(());
        }
        if unfinished.contains(&self.next) {
            return self.cut(found);
        }
        self.repair(found, torn)
    }

    fn write_staged(&self, found: &mut Found, lines: &[u8]) -> Result<(), LogError> {
        self.cut(found)?;
        let written = (&*found.file).write_all(lines);
        written.map_err(failed("write what waited for the disk to", &self.path))
    }

    fn tail(&self, found: &Found, from: u64) -> Result<Vec<u8>, LogError> {
        let mut tail = Vec::new();
        let mut file = &*found.file;
        file.seek(SeekFrom::Start(from))
            .map_err(failed("read", &self.path))?;
        file.read_to_end(&mut tail)
            .map_err(failed("read", &self.path))?;
        Ok(tail)
    }

    /// Nothing was written yet since the last segment was closed.
    fn resume_closed(&mut self, found: &mut Found) -> Result<(), LogError> {
        let closed = segment::closed_of(&self.path);
        let closed = closed.map_err(failed("list the segments of", &self.path))?;
        if let Some(last) = closed.last() {
            let text = last.read().map_err(failed("read", &last.path))?;
            let line = last_line(&text).ok_or("it is empty".to_owned());
            (self.next, self.prev) = line
                .and_then(last_link)
                .map_err(|what| self.damaged(&format!("{}: {what}", last.name())))?;
            self.left = left(&text);
        }
        found.first = self.next;
        Ok(())
    }

    fn cut(&self, found: &mut Found) -> Result<(), LogError> {
        found.changed = true;
        let cut = found.file.set_len(found.size);
        cut.map_err(failed("remove the torn last line of", &self.path))
    }

    /// Ends or removes a last line without newline, and records that.
    fn repair(&mut self, found: &mut Found, torn: &[u8]) -> Result<(), LogError> {
        if let Ok(hash) = chain::verify(torn, &self.prev) {
            // Only the newline is missing.
            found.size += torn.len() as u64 + 1;
            found.changed = true;
            self.next += 1;
            self.prev = hash;
            let written = (&*found.file).write_all(b"\n");
            return written.map_err(failed("end the last line of", &self.path));
        }
        self.cut(found)?;
        let shown = &torn[..torn.len().min(256)];
        let detail = format!(
            "{} bytes without a line end were removed: {}",
            torn.len(),
            escape(shown)
        );
        self.news(op::LOG_REPAIR, detail);
        Ok(())
    }

    /// Compares the log with the last that was signed about it. If it ends before, or is another, that is
    /// recorded, and numbers go on behind what was signed, so that the hole stays.
    pub(super) fn compare_with_head(&mut self, found: &Found) -> Result<(), LogError> {
        let Some(marks) = &self.marks else {
            return Ok(());
        };
        let public = marks.key.public();
        let begins = self.identity()?;
        let head = Head::read(&self.path).map_err(failed("read the head of", &self.path))?;
        let is_new = self.next == 1;
        if let Some(marks) = &mut self.marks {
            marks.log = begins;
        }
        let Some(head) = head else {
            if !is_new {
                let what =
                    "no signed head was found: nobody can say whether records were cut off the end";
                self.news(op::LOG_REPAIR, what.to_owned());
            }
            self.introduce_key();
            return Ok(());
        };
        if !head.is_by(&public) {
            let what = format!(
                "the head (record {}) is signed by another key, {}: it does not count",
                head.seq, head.key
            );
            self.news(op::LOG_REPAIR, what);
            self.introduce_key();
            return Ok(());
        }
        if head.seq >= self.next {
            let lost = head.seq - (self.next - 1);
            let last = self.next - 1;
            let what = format!(
                "the log ended at record {last}, and {} were signed: it was cut or replaced",
                head.seq
            );
            tracing::error!("ALARM: {what}");
            let gap = self.news(op::GAP, what);
            gap.class = Some(Cow::Borrowed("log-cut"));
            gap.lost = Some(lost);
            self.next = head.seq + 1;
            return Ok(());
        }
        let hash = self.hash_of(found, head.seq)?;
        let same_log = begins.is_none_or(|log| log[..] == *head.log.as_bytes());
        if !same_log || hash.is_none_or(|hash| hash[..] != *head.hash.as_bytes()) {
            let what = format!(
                "record {} is not the one that was signed: the log was changed or replaced",
                head.seq
            );
            tracing::error!("ALARM: {what}");
            self.news(op::ALARM, what).class = Some(Cow::Borrowed("log-replaced"));
        }
        Ok(())
    }

    /// The hash of the log's first record, by which marks name it. Where its beginning was moved away, the
    /// one that marks have used so far.
    fn identity(&self) -> Result<Option<Hash>, LogError> {
        let segments = segment::all_of(&self.path);
        let segments = segments.map_err(failed("list the segments of", &self.path))?;
        for first in &segments {
            let mut line = Vec::new();
            let mut text = first.open().map_err(failed("read", &first.path))?;
            let read = text.by_ref().take(LINE_MAX).read_until(b'\n', &mut line);
            read.map_err(failed("read", &first.path))?;
            if line.is_empty() {
                continue;
            }
            if let Some((1, hash)) = numbered(line.trim_ascii_end()) {
                return Ok(Some(hash));
            }
            break;
        }
        let head = Head::read(&self.path).map_err(failed("read the head of", &self.path))?;
        Ok(head.and_then(|head| head.log.as_bytes().try_into().ok()))
    }

    /// The hash that a record has now. It is near the end, or in the segment that was closed last.
    fn hash_of(&self, found: &Found, seq: u64) -> Result<Option<Hash>, LogError> {
        let mut from = found.size.saturating_sub(NEAR);
        loop {
            if let Some(hash) = find(&self.tail(found, from)?, seq) {
                return Ok(Some(hash));
            }
            if from == 0 {
                break;
            }
            from = 0;
        }
        let closed = segment::closed_of(&self.path);
        let closed = closed.map_err(failed("list the segments of", &self.path))?;
        let holder = closed
            .iter()
            .rev()
            .find(|segment| segment.first.is_some_and(|first| first <= seq));
        let Some(holder) = holder else {
            return Ok(None);
        };
        // What cannot be read has not the record that was signed.
        Ok(holder.read().ok().and_then(|text| find(&text, seq)))
    }

    pub(super) fn damaged(&self, what: &str) -> LogError {
        LogError::Damaged {
            path: self.path.clone(),
            what: what.to_owned(),
        }
    }
}

fn last_line(lines: &[u8]) -> Option<&[u8]> {
    let lines = lines.strip_suffix(b"\n")?;
    lines.rsplit(|byte| *byte == b'\n').next()
}

/// The last record, unless it says that its writer stopped. What the log says of itself may follow it.
fn left(lines: &[u8]) -> Option<Left> {
    let lines = lines.rsplit(|byte| *byte == b'\n');
    let mut records = lines.filter_map(|line| serde_json::from_slice::<Record<'_>>(line).ok());
    let is_own = |op: &str| matches!(op, op::CHECKPOINT | op::SEGMENT | op::LOG_KEY);
    let last = records.find(|record| !is_own(&record.op))?;
    (last.op != op::STOP).then(|| Left {
        seq: last.seq,
        time: last.time.into_owned(),
    })
}

/// Number and hash that a line has, by its form.
fn numbered(line: &[u8]) -> Option<(u64, Hash)> {
    let (body, hash) = chain::split(line)?;
    let digits = body
        .strip_prefix(b"{\"seq\":")?
        .split(|byte| *byte == b',')
        .next()?;
    Some((std::str::from_utf8(digits).ok()?.parse().ok()?, hash))
}

fn find(text: &[u8], seq: u64) -> Option<Hash> {
    let lines = text.rsplit(|byte| *byte == b'\n');
    let mut numbers = lines.filter_map(numbered);
    numbers
        .find(|(number, _)| *number == seq)
        .map(|(_, hash)| hash)
}

fn first_record(path: &Path) -> Result<Record<'static>, String> {
    let plain = Segment {
        path: path.to_owned(),
        first: None,
        packed: false,
    };
    let mut line = Vec::new();
    plain
        .open()
        .and_then(|text| text.take(LINE_MAX).read_until(b'\n', &mut line))
        .map_err(|error| error.to_string())?;
    serde_json::from_slice(&line).map_err(|error| format!("its first line: {error}"))
}

/// The number of a file's first record.
pub(super) fn first_number(path: &Path) -> Result<u64, String> {
    first_record(path).map(|record| record.seq)
}

fn first_time(path: &Path) -> Option<SystemTime> {
    let time: jiff::Timestamp = first_record(path).ok()?.time.parse().ok()?;
    Some(time.into())
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
