//! `agentguard uninstall`: the end of all enforcement, with a daemon's help or without.
//!
//! Only somebody who is not governed may do it. Whatever cannot be ended in order is ended all the same.

use std::io::{BufRead as _, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::exit::Exit;
use super::report::CliError;
use crate::agent::{Cgroup, Hierarchy};
use crate::daemon::{self, Config, DaemonError};
use crate::kernel::{KernelError, Pins};
use crate::session::{Engine, Leave, SavedAgent, SessionError, clear_state, saved_agents};

/// Arguments of `uninstall`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sudo systemctl stop agentguard && sudo agentguard uninstall\n  sudo agentguard uninstall --yes     (no questions: agents go on ungoverned)\n\nRemoves the pinned programs and maps, and the state of agents. The audit log, policies and configuration stay."
)]
pub struct UninstallArgs {
    /// Do not ask, even if agents are governed.
    #[arg(long)]
    yes: bool,
    /// Configuration [default: /etc/agentguard/agentguard.yaml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub fn run(args: &UninstallArgs) -> Result<ExitCode, CliError> {
    super::log_to_stderr("warn");
    if !nix::unistd::geteuid().is_root() {
        return Err(SessionError::from(KernelError::NotRoot).into());
    }
    let config = super::daemon::read(args.config.as_deref())?;
    let pins = Pins::of_host();
    refuse_the_governed(&pins)?;
    let _no_daemon = daemon::lock(&config).map_err(|error| match error {
        DaemonError::AlreadyRunning { pid } => CliError::Other(
            Exit::Busy,
            format!("a daemon runs (pid {pid}); `systemctl stop agentguard` first: what is pinned stays in force meanwhile"),
        ),
        error => super::daemon::failed(error),
    })?;
    let agents = match saved_agents(&config.state_dir) {
        Ok(agents) => agents,
        Err(error) => {
            eprintln!("agentguard: {error}");
            Vec::new()
        }
    };
    let is_pinned = pins.root().exists();
    let governs = pins.in_force().unwrap_or_default().is_some();
    if governs && !args.yes {
        confirm(&agents)?;
    }
    if governs {
        dismantle(&config);
    }
    pins.clear().map_err(SessionError::from)?;
    put_back(&agents);
    clear_state(&config.state_dir)?;
    super::print(&if is_pinned {
        format!(
            "Nothing is enforced any more: programs, maps and state are removed; {} agents go on ungoverned. The audit log stays at {}.\n",
            agents.len(),
            config.audit.display()
        )
    } else {
        "Nothing was pinned.\n".to_owned()
    })?;
    Ok(Exit::Ok.into())
}

/// The kernel's own answer about ourselves: an agent may be root.
fn refuse_the_governed(pins: &Pins) -> Result<(), CliError> {
    let governed = || {
        let what = "a governed process may not end its own enforcement".to_owned();
        CliError::Other(Exit::NotPermitted, what)
    };
    let own = rustix::process::getpid();
    let pidfd = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty())
        .map_err(|error| CliError::file("look at", "/proc/self".as_ref(), &error.into()))?;
    match pins.label_of(std::os::fd::AsFd::as_fd(&pidfd)) {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(governed()),
        Err(error) => Err(SessionError::from(error).into()),
    }
}

fn confirm(agents: &[SavedAgent]) -> Result<(), CliError> {
    if agents.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = agents.iter().map(|agent| agent.name.as_str()).collect();
    if !std::io::stdin().is_terminal() {
        let what = format!(
            "{} agents are governed ({}) and would go on ungoverned; say --yes if they shall",
            agents.len(),
            names.join(", ")
        );
        return Err(CliError::Other(Exit::Usage, what));
    }
    eprint!(
        "{} agents are governed ({}) and will go on ungoverned. Type `yes` to end all enforcement: ",
        agents.len(),
        names.join(", ")
    );
    let mut answer = String::new();
    // What cannot be read is no yes.
    let _ = std::io::stdin().lock().read_line(&mut answer);
    if answer.trim() == "yes" {
        Ok(())
    } else {
        let what = "nothing was changed".to_owned();
        Err(CliError::Other(Exit::Failure, what))
    }
}

/// The orderly way: the records that are still in the rings reach the log, and every agent is let go.
fn dismantle(config: &Config) {
    let ended = super::on_runtime(async {
        let engine = Engine::start(&config.engine(false)).await?;
        engine.stop(Leave::Release).await;
        Ok(())
    });
    if let Err(error) = ended {
        eprintln!("agentguard: {error}\nagentguard: everything is removed all the same");
    }
}

/// Processes of agents whose cgroups we made go back to where they came from, if they did not already.
fn put_back(agents: &[SavedAgent]) {
    let Ok(hierarchy) = Hierarchy::find() else {
        return;
    };
    for agent in agents.iter().filter(|agent| agent.owns_cgroup) {
        let Ok(cgroup) = hierarchy.open(&agent.cgroup) else {
            continue;
        };
        if !cgroup.id().is_ok_and(|id| id == agent.cgroup_id) {
            continue;
        }
        if let Some(from) = agent.came_from.clone().filter(|from| from.is_dir()) {
            let from = Cgroup::at(from);
            for pid in cgroup.processes().unwrap_or_default() {
                // It may have ended.
                let _ = from.add(pid);
            }
        }
        if cgroup.is_empty()
            && let Err(error) = cgroup.remove()
        {
            eprintln!("agentguard: {error}");
        }
    }
}
