//! The engine of the containers: how it is set up in a guest, and how a container of it is made and governed, as
//! [docs/names.md](../../../docs/names.md) has it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::fixture::load_module;
use crate::guard::{agentguard, agentguard_ok};

/// The program.
pub const PODMAN: &str = "/usr/bin/podman";
/// The image.
pub const IMAGE: &str = "localhost/agent";
/// In a guest nothing else is on this host's networks, and its root cannot be pivoted from.
const CONFIGURATION: &str = "[engine]
cgroup_manager = \"cgroupfs\"
events_logger = \"file\"
no_pivot_root = true
[network]
firewall_driver = \"none\"
";
/// What the image has; programs come from the guest.
const FOLDERS: &[&str] = &["usr", "etc", "tmp", "proc", "sys", "dev", "run", "var"];
const LINKS: &[(&str, &str)] = &[
    ("bin", "usr/bin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
];

/// Programs and libraries of the image, for the container that has nothing else.
const FILES: &[&str] = &[
    "usr/bin/dash",
    "usr/bin/cat",
    "usr/lib/x86_64-linux-gnu/libc.so.6",
    "usr/lib64/ld-linux-x86-64.so.2",
];
/// The guest's programs, for the container.
pub const USR: &[&str] = &["-v", "/usr:/usr:ro"];

/// Why it cannot be tried here.
pub fn lacks() -> Result<Option<&'static str>> {
    if !Path::new(PODMAN).exists() {
        return Ok(Some(
            "this guest has no podman; `cargo xtask vm --containers` boots one that has",
        ));
    }
    for module in ["overlay", "llc", "stp", "bridge", "veth"] {
        load_module(module)?;
    }
    let ip = |words: &[&str]| {
        Command::new("/usr/sbin/ip")
            .args(words)
            .stderr(Stdio::null())
            .status()
    };
    if !ip(&["link", "add", "probe", "type", "veth"])?.success() {
        return Ok(Some(
            "this kernel has no veth, or the cache not its module: `cargo xtask setup` gets it",
        ));
    }
    ip(&["link", "del", "probe"])?;
    Ok(None)
}

/// Configures the engine and makes the image.
pub fn prepare() -> Result<()> {
    fs::create_dir_all("/etc/containers")?;
    fs::write("/etc/containers/containers.conf", CONFIGURATION)?;
    let root = Path::new("/tmp/image");
    for folder in FOLDERS {
        fs::create_dir_all(root.join(folder))?;
    }
    for (link, to) in LINKS {
        // It may be there from an earlier run.
        let _ = std::os::unix::fs::symlink(to, root.join(link));
    }
    for file in ["passwd", "nsswitch.conf"] {
        fs::copy(Path::new("/etc").join(file), root.join("etc").join(file))?;
    }
    for file in FILES {
        let to = root.join(file);
        fs::create_dir_all(to.parent().context("a file has a folder")?)?;
        fs::copy(Path::new("/").join(file), to).with_context(|| (*file).to_owned())?;
    }
    for file in ["open.txt", "secret.txt"] {
        fs::write(root.join(file), format!("this is {file}\n"))?;
    }
    let pack = format!("/usr/bin/tar -C /tmp/image -c . | {PODMAN} import - {IMAGE}");
    let packed = Command::new("/usr/bin/dash").args(["-c", &pack]).output()?;
    ensure!(
        packed.status.success(),
        "{}",
        String::from_utf8_lossy(&packed.stderr)
    );
    Ok(())
}

/// Runs the engine; gives what it said and what it complained of, however it ended.
pub fn podman(words: &[&str]) -> Result<(String, String)> {
    let output = Command::new(PODMAN)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .context("failed to start podman")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok((text(&output.stdout), text(&output.stderr)))
}

/// The same, where it must succeed.
pub fn podman_ok(words: &[&str]) -> Result<String> {
    let output = Command::new(PODMAN)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .context("failed to start podman")?;
    ensure!(
        output.status.success(),
        "podman {}: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A container that was created and whose process waits, attached or not; removed when dropped.
pub struct Container {
    /// Its name, and that of the agent.
    pub name: &'static str,
    policy: Option<&'static str>,
}

impl Container {
    /// With the policy of names, or without any.
    pub fn new(name: &'static str, governed: bool, words: &[&str]) -> Result<Self> {
        Self::of(name, governed.then_some("names"), USR, words)
    }

    /// The same with a policy, and with what is mounted.
    pub fn of(
        name: &'static str,
        policy: Option<&'static str>,
        mounts: &[&str],
        words: &[&str],
    ) -> Result<Self> {
        podman_ok(&[&["create", "--name", name], mounts, &[IMAGE], words].concat())?;
        let container = Self { name, policy };
        container.govern()?;
        Ok(container)
    }

    /// Makes it as far as the first instruction of its command, and brings it under its policy, if it has one.
    pub fn govern(&self) -> Result<()> {
        let Some(policy) = self.policy else {
            return Ok(());
        };
        podman_ok(&["init", self.name])?;
        let pid = podman_ok(&["inspect", "--format", "{{.State.Pid}}", self.name])?;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let group = groups.trim().strip_prefix("0::");
        let group = group.with_context(|| groups.clone())?;
        agentguard_ok(&[
            "attach", "--cgroup", group, "--policy", policy, "--name", self.name,
        ])
        .map(drop)
    }

    /// Starts it, and waits for its end.
    pub fn said(&self) -> Result<(String, String)> {
        podman(&["start", "--attach", self.name])
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // It may have ended, or never begun.
        let _ = podman(&["rm", "--force", "--time", "0", self.name]);
        if self.policy.is_some() {
            let _ = agentguard(&["detach", self.name]);
        }
    }
}
