//! Another policy for a governed agent, in one step. On any error the one before stays in force.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::engine::{Engine, InForce, Retired, about, lock, watch};
use super::names::judge_openings;
use super::objects::{Searched, warn_of_cuts};
use super::{AgentInfo, PolicyRequest, SessionError};
use crate::agent::{Agent, RegistryError};
use crate::audit::{Record, record::op};
use crate::event::escape::escape;
use crate::policy::{Policy, places};

impl Engine {
    /// Gives an agent another policy, or reads its policy again. On an error the one before stays.
    pub async fn swap(
        self: &Arc<Self>,
        name: &str,
        mut request: Option<PolicyRequest>,
    ) -> Result<AgentInfo, SessionError> {
        if let Some(request) = &mut request {
            places::resolve(&mut request.vars)?;
        }
        let _alone = self.one_at_a_time.lock().await;
        let (agent, request) = {
            let state = lock(&self.state);
            let agent = state.registry.find(name)?.clone();
            let request = request
                .or_else(|| Some(state.in_force.get(&agent.slot)?.request.clone()))
                .ok_or_else(|| RegistryError::Unknown(name.to_owned()))?;
            (agent, request)
        };
        let generation = self.generation.fetch_add(1, Ordering::Relaxed);
        let swapped = match self.compile(&request, generation).await {
            Ok((policy, table)) => match self.search_for(&policy, &request).await {
                Ok(searched) => {
                    let swapped = self.replace(&agent, request, &policy, &table, generation);
                    self.protect_swapped(&agent, swapped, searched)
                }
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        if swapped.is_ok() && self.store.is_some() {
            // No program sees the one before any more: after this its records are in the log.
            self.pump.drain().await;
            lock(&self.state).retired.clear();
            let generations = self.generations();
            self.recorder().judge().rings_were_read(&generations);
        }
        if let Err(error) = &swapped {
            let what = error.line();
            tracing::error!(
                "the policy of `{name}` was not replaced, the one before stays in force: {what}"
            );
            self.note(Record {
                agent: Some(Cow::Borrowed(name)),
                session: Some(agent.session),
                detail: Some(escape(what.as_bytes())),
                ..Record::new(op::POLICY_ERROR)
            });
        }
        swapped
    }

    /// What a policy needs before it can be in force.
    async fn search_for(
        self: &Arc<Self>,
        policy: &Arc<Policy>,
        request: &PolicyRequest,
    ) -> Result<Searched, SessionError> {
        self.prepare_limits(policy).await?;
        self.search_apart(policy, request).await
    }

    /// After a swap: the objects of the new policy. Where the kernel does not take them the new policy stands,
    /// and the log says that other names may lead round it.
    fn protect_swapped(
        &self,
        agent: &Agent,
        swapped: Result<AgentInfo, SessionError>,
        searched: Searched,
    ) -> Result<AgentInfo, SessionError> {
        let swapped = swapped?;
        warn_of_cuts(agent, &searched);
        if let Err(error) = self.protect(agent, searched) {
            let what = format!("not all objects of the new policy are protected: {error}");
            self.alarm(agent, &what);
        }
        Ok(swapped)
    }

    fn replace(
        &self,
        agent: &Agent,
        request: PolicyRequest,
        policy: &Arc<Policy>,
        table: &[u8],
        generation: u32,
    ) -> Result<AgentInfo, SessionError> {
        let generations = self.generations();
        self.recorder()
            .judge()
            .add(generation, policy.clone(), &generations);
        let next = InForce {
            request,
            policy: policy.clone(),
            generation,
        };
        let before = {
            let mut state = lock(&self.state);
            let before = state.in_force.insert(agent.slot, next);
            self.agents.send_replace(());
            state.retired.extend(before.as_ref().map(|it| Retired {
                generation: it.generation,
                policy: it.policy.clone(),
                vars: it.request.vars.clone(),
            }));
            before
        };
        // First on the disk, then in the kernel: a daemon that finds us dead installs it again.
        let installed = self.save().and_then(|()| {
            self.limit(agent, policy)?;
            let mut enforcer = lock(&self.enforcer);
            // What a name opened and is not permitted any more goes before the new policy comes.
            judge_openings(&mut **enforcer, agent, policy)?;
            Ok(enforcer.install(agent.slot, table)?)
        });
        if let Err(error) = installed {
            {
                let mut state = lock(&self.state);
                state.retired.pop();
                state
                    .in_force
                    .extend(before.clone().map(|before| (agent.slot, before)));
            }
            if let Some(before) = &before {
                self.limit_again(agent, &before.policy);
            }
            // The new policy may have opened something meanwhile.
            if let Some(before) = &before
                && let Err(error) =
                    judge_openings(&mut **lock(&self.enforcer), agent, &before.policy)
            {
                tracing::error!("`{}`: {error}", agent.name);
            }
            if let Err(error) = self.save() {
                tracing::error!("a daemon that starts now would install the new policy: {error}");
            }
            return Err(error);
        }
        self.note(about(agent, op::POLICY_INSTALL, policy, generation));
        self.serve_names_again(agent, policy);
        if let Some(watcher) = &*lock(&self.watcher) {
            watch(watcher, policy);
        }
        let state = lock(&self.state);
        self.info(&state, agent.slot)
            .ok_or_else(|| RegistryError::Unknown(agent.name.to_string()).into())
    }

    /// Reads the policies again of all agents, or of those to which one of the files belongs.
    /// Gives for each agent what came of it.
    pub async fn reload(
        self: &Arc<Self>,
        files: Option<&HashSet<PathBuf>>,
    ) -> Vec<(String, Result<AgentInfo, SessionError>)> {
        let names: Vec<String> = {
            let state = lock(&self.state);
            let concerned = |agent: &&Agent| {
                files.is_none_or(|files| {
                    let in_force = state.in_force.get(&agent.slot);
                    in_force
                        .is_some_and(|it| it.policy.files().iter().any(|file| files.contains(file)))
                })
            };
            state
                .registry
                .iter()
                .filter(concerned)
                .map(|agent| agent.name.to_string())
                .collect()
        };
        let mut outcomes = Vec::new();
        for name in names {
            let outcome = self.swap(&name, None).await;
            outcomes.push((name, outcome));
        }
        outcomes
    }
}
