//! Who is at the other end of a connection, and what that one may ask.
//!
//! The user id is not enough: an agent may run as root. For every request the kernel is asked for the
//! peer's label, which no process can shed, and its cgroup is looked at. What cannot be found out is refused.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerPidfd};
use nix::sys::stat::Mode;
use tokio::net::UnixStream;

use crate::agent::cgroup::{FOLDER, path_in};

/// The group whose members may look.
pub const GROUP: &str = "agentguard";

/// What a peer may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything: root, and not governed.
    Full,
    /// Looking only: a member of the group, and not governed.
    Look,
    /// `why` about itself only: governed.
    Why {
        /// Name of the agent.
        agent: String,
        /// Its session.
        session: u32,
    },
    /// Nothing.
    None,
}

/// The process that connected.
#[derive(Debug)]
pub struct Peer {
    uid: u32,
    gid: u32,
    /// Its folder in `/proc`: stands for this process and no later one of the same number.
    folder: OwnedFd,
    /// From the socket on kernels that have it (6.5), where it also proves that `folder` was opened in
    /// the process's lifetime; else opened by number.
    pidfd: OwnedFd,
}

impl Peer {
    /// Finds out who connected.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let who = stream.peer_cred()?;
        let pid = who
            .pid()
            .filter(|pid| *pid > 0)
            .ok_or(io::ErrorKind::PermissionDenied)?;
        let folder = File::open(format!("/proc/{pid}"))?.into();
        let pidfd = if let Ok(pidfd) = getsockopt(stream, PeerPidfd) {
            pidfd
        } else {
            let pid = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::PermissionDenied)?;
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?
        };
        let peer = Self {
            uid: who.uid(),
            gid: who.gid(),
            folder,
            pidfd,
        };
        if peer.has_ended() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(peer)
    }

    /// Whether the process that connected is gone, as far as the kernel can tell.
    fn has_ended(&self) -> bool {
        let mut ready = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::ZERO) != Ok(0)
    }

    /// What it may ask now. `agent_of` knows the agent (name and session) of a process, by its label or
    /// by its cgroup's folder below `mount`; an error is taken for the worst.
    pub fn access<E>(
        &self,
        mount: &Path,
        agent_of: impl FnOnce(BorrowedFd<'_>, &Path) -> Result<Option<(String, u32)>, E>,
    ) -> Access {
        if self.has_ended() {
            return Access::None;
        }
        let (Ok(cgroup), Ok(status)) = (self.read("cgroup"), self.read("status")) else {
            return Access::None;
        };
        let Some(inside) = path_in(&cgroup) else {
            return Access::None;
        };
        let folder = mount.join(inside.trim_start_matches('/'));
        let Ok(agent) = agent_of(self.pidfd.as_fd(), &folder) else {
            return Access::None;
        };
        let group = std::fs::read_to_string("/etc/group").unwrap_or_default();
        decide(
            self.uid,
            self.gid,
            inside,
            &status,
            gid_of(&group, GROUP),
            agent,
        )
    }

    /// Who it is, for the record: the user, who logged in as that, and the process.
    pub fn who(&self) -> String {
        let name = |uid: u32| {
            let user = crate::agent::user(uid);
            user.map_or_else(|| format!("uid {uid}"), |(name, _)| name)
        };
        let mut who = name(self.uid);
        // Not set (-1) where nobody logged in: a service, a container.
        let login = self.read("loginuid").ok();
        let login = login.and_then(|text| text.trim().parse::<u32>().ok());
        if let Some(login) = login.filter(|login| *login != u32::MAX && *login != self.uid) {
            who = format!("{who}, logged in as {}", name(login));
        }
        let status = self.read("status").unwrap_or_default();
        if let Some(pid) = status.lines().find_map(|line| line.strip_prefix("Pid:")) {
            who = format!("{who}, process {}", pid.trim());
        }
        who
    }

    fn read(&self, name: &str) -> io::Result<String> {
        let file = openat(
            &self.folder,
            name,
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let mut text = String::new();
        File::from(file).read_to_string(&mut text)?;
        Ok(text)
    }
}

/// The decision itself.
fn decide(
    uid: u32,
    gid: u32,
    cgroup: &str,
    status: &str,
    group: Option<u32>,
    agent: Option<(String, u32)>,
) -> Access {
    if let Some((agent, session)) = agent {
        return Access::Why { agent, session };
    }
    // Left over from another engine, or of a path that only looks outside.
    let ours = PathBuf::from("/").join(FOLDER);
    if Path::new(cgroup).starts_with(ours) || cgroup.starts_with("/..") {
        return Access::None;
    }
    if uid == 0 {
        return Access::Full;
    }
    let groups = status
        .lines()
        .find_map(|line| line.strip_prefix("Groups:"))
        .unwrap_or_default();
    let is_member = group.is_some_and(|group| {
        gid == group
            || groups
                .split_whitespace()
                .any(|have| have.parse() == Ok(group))
    });
    if is_member {
        Access::Look
    } else {
        Access::None
    }
}

/// The number of a group, from the text of `/etc/group`.
pub fn gid_of(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name))
            .then(|| fields.nth(1)?.parse().ok())
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tx\nGroups:\t4 27 990 \nNgid:\t0\n";

    fn access(uid: u32, cgroup: &str) -> Access {
        let agent = cgroup.starts_with("/work/a").then(|| ("a".to_owned(), 3));
        decide(uid, uid, cgroup, STATUS, Some(990), agent)
    }

    #[test]
    fn a_governed_process_may_ask_why_even_as_root() {
        let why = Access::Why {
            agent: "a".to_owned(),
            session: 3,
        };
        assert_eq!(access(0, "/work/a/below"), why);
        assert_eq!(access(1000, "/work/a"), why);
    }

    #[test]
    fn others_need_root_or_the_group() {
        assert_eq!(access(0, "/user.slice"), Access::Full);
        assert_eq!(access(1000, "/user.slice"), Access::Look);
        let nobody = decide(1000, 1000, "/", "Groups:\t4\n", Some(990), None);
        assert_eq!(nobody, Access::None);
        assert_eq!(decide(1000, 1000, "/", STATUS, None, None), Access::None);
        assert_eq!(decide(1000, 990, "/", "", Some(990), None), Access::Look);
    }

    #[test]
    fn a_cgroup_of_ours_that_nobody_knows_gets_nothing() {
        assert_eq!(access(0, "/agentguard/old-3"), Access::None);
        assert_eq!(access(0, "/../x"), Access::None);
        assert_eq!(access(0, "/agentguardian"), Access::Full);
    }

    #[test]
    fn a_group_has_a_number() {
        let text = "root:x:0:\nagentguard:x:990:ann\n";
        assert_eq!(gid_of(text, GROUP), Some(990));
        assert_eq!(gid_of(text, "agent"), None);
    }

    #[tokio::test]
    async fn a_real_peer_is_recognised() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
        assert!(!peer.has_ended());
        let access = peer.access(Path::new("/x"), |_, path| {
            assert!(path.starts_with("/x"));
            Ok::<_, ()>(Some(("me".to_owned(), 1)))
        });
        let why = Access::Why {
            agent: "me".to_owned(),
            session: 1,
        };
        assert_eq!(access, why);
        let unknown = peer.access(Path::new("/x"), |_, _| Err(()));
        assert_eq!(unknown, Access::None);
    }
}
