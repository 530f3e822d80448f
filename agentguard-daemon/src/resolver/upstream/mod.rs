//! The resolvers that we ask. An answer is taken only from the server that was asked, at the port that asked, with
//! the number and the question of the query; whatever fails is a failure of the name and never opens anything.

mod chase;
mod conf;
mod exchange;

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

pub(super) use chase::Failure;
use conf::Watched;
pub use conf::{Server, Servers};

/// How long a name may take before its client is told that it failed: shorter than clients wait.
const PATIENCE: Duration = Duration::from_millis(4_500);
/// How long one server may take to answer, by round.
const TRIES: [Duration; 3] = [
    Duration::from_millis(800),
    Duration::from_millis(1_200),
    Duration::from_secs(2),
];

/// See the module.
#[derive(Debug)]
pub(super) struct Upstreams {
    servers: Mutex<Watched>,
    /// The one that answered last is asked first.
    good: AtomicUsize,
}

impl Upstreams {
    pub(super) fn new(servers: Servers) -> Self {
        Self {
            servers: Mutex::new(Watched::new(servers)),
            good: AtomicUsize::new(0),
        }
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let mut servers = self
            .servers
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        servers.now(Instant::now())
    }

    /// Asks the servers one after the other until one has an answer: that there is something, that there is
    /// nothing of this type, or that there is no such name.
    async fn ask(
        &self,
        name: &Name,
        kind: RecordType,
        deadline: Instant,
    ) -> Result<Message, Failure> {
        let servers = self.servers();
        if servers.is_empty() {
            return Err(Failure::NoServers);
        }
        // Whoever said that it cannot will not be able to in a second: the others are asked again.
        let mut told = vec![None; servers.len()];
        let failure = |told: &[Option<ResponseCode>]| {
            let first = told.iter().flatten().next();
            first.map_or(Failure::Silent, |code| Failure::Told(*code))
        };
        for (round, patience) in TRIES.into_iter().enumerate() {
            let first = self.good.load(Ordering::Relaxed);
            for turn in 0..servers.len() {
                let number = (first + turn) % servers.len();
                if told[number].is_some() {
                    continue;
                }
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    // The next question begins with whom this one did not come to: the first ones may be dead.
                    self.good.store(number, Ordering::Relaxed);
                    return Err(failure(&told));
                }
                // Some networks let only TCP through, or answers of one packet.
                let by_tcp = round == TRIES.len() - 1;
                let within = patience.min(left);
                match exchange::ask(servers[number], name, kind, by_tcp, within).await {
                    Ok(answer) => match answer.metadata.response_code {
                        ResponseCode::NoError | ResponseCode::NXDomain => {
                            self.good.store(number, Ordering::Relaxed);
                            return Ok(answer);
                        }
                        code => told[number] = Some(code),
                    },
                    Err(error) => {
                        tracing::debug!("{} did not answer: {error}", servers[number]);
                    }
                }
            }
        }
        Err(failure(&told))
    }
}
