//! Starting an agent's command: stopped at first, governed next, then another user, then the command.
//!
//! A copy of this program stops itself before it does anything for the agent. It is let go only
//! when the kernel has confirmed its label, so no instruction of the command ever runs ungoverned.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, close, getppid, setgroups, setresgid, setresuid};

use super::SessionError;
use crate::agent::Identity;

/// The hidden subcommand that runs [`exec`].
pub const SUBCOMMAND: &str = "internal-launch";

/// Exit status of a command that was found but could not be run, as shells have it.
const CANNOT_RUN: i32 = 126;
/// Exit status of a command that was not found, as shells have it.
const NOT_FOUND: i32 = 127;

/// What to run.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// Working folder.
    pub directory: PathBuf,
    /// As whom; `None` for the current user.
    pub identity: Option<Identity>,
    /// Variables that it gets besides its own.
    pub environment: Vec<(String, String)>,
}

/// A command that is stopped before its first instruction, or running.
#[derive(Debug)]
pub struct Launched {
    child: Child,
    reaped: bool,
}

impl Launch {
    /// Starts the copy of this program, and returns when it has stopped itself.
    ///
    /// Call it from a thread that lives as long as the command: the command dies with it.
    pub fn stopped(&self) -> Result<Launched, SessionError> {
        let spawn = |source| SessionError::Spawn {
            what: "the command",
            source,
        };
        let mut command = Command::new("/proc/self/exe");
        command.arg(SUBCOMMAND).current_dir(&self.directory);
        if let Some(who) = &self.identity {
            let groups: Vec<_> = who.groups.iter().map(u32::to_string).collect();
            command
                .arg(format!("--uid={}", who.uid))
                .arg(format!("--gid={}", who.gid))
                .arg(format!("--groups={}", groups.join(",")))
                .env("HOME", &who.home)
                .env("USER", &who.name)
                .env("LOGNAME", &who.name)
                .env_remove("MAIL");
            for variable in [
                "SUDO_COMMAND",
                "SUDO_USER",
                "SUDO_UID",
                "SUDO_GID",
                "SUDO_HOME",
            ] {
                command.env_remove(variable);
            }
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let child = command
            .arg("--")
            .args(&self.command)
            .spawn()
            .map_err(spawn)?;
        let launched = Launched {
            child,
            reaped: false,
        };
        match waitpid(launched.raw(), Some(WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::Stopped(..)) => Ok(launched),
            Ok(status) => Err(spawn(std::io::Error::other(format!(
                "it ended at once: {status:?}"
            )))),
            Err(errno) => Err(spawn(errno.into())),
        }
    }
}

impl Launched {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn raw(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    /// Lets the command begin.
    pub fn go(&self) -> Result<(), SessionError> {
        self.signal(Signal::SIGCONT)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<(), SessionError> {
        kill(self.raw(), signal).map_err(|errno| SessionError::Spawn {
            what: "the command",
            source: errno.into(),
        })
    }

    /// Its exit status, once it has one. Does not wait.
    pub fn try_wait(&mut self) -> std::io::Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        self.reaped |= status.is_some();
        Ok(status)
    }
}

impl Drop for Launched {
    /// A command whose launcher failed half way is ended.
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The exit status that a shell would report.
pub fn shell_status(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    u8::try_from(code.unwrap_or(1)).unwrap_or(u8::MAX)
}

/// The copy of this program: stops, becomes the user, becomes the command. Gives the exit status
/// where that fails.
pub fn exec(uid: Option<u32>, gid: Option<u32>, groups: &[u32], command: &[OsString]) -> i32 {
    let parent = getppid();
    close_inherited();
    if let Err(errno) = raise(Signal::SIGSTOP) {
        return refuse(
            CANNOT_RUN,
            &format!("failed to stop before the start: {errno}"),
        );
    }
    // From here on every action is judged by the policy.
    if let Some((uid, gid)) = uid.zip(gid)
        && let Err(errno) = become_user(uid, gid, groups)
    {
        return refuse(CANNOT_RUN, &format!("failed to become user {uid}: {errno}"));
    }
    // If the engine dies, so does the command. The engine may have died already.
    if prctl::set_pdeathsig(Signal::SIGKILL).is_err() || getppid() != parent {
        return refuse(CANNOT_RUN, "agentguard died before the start");
    }
    let Some((program, arguments)) = command.split_first() else {
        return refuse(CANNOT_RUN, "no command was given");
    };
    let error = Command::new(program).args(arguments).exec();
    let name = Path::new(program).display();
    match error.kind() {
        std::io::ErrorKind::NotFound => refuse(NOT_FOUND, &format!("{name}: command not found")),
        _ => refuse(CANNOT_RUN, &format!("{name}: {error}")),
    }
}

fn become_user(uid: u32, gid: u32, groups: &[u32]) -> nix::Result<()> {
    let groups: Vec<_> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&groups)?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}

/// Descriptors that were left open by whoever started us are not the agent's.
fn close_inherited() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let open: Vec<i32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in open.into_iter().filter(|number| *number > 2) {
        // The one that listed the others is closed already.
        let _ = close(descriptor);
    }
}

fn refuse(status: i32, what: &str) -> i32 {
    eprintln!("agentguard: {what}");
    status
}
