//! After a restart: the agents of the daemon before us, under their names, sessions and policies.
//!
//! Every step may find its work done already, because the kernel went on without us. Nothing is let go
//! here that may still be somewhere, and nothing is written to the log: the records of the one before us
//! come first.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use super::engine::{Engine, InForce, Retired, lock, mode_name};
use super::hunt::find;
use super::store::{self, Saved, SavedAgent};
use super::{AgentInfo, PolicyRequest, SessionError};
use crate::agent::{Agent, Cgroup};
use crate::audit::{Record, Tally, record::op};
use crate::event::escape::escape;
use crate::policy::Policy;

/// How long the `agentguard run` of an agent may take to find the new daemon.
const GRACE: Duration = Duration::from_secs(15);
/// How long agents may take to freeze for an upgrade. Those that do not are recorded twice for a moment.
const FREEZE: Duration = Duration::from_secs(2);

/// Something that the log has to say about it.
pub(super) struct Note {
    op: &'static str,
    agent: String,
    session: u32,
    detail: String,
}

impl Note {
    fn of(agent: &SavedAgent, op: &'static str, detail: impl Into<String>) -> Self {
        Self {
            op,
            agent: agent.name.to_string(),
            session: agent.session,
            detail: detail.into(),
        }
    }
}

impl Engine {
    /// Takes over what the state folder and the kernel know. Nothing else may run yet.
    pub(super) fn restore(&self) -> Result<Vec<Note>, SessionError> {
        let Some(store) = &self.store else {
            return Ok(Vec::new());
        };
        let saved = lock(store).load()?;
        let memberships = lock(&self.enforcer).memberships()?;
        let Some(saved) = saved else {
            return match memberships.len() {
                0 => Ok(Vec::new()),
                count => Err(SessionError::StateGone(count)),
            };
        };
        self.generation
            .store(saved.next_generation.max(1), Ordering::Relaxed);
        lock(&self.state).registry.set_last_slot(saved.last_slot);
        let mut notes = Vec::new();
        if saved.boot == store::boot() {
            self.restore_retired(&saved);
            for agent in &saved.agents {
                self.restore_agent(agent, &mut notes)?;
            }
            lock(&self.enforcer).label_members()?;
            self.thaw_after_upgrade(&saved);
        } else {
            let gone = |agent| Note::of(agent, op::AGENT_DETACH, "it ended with the boot before");
            notes.extend(saved.agents.iter().map(gone));
        }
        // Its records name budgets, and it may have come to the end of what it was told.
        self.limit_restored();
        self.release_strangers(&memberships)?;
        self.unprotect_strangers();
        self.restore_approvals()?;
        self.save()?;
        Ok(notes)
    }

    /// Policies whose records may still be in the rings.
    fn restore_retired(&self, saved: &Saved) {
        for generation in &saved.retired {
            let policy = self
                .store
                .as_ref()
                .map(|store| lock(store).policy(*generation));
            let mut recorder = self.recorder();
            if let Some(Ok((policy, vars))) = policy {
                let policy = Arc::new(policy);
                recorder.judge().add(*generation, policy.clone(), &[]);
                lock(&self.state).retired.push(Retired {
                    generation: *generation,
                    policy,
                    vars,
                });
            } else {
                recorder.judge().forget(*generation);
            }
        }
    }

    fn restore_agent(&self, saved: &SavedAgent, notes: &mut Vec<Note>) -> Result<(), SessionError> {
        let cgroup = Cgroup::at(saved.cgroup.clone());
        let same = cgroup.id().is_ok_and(|id| id == saved.cgroup_id);
        let agent = Agent {
            name: saved.name.clone(),
            slot: saved.slot,
            session: saved.session,
            cgroup,
            cgroup_id: saved.cgroup_id,
            owns_cgroup: saved.owns_cgroup && same,
            came_from: saved.came_from.clone(),
            since: SystemTime::UNIX_EPOCH + Duration::from_millis(saved.since),
            owned: saved.owned,
            account: saved.account.clone().unwrap_or_else(|| saved.name.clone()),
        };
        self.recorder()
            .begin_session(agent.session, agent.name.as_str());
        let in_force = self.restore_policy(saved, notes)?;
        if !same {
            let left = self.carriers(&agent)?;
            if left.is_empty() {
                let mut enforcer = lock(&self.enforcer);
                enforcer.release(agent.cgroup_id)?;
                enforcer.uninstall(agent.slot)?;
                drop(enforcer);
                self.unprotect(agent.slot);
                self.recorder().end_session(agent.session);
                let what =
                    "its cgroup was gone when the daemon came back, and nothing of it was left";
                notes.push(Note::of(saved, op::AGENT_DETACH, what));
                return Ok(());
            }
            lock(&self.enforcer).release(agent.cgroup_id)?;
            let what =
                format!("its cgroup is gone; processes {left:?} are governed by their labels");
            tracing::warn!("`{}`: {what}", agent.name);
            notes.push(Note::of(saved, op::AGENT_RESTORE, what));
        }
        match in_force.policy.compile(in_force.generation) {
            Ok(table) => lock(&self.enforcer).install(agent.slot, &table.bytes)?,
            Err(error) => {
                let what = format!("the table in the kernel stays in force: {error}");
                tracing::error!("`{}`: {what}", agent.name);
                notes.push(Note::of(saved, op::POLICY_ERROR, what));
            }
        }
        let searched = self.search(&in_force.policy, &in_force.request);
        if let Err(error) = self.protect(&agent, searched) {
            let what = format!("not all objects of its policy are protected: {error}");
            tracing::error!("`{}`: {what}", agent.name);
            notes.push(Note::of(saved, op::POLICY_ERROR, what));
        }
        if same {
            if let Err(error) = self.count_traffic(&agent) {
                let what = format!("its traffic may not be counted: {error}");
                tracing::error!("`{}`: {what}", agent.name);
                notes.push(Note::of(saved, op::ALARM, what));
            }
            lock(&self.enforcer).govern(agent.cgroup_id, agent.membership())?;
            let what = format!("generation {} is in force", in_force.generation);
            notes.push(Note::of(saved, op::AGENT_RESTORE, what));
        }
        self.enlist(agent, in_force);
        Ok(())
    }

    /// The policy that is in force in the kernel. Where its text is lost, the one that is asked for, or none
    /// that permits anything.
    fn restore_policy(
        &self,
        saved: &SavedAgent,
        notes: &mut Vec<Note>,
    ) -> Result<InForce, SessionError> {
        let found = match &self.store {
            Some(store) => lock(store).policy(saved.generation),
            None => return Err(SessionError::StateGone(1)),
        };
        let (generation, policy, vars) = match found {
            Ok((policy, vars)) => (saved.generation, policy, vars),
            Err(error) => {
                self.recorder().judge().forget(saved.generation);
                let what = format!("the text of the policy in force is lost: {}", error.line());
                tracing::error!("`{}`: {what}", saved.name);
                notes.push(Note::of(saved, op::POLICY_ERROR, what));
                let generation = self.generation.fetch_add(1, Ordering::Relaxed);
                let policy = saved
                    .request
                    .load(&self.search, &self.own)
                    .or_else(|error| {
                        let what = format!("everything is denied: {}", error.line());
                        notes.push(Note::of(saved, op::POLICY_ERROR, what));
                        PolicyRequest::deny_everything().load(&self.search, &self.own)
                    })?;
                (generation, policy, saved.request.vars.clone())
            }
        };
        let policy = Arc::new(policy);
        let generations = self.generations();
        self.recorder()
            .judge()
            .add(generation, policy.clone(), &generations);
        Ok(InForce {
            request: PolicyRequest {
                policy: saved.request.policy.clone(),
                vars,
            },
            policy,
            generation,
        })
    }

    /// Processes that carry an agent's label, wherever they are.
    fn carriers(&self, agent: &Agent) -> Result<BTreeSet<u32>, SessionError> {
        find(|pidfd| {
            let label = lock(&self.enforcer).label_of(pidfd.as_fd())?;
            Ok(label.is_some_and(|it| (it.agent, it.session) == (agent.slot, agent.session)))
        })
    }

    /// Cgroups that label for an agent that nobody knows: of an attach that never came to its end.
    fn release_strangers(
        &self,
        memberships: &[(u64, agentguard_common::label::Membership)],
    ) -> Result<(), SessionError> {
        let state = lock(&self.state);
        for (cgroup, membership) in memberships {
            let known = state.registry.iter().any(|agent| {
                agent.cgroup_id == *cgroup
                    && (agent.slot, agent.session) == (membership.agent, membership.session)
            });
            if !known {
                tracing::warn!("the cgroup {cgroup} was governed for nobody; it is not any more");
                lock(&self.enforcer).release(*cgroup)?;
            }
        }
        Ok(())
    }

    /// Writes into the log what [`Engine::restore`] found.
    pub(super) fn tell(&self, notes: Vec<Note>) {
        let names: Vec<(u32, String)> = notes
            .iter()
            .map(|note| (note.session, note.agent.clone()))
            .collect();
        if let Err(error) = self.settle_strangers(&names) {
            tracing::error!("traffic of agents that have gone is not in the log: {error}");
        }
        for note in notes {
            self.note(Record {
                agent: Some(note.agent.into()),
                session: Some(note.session),
                detail: Some(escape(note.detail.as_bytes())),
                ..Record::new(note.op)
            });
        }
    }

    /// Replaces the programs of another build. Agents stand still meanwhile: what both builds judge would be
    /// recorded twice.
    pub(super) fn upgrade(&self) -> Result<(), SessionError> {
        let agents: Vec<Agent> = {
            let state = lock(&self.state);
            let running = state.registry.iter();
            running
                .filter(|agent| !agent.cgroup.is_frozen() && !agent.cgroup.is_empty())
                .cloned()
                .collect()
        };
        lock(&self.state).frozen_for_upgrade = agents.iter().map(|agent| agent.slot).collect();
        // Whoever comes after our death thaws them.
        self.save()?;
        for agent in &agents {
            if let Err(error) = agent.cgroup.freeze(FREEZE) {
                tracing::warn!("`{}` runs on during the upgrade: {error}", agent.name);
            }
        }
        let taken = lock(&self.enforcer).take_over();
        for agent in &agents {
            if let Err(error) = agent.cgroup.thaw(FREEZE) {
                tracing::error!("`{}` stays frozen after the upgrade: {error}", agent.name);
            }
        }
        lock(&self.state).frozen_for_upgrade.clear();
        self.save()?;
        Ok(taken?)
    }

    fn thaw_after_upgrade(&self, saved: &Saved) {
        let state = lock(&self.state);
        let frozen = state
            .registry
            .iter()
            .filter(|agent| saved.frozen_for_upgrade.contains(&agent.slot));
        for agent in frozen {
            if let Err(error) = agent.cgroup.thaw(FREEZE) {
                tracing::error!("`{}` stays frozen after an upgrade: {error}", agent.name);
            }
        }
    }

    /// Reads the policies again of all agents, and swaps those whose files say something else now.
    pub(super) async fn refresh(self: &Arc<Self>) {
        let agents: Vec<(String, PolicyRequest, Arc<Policy>)> = {
            let state = lock(&self.state);
            let of = |agent: &Agent| {
                let in_force = state.in_force.get(&agent.slot)?;
                let (request, policy) = (in_force.request.clone(), in_force.policy.clone());
                Some((agent.name.to_string(), request, policy))
            };
            state.registry.iter().filter_map(of).collect()
        };
        for (name, request, policy) in agents {
            let (search, own) = (self.search.clone(), self.own.clone());
            let same = move || {
                request
                    .load(&search, &own)
                    .is_ok_and(|found| found.sources() == policy.sources())
            };
            if !tokio::task::spawn_blocking(same).await.unwrap_or(false) {
                // An error is told and recorded there, and what is in force stays.
                let _ = self.swap(&name, None).await;
            }
        }
    }

    /// Ends agents whose `agentguard run` does not come back.
    pub(super) fn await_owners(self: &Arc<Self>) {
        let owned: Vec<(String, u32)> = {
            let state = lock(&self.state);
            let owned = state.registry.iter().filter(|agent| agent.owned);
            owned
                .map(|agent| (agent.name.to_string(), agent.session))
                .collect()
        };
        if owned.is_empty() {
            return;
        }
        let engine = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            let Some(engine) = engine.upgrade() else {
                return;
            };
            for (name, session) in owned {
                if lock(&engine.owners).contains(&session) {
                    continue;
                }
                tracing::warn!("the `agentguard run` of `{name}` did not come back; it is ended");
                if let Err(error) = engine.end(&name, session).await {
                    tracing::error!("failed to end `{name}`: {error}");
                }
            }
        });
    }

    /// Somebody stands for the agent of a session: it ends with that one.
    pub fn claim(&self, session: u32) {
        lock(&self.owners).insert(session);
    }
}

/// What there is to say of them without a daemon: nobody counts what they do.
pub fn agents_in(folder: &Path) -> Result<Vec<AgentInfo>, SessionError> {
    let store = store::Store::at(folder);
    let info = |saved: SavedAgent| {
        let policy = store.policy(saved.generation).map(|(policy, _)| policy);
        let cgroup = Cgroup::at(saved.cgroup.clone());
        let same = cgroup.id().is_ok_and(|id| id == saved.cgroup_id);
        AgentInfo {
            name: saved.name.to_string(),
            session: saved.session,
            policy: policy
                .as_ref()
                .map_or(saved.request.policy.as_str(), |policy| policy.name())
                .to_owned(),
            mode: policy
                .as_ref()
                .map_or("unknown", |policy| mode_name(policy.mode()))
                .to_owned(),
            generation: saved.generation,
            files: policy.map_or_else(|_| Vec::new(), |policy| policy.files().to_vec()),
            processes: cgroup
                .processes()
                .map_or(0, |pids| usize::from(same) * pids.len()),
            frozen: same && cgroup.is_frozen(),
            cgroup: saved.cgroup,
            since: saved.since / 1000,
            tally: Tally::default(),
            budget: None,
            environment: Vec::new(),
        }
    };
    Ok(saved_agents(folder)?.into_iter().map(info).collect())
}

/// The agents that the state folder knows of this boot, without a daemon.
pub fn saved_agents(folder: &Path) -> Result<Vec<SavedAgent>, SessionError> {
    let saved = store::Store::at(folder).load()?.unwrap_or_default();
    if saved.boot == store::boot() {
        Ok(saved.agents)
    } else {
        Ok(Vec::new())
    }
}
