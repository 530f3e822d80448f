//! Names and agents: what the resolver asks of policies and the kernel, and when it listens for whom.
//!
//! An agent whose policy has rules by name has a listener in its own network, and the kernel sends its questions
//! there. It must never give an address that the kernel has not opened, nor judge by another policy than the one
//! that is in force.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use agentguard_common::verdict::{Reason, Verdict};

use super::engine::{Engine, lock};
use super::{Enforcer, SessionError, Target};
use crate::agent::Agent;
use crate::audit::{Record, record::op};
use crate::event::escape::escape;
use crate::kernel::{self, KernelError, Ports, ResolverPlace};
use crate::policy::names::Grant;
use crate::policy::{Mode, Policy};
use crate::resolver::{
    AddressVerdict, Asker, Gate, Judged, Limits, NetPlace, Opening, Refusal, Resolution, Resolver,
    Servers, special,
};

/// How often it is looked whether agents are in another network by now.
const LOOK: Duration = Duration::from_secs(1);

/// The engine, as the resolver sees it.
pub(super) struct EngineGate(Weak<Engine>);

/// Policy in force of an agent.
struct Force {
    agent: String,
    policy: Arc<Policy>,
    generation: u32,
}

impl EngineGate {
    fn force(&self, asker: Asker) -> Option<Force> {
        self.0.upgrade()?.force(asker)
    }
}

/// Nobody knows the agent: nothing is permitted.
fn unknown() -> Judged {
    Judged {
        verdict: Verdict::Deny,
        rule: None,
        reason: Some("the agent is not governed any more".into()),
        rule_at: None,
        grants: Arc::from([]),
        generation: 0,
    }
}

impl Gate for EngineGate {
    fn judge(&self, asker: Asker, name: &str) -> Judged {
        let Some(Force {
            policy, generation, ..
        }) = self.force(asker)
        else {
            return unknown();
        };
        let judged = policy.judge_name(name);
        let verdict = match judged.verdict {
            Verdict::Allow => Verdict::Allow,
            _ if policy.mode() == Mode::Shadow => Verdict::WouldDeny,
            _ => Verdict::Deny,
        };
        let rule = judged.rule.as_ref();
        Judged {
            verdict,
            reason: rule.and_then(|rule| rule.reason.as_deref()).map(Arc::from),
            rule_at: rule.map(|rule| format!("{}:{}", rule.file.display(), rule.line).into()),
            rule: rule.map(|rule| rule.id.as_str().into()),
            grants: judged.grants.into(),
            generation,
        }
    }

    fn address(
        &self,
        asker: Asker,
        _name: &str,
        judged: &Judged,
        address: IpAddr,
    ) -> AddressVerdict {
        let Some(Force { policy, .. }) = self.force(asker) else {
            return AddressVerdict::Withheld(Refusal {
                rule: None,
                reason: unknown().reason.unwrap_or_default(),
            });
        };
        let (verdict, rule) = policy.judge_answer(in_v6(address), &judged.grants);
        let refusal = match (verdict, rule) {
            (Verdict::Allow, _) => return AddressVerdict::Given,
            (Verdict::None, _) => match special(address) {
                None => return AddressVerdict::Given,
                Some(kind) => Refusal {
                    rule: None,
                    reason: format!(
                        "the name points to {address}, {}; permit the address in a rule of its own to give it",
                        kind.name()
                    )
                    .into(),
                },
            },
            (_, rule) => Refusal {
                reason: format!("the name points to {address}, which a rule denies").into(),
                rule: rule.map(|rule| rule.id.into()),
            },
        };
        if policy.mode() == Mode::Shadow {
            AddressVerdict::WouldWithhold(refusal)
        } else {
            AddressVerdict::Withheld(refusal)
        }
    }

    fn open(&self, asker: Asker, opening: &Opening<'_>) -> Result<(), String> {
        let engine = self.0.upgrade().ok_or("the daemon is ending")?;
        if opening.grants.is_empty() || special(opening.address).is_some() {
            // The policy's default permits every address, or the policy only watches. Or it is one of those that no
            // name may open: a rule permits it as an address, for the ports that the rule says and no others.
            return Ok(());
        }
        let now = kernel::boot_time().map_err(|error| error.to_string())?;
        let lifetime = u64::try_from(opening.lifetime.as_nanos()).unwrap_or(u64::MAX);
        let wanted = kernel::Opening {
            agent: asker.agent,
            session: asker.session,
            address: in_v6(opening.address),
            name: opening.name.to_owned(),
            deadline: now.saturating_add(lifetime),
            grants: for_kernel(opening.grants),
        };
        // A policy comes into force under this lock, and what is open is judged again before it does.
        let mut enforcer = lock(&engine.enforcer);
        match engine.force(asker) {
            Some(force) if force.generation == opening.generation => {}
            _ => return Err("another policy has come into force".to_owned()),
        }
        enforcer
            .open_address(&wanted)
            .map_err(|error| error.to_string())
    }

    fn record(&self, asker: Asker, resolution: &Resolution<'_>) {
        let Some(engine) = self.0.upgrade() else {
            return;
        };
        let known = engine.force(asker);
        let policy = known.as_ref().map(|force| &force.policy);
        let text = |text: &str| Cow::Owned(escape(text.as_bytes()).into_owned());
        let answers = resolution.answers.iter().map(|answer| text(answer));
        let record = Record {
            agent: known.as_ref().map(|known| text(&known.agent)),
            session: Some(asker.session),
            target: Some(text(resolution.name)),
            verdict: Some(resolution.verdict.name().into()),
            rule: resolution.rule.as_deref().map(text),
            reason: resolution.reason.as_deref().map(text).or_else(|| {
                (resolution.verdict == Verdict::Deny && resolution.cause == Reason::Default.name())
                    .then(|| "no rule permits this name".into())
            }),
            policy: policy.map(|policy| text(policy.name())),
            cause: Some(resolution.cause.into()),
            rule_at: resolution.rule_at.as_deref().map(text),
            protocol: Some(resolution.transport.into()),
            question: (!resolution.kind.is_empty()).then(|| text(resolution.kind)),
            answers: (!resolution.answers.is_empty()).then(|| answers.collect()),
            reply: Some(resolution.code.into()),
            generation: (resolution.generation != 0).then_some(resolution.generation),
            ..Record::new(op::RESOLVE)
        };
        engine.recorder().decided(record);
    }
}

/// Closes what names opened for an agent and a policy does not permit.
pub(super) fn judge_openings(
    enforcer: &mut dyn Enforcer,
    agent: &Agent,
    policy: &Policy,
) -> Result<(), KernelError> {
    enforcer.judge_addresses(agent.slot, policy.marks_of_names(), &mut |name| {
        for_kernel(&policy.judge_name(name).grants)
    })
}

/// What a policy grants, as the kernel is told.
fn for_kernel(grants: &[Grant]) -> Vec<Ports> {
    let ports = |it: &Grant| Ports {
        low: it.low,
        high: it.high,
        protocol: it.protocol,
        marks: it.marks,
    };
    grants.iter().map(ports).collect()
}

/// In the form that the kernel programs judge.
fn in_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn asker(agent: &Agent) -> Asker {
    Asker {
        agent: agent.slot,
        session: agent.session,
    }
}

/// Where an agent's processes are: the network of the one that is to be governed, of any in its cgroup, or, while
/// there is none, the host's.
fn place_of(agent: &Agent, target: Option<&Target>) -> std::io::Result<NetPlace> {
    let first = match target {
        Some(Target::Process(pid)) => Some(*pid),
        _ => agent
            .cgroup
            .processes()
            .ok()
            .and_then(|pids| pids.first().copied()),
    };
    match first.map(NetPlace::of_process) {
        Some(Ok(place)) => Ok(place),
        // It has ended meanwhile.
        Some(Err(_)) | None => NetPlace::own(),
    }
}

impl Engine {
    /// The policy that decides about an agent.
    fn force(&self, asker: Asker) -> Option<Force> {
        let state = lock(&self.state);
        let mut agents = state.registry.iter();
        let agent =
            agents.find(|agent| (agent.slot, agent.session) == (asker.agent, asker.session))?;
        let in_force = state.in_force.get(&asker.agent)?;
        Some(Force {
            agent: agent.name.to_string(),
            policy: in_force.policy.clone(),
            generation: in_force.generation,
        })
    }

    /// Makes the resolver. Nobody is served yet.
    pub(super) fn make_resolver(self: &Arc<Self>, servers: Servers) {
        let gate = Arc::new(EngineGate(Arc::downgrade(self)));
        let made = Resolver::new(gate, servers, Limits::default());
        // It is made once.
        let _ = self.resolver.set(made);
    }

    /// Listens for an agent if its policy has rules by name, and tells the kernel where; stops if it has none.
    pub(super) fn serve_names(
        &self,
        agent: &Agent,
        policy: &Policy,
        target: Option<&Target>,
    ) -> Result<(), SessionError> {
        let Some(resolver) = self.resolver.get() else {
            return Ok(());
        };
        let asker = asker(agent);
        if !policy.has_name_rules() {
            if !resolver.places(asker).is_empty() {
                self.redirect_no_more(agent)?;
                resolver.stop(asker);
            }
            return Ok(());
        }
        let failed = |source| SessionError::Spawn {
            what: "the agent's resolver",
            source,
        };
        let place = place_of(agent, target).map_err(failed)?;
        let before = lock(&self.enforcer).resolver_of(agent.slot)?;
        let before = before
            .filter(|it| it.session == agent.session)
            .map(|it| it.port);
        let port = resolver.serve(asker, &place, before).map_err(failed)?;
        let namespace = place.id().1 as u32;
        let at = ResolverPlace {
            session: agent.session,
            namespace,
            port,
        };
        lock(&self.enforcer).resolver_at(agent.slot, agent.cgroup.path(), Some(at))?;
        resolver.retain(asker, |id| id == place.id());
        Ok(())
    }

    /// Another policy is in force: listeners as it needs them, and what was open by names under its terms.
    pub(super) fn serve_names_again(&self, agent: &Agent, policy: &Policy) {
        if let Err(error) = self.serve_names(agent, policy, None) {
            self.complain(agent, &error);
        } else if let Some(resolver) = self.resolver.get() {
            resolver.judge_again(asker(agent));
        }
    }

    /// After a restart: listeners for all, at the ports that the kernel sends questions to.
    pub(super) fn serve_restored(&self) {
        for (agent, policy) in self.agents_with_names() {
            if let Err(error) = self.serve_names(&agent, &policy, None) {
                self.complain(&agent, &error);
            }
        }
    }

    /// An agent goes: nobody listens for it.
    pub(super) fn serve_no_more(&self, agent: &Agent) {
        let Some(resolver) = self.resolver.get() else {
            return;
        };
        let asker = asker(agent);
        if resolver.places(asker).is_empty() {
            return;
        }
        if let Err(error) = self.redirect_no_more(agent) {
            // Its questions go nowhere: that is for its processes to complain about, not for us to stay for.
            tracing::warn!("`{}`: {error}", agent.name);
        }
        resolver.stop(asker);
    }

    fn redirect_no_more(&self, agent: &Agent) -> Result<(), KernelError> {
        lock(&self.enforcer).resolver_at(agent.slot, agent.cgroup.path(), None)
    }

    fn complain(&self, agent: &Agent, error: &SessionError) {
        let what = format!("names are not resolved for it: {}", error.line());
        self.alarm(agent, &what);
    }

    fn agents_with_names(&self) -> Vec<(Agent, Arc<Policy>)> {
        let state = lock(&self.state);
        let with_policy = |agent: &Agent| {
            let policy = &state.in_force.get(&agent.slot)?.policy;
            policy
                .has_name_rules()
                .then(|| (agent.clone(), policy.clone()))
        };
        state.registry.iter().filter_map(with_policy).collect()
    }

    /// Agents that have come into another network since (a container whose cgroup was there first) get their
    /// listener there.
    pub(super) fn watch_networks(self: &Arc<Self>) {
        let (engine, mut agents) = (Arc::downgrade(self), self.agents.subscribe());
        tokio::spawn(async move {
            let mut said = std::collections::HashSet::new();
            loop {
                match engine.upgrade().map(|it| it.agents_with_names().is_empty()) {
                    Some(false) => tokio::time::sleep(LOOK).await,
                    Some(true) if agents.changed().await.is_ok() => continue,
                    _ => return,
                }
                let Some(engine) = engine.upgrade() else {
                    return;
                };
                let _alone = engine.one_at_a_time.lock().await;
                for (agent, policy) in engine.agents_with_names() {
                    let Some(resolver) = engine.resolver.get() else {
                        return;
                    };
                    let Ok(place) = place_of(&agent, None) else {
                        continue;
                    };
                    if agent.cgroup.is_empty()
                        || resolver.places(asker(&agent)).contains(&place.id())
                    {
                        continue;
                    }
                    if let Err(error) = engine.serve_names(&agent, &policy, None)
                        && said.insert(agent.session)
                    {
                        engine.complain(&agent, &error);
                    }
                }
            }
        });
    }
}
