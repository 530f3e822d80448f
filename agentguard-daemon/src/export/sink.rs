//! The sinks of a daemon: started, asked about and ended together.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use super::config::{SinkConfig, SinkName};
use super::runner::Runner;
use super::state::{Shared, SinkState};

/// How long what is left may take at the end.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// Where a sink reads and writes, and how patient it is.
#[derive(Clone, Debug)]
pub struct Place {
    /// The log.
    pub log: PathBuf,
    /// The folder of state; positions are in `sinks` below it.
    pub state: PathBuf,
    /// The first wait after a failure; each further one is twice as long.
    pub first_wait: Duration,
    /// The longest.
    pub longest_wait: Duration,
    /// The number of the last record on the disk, as it goes on. Without it an idle sink looks again and again.
    pub durable: Option<watch::Receiver<u64>>,
}

impl Place {
    /// With the usual patience.
    pub fn new(log: PathBuf, state: PathBuf) -> Self {
        Self {
            log,
            state,
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_mins(1),
            durable: None,
        }
    }

    /// The writer of the log tells when there is more.
    #[must_use]
    pub fn told_by(self, durable: watch::Receiver<u64>) -> Self {
        Self {
            durable: Some(durable),
            ..self
        }
    }
}

/// All sinks of a daemon.
#[derive(Debug)]
pub struct Sinks {
    states: Vec<Shared>,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Sinks {
    /// Starts them. Needs a tokio runtime.
    pub fn start(configs: &BTreeMap<SinkName, SinkConfig>, place: &Place) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut states = Vec::new();
        let mut tasks = Vec::new();
        for (name, config) in configs {
            let runner = Runner::new(name.as_str(), config, place, stopped.clone());
            states.push(runner.state());
            tasks.push(tokio::spawn(runner.run()));
        }
        Self {
            states,
            stop,
            tasks: Mutex::new(tasks),
        }
    }

    /// What they are doing now.
    pub fn states(&self) -> Vec<SinkState> {
        self.states
            .iter()
            .map(|state| state.lock().clone())
            .collect()
    }

    /// Sends what is left, for a short time, and ends. What was not sent is sent by the next daemon.
    pub async fn stop(&self) {
        let _ = self.stop.send(true);
        let until = tokio::time::Instant::now() + GRACE;
        for task in self.tasks.lock().await.drain(..) {
            let abort = task.abort_handle();
            if tokio::time::timeout_at(until, task).await.is_err() {
                abort.abort();
            }
        }
    }
}
