//! Budgets, schedules and the model gateway of this engine's agents.
//!
//! The ledger is opened, and the gateway started, when the first policy needs them. `timekeeper.rs` holds what
//! passes with time, `charges.rs` what kernel programs charge.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use tokio::sync::{Notify, mpsc};

use super::charges::Told;
use super::engine::{Engine, lock};
use super::{Nearest, PolicyRequest, SessionError};
use crate::agent::Agent;
use crate::audit::{Record, record::op};
use crate::budget::{AccountStatus, Event, HostClock, LEDGER, Ledger, StateError};
use crate::event::escape::escape;
use crate::gateway::{Caller, Gateway, GatewayConfig, Host};
use crate::policy::Policy;
use crate::policy::limits::{Budget, Schedule, parse_amount};

/// What an engine has of them.
pub(super) struct Limits {
    folder: PathBuf,
    config: GatewayConfig,
    /// This engine lives no longer than its one agent: its gateway listens at any free port.
    one_run: bool,
    pub(super) ledger: OnceLock<Arc<Ledger>>,
    gateway: tokio::sync::Mutex<Option<Arc<Gateway>>>,
    /// For those who only look.
    pub(super) running: Mutex<Option<Arc<Gateway>>>,
    pub(super) alert: Arc<Notify>,
    /// By agent slot.
    pub(super) told: Mutex<BTreeMap<u32, Told>>,
    events: mpsc::UnboundedSender<Event>,
    pub(super) listener: Mutex<Option<mpsc::UnboundedReceiver<Event>>>,
}

impl Limits {
    pub(super) fn new(folder: PathBuf, config: GatewayConfig, one_run: bool) -> Self {
        let (events, listener) = mpsc::unbounded_channel();
        Self {
            folder,
            config,
            one_run,
            ledger: OnceLock::new(),
            gateway: tokio::sync::Mutex::default(),
            running: Mutex::default(),
            alert: Arc::default(),
            told: Mutex::default(),
            events,
            listener: Mutex::new(Some(listener)),
        }
    }
}

/// The gateway's view of an engine.
struct Agents {
    engine: Weak<Engine>,
    alert: Arc<Notify>,
}

impl Host for Agents {
    fn agent_of(&self, cgroup: u64) -> Option<Caller> {
        self.engine.upgrade()?.caller(cgroup)
    }

    fn record(&self, record: Record<'_>, refused: bool) {
        let Some(engine) = self.engine.upgrade() else {
            return;
        };
        let mut recorder = engine.recorder();
        if refused {
            recorder.decided(record);
        } else {
            recorder.note(record);
        }
        recorder.flush();
    }

    fn alert(&self) {
        self.alert.notify_one();
    }
}

impl Engine {
    /// The agent to which a cgroup belongs: its own, or one below it.
    fn caller(&self, cgroup: u64) -> Option<Caller> {
        let limited = self.limited();
        let own = limited.iter().find(|(agent, _)| agent.cgroup_id == cgroup);
        let below = |(agent, _): &&(Agent, Arc<Policy>)| {
            agent.cgroup.ids().is_ok_and(|ids| ids.contains(&cgroup))
        };
        let (agent, policy) = own.or_else(|| limited.iter().find(below))?;
        Some(Caller {
            name: agent.name.to_string(),
            account: agent.account.to_string(),
            session: agent.session,
            policy: policy.clone(),
        })
    }

    /// The ledger, opened when it is first needed.
    pub(super) fn ledger(&self) -> &Arc<Ledger> {
        self.limits.ledger.get_or_init(|| {
            let events = self.limits.events.clone();
            let mut ledger = Ledger::open(&self.limits.folder, Box::new(HostClock), events.clone());
            if self.limits.one_run && matches!(ledger.broken(), Some(StateError::Busy(_))) {
                ledger = Ledger::for_one_run(&self.limits.folder, Box::new(HostClock), events);
            }
            let agents: Vec<Agent> = lock(&self.state).registry.iter().cloned().collect();
            let accounts: Vec<&str> = agents.iter().map(|it| it.account.as_str()).collect();
            ledger.adopt(&accounts, |number| self.meter(number));
            let live: Vec<u32> = agents.iter().map(|it| it.session).collect();
            ledger.keep_sessions(&live);
            if let Some(error) = ledger.broken() {
                tracing::error!("{error}");
            }
            ledger
        })
    }

    /// What a policy needs before it can be in force. Without it, it is refused.
    pub(super) async fn prepare_limits(
        self: &Arc<Self>,
        policy: &Policy,
    ) -> Result<(), SessionError> {
        let limits = policy.limits();
        if limits.is_empty() {
            return Ok(());
        }
        let ledger = self.ledger();
        if let Some(error) = ledger.broken() {
            return Err(error.into());
        }
        if !ledger.keeps() && !limits.budgets.iter().all(Budget::is_of_now) {
            return Err(StateError::Busy(self.limits.folder.join(LEDGER)).into());
        }
        if limits.models.is_some() {
            let gateway = self.gateway().await?;
            for what in gateway.lacks(policy) {
                tracing::warn!(
                    "calls of models will fail under `{}`: {what}",
                    policy.name()
                );
            }
        }
        Ok(())
    }

    /// The gateway, started when it is first needed.
    async fn gateway(self: &Arc<Self>) -> Result<Arc<Gateway>, SessionError> {
        let mut slot = self.limits.gateway.lock().await;
        if let Some(gateway) = &*slot {
            return Ok(gateway.clone());
        }
        let host = Agents {
            engine: Arc::downgrade(self),
            alert: self.limits.alert.clone(),
        };
        let config = self.limits.config.clone();
        let ledger = self.ledger().clone();
        let gateway = Gateway::start(config, self.limits.one_run, ledger, Arc::new(host)).await?;
        let gateway = Arc::new(gateway);
        tracing::info!("the model gateway listens at {}", gateway.address());
        *lock(&self.limits.running) = Some(gateway.clone());
        *slot = Some(gateway.clone());
        Ok(gateway)
    }

    /// The variables that lead an agent of this policy to the gateway. Starts it where the policy needs it.
    pub async fn environment(
        self: &Arc<Self>,
        request: &PolicyRequest,
    ) -> Result<Vec<(String, String)>, SessionError> {
        let (request, search, own) = (request.clone(), self.search.clone(), self.own.clone());
        let mut vars = request.vars.clone();
        crate::policy::places::resolve(&mut vars)?;
        let work = move || PolicyRequest { vars, ..request }.load(&search, &own);
        let policy = tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|error| {
                Err(SessionError::Spawn {
                    what: "the reading of the policy",
                    source: std::io::Error::other(error),
                })
            })?;
        self.prepare_limits(&policy).await?;
        Ok(self.environment_of(&policy))
    }

    /// The same for a policy in force, if the gateway runs.
    pub(super) fn environment_of(&self, policy: &Policy) -> Vec<(String, String)> {
        lock(&self.limits.running)
            .as_ref()
            .map(|gateway| gateway.environment(policy))
            .unwrap_or_default()
    }

    /// Agents with something to hold.
    pub(super) fn limited(&self) -> Vec<(Agent, Arc<Policy>)> {
        let state = lock(&self.state);
        let pairs = state.registry.iter().filter_map(|agent| {
            let policy = state.in_force.get(&agent.slot)?.policy.clone();
            (!policy.limits().is_empty()).then(|| (agent.clone(), policy))
        });
        pairs.collect()
    }

    pub(super) fn note_of(
        &self,
        agent: &Agent,
        op: &'static str,
        budget: Option<&str>,
        reason: Option<&str>,
        what: &str,
    ) {
        tracing::warn!("`{}`: {what}", agent.name);
        self.note(Record {
            agent: Some(Cow::Borrowed(agent.name.as_str())),
            session: Some(agent.session),
            rule: budget.map(|it| escape(it.as_bytes())),
            reason: reason.map(|it| escape(it.as_bytes())),
            detail: Some(escape(what.as_bytes())),
            ..Record::new(op)
        });
    }

    /// An agent is gone: what was counted for its session goes too.
    pub(super) fn end_limits(&self, agent: &Agent) {
        if let Some(ledger) = self.limits.ledger.get() {
            self.end_charges(agent);
            ledger.end_session(agent.account.as_str(), agent.session);
        }
    }

    /// The end of this engine: what is spent is exact for the next.
    pub(super) async fn close_limits(&self) {
        self.take_all_counts();
        *lock(&self.limits.running) = None;
        self.limits.gateway.lock().await.take();
        if let Some(ledger) = self.limits.ledger.get()
            && let Err(error) = ledger.close()
        {
            tracing::error!("{error}");
        }
    }

    /// Where the budgets of agents stand: of one, or of all that have some.
    pub fn budgets(&self, name: Option<&str>) -> Result<Vec<AccountStatus>, SessionError> {
        if let Some(name) = name {
            lock(&self.state).registry.find(name)?;
        }
        self.take_all_counts();
        let limited = self.limited();
        let wanted = limited
            .iter()
            .filter(|(agent, _)| name.is_none_or(|name| agent.name.as_str() == name));
        let status = |(agent, policy): &(Agent, Arc<Policy>)| AccountStatus {
            agent: agent.name.to_string(),
            account: agent.account.to_string(),
            session: agent.session,
            frozen: agent.cgroup.is_frozen(),
            budgets: self.ledger().report(
                agent.account.as_str(),
                agent.session,
                &policy.limits().budgets,
            ),
            schedule: policy
                .limits()
                .schedules
                .iter()
                .map(Schedule::text)
                .collect(),
            broken: self.ledger().broken().map(|it| it.to_string()),
        };
        Ok(wanted.map(status).collect())
    }

    /// The budget of an agent that is nearest to its end; none where it has none, or nobody opened the ledger.
    pub(super) fn nearest(&self, agent: &Agent, policy: &Policy) -> Option<Nearest> {
        let ledger = self.limits.ledger.get()?;
        let budgets = &policy.limits().budgets;
        let status = ledger.report(agent.account.as_str(), agent.session, budgets);
        let most = status.into_iter().max_by_key(|it| it.percent)?;
        Some(Nearest {
            id: most.id,
            percent: most.percent,
        })
    }

    /// An operator gives more of a budget.
    pub fn grant(&self, name: &str, budget: &str, amount: &str) -> Result<(), SessionError> {
        let agent = lock(&self.state).registry.find(name)?.clone();
        let limited = self.limited();
        let policy = limited
            .iter()
            .find(|it| it.0.slot == agent.slot)
            .map(|it| it.1.clone());
        let budgets = policy.as_ref().map_or(&[][..], |it| &it.limits().budgets);
        let known = || {
            budgets
                .iter()
                .map(|it| it.id.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        let found = budgets.iter().find(|it| it.id == budget).ok_or_else(|| {
            SessionError::Budget(format!(
                "`{name}` has no budget `{}`; it has: {}",
                budget.escape_debug(),
                known()
            ))
        })?;
        let more = parse_amount(found.quantity, amount).map_err(SessionError::Budget)?;
        self.ledger()
            .grant(agent.account.as_str(), agent.session, found, more)?;
        self.charge_all();
        let what = format!("an operator granted {} more", found.quantity.text(more));
        self.note_of(&agent, op::BUDGET, Some(budget), None, &what);
        Ok(())
    }

    /// An operator forgets what was spent: of an agent or an account that had one, or of all.
    pub fn reset_budgets(&self, name: Option<&str>) -> Result<(), SessionError> {
        let account = name.map(|name| {
            let state = lock(&self.state);
            let agent = state.registry.find(name).map(|it| it.account.to_string());
            agent.unwrap_or_else(|_| name.to_owned())
        });
        self.ledger().reset(account.as_deref())?;
        self.charge_all();
        let what = match &account {
            Some(account) => format!("an operator reset the account `{}`", account.escape_debug()),
            None => "an operator reset all accounts".to_owned(),
        };
        tracing::warn!("{what}");
        self.note(Record {
            agent: name.map(|it| escape(it.as_bytes())),
            detail: Some(escape(what.as_bytes())),
            ..Record::new(op::BUDGET)
        });
        Ok(())
    }

    /// An operator says that the clock is right.
    pub fn believe_clock(&self) -> Result<(), SessionError> {
        self.ledger().believe_clock()?;
        self.note(Record {
            detail: Some("an operator said that the clock is right".into()),
            ..Record::new(op::BUDGET)
        });
        Ok(())
    }
}
