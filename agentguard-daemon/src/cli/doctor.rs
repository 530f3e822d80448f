//! `agentguard doctor`: what this machine can enforce, and what to do where it cannot.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use hyper::Method;

use super::SocketArgs;
use super::exit::Exit;
use super::report::{CliError, has_colour};
use crate::agent::Hierarchy;
use crate::api::wire::Status;
use crate::api::{Client, ClientError};
use crate::kernel::{Pins, ProbeStatus, probe};
use crate::session::saved_agents;

/// Arguments of `doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  agentguard doctor\n  agentguard doctor --json | jq '.[] | select(.status != \"ok\")'\n\nExit status 78 if something is missing without which nothing can be enforced."
)]
pub struct DoctorArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

#[derive(serde::Serialize)]
struct Finding {
    name: &'static str,
    status: ProbeStatus,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

pub fn run(args: &DoctorArgs) -> Result<ExitCode, CliError> {
    let mut findings: Vec<Finding> = probe()
        .into_iter()
        .map(|probe| Finding {
            name: probe.name,
            status: probe.status,
            detail: probe.detail,
            remedy: probe.remedy,
        })
        .collect();
    if !findings
        .iter()
        .any(|finding| finding.name.contains("cgroup"))
    {
        findings.push(cgroup());
    }
    findings.push(mode(&args.socket.socket));
    if args.json {
        super::print_json(&findings)?;
    } else {
        super::print(&lines(&findings, has_colour(&std::io::stdout())))?;
    }
    let missing = findings
        .iter()
        .any(|finding| finding.status == ProbeStatus::Missing);
    Ok(if missing {
        Exit::NoKernelSupport
    } else {
        Exit::Ok
    }
    .into())
}

/// Who enforces now: the kernel with a daemon, the kernel alone, or nobody.
fn mode(socket: &Path) -> Finding {
    let status: Result<Status, CliError> = super::on_runtime(async {
        let mut client = Client::connect(socket).await?;
        Ok(client.ask(Method::GET, "/status").await?)
    });
    let (status, detail, remedy) = match status {
        Ok(status) => (
            ProbeStatus::Ok,
            format!(
                "a daemon runs (pid {}), {} agents are governed",
                status.pid, status.agents
            ),
            None,
        ),
        Err(CliError::Client(ClientError::NoDaemon(_))) => without_daemon(),
        Err(error) => (
            ProbeStatus::Ok,
            format!("a daemon runs, and does not say more: {error}"),
            None,
        ),
    };
    Finding {
        name: "mode",
        status,
        detail,
        remedy,
    }
}

fn without_daemon() -> (ProbeStatus, String, Option<String>) {
    let nothing =
        "no daemon runs, and nothing is pinned: nobody is governed but by `agentguard run`";
    let start = "start one with `systemctl start agentguard`, or end what is pinned with `agentguard uninstall`";
    match Pins::of_host().in_force() {
        Ok(None) => (ProbeStatus::Ok, nothing.to_owned(), None),
        Ok(Some(_)) => {
            let folder = super::daemon::read(None).map(|config| config.state_dir);
            let agents = folder.ok().and_then(|folder| saved_agents(&folder).ok());
            let count = agents.map_or("an unknown number of".to_owned(), |it| it.len().to_string());
            let detail = format!(
                "no daemon runs; what is pinned is in force, and {count} agents are governed by it"
            );
            (ProbeStatus::Degraded, detail, Some(start.to_owned()))
        }
        Err(error) => (
            ProbeStatus::Degraded,
            format!("no daemon runs; whether something is pinned cannot be seen: {error}"),
            Some("ask as root".to_owned()),
        ),
    }
}

fn cgroup() -> Finding {
    let (status, detail, remedy) = match Hierarchy::find() {
        Ok(hierarchy) => (
            ProbeStatus::Ok,
            hierarchy.mount().display().to_string(),
            None,
        ),
        Err(error) => {
            let text = error.to_string();
            let (detail, remedy) = text.split_once("; ").unwrap_or((&text, ""));
            (
                ProbeStatus::Missing,
                detail.to_owned(),
                Some(remedy.to_owned()),
            )
        }
    };
    Finding {
        name: "cgroup-v2",
        status,
        detail,
        remedy,
    }
}

fn lines(findings: &[Finding], colour: bool) -> String {
    let width = findings
        .iter()
        .map(|finding| finding.name.len())
        .max()
        .unwrap_or(0);
    let mut lines = Vec::new();
    for finding in findings {
        let (mark, code) = match finding.status {
            ProbeStatus::Ok => ("ok      ", "32"),
            ProbeStatus::Degraded => ("degraded", "33"),
            ProbeStatus::Missing => ("MISSING ", "1;31"),
        };
        let mark = if colour {
            format!("\x1b[{code}m{mark}\x1b[0m")
        } else {
            mark.to_owned()
        };
        lines.push(format!(
            "{mark}  {:width$}  {}",
            finding.name, finding.detail
        ));
        if let Some(remedy) = &finding.remedy {
            lines.push(format!("{:10}{:width$}  → {remedy}", "", ""));
        }
    }
    let missing = findings
        .iter()
        .filter(|finding| finding.status == ProbeStatus::Missing)
        .count();
    lines.push(match missing {
        0 => "\nPolicies can be enforced on this machine.\n".to_owned(),
        count => format!("\nPolicies cannot be enforced on this machine: {count} missing.\n"),
    });
    lines.join("\n")
}
