//! What people and programs are told about approvals, and what they say.

use serde::{Deserialize, Serialize};

/// How far a grant goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Scope {
    /// One use, for as long as the session lasts.
    Once,
    /// Any number of uses, for so many seconds.
    Seconds(u64),
    /// Any number of uses, for as long as the session lasts.
    Session,
}

impl Scope {
    /// In words.
    pub fn text(self) -> String {
        match self {
            Self::Once => "once".to_owned(),
            Self::Seconds(seconds) => format!("for {seconds} s"),
            Self::Session => "for the session".to_owned(),
        }
    }
}

/// An act that a rule asks about, and that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Its number, for `approvals grant`; never used again.
    pub id: u64,
    /// Name of the agent.
    pub agent: String,
    /// Its session.
    pub session: u32,
    /// What was tried, as in records.
    pub op: String,
    /// On what, escaped.
    pub target: String,
    /// rename, link: the new path, escaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// `read`, `write`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<String>,
    /// exec: the arguments, escaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// The program that tried, escaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// Process id of who tried last.
    pub pid: u32,
    /// User id of who tried last.
    pub uid: u32,
    /// The rule that asks, escaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Its reason, escaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was tried first, UTC.
    pub first: String,
    /// When it was tried last, UTC.
    pub last: String,
    /// How often.
    pub tries: u64,
    /// Who said no, where somebody did: it is not asked again in this session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied_by: Option<String>,
}

/// A grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// What was asked for, with the number of the approval.
    #[serde(flatten)]
    pub what: Waiting,
    /// How far it goes.
    pub scope: Scope,
    /// Who granted it.
    pub by: String,
    /// When, UTC.
    pub at: String,
    /// Until when, UTC; with the session if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// How often it was used.
    pub used: u64,
    /// Nothing is left of it: it was used, or its time is over.
    pub over: bool,
}

/// `GET /v1/approvals`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approvals {
    /// What waits, oldest first.
    pub waiting: Vec<Waiting>,
    /// What is granted, oldest first.
    pub granted: Vec<Granted>,
    /// Acts that were refused while too many waited: they are in the audit log only.
    pub dropped: u64,
}
