//! Landlock: the process restricts itself to the trees that the measured policy permits.

use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail, ensure};

use super::server::TCP;

/// Rights to files of the first version; later ones add one each.
const FILES: u64 = (1 << 13) - 1;
/// Right that a rule for a single file may carry.
const FILE_ONLY: u64 = 0b111;
/// Binding and connecting TCP sockets.
const NETWORK: u64 = 0b11;
const RULE_PATH: i32 = 1;
const RULE_PORT: i32 = 2;
const TREES: &[&str] = &["/tmp", "/usr", "/etc", "/proc", "/dev"];

#[repr(C)]
#[derive(Default)]
struct Ruleset {
    files: u64,
    network: u64,
}

#[repr(C, packed)]
struct Beneath {
    allowed: u64,
    parent: i32,
}

#[repr(C)]
struct Port {
    allowed: u64,
    port: u64,
}

/// The kernel's version of Landlock.
pub fn version() -> Result<i64> {
    // SAFETY: asks for the version; nothing is passed.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<Ruleset>(),
            0usize,
            1u32,
        )
    };
    if version < 1 {
        bail!(
            "this kernel has no Landlock: {}",
            std::io::Error::last_os_error()
        );
    }
    Ok(version)
}

/// What of the measured operations this version speaks of.
pub fn reach(version: i64) -> &'static str {
    if version >= 4 {
        "files and TCP"
    } else {
        "files only"
    }
}

/// Restricts this process for good.
pub fn restrict() -> Result<()> {
    let version = version()?;
    let files =
        FILES | if version >= 2 { 1 << 13 } else { 0 } | if version >= 3 { 1 << 14 } else { 0 };
    let network = if version >= 4 { NETWORK } else { 0 };
    let size = if version >= 4 { 16usize } else { 8 };
    let ruleset = Ruleset { files, network };
    // SAFETY: a live ruleset of at least the size that is passed; what is returned is a new descriptor.
    let rules = unsafe {
        let number = libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const ruleset,
            size,
            0u32,
        );
        ensure!(number >= 0, "failed to make a Landlock ruleset");
        OwnedFd::from_raw_fd(i32::try_from(number)?)
    };
    for tree in TREES {
        let folder = File::open(tree).with_context(|| format!("failed to open {tree}"))?;
        beneath(&rules, files, &folder)?;
    }
    beneath(&rules, files & FILE_ONLY, &File::open("/x")?)?;
    if network != 0 {
        let port = Port {
            allowed: network,
            port: TCP.into(),
        };
        add(&rules, RULE_PORT, &port)?;
    }
    // SAFETY: numbers only.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        let status = libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0u32);
        ensure!(status == 0, "failed to restrict this process");
    }
    Ok(())
}

fn beneath(rules: &OwnedFd, allowed: u64, parent: &File) -> Result<()> {
    let rule = Beneath {
        allowed,
        parent: parent.as_raw_fd(),
    };
    add(rules, RULE_PATH, &rule)
}

fn add<R>(rules: &OwnedFd, kind: i32, rule: &R) -> Result<()> {
    // SAFETY: a live rule of the kind that is named.
    let status = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            rules.as_raw_fd(),
            kind,
            std::ptr::from_ref(rule),
            0u32,
        )
    };
    ensure!(
        status == 0,
        "failed to add a Landlock rule: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}
