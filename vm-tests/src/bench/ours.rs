//! `AgentGuard` as its users run it: the daemon, attached cgroups, the log.

use std::collections::BTreeSet;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use bench_report::figures::Records;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::confine::{Confined, measured};
use super::measure::process_time;
use super::policy::{self, Kind};
use super::programs::Place;
use super::rows::{Measurement, SETTLE};
use super::work;
use crate::guard::{AUDIT, Agent, Daemon, agentguard_ok, write_policy};
use crate::trail::Trail;

/// A daemon that governs.
pub struct Running(Daemon);

impl Running {
    /// Starts it.
    pub fn start() -> Result<Self> {
        Daemon::start().map(Self)
    }

    /// Ends it, and removes what outlives it.
    pub fn end(self) -> Result<()> {
        drop(self.0);
        agentguard_ok(&["uninstall", "--yes"]).map(drop)
    }

    /// The operations under a policy.
    pub fn operations(&self, name: &str, kind: Kind, rules: usize) -> Result<Measurement> {
        self.under(name, kind, rules, |cgroup| {
            measured(&if kind == Kind::Denied {
                Confined::Denied(cgroup)
            } else {
                Confined::Cgroup(cgroup)
            })
        })
    }

    /// Ordinary work under a policy with 1,000 rules; with `alone` while the daemon stands still, so that only
    /// what is on the way of a call is in the figures.
    pub fn work(&self, name: &str, alone: bool) -> Result<Measurement> {
        self.under(name, Kind::Recorded, 1_000, |cgroup| {
            let place = Place {
                cgroup: Some(cgroup),
                ..Place::default()
            };
            if alone {
                self.signal(Signal::SIGSTOP)?;
            }
            let beside = (!alone).then(|| self.0.pid());
            let cells = work::cells(&place, beside);
            self.signal(Signal::SIGCONT)?;
            Ok(cells)
        })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.0.pid())?);
        kill(pid, signal).context("failed to signal the daemon")
    }

    /// Measures in a cgroup under a policy, and counts the records.
    fn under(
        &self,
        name: &str,
        kind: Kind,
        rules: usize,
        measure: impl FnOnce(String) -> Result<super::confine::Cells>,
    ) -> Result<Measurement> {
        write_policy(name, &policy::text(kind, rules))?;
        let agent = Agent::attach(name, name)?;
        thread::sleep(SETTLE);
        let mut trail = Trail::at(AUDIT);
        let before = process_time(self.0.pid())?;
        let cells = measure(agent.group.path().display().to_string())?;
        thread::sleep(SETTLE);
        let spent = process_time(self.0.pid())? - before;
        let records = records(&mut trail, spent, kind.permits())?;
        Ok((cells, Some(records)))
    }
}

/// What became of the records since the trail was opened. Under a policy that permits what is measured, a denial
/// says that something else was measured.
fn records(trail: &mut Trail, spent: u64, permitted: bool) -> Result<Records> {
    let (mut written, mut lost) = (0, 0);
    let mut denied = BTreeSet::new();
    for record in trail.since(0)? {
        let text = |key: &str| record[key].as_str().unwrap_or("-").to_owned();
        match record.get("lost").and_then(serde_json::Value::as_u64) {
            Some(count) => lost += count,
            None => written += 1,
        }
        if permitted && text("verdict") == "deny" {
            denied.insert(["op", "access", "target", "exe"].map(text).join(" "));
        }
    }
    ensure!(
        denied.is_empty(),
        "the policy denied {} things, as {}",
        denied.len(),
        denied
            .iter()
            .take(20)
            .cloned()
            .collect::<Vec<_>>()
            .join("; ")
    );
    Ok(Records {
        written,
        lost,
        daemon_instructions: spent.checked_div(written),
    })
}
