//! From a query to its reply. The order is the point: judge, find, judge the addresses, open, record, answer.
//! Whatever fails on the way is an error to the client, and opens nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use hickory_proto::op::ResponseCode;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

use super::cache::{Cache, Found, Key, MOST};
use super::conclude::Conclusion;
use super::gate::{Asker, Gate, Judged};
use super::kind::Kind;
use super::limits::{Limits, Pace};
use super::open::OpenNames;
use super::question::{Echo, Question, Read, Transport, read};
use super::reply::extended;
use super::upstream::{Failure, Servers, Upstreams};

/// What we keep for one agent.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) asker: Asker,
    pub(super) open: OpenNames,
    pub(super) pace: Pace,
    pub(super) lookups: Arc<Semaphore>,
    pub(super) connections: Arc<Semaphore>,
    /// Set when it is let go: nothing is opened for it any more.
    pub(super) ended: AtomicBool,
}

impl Client {
    pub(super) fn new(asker: Asker, limits: &Limits) -> Self {
        Self {
            asker,
            open: OpenNames::default(),
            pace: Pace::new(limits.rate),
            lookups: Arc::new(Semaphore::new(limits.lookups)),
            connections: Arc::new(Semaphore::new(limits.connections)),
            ended: AtomicBool::new(false),
        }
    }
}

/// What several agents may ask for at the same time, and only one of them asks.
type Flight = OnceCell<Result<Arc<Found>, Failure>>;

/// See the module.
pub(super) struct Core {
    pub(super) gate: Arc<dyn Gate>,
    pub(super) limits: Limits,
    upstreams: Upstreams,
    pub(super) cache: Cache,
    flights: Mutex<HashMap<Key, Weak<Flight>>>,
}

/// What becomes of a query without waiting.
pub(super) enum Step {
    /// This is sent, if anything.
    Answered(Option<Vec<u8>>),
    /// Others have to be asked first.
    Pending(Box<Pending>),
}

/// A permitted question on its way.
pub(super) struct Pending {
    echo: Echo,
    question: Question,
    _slot: OwnedSemaphorePermit,
}

impl Core {
    pub(super) fn new(gate: Arc<dyn Gate>, servers: Servers, limits: Limits) -> Self {
        Self {
            gate,
            limits,
            upstreams: Upstreams::new(servers),
            cache: Cache::new(MOST),
            flights: Mutex::default(),
        }
    }

    /// The part of the way that needs nobody else.
    pub(super) fn step(&self, client: &Client, bytes: &[u8], transport: Transport) -> Step {
        let (echo, question) = match read(bytes, transport) {
            Read::Nothing => return Step::Answered(None),
            Read::Wrong(echo, wrong) => {
                return Step::Answered(self.refuse_unread(client, &echo, wrong));
            }
            Read::Asked(echo, question) => (echo, question),
        };
        let conclusion = Conclusion {
            core: self,
            client,
            echo: &echo,
            question: &question,
        };
        if client.ended.load(Ordering::Acquire) {
            return Step::Answered(None);
        }
        if let Some(reply) = conclusion.local() {
            return Step::Answered(reply.bytes(&echo));
        }
        let judged = self.gate.judge(client.asker, &question.text);
        if !judged.passes() {
            return Step::Answered(conclusion.denied(&judged).bytes(&echo));
        }
        if Kind::of(question.kind) == Kind::Refused {
            return Step::Answered(conclusion.type_refused(&judged).bytes(&echo));
        }
        let key = (question.text.clone(), question.kind);
        if let Some(found) = self.cache.get(&key, Instant::now()) {
            return Step::Answered(conclusion.found(&judged, &found).bytes(&echo));
        }
        match client.lookups.clone().try_acquire_owned() {
            Ok(slot) => Step::Pending(Box::new(Pending {
                echo,
                question,
                _slot: slot,
            })),
            Err(_) => Step::Answered(conclusion.busy(&judged).bytes(&echo)),
        }
    }

    /// The rest of the way. The policy may have changed while others were asked, so it is judged again.
    pub(super) async fn finish(&self, client: &Client, pending: Box<Pending>) -> Option<Vec<u8>> {
        let Pending { echo, question, .. } = &*pending;
        let found = self.find(question).await;
        if client.ended.load(Ordering::Acquire) {
            return None;
        }
        let conclusion = Conclusion {
            core: self,
            client,
            echo,
            question,
        };
        let judged: Judged = self.gate.judge(client.asker, &question.text);
        if !judged.passes() {
            return conclusion.denied(&judged).bytes(echo);
        }
        match found {
            Ok(found) => conclusion.found(&judged, &found).bytes(echo),
            Err(failure) => {
                let told = failure.to_string();
                let reply = conclusion.failed(
                    &judged,
                    ResponseCode::ServFail,
                    (extended::NO_REACHABLE_AUTHORITY, "upstream-failed"),
                    &told,
                );
                reply.bytes(echo)
            }
        }
    }

    /// Asks others, once for all who want to know the same now.
    async fn find(&self, question: &Question) -> Result<Arc<Found>, Failure> {
        let key = (question.text.clone(), question.kind);
        let flight = {
            let mut flights = self.flights();
            if let Some(flight) = flights.get(&key).and_then(Weak::upgrade) {
                flight
            } else {
                let flight = Arc::new(Flight::new());
                flights.insert(key.clone(), Arc::downgrade(&flight));
                flight
            }
        };
        let ask = async {
            let found = self.upstreams.find(&question.name, question.kind).await?;
            let found = Arc::new(found);
            self.cache.put(key.clone(), found.clone());
            Ok(found)
        };
        let found = flight.get_or_init(|| ask).await.clone();
        let mut flights = self.flights();
        if flights
            .get(&key)
            .is_some_and(|it| std::ptr::eq(it.as_ptr(), Arc::as_ptr(&flight)))
        {
            flights.remove(&key);
        }
        found
    }

    fn flights(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Weak<Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
