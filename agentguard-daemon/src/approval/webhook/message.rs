//! What is asked, and what is answered, as JSON.

use serde::{Deserialize, Serialize};

use crate::approval::{Scope, Waiting, seconds};
use crate::event::escape::{escape, printable};

/// Version of the format.
const VERSION: u32 = 1;
/// Most characters of the name of whoever answered.
const NAME_MAX: usize = 64;

/// An act that is asked about.
#[derive(Clone, Debug)]
pub struct Asked {
    /// As it waits.
    pub waiting: Waiting,
    /// The policy of its agent.
    pub policy: String,
}

impl Asked {
    /// What the receiver knows it by. No other act has it, also not one of a later daemon on this host.
    pub fn id(&self) -> String {
        format!("{}-{}", self.waiting.id, self.waiting.key())
    }

    /// The question about it.
    pub fn question(&self, host: &str, nonce: &str, times: [&str; 2]) -> Result<Vec<u8>, String> {
        let it = &self.waiting;
        let [time, expires] = times;
        let question = Question {
            version: VERSION,
            id: &self.id(),
            number: it.id,
            nonce,
            time,
            expires,
            host,
            agent: &it.agent,
            session: it.session,
            policy: &escape(self.policy.as_bytes()),
            asks_to: &it.deed(),
            act: Act {
                op: &it.op,
                target: &it.target,
                to: it.to.as_deref(),
                access: it.access.as_deref(),
                argv: it.argv.as_deref(),
                exe: it.exe.as_deref(),
                pid: it.pid,
                uid: it.uid,
            },
            rule: it.rule.as_deref(),
            reason: it.reason.as_deref(),
            tries: it.tries,
            first: &it.first,
            last: &it.last,
        };
        serde_json::to_vec(&question).map_err(|error| error.to_string())
    }
}

#[derive(Serialize)]
struct Question<'a> {
    version: u32,
    id: &'a str,
    number: u64,
    nonce: &'a str,
    time: &'a str,
    expires: &'a str,
    host: &'a str,
    agent: &'a str,
    session: u32,
    policy: &'a str,
    asks_to: &'a str,
    act: Act<'a>,
    rule: Option<&'a str>,
    reason: Option<&'a str>,
    tries: u64,
    first: &'a str,
    last: &'a str,
}

/// The act, with the names of records and escaped as there.
#[derive(Serialize)]
struct Act<'a> {
    op: &'a str,
    target: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    access: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    argv: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exe: Option<&'a str>,
    pid: u32,
    uid: u32,
}

/// What a receiver says. The name of whoever answered is escaped, and not long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nobody has decided yet.
    Pending,
    /// Yes.
    Grant {
        /// How far.
        scope: Scope,
        /// By whom.
        by: Option<String>,
    },
    /// No.
    Deny {
        /// By whom.
        by: Option<String>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Pending,
    Grant,
    Deny,
}

/// What is not known is not passed over: it may be a misspelt limit.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    answer: Word,
    nonce: String,
    #[serde(default)]
    id: Option<String>,
    #[serde(default, rename = "for")]
    scope: Option<String>,
    #[serde(default)]
    by: Option<String>,
}

impl Answer {
    /// Reads an answer to the question with this id and nonce.
    pub fn read(body: &[u8], id: &str, nonce: &str) -> Result<Self, String> {
        let given: Given = serde_json::from_slice(body).map_err(|error| {
            let what = printable(&error.to_string()).into_owned();
            format!("it is not understood: {}", shortened(&what, 200))
        })?;
        if given.nonce != nonce {
            return Err("its nonce is of another question".to_owned());
        }
        if given.id.is_some_and(|it| it != id) {
            return Err("it is about another act".to_owned());
        }
        let by = given.by.filter(|by| !by.is_empty());
        let by = by.map(|by| escape(shortened(&by, NAME_MAX).as_bytes()).into_owned());
        match (given.answer, given.scope) {
            (Word::Pending, None) => Ok(Self::Pending),
            (Word::Deny, None) => Ok(Self::Deny { by }),
            (Word::Grant, Some(scope)) => Ok(Self::Grant {
                scope: scope_of(&scope)?,
                by,
            }),
            (Word::Grant, None) => {
                Err("a grant says `for` what: `once`, a time, or `session`".to_owned())
            }
            (_, Some(_)) => Err("only a grant is `for` something".to_owned()),
        }
    }
}

fn scope_of(text: &str) -> Result<Scope, String> {
    match text {
        "once" => Ok(Scope::Once),
        "session" => Ok(Scope::Session),
        time => seconds(time).map(Scope::Seconds).map_err(|_| {
            let text = shortened(text, NAME_MAX).escape_debug().to_string();
            format!("`for: {text}` is none of `once`, a time such as `15m`, and `session`")
        }),
    }
}

/// The first characters of a text.
fn shortened(text: &str, most: usize) -> &str {
    text.char_indices()
        .nth(most)
        .map_or(text, |(end, _)| &text[..end])
}
