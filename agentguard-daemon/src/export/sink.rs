//! The sinks of a daemon: started, asked about and ended together.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::config::{SinkConfig, SinkName};
use super::runner::{Order, Runner};
use super::state::{Doing, Shared, SinkState};

/// How long what is left may take at the end.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// How long a sink may take to hear an operator: a try that is under way comes to its end first.
const PATIENCE: Duration = Duration::from_secs(45);

/// Why a sink does not do what an operator says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// There is none with that name.
    #[error("there is no sink `{0}`; `agentguard audit sinks` shows them")]
    Unknown(String),
    /// It makes no sense now.
    #[error("{0}")]
    Not(String),
}

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

/// One sink, from outside.
#[derive(Debug)]
struct Handle {
    state: Shared,
    orders: mpsc::Sender<Order>,
}

/// All sinks of a daemon.
#[derive(Debug)]
pub struct Sinks {
    all: Vec<Handle>,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Sinks {
    /// Starts them. Needs a tokio runtime.
    pub fn start(configs: &BTreeMap<SinkName, SinkConfig>, place: &Place) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut all = Vec::new();
        let mut tasks = Vec::new();
        for (name, config) in configs {
            let (orders, heard) = mpsc::channel(1);
            let runner = Runner::new(name.as_str(), config, place, (stopped.clone(), heard));
            let state = runner.state();
            all.push(Handle { state, orders });
            tasks.push(tokio::spawn(runner.run()));
        }
        Self {
            all,
            stop,
            tasks: Mutex::new(tasks),
        }
    }

    /// What they are doing now.
    pub fn states(&self) -> Vec<SinkState> {
        self.all
            .iter()
            .map(|sink| sink.state.lock().clone())
            .collect()
    }

    /// What one of them is doing now.
    pub fn state_of(&self, name: &str) -> Result<SinkState, SinkError> {
        let mut states = self.states().into_iter();
        let found = states.find(|state| state.name == name);
        found.ok_or_else(|| SinkError::Unknown(name.to_owned()))
    }

    /// Whether a record is the one at which a sink stands, because its receiver does not take it.
    pub fn refuses(&self, name: &str, record: u64) -> Result<SinkState, SinkError> {
        let state = self.state_of(name)?;
        match state.refuses {
            Some(refused) if refused == record => Ok(state),
            Some(refused) => Err(SinkError::Not(format!(
                "record {record} is not the one that the receiver of `{name}` does not take: that is {refused}"
            ))),
            None => Err(SinkError::Not(format!(
                "`{name}` does not stand at a record that its receiver does not take; `agentguard audit sinks` says what it is doing"
            ))),
        }
    }

    /// Leaves out one record: the one that the receiver does not take, and no other. When this returns the disk has it.
    pub async fn skip(&self, name: &str, record: u64) -> Result<SinkState, SinkError> {
        self.refuses(name, record)?;
        self.order(name, |reply| Order::Skip { record, reply })
            .await
    }

    /// Tries again at once what failed.
    pub async fn retry(&self, name: &str) -> Result<SinkState, SinkError> {
        let state = self.state_of(name)?;
        if !matches!(state.doing, Doing::Waiting | Doing::Refused) {
            return Err(SinkError::Not(format!(
                "`{name}` does not wait for another try: it is {}",
                state.doing.name()
            )));
        }
        self.order(name, |reply| Order::Retry { reply }).await
    }

    async fn order(
        &self,
        name: &str,
        order: impl FnOnce(oneshot::Sender<Result<(), String>>) -> Order,
    ) -> Result<SinkState, SinkError> {
        let is_it = |sink: &&Handle| sink.state.lock().name == name;
        let Some(sink) = self.all.iter().find(is_it) else {
            return Err(SinkError::Unknown(name.to_owned()));
        };
        let (reply, answer) = oneshot::channel();
        let asked = async {
            let gone = |_| "it has ended".to_owned();
            let sent = sink.orders.send(order(reply)).await;
            sent.map_err(|_| "it has ended".to_owned())?;
            answer.await.map_err(gone)?
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(())) => Ok(sink.state.lock().clone()),
            Ok(Err(what)) => Err(SinkError::Not(format!("`{name}`: {what}"))),
            Err(_) => Err(SinkError::Not(format!(
                "`{name}` did not answer in {} s; look again with `agentguard audit sinks`",
                PATIENCE.as_secs()
            ))),
        }
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
