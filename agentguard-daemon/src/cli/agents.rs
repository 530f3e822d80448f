//! Commands about agents of a running daemon: attach, detach, ps, freeze, thaw, kill, reload.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Args;
use hyper::Method;

use super::exit::Exit;
use super::report::CliError;
use super::{SocketArgs, policy_argument, variable};
use crate::api::wire::{AttachRequest, Reloaded, TargetRequest};
use crate::api::{Client, ClientError};
use crate::kernel::Pins;
use crate::session::{AgentInfo, PolicyRequest, SessionError, agents_in};

/// Arguments of `attach`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sudo agentguard attach --unit ollama.service --policy locked-down\n  sudo agentguard attach --cgroup /sys/fs/cgroup/agents/one --policy ./p.yaml --set workspace=/srv/one\n  sudo agentguard attach --pid 4711 --policy coding-agent --name claude\n\n--pid moves the process into a cgroup of its own; files that it has open stay open."
)]
#[group(id = "who", required = true, multiple = false, args = ["cgroup", "unit", "pid"])]
pub struct AttachArgs {
    /// A cgroup: its folder, or its path in the hierarchy.
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// A systemd unit, with all its processes.
    #[arg(long, value_name = "UNIT")]
    unit: Option<String>,
    /// A process; it is moved into a cgroup of its own.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    #[command(flatten)]
    policy: PolicyOptions,
    /// Name of the agent [default: the policy's]
    #[arg(long)]
    name: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// A policy with its variables.
#[derive(Clone, Debug, Args)]
pub struct PolicyOptions {
    /// The policy: a name in the folder of policies, a built-in one, or a file.
    #[arg(long, short = 'p', value_name = "POLICY")]
    pub policy: String,
    /// A value for a variable of the policy.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = variable)]
    pub set: Vec<(String, String)>,
}

impl PolicyOptions {
    /// The request; variables given here win over `defaults`.
    pub fn request(&self, defaults: impl IntoIterator<Item = (String, String)>) -> PolicyRequest {
        PolicyRequest {
            policy: policy_argument(&self.policy),
            vars: defaults
                .into_iter()
                .chain(self.set.iter().cloned())
                .collect(),
        }
    }
}

/// Arguments of commands about one agent.
#[derive(Debug, Args)]
pub struct NameArgs {
    /// The agent, as `agentguard ps` has it.
    name: String,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Arguments of `detach`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sudo agentguard detach claude\n  sudo agentguard detach --all"
)]
#[group(id = "which", required = true, multiple = false, args = ["name", "all"])]
pub struct DetachArgs {
    /// The agent, as `agentguard ps` has it.
    name: Option<String>,
    /// Every agent.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Arguments of `ps`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  agentguard ps\n  agentguard ps --json | jq -r '.[].name'")]
pub struct PsArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Arguments of `reload`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sudo agentguard reload                               (all policies, from their files)\n  sudo agentguard reload claude --policy locked-down   (another policy for one agent)\n\nOn any error the policy before stays in force."
)]
pub struct ReloadArgs {
    /// The agent.
    #[arg(requires = "policy")]
    name: Option<String>,
    /// Its new policy.
    #[arg(long, short = 'p', requires = "name", value_name = "POLICY")]
    policy: Option<String>,
    /// A value for a variable of the policy.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = variable, requires = "policy")]
    set: Vec<(String, String)>,
    #[command(flatten)]
    socket: SocketArgs,
}

pub fn attach(args: AttachArgs) -> Result<ExitCode, CliError> {
    let target = match (args.cgroup, args.unit, args.pid) {
        (Some(cgroup), ..) => TargetRequest::Cgroup(cgroup),
        (_, Some(unit), _) => TargetRequest::Cgroup(cgroup_of_unit(&unit)?),
        (.., Some(pid)) => TargetRequest::Pid(pid),
        _ => {
            return Err(CliError::Other(
                Exit::Usage,
                "name a cgroup, unit or pid".to_owned(),
            ));
        }
    };
    let moved = match target {
        TargetRequest::Pid(pid) => Some(pid),
        TargetRequest::Cgroup(_) => None,
    };
    let request = AttachRequest {
        name: args.name,
        account: None,
        policy: args.policy.request([]),
        target,
        dies_with_daemon: false,
    };
    let agent: AgentInfo = super::on_runtime(async {
        let mut client = Client::connect(&args.socket.socket).await?;
        Ok(client.ask_with(Method::POST, "/agents", &request).await?)
    })?;
    if args.json {
        super::print_json(&agent)?;
    } else {
        if let Some(pid) = moved {
            super::print(&format!(
                "Process {pid} was moved to {}.\n",
                agent.cgroup.display()
            ))?;
        }
        super::print(&format!(
            "{} (session {}) is governed by `{}`, mode {}, {} processes.\n",
            agent.name, agent.session, agent.policy, agent.mode, agent.processes
        ))?;
        if !agent.environment.is_empty() {
            let mut text =
                "Models are called through the gateway; the agent's environment must have:\n"
                    .to_owned();
            for (name, value) in &agent.environment {
                // Writing to a `String` cannot fail.
                let _ = writeln!(text, "  {name}={value}");
            }
            super::print(&text)?;
        }
    }
    Ok(Exit::Ok.into())
}

/// Asks systemd for a unit's cgroup.
fn cgroup_of_unit(unit: &str) -> Result<PathBuf, CliError> {
    let output = Command::new("systemctl")
        .args(["show", "--property=ControlGroup", "--value", "--", unit])
        .output()
        .map_err(|error| {
            let what =
                format!("failed to ask systemctl for the cgroup of {unit}: {error}; use --cgroup");
            CliError::Other(Exit::Failure, what)
        })?;
    let cgroup = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || cgroup.is_empty() || cgroup == "/" {
        let what =
            format!("the unit {unit} has no cgroup: is it running? see `systemctl status {unit}`");
        return Err(CliError::Other(Exit::Missing, what));
    }
    Ok(cgroup.into())
}

pub fn detach(args: &DetachArgs) -> Result<ExitCode, CliError> {
    super::on_runtime(async {
        let mut client = Client::connect(&args.socket.socket).await?;
        let names = if let Some(name) = &args.name {
            vec![name.clone()]
        } else {
            let agents: Vec<AgentInfo> = client.ask(Method::GET, "/agents").await?;
            agents.into_iter().map(|agent| agent.name).collect()
        };
        for name in names {
            let agent: AgentInfo = client
                .ask(Method::DELETE, &format!("/agents/{name}"))
                .await?;
            super::print(&format!(
                "{} is not governed any more: {} actions were allowed, {} denied.\n",
                agent.name, agent.tally.allowed, agent.tally.denied
            ))?;
        }
        Ok(())
    })?;
    Ok(Exit::Ok.into())
}

pub fn act(args: &NameArgs, act: &str) -> Result<ExitCode, CliError> {
    super::on_runtime(async {
        let mut client = Client::connect(&args.socket.socket).await?;
        Ok(client
            .ask::<()>(Method::POST, &format!("/agents/{}/{act}", args.name))
            .await?)
    })?;
    Ok(Exit::Ok.into())
}

pub fn ps(args: &PsArgs) -> Result<ExitCode, CliError> {
    let asked: Result<Vec<AgentInfo>, CliError> = super::on_runtime(async {
        let mut client = Client::connect(&args.socket.socket).await?;
        Ok(client.ask(Method::GET, "/agents").await?)
    });
    let (agents, by) = match asked {
        Ok(agents) => (agents, By::Daemon),
        Err(CliError::Client(ClientError::NoDaemon(path))) => match pinned_agents()? {
            Some(agents) => {
                eprintln!(
                    "agentguard: no daemon runs; what is pinned is in force, and {} agents are governed by it",
                    agents.len()
                );
                (agents, By::Pins)
            }
            None => return Err(ClientError::NoDaemon(path).into()),
        },
        Err(error) => return Err(error),
    };
    if args.json {
        let listed: Vec<_> = agents.iter().map(|agent| Listed::of(agent, by)).collect();
        super::print_json(&listed)?;
        return Ok(Exit::Ok.into());
    }
    let header = [
        "NAME",
        "SESSION",
        "POLICY",
        "MODE",
        "PROCESSES",
        "STATE",
        "ALLOWED",
        "DENIED",
        "BUDGET",
        "CGROUP",
    ];
    let mut table = super::table(&header);
    // Nobody counts where no daemon runs.
    let count = |number: u64| match by {
        By::Daemon => number.to_string(),
        By::Pins => "-".to_owned(),
    };
    for agent in &agents {
        table.add_row([
            agent.name.clone(),
            agent.session.to_string(),
            agent.policy.clone(),
            agent.mode.clone(),
            agent.processes.to_string(),
            if agent.frozen { "frozen" } else { "running" }.to_owned(),
            count(agent.tally.allowed),
            count(agent.tally.denied + agent.tally.would_deny),
            agent
                .budget
                .as_ref()
                .map_or("-".to_owned(), |it| format!("{} % {}", it.percent, it.id)),
            agent.cgroup.display().to_string(),
        ]);
    }
    super::print(&format!("{table}\n"))?;
    Ok(Exit::Ok.into())
}

/// Who enforces now.
#[derive(Clone, Copy, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum By {
    /// The kernel, with a daemon.
    Daemon,
    /// The kernel alone.
    Pins,
}

/// An agent in a list.
#[derive(serde::Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    agent: &'a AgentInfo,
    enforced_by: By,
}

impl<'a> Listed<'a> {
    fn of(agent: &'a AgentInfo, by: By) -> Self {
        Self {
            agent,
            enforced_by: by,
        }
    }
}

/// Agents that are governed although no daemon runs; `None` where nothing is pinned.
fn pinned_agents() -> Result<Option<Vec<AgentInfo>>, CliError> {
    // Only root can see pins.
    if !nix::unistd::geteuid().is_root()
        || Pins::of_host()
            .in_force()
            .map_err(SessionError::from)?
            .is_none()
    {
        return Ok(None);
    }
    let config = super::daemon::read(None)?;
    Ok(Some(agents_in(&config.state_dir)?))
}

pub fn reload(args: ReloadArgs) -> Result<ExitCode, CliError> {
    let outcomes: Vec<Reloaded> = super::on_runtime(async {
        let mut client = Client::connect(&args.socket.socket).await?;
        let Some((name, policy)) = args.name.zip(args.policy) else {
            return Ok(client.ask(Method::POST, "/reload").await?);
        };
        let request = PolicyOptions {
            policy,
            set: args.set,
        }
        .request([]);
        let path = format!("/agents/{name}/policy");
        let agent: AgentInfo = client.ask_with(Method::PUT, &path, &request).await?;
        Ok(vec![Reloaded {
            agent: agent.name,
            generation: Some(agent.generation),
            error: None,
        }])
    })?;
    let mut failed = false;
    for outcome in outcomes {
        match (outcome.generation, outcome.error) {
            (Some(generation), _) => {
                super::print(&format!(
                    "{}: generation {generation} is in force\n",
                    outcome.agent
                ))?;
            }
            (None, error) => {
                failed = true;
                let error = error.unwrap_or_default();
                eprintln!(
                    "{}: the policy before stays in force: {error}",
                    outcome.agent
                );
            }
        }
    }
    Ok(if failed { Exit::Usage } else { Exit::Ok }.into())
}
