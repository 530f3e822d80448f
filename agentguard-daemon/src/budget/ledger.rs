//! Reserve, settle, release: the one place where a budget is charged.
//!
//! A reservation counts as spent until it is settled. One that is dropped is settled as a whole: what is not
//! known to be unused was used.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::fcntl::Flock;
use tokio::sync::mpsc::UnboundedSender;

use super::Amounts;
use super::account::{Account, Grant, key};
use super::clock::{Clock, Time};
use super::state::{self, Saved, StateError};
use crate::policy::limits::{AtLimit, Budget, Quantity};

/// Something that the log has to say about a budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The session whose act it was.
    pub session: u32,
    /// The budget's id.
    pub budget: String,
    /// In words.
    pub what: String,
}

/// What is refused, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The cause.
    pub why: Why,
    /// In words, for people and agents.
    pub message: String,
    /// When it may be tried again; none if not before an operator did something.
    pub retry_after: Option<Duration>,
}

/// Causes of a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// A budget is spent.
    Spent {
        /// Its id.
        budget: String,
        /// Why it is there.
        reason: Option<String>,
        /// What happens besides.
        at_limit: AtLimit,
    },
    /// The ledger cannot be read or written.
    Ledger,
}

/// The state behind the lock.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) time: Time,
    pub(super) accounts: BTreeMap<String, Account>,
    pub(super) changed: bool,
    /// Whether the file says that somebody is at work.
    written: bool,
    /// When we took over from somebody who did not come to an end.
    pub(super) doubt: Option<u64>,
    /// The newest [`super::account::Slot::epoch`].
    pub(super) epoch: u64,
    /// Why nothing is granted.
    pub(super) broken: Option<StateError>,
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    inner: Mutex<Inner>,
    /// Held over each writing of the file.
    writer: Mutex<()>,
    /// The file; none where nobody takes over what is counted.
    path: Option<PathBuf>,
    /// While it is there, nobody else writes the file.
    hold: Option<Flock<File>>,
    clock: Box<dyn Clock>,
    events: UnboundedSender<Event>,
}

/// What was reserved for one call.
#[derive(Debug)]
pub struct Reservation {
    ledger: Arc<Ledger>,
    account: String,
    session: u32,
    budgets: Vec<Budget>,
    amounts: Amounts,
    settled: bool,
}

/// What an attempt without any writing came to.
enum Attempt {
    Granted,
    Refused(Refusal),
    /// Only after the file was written.
    Later,
}

fn guard<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    /// Opens the ledger of a state folder. One that cannot be read is open too, and grants nothing.
    pub fn open(folder: &Path, clock: Box<dyn Clock>, events: UnboundedSender<Event>) -> Arc<Self> {
        let path = folder.join(state::FILE);
        let (hold, loaded) = match state::hold(&path) {
            Ok(hold) => (Some(hold), state::load(&path)),
            Err(error) => (None, Err(error)),
        };
        let (inner, fresh) = match loaded {
            Ok(None) => (Inner::empty(&*clock), true),
            Ok(Some(saved)) => (Inner::of(saved, &*clock), false),
            Err(error) => {
                let mut inner = Inner::empty(&*clock);
                inner.broken = Some(error);
                (inner, false)
            }
        };
        let ledger = Self::of(inner, Some(path), hold, clock, events);
        // From here on a crash must count. (A ledger that has nothing in it yet is written with its first charge.)
        if !fresh && guard(&ledger.inner).broken.is_none() {
            let written = ledger.checkpoint();
            guard(&ledger.inner).broken = written.err();
        }
        ledger
    }

    /// A ledger of one `agentguard run`, while another process has the file: it ends with the sessions that it counts
    /// for. Good for budgets that are [`Budget::is_of_now`]. Of the file it takes how late it ever was.
    pub fn for_one_run(
        folder: &Path,
        clock: Box<dyn Clock>,
        events: UnboundedSender<Event>,
    ) -> Arc<Self> {
        let mut inner = Inner::empty(&*clock);
        match state::load(&folder.join(state::FILE)) {
            Ok(None) => {}
            Ok(Some(saved)) => inner.time = saved.time.resume(&*clock),
            Err(error) => inner.broken = Some(error),
        }
        Self::of(inner, None, None, clock, events)
    }

    fn of(
        inner: Inner,
        path: Option<PathBuf>,
        hold: Option<Flock<File>>,
        clock: Box<dyn Clock>,
        events: UnboundedSender<Event>,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(inner),
            writer: Mutex::new(()),
            path,
            hold,
            clock,
            events,
        })
    }

    /// Whether what is counted can be kept beyond this process.
    pub fn keeps(&self) -> bool {
        self.path.is_some()
    }

    /// Why nothing is granted, if so.
    pub fn broken(&self) -> Option<StateError> {
        guard(&self.inner).broken.clone()
    }

    /// The state, with its time at now.
    pub(super) fn locked(&self) -> (MutexGuard<'_, Inner>, u64) {
        let mut inner = guard(&self.inner);
        let now = inner.time.step(&self.clock.read());
        (inner, now)
    }

    /// The latest that the wall clock can be, in nanoseconds since 1970, and what it says now.
    pub fn wall(&self) -> (u64, u64) {
        let reading = self.clock.read();
        let mut inner = guard(&self.inner);
        inner.time.step(&reading);
        (inner.time.wall(), reading.wall)
    }

    pub(super) fn tell(&self, session: u32, budget: &str, what: String) {
        // Where nobody listens nobody is told: the counts hold all the same.
        let _ = self.events.send(Event {
            session,
            budget: budget.to_owned(),
            what,
        });
    }

    /// Reserves at once, or says that the disk must be waited for (`None`): then [`Ledger::reserve`] does.
    pub fn try_reserve(
        self: &Arc<Self>,
        account: &str,
        session: u32,
        budgets: &[Budget],
        amounts: Amounts,
    ) -> Result<Option<Reservation>, Refusal> {
        match self.attempt(account, session, budgets, amounts) {
            Attempt::Granted => Ok(Some(self.reservation(account, session, budgets, amounts))),
            Attempt::Refused(refusal) => Err(refusal),
            Attempt::Later => Ok(None),
        }
    }

    /// Reserves what a call may take at most, from all of the budgets or from none. May wait for the disk.
    pub fn reserve(
        self: &Arc<Self>,
        account: &str,
        session: u32,
        budgets: &[Budget],
        amounts: Amounts,
    ) -> Result<Reservation, Refusal> {
        loop {
            if let Some(granted) = self.try_reserve(account, session, budgets, amounts)? {
                return Ok(granted);
            }
            let writing = guard(&self.writer);
            // Whoever had the pen before may have written for us.
            if let Some(granted) = self.try_reserve(account, session, budgets, amounts)? {
                return Ok(granted);
            }
            let need = budgets
                .iter()
                .map(|it| (key(it, session), amounts.of(it.quantity)));
            let written = self.write(&writing, Some(&(account, need.collect())), false);
            written.map_err(|error| Refusal::of_ledger(&error))?;
        }
    }

    fn reservation(
        self: &Arc<Self>,
        account: &str,
        session: u32,
        budgets: &[Budget],
        amounts: Amounts,
    ) -> Reservation {
        Reservation {
            ledger: self.clone(),
            account: account.to_owned(),
            session,
            budgets: budgets.to_vec(),
            amounts,
            settled: false,
        }
    }

    fn attempt(&self, name: &str, session: u32, budgets: &[Budget], amounts: Amounts) -> Attempt {
        let (mut inner, now) = self.locked();
        if let Some(error) = &inner.broken {
            return Attempt::Refused(Refusal::of_ledger(error));
        }
        let (doubt, mut later) = (inner.doubt, !inner.written);
        let account = inner.accounts.entry(name.to_owned()).or_default();
        for budget in budgets {
            let entry = account.entry(budget, session, doubt);
            let taken = entry.taken(now).saturating_add(amounts.of(budget.quantity));
            let limit = entry.limit_of(budget, now);
            if taken > limit {
                let refusal = Refusal::of_budget(budget, entry, amounts, now);
                if budget.at_limit != AtLimit::Deny {
                    account.tripped.insert(budget.id.clone());
                }
                return Attempt::Refused(refusal);
            }
            later |= taken > entry.ceiling_now(now);
        }
        if later {
            return Attempt::Later;
        }
        for (name, amount) in charges(budgets, session, &amounts) {
            let Some(entry) = account.entries.get_mut(&name) else {
                continue;
            };
            // A call is a call as soon as it is let through; the rest is known when it is over.
            if name.starts_with(Quantity::Requests.name()) {
                entry.meter.add(now, amount);
            } else {
                entry.reserved = entry.reserved.saturating_add(amount);
            }
        }
        inner.changed = true;
        self.warn(&mut inner, name, session, budgets, now);
        Attempt::Granted
    }

    fn warn(&self, inner: &mut Inner, name: &str, session: u32, budgets: &[Budget], now: u64) {
        let Some(account) = inner.accounts.get_mut(name) else {
            return;
        };
        for budget in budgets {
            if let Some(percent) = account.warning(budget, session, now) {
                let what = format!("{percent} % of {} are spent", budget.text());
                self.tell(session, &budget.id, what);
            }
        }
    }

    /// What is settled is spent in the window of this moment.
    fn settle(&self, reservation: &Reservation, spent: &Amounts) {
        let (mut inner, now) = self.locked();
        inner.changed = true;
        let Some(account) = inner.accounts.get_mut(&reservation.account) else {
            return;
        };
        let (budgets, session) = (&reservation.budgets, reservation.session);
        let actual: BTreeMap<_, _> = charges(budgets, session, spent).collect();
        let mut late = false;
        for (name, reserved) in charges(budgets, session, &reservation.amounts) {
            let Some(entry) = account.entries.get_mut(&name) else {
                continue;
            };
            if name.starts_with(Quantity::Requests.name()) {
                continue;
            }
            entry.reserved = entry.reserved.saturating_sub(reserved);
            entry
                .meter
                .add(now, actual.get(&name).copied().unwrap_or(0));
            late |= entry.taken(now) > entry.ceiling_now(now);
        }
        self.warn(&mut inner, &reservation.account, session, budgets, now);
        drop(inner);
        if late && let Err(error) = self.checkpoint() {
            tracing::error!("{error}");
        }
    }

    /// Writes what changed, and takes ceilings back to what is needed. May wait for the disk.
    pub fn checkpoint(&self) -> Result<(), StateError> {
        let writing = guard(&self.writer);
        self.write(&writing, None, false)
    }

    /// Whether there is something to write.
    pub fn has_changed(&self) -> bool {
        guard(&self.inner).changed
    }

    /// The end: from the next start on what is spent is exact.
    pub fn close(&self) -> Result<(), StateError> {
        let writing = guard(&self.writer);
        let there = self.path.as_ref().is_some_and(|path| path.exists());
        if guard(&self.inner).accounts.is_empty() && !there {
            return Ok(());
        }
        self.write(&writing, None, true)
    }

    /// With the pen in hand. `need` is what one account wants to take beyond its ceilings.
    fn write(
        &self,
        _writing: &MutexGuard<'_, ()>,
        need: Option<&(&str, BTreeMap<String, u64>)>,
        clean: bool,
    ) -> Result<(), StateError> {
        let (saved, ceilings) = {
            let (mut inner, now) = self.locked();
            if let Some(error) = &inner.broken {
                return Err(error.clone());
            }
            let mut ceilings = Vec::new();
            let mut saved = inner.accounts.clone();
            for (name, account) in &mut inner.accounts {
                for (key, entry) in &mut account.entries {
                    let more = match need {
                        Some((who, need)) if who == name => need.get(key).copied().unwrap_or(0),
                        _ => 0,
                    };
                    let next = if clean && entry.kernel.is_none() {
                        entry.taken(now)
                    } else {
                        entry.next_ceiling(now, more)
                    };
                    // Until the disk has it, only what both the old file and the new one allow.
                    entry.ceiling = entry.ceiling_now(now).min(next);
                    entry.window = entry.meter.window(now);
                    ceilings.push((name.clone(), key.clone(), next, entry.window));
                    if let Some(copy) = saved.get_mut(name).and_then(|it| it.entries.get_mut(key)) {
                        (copy.ceiling, copy.window) = (next, entry.window);
                    }
                }
            }
            for account in saved.values_mut() {
                account.entries.retain(|_, entry| {
                    entry.ceiling > 0 || !entry.grants.is_empty() || entry.kernel.is_some()
                });
            }
            saved.retain(|_, account| !account.is_empty());
            inner.changed = false;
            let entries = inner.accounts.values().flat_map(|it| it.entries.values());
            let clean = clean && entries.into_iter().all(|it| it.reserved == 0);
            (Saved::new(clean, inner.time.clone(), saved), ceilings)
        };
        let written = match &self.path {
            Some(path) => state::save(path, &saved),
            None => Ok(()),
        };
        let (mut inner, _) = self.locked();
        if let Err(error) = written {
            inner.changed = true;
            return Err(error);
        }
        inner.written = !clean;
        for (name, key, ceiling, window) in ceilings {
            let account = inner.accounts.get_mut(&name);
            if let Some(entry) = account.and_then(|it| it.entries.get_mut(&key))
                && entry.window == window
            {
                entry.ceiling = ceiling;
            }
        }
        Ok(())
    }

    /// An operator gives more of a budget: until its window is over, or for as long as it lasts.
    pub fn grant(
        &self,
        name: &str,
        session: u32,
        budget: &Budget,
        amount: u64,
    ) -> Result<(), StateError> {
        {
            let (mut inner, now) = self.locked();
            if let Some(error) = &inner.broken {
                return Err(error.clone());
            }
            let doubt = inner.doubt;
            let account = inner.accounts.entry(name.to_owned()).or_default();
            let entry = account.entry(budget, session, doubt);
            let until = match (entry.meter.length(), budget.sliding) {
                (Some(length), true) => Some(now.saturating_add(length)),
                (Some(_), false) => entry.meter.resets(now),
                (None, _) => None,
            };
            entry.grants.push(Grant { amount, until });
            account.tripped.remove(&budget.id);
            account.warned.remove(&format!("{}#{session}", budget.id));
        }
        self.checkpoint()
    }

    /// An operator forgets what was spent: of one account, or of all. What is reserved stays reserved.
    pub fn reset(&self, name: Option<&str>) -> Result<(), StateError> {
        if name.is_none()
            && let Some(error) = self.broken()
            && let (Some(path), Some(_)) = (&self.path, &self.hold)
        {
            tracing::warn!("{error}");
            let _writing = guard(&self.writer);
            if let Some(aside) = state::set_aside(path)? {
                tracing::warn!("the damaged ledger is {} now", aside.display());
            }
            *guard(&self.inner) = Inner::empty(&*self.clock);
        }
        {
            let (mut inner, now) = self.locked();
            inner.doubt = None;
            for (_, account) in inner
                .accounts
                .iter_mut()
                .filter(|(account, _)| name.is_none_or(|name| name == *account))
            {
                for entry in account.entries.values_mut() {
                    *entry = entry.emptied();
                }
                account.refresh(now);
                account.tripped.clear();
                account.warned.clear();
            }
        }
        self.checkpoint()
    }

    /// An operator says that the wall clock is right now, although it was later once.
    pub fn believe_clock(&self) -> Result<(), StateError> {
        guard(&self.inner).time.believe(&self.clock.read());
        self.checkpoint()
    }

    /// Forgets sessions that are not there any more.
    pub fn keep_sessions(&self, live: &[u32]) {
        let (mut inner, now) = self.locked();
        for account in inner.accounts.values_mut() {
            let gone: Vec<u32> = account
                .sessions
                .keys()
                .copied()
                .chain(account.entries.values().filter_map(|it| it.session))
                .filter(|session| !live.contains(session))
                .collect();
            for session in gone {
                account.end(session);
            }
            account.prune(now);
        }
        inner.accounts.retain(|_, account| !account.is_empty());
        inner.changed = true;
    }
}

/// What each meter is charged, once for all budgets on it.
fn charges<'a>(
    budgets: &'a [Budget],
    session: u32,
    amounts: &'a Amounts,
) -> impl Iterator<Item = (String, u64)> + use<'a> {
    let mut all: BTreeMap<String, u64> = BTreeMap::new();
    for budget in budgets {
        all.insert(key(budget, session), amounts.of(budget.quantity));
    }
    all.into_iter()
}

impl Inner {
    fn empty(clock: &dyn Clock) -> Self {
        Self {
            time: Time::begin(clock),
            accounts: BTreeMap::new(),
            changed: false,
            written: false,
            doubt: None,
            epoch: 0,
            broken: None,
        }
    }

    /// What one before us wrote. If it did not come to its end, everything below its ceilings is spent.
    fn of(saved: Saved, clock: &dyn Clock) -> Self {
        let mut time = saved.time.resume(clock);
        let now = time.step(&clock.read());
        let mut accounts = saved.accounts;
        let doubt = (!saved.clean).then_some(now);
        for account in accounts.values_mut() {
            if doubt.is_some() {
                account
                    .entries
                    .retain(|_, entry| !entry.meter.is_short() || entry.kernel.is_some());
            }
            for entry in account.entries.values_mut() {
                // Where the kernel counts it goes on without us: what it really has is seen later.
                if doubt.is_some() || entry.kernel.is_some() {
                    entry.suspect(now);
                }
                // What the file has is not a ceiling of ours before it is written again.
                entry.ceiling = 0;
            }
        }
        Self {
            time,
            accounts,
            changed: true,
            written: false,
            doubt,
            epoch: 0,
            broken: None,
        }
    }
}

impl Refusal {
    fn of_ledger(error: &StateError) -> Self {
        Self {
            why: Why::Ledger,
            message: error.to_string(),
            retry_after: None,
        }
    }

    fn of_budget(
        budget: &Budget,
        entry: &super::account::Entry,
        amounts: Amounts,
        now: u64,
    ) -> Self {
        let quantity = budget.quantity;
        let (limit, ask) = (entry.limit_of(budget, now), amounts.of(quantity));
        let spent = entry.meter.spent(now);
        let free = limit
            .checked_sub(ask.saturating_add(entry.reserved))
            .and_then(|most| entry.meter.falls_to(now, most));
        let wait = free.map(|at| Duration::from_nanos(at.saturating_sub(now)));
        let mut message = format!(
            "the budget `{}` ({}) does not permit this call: {} spent, {} reserved, this call may take {}",
            budget.id,
            budget.text(),
            quantity.text(spent),
            quantity.text(entry.reserved),
            quantity.text(ask),
        );
        if let Some(reason) = &budget.reason {
            message = format!("{message}. {reason}");
        }
        let wait = wait.filter(|wait| !wait.is_zero()).or({
            // Reservations are settled before long.
            (entry.reserved > 0 && ask <= limit).then_some(Duration::from_secs(1))
        });
        Self {
            why: Why::Spent {
                budget: budget.id.clone(),
                reason: budget.reason.clone(),
                at_limit: budget.at_limit,
            },
            message,
            retry_after: wait,
        }
    }
}

impl Reservation {
    /// What is reserved.
    pub fn amounts(&self) -> Amounts {
        self.amounts
    }

    /// The call is over, and took this. May wait for the disk, where it took more than was reserved.
    pub fn settle(mut self, spent: &Amounts) {
        self.settled = true;
        self.ledger.settle(&self, spent);
    }

    /// The call never went out.
    pub fn release(self) {
        self.settle(&Amounts::default());
    }
}

impl Drop for Reservation {
    /// Nobody said what it took.
    fn drop(&mut self) {
        if !self.settled {
            self.ledger.settle(self, &self.amounts);
        }
    }
}
