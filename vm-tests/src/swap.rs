//! A policy of a thousand rules is replaced while four processes open files. No open may be judged by a
//! mixture of two policies, nor by the one before once a process has seen the new one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::attempt::PATIENCE;
use crate::fixture;
use crate::guard::{Agent, Inside, write_policy};
use crate::trail::{Trail, Wanted};

const NAME: &str = "swapped";
/// Two files; each policy permits one and denies the other.
const FILES: [&str; 2] = ["/t/ws/free.txt", "/t/secret/key"];
const WORKERS: usize = 4;
const SWAPS: usize = 6;
/// Opens under each policy, at least.
const OPENS: usize = 200;
/// Within which a swap has to be seen by every process.
const WITHIN: jiff::SignedDuration = jiff::SignedDuration::from_millis(50);

/// Opens both, with a pause: whoever reads the log must keep up, and a swap is seen within less than the bound.
const WORK: &str = r"
import os, sys, time
while True:
    time.sleep(0.02)
    for path in sys.argv[1:]:
        try:
            os.close(os.open(path, os.O_RDONLY))
        except PermissionError:
            pass
";

/// A thousand rules, the last of which permits only one of the files.
fn policy(permitted: usize) -> String {
    let mut text = String::from("version: 1\nfiles:\n  read:\n    default: allow\n    deny:\n");
    for rule in 0..999 {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "      - {{id: rule-{rule}, path: \"/srv/{permitted}/tenant-{rule}/**\"}}"
        );
    }
    let _ = write!(
        text,
        "      - {{id: the-other, path: \"{}\"}}\n\
         exec: {{default: allow}}\nnetwork: {{default: allow, unix: allow}}\n",
        FILES[1 - permitted]
    );
    text
}

/// The scenario.
pub fn under_load(trail: &mut Trail) -> Result<()> {
    fixture::make(&[])?;
    write_policy(NAME, &policy(0))?;
    let agent = Agent::attach(NAME, NAME)?;
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", WORK]).args(FILES);
        workers.push(Inside::start(&agent, &mut command)?);
    }
    let (mut installs, mut opens) = (Vec::new(), Vec::new());
    let mut mark = trail.mark()?;
    for turn in 1..=SWAPS {
        write_policy(NAME, &policy(turn % 2))?;
        let installed = trail.wait(
            mark,
            &Wanted {
                agent: Some(NAME.into()),
                op: Some("policy-install".into()),
                ..Wanted::default()
            },
        )?;
        // Both files are seen under this policy before the next comes.
        for file in FILES {
            trail.wait(
                mark,
                &Wanted {
                    agent: Some(NAME.into()),
                    op: Some("open".into()),
                    target: Some(file.into()),
                    generation: installed["generation"].as_u64(),
                    ..Wanted::default()
                },
            )?;
        }
        installs.push((generation(&installed)?, time(&installed)?));
        opens.extend(opens_under(trail, mark, generation(&installed)?)?);
        // Records are many, and a guest's memory is small.
        mark = trail.forget();
    }
    drop(workers);
    judge(&opens, &installs)
}

/// What was opened since a mark, when enough of it was under a policy: a quick machine swaps before anybody has opened much.
fn opens_under(trail: &mut Trail, mark: usize, policy: u64) -> Result<Vec<Open>> {
    let started = Instant::now();
    loop {
        let mut opens = Vec::new();
        for record in trail.since(mark)? {
            opens.extend(open(record)?);
        }
        let count = opens
            .iter()
            .filter(|open| open.generation == policy)
            .count();
        if count >= OPENS {
            return Ok(opens);
        }
        ensure!(
            started.elapsed() < PATIENCE,
            "only {count} opens under policy {policy}"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// What matters of one open.
struct Open {
    pid: u64,
    time: jiff::Timestamp,
    generation: u64,
    file: usize,
    verdict: String,
    /// Denied for the object behind the name, which is entered and taken back after the rules have changed
    /// (docs/limits.md).
    by_object: bool,
}

fn open(record: &Value) -> Result<Option<Open>> {
    let target = record["target"].as_str().unwrap_or_default();
    let file = FILES.iter().position(|file| *file == target);
    let Some(file) = file.filter(|_| record["op"] == "open" && record["agent"] == NAME) else {
        return Ok(None);
    };
    Ok(Some(Open {
        pid: record["pid"].as_u64().context("an open has a process")?,
        time: time(record)?,
        generation: generation(record)?,
        file,
        verdict: record["verdict"].as_str().unwrap_or_default().to_owned(),
        by_object: record["cause"] == "protected-object",
    }))
}

fn time(record: &Value) -> Result<jiff::Timestamp> {
    let text = record["time"].as_str().context("a record has a time")?;
    text.parse()
        .with_context(|| format!("{text} is no time of a record"))
}

fn generation(record: &Value) -> Result<u64> {
    record["generation"]
        .as_u64()
        .with_context(|| format!("no generation in {record}"))
}

fn judge(opens: &[Open], installs: &[(u64, jiff::Timestamp)]) -> Result<()> {
    let turns: BTreeMap<u64, usize> = installs
        .iter()
        .enumerate()
        .map(|(turn, (generation, _))| (*generation, turn + 1))
        .collect();
    let mut latest = BTreeMap::<u64, usize>::new();
    let mut late = vec![jiff::SignedDuration::ZERO; installs.len() + 1];
    for open in opens {
        // The policy that the agent was attached with has no turn of its own.
        let turn = turns.get(&open.generation).copied().unwrap_or(0);
        let expected = if open.file == turn % 2 {
            "allow"
        } else {
            "deny"
        };
        let what = format!("{} by {} at {}", FILES[open.file], open.pid, open.time);
        ensure!(
            open.verdict == expected || (open.by_object && open.verdict == "deny"),
            "{what} was judged as of turn {turn}, and the verdict is {}",
            open.verdict
        );
        let seen = latest.entry(open.pid).or_default();
        ensure!(*seen <= turn, "{what}: turn {turn} after turn {seen}");
        *seen = turn;
        // How long after the next policy was in force this one still decided.
        if let Some((_, next)) = installs.get(turn) {
            late[turn] = late[turn].max(open.time.duration_since(*next));
        }
    }
    late.pop();
    let slow = late.iter().filter(|lag| **lag > WITHIN).count();
    let most = late.iter().max().copied().unwrap_or_default();
    println!(
        "      {} opens, {SWAPS} swaps of 1,000 rules; the policy before decided for at most {} ms more",
        opens.len(),
        most.as_millis()
    );
    ensure!(
        opens.len() >= OPENS * SWAPS && latest.len() == WORKERS,
        "only {} opens of {} processes were recorded",
        opens.len(),
        latest.len()
    );
    // A busy host stops a guest for longer than that now and then, hardly twice.
    ensure!(
        slow <= 1,
        "{slow} of {SWAPS} swaps took longer than {} ms: {late:?}",
        WITHIN.as_millis()
    );
    Ok(())
}
