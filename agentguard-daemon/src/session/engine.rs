//! The engine: owns the kernel programs, the agents, their policies and the audit trail.
//!
//! Operations on agents run one at a time.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::approvals::Desk;
use super::limits::Limits;
use super::pump::Well;
use super::scout::Scout;
use super::store::{self, Generation, Saved, SavedAgent, Store};
use super::{
    AgentInfo, Enforcer, EngineOptions, Guardian, Leave, PolicyRequest, Pump, SessionError,
    Watcher, Webhook, canary,
};
use crate::agent::{Agent, Cgroup, Hierarchy, Name, Registry};
use crate::audit::{Left, Log, LogError, Record, Recorder, key::Key, record::op};
use crate::event::escape::escape;
use crate::export::{SinkError, SinkState, Sinks};
use crate::gateway::GatewayConfig;
use crate::kernel::{Guard, GuardOptions, Origin};
use crate::metrics::{Growth, Process, Pushes};
use crate::policy::{Mode, Policy};
use crate::resolver::Resolver;

/// How long a cgroup may take to freeze or thaw.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// A policy that decides about an agent.
#[derive(Clone)]
pub(super) struct InForce {
    pub(super) request: PolicyRequest,
    pub(super) policy: Arc<Policy>,
    pub(super) generation: u32,
}

/// A policy that was replaced, and whose records may not be in the log yet.
pub(super) struct Retired {
    pub(super) generation: u32,
    pub(super) policy: Arc<Policy>,
    pub(super) vars: BTreeMap<String, String>,
}

/// Agents and what is in force for each.
#[derive(Default)]
pub(super) struct State {
    pub(super) registry: Registry,
    pub(super) in_force: BTreeMap<u32, InForce>,
    pub(super) retired: Vec<Retired>,
    /// Slots of agents that stand still for the length of an upgrade.
    pub(super) frozen_for_upgrade: Vec<u32>,
}

/// See the module.
pub struct Engine {
    pub(super) enforcer: Arc<Mutex<Box<dyn Enforcer>>>,
    pub(super) recorder: Arc<Mutex<Recorder>>,
    pub(super) state: Mutex<State>,
    /// Held over each operation on agents.
    pub(super) one_at_a_time: tokio::sync::Mutex<()>,
    pub(super) generation: AtomicU32,
    pub(super) hierarchy: Hierarchy,
    pub(super) guardian: Option<Mutex<Guardian>>,
    pub(super) watcher: Mutex<Option<Watcher>>,
    pub(super) scout: Mutex<Option<Scout>>,
    pub(super) pump: Pump,
    pub(super) search: Vec<PathBuf>,
    /// What no policy permits.
    pub(super) own: Vec<PathBuf>,
    pub(super) sessions: PathBuf,
    /// Only an engine whose enforcement outlives it has one.
    pub(super) store: Option<Mutex<Store>>,
    /// Sessions that end with somebody who is there.
    pub(super) owners: Mutex<HashSet<u32>>,
    pub(super) limits: Limits,
    pub(super) desk: Desk,
    /// Resolves names for agents whose policy has rules about them.
    pub(super) resolver: OnceLock<Resolver>,
    /// Who gets the records, where a daemon sends them.
    pub(super) sinks: OnceLock<Arc<Sinks>>,
    /// Who is asked about what waits, besides operators.
    pub(super) webhook: OnceLock<Arc<Webhook>>,
    /// What agents exchanged, over all their sessions.
    pub(super) growth: Mutex<Growth>,
    /// What became of pushes of metrics.
    pub(super) pushes: Arc<Pushes>,
    /// Told when an agent came, or has another policy.
    pub(super) agents: tokio::sync::watch::Sender<()>,
    /// When the machine was; what the kernel counts is not older.
    pub(super) booted: SystemTime,
    pub(super) started: SystemTime,
    pub(super) began: Instant,
}

/// What an engine is made of.
pub(super) struct Parts {
    pub enforcer: Arc<Mutex<Box<dyn Enforcer>>>,
    pub recorder: Arc<Mutex<Recorder>>,
    pub hierarchy: Hierarchy,
    pub guardian: Option<Guardian>,
    pub pump: Pump,
    pub search: Vec<PathBuf>,
    pub own: Vec<PathBuf>,
    pub state: PathBuf,
    pub store: Option<Store>,
    pub gateway: GatewayConfig,
}

pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Takes the kernel's enforcement over or loads it, opens the log, and passes the self-test. Needs a tokio
    /// runtime.
    pub async fn start(options: &EngineOptions) -> Result<Arc<Self>, SessionError> {
        let guard_options = GuardOptions {
            btf: options.btf.clone(),
            log: false,
            loaded: options.loaded,
        };
        let hierarchy = Hierarchy::find()?;
        let Some(pins) = &options.pins else {
            let guard = Guard::load(&guard_options)?;
            return Self::begin(options, hierarchy, guard, Origin::Fresh).await;
        };
        let (guard, origin) = Guard::pinned(&guard_options, pins)?;
        let begun = Self::begin(options, hierarchy, guard, origin).await;
        if let Err(error) = &begun
            && origin == Origin::Fresh
            && store::Store::at(&options.state)
                .load()
                .is_ok_and(|saved| saved.is_none_or(|saved| saved.agents.is_empty()))
        {
            tracing::debug!("nothing is governed, and nothing stays pinned: {error}");
            pins.clear()?;
        }
        begun
    }

    async fn begin(
        options: &EngineOptions,
        hierarchy: Hierarchy,
        mut guard: Guard,
        origin: Origin,
    ) -> Result<Arc<Self>, SessionError> {
        let (rings, losses, journal) = (guard.rings()?, guard.losses()?, guard.journal());
        let unfinished = journal
            .as_ref()
            .and_then(|journal| journal.read().ok())
            .filter(|entry| entry.batch.open != 0)
            .map_or(0..0, |entry| entry.batch.first..entry.batch.end);
        let (key, made) = Key::of_state(&options.state).map_err(LogError::from)?;
        if made {
            let public = key.public();
            tracing::info!(
                "a key for the audit trail was made: {} (ed25519 {}); `agentguard audit key` shows it again",
                public.id(),
                public.hex()
            );
        }
        let log = Log::open_staged(
            &options.log,
            options.stage.as_deref(),
            unfinished,
            options.keeping.clone(),
            Some(key),
        )?;
        let mut recorder = Recorder::new(log, losses);
        recorder.judge().set_names(guard.names());
        let recorder = Arc::new(Mutex::new(recorder));
        let enforcer: Arc<Mutex<Box<dyn Enforcer>>> = Arc::new(Mutex::new(Box::new(guard)));
        let (pump, asked) = Pump::new();
        let is_pinned = journal.is_some();
        let mut well = Well::new(rings, recorder.clone(), enforcer.clone(), journal);
        let engine = Arc::new(Self::assemble(Parts {
            enforcer,
            recorder,
            hierarchy,
            guardian: (!is_pinned).then(Guardian::start).transpose()?,
            pump,
            search: options.search.clone(),
            own: options.own(),
            state: options.state.clone(),
            store: is_pinned.then(|| Store::at(&options.state)),
            gateway: options.gateway.clone(),
        }));
        // The order counts: records of the one before us need its agents, and come before our own lines.
        let notes = engine.restore()?;
        engine.make_resolver(options.servers.clone());
        engine.serve_restored();
        engine.watch_networks();
        well.recover()?;
        if origin == Origin::Upgraded {
            engine.upgrade()?;
        }
        engine.note_start(origin);
        engine.tell(notes);
        let agents = engine.list().len();
        if origin == Origin::Fresh && agents > 0 {
            let what = format!(
                "the pinned enforcement was removed while no daemon ran: {agents} agents were ungoverned until now"
            );
            tracing::error!("ALARM: {what}");
            engine.note(Record {
                detail: Some(what.into()),
                ..Record::new(op::ALARM)
            });
        }
        well.start(asked);
        engine.pump.drain().await;
        lock(&engine.state).retired.clear();
        let generations = engine.generations();
        engine.recorder().judge().rings_were_read(&generations);
        if options.self_test {
            canary::sing(&engine).await?;
            engine.refresh().await;
            engine.await_owners();
            engine.keep_time().await;
        }
        Ok(engine)
    }

    fn note_start(&self, origin: Origin) {
        let kernel = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        let version = env!("CARGO_PKG_VERSION");
        let mut detail = format!(
            "AgentGuard {version} on Linux {kernel}; enforcement {}",
            origin.name()
        );
        if self.store.is_some() {
            let agents = lock(&self.state).registry.iter().count();
            detail = format!("{detail}, pinned, {agents} agents");
        }
        if matches!(origin, Origin::Fresh)
            && let Some(Left { seq, time }) = lock(&self.recorder).log().left()
        {
            detail = format!(
                "{detail}; whoever wrote before did not stop: what came after record {seq} of {time}, and was not on the disk, is missing"
            );
        }
        self.note(Record {
            detail: Some(detail.into()),
            ..Record::new(op::START)
        });
    }

    pub(super) fn assemble(parts: Parts) -> Self {
        // Only what is pinned has agents that outlive it, and need the same port again.
        let limits = Limits::new(parts.state.clone(), parts.gateway, parts.store.is_none());
        let desk = Desk::new(&parts.state, parts.store.is_some());
        lock(&parts.recorder)
            .judge()
            .set_approvals(desk.book().clone());
        Self {
            enforcer: parts.enforcer,
            recorder: parts.recorder,
            state: Mutex::default(),
            one_at_a_time: tokio::sync::Mutex::new(()),
            generation: AtomicU32::new(1),
            hierarchy: parts.hierarchy,
            guardian: parts.guardian.map(Mutex::new),
            watcher: Mutex::new(None),
            scout: Mutex::new(None),
            pump: parts.pump,
            search: parts.search,
            own: parts.own,
            sessions: parts.state.join("session"),
            store: parts.store.map(Mutex::new),
            owners: Mutex::default(),
            limits,
            desk,
            resolver: OnceLock::new(),
            sinks: OnceLock::new(),
            webhook: OnceLock::new(),
            growth: Mutex::default(),
            agents: tokio::sync::watch::Sender::new(()),
            pushes: Arc::default(),
            booted: Process::booted(),
            started: SystemTime::now(),
            began: Instant::now(),
        }
    }

    /// Writes down who is governed by what. Before the kernel is told of an agent, and after it let go of one.
    pub(super) fn save(&self) -> Result<(), SessionError> {
        let Some(store) = &self.store else {
            return Ok(());
        };
        let state = lock(&self.state);
        let retired = state.retired.iter();
        let saved = Saved {
            boot: store::boot(),
            next_generation: self.generation.load(Ordering::Relaxed),
            last_slot: state.registry.last_slot(),
            agents: state
                .registry
                .iter()
                .filter_map(|agent| saved(agent, state.in_force.get(&agent.slot)?).into())
                .collect(),
            retired: retired.clone().map(|it| it.generation).collect(),
            frozen_for_upgrade: state.frozen_for_upgrade.clone(),
            ..Saved::default()
        };
        let in_force = state.in_force.values();
        let generations: Vec<Generation<'_>> = in_force
            .map(|it| (it.generation, &it.policy, &it.request.vars))
            .chain(retired.map(|it| (it.generation, &it.policy, &it.vars)))
            .collect();
        lock(store).save(&saved, &generations)
    }

    /// Puts an agent on the list.
    pub(super) fn enlist(&self, agent: Agent, in_force: InForce) {
        let mut state = lock(&self.state);
        state.in_force.insert(agent.slot, in_force);
        state.registry.add(agent);
        self.agents.send_replace(());
    }

    /// Takes an agent from the list; the kernel must know it no more.
    pub(super) fn strike(&self, slot: u32) {
        {
            let mut state = lock(&self.state);
            state.registry.remove(slot);
            state.in_force.remove(&slot);
        }
        if let Err(error) = self.save() {
            tracing::error!("a daemon that starts now would govern it again: {error}");
        }
    }

    /// From now on a change of a policy file is a swap, and changes of protected files are seen.
    pub fn watch_files(self: &Arc<Self>) -> Result<(), SessionError> {
        let engine = Arc::downgrade(self);
        let runtime = tokio::runtime::Handle::current();
        let watcher = Watcher::start(move |files| {
            if let Some(engine) = engine.upgrade() {
                runtime.block_on(engine.reload(Some(&files)));
            }
        })
        .map_err(|source| SessionError::Spawn {
            what: "the watch on policy files",
            source,
        })?;
        for in_force in lock(&self.state).in_force.values() {
            watch(&watcher, &in_force.policy);
        }
        *lock(&self.watcher) = Some(watcher);
        self.watch_objects()
    }

    /// The audit trail.
    pub fn recorder(&self) -> MutexGuard<'_, Recorder> {
        lock(&self.recorder)
    }

    /// Keeps the sinks that records are sent to, so that they can be asked about.
    pub fn send_to(&self, sinks: Sinks) -> Arc<Sinks> {
        self.sinks.get_or_init(|| Arc::new(sinks)).clone()
    }

    /// What the sinks are doing.
    pub fn sinks(&self) -> Vec<SinkState> {
        self.sinks
            .get()
            .map(|sinks| sinks.states())
            .unwrap_or_default()
    }

    /// Has a sink leave out the record that its receiver does not take. It is recorded before it is done.
    pub async fn skip_record(
        &self,
        sink: &str,
        record: u64,
        by: &str,
    ) -> Result<SinkState, SessionError> {
        let sinks = self.sink(sink)?;
        let state = sinks.refuses(sink, record)?;
        let said = |detail: String| {
            self.note(Record {
                target: Some(escape(sink.as_bytes()).into_owned().into()),
                detail: Some(escape(detail.as_bytes()).into_owned().into()),
                ..Record::new(op::SINK)
            });
        };
        let why = state.last_error.unwrap_or_default();
        let why = why.split(':').next().unwrap_or_default();
        said(format!("record {record} is left out by {by}: {why}"));
        let skipped = sinks.skip(sink, record).await;
        if let Err(error) = &skipped {
            said(format!("record {record} is not left out: {error}"));
        }
        Ok(skipped?)
    }

    /// Has a sink try again at once.
    pub async fn retry_sink(&self, sink: &str) -> Result<SinkState, SessionError> {
        Ok(self.sink(sink)?.retry(sink).await?)
    }

    fn sink(&self, name: &str) -> Result<&Sinks, SinkError> {
        let sinks = self.sinks.get();
        let sinks = sinks.ok_or_else(|| SinkError::Unknown(name.to_owned()))?;
        Ok(sinks)
    }

    /// The reader of the kernel's rings.
    pub fn pump(&self) -> &Pump {
        &self.pump
    }

    /// The cgroups.
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    pub(super) fn note(&self, record: Record<'_>) {
        let mut recorder = self.recorder();
        recorder.note(record);
        recorder.flush();
    }

    /// All agents.
    pub fn list(&self) -> Vec<AgentInfo> {
        let state = lock(&self.state);
        state
            .registry
            .iter()
            .filter_map(|agent| self.info(&state, agent.slot))
            .collect()
    }

    /// The agent that a cgroup belongs to, with its session.
    pub fn agent_of_cgroup(&self, path: &Path) -> Option<(String, u32)> {
        let state = lock(&self.state);
        state
            .registry
            .of_cgroup(path)
            .map(|agent| (agent.name.to_string(), agent.session))
    }

    /// The agent of a session.
    pub fn agent_of_session(&self, session: u32) -> Option<String> {
        let state = lock(&self.state);
        let agent = state
            .registry
            .iter()
            .find(|agent| agent.session == session)?;
        Some(agent.name.to_string())
    }

    /// Stops every process of an agent where it is.
    pub fn freeze(&self, name: &str) -> Result<(), SessionError> {
        self.act(name, op::FREEZE, |cgroup| cgroup.freeze(PATIENCE))
    }

    /// Lets a frozen agent go on.
    pub fn thaw(&self, name: &str) -> Result<(), SessionError> {
        self.act(name, op::THAW, |cgroup| cgroup.thaw(PATIENCE))
    }

    /// Kills every process of an agent.
    pub fn kill(&self, name: &str) -> Result<(), SessionError> {
        self.act(name, op::KILL, Cgroup::kill)
    }

    fn act(
        &self,
        name: &str,
        op: &'static str,
        act: impl FnOnce(&Cgroup) -> Result<(), crate::agent::CgroupError>,
    ) -> Result<(), SessionError> {
        let agent = lock(&self.state).registry.find(name)?.clone();
        act(&agent.cgroup)?;
        self.note(Record {
            agent: Some(Cow::Borrowed(name)),
            session: Some(agent.session),
            target: Some(escape_path(agent.cgroup.path())),
            ..Record::new(op)
        });
        Ok(())
    }

    /// Returns when nothing runs in an agent's cgroup.
    pub fn wait_empty(&self, name: &Name, timeout: Duration) -> Result<(), SessionError> {
        let agent = lock(&self.state).registry.find(name.as_str())?.clone();
        Ok(agent.cgroup.wait_empty(timeout)?)
    }

    /// The end of this engine, and of its agents if it says so; the log is closed.
    pub async fn stop(self: &Arc<Self>, leave: Leave) {
        for agent in self.list() {
            let outcome = match leave {
                Leave::Keep => Ok(()),
                Leave::Freeze => self.freeze(&agent.name),
                Leave::Release => self.detach(&agent.name).await.map(|_| ()),
                Leave::Kill => match self.kill(&agent.name) {
                    Ok(()) => self.end(&agent.name, agent.session).await.map(|_| ()),
                    error => error,
                },
            };
            if let Err(error) = outcome {
                tracing::error!("failed to take leave of `{}`: {error}", agent.name);
            }
        }
        self.close_limits().await;
        self.pump.drain().await;
        let left = self.list().len();
        let detail = self
            .store
            .is_some()
            .then(|| format!("enforcement stays pinned, {left} agents are governed"));
        self.recorder().note(Record {
            detail: detail.map(Cow::Owned),
            ..Record::new(op::STOP)
        });
        self.on_disk().await;
    }

    /// Signs what was recorded, and returns when the disk has it, or cannot have it. Others record meanwhile.
    pub(super) async fn on_disk(&self) {
        self.recorder().sync();
        loop {
            let waiter = self.recorder().log().waiter();
            match tokio::task::spawn_blocking(move || waiter.wait()).await {
                Ok(Ok(())) => {}
                // The writer has told it.
                Ok(Err(_)) => return,
                Err(error) => tracing::error!("failed to wait for the disk: {error}"),
            }
            // What had no room has it now.
            let mut recorder = self.recorder();
            recorder.flush();
            if !recorder.has_waiting() {
                recorder.tell();
                return;
            }
        }
    }

    pub(super) fn generations(&self) -> Vec<u32> {
        lock(&self.state)
            .in_force
            .values()
            .map(|it| it.generation)
            .collect()
    }

    pub(super) fn info(&self, state: &State, slot: u32) -> Option<AgentInfo> {
        let agent = state.registry.iter().find(|agent| agent.slot == slot)?;
        let in_force = state.in_force.get(&slot)?;
        Some(AgentInfo {
            name: agent.name.to_string(),
            session: agent.session,
            policy: in_force.policy.name().to_owned(),
            mode: mode_name(in_force.policy.mode()).to_owned(),
            generation: in_force.generation,
            files: in_force.policy.files().to_vec(),
            cgroup: agent.cgroup.path().to_owned(),
            processes: agent.cgroup.processes().map_or(0, |pids| pids.len()),
            frozen: agent.cgroup.is_frozen(),
            since: agent
                .since
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            tally: self.recorder().tally(agent.session),
            budget: self.nearest(agent, &in_force.policy),
            environment: self.environment_of(&in_force.policy),
        })
    }
}

/// An agent as it is written down.
fn saved(agent: &Agent, in_force: &InForce) -> SavedAgent {
    let since = agent.since.duration_since(SystemTime::UNIX_EPOCH);
    SavedAgent {
        name: agent.name.clone(),
        slot: agent.slot,
        session: agent.session,
        cgroup: agent.cgroup.path().to_owned(),
        cgroup_id: agent.cgroup_id,
        owns_cgroup: agent.owns_cgroup,
        came_from: agent.came_from.clone(),
        since: since.map_or(0, |since| since.as_millis() as u64),
        owned: agent.owned,
        account: Some(agent.account.clone()),
        request: in_force.request.clone(),
        generation: in_force.generation,
    }
}

pub(super) fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Shadow => "shadow",
    }
}

pub(super) fn watch(watcher: &Watcher, policy: &Policy) {
    for file in policy.files() {
        if let Err(error) = watcher.add(file) {
            tracing::error!("changes of {} will not be seen: {error}", file.display());
        }
    }
}

pub(super) fn escape_path(path: &Path) -> Cow<'_, str> {
    use std::os::unix::ffi::OsStrExt;
    escape(path.as_os_str().as_bytes())
}

/// A record about an agent and its policy.
pub(super) fn about<'a>(
    agent: &'a Agent,
    op: &'a str,
    policy: &'a Policy,
    generation: u32,
) -> Record<'a> {
    let files: Vec<_> = policy
        .files()
        .iter()
        .map(|file| escape_path(file))
        .collect();
    let detail = match files.as_slice() {
        [] => format!("mode {}; built in", mode_name(policy.mode())),
        files => format!("mode {}; {}", mode_name(policy.mode()), files.join(", ")),
    };
    Record {
        agent: Some(Cow::Borrowed(agent.name.as_str())),
        session: Some(agent.session),
        policy: Some(escape(policy.name().as_bytes())),
        generation: Some(generation),
        detail: Some(detail.into()),
        ..Record::new(op)
    }
}
