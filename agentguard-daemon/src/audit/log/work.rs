//! What a log did since it was opened, in numbers.

use super::Log;
use crate::metrics::Histogram;

/// See the module.
#[derive(Clone, Debug)]
pub struct LogWork {
    /// Records that it took, those about itself included.
    pub records: u64,
    /// Bytes that were written.
    pub bytes: u64,
    /// Segments that were closed.
    pub segments: u64,
    /// Records for which there was no room in memory.
    pub lost: u64,
    /// How long the disk was waited for, in seconds.
    pub syncs: Histogram,
}

impl Default for LogWork {
    fn default() -> Self {
        Self {
            records: 0,
            bytes: 0,
            segments: 0,
            lost: 0,
            syncs: Histogram::new(Histogram::DISK),
        }
    }
}

impl Log {
    /// What it did since it was opened.
    pub fn work(&self) -> LogWork {
        let state = self.queue.state();
        LogWork {
            records: self.work.records,
            lost: self.work.lost,
            bytes: state.bytes,
            segments: state.segments,
            syncs: state.syncs.clone(),
        }
    }

    /// Bytes of lines that wait in memory.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.len() + usize::try_from(self.queue.state().waiting()).unwrap_or(usize::MAX)
    }

    /// Bytes of the segment that is being written.
    pub fn segment_bytes(&self) -> u64 {
        self.queue.state().size
    }

    /// How often writing, waiting for the disk or closing a segment has failed.
    pub fn failures(&self) -> u64 {
        self.queue.state().failures
    }
}
