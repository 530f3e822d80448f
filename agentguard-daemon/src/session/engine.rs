//! The engine: owns the kernel programs, the agents, their policies and the audit trail.
//!
//! Operations on agents run one at a time.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::{
    AgentInfo, Enforcer, EngineOptions, Guardian, GuardianAction, PolicyRequest, Pump,
    SessionError, Watcher, canary,
};
use crate::agent::{Agent, Cgroup, Hierarchy, Name, Registry};
use crate::audit::{Log, Record, Recorder, record::op};
use crate::event::escape::escape;
use crate::kernel::{Guard, GuardOptions};
use crate::policy::{Mode, Policy};

/// How long a cgroup may take to freeze or thaw.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// A policy that decides about an agent.
pub(super) struct InForce {
    pub(super) request: PolicyRequest,
    pub(super) policy: Arc<Policy>,
    pub(super) generation: u32,
}

/// Agents and what is in force for each.
#[derive(Default)]
pub(super) struct State {
    pub(super) registry: Registry,
    pub(super) in_force: BTreeMap<u32, InForce>,
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
    pub(super) pump: Pump,
    pub(super) search: Vec<PathBuf>,
    pub(super) sessions: PathBuf,
}

/// What an engine is made of.
pub(super) struct Parts {
    pub enforcer: Arc<Mutex<Box<dyn Enforcer>>>,
    pub recorder: Arc<Mutex<Recorder>>,
    pub hierarchy: Hierarchy,
    pub guardian: Option<Guardian>,
    pub pump: Pump,
    pub search: Vec<PathBuf>,
    pub sessions: PathBuf,
}

pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Loads the kernel programs, opens the log, and passes the self-test. Needs a tokio runtime.
    pub async fn start(options: &EngineOptions) -> Result<Arc<Self>, SessionError> {
        let guard_options = GuardOptions {
            btf: options.btf.clone(),
            log: false,
        };
        let hierarchy = Hierarchy::find()?;
        let mut guard = Guard::load(&guard_options)?;
        let rings = guard.rings()?;
        let losses = guard.losses()?;
        let recorder = Recorder::new(Log::open(&options.log)?, losses);
        let recorder = Arc::new(Mutex::new(recorder));
        let enforcer: Arc<Mutex<Box<dyn Enforcer>>> = Arc::new(Mutex::new(Box::new(guard)));
        let pump = Pump::start(rings, recorder.clone(), enforcer.clone());
        let engine = Arc::new(Self::assemble(Parts {
            enforcer,
            recorder,
            hierarchy,
            guardian: Some(Guardian::start()?),
            pump,
            search: options.search.clone(),
            sessions: options.state.join("session"),
        }));
        let kernel = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        let detail = format!("AgentGuard {} on Linux {kernel}", env!("CARGO_PKG_VERSION"));
        engine.note(Record {
            detail: Some(detail.into()),
            ..Record::new(op::START)
        });
        canary::sing(&engine).await?;
        Ok(engine)
    }

    pub(super) fn assemble(parts: Parts) -> Self {
        Self {
            enforcer: parts.enforcer,
            recorder: parts.recorder,
            state: Mutex::default(),
            one_at_a_time: tokio::sync::Mutex::new(()),
            generation: AtomicU32::new(1),
            hierarchy: parts.hierarchy,
            guardian: parts.guardian.map(Mutex::new),
            watcher: Mutex::new(None),
            pump: parts.pump,
            search: parts.search,
            sessions: parts.sessions,
        }
    }

    /// From now on a change of a policy file is a swap.
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
        Ok(())
    }

    /// The audit trail.
    pub fn recorder(&self) -> MutexGuard<'_, Recorder> {
        lock(&self.recorder)
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

    /// The end: every agent that is left is killed, frozen or (`None`) let go, and the log is closed.
    pub async fn stop(&self, action: Option<GuardianAction>) {
        for agent in self.list() {
            let outcome = match action {
                Some(GuardianAction::Kill) => self.kill(&agent.name),
                Some(GuardianAction::Freeze) => self.freeze(&agent.name),
                None => self.detach(&agent.name).await.map(|_| ()),
            };
            let outcome = match (outcome, action) {
                (Ok(()), Some(GuardianAction::Kill)) => {
                    self.end(&agent.name, agent.session).await.map(|_| ())
                }
                (outcome, _) => outcome,
            };
            if let Err(error) = outcome {
                tracing::error!("failed to take leave of `{}`: {error}", agent.name);
            }
        }
        self.pump.drain().await;
        let mut recorder = self.recorder();
        recorder.note(Record::new(op::STOP));
        recorder.sync();
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
        })
    }
}

fn mode_name(mode: Mode) -> &'static str {
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
