//! `cargo xtask vm`: one command in a guest.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::guest::{self, Guest};
use crate::{kernels, product, userland};

/// Boot a guest and run one command in it; its exit status is the command's.
#[derive(clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command line"
)]
pub struct Options {
    /// Kernel: 6.1, 6.12, newest, or the path of an image.
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Guest time counts executed instructions, on one CPU (for measuring costs).
    #[arg(long)]
    icount: bool,
    /// Only busybox instead of a Debian userland: boots faster; programs must be static.
    #[arg(long)]
    bare: bool,
    /// A Debian userland with compilers, node and package managers (1 GiB: needs 5 GiB of memory).
    #[arg(long, conflicts_with = "bare")]
    workshop: bool,
    /// A Debian userland with podman, for containers.
    #[arg(long, conflicts_with_all = ["bare", "workshop"])]
    containers: bool,
    /// A Debian system with systemd and dpkg; the package is in /guest, and not installed.
    #[arg(long, conflicts_with_all = ["bare", "workshop", "containers"])]
    debian: bool,
    /// Do not build and pack the product and the tests.
    #[arg(long)]
    no_build: bool,
    /// A file or folder to put into the guest, at /share/NAME or where GUEST says.
    #[arg(long, value_name = "PATH[:GUEST]")]
    share: Vec<String>,
    /// A file to bring back after the command, into the folder of --out.
    #[arg(long, value_name = "GUEST-PATH")]
    get: Vec<String>,
    /// Where the files of --get are written.
    #[arg(long, default_value = ".", value_name = "FOLDER")]
    out: PathBuf,
    /// A raw image as the guest's disk /dev/nvme0n1, which outlives it. The kernel needs the driver built in (6.1).
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Memory in MiB: 2048 by default, 5120 with --workshop.
    #[arg(long)]
    memory: Option<u32>,
    /// Number of CPUs.
    #[arg(long)]
    cpus: Option<u32>,
    /// Host seconds after which the guest is stopped.
    #[arg(long, default_value_t = 900)]
    timeout: u64,
    /// A shell on this terminal instead of a command.
    #[arg(long, conflicts_with = "command")]
    shell: bool,
    /// The command and its arguments.
    #[arg(last = true, required_unless_present = "shell")]
    command: Vec<String>,
}

/// Runs the command and returns its status.
pub fn main(options: &Options) -> Result<i32> {
    let job = if options.shell {
        "exec sh -i\n".to_owned()
    } else {
        guest::job(&options.command)
    };
    let mut guest = Guest::new(kernels::find(&options.kernel)?, job);
    guest.interactive = options.shell;
    guest.icount = options.icount;
    let (userland, memory) = if options.workshop {
        (&userland::WORKSHOP, userland::WORKSHOP_MEMORY)
    } else if options.containers {
        (&userland::CONTAINERS, guest.memory)
    } else if options.debian {
        (&userland::DEBIAN, guest.memory)
    } else {
        (&userland::GUEST, guest.memory)
    };
    guest.memory = options.memory.unwrap_or(memory);
    guest.cpus = options.cpus.unwrap_or(guest.cpus);
    guest.timeout = Duration::from_secs(options.timeout);
    guest.wanted.clone_from(&options.get);
    guest.disk.clone_from(&options.disk);
    if !options.bare {
        guest.systemd = userland.system;
        guest.userland = Some(userland.get()?);
    }
    if !options.bare && !options.no_build {
        product::put(&mut guest, &product::build()?)?;
    }
    for share in &options.share {
        let (from, to) = if let Some((from, to)) = share.split_once(':') {
            (PathBuf::from(from), to.to_owned())
        } else {
            let name = PathBuf::from(share)
                .file_name()
                .and_then(|name| name.to_str())
                .map(|name| format!("share/{name}"));
            (
                PathBuf::from(share),
                name.with_context(|| format!("{share} has no name to use in the guest"))?,
            )
        };
        guest.overlay.copy(
            &fs::canonicalize(&from)
                .with_context(|| format!("failed to find {}", from.display()))?,
            &to,
        )?;
    }
    let outcome = guest.run()?;
    for (path, data) in &outcome.files {
        let name = path.rsplit('/').next().unwrap_or(path);
        fs::create_dir_all(&options.out)
            .with_context(|| format!("failed to create {}", options.out.display()))?;
        fs::write(options.out.join(name), data)
            .with_context(|| format!("failed to write {name}"))?;
    }
    if outcome.files.len() < options.get.len() {
        bail!(
            "only {} of {} files of --get exist in the guest",
            outcome.files.len(),
            options.get.len()
        );
    }
    if outcome.repeats > 0 {
        eprintln!(
            "xtask: {} guest(s) died and were started again",
            outcome.repeats
        );
    }
    Ok(outcome.status)
}
