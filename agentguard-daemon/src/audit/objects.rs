//! Which rule stands behind a protected object, so that records of `protected-object` can name it.
//! It must never change a verdict: the kernel denied already.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use agentguard_common::verdict::Reason;

use super::judge::RuleName;
use crate::event::Event;
use crate::policy::RuleRef;
use crate::policy::protected::{ACCESSES, Object};

type Names = HashMap<(u64, u32), [Option<Arc<RuleName>>; 3]>;

/// The rules, by agent slot, inode and device.
#[derive(Debug, Default)]
pub struct Objects {
    /// What is protected now, and what was before: records may come late.
    by_agent: HashMap<u32, [Names; 2]>,
}

impl Objects {
    /// Replaces the objects of an agent. Before the kernel is told.
    pub fn set(&mut self, agent: u32, objects: &BTreeMap<(u64, u32), Object>) {
        let mut known: HashMap<*const RuleRef, Arc<RuleName>> = HashMap::new();
        let mut name = |rule: &Arc<RuleRef>| {
            let name = known.entry(Arc::as_ptr(rule));
            name.or_insert_with(|| Arc::new(RuleName::from(&**rule)))
                .clone()
        };
        let names = objects
            .iter()
            .map(|(key, object)| {
                let of = |rule: &Option<Arc<RuleRef>>| rule.as_ref().map(&mut name);
                (*key, object.rules.each_ref().map(of))
            })
            .collect();
        let [now, before] = self.by_agent.entry(agent).or_default();
        *before = std::mem::replace(now, names);
    }

    /// Drops all of an agent.
    pub fn forget(&mut self, agent: u32) {
        self.by_agent.remove(&agent);
    }

    /// How many agents have some.
    pub fn agents(&self) -> usize {
        self.by_agent.len()
    }

    /// The rule behind a denial.
    pub fn rule(&self, event: &Event<'_>) -> Option<Arc<RuleName>> {
        if event.reason != Reason::ProtectedObject {
            return None;
        }
        let generations = self.by_agent.get(&event.agent)?;
        let mut rules = generations
            .iter()
            .filter_map(|names| names.get(&(event.inode, event.device)));
        let rules = rules.next()?;
        // Renaming and linking ask for every access.
        let asked = ACCESSES.iter().zip(rules);
        let mut asked = asked.filter(|(bit, _)| event.access & **bit != 0);
        let by_access = asked.find_map(|(_, rule)| rule.as_ref());
        by_access.or(rules.iter().flatten().next()).cloned()
    }
}
