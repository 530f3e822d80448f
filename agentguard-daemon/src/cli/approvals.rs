//! `agentguard approvals`: what rules with `ask` refused, and what an operator says to it.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use hyper::Method;

use super::SocketArgs;
use super::exit::Exit;
use super::report::CliError;
use crate::api::Client;
use crate::api::wire::ApprovalRequest;
use crate::approval::{Approvals, Granted, Scope, Waiting, seconds};
use crate::event::escape::printable;

/// Arguments of `approvals`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  agentguard approvals list\n  sudo agentguard approvals grant 7                 (once)\n  sudo agentguard approvals grant 7 --for 15m\n  sudo agentguard approvals grant 7 --session\n  sudo agentguard approvals deny 8\n\nWhat a rule with `ask` speaks of is refused and waits here. A grant is for exactly that: the same agent, the same\nobject, the same arguments. The agent tries again, and goes ahead. No number is given twice: one that is out of date is refused.\n`agentguard top` shows the same live (key a), and a webhook can answer too: docs/approvals.md."
)]
pub struct ApprovalsArgs {
    #[command(subcommand)]
    command: ApprovalsCommand,
}

#[derive(Debug, Subcommand)]
enum ApprovalsCommand {
    /// Show what waits, and what is granted.
    #[command(
        after_help = "Examples:\n  agentguard approvals list\n  agentguard approvals list claude --json | jq '.waiting[].id'"
    )]
    List(ListArgs),
    /// Permit exactly what was refused: once, for a time, or until the session ends.
    #[command(
        after_help = "Examples:\n  sudo agentguard approvals grant 7\n  sudo agentguard approvals grant 7 --for 1h30m\n  sudo agentguard approvals grant 7 --session\n\nOnly root, and nobody governed, may do this. It is recorded, with who did it."
    )]
    Grant(GrantArgs),
    /// Say no: it is refused as before, and listed as denied.
    #[command(
        after_help = "Example:\n  sudo agentguard approvals deny 8\n\nOnly root, and nobody governed, may do this. It is recorded."
    )]
    Deny(IdArgs),
    /// Take a grant back. The rule asks again from then on.
    #[command(
        after_help = "Example:\n  sudo agentguard approvals revoke 7\n\nWhat was done or is open already stays so. Only root, and nobody governed, may do this. It is recorded."
    )]
    Revoke(IdArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// The agent, as `agentguard ps` has it [default: all]
    name: Option<String>,
    /// Also what was denied, and grants of which nothing is left.
    #[arg(long)]
    all: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

#[derive(Debug, Args)]
struct GrantArgs {
    #[command(flatten)]
    which: IdArgs,
    /// Any number of times, for so long: `90s`, `15m`, `1h30m`.
    #[arg(long = "for", value_name = "TIME", conflicts_with = "session", value_parser = seconds)]
    time: Option<u64>,
    /// Any number of times, until the session ends.
    #[arg(long)]
    session: bool,
}

#[derive(Debug, Args)]
struct IdArgs {
    /// The number, as `agentguard approvals list` has it. No other act ever has it.
    id: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Runs the command.
pub fn run(args: ApprovalsArgs) -> Result<ExitCode, CliError> {
    match args.command {
        ApprovalsCommand::List(args) => list(&args)?,
        ApprovalsCommand::Grant(args) => {
            let scope = match args.time {
                Some(seconds) => Scope::Seconds(seconds),
                None if args.session => Scope::Session,
                None => Scope::Once,
            };
            let granted: Granted =
                ask(&args.which, "grant", &ApprovalRequest { scope, key: None })?;
            let done = format!("granted {}", scope.text());
            say(&args.which, &granted, &granted.what, &done)?;
        }
        ApprovalsCommand::Deny(args) => {
            let waiting: Waiting = ask(&args, "deny", &())?;
            say(&args, &waiting, &waiting, "denied")?;
        }
        ApprovalsCommand::Revoke(args) => {
            let granted: Granted = ask(&args, "revoke", &())?;
            say(&args, &granted, &granted.what, "taken back")?;
        }
    }
    Ok(Exit::Ok.into())
}

fn ask<T: serde::de::DeserializeOwned>(
    which: &IdArgs,
    act: &str,
    request: &impl serde::Serialize,
) -> Result<T, CliError> {
    super::on_runtime(async {
        let mut client = Client::connect(&which.socket.socket).await?;
        let path = format!("/approvals/{}/{act}", which.id);
        Ok(client.ask_with(Method::POST, &path, request).await?)
    })
}

fn say(
    which: &IdArgs,
    value: &impl serde::Serialize,
    what: &Waiting,
    done: &str,
) -> Result<(), CliError> {
    if which.json {
        return super::print_json(value);
    }
    super::print(&format!("{}: {}: {done}\n", what.agent, what.deed()))
}

fn list(args: &ListArgs) -> Result<(), CliError> {
    let path = match &args.name {
        Some(name) => format!("/approvals?agent={name}"),
        None => "/approvals".to_owned(),
    };
    let mut approvals: Approvals = super::on_runtime(async {
        let mut client = Client::connect(&args.socket.socket).await?;
        Ok(client.ask(Method::GET, &path).await?)
    })?;
    if !args.all {
        approvals
            .waiting
            .retain(|waiting| waiting.denied_by.is_none());
        approvals.granted.retain(|granted| !granted.over);
    }
    if args.json {
        return super::print_json(&approvals);
    }
    super::print(&in_words(&approvals))
}

fn in_words(approvals: &Approvals) -> String {
    let mut text = String::new();
    if approvals.waiting.is_empty() && approvals.granted.is_empty() {
        text.push_str("Nothing waits for an approval, and nothing is granted.\n");
    }
    if !approvals.waiting.is_empty() {
        let mut table = super::table(&["ID", "AGENT", "ASKS TO", "RULE", "TRIES", "LAST"]);
        for waiting in &approvals.waiting {
            let mut rule = printable(waiting.rule.as_deref().unwrap_or("default")).into_owned();
            if let Some(by) = &waiting.denied_by {
                rule = format!("{rule} (denied by {})", printable(by));
            }
            table.add_row([
                waiting.id.to_string(),
                waiting.agent.clone(),
                waiting.deed(),
                rule,
                waiting.tries.to_string(),
                short(&waiting.last),
            ]);
        }
        let _ = writeln!(text, "{table}");
        text.push_str(
            "\nTo permit one: sudo agentguard approvals grant ID [--for TIME | --session]\n",
        );
    }
    if !approvals.granted.is_empty() {
        if !text.is_empty() {
            text.push('\n');
        }
        let mut table = super::table(&["ID", "AGENT", "MAY", "SCOPE", "USED", "UNTIL", "BY"]);
        for granted in &approvals.granted {
            let scope = match granted.scope {
                Scope::Seconds(_) => "time".to_owned(),
                other => other.text(),
            };
            let until = granted.until.as_deref().map_or("-".to_owned(), short);
            table.add_row([
                granted.what.id.to_string(),
                granted.what.agent.clone(),
                granted.what.deed(),
                if granted.over {
                    format!("{scope} (over)")
                } else {
                    scope
                },
                granted.used.to_string(),
                until,
                printable(&granted.by).into_owned(),
            ]);
        }
        let _ = writeln!(text, "{table}");
    }
    if let Some(trouble) = approvals
        .webhook
        .as_ref()
        .and_then(|it| it.trouble.as_ref())
    {
        let _ = writeln!(
            text,
            "The webhook gives no answers: {}.",
            printable(trouble)
        );
    }
    if approvals.dropped > 0 {
        let _ = writeln!(
            text,
            "{} more were refused and are not listed, because too many waited or they could not be numbered; the audit log has them.",
            approvals.dropped
        );
    }
    text
}

/// A time to the second.
fn short(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => time.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::approval::WebhookState;

    fn waiting() -> Waiting {
        Waiting {
            id: 7,
            agent: "claude".to_owned(),
            session: 3,
            op: "exec".to_owned(),
            target: "/usr/bin/git".to_owned(),
            to: None,
            access: Some("exec".to_owned()),
            argv: Some(["git", "push", "a\\x1bb"].map(str::to_owned).to_vec()),
            exe: None,
            pid: 1,
            uid: 0,
            rule: Some("ask-push".to_owned()),
            reason: None,
            first: "2026-01-01T00:00:00.000000001Z".to_owned(),
            last: "2026-01-01T00:00:05.000000001Z".to_owned(),
            tries: 2,
            denied_by: None,
        }
    }

    #[test]
    fn what_waits_and_what_is_granted_are_listed_with_what_to_do() {
        let granted = Granted {
            what: Waiting { id: 3, ..waiting() },
            scope: Scope::Once,
            by: "root".to_owned(),
            at: String::new(),
            until: None,
            used: 1,
            over: true,
        };
        let text = in_words(&Approvals {
            waiting: vec![waiting()],
            granted: vec![granted],
            dropped: 2,
            webhook: Some(WebhookState {
                trouble: Some("no\u{1b} answer".to_owned()),
                ..WebhookState::default()
            }),
        });
        assert!(text.contains("run /usr/bin/git push a\\x1bb"), "{text}");
        assert!(text.contains("2026-01-01T00:00:05Z"), "{text}");
        assert!(text.contains("approvals grant ID"), "{text}");
        assert!(text.contains("once (over)"), "{text}");
        assert!(text.contains("2 more were refused"), "{text}");
        assert!(text.contains("no answers: no\\x1b answer."), "{text}");
        assert!(in_words(&Approvals::default()).starts_with("Nothing waits"));
    }

    #[test]
    fn times_are_told_and_at_least_a_second() {
        assert_eq!(seconds("1m30s"), Ok(90));
        assert!(seconds("0s").is_err() && seconds("soon").is_err());
    }
}
