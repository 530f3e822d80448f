//! The guard under test: the real daemon and its real command line. Nothing here may reach past
//! them into the library: tests see what users see.

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Where policies are found by name.
pub const POLICIES: &str = "/etc/agentguard/policies";
/// The trail.
pub const AUDIT: &str = "/var/log/agentguard/audit.jsonl";
/// The daemon's configuration.
const CONFIG: &str = "/etc/agentguard/agentguard.yaml";
/// A provider of models that tests play.
pub const PROVIDER: &str = "127.0.0.1:9377";
/// The file with its key.
pub const PROVIDER_KEY: &str = "/etc/agentguard/provider-key";
/// Variables of the shipped policies, as the fixture has them.
const VARIABLES: &[&str] = &["workspace=/t/ws", "home=/t/home"];
const PROGRAM: &str = "/usr/bin/agentguard";
const LOG: &str = "/var/log/agentguard-daemon.txt";
const CGROUPS: &str = "/sys/fs/cgroup";
/// Loading and verifying the programs takes seconds in an emulated guest, and minutes on a busy host: only a
/// daemon that will never be ready may take this long.
const START: Duration = Duration::from_mins(20);

/// A running daemon; stopped when dropped.
pub struct Daemon {
    child: Child,
    /// Kept open: the daemon also says when it stops.
    notices: UnixDatagram,
    /// How long it took until it said that it was ready.
    pub started_in: Duration,
}

impl Daemon {
    /// Starts it and waits until it says that it is ready.
    pub fn start() -> Result<Self> {
        Self::start_with(false)
    }

    /// The same; one that takes what is pinned for another build's replaces its programs.
    pub fn start_with(upgrade: bool) -> Result<Self> {
        fs::create_dir_all(POLICIES)?;
        // Tests read the log from where they left off: it stays one file here. Segments have tests of their own.
        fs::write(
            CONFIG,
            format!(
                "audit_log: {{ segment_mib: 65536, segment_hours: 0 }}\n\
                 gateway: {{ providers: {{ local: {{ api: openai, upstream: \"http://{PROVIDER}\", key_file: {PROVIDER_KEY} }} }} }}\n"
            ),
        )?;
        let socket = PathBuf::from("/run/vm-tests-notify");
        // A leftover of an earlier daemon.
        let _ = fs::remove_file(&socket);
        let notices =
            UnixDatagram::bind(&socket).context("failed to bind the notification socket")?;
        notices.set_read_timeout(Some(Duration::from_millis(100)))?;
        let log = File::options().create(true).append(true).open(LOG)?;
        let started = Instant::now();
        let child = Command::new(PROGRAM)
            .arg("daemon")
            .env("NOTIFY_SOCKET", &socket)
            .env("AGENTGUARD_FORCE_UPGRADE", if upgrade { "1" } else { "" })
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("failed to start {PROGRAM}"))?;
        let mut daemon = Self {
            child,
            notices,
            started_in: Duration::ZERO,
        };
        let mut notice = [0; 4096];
        loop {
            if let Ok(count) = daemon.notices.recv(&mut notice)
                && String::from_utf8_lossy(&notice[..count])
                    .lines()
                    .any(|line| line == "READY=1")
            {
                daemon.started_in = started.elapsed();
                return Ok(daemon);
            }
            if let Some(status) = daemon.child.try_wait()? {
                bail!(
                    "the daemon ended ({status}) before it was ready:\n{}",
                    log_tail()
                );
            }
            if started.elapsed() > START {
                bail!(
                    "the daemon was not ready within {} s:\n{}",
                    START.as_secs(),
                    log_tail()
                );
            }
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its death, without a word.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("failed to kill the daemon")?;
        self.child.wait().context("failed to wait for the daemon")?;
        Ok(())
    }

    /// True while it runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // It may have ended already.
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGTERM,
            );
        }
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(10) {
            if !self.alive() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines that the daemon wrote.
pub fn log_tail() -> String {
    let text = fs::read_to_string(LOG).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// Runs the command line, whatever its status.
pub fn agentguard(arguments: &[&str]) -> Result<Output> {
    Command::new(PROGRAM)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to start {PROGRAM}"))
}

/// Runs the command line, which must succeed, and returns what it printed.
pub fn agentguard_ok(arguments: &[&str]) -> Result<String> {
    let output = agentguard(arguments)?;
    if !output.status.success() {
        bail!(
            "agentguard {} failed ({}): {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Makes a policy known by its name.
pub fn write_policy(name: &str, text: &str) -> Result<()> {
    let path = Path::new(POLICIES).join(format!("{name}.yaml"));
    let partial = path.with_extension("partial");
    fs::write(&partial, text).with_context(|| format!("failed to write {}", partial.display()))?;
    fs::rename(&partial, &path).with_context(|| format!("failed to write {}", path.display()))
}

/// A cgroup of the tests' own, governed or not; its processes are killed and it is removed when dropped.
pub struct Group {
    path: PathBuf,
}

impl Group {
    /// Makes it.
    pub fn new(name: &str) -> Result<Self> {
        let path = Path::new(CGROUPS).join("vm-tests").join(name);
        fs::create_dir_all(&path)
            .with_context(|| format!("failed to create {}", path.display()))?;
        Ok(Self { path })
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves a process into it.
    pub fn take(&self, pid: u32) -> Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("failed to move {pid} into {}", self.path.display()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        let started = Instant::now();
        while fs::remove_dir(&self.path).is_err() && started.elapsed() < Duration::from_secs(2) {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// An agent: a cgroup attached to the daemon; detached when dropped.
pub struct Agent {
    /// Its name.
    pub name: String,
    /// Its cgroup.
    pub group: Group,
}

impl Agent {
    /// Attaches a new cgroup under a policy.
    pub fn attach(name: &str, policy: &str) -> Result<Self> {
        let group = Group::new(name)?;
        let path = group
            .path()
            .to_str()
            .context("the cgroup's path is UTF-8")?
            .to_owned();
        let mut words = vec![
            "attach", "--cgroup", &path, "--policy", policy, "--name", name,
        ];
        for variable in VARIABLES {
            words.extend(["--set", variable]);
        }
        // The folders that variables name must be there when they are set.
        std::fs::create_dir_all("/t/ws").context("failed to make the workspace")?;
        agentguard_ok(&words)?;
        Ok(Self {
            name: name.to_owned(),
            group,
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The daemon may be gone.
        let _ = agentguard(&["detach", &self.name]);
    }
}

/// A process of an agent; ended when dropped.
pub struct Inside(pub Child);

impl Inside {
    /// Starts a program and puts it into the agent's cgroup.
    pub fn start(agent: &Agent, command: &mut Command) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("failed to start {}", command.get_program().display()))?;
        let inside = Self(child);
        agent.group.take(inside.0.id())?;
        Ok(inside)
    }

    /// The same for a script of the shell.
    pub fn script(agent: &Agent, script: &str) -> Result<Self> {
        Self::start(agent, Command::new("/usr/bin/dash").args(["-c", script]))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
