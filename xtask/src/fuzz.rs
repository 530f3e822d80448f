//! `cargo xtask fuzz`: throws made-up bytes at every parser that reads what an agent can influence, guided by
//! what they reach (libFuzzer, with the stable compiler). What it finds stays below `target`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::command::{quiet, run};
use crate::place;
use crate::product::cargo;

/// Each target, what it reads, and the longest input that makes sense, in bytes.
const TARGETS: &[(&str, &str, u32)] = &[
    ("escape", "names, escaped and restored", 4096),
    ("glob", "patterns, against the reference and in tables", 400),
    ("log", "lines of the audit log", 8192),
    ("policy", "policies and their diagnostics", 8192),
    (
        "record",
        "records of a ring buffer, to lines of the log",
        9000,
    ),
    ("request", "bodies and names on the control socket", 4096),
    ("verdict", "actions under the shipped policies", 4500),
];
/// The compiler has no target of its own for this: it is named so that build scripts are not instrumented.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Counters on every edge, and the operands of comparisons.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1";

/// Throw made-up bytes at every parser that reads what an agent can influence.
///
/// A finding is a panic, an input that takes more than five minutes, or 2 GiB of memory; the input is kept in
/// target/fuzz/findings. New inputs that reach something new are kept in target/fuzz/corpus, and the smallest
/// set that reaches as much in target/fuzz/smallest: copy that to agentguard-daemon/fuzz/corpus to keep it.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask fuzz                          every target for a minute
  cargo xtask fuzz record --seconds 600     one target for ten minutes
  cargo xtask fuzz --seconds 600 --jobs 2   every target, two at a time")]
pub struct Options {
    /// Only this target: escape, glob, log, policy, record, request or verdict.
    target: Option<String>,
    /// How long each runs.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// How many run at a time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
}

/// Runs them; 0 when nothing was found.
pub fn main(options: &Options) -> Result<i32> {
    let chosen: Vec<_> = TARGETS
        .iter()
        .filter(|(name, ..)| options.target.as_deref().is_none_or(|only| only == *name))
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = TARGETS.iter().map(|(name, ..)| *name).collect();
        bail!("no such target: take one of {}", names.join(", "));
    }
    let programs = build()?;
    let mut found = 0;
    for some in chosen.chunks(options.jobs.max(1)) {
        let running = some
            .iter()
            .map(|(name, what, longest)| {
                println!("{name:<8} {what}: {} s", options.seconds);
                Ok((*name, start(&programs, name, options.seconds, *longest)?))
            })
            .collect::<Result<Vec<_>>>()?;
        for (name, mut child) in running {
            let status = child.wait().context("failed to wait for the fuzzer")?;
            let last = said(name)?;
            println!(
                "{name:<8} {}: {last}",
                if status.success() {
                    "nothing found"
                } else {
                    "FOUND"
                }
            );
            if !status.success() {
                found += 1;
                println!("         see {}", folder("findings", name).display());
            }
        }
    }
    for (name, ..) in chosen {
        smallest(&programs, name)?;
    }
    Ok(i32::from(found > 0))
}

fn root() -> PathBuf {
    place::target().join("fuzz")
}

fn folder(kind: &str, name: &str) -> PathBuf {
    root().join(kind).join(name)
}

/// The inputs that the repository keeps.
fn kept(name: &str) -> PathBuf {
    place::workspace()
        .join("agentguard-daemon/fuzz/corpus")
        .join(name)
}

fn build() -> Result<PathBuf> {
    let manifest = place::workspace().join("agentguard-daemon/fuzz/Cargo.toml");
    run(cargo()
        .args([
            "build",
            "--release",
            "--bins",
            "--target",
            TRIPLE,
            "--manifest-path",
        ])
        .arg(manifest)
        .env("CARGO_TARGET_DIR", root())
        .env("RUSTFLAGS", FLAGS))
    .context("failed to build the targets of the fuzzer (it needs a C++ compiler)")?;
    Ok(root().join(TRIPLE).join("release"))
}

fn start(programs: &Path, name: &str, seconds: u32, longest: u32) -> Result<Child> {
    let (corpus, findings) = (folder("corpus", name), folder("findings", name));
    for path in [&corpus, &findings] {
        fs::create_dir_all(path).with_context(|| format!("failed to create {}", path.display()))?;
    }
    let output = output(name);
    let log =
        File::create(&output).with_context(|| format!("failed to create {}", output.display()))?;
    Command::new("nice")
        .args(["-n", "19"])
        .arg(programs.join(name))
        .args(["-timeout=300", "-rss_limit_mb=2048", "-print_final_stats=1"])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={longest}"))
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .args([corpus, kept(name)])
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("failed to share the log")?)
        .stderr(log)
        .spawn()
        .context("failed to start the fuzzer")
}

/// Where a target's output is.
fn output(name: &str) -> PathBuf {
    root().join(format!("{name}.txt"))
}

/// The last line in which the fuzzer says how far it came, and what broke.
fn said(name: &str) -> Result<String> {
    let path = output(name);
    let bytes = fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    let last = |word: &str| text.lines().rev().find(|line| line.contains(word));
    let parts = [last("panicked at"), last("cov: "), last("Done ")];
    Ok(parts.into_iter().flatten().collect::<Vec<_>>().join("; "))
}

/// The fewest inputs that reach all that is reached.
fn smallest(programs: &Path, name: &str) -> Result<()> {
    let path = folder("smallest", name);
    // One of an earlier run.
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).with_context(|| format!("failed to create {}", path.display()))?;
    quiet(Command::new(programs.join(name)).arg("-merge=1").args([
        path,
        kept(name),
        folder("corpus", name),
    ]))
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_program_and_a_corpus() {
        let fuzz = place::workspace().join("agentguard-daemon/fuzz");
        for (name, ..) in TARGETS {
            assert!(
                fuzz.join(format!("fuzz_targets/{name}.rs")).is_file(),
                "{name}"
            );
            assert!(kept(name).is_dir(), "{name}");
        }
        let programs = fs::read_dir(fuzz.join("fuzz_targets"))
            .expect("a folder")
            .count();
        assert_eq!(programs, TARGETS.len());
    }
}
