//! One sink at work: it reads the log from where its receiver has come, sends, and waits if that fails.
//!
//! It must never skip a record that no operator said to leave out, send one before those before it, or stand in the way of the recorder.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::carrier::Carrier;
use super::config::SinkConfig;
use super::cursor::{self, Cursor, Position};
use super::feed::Feed;
use super::sink::{GRACE, Place};
use super::state::{Doing, Shared, SinkState};
use super::{Item, Refused, Trouble};
use crate::outbound::pause;

/// Most records of a batch.
const BATCH: usize = 512;
/// The same while the daemon ends.
const LAST_BATCH: usize = 64;
/// About the most bytes of a batch.
const BATCH_BYTES: usize = 512 << 10;
/// How often an idle sink looks for records where nobody tells it of them, and for what its receiver says of those
/// that were sent.
const POLL: Duration = Duration::from_millis(250);
/// How often it looks all the same.
const LOOK: Duration = Duration::from_secs(10);
/// How often a position is written while records are sent.
const KEEP: Duration = Duration::from_secs(1);
/// How often the same trouble is told.
const TELL: Duration = Duration::from_mins(5);

/// What an operator says to a sink.
#[derive(Debug)]
pub enum Order {
    /// Try again now.
    Retry {
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Leave out this record, if it is the one that the receiver does not take.
    Skip {
        record: u64,
        reply: oneshot::Sender<Result<(), String>>,
    },
}

/// One sink at work.
pub struct Runner {
    name: String,
    config: SinkConfig,
    place: Place,
    cursor: Cursor,
    state: Shared,
    stop: watch::Receiver<bool>,
    orders: mpsc::Receiver<Order>,
    carrier: Carrier,
    feed: Option<Feed>,
    position: Position,
    /// The position that is on the disk, and since when.
    kept: (Position, Instant),
    /// Numbers and hashes of what was handed over and is not settled.
    unsettled: VecDeque<(u64, String)>,
    /// Number and hash of the one record that the receiver did not take at the last try.
    refuses: Option<(u64, String)>,
    /// Most records of the next batch.
    most: usize,
    /// Since when the daemon is known to end.
    stopping: Option<Instant>,
    /// Failures in a row.
    failures: u32,
    told: Option<(String, Instant)>,
}

impl Runner {
    /// At work as soon as [`Self::run`] is polled.
    pub fn new(
        name: &str,
        config: &SinkConfig,
        place: &Place,
        (stop, orders): (watch::Receiver<bool>, mpsc::Receiver<Order>),
    ) -> Self {
        let (kind, to) = config.words();
        Self {
            name: name.to_owned(),
            cursor: Cursor::of(&place.state, name),
            state: Shared::new(SinkState {
                name: name.to_owned(),
                kind: kind.to_owned(),
                to,
                ..SinkState::default()
            }),
            carrier: Carrier::new(config),
            config: config.clone(),
            place: place.clone(),
            stop,
            orders,
            refuses: None,
            feed: None,
            position: Position::default(),
            kept: (Position::default(), Instant::now()),
            unsettled: VecDeque::new(),
            most: BATCH,
            stopping: None,
            failures: 0,
            told: None,
        }
    }

    /// Its state, which it goes on writing.
    pub fn state(&self) -> Shared {
        self.state.clone()
    }

    /// Works until it is told to stop.
    pub async fn run(mut self) {
        while let Err(what) = self.begin().await {
            self.tell(&what, true);
            self.state.lock().doing = Doing::Failed;
            if self.rest(self.place.longest_wait).await {
                return;
            }
        }
        loop {
            match self.turn().await {
                Ok(true) => {
                    self.recovered();
                    if self.is_late() {
                        // What is left is sent by the next daemon. That it knows how far this one came is worth more
                        // than another batch: a sink that is broken off says it twice.
                        let _ = self.carrier.settle(true).await;
                        break;
                    }
                }
                Ok(false) => {
                    self.recovered();
                    self.state.lock().doing = Doing::Idle;
                    if self.is_stopping() {
                        break;
                    }
                    // If the daemon ends meanwhile, what it wrote last is looked for once more.
                    self.idle().await;
                }
                Err(trouble) => {
                    self.advance(false).await;
                    if self.is_stopping() || self.recover(trouble).await {
                        break;
                    }
                }
            }
        }
        self.advance(true).await;
        self.state.lock().doing = Doing::Stopped;
    }

    fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Whether the daemon has been ending for so long that there is just time to end in good order.
    fn is_late(&mut self) -> bool {
        if !self.is_stopping() {
            return false;
        }
        // Short batches from now on.
        self.most = self.most.min(LAST_BATCH);
        self.stopping.get_or_insert_with(Instant::now).elapsed() >= GRACE / 2
    }

    /// Waits; whether the daemon ends.
    async fn rest(&mut self, time: Duration) -> bool {
        let stopped = self.stop.wait_for(|stop| *stop);
        tokio::time::timeout(time, stopped).await.is_ok()
    }

    /// Waits until there may be something to do.
    async fn idle(&mut self) {
        let Some(durable) = &mut self.place.durable else {
            self.rest(POLL).await;
            return;
        };
        let look = if self.unsettled.is_empty() {
            LOOK
        } else {
            POLL
        };
        let more = async {
            if durable.changed().await.is_err() {
                // The log is closed: there will be no more, and the daemon ends.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            _ = self.stop.wait_for(|stop| *stop) => {}
            () = more => {}
            () = tokio::time::sleep(look) => {}
        }
    }

    /// Finds the place to go on from.
    async fn begin(&mut self) -> Result<(), String> {
        let (cursor, log) = (self.cursor.clone(), self.place.log.clone());
        let begin = self.config.begin();
        let path = cursor.path().display().to_string();
        let outcome =
            tokio::task::spawn_blocking(move || cursor::resume(&cursor, &log, begin)).await;
        let (position, told) = outcome
            .map_err(|error| error.to_string())?
            .map_err(|error| format!("its position {path} cannot be read: {error}"))?;
        if let Some(told) = told {
            self.tell(&told, true);
        }
        {
            let mut state = self.state.lock();
            state.position = position.seq;
            state.sent_to = position.seq;
            state.missing = position.missing;
            state.rejected = position.rejected;
            state.skipped = position.skipped;
        }
        tracing::info!(
            "sink `{}` to {} goes on after record {}",
            self.name,
            self.config.words().1,
            position.seq
        );
        self.position = position;
        self.feed = Some(Feed::behind(&self.place.log, self.position.seq));
        // Where a new sink begins is decided once.
        self.keep().await;
        Ok(())
    }

    /// Sends a batch, if there is one; whether there was.
    async fn turn(&mut self) -> Result<bool, Trouble> {
        if let Some(durable) = &mut self.place.durable {
            // What is told of from here on is looked for again.
            durable.mark_unchanged();
        }
        let items = self.fetch().await?;
        if let (Some(first), Some(last)) = (items.first(), items.last()) {
            let (first, last) = (first.seq, last.seq);
            self.state.lock().doing = Doing::Sending;
            let sent = self.carrier.send(&items).await;
            if !matches!(&sent, Err(trouble) if trouble.unsent) {
                self.handed_over(first, last, items.len());
            }
            let is_one = matches!(&sent, Err(trouble) if trouble.refused == Some(Refused::Record));
            self.refuses = items
                .first()
                .filter(|_| is_one && items.len() == 1)
                .map(|item| (item.seq, item.hash.clone()));
            let told = sent?;
            self.unsettled
                .extend(items.into_iter().map(|item| (item.seq, item.hash)));
            let most = if self.is_stopping() {
                LAST_BATCH
            } else {
                BATCH
            };
            self.most = (self.most * 2).min(most);
            self.carrier.settle(false).await?;
            self.take_counts(told);
            self.advance(false).await;
            return Ok(true);
        }
        self.carrier.settle(true).await?;
        self.advance(true).await;
        Ok(false)
    }

    fn handed_over(&self, first: u64, last: u64, count: usize) {
        let mut state = self.state.lock();
        state.sent += count as u64;
        if first <= state.sent_to {
            state.repeated += state.sent_to.min(last) - first + 1;
        }
        state.sent_to = state.sent_to.max(last);
    }

    fn take_counts(&mut self, told: Option<String>) {
        let (rejected, shortened) = self.carrier.take_counts();
        self.position.rejected += rejected;
        {
            let mut state = self.state.lock();
            state.rejected = self.position.rejected;
            state.shortened += shortened;
        }
        if let Some(told) = told {
            self.tell(&told, true);
        }
    }

    /// Reads the next records on a thread of its own.
    async fn fetch(&mut self) -> Result<Vec<Item>, Trouble> {
        let mut feed = match self.feed.take() {
            Some(feed) => feed,
            None => Feed::behind(&self.place.log, self.position.seq),
        };
        let most = self.most;
        let read = tokio::task::spawn_blocking(move || {
            let items = feed.next(most, BATCH_BYTES);
            (feed, items)
        });
        let (mut feed, items) = read
            .await
            .map_err(|error| Trouble::passing(error.to_string()))?;
        let items =
            items.map_err(|error| Trouble::passing(format!("failed to read the log: {error}")))?;
        for (first, last) in feed.take_gone() {
            self.gone(first, last);
        }
        let strange = feed.take_strange();
        {
            let mut state = self.state.lock();
            state.strange += strange;
            state.newest = feed.newest().max(state.newest);
            state.lag = state.newest.saturating_sub(state.position);
        }
        if strange > 0 {
            self.tell(
                &format!("{strange} lines of the log are no records, and cannot be sent"),
                true,
            );
        }
        self.feed = Some(feed);
        Ok(items)
    }

    fn gone(&mut self, first: u64, last: u64) {
        // What is read again finds the same hole again.
        let first = first.max(self.position.gone_to + 1);
        if first > last {
            return;
        }
        self.position.gone_to = last;
        let count = last - first + 1;
        self.position.missing += count;
        self.state.lock().missing = self.position.missing;
        self.tell(
            &format!(
                "records {first} to {last} ({count}) are not in the log any more and were not sent"
            ),
            true,
        );
    }

    /// Moves the position to what is settled. It is written from time to time, or `now`.
    async fn advance(&mut self, now: bool) {
        let settled = self.carrier.settled();
        while self
            .unsettled
            .front()
            .is_some_and(|(seq, _)| *seq <= settled)
        {
            if let Some((seq, hash)) = self.unsettled.pop_front() {
                self.position.seq = seq;
                self.position.hash = hash;
            }
        }
        {
            let mut state = self.state.lock();
            state.position = self.position.seq;
            state.newest = state.newest.max(state.position);
            state.lag = state.newest.saturating_sub(state.position);
        }
        if self.kept.0 != self.position && (now || self.kept.1.elapsed() >= KEEP) {
            self.keep().await;
        }
    }

    async fn keep(&mut self) {
        let (cursor, position) = (self.cursor.clone(), self.position.clone());
        let written = tokio::task::spawn_blocking(move || cursor.write(&position)).await;
        // At the end of the daemon nobody is left to do it, or to be held up by it.
        let outcome = written.unwrap_or_else(|_| self.cursor.write(&self.position));
        match outcome {
            Ok(()) => self.kept = (self.position.clone(), Instant::now()),
            // What is sent before it is written is sent again after a restart, and not lost.
            Err(error) => self.tell(&format!("its position was not written: {error}"), true),
        }
    }

    /// Waits before the next try; whether the daemon ends.
    async fn recover(&mut self, trouble: Trouble) -> bool {
        self.feed = None;
        self.unsettled.clear();
        if trouble.too_large {
            self.most = (self.most / 2).max(1);
        }
        self.failures = self.failures.saturating_add(1);
        let wait = if trouble.too_large {
            Duration::ZERO
        } else {
            pause(
                self.failures,
                self.place.first_wait,
                self.place.longest_wait,
            )
            .max(trouble.wait.unwrap_or_default())
        };
        if trouble.refused != Some(Refused::Record) {
            self.refuses = None;
        }
        let refuses = self.refuses.as_ref().map(|it| it.0);
        {
            let mut state = self.state.lock();
            state.retries += 1;
            state.refuses = refuses;
            state.doing = if trouble.refused.is_some() {
                Doing::Refused
            } else {
                Doing::Waiting
            };
            state.next_try_at = jiff::Timestamp::now()
                .checked_add(wait)
                .ok()
                .map(|time| time.to_string());
        }
        let (answered, name) = (trouble.what, &self.name);
        let what = match refuses {
            Some(record) => format!(
                "{answered}: it does not want record {record} and is asked again; nothing after it is sent. Look at it with `agentguard audit show {record}`; `agentguard audit sinks skip {name} {record}` leaves it out"
            ),
            None if trouble.refused.is_some() => format!(
                "{answered}: it does not want record {} and is asked again; nothing is skipped, so somebody must look at it",
                self.position.seq + 1
            ),
            None => answered,
        };
        self.tell(&what, false);
        self.attend(wait).await
    }

    /// Waits before the next try, or until an operator says something; whether the daemon ends.
    async fn attend(&mut self, time: Duration) -> bool {
        let until = tokio::time::Instant::now() + time;
        loop {
            let order = tokio::select! {
                _ = self.stop.wait_for(|stop| *stop) => return true,
                () = tokio::time::sleep_until(until) => return false,
                Some(order) = self.orders.recv() => order,
            };
            let (outcome, reply) = match order {
                Order::Retry { reply } => (Ok(()), reply),
                Order::Skip { record, reply } => (self.skip(record).await, reply),
            };
            let is_done = outcome.is_ok();
            // Who asked may be gone.
            let _ = reply.send(outcome);
            if is_done {
                return false;
            }
        }
    }

    /// Leaves out the record that the receiver does not take. The disk has that before anything after it is sent.
    async fn skip(&mut self, record: u64) -> Result<(), String> {
        let Some((seq, hash)) = self.refuses.clone().filter(|it| it.0 == record) else {
            return Err(format!(
                "record {record} is not one that its receiver does not take"
            ));
        };
        let before = self.position.clone();
        self.position.seq = seq;
        self.position.hash = hash;
        self.position.skipped += 1;
        self.keep().await;
        if self.kept.0 != self.position {
            self.position = before;
            return Err(format!(
                "record {record} is not left out: its position was not written"
            ));
        }
        self.refuses = None;
        {
            let mut state = self.state.lock();
            (state.position, state.skipped) = (seq, self.position.skipped);
            state.refuses = None;
            state.lag = state.newest.saturating_sub(seq);
        }
        self.tell(
            &format!("record {record} is left out: an operator said so"),
            true,
        );
        Ok(())
    }

    /// Answers what was said about a try that went well after all.
    fn hear_late(&mut self) {
        while let Ok(order) = self.orders.try_recv() {
            let (reply, outcome) = match order {
                Order::Retry { reply } => (reply, Ok(())),
                Order::Skip { reply, .. } => {
                    let what = "its receiver took everything at the last try".to_owned();
                    (reply, Err(what))
                }
            };
            let _ = reply.send(outcome);
        }
    }

    fn recovered(&mut self) {
        self.hear_late();
        if self.failures == 0 {
            return;
        }
        tracing::info!(
            "sink `{}` is going on after {} failed tries",
            self.name,
            self.failures
        );
        self.failures = 0;
        self.told = None;
        let mut state = self.state.lock();
        (state.next_try_at, state.refuses) = (None, None);
    }

    /// Says what is wrong: in the log of the daemon, where the same is not said again and again, and to those who ask.
    fn tell(&mut self, what: &str, always: bool) {
        {
            let mut state = self.state.lock();
            state.last_error = Some(what.to_owned());
            state.last_error_at = Some(jiff::Timestamp::now().to_string());
        }
        let is_old = |(before, at): &(String, Instant)| before == what && at.elapsed() < TELL;
        if !always && self.told.as_ref().is_some_and(is_old) {
            return;
        }
        tracing::warn!("sink `{}`: {what}", self.name);
        if !always {
            self.told = Some((what.to_owned(), Instant::now()));
        }
    }
}
