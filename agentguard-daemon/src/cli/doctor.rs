//! `agentguard doctor`: what this machine can enforce, and what to do where it cannot.

use std::process::ExitCode;

use clap::Args;

use super::exit::Exit;
use super::report::{CliError, has_colour};
use crate::agent::Hierarchy;
use crate::kernel::{ProbeStatus, probe};

/// Arguments of `doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  agentguard doctor\n  agentguard doctor --json | jq '.[] | select(.status != \"ok\")'\n\nExit status 78 if something is missing without which nothing can be enforced."
)]
pub struct DoctorArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
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
