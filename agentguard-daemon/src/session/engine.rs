//! The engine: owns the kernel programs, the agents, their policies and the audit trail.
//!
//! Operations on agents run one at a time. On any error of a policy the one before stays in force.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use agentguard_common::label::Label;
use serde::{Deserialize, Serialize};

use super::{Enforcer, Guardian, GuardianAction, Pump, SessionError, Watcher, canary};
use crate::agent::{Agent, Cgroup, Hierarchy, Name, Registry, RegistryError};
use crate::audit::{Log, Record, Recorder, Tally, record::op};
use crate::event::escape::escape;
use crate::kernel::{Guard, GuardOptions, KernelError};
use crate::policy::{self, LoadOptions, Mode, Policy};

/// How long a cgroup may take to freeze or thaw.
const PATIENCE: Duration = Duration::from_secs(5);
/// Rounds of taking labels away; each finds only children of tasks that forked during the one before.
const UNLABEL_ROUNDS: usize = 100;

/// How an engine is started.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Type information to use instead of the running kernel's own.
    pub btf: Option<PathBuf>,
    /// The audit log.
    pub log: PathBuf,
    /// Folders of policies that are given by name.
    pub search: Vec<PathBuf>,
    /// State that outlives the engine: the number of the last session.
    pub state: PathBuf,
}

/// A policy as it was asked for, so that it can be read again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRequest {
    /// Name or path.
    pub policy: String,
    /// Values of its variables.
    #[serde(default)]
    pub vars: BTreeMap<String, String>,
}

impl PolicyRequest {
    /// The policy of the self-test.
    pub(super) fn deny_everything() -> Self {
        Self {
            policy: DENY_EVERYTHING.to_owned(),
            vars: BTreeMap::new(),
        }
    }

    fn load(&self, search: &[PathBuf]) -> Result<Policy, SessionError> {
        let options = LoadOptions {
            search: search.to_vec(),
            vars: self.vars.clone(),
        };
        if self.policy == DENY_EVERYTHING {
            let text = "version: 1\nname: self-test\n";
            return Ok(policy::load_text(
                Path::new("self-test.yaml"),
                text,
                &options,
            )?);
        }
        Ok(policy::load(&self.policy, &options)?)
    }
}

/// Not a possible name or path of a file.
const DENY_EVERYTHING: &str = "\0";

/// What to bring under governance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A process, moved into a new cgroup.
    Process(u32),
    /// An existing cgroup with everything in it and below.
    Cgroup(PathBuf),
}

/// What attaching needs.
#[derive(Clone, Debug)]
pub struct Attach {
    /// Name of the agent; by default that of the policy.
    pub name: Option<Name>,
    /// Its policy.
    pub policy: PolicyRequest,
    /// Who.
    pub target: Target,
    /// What becomes of it if the engine dies.
    pub on_death: GuardianAction,
}

/// One agent, for people and programs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentInfo {
    /// Its name.
    pub name: String,
    /// Its session.
    pub session: u32,
    /// Name of its policy.
    pub policy: String,
    /// `enforce` or `shadow`.
    pub mode: String,
    /// Generation of its policy.
    pub generation: u32,
    /// Files of its policy.
    pub files: Vec<PathBuf>,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Processes in the cgroup.
    pub processes: usize,
    /// Whether it is frozen.
    pub frozen: bool,
    /// When it came under governance, in seconds since 1970.
    pub since: u64,
    /// What it did so far.
    pub tally: Tally,
}

struct InForce {
    request: PolicyRequest,
    policy: Arc<Policy>,
    generation: u32,
}

#[derive(Default)]
struct State {
    registry: Registry,
    in_force: BTreeMap<u32, InForce>,
}

/// See the module.
pub struct Engine {
    enforcer: Arc<Mutex<Box<dyn Enforcer>>>,
    recorder: Arc<Mutex<Recorder>>,
    state: Mutex<State>,
    /// Held over each operation on agents.
    one_at_a_time: tokio::sync::Mutex<()>,
    generation: AtomicU32,
    hierarchy: Hierarchy,
    guardian: Option<Mutex<Guardian>>,
    watcher: Mutex<Option<Watcher>>,
    pump: Pump,
    search: Vec<PathBuf>,
    sessions: PathBuf,
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

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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

    fn note(&self, record: Record<'_>) {
        let mut recorder = self.recorder();
        recorder.note(record);
        recorder.flush();
    }

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
    async fn compile(
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

    /// Gives an agent another policy, or reads its policy again. On an error the one before stays.
    pub async fn swap(
        &self,
        name: &str,
        request: Option<PolicyRequest>,
    ) -> Result<AgentInfo, SessionError> {
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
            Ok((policy, table)) => self.replace(&agent, request, policy, &table, generation),
            Err(error) => Err(error),
        };
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

    fn replace(
        &self,
        agent: &Agent,
        request: PolicyRequest,
        policy: Arc<Policy>,
        table: &[u8],
        generation: u32,
    ) -> Result<AgentInfo, SessionError> {
        let generations = self.generations();
        self.recorder()
            .judge()
            .add(generation, policy.clone(), &generations);
        lock(&self.enforcer).install(agent.slot, table)?;
        self.note(about(agent, op::POLICY_INSTALL, &policy, generation));
        if let Some(watcher) = &*lock(&self.watcher) {
            watch(watcher, &policy);
        }
        let mut state = lock(&self.state);
        state.in_force.insert(
            agent.slot,
            InForce {
                request,
                policy,
                generation,
            },
        );
        self.info(&state, agent.slot)
            .ok_or_else(|| RegistryError::Unknown(agent.name.to_string()).into())
    }

    /// Reads the policies again of all agents, or of those to which one of the files belongs.
    /// Gives for each agent what came of it.
    pub async fn reload(
        &self,
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
                (Ok(()), Some(GuardianAction::Kill)) => self.end(&agent.name, agent.session).await,
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

    fn generations(&self) -> Vec<u32> {
        lock(&self.state)
            .in_force
            .values()
            .map(|it| it.generation)
            .collect()
    }

    fn info(&self, state: &State, slot: u32) -> Option<AgentInfo> {
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

fn watch(watcher: &Watcher, policy: &Policy) {
    for file in policy.files() {
        if let Err(error) = watcher.add(file) {
            tracing::error!("changes of {} will not be seen: {error}", file.display());
        }
    }
}

fn escape_path(path: &Path) -> Cow<'_, str> {
    use std::os::unix::ffi::OsStrExt;
    escape(path.as_os_str().as_bytes())
}

/// A record about an agent and its policy.
fn about<'a>(agent: &'a Agent, op: &'a str, policy: &'a Policy, generation: u32) -> Record<'a> {
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

/// The next number from the counter file: unique among all engines of this host.
fn next_session(path: &Path) -> Result<u32, SessionError> {
    use std::io::{Read, Seek, Write};
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let failed = |call| {
        move |source| SessionError::Io {
            call,
            path: path.to_owned(),
            source,
        }
    };
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed("make the folder of"))?;
    }
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed("open"))?;
    let mut file = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
        .map_err(|(_, errno)| failed("lock")(errno.into()))?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed("read"))?;
    let session = text
        .trim()
        .parse::<u32>()
        .unwrap_or(0)
        .wrapping_add(1)
        .max(1);
    file.rewind().map_err(failed("write"))?;
    file.set_len(0).map_err(failed("write"))?;
    file.write_all(format!("{session}\n").as_bytes())
        .map_err(failed("write"))?;
    Ok(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_numbered_across_engines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/session");
        assert_eq!(next_session(&path).unwrap(), 1);
        assert_eq!(next_session(&path).unwrap(), 2);
        std::fs::write(&path, "41").unwrap();
        assert_eq!(next_session(&path).unwrap(), 42);
    }
}
