//! One account: what its meters have, what is reserved, what was granted on top.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::meter::Meter;
use crate::policy::limits::{Budget, Per};

/// More than the limit, given by an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// How much.
    pub amount: u64,
    /// Until when, in the ledger's time; none for as long as the meter lasts.
    pub until: Option<u64>,
}

/// Actions and bytes that are given out to the kernel at a time at least.
const LEAST_ACTIONS: u64 = 10_000;
const LEAST_BYTES: u64 = 64 << 20;

/// A meter of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slot {
    /// Its number.
    pub index: u32,
    /// Since when it counts this: no other count has that number.
    pub epoch: u64,
    /// What had been spent when it began.
    pub base: u64,
    /// In which window.
    pub base_window: u64,
    /// How far the kernel may go in a window that the file does not know yet.
    pub chunk: u64,
}

/// A meter with what is not spent yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What was spent.
    pub meter: Meter,
    /// The session that it belongs to, where it belongs to one.
    pub session: Option<u32>,
    /// What an operator gave on top of the limit.
    pub grants: Vec<Grant>,
    /// Spent and reserved may rise to this, in the window `window`, before the file must be written again; what
    /// a crash takes for spent. Short windows have none: a crash takes all of them for spent.
    pub ceiling: u64,
    /// The window that the ceiling is for.
    pub window: u64,
    /// The meter in the kernel that counts it, where one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Slot>,
    /// What the kernel was to charge last, where it refused that; else 0.
    #[serde(skip)]
    pub refused: u64,
    /// Whether it counts bytes of packets.
    #[serde(skip)]
    pub of_packets: bool,
    /// Reserved and not settled.
    #[serde(skip)]
    pub reserved: u64,
    /// The highest limit that a budget on this meter had.
    #[serde(skip)]
    pub limit: u64,
}

impl Entry {
    fn new(budget: &Budget, session: u32) -> Self {
        Self {
            meter: Meter::new(budget.per, budget.sliding),
            session: (budget.per == Per::Session).then_some(session),
            grants: Vec::new(),
            ceiling: 0,
            window: 0,
            kernel: None,
            refused: 0,
            of_packets: budget.quantity.is_of_packets(),
            reserved: 0,
            limit: budget.limit,
        }
    }

    /// Spent and reserved.
    pub fn taken(&self, now: u64) -> u64 {
        self.meter.spent(now).saturating_add(self.reserved)
    }

    /// What was granted and still holds.
    pub fn granted(&self, now: u64) -> u64 {
        self.grants
            .iter()
            .filter(|grant| grant.until.is_none_or(|until| until > now))
            .fold(0, |sum: u64, grant| sum.saturating_add(grant.amount))
    }

    /// The limit of a budget with what was granted.
    pub fn limit_of(&self, budget: &Budget, now: u64) -> u64 {
        budget.limit.saturating_add(self.granted(now))
    }

    /// How far it may rise now without any writing.
    pub fn ceiling_now(&self, now: u64) -> u64 {
        if self.meter.is_short() {
            u64::MAX
        } else if self.window == self.meter.window(now) {
            self.ceiling
        } else {
            0
        }
    }

    /// How far it may rise after the next writing: a hundredth of the limit more than is taken.
    pub fn next_ceiling(&self, now: u64, more: u64) -> u64 {
        if self.kernel.is_some() {
            return self.kernel_ceiling(now);
        }
        let taken = self.taken(now).saturating_add(more);
        let limit = self.limit.saturating_add(self.granted(now));
        taken.saturating_add(limit / 100).min(limit.max(taken))
    }

    /// How far the kernel may go without us: small budgets are given out as a whole.
    pub fn chunk(&self, limit: u64) -> u64 {
        let least = if self.of_packets {
            LEAST_BYTES
        } else {
            LEAST_ACTIONS
        };
        (limit / 4).max(limit.min(least))
    }

    /// The same where the kernel counts: it goes on without us for a while, so the steps are larger, and none is
    /// taken back within a window.
    pub fn kernel_ceiling(&self, now: u64) -> u64 {
        let (taken, present) = (self.taken(now), self.ceiling_now(now));
        let limit = self.limit.saturating_add(self.granted(now));
        let chunk = self.chunk(limit);
        if present >= limit.min(taken.saturating_add(chunk / 2)) && present > 0 {
            return present;
        }
        taken
            .saturating_add(chunk)
            .min(limit.max(taken))
            .max(present)
    }

    /// After somebody who did not come to an end: everything that may have been spent is.
    pub fn suspect(&mut self, now: u64) {
        if self.window != self.meter.window(now) {
            // The kernel may have gone on in a window that the file knew nothing of.
            self.meter
                .add(now, self.kernel.map_or(0, |slot| slot.chunk));
            return;
        }
        let spent = self.meter.spent(now);
        if self.ceiling > spent {
            self.meter.add(now, self.ceiling - spent);
        }
    }
}

/// What the timekeeper saw last of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// In the ledger's time.
    pub at: u64,
    /// When it was seen first, in the ledger's time.
    pub since: u64,
    /// Processor time of its cgroup, in microseconds.
    pub cpu: u64,
    /// When it last did something, in the ledger's time.
    pub busy: u64,
    /// Its refusals.
    #[serde(default)]
    pub denied: u64,
    /// Whether its schedule froze it.
    pub rests: bool,
}

/// One account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// By [`key`].
    pub entries: BTreeMap<String, Entry>,
    /// Sessions that use it now.
    pub sessions: BTreeMap<u32, Seen>,
    /// The highest warning that was given for a budget, in per cent.
    pub warned: BTreeMap<String, u8>,
    /// Budgets that refused something, and whose action was not taken yet.
    #[serde(skip)]
    pub tripped: BTreeSet<String>,
}

/// The name of a meter in its account.
pub fn key(budget: &Budget, session: u32) -> String {
    match budget.per {
        Per::Session => format!("{}#{session}", budget.meter()),
        _ => budget.meter(),
    }
}

impl Account {
    /// The entry of a budget, made if it is not there. `doubt` is when somebody ended before us who did not come
    /// to an end: a short window of that time is spent.
    pub fn entry(&mut self, budget: &Budget, session: u32, doubt: Option<u64>) -> &mut Entry {
        let entry = self.entries.entry(key(budget, session)).or_insert_with(|| {
            let mut entry = Entry::new(budget, session);
            if let Some(at) = doubt.filter(|_| entry.meter.is_short()) {
                entry.meter.add(at, budget.limit);
            }
            entry
        });
        entry.limit = entry.limit.max(budget.limit);
        entry.of_packets = budget.quantity.is_of_packets();
        entry
    }

    /// The entry of a budget, if anything was ever charged to it.
    pub fn find(&self, budget: &Budget, session: u32) -> Option<&Entry> {
        self.entries.get(&key(budget, session))
    }

    /// The next warning that is due for a budget, in per cent.
    pub fn warning(&mut self, budget: &Budget, session: u32, now: u64) -> Option<u8> {
        let entry = self.find(budget, session)?;
        let (spent, limit) = (entry.meter.spent(now), entry.limit_of(budget, now));
        let percent = u128::from(spent) * 100 / u128::from(limit.max(1));
        let reached = budget
            .warn
            .iter()
            .rev()
            .find(|it| u128::from(**it) <= percent);
        let name = format!("{}#{session}", budget.id);
        let before = self.warned.get(&name).copied().unwrap_or(0);
        let reached = reached.copied().unwrap_or(0);
        if reached == 0 {
            self.warned.remove(&name);
        } else {
            self.warned.insert(name, reached);
        }
        (reached > before).then_some(reached)
    }

    /// Forgets what no longer says anything.
    pub fn prune(&mut self, now: u64) {
        for entry in self.entries.values_mut() {
            entry
                .grants
                .retain(|it| it.until.is_none_or(|until| until > now));
        }
        self.entries.retain(|_, entry| {
            entry.reserved > 0 || !entry.meter.is_empty(now) || !entry.grants.is_empty()
        });
    }

    /// A session is over: what was counted for it alone goes, but for what is still reserved.
    pub fn end(&mut self, session: u32) {
        self.sessions.remove(&session);
        self.entries
            .retain(|_, entry| entry.session != Some(session) || entry.reserved > 0);
        let suffix = format!("#{session}");
        self.warned.retain(|name, _| !name.ends_with(&suffix));
    }

    /// Idle time begins anew.
    pub fn refresh(&mut self, now: u64) {
        for seen in self.sessions.values_mut() {
            seen.busy = now;
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.sessions.is_empty()
    }
}

impl Entry {
    /// The same with nothing spent and nothing granted.
    #[must_use]
    pub fn emptied(&self) -> Self {
        Self {
            meter: self.meter.emptied(),
            grants: Vec::new(),
            kernel: None,
            refused: 0,
            ceiling: 0,
            ..self.clone()
        }
    }
}
