//! Budgets, schedules and models as their users write them. Only the shape.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use crate::policy::schema::{At, OneOrMany};

/// A budget: exactly one quantity, and for how long it must last.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BudgetRule {
    /// Calls of models.
    pub requests: Option<At<Count>>,
    /// Tokens that models read and wrote.
    pub tokens: Option<At<Count>>,
    /// Tokens that models read, cached ones included.
    pub input_tokens: Option<At<Count>>,
    /// Tokens that models wrote.
    pub output_tokens: Option<At<Count>>,
    /// Tokens that models read from their cache.
    pub cached_tokens: Option<At<Count>>,
    /// Money in US dollars, as a decimal number.
    pub usd: Option<At<Decimal>>,
    /// Programs started.
    pub execs: Option<At<Count>>,
    /// Files opened.
    pub opens: Option<At<Count>>,
    /// Connections, and messages sent without one.
    pub connects: Option<At<Count>>,
    /// Processes made.
    pub processes: Option<At<Count>>,
    /// Bytes of internet packets sent and received: a number, or with a unit (`10MB`, `1GiB`).
    pub bytes: Option<At<Size>>,
    /// Bytes of internet packets sent.
    pub bytes_sent: Option<At<Size>>,
    /// Bytes of internet packets received.
    pub bytes_received: Option<At<Size>>,
    /// Refusals.
    pub denials: Option<At<Count>>,
    /// Time under governance: `8h`, `1h30m`, `2d`.
    pub wall_time: Option<At<Span>>,
    /// Processor time of all processes.
    pub cpu_time: Option<At<Span>>,
    /// Time since anything was done; takes no `per`.
    pub idle_time: Option<At<Span>>,
    /// How long it must last.
    pub per: Option<At<Per>>,
    /// `fixed` (default): begins anew at fixed times. `sliding`: the last second, minute, hour or day.
    pub window: Option<At<WindowKind>>,
    /// Globs over names of models that it speaks of; all if absent.
    pub models: Option<OneOrMany<String>>,
    /// Ids of rules that permit what is counted (`execs`, `opens`, `connects`); everything that is permitted if absent.
    pub rules: Option<OneOrMany<String>>,
    /// Percentages at which a warning is given: 50, 80 and 95 if absent.
    pub warn: Option<Vec<At<u8>>>,
    /// What becomes of a budget of calls where no file has a section `models`: `error` (default), or `ignore`: it counts
    /// nothing until one has.
    pub without_models: Option<At<WithoutModels>>,
    /// What happens when it is spent: `deny` (default of what can be refused), `deny-network`, `freeze` (default of
    /// times and refusals) or `kill`.
    pub at_limit: Option<At<AtLimit>>,
    /// Name of the budget in records; must be unique.
    pub id: Option<At<String>>,
    /// Why; people and agents read it.
    pub reason: Option<String>,
}

/// How long a budget must last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// A second.
    Second,
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// 24 hours.
    Day,
    /// One stay under governance.
    Session,
    /// For ever.
    Total,
}

impl Per {
    /// Its name in a policy.
    pub fn name(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Session => "session",
            Self::Total => "total",
        }
    }

    /// Its length in nanoseconds, where it has one.
    pub fn length(self) -> Option<u64> {
        let seconds = match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3600,
            Self::Day => 86_400,
            Self::Session | Self::Total => return None,
        };
        Some(seconds * 1_000_000_000)
    }
}

/// When a window begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WindowKind {
    /// At fixed times.
    Fixed,
    /// It is always the last second, minute, hour or day.
    Sliding,
}

/// What becomes of a budget of calls where no model can be called through the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WithoutModels {
    /// The policy is refused.
    Error,
    /// It holds as soon as a file has the section.
    Ignore,
}

/// What happens when a budget is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AtLimit {
    /// What is counted is refused.
    Deny,
    /// What is counted is refused, and so is every connection.
    DenyNetwork,
    /// What is counted is refused, and the agent is frozen.
    Freeze,
    /// What is counted is refused, and the agent is killed.
    Kill,
}

impl AtLimit {
    /// Its name in a policy.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::DenyNetwork => "deny-network",
            Self::Freeze => "freeze",
            Self::Kill => "kill",
        }
    }
}

/// When an agent may work.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleRule {
    /// Hours of the week, each with its time zone: `Mon-Fri 08:00-19:00 Europe/London`. One of them must hold.
    pub hours: Option<OneOrMany<String>>,
    /// The end of everything: `2026-12-31T18:00:00Z`.
    pub until: Option<At<String>>,
    /// What happens outside: `freeze` (default) or `kill`.
    pub outside: Option<At<Outside>>,
    /// Why; people and agents read it.
    pub reason: Option<String>,
}

/// What happens outside of the hours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outside {
    /// The agent stands still; it goes on when its hours begin.
    Freeze,
    /// The agent is killed.
    Kill,
}

/// Which models may be called, through the gateway.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelsRule {
    /// Names of providers in the daemon's configuration: `openai`, `anthropic`, `gemini`, …
    pub providers: OneOrMany<String>,
    /// Tokens that are reserved for an answer where the request sets no limit; 8192 if absent.
    pub output_tokens: Option<At<u64>>,
    /// Tokens that are reserved for each thing that a request only refers to (images, files, earlier
    /// answers); 16384 if absent.
    pub outside_tokens: Option<At<u64>>,
    /// What becomes of models that have no price, where a budget counts money: `deny` (default), or
    /// `dearest`: the highest price of the table.
    pub unknown_price: Option<At<UnknownPrice>>,
}

/// What becomes of models without a price.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UnknownPrice {
    /// They may not be called.
    Deny,
    /// They are charged the highest price of the table.
    Dearest,
}

macro_rules! kept_as_text {
    ($(#[$doc:meta])* $name:ident, $title:literal, $schema:tt) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                $title.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

kept_as_text!(
    /// A whole number, kept as text so that the diagnostic can say what is wrong.
    Count,
    "Count",
    { "anyOf": [{ "type": "integer", "minimum": 0 }, { "type": "string", "pattern": "^([0-9_]+|\\$\\{[A-Za-z0-9_]+\\})$" }] }
);
kept_as_text!(
    /// An amount of bytes, kept as text.
    Size,
    "Size",
    { "anyOf": [{ "type": "integer", "minimum": 0 }, { "type": "string", "pattern": "^([0-9_]+ ?([kKMGT]i?B)?|\\$\\{[A-Za-z0-9_]+\\})$" }] }
);
kept_as_text!(
    /// A decimal number, kept as text: it never becomes a floating-point number.
    Decimal,
    "Decimal",
    { "anyOf": [{ "type": "number", "minimum": 0 }, { "type": "string", "pattern": "^([0-9_]+(\\.[0-9]+)?|\\$\\{[A-Za-z0-9_]+\\})$" }] }
);
kept_as_text!(
    /// A stretch of time, kept as text.
    Span,
    "Span",
    { "type": "string", "pattern": "^(([0-9]+[smhd])+|\\$\\{[A-Za-z0-9_]+\\})$" }
);
