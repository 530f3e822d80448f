//! `cargo xtask setup`: finds or installs what building and testing need, each only when it is
//! missing, and says what and why. A second run uses no network.

use std::cell::OnceCell;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::command::{answer, find, quiet};
use crate::debian::{self, Apt};
use crate::{kernels, place, receivers, toolchain, userland};

/// Oldest QEMU that boots reliably.
const QEMU: u32 = 8;

/// Find or install what building and testing need, each only when it is missing.
#[derive(clap::Args)]
pub struct Options {
    /// Only what building needs: no QEMU, no kernels, no guest.
    #[arg(long)]
    pub build_only: bool,
    /// Without what single tests need: compilers, node and package managers (1 GiB), containers, and VictoriaMetrics.
    #[arg(long)]
    pub no_workshop: bool,
}

/// Package lists, read once and only when something is missing.
#[derive(Default)]
pub struct Packages {
    own: OnceCell<Apt>,
    matrix: OnceCell<Apt>,
}

impl Packages {
    /// Those of this machine's release.
    pub fn own(&self) -> Result<&Apt> {
        Self::lists(&self.own, "package lists", Apt::own_release)
    }

    /// Those of every release in the matrix.
    fn matrix(&self) -> Result<&Apt> {
        Self::lists(&self.matrix, "matrix lists", Apt::every_suite)
    }

    fn lists<'a>(
        cell: &'a OnceCell<Apt>,
        what: &str,
        make: fn() -> Result<Apt>,
    ) -> Result<&'a Apt> {
        if let Some(apt) = cell.get() {
            return Ok(apt);
        }
        if find("apt-get").is_none() {
            bail!(
                "there is no apt-get here: `cargo xtask setup` installs on Debian 12 and 13 only; see CONTRIBUTING.md for what it would install"
            );
        }
        let apt = step(
            what,
            "something is missing and comes from the configured mirror",
            || {
                let apt = make()?;
                apt.update()?;
                Ok(apt)
            },
        )?;
        Ok(cell.get_or_init(|| apt))
    }
}

/// Runs every step.
pub fn main(options: &Options) -> Result<i32> {
    let packages = Packages::default();
    let ebpf = toolchain::ensure(&packages)?;
    found("eBPF toolchain", &ebpf.description);
    found("bpf-linker", &toolchain::ensure_linker(&packages, &ebpf)?);
    if options.build_only {
        return Ok(0);
    }
    found("QEMU", &ensure_qemu(&packages)?);
    let is_static = |path: &Path| quiet(Command::new("ldd").arg(path)).is_err();
    ensure_program(
        &packages,
        "busybox",
        "busybox-static",
        "the guest's first process runs on it",
        is_static,
    )?;
    ensure_program(
        &packages,
        "xz",
        "xz-utils",
        "the modules of kernels are unpacked by it",
        |_| true,
    )?;
    for choice in kernels::MATRIX {
        let complete = kernels::cached(choice)?.filter(|_| kernels::has_modules(choice));
        let kernel = match complete {
            Some(kernel) => kernel,
            None => step(
                &format!("kernel {}", choice.name),
                "the tests boot it",
                || kernels::fetch(choice, packages.matrix()?),
            )?,
        };
        found(&format!("kernel {}", kernel.name), &kernel.release);
    }
    if !options.no_workshop {
        let receiver = match receivers::cached()? {
            Some(receiver) => receiver,
            None => step(
                "VictoriaMetrics",
                "metrics are pushed to it in a test",
                || receivers::fetch(packages.matrix()?),
            )?,
        };
        found("VictoriaMetrics", &receiver.display().to_string());
    }
    // What is asked for by itself is downloaded then.
    let apart = [userland::CONTAINERS, userland::WORKSHOP];
    let apart = apart.into_iter().filter(|_| !options.no_workshop);
    for userland in [userland::GUEST].into_iter().chain(apart) {
        let archive = userland.get()?;
        let size = fs::metadata(&archive)
            .with_context(|| format!("failed to read {}", archive.display()))?
            .len()
            >> 20;
        found(userland.name, &format!("{size} MiB, {}", archive.display()));
    }
    println!(
        "Ready. Downloads are kept in {}; another run uses no network.",
        place::cache()?.display()
    );
    Ok(0)
}

fn found(what: &str, detail: &str) {
    println!("{what:<16} {detail}");
}

/// Runs one slow step with a sign of life and its time.
pub fn step<T>(what: &str, why: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let bar = ProgressBar::new_spinner();
    bar.set_style(
        ProgressStyle::with_template("{spinner} {msg} ({elapsed})")
            .context("bad progress template")?,
    );
    bar.set_message(format!("{what}: getting it, because {why}"));
    bar.enable_steady_tick(Duration::from_millis(200));
    if bar.is_hidden() {
        println!("{what:<16} getting it, because {why} …");
    }
    let started = Instant::now();
    let result = work().with_context(|| format!("failed to get {what}"));
    bar.finish_and_clear();
    if result.is_ok() {
        println!(
            "{what:<16} done in {:.0} s",
            started.elapsed().as_secs_f64()
        );
    }
    result
}

fn qemu_version() -> Option<(u32, String)> {
    let text = answer("qemu-system-x86_64", &["--version"])?;
    let version = text
        .split("version ")
        .nth(1)?
        .split([' ', '\n'])
        .next()?
        .to_owned();
    Some((version.split('.').next()?.parse().ok()?, version))
}

fn ensure_qemu(packages: &Packages) -> Result<String> {
    if let Some((_, version)) = qemu_version().filter(|(major, _)| *major >= QEMU) {
        return Ok(version);
    }
    let suite = (debian::codename().as_deref() == Some("bookworm")).then_some("bookworm-backports");
    step(
        "QEMU",
        &format!("the tests run in guests, and one before {QEMU}.0 lets guests die at random"),
        || packages.own()?.install(suite, &["qemu-system-x86"]),
    )?;
    qemu_version()
        .map(|(_, version)| version)
        .context("qemu-system-x86_64 is still missing after its installation")
}

fn ensure_program(
    packages: &Packages,
    program: &str,
    package: &str,
    why: &str,
    fits: fn(&Path) -> bool,
) -> Result<()> {
    if find(program).is_some_and(|path| fits(&path)) {
        return Ok(());
    }
    step(program, why, || packages.own()?.install(None, &[package]))
}
