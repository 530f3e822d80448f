//! The reference judgement: every rule is asked, the strictest answer wins.
//!
//! Nothing here knows of compiled tables. This is the meaning of a policy; the kernel's verdict is
//! compared with it for every record.

use agentguard_common::record::DESTINATION_KEY;
use agentguard_common::verdict::{Reason, Verdict, access};

use super::Policy;
use super::matcher::matches_path;
use super::names::matches_reach;
use super::rule::{Action, Judgement, Matcher, Rule, RuleRef};

/// The strictest verdict so far and the first rule that gave it.
#[derive(Clone, Copy)]
struct Best<'a> {
    verdict: Verdict,
    rule: Option<&'a Rule>,
}

impl<'a> Best<'a> {
    const NOTHING: Self = Self {
        verdict: Verdict::None,
        rule: None,
    };

    fn offer(&mut self, rule: &'a Rule) {
        if rule.verdict > self.verdict {
            *self = Self {
                verdict: rule.verdict,
                rule: Some(rule),
            };
        }
    }

    /// The default where no rule had an opinion.
    fn or_default(self, default: Verdict) -> Self {
        if self.verdict == Verdict::None {
            Self {
                verdict: default,
                rule: None,
            }
        } else {
            self
        }
    }

    /// The stricter of two; a rule before a default.
    fn strictest(self, other: Self) -> Self {
        let other_wins = other.verdict > self.verdict
            || (other.verdict == self.verdict && self.rule.is_none() && other.rule.is_some());
        if other_wins { other } else { self }
    }
}

impl Policy {
    /// Judges one action, rule by rule.
    pub fn judge(&self, action: &Action<'_>) -> Judgement {
        let best = match *action {
            Action::Path { path, access } => self.judge_path(path, access),
            Action::Exec {
                path,
                argv: Some(argv),
            } => self.judge_command(path, argv),
            Action::Exec { path, argv: None } => match self.judge_program(path) {
                Some(best) => best,
                None => {
                    return Judgement {
                        verdict: Verdict::None,
                        reason: Reason::None,
                        rule: None,
                    };
                }
            },
            Action::Network { .. } | Action::Name { .. } => {
                self.best_of(action).or_default(self.defaults.network)
            }
            Action::Listen { .. } | Action::Unix { listen: true, .. } => {
                self.best_of(action).or_default(self.defaults.listen)
            }
            Action::Unix { listen: false, .. } => {
                let best = self.best_of(action).or_default(self.defaults.unix);
                if best.rule.is_none() && best.verdict != Verdict::Allow {
                    return Judgement {
                        verdict: best.verdict,
                        reason: Reason::UnixSocket,
                        rule: None,
                    };
                }
                best
            }
            Action::Kernel { lock } => {
                let permitted = self.kernel.get(lock);
                return Judgement {
                    verdict: if permitted {
                        Verdict::Allow
                    } else {
                        Verdict::Deny
                    },
                    reason: if permitted {
                        Reason::Default
                    } else {
                        Reason::Locked
                    },
                    rule: None,
                };
            }
        };
        Judgement {
            verdict: best.verdict,
            reason: if best.rule.is_some() {
                Reason::Rule
            } else {
                Reason::Default
            },
            rule: best.rule.map(|rule| self.rule_ref(rule)),
        }
    }

    /// Every rule that matches, in the order of the policy.
    pub fn matching_rules<'a>(&'a self, action: &Action<'_>) -> Vec<&'a Rule> {
        self.rules
            .iter()
            .filter(|rule| rule_matches(rule, action))
            .collect()
    }

    /// How records and people name a rule.
    pub fn rule_ref(&self, rule: &Rule) -> RuleRef {
        let source = &self.sources[rule.source];
        RuleRef {
            id: rule.id.clone(),
            reason: rule.reason.clone(),
            file: source.path().to_path_buf(),
            line: source.line(rule.span.offset),
        }
    }

    /// The strictest of the rules that match.
    fn best_of(&self, action: &Action<'_>) -> Best<'_> {
        let mut best = Best::NOTHING;
        for rule in &self.rules {
            if rule.verdict > best.verdict && rule_matches(rule, action) {
                best.offer(rule);
            }
        }
        best
    }

    fn judge_path(&self, path: &[u8], wanted: u8) -> Best<'_> {
        let wanted = if wanted == 0 {
            access::READ | access::WRITE
        } else {
            wanted
        };
        let accesses = [
            (access::READ, self.defaults.read),
            (access::WRITE, self.defaults.write),
            (access::EXEC, self.defaults.exec),
        ];
        let mut result = Best::NOTHING;
        for (bit, default) in accesses {
            if wanted & bit != 0 {
                result = result.strictest(self.best_for_path(path, bit).or_default(default));
            }
        }
        result
    }

    fn best_for_path(&self, path: &[u8], bit: u8) -> Best<'_> {
        let mut best = Best::NOTHING;
        for rule in &self.rules {
            if rule.verdict > best.verdict && path_rule_matches(rule, path, bit) {
                best.offer(rule);
            }
        }
        best
    }

    fn judge_command(&self, path: &[u8], argv: &[&[u8]]) -> Best<'_> {
        let mut best = Best::NOTHING;
        for rule in &self.rules {
            if rule.verdict > best.verdict
                && (path_rule_matches(rule, path, access::EXEC)
                    || command_rule_matches(rule, path, argv))
            {
                best.offer(rule);
            }
        }
        best.or_default(self.defaults.exec)
    }

    /// The decision before the arguments are known; `None` where they must be seen.
    fn judge_program(&self, path: &[u8]) -> Option<Best<'_>> {
        let best = self.best_for_path(path, access::EXEC);
        if best.verdict >= Verdict::Ask {
            return Some(best);
        }
        let mut commands = false;
        let mut may_match = false;
        for rule in &self.rules {
            if let Matcher::Command { patterns, .. } = &rule.matcher {
                commands = true;
                may_match |= patterns.iter().any(|p| matches_path(&p.program, path));
            }
        }
        if !commands || (best.verdict == Verdict::None && !may_match) {
            return Some(best.or_default(self.defaults.exec));
        }
        None
    }
}

fn path_rule_matches(rule: &Rule, path: &[u8], bit: u8) -> bool {
    match &rule.matcher {
        Matcher::Path {
            access,
            patterns,
            except,
        } => {
            access & bit != 0
                && patterns.iter().any(|glob| matches_path(glob, path))
                && !except.iter().any(|glob| matches_path(glob, path))
        }
        _ => false,
    }
}

fn command_rule_matches(rule: &Rule, path: &[u8], argv: &[&[u8]]) -> bool {
    match &rule.matcher {
        Matcher::Command { patterns, except } => {
            patterns.iter().any(|p| p.matches(path, argv))
                && !except.iter().any(|p| p.matches(path, argv))
        }
        _ => false,
    }
}

fn address_rule_matches(rule: &Rule, listening: bool, key: &[u8; DESTINATION_KEY]) -> bool {
    match &rule.matcher {
        Matcher::Network {
            listen,
            patterns,
            except,
        } => {
            *listen == listening
                && patterns.iter().any(|p| p.matches(key))
                && !except.iter().any(|p| p.matches(key))
        }
        _ => false,
    }
}

/// Whether one rule matches an action.
pub fn rule_matches(rule: &Rule, action: &Action<'_>) -> bool {
    match *action {
        Action::Path { path, access } => {
            let wanted = if access == 0 {
                access::READ | access::WRITE
            } else {
                access
            };
            path_rule_matches(rule, path, wanted)
        }
        Action::Exec { path, argv } => {
            path_rule_matches(rule, path, access::EXEC)
                || argv.is_some_and(|argv| command_rule_matches(rule, path, argv))
        }
        Action::Network { destination } => address_rule_matches(rule, false, &destination.key()),
        Action::Name {
            name,
            port,
            protocol,
        } => matches_reach(rule, name, port, protocol),
        Action::Listen { at } => address_rule_matches(rule, true, &at.listen_key()),
        Action::Unix { name, listen } => {
            let access = if listen {
                access::LISTEN
            } else {
                access::CONNECT
            };
            path_rule_matches(rule, name, access)
        }
        Action::Kernel { .. } => false,
    }
}
