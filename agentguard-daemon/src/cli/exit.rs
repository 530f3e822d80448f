//! Exit statuses of `agentguard`: the one list.

use crate::agent::{CgroupError, RegistryError};
use crate::api::ClientError;
use crate::audit::LogError;
use crate::budget::StateError;
use crate::export::SinkError;
use crate::gateway::GatewayError;
use crate::kernel::KernelError;
use crate::session::SessionError;

/// What the exit status means. `agentguard run` ends with that of its command, and with one of
/// these only where the command did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything went well.
    Ok = 0,
    /// Something failed that has no status of its own.
    Failure = 1,
    /// The command line or a policy is wrong.
    Usage = 2,
    /// Nothing is wrong with an audit log, and nothing proves it.
    Unproved = 3,
    /// An agent, cgroup, process, approval or file that was named does not exist.
    Missing = 66,
    /// No daemon is running.
    NoDaemon = 69,
    /// A file cannot be read or written.
    InputOutput = 74,
    /// In use: a second daemon, a name or a log that is taken.
    Busy = 75,
    /// Not permitted: this needs root, or is not for governed processes.
    NotPermitted = 77,
    /// This kernel cannot enforce policies; `agentguard doctor` says why.
    NoKernelSupport = 78,
    /// The command was found, but could not be run (from the command's start, as shells have it).
    CannotRun = 126,
    /// The command was not found (as shells have it).
    NotFound = 127,
}

/// The list for the end of `--help`.
pub const HELP: &str = "\
Exit status: 0 success, 1 failure, 2 wrong command line or policy, 3 not proved (`audit verify`), 66 no such agent, cgroup, process, \
approval or file, 69 no daemon, 74 input or output failed, 75 in use, 77 not permitted, 78 this kernel cannot \
enforce. `run` ends as its command does; 126 and 127 if that could not be run or was not found, 128 + N \
if signal N ended it.";

impl Exit {
    /// For a question that was answered: whether the answer is yes.
    pub const fn of(yes: bool) -> Self {
        if yes { Self::Ok } else { Self::Failure }
    }
}

impl From<&SessionError> for Exit {
    fn from(error: &SessionError) -> Self {
        match error {
            SessionError::Kernel(KernelError::NotRoot) | SessionError::Ungovernable { .. } => {
                Self::NotPermitted
            }
            SessionError::Log(LogError::Busy(_))
            | SessionError::Gateway(GatewayError::Listen { .. })
            | SessionError::Ledger(StateError::Busy(_))
            | SessionError::Pinned
            | SessionError::Kernel(
                KernelError::Abi { .. } | KernelError::Shape { .. } | KernelError::PinsRemoved,
            )
            | SessionError::AlreadyGoverned { .. }
            | SessionError::Registry(
                RegistryError::NameTaken(_)
                | RegistryError::CgroupTaken { .. }
                | RegistryError::Full,
            ) => Self::Busy,
            SessionError::Approval(_)
            | SessionError::Sink(SinkError::Not(_))
            | SessionError::Budget(_)
            | SessionError::Gateway(GatewayError::Config(_))
            | SessionError::Policy(_)
            | SessionError::Place(_)
            | SessionError::Name(_)
            | SessionError::Identity(_) => Self::Usage,
            SessionError::Cgroup(CgroupError::Missing(_) | CgroupError::NotACgroup { .. })
            | SessionError::Registry(RegistryError::Unknown(_))
            | SessionError::NoApproval(_)
            | SessionError::Sink(SinkError::Unknown(_))
            | SessionError::NoProcess(_) => Self::Missing,
            SessionError::Cgroup(CgroupError::NoHierarchy)
            | SessionError::Gateway(GatewayError::Callers(_))
            | SessionError::Canary(_)
            | SessionError::NotConfirmed(_) => Self::NoKernelSupport,
            SessionError::Log(_)
            | SessionError::Ledger(_)
            | SessionError::Cgroup(_)
            | SessionError::Io { .. }
            | SessionError::State { .. }
            | SessionError::StateGone(_)
            | SessionError::Kernel(KernelError::Pin { .. }) => Self::InputOutput,
            SessionError::Kernel(_) => Self::NoKernelSupport,
            SessionError::Spawn { .. } | SessionError::Survivors { .. } => Self::Failure,
        }
    }
}

impl From<&ClientError> for Exit {
    fn from(error: &ClientError) -> Self {
        match error {
            ClientError::NoDaemon(_) => Self::NoDaemon,
            ClientError::Connect { source, .. }
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                Self::NotPermitted
            }
            ClientError::Refused(problem) => Self::from_number(problem.exit),
            _ => Self::Failure,
        }
    }
}

impl Exit {
    fn from_number(number: u8) -> Self {
        [
            Self::Usage,
            Self::Missing,
            Self::NoDaemon,
            Self::InputOutput,
            Self::Busy,
            Self::NotPermitted,
            Self::NoKernelSupport,
        ]
        .into_iter()
        .find(|exit| *exit as u8 == number)
        .unwrap_or(Self::Failure)
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_every_status() {
        for exit in [
            Exit::Failure,
            Exit::Usage,
            Exit::Unproved,
            Exit::Missing,
            Exit::NoDaemon,
            Exit::InputOutput,
            Exit::Busy,
            Exit::NotPermitted,
            Exit::NoKernelSupport,
            Exit::CannotRun,
            Exit::NotFound,
        ] {
            assert!(HELP.contains(&(exit as u8).to_string()), "{exit:?}");
        }
    }
}
