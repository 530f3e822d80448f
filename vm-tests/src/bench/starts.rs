//! How long a confined program takes to start, and to end: what `bwrap` is for, and `agentguard run`.

use bench_report::figures::{Cell, Operation, Row, Table};

use super::programs::{Counted, Place, Program, measured};

/// Rounds of each.
const ROUNDS: u32 = 7;
const START: &str = "start";
/// A usual sandbox: everything readable, own namespaces.
const BWRAP: &[&str] = &[
    "bwrap",
    "--ro-bind",
    "/",
    "/",
    "--dev",
    "/dev",
    "--proc",
    "/proc",
    "--tmpfs",
    "/tmp",
    "--unshare-all",
    "--die-with-parent",
    "/bin/true",
];

fn columns() -> Vec<Operation> {
    vec![Operation {
        name: START.into(),
        title: "/bin/true, from start to end".into(),
    }]
}

fn row(name: &str, title: &str, words: &[&str]) -> Row {
    println!("measuring: {title}");
    let program = Program {
        place: Place {
            moved_root: true,
            ..Place::default()
        },
        words: words.iter().map(|&word| word.to_owned()).collect(),
        rounds: ROUNDS,
        counted: Counted::Time,
    };
    let cell = match measured(&program) {
        Ok(spread) => Cell::Measured(spread),
        Err(error) => Cell::Absent(format!("{error:#}")),
    };
    Row {
        name: name.into(),
        title: title.into(),
        records: None,
        cells: [(START.to_owned(), cell)].into(),
    }
}

/// The table with the rows that need nothing of ours.
pub fn table() -> Table {
    Table {
        name: "starts".into(),
        title: "Starting a confined program (guest time; waiting counts as well)".into(),
        unit: "ns".into(),
        operations: columns(),
        rows: vec![
            row("bare", "nothing confines it", &["/bin/true"]),
            row("bwrap", "bubblewrap with namespaces of its own", BWRAP),
        ],
    }
}

/// The row of `agentguard run`, with the daemon running and a policy that it has.
pub fn ours(policy: &str) -> Row {
    row(
        "agentguard-run",
        "agentguard run, 1,000 rules, with the daemon running",
        &["agentguard", "run", "--policy", policy, "--", "/bin/true"],
    )
}
