//! What can go wrong with a session, each with its remedy.

use std::path::PathBuf;

use thiserror::Error;

use crate::agent::{CgroupError, IdentityError, NameError, RegistryError};
use crate::audit::LogError;
use crate::kernel::KernelError;
use crate::policy::PolicyError;
use crate::policy::places::PlaceError;

/// Errors of sessions.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The kernel cannot enforce, or refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The policy is missing or wrong.
    #[error(transparent)]
    Policy(#[from] Box<PolicyError>),
    /// A folder that a variable names cannot be found.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The audit log cannot be written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A cgroup operation failed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The agent cannot be added or found.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The name is impossible.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The invoking user cannot be found out.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The self-test was not denied.
    #[error(
        "the self-test failed: {0}; nothing would be enforced, so nothing is run; see `agentguard doctor`"
    )]
    Canary(String),
    /// A process could not be seen to carry its label.
    #[error(
        "process {0} was moved into its cgroup, but the kernel says that it is not governed; it is not run"
    )]
    NotConfirmed(u32),
    /// A process that is somebody's already.
    #[error(
        "process {pid} belongs to the agent `{agent}` already; `agentguard detach {agent}` first"
    )]
    AlreadyGoverned {
        /// The process.
        pid: u32,
        /// Whose it is.
        agent: String,
    },
    /// Processes that escaped from their cgroup and from the hunt for them.
    #[error(
        "processes {pids:?} of the agent `{agent}` left its cgroup and have not ended after SIGKILL; they are denied everything; end them, then `agentguard detach {agent}`"
    )]
    Survivors {
        /// The agent.
        agent: String,
        /// The processes.
        pids: Vec<u32>,
    },
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] crate::budget::StateError),
    /// The model gateway cannot be used.
    #[error(transparent)]
    Gateway(#[from] crate::gateway::GatewayError),
    /// A request about a budget that makes no sense.
    #[error("{0}")]
    Budget(String),
    /// Something that a sink does not do.
    #[error(transparent)]
    Sink(#[from] crate::export::SinkError),
    /// Nothing waits or is granted under that number.
    #[error("{0}")]
    NoApproval(String),
    /// An answer to an approval that cannot be given.
    #[error("{0}")]
    Approval(String),
    /// No such process.
    #[error("there is no process {0}")]
    NoProcess(u32),
    /// A process that must not be governed.
    #[error("process {pid} cannot be governed: {why}")]
    Ungovernable {
        /// The process.
        pid: u32,
        /// Why not.
        why: &'static str,
    },
    /// A state file cannot be understood.
    #[error(
        "{path} is damaged ({what}): what is pinned stays in force; restore the file, or end all enforcement with `agentguard uninstall`", path = .path.display()
    )]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The kernel governs for agents that are written down nowhere.
    #[error(
        "the kernel governs {0} cgroups, and the state folder does not say for whom: what is pinned stays in force; restore the folder, or end all enforcement with `agentguard uninstall`"
    )]
    StateGone(usize),
    /// A daemon's enforcement is pinned, and no daemon runs.
    #[error(
        "a daemon's enforcement is pinned, but no daemon runs to govern for this command; start it with `systemctl start agentguard`, end its enforcement with `agentguard uninstall`, or give --audit FILE to run beside it"
    )]
    Pinned,
    /// A call failed.
    #[error("failed to {call} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried.
        call: &'static str,
        /// File or folder.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A process of our own could not be started.
    #[error("failed to start {what}: {source}")]
    Spawn {
        /// Which.
        what: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl SessionError {
    /// In one line; a policy's with its place and its help.
    pub fn line(&self) -> String {
        let Self::Policy(policy) = self else {
            return self.to_string();
        };
        let help = policy.help_text();
        match policy.place() {
            Some((file, line, column)) => format!("{file}:{line}:{column}: {policy}; {help}"),
            None => format!("{policy}; {help}"),
        }
    }
}

impl From<std::io::Error> for SessionError {
    /// Of a look at the processes of this host.
    fn from(source: std::io::Error) -> Self {
        Self::Io {
            call: "look at the processes in",
            path: PathBuf::from("/proc"),
            source,
        }
    }
}

impl From<PolicyError> for SessionError {
    fn from(error: PolicyError) -> Self {
        Self::Policy(Box::new(error))
    }
}
