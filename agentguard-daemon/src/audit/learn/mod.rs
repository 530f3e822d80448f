//! From a log of what a run did to the smallest policy under which it could do it again.
//!
//! Only what was permitted (or, in shadow mode, went ahead) is learnt: what was refused stays refused. Names that
//! differ from run to run become patterns, many files of one folder become the folder; nothing is widened into a
//! place where secrets are kept. The policy is checked before it is handed out: the same log is replayed under it.

mod network;
mod places;
#[cfg(test)]
mod tests;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use agentguard_common::verdict::{Lock, Operation, Reason, Verdict, access};

use self::network::Place;
use self::places::Tree;
use super::record::Record;
use super::replay::{Asked, Difference, Question, Replay};
use crate::event::escape::{printable, unescape};
use crate::policy::{self, LoadOptions, Policy, PolicyError};

/// Examples of what a rule was seen for.
const EXAMPLES: usize = 3;
/// Each adds what renaming needs; what is added can make a pattern wider, which can need more.
const ATTEMPTS: u32 = 4;

/// What a run did, so far.
#[derive(Debug, Default)]
pub struct Lesson {
    /// Files by what was done to them.
    files: BTreeMap<u8, Tree>,
    /// Programs, with command lines that were seen.
    programs: BTreeMap<Vec<u8>, Seen>,
    /// Files that were opened to be started.
    opened: BTreeMap<Vec<u8>, Seen>,
    /// Destinations.
    hosts: BTreeMap<Place, Seen>,
    /// Hosts whose addresses were opened by their names.
    names: BTreeMap<Place, Seen>,
    /// Addresses that were listened at.
    listening: BTreeMap<Place, Seen>,
    /// Unix-domain sockets that were reached: a path, or a NUL and an abstract name.
    unix: BTreeMap<Vec<u8>, Seen>,
    /// Abstract names that were taken.
    taken: BTreeMap<Vec<u8>, Seen>,
    locks: BTreeMap<&'static str, Seen>,
    /// Records that were learnt from, and refused ones that were not.
    pub learnt: u64,
    /// Refused, so not learnt.
    pub refused: u64,
    /// Questions, once each, for the check.
    asked: BTreeSet<Vec<u8>>,
    records: Vec<Record<'static>>,
}

/// What something was seen for.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How often.
    pub count: u64,
    /// By which programs.
    pub by: BTreeSet<String>,
    /// Some of what was seen.
    pub examples: BTreeSet<String>,
}

impl Seen {
    fn add(&mut self, by: Option<&str>, example: String) {
        self.count += 1;
        if self.by.len() < EXAMPLES {
            let by = by.unwrap_or("?");
            self.by
                .insert(by.rsplit('/').next().unwrap_or(by).to_owned());
        }
        if self.examples.len() < EXAMPLES {
            self.examples.insert(example);
        }
    }

    fn join(&mut self, other: &Self) {
        self.count += other.count;
        self.by.extend(other.by.iter().cloned());
        self.examples.extend(other.examples.iter().cloned());
        while self.by.len() > EXAMPLES {
            self.by.pop_last();
        }
        while self.examples.len() > EXAMPLES {
            self.examples.pop_last();
        }
    }
}

/// Why nothing could be learnt.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// The log has nothing of it.
    #[error(
        "nothing was permitted in these records: there is nothing to learn (was the run governed by a policy in `mode: shadow`, or by `permissive`?)"
    )]
    Nothing,
    /// The text that was made is not a policy. Never expected.
    #[error("the policy that was made is not valid; please report this: {0}")]
    Policy(#[from] PolicyError),
    /// It does not fit the kernel's table.
    #[error("{0}: learn from fewer records (`--session`, `--since`, `--path`)")]
    TooLarge(PolicyError),
    /// The run would not pass. Never expected.
    #[error(
        "under the policy that was made, {0} records of the same log would be refused; please report this. The first: {1}"
    )]
    Refuses(u64, String),
}

impl Lesson {
    /// Learns from one record.
    pub fn add(&mut self, record: &Record<'_>) {
        let Some(question) = Question::of(record) else {
            return;
        };
        if matches!(question.verdict, Verdict::Deny | Verdict::Ask) {
            self.refused += 1;
            return;
        }
        // What no rule can permit or needs to.
        if !matches!(
            question.reason,
            Reason::Rule | Reason::Default | Reason::UnixSocket | Reason::Opened | Reason::Locked
        ) {
            // A socket of its own needs no rule, and must not be denied.
            if question.reason == Reason::OwnSocket {
                self.keep(record);
            }
            return;
        }
        if let Asked::Unix(name) = &question.target
            && name.iter().all(|byte| *byte == 0)
        {
            // Nothing but NULs: no pattern speaks of it and of little else.
            return;
        }
        self.learnt += 1;
        self.note(record, &question);
        self.keep(record);
    }

    fn note(&mut self, record: &Record<'_>, question: &Question) {
        let by = record.exe.as_deref();
        let text = record.target.as_deref().unwrap_or_default().to_owned();
        match (&question.target, question.operation) {
            (Asked::Unix(name), operation) => {
                let names = match operation {
                    Operation::Listen => &mut self.taken,
                    _ => &mut self.unix,
                };
                names.entry(name.clone()).or_default().add(by, text);
            }
            (Asked::Socket(at), Operation::Listen) => {
                let place = network::address(&at.listen_key(), at);
                let place = network::as_listened(place);
                self.listening.entry(place).or_default().add(by, text);
            }
            (Asked::Socket(to), _) => {
                let (hosts, place) = match question.opened_by() {
                    Some(name) => (&mut self.names, network::place(name.to_owned(), to)),
                    // As it is judged: the unspecified address is loopback.
                    None => (&mut self.hosts, network::address(&to.key(), to)),
                };
                hosts.entry(place).or_default().add(by, text);
            }
            (Asked::Unnamed, Operation::Kernel) => {
                let name = text.split(':').next().unwrap_or_default();
                if let Some(lock) = Lock::ALL.iter().find(|lock| lock.name() == name) {
                    self.locks.entry(lock.name()).or_default().add(by, text);
                }
            }
            (Asked::Path(path), Operation::Exec) => {
                let command = record.argv.as_deref().unwrap_or_default().join(" ");
                let seen = self.programs.entry(path.clone()).or_default();
                seen.add(by, shorten(&command));
            }
            (Asked::Path(path), _) if question.access & access::EXEC != 0 => {
                // A program that is opened to be started; its interpreter and libraries are read.
                if question.is_for_exec() {
                    self.programs.entry(path.clone()).or_default();
                    let opened = self.opened.entry(path.clone()).or_default();
                    opened.add(by, text.clone());
                    self.file(access::READ, path, by, &text);
                } else {
                    self.programs.entry(path.clone()).or_default().add(by, text);
                }
            }
            (Asked::Path(path), _) => {
                let mut bits = question.access;
                // An open for neither is judged as one for both, a change of a name as writing.
                if bits == 0 {
                    bits = access::READ | access::WRITE;
                }
                match question.second_path() {
                    Some(to) => {
                        self.file(access::WRITE, path, by, &text);
                        let text = record.to.as_deref().unwrap_or_default();
                        self.file(access::WRITE, to, by, text);
                    }
                    None => {
                        for bit in [access::READ, access::WRITE] {
                            if bits & bit != 0 {
                                self.file(bit, path, by, &text);
                            }
                        }
                    }
                }
            }
            (Asked::Unnamed, _) => {}
        }
    }

    fn file(&mut self, bit: u8, path: &[u8], by: Option<&str>, text: &str) {
        let tree = self.files.entry(bit).or_default();
        tree.see(path, |seen| seen.add(by, text.to_owned()));
    }

    /// Keeps the record for the check, unless one like it is kept.
    fn keep(&mut self, record: &Record<'_>) {
        let like = Record {
            op: record.op.clone(),
            target: record.target.clone(),
            to: record.to.clone(),
            access: record.access.clone(),
            verdict: Some("allow".into()),
            cause: record.cause.clone(),
            argv: record.argv.clone(),
            argc: record.argc,
            protocol: record.protocol.clone(),
            family: record.family.clone(),
            name: record.name.clone(),
            flags: record.flags.clone(),
            ..Record::default()
        };
        let Ok(bytes) = serde_json::to_vec(&like) else {
            return;
        };
        if self.asked.contains(&bytes) {
            return;
        }
        if let Ok(record) = serde_json::from_slice::<Record<'_>>(&bytes) {
            self.records.push(owned(&record));
            self.asked.insert(bytes);
        }
    }

    /// The policy, checked. Folders of `options.vars` get their names: `workspace`, `home`.
    pub fn policy(
        &mut self,
        name: &str,
        options: &LoadOptions,
    ) -> Result<(String, Policy), LearnError> {
        if self.learnt == 0 {
            return Err(LearnError::Nothing);
        }
        match self.checked(name, options, true) {
            // Something that was permitted in the run is what `base` denies: it stays permitted.
            Err(LearnError::Refuses(..)) => self.checked(name, options, false),
            outcome => outcome,
        }
    }

    fn checked(
        &mut self,
        name: &str,
        options: &LoadOptions,
        upon_base: bool,
    ) -> Result<(String, Policy), LearnError> {
        let mut attempts = 0;
        loop {
            let text = text::write(self, name, &options.vars, upon_base);
            let path = std::path::PathBuf::from(format!("{name}.yaml"));
            let policy = policy::load_text(&path, &text, options)?;
            let mut replay = Replay::new(Arc::new(policy.clone()));
            for record in &self.records {
                replay.add(record);
            }
            let outcome = replay.finish();
            let refused = |it: &&Difference| it.was == Verdict::Allow.name();
            let Some(first) = outcome.differences.iter().find(refused) else {
                return match policy.compile(1) {
                    Ok(_) => Ok((text, policy)),
                    Err(error) => Err(LearnError::TooLarge(error)),
                };
            };
            let first = format!("{} {} by {}", first.op, first.target, first.by);
            let refuses = LearnError::Refuses(outcome.would_refuse, first);
            attempts += 1;
            if attempts > ATTEMPTS || !self.read_what_is_renamed(&outcome.differences) {
                return Err(refuses);
            }
        }
    }

    /// What gets a name that may be read must be readable under its old one. Whether there is such a thing.
    fn read_what_is_renamed(&mut self, differences: &[Difference]) -> bool {
        let mut found = false;
        for difference in differences {
            if difference.by != Reason::NameWidens.name() {
                continue;
            }
            let Ok(path) = unescape(&difference.target) else {
                continue;
            };
            let to = difference.to.as_deref().unwrap_or_default();
            self.file(access::READ, &path, Some("rename"), &format!("to {to}"));
            found = true;
        }
        found
    }
}

/// A record that lives as long as it likes.
fn owned(record: &Record<'_>) -> Record<'static> {
    fn own(text: Option<&str>) -> Option<std::borrow::Cow<'static, str>> {
        text.map(|text| text.to_owned().into())
    }
    let list = |list: &Option<Vec<std::borrow::Cow<'_, str>>>| {
        list.as_ref().map(|list| {
            list.iter()
                .map(|text| text.clone().into_owned().into())
                .collect()
        })
    };
    Record {
        op: record.op.clone().into_owned().into(),
        target: own(record.target.as_deref()),
        to: own(record.to.as_deref()),
        access: own(record.access.as_deref()),
        verdict: own(record.verdict.as_deref()),
        cause: own(record.cause.as_deref()),
        argv: list(&record.argv),
        argc: record.argc,
        protocol: own(record.protocol.as_deref()),
        family: own(record.family.as_deref()),
        name: own(record.name.as_deref()),
        flags: list(&record.flags),
        ..Record::default()
    }
}

fn shorten(text: &str) -> String {
    const LONGEST: usize = 60;
    let printable = printable(text);
    if printable.chars().count() <= LONGEST {
        return printable.into_owned();
    }
    let short: String = printable.chars().take(LONGEST).collect();
    format!("{short}…")
}
