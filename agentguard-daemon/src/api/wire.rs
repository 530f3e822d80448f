//! What goes over the socket, as JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::approval::{Approvals, Scope};
use crate::audit::{Record, Totals};
use crate::budget::AccountStatus;
use crate::session::{AgentInfo, Amounts, PolicyRequest};

/// Version of the interface, the first part of every path.
pub const PREFIX: &str = "/v1";
/// Largest body of a request, in bytes.
pub const BODY_MAX: usize = 1 << 20;

/// `POST /v1/agents`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// Name of the agent; by default that of the policy.
    #[serde(default)]
    pub name: Option<String>,
    /// Its policy.
    pub policy: PolicyRequest,
    /// Whose budgets it spends; by default those of its name.
    #[serde(default)]
    pub account: Option<String>,
    /// Who.
    pub target: TargetRequest,
    /// Kill it, and not only freeze it, if the daemon dies.
    #[serde(default)]
    pub dies_with_daemon: bool,
}

/// Who is attached.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum TargetRequest {
    /// A process, moved into a cgroup of its own.
    Pid(u32),
    /// A cgroup, by its path.
    Cgroup(PathBuf),
}

/// `GET /v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Its audit log.
    pub log: PathBuf,
    /// Number of agents.
    pub agents: usize,
    /// What happened since it started.
    pub totals: Totals,
}

/// `GET /v1/snapshot`: everything that a live view shows, at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// When, in milliseconds since the daemon started: for rates.
    pub at: u64,
    /// The daemon.
    pub status: Status,
    /// Its agents.
    pub agents: Vec<AgentInfo>,
    /// Budgets of those that have some.
    pub budgets: Vec<AccountStatus>,
    /// What agents exchanged with everybody.
    pub traffic: Vec<TrafficSum>,
    /// What waits for an operator, and what is granted.
    #[serde(default)]
    pub approvals: Approvals,
}

/// What one agent exchanged with everybody.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrafficSum {
    /// Name of the agent.
    pub agent: String,
    /// How much, in this session.
    pub amounts: Amounts,
}

/// `GET /v1/why`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Why {
    /// Name of the agent.
    pub agent: String,
    /// Its session.
    pub session: u32,
    /// Its last refusals, oldest first.
    pub refusals: Vec<Record<'static>>,
}

/// `POST /v1/agents/NAME/grant`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantRequest {
    /// The budget's id.
    pub budget: String,
    /// How much more, as a policy would write it.
    pub amount: String,
}

/// `POST /v1/approvals/ID/grant`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalRequest {
    /// How far it goes.
    pub scope: Scope,
    /// The key of the act that whoever grants has seen under the number; another one is not granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// `POST /v1/sinks/NAME/skip`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SkipRequest {
    /// The record that whoever asks has seen to be refused; another one is not left out.
    pub record: u64,
}

/// `POST /v1/budgets/reset`: one account, the clock, or else everything.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResetRequest {
    /// An agent, or the account of one that is gone.
    #[serde(default)]
    pub account: Option<String>,
    /// Believe the clock as it is, and reset nothing.
    #[serde(default)]
    pub clock: bool,
}

/// What came of reading one agent's policy again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reloaded {
    /// Name of the agent.
    pub agent: String,
    /// Generation in force now, if it is a new one.
    #[serde(default)]
    pub generation: Option<u32>,
    /// Why the one before stays in force.
    #[serde(default)]
    pub error: Option<String>,
}

/// Any answer that is not a success.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong, and what to do.
    pub error: String,
    /// Exit status that a command line should end with.
    pub exit: u8,
}
