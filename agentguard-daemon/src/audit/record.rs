//! One line of the audit log: the fields, their order and their names.
//!
//! The order is part of the format. Text fields that hold names from the system are escaped as
//! [`crate::event::escape`] says; nothing else may put bytes into a line.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// Names of the operations that are not the kernel's (for those see
/// [`agentguard_common::verdict::Operation`]).
pub mod op {
    /// The engine began: kernel programs loaded, self-test passed.
    pub const START: &str = "start";
    /// The engine ended.
    pub const STOP: &str = "stop";
    /// An agent came under a policy.
    pub const AGENT_ATTACH: &str = "agent-attach";
    /// An agent was let go.
    pub const AGENT_DETACH: &str = "agent-detach";
    /// A daemon that started took an agent over from the one before it.
    pub const AGENT_RESTORE: &str = "agent-restore";
    /// A policy came into force.
    pub const POLICY_INSTALL: &str = "policy-install";
    /// A policy was refused; the one before stays in force.
    pub const POLICY_ERROR: &str = "policy-error";
    /// A name was resolved for an agent, or was refused.
    pub const RESOLVE: &str = "resolve";
    /// An agent was frozen.
    pub const FREEZE: &str = "freeze";
    /// An agent was thawed.
    pub const THAW: &str = "thaw";
    /// All processes of an agent were killed.
    pub const KILL: &str = "kill";
    /// Records were lost; `lost` says how many.
    pub const GAP: &str = "gap";
    /// Bytes from the kernel that are not a record.
    pub const MALFORMED: &str = "malformed";
    /// Kernel and reference matcher disagree, or another thing that must never happen.
    pub const ALARM: &str = "alarm";
    /// A model was called through the gateway, or was refused.
    pub const MODEL: &str = "model";
    /// What an agent that goes exchanged with one destination.
    pub const TRAFFIC: &str = "traffic";
    /// An operator granted what a rule asks about, denied it, or took a grant back.
    pub const APPROVAL: &str = "approval";
    /// An operator had a sink leave out a record that its receiver does not take.
    pub const SINK: &str = "sink";
    /// Something about a budget or a schedule: a warning, an act, a grant, a reset.
    pub const BUDGET: &str = "budget";
    /// A line that was cut off (power loss, full disk) was removed from the log's end.
    pub const LOG_REPAIR: &str = "log-repair";
    /// From here on marks of the log are signed by this key.
    pub const LOG_KEY: &str = "log-key";
    /// A signed statement about the record before.
    pub const CHECKPOINT: &str = "checkpoint";
    /// A segment was closed and compressed; `digest` is of the compressed file.
    pub const SEGMENT: &str = "segment";
}

/// One record. Fields without a value are left out of the line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record<'a> {
    /// Number of the record in its log, from 1, without holes.
    pub seq: u64,
    /// When it happened, UTC, RFC 3339 with nanoseconds.
    pub time: Cow<'a, str>,
    /// Name of the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<Cow<'a, str>>,
    /// Session of the agent: a new number for each attach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<u32>,
    /// Process id in the host's pid namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Process id of the parent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ppid: Option<u32>,
    /// User id in the host's user namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The program that acted, as the kernel resolved it when it was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<Cow<'a, str>>,
    /// What was done or tried.
    pub op: Cow<'a, str>,
    /// What it was done to: a resolved path, `address:port`, or for `kernel` what the section calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Cow<'a, str>>,
    /// rename, link: the new path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Cow<'a, str>>,
    /// `read`, `write`, `read+write` or `exec`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<Cow<'a, str>>,
    /// `allow`, `deny`, `would-deny` or `ask`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Cow<'a, str>>,
    /// Id of the rule that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Cow<'a, str>>,
    /// Why, in words: the rule's own reason, or what the cause means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'a, str>>,
    /// Name of the policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Cow<'a, str>>,
    /// Why, by stable name: see [`agentguard_common::verdict::Reason`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cow<'a, str>>,
    /// Number of the approval that it waits for, or that permitted it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<u64>,
    /// File and line of the rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule_at: Option<Cow<'a, str>>,
    /// Arguments of the new program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<Cow<'a, str>>>,
    /// Number of arguments, where `argv` is not all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub argc: Option<u32>,
    /// Port of the destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The name that opened the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Cow<'a, str>>,
    /// `tcp`, `udp`, … or the kernel's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Cow<'a, str>>,
    /// `inet`, `inet6`, `unix`, … or the kernel's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<Cow<'a, str>>,
    /// resolve: the type that was asked for: `A`, `AAAA`, `HTTPS`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub question: Option<Cow<'a, str>>,
    /// resolve: the addresses, and the names that aliases led to: given, or refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answers: Option<Vec<Cow<'a, str>>>,
    /// resolve: what the client was told: `NOERROR`, `REFUSED`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<Cow<'a, str>>,
    /// Inode number of the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
    /// Device of the target's file system, `major:minor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<Cow<'a, str>>,
    /// Generation of the policy that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// Exec record of the program that acted; 0 if it ran before it was governed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec_id: Option<u64>,
    /// exec: the number that later records of the new program carry as `exec_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_exec_id: Option<u64>,
    /// Thread id, where it is not `pid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tid: Option<u32>,
    /// Effective user id, where it is not `uid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub euid: Option<u32>,
    /// open: the flags as the kernel has them (`f_flags`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_flags: Option<u32>,
    /// mkdir, create, mknod, chmod: the mode, in octal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Cow<'a, str>>,
    /// fork: process id of the child.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub child: Option<u32>,
    /// exit: the wait status (`exit code << 8`, or the signal).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u32>,
    /// Errno of a kernel helper that failed, so that the action was denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<u16>,
    /// `anonymous`, `argv-truncated`, `killed`, `for-exec`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<Vec<Cow<'a, str>>>,
    /// How often the thread did the same again, without a record for each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeats: Option<u64>,
    /// With `repeats`: when it was first repeated; `time` is when it was last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Cow<'a, str>>,
    /// gap: where the records were lost (`allowed`, `denied`: the kernel's ring; `log`: the file).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<Cow<'a, str>>,
    /// gap: number of records lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
    /// model: what the call took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<crate::gateway::Used>,
    /// traffic: bytes that the agent received, of IP with its headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_in: Option<u64>,
    /// traffic: bytes that it sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_out: Option<u64>,
    /// traffic: packets that it received.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets_in: Option<u64>,
    /// traffic: packets that it sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets_out: Option<u64>,
    /// More, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<Cow<'a, str>>,
    /// checkpoint: the log that is spoken of, by the hash of its first record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<Cow<'a, str>>,
    /// checkpoint, log-key: the key, by the first 16 digits of its SHA-256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Cow<'a, str>>,
    /// checkpoint: the key's signature, see [`crate::audit::mark`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<Cow<'a, str>>,
    /// segment: SHA-256 of the compressed file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Cow<'a, str>>,
    /// Hash of the record before; 64 zeros for the first.
    pub prev: Cow<'a, str>,
    /// Hash of this record: see [`crate::audit::chain`]. Empty while it is being made.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub hash: Cow<'a, str>,
}

impl<'a> Record<'a> {
    /// A record of an operation, with nothing else in it.
    pub fn new(op: &'a str) -> Self {
        Self {
            op: Cow::Borrowed(op),
            ..Self::default()
        }
    }

    /// For how many acts it stands.
    pub fn acts(&self) -> u64 {
        self.repeats.unwrap_or(1)
    }

    /// Whether it records that something was refused.
    pub fn is_denied(&self) -> bool {
        matches!(self.verdict.as_deref(), Some("deny" | "ask"))
    }
}
