//! The emulator: its command line, and whether it may use this host's virtualisation. KVM is used
//! only where a short trial boot has shown that it works.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::command::{answer, find};
use crate::guest::{Attempt, Guest, Show};
use crate::place::{self, Scratch};

/// The command, but for what a single guest adds.
pub fn command(accelerator: &str) -> Result<Command> {
    let program = find("qemu-system-x86_64")
        .context("qemu-system-x86_64 is missing: run `cargo xtask setup`")?;
    let mut command = Command::new(program);
    let cpu = if accelerator == "kvm" { "host" } else { "max" };
    command.args([
        "-machine",
        "pc",
        "-cpu",
        cpu,
        "-accel",
        accelerator,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    if accelerator == "kvm" {
        // Where KVM fails it says so at length; the trial's own sentence is enough.
        command.stderr(Stdio::null());
    }
    Ok(command)
}

/// KVM where a short trial boot has shown that it works, else emulation. The trial's result is kept.
pub fn accelerator() -> Result<&'static str> {
    const EMULATED: &str = "tcg,thread=multi";
    if File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        return Ok(EMULATED);
    }
    let host = format!(
        "{} {}",
        answer("uname", &["-rv"]).unwrap_or_default(),
        answer("qemu-system-x86_64", &["--version"]).unwrap_or_default()
    );
    let known = place::cache()?.join("kvm");
    let verdict = fs::read_to_string(&known).unwrap_or_default();
    let works = match verdict.split_once('\n') {
        Some((word, for_host)) if for_host == host => word == "works",
        _ => {
            let works = trial("kvm").unwrap_or(false);
            fs::write(
                &known,
                format!("{}\n{host}", if works { "works" } else { "fails" }),
            )
            .with_context(|| format!("failed to write {}", known.display()))?;
            works
        }
    };
    Ok(if works { "kvm" } else { EMULATED })
}

fn trial(accelerator: &str) -> Result<bool> {
    eprintln!("xtask: /dev/kvm is there; trying for at most 20 s whether a guest boots with it");
    let scratch = Scratch::new("trial")?;
    let mut guest = Guest::new(crate::kernels::find("6.12")?, "exit 0\n".into());
    guest.timeout = Duration::from_secs(20);
    guest.show = Show::Nothing;
    guest.pack(&scratch.path().join("initrd"))?;
    let works = matches!(
        guest.attempt(scratch.path(), accelerator),
        Ok(Attempt::Done(_))
    );
    eprintln!(
        "xtask: KVM {}",
        if works {
            "works"
        } else {
            "does not work here; guests are emulated"
        }
    );
    Ok(works)
}
