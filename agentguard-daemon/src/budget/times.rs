//! Times of sessions: how long they are there, how long they compute, how long they do nothing.

use super::account::Seen;
use super::ledger::Ledger;
use crate::policy::limits::{AtLimit, Budget, Quantity};

/// What is seen of a session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sight {
    /// Processor time of its cgroup, in microseconds.
    pub cpu: u64,
    /// Whether a call of a model is under way.
    pub active: bool,
    /// Its refusals since this daemon knows it.
    pub denied: u64,
}

/// A budget that calls for an act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overrun {
    /// The budget's id.
    pub budget: String,
    /// In words.
    pub what: String,
    /// Why the budget is there.
    pub reason: Option<String>,
    /// What is to be done.
    pub at_limit: AtLimit,
}

impl Overrun {
    fn of(budget: &Budget, what: String) -> Self {
        Self {
            budget: budget.id.clone(),
            what,
            reason: budget.reason.clone(),
            at_limit: budget.at_limit,
        }
    }
}

impl Ledger {
    /// A session is over.
    pub fn end_session(&self, name: &str, session: u32) {
        let (mut inner, now) = self.locked();
        if let Some(account) = inner.accounts.get_mut(name) {
            account.end(session);
            account.prune(now);
            if account.is_empty() {
                inner.accounts.remove(name);
            }
            inner.changed = true;
        }
    }

    /// Whether the schedule froze a session, as it was told last.
    pub fn rests(&self, name: &str, session: u32) -> bool {
        let (inner, _) = self.locked();
        let account = inner.accounts.get(name);
        account
            .and_then(|it| it.sessions.get(&session))
            .is_some_and(|it| it.rests)
    }

    /// Says whether the schedule has frozen a session.
    pub fn set_rests(&self, name: &str, session: u32, rests: bool) {
        let (mut inner, _) = self.locked();
        let account = inner.accounts.get_mut(name);
        if let Some(seen) = account.and_then(|it| it.sessions.get_mut(&session)) {
            seen.rests = rests;
            inner.changed = true;
        }
    }

    /// Charges the times and refusals of a session until now, and gives what calls for an act. What passed while
    /// nobody looked is charged with the next look.
    pub fn observe(
        &self,
        name: &str,
        session: u32,
        budgets: &[Budget],
        Sight {
            cpu,
            active,
            denied,
        }: Sight,
    ) -> Vec<Overrun> {
        let (mut inner, now) = self.locked();
        if let Some(error) = &inner.broken {
            let what = error.to_string();
            let times = budgets.iter().filter(|it| it.quantity.is_time());
            return times.map(|it| Overrun::of(it, what.clone())).collect();
        }
        let doubt = inner.doubt;
        let account = inner.accounts.entry(name.to_owned()).or_default();
        let seen = account.sessions.entry(session).or_insert(Seen {
            at: now,
            since: now,
            cpu,
            busy: now,
            denied: 0,
            rests: false,
        });
        let passed = now.saturating_sub(seen.at) / 1000;
        seen.at = seen.at.saturating_add(passed * 1000);
        // A cgroup that was made anew begins at nothing.
        let computed = cpu.checked_sub(seen.cpu).unwrap_or(cpu);
        seen.cpu = cpu;
        // Nor do refusals that another daemon counted.
        let refused = denied.checked_sub(seen.denied).unwrap_or(denied);
        seen.denied = denied;
        if active || seen.rests || computed.saturating_mul(100) > passed {
            seen.busy = now;
        }
        let idle = now.saturating_sub(seen.busy) / 1000;
        let mut charged: Vec<String> = Vec::new();
        let mut overruns = Vec::new();
        for budget in budgets {
            let amount = match budget.quantity {
                Quantity::WallTime => passed,
                Quantity::CpuTime => computed,
                Quantity::IdleTime if idle >= budget.limit => {
                    let what = format!("nothing was done for {}", budget.quantity.text(idle));
                    overruns.push(Overrun::of(budget, what));
                    continue;
                }
                Quantity::IdleTime => continue,
                Quantity::Denials => refused,
                // Charged by kernel programs.
                quantity if quantity.kinds() != 0 => 0,
                _ => {
                    if account.tripped.remove(&budget.id) {
                        let what = format!("{} are spent", budget.text());
                        overruns.push(Overrun::of(budget, what));
                    }
                    continue;
                }
            };
            let entry = account.entry(budget, session, doubt);
            // Budgets on one meter are charged once.
            if !charged.contains(&budget.meter()) {
                charged.push(budget.meter());
                entry.meter.add(now, amount);
            }
            let (spent, limit) = (entry.meter.spent(now), entry.limit_of(budget, now));
            if spent >= limit {
                let what = format!(
                    "{} are spent ({})",
                    budget.text(),
                    budget.quantity.text(spent)
                );
                overruns.push(Overrun::of(budget, what));
            } else if let Some(percent) = account.warning(budget, session, now) {
                let what = format!("{percent} % of {} are spent", budget.text());
                self.tell(session, &budget.id, what);
            }
        }
        if passed > 0 || computed > 0 || refused > 0 {
            inner.changed = true;
        }
        overruns
    }
}
