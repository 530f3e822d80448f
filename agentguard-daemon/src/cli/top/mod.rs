//! `agentguard top`: agents as they work, live.
//!
//! `state.rs` is what is known and chosen, `approvals.rs` the same of what waits for an answer, `keys.rs` what keys do,
//! `draw.rs` and `draw_approvals.rs` how it looks, `live.rs` where it comes
//! from, `screen.rs` the terminal. What agents choose is made printable before it is kept, so none of it can reach
//! the terminal as anything but text.

#![expect(
    clippy::cast_precision_loss,
    reason = "rates and amounts are shown in a few digits"
)]

mod approvals;
mod draw;
mod draw_approvals;
mod keys;
mod live;
mod once;
mod row;
mod screen;
mod state;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_approvals;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Args;
use hyper::Method;

use self::state::{Filter, Sort};
use super::SocketArgs;
use super::exit::Exit;
use super::report::{CliError, has_colour};
use crate::api::Client;
use crate::api::wire::Snapshot;

/// Arguments of `top`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sudo agentguard top\n  sudo agentguard top --sort traffic --every 5\n  agentguard top --once               (one look, as text)\n  agentguard top --once --json | jq '.agents[].tally'\n\nKeys: ? lists them; a shows what waits for an answer, and 1, 2, 3, n, r answer it (docs/approvals.md). Freezing, thawing,\nkilling and answering need root; members of the group `agentguard` may look."
)]
pub struct TopArgs {
    /// Print one look and end.
    #[arg(long)]
    once: bool,
    /// Print it as JSON.
    #[arg(long, requires = "once")]
    json: bool,
    /// Order of agents.
    #[arg(long, value_enum, default_value = "denials")]
    sort: Sort,
    /// Show all records at first, and not denials only.
    #[arg(long)]
    all: bool,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=3600))]
    every: u16,
    #[command(flatten)]
    socket: SocketArgs,
}

/// What a look costs: one request.
async fn look(client: &mut Client) -> Result<Snapshot, crate::api::ClientError> {
    client.ask(Method::GET, "/snapshot").await
}

pub fn run(args: &TopArgs) -> Result<ExitCode, CliError> {
    if args.once {
        let snapshot = super::on_runtime(async {
            let mut client = Client::connect(&args.socket.socket).await?;
            Ok(look(&mut client).await?)
        })?;
        if args.json {
            super::print_json(&snapshot)?;
        } else {
            super::print(&once::text(&snapshot, args.sort))?;
        }
        return Ok(Exit::Ok.into());
    }
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        let what = "`agentguard top` needs a terminal; `agentguard top --once` prints one look, `--once --json` as JSON";
        return Err(CliError::Other(Exit::Usage, what.to_owned()));
    }
    let filter = if args.all {
        Filter::All
    } else {
        Filter::Denials
    };
    let state = state::State::new(args.sort, filter, has_colour(&std::io::stdout()));
    let every = std::time::Duration::from_secs(u64::from(args.every));
    super::on_runtime(live::run(&args.socket.socket, every, state))?;
    Ok(Exit::Ok.into())
}
