//! `agentguard why`: what was refused last, and what would permit it. For people and for agents.

use std::process::ExitCode;

use clap::Args;
use hyper::Method;

use super::exit::Exit;
use super::report::{CliError, has_colour};
use super::{SocketArgs, denial};
use crate::api::{Client, wire::Why};

/// Arguments of `why`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  agentguard why            (from inside an agent: about itself)\n  agentguard why claude     (from outside)\n  agentguard why claude --json"
)]
pub struct WhyArgs {
    /// The agent; from inside one it is known.
    name: Option<String>,
    /// At most so many, the latest.
    #[arg(long, short = 'n', default_value_t = 10)]
    limit: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

pub fn run(args: &WhyArgs) -> Result<ExitCode, CliError> {
    let path = args
        .name
        .as_deref()
        .map_or("/why".to_owned(), |name| format!("/why?agent={name}"));
    let mut why: Why = super::on_runtime(async {
        Ok(Client::connect(&args.socket.socket)
            .await?
            .ask(Method::GET, &path)
            .await?)
    })?;
    let excess = why.refusals.len().saturating_sub(args.limit);
    why.refusals.drain(..excess);
    if args.json {
        super::print_json(&why)?;
        return Ok(Exit::Ok.into());
    }
    if why.refusals.is_empty() {
        super::print(&format!("Nothing was refused to {} so far.\n", why.agent))?;
    }
    let colour = has_colour(&std::io::stdout());
    for record in &why.refusals {
        super::print(&format!("{}\n", denial::line(record, colour)))?;
    }
    Ok(Exit::Ok.into())
}
