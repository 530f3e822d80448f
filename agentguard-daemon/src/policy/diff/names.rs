//! Names of hosts: every name that some pattern of either policy tells from others, by every port that some rule
//! tells from others.
//!
//! A pattern is a name, or a name with one label or with one or more before it. So the names that end in the same
//! longest known name, with none, one or two unknown labels before that, are matched by the same patterns: one of each
//! stands for all.

use std::collections::BTreeSet;

use super::Found;
use crate::audit::words::protocol_name;
use crate::policy::Policy;
use crate::policy::names::{NamePattern, Shape, normal};
use crate::policy::rule::{Action, Matcher};

/// Names that are known; more would be compared for minutes.
const MOST: usize = 200_000;
/// What rules about names can tell apart.
const PROTOCOLS: [u8; 4] = [6, 17, 1, 58];
/// The port of examples where ports make no difference.
const USUAL: u16 = 443;

/// All names in a policy's rules, with all names that they end in.
fn known(policy: &Policy, names: &mut BTreeSet<String>) {
    let mut add = |pattern: &NamePattern| {
        let (Shape::Exact(name) | Shape::OneLabel(name) | Shape::AnyDepth(name)) = &pattern.shape;
        let mut rest = Some(name.as_str()).filter(|name| !name.is_empty());
        while let Some(name) = rest {
            names.insert(name.to_owned());
            rest = name.split_once('.').map(|(_, behind)| behind);
        }
    };
    for rule in policy.rules() {
        if let Matcher::Name { patterns, except } = &rule.matcher {
            patterns.iter().chain(except).for_each(&mut add);
        }
    }
}

impl Found<'_> {
    pub(super) fn names(&mut self) {
        let (a, b) = (self.a, self.b);
        if !a.has_name_rules() && !b.has_name_rules() {
            return;
        }
        let resolver = |policy: &Policy| {
            if policy.has_name_rules() {
                "the agent's resolver".to_owned()
            } else {
                "servers that rules about addresses permit".to_owned()
            }
        };
        self.tell_setting(
            "names",
            "who resolves names",
            [a, b].map(resolver),
            !b.has_name_rules(),
        );
        let mut names = BTreeSet::new();
        known(a, &mut names);
        known(b, &mut names);
        // A label that stands in none of them.
        let mut label = "x".to_owned();
        while names
            .iter()
            .any(|name| name.split('.').any(|it| it == label))
        {
            label.push('x');
        }
        if names.len() > MOST {
            self.changes.unfinished.push("names");
        }
        self.name(&label);
        self.name(&format!("{label}.{label}"));
        for name in names.iter().take(MOST) {
            self.name(name);
            self.name(&format!("{label}.{name}"));
            self.name(&format!("{label}.{label}.{name}"));
        }
    }

    /// Compares one name, by all ports and protocols that make a difference.
    fn name(&mut self, name: &str) {
        let local = name == "localhost" || name.ends_with(".localhost");
        if local || normal(name).is_err() {
            // Answered whatever the policy says; or no name at all (too long, or a number at its end).
            return;
        }
        let mut ports = BTreeSet::new();
        for policy in [self.a, self.b] {
            for grant in policy.judge_name(name).grants {
                ports.insert(grant.low);
                ports.extend(grant.high.checked_add(1));
            }
        }
        let first = [USUAL, 0];
        let ports: Vec<u16> = first.into_iter().chain(ports).collect();
        for protocol in PROTOCOLS {
            for &port in &ports {
                let shown = protocol_name(u16::from(protocol)).unwrap_or_default();
                let action = Action::Name {
                    name,
                    port,
                    protocol,
                };
                self.offer("names", format!("{name}:{port}/{shown}"), &action);
            }
        }
    }
}
