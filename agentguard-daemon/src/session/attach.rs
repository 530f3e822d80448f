//! Bringing a process or cgroup under a policy, and letting it go.
//!
//! Policy first, then the cgroup, then the tasks; on the way back the labels first and the policy
//! last. Whatever fails half way is undone.

use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use agentguard_common::label::Label;

use super::engine::{Engine, InForce, PATIENCE, about, escape_path, lock, watch};
use super::number::next_session;
use super::{AgentInfo, Attach, PolicyRequest, SessionError, Target};
use crate::agent::{Agent, Cgroup, Name, RegistryError};
use crate::audit::{Record, Tally, record::op};
use crate::kernel::KernelError;
use crate::policy::Policy;

/// Rounds of taking labels away; each finds only children of tasks that forked during the one before.
const UNLABEL_ROUNDS: usize = 100;

impl Engine {
    /// Brings a process or cgroup under a policy. When it returns, every task of it is labelled.
    pub async fn attach(&self, request: Attach) -> Result<AgentInfo, SessionError> {
        let _alone = self.one_at_a_time.lock().await;
        let generation = self.generation.fetch_add(1, Ordering::Relaxed);
        let (policy, table) = self.compile(&request.policy, generation).await?;
        let name = request
            .name
            .clone()
            .unwrap_or_else(|| Name::nearest(policy.name()));
        let agent = self.prepare(&request.target, &name)?;
        let slot = agent.slot;
        let generations = self.generations();
        {
            let mut recorder = self.recorder();
            recorder.begin_session(agent.session, name.as_str());
            recorder
                .judge()
                .add(generation, policy.clone(), &generations);
        }
        if let Err(error) = self.govern(&agent, &table, &request) {
            self.undo(&agent);
            return Err(error);
        }
        let mut record = about(&agent, op::AGENT_ATTACH, &policy, generation);
        record.target = Some(escape_path(agent.cgroup.path()));
        self.note(record);
        self.note(about(&agent, op::POLICY_INSTALL, &policy, generation));
        if let Some(watcher) = &*lock(&self.watcher) {
            watch(watcher, &policy);
        }
        let mut state = lock(&self.state);
        state.registry.add(agent);
        state.in_force.insert(
            slot,
            InForce {
                request: request.policy,
                policy,
                generation,
            },
        );
        self.info(&state, slot)
            .ok_or_else(|| RegistryError::Unknown(name.to_string()).into())
    }

    /// Reads and compiles a policy, away from the threads that serve.
    pub(super) async fn compile(
        &self,
        request: &PolicyRequest,
        generation: u32,
    ) -> Result<(Arc<Policy>, Vec<u8>), SessionError> {
        let (request, search) = (request.clone(), self.search.clone());
        let work = move || {
            let policy = request.load(&search)?;
            let table = policy.compile(generation)?;
            Ok((Arc::new(policy), table.bytes))
        };
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|error| {
                let source = std::io::Error::other(error);
                Err(SessionError::Spawn {
                    what: "the compilation of the policy",
                    source,
                })
            })
    }

    /// Slot, session and cgroup of a new agent. Nothing is governed yet.
    fn prepare(&self, target: &Target, name: &Name) -> Result<Agent, SessionError> {
        let existing = match target {
            Target::Cgroup(path) => Some(self.hierarchy.open(path)?),
            Target::Process(pid) => {
                check_process(*pid)?;
                if let Some(label) = self.label_of_process(*pid)? {
                    let agent = self.agent_of_session(label.session);
                    return Err(SessionError::AlreadyGoverned {
                        pid: *pid,
                        agent: agent.unwrap_or_else(|| "another".to_owned()),
                    });
                }
                None
            }
        };
        let slot = {
            let mut state = lock(&self.state);
            state.registry.check(name, existing.as_ref())?;
            state.registry.free_slot()?
        };
        let session = next_session(&self.sessions)?;
        let owns_cgroup = existing.is_none();
        let came_from = match target {
            Target::Process(pid) => Some(self.hierarchy.of_process(*pid)?),
            Target::Cgroup(_) => None,
        };
        let cgroup = match existing {
            Some(cgroup) => cgroup,
            None => self.hierarchy.create(&format!("{name}-{session}"))?,
        };
        Ok(Agent {
            name: name.clone(),
            slot,
            session,
            cgroup_id: cgroup.id()?,
            cgroup,
            owns_cgroup,
            came_from,
            since: SystemTime::now(),
        })
    }

    /// Policy first, then the cgroup, then the tasks.
    fn govern(&self, agent: &Agent, table: &[u8], request: &Attach) -> Result<(), SessionError> {
        if let Some(guardian) = &self.guardian {
            lock(guardian).add(agent.cgroup.path(), request.on_death)?;
        }
        let label = || -> Result<(), SessionError> {
            let mut enforcer = lock(&self.enforcer);
            enforcer.install(agent.slot, table)?;
            enforcer.govern(agent.cgroup_id, agent.membership())?;
            if let Target::Process(pid) = request.target {
                agent.cgroup.add(pid)?;
            }
            enforcer.label_members()?;
            Ok(())
        };
        label()?;
        match request.target {
            Target::Cgroup(_) => Ok(()),
            Target::Process(pid) => self.confirm(agent, pid),
        }
    }

    /// Asks the kernel whether the process carries the label.
    fn confirm(&self, agent: &Agent, pid: u32) -> Result<(), SessionError> {
        match self.label_of_process(pid)? {
            Some(label) if (label.agent, label.session) == (agent.slot, agent.session) => Ok(()),
            _ => Err(SessionError::NotConfirmed(pid)),
        }
    }

    fn label_of_process(&self, pid: u32) -> Result<Option<Label>, SessionError> {
        let raw = i32::try_from(pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let raw = raw.ok_or(SessionError::NoProcess(pid))?;
        let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty())
            .map_err(|_| SessionError::NoProcess(pid))?;
        Ok(self.label_of(pidfd.as_fd())?)
    }

    /// The label of the process behind a pidfd, wherever it is.
    pub fn label_of(&self, pidfd: BorrowedFd<'_>) -> Result<Option<Label>, KernelError> {
        lock(&self.enforcer).label_of(pidfd)
    }

    /// After an error half way: nothing stays labelled, and the process is where it was.
    fn undo(&self, agent: &Agent) {
        if let Err(error) = self.let_go(agent) {
            tracing::error!("failed to undo an attach that had failed: {error}");
        }
    }

    /// Takes labels and policy away, puts processes back, removes a cgroup of our own.
    fn let_go(&self, agent: &Agent) -> Result<(), SessionError> {
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
            for pid in agent.cgroup.processes()? {
                // It may have ended.
                let _ = from.add(pid);
            }
        }
        if !was_frozen && agent.cgroup.is_frozen() {
            agent.cgroup.thaw(PATIENCE)?;
        }
        if let Some(guardian) = &self.guardian {
            lock(guardian).remove(agent.cgroup.path())?;
        }
        if agent.owns_cgroup && agent.cgroup.is_empty() {
            agent.cgroup.remove()?;
        }
        Ok(())
    }

    /// Lets an agent go: its tasks are no longer governed. Gives what it was.
    pub async fn detach(&self, name: &str) -> Result<AgentInfo, SessionError> {
        let _alone = self.one_at_a_time.lock().await;
        let (agent, info) = {
            let state = lock(&self.state);
            let agent = state.registry.find(name)?.clone();
            let info = self.info(&state, agent.slot);
            (agent, info)
        };
        self.pump.drain().await;
        self.let_go(&agent)?;
        self.pump.drain().await;
        {
            let mut state = lock(&self.state);
            state.registry.remove(agent.slot);
            state.in_force.remove(&agent.slot);
        }
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
                format!("{allowed} allowed, {denied} denied, {would_deny} would be denied").into(),
            ),
            ..Record::new(op::AGENT_DETACH)
        });
        recorder.end_session(agent.session);
        recorder.sync();
        let mut info = info.ok_or_else(|| RegistryError::Unknown(name.to_owned()))?;
        info.tally = tally;
        Ok(info)
    }

    /// The end of an agent whose `run` is gone: killed, and let go when nothing of it runs any more.
    pub async fn end(&self, name: &str, session: u32) -> Result<(), SessionError> {
        let agent = lock(&self.state).registry.find(name)?.clone();
        if agent.session != session {
            return Ok(());
        }
        agent.cgroup.kill()?;
        let wait = tokio::task::spawn_blocking(move || agent.cgroup.wait_empty(PATIENCE));
        if let Ok(outcome) = wait.await {
            outcome?;
        }
        self.detach(name).await.map(|_| ())
    }
}

/// Processes that cannot be taken: the first one, ourselves, and what does not exist.
fn check_process(pid: u32) -> Result<(), SessionError> {
    let why = match pid {
        0 | 1 => "it is the first process of the system",
        pid if pid == std::process::id() => "it is AgentGuard itself",
        _ if !Path::new(&format!("/proc/{pid}")).is_dir() => {
            return Err(SessionError::NoProcess(pid));
        }
        _ => return Ok(()),
    };
    Err(SessionError::Ungovernable { pid, why })
}
