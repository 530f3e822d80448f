//! Builds the kernel object with a toolchain that has the source of `core`, and hands its path to the
//! crate. Nothing is downloaded but what cargo itself needs; a missing toolchain is named with its remedy.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A cargo and a rustc that can build `core` for the kernel's target.
struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
}

impl Toolchain {
    fn in_dir(bin: &Path) -> Option<Self> {
        let (cargo, rustc) = (bin.join("cargo"), bin.join("rustc"));
        if !cargo.is_file() || !rustc.is_file() {
            return None;
        }
        let sysroot = Command::new(&rustc)
            .args(["--print", "sysroot"])
            .output()
            .ok()?;
        let sysroot = PathBuf::from(String::from_utf8(sysroot.stdout).ok()?.trim());
        let source = sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml");
        source.is_file().then_some(Self { cargo, rustc })
    }

    fn find() -> Option<Self> {
        if let Some(bin) = env::var_os("AGENTGUARD_EBPF_TOOLCHAIN") {
            return Self::in_dir(Path::new(&bin));
        }
        let nightly = Command::new("rustup")
            .args(["which", "--toolchain", "nightly", "rustc"])
            .output()
            .ok();
        let nightly = nightly
            .and_then(|output| String::from_utf8(output.stdout).ok())
            .and_then(|path| Path::new(path.trim()).parent().map(Path::to_owned))
            .and_then(|bin| Self::in_dir(&bin));
        nightly.or_else(|| Self::in_dir(Path::new("/usr/bin")))
    }
}

fn main() {
    for variable in ["AGENTGUARD_EBPF_TOOLCHAIN", "AGENTGUARD_EBPF_LOG", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let source = manifest.join("../agentguard-ebpf");
    for path in [
        "agentguard-ebpf/src",
        "agentguard-ebpf/Cargo.toml",
        "agentguard-ebpf/Cargo.lock",
        "agentguard-common/src",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            manifest.join("..").join(path).display()
        );
    }
    let Some(toolchain) = Toolchain::find() else {
        println!(
            "cargo::error=no Rust toolchain with the source of `core` was found; run `cargo xtask setup`, or install \
             nightly with rust-src, or set AGENTGUARD_EBPF_TOOLCHAIN to the bin folder of one"
        );
        return;
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let mut build = Command::new(&toolchain.cargo);
    build
        .current_dir(&source)
        .args([
            "build",
            "--release",
            "--locked",
            "-Zbuild-std=core",
            "--target",
            "bpfel-unknown-none",
        ])
        .arg("--target-dir")
        .arg(out.join("ebpf"))
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            [
                "-Cdebuginfo=2",
                "-Clinker=bpf-linker",
                "-Clink-arg=--btf",
                "-Ctarget-cpu=v3",
            ]
            .join("\u{1f}"),
        );
    if env::var_os("AGENTGUARD_EBPF_LOG").is_some() {
        build.args(["--features", "log"]);
    }
    // What cargo set for this build must not reach the other one.
    for name in [
        "RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTUP_TOOLCHAIN",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_RUSTFLAGS",
    ] {
        build.env_remove(name);
    }
    let output = match build.output() {
        Ok(output) => output,
        Err(error) => {
            println!(
                "cargo::error=failed to run {}: {error}",
                toolchain.cargo.display()
            );
            return;
        }
    };
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr);
        if log.contains("linker `bpf-linker` not found") {
            println!("cargo::error=bpf-linker was not found; run `cargo xtask setup`");
        }
        for line in log.lines() {
            println!("cargo::error={line}");
        }
        return;
    }
    let linked = out.join("ebpf/bpfel-unknown-none/release/agentguard");
    let object = out.join("agentguard.bpf.o");
    if let Err(error) = strip(&linked, &object) {
        println!("cargo::error=failed to strip {}: {error}", linked.display());
        return;
    }
    println!("cargo::rustc-env=AGENTGUARD_OBJECT={}", object.display());
}

/// Leaves out what only debuggers read, which is three quarters of an object. The kernel and the loader have what they
/// need in the sections of BTF.
fn strip(linked: &Path, object: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let data = fs::read(linked)?;
    let mut elf = object::build::elf::Builder::read(&*data)?;
    for section in &mut elf.sections {
        let name = section.name.to_string();
        section.delete = name.starts_with(".debug") || name.starts_with(".rel.debug");
    }
    elf.delete_orphans();
    // The linker has one table of strings for symbols and sections; the writer makes two.
    let names = elf.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.data = object::build::elf::SectionData::SectionString;
    let mut stripped = Vec::new();
    elf.write(&mut stripped)?;
    fs::write(object, stripped)?;
    Ok(())
}
