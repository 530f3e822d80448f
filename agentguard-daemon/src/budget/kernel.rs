//! What kernel programs charge: the limits that they are told, and the counts that they have.
//!
//! The kernel never goes beyond what the disk has as spent, so that no crash gives a unit back: a ceiling in the
//! present window, a chunk in any later one. While agents run, the count is the kernel's own; it is taken over here
//! to be shown, acted on and written down. A meter that begins again has a new number (its epoch) and begins with
//! what the ledger knows.

use agentguard_common::budget::{CELLS, Charge, LIVE, Limits, MAX_METERS, Meter, PER_AGENT};

use super::account::{Entry, Slot};
use super::clock::Time;
use super::ledger::Ledger;
use super::state::StateError;
use crate::policy::limits::Budget;

/// What the kernel is to be told of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charged {
    /// For its programs.
    pub limits: Limits,
    /// The budgets behind the numbers of meters in records, by index in what was asked about.
    pub meters: Vec<(u16, usize)>,
    /// Budgets that are spent and deny the network.
    pub cut: Vec<usize>,
}

/// Nothing to charge.
fn empty(time: &Time) -> Limits {
    Limits {
        offset: time.since_boot(),
        count: 0,
        reserved: 0,
        charges: [Charge::default(); PER_AGENT],
    }
}

impl Ledger {
    /// What the kernel is to be told about the budgets of an agent. When it returns, the disk has everything that
    /// this permits.
    pub fn charged(
        &self,
        account: &str,
        session: u32,
        budgets: &[Budget],
    ) -> Result<Charged, StateError> {
        if self.give_slots(account, session, budgets)? {
            self.checkpoint()?;
        }
        let (inner, now) = self.locked();
        let mut charged = Charged {
            limits: empty(&inner.time),
            meters: Vec::new(),
            cut: Vec::new(),
        };
        let account = inner.accounts.get(account);
        for (index, budget) in budgets.iter().enumerate() {
            let entry = account.and_then(|it| it.find(budget, session));
            let Some((entry, slot)) = entry.and_then(|it| Some((it, it.kernel?))) else {
                continue;
            };
            charged.meters.push((slot.index as u16, index));
            if budget.quantity.kinds() != 0 {
                charged.add(charge(budget, entry, slot, now));
            }
            if budget.closes_network() && entry.is_spent(budget, now) {
                charged.cut.push(index);
                charged.add(Charge {
                    kinds: budget.closes(),
                    meter: slot.index,
                    ..Charge::default()
                });
            }
        }
        Ok(charged)
    }

    /// Gives every budget that the kernel must know a meter; whether the file must be written before that is told.
    fn give_slots(&self, name: &str, session: u32, budgets: &[Budget]) -> Result<bool, StateError> {
        let (mut inner, now) = self.locked();
        if let Some(error) = &inner.broken {
            return Err(error.clone());
        }
        let doubt = inner.doubt;
        let mut taken = vec![false; MAX_METERS as usize];
        let entries = inner.accounts.values().flat_map(|it| it.entries.values());
        for slot in entries.filter_map(|it| it.kernel) {
            taken[slot.index as usize % MAX_METERS as usize] = true;
        }
        let mut epoch = inner.epoch.max(now);
        let account = inner.accounts.entry(name.to_owned()).or_default();
        let mut late = false;
        for budget in budgets.iter().filter(|it| it.is_for_kernel()) {
            let entry = account.entry(budget, session, doubt);
            let chunk = entry.chunk(entry.limit);
            if entry.kernel.is_none() {
                let Some(free) = taken.iter().position(|it| !it) else {
                    return Err(StateError::Full);
                };
                taken[free] = true;
                epoch += 1;
                entry.kernel = Some(Slot {
                    index: free as u32,
                    epoch,
                    base: entry.meter.spent(now),
                    base_window: entry.meter.part_number(now),
                    chunk,
                });
                late = true;
            }
            if let Some(slot) = &mut entry.kernel
                && slot.chunk < chunk
            {
                slot.chunk = chunk;
                late = true;
            }
            late |= !entry.meter.is_short() && entry.kernel_ceiling(now) > entry.ceiling_now(now);
        }
        inner.epoch = epoch;
        Ok(late)
    }

    /// Takes over what the kernel has counted for an account.
    pub fn take_over(&self, name: &str, mut read: impl FnMut(u32) -> Option<Meter>) {
        let (mut inner, _) = self.locked();
        let mut changed = false;
        let Some(account) = inner.accounts.get_mut(name) else {
            return;
        };
        for entry in account.entries.values_mut() {
            changed |= entry.learn(&mut read).unwrap_or(false);
        }
        inner.changed |= changed;
    }

    /// After a start: meters that count still are exact, whatever the file has; of all others what the file has is
    /// what is known, and they begin again. Accounts that no agent has keep no meters.
    pub fn adopt(&self, live: &[&str], mut read: impl FnMut(u32) -> Option<Meter>) {
        let (mut inner, _) = self.locked();
        let (doubt, mut epoch) = (inner.doubt.is_some(), inner.epoch);
        for (name, account) in &mut inner.accounts {
            let live = live.contains(&name.as_str());
            account.entries.retain(|_, entry| {
                let Some(slot) = entry.kernel else {
                    return true;
                };
                epoch = epoch.max(slot.epoch);
                let known = entry.learn(&mut read).is_some();
                entry.kernel = entry.kernel.filter(|_| known && live);
                // Short windows after a crash are spent: one that is made anew is.
                known || !(doubt && entry.meter.is_short())
            });
        }
        inner.epoch = epoch;
        inner.changed = true;
    }

    /// Nobody charges an account in the kernel any more.
    pub fn give_back_slots(&self, name: &str) {
        let (mut inner, _) = self.locked();
        for entry in inner
            .accounts
            .get_mut(name)
            .iter_mut()
            .flat_map(|it| it.entries.values_mut())
        {
            entry.kernel = None;
        }
        inner.changed = true;
    }
}

impl Charged {
    /// There is room: a policy with more is refused when it is read.
    fn add(&mut self, charge: Charge) {
        if let Some(place) = self.limits.charges.get_mut(self.limits.count as usize) {
            *place = charge;
            self.limits.count += 1;
        }
    }
}

fn charge(budget: &Budget, entry: &Entry, slot: Slot, now: u64) -> Charge {
    let short = entry.meter.is_short();
    Charge {
        kinds: budget.quantity.kinds(),
        meter: slot.index,
        marks: budget.marks,
        sliding: u32::from(entry.meter.is_sliding()),
        length: entry.meter.part_length(),
        limit: entry.limit_of(budget, now),
        ceiling: if short { u64::MAX } else { entry.ceiling },
        ceiling_window: entry.window,
        chunk: if short { u64::MAX } else { slot.chunk },
        epoch: slot.epoch,
        base: slot.base,
        base_window: slot.base_window,
    }
}

impl Entry {
    /// Whether there is no room for more, or not for what was refused last: a packet may be too large for what is left.
    fn is_spent(&self, budget: &Budget, now: u64) -> bool {
        let (spent, limit) = (self.meter.spent(now), self.limit_of(budget, now));
        spent >= limit || self.refused > limit - spent
    }

    /// Takes over what the kernel has; whether that is news. None: it has nothing of this count.
    fn learn(&mut self, read: &mut impl FnMut(u32) -> Option<Meter>) -> Option<bool> {
        let slot = self.kernel?;
        let found = read(slot.index).filter(|it| it.epoch == slot.epoch)?;
        let before = self.meter.clone();
        self.refused = u64::from(found.refused);
        if self.meter.is_sliding() {
            let first = found.window.saturating_sub(LIVE - 1);
            let parts = first..=found.window;
            self.meter
                .replace(parts.map(|part| (part, found.cells[part as usize % CELLS])));
        } else {
            self.meter.replace([(found.window, found.sum)].into_iter());
        }
        Some(before != self.meter)
    }
}
