//! What needs no BPF LSM, in nanoseconds on this machine: the walk over the table in the kernel, driven by
//! `BPF_PROG_TEST_RUN` (which needs root), reading records, sealing lines, the way of a record to the disk.
//! `cargo xtask bench --native` stores what it prints; it judges nothing.
//!
//! `native steps` measures what a guest counts in instructions.
//!
//! `native store FOLDER [RECORDS]` only fills a log, for measuring searches.

#[path = "../../tests/support/selftest.rs"]
mod selftest;
mod store;
mod walk;

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use agentguard::audit::chain;
use agentguard::event::decode;
use anyhow::Context as _;
use bench_report::figures::{Cell, Operation, Row, Spread, Table};

/// Rounds of each.
const ROUNDS: u32 = 9;
/// Things done in a round.
const TIMES: u32 = 200_000;

/// What is measured: name, title, how.
type Measure = (&'static str, &'static str, fn() -> anyhow::Result<Spread>);

const MEASURES: &[Measure] = &[
    RECORD,
    (
        "walk",
        "walk of the table in the kernel, ns a byte",
        walk::nanoseconds_a_byte,
    ),
    (
        "decision",
        "decision in the kernel, 63 bytes",
        walk::decision,
    ),
    ("decode", "decoding a record", decoding),
    ("seal", "sealing a line of the log (chain)", sealing),
    ("store", "a record from the ring to the disk", stored),
];

/// What a guest measures whose time counts instructions.
const STEPS: &[Measure] = &[
    RECORD,
    (
        "decision",
        "decision, 63 bytes, the whole walk",
        walk::decision,
    ),
];
const RECORD: Measure = (
    "record",
    "record of an open in the kernel: space in the ring, header, delivery",
    || walk::record(RECORDS),
);
/// Records that fit the ring.
const RECORDS: u32 = 20_000;

fn main() -> anyhow::Result<()> {
    // Cargo adds an argument of its own.
    let mut arguments = std::env::args().skip(1).filter(|word| word != "--bench");
    let task = arguments.next();
    if task.as_deref() == Some("store") {
        let folder = PathBuf::from(arguments.next().context("name a folder for the log")?);
        let total = arguments
            .next()
            .map_or(Ok(2_000_000), |text| text.parse())?;
        let (nanoseconds, recorder) = store::fill(&folder, total)?;
        store::pack(&folder, recorder)?;
        println!("{total} records, {nanoseconds:.0} ns each");
        return Ok(());
    }
    let table = if task.as_deref() == Some("steps") {
        let title = "Steps of an open that is permitted";
        table("steps", title, "instructions", STEPS)
    } else {
        table("native", "Parts that need no guest", "ns", MEASURES)
    };
    println!("{}", serde_json::to_string(&table)?);
    Ok(())
}

fn table(name: &str, title: &str, unit: &str, measures: &[Measure]) -> Table {
    let cells = measures.iter().map(|(name, _, measure)| {
        let cell = match measure() {
            Ok(spread) => Cell::Measured(spread),
            Err(error) => Cell::Absent(format!("{error:#}")),
        };
        ((*name).to_owned(), cell)
    });
    let row = Row {
        name: "agentguard".into(),
        title: "AgentGuard".into(),
        records: None,
        cells: cells.collect(),
    };
    Table {
        name: name.into(),
        title: title.into(),
        unit: unit.into(),
        operations: measures
            .iter()
            .map(|(name, title, _)| Operation {
                name: (*name).to_owned(),
                title: (*title).to_owned(),
            })
            .collect(),
        rows: vec![row],
    }
}

/// What one of many takes, in each of the rounds.
fn rounds(mut act: impl FnMut(u32)) -> anyhow::Result<Spread> {
    let figures = (0..=ROUNDS).map(|_| {
        let start = Instant::now();
        (0..TIMES).for_each(&mut act);
        start.elapsed().as_secs_f64() * 1e9 / f64::from(TIMES)
    });
    Spread::of(figures.skip(1).collect()).context("no rounds")
}

fn decoding() -> anyhow::Result<Spread> {
    let records: Vec<Vec<u8>> = (0..1_000)
        .map(|number| {
            let mut bytes = Vec::new();
            store::open(number, 1, &mut bytes);
            bytes
        })
        .collect();
    let mut broken = 0;
    let spread = rounds(|number| {
        let bytes = &records[number as usize % records.len()];
        broken += u32::from(decode(black_box(bytes)).is_err());
    });
    anyhow::ensure!(broken == 0, "{broken} records could not be decoded");
    spread
}

/// A line as long as that of an open.
fn sealing() -> anyhow::Result<Spread> {
    let line = format!("{{\"seq\":1,\"target\":\"{}\"", "x".repeat(420));
    let mut previous = chain::GENESIS;
    let mut buffer = Vec::new();
    rounds(|_| {
        buffer.clear();
        buffer.extend_from_slice(line.as_bytes());
        previous = chain::seal(&mut buffer, 0, &previous);
    })
}

fn stored() -> anyhow::Result<Spread> {
    let folder = tempfile::tempdir()?;
    let figures = (0..ROUNDS).map(|round| {
        let folder = folder.path().join(round.to_string());
        std::fs::create_dir(&folder)?;
        Ok(store::fill(&folder, TIMES)?.0)
    });
    Spread::of(figures.collect::<anyhow::Result<_>>()?).context("no rounds")
}
