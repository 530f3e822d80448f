//! What a sink is doing, for those who ask.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// What a sink is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doing {
    /// It has not begun yet.
    #[default]
    Starting,
    /// It has sent everything that there is.
    Idle,
    /// It is sending.
    Sending,
    /// The last try failed; the next comes by itself.
    Waiting,
    /// The receiver does not want what it is sent. It is tried again, but somebody must do something.
    Refused,
    /// It cannot go on by itself, and says why.
    Failed,
    /// The daemon ends.
    Stopped,
}

impl Doing {
    /// Whether records wait for something else than their turn.
    pub fn is_trouble(self) -> bool {
        matches!(self, Self::Waiting | Self::Refused | Self::Failed)
    }

    /// As text.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Sending => "sending",
            Self::Waiting => "waiting",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

/// The state of one sink.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkState {
    /// Its name.
    pub name: String,
    /// Its kind: `syslog`, `otlp` or `journald`.
    pub kind: String,
    /// Where it leads.
    pub to: String,
    /// What it is doing.
    pub doing: Doing,
    /// The last record that the receiver has.
    pub position: u64,
    /// The last record that was handed to the network.
    pub sent_to: u64,
    /// The last record of the log that is on the disk.
    pub newest: u64,
    /// Records that the receiver has not got yet.
    pub lag: u64,
    /// Records handed to the network since the daemon started.
    pub sent: u64,
    /// Of them, such as had been handed over before.
    pub repeated: u64,
    /// Records that were gone from the log before they could be sent.
    pub missing: u64,
    /// Records that the receiver says it has thrown away.
    pub rejected: u64,
    /// Records that an operator had it leave out.
    #[serde(default)]
    pub skipped: u64,
    /// The record that the receiver does not take, where it is one that it does not take and nothing else: an operator can
    /// have it left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuses: Option<u64>,
    /// Records of which only the beginning went into a datagram.
    pub shortened: u64,
    /// Lines of the log that are no records.
    pub strange: u64,
    /// Tries that failed since the daemon started.
    pub retries: u64,
    /// Why the last one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error_at: Option<String>,
    /// When it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try_at: Option<String>,
}

/// A state that one task writes and others read.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Mutex<SinkState>>);

impl Shared {
    /// Of a sink that has not begun.
    pub fn new(state: SinkState) -> Self {
        Self(Arc::new(Mutex::new(state)))
    }

    /// To be read or changed for a moment.
    pub fn lock(&self) -> MutexGuard<'_, SinkState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
