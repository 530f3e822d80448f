//! Builds what guests and packages hold, with the cargo that runs this.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::archive::Tree;
use crate::command::run;
use crate::place;

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
