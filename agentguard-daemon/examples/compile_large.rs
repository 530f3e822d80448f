//! Compiles policies of growing size and prints times and sizes.
//!
//! `cargo run --release --package agentguard-daemon --example compile_large [ANCHORED FLOATING]`

use std::path::Path;
use std::time::Instant;

use agentguard::policy::{LoadOptions, generate, load_text};
use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let given: Vec<usize> = std::env::args()
        .skip(1)
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let sizes = match given.as_slice() {
        [anchored, floating] => vec![(*anchored, *floating)],
        [] => vec![(10, 0), (1_000, 30), (10_000, 0), (10_000, 300)],
        _ => anyhow::bail!("give two numbers: rules from the root, and rules at any depth"),
    };
    for (anchored, floating) in sizes {
        let text = generate::large(anchored, floating);
        let begin = Instant::now();
        let policy = load_text(Path::new("large.yaml"), &text, &LoadOptions::default())
            .context("failed to read")?;
        let read = begin.elapsed();
        let begin = Instant::now();
        let table = policy.compile(1).context("failed to compile")?;
        let compiled = begin.elapsed();
        let stats = table.stats;
        println!(
            "{anchored} + {floating} rules: read in {:.2} s, compiled in {:.2} s, {} KiB; anchored {} -> {} states, floating {} -> {}, {} classes",
            read.as_secs_f64(),
            compiled.as_secs_f64(),
            stats.bytes.div_ceil(1024),
            stats.anchored.built,
            stats.anchored.states,
            stats.floating.built,
            stats.floating.states,
            stats.anchored.classes,
        );
    }
    Ok(())
}
