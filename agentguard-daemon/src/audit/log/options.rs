//! How a log is kept: when the disk is waited for, when marks are signed, when a segment is closed.

use std::time::Duration;

use serde::Deserialize;

/// When the disk is waited for. Marks, the end of a segment and a clean stop always wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sync {
    /// After every batch of records.
    Batch,
    /// After each batch with a denial, before anybody is told of it; others after `sync_seconds`.
    #[default]
    Denials,
    /// Only for marks: what the machine had in memory is lost with its power.
    Checkpoints,
}

/// The section `audit_log` of the daemon's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogOptions {
    /// When the disk is waited for.
    pub sync: Sync,
    /// Seconds after which records that nobody waits for are on the disk.
    pub sync_seconds: u64,
    /// Records after which a checkpoint is signed.
    pub checkpoint_records: u64,
    /// Seconds after which a checkpoint is signed, if there are new records.
    pub checkpoint_seconds: u64,
    /// Size at which a segment is closed, in MiB.
    pub segment_mib: u64,
    /// Age at which a segment is closed, in hours; 0 for never.
    pub segment_hours: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            sync: Sync::default(),
            sync_seconds: 1,
            checkpoint_records: 10_000,
            checkpoint_seconds: 60,
            segment_mib: 64,
            segment_hours: 24,
        }
    }
}

impl LogOptions {
    pub(super) fn sync_every(&self) -> Duration {
        Duration::from_secs(self.sync_seconds)
    }

    pub(super) fn checkpoint_every(&self) -> Duration {
        Duration::from_secs(self.checkpoint_seconds)
    }

    pub(super) fn segment_bytes(&self) -> u64 {
        self.segment_mib.max(1) << 20
    }

    pub(super) fn segment_age(&self) -> Option<Duration> {
        (self.segment_hours > 0).then(|| Duration::from_secs(self.segment_hours * 3600))
    }
}
