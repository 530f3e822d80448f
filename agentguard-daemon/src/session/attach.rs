//! Bringing a process or cgroup under a policy.
//!
//! Policy first, then the cgroup, then the tasks. Whatever fails half way is undone.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use agentguard_common::label::Label;

use super::engine::{Engine, InForce, about, escape_path, lock, watch};
use super::leave::Parting;
use super::number::next_session;
use super::objects::{Searched, warn_of_cuts};
use super::{AgentInfo, Attach, GuardianAction, PolicyRequest, SessionError, Target};
use crate::agent::{Agent, Name, RegistryError};
use crate::audit::record::op;
use crate::kernel::{KernelError, trim_memory};
use crate::policy::{Policy, places};

impl Engine {
    /// Brings a process or cgroup under a policy. When it returns, every task of it is labelled.
    pub async fn attach(self: &Arc<Self>, mut request: Attach) -> Result<AgentInfo, SessionError> {
        places::resolve(&mut request.policy.vars)?;
        let _alone = self.one_at_a_time.lock().await;
        let generation = self.generation.fetch_add(1, Ordering::Relaxed);
        let (policy, table) = self.compile(&request.policy, generation).await?;
        self.prepare_limits(&policy).await?;
        let searched = self.search_apart(&policy, &request.policy).await?;
        let name = request
            .name
            .clone()
            .unwrap_or_else(|| Name::nearest(policy.name()));
        let agent = self.prepare(
            &request.target,
            &name,
            request.account.as_ref(),
            request.on_death,
        )?;
        let slot = agent.slot;
        let generations = self.generations();
        {
            let mut recorder = self.recorder();
            recorder.begin_session(agent.session, name.as_str());
            recorder
                .judge()
                .add(generation, policy.clone(), &generations);
        }
        // First on the list and on the disk, then in the kernel: a daemon that finds us dead knows of it.
        let in_force = InForce {
            request: request.policy.clone(),
            policy: policy.clone(),
            generation,
        };
        self.enlist(agent.clone(), in_force);
        let governed = self
            .save()
            .and_then(|()| self.govern(&agent, &policy, &table, searched, &request));
        if let Err(error) = governed {
            self.undo(&agent).await;
            return Err(error);
        }
        let mut record = about(&agent, op::AGENT_ATTACH, &policy, generation);
        record.target = Some(escape_path(agent.cgroup.path()));
        self.note(record);
        self.note(about(&agent, op::POLICY_INSTALL, &policy, generation));
        if let Some(watcher) = &*lock(&self.watcher) {
            watch(watcher, &policy);
        }
        let state = lock(&self.state);
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
        let own = self.own.clone();
        let work = move || {
            let policy = request.load(&search, &own)?;
            let table = policy.compile(generation)?;
            // Compiling takes many times what it makes, and what a thread has freed nobody else uses.
            trim_memory();
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
    fn prepare(
        &self,
        target: &Target,
        name: &Name,
        account: Option<&Name>,
        on_death: GuardianAction,
    ) -> Result<Agent, SessionError> {
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
            owned: on_death == GuardianAction::Kill,
            account: account.unwrap_or(name).clone(),
        })
    }

    /// Policy, its objects and its resolver first, then the cgroup, then the tasks.
    fn govern(
        &self,
        agent: &Agent,
        policy: &Policy,
        table: &[u8],
        searched: Searched,
        request: &Attach,
    ) -> Result<(), SessionError> {
        if let Some(guardian) = &self.guardian {
            lock(guardian).add(agent.cgroup.path(), request.on_death)?;
        }
        let label = || -> Result<(), SessionError> {
            let mut enforcer = lock(&self.enforcer);
            enforcer.govern(agent.cgroup_id, agent.membership())?;
            if let Target::Process(pid) = request.target {
                agent.cgroup.add(pid)?;
            }
            enforcer.label_members()?;
            Ok(())
        };
        self.limit(agent, policy)?;
        lock(&self.enforcer).install(agent.slot, table)?;
        warn_of_cuts(agent, &searched);
        self.protect(agent, searched)?;
        self.serve_names(agent, policy, Some(&request.target))?;
        self.count_traffic(agent)?;
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
    async fn undo(&self, agent: &Agent) {
        if let Err(error) = self.let_go(agent, Parting::Freed) {
            tracing::error!("failed to undo an attach that had failed: {error}");
        }
        self.pump.drain().await;
        self.strike(agent.slot);
        self.end_limits(agent);
        let mut recorder = self.recorder();
        recorder.end_session(agent.session);
        recorder.judge().forget_agent(agent.slot);
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
