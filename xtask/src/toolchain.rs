//! The compiler and the linker of the kernel programs. They need `core` built for the kernel's
//! target, so a compiler that comes with its source: a rustup nightly, or a distribution's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::{answer, find, quiet};
use crate::debian;
use crate::place;
use crate::setup::{Packages, step};

/// The version of `bpf-linker` that this project is built with.
const LINKER: &str = "0.13.0";
/// The oldest compiler that builds the kernel programs.
const OLDEST: (u32, u32) = (1, 95);

/// Debian's second Rust, which follows the newest releases also in stable Debian.
const PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];

/// A compiler that can build the kernel programs.
pub struct Toolchain {
    /// What to tell people.
    pub description: String,
    /// Major version of the LLVM inside it: the linker must have the same.
    pub llvm: u32,
}

/// Finds a toolchain or installs the distribution's.
pub fn ensure(packages: &Packages) -> Result<Toolchain> {
    if let Some(toolchain) = discover() {
        return Ok(toolchain);
    }
    if debian::codename().is_none() {
        bail!(
            "no toolchain for the kernel programs: install one with `rustup toolchain install nightly --component rust-src`"
        );
    }
    let why = "the kernel programs need `core` built for the kernel's own target, and no rustup nightly with rust-src is here";
    step("eBPF toolchain", why, || {
        packages.own()?.install(None, PACKAGES)
    })?;
    discover().with_context(|| {
        format!(
            "the packages {} hold no Rust {}.{} with source",
            PACKAGES.join(", "),
            OLDEST.0,
            OLDEST.1
        )
    })
}

/// The toolchain that the build will use, in the order in which `agentguard-daemon/build.rs` looks.
pub fn discover() -> Option<Toolchain> {
    let nightly = || {
        let version = answer("rustup", &["run", "nightly", "rustc", "-vV"])?;
        let root = answer("rustup", &["run", "nightly", "rustc", "--print", "sysroot"])?;
        usable(&version, Path::new(&root), "rustup nightly")
    };
    let packaged = || {
        Path::new("/usr/bin/cargo").exists().then_some(())?;
        let version = answer("/usr/bin/rustc", &["-vV"])?;
        let root = answer("/usr/bin/rustc", &["--print", "sysroot"])?;
        usable(
            &version,
            Path::new(&root),
            "the distribution's /usr/bin/rustc",
        )
    };
    if let Some(bin) = std::env::var_os("AGENTGUARD_EBPF_TOOLCHAIN") {
        let rustc = Path::new(&bin).join("rustc");
        let version = answer(rustc.to_str()?, &["-vV"])?;
        let root = answer(rustc.to_str()?, &["--print", "sysroot"])?;
        return usable(&version, Path::new(&root), "AGENTGUARD_EBPF_TOOLCHAIN");
    }
    nightly().or_else(packaged)
}

fn usable(version: &str, root: &Path, what: &str) -> Option<Toolchain> {
    let field = |key: &str| {
        version
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .map(str::trim)
    };
    let release = field("release:")?;
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    let known = (numbers.next()?, numbers.next()?);
    let sources = root.join("lib/rustlib/src/rust/library/core/src/lib.rs");
    if known < OLDEST || !sources.exists() {
        return None;
    }
    let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some(Toolchain {
        description: format!("{what} {release} with its source (LLVM {llvm})"),
        llvm,
    })
}

/// Finds `bpf-linker` or builds it with the toolchain's LLVM.
pub fn ensure_linker(packages: &Packages, toolchain: &Toolchain) -> Result<String> {
    let stamp = place::cache()?.join("bpf-linker");
    let wanted = format!("{LINKER} for LLVM {}", toolchain.llvm);
    let present = || {
        let linker = find("bpf-linker")?;
        let version = answer(linker.to_str()?, &["--version"])?;
        version.contains(LINKER).then_some(())?;
        // One that somebody else built is trusted; one that this built must be for this LLVM.
        let for_llvm = fs::read_to_string(&stamp).ok();
        for_llvm
            .is_none_or(|known| known == wanted)
            .then_some(linker)
    };
    if let Some(linker) = present() {
        return Ok(format!("{wanted}, {}", linker.display()));
    }
    let llvm = llvm_prefix(packages, toolchain.llvm)?;
    step(
        "bpf-linker",
        "it links the kernel programs; built once, with the compiler's LLVM",
        || {
            quiet(
                Command::new("cargo")
                    .args([
                        "install",
                        "bpf-linker",
                        "--version",
                        LINKER,
                        "--locked",
                        "--force",
                        "--no-default-features",
                    ])
                    .args(["--features", &format!("llvm-{}", toolchain.llvm)])
                    .env("LLVM_PREFIX", llvm),
            )
        },
    )?;
    fs::write(&stamp, &wanted).with_context(|| format!("failed to write {}", stamp.display()))?;
    present()
        .map(|linker| format!("{wanted}, {}", linker.display()))
        .context("bpf-linker is still missing after its installation")
}

fn llvm_prefix(packages: &Packages, major: u32) -> Result<PathBuf> {
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{major}"));
    if !prefix.join("include/llvm-c").exists() || find("c++").is_none() {
        let development = format!("llvm-{major}-dev");
        let polly = format!("libpolly-{major}-dev");
        let names = [
            development.as_str(),
            &polly,
            "zlib1g-dev",
            "libzstd-dev",
            "g++",
        ];
        step(
            "LLVM",
            "bpf-linker is built with the compiler's LLVM",
            || packages.own()?.install(None, &names),
        )?;
    }
    Ok(prefix)
}
