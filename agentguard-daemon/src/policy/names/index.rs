//! The index: from a name to the rules that may speak of it, by looking up the name and what stands behind each of
//! its dots. The work grows with the number of labels, and not with the number of rules.
//!
//! It only finds; whether a rule matches is asked of the pattern again.

use std::collections::HashMap;

use super::Shape;
use crate::policy::rule::{Matcher, Rule};

/// Rules by the names that they speak of.
#[derive(Clone, Debug, Default)]
pub struct NameIndex {
    exact: HashMap<String, Vec<usize>>,
    one_label: HashMap<String, Vec<usize>>,
    any_depth: HashMap<String, Vec<usize>>,
    rules: usize,
}

impl NameIndex {
    /// Of all rules of a policy, by their place in it.
    pub fn of(rules: &[Rule]) -> Self {
        let mut index = Self::default();
        for (number, rule) in rules.iter().enumerate() {
            let Matcher::Name { patterns, .. } = &rule.matcher else {
                continue;
            };
            index.rules += 1;
            for pattern in patterns {
                let (map, key) = match &pattern.shape {
                    Shape::Exact(name) => (&mut index.exact, name),
                    Shape::OneLabel(suffix) => (&mut index.one_label, suffix),
                    Shape::AnyDepth(suffix) => (&mut index.any_depth, suffix),
                };
                map.entry(key.clone()).or_default().push(number);
            }
        }
        index
    }

    /// Whether no rule speaks of names.
    pub fn is_empty(&self) -> bool {
        self.rules == 0
    }

    /// The rules that may match, in the order of the policy, each once.
    pub fn candidates(&self, name: &str) -> Vec<usize> {
        let mut found: Vec<usize> = Vec::new();
        let mut add = |map: &HashMap<String, Vec<usize>>, key: &str| {
            found.extend(map.get(key).into_iter().flatten());
        };
        add(&self.exact, name);
        let mut rest = name;
        let mut first = true;
        loop {
            let behind = rest.split_once('.').map_or("", |(_, behind)| behind);
            if first {
                add(&self.one_label, behind);
                first = false;
            }
            add(&self.any_depth, behind);
            if behind.is_empty() {
                break;
            }
            rest = behind;
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}
