//! `agentguard traffic`: what agents sent and received, by destination.

use std::process::ExitCode;

use clap::Args;
use comfy_table::CellAlignment;
use hyper::Method;

use super::SocketArgs;
use super::exit::Exit;
use super::report::CliError;
use crate::api::Client;
use crate::event::escape::printable;
use crate::session::{AgentTraffic, Amounts, Destination};

/// Columns with texts; numbers are behind them.
const TEXTS: usize = 4;

/// Arguments of `traffic`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  agentguard traffic\n  agentguard traffic claude\n  agentguard traffic --json | jq '.[] | {agent, bytes_out}'\n\nCounted in the kernel since the agent came under governance: bytes of IP with its headers. When an agent ends, its numbers are in the log: `agentguard audit query --op traffic`."
)]
pub struct TrafficArgs {
    /// The agent, as `agentguard ps` has it [default: all]
    name: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Runs the command.
pub fn run(args: &TrafficArgs) -> Result<ExitCode, CliError> {
    let path = match &args.name {
        Some(name) => format!("/traffic?agent={name}"),
        None => "/traffic".to_owned(),
    };
    let agents: Vec<AgentTraffic> = super::on_runtime(async {
        let mut client = Client::connect(&args.socket.socket).await?;
        Ok(client.ask(Method::GET, &path).await?)
    })?;
    if args.json {
        super::print_json(&agents)?;
    } else {
        super::print(&in_words(&agents))?;
    }
    Ok(Exit::Ok.into())
}

fn in_words(agents: &[AgentTraffic]) -> String {
    let header = [
        "AGENT",
        "PROTOCOL",
        "NAME",
        "DESTINATION",
        "BYTES IN",
        "BYTES OUT",
        "PACKETS IN",
        "PACKETS OUT",
    ];
    let mut table = super::table(&header);
    for agent in agents {
        for destination in &agent.destinations {
            let texts = texts(agent, destination);
            table.add_row(row(texts, &destination.amounts));
        }
        let texts = [&*agent.agent, "all", "-", "-"].map(str::to_owned);
        table.add_row(row(texts, &agent.amounts));
    }
    for column in table.column_iter_mut().skip(TEXTS) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n")
}

fn texts(agent: &AgentTraffic, to: &Destination) -> [String; TEXTS] {
    let shown = |text: Option<&str>, none: &str| printable(text.unwrap_or(none)).into_owned();
    [
        agent.agent.clone(),
        shown(to.protocol.as_deref(), "-"),
        shown(to.name.as_deref(), "-"),
        shown(to.place().as_deref(), "everything else"),
    ]
}

fn row(texts: [String; TEXTS], amounts: &Amounts) -> Vec<String> {
    let numbers = [
        amounts.bytes_in,
        amounts.bytes_out,
        amounts.packets_in,
        amounts.packets_out,
    ];
    let numbers = numbers.iter().map(u64::to_string);
    texts.into_iter().chain(numbers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_the_sums() {
        let amounts = |number: u64| Amounts {
            bytes_in: number,
            bytes_out: number + 1,
            packets_in: 1,
            packets_out: 2,
        };
        let destination = |name: Option<&str>, port: Option<u16>| Destination {
            protocol: port.map(|_| "tcp".to_owned()),
            address: port.map(|_| "2001:db8::1".parse().unwrap()),
            port,
            name: name.map(str::to_owned),
            amounts: amounts(10),
        };
        let agent = AgentTraffic {
            agent: "claude".to_owned(),
            session: 4,
            amounts: amounts(70),
            destinations: vec![
                destination(Some("a.test"), Some(443)),
                destination(None, None),
            ],
        };
        let text = in_words(&[agent]);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[1],
            [
                "claude",
                "tcp",
                "a.test",
                "[2001:db8::1]:443",
                "10",
                "11",
                "1",
                "2"
            ]
        );
        assert_eq!(
            lines[2],
            [
                "claude",
                "-",
                "-",
                "everything",
                "else",
                "10",
                "11",
                "1",
                "2"
            ]
        );
        assert_eq!(lines[3], ["claude", "all", "-", "-", "70", "71", "1", "2"]);
    }
}
