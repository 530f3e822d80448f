//! What this machine can enforce: asked before loading, and by `agentguard doctor`.
//! A probe reports; only [`require`] refuses.

use std::path::Path;

use sha2::Digest as _;

use super::symbols::Counts;
use super::{KernelError, Structs};

/// How a probe came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeStatus {
    /// As it should be.
    Ok,
    /// Works, with less than usual.
    Degraded,
    /// Enforcement is impossible without it.
    Missing,
}

/// One thing that enforcement depends on.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Probe {
    /// Short name.
    pub name: &'static str,
    /// How it came out.
    pub status: ProbeStatus,
    /// What was found.
    pub detail: String,
    /// What to do about it, if anything.
    pub remedy: Option<String>,
}

impl Probe {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            status: ProbeStatus::Ok,
            detail: detail.into(),
            remedy: None,
        }
    }

    /// A failed requirement: the message of the error is "what; remedy".
    fn missing(name: &'static str, error: &KernelError) -> Self {
        let text = error.to_string();
        let (detail, remedy) = text
            .split_once("; ")
            .map_or((text.as_str(), None), |(a, b)| (a, Some(b.to_owned())));
        Self {
            name,
            status: ProbeStatus::Missing,
            detail: detail.to_owned(),
            remedy,
        }
    }

    fn of(name: &'static str, result: Result<String, KernelError>) -> Self {
        match result {
            Ok(detail) => Self::ok(name, detail),
            Err(error) => Self::missing(name, &error),
        }
    }
}

/// Everything that must hold before programs are loaded, in the order a person would check it.
pub fn require() -> Result<(), KernelError> {
    root()?;
    kernel()?;
    lsm()?;
    preemption()?;
    Ok(())
}

/// All probes. Never fails: what cannot be found out is reported as missing.
pub fn probe() -> Vec<Probe> {
    vec![
        Probe::of("privilege", root()),
        Probe::of("kernel", kernel()),
        Probe::of("bpf-lsm", lsm()),
        Probe::of("type-information", btf()),
        Probe::of("preemption", preemption()),
        Probe::of("cgroup-v2", cgroup()),
        hooks(),
        folders(),
        Probe::of("enforcement", load()),
    ]
}

/// What opens in known folders need to be cheap.
fn folders() -> Probe {
    let name = "known-folders";
    if Counts::of_kernel() != Counts::default() {
        return Probe::ok(
            name,
            "paths of folders are remembered while nothing is renamed or mounted",
        );
    }
    Probe {
        name,
        status: ProbeStatus::Degraded,
        detail: "paths of folders are not remembered, so that opens cost twice as much".into(),
        remedy: cfg!(target_arch = "x86_64").then(|| {
            "let root read the addresses in /proc/kallsyms: `sysctl kernel.kptr_restrict=1`, before the daemon starts"
                .into()
        }),
    }
}

fn root() -> Result<String, KernelError> {
    if nix::unistd::geteuid().is_root() {
        Ok("running as root".into())
    } else {
        Err(KernelError::NotRoot)
    }
}

fn release() -> Result<String, KernelError> {
    let name = nix::sys::utsname::uname().map_err(|error| KernelError::Io {
        action: "ask for the kernel's version",
        error: error.into(),
    })?;
    Ok(name.release().to_string_lossy().into_owned())
}

/// Major, minor and patch of a release such as `6.1.0-50-cloud-amd64`.
fn version(release: &str) -> (u32, u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse().unwrap_or(0));
    (
        numbers.next().unwrap_or(0),
        numbers.next().unwrap_or(0),
        numbers.next().unwrap_or(0),
    )
}

/// The version of the stable release behind a distribution's own numbering, from `uname -v`
/// (`#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-07-02)`).
fn stable_version(release: &str, build: &str) -> (u32, u32, u32) {
    let named = version(release);
    build
        .split_whitespace()
        .map(version)
        .filter(|found| (found.0, found.1) == (named.0, named.1) && named.0 != 0)
        .fold(named, std::cmp::Ord::max)
}

fn kernel() -> Result<String, KernelError> {
    let release = release()?;
    let build = nix::sys::utsname::uname()
        .map(|u| u.version().to_string_lossy().into_owned())
        .unwrap_or_default();
    // Before these, a sleepable or nested program could be skipped by its recursion counter.
    if stable_version(&release, &build) < (6, 1, 54) {
        Err(KernelError::TooOld { release })
    } else {
        Ok(release)
    }
}

fn lsm() -> Result<String, KernelError> {
    let active =
        std::fs::read_to_string("/sys/kernel/security/lsm").map_err(KernelError::NoSecurityFs)?;
    let active = active.trim().to_owned();
    if active.split(',').any(|name| name == "bpf") {
        Ok(active)
    } else {
        Err(KernelError::NoBpfLsm { active })
    }
}

fn btf() -> Result<String, KernelError> {
    let path = Path::new("/sys/kernel/btf/vmlinux");
    let data = std::fs::read(path).map_err(|error| KernelError::NoBtf {
        path: path.into(),
        error,
    })?;
    let structs = Structs::parse(&data)?;
    let offset = structs.offset("file", "f_path")?;
    Ok(format!("{} bytes; file.f_path is at {offset}", data.len()))
}

fn preemption() -> Result<String, KernelError> {
    let release = release()?;
    let chosen = std::fs::read_to_string("/sys/kernel/debug/sched/preempt").unwrap_or_default();
    let command_line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let build = nix::sys::utsname::uname()
        .map(|name| name.version().to_string_lossy().into_owned())
        .unwrap_or_default();
    if version(&release) < (6, 2, 0) && is_full(&chosen, &command_line, &build) {
        return Err(KernelError::FullPreemption { release });
    }
    Ok(if chosen.is_empty() {
        "as the kernel chose".into()
    } else {
        chosen.trim().to_owned()
    })
}

/// Whether kernel code can be preempted anywhere: as chosen now, by the command line, or, where there is
/// no choice, as built (`#1 SMP PREEMPT …`; a kernel that can choose says `PREEMPT_DYNAMIC`).
fn is_full(chosen: &str, command_line: &str, build: &str) -> bool {
    chosen.contains("(full)")
        || command_line
            .split_whitespace()
            .any(|word| word == "preempt=full")
        || build
            .split_whitespace()
            .any(|word| word == "PREEMPT" || word == "PREEMPT_RT")
}

fn cgroup() -> Result<String, KernelError> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|error| KernelError::Io {
        action: "read /proc/self/mounts",
        error,
    })?;
    mounts
        .lines()
        .find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (path, kind) = (words.next()?, words.next()?);
            (kind == "cgroup2").then(|| path.to_owned())
        })
        .ok_or_else(|| KernelError::Io {
            action: "find a cgroup v2 mount; mount one with `mount -t cgroup2 none /sys/fs/cgroup`",
            error: std::io::ErrorKind::NotFound.into(),
        })
}

/// Which hooks this kernel lacks, and what is lost by it.
fn hooks() -> Probe {
    let btf = std::fs::read("/sys/kernel/btf/vmlinux")
        .ok()
        .and_then(|data| aya::Btf::parse(&data, aya::Endianness::default()).ok());
    let Some(btf) = btf else {
        return Probe {
            status: ProbeStatus::Missing,
            ..Probe::ok("hooks", "cannot be known without type information")
        };
    };
    let missing = super::hooks::missing(&btf);
    let present = super::hooks::present(&btf).len();
    let told: Vec<String> = missing
        .iter()
        .map(|(hook, cover)| match cover {
            Some(cover) => format!("no `{hook}`, nothing is lost: {cover}"),
            None => format!("no `{hook}`, which enforcement needs"),
        })
        .collect();
    let status = if missing.iter().any(|(_, cover)| cover.is_none()) {
        ProbeStatus::Missing
    } else {
        ProbeStatus::Ok
    };
    let detail = if told.is_empty() {
        format!("{present} hooks, none missing")
    } else {
        format!("{present} hooks; {}", told.join("; "))
    };
    Probe {
        status,
        ..Probe::ok("hooks", detail)
    }
}

/// Loads every program once, which is the only proof that they can be, unless all of these very programs are
/// attached and pinned.
fn load() -> Result<String, KernelError> {
    let object = sha2::Sha256::digest(super::OBJECT).into();
    if let Ok(Some((_, super::Origin::Adopted))) =
        super::adopt::plan(&super::Pins::of_host(), object)
    {
        return Ok("all programs are loaded, attached and pinned".into());
    }
    super::Guard::load(&super::GuardOptions::default())
        .map(|_| "all programs load and attach".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_stable_release() {
        let debian = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-07-02)";
        assert_eq!(stable_version("6.1.0-50-cloud-amd64", debian), (6, 1, 176));
        assert_eq!(
            stable_version("6.1.0-5-amd64", "#1 SMP Debian 6.1.20-1 (2023-03-19)"),
            (6, 1, 20)
        );
        assert_eq!(
            stable_version("6.12.107+deb13-cloud-amd64", "#1 SMP Debian 6.12.107-1"),
            (6, 12, 107)
        );
        assert_eq!(stable_version("5.10.0", "#1 SMP 6.12.1"), (5, 10, 0));
        assert_eq!(stable_version("nonsense", ""), (0, 0, 0));
    }

    #[test]
    fn full_preemption_is_seen_wherever_it_is_said() {
        for (chosen, command_line, build) in [
            ("none voluntary (full)", "", ""),
            ("", "quiet preempt=full", "#1 SMP PREEMPT_DYNAMIC"),
            ("", "", "#1 SMP PREEMPT Thu Jan 1"),
            ("", "", "#1 SMP PREEMPT_RT Debian 6.1.176-1"),
        ] {
            assert!(is_full(chosen, command_line, build), "{build}");
        }
        for (chosen, command_line, build) in [
            ("none (voluntary) full", "quiet", "#1 SMP PREEMPT_DYNAMIC"),
            ("", "preempt=none", "#1 SMP PREEMPT_VOLUNTARY"),
            ("", "", "#1 SMP Debian 6.1.176-1 (2026-07-02)"),
        ] {
            assert!(!is_full(chosen, command_line, build), "{build}");
        }
    }
}
