//! The sections `budgets`, `schedule` and `models`: how much, and when.
//!
//! What they say is not in the table: the ledger, the timekeeper and the model gateway hold it in user space, and
//! kernel programs charge what they judge. Sections of several files add up: every budget and every schedule holds,
//! so that a file that extends another can only tighten it.

mod amount;
mod budgets;
mod hours;
mod models;
pub mod schema;
mod select;

use agentguard_common::budget::kind;
use agentguard_common::verdict::Verdict;
use regex_automata::meta::Regex;

pub use amount::{
    MICROS, PICO, duration_text, parse_amount, parse_duration, parse_usd, size_text, usd_text,
};
pub use hours::{Hours, Schedule, Verdict as ScheduleVerdict, moment};
pub use models::{Models, glob_regex};
use schema::BudgetRule;
pub use schema::{AtLimit, Outside, Per, UnknownPrice};
pub(super) use select::marks_of;

use super::Rule;
use super::diagnostic::{PolicyError, Source};
use super::schema::{At, Document};
use super::vars::Vars;

/// What a budget counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Quantity {
    /// Calls of models.
    Requests,
    /// Tokens that models read, cached ones included.
    InputTokens,
    /// Tokens that models wrote.
    OutputTokens,
    /// Tokens that models read from their cache.
    CachedTokens,
    /// Tokens read and written.
    Tokens,
    /// Money, in millionths of millionths of a US dollar ([`PICO`]).
    Money,
    /// Programs started.
    Execs,
    /// Files opened.
    Opens,
    /// Connections, and messages sent without one.
    Connects,
    /// Processes made.
    Processes,
    /// Bytes of packets, sent and received.
    Bytes,
    /// Bytes of packets sent.
    BytesSent,
    /// Bytes of packets received.
    BytesReceived,
    /// Refusals.
    Denials,
    /// Time under governance, in microseconds.
    WallTime,
    /// Processor time of all processes, in microseconds.
    CpuTime,
    /// Time since anything was done, in microseconds.
    IdleTime,
}

impl Quantity {
    /// Every one, in the order of the format's description.
    pub const ALL: [Self; 17] = [
        Self::Requests,
        Self::InputTokens,
        Self::OutputTokens,
        Self::CachedTokens,
        Self::Tokens,
        Self::Money,
        Self::Execs,
        Self::Opens,
        Self::Connects,
        Self::Processes,
        Self::Bytes,
        Self::BytesSent,
        Self::BytesReceived,
        Self::Denials,
        Self::WallTime,
        Self::CpuTime,
        Self::IdleTime,
    ];

    /// Its key in a policy.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::InputTokens => "input_tokens",
            Self::OutputTokens => "output_tokens",
            Self::CachedTokens => "cached_tokens",
            Self::Tokens => "tokens",
            Self::Money => "usd",
            Self::Execs => "execs",
            Self::Opens => "opens",
            Self::Connects => "connects",
            Self::Processes => "processes",
            Self::Bytes => "bytes",
            Self::BytesSent => "bytes_sent",
            Self::BytesReceived => "bytes_received",
            Self::Denials => "denials",
            Self::WallTime => "wall_time",
            Self::CpuTime => "cpu_time",
            Self::IdleTime => "idle_time",
        }
    }

    /// Whether the timekeeper charges it, and not the gateway.
    pub fn is_time(self) -> bool {
        matches!(self, Self::WallTime | Self::CpuTime | Self::IdleTime)
    }

    /// What kernel programs charge for it: bits of [`kind`]; none where user space counts.
    pub fn kinds(self) -> u32 {
        match self {
            Self::Execs => kind::EXECS,
            Self::Opens => kind::OPENS,
            Self::Connects => kind::CONNECTS,
            Self::Processes => kind::PROCESSES,
            Self::Bytes => kind::SENT | kind::RECEIVED,
            Self::BytesSent => kind::SENT,
            Self::BytesReceived => kind::RECEIVED,
            _ => 0,
        }
    }

    /// Whether it is of packets, and so has amounts that seldom fill it to the last unit.
    pub fn is_of_packets(self) -> bool {
        self.kinds() & (kind::SENT | kind::RECEIVED) != 0
    }

    /// Whether the gateway charges it, for calls of models.
    pub fn is_of_calls(self) -> bool {
        !self.is_time() && self != Self::Denials && self.kinds() == 0
    }

    /// An amount as people write it.
    pub fn text(self, amount: u64) -> String {
        match self {
            Self::Money => usd_text(amount),
            _ if self.is_time() => duration_text(amount),
            _ if self.is_of_packets() => size_text(amount),
            _ => amount.to_string(),
        }
    }
}

/// One budget.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Its id, unique in the policy.
    pub id: String,
    /// Why.
    pub reason: Option<String>,
    /// What is counted.
    pub quantity: Quantity,
    /// How much of it there is, in the quantity's unit.
    pub limit: u64,
    /// For how long.
    pub per: Per,
    /// Whether the window moves with the time, instead of beginning anew at fixed times.
    pub sliding: bool,
    /// The models that it speaks of, as written; empty for all.
    pub models: Vec<String>,
    matcher: Option<Regex>,
    /// The rules that permit what it counts; empty for all.
    pub rules: Vec<String>,
    /// Bits of [`agentguard_common::table::MARKS`] that stand for them in the table.
    pub marks: u32,
    /// Whether it may be in a policy without `models`, where nothing could be charged to it.
    pub may_sleep: bool,
    /// Percentages at which a warning is given, rising.
    pub warn: Vec<u8>,
    /// What happens when it is spent.
    pub at_limit: AtLimit,
    /// File and line.
    pub place: String,
}

impl Budget {
    /// Whether it speaks of a model.
    pub fn covers(&self, model: &str) -> bool {
        self.matcher
            .as_ref()
            .is_none_or(|matcher| matcher.is_match(model))
    }

    /// What is counted of which models or rules in which window: budgets of the same meter share one count, and a
    /// changed limit keeps it.
    pub fn meter(&self) -> String {
        let kind = if self.sliding { "sliding" } else { "fixed" };
        let mut of = [&*self.models, &*self.rules].concat();
        of.sort();
        format!(
            "{}/{}/{kind}/{}",
            self.quantity.name(),
            self.per.name(),
            of.join(",")
        )
    }

    /// Whether it ends with the session, or after a minute at most.
    pub fn is_of_now(&self) -> bool {
        matches!(self.per, Per::Second | Per::Minute | Per::Session)
    }

    /// Whether the network is closed when it is spent: it is asked for, or no packet would go through.
    pub fn closes_network(&self) -> bool {
        self.closes() != 0
    }

    /// What kernel programs refuse when it is spent, besides what it counts: bits of [`kind`].
    pub fn closes(&self) -> u32 {
        match self.at_limit {
            AtLimit::DenyNetwork => kind::CONNECTS | kind::SENT | kind::RECEIVED,
            // Packets are refused by the budget itself, in its own direction.
            _ if self.quantity.is_of_packets() => kind::CONNECTS,
            _ => 0,
        }
    }

    /// What kernel programs charge to it or refuse because of it: bits of [`kind`].
    fn kinds(&self) -> u32 {
        self.quantity.kinds() | self.closes()
    }

    /// Whether kernel programs have to know of it: they charge it, or refuse connections when it is spent.
    pub fn is_for_kernel(&self) -> bool {
        self.kinds() != 0
    }

    /// In words: `100000 tokens per day of claude-*`.
    pub fn text(&self) -> String {
        let amount = self.quantity.text(self.limit);
        let mut text = match self.quantity {
            Quantity::Money => format!("{amount} USD"),
            Quantity::Bytes => format!("{amount} sent and received"),
            Quantity::BytesSent => format!("{amount} sent"),
            Quantity::BytesReceived => format!("{amount} received"),
            quantity => format!("{amount} {}", quantity.name().replace('_', " ")),
        };
        if self.quantity != Quantity::IdleTime {
            text.push_str(match self.per {
                Per::Total => " in all",
                _ => " per ",
            });
            if self.per != Per::Total {
                text.push_str(self.per.name());
            }
            if self.sliding {
                text.push_str(" (sliding)");
            }
        }
        if !self.models.is_empty() {
            text.push_str(" of ");
            text.push_str(&self.models.join(", "));
        }
        if !self.rules.is_empty() {
            text.push_str(" by ");
            text.push_str(&self.rules.join(", "));
        }
        text
    }
}

/// What the three sections say together.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// All budgets, those of the outermost file first.
    pub budgets: Vec<Budget>,
    /// Budgets of calls that hold as soon as a file has `models`.
    pub asleep: Vec<Budget>,
    /// All schedules; each must hold.
    pub schedules: Vec<Schedule>,
    /// Which models may be called through the gateway; `None` where no file has the section.
    pub models: Option<Models>,
}

impl Limits {
    /// Whether there is anything for user space to hold.
    pub fn is_empty(&self) -> bool {
        self.budgets.is_empty() && self.schedules.is_empty() && self.models.is_none()
    }

    /// What kernel programs charge or refuse: bits of [`kind`].
    pub fn kinds(&self) -> u32 {
        self.budgets.iter().fold(0, |all, it| all | it.kinds())
    }

    /// Whether kernel programs have something to charge.
    pub fn are_for_kernel(&self) -> bool {
        self.kinds() != 0
    }

    /// Reads the sections of all files. Rules, the default for addresses and variables are those of all files, too.
    pub(super) fn join(
        documents: &[(&Source, &Document)],
        rules: &[Rule],
        network: Verdict,
        vars: &Vars,
    ) -> Result<Self, PolicyError> {
        let mut limits = Self {
            models: models::join(documents)?,
            ..Self::default()
        };
        for (source, document) in documents {
            for (index, rule) in document.budgets.iter().flatten().enumerate() {
                let budget = budgets::lower(source, rule, index + 1, vars)?;
                if let Some(first) = limits.all().find(|other| other.id == budget.id) {
                    return Err(PolicyError::at(
                        source,
                        rule.value.id.as_ref().map_or(rule.span, |id| id.span),
                        format!("the budget id `{}` is used twice", budget.id),
                        format!(
                            "records name budgets by id; the other one is at {}",
                            first.place
                        ),
                    ));
                }
                if limits.models.is_none() && budget.quantity.is_of_calls() {
                    if !budget.may_sleep {
                        return Err(without_models(source, rule, &budget));
                    }
                    limits.asleep.push(budget);
                    continue;
                }
                limits.budgets.push(budget);
                let last = limits.budgets.len() - 1;
                select::mark(source, rule, &mut limits.budgets, last, (rules, network))?;
            }
            if let Some(schedule) = &document.schedule {
                limits.schedules.push(hours::lower(source, schedule)?);
            }
        }
        Ok(limits)
    }

    /// Every budget that is written.
    fn all(&self) -> impl Iterator<Item = &Budget> {
        self.budgets.iter().chain(&self.asleep)
    }
}

/// A budget that nothing would ever be charged to.
fn without_models(source: &Source, rule: &At<BudgetRule>, budget: &Budget) -> PolicyError {
    PolicyError::at(
        source,
        rule.span,
        format!(
            "`{}` counts calls of models, but the policy has no section `models`",
            budget.id
        ),
        "add `models: {providers: [...]}`: only calls through the gateway can be counted; or let the budget wait for \
         a policy that does, by `without_models: ignore`",
    )
}
