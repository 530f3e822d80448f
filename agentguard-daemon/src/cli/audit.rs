//! `agentguard audit`: reading the log. It reads the file; no daemon is needed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::exit::Exit;
use super::report::{CliError, has_colour, red};
use super::{LOG, denial};
use crate::audit::Record;
use crate::audit::read::{Line, Reader};
use crate::event::escape::unescape;

/// How often a followed log is looked at.
const FOLLOW: Duration = Duration::from_millis(100);

/// Subcommands of `audit`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Print the last records, and those that come.
    Tail(TailArgs),
    /// Find records.
    Query(QueryArgs),
}

/// Arguments of `audit tail`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sudo agentguard audit tail -f\n  sudo agentguard audit tail -n 100 --json | jq .target"
)]
pub struct TailArgs {
    /// Go on with records as they come.
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
    after_help = "Examples:\n  sudo agentguard audit query --verdict deny --since 1h\n  sudo agentguard audit query --agent claude --path '/etc/**' --json\n  sudo agentguard audit query --op exec --name git --since 2026-11-23T08:00:00Z --until 10m\n\nTimes are RFC 3339, or a span before now (90s, 10m, 2h, 1d)."
)]
pub struct QueryArgs {
    #[command(flatten)]
    filter: Filter,
    /// At most so many, the latest.
    #[arg(long, default_value_t = 1000)]
    limit: usize,
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

#[derive(Debug, Args)]
struct Filter {
    /// Name of the agent.
    #[arg(long)]
    agent: Option<String>,
    /// Session of the agent.
    #[arg(long)]
    session: Option<u32>,
    /// Not before.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Not after.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    /// allow, deny, would-deny or ask; more than one separated by commas.
    #[arg(long, value_delimiter = ',')]
    verdict: Vec<String>,
    /// exec, open, connect, send, fork, exit, gap, alarm, …; more than one separated by commas.
    #[arg(long, value_delimiter = ',')]
    op: Vec<String>,
    /// Id of the rule.
    #[arg(long)]
    rule: Option<String>,
    /// Glob over the target; `*` stops at `/`, `**` does not.
    #[arg(long, value_name = "GLOB", value_parser = glob)]
    path: Option<globset::GlobMatcher>,
    /// Name of the acting program: its whole path, or the last part.
    #[arg(long)]
    name: Option<String>,
    /// Process id.
    #[arg(long)]
    pid: Option<u32>,
}

fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let span: jiff::SignedDuration = text.parse().map_err(|_| {
        "write a time as 2026-11-23T08:00:00Z, or a span before now as 90s, 10m, 2h".to_owned()
    })?;
    Timestamp::now()
        .checked_sub(span)
        .map_err(|error| error.to_string())
}

fn glob(text: &str) -> Result<globset::GlobMatcher, String> {
    globset::GlobBuilder::new(text)
        .literal_separator(true)
        .build()
        .map(|glob| glob.compile_matcher())
        .map_err(|error| error.to_string())
}

impl Filter {
    fn fits(&self, record: &Record<'_>) -> bool {
        let is = |wanted: &Option<String>, have: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| have == Some(wanted))
        };
        let is_one = |wanted: &[String], have: Option<&str>| {
            wanted.is_empty() || wanted.iter().any(|wanted| have == Some(wanted))
        };
        is(&self.agent, record.agent.as_deref())
            && self
                .session
                .is_none_or(|session| record.session == Some(session))
            && self.pid.is_none_or(|pid| record.pid == Some(pid))
            && is_one(&self.verdict, record.verdict.as_deref())
            && is_one(&self.op, Some(&record.op))
            && is(&self.rule, record.rule.as_deref())
            && self.name.as_deref().is_none_or(|name| {
                let exe = record.exe.as_deref().unwrap_or_default();
                exe == name || exe.rsplit('/').next() == Some(name)
            })
            && self
                .path
                .as_ref()
                .is_none_or(|glob| target_fits(glob, record))
            && self.in_time(record)
    }

    fn in_time(&self, record: &Record<'_>) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let Ok(time) = record.time.parse::<Timestamp>() else {
            return false;
        };
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time <= until)
    }
}

/// The glob sees the bytes that the kernel saw, not their escaped form.
fn target_fits(glob: &globset::GlobMatcher, record: &Record<'_>) -> bool {
    use std::os::unix::ffi::OsStringExt;
    let target = record
        .target
        .as_deref()
        .and_then(|target| unescape(target).ok());
    target.is_some_and(|bytes| glob.is_match(PathBuf::from(std::ffi::OsString::from_vec(bytes))))
}

pub fn run(command: AuditCommand) -> Result<ExitCode, CliError> {
    match command {
        AuditCommand::Tail(args) => tail(&args),
        AuditCommand::Query(args) => query(&args),
    }
}

/// What can be printed of a log: records that fit, and lines that are no records.
struct Found<'a> {
    reader: Reader,
    filter: &'a Filter,
    output: &'a Output,
}

impl Found<'_> {
    fn next(&mut self) -> Result<Option<Line>, CliError> {
        loop {
            let line = self
                .reader
                .next_line()
                .map_err(|error| CliError::file("read", &self.output.file, &error))?;
            let Some(line) = line else { return Ok(None) };
            match &line.record {
                Ok(record) if !self.filter.fits(record) => {}
                Ok(_) => return Ok(Some(line)),
                Err(error) => {
                    eprintln!("agentguard: a line of the log is no record: {error}");
                }
            }
        }
    }

    /// The last `count`.
    fn last(&mut self, count: usize) -> Result<std::collections::VecDeque<Line>, CliError> {
        let mut lines = std::collections::VecDeque::new();
        while let Some(line) = self.next()? {
            if lines.len() == count {
                lines.pop_front();
            }
            if count > 0 {
                lines.push_back(line);
            }
        }
        Ok(lines)
    }
}

fn open<'a>(filter: &'a Filter, output: &'a Output) -> Result<Found<'a>, CliError> {
    let reader =
        Reader::open(&output.file).map_err(|error| CliError::file("open", &output.file, &error))?;
    Ok(Found {
        reader,
        filter,
        output,
    })
}

fn tail(args: &TailArgs) -> Result<ExitCode, CliError> {
    let colour = has_colour(&std::io::stdout());
    let mut found = open(&args.filter, &args.output)?;
    for line in found.last(args.lines)? {
        super::print(&shown(&line, args.output.json, colour))?;
    }
    if !args.follow {
        return Ok(Exit::Ok.into());
    }
    loop {
        match found.next()? {
            Some(line) => super::print(&shown(&line, args.output.json, colour))?,
            None => std::thread::sleep(FOLLOW),
        }
    }
}

fn query(args: &QueryArgs) -> Result<ExitCode, CliError> {
    let lines = open(&args.filter, &args.output)?.last(args.limit)?;
    if args.output.json {
        for line in &lines {
            super::print(&shown(line, true, false))?;
        }
        return Ok(Exit::Ok.into());
    }
    let mut table = super::table(&[
        "TIME", "AGENT", "PID", "PROGRAM", "VERDICT", "ACTION", "RULE",
    ]);
    let colour = has_colour(&std::io::stdout());
    for record in lines.iter().filter_map(|line| line.record.as_ref().ok()) {
        let verdict = record.verdict.as_deref().unwrap_or("-");
        table.add_row([
            record.time.get(..19).unwrap_or(&record.time).to_owned(),
            record.agent.as_deref().unwrap_or("-").to_owned(),
            record.pid.map_or("-".to_owned(), |pid| pid.to_string()),
            record.exe.as_deref().unwrap_or("-").to_owned(),
            red(verdict, colour && record.is_denied()),
            action(record),
            record
                .rule
                .as_deref()
                .or(record.cause.as_deref())
                .unwrap_or("-")
                .to_owned(),
        ]);
    }
    super::print(&format!("{table}\n"))?;
    Ok(Exit::Ok.into())
}

/// What was done, in a few words.
fn action(record: &Record<'_>) -> String {
    match (&*record.op, record.child, record.status, record.lost) {
        ("fork", Some(child), ..) => format!("fork {child}"),
        ("exit", _, Some(status), _) if status & 0x7f != 0 => {
            format!("exit by signal {}", status & 0x7f)
        }
        ("exit", _, Some(status), _) => format!("exit {}", status >> 8),
        ("gap", .., Some(lost)) => {
            format!(
                "{lost} records lost ({})",
                record.class.as_deref().unwrap_or("?")
            )
        }
        ("open" | "exec" | "connect" | "send", ..) => denial::deed(record),
        _ => match record.detail.as_deref().or(record.target.as_deref()) {
            Some(detail) => format!("{}: {detail}", record.op),
            None => record.op.to_string(),
        },
    }
}

/// One line of `tail`.
fn shown(line: &Line, json: bool, colour: bool) -> String {
    let text = String::from_utf8_lossy(&line.text);
    let Ok(record) = &line.record else {
        return format!("{text}\n");
    };
    if json {
        return format!("{text}\n");
    }
    let time = record.time.get(11..23).unwrap_or(&record.time);
    let agent = record.agent.as_deref().unwrap_or("-");
    if record.is_denied() {
        return format!("{time} {agent} {}\n", denial::line(record, colour));
    }
    let verdict = record.verdict.as_deref().unwrap_or("-");
    let exe = record.exe.as_deref().unwrap_or("-");
    let pid = record
        .pid
        .map_or(String::new(), |pid| format!(" (pid {pid})"));
    let verdict = red(verdict, colour && record.op == "alarm");
    format!("{time} {agent} {verdict} {exe}{pid} → {}\n", action(record))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        filter: Filter,
    }

    fn fits(arguments: &[&str], record: &Record<'_>) -> bool {
        let arguments = std::iter::once("x").chain(arguments.iter().copied());
        Line::try_parse_from(arguments).unwrap().filter.fits(record)
    }

    #[test]
    fn each_filter_takes_and_leaves() {
        let record = Record {
            time: "2026-11-23T04:05:06.000000000Z".into(),
            agent: Some("claude".into()),
            session: Some(3),
            pid: Some(64),
            exe: Some("/usr/bin/git".into()),
            target: Some(r"/work/a\x0ab/.env".into()),
            verdict: Some("deny".into()),
            rule: Some("secrets".into()),
            ..Record::new("open")
        };
        let pairs = [
            ("--agent", "claude", "codex"),
            ("--session", "3", "4"),
            ("--pid", "64", "65"),
            ("--verdict", "deny", "allow"),
            ("--op", "open", "exec"),
            ("--op", "exec,open", "exec,fork"),
            ("--rule", "secrets", "other"),
            ("--path", "/work/**/.env", "/work/*"),
            ("--path", "/work/a\nb/*", "/work/a?/*"),
            ("--name", "git", "it"),
            ("--name", "/usr/bin/git", "/bin/git"),
            ("--since", "2026-11-23T04:05:06Z", "2026-11-23T04:05:07Z"),
            ("--until", "2026-11-23T04:05:06Z", "2026-11-23T04:05:05Z"),
        ];
        for (option, good, bad) in pairs {
            assert!(fits(&[option, good], &record), "{option} {good}");
            assert!(!fits(&[option, bad], &record), "{option} {bad}");
        }
        assert!(fits(&[], &record));
        assert!(Line::try_parse_from(["x", "--since", "yesterday"]).is_err());
        assert!(Line::try_parse_from(["x", "--path", "["]).is_err());
    }

    #[test]
    fn a_span_is_before_now() {
        let hour = time("1h").unwrap();
        let ago = Timestamp::now().duration_since(hour).as_secs();
        assert!((3600..3660).contains(&ago), "{ago}");
    }
}
