//! The command line: arguments to values, values to one call, results to text or JSON.
//!
//! Nothing here decides; every command has a status from [`exit::Exit`].

mod account;
mod agents;
mod approvals;
mod audit;
mod budget;
mod daemon;
pub mod denial;
mod doctor;
pub mod exit;
mod generate;
mod internal;
mod limits;
mod policy;
pub mod report;
mod run;
mod summary;
mod top;
mod traffic;
mod uninstall;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use self::report::CliError;

/// Where the daemon listens.
pub const SOCKET: &str = "/run/agentguard/control.sock";
/// The daemon's audit log.
pub const LOG: &str = "/var/log/agentguard/audit.jsonl";
/// The folder of policies.
pub const POLICIES: &str = "/etc/agentguard/policies";
/// State that outlives a daemon.
pub const STATE: &str = "/var/lib/agentguard";

/// Runtime enforcement for AI agents: every program start, file access and connection of an agent is
/// judged in the kernel by a policy, and recorded.
#[derive(Debug, Parser)]
#[command(name = "agentguard", version, after_help = exit::HELP, max_term_width = 100, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command as a governed agent.
    Run(run::RunArgs),
    /// Govern this host's agents until told to stop.
    Daemon(daemon::DaemonArgs),
    /// Bring a cgroup, systemd unit or process under a policy.
    Attach(agents::AttachArgs),
    /// Let an agent go, or all: they are not governed any more.
    Detach(agents::DetachArgs),
    /// List agents.
    Ps(agents::PsArgs),
    /// Watch agents live: what they do, what is refused, what they have left.
    Top(top::TopArgs),
    /// Stop every process of an agent where it is.
    Freeze(agents::NameArgs),
    /// Let a frozen agent go on.
    Thaw(agents::NameArgs),
    /// Kill every process of an agent.
    Kill(agents::NameArgs),
    /// Give an agent another policy, or read all policies again.
    Reload(agents::ReloadArgs),
    /// Show budgets, and give agents more of them.
    Budget(budget::BudgetArgs),
    /// Show what waits for an operator's approval, and answer.
    Approvals(approvals::ApprovalsArgs),
    /// Show what agents sent and received, by destination.
    Traffic(traffic::TrafficArgs),
    /// Say what was refused last, by which rule and why, and what would permit it.
    Why(why::WhyArgs),
    /// Say what this machine can enforce.
    Doctor(doctor::DoctorArgs),
    /// End all enforcement, and remove what outlives the daemon.
    Uninstall(uninstall::UninstallArgs),
    /// Read the audit log.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Report what agents did, as text, Markdown or a page with plots.
    Report(account::ReportArgs),
    /// Check, try, explain, compare and learn policies.
    Policy(policy::PolicyArgs),
    /// Print a completion script for a shell.
    Completions(generate::CompletionsArgs),
    /// Write manual pages into a folder.
    Man(generate::ManArgs),
    #[command(flatten)]
    Internal(internal::InternalCommand),
}

/// Where the daemon listens.
#[derive(Clone, Debug, Args)]
pub struct SocketArgs {
    /// The daemon's socket.
    #[arg(long, value_name = "PATH", env = "AGENTGUARD_SOCKET", default_value = SOCKET)]
    pub socket: PathBuf,
}

/// Does what the command line says, and gives the exit status.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Run(args) => run::run(args),
        Command::Daemon(args) => daemon::run(args),
        Command::Attach(args) => agents::attach(args),
        Command::Detach(args) => agents::detach(&args),
        Command::Ps(args) => agents::ps(&args),
        Command::Top(args) => top::run(&args),
        Command::Freeze(args) => agents::act(&args, "freeze"),
        Command::Thaw(args) => agents::act(&args, "thaw"),
        Command::Kill(args) => agents::act(&args, "kill"),
        Command::Reload(args) => agents::reload(args),
        Command::Budget(args) => budget::run(args),
        Command::Approvals(args) => approvals::run(args),
        Command::Traffic(args) => traffic::run(&args),
        Command::Why(args) => why::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Uninstall(args) => uninstall::run(&args),
        Command::Audit(command) => audit::run(command),
        Command::Report(args) => account::run(&args),
        Command::Policy(args) => policy::run(args),
        Command::Completions(args) => generate::completions(&args),
        Command::Man(args) => generate::man(&args),
        Command::Internal(command) => Ok(internal::run(command)),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("agentguard: {error}");
        error.exit().into()
    })
}

/// Standard error for people: warnings of this program, filtered by `AGENTGUARD_LOG`.
fn log_to_stderr(default: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("AGENTGUARD_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    // Fails only where a subscriber is set already, as tests may.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A full disk behind standard error must not end the daemon: a complaint about it would panic.
        .log_internal_errors(false)
        .with_ansi(report::has_colour(&std::io::stderr()))
        .with_target(false)
        .without_time()
        .try_init();
}

/// A runtime, and what runs on it.
fn on_runtime<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| {
        CliError::Other(
            exit::Exit::Failure,
            format!("failed to start threads: {error}"),
        )
    })?;
    runtime.block_on(work)
}

/// A policy as given: a path is made absolute, a name stays one.
fn policy_argument(policy: &str) -> String {
    let is_path = policy.contains('/')
        || [".yaml", ".yml"]
            .iter()
            .any(|extension| policy.ends_with(extension));
    match std::path::absolute(policy) {
        Ok(path) if is_path => path.to_string_lossy().into_owned(),
        _ => policy.to_owned(),
    }
}

/// `K=V`.
fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

/// Prints a value as JSON.
fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::Other(exit::Exit::Failure, error.to_string()))?;
    print(&format!("{text}\n"))
}

/// Prints; a reader that has gone (`| head`) is no failure of ours, it ends us quietly.
fn print(text: &str) -> Result<(), CliError> {
    use std::io::Write;
    let mut output = std::io::stdout().lock();
    match output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
    {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(CliError::Other(
            exit::Exit::InputOutput,
            format!("failed to print: {error}"),
        )),
        Ok(()) => Ok(()),
    }
}

/// A plain table.
fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table
        .load_preset(comfy_table::presets::NOTHING)
        .set_header(header.to_vec());
    table
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
