//! Where, when and how figures came about: what a reader needs to repeat them.

use std::fs;

use bench_report::figures::Circumstances;

use crate::command::answer;
use crate::place;

/// What is alike for all runs on this machine.
pub fn here(command: String) -> Circumstances {
    Circumstances {
        command,
        machine: machine(),
        date: answer("date", &["-u", "+%F"]).unwrap_or_default(),
        revision: revision(),
        ..Circumstances::default()
    }
}

/// The processor; where the machine is, is nobody's business.
fn machine() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {count} CPUs", model.trim())
}

/// The revision, with a `+` where files differ from it that figures can depend on.
fn revision() -> String {
    let folder = place::workspace().display().to_string();
    let git = |arguments: &[&str]| {
        answer(
            "git",
            &[["-C", folder.as_str()].as_slice(), arguments].concat(),
        )
    };
    let revision = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_default();
    let others = ["status", "--porcelain", "--", ".", ":!benchmarks", ":!docs"];
    let changed = git(&others).is_some_and(|lines| !lines.is_empty());
    format!("{revision}{}", if changed { "+" } else { "" })
}

/// The emulator with what figures depend on.
pub fn emulator() -> String {
    let version = answer("qemu-system-x86_64", &["--version"]).unwrap_or_default();
    let version = version.lines().next().unwrap_or_default().to_owned();
    format!("{version}, `-accel tcg,thread=single -cpu max -smp 1 -icount shift=0,sleep=off`")
}
