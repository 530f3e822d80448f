//! Protected objects of agents: searched for when a policy comes into force, and again when the folders that
//! they lie in change.
//!
//! A search that fails or is cut short leaves path rules as they are: it must never loosen anything.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::engine::{Engine, InForce, lock};
use super::scout::{Round, Scout};
use super::{PolicyRequest, SessionError};
use crate::agent::Agent;
use crate::kernel::Protection;
use crate::policy::Policy;
use crate::policy::protected::{Found, Limits};

/// A search that has ended. Its watches are dropped with it, unless it is settled.
pub(super) struct Searched {
    found: Found,
    round: Option<Round>,
}

impl Engine {
    /// Looks for the objects behind what a policy denies, and watches the folders. May take a while.
    pub(super) fn search(&self, policy: &Policy, request: &PolicyRequest) -> Searched {
        let scout = lock(&self.scout).clone();
        search(scout.as_ref(), policy, request)
    }

    /// The same, away from the threads that serve.
    pub(super) async fn search_apart(
        &self,
        policy: &Arc<Policy>,
        request: &PolicyRequest,
    ) -> Result<Searched, SessionError> {
        let (scout, policy) = (lock(&self.scout).clone(), policy.clone());
        let request = request.clone();
        let work = move || search(scout.as_ref(), &policy, &request);
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| SessionError::Spawn {
                what: "the search for protected objects",
                source: std::io::Error::other(error),
            })
    }

    /// Tells the kernel what was found. On an error some of it may be protected, and nothing less than before.
    pub(super) fn protect(&self, agent: &Agent, searched: Searched) -> Result<(), SessionError> {
        let Searched { found, round } = searched;
        let objects: Vec<Protection> = found
            .objects
            .iter()
            .map(|((inode, device), object)| (*inode, *device, object.accesses))
            .collect();
        self.recorder()
            .judge()
            .objects()
            .set(agent.slot, &found.objects);
        let told = lock(&self.enforcer).protect(agent.slot, &objects);
        if let Some(round) = round {
            // Also after an error: the next change is a new attempt.
            round.settle(agent.slot);
        }
        tracing::debug!("`{}`: {} objects are protected", agent.name, objects.len());
        if found.floating_cut {
            tracing::debug!(
                "`{}`: not everything below workspace and home was looked through",
                agent.name
            );
        }
        Ok(told?)
    }

    /// An agent has gone: nothing is protected from it any more.
    pub(super) fn unprotect(&self, slot: u32) {
        if let Err(error) = lock(&self.enforcer).protect(slot, &[]) {
            tracing::error!("objects of an agent that has gone stay in the kernel: {error}");
        }
        self.recorder()
            .judge()
            .objects()
            .set(slot, &BTreeMap::new());
        if let Some(scout) = &*lock(&self.scout) {
            scout.forget(slot);
        }
    }

    /// Drops what is protected from agents that nobody knows: of an attach that never came to its end.
    pub(super) fn unprotect_strangers(&self) {
        let known: HashSet<u32> = {
            let state = lock(&self.state);
            state.registry.iter().map(|agent| agent.slot).collect()
        };
        let protected = lock(&self.enforcer).protected_from();
        for slot in protected.into_iter().filter(|slot| !known.contains(slot)) {
            self.unprotect(slot);
        }
    }

    /// Searches again, for all agents or for some of them.
    pub async fn refresh_objects(&self, slots: Option<&HashSet<u32>>) {
        let agents: Vec<(Agent, PolicyRequest, Arc<Policy>, u32)> = {
            let state = lock(&self.state);
            let of = |agent: &Agent| {
                let InForce {
                    request,
                    policy,
                    generation,
                } = state.in_force.get(&agent.slot)?;
                Some((agent.clone(), request.clone(), policy.clone(), *generation))
            };
            let asked = |agent: &&Agent| slots.is_none_or(|slots| slots.contains(&agent.slot));
            state.registry.iter().filter(asked).filter_map(of).collect()
        };
        for (agent, request, policy, generation) in agents {
            let Ok(searched) = self.search_apart(&policy, &request).await else {
                continue;
            };
            let _alone = self.one_at_a_time.lock().await;
            let current = {
                let state = lock(&self.state);
                let same = state
                    .registry
                    .iter()
                    .any(|it| (it.slot, it.session) == (agent.slot, agent.session));
                let in_force = state.in_force.get(&agent.slot);
                same && in_force.is_some_and(|it| it.generation == generation)
            };
            // A swap has searched for itself.
            if current && let Err(error) = self.protect(&agent, searched) {
                tracing::error!(
                    "`{}`: other names of protected files may not be known: {error}",
                    agent.name
                );
            }
        }
    }

    /// From now on changes in the folders of protected objects are seen.
    pub(super) fn watch_objects(self: &Arc<Self>) -> Result<(), SessionError> {
        let engine = Arc::downgrade(self);
        let runtime = tokio::runtime::Handle::current();
        let scout = Scout::start(move |slots| {
            if let Some(engine) = engine.upgrade() {
                runtime.block_on(engine.refresh_objects(slots));
            }
        })
        .map_err(|source| SessionError::Spawn {
            what: "the watch on protected files",
            source,
        })?;
        *lock(&self.scout) = Some(scout);
        Ok(())
    }
}

fn search(scout: Option<&Scout>, policy: &Policy, request: &PolicyRequest) -> Searched {
    let started = Instant::now();
    let round = scout.map(Scout::begin);
    let places: Vec<PathBuf> = ["workspace", "home"]
        .iter()
        .filter_map(|name| request.vars.get(*name))
        .map(PathBuf::from)
        .collect();
    let found = policy.protected(&places, Limits::default(), &mut |folder, interest| {
        if let Some(round) = &round {
            round.watch(folder, interest);
        }
    });
    tracing::debug!(
        "the search for protected objects took {:?}",
        started.elapsed()
    );
    Searched { found, round }
}

/// Says which rules' objects are not all known by more than their names.
pub(super) fn warn_of_cuts(agent: &Agent, searched: &Searched) {
    if !searched.found.cut.is_empty() {
        let rules: Vec<&str> = searched.found.cut.iter().map(String::as_str).collect();
        tracing::warn!(
            "`{}`: too many files to know them all by more than their names: rules {}; other names of these files, such as hard links, are not denied by them",
            agent.name,
            rules.join(", ")
        );
    }
}
