//! Why a log cannot be used.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::audit::key::KeyError;

/// See the module.
#[derive(Debug, Error)]
pub enum LogError {
    /// A call failed.
    #[error("failed to {call} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried.
        call: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The path is a symbolic link.
    #[error("{path} is a symbolic link: an audit log is never written through one (name the file itself)", path = .0.display())]
    Symlink(PathBuf),
    /// The path is not a regular file.
    #[error("{path} is not a regular file: an audit log needs one", path = .0.display())]
    NotAFile(PathBuf),
    /// Somebody else writes it.
    #[error("{path} is in use by another agentguard: name another file with --audit, or end the other one", path = .0.display())]
    Busy(PathBuf),
    /// The last line is not a record, or was changed.
    #[error("the last line of {path} is no audit record ({what}): keep the file as evidence and move it away, a new one will be begun", path = .path.display())]
    Damaged {
        /// The log.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A record could not be put into JSON.
    #[error("failed to write a record as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The key that marks are signed with cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// What to say of a call that failed.
pub(super) fn failed(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::Io { call, path, source }
}
