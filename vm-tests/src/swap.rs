//! A policy of a thousand rules is replaced while four processes open files. No open may be judged by a
//! mixture of two policies, nor by the one before once a process has seen the new one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::fixture;
use crate::guard::{Agent, write_policy};
use crate::trail::{Trail, Wanted};

const NAME: &str = "swapped";
/// Two files; each policy permits one and denies the other.
const FILES: [&str; 2] = ["/t/ws/free.txt", "/t/secret/key"];
const WORKERS: usize = 4;
const SWAPS: usize = 6;
/// Within which a swap has to be seen by every process.
const WITHIN: jiff::SignedDuration = jiff::SignedDuration::from_millis(50);

const WORK: &str = r"
import os, sys
while True:
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

struct Workers(Vec<Child>);

impl Drop for Workers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // They run until they are killed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The scenario.
pub fn under_load(trail: &mut Trail) -> Result<()> {
    fixture::make(&[])?;
    write_policy(NAME, &policy(0))?;
    let agent = Agent::attach(NAME, NAME)?;
    let mut workers = Workers(Vec::new());
    let mark = trail.mark()?;
    for _ in 0..WORKERS {
        let child = Command::new("/usr/bin/python3")
            .args(["-c", WORK])
            .args(FILES)
            .stdin(Stdio::null())
            .spawn()
            .context("failed to start python3")?;
        agent.group.take(child.id())?;
        workers.0.push(child);
    }
    let mut installs = Vec::new();
    for turn in 1..=SWAPS {
        let mark = trail.mark()?;
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
        installs.push(installed);
    }
    drop(workers);
    judge(trail.since(mark)?, &installs)
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

fn judge(records: &[Value], installs: &[Value]) -> Result<()> {
    let mut order = BTreeMap::new();
    for (turn, install) in installs.iter().enumerate() {
        order.insert(generation(install)?, turn + 1);
    }
    let (mut opens, mut latest) = (0, BTreeMap::<u64, usize>::new());
    let mut late = vec![jiff::SignedDuration::ZERO; installs.len() + 1];
    for record in records {
        let target = record["target"].as_str().unwrap_or_default();
        let Some(file) = FILES.iter().position(|file| *file == target) else {
            continue;
        };
        if record["op"] != "open" || record["agent"] != NAME {
            continue;
        }
        opens += 1;
        // The policy that the agent was attached with has no turn of its own.
        let turn = order.get(&generation(record)?).copied().unwrap_or(0);
        let expected = if file == turn % 2 { "allow" } else { "deny" };
        ensure!(
            record["verdict"] == expected,
            "an open under the policy of turn {turn} was judged by another: {record}"
        );
        let pid = record["pid"].as_u64().context("an open has a process")?;
        let seen = latest.entry(pid).or_default();
        ensure!(
            *seen <= turn,
            "process {pid} saw turn {seen}, and then turn {turn}: {record}"
        );
        *seen = turn;
        // How long after the next policy was in force this one still decided.
        if let Some(next) = installs.get(turn) {
            late[turn] = late[turn].max(time(record)?.duration_since(time(next)?));
        }
    }
    late.pop();
    let slow = late.iter().filter(|lag| **lag > WITHIN).count();
    let most = late.iter().max().copied().unwrap_or_default();
    println!(
        "      {opens} opens, {SWAPS} swaps of 1,000 rules; the policy before decided for at most {} ms more",
        most.as_millis()
    );
    ensure!(
        opens > 1000 && latest.len() == WORKERS,
        "only {opens} opens of {} processes were recorded",
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
