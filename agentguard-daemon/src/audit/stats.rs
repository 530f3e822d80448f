//! Counts over records: what an agent did, in numbers. Every number is counted from the log.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use serde::Serialize;

use super::record::Record;

/// Different values that are counted of each kind; the rest is counted as `other`.
const DIFFERENT: usize = 200_000;

/// A value and how often it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Count {
    /// What.
    pub what: String,
    /// How often.
    pub count: u64,
}

/// A part of the time that is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Slice {
    /// Actions that went ahead.
    pub allowed: u64,
    /// Actions that were refused.
    pub denied: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Stats {
    /// Records.
    pub records: u64,
    /// Actions by verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// Time of the first and of the last.
    pub first: Option<String>,
    /// The last.
    pub last: Option<String>,
    /// Records that were lost, as gap records say.
    pub lost: u64,
    ops: HashMap<String, u64>,
    agents: HashMap<String, u64>,
    programs: HashMap<String, u64>,
    rules: HashMap<String, u64>,
    denied: HashMap<String, u64>,
    read: HashMap<String, u64>,
    written: HashMap<String, u64>,
    hosts: HashMap<String, u64>,
    listened: HashMap<String, u64>,
    resolved: HashMap<String, u64>,
    sent: HashMap<String, u64>,
    received: HashMap<String, u64>,
    seconds: BTreeMap<i64, Slice>,
}

fn add(to: &mut HashMap<String, u64>, what: &str) {
    add_many(to, what, 1);
}

fn add_many(to: &mut HashMap<String, u64>, what: &str, number: u64) {
    let what = if to.contains_key(what) || to.len() < DIFFERENT {
        what
    } else {
        "other"
    };
    if let Some(count) = to.get_mut(what) {
        *count = count.saturating_add(number);
    } else {
        to.insert(what.to_owned(), number);
    }
}

/// A host by the name that opened its address, or by the address.
fn host<'a>(record: &'a Record<'_>, target: &'a str) -> Cow<'a, str> {
    match (&record.name, record.port) {
        (Some(name), Some(port)) => format!("{name}:{port}").into(),
        (Some(name), None) => Cow::Borrowed(name),
        (None, _) => target.into(),
    }
}

impl Stats {
    /// Counts one record.
    pub fn add(&mut self, record: &Record<'_>) {
        self.records += 1;
        if self
            .first
            .as_deref()
            .is_none_or(|first| *record.time < *first)
        {
            self.first = Some(record.time.clone().into_owned());
        }
        if self.last.as_deref().is_none_or(|last| *record.time > *last) {
            self.last = Some(record.time.clone().into_owned());
        }
        add(&mut self.ops, &record.op);
        if record.op == "gap" {
            self.lost += record.lost.unwrap_or(0);
        }
        if let Some(agent) = &record.agent {
            add(&mut self.agents, agent);
        }
        if record.op == "traffic" {
            let host = host(
                record,
                record.target.as_deref().unwrap_or("everything else"),
            );
            for (to, bytes) in [
                (&mut self.sent, record.bytes_out),
                (&mut self.received, record.bytes_in),
            ] {
                if let Some(bytes) = bytes.filter(|bytes| *bytes > 0) {
                    add_many(to, &host, bytes);
                }
            }
        }
        let Some(verdict) = record.verdict.as_deref() else {
            return;
        };
        let acts = record.acts();
        let add = |to: &mut HashMap<String, u64>, what: &str| add_many(to, what, acts);
        *self.verdicts.entry(verdict.to_owned()).or_default() += acts;
        let refused = verdict != "allow";
        if let Ok(time) = record.time.parse::<Timestamp>() {
            let slice = self.seconds.entry(time.as_second()).or_default();
            if refused {
                slice.denied += acts;
            } else {
                slice.allowed += acts;
            }
        }
        if let Some(exe) = &record.exe {
            add(&mut self.programs, exe);
        }
        let target = record.target.as_deref().unwrap_or("-");
        if refused {
            let rule = record.rule.as_deref().or(record.cause.as_deref());
            add(&mut self.rules, rule.unwrap_or("-"));
            let access = record.access.as_deref().unwrap_or(&record.op);
            add(&mut self.denied, &format!("{access} {target}"));
            return;
        }
        let is_socket = record.family.is_some();
        match (&*record.op, record.access.as_deref()) {
            ("connect" | "send", _) => add(&mut self.hosts, &host(record, target)),
            ("receive", _) if is_socket => add(&mut self.hosts, &host(record, target)),
            ("listen", _) => add(&mut self.listened, target),
            ("resolve", _) => add(&mut self.resolved, target),
            ("open" | "receive", Some("read")) => add(&mut self.read, target),
            ("open" | "receive", Some("exec")) => {}
            (
                "open" | "receive" | "create" | "rename" | "link" | "unlink" | "rmdir" | "mkdir"
                | "symlink" | "mknod" | "truncate" | "chmod" | "chown" | "attribute",
                _,
            ) if record.target.is_some() => add(&mut self.written, target),
            _ => {}
        }
    }

    /// Actions over the time, in so many equal parts, with the seconds that one part has.
    pub fn over_time(&self, parts: usize) -> (i64, u64, Vec<Slice>) {
        let (Some((first, _)), Some((last, _))) = (
            self.seconds.first_key_value(),
            self.seconds.last_key_value(),
        ) else {
            return (0, 1, Vec::new());
        };
        let length = last.abs_diff(*first);
        let step = (length + 1).div_ceil(parts.max(1) as u64).max(1);
        let mut slices = vec![Slice::default(); (length / step + 1) as usize];
        for (second, count) in &self.seconds {
            let slice = &mut slices[(second.abs_diff(*first) / step) as usize];
            slice.allowed += count.allowed;
            slice.denied += count.denied;
        }
        (*first, step, slices)
    }

    /// As people and programs read it, with the `top` most frequent of each kind.
    pub fn summary(&self, top: usize) -> Summary {
        let most = |counts: &HashMap<String, u64>| {
            let mut all: Vec<Count> = counts
                .iter()
                .map(|(what, count)| Count {
                    what: what.clone(),
                    count: *count,
                })
                .collect();
            all.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.what.cmp(&b.what)));
            all.truncate(top);
            all
        };
        Summary {
            records: self.records,
            first: self.first.clone(),
            last: self.last.clone(),
            lost: self.lost,
            verdicts: self.verdicts.clone(),
            operations: most(&self.ops),
            agents: most(&self.agents),
            programs: most(&self.programs),
            refused_by: most(&self.rules),
            refused: most(&self.denied),
            files_read: most(&self.read),
            files_changed: most(&self.written),
            hosts: most(&self.hosts),
            listened_at: most(&self.listened),
            names_resolved: most(&self.resolved),
            bytes_sent: most(&self.sent),
            bytes_received: most(&self.received),
            different_operations: self.ops.len(),
            different_agents: self.agents.len(),
            different_programs: self.programs.len(),
            different_refused_by: self.rules.len(),
            different_refused: self.denied.len(),
            different_files_read: self.read.len(),
            different_files_changed: self.written.len(),
            different_hosts: self.hosts.len(),
            different_listened_at: self.listened.len(),
            different_names_resolved: self.resolved.len(),
            different_bytes_sent: self.sent.len(),
            different_bytes_received: self.received.len(),
        }
    }
}

/// Counts, the most frequent first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Records.
    pub records: u64,
    /// Time of the first.
    pub first: Option<String>,
    /// Time of the last.
    pub last: Option<String>,
    /// Records that were lost, as gap records say.
    pub lost: u64,
    /// Actions by verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// Records by operation.
    pub operations: Vec<Count>,
    /// Records by agent.
    pub agents: Vec<Count>,
    /// Actions by the program that acted.
    pub programs: Vec<Count>,
    /// Refusals by rule, or by cause where there is none.
    pub refused_by: Vec<Count>,
    /// What was refused.
    pub refused: Vec<Count>,
    /// Files that were read.
    pub files_read: Vec<Count>,
    /// Files that were made, written, renamed, removed.
    pub files_changed: Vec<Count>,
    /// Where connections and messages went: by name where a name opened the address.
    pub hosts: Vec<Count>,
    /// Addresses and names that were listened at.
    pub listened_at: Vec<Count>,
    /// Names that were resolved.
    pub names_resolved: Vec<Count>,
    /// Bytes that were sent, by host, of agents that have ended.
    pub bytes_sent: Vec<Count>,
    /// Bytes that were received, by host, of agents that have ended.
    pub bytes_received: Vec<Count>,
    /// How many different ones, of all.
    pub different_operations: usize,
    /// How many different ones, of all.
    pub different_agents: usize,
    /// How many different ones, of all.
    pub different_programs: usize,
    /// How many different ones, of all.
    pub different_refused_by: usize,
    /// How many different ones, of all.
    pub different_refused: usize,
    /// How many different ones, of all.
    pub different_files_read: usize,
    /// How many different ones, of all.
    pub different_files_changed: usize,
    /// How many different ones, of all.
    pub different_hosts: usize,
    /// How many different ones, of all.
    pub different_listened_at: usize,
    /// How many different ones, of all.
    pub different_names_resolved: usize,
    /// How many different ones, of all.
    pub different_bytes_sent: usize,
    /// How many different ones, of all.
    pub different_bytes_received: usize,
}

impl Summary {
    /// Its lists, with what they are of and how many there are in all.
    pub fn lists(&self) -> [(&'static str, &[Count], usize); 12] {
        [
            ("operations", &self.operations, self.different_operations),
            ("agents", &self.agents, self.different_agents),
            ("programs", &self.programs, self.different_programs),
            ("refused by", &self.refused_by, self.different_refused_by),
            ("refused", &self.refused, self.different_refused),
            ("files read", &self.files_read, self.different_files_read),
            (
                "files changed",
                &self.files_changed,
                self.different_files_changed,
            ),
            ("hosts", &self.hosts, self.different_hosts),
            ("listened at", &self.listened_at, self.different_listened_at),
            (
                "names resolved",
                &self.names_resolved,
                self.different_names_resolved,
            ),
            ("bytes sent to", &self.bytes_sent, self.different_bytes_sent),
            (
                "bytes received from",
                &self.bytes_received,
                self.different_bytes_received,
            ),
        ]
    }
}
