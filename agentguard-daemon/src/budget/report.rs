//! What is spent, reserved and left: for people, and for programs.

use serde::{Deserialize, Serialize};

use super::account::key;
use super::ledger::Ledger;
use crate::policy::limits::{Budget, Quantity};

/// One budget of an agent now. Amounts are in the quantity's unit: a count, microseconds, or millionths of
/// millionths of a US dollar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetStatus {
    /// Its id.
    pub id: String,
    /// What it says, in words.
    pub says: String,
    /// What it counts.
    pub quantity: String,
    /// The limit, without what was granted.
    pub limit: u64,
    /// What an operator gave on top.
    pub granted: u64,
    /// What is spent in the present window.
    pub spent: u64,
    /// What calls under way may still take.
    pub reserved: u64,
    /// What is left.
    pub left: u64,
    /// Spent and reserved, of limit and grants.
    pub percent: u64,
    /// Spent, for people.
    pub spent_text: String,
    /// Reserved, for people.
    pub reserved_text: String,
    /// Left, for people.
    pub left_text: String,
    /// Seconds until the window begins anew (a sliding one: until something of it is forgotten).
    pub resets_in: Option<u64>,
    /// Seconds until it is spent at the present rate, if before that.
    pub exhausted_in: Option<u64>,
    /// What happens then.
    pub at_limit: String,
    /// Why it is there.
    pub reason: Option<String>,
    /// File and line.
    pub place: String,
}

/// All budgets of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountStatus {
    /// The agent.
    pub agent: String,
    /// Whose account is charged: that of a name can outlive the agents that had it.
    pub account: String,
    /// Its session.
    pub session: u32,
    /// Whether it stands still.
    pub frozen: bool,
    /// Its budgets.
    pub budgets: Vec<BudgetStatus>,
    /// What its schedules say, in words.
    pub schedule: Vec<String>,
    /// Why nothing is granted, if the ledger is unusable.
    pub broken: Option<String>,
}

impl Ledger {
    /// Where budgets stand.
    pub fn report(&self, name: &str, session: u32, budgets: &[Budget]) -> Vec<BudgetStatus> {
        let (inner, now) = self.locked();
        let account = inner.accounts.get(name);
        let seen = account.and_then(|it| it.sessions.get(&session));
        let row = |budget: &Budget| {
            let quantity = budget.quantity;
            let entry = account.and_then(|it| it.entries.get(&key(budget, session)));
            let (mut spent, reserved, granted) = entry.map_or((0, 0, 0), |it| {
                (it.meter.spent(now), it.reserved, it.granted(now))
            });
            if quantity == Quantity::IdleTime {
                spent = seen.map_or(0, |it| now.saturating_sub(it.busy) / 1000);
            }
            let limit = budget.limit.saturating_add(granted);
            let taken = spent.saturating_add(reserved);
            let left = limit.saturating_sub(taken);
            let resets = entry.and_then(|it| it.meter.resets(now));
            let resets_in = resets.map(|at| at.saturating_sub(now).div_ceil(1_000_000_000));
            let since = entry
                .and_then(|it| it.meter.began(now))
                .into_iter()
                .chain(seen.map(|it| it.since))
                .max();
            let passed = since.map_or(0, |since| now.saturating_sub(since) / 1_000_000_000);
            let exhausted_in = (spent > 0 && passed > 0)
                .then(|| u128::from(left) * u128::from(passed) / u128::from(spent))
                .and_then(|seconds| u64::try_from(seconds).ok())
                .filter(|seconds| budget.sliding || resets_in.is_none_or(|it| *seconds < it));
            BudgetStatus {
                id: budget.id.clone(),
                says: budget.text(),
                quantity: quantity.name().to_owned(),
                limit: budget.limit,
                granted,
                spent,
                reserved,
                left,
                percent: u64::try_from(u128::from(taken) * 100 / u128::from(limit.max(1)))
                    .unwrap_or(u64::MAX),
                spent_text: quantity.text(spent),
                reserved_text: quantity.text(reserved),
                left_text: quantity.text(left),
                resets_in,
                exhausted_in,
                at_limit: budget.at_limit.name().to_owned(),
                reason: budget.reason.clone(),
                place: budget.place.clone(),
            }
        };
        budgets.iter().map(row).collect()
    }
}
