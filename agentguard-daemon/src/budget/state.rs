//! The ledger's file: whole or not there, replaced in one step, on the disk when a write returns.
//!
//! A file that cannot be understood is never taken for an empty one.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::account::Account;
use super::clock::Time;
use crate::disk;
use crate::hex::hex;

/// Version of the format.
const VERSION: u32 = 1;
/// Name of the file in the state folder.
pub const FILE: &str = "budgets.json";

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Of the format.
    pub version: u32,
    /// Whether the one who wrote it had come to its end: then what is spent is exact. Else everything below a
    /// ceiling may be.
    pub clean: bool,
    /// The ledger's time.
    pub time: Time,
    /// Accounts by name.
    pub accounts: BTreeMap<String, Account>,
}

impl Saved {
    /// Of now.
    pub fn new(clean: bool, time: Time, accounts: BTreeMap<String, Account>) -> Self {
        Self {
            version: VERSION,
            clean,
            time,
            accounts,
        }
    }
}

/// Why the file cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StateError {
    /// It is damaged.
    #[error("the ledger {path} is damaged ({what}), so nothing that it counts is granted; restore it from a backup, or begin anew with `agentguard budget reset --all`", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How.
        what: String,
    },
    /// Somebody else has it.
    #[error("the ledger {path} is in use by another `agentguard run`; start the daemon, which holds the budgets of all agents (budgets per second, minute and session need no ledger)", path = .0.display())]
    Busy(PathBuf),
    /// The kernel counts for too many.
    #[error(
        "more than {} budgets are charged by the kernel at a time; let agents share accounts, or write fewer",
        agentguard_common::budget::MAX_METERS
    )]
    Full,
    /// It cannot be read or written.
    #[error("failed to {call} the ledger {path}: {what}; nothing that it counts is granted until that works", path = .path.display())]
    Io {
        /// What was tried.
        call: &'static str,
        /// File or folder.
        path: PathBuf,
        /// The kernel's answer.
        what: String,
    },
}

fn failed(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |error| StateError::Io {
        call,
        path,
        what: error.to_string(),
    }
}

/// Keeps everybody else from the ledger for as long as it is held.
pub fn hold(path: &Path) -> Result<Flock<File>, StateError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    disk::make_folder(folder).map_err(failed("make the folder of", folder))?;
    let lock = path.with_extension("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&lock)
        .map_err(failed("open", &lock))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => StateError::Busy(path.to_owned()),
        errno => failed("lock", &lock)(errno.into()),
    })
}

/// What the file says; none if there is no file.
pub fn load(path: &Path) -> Result<Option<Saved>, StateError> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(failed("read", path))?,
    };
    let damaged = |what: &str| StateError::Damaged {
        path: path.to_owned(),
        what: what.to_owned(),
    };
    let end = text.iter().position(|byte| *byte == b'\n');
    let (body, rest) = text.split_at(end.ok_or_else(|| damaged("it is cut off"))?);
    if rest[1..].trim_ascii() != hex(&Sha256::digest(body)).as_bytes() {
        return Err(damaged("its check sum is wrong"));
    }
    let saved: Saved = serde_json::from_slice(body).map_err(|error| damaged(&error.to_string()))?;
    if saved.version != VERSION {
        return Err(damaged(&format!("its format is {}", saved.version)));
    }
    Ok(Some(saved))
}

/// Replaces the file; when this returns, the disk has it.
pub fn save(path: &Path, saved: &Saved) -> Result<(), StateError> {
    let mut text =
        serde_json::to_vec(saved).map_err(|error| failed("write", path)(error.into()))?;
    let sum = hex(&Sha256::digest(&text));
    text.push(b'\n');
    text.extend_from_slice(sum.as_bytes());
    text.push(b'\n');
    let folder = path.parent().unwrap_or(Path::new("/"));
    disk::make_folder(folder).map_err(failed("make the folder of", folder))?;
    disk::replace(path, &text).map_err(|it| failed(it.call, &it.path)(it.source))
}

/// Puts a damaged file aside, and gives where to.
pub fn set_aside(path: &Path) -> Result<Option<PathBuf>, StateError> {
    let other = (1..1000)
        .map(|number| path.with_extension(format!("damaged-{number}")))
        .find(|it| !it.exists());
    let Some(other) = other.filter(|_| path.exists()) else {
        return Ok(None);
    };
    fs::rename(path, &other).map_err(failed("put aside", path))?;
    Ok(Some(other))
}
