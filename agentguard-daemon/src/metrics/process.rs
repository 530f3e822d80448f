//! What the daemon itself takes.

#![expect(
    clippy::cast_precision_loss,
    reason = "a time of 285 years has its ticks"
)]

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Process {
    /// Bytes in memory.
    pub memory: u64,
    /// Processor time, in seconds.
    pub processor: f64,
    /// Open descriptors.
    pub descriptors: usize,
}

impl Process {
    /// This process; none where it cannot be read.
    pub fn own() -> Option<Self> {
        let process = procfs::process::Process::myself().ok()?;
        let stat = process.stat().ok()?;
        let ticks = stat.utime + stat.stime;
        Some(Self {
            memory: stat.rss * procfs::page_size(),
            processor: ticks as f64 / procfs::ticks_per_second() as f64,
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
        assert!(own.memory > 1 << 20 && own.descriptors > 2 && own.processor >= 0.0);
    }
}
