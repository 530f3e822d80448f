//! What people and programs are told about approvals, and what they say.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::event::escape::printable;
use crate::hex::hex;
use crate::policy::limits::{MICROS, parse_duration};

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

/// The seconds of a time as people write it, `15m`.
pub fn seconds(text: &str) -> Result<u64, String> {
    match parse_duration(text) {
        Ok(micros) if micros >= MICROS => Ok(micros / MICROS),
        Ok(_) => Err("the shortest time is one second".to_owned()),
        Err(error) => Err(error.message),
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

impl Waiting {
    /// What tells it from every other act, also from one that an earlier daemon had under the same number: a digest of
    /// its number, of what it is, and of when it was tried first.
    pub fn key(&self) -> String {
        let what = (
            (self.id, &self.agent, self.session, &self.first),
            (&self.op, &self.target, &self.to, &self.access, &self.argv),
        );
        // Text and numbers can always be written.
        let text = serde_json::to_vec(&what).unwrap_or_default();
        hex(&Sha256::digest(text)[..16])
    }

    /// What was tried: `run /usr/bin/git push`, `write /etc/hosts`. For people; every byte of it is printable.
    pub fn deed(&self) -> String {
        let target = printable(&self.target);
        match (self.op.as_str(), &self.argv, &self.access, &self.to) {
            ("exec", Some(argv), ..) => {
                let arguments = argv.iter().skip(1).map(|it| printable(it));
                arguments.fold(format!("run {target}"), |text, it| format!("{text} {it}"))
            }
            ("open", _, Some(access), _) => format!("{access} {target}"),
            ("connect", ..) => format!("connect to {target}"),
            (op, _, _, Some(to)) => format!("{} {target} to {}", printable(op), printable(to)),
            (op, ..) => format!("{} {target}", printable(op)),
        }
    }
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
    /// Acts that were refused while too many waited, or could not be numbered: they are in the audit log only.
    pub dropped: u64,
    /// How the webhook is, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookState>,
}

/// How the webhook is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookState {
    /// Whom it asks: scheme, host and port.
    pub to: String,
    /// Since the daemon started: acts that it granted.
    pub granted: u64,
    /// Acts that it denied.
    pub denied: u64,
    /// Answers that a person has not decided yet.
    pub pending: u64,
    /// Requests without an answer: it cannot be reached, is too slow, or says that something is wrong.
    pub failed: u64,
    /// Answers that do not count: not signed, of another request, or not understood.
    pub invalid: u64,
    /// Answers to acts that did not wait any more.
    pub late: u64,
    /// What went wrong last; gone when an answer counts again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble_at: Option<String>,
}
