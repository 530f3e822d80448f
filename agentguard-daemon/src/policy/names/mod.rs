//! Rules about names of hosts: what they mean, and an index over them whose cost does not grow with their number.
//!
//! A name is judged when it is resolved; the kernel never sees one. Matching here is plain text: names arrive, and
//! patterns are kept, in lower case, in their ASCII form and without a dot at the end.

mod index;
mod pattern;

pub use index::NameIndex;
pub use pattern::{NamePattern, Shape, normal};

use agentguard_common::record::DESTINATION_KEY;
use agentguard_common::verdict::{Reason, Verdict};

use super::Policy;
use super::limits::marks_of;
use super::recording::Audit;
use super::rule::{Matcher, Rule, RuleRef};

/// Whether the short form of a rule speaks of a name and not of an address.
pub fn is_name(text: &str) -> bool {
    let host = text.split([':', '/']).next().unwrap_or_default();
    let address = host == "any"
        || host.is_empty()
        || text.starts_with(['[', '@'])
        || text.matches(':').count() > 1
        || host
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
    !address
}

/// Ports and protocols that an address is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    /// First port.
    pub low: u16,
    /// Last port.
    pub high: u16,
    /// Protocol number; `None` for all that policies can permit.
    pub protocol: Option<u8>,
    /// Bits of [`agentguard_common::table::MARKS`]: budgets that count by the rules behind it. In the lowest bits what these
    /// say of recording: [`agentguard_common::table::level`].
    pub marks: u16,
}

impl Grant {
    /// The ports and protocol alone.
    fn ports(self) -> (u16, u16, Option<u8>) {
        (self.low, self.high, self.protocol)
    }

    /// Whether it covers a port of a protocol.
    pub fn covers(&self, port: u16, protocol: u8) -> bool {
        (self.low..=self.high).contains(&port) && self.protocol.is_none_or(|own| own == protocol)
    }
}

/// What a policy says of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameJudgement {
    /// Whether it may be resolved.
    pub verdict: Verdict,
    /// [`Reason::Rule`] or [`Reason::Default`].
    pub reason: Reason,
    /// The rule that won.
    pub rule: Option<RuleRef>,
    /// What the permitting rules open its addresses for; empty where the verdict is not allow, and where the section's
    /// default permits every address anyway.
    pub grants: Vec<Grant>,
}

impl Policy {
    /// Whether any rule speaks of names: then names are resolved by AgentGuard.
    pub fn has_name_rules(&self) -> bool {
        !self.names.is_empty()
    }

    /// Judges a name in its normal form (see [`normal`]).
    pub fn judge_name(&self, name: &str) -> NameJudgement {
        self.judge_name_by(&self.names.candidates(name), name)
    }

    /// Marks of budgets that count by any rule about names.
    pub fn marks_of_names(&self) -> u16 {
        let by_name = |rule: &&Rule| matches!(rule.matcher, Matcher::Name { .. });
        self.rules.iter().filter(by_name).fold(0, |all, rule| {
            all | marks_of(&self.limits.budgets, &rule.id) as u16
        })
    }

    /// The same, asking every rule. For comparing the two.
    #[doc(hidden)]
    pub fn judge_name_plainly(&self, name: &str) -> NameJudgement {
        let all: Vec<usize> = (0..self.rules.len()).collect();
        self.judge_name_by(&all, name)
    }

    fn judge_name_by(&self, candidates: &[usize], name: &str) -> NameJudgement {
        let mut best: Option<&Rule> = None;
        let mut grants = Vec::new();
        for rule in candidates.iter().map(|index| &self.rules[*index]) {
            if !matches_name(rule, name) {
                continue;
            }
            if best.is_none_or(|best| rule.verdict > best.verdict) {
                best = Some(rule);
            }
            if rule.verdict == Verdict::Allow {
                let level = rule.audit.map_or(0, Audit::of_name);
                let marks = marks_of(&self.limits.budgets, &rule.id) as u16 | level;
                grants.extend(
                    grants_of(rule, name)
                        .into_iter()
                        .map(|it| Grant { marks, ..it }),
                );
            }
        }
        let verdict = best.map_or(self.defaults.network, |rule| rule.verdict);
        if verdict != Verdict::Allow {
            grants.clear();
        }
        grants.sort_unstable();
        grants.dedup_by(|next, kept| {
            let same = next.ports() == kept.ports();
            kept.marks |= if same { next.marks } else { 0 };
            same
        });
        NameJudgement {
            verdict,
            reason: if best.is_some() {
                Reason::Rule
            } else {
                Reason::Default
            },
            rule: best.map(|rule| self.rule_ref(rule)),
            grants,
        }
    }

    /// What rules about addresses say of one that is to be opened: deny where they deny every port and protocol of
    /// the grants, allow where they permit one, else none. Ports that are denied among others are the kernel's affair.
    pub fn judge_answer(&self, address: [u8; 16], grants: &[Grant]) -> (Verdict, Option<RuleRef>) {
        const EVERYTHING: Grant = Grant {
            low: 0,
            high: u16::MAX,
            protocol: None,
            marks: 0,
        };
        let grants = if grants.is_empty() {
            &[EVERYTHING]
        } else {
            grants
        };
        let mut refused = None;
        let mut permitted = None;
        let mut open = false;
        for grant in grants {
            for protocol in [6, 17, 1, 58] {
                if grant.protocol.is_some_and(|own| own != protocol) {
                    continue;
                }
                for port in [grant.low, grant.high] {
                    match self.address_rule(address, port, protocol) {
                        Some(rule) if rule.verdict != Verdict::Allow => {
                            refused.get_or_insert(rule);
                        }
                        Some(rule) => {
                            permitted.get_or_insert(rule);
                        }
                        None => open = true,
                    }
                }
            }
        }
        match (permitted, refused) {
            (Some(rule), _) => (Verdict::Allow, Some(self.rule_ref(rule))),
            (None, Some(rule)) if !open => (rule.verdict, Some(self.rule_ref(rule))),
            _ => (Verdict::None, None),
        }
    }

    /// The strictest rule that speaks of an address with this port and protocol.
    fn address_rule(&self, address: [u8; 16], port: u16, protocol: u8) -> Option<&Rule> {
        let mut key = [0; DESTINATION_KEY];
        key[..16].copy_from_slice(&address);
        key[16] = protocol;
        key[17..].copy_from_slice(&port.to_be_bytes());
        let mut best: Option<&Rule> = None;
        for rule in &self.rules {
            if let Matcher::Network {
                listen: false,
                patterns,
                except,
            } = &rule.matcher
                && best.is_none_or(|best| rule.verdict > best.verdict)
                && patterns.iter().any(|p| p.matches(&key))
                && !except.iter().any(|p| p.matches(&key))
            {
                best = Some(rule);
            }
        }
        best
    }
}

/// Whether a rule speaks of a name.
pub fn matches_name(rule: &Rule, name: &str) -> bool {
    match &rule.matcher {
        Matcher::Name { patterns, except } => {
            patterns.iter().any(|pattern| pattern.matches(name))
                && !except.iter().any(|pattern| pattern.matches(name))
        }
        _ => false,
    }
}

/// What a rule that permits a name opens its addresses for.
fn grants_of(rule: &Rule, name: &str) -> Vec<Grant> {
    let Matcher::Name { patterns, .. } = &rule.matcher else {
        return Vec::new();
    };
    patterns
        .iter()
        .filter(|pattern| pattern.matches(name))
        .flat_map(NamePattern::grants)
        .collect()
}

/// Whether a rule matches reaching a name by port and protocol. A denial is about the name, whatever the port.
pub fn matches_reach(rule: &Rule, name: &str, port: u16, protocol: u8) -> bool {
    matches_name(rule, name)
        && (rule.verdict != Verdict::Allow
            || grants_of(rule, name)
                .iter()
                .any(|grant| grant.covers(port, protocol)))
}

#[cfg(test)]
mod tests;
