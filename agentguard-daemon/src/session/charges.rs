//! Budgets that kernel programs charge: telling them the limits, and taking over their counts.
//!
//! What the kernel may do is on the disk first. While nobody of us is there it goes on by what it was told last,
//! and stops at what the disk has as spent.

use std::sync::Arc;

use agentguard_common::budget::{Limits, Meter};

use super::SessionError;
use super::engine::{Engine, lock};
use crate::agent::Agent;
use crate::audit::record::op;
use crate::policy::Policy;

/// What the kernel was told last of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    session: u32,
    limits: Limits,
    cut: Vec<usize>,
}

impl Engine {
    /// Agents with budgets that kernel programs charge.
    fn charged(&self) -> Vec<(Agent, Arc<Policy>)> {
        let mut limited = self.limited();
        limited.retain(|(_, policy)| policy.limits().are_for_kernel());
        limited
    }

    /// Takes over what the kernel has counted, and tells it how far it may go: of every agent. Whether there is one.
    pub(super) fn charge_all(&self) -> bool {
        let charged = self.charged();
        for (agent, policy) in &charged {
            self.limit_again(agent, policy);
        }
        !charged.is_empty()
    }

    /// Tells the kernel the limits of an agent, before a policy with these budgets is in force.
    pub(super) fn limit(&self, agent: &Agent, policy: &Policy) -> Result<(), SessionError> {
        let cut = self.tell_limits(agent, policy)?;
        for budget in cut.iter().map(|index| &policy.limits().budgets[*index]) {
            let what = format!("no connection is permitted: {} are spent", budget.text());
            let reason = budget.reason.as_deref();
            self.note_of(agent, op::BUDGET, Some(&budget.id), reason, &what);
        }
        Ok(())
    }

    /// The same for a policy that is in force. On an error what the kernel was told before goes on, and ends where the
    /// disk says.
    pub(super) fn limit_again(&self, agent: &Agent, policy: &Policy) {
        if let Err(error) = self.limit(agent, policy) {
            tracing::error!("`{}`: {}", agent.name, error.line());
        }
    }

    /// After a start: the same for all, without a word in the log, where the records of the one before us come first.
    pub(super) fn limit_restored(&self) {
        for (agent, policy) in self.charged() {
            if let Err(error) = self.tell_limits(&agent, &policy) {
                tracing::error!("`{}`: {}", agent.name, error.line());
            }
        }
    }

    /// Takes over the counts and tells the limits, if they are others than before. Gives the budgets that deny the
    /// network from now on.
    fn tell_limits(&self, agent: &Agent, policy: &Policy) -> Result<Vec<usize>, SessionError> {
        let budgets = &policy.limits().budgets;
        if !policy.limits().are_for_kernel() {
            return Ok(Vec::new());
        }
        self.take_counts(agent);
        let account = agent.account.as_str();
        let charged = self.ledger().charged(account, agent.session, budgets)?;
        let told = Told {
            session: agent.session,
            limits: charged.limits,
            cut: charged.cut,
        };
        let before = lock(&self.limits.told).get(&agent.slot).cloned();
        if before.as_ref() == Some(&told) {
            return Ok(Vec::new());
        }
        let named = charged
            .meters
            .iter()
            .map(|(meter, at)| (*meter, &budgets[*at]));
        self.recorder().judge().spent().set(agent.slot, named);
        lock(&self.enforcer).set_limits(agent.slot, &told.limits)?;
        let known = before.filter(|it| it.session == agent.session);
        let known = known.map_or_else(Vec::new, |it| it.cut);
        let mut cut = told.cut.clone();
        cut.retain(|it| !known.contains(it));
        lock(&self.limits.told).insert(agent.slot, told);
        Ok(cut)
    }

    /// Takes over what the kernel has counted.
    pub(super) fn take_all_counts(&self) {
        for (agent, _) in self.charged() {
            self.take_counts(&agent);
        }
    }

    /// Takes over what the kernel has counted for an agent's account.
    fn take_counts(&self, agent: &Agent) {
        self.ledger()
            .take_over(agent.account.as_str(), |number| self.meter(number));
    }

    /// What a meter has; one that cannot be read has nothing to say.
    pub(super) fn meter(&self, number: u32) -> Option<Meter> {
        let meter = lock(&self.enforcer).meter(number);
        meter.inspect_err(|error| tracing::error!("{error}")).ok()
    }

    /// An agent is gone: its counts are taken over for the last time, and its meters are free.
    pub(super) fn end_charges(&self, agent: &Agent) {
        lock(&self.limits.told).remove(&agent.slot);
        self.take_counts(agent);
        let account = &agent.account;
        let others = self.charged();
        if !others
            .iter()
            .any(|(it, _)| it.account == *account && it.slot != agent.slot)
        {
            self.ledger().give_back_slots(account.as_str());
        }
    }
}
