//! A folder moves while governed processes open a file in it: each open that knows where the folder was must come to
//! what that place's rules say.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::POLICY;
use super::ground::{ROOT, make, place};
use super::mover::{ENOUGH, OPENERS};
use crate::dialogue::Dialogue;
use crate::fixture;
use crate::guard::{Agent, write_policy};
use crate::races;
use crate::trail::{Trail, Wanted};

/// What half of the openers saw.
#[derive(Debug, Default)]
struct Seen {
    conclusive: [u64; 2],
    wrong: u64,
    /// After how many moves an open came to which errno, for the first that was wrong.
    first: Option<(u64, u64)>,
}

/// Half of them under a policy that records every open, and half under one that records what is denied: they are
/// judged in different ways.
pub fn while_folders_move(trail: &mut Trail) -> Result<()> {
    let names = ["moving", "moving-quiet"];
    // Without a guard it shows: nothing is denied.
    let control = race(2, None)?;
    for seen in &control {
        ensure!(
            seen.wrong > ENOUGH && seen.conclusive[0] > ENOUGH,
            "without a guard no open shows where the folder was: {control:?}"
        );
    }
    write_policy(names[0], POLICY)?;
    let quiet = POLICY.replace("version: 1\n", "version: 1\naudit: denied\n");
    write_policy(names[1], &quiet)?;
    let agents = [
        Agent::attach(names[0], names[0])?,
        Agent::attach(names[1], names[1])?,
    ];
    let mark = trail.forget();
    let halves = race(races::seconds()?, Some(&agents))?;
    for (name, seen) in names.iter().zip(&halves) {
        ensure!(
            seen.wrong == 0,
            "{name}: opens were judged by a name that the file did not have: {seen:?}"
        );
        ensure!(
            seen.conclusive.iter().all(|count| *count > ENOUGH),
            "{name}: too few opens show anything: {seen:?}"
        );
    }
    recorded(trail, mark, &names)
}

/// Every record has a name that the file had at some time.
fn recorded(trail: &mut Trail, mark: usize, names: &[&str]) -> Result<()> {
    for name in names {
        let last = Wanted {
            agent: Some((*name).into()),
            op: Some("exit".into()),
            ..Wanted::default()
        };
        trail.wait(mark, &last)?;
    }
    let had = [
        ("allow", place("free/p/d/f")),
        ("deny", place("denied/p/d/f")),
        ("deny", place("denied/q/d/f")),
        ("deny", place("denied/q/e/f")),
    ];
    for record in trail.since(mark)? {
        let ours = names.iter().any(|name| record["agent"] == *name);
        ensure!(
            !ours
                || record["op"] != "open"
                || had.iter().any(|(verdict, name)| {
                    record["verdict"] == *verdict && record["target"] == name.as_str()
                }),
            "the file never had this name: {record}"
        );
    }
    Ok(())
}

fn race(seconds: u64, agents: Option<&[Agent; 2]>) -> Result<[Seen; 2]> {
    fixture::make(&[])?;
    for folder in ["free/p/d", "denied/q/d"] {
        make(folder)?;
    }
    let mut mover = Dialogue::start(Command::new(std::env::current_exe()?).args([
        "mover",
        &seconds.to_string(),
        ROOT,
    ]))?;
    ensure!(mover.hear()? == "ready", "the mover did not start");
    let pid = mover.pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let children: Vec<&str> = children.split_whitespace().collect();
    ensure!(
        children.len() == OPENERS,
        "{children:?} are not all of them"
    );
    for (at, child) in children.iter().enumerate() {
        if let Some(agents) = agents {
            agents[at % 2].group.take(child.parse()?)?;
        }
    }
    mover.say("")?;
    let moves = mover.hear()?;
    let mut halves = [Seen::default(), Seen::default()];
    for at in 0..OPENERS {
        let line = mover.hear()?;
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map(|word| {
                word.parse()
                    .with_context(|| format!("the mover said {line:?}"))
            })
            .collect::<Result<_>>()?;
        let [free, denied, wrong, at_move, errno] = numbers[..] else {
            anyhow::bail!("the mover said {line:?}");
        };
        let half = &mut halves[at % 2];
        half.conclusive[0] += free;
        half.conclusive[1] += denied;
        half.wrong += wrong;
        if wrong > 0 {
            half.first = half.first.or(Some((at_move, errno)));
        }
    }
    ensure!(mover.wait()?.success(), "the mover failed");
    println!("      {moves} moves: {halves:?}");
    Ok(halves)
}
