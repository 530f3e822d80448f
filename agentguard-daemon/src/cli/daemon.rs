//! `agentguard daemon`: arguments and configuration to one call.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::exit::Exit;
use super::report::CliError;
use crate::daemon::{Config, DaemonError};

/// The configuration that is read where no other is given, if it exists.
const CONFIG: &str = "/etc/agentguard/agentguard.yaml";

/// Arguments of `daemon`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sudo systemctl start agentguard     (as installed)\n  sudo agentguard daemon              (in this terminal)\n\nSIGHUP reads all policies again. SIGTERM ends it: enforcement is pinned and goes on, and the next daemon takes it over, unless the configuration says `on_stop: freeze`, `kill` or `release`. `agentguard uninstall` ends enforcement.\n\nThe packaged agentguard.yaml shows every section of the configuration: `sinks` (docs/export.md), `approvals` with the\nwebhook (docs/approvals.md), `metrics` (docs/metrics.md)."
)]
pub struct DaemonArgs {
    /// Configuration [default: /etc/agentguard/agentguard.yaml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of the control socket.
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Folder of state that outlives the daemon.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The audit log.
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,
    /// A folder of policies; can be given more than once.
    #[arg(long, value_name = "DIR")]
    policies: Vec<PathBuf>,
    /// Serve metrics over TCP too, at an address of 127.0.0.0/8; they are always at the control socket. Pushing them by OTLP is `metrics_export` in the configuration.
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
}

pub fn run(args: DaemonArgs) -> Result<ExitCode, CliError> {
    super::log_to_stderr("info");
    let mut config = read(args.config.as_deref())?;
    if let Some(folder) = args.run_dir {
        config.run_dir = folder;
    }
    if let Some(folder) = args.state_dir {
        config.state_dir = folder;
    }
    if let Some(file) = args.audit {
        config.audit = file;
    }
    if !args.policies.is_empty() {
        config.policies = args.policies;
    }
    config.metrics = args.metrics.or(config.metrics);
    if let Some(address) = config.metrics {
        crate::metrics::checked(address)
            .map_err(|error| CliError::Other(Exit::Usage, error.to_string()))?;
    }
    super::on_runtime(async { crate::daemon::run(&config).await.map_err(failed) })?;
    Ok(Exit::Ok.into())
}

pub fn failed(error: DaemonError) -> CliError {
    match error {
        DaemonError::Session(error) => error.into(),
        DaemonError::AlreadyRunning { .. } => CliError::Other(Exit::Busy, error.to_string()),
        DaemonError::Io { call, path, source } => CliError::file(call, &path, &source),
    }
}

pub fn read(given: Option<&Path>) -> Result<Config, CliError> {
    let path = given.unwrap_or(Path::new(CONFIG));
    let text = match std::fs::read_to_string(path) {
        Err(error) if given.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Config::default());
        }
        outcome => outcome.map_err(|error| CliError::file("read", path, &error))?,
    };
    Config::parse(path, &text).map_err(|error| {
        let shown = super::report::diagnostic("the configuration is not valid", &error);
        CliError::Other(Exit::Usage, shown)
    })
}
