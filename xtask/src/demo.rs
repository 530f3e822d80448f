//! `cargo xtask demo`: real git, python and shell under `policies/coding-agent.yaml`, with
//! enforcement in the kernel: this host's where it can, else that of a guest.

use std::fs;
use std::io::IsTerminal as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::command::{answer, find};
use crate::guest::{Guest, Show};
use crate::kernels::{self, MATRIX};
use crate::place::{self, Scratch};
use crate::{product, setup, userland};

/// Show what an agent under `policies/coding-agent.yaml` can and cannot do.
#[derive(clap::Args)]
pub struct Options {
    /// Run in a guest with this kernel, even if this host could enforce: 6.1, 6.12, newest or a path.
    #[arg(long)]
    kernel: Option<String>,
}

/// Plays it; 0 only when every action went as expected.
pub fn main(options: &Options) -> Result<i32> {
    setup::main(&setup::Options {
        build_only: false,
        no_workshop: true,
    })?;
    let folder = product::build()?;
    let program = folder.join("agentguard");
    if options.kernel.is_none() {
        match host_refuses(&program) {
            None => {
                println!("\nThis host's kernel can enforce; the demonstration runs on it.\n");
                return on_host(&folder);
            }
            Some(why) => println!(
                "\n{why}, so the demonstration runs in a guest (QEMU) with a kernel that has BPF LSM."
            ),
        }
    }
    let names: Vec<&str> = match &options.kernel {
        Some(name) => vec![name],
        None => MATRIX.iter().rev().map(|choice| choice.name).collect(),
    };
    for name in names {
        let kernel = kernels::find(name)?;
        println!("Booting kernel {} …\n", kernel.release);
        let colour = if std::io::stdout().is_terminal() {
            " --colour"
        } else {
            ""
        };
        let job = format!(
            "mkdir -p /home/agent && exec /guest/vm-tests demo --home /home/agent --uid 1000 --gid 1000 --user agent --guest{colour}\n"
        );
        let mut guest = Guest::new(kernel, job);
        guest.userland = Some(userland::GUEST.get()?);
        guest.show = Show::Everything;
        product::put(&mut guest, &folder)?;
        match guest.run() {
            Ok(outcome) => return Ok(outcome.status),
            Err(error) => eprintln!("xtask: {error:#}"),
        }
    }
    bail!("no kernel of the matrix booted");
}

/// Why this host cannot enforce; `None` when a real command under a real policy ran.
fn host_refuses(program: &Path) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("This user is not root, whom enforcement needs".into());
    }
    let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    if !modules.split(',').any(|module| module.trim() == "bpf") {
        return Some("This host's kernel does not have the BPF LSM switched on".into());
    }
    for needed in ["git", "python3", "curl", "bash", "sudo"] {
        if find(needed).is_none() {
            return Some(format!(
                "This host lacks {needed}, which the demonstration uses"
            ));
        }
    }
    let trial = Command::new(program)
        .args(["run", "--policy"])
        .arg(place::workspace().join("policies/permissive.yaml"))
        .args(["--", "true"])
        .stdin(Stdio::null())
        .output();
    match trial {
        Ok(output) if output.status.success() => None,
        _ => Some("This host's kernel does not let the enforcing programs be loaded".into()),
    }
}

fn on_host(folder: &Path) -> Result<i32> {
    let scratch = Scratch::new("demo")?;
    let variable =
        |name: &str, fallback: &str| std::env::var(name).unwrap_or_else(|_| fallback.to_owned());
    let user = variable("SUDO_USER", "root");
    let number = |flag: &str| answer("id", &[flag, &user]).unwrap_or_else(|| "0".into());
    let mut command = Command::new(folder.join("vm-tests"));
    command
        .arg("demo")
        .arg("--home")
        .arg(scratch.path().join("home"));
    command
        .args([
            "--uid",
            &number("-u"),
            "--gid",
            &number("-g"),
            "--user",
            &user,
        ])
        .arg("--program")
        .arg(folder.join("agentguard"));
    command
        .arg("--policies")
        .arg(place::workspace().join("policies"));
    if std::io::stdout().is_terminal() {
        command.arg("--colour");
    }
    Ok(command.status()?.code().unwrap_or(1))
}
