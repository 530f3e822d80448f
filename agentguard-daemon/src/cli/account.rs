//! `agentguard report`: what agents did, for an auditor.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum as _};

use super::audit::filter::Filter;
use super::audit::verify::keys;
use super::audit::{each, last_number};
use super::exit::Exit;
use super::report::CliError;
use super::{LOG, print, print_json};
use crate::audit::find;
use crate::audit::report::{self, Form, Session};
use crate::audit::stats::Stats;
use crate::audit::verify::{Report, verify};

/// Arguments of `report`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo agentguard report --agent claude --since 7d
  sudo agentguard report --session 7 --form html --verify > session-7.html
  sudo agentguard report --since 2026-11-01T00:00:00Z --form markdown --top 30
  agentguard report --file copy/audit.jsonl --verify --key audit.pub

The page of HTML loads nothing and has no script. Every number is counted from the records of the log. At its end the
report has the command that counts the same again, whatever the log has grown by: with times in place of spans, and
with the last record that was there.

Exit status: 0 done, 1 `--verify` found the log changed or incomplete (the report is written, and says so), 66 no such
file.")]
pub struct ReportArgs {
    #[command(flatten)]
    filter: Filter,
    /// Not after the record of this number [default: the last]
    #[arg(long, value_name = "SEQ")]
    through: Option<u64>,
    /// How it is written.
    #[arg(long, value_enum, default_value = "text")]
    form: Form,
    /// So many of each kind.
    #[arg(long, default_value_t = 20)]
    top: usize,
    /// Check the log first, and say in the report what came of it.
    #[arg(long)]
    verify: bool,
    /// A public key to check with: 64 digits, or a file with them; more than one can be given [default: the daemon's]
    #[arg(long, value_name = "KEY", requires = "verify")]
    key: Vec<String>,
    /// The log.
    #[arg(long, value_name = "FILE", default_value = LOG)]
    file: PathBuf,
    /// Print the numbers as JSON.
    #[arg(long, conflicts_with = "form")]
    json: bool,
}

pub fn run(args: &ReportArgs) -> Result<ExitCode, CliError> {
    let verified = if args.verify {
        let report = verify(&args.file, &keys(&args.key)?, Vec::new(), &mut |_| {});
        Some(report.map_err(|error| CliError::file("read", &args.file, &error))?)
    } else {
        None
    };
    let through = match args.through {
        Some(through) => through,
        None => last_number(&args.file)?,
    };
    let wanted = find::Filter {
        seqs: Some((0, through)),
        ..args.filter.wanted()
    };
    let mut stats = Stats::default();
    let mut sessions: BTreeMap<u32, Session> = BTreeMap::new();
    each(&args.file, &wanted, |record| {
        stats.add(record);
        if let Some(number) = record.session {
            sessions.entry(number).or_default().add(number, record);
        }
    })?;
    let is_whole = verified.as_ref().is_none_or(Report::is_whole);
    let report = report::Report {
        about: about(&args.filter),
        log: args.file.display().to_string(),
        made: format!("{:.0}", jiff::Timestamp::now()),
        command: command(args, through),
        verified,
        ..report::Report::new(&stats, sessions.into_values().collect(), args.top)
    };
    if args.json {
        print_json(&serde_json::json!({
            "log": report.log, "through": through, "made": report.made, "command": report.command,
            "summary": report.summary, "sessions": report.sessions, "verified": report.verified,
        }))?;
    } else {
        print(&report.write(args.form))?;
    }
    Ok(Exit::of(is_whole).into())
}

/// The filter in words.
fn about(filter: &Filter) -> String {
    let words = filter.words();
    if words.is_empty() {
        return "all agents".to_owned();
    }
    let pairs = words
        .chunks(2)
        .map(|pair| pair.join(" ").replacen("--", "", 1));
    pairs.collect::<Vec<_>>().join(", ")
}

/// The command that counts the same again, for a shell.
fn command(args: &ReportArgs, through: u64) -> String {
    let mut words = vec!["agentguard".to_owned(), "report".to_owned()];
    words.extend(args.filter.words());
    let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
    option("--through", through.to_string());
    option("--top", args.top.to_string());
    let file = std::path::absolute(&args.file);
    option(
        "--file",
        file.as_ref().unwrap_or(&args.file).display().to_string(),
    );
    if args.json {
        words.push("--json".to_owned());
    } else if let Some(form) = args.form.to_possible_value() {
        option("--form", form.get_name().to_owned());
    }
    if args.verify {
        words.push("--verify".to_owned());
        words.extend(
            args.key
                .iter()
                .flat_map(|key| ["--key".to_owned(), key.clone()]),
        );
    }
    words
        .iter()
        .map(|word| quoted(word))
        .collect::<Vec<_>>()
        .join(" ")
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_are_what_a_shell_takes() {
        assert_eq!(
            quoted("--since=2026-11-23T04:05:06Z"),
            "--since=2026-11-23T04:05:06Z"
        );
        assert_eq!(quoted("/etc/**"), "'/etc/**'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
