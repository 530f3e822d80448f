//! How agents go: let go by a person, or killed to the last process.
//!
//! Who is let go loses the label before the policy goes. At the end of a `run` nobody loses a label:
//! a process that left the cgroup would be free.

use std::borrow::Cow;
use std::sync::Arc;

use super::engine::{Engine, PATIENCE, escape_path, lock};
use super::hunt::{Hunt, WALKS, hunt};
use super::{AgentInfo, PolicyRequest, SessionError};
use crate::agent::{Agent, Cgroup, RegistryError};
use crate::audit::{Record, Tally, record::op};
use crate::event::escape::escape;

/// Rounds of taking labels away; each finds only children of tasks that forked during the one before.
const UNLABEL_ROUNDS: usize = 100;

/// What becomes of an agent's labels when it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parting {
    /// They are taken away: its processes go on ungoverned.
    Freed,
    /// They stay: nobody who carries one is left.
    Killed,
}

impl Engine {
    /// Takes the policy away, and removes a cgroup of our own. Who is freed loses labels first and is put back.
    pub(super) fn let_go(&self, agent: &Agent, parting: Parting) -> Result<(), SessionError> {
        self.serve_no_more(agent);
        match parting {
            Parting::Freed => self.free(agent)?,
            Parting::Killed => {
                let mut enforcer = lock(&self.enforcer);
                enforcer.release(agent.cgroup_id)?;
                enforcer.uninstall(agent.slot)?;
            }
        }
        self.settle_traffic(agent);
        self.unprotect(agent.slot);
        if let Some(guardian) = &self.guardian {
            lock(guardian).remove(agent.cgroup.path())?;
        }
        if agent.owns_cgroup && agent.cgroup.is_empty() {
            agent.cgroup.remove()?;
        }
        Ok(())
    }

    fn free(&self, agent: &Agent) -> Result<(), SessionError> {
        let was_frozen = agent.cgroup.is_frozen();
        if !was_frozen && !agent.cgroup.is_empty() {
            // Nobody forks while labels are taken away.
            agent.cgroup.freeze(PATIENCE)?;
        }
        {
            let mut enforcer = lock(&self.enforcer);
            enforcer.release(agent.cgroup_id)?;
            for _ in 0..UNLABEL_ROUNDS {
                if enforcer.unlabel(agent.slot)? == 0 {
                    break;
                }
            }
            enforcer.uninstall(agent.slot)?;
        }
        if let Some(from) = agent.came_from.clone().filter(|from| from.is_dir()) {
            let from = Cgroup::at(from);
            // Where its cgroup is gone, nobody is in it.
            for pid in agent.cgroup.processes().unwrap_or_default() {
                // It may have ended.
                let _ = from.add(pid);
            }
        }
        if !was_frozen && agent.cgroup.is_frozen() {
            agent.cgroup.thaw(PATIENCE)?;
        }
        Ok(())
    }

    /// Lets an agent go: its tasks are no longer governed. Gives what it was.
    pub async fn detach(&self, name: &str) -> Result<AgentInfo, SessionError> {
        let session = lock(&self.state).registry.find(name)?.session;
        self.part(name, session, Parting::Freed).await
    }

    async fn part(
        &self,
        name: &str,
        session: u32,
        parting: Parting,
    ) -> Result<AgentInfo, SessionError> {
        let _alone = self.one_at_a_time.lock().await;
        let (agent, info) = {
            let state = lock(&self.state);
            let agent = state.registry.find(name)?.clone();
            let info = self.info(&state, agent.slot);
            (agent, info)
        };
        if agent.session != session {
            return Err(RegistryError::Unknown(name.to_owned()).into());
        }
        self.pump.drain().await;
        self.let_go(&agent, parting)?;
        // Whatever was under way when its policy was taken away is over: nothing is counted any more.
        let told = lock(&self.enforcer).tell_repeats(true);
        if let Err(error) = told {
            // It is let go all the same, and must not stay listed as governed.
            self.alarm(
                &agent,
                &format!("what it repeated could not be told: {error}"),
            );
        }
        self.pump.drain().await;
        self.strike(agent.slot);
        self.end_limits(&agent);
        self.end_approvals(&agent);
        lock(&self.owners).remove(&agent.session);
        let generations = self.generations();
        let tally = {
            let mut recorder = self.recorder();
            let tally = recorder.tally(agent.session);
            let Tally {
                allowed,
                denied,
                would_deny,
            } = tally;
            recorder.note(Record {
                agent: Some(Cow::Borrowed(name)),
                session: Some(agent.session),
                target: Some(escape_path(agent.cgroup.path())),
                detail: Some(
                    format!("{allowed} allowed, {denied} denied, {would_deny} would be denied")
                        .into(),
                ),
                ..Record::new(op::AGENT_DETACH)
            });
            recorder.end_session(agent.session);
            let judge = recorder.judge();
            judge.forget_agent(agent.slot);
            judge.rings_were_read(&generations);
            tally
        };
        self.on_disk().await;
        crate::kernel::trim_memory();
        let mut info = info.ok_or_else(|| RegistryError::Unknown(name.to_owned()))?;
        info.tally = tally;
        Ok(info)
    }

    /// The end of an agent: all of it is killed, wherever it went, and its policy goes when nothing is left.
    /// What cannot be killed keeps its label and is denied everything.
    pub async fn end(
        self: &Arc<Self>,
        name: &str,
        session: u32,
    ) -> Result<AgentInfo, SessionError> {
        let agent = lock(&self.state).registry.find(name)?.clone();
        if agent.session != session {
            return Err(RegistryError::Unknown(name.to_owned()).into());
        }
        agent.cgroup.kill()?;
        let (enforcer, cgroup) = (self.enforcer.clone(), agent.cgroup.clone());
        let work = move || {
            cgroup.wait_empty(PATIENCE)?;
            hunt(WALKS, |pidfd| {
                let label = lock(&enforcer).label_of(pidfd)?;
                Ok(label.is_some_and(|it| (it.agent, it.session) == (agent.slot, session)))
            })
        };
        let outcome = tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error).into()));
        match outcome {
            Ok(Hunt { killed, left }) if left.is_empty() => {
                if !killed.is_empty() {
                    let detail = format!("left the cgroup and were killed: {killed:?}");
                    self.note_about(name, session, op::KILL, &detail);
                }
                self.part(name, session, Parting::Killed).await
            }
            outcome => {
                let deny = Some(PolicyRequest::deny_everything());
                if self.swap(name, deny).await.is_err() {
                    lock(&self.enforcer).uninstall(agent.slot)?;
                }
                let error = match outcome {
                    Ok(hunt) => SessionError::Survivors {
                        agent: name.to_owned(),
                        pids: hunt.left.into_iter().collect(),
                    },
                    Err(error) => error,
                };
                let detail = format!("not everything has ended, it is denied everything: {error}");
                self.note_about(name, session, op::ALARM, &detail);
                Err(error)
            }
        }
    }

    /// Something must not be so with an agent: says it to the operator, and in the log.
    pub(super) fn alarm(&self, agent: &Agent, what: &str) {
        tracing::error!("`{}`: {what}", agent.name);
        self.note_about(agent.name.as_str(), agent.session, op::ALARM, what);
    }

    fn note_about(&self, name: &str, session: u32, op: &'static str, detail: &str) {
        self.note(Record {
            agent: Some(Cow::Borrowed(name)),
            session: Some(session),
            detail: Some(escape(detail.as_bytes())),
            ..Record::new(op)
        });
    }
}
