//! `cargo xtask dist`: the release as one archive and as a Debian package, with checksums, all below cargo's target folder.
//! Below its one folder it is laid out as a system is, so that it can be unpacked there. It must never pack a release
//! that needs a library of the machine that built it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::{quiet, run};
use crate::product::cargo;
use crate::{elf, place, setup};

/// Pack the release as an archive and a Debian package: program (linked statically), policies, unit, completions and manual pages.
#[derive(clap::Args)]
pub struct Options {
    /// Pack this program, and build none. It has to be linked statically.
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// Where each shell looks for completions.
const SHELLS: &[(&str, &str)] = &[
    ("bash", "usr/share/bash-completion/completions/agentguard"),
    ("zsh", "usr/share/zsh/site-functions/_agentguard"),
    (
        "fish",
        "usr/share/fish/vendor_completions.d/agentguard.fish",
    ),
];

/// The program, built here unless one was named.
fn program(options: &Options) -> Result<PathBuf> {
    if let Some(program) = &options.program {
        return fs::canonicalize(program)
            .with_context(|| format!("failed to find {}", program.display()));
    }
    setup::main(&setup::Options {
        build_only: true,
        no_workshop: true,
    })?;
    // A target that is named keeps the flag from what runs here, in the build.
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let flags = format!("target.{target}.rustflags=['-C', 'target-feature=+crt-static']");
    run(cargo()
        .args(["build", "--release", "--locked"])
        .args(["--package", "agentguard-daemon", "--bin", "agentguard"])
        .args(["--target", &target, "--config", &flags]))
    .context("failed to build the release")?;
    Ok(place::target().join(target).join("release/agentguard"))
}

/// Builds and packs it.
pub fn main(options: &Options) -> Result<i32> {
    let binary = program(options)?;
    // One program is to run on every distribution, and in a container that holds nothing else.
    let bytes =
        fs::read(&binary).with_context(|| format!("failed to read {}", binary.display()))?;
    elf::stands_alone(&bytes).with_context(|| format!("{} cannot be packed", binary.display()))?;
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("agentguard-{version}-{}-linux", std::env::consts::ARCH);
    let dist = place::target().join("dist");
    let root = dist.join(&name);
    match fs::remove_dir_all(&root) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("failed to clear {}", root.display()));
        }
        _ => {}
    }
    fill(&root, &binary)?;
    let archive = format!("{name}.tar.gz");
    // Same sources, same archive: no times, owners or order of this machine.
    let tar = [
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--mtime=@0",
        "--use-compress-program=gzip -n",
        "-cf",
    ];
    quiet(
        Command::new("tar")
            .current_dir(&dist)
            .args(tar)
            .args([&archive, &name]),
    )?;
    let package = crate::deb::make(&root, &dist, version)?;
    let package_name = package.file_name().unwrap_or_default();
    let mut sum = Command::new("sha256sum");
    sum.current_dir(&dist).arg(&archive).arg(package_name);
    let sums = quiet(&mut sum)?;
    fs::write(dist.join("SHA256SUMS"), &sums).context("failed to write SHA256SUMS")?;
    for made in [dist.join(&archive), package] {
        let size = fs::metadata(&made)
            .with_context(|| format!("failed to read {}", made.display()))?
            .len()
            >> 10;
        println!("{} ({size} KiB)", made.display());
    }
    println!("{}", sums.trim());
    Ok(0)
}

/// Packages of these versions, made of the program that is there, however it is linked; no archive.
pub fn packages(binary: &Path, folder: &Path, versions: &[&str]) -> Result<Vec<PathBuf>> {
    let root = folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("failed to clear {}", root.display()))?;
    }
    fill(&root, binary)?;
    let made = |version: &&str| crate::deb::make(&root, folder, version);
    versions.iter().map(made).collect()
}

fn fill(root: &Path, binary: &Path) -> Result<()> {
    let workspace = place::workspace();
    copy(binary, &root.join("usr/bin/agentguard"), 0o755)?;
    if crate::command::find("strip").is_some() {
        quiet(
            Command::new("strip")
                .arg("--strip-debug")
                .arg(root.join("usr/bin/agentguard")),
        )?;
    }
    for entry in fs::read_dir(workspace.join("policies")).context("failed to list policies")? {
        let path = entry?.path();
        if let Some(name) = path.file_name().filter(|_| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        }) {
            copy(
                &path,
                &root.join("usr/share/agentguard/policies").join(name),
                0o644,
            )?;
        }
    }
    let packaging = workspace.join("agentguard-daemon/packaging");
    copy_all(
        &packaging.join("monitoring"),
        &root.join("usr/share/agentguard/monitoring"),
    )?;
    for entry in fs::read_dir(&packaging)
        .with_context(|| format!("failed to list {}", packaging.display()))?
    {
        let path = entry?.path();
        let Some(name) = path.file_name().filter(|_| path.is_file()) else {
            continue;
        };
        let folder = if path
            .extension()
            .is_some_and(|extension| extension == "service")
        {
            "usr/lib/systemd/system"
        } else {
            "usr/share/agentguard"
        };
        copy(&path, &root.join(folder).join(name), 0o644)?;
    }
    for (shell, path) in SHELLS {
        let text = quiet(Command::new(binary).args(["completions", shell]))?;
        write(&root.join(path), &text)?;
    }
    let manual = root.join("usr/share/man/man1");
    fs::create_dir_all(&manual)
        .with_context(|| format!("failed to create {}", manual.display()))?;
    quiet(Command::new(binary).arg("man").arg(&manual))?;
    for name in [
        "README.md",
        "CHANGELOG.md",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "LICENSE",
    ] {
        let path = workspace.join(name);
        if path.exists() {
            copy(
                &path,
                &root.join("usr/share/doc/agentguard").join(name),
                0o644,
            )?;
        }
    }
    Ok(())
}

/// The files of a folder.
fn copy_all(from: &Path, to: &Path) -> Result<()> {
    let failed = || format!("failed to list {}", from.display());
    for entry in fs::read_dir(from).with_context(failed)? {
        let path = entry.with_context(failed)?.path();
        if let Some(name) = path.file_name() {
            copy(&path, &to.join(name), 0o644)?;
        }
    }
    Ok(())
}

pub(crate) fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    write(
        to,
        fs::read(from).with_context(|| format!("failed to read {}", from.display()))?,
    )?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))
        .with_context(|| format!("failed to set the mode of {}", to.display()))
}

pub(crate) fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("failed to create {}", folder.display()))?;
    }
    fs::write(path, contents).with_context(|| format!("failed to write {}", path.display()))
}
