//! `agentguard audit show`: one record, and what led to it.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::shown;
use crate::audit::Record;
use crate::audit::ancestry::{self, Ancestor};
use crate::audit::find::{Filter, Search};
use crate::cli::exit::Exit;
use crate::cli::report::CliError;
use crate::cli::{LOG, denial, print, print_json};

/// Lines of a policy that are shown from a rule on.
const RULE_LINES: usize = 12;

/// Arguments of `audit show`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo agentguard audit show 4711
  sudo agentguard audit show 4711 --json | jq .ancestry

The number is `seq` in the log, SEQ in `audit query`. The rule is shown as its file is now.")]
pub struct ShowArgs {
    /// Number of the record.
    #[arg(value_name = "SEQ")]
    seq: u64,
    /// The log.
    #[arg(long, value_name = "FILE", default_value = LOG)]
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &ShowArgs) -> Result<ExitCode, CliError> {
    let failed = |error: std::io::Error| CliError::file("read", &args.file, &error);
    let wanted = Filter {
        seqs: Some((args.seq, args.seq)),
        ..Filter::default()
    };
    let lines = Search::default().last(&args.file, &wanted, 1);
    let Some(line) = lines.map_err(failed)?.pop() else {
        let message = format!("there is no record {} in {}", args.seq, args.file.display());
        return Err(CliError::Other(Exit::Missing, message));
    };
    let text = String::from_utf8_lossy(&line).into_owned();
    let record: Record<'_> = serde_json::from_str(&text)
        .map_err(|error| CliError::Other(Exit::InputOutput, error.to_string()))?;
    let ancestry = ancestry::of(&args.file, &record).map_err(failed)?;
    let rule = record.rule_at.as_deref().and_then(rule_text);
    if args.json {
        let value: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| CliError::Other(Exit::InputOutput, error.to_string()))?;
        print_json(&serde_json::json!({
            "record": value, "ancestry": ancestry, "rule_text": rule,
        }))?;
    } else {
        print(&in_words(&record, &ancestry, rule.as_deref()))?;
    }
    Ok(Exit::Ok.into())
}

/// The lines of a rule, from `file:line`: until what is less indented begins.
fn rule_text(place: &str) -> Option<String> {
    let (file, line) = place.rsplit_once(':')?;
    let line: usize = line.parse().ok()?;
    let text = match file.strip_prefix("<built-in>/") {
        Some(_) => return None,
        None => std::fs::read_to_string(file).ok()?,
    };
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.get(line.checked_sub(1)?)?;
    let depth = |line: &str| line.len() - line.trim_start().len();
    let rest = lines[line..]
        .iter()
        .take_while(|next| next.trim().is_empty() || depth(next) > depth(first));
    let rule: Vec<&str> = std::iter::once(*first)
        .chain(rest.copied())
        .take(RULE_LINES)
        .collect();
    Some(rule.join("\n").trim_end().to_owned())
}

fn in_words(record: &Record<'_>, ancestry: &[Ancestor], rule: Option<&str>) -> String {
    let mut text = format!("record {}  {}\n", record.seq, record.time);
    let mut say = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(text, "  {:10} {value}", format!("{name}:"));
        }
    };
    let owned = |text: &Option<std::borrow::Cow<'_, str>>| text.as_deref().map(str::to_owned);
    say(
        "agent",
        record.agent.as_deref().map(|agent| match record.session {
            Some(session) => format!("{agent}, session {session}"),
            None => agent.to_owned(),
        }),
    );
    say("verdict", owned(&record.verdict));
    say("action", Some(shown::action(record)));
    say("to", owned(&record.to));
    say("rule", owned(&record.rule));
    say("reason", owned(&record.reason));
    say("cause", owned(&record.cause));
    say(
        "policy",
        record
            .policy
            .as_deref()
            .map(|policy| match record.generation {
                Some(generation) => format!("{policy}, generation {generation}"),
                None => policy.to_owned(),
            }),
    );
    say("at", owned(&record.rule_at));
    if record.is_denied() {
        say("to allow", denial::remedy(record));
    }
    if let Some(rule) = rule {
        text.push_str("rule, as its file is now:\n");
        for line in rule.lines() {
            let _ = writeln!(text, "  | {line}");
        }
    }
    if !ancestry.is_empty() {
        text.push_str("processes, the nearest first:\n");
    }
    for ancestor in ancestry {
        let command = match &ancestor.argv {
            Some(argv) => argv.join(" "),
            None => "(arguments not recorded)".to_owned(),
        };
        let since = ancestor
            .seq
            .map_or("before it was governed".to_owned(), |seq| {
                format!("record {seq}")
            });
        let _ = writeln!(
            text,
            "  {:>7}  {}  {command}  [{since}]",
            ancestor.pid,
            ancestor.exe.as_deref().unwrap_or("?"),
        );
    }
    text
}
