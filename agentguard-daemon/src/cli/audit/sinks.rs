//! `agentguard audit sinks`: to whom the daemon sends records, and how far it has come.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use hyper::Method;

use crate::api::Client;
use crate::cli::exit::Exit;
use crate::cli::report::CliError;
use crate::cli::{SocketArgs, on_runtime, print, print_json};
use crate::event::escape::printable;
use crate::export::SinkState;

/// Arguments of `audit sinks`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo agentguard audit sinks
  sudo agentguard audit sinks --json | jq '.[] | select(.lag > 10000)'

POSITION is the last record that the receiver has, LAG how many it has not. Sinks are configured in \
/etc/agentguard/agentguard.yaml.")]
pub struct SinksArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

pub fn run(args: &SinksArgs) -> Result<ExitCode, CliError> {
    let sinks: Vec<SinkState> = on_runtime(async {
        let mut client = Client::connect(&args.socket.socket).await?;
        Ok(client.ask(Method::GET, "/sinks").await?)
    })?;
    if args.json {
        print_json(&sinks)?;
    } else {
        print(&in_words(&sinks))?;
    }
    Ok(Exit::Ok.into())
}

fn in_words(sinks: &[SinkState]) -> String {
    if sinks.is_empty() {
        return "no sinks are configured\n".to_owned();
    }
    let mut table = crate::cli::table(&[
        "NAME", "KIND", "STATE", "POSITION", "LAG", "RETRIES", "MISSING", "REJECTED", "TO",
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
