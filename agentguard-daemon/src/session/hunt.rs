//! The end of what still carries an agent's label, in whatever cgroup it is now.
//!
//! A process can leave its cgroup, never its label. Labels must not be taken away here: what cannot be
//! killed stays governed.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Walks over all processes before it is given up. Who forks and exits fast enough can be missed by one.
pub const WALKS: usize = 100;
/// Walks in a row that find nobody before it is believed.
const CLEAN: usize = 2;
/// How long the killed may take to die before the next walk.
const STEP: Duration = Duration::from_millis(100);

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hunt {
    /// Processes that were sent SIGKILL.
    pub killed: BTreeSet<u32>,
    /// Those found by the last walk; none if it succeeded.
    pub left: BTreeSet<u32>,
}

/// Kills every process to which `is_governed` says yes, until walks find none, or `walks` are over.
/// An error of `is_governed` about a living process ends it: nothing may be taken for ungoverned.
pub fn hunt<E: From<io::Error>>(
    walks: usize,
    mut is_governed: impl FnMut(BorrowedFd<'_>) -> Result<bool, E>,
) -> Result<Hunt, E> {
    let mut outcome = Hunt::default();
    let mut clean = 0;
    for _ in 0..walks {
        let found = walk(&mut is_governed, true)?;
        outcome.left = found.iter().map(|(pid, _)| *pid).collect();
        outcome.killed.extend(&outcome.left);
        clean = if found.is_empty() { clean + 1 } else { 0 };
        if clean == CLEAN {
            break;
        }
        let end = Instant::now() + STEP;
        for (_, pidfd) in &found {
            ended_within(pidfd.as_fd(), end.saturating_duration_since(Instant::now()));
        }
    }
    Ok(outcome)
}

/// The living processes to which `is_governed` says yes. Nothing is done to them.
pub fn find<E: From<io::Error>>(
    mut is_governed: impl FnMut(BorrowedFd<'_>) -> Result<bool, E>,
) -> Result<BTreeSet<u32>, E> {
    let found = walk(&mut is_governed, false)?;
    Ok(found.iter().map(|(pid, _)| *pid).collect())
}

/// Finds, and perhaps kills, each living process to which `is_governed` says yes.
fn walk<E: From<io::Error>>(
    is_governed: &mut impl FnMut(BorrowedFd<'_>) -> Result<bool, E>,
    kill: bool,
) -> Result<Vec<(u32, OwnedFd)>, E> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Some(pid) = Pid::from_raw(number) else {
            continue;
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // It has ended, and its number may be a thread's now.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => continue,
            Err(error) => return Err(io::Error::from(error).into()),
        };
        let governed = is_governed(pidfd.as_fd());
        // What waits for its parent to take notice has its label still.
        if ended_within(pidfd.as_fd(), Duration::ZERO) || !governed? {
            continue;
        }
        if !kill {
            found.push((number.unsigned_abs(), pidfd));
            continue;
        }
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => found.push((number.unsigned_abs(), pidfd)),
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
    Ok(found)
}

/// Whether the last thread of a process has ended, or does so in time.
fn ended_within(pidfd: BorrowedFd<'_>, time: Duration) -> bool {
    let time = PollTimeout::try_from(time).unwrap_or(PollTimeout::ZERO);
    poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], time).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    /// The process behind a pidfd; `None` after its end.
    fn pid_of(pidfd: BorrowedFd<'_>) -> Option<u32> {
        let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
        let text = std::fs::read_to_string(path).unwrap();
        let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"))?;
        pid.trim().parse().ok()
    }

    #[test]
    fn who_has_the_label_is_killed_and_nobody_else() {
        let (mut mine, mut other) = (sleeper(), sleeper());
        let id = mine.id();
        let outcome = hunt(WALKS, |pidfd| Ok::<_, io::Error>(pid_of(pidfd) == Some(id))).unwrap();
        assert_eq!(outcome.killed, BTreeSet::from([id]));
        assert!(outcome.left.is_empty());
        assert_eq!(mine.wait().unwrap().signal(), Some(9));
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn who_was_seen_last_counts_as_left() {
        let mut child = sleeper();
        let id = child.id();
        let outcome = hunt(1, |pidfd| Ok::<_, io::Error>(pid_of(pidfd) == Some(id))).unwrap();
        assert_eq!(outcome.left, BTreeSet::from([id]));
        child.wait().unwrap();
    }

    #[test]
    fn a_failed_look_up_is_not_a_no() {
        let mut child = sleeper();
        let id = child.id();
        let outcome = hunt(WALKS, |pidfd| match pid_of(pidfd) {
            Some(pid) if pid == id => Err(io::Error::from(io::ErrorKind::Other)),
            _ => Ok(false),
        });
        assert!(outcome.is_err());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
