//! Figures of a run that never was, for tests.

use std::collections::BTreeMap;

use crate::figures::{
    Cell, Circumstances, FORMAT, Figures, Operation, Records, Row, Spread, Table,
};

const OPERATIONS: [(&str, &str); 4] = [
    ("open-63", "open + close, 63 bytes"),
    ("exec", "vfork + exec + wait"),
    ("connect-udp", "connect UDP"),
    ("read", "read"),
];

fn spread(least: f64) -> Cell {
    Cell::Measured(Spread {
        least,
        median: least + 4.0,
        most: least + 90.0,
        rounds: 9,
    })
}

fn row(name: &str, title: &str, values: [f64; 4]) -> Row {
    Row {
        name: name.to_owned(),
        title: title.to_owned(),
        records: None,
        cells: OPERATIONS
            .iter()
            .zip(values)
            .map(|((name, _), value)| ((*name).to_owned(), spread(value)))
            .collect::<BTreeMap<_, _>>(),
    }
}

/// Four operations in five rows, one of which the kernel cannot have.
pub fn figures() -> Figures {
    let operations: Vec<Operation> = OPERATIONS
        .iter()
        .map(|(name, title)| Operation {
            name: (*name).to_owned(),
            title: (*title).to_owned(),
        })
        .collect();
    let mut governed = row(
        "governed-1000",
        "governed, 1,000 rules",
        [15_400.0, 1_230_000.0, 16_900.0, 700.0],
    );
    governed.records = Some(Records {
        written: 5_000,
        lost: 0,
        daemon_instructions: Some(21_000),
    });
    let rows = vec![
        row(
            "bare",
            "bare kernel",
            [12_500.0, 1_200_000.0, 15_000.0, 700.0],
        ),
        row(
            "apparmor-1000",
            "AppArmor, 1,000 rules",
            [15_600.0, 1_205_000.0, 15_300.0, 720.0],
        ),
        Row::absent(
            "landlock",
            "Landlock, same tree",
            &operations,
            "this kernel has no Landlock",
        ),
        row(
            "ungoverned",
            "ungoverned, programs loaded",
            [12_700.0, 1_203_000.0, 15_000.0, 700.0],
        ),
        governed,
    ];
    Figures {
        format: FORMAT,
        circumstances: Circumstances {
            command: "cargo xtask bench --kernel 6.12".into(),
            kernel: "6.12".into(),
            release: "6.12.0-test".into(),
            modules: "capability,bpf".into(),
            machine: "a processor".into(),
            emulator: "an emulator".into(),
            date: "2026-01-02".into(),
            revision: "0123abc".into(),
            method: vec!["Guest time counts instructions.".into()],
            policy: "version: 1\n".into(),
        },
        tables: vec![Table {
            name: "operations".into(),
            title: "Single operations".into(),
            unit: "instructions".into(),
            operations,
            rows,
        }],
    }
}
