//! Builds what guests and packages hold, with the cargo that runs this.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::archive::Tree;
use crate::command::run;
use crate::guest::Guest;
use crate::{dist, place};

/// The profile of what tests and guests run, which is also that of this program.
pub const PROFILE: &str = "guest";

/// A cargo command in the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(place::workspace());
    command
}

/// Builds the binaries for guests and returns their folder.
pub fn build() -> Result<PathBuf> {
    built(&[
        "--package",
        "agentguard-daemon",
        "--package",
        "vm-tests",
        "--bins",
    ])
}

/// The same where all tests were built before, which is nothing to do: tests want other features of some libraries,
/// and so what depends on these would be built twice.
pub fn build_with_tests() -> Result<PathBuf> {
    built(&["--workspace", "--tests", "--bins"])
}

/// Builds a benchmark of a package, and says where it is.
pub fn bench(package: &str, name: &str) -> Result<PathBuf> {
    let output = cargo()
        .args([
            "bench",
            "--profile",
            PROFILE,
            "--package",
            package,
            "--bench",
            name,
        ])
        .args(["--no-run", "--message-format", "json"])
        .stderr(Stdio::inherit())
        .output()
        .context("failed to start cargo bench")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut artifact = text.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == name)
            .then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    artifact
        .next_back()
        .filter(|_| output.status.success())
        .with_context(|| format!("failed to build the benchmark `{name}` ({})", output.status))
}

fn built(what: &[&str]) -> Result<PathBuf> {
    run(cargo().args(["build", "--profile", PROFILE]).args(what))
        .context("failed to build the binaries for the guest")?;
    Ok(place::target().join(PROFILE))
}

/// The versions of the packages that a guest gets: the second is an upgrade.
const VERSIONS: &[&str] = &[
    env!("CARGO_PKG_VERSION"),
    concat!(env!("CARGO_PKG_VERSION"), "+1"),
];

/// Puts the product and the tests from a folder of binaries into a guest: as packages with the README that says how to
/// install them, where the guest is a whole system.
pub fn put(guest: &mut Guest, binaries: &Path) -> Result<()> {
    if guest.systemd {
        packaged(&mut guest.overlay, binaries)
    } else {
        installed(&mut guest.overlay, binaries)
    }
}

fn packaged(tree: &mut Tree, folder: &Path) -> Result<()> {
    let dist = place::target().join("guest-dist");
    for package in dist::packages(&folder.join("agentguard"), &dist, VERSIONS)? {
        let name = package.file_name().unwrap_or_default().to_string_lossy();
        tree.copy(&package, &format!("guest/packages/{name}"))?;
    }
    tree.copy(&folder.join("vm-tests"), "guest/vm-tests")?;
    tree.copy(&place::workspace().join("README.md"), "guest/README.md")
}

/// As users install it. The binaries are dynamic: the guest's libc is at least as new as that of the oldest supported
/// host.
fn installed(tree: &mut Tree, folder: &Path) -> Result<()> {
    tree.copy(&folder.join("agentguard"), "usr/bin/agentguard")?;
    tree.copy(&folder.join("vm-tests"), "guest/vm-tests")?;
    tree.copy(&place::workspace().join("vm-tests/rows"), "guest/rows")?;
    tree.directory("etc/agentguard", 0o755);
    let policies = place::workspace().join("policies");
    if policies.is_dir() {
        tree.copy(&policies, "etc/agentguard/policies")?;
    }
    Ok(())
}
