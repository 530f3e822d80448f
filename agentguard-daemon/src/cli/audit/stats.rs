//! `agentguard audit stats`: records, counted.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::filter::Filter;
use crate::audit::stats::{Stats, Summary};
use crate::cli::exit::Exit;
use crate::cli::report::CliError;
use crate::cli::{LOG, print, print_json};
use crate::event::escape::printable;

/// Arguments of `audit stats`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sudo agentguard audit stats\n  sudo agentguard audit stats --agent claude --since 1d --top 20\n  sudo agentguard audit stats --session 7 --json\n\nEvery number is counted from the records of the log."
)]
pub struct StatsArgs {
    #[command(flatten)]
    filter: Filter,
    /// So many of each kind.
    #[arg(long, default_value_t = 10)]
    top: usize,
    /// The log.
    #[arg(long, value_name = "FILE", default_value = LOG)]
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &StatsArgs) -> Result<ExitCode, CliError> {
    let mut stats = Stats::default();
    super::each(&args.file, &args.filter.wanted(), |record| {
        stats.add(record);
    })?;
    let summary = stats.summary(args.top);
    if args.json {
        print_json(&summary)?;
    } else {
        print(&in_words(&summary))?;
    }
    Ok(Exit::Ok.into())
}

fn in_words(summary: &Summary) -> String {
    let mut text = format!("{} records", summary.records);
    if let (Some(first), Some(last)) = (&summary.first, &summary.last) {
        let _ = write!(text, ", {first} to {last}");
    }
    text.push('\n');
    for (verdict, count) in &summary.verdicts {
        let _ = writeln!(text, "{count:>12}  {verdict}");
    }
    if summary.lost > 0 {
        let _ = writeln!(text, "{:>12}  lost, as gap records say", summary.lost);
    }
    for (name, counts, _) in summary.lists() {
        if counts.is_empty() {
            continue;
        }
        let _ = writeln!(text, "{name}:");
        for count in counts {
            let _ = writeln!(text, "{:>12}  {}", count.count, printable(&count.what));
        }
    }
    text
}
