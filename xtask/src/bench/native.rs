//! The parts that need no guest, on this machine.

use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use bench_report::figures::{FORMAT, Figures, Table};

use super::{circumstances, store};
use crate::command::answer;
use crate::product::{PROFILE, cargo};

const METHOD: &[&str] = &[
    "Wall time of this machine, which others may use meanwhile: these figures are to be read with their spread, and are not judged when they are compared.",
    "The walk is the decide code of the hooks, run in bulk by `BPF_PROG_TEST_RUN` under a policy of 1,000 rules; a byte is a part of the difference between a path of 63 and one of 1,087 bytes. The store is all that the daemon does with a record, from the bytes of the ring to a sealed and synchronised log.",
];

/// Measures them.
pub fn run() -> Result<Figures> {
    let output = cargo()
        .args([
            "bench",
            "--profile",
            PROFILE,
            "--package",
            "agentguard-daemon",
        ])
        .args(["--bench", "native"])
        .stderr(Stdio::inherit())
        .output()
        .context("failed to start cargo bench")?;
    if !output.status.success() {
        bail!("cargo bench failed ({})", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().context("the benchmark said nothing")?;
    let table: Table =
        serde_json::from_str(line).context("the benchmark's figures cannot be read")?;
    let mut about = circumstances::here("cargo xtask bench --native".into());
    about.kernel = store::NATIVE.into();
    about.release = answer("uname", &["-r"]).unwrap_or_default();
    about.method = METHOD.iter().map(|&sentence| sentence.to_owned()).collect();
    Ok(Figures {
        format: FORMAT,
        circumstances: about,
        tables: vec![table],
    })
}
