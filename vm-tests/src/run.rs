//! Runs rows: the act governed, then, for a denial, the same act by an ungoverned process, and
//! holds what happened against the row.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::attempt::{Attempt, Done, PATIENCE, perform};
use crate::fixture;
use crate::guard::{self, Agent, Group, write_policy};
use crate::row::{Actor, Expect, Family, Row};
use crate::trail::{START, Trail, Wanted};

/// What rows are run under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Their own policies.
    Policies,
    /// A policy that permits everything: rows that expect a denial must fail.
    Permissive,
    /// None at all: only the acts themselves are tried.
    Ungoverned,
}

/// A policy that denies nothing.
pub const PERMISSIVE: &str = "\
version: 1
files: {default: allow}
exec: {default: allow}
network: {default: allow, unix: allow}
";

/// The same for kernels' own doors. Versions of AgentGuard that know no `kernel` section leave them open.
pub const UNLOCKED: &str = "\
version: 1
files: {default: allow}
exec: {default: allow}
network: {default: allow, unix: allow}
kernel:
  mount: allow
  user_namespaces: allow
  capabilities: allow
  ptrace: allow
  signals: allow
  bpf: allow
  perf: allow
  raw_devices: allow
  settings: allow
  terminal_input: allow
  modules: allow
  priorities: allow
  xattrs: allow
  anonymous_code: allow
  uring_commands: allow
";

/// Counts of a run.
#[derive(Default)]
pub struct Tally {
    /// Rows that held.
    pub passed: u32,
    /// Rows that did not.
    pub failed: u32,
    /// Rows that were not run, with the reason printed.
    pub skipped: u32,
}

impl Tally {
    /// Prints and counts one result.
    pub fn count(&mut self, name: &str, result: Result<()>, elapsed: Duration) {
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("ok    {name} ({} ms)", elapsed.as_millis());
            }
            Err(error) => {
                self.failed += 1;
                println!("FAIL  {name}: {error:#}");
            }
        }
    }

    /// Prints and counts a row that is not run.
    pub fn skip(&mut self, name: &str, why: &str) {
        self.skipped += 1;
        println!("skip  {name}: {why}");
    }
}

/// Runs families of rows against the daemon.
pub struct Runner {
    mode: Mode,
    filter: String,
    trail: Trail,
    /// What was counted so far.
    pub tally: Tally,
}

impl Runner {
    /// A runner; rows whose name lacks `filter` are left out.
    pub fn new(mode: Mode, filter: &str, audit: &Path) -> Self {
        Self {
            mode,
            filter: filter.to_owned(),
            trail: Trail::at(audit),
            tally: Tally::default(),
        }
    }

    /// Runs the rows of one file.
    pub fn family(&mut self, file: &str, family: &Family) -> Result<()> {
        let mut agents: BTreeMap<String, Agent> = BTreeMap::new();
        for row in &family.rows {
            for actor in &row.actors {
                let who = if *actor == Actor::User {
                    "user"
                } else {
                    "root"
                };
                let name = format!("{file}: {} [{who}]", row.name);
                if !name.contains(&self.filter) {
                    continue;
                }
                if self.mode == Mode::Permissive {
                    if row.expect == Expect::Allowed {
                        continue;
                    }
                    if let Some(why) = &row.inherent {
                        self.tally
                            .skip(&name, &format!("stays denied without its policy: {why}"));
                        continue;
                    }
                }
                let started = Instant::now();
                let policy = row.policy.as_ref().unwrap_or(&family.policy);
                let agent = if self.mode == Mode::Ungoverned {
                    Ok(None)
                } else {
                    self.agent(&mut agents, family, file, policy).map(Some)
                };
                let result = agent.and_then(|agent| self.row(row, *actor, agent));
                if let Ok(Held::Lacks(why)) = &result {
                    self.tally.skip(&name, why);
                    continue;
                }
                let result = result.map(drop);
                let result = if self.mode == Mode::Permissive {
                    reversed(&result)
                } else {
                    result
                };
                self.tally.count(&name, result, started.elapsed());
                // One actor's twin is enough: the policy is what differs.
                let twin = row.twin.as_ref().or(family.twin.as_ref());
                if let Some(twin) = twin.filter(|twin| twin.as_str() != "none")
                    && self.mode == Mode::Policies
                    && row.actors.first() == Some(actor)
                    && matches!(row.expect, Expect::Denied | Expect::Killed)
                    && row.inherent.is_none()
                {
                    let started = Instant::now();
                    let result = self
                        .agent(&mut agents, family, file, twin)
                        .and_then(|agent| permitted(row, *actor, agent));
                    self.tally.count(
                        &format!("{name}, permitted by {twin}"),
                        result,
                        started.elapsed(),
                    );
                }
            }
        }
        Ok(())
    }

    fn agent<'a>(
        &self,
        agents: &'a mut BTreeMap<String, Agent>,
        family: &Family,
        file: &str,
        policy: &str,
    ) -> Result<&'a Agent> {
        if !agents.contains_key(policy) {
            let known = if self.mode == Mode::Permissive {
                write_policy("rows-permissive", UNLOCKED)?;
                if guard::agentguard(&[
                    "policy",
                    "check",
                    "/etc/agentguard/policies/rows-permissive.yaml",
                ])?
                .status
                .success()
                {
                    "rows-permissive".to_owned()
                } else {
                    write_policy("rows-permissive", PERMISSIVE)?;
                    "rows-permissive".to_owned()
                }
            } else if let Some(text) = family.policies.get(policy) {
                let known = format!("rows-{file}-{policy}");
                write_policy(&known, text)?;
                known
            } else {
                policy.to_owned()
            };
            let agent = Agent::attach(&format!("{file}-{policy}"), &known)?;
            agents.insert(policy.to_owned(), agent);
        }
        agents.get(policy).context("the agent was just attached")
    }

    fn row(&mut self, row: &Row, actor: Actor, agent: Option<&Agent>) -> Result<Held> {
        // Ungoverned it is tried first, where the machine may lack what it needs.
        if let Some(needs) = &row.needs {
            let control = perform(&attempt(row, actor, None))?;
            if needs.errno.contains(&control.errno) {
                if let Some(agent) = agent.filter(|_| needs.judged_first) {
                    self.governed(row, actor, agent)?;
                }
                return Ok(Held::Lacks(format!(
                    "needs {} (errno {} without it{})",
                    needs.what,
                    control.errno,
                    if needs.judged_first && agent.is_some() {
                        "; denied all the same"
                    } else {
                        ""
                    }
                )));
            }
        }
        if let Some(agent) = agent {
            self.governed(row, actor, agent)?;
        }
        if matches!(row.expect, Expect::Denied | Expect::Killed) || agent.is_none() {
            let mark = self.trail.mark()?;
            let control = perform(&attempt(row, actor, None))?;
            ensure!(
                control.errno == 0,
                "the same act fails ungoverned too (errno {}): {}",
                control.errno,
                control.complaint.trim()
            );
            ensure!(
                control.effect.is_some(),
                "the same act has no effect that a test could see when it succeeds"
            );
            ensure!(
                !self.trail.has(
                    mark,
                    &Wanted {
                        pid: Some(control.pid),
                        ..Wanted::default()
                    }
                )?,
                "an ungoverned process was recorded"
            );
        }
        Ok(Held::Held)
    }

    fn governed(&mut self, row: &Row, actor: Actor, agent: &Agent) -> Result<()> {
        self.trail.forget();
        let mark = self.trail.mark()?;
        let done = perform(&attempt(row, actor, Some(&agent.group)))?;
        check(row, &done)?;
        if self.mode == Mode::Permissive {
            self.ended(agent, &done, mark);
        }
        self.recorded(row, agent, mark)
    }

    /// Without its policy it is the rule that a row's record does not come. What comes, comes about with that of the
    /// end of the process, and is not waited for much longer.
    fn ended(&mut self, agent: &Agent, done: &Done, mark: usize) {
        let end = Wanted {
            agent: Some(agent.name.clone()),
            op: Some("exit".to_owned()),
            pid: Some(done.pid),
            ..Wanted::default()
        };
        self.trail.patience = Duration::from_secs(10);
        // Where there is none, the whole time was waited for.
        let _ = self.trail.wait(mark, &end);
        self.trail.patience = Duration::from_secs(1);
    }

    fn recorded(&mut self, row: &Row, agent: &Agent, mark: usize) -> Result<()> {
        if row.unrecorded.is_some() {
            return Ok(());
        }
        let target = row
            .target
            .as_ref()
            .or_else(|| row.act.get(1))
            .map(|target| fixture::expand(target));
        // A path rule refuses a program when the kernel opens it to run it.
        let denied = matches!(row.expect, Expect::Denied | Expect::Killed);
        let op = if denied && row.operation() == "exec" {
            START
        } else {
            row.operation()
        };
        let wanted = Wanted {
            agent: Some(agent.name.clone()),
            op: Some(op.to_owned()),
            target,
            verdict: Some(row.expect.verdict().to_owned()),
            rule: row.rule.clone(),
            cause: row.cause.clone(),
            to: row.to.as_deref().map(fixture::expand),
            ..Wanted::default()
        };
        self.trail.wait(mark, &wanted)?;
        if denied && wanted.target.as_deref() != Some("*") {
            let contrary = Wanted {
                op: Some(row.operation().to_owned()),
                verdict: Some("allow".to_owned()),
                rule: None,
                cause: None,
                ..wanted
            };
            ensure!(
                !self.trail.has(mark, &contrary)?,
                "the same act is also recorded as allowed"
            );
        }
        Ok(())
    }
}

/// What came of a row that did not fail.
enum Held {
    Held,
    /// The machine cannot do it, with the reason.
    Lacks(String),
}

fn attempt<'a>(row: &'a Row, actor: Actor, group: Option<&'a Group>) -> Attempt<'a> {
    Attempt {
        act: &row.act,
        cwd: row.cwd.as_deref(),
        setup: &row.setup,
        after: &row.after,
        before: &row.before,
        private: row.private,
        actor,
        group,
        patience: PATIENCE,
    }
}

/// Under the twin's policy the act succeeds and has its effect.
fn permitted(row: &Row, actor: Actor, agent: &Agent) -> Result<()> {
    let done = perform(&attempt(row, actor, Some(&agent.group)))?;
    let allowed = Row {
        expect: Expect::Allowed,
        ..row.clone()
    };
    check(&allowed, &done)
}

fn check(row: &Row, done: &Done) -> Result<()> {
    match row.expect {
        Expect::Denied | Expect::Killed => {
            if let Some(effect) = &done.effect {
                bail!("it had an effect: {effect} (errno {})", done.errno);
            }
            if row.expect == Expect::Killed {
                ensure!(
                    done.killed,
                    "it was not killed; errno is {}: {}",
                    done.errno,
                    done.complaint.trim()
                );
            } else {
                ensure!(!done.killed, "it was killed");
                if row.silent.is_some() {
                    ensure!(
                        done.errno == 0,
                        "it did report a failure (errno {}): {}",
                        done.errno,
                        done.complaint.trim()
                    );
                    return Ok(());
                }
                ensure!(
                    done.errno == libc::EPERM || done.errno == libc::EACCES,
                    "errno is {}: {}",
                    done.errno,
                    done.complaint.trim()
                );
            }
        }
        Expect::Allowed | Expect::WouldDeny => {
            ensure!(!done.killed, "it was killed");
            ensure!(
                done.errno == 0,
                "it failed with errno {}: {}",
                done.errno,
                done.complaint.trim()
            );
            ensure!(done.effect.is_some(), "it had no effect");
        }
    }
    Ok(())
}

/// Without its policy a row that expects a denial must fail.
fn reversed(result: &Result<()>) -> Result<()> {
    match result {
        Ok(()) => bail!("it holds without its policy too, so it shows nothing"),
        Err(_) => Ok(()),
    }
}
