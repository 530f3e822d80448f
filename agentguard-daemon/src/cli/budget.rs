//! `agentguard budget`: where budgets stand, and what an operator does about them.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use hyper::Method;

use super::SocketArgs;
use super::exit::Exit;
use super::report::{CliError, has_colour, red};
use crate::api::Client;
use crate::api::wire::{GrantRequest, ResetRequest};
use crate::budget::{AccountStatus, BudgetStatus};
use crate::gateway::SHIPPED_PRICES;
use crate::policy::limits::{MICROS, duration_text};

/// Width of a bar, in characters.
const BAR: usize = 20;

/// Arguments of `budget`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  agentguard budget show\n  sudo agentguard budget grant claude spend 2.50\n  sudo agentguard budget reset claude\n\nWhat is spent belongs to the agent's name, and outlives agent, daemon and host."
)]
pub struct BudgetArgs {
    #[command(subcommand)]
    command: BudgetCommand,
}

#[derive(Debug, Subcommand)]
enum BudgetCommand {
    /// Show what is spent, reserved and left, and when it will be spent at the present rate.
    #[command(
        after_help = "Examples:\n  agentguard budget show\n  agentguard budget show claude --json"
    )]
    Show(ShowArgs),
    /// Give an agent more of a budget: until its window is over, or for as long as it lasts.
    #[command(
        after_help = "Examples:\n  sudo agentguard budget grant claude spend 2.50     (US dollars)\n  sudo agentguard budget grant claude long 1h30m     (time)\n  sudo agentguard thaw claude                        (if the budget froze it)\n\nOnly root, and nobody governed, may do this. It is recorded."
    )]
    Grant(GrantArgs),
    /// Forget what was spent: of one agent, or of all.
    #[command(
        after_help = "Examples:\n  sudo agentguard budget reset claude\n  sudo agentguard budget reset --all      (also the way out of a damaged ledger)\n  sudo agentguard budget reset --clock    (the clock was ahead once, and is right now)\n\nOnly root, and nobody governed, may do this. It is recorded."
    )]
    Reset(ResetArgs),
    /// Print the table of prices that comes along.
    #[command(
        after_help = "Example:\n  agentguard budget prices | sudo tee /etc/agentguard/prices.yaml"
    )]
    Prices,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// The agent, as `agentguard ps` has it [default: all that have budgets]
    name: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

#[derive(Debug, Args)]
struct GrantArgs {
    /// The agent, as `agentguard ps` has it.
    name: String,
    /// The id of the budget, as `agentguard budget show` has it.
    budget: String,
    /// How much more, as the policy would write it: `2.50` of `usd`, `1h30m` of time, `100_000` of anything else.
    amount: String,
    #[command(flatten)]
    socket: SocketArgs,
}

#[derive(Debug, Args)]
#[group(id = "what", required = true, multiple = false, args = ["name", "all", "clock"])]
struct ResetArgs {
    /// The agent, or the account of one that is gone.
    name: Option<String>,
    /// Every account.
    #[arg(long)]
    all: bool,
    /// Believe the clock as it is now.
    #[arg(long)]
    clock: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Runs the command.
pub fn run(args: BudgetArgs) -> Result<ExitCode, CliError> {
    match args.command {
        BudgetCommand::Show(args) => show(&args)?,
        BudgetCommand::Grant(args) => {
            let request = GrantRequest {
                budget: args.budget,
                amount: args.amount,
            };
            let path = format!("/agents/{}/grant", args.name);
            ask(&args.socket, &path, &request)?;
        }
        BudgetCommand::Reset(args) => {
            let request = ResetRequest {
                account: args.name,
                clock: args.clock,
            };
            ask(&args.socket, "/budgets/reset", &request)?;
        }
        BudgetCommand::Prices => super::print(SHIPPED_PRICES)?,
    }
    Ok(Exit::Ok.into())
}

fn ask(socket: &SocketArgs, path: &str, request: &impl serde::Serialize) -> Result<(), CliError> {
    super::on_runtime(async {
        let mut client = Client::connect(&socket.socket).await?;
        Ok(client.ask_with::<()>(Method::POST, path, request).await?)
    })
}

fn show(args: &ShowArgs) -> Result<(), CliError> {
    let path = match &args.name {
        Some(name) => format!("/budgets?agent={name}"),
        None => "/budgets".to_owned(),
    };
    let accounts: Vec<AccountStatus> = super::on_runtime(async {
        let mut client = Client::connect(&args.socket.socket).await?;
        Ok(client.ask(Method::GET, &path).await?)
    })?;
    if args.json {
        return super::print_json(&accounts);
    }
    let bars = std::io::stdout().is_terminal();
    let colour = has_colour(&std::io::stdout());
    let mut text = String::new();
    for account in &accounts {
        text.push_str(&in_words(account, bars, colour));
    }
    if accounts.is_empty() {
        text.push_str("No agent has a budget or a schedule.\n");
    }
    super::print(&text)
}

/// All budgets of an agent.
fn in_words(account: &AccountStatus, bars: bool, colour: bool) -> String {
    let mut text = format!("{} (session {})", account.agent, account.session);
    if account.account != account.agent {
        let _ = write!(text, ", account {}", account.account);
    }
    if account.frozen {
        let _ = write!(text, ", {}", red("frozen", colour));
    }
    text.push('\n');
    if let Some(broken) = &account.broken {
        let _ = writeln!(text, "  {}: {broken}", red("nothing is granted", colour));
    }
    for says in &account.schedule {
        let _ = writeln!(text, "  schedule: {says}");
    }
    let width = account
        .budgets
        .iter()
        .map(|it| it.id.len())
        .max()
        .unwrap_or(0);
    for budget in &account.budgets {
        let bar = if bars {
            format!("{} ", bar(budget, colour))
        } else {
            String::new()
        };
        let _ = writeln!(
            text,
            "  {:width$}  {bar}{:>3} %  {} spent{}, {} left; {}{}",
            budget.id,
            budget.percent,
            budget.spent_text,
            match budget.reserved {
                0 => String::new(),
                _ => format!(" (and {} reserved)", budget.reserved_text),
            },
            budget.left_text,
            budget.says,
            times(budget),
        );
    }
    text
}

/// Spent as `█`, reserved as `▒`.
fn bar(budget: &BudgetStatus, colour: bool) -> String {
    let limit = u128::from(budget.limit.saturating_add(budget.granted)).max(1);
    let part = |amount: u64| {
        let part = u128::from(amount) * BAR as u128 / limit;
        usize::try_from(part).unwrap_or(BAR).min(BAR)
    };
    let spent = part(budget.spent);
    let taken = part(budget.spent.saturating_add(budget.reserved));
    let bar = format!(
        "{}{}{}",
        "█".repeat(spent),
        "▒".repeat(taken - spent),
        "·".repeat(BAR - taken)
    );
    if budget.percent >= 95 {
        red(&bar, colour)
    } else {
        bar
    }
}

/// When it begins anew, and when it will be spent.
fn times(budget: &BudgetStatus) -> String {
    let span = |seconds: u64| duration_text(seconds.max(1).saturating_mul(MICROS));
    let mut text = String::new();
    if budget.granted > 0 {
        let _ = write!(text, "; {} granted on top", budget.granted);
    }
    if let Some(seconds) = budget.resets_in {
        let _ = write!(text, "; resets in {}", span(seconds));
    }
    if budget.left == 0 && budget.quantity != "idle_time" {
        let _ = write!(text, "; spent: {}", budget.at_limit);
    } else if let Some(seconds) = budget.exhausted_in {
        let _ = write!(text, "; spent in {} at this rate", span(seconds));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_reads_well() {
        let budget = BudgetStatus {
            id: "spend".into(),
            says: "5.00 USD per day".into(),
            quantity: "usd".into(),
            limit: 100,
            granted: 0,
            spent: 50,
            reserved: 10,
            left: 40,
            percent: 60,
            spent_text: "2.50".into(),
            reserved_text: "0.50".into(),
            left_text: "2.00".into(),
            resets_in: Some(3600),
            exhausted_in: Some(90),
            at_limit: "deny".into(),
            reason: None,
            place: "p.yaml:3".into(),
        };
        let account = AccountStatus {
            agent: "a".into(),
            account: "a".into(),
            session: 3,
            frozen: false,
            budgets: vec![budget],
            schedule: vec![],
            broken: None,
        };
        assert_eq!(
            in_words(&account, true, false),
            "a (session 3)\n  spend  ██████████▒▒········  60 %  2.50 spent (and 0.50 reserved), 2.00 left; 5.00 USD per day; resets in 1h; spent in 1m30s at this rate\n"
        );
        assert!(!in_words(&account, false, false).contains('█'));
    }
}
