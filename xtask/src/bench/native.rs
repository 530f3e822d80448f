//! The parts that need no guest, on this machine.

use std::process::Command;

use anyhow::{Context as _, Result};
use bench_report::figures::{FORMAT, Figures, Table};

use super::{circumstances, store};
use crate::command::{answer, quiet};
use crate::product;

const METHOD: &[&str] = &[
    "Wall time of this machine, which others may use meanwhile: these figures are to be read with their spread, and are not judged when they are compared.",
    "The walk is the decide code of the hooks, run in bulk by `BPF_PROG_TEST_RUN` under a policy of 1,000 rules; a byte is a part of the difference between a path of 63 and one of 1,087 bytes. The store is all that the daemon does with a record, from the bytes of the ring to a sealed and synchronised log.",
];

/// Measures them.
pub fn run() -> Result<Figures> {
    let text = quiet(&mut Command::new(product::bench(
        "agentguard-daemon",
        "native",
    )?))?;
    let table: Table =
        serde_json::from_str(&text).context("the benchmark's figures cannot be read")?;
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
