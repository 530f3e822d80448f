//! The commands of the README, read from it, and what must come of each.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::system::{give, ok, packaged, said};

const README: &str = "/guest/README.md";
const HOME: &str = "/home/agent";
/// Where the user has cloned the repository.
const CLONE: &str = "/home/agent/agentguard";

/// What must come of a command.
#[derive(Debug)]
pub struct Expected {
    /// Whether its status is 0.
    succeeds: bool,
    /// What it prints, among other things.
    says: &'static [&'static str],
}

/// Of each, in the order of the README.
pub const EXPECTED: &[Expected] = &[
    Expected {
        succeeds: true,
        says: &["Setting up agentguard"],
    },
    Expected {
        succeeds: true,
        says: &["can be enforced", "a daemon runs"],
    },
    // The agent's last act is denied, and the status is that of its command.
    Expected {
        succeeds: false,
        says: &["On branch", "ssh-keys"],
    },
    Expected {
        succeeds: true,
        says: &["ssh-keys", ".ssh/id_rsa"],
    },
    Expected {
        succeeds: true,
        says: &["agent first", "deny"],
    },
];

/// The first commands below "Install", for a user in a clone of the repository.
pub fn of_the_readme() -> Result<Vec<String>> {
    let text = fs::read_to_string(README).with_context(|| format!("no {README}"))?;
    let section = text.split("\n## Install").nth(1).context("no section")?;
    let block = section.split("```console").nth(1).context("no commands")?;
    let block = block.split("```").next().unwrap_or_default();
    let commands = block.lines().filter_map(|line| line.strip_prefix("$ "));
    let commands = commands.map(str::to_owned).collect();
    // A clone, an SSH key, and the package where `cargo xtask dist` puts it.
    let dist = Path::new(CLONE).join("target/dist");
    fs::create_dir_all(&dist)?;
    let package = packaged(0)?;
    let name = Path::new(&package).file_name().context("no name")?;
    symlink(&package, dist.join(name))?;
    fs::create_dir_all(format!("{HOME}/.ssh"))?;
    fs::write(format!("{HOME}/.ssh/id_rsa"), "a private key\n")?;
    give(HOME.as_ref(), "agent:agent")?;
    ok(
        "runuser",
        &[
            "-u", "agent", "--", "git", "init", "-q", "-b", "main", CLONE,
        ],
    )?;
    Ok(commands)
}

/// Runs one as the user.
pub fn run(command: &str, expected: &Expected) -> Result<()> {
    let line = format!("cd {CLONE} && {command}");
    let words = ["-u", "agent", "--", "env", "-i"];
    let variables = [
        "HOME=/home/agent",
        "USER=agent",
        "LANG=C",
        "PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
    ];
    let (said, complaint, succeeded) = said(
        "runuser",
        &[&words[..], &variables, &["bash", "-c", &line]].concat(),
    )?;
    // For the README, and for who looks into what was kept.
    println!("ok    $ {command}");
    for line in said.lines().chain(complaint.lines()) {
        println!("ok    | {line}");
    }
    ensure!(
        succeeded == expected.succeeds,
        "`{command}` succeeded: {succeeded}"
    );
    for word in expected.says {
        ensure!(
            said.contains(word) || complaint.contains(word),
            "`{command}` does not say {word:?}"
        );
    }
    Ok(())
}
