//! What sessions are asked for, and what they are said to be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{GuardianAction, SessionError};
use crate::agent::Name;
use crate::audit::{LogOptions, Tally};
use crate::gateway::GatewayConfig;
use crate::kernel::Pins;
use crate::policy::{self, LoadOptions, Policy};
use crate::resolver::Servers;

/// How an engine is started.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Type information to use instead of the running kernel's own.
    pub btf: Option<PathBuf>,
    /// The audit log.
    pub log: PathBuf,
    /// How it is kept.
    pub keeping: LogOptions,
    /// Where lines wait for the disk, if our death shall not matter to them.
    pub stage: Option<PathBuf>,
    /// Folders of policies that are given by name.
    pub search: Vec<PathBuf>,
    /// What else is its own: the folder of the control socket.
    pub also_own: Vec<PathBuf>,
    /// State that outlives the engine: the number of the last session, agents, policies in force.
    pub state: PathBuf,
    /// Where enforcement is pinned, if it is to outlive the engine.
    pub pins: Option<Pins>,
    /// The model gateway.
    pub gateway: GatewayConfig,
    /// Whom the resolver asks.
    pub servers: Servers,
    /// Whether it is to govern: then it passes the self-test, and reads the policies of its agents again.
    pub self_test: bool,
    /// Called after each program that the kernel has verified.
    pub loaded: Option<fn()>,
}

impl EngineOptions {
    /// The files and folders that belong to this engine, by the names that the kernel resolves.
    pub(super) fn own(&self) -> Vec<PathBuf> {
        let resolved = |path: &Path| {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            crate::policy::places::nearest(&path).unwrap_or(path)
        };
        let mut own = crate::policy::own::usual();
        let configured = [self.log.clone(), self.state.clone()];
        own.extend(configured.into_iter().chain(self.search.clone()));
        own.extend(self.also_own.clone());
        let mut own: Vec<PathBuf> = own.iter().map(|path| resolved(path)).collect();
        own.sort();
        own.dedup();
        own
    }
}

/// What becomes of agents that are left when an engine ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leave {
    /// They go on, governed by what is pinned.
    #[default]
    Keep,
    /// They are frozen, until somebody thaws or kills them.
    Freeze,
    /// They are killed.
    Kill,
    /// They go on ungoverned.
    Release,
}

/// A policy as it was asked for, so that it can be read again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRequest {
    /// Name or path.
    pub policy: String,
    /// Values of its variables.
    #[serde(default)]
    pub vars: BTreeMap<String, String>,
}

impl PolicyRequest {
    /// The policy of the self-test.
    pub(super) fn deny_everything() -> Self {
        Self {
            policy: DENY_EVERYTHING.to_owned(),
            vars: BTreeMap::new(),
        }
    }

    /// `own` are AgentGuard's own files, which no policy permits.
    pub(super) fn load(&self, search: &[PathBuf], own: &[PathBuf]) -> Result<Policy, SessionError> {
        let options = LoadOptions {
            search: search.to_vec(),
            vars: self.vars.clone(),
            own: own.to_vec(),
        };
        if self.policy == DENY_EVERYTHING {
            let text = "version: 1\nname: self-test\n";
            return Ok(policy::load_text(
                Path::new("self-test.yaml"),
                text,
                &options,
            )?);
        }
        Ok(policy::load(&self.policy, &options)?)
    }
}

/// Not a possible name or path of a file.
const DENY_EVERYTHING: &str = "\0";

/// What to bring under governance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A process, moved into a new cgroup.
    Process(u32),
    /// An existing cgroup with everything in it and below.
    Cgroup(PathBuf),
}

/// What attaching needs.
#[derive(Clone, Debug)]
pub struct Attach {
    /// Name of the agent; by default that of the policy.
    pub name: Option<Name>,
    /// Its policy.
    pub policy: PolicyRequest,
    /// Whose budgets it spends; by default those of its name.
    pub account: Option<Name>,
    /// Who.
    pub target: Target,
    /// What becomes of it if an engine dies whose enforcement is not pinned. With pins, an agent that is to be
    /// killed belongs to somebody who subscribes to it, and ends with that one.
    pub on_death: GuardianAction,
}

/// The budget that is nearest to its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Nearest {
    /// Its id.
    pub id: String,
    /// Spent and reserved, of its limit.
    pub percent: u64,
}

/// One agent, for people and programs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentInfo {
    /// Its name.
    pub name: String,
    /// Its session.
    pub session: u32,
    /// Name of its policy.
    pub policy: String,
    /// `enforce` or `shadow`.
    pub mode: String,
    /// Generation of its policy.
    pub generation: u32,
    /// Files of its policy.
    pub files: Vec<PathBuf>,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Processes in the cgroup.
    pub processes: usize,
    /// Whether it is frozen.
    pub frozen: bool,
    /// When it came under governance, in seconds since 1970.
    pub since: u64,
    /// What it did so far.
    pub tally: Tally,
    /// The budget that is nearest to its end.
    #[serde(default)]
    pub budget: Option<Nearest>,
    /// Variables that lead it to the model gateway.
    #[serde(default)]
    pub environment: Vec<(String, String)>,
}
