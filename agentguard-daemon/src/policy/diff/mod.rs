//! What two policies decide or record differently, by meaning: the automata of both are walked side by side, and wherever
//! they come to different verdicts, the shortest way there is an example.
//!
//! It compares the compiled tables, which are proved against the reference; a difference is checked by the
//! reference before it is told. Nothing is compared by its text.

mod files;
mod limits;
mod names;
mod network;
mod recorded;
mod samples;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::BTreeSet;

use agentguard_common::verdict::{Lock, Verdict};
use serde::Serialize;

pub use self::recorded::{RECORDED, UNRECORDED};
use self::walk::Side;
use super::rule::{Action, RuleRef};
use super::{Mode, Policy, PolicyError};
use crate::event::escape::escape;

/// One difference, with the shortest example of its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// `read`, `write`, `exec`, `network`, `names`, `listen`, `unix`, `kernel`, `budgets`, `schedule`, `models`, `audit`, `mode`.
    pub section: &'static str,
    /// The action, escaped.
    pub example: String,
    /// What the first policy says: a verdict, a setting, or in the section `audit` `recorded` or `not recorded`.
    pub was: String,
    /// By which rule, or by its default.
    pub was_by: String,
    /// What the second one says.
    pub is: String,
    /// By which rule, or by its default.
    pub is_by: String,
    /// Whether the second permits what the first did not.
    pub widens: bool,
}

/// All differences.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// At least one for each section and pair of verdicts; never two for the same pair of rules.
    pub changes: Vec<Change>,
    /// Sections that are too different to be compared to the end: there may be more.
    pub unfinished: Vec<&'static str>,
}

/// Compares two policies.
pub fn diff(a: &Policy, b: &Policy) -> Result<Changes, PolicyError> {
    let mut found = Found {
        a,
        b,
        changes: Changes::default(),
        seen: BTreeSet::new(),
    };
    let (left, right) = (Side::of(a)?, Side::of(b)?);
    found.paths(&left, &right);
    found.commands(&left, &right);
    found.network(&left, &right);
    found.names();
    found.samples();
    found.switches();
    found.limits();
    let order = [
        "mode", "kernel", "unix", "names", "network", "listen", "exec", "write", "read", "budgets",
        "schedule", "models", "audit",
    ];
    let place = |section: &str| order.iter().position(|it| *it == section);
    // What is not recorded any more matters more than what is from now on.
    found.changes.changes.sort_by_key(|change| {
        let is_news = change.is == RECORDED;
        (!change.widens, place(change.section), is_news)
    });
    Ok(found.changes)
}

/// How people name what decides.
fn by(rule: Option<&RuleRef>) -> String {
    match rule {
        Some(rule) => escape(rule.id.as_bytes()).into_owned(),
        None => "default".to_owned(),
    }
}

struct Found<'p> {
    a: &'p Policy,
    b: &'p Policy,
    changes: Changes,
    seen: BTreeSet<(&'static str, String, String, String, String)>,
}

impl Found<'_> {
    /// Tells what differs about an act, if the reference sees it too and none of its kind is told yet.
    fn offer(&mut self, section: &'static str, example: String, action: &Action<'_>) {
        self.offer_recording(section, &example, action);
        let (was, is) = (self.a.judge(action), self.b.judge(action));
        if was.verdict == is.verdict {
            return;
        }
        let change = Change {
            section,
            example,
            was: was.verdict.name().to_owned(),
            was_by: by(was.rule.as_ref()),
            is: is.verdict.name().to_owned(),
            is_by: by(is.rule.as_ref()),
            widens: is.verdict == Verdict::Allow,
        };
        self.tell(section, change);
    }

    /// Tells a difference about acts of a section.
    fn tell(&mut self, acts: &'static str, change: Change) {
        let key = (
            acts,
            change.was.clone(),
            change.was_by.clone(),
            change.is.clone(),
            change.is_by.clone(),
        );
        if self.seen.insert(key) {
            self.changes.changes.push(change);
        }
    }

    /// Tells a difference between settings, which no rule decides.
    fn tell_setting(
        &mut self,
        section: &'static str,
        what: &str,
        [was, is]: [String; 2],
        widens: bool,
    ) {
        if was != is {
            let change = Change {
                section,
                example: what.to_owned(),
                was,
                was_by: section.to_owned(),
                is,
                is_by: section.to_owned(),
                widens,
            };
            self.tell(section, change);
        }
    }

    fn switches(&mut self) {
        for lock in Lock::ALL {
            let action = Action::Kernel { lock: *lock as u32 };
            self.offer("kernel", lock.name().to_owned(), &action);
        }
        let mode = |policy: &Policy| format!("{:?}", policy.mode()).to_lowercase();
        self.tell_setting(
            "mode",
            "what becomes of denied actions",
            [self.a, self.b].map(mode),
            self.b.mode() == Mode::Shadow,
        );
    }
}
