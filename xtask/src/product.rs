//! Builds what guests and packages hold, with the cargo that runs this.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::archive::Tree;
use crate::command::run;
use crate::{dist, place};

/// A cargo command in the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(place::workspace());
    command
}

/// Builds the binaries for guests and returns their folder.
pub fn build() -> Result<PathBuf> {
    run(cargo().args([
        "build",
        "--profile",
        "guest",
        "--package",
        "agentguard-daemon",
        "--package",
        "vm-tests",
        "--bins",
    ]))
    .context("failed to build the binaries for the guest")?;
    Ok(place::target().join("guest"))
}

/// The versions of the packages that a guest gets: the second is an upgrade.
const VERSIONS: &[&str] = &[
    env!("CARGO_PKG_VERSION"),
    concat!(env!("CARGO_PKG_VERSION"), "+1"),
];

/// Puts packages of the product into a guest that installs them itself, with the tests and the README that says how.
pub fn hand_over(tree: &mut Tree) -> Result<()> {
    let folder = build()?;
    let dist = place::target().join("guest-dist");
    for package in dist::packages(&folder.join("agentguard"), &dist, VERSIONS)? {
        let name = package.file_name().unwrap_or_default().to_string_lossy();
        tree.copy(&package, &format!("guest/packages/{name}"))?;
    }
    tree.copy(&folder.join("vm-tests"), "guest/vm-tests")?;
    tree.copy(&place::workspace().join("README.md"), "guest/README.md")
}

/// Puts the product as users install it, and the tests, into a guest. The binaries are dynamic: the
/// guest's libc is at least as new as that of the oldest supported host.
pub fn install(tree: &mut Tree) -> Result<()> {
    let folder = build()?;
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
