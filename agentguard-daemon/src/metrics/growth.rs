//! Sums by agent that never fall, of counts that begin anew with each session.
//!
//! An agent that is detached and attached again has a new session, and the kernel counts from zero for it. Whoever
//! draws a rate would take that for a restart, so what was counted before is added here.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use agentguard_common::label::Membership;
use agentguard_common::traffic::Counts;

/// Agents that are not there any more and are still told of.
const GONE_KEPT: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub struct Growth {
    /// What is in the sums already, by slot and session.
    seen: HashMap<(u32, u32), Counts>,
    sums: BTreeMap<String, Counts>,
    /// Agents that are not there any more, the oldest first.
    gone: VecDeque<String>,
}

impl Growth {
    /// A session's counts are these now. They are never less than before, or the session is being forgotten.
    pub fn observe(&mut self, agent: &str, who: Membership, now: Counts) {
        if !self.sums.contains_key(agent) {
            self.sums.insert(agent.to_owned(), Counts::default());
        }
        let Some(sum) = self.sums.get_mut(agent).filter(|_| !now.is_empty()) else {
            return;
        };
        let seen = self.seen.entry((who.agent, who.session)).or_default();
        let grown = |now: u64, seen: &mut u64| {
            let by = now.saturating_sub(*seen);
            *seen += by;
            by
        };
        *sum = sum.plus(Counts {
            bytes_in: grown(now.bytes_in, &mut seen.bytes_in),
            bytes_out: grown(now.bytes_out, &mut seen.bytes_out),
            packets_in: grown(now.packets_in, &mut seen.packets_in),
            packets_out: grown(now.packets_out, &mut seen.packets_out),
        });
    }

    /// A session is over, and its counts are forgotten.
    pub fn end(&mut self, who: Membership) {
        self.seen.remove(&(who.agent, who.session));
    }

    /// Forgets agents that are not among these, but for those that went last.
    pub fn retain(&mut self, there: &BTreeSet<&str>) {
        self.gone.retain(|name| !there.contains(name.as_str()));
        for name in self.sums.keys() {
            if !there.contains(name.as_str()) && !self.gone.contains(name) {
                self.gone.push_back(name.clone());
            }
        }
        while self.gone.len() > GONE_KEPT {
            if let Some(oldest) = self.gone.pop_front() {
                self.sums.remove(&oldest);
            }
        }
    }

    /// The sums, by agent.
    pub fn sums(&self) -> &BTreeMap<String, Counts> {
        &self.sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(session: u32) -> Membership {
        Membership { agent: 1, session }
    }

    fn bytes(bytes_in: u64) -> Counts {
        Counts {
            bytes_in,
            packets_in: bytes_in.min(1),
            ..Counts::default()
        }
    }

    fn sum(growth: &Growth, name: &str) -> Option<u64> {
        growth.sums().get(name).map(|it| it.bytes_in)
    }

    #[test]
    fn sums_go_on_over_sessions_and_never_fall() {
        let mut growth = Growth::default();
        growth.observe("a", who(1), bytes(10));
        growth.observe("a", who(1), bytes(15));
        growth.end(who(1));
        // The kernel has forgotten, and the agent is still on the list.
        growth.observe("a", who(1), bytes(0));
        assert_eq!(sum(&growth, "a"), Some(15));
        assert!(growth.seen.is_empty());
        growth.observe("a", who(2), bytes(4));
        assert_eq!(sum(&growth, "a"), Some(19));
        growth.observe("b", who(3), bytes(0));
        assert_eq!(sum(&growth, "b"), Some(0));
    }

    #[test]
    fn agents_that_are_gone_are_forgotten_some_time_and_those_that_are_there_never() {
        let mut growth = Growth::default();
        growth.observe("stays", who(1), bytes(7));
        growth.observe("back", who(2), bytes(3));
        growth.end(who(2));
        growth.retain(&BTreeSet::from(["stays"]));
        growth.observe("back", who(3), bytes(3));
        for session in 10..10 + 2 * GONE_KEPT as u32 {
            let name = format!("run-{session}");
            growth.observe(&name, who(session), bytes(1));
            growth.end(who(session));
            growth.retain(&BTreeSet::from(["stays", "back"]));
        }
        assert_eq!(growth.sums().len(), GONE_KEPT + 2);
        assert_eq!(sum(&growth, "stays"), Some(7));
        assert_eq!(sum(&growth, "back"), Some(6));
        assert_eq!(growth.seen.len(), 2);
    }
}
