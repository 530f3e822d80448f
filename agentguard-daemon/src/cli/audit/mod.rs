//! `agentguard audit`: reading the log. It reads the files; no daemon is needed.

mod export;
pub mod filter;
mod follow;
mod show;
pub mod shown;
mod sinks;
mod stats;
pub mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use self::filter::Filter;
use self::follow::Follow;
use super::exit::Exit;
use super::report::{CliError, has_colour, red};
use super::{LOG, print};
use crate::audit::Record;
use crate::audit::find::{self, Search};

/// How often a followed log is looked at.
const FOLLOW: Duration = Duration::from_millis(100);

/// Subcommands of `audit`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Print the last records, and those that come.
    Tail(TailArgs),
    /// Find records.
    Query(QueryArgs),
    /// Count records: by verdict, operation, agent, rule, program and target.
    Stats(stats::StatsArgs),
    /// Show one record, with the processes that led to it and the text of its rule.
    Show(show::ShowArgs),
    /// Write records in a form that others read: JSON lines, OCSF, CSV, OTLP.
    Export(export::ExportArgs),
    /// Show to whom the daemon sends records, and how far it has come.
    Sinks(sinks::SinksArgs),
    /// Check that the log is whole, unchanged and signed.
    Verify(verify::VerifyArgs),
    /// Print the public key that checkpoints are signed with.
    Key(verify::KeyArgs),
    /// Print or send the signed end of the log, to be kept elsewhere.
    Anchor(verify::AnchorArgs),
}

/// Arguments of `audit tail`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sudo agentguard audit tail -f\n  sudo agentguard audit tail -n 100 --json | jq .target"
)]
pub struct TailArgs {
    /// Go on with records as they come. A denial is on the disk before it is shown.
    #[arg(long, short)]
    follow: bool,
    /// Begin with so many of the last.
    #[arg(long, short = 'n', default_value_t = 10)]
    lines: usize,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    output: Output,
}

/// Arguments of `audit query`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sudo agentguard audit query --verdict deny --since 1h\n  sudo agentguard audit query --agent claude --path '/etc/**' --json\n  sudo agentguard audit query --op exec --name git --since 2026-11-23T08:00:00Z --until 10m\n  sudo agentguard audit query --tree 4711 --verdict deny --count\n\nTimes are RFC 3339, or a span before now (90s, 10m, 2h, 1d)."
)]
pub struct QueryArgs {
    #[command(flatten)]
    filter: Filter,
    /// At most so many, the latest.
    #[arg(long, default_value_t = 1000)]
    limit: usize,
    /// Print only how many there are; all of them are counted.
    #[arg(long, conflicts_with = "follow")]
    count: bool,
    /// Go on with records as they come.
    #[arg(long, short)]
    follow: bool,
    /// Read all of the log, and do without indexes.
    #[arg(long)]
    no_index: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct Output {
    /// The log.
    #[arg(long, value_name = "FILE", default_value = LOG)]
    file: PathBuf,
    /// Print the lines of the log as they are.
    #[arg(long)]
    json: bool,
}

pub fn run(command: AuditCommand) -> Result<ExitCode, CliError> {
    match command {
        AuditCommand::Tail(args) => tail(&args),
        AuditCommand::Query(args) => query(&args),
        AuditCommand::Stats(args) => stats::run(&args),
        AuditCommand::Show(args) => show::run(&args),
        AuditCommand::Export(args) => export::run(&args),
        AuditCommand::Sinks(args) => sinks::run(&args),
        AuditCommand::Verify(args) => verify::run(&args),
        AuditCommand::Key(args) => verify::key(&args),
        AuditCommand::Anchor(args) => verify::anchor(&args),
    }
}

impl Output {
    fn failed(&self) -> impl Fn(std::io::Error) -> CliError + '_ {
        |error| CliError::file("read", &self.file, &error)
    }
}

/// What a search has to say about itself.
pub fn tell(search: &Search) {
    if search.strange > 0 {
        eprintln!(
            "agentguard: {} lines of the log are no records; `agentguard audit verify` says which",
            search.strange
        );
    }
}

/// Hands over each record that fits, and tells what the search has to say.
pub fn each(
    log: &Path,
    filter: &find::Filter,
    mut take: impl FnMut(&Record<'_>),
) -> Result<(), CliError> {
    let mut search = Search::default();
    let bar = verify::progress(0);
    let outcome = search.each(log, filter, |line, record| {
        take(&record);
        bar.inc(line.len() as u64);
        true
    });
    outcome.map_err(|error| CliError::file("read", log, &error))?;
    bar.finish_and_clear();
    tell(&search);
    Ok(())
}

/// The number of the last record.
pub fn last_number(log: &Path) -> Result<u64, CliError> {
    let all = find::Filter::default();
    let lines = Search::default().last(log, &all, 1);
    let lines = lines.map_err(|error| CliError::file("read", log, &error))?;
    let record = lines
        .first()
        .and_then(|line| serde_json::from_slice::<Record<'_>>(line).ok());
    Ok(record.map_or(0, |record| record.seq))
}

/// Prints what fits as it comes; never returns but by a failure.
fn follow(filter: &find::Filter, output: &Output, after: u64) -> Result<ExitCode, CliError> {
    let colour = has_colour(&std::io::stdout());
    let mut follow = Follow::after(&output.file, after).map_err(output.failed())?;
    let mut sieve = find::Sieve::new(filter.clone());
    loop {
        let mut text = String::new();
        let polled = follow.poll(&mut |line| {
            if sieve.takes(line) {
                text.push_str(&shown::line(line, output.json, colour));
            }
        });
        polled.map_err(output.failed())?;
        if text.is_empty() {
            std::thread::sleep(FOLLOW);
        } else {
            print(&text)?;
        }
    }
}

fn tail(args: &TailArgs) -> Result<ExitCode, CliError> {
    let filter = args.filter.wanted();
    let after = last_number(&args.output.file)?;
    let mut search = Search::default();
    let until = find::Filter {
        seqs: Some((0, after)),
        ..filter.clone()
    };
    let lines = search.last(&args.output.file, &until, args.lines);
    let lines = lines.map_err(args.output.failed())?;
    print_lines(&lines, &args.output)?;
    tell(&search);
    if !args.follow {
        return Ok(Exit::Ok.into());
    }
    follow(&filter, &args.output, after)
}

fn print_lines(lines: &[Vec<u8>], output: &Output) -> Result<(), CliError> {
    // A denial is on the disk before it is shown. What cannot be synced is not being written.
    if let Ok(file) = std::fs::File::open(&output.file) {
        let _ = file.sync_data();
    }
    let colour = has_colour(&std::io::stdout());
    let text: String = lines
        .iter()
        .map(|line| shown::line(line, output.json, colour))
        .collect();
    print(&text)
}

fn query(args: &QueryArgs) -> Result<ExitCode, CliError> {
    let filter = args.filter.wanted();
    let mut search = Search {
        everywhere: args.no_index,
        ..Search::default()
    };
    if args.count {
        let counted = search.count(&args.output.file, &filter);
        let count = counted.map_err(args.output.failed())?;
        tell(&search);
        if args.output.json {
            return super::print_json(&serde_json::json!({ "count": count }))
                .map(|()| Exit::Ok.into());
        }
        return print(&format!("{count}\n")).map(|()| Exit::Ok.into());
    }
    let after = if args.follow {
        last_number(&args.output.file)?
    } else {
        0
    };
    let wanted = find::Filter {
        seqs: args.follow.then_some((0, after)),
        ..filter.clone()
    };
    let lines = search.last(&args.output.file, &wanted, args.limit);
    let lines = lines.map_err(args.output.failed())?;
    tell(&search);
    if args.output.json || args.follow {
        print_lines(&lines, &args.output)?;
    } else {
        print(&format!("{}\n", table(&lines)))?;
    }
    if args.follow {
        return follow(&filter, &args.output, after);
    }
    Ok(Exit::Ok.into())
}

fn table(lines: &[Vec<u8>]) -> comfy_table::Table {
    let mut table = super::table(&[
        "SEQ", "TIME", "AGENT", "PID", "PROGRAM", "VERDICT", "ACTION", "RULE",
    ]);
    let colour = has_colour(&std::io::stdout());
    let records = lines
        .iter()
        .filter_map(|line| serde_json::from_slice::<Record<'_>>(line).ok());
    for record in records {
        let verdict = record.verdict.as_deref().unwrap_or("-");
        table.add_row([
            record.seq.to_string(),
            record.time.get(..19).unwrap_or(&record.time).to_owned(),
            record.agent.as_deref().unwrap_or("-").to_owned(),
            record.pid.map_or("-".to_owned(), |pid| pid.to_string()),
            record.exe.as_deref().unwrap_or("-").to_owned(),
            red(verdict, colour && record.is_denied()),
            shown::action(&record),
            record
                .rule
                .as_deref()
                .or(record.cause.as_deref())
                .unwrap_or("-")
                .to_owned(),
        ]);
    }
    table
}
