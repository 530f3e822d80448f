//! One agent and one record, as they are shown: printable text only.

use crate::audit::{Record, Tally};
use crate::cli::audit::shown;
use crate::event::escape::printable;
use crate::session::{AgentInfo, Amounts};

/// What an agent does in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    pub allowed: f64,
    pub denied: f64,
    pub bytes_in: f64,
    pub bytes_out: f64,
}

/// One budget.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetRow {
    pub id: String,
    /// Parts of the limit.
    pub spent: f64,
    pub reserved: f64,
    pub percent: u64,
    pub spent_text: String,
    pub left_text: String,
    pub at_limit: String,
}

/// One agent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentRow {
    pub name: String,
    pub session: u32,
    pub policy: String,
    pub shadow: bool,
    pub frozen: bool,
    pub processes: usize,
    pub tally: Tally,
    pub rates: Rates,
    pub traffic: Amounts,
    pub budgets: Vec<BudgetRow>,
    pub nearest: Option<(u64, String)>,
}

impl AgentRow {
    pub fn of(agent: &AgentInfo) -> Self {
        let nearest = agent.budget.as_ref();
        Self {
            name: text(&agent.name),
            session: agent.session,
            policy: text(&agent.policy),
            shadow: agent.mode == "shadow",
            frozen: agent.frozen,
            processes: agent.processes,
            tally: agent.tally,
            nearest: nearest.map(|it| (it.percent, text(&it.id))),
            ..Self::default()
        }
    }

    /// Refusals, in shadow mode those that would have been.
    pub fn refused(&self) -> u64 {
        self.tally.denied + self.tally.would_deny
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordRow {
    pub time: String,
    pub agent: String,
    pub verdict: String,
    pub refused: bool,
    pub program: String,
    pub action: String,
    /// Rule, or cause, and the reason.
    pub why: String,
}

impl RecordRow {
    /// Of a line of the log; none where it is not one.
    pub fn of(line: &str) -> Option<Self> {
        Some(Self::of_record(&serde_json::from_str(line).ok()?))
    }

    pub fn of_record(record: &Record<'_>) -> Self {
        let verdict = record.verdict.as_deref().unwrap_or("-");
        let refused = matches!(verdict, "deny" | "ask" | "would-deny");
        let rule = record.rule.as_deref().or(record.cause.as_deref());
        let why = match (refused, rule, record.reason.as_deref()) {
            (false, ..) => String::new(),
            (true, rule, Some(reason)) => format!("{}: {reason}", rule.unwrap_or("-")),
            (true, rule, None) => rule.unwrap_or("-").to_owned(),
        };
        let program = record.exe.as_deref().unwrap_or("-");
        Self {
            time: text(record.time.get(11..19).unwrap_or(&record.time)),
            agent: text(record.agent.as_deref().unwrap_or("-")),
            verdict: text(verdict),
            refused,
            program: text(program.rsplit('/').next().unwrap_or(program)),
            action: text(&shown::action(record)),
            why: text(&why),
        }
    }
}

/// Anything as text that can be shown.
pub fn text(anything: &str) -> String {
    printable(anything).into_owned()
}

/// A number of bytes in four digits or so.
pub fn bytes(count: f64) -> String {
    let mut count = count;
    for unit in ["B", "kB", "MB", "GB"] {
        if count < 999.5 {
            let digits = usize::from(unit != "B" && count < 10.0);
            return format!("{count:.digits$} {unit}");
        }
        count /= 1000.0;
    }
    format!("{count:.1} TB")
}

/// So many in a second.
pub fn rate(each: f64) -> String {
    match each {
        0.0 => "0".to_owned(),
        each if each < 10.0 => format!("{each:.1}"),
        each => format!("{each:.0}"),
    }
}
