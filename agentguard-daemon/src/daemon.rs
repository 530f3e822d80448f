//! The daemon: one engine for the whole host, behind a socket.
//!
//! It is never on the way of a verdict. When it ends or dies, what is pinned goes on enforcing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use sd_notify::NotifyState;
use serde::Deserialize;
use thiserror::Error;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::approval::webhook::ApprovalsConfig;
use crate::audit::LogOptions;
use crate::export::{Place, SinkConfig, SinkName, Sinks};
use crate::gateway::GatewayConfig;
use crate::kernel::Pins;
use crate::metrics::{Listener, MetricsExport, Pusher};
use crate::policy::own::SOCKET;
use crate::policy::{PolicyError, Source, yaml};
use crate::resolver::{Server, Servers};
use crate::session::{Engine, EngineOptions, Leave, Pace, SessionError};

/// How long the kernel may take for one program, in microseconds.
const MORE_TIME: u32 = 120_000_000;
/// Where the format of the configuration is described.
const FORMAT: &str = "the packaged `agentguard.yaml`, docs/export.md for `sinks`, docs/metrics.md for `metrics_export`, docs/approvals.md for `approvals`,";

/// The daemon's configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Folder of the control socket.
    pub run_dir: PathBuf,
    /// Folder of state that outlives the daemon.
    pub state_dir: PathBuf,
    /// The audit log.
    pub audit: PathBuf,
    /// How it is kept.
    pub audit_log: LogOptions,
    /// Folders of policies that are given by name.
    pub policies: Vec<PathBuf>,
    /// Type information to use instead of the running kernel's own.
    pub btf: Option<PathBuf>,
    /// What becomes of agents that are left at the end.
    pub on_stop: Leave,
    /// The model gateway.
    pub gateway: GatewayConfig,
    /// Whom the resolver asks, instead of those in `/etc/resolv.conf`: `ADDRESS` or `ADDRESS:PORT`.
    pub resolvers: Vec<Server>,
    /// To whom records are sent.
    pub sinks: BTreeMap<SinkName, SinkConfig>,
    /// Who answers what rules ask, besides operators.
    pub approvals: ApprovalsConfig,
    /// Where metrics are served over TCP, besides the control socket.
    pub metrics: Option<SocketAddr>,
    /// To whom metrics are pushed.
    pub metrics_export: Option<MetricsExport>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            run_dir: PathBuf::from("/run/agentguard"),
            state_dir: PathBuf::from(crate::cli::STATE),
            audit: PathBuf::from(crate::cli::LOG),
            audit_log: LogOptions::default(),
            policies: vec![PathBuf::from(crate::cli::POLICIES)],
            btf: None,
            on_stop: Leave::default(),
            gateway: GatewayConfig::default(),
            resolvers: Vec::new(),
            sinks: BTreeMap::new(),
            approvals: ApprovalsConfig::default(),
            metrics: None,
            metrics_export: None,
        }
    }
}

impl Config {
    /// How the daemon's engine is started, on pins. Who only ends everything needs no self-test.
    pub fn engine(&self, self_test: bool) -> EngineOptions {
        // Whoever reads the secret can answer.
        let secret = self.approvals.webhook.iter().map(|it| it.secret.clone());
        EngineOptions {
            btf: self.btf.clone(),
            log: self.audit.clone(),
            keeping: self.audit_log.clone(),
            stage: Some(self.run_dir.join("audit.stage")),
            search: self.policies.clone(),
            also_own: secret.chain([self.run_dir.clone()]).collect(),
            state: self.state_dir.clone(),
            gateway: self.gateway.clone(),
            pins: Some(Pins::of_host()),
            servers: Servers::of(&self.resolvers),
            self_test,
            loaded: Some(more_time),
        }
    }

    /// From the text of a configuration file. Unknown keys are errors, with their place.
    pub fn parse(path: &Path, text: &str) -> Result<Self, PolicyError> {
        let source = Source::new(path, text);
        if yaml::is_empty(&source) {
            return Ok(Self::default());
        }
        let config: Self = yaml::parse_as(&source, FORMAT)?;
        for (name, sink) in &config.sinks {
            sink.check().map_err(|what| {
                let name = name.as_str();
                PolicyError::general(
                    format!("the sink `{name}` of {}: {what}", path.display()),
                    "docs/export.md describes the settings of sinks",
                )
            })?;
        }
        if let Some(export) = &config.metrics_export {
            export.check().map_err(|what| {
                PolicyError::general(
                    format!("`metrics_export` of {}: {what}", path.display()),
                    "docs/metrics.md describes its settings",
                )
            })?;
        }
        if let Some(webhook) = &config.approvals.webhook {
            webhook.check().map_err(|what| {
                PolicyError::general(
                    format!("the webhook of {}: {what}", path.display()),
                    "docs/approvals.md describes the settings of the webhook",
                )
            })?;
        }
        Ok(config)
    }
}

/// Why the daemon does not run.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The engine refused or failed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// There is one already.
    #[error(
        "an AgentGuard daemon already runs (pid {pid}); one governs the whole host: use it, or end it with `systemctl stop agentguard` first"
    )]
    AlreadyRunning {
        /// Its process id.
        pid: String,
    },
    /// A call failed.
    #[error("failed to {call} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried.
        call: &'static str,
        /// File or folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: &Config) -> Result<(), DaemonError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(SessionError::from(crate::kernel::KernelError::NotRoot).into());
    }
    let _only_one = lock(config)?;
    crate::kernel::keep_little_memory();
    let socket = config.run_dir.join(SOCKET);
    let failed = |call, path: &Path| {
        let path = path.to_owned();
        move |source| DaemonError::Io { call, path, source }
    };
    let mut terminate =
        signal(SignalKind::terminate()).map_err(failed("wait for signals in", Path::new("/")))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(failed("wait for signals in", Path::new("/")))?;
    let mut hangup =
        signal(SignalKind::hangup()).map_err(failed("wait for signals in", Path::new("/")))?;

    let engine = Engine::start(&config.engine(true)).await?;
    engine.watch_files()?;
    report_leftovers(&engine);
    let place = Place::new(config.audit.clone(), config.state_dir.clone())
        .told_by(engine.recorder().log().durable());
    let sinks = engine.send_to(Sinks::start(&config.sinks, &place));
    let webhook = config.approvals.webhook.as_ref();
    let webhook = webhook.map(|webhook| engine.ask_webhook(webhook, Pace::default()));

    // The lock says that whoever made this socket is gone.
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).map_err(failed("listen at", &socket))?;
    // Everybody may connect; who may ask what is judged for every request.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666))
        .map_err(failed("open to all", &socket))?;
    let server = tokio::spawn(crate::api::serve(listener, engine.clone()));
    let _metrics = serve_metrics(config, &engine).await;
    let pusher = push_metrics(config, &engine);
    crate::kernel::trim_memory();
    notify(&[
        NotifyState::Ready,
        NotifyState::Status("policies are enforced"),
    ]);
    tracing::info!("policies are enforced; listening at {}", socket.display());

    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => reload(&engine).await,
        }
    }
    notify(&[NotifyState::Stopping]);
    server.abort();
    let _ = fs::remove_file(&socket);
    if let Some(webhook) = webhook {
        webhook.stop().await;
    }
    engine.stop(config.on_stop).await;
    // Both have little time, and take it together.
    let pushed = async {
        if let Some(pusher) = pusher {
            pusher.stop().await;
        }
    };
    tokio::join!(sinks.stop(), pushed);
    Ok(())
}

/// Metrics to a receiver, if that is wanted.
fn push_metrics(config: &Config, engine: &std::sync::Arc<Engine>) -> Option<Pusher> {
    let MetricsExport::Otlp(push) = config.metrics_export.as_ref()?;
    Some(Pusher::start(
        push,
        engine.metrics_source(),
        engine.pushes(),
    ))
}

/// Metrics over TCP, if they are wanted. Where that fails the daemon enforces all the same: whoever scrapes sees it.
async fn serve_metrics(config: &Config, engine: &std::sync::Arc<Engine>) -> Option<Listener> {
    match Listener::start(config.metrics?, engine.metrics_source()).await {
        Ok(listener) => {
            let address = listener.address();
            tracing::info!("metrics are served at http://{address}/metrics");
            Some(listener)
        }
        Err(error) => {
            tracing::error!("{error}");
            None
        }
    }
}

async fn reload(engine: &std::sync::Arc<Engine>) {
    let usec = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
        i128::from(now.tv_sec()) * 1_000_000 + i128::from(now.tv_nsec()) / 1000
    });
    notify(&[NotifyState::Reloading, NotifyState::MonotonicUsec(usec)]);
    // Each failure is told and recorded where it happens.
    let outcomes = engine.reload(None).await;
    let failed = outcomes
        .iter()
        .filter(|(_, outcome)| outcome.is_err())
        .count();
    tracing::info!(
        "{} policies were read again, {failed} failed",
        outcomes.len()
    );
    notify(&[NotifyState::Ready]);
}

/// Asks the service manager for more time: the kernel has verified a program, and others are to follow. Only a start in
/// which nothing moves any more comes to the unit's `TimeoutStartSec=`.
fn more_time() {
    notify(&[NotifyState::ExtendTimeoutUsec(MORE_TIME)]);
}

/// Tells the service manager, if there is one.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("the service manager could not be told: {error}");
    }
}

/// Cgroups of agents that nobody knows any more.
fn report_leftovers(engine: &Engine) {
    let known: Vec<PathBuf> = engine
        .list()
        .into_iter()
        .map(|agent| agent.cgroup)
        .collect();
    let folder = engine
        .hierarchy()
        .mount()
        .join(crate::agent::cgroup::FOLDER);
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for path in entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && !known.contains(path))
    {
        if fs::remove_dir(&path).is_err() {
            tracing::warn!(
                "{} has processes of an earlier agent that nobody governs; attach it with --cgroup, or kill it",
                path.display()
            );
        }
    }
}

fn make_folder(folder: &Path, mode: u32) -> Result<(), DaemonError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(folder)
        .map_err(|source| DaemonError::Io {
            call: "make the folder",
            path: folder.to_owned(),
            source,
        })
}

/// Takes the lock that only one daemon can have, and writes our process id into it.
pub fn lock(config: &Config) -> Result<Flock<File>, DaemonError> {
    make_folder(&config.run_dir, 0o755)?;
    lock_file(&config.run_dir.join("daemon.lock"))
}

fn lock_file(path: &Path) -> Result<Flock<File>, DaemonError> {
    let failed = |call| {
        move |source| DaemonError::Io {
            call,
            path: path.to_owned(),
            source,
        }
    };
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed("open"))?;
    let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        if errno == nix::errno::Errno::EWOULDBLOCK {
            let pid = fs::read_to_string(path).unwrap_or_default();
            DaemonError::AlreadyRunning {
                pid: pid.trim().to_owned(),
            }
        } else {
            failed("lock")(errno.into())
        }
    })?;
    file.set_len(0).map_err(failed("write"))?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes())
        .map_err(failed("write"))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, PolicyError> {
        Config::parse(Path::new("agentguard.yaml"), text)
    }

    #[test]
    fn a_configuration_is_read_and_unknown_keys_are_refused() {
        let config = parse("on_stop: kill\npolicies: [/a, /b]\n").unwrap();
        assert_eq!(config.on_stop, Leave::Kill);
        assert_eq!(Config::default().on_stop, Leave::Keep);
        assert_eq!(config.policies, [Path::new("/a"), Path::new("/b")]);
        assert_eq!(config.audit, Path::new("/var/log/agentguard/audit.jsonl"));
        assert_eq!(parse("").unwrap(), Config::default());
        let error = parse("audit: /a\non_stopp: kill").unwrap_err();
        assert_eq!(error.place(), Some(("agentguard.yaml".to_owned(), 2, 1)));
        assert_eq!(error.help_text(), "did you mean `on_stop`?");
        let config = parse("audit_log: { sync: batch, segment_mib: 16 }").unwrap();
        assert_eq!(config.audit_log.sync, crate::audit::Sync::Batch);
        assert_eq!(config.audit_log.segment_mib, 16);
        assert_eq!(config.audit_log.checkpoint_records, 10_000);
        assert!(parse("audit_log: { sync: sometimes }").is_err());
        let config = parse("resolvers: [9.9.9.9, '[2001:db8::1]:5353', '2001:db8::2']").unwrap();
        let these = ["9.9.9.9:53", "[2001:db8::1]:5353", "[2001:db8::2]:53"];
        let these = these.map(|it| it.parse().unwrap()).to_vec();
        assert_eq!(Servers::of(&config.resolvers), Servers::These(these));
        let error = parse("resolvers: [dns.example.com]").unwrap_err();
        assert!(error.to_string().contains("dns.example.com"), "{error}");
    }

    #[test]
    fn sinks_are_read_and_mistakes_in_them_have_a_place() {
        let text = "sinks:\n  siem:\n    syslog:\n      to: tls://logs.example.com\n      tls: { ca: /ca.pem }\n  otel:\n    otlp: { endpoint: 'https://otel.example.com:4318/v1/logs', format: ocsf }\n  here:\n    journald: {}\n";
        let config = parse(text).unwrap();
        assert_eq!(config.sinks.len(), 3);
        for (text, line, column, says) in [
            (
                "sinks:\n  a:\n    syslog:\n      to: tcp://192.0.2.1:5\n",
                4,
                11,
                "in the clear",
            ),
            (
                "sinks:\n  a:\n    syslog:\n      to: tls://x\n      tsl: {}\n",
                5,
                7,
                "tsl",
            ),
            ("sinks:\n  a:\n    otlp: {}\n", 3, 11, "endpoint"),
            ("sinks:\n  a/b:\n    journald: {}\n", 2, 3, "a/b"),
            ("sinks:\n  a:\n    kafka: {}\n", 3, 5, "kafka"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(
                error.place(),
                Some(("agentguard.yaml".to_owned(), line, column)),
                "{error}"
            );
            assert!(error.to_string().contains(says), "{error}");
        }
        let half = "sinks:\n  a:\n    syslog: { to: 'tls://x', tls: { key: /k } }\n";
        assert!(parse(half).unwrap_err().to_string().contains("go together"));
    }

    #[test]
    fn a_receiver_of_metrics_is_read_and_nothing_goes_in_the_clear_to_another_host() {
        let config = parse(
            "metrics: 127.0.0.1:9477\nmetrics_export:\n  otlp:\n    endpoint: https://otel.example.com:4318/v1/metrics\n    encoding: json\n    headers: /etc/agentguard/keys/collector\n    tls: { ca: /ca.pem }\n    interval: 30s\n",
        );
        let config = config.unwrap();
        assert!(config.metrics.is_some());
        let Some(MetricsExport::Otlp(push)) = config.metrics_export else {
            panic!("it is there");
        };
        assert_eq!(push.interval.0, std::time::Duration::from_secs(30));
        let here = "metrics_export: { otlp: { endpoint: 'http://127.0.0.1:4318/v1/metrics' } }";
        assert!(parse(here).is_ok());
        let otlp = "metrics_export:\n  otlp:\n    endpoint: https://x/v1/metrics\n";
        for (text, line, column, says) in [
            (
                "metrics_export:\n  otlp:\n    endpoint: http://192.0.2.1:4318/v1/metrics\n"
                    .to_owned(),
                3,
                15,
                "in the clear",
            ),
            (format!("{otlp}    interval: 0s\n"), 4, 15, "0s"),
            (format!("{otlp}    interval: 2d\n"), 4, 15, "too long"),
            (format!("{otlp}    intervall: 1s\n"), 4, 5, "intervall"),
            ("metrics_export:\n  otlp: {}\n".to_owned(), 2, 9, "endpoint"),
            ("metrics_export:\n  statsd: {}\n".to_owned(), 2, 3, "statsd"),
        ] {
            let error = parse(&text).unwrap_err();
            let place = Some(("agentguard.yaml".to_owned(), line, column));
            assert_eq!(error.place(), place, "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
        let half = format!("{otlp}    tls: {{ key: /k }}\n");
        assert!(
            parse(&half)
                .unwrap_err()
                .to_string()
                .contains("go together")
        );
    }

    #[test]
    fn a_second_daemon_is_told_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("daemon.lock");
        let first = lock_file(&path).unwrap();
        let second = lock_file(&path).unwrap_err();
        let pid = std::process::id().to_string();
        assert!(
            second
                .to_string()
                .contains(&format!("already runs (pid {pid})")),
            "{second}"
        );
        drop(first);
        lock_file(&path).unwrap();
    }
}
