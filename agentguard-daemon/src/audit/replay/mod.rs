//! What another policy would have decided about what is in a log.
//!
//! A record is turned back into the question that the kernel was asked, and the reference matcher answers it
//! under the other policy. What was refused for a reason that is no rule's (a path that could not be read, an
//! object that is protected by its inode, a name that would widen) is not asked again, and neither is a program
//! whose arguments decide and are not all in its record, or a question to a name server: only the kernel that has
//! the objects before it can answer that.
//!
//! An address that a name opened is judged by rules about addresses, and then by that name. What was refused has no
//! name in its record, so it is judged by its address alone.

mod names;
mod question;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use agentguard_common::record::Destination;
use agentguard_common::verdict::{Operation, Reason, Verdict, access};
use serde::Serialize;

pub use self::question::{Asked, Question};
use super::judge::{Judge, Opinion};
use super::record::{Record, op};
use crate::policy::{Action, Policy};

/// A record that would have been decided otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Number of the first such record.
    pub seq: u64,
    /// How many there are of the same action.
    pub count: u64,
    /// What was done.
    pub op: String,
    /// With which access.
    pub access: Option<String>,
    /// What it was done to.
    pub target: String,
    /// The new path of what has two.
    pub to: Option<String>,
    /// Arguments.
    pub argv: Option<Vec<String>>,
    /// What was decided.
    pub was: String,
    /// By which rule or cause.
    pub was_by: String,
    /// What would be decided.
    pub would_be: String,
    /// By which rule or cause.
    pub by: String,
}

/// What a replay found.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// Records of the log.
    pub records: u64,
    /// Those that were asked again.
    pub asked: u64,
    /// Those that only the kernel can answer.
    pub not_asked: u64,
    /// Records that would have been decided otherwise.
    pub different: u64,
    /// Of these: refused, and was not.
    pub would_refuse: u64,
    /// Of these: would be permitted, and was refused.
    pub would_permit: u64,
    /// Each different action once, in the order of the log.
    pub differences: Vec<Difference>,
}

/// Asks one policy about records.
#[derive(Debug)]
pub struct Replay {
    policy: Arc<Policy>,
    judge: Judge,
    outcome: Outcome,
    seen: HashMap<Deed, usize>,
}

/// What makes two records the same action: operation, access, target, new path, arguments, verdicts then and now.
type Deed = (
    String,
    Option<String>,
    String,
    Option<String>,
    Option<Vec<String>>,
    String,
    String,
);

const GENERATION: u32 = 1;

/// Before the arguments are known, "go on" is all that can be said.
fn goes_ahead(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::None | Verdict::Allow)
}

impl Replay {
    /// Under this policy.
    pub fn new(policy: Arc<Policy>) -> Self {
        let mut judge = Judge::default();
        judge.add(GENERATION, policy.clone(), &[GENERATION]);
        Self {
            policy,
            judge,
            outcome: Outcome::default(),
            seen: HashMap::new(),
        }
    }

    /// Asks about one record.
    pub fn add(&mut self, record: &Record<'_>) {
        self.outcome.records += 1;
        if record.verdict.is_none() {
            return;
        }
        let asked = if record.op == op::RESOLVE {
            names::ask(&self.policy, record)
        } else {
            Question::of(record).and_then(|question| match question.reason {
                // What was asked about, and then granted: what the policy says of it is still `ask`.
                Reason::Approved => Some((self.ask(&question)?, Verdict::Ask)),
                // It is judged with its arguments, in a record of its own.
                Reason::AsksLater => None,
                _ => Some((self.ask(&question)?, question.verdict)),
            })
        };
        let Some((opinion, was)) = asked else {
            self.outcome.not_asked += 1;
            return;
        };
        self.outcome.asked += 1;
        let would = if goes_ahead(opinion.verdict) {
            Verdict::Allow
        } else {
            opinion.verdict
        };
        let same = match was {
            // Whether it was denied or would have been asked for, the log of a shadow run does not say.
            Verdict::WouldDeny => would != Verdict::Allow,
            was => was == would,
        };
        if same {
            return;
        }
        self.outcome.different += 1;
        match (was, would) {
            (Verdict::Allow, _) => self.outcome.would_refuse += 1,
            (_, Verdict::Allow) => self.outcome.would_permit += 1,
            _ => {}
        }
        let by = match &opinion.rule {
            Some(rule) => rule.id.clone(),
            None => opinion.reason.name().to_owned(),
        };
        self.list(record, would, by);
    }

    /// What the policy says, asked as the kernel asks under it; `None` where only the kernel can say.
    fn ask(&mut self, question: &Question) -> Option<Opinion> {
        match question.operation {
            Operation::Open if question.is_for_exec() => self.ask_program(question),
            Operation::Map => self.ask_mapping(question),
            Operation::Exec if !question.has_all_arguments() => {
                let mut event = question.event(GENERATION);
                (event.arguments, event.aux) = (&[], 0);
                let opinion = self.judge.ask(&event)?;
                (opinion.verdict != Verdict::None).then_some(opinion)
            }
            Operation::Rename | Operation::Link => self.ask_move(question),
            _ => match &question.target {
                Asked::Socket(destination) if question.operation != Operation::Listen => {
                    self.ask_destination(question, destination)
                }
                Asked::Unix(_) if question.reason == Reason::OwnSocket => self.ask_own(question),
                _ => self.judge.ask(&question.event(GENERATION)),
            },
        }
    }

    /// A destination: by rules about addresses, and where none speaks, by the name that opened it.
    fn ask_destination(
        &mut self,
        question: &Question,
        destination: &Destination,
    ) -> Option<Opinion> {
        let by_address = self.judge.ask(&question.event(GENERATION))?;
        if !self.policy.has_name_rules() {
            return Some(by_address);
        }
        if names::is_question(destination) {
            // It would go to the resolver, or be refused because it cannot.
            return None;
        }
        let Some(name) = question
            .opened_by()
            .filter(|_| by_address.reason == Reason::Default)
        else {
            return Some(by_address);
        };
        let by_name = self.policy.judge(&Action::Name {
            name,
            port: destination.port,
            protocol: destination.protocol as u8,
        });
        Some(by_name.into())
    }

    /// A socket that the agent has made: only a rule can refuse it.
    fn ask_own(&mut self, question: &Question) -> Option<Opinion> {
        let opinion = self.judge.ask(&question.event(GENERATION))?;
        Some(if opinion.reason == Reason::UnixSocket {
            Opinion {
                verdict: Verdict::Allow,
                reason: Reason::OwnSocket,
                ..opinion
            }
        } else {
            opinion
        })
    }

    /// A file that is opened to be started: what no rule speaks of is read, like a library.
    fn ask_program(&mut self, question: &Question) -> Option<Opinion> {
        let mut event = question.event(GENERATION);
        event.access = access::EXEC;
        let opinion = self.judge.ask(&event)?;
        if goes_ahead(opinion.verdict) || opinion.reason != Reason::Default {
            return Some(opinion);
        }
        event.access = access::READ;
        self.judge.ask(&event)
    }

    /// Executable memory: what a rule denies; and what the agent can write and may not start.
    fn ask_mapping(&mut self, question: &Question) -> Option<Opinion> {
        let opinion = self.judge.ask(&question.event(GENERATION))?;
        let (Asked::Path(path), false, Reason::Default) = (
            &question.target,
            goes_ahead(opinion.verdict),
            opinion.reason,
        ) else {
            return Some(opinion);
        };
        let is_program = goes_ahead(
            self.policy
                .judge(&Action::Exec { path, argv: None })
                .verdict,
        );
        let write = Action::Path {
            path,
            access: access::WRITE,
        };
        let written = self.policy.judge(&write);
        if is_program || written.verdict != Verdict::Allow {
            return Some(Opinion {
                verdict: Verdict::Allow,
                reason: Reason::Default,
                rule: None,
                name: None,
                approval: None,
            });
        }
        Some(opinion)
    }

    /// A new name must not permit what the old one does not.
    fn ask_move(&mut self, question: &Question) -> Option<Opinion> {
        let opinion = self.judge.ask(&question.event(GENERATION))?;
        let (Asked::Path(from), Some(to), Verdict::Allow) =
            (&question.target, question.second_path(), opinion.verdict)
        else {
            return Some(opinion);
        };
        let verdict = |action| self.policy.judge(&action).verdict;
        let read = |path| {
            let access = access::READ;
            goes_ahead(verdict(Action::Path { path, access }))
        };
        let starts = |path| goes_ahead(verdict(Action::Exec { path, argv: None }));
        if !read(from) && (read(to) || starts(to)) {
            return Some(Opinion {
                verdict: Verdict::Deny,
                reason: Reason::NameWidens,
                rule: None,
                name: None,
                approval: None,
            });
        }
        Some(opinion)
    }

    fn list(&mut self, record: &Record<'_>, would: Verdict, by: String) {
        let text = |text: &Option<std::borrow::Cow<'_, str>>| text.as_deref().map(str::to_owned);
        let argv: Option<Vec<String>> = record
            .argv
            .as_ref()
            .map(|argv| argv.iter().map(|text| text.clone().into_owned()).collect());
        let difference = Difference {
            seq: record.seq,
            count: record.acts(),
            op: record.op.clone().into_owned(),
            access: text(&record.access),
            target: text(&record.target).unwrap_or_default(),
            to: text(&record.to),
            argv,
            was: text(&record.verdict).unwrap_or_default(),
            was_by: text(&record.rule)
                .or(text(&record.cause))
                .unwrap_or_default(),
            would_be: would.name().to_owned(),
            by,
        };
        let key = (
            difference.op.clone(),
            difference.access.clone(),
            difference.target.clone(),
            difference.to.clone(),
            difference.argv.clone(),
            difference.was.clone(),
            difference.would_be.clone(),
        );
        if let Some(at) = self.seen.get(&key) {
            self.outcome.differences[*at].count += record.acts();
            return;
        }
        self.seen.insert(key, self.outcome.differences.len());
        self.outcome.differences.push(difference);
    }

    /// What was found.
    pub fn finish(self) -> Outcome {
        self.outcome
    }
}
