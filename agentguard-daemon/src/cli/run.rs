//! `agentguard run`: one command as a governed agent. Its exit status is the command's.
//!
//! With a daemon, the daemon governs; without one, this process does, for the length of the command.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use hyper::Method;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;

use super::agents::PolicyOptions;
use super::exit::Exit;
use super::report::{CliError, has_colour};
use super::{LOG, POLICIES, STATE, SocketArgs};
use crate::agent::{Cgroup, Hierarchy, Identity, Name};
use crate::api::wire::{AttachRequest, Status, TargetRequest};
use crate::api::{Client, ClientError};
use crate::audit::{LogError, Notice};
use crate::cli::summary::Summary;
use crate::kernel::{KernelError, Pins};
use crate::resolver::Servers;
use crate::session::{
    AgentInfo, Attach, Engine, EngineOptions, GuardianAction, Launch, Launched, Leave,
    PolicyRequest, SessionError, Target, shell_status,
};

/// How long leftovers may take to die.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a denial may take from the daemon's log to us.
const STRAGGLERS: Duration = Duration::from_millis(500);
/// How long a daemon that is gone may take to come again, at the end of a command.
const RETURN: Duration = Duration::from_secs(30);
/// How often it is looked for.
const RECONNECT: Duration = Duration::from_millis(200);
/// Signals that are handed on, and the one that says that the command has ended.
const SIGNALS: [Signal; 9] = [
    Signal::SIGCHLD,
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGWINCH,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
];

/// Arguments of `run`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sudo agentguard run --policy coding-agent -- claude\n  sudo agentguard run --policy ./p.yaml --set branch=main --audit run.jsonl -- python3 agent.py\n\nUnder sudo the command runs as the user who called. Variables that are always set: `workspace` (--workspace) and `home`. The exit status is the command's."
)]
pub struct RunArgs {
    #[command(flatten)]
    policy: PolicyOptions,
    /// Name of the agent [default: the command's]
    #[arg(long)]
    name: Option<String>,
    /// Folder to work in [default: the current one]
    #[arg(long, value_name = "DIR")]
    workspace: Option<PathBuf>,
    /// Write the audit log here, and do without a daemon even if one runs.
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,
    /// What happens to processes that outlive the command.
    #[arg(long, value_enum, default_value_t = Leftovers::Kill)]
    leftovers: Leftovers,
    /// Say nothing about denials.
    #[arg(long, short)]
    quiet: bool,
    /// Type information to use instead of the running kernel's own.
    #[arg(long, value_name = "FILE", hide = true)]
    btf: Option<PathBuf>,
    #[command(flatten)]
    socket: SocketArgs,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Leftovers {
    /// They are killed.
    Kill,
    /// They are waited for.
    Wait,
}

pub fn run(args: RunArgs) -> Result<ExitCode, CliError> {
    super::log_to_stderr("warn");
    if !nix::unistd::geteuid().is_root() {
        return Err(SessionError::from(KernelError::NotRoot).into());
    }
    // Before any thread starts, so that all have it.
    let signals = SigSet::from_iter(SIGNALS);
    let failed = |errno: nix::Error| {
        CliError::Other(Exit::Failure, format!("failed to block signals: {errno}"))
    };
    signals.thread_block().map_err(failed)?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).map_err(failed)?;
    let signals = read_signals(signals)?;
    let status = super::on_runtime(govern(args, signals))?;
    Ok(ExitCode::from(status))
}

/// A thread that waits for signals; it ends with the process.
fn read_signals(signals: SignalFd) -> Result<mpsc::Receiver<siginfo>, CliError> {
    let (sender, receiver) = mpsc::channel(64);
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            loop {
                match signals.read_signal() {
                    Ok(Some(info)) if sender.blocking_send(info).is_ok() => {}
                    Ok(None) | Err(nix::Error::EINTR) => {}
                    Ok(Some(_)) | Err(_) => return,
                }
            }
        })
        .map_err(|error| {
            CliError::Other(Exit::Failure, format!("failed to start a thread: {error}"))
        })?;
    Ok(receiver)
}

async fn govern(args: RunArgs, mut signals: mpsc::Receiver<siginfo>) -> Result<u8, CliError> {
    let workspace = workspace(args.workspace.as_deref())?;
    let identity = Identity::of_invoker().map_err(SessionError::from)?;
    let request = args
        .policy
        .request(variables(&workspace, identity.as_ref())?);
    let name = name(&args)?;
    let mut host = Host::find(&args).await?;
    let environment = host.environment(&request).await?;
    let mut launched = Launch {
        command: args.command.clone(),
        directory: workspace,
        identity,
        environment,
    }
    .stopped()?;
    let account = account(&args)?;
    let agent = host
        .attach((name, account), request, launched.pid())
        .await?;
    let mut denials = host.denials(&args, agent.session).await?;
    let mut summary = Summary::new(agent.session, args.quiet, has_colour(&std::io::stderr()));
    if let Some(signal) = ended_early(&mut signals) {
        // Dropping the command, which has not begun, ends it.
        drop(launched);
        host.end(&agent).await?;
        host.stop().await;
        return Ok(128 + signal as u8);
    }
    launched.go()?;
    let status = attend(&mut launched, &mut signals, &mut denials, &mut summary).await?;
    leftovers(args.leftovers, &mut host, &agent).await?;
    let agent = match host.end(&agent).await {
        Err(CliError::Client(error)) => {
            // What is pinned governs on; nothing of the command may.
            kill_cgroup(&agent);
            return Err(error.into());
        }
        outcome => outcome?,
    };
    let refused = agent.tally.denied + agent.tally.would_deny;
    while summary.count() < refused
        && let Ok(line) = tokio::time::timeout(STRAGGLERS, denials.next()).await
    {
        summary.denied(&line);
    }
    summary.finish(&agent, &host.log().await?);
    host.stop().await;
    Ok(shell_status(status))
}

fn kill_cgroup(agent: &AgentInfo) {
    let killed = Hierarchy::find()
        .and_then(|hierarchy| hierarchy.open(&agent.cgroup))
        .and_then(|cgroup| cgroup.kill());
    if let Err(error) = killed {
        eprintln!(
            "agentguard: what is left of `{}` was not killed: {error}",
            agent.name
        );
    }
}

fn workspace(given: Option<&Path>) -> Result<PathBuf, CliError> {
    let folder = given.unwrap_or(Path::new("."));
    let found = folder.canonicalize().and_then(|path| {
        if path.is_dir() {
            Ok(path)
        } else {
            Err(std::io::ErrorKind::NotADirectory.into())
        }
    });
    found.map_err(|error| CliError::file("use the workspace", folder, &error))
}

/// The variables that every policy can use. The engine resolves them.
fn variables(
    workspace: &Path,
    identity: Option<&Identity>,
) -> Result<[(String, String); 2], CliError> {
    let home = match identity {
        Some(identity) => identity.home.clone(),
        None => std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from),
    };
    let text = |path: &Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| {
            let what = format!("a policy cannot speak of {}: not UTF-8", path.display());
            CliError::Other(Exit::Usage, what)
        })
    };
    Ok([
        ("workspace".to_owned(), text(workspace)?),
        ("home".to_owned(), text(&home)?),
    ])
}

/// The name given, or the command's with our process id: several of one kind may run.
fn name(args: &RunArgs) -> Result<Name, CliError> {
    let account = account(args)?;
    Ok(match args.name {
        Some(_) => account,
        None => Name::nearest(&format!("{account}-{}", std::process::id())),
    })
}

/// Whose budgets are spent: those of the name given, or of the command, however often it runs.
fn account(args: &RunArgs) -> Result<Name, CliError> {
    if let Some(name) = &args.name {
        return Ok(name.parse().map_err(SessionError::from)?);
    }
    let program = args.command.first().map(PathBuf::from).unwrap_or_default();
    let program = program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    Ok(Name::nearest(&program))
}

/// Who governs.
enum Host {
    Here(Arc<Engine>),
    Daemon { client: Client, socket: PathBuf },
}

impl Host {
    async fn find(args: &RunArgs) -> Result<Self, CliError> {
        let socket = args.socket.socket.clone();
        if args.audit.is_none() {
            match Client::connect(&socket).await {
                Ok(client) => return Ok(Self::Daemon { client, socket }),
                Err(ClientError::NoDaemon(_)) => {}
                Err(error) => return Err(error.into()),
            }
            let pinned = Pins::of_host().in_force().map_err(SessionError::from)?;
            if pinned.is_some() {
                return Err(SessionError::Pinned.into());
            }
        }
        let log = args.audit.as_deref().unwrap_or(Path::new(LOG));
        let engine = match Engine::start(&options(args, log)?).await {
            Err(SessionError::Log(LogError::Busy(_))) if args.audit.is_none() => {
                // Another `run` writes the usual log.
                let own = PathBuf::from(LOG)
                    .with_file_name(format!("audit-{}.jsonl", std::process::id()));
                Engine::start(&options(args, &own)?).await?
            }
            outcome => outcome?,
        };
        engine.watch_files()?;
        Ok(Self::Here(engine))
    }

    /// Variables that lead the command to the model gateway, where its policy has models.
    async fn environment(
        &mut self,
        request: &PolicyRequest,
    ) -> Result<Vec<(String, String)>, CliError> {
        match self {
            Self::Here(engine) => Ok(engine.environment(request).await?),
            Self::Daemon { client, .. } => Ok(client
                .ask_with(Method::POST, "/environment", request)
                .await?),
        }
    }

    async fn attach(
        &mut self,
        (name, account): (Name, Name),
        policy: PolicyRequest,
        pid: u32,
    ) -> Result<AgentInfo, CliError> {
        match self {
            Self::Here(engine) => {
                let target = Target::Process(pid);
                let request = Attach {
                    name: Some(name),
                    policy,
                    target,
                    account: Some(account),
                    on_death: GuardianAction::Kill,
                };
                Ok(engine.attach(request).await?)
            }
            Self::Daemon { client, .. } => {
                let request = AttachRequest {
                    name: Some(name.into()),
                    account: Some(account.into()),
                    policy,
                    target: TargetRequest::Pid(pid),
                    dies_with_daemon: true,
                };
                Ok(client.ask_with(Method::POST, "/agents", &request).await?)
            }
        }
    }

    /// Refusals of the session from now on, as lines of the log.
    async fn denials(&self, args: &RunArgs, session: u32) -> Result<Denials, CliError> {
        match self {
            Self::Here(engine) => Ok(Denials::Here(
                engine.recorder().subscribe_refusals(),
                session,
            )),
            Self::Daemon { .. } => {
                let socket = args.socket.socket.clone();
                let subscription = subscribe(&socket, session).await?;
                Ok(Denials::Daemon(subscription, socket, session))
            }
        }
    }

    async fn kill(&mut self, name: &str) -> Result<(), CliError> {
        match self {
            Self::Here(engine) => Ok(engine.kill(name)?),
            Self::Daemon { .. } => {
                self.ask(Method::POST, &format!("/agents/{name}/kill"))
                    .await
            }
        }
    }

    /// Nothing of the agent outlives this, in whatever cgroup it is.
    async fn end(&mut self, agent: &AgentInfo) -> Result<AgentInfo, CliError> {
        match self {
            Self::Here(engine) => Ok(engine.end(&agent.name, agent.session).await?),
            Self::Daemon { .. } => {
                let path = format!("/agents/{}/end?session={}", agent.name, agent.session);
                self.ask(Method::POST, &path).await
            }
        }
    }

    /// Asks the daemon, also one that was started after the one that we knew: the agent is the same to both.
    async fn ask<T: serde::de::DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
    ) -> Result<T, CliError> {
        let Self::Daemon { client, socket } = self else {
            let what = "there is no daemon to ask".to_owned();
            return Err(CliError::Other(Exit::Failure, what));
        };
        let end = std::time::Instant::now() + RETURN;
        loop {
            let error = match client.ask(method.clone(), path).await {
                Err(error @ (ClientError::Http(_) | ClientError::NoDaemon(_))) => error,
                outcome => return Ok(outcome?),
            };
            if std::time::Instant::now() > end {
                return Err(error.into());
            }
            tokio::time::sleep(RECONNECT).await;
            if let Ok(other) = Client::connect(socket).await {
                *client = other;
            }
        }
    }

    /// The audit log.
    async fn log(&mut self) -> Result<PathBuf, CliError> {
        match self {
            Self::Here(engine) => Ok(engine.recorder().log_path().to_owned()),
            Self::Daemon { .. } => Ok(self.ask::<Status>(Method::GET, "/status").await?.log),
        }
    }

    async fn stop(self) {
        match self {
            Self::Here(engine) => engine.stop(Leave::Release).await,
            Self::Daemon { socket, .. } => {
                tracing::debug!("governed by the daemon at {}", socket.display());
            }
        }
    }
}

fn options(args: &RunArgs, log: &Path) -> Result<EngineOptions, CliError> {
    Ok(EngineOptions {
        gateway: super::daemon::read(None)?.gateway,
        btf: args.btf.clone(),
        log: log.to_owned(),
        keeping: crate::audit::LogOptions::default(),
        stage: None,
        search: vec![PathBuf::from(POLICIES)],
        also_own: Vec::new(),
        state: PathBuf::from(STATE),
        pins: None,
        servers: Servers::default(),
        self_test: true,
        loaded: None,
    })
}

/// Listens to the refusals of a session, which ends with us.
async fn subscribe(socket: &Path, session: u32) -> Result<crate::api::Subscription, ClientError> {
    let client = Client::connect(socket).await?;
    let query = format!("session={session}&refused=true&owner=true");
    client.subscribe(&query).await
}

/// Where refusals come from.
enum Denials {
    Here(broadcast::Receiver<Arc<Notice>>, u32),
    /// A daemon that goes may come again: what is pinned governs meanwhile.
    Daemon(crate::api::Subscription, PathBuf, u32),
    Ended,
}

impl Denials {
    /// The next line. Never returns after the end.
    async fn next(&mut self) -> String {
        loop {
            let line = match self {
                Self::Here(receiver, session) => match receiver.recv().await {
                    Ok(notice) if notice.session == *session => Some(notice.line.to_string()),
                    Ok(_) | Err(RecvError::Lagged(_)) => continue,
                    Err(RecvError::Closed) => None,
                },
                Self::Daemon(subscription, socket, session) => {
                    if let Some(line) = subscription.next().await {
                        Some(line)
                    } else {
                        *subscription = again(socket, *session).await;
                        continue;
                    }
                }
                Self::Ended => std::future::pending().await,
            };
            match line {
                Some(line) => return line,
                None => *self = Self::Ended,
            }
        }
    }
}

/// Waits for the next daemon.
async fn again(socket: &Path, session: u32) -> crate::api::Subscription {
    loop {
        tokio::time::sleep(RECONNECT).await;
        if let Ok(subscription) = subscribe(socket, session).await {
            return subscription;
        }
    }
}

/// Hands signals on and shows denials until the command has ended.
async fn attend(
    launched: &mut Launched,
    signals: &mut mpsc::Receiver<siginfo>,
    denials: &mut Denials,
    summary: &mut Summary,
) -> Result<ExitStatus, CliError> {
    let failed = |error: std::io::Error| {
        CliError::Other(
            Exit::Failure,
            format!("failed to wait for the command: {error}"),
        )
    };
    loop {
        if let Some(status) = launched.try_wait().map_err(failed)? {
            return Ok(status);
        }
        tokio::select! {
            Some(info) = signals.recv() => hand_on(launched, &info)?,
            line = denials.next() => summary.denied(&line),
        }
    }
}

/// A signal that came before the command could have it, and would have ended it.
fn ended_early(signals: &mut mpsc::Receiver<siginfo>) -> Option<Signal> {
    let ending = [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ];
    std::iter::from_fn(|| signals.try_recv().ok())
        .filter_map(|info| Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok())
        .find(|signal| ending.contains(signal))
}

/// The terminal signals the command itself, which is in our process group. What somebody sent to
/// us alone is handed on.
fn hand_on(launched: &Launched, info: &siginfo) -> Result<(), CliError> {
    let Some(signal) = i32::try_from(info.ssi_signo)
        .ok()
        .and_then(|number| Signal::try_from(number).ok())
    else {
        return Ok(());
    };
    let from_terminal = info.ssi_code == nix::libc::SI_KERNEL;
    if signal == Signal::SIGCHLD || from_terminal {
        return Ok(());
    }
    Ok(launched.signal(signal)?)
}

/// Processes that outlive the command.
async fn leftovers(what: Leftovers, host: &mut Host, agent: &AgentInfo) -> Result<(), CliError> {
    let hierarchy = Hierarchy::find().map_err(SessionError::from)?;
    let cgroup: Cgroup = match hierarchy.open(&agent.cgroup) {
        Ok(cgroup) => cgroup,
        Err(_) => return Ok(()),
    };
    if cgroup.is_empty() {
        return Ok(());
    }
    match what {
        Leftovers::Kill => {
            let count = cgroup.processes().map_or(0, |pids| pids.len());
            host.kill(&agent.name).await?;
            if count > 0 && std::io::stderr().is_terminal() {
                eprintln!("agentguard: {count} processes that outlived the command were killed");
            }
            cgroup.wait_empty(PATIENCE).map_err(SessionError::from)?;
        }
        Leftovers::Wait => {
            while !cgroup.is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_must_be_a_folder() {
        assert!(workspace(Some(Path::new("/"))).is_ok());
        assert_eq!(
            workspace(Some(Path::new("/missing"))).unwrap_err().exit(),
            Exit::Missing
        );
        assert!(workspace(Some(Path::new("/proc/version"))).is_err());
    }

    #[test]
    fn a_workspace_behind_a_link_has_its_real_name() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink("real", root.join("link")).unwrap();
        let found = workspace(Some(&root.join("link"))).unwrap();
        assert_eq!(found, root.join("real"));
        let [(_, value), _] = variables(&found, None).unwrap();
        assert_eq!(Path::new(&value), root.join("real"));
    }
}
