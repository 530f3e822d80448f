//! Ordinary work, as a whole: unpacking and searching a tree, the state of a repository, a build, an installation
//! of packages, a test run.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use bench_report::figures::{Cell, Operation, Table};

use super::confine::Cells;
use super::programs::{Counted, Place, Program, measured};
use crate::service::Service;

/// Files in the tree that is unpacked and searched, and in the repository.
const FILES: usize = 800;
/// Modules of tests.
const MODULES: usize = 10;
const FOLDER: &str = "/tmp/work";
/// Port of the registry, which nothing confines in any row.
const REGISTRY: u16 = 7003;

/// A piece of work.
struct Job {
    name: &'static str,
    title: &'static str,
    /// What the shell does, in the folder.
    script: &'static str,
    /// Rounds that are measured.
    rounds: u32,
}

const JOBS: &[Job] = &[
    Job {
        name: "untar-grep",
        title: "untar and grep, 800 files",
        script: "rm -rf out && mkdir out && tar -xf tree.tar -C out && grep -rc needle out >/dev/null",
        rounds: 3,
    },
    Job {
        name: "git-status",
        title: "git status, 800 files",
        script: "git -C tree status --porcelain >/dev/null",
        rounds: 3,
    },
    Job {
        name: "cargo-build",
        title: "cargo build, 2 crates",
        script: "cd crate && rm -rf target && cargo build --offline --quiet && test -x target/debug/program",
        rounds: 2,
    },
    Job {
        name: "npm-install",
        title: "npm install, 24 packages",
        script: "rm -rf cache && cd app && rm -rf node_modules package-lock.json && npm install --silent && test -d node_modules/lower-7",
        rounds: 2,
    },
    Job {
        name: "python-tests",
        title: "python -m unittest, 10 modules",
        script: "cd tests && python3 -B -m unittest discover -q 2>/dev/null",
        rounds: 3,
    },
];

/// What makes what they need.
const MAKING: &[&str] = &[
    include_str!("../../work/repository.sh"),
    include_str!("../../work/crate.sh"),
    include_str!("../../work/registry.sh"),
];

/// An empty table.
pub fn table() -> Table {
    Table {
        name: "work".into(),
        title: "Ordinary work, as a whole".into(),
        unit: "instructions".into(),
        operations: JOBS
            .iter()
            .map(|job| Operation {
                name: job.name.to_owned(),
                title: job.title.to_owned(),
            })
            .collect(),
        rows: Vec::new(),
    }
}

/// Makes what is worked on; the registry serves as long as what is returned lives.
pub fn make() -> Result<Service> {
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
    fs::create_dir_all(Path::new(FOLDER).join("home"))?;
    for script in MAKING {
        let [program, arguments @ ..] = words(script);
        let output = Command::new(program).args(arguments).output()?;
        ensure!(
            output.status.success(),
            "failed to make what is worked on: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Service::start(&Path::new(FOLDER).join("registry"), "127.0.0.1", REGISTRY)
}

fn put(name: &str, text: &str) -> Result<()> {
    let path = Path::new(FOLDER).join(name);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))
}

/// What starts a shell that does it, in the folder, at home there.
fn words(script: &str) -> [String; 3] {
    let script =
        format!("set -e\ncd {FOLDER}\nexport HOME={FOLDER}/home PORT={REGISTRY}\n{script}");
    ["sh".into(), "-c".into(), script]
}

/// Does all of it at a place, and counts what a process beside it takes meanwhile as well.
pub fn cells(place: &Place, beside: Option<u32>) -> Cells {
    JOBS.iter()
        .map(|job| (job.name.to_owned(), job.cell(place, beside)))
        .collect()
}

impl Job {
    fn cell(&self, place: &Place, beside: Option<u32>) -> Cell {
        let program = Program {
            place: place.clone(),
            words: words(self.script).to_vec(),
            rounds: self.rounds,
            counted: Counted::Processor { beside },
        };
        match measured(&program) {
            Ok(spread) => Cell::Measured(spread),
            Err(error) => Cell::Absent(format!("{error:#}")),
        }
    }
}
