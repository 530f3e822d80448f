//! The few operations on cgroups (version 2) that governing needs: make, fill, freeze, kill, remove.
//!
//! Only cgroups below `agentguard/` are ever made or removed here.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

/// The folder of our cgroups in the hierarchy.
pub const FOLDER: &str = "agentguard";

/// Why a cgroup operation failed.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// There is no cgroup v2 hierarchy.
    #[error(
        "no cgroup v2 hierarchy is mounted; mount one with `mount -t cgroup2 none /sys/fs/cgroup`"
    )]
    NoHierarchy,
    /// The path is not a cgroup.
    #[error("{path} is not a cgroup of the hierarchy at {mount}; give a folder in it, for example {mount}/system.slice/NAME.service", path = .path.display(), mount = .mount.display())]
    NotACgroup {
        /// What was given.
        path: PathBuf,
        /// Where cgroups are.
        mount: PathBuf,
    },
    /// No such cgroup.
    #[error("there is no cgroup {path}; `systemd-cgls` lists those that exist", path = .0.display())]
    Missing(PathBuf),
    /// A call failed.
    #[error("failed to {call} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried.
        call: &'static str,
        /// File or folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel did not do it in time.
    #[error("{path} did not become {state} within {seconds} s", path = .path.display())]
    Timeout {
        /// The cgroup.
        path: PathBuf,
        /// `frozen`, `thawed` or `empty`.
        state: &'static str,
        /// How long was waited.
        seconds: u64,
    },
}

fn failed(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| {
        if source.kind() == io::ErrorKind::NotFound {
            CgroupError::Missing(path)
        } else {
            CgroupError::Io { call, path, source }
        }
    }
}

/// The mounted cgroup v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    mount: PathBuf,
}

impl Hierarchy {
    /// Finds it among this process's mounts.
    pub fn find() -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let mounts = fs::read_to_string(path).map_err(failed("read", path))?;
        let mount = find_mount(&mounts).ok_or(CgroupError::NoHierarchy)?;
        Ok(Self { mount })
    }

    /// A folder that stands for the hierarchy.
    #[cfg(test)]
    pub(crate) fn at(mount: PathBuf) -> Self {
        Self { mount }
    }

    /// Where it is mounted.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// Makes a new cgroup `agentguard/<name>`.
    pub fn create(&self, name: &str) -> Result<Cgroup, CgroupError> {
        let folder = self.mount.join(FOLDER);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make", &folder)(error));
            }
            _ => {}
        }
        let path = folder.join(name);
        fs::create_dir(&path).map_err(failed("make", &path))?;
        Ok(Cgroup::at(path))
    }

    /// An existing cgroup, by its path in the file system or in the hierarchy (`/system.slice/x`).
    pub fn open(&self, path: &Path) -> Result<Cgroup, CgroupError> {
        let path = if path.starts_with(&self.mount) {
            path.to_owned()
        } else {
            self.mount.join(path.strip_prefix("/").unwrap_or(path))
        };
        let path = path.canonicalize().map_err(failed("open", &path))?;
        let is_cgroup = path.starts_with(&self.mount) && path.join("cgroup.events").is_file();
        if !is_cgroup {
            // The root has no `cgroup.events`: governing everything, ourselves included, is refused too.
            return Err(CgroupError::NotACgroup {
                path,
                mount: self.mount.clone(),
            });
        }
        Ok(Cgroup::at(path))
    }

    /// The cgroup that a process is in.
    pub fn of_process(&self, pid: u32) -> Result<PathBuf, CgroupError> {
        let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
        let inside = path_in(&text).ok_or(CgroupError::NoHierarchy)?;
        Ok(self.mount.join(inside.trim_start_matches('/')))
    }
}

/// The path in the hierarchy, from the text of `/proc/PID/cgroup`.
pub fn path_in(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The mount point of a `cgroup2` file system, from the text of `mountinfo`.
fn find_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let root = fields.nth(3)?;
        let point = fields.next()?;
        (kind.split(' ').next() == Some("cgroup2") && root == "/").then(|| unoctal(point))
    })
}

/// Mount points have space, tab, newline and backslash as `\ooo`.
pub(crate) fn unoctal(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'\\'
            && let Some((digits, after)) = after.split_at_checked(3)
            && let Some(value) = std::str::from_utf8(digits)
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 8).ok())
        {
            bytes.push(value);
            rest = after;
        } else {
            bytes.push(byte);
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// One cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A cgroup that is known to exist, or, in tests, need not.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its number in the kernel: the inode number of its folder.
    pub fn id(&self) -> Result<u64, CgroupError> {
        let data = fs::metadata(&self.path).map_err(failed("stat", &self.path))?;
        Ok(data.ino())
    }

    /// Moves a process with all its threads into it.
    pub fn add(&self, pid: u32) -> Result<(), CgroupError> {
        self.write("cgroup.procs", &pid.to_string(), "move a process into")
    }

    /// Its number and those of all below.
    pub fn ids(&self) -> Result<Vec<u64>, CgroupError> {
        let folders = self.tree()?;
        Ok(folders
            .into_iter()
            .filter_map(|it| Self::at(it).id().ok())
            .collect())
    }

    /// Processor time of all that is or was in it and below, in microseconds.
    pub fn cpu_usage(&self) -> Result<u64, CgroupError> {
        let file = self.path.join("cpu.stat");
        let text = fs::read_to_string(&file).map_err(failed("read", &file))?;
        text.lines()
            .find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok())
            .ok_or_else(|| failed("understand", &file)(io::ErrorKind::InvalidData.into()))
    }

    /// Processes in it and below.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        let mut pids = Vec::new();
        for folder in self.tree()? {
            let file = folder.join("cgroup.procs");
            match fs::read_to_string(&file) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
                // Gone meanwhile, or a threaded one, whose processes its domain lists.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => {}
                Err(error) => return Err(failed("read", &file)(error)),
            }
        }
        Ok(pids)
    }

    /// Stops everything in it; returns when it has stopped.
    pub fn freeze(&self, timeout: Duration) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", "1", "freeze")?;
        self.wait("frozen 1", "frozen", timeout)
    }

    /// Lets everything in it go on.
    pub fn thaw(&self, timeout: Duration) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", "0", "thaw")?;
        self.wait("frozen 0", "thawed", timeout)
    }

    /// Whether it is frozen.
    pub fn is_frozen(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.events"))
            .is_ok_and(|text| text.lines().any(|line| line == "frozen 1"))
    }

    /// Kills everything in it and below, also what is being forked.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "1", "kill")
    }

    /// Waits until nothing runs in it.
    pub fn wait_empty(&self, timeout: Duration) -> Result<(), CgroupError> {
        self.wait("populated 0", "empty", timeout)
    }

    /// Whether nothing runs in it.
    pub fn is_empty(&self) -> bool {
        !fs::read_to_string(self.path.join("cgroup.events"))
            .is_ok_and(|text| text.lines().any(|line| line == "populated 1"))
    }

    /// Removes it and those below; they must be empty.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for folder in self.tree()?.iter().rev() {
            match fs::remove_dir(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", folder)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Its folder and those below, parents first.
    fn tree(&self) -> Result<Vec<PathBuf>, CgroupError> {
        let mut folders = vec![self.path.clone()];
        let mut next = 0;
        while let Some(folder) = folders.get(next).cloned() {
            next += 1;
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound && next > 1 => continue,
                Err(error) => return Err(failed("list", &folder)(error)),
            };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(entry.path());
                }
            }
        }
        Ok(folders)
    }

    fn write(&self, file: &str, text: &str, call: &'static str) -> Result<(), CgroupError> {
        fs::write(self.path.join(file), text).map_err(failed(call, &self.path))
    }

    /// Waits for a line of `cgroup.events`; the kernel wakes us when one changes.
    fn wait(&self, line: &str, state: &'static str, timeout: Duration) -> Result<(), CgroupError> {
        let path = self.path.join("cgroup.events");
        let end = Instant::now() + timeout;
        let file = fs::File::open(&path).map_err(failed("open", &path))?;
        loop {
            let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
            if text.lines().any(|have| have == line) {
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CgroupError::Timeout {
                    path: self.path.clone(),
                    state,
                    seconds: timeout.as_secs(),
                });
            }
            let step = left.min(Duration::from_millis(50));
            let mut events = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
            let step = PollTimeout::try_from(step).unwrap_or(PollTimeout::ZERO);
            // The file was read by another descriptor: the timeout bounds what a missed wake-up costs.
            let _ = poll(&mut events, step);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_wherever_it_is() {
        let mounts = "24 1 0:22 / /proc rw - proc proc rw\n\
                      30 23 0:26 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      31 23 0:27 / /sys/fs/cgroup/uni\\040fied rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(mounts), Some("/sys/fs/cgroup/uni fied".into()));
        assert_eq!(find_mount(""), None);
    }

    #[test]
    fn a_process_has_its_line() {
        assert_eq!(
            path_in("12:pids:/x\n0::/user.slice/a b\n"),
            Some("/user.slice/a b")
        );
        assert_eq!(path_in("1:name=systemd:/\n"), None);
    }

    #[test]
    fn what_is_not_a_cgroup_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let hierarchy = Hierarchy {
            mount: folder.path().canonicalize().unwrap(),
        };
        fs::create_dir(folder.path().join("x")).unwrap();
        for path in ["x", "/", ".."] {
            let error = hierarchy.open(Path::new(path)).unwrap_err();
            assert!(
                matches!(error, CgroupError::NotACgroup { .. }),
                "{path}: {error}"
            );
        }
        let error = hierarchy.open(Path::new("/missing")).unwrap_err();
        assert!(matches!(error, CgroupError::Missing(_)), "{error}");
    }

    /// Needs root and a hierarchy; says so where it has none.
    #[test]
    fn a_real_cgroup_is_filled_frozen_killed_and_removed() {
        let Ok(hierarchy) = Hierarchy::find() else {
            eprintln!("skipped: no cgroup v2 hierarchy");
            return;
        };
        let Ok(cgroup) = hierarchy.create(&format!("test-{}", std::process::id())) else {
            eprintln!("skipped: cgroups cannot be made here");
            return;
        };
        let second = Duration::from_secs(5);
        assert!(cgroup.is_empty());
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        cgroup.add(child.id()).unwrap();
        assert_eq!(cgroup.processes().unwrap(), [child.id()]);
        assert_eq!(hierarchy.of_process(child.id()).unwrap(), cgroup.path());
        cgroup.freeze(second).unwrap();
        assert!(cgroup.is_frozen());
        cgroup.thaw(second).unwrap();
        assert!(!cgroup.is_frozen());
        cgroup.kill().unwrap();
        child.wait().unwrap();
        cgroup.wait_empty(second).unwrap();
        cgroup.remove().unwrap();
        assert!(!cgroup.path().exists());
    }
}
