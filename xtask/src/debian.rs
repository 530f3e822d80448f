//! Packages through apt, from the mirror that this machine is configured with. Other suites than
//! the machine's own are read through a private apt tree in the cache: nothing here may change the
//! machine's own package lists, and no mirror's name may be written down.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::{answer, quiet};
use crate::{place, sources};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The suites that are asked, by the repository they live in.
const ARCHIVE: &[&str] = &[
    "bookworm",
    "bookworm-updates",
    "bookworm-backports",
    "trixie",
    "trixie-updates",
    "trixie-backports",
];
const SECURITY: &[&str] = &["bookworm-security", "trixie-security"];

/// Debian's code name of this machine, if it is one.
pub fn codename() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .map(|value| value.trim_matches('"').to_owned())
    };
    (value("ID=")? == "debian")
        .then(|| value("VERSION_CODENAME="))
        .flatten()
}

/// A private apt tree over some suites.
pub struct Apt {
    root: PathBuf,
}

impl Apt {
    /// A tree that sees every suite of the matrix.
    pub fn every_suite() -> Result<Self> {
        Self::over("all", |_| true)
    }

    /// A tree that sees this machine's own release and its backports: only from it may packages be
    /// installed here, or the machine would become a mixture of releases.
    pub fn own_release() -> Result<Self> {
        let own = codename()
            .filter(|name| ARCHIVE.contains(&name.as_str()))
            .context("packages can be installed on Debian 12 and 13 only; see CONTRIBUTING.md for what is needed")?;
        Self::over("own", |suite| suite.starts_with(&own))
    }

    /// A tree that sees the suites for which `wanted` says so.
    pub fn over(name: &str, wanted: impl Fn(&str) -> bool) -> Result<Self> {
        let root = place::cache()?.join("apt").join(name);
        for folder in ["lists/partial", "archives/partial", "parts"] {
            fs::create_dir_all(root.join(folder))
                .with_context(|| format!("failed to create {}", root.join(folder).display()))?;
        }
        let mirrors = sources::configured();
        let archive = mirrors.archive.context(
            "no Debian repository is configured in /etc/apt: the guest's kernels and programs come from one",
        )?;
        let security = mirrors.security;
        let signed = if Path::new(KEYRING).exists() {
            format!("[signed-by={KEYRING}] ")
        } else {
            String::new()
        };
        let mut lines = String::new();
        let suites = ARCHIVE
            .iter()
            .map(|suite| (Some(&archive), suite))
            .chain(SECURITY.iter().map(|suite| (security.as_ref(), suite)));
        for (uri, suite) in suites {
            if let (Some(uri), true) = (uri, wanted(suite)) {
                writeln!(lines, "deb {signed}{uri} {suite} main")?;
            }
        }
        fs::write(root.join("sources.list"), lines)
            .context("failed to write the private package sources")?;
        fs::write(root.join("status"), "").context("failed to write an empty package status")?;
        Ok(Self { root })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let at = |key: &str, path: &str| format!("{key}={}", self.root.join(path).display());
        for option in [
            at("Dir::Etc::sourcelist", "sources.list"),
            at("Dir::Etc::sourceparts", "parts"),
            at("Dir::State::lists", "lists"),
            at("Dir::Cache::archives", "archives"),
            "Dir::Cache::pkgcache=".into(),
            "Dir::Cache::srcpkgcache=".into(),
            "Acquire::Languages=none".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
            "APT::Sandbox::User=".into(),
            "APT::Update::Post-Invoke=".into(),
            "APT::Update::Post-Invoke-Success=".into(),
            "Acquire::Retries=3".into(),
        ] {
            command.arg("-o").arg(option);
        }
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C.UTF-8");
        command
    }

    /// Reads the package lists.
    pub fn update(&self) -> Result<()> {
        quiet(
            self.command("apt-get")
                .args(["-o", "Debug::NoLocking=1", "update"]),
        )
        .map(drop)
        .context("failed to read the package lists of the configured mirror")
    }

    /// Installs packages on this machine, preferring `suite`. Needs root.
    pub fn install(&self, suite: Option<&str>, packages: &[&str]) -> Result<()> {
        let mut command = self.command("apt-get");
        command.args(["install", "--yes", "--no-install-recommends"]);
        if let Some(suite) = suite {
            command.args(["--target-release", suite]);
        }
        quiet(as_root(&mut command)?.args(packages)).map(drop)
    }

    /// The newest version of a package in any of these suites, with a field of it.
    pub fn newest(&self, package: &str, suites: &[&str], field: &str) -> Result<(String, String)> {
        let mut best: Option<(String, String)> = None;
        for suite in suites {
            let Ok(text) = quiet(
                self.command("apt-cache")
                    .arg("show")
                    .arg(format!("{package}/{suite}")),
            ) else {
                continue;
            };
            let value = |key: &str| {
                text.lines()
                    .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
                    .map(str::to_owned)
            };
            let (Some(version), Some(value)) = (value("Version"), value(field)) else {
                continue;
            };
            let newer = best.as_ref().is_none_or(|(known, _)| {
                answer("dpkg", &["--compare-versions", &version, "gt", known]).is_some()
            });
            if newer {
                best = Some((version, value));
            }
        }
        best.with_context(|| format!("no package {package} in any of {}", suites.join(", ")))
    }

    /// Whether a package exists.
    pub fn has(&self, package: &str) -> bool {
        quiet(self.command("apt-cache").args(["show", package])).is_ok_and(|text| !text.is_empty())
    }

    /// Downloads one package to `folder` and returns its path.
    pub fn download(&self, package: &str, folder: &Path) -> Result<PathBuf> {
        fs::create_dir_all(folder)
            .with_context(|| format!("failed to create {}", folder.display()))?;
        quiet(
            self.command("apt-get")
                .args(["download", package])
                .current_dir(folder),
        )?;
        packages_in(folder)?
            .pop()
            .with_context(|| format!("apt-get downloaded no package for {package}"))
    }

    /// Downloads the packages and all they depend on, as for a machine that has nothing.
    pub fn download_closure(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let archives = self.root.join("archives");
        for old in packages_in(&archives)? {
            fs::remove_file(&old).with_context(|| format!("failed to remove {}", old.display()))?;
        }
        let status = format!("Dir::State::status={}", self.root.join("status").display());
        quiet(
            self.command("apt-get")
                .args([
                    "-o",
                    &status,
                    "-o",
                    "Debug::NoLocking=1",
                    "install",
                    "--yes",
                    "--download-only",
                    "--no-install-recommends",
                ])
                .args(packages),
        )?;
        packages_in(&archives)
    }
}

/// The command as root: as it is, or through sudo where that asks for no password.
fn as_root(command: &mut Command) -> Result<Command> {
    let mut words = vec![command.get_program().to_owned()];
    words.extend(command.get_args().map(std::ffi::OsStr::to_owned));
    let mut elevated = if nix::unistd::geteuid().is_root() {
        Command::new("env")
    } else if answer("sudo", &["-n", "true"]).is_some() {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "env"]);
        sudo
    } else {
        let line = words
            .iter()
            .filter_map(|word| word.to_str())
            .filter(|word| !word.contains("::") && *word != "-o")
            .collect::<Vec<_>>()
            .join(" ");
        bail!(
            "packages are missing and this user may not install any: run `cargo xtask setup` as root, or install them yourself (`{line} …`)"
        );
    };
    elevated
        .args(["DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"])
        .args(words);
    Ok(elevated)
}

fn packages_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("failed to list {}", folder.display()))?
    {
        let path = entry
            .with_context(|| format!("failed to list {}", folder.display()))?
            .path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
