//! What the daemon itself takes.

#![expect(
    clippy::cast_precision_loss,
    reason = "a time of 285 years has its ticks"
)]

use std::time::{Duration, SystemTime};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Process {
    /// Bytes in memory.
    pub memory: u64,
    /// Processor time, in seconds.
    pub processor: f64,
    /// Open descriptors.
    pub descriptors: usize,
    /// How long after the machine's boot it was started.
    pub began: Duration,
}

impl Process {
    /// When the machine was started; the beginning of time where that cannot be read.
    pub fn booted() -> SystemTime {
        let seconds = procfs::boot_time_secs().unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// This process; none where it cannot be read.
    pub fn own() -> Option<Self> {
        let process = procfs::process::Process::myself().ok()?;
        let stat = process.stat().ok()?;
        let ticks = stat.utime + stat.stime;
        Some(Self {
            memory: stat.rss * procfs::page_size(),
            processor: ticks as f64 / procfs::ticks_per_second() as f64,
            began: Duration::from_secs(stat.starttime / procfs::ticks_per_second()),
            descriptors: process.fd_count().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_known() {
        let own = Process::own().unwrap();
        let began = Process::booted() + own.began;
        assert!(began < SystemTime::now() && began + Duration::from_hours(1) > SystemTime::now());
        assert!(own.memory > 1 << 20 && own.descriptors > 2 && own.processor >= 0.0);
    }
}
