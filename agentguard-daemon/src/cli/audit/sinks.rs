//! `agentguard audit sinks`: to whom the daemon sends records, how far it has come, and what to do where that stands still.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use hyper::Method;

use crate::api::Client;
use crate::api::wire::SkipRequest;
use crate::cli::exit::Exit;
use crate::cli::report::CliError;
use crate::cli::{SocketArgs, on_runtime, print, print_json};
use crate::event::escape::printable;
use crate::export::SinkState;

/// Arguments of `audit sinks`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  sudo agentguard audit sinks
  sudo agentguard audit sinks --json | jq '.[] | select(.lag > 10000)'
  sudo agentguard audit sinks retry siem
  sudo agentguard audit sinks skip collector 40212

POSITION is the last record that the receiver has, LAG how many it has not. Sinks are configured in \
/etc/agentguard/agentguard.yaml."
)]
pub struct SinksArgs {
    #[command(subcommand)]
    command: Option<SinksCommand>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct Output {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

#[derive(Debug, Subcommand)]
enum SinksCommand {
    /// Leave out the one record that a receiver does not take, for ever: what is after it is sent.
    #[command(
        after_help = "Example:\n  sudo agentguard audit sinks skip collector 40212\n\nOnly the record that `audit sinks` names as refused can be left out, and only where it is that record which the\nreceiver does not take (400, 413 or 422 for it alone). It stays in the log, and is counted as skipped. Only root, and\nnobody governed, may do this. It is recorded."
    )]
    Skip(SkipArgs),
    /// Try again at once what failed, after somebody mended it.
    #[command(after_help = "Example:\n  sudo agentguard audit sinks retry siem")]
    Retry(RetryArgs),
}

#[derive(Debug, Args)]
struct SkipArgs {
    /// The sink, as `agentguard audit sinks` has it.
    sink: String,
    /// The number of the record.
    record: u64,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct RetryArgs {
    /// The sink, as `agentguard audit sinks` has it.
    sink: String,
    #[command(flatten)]
    output: Output,
}

pub fn run(args: &SinksArgs) -> Result<ExitCode, CliError> {
    match &args.command {
        None => list(&args.output)?,
        Some(SinksCommand::Skip(SkipArgs {
            sink,
            record,
            output,
        })) => {
            let record = *record;
            let done = format!("{sink}: record {record} is left out\n");
            order(sink, "skip", &SkipRequest { record }, output, &done)?;
        }
        Some(SinksCommand::Retry(RetryArgs { sink, output })) => {
            order(
                sink,
                "retry",
                &(),
                output,
                &format!("{sink}: it tries again\n"),
            )?;
        }
    }
    Ok(Exit::Ok.into())
}

fn order(
    sink: &str,
    act: &str,
    request: &impl serde::Serialize,
    output: &Output,
    done: &str,
) -> Result<(), CliError> {
    let state: SinkState = on_runtime(async {
        let mut client = Client::connect(&output.socket.socket).await?;
        let path = format!("/sinks/{sink}/{act}");
        Ok(client.ask_with(Method::POST, &path, request).await?)
    })?;
    if output.json {
        return print_json(&state);
    }
    print(done)
}

fn list(args: &Output) -> Result<(), CliError> {
    let sinks: Vec<SinkState> = on_runtime(async {
        let mut client = Client::connect(&args.socket.socket).await?;
        Ok(client.ask(Method::GET, "/sinks").await?)
    })?;
    if args.json {
        return print_json(&sinks);
    }
    print(&in_words(&sinks))
}

fn in_words(sinks: &[SinkState]) -> String {
    if sinks.is_empty() {
        return "no sinks are configured\n".to_owned();
    }
    let mut table = crate::cli::table(&[
        "NAME", "KIND", "STATE", "POSITION", "LAG", "RETRIES", "MISSING", "REJECTED", "SKIPPED",
        "TO",
    ]);
    for sink in sinks {
        table.add_row([
            sink.name.clone(),
            sink.kind.clone(),
            sink.doing.name().to_owned(),
            sink.position.to_string(),
            sink.lag.to_string(),
            sink.retries.to_string(),
            sink.missing.to_string(),
            sink.rejected.to_string(),
            sink.skipped.to_string(),
            printable(&sink.to).into_owned(),
        ]);
    }
    let mut text = format!("{table}\n");
    for sink in sinks {
        if let (Some(error), Some(at)) = (&sink.last_error, &sink.last_error_at) {
            let at = at.get(..19).unwrap_or(at);
            // Writing to a `String` cannot fail.
            let _ = writeln!(
                text,
                "{}, last trouble, {at}: {}",
                sink.name,
                printable(error)
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::state::Doing;

    #[test]
    fn a_sink_in_trouble_says_why() {
        let sink = SinkState {
            name: "siem".to_owned(),
            kind: "syslog".to_owned(),
            to: "tls://logs.example.com:6514".to_owned(),
            doing: Doing::Waiting,
            position: 7,
            newest: 9,
            lag: 2,
            last_error: Some("connection refused\u{1b}".to_owned()),
            last_error_at: Some("2026-11-26T09:00:00.5Z".to_owned()),
            ..SinkState::default()
        };
        let text = in_words(&[sink]);
        assert!(text.contains("waiting") && text.contains(" 7 "), "{text}");
        let last = text.lines().last().unwrap();
        assert_eq!(
            last,
            r"siem, last trouble, 2026-11-26T09:00:00: connection refused\x1b"
        );
        assert!(in_words(&[]).starts_with("no sinks"));
    }
}
