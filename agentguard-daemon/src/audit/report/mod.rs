//! A report on what agents did, for people who must judge it: text, Markdown, or one page of HTML.
//!
//! Every number is counted from the records of the log; the report says which, so that it can be made again. It
//! never loads anything from elsewhere, and nothing from a record can become markup or a line of its own.

mod html;
#[cfg(test)]
mod tests;
mod words;

use super::record::Record;
use super::stats::{Count, Slice, Stats, Summary};
use super::verify;

/// Parts of the time that are shown.
const PARTS: usize = 60;

/// What a report is made of.
#[derive(Debug)]
pub struct Report {
    /// What it is about: the filter in words.
    pub about: String,
    /// The log.
    pub log: String,
    /// When it was made.
    pub made: String,
    /// The command that makes it again.
    pub command: String,
    /// Counts.
    pub summary: Summary,
    /// Sessions that have records in it.
    pub sessions: Vec<Session>,
    /// Seconds since 1970 of the first part, seconds of one, and each.
    pub over_time: (i64, u64, Vec<Slice>),
    /// Whether the log is whole.
    pub verified: Option<verify::Report>,
}

/// A session that has records in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Session {
    /// Its number.
    pub session: u32,
    /// Its agent.
    pub agent: String,
    /// Policies that decided.
    pub policies: Vec<String>,
    /// Actions that went ahead.
    pub allowed: u64,
    /// Actions that were refused.
    pub refused: u64,
    /// Actions that went ahead only because of the policy's shadow mode.
    pub would_deny: u64,
    /// Time of its earliest record here.
    pub first: String,
    /// Time of its latest.
    pub last: String,
}

impl Session {
    /// Counts one of its records.
    pub fn add(&mut self, number: u32, record: &Record<'_>) {
        self.session = number;
        // Records of several processors are not quite in the order of their times.
        if self.first.is_empty() || *record.time < *self.first {
            self.first = record.time.clone().into_owned();
        }
        if *record.time > *self.last {
            self.last = record.time.clone().into_owned();
        }
        if let Some(agent) = record.agent.as_deref().filter(|_| self.agent.is_empty()) {
            self.agent = agent.to_owned();
        }
        match record.verdict.as_deref() {
            Some("allow") => self.allowed += record.acts(),
            Some("would-deny") => self.would_deny += record.acts(),
            Some(_) => self.refused += record.acts(),
            None => {}
        }
        if let Some(policy) = record.policy.as_deref()
            && !self.policies.iter().any(|known| known == policy)
        {
            self.policies.push(policy.to_owned());
        }
    }
}

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// For a terminal.
    Text,
    /// For documents.
    Markdown,
    /// One page with plots.
    Html,
}

impl Report {
    /// A report on counted records.
    pub fn new(stats: &Stats, sessions: Vec<Session>, top: usize) -> Self {
        Self {
            about: String::new(),
            log: String::new(),
            made: String::new(),
            command: String::new(),
            summary: stats.summary(top),
            sessions,
            over_time: stats.over_time(PARTS),
            verified: None,
        }
    }

    /// As text of a form.
    pub fn write(&self, form: Form) -> String {
        match form {
            Form::Text => words::write(self, false),
            Form::Markdown => words::write(self, true),
            Form::Html => html::write(self),
        }
    }

    /// What counts that know no shadow mode call refused.
    fn refused(&self) -> &'static str {
        if self.summary.verdicts.contains_key("would-deny") {
            "refused (or would be, in shadow mode)"
        } else {
            "refused"
        }
    }

    /// The lists, with their titles.
    fn lists(&self) -> Vec<(String, &[Count])> {
        let verdicts = self.summary.lists().into_iter();
        let lists = verdicts.filter(|(_, counts, _)| !counts.is_empty());
        lists
            .map(|(title, counts, different)| {
                let title = title.replace("refused", self.refused());
                let title = if different > counts.len() {
                    format!("{title} ({} of {different})", counts.len())
                } else {
                    title
                };
                (title, counts)
            })
            .collect()
    }

    /// Actions by verdict.
    fn verdicts(&self) -> Vec<Count> {
        let verdicts = self.summary.verdicts.iter();
        verdicts
            .map(|(what, count)| Count {
                what: what.clone(),
                count: *count,
            })
            .collect()
    }

    /// What can be said about the log.
    fn integrity(&self) -> String {
        match &self.verified {
            None => "The log was not checked (`--verify`).".to_owned(),
            Some(report) if report.is_proved() => format!(
                "The log is whole: {} records, signed by key {} up to record {}; {} after that are not signed yet.",
                report.records,
                report.keys.join(" or "),
                report.signed_to,
                report.unsigned
            ),
            Some(report) if report.is_whole() => {
                "Nothing is wrong with the log, but no signature proves it.".to_owned()
            }
            Some(report) => format!(
                "THE LOG IS NOT WHOLE: {} findings, {} records are missing. The numbers below are of what is left.",
                report.findings.len() as u64 + report.more,
                report.missing
            ),
        }
    }
}

/// When a part of the time begins.
fn stamp(first: i64, step: u64, number: usize) -> String {
    let second = first.saturating_add_unsigned(step.saturating_mul(number as u64));
    jiff::Timestamp::from_second(second)
        .map_or_else(|_| second.to_string(), |it| format!("{it:.0}"))
}

/// How long one part is.
fn span(seconds: u64) -> String {
    match seconds {
        1 => "1 second".to_owned(),
        s if s % 3600 == 0 => format!("{} h", s / 3600),
        s if s % 60 == 0 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}
