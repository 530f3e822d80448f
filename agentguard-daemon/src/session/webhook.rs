//! When the webhook is asked about what waits, and what its answers lead to.
//!
//! The book is the queue: nothing waits here that does not wait there, and nothing is asked about that an operator has
//! answered. It must never hold up who asks, records or answers otherwise, or grant what does not wait any more.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::SessionError;
use super::engine::{Engine, lock};
use crate::approval::webhook::{Answer, Asked, Failure, Post, Secret, WebhookConfig};
use crate::approval::{Book, Waiting, WebhookState};
use crate::event::escape::printable;
use crate::outbound::pause;

/// Questions that are under way at the same time.
const ABREAST: usize = 4;
/// How long the last one may take when the daemon ends.
const GRACE: Duration = Duration::from_secs(1);
/// How often the same trouble is told, and how often any.
const TELL: [Duration; 2] = [Duration::from_mins(5), Duration::from_secs(10)];

/// How patient it is.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The first wait after a failure; each further one is twice as long.
    pub first_wait: Duration,
    /// The longest.
    pub longest_wait: Duration,
    /// Between two questions.
    pub spacing: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_mins(1),
            spacing: Duration::from_millis(100),
        }
    }
}

/// The webhook at work.
#[derive(Debug)]
pub struct Webhook {
    state: Arc<watch::Sender<WebhookState>>,
    stop: watch::Sender<bool>,
    task: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Webhook {
    /// How it is now.
    pub fn state(&self) -> WebhookState {
        self.state.borrow().clone()
    }

    /// How it is from now on.
    pub fn watch(&self) -> watch::Receiver<WebhookState> {
        self.state.subscribe()
    }

    /// Ends it. An answer that is being written down is written down.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        if let Some(task) = self.task.lock().await.take() {
            let abort = task.abort_handle();
            if tokio::time::timeout(GRACE, task).await.is_err() {
                abort.abort();
            }
        }
    }
}

impl Engine {
    /// From now on a receiver is asked about what waits. Needs a tokio runtime.
    pub fn ask_webhook(self: &Arc<Self>, config: &WebhookConfig, pace: Pace) -> Arc<Webhook> {
        let start = || {
            let (stop, stopped) = watch::channel(false);
            let state = Arc::new(watch::Sender::new(WebhookState {
                to: config.url.origin(),
                ..WebhookState::default()
            }));
            let book = self.desk.book().clone();
            let runner = Runner {
                engine: Arc::downgrade(self),
                post: Post::new(config, crate::export::host_name()),
                pace,
                state: state.clone(),
                acts: BTreeMap::new(),
                turns: HashMap::new(),
                under_way: JoinSet::new(),
                failures: 0,
                not_before: Instant::now(),
                told: None,
                book,
            };
            tracing::info!(
                "what waits for an operator is told to {}",
                config.url.origin()
            );
            if let Err(what) = Secret::read(&config.secret) {
                tracing::error!("the webhook will not be asked: {what}");
            }
            Arc::new(Webhook {
                state,
                stop,
                task: tokio::sync::Mutex::new(Some(tokio::spawn(runner.run(stopped)))),
            })
        };
        self.webhook.get_or_init(start).clone()
    }

    /// How the webhook is, where there is one.
    pub fn webhook(&self) -> Option<WebhookState> {
        Some(self.webhook.get()?.state())
    }

    /// Acts that wait for an answer.
    pub(super) fn waiting_count(&self) -> usize {
        self.desk.book().open().len()
    }

    fn policy_of_session(&self, session: u32) -> Option<String> {
        let state = lock(&self.state);
        let mut agents = state.registry.iter();
        let slot = agents.find(|agent| agent.session == session)?.slot;
        Some(state.in_force.get(&slot)?.policy.name().to_owned())
    }
}

/// When an act is asked about.
#[derive(Debug)]
struct Due {
    session: u32,
    at: Instant,
    /// Answers in a row that did not count.
    failures: u32,
    is_asked: bool,
}

type Outcome = (Asked, Result<Answer, Failure>);

struct Runner {
    engine: Weak<Engine>,
    book: Book,
    post: Arc<Post>,
    pace: Pace,
    state: Arc<watch::Sender<WebhookState>>,
    acts: BTreeMap<u64, Due>,
    /// When a session was served last: one that asks for much keeps no other out.
    turns: HashMap<u32, Instant>,
    under_way: JoinSet<Outcome>,
    /// Questions in a row without any answer.
    failures: u32,
    not_before: Instant,
    told: Option<(String, Instant)>,
}

impl Runner {
    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut news = self.book.news();
        loop {
            self.look();
            let next = self.ask();
            let due = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            let done = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                new = news.changed() => if new.is_err() { return } else { None },
                Some(done) = self.under_way.join_next() => Some(done),
                () = due => None,
            };
            match done {
                Some(Ok((asked, outcome))) => self.take(&asked, outcome).await,
                // Whose it was is not known: all may be asked again.
                Some(Err(error)) => {
                    self.acts.values_mut().for_each(|due| due.is_asked = false);
                    self.tell(&error.to_string());
                }
                None => {}
            }
        }
    }

    /// What waits now.
    fn look(&mut self) {
        let open: BTreeMap<u64, u32> = self.book.open().into_iter().collect();
        self.acts
            .retain(|id, due| due.is_asked || open.contains_key(id));
        let now = Instant::now();
        for (id, session) in open {
            self.acts.entry(id).or_insert(Due {
                session,
                at: now,
                failures: 0,
                is_asked: false,
            });
        }
        let sessions: HashSet<u32> = self.acts.values().map(|due| due.session).collect();
        self.turns.retain(|session, _| sessions.contains(session));
    }

    /// Asks about one act, if it is time; when it is time for the next.
    fn ask(&mut self) -> Option<Instant> {
        // Where nobody answers, one question at a time is enough.
        let abreast = if self.failures > 0 { 1 } else { ABREAST };
        if self.under_way.len() >= abreast {
            return None;
        }
        let now = Instant::now();
        let free = self.acts.iter().filter(|(_, due)| !due.is_asked);
        let first = free.map(|(_, due)| due.at).min()?;
        if now < self.not_before || now < first {
            return Some(first.max(self.not_before));
        }
        let ready = self
            .acts
            .iter_mut()
            .filter(|(_, due)| !due.is_asked && due.at <= now);
        let turns = &self.turns;
        let (id, due) = ready.min_by_key(|(id, due)| (turns.get(&due.session), due.at, **id))?;
        self.turns.insert(due.session, now);
        self.not_before = now + self.pace.spacing;
        let engine = self.engine.upgrade();
        let policy = engine.and_then(|engine| engine.policy_of_session(due.session));
        // Whose agent is gone waits no more, as soon as the recorder has seen that.
        if let (Some(waiting), Some(policy)) = (self.book.waiting(*id), policy) {
            due.is_asked = true;
            let (post, asked) = (self.post.clone(), Asked { waiting, policy });
            self.under_way.spawn(async move {
                let outcome = post.ask(&asked).await;
                (asked, outcome)
            });
        } else {
            due.at = now + self.pace.longest_wait;
        }
        Some(self.not_before)
    }

    async fn take(&mut self, asked: &Asked, outcome: Result<Answer, Failure>) {
        let id = asked.waiting.id;
        let again = match outcome {
            Ok(answer) => {
                self.failures = 0;
                match self.answered(asked, answer).await {
                    Ok(()) => {
                        self.recovered();
                        self.post.config().poll.0
                    }
                    // Such a grant cannot be given.
                    Err(error) => {
                        self.state.send_modify(|state| state.invalid += 1);
                        self.failed(id, &error.line())
                    }
                }
            }
            Err(failure @ Failure::Invalid(_)) => {
                self.failures = 0;
                self.state.send_modify(|state| state.invalid += 1);
                self.failed(id, &failure.text())
            }
            Err(failure @ Failure::Unanswered(_)) => {
                self.state.send_modify(|state| state.failed += 1);
                self.tell(&failure.text());
                self.failures = self.failures.saturating_add(1);
                let wait = self.wait(self.failures);
                self.not_before = Instant::now() + wait;
                wait
            }
        };
        if let Some(due) = self.acts.get_mut(&id) {
            due.is_asked = false;
            due.at = Instant::now() + again;
        }
    }

    /// What an answer that counts leads to.
    async fn answered(&self, asked: &Asked, answer: Answer) -> Result<(), SessionError> {
        let Some(engine) = self.engine.upgrade() else {
            return Ok(());
        };
        let (id, key) = (asked.waiting.id, asked.waiting.key());
        let is_open = |it: &Waiting| it.denied_by.is_none() && it.key() == key;
        let by = |by: Option<String>| {
            let host = self.post.config().url.host();
            match by {
                Some(by) => format!("webhook {host} ({by})"),
                None => format!("webhook {host}"),
            }
        };
        let (outcome, granted) = match answer {
            Answer::Pending => {
                self.state.send_modify(|state| state.pending += 1);
                return Ok(());
            }
            Answer::Grant { scope, by: who } => {
                let granted = engine.approve_if(id, is_open, scope, &by(who)).await;
                (granted.map(|_| ()), true)
            }
            Answer::Deny { by: who } => {
                let denied = engine.refuse_if(id, is_open, &by(who)).await;
                (denied.map(|_| ()), false)
            }
        };
        match outcome {
            Ok(()) => self.state.send_modify(|state| {
                state.granted += u64::from(granted);
                state.denied += u64::from(!granted);
            }),
            Err(error) if self.book.waiting(id).is_some_and(|it| is_open(&it)) => {
                return Err(error);
            }
            // Somebody else answered meanwhile, or the session is over.
            Err(error) => {
                self.state.send_modify(|state| state.late += 1);
                tracing::info!("the webhook's answer about {id} came too late: {error}");
            }
        }
        Ok(())
    }

    /// An answer about one act led to nothing; how long it is not asked about again.
    fn failed(&mut self, id: u64, what: &str) -> Duration {
        self.tell(what);
        let failures = self.acts.get_mut(&id).map_or(1, |due| {
            due.failures = due.failures.saturating_add(1);
            due.failures
        });
        self.wait(failures)
    }

    fn wait(&self, failures: u32) -> Duration {
        pause(failures, self.pace.first_wait, self.pace.longest_wait)
    }

    fn recovered(&mut self) {
        if self.state.borrow().trouble.is_some() {
            tracing::info!("the webhook answers again");
            self.state
                .send_modify(|state| (state.trouble, state.trouble_at) = (None, None));
        }
        self.told = None;
    }

    /// Says what is wrong: in the log of the daemon, where nothing is said again and again, and to those who ask.
    fn tell(&mut self, what: &str) {
        // A receiver's certificate may have names of its choice.
        let what = &*printable(what);
        self.state.send_modify(|state| {
            state.trouble = Some(what.to_owned());
            state.trouble_at = Some(jiff::Timestamp::now().to_string());
        });
        let is_old =
            |(before, at): &(String, Instant)| at.elapsed() < TELL[usize::from(before != what)];
        if !self.told.as_ref().is_some_and(is_old) {
            tracing::warn!("the webhook at {}: {what}", self.state.borrow().to);
            self.told = Some((what.to_owned(), Instant::now()));
        }
    }
}
