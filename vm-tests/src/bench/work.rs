//! Ordinary work, as a whole: unpacking and searching a tree, the state of a repository, a test run.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use bench_report::figures::{Cell, Operation, Table};

use super::confine::Cells;
use super::programs::{Place, Program, measured};

/// Rounds of each.
const ROUNDS: u32 = 3;
/// Files in the tree that is unpacked and searched, and in the repository.
const FILES: usize = 800;
/// Modules of tests.
const MODULES: usize = 10;
const FOLDER: &str = "/tmp/work";

/// Each with a script of the shell.
const JOBS: &[(&str, &str, &str)] = &[
    (
        "untar-grep",
        "untar and grep, 800 files",
        "rm -rf /tmp/work/out && mkdir /tmp/work/out && tar -xf /tmp/work/tree.tar -C /tmp/work/out && grep -rc needle /tmp/work/out >/dev/null",
    ),
    (
        "git-status",
        "git status, 800 files",
        "git -C /tmp/work/tree status --porcelain >/dev/null",
    ),
    (
        "python-tests",
        "python -m unittest, 10 modules",
        "cd /tmp/work/tests && python3 -B -m unittest discover -q 2>/dev/null",
    ),
];

/// An empty table.
pub fn table() -> Table {
    Table {
        name: "work".into(),
        title: "Ordinary work, as a whole".into(),
        unit: "instructions".into(),
        operations: JOBS
            .iter()
            .map(|(name, title, _)| Operation {
                name: (*name).to_owned(),
                title: (*title).to_owned(),
            })
            .collect(),
        rows: Vec::new(),
    }
}

/// Makes what is worked on.
pub fn make() -> Result<()> {
    for file in 0..FILES {
        let lines: Vec<String> = (0..60)
            .map(|line| format!("int value_{line} = {}; /* of file {file} */", file * line))
            .collect();
        let needle = if file % 50 == 0 { "needle\n" } else { "" };
        put(
            &format!("tree/dir_{}/file_{file}.c", file % 40),
            &(lines.join("\n") + "\n" + needle),
        )?;
    }
    for module in 0..MODULES {
        let text = format!(
            "import json, unittest\nclass Case(unittest.TestCase):\n    def test_one(self):\n        self.assertEqual(json.loads('[{module}]'), [{module}])\n    def test_file(self):\n        with open(__file__) as f:\n            self.assertIn('unittest', f.read())\n"
        );
        put(&format!("tests/test_{module}.py"), &text)?;
    }
    let script = "cd /tmp/work && tar -cf tree.tar tree && cd tree && git init -q && git add . && git -c user.name=a -c user.email=a@b commit -qm one";
    let output = Command::new("sh").args(["-c", script]).output()?;
    ensure!(
        output.status.success(),
        "failed to make the repository: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn put(name: &str, text: &str) -> Result<()> {
    let path = Path::new(FOLDER).join(name);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))
}

/// Does all of it at a place.
pub fn cells(place: &Place) -> Cells {
    let job = |(name, _, script): &(&str, &str, &str)| {
        let program = Program {
            place: place.clone(),
            words: ["sh", "-c", script].map(str::to_owned).to_vec(),
            rounds: ROUNDS,
        };
        let cell = match measured(&program) {
            Ok(spread) => Cell::Measured(spread),
            Err(error) => Cell::Absent(format!("{error:#}")),
        };
        ((*name).to_owned(), cell)
    };
    JOBS.iter().map(job).collect()
}
