//! Which budget stands behind the number of a meter, so that records of `budget` can name it.
//! It must never change a verdict: the kernel denied already.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use agentguard_common::verdict::Reason;

use super::judge::RuleName;
use crate::event::Event;
use crate::event::escape::escape;
use crate::policy::limits::Budget;

type Names = BTreeMap<u16, Arc<RuleName>>;

/// The budgets, by agent slot and number of the meter.
#[derive(Debug, Default)]
pub struct Spent {
    /// What holds now, and what did before: records may come late.
    by_agent: HashMap<u32, [Names; 2]>,
}

impl Spent {
    /// Replaces the budgets of an agent. Before the kernel is told. Where several share a meter, the smallest is
    /// spent first.
    pub fn set<'a>(&mut self, agent: u32, budgets: impl Iterator<Item = (u16, &'a Budget)>) {
        let mut least: BTreeMap<u16, &Budget> = BTreeMap::new();
        for (meter, budget) in budgets {
            let place = least.entry(meter).or_insert(budget);
            if budget.limit < place.limit {
                *place = budget;
            }
        }
        let names: Names = least
            .into_iter()
            .map(|(meter, budget)| (meter, Arc::new(RuleName::from(budget))))
            .collect();
        let [now, before] = self.by_agent.entry(agent).or_default();
        if *now != names {
            *before = std::mem::replace(now, names);
        }
    }

    /// Drops all of an agent.
    pub fn forget(&mut self, agent: u32) {
        self.by_agent.remove(&agent);
    }

    /// How many agents have some.
    pub fn agents(&self) -> usize {
        self.by_agent.len()
    }

    /// The budget behind a denial.
    pub fn budget(&self, event: &Event<'_>) -> Option<Arc<RuleName>> {
        if event.reason != Reason::Budget {
            return None;
        }
        let mut names = self.by_agent.get(&event.agent)?.iter();
        names.find_map(|names| names.get(&event.errno)).cloned()
    }
}

impl From<&Budget> for RuleName {
    fn from(budget: &Budget) -> Self {
        let mut reason = format!("{} are spent", budget.text());
        if let Some(why) = &budget.reason {
            reason = format!("{reason}: {why}");
        }
        Self {
            id: escape(budget.id.as_bytes()).into_owned(),
            reason: Some(escape(reason.as_bytes()).into_owned()),
            place: escape(budget.place.as_bytes()).into_owned(),
        }
    }
}
