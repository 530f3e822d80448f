//! What records are asked for, on the command line.

use clap::Args;
use jiff::Timestamp;

use crate::audit::find;

/// What records are asked for.
#[derive(Debug, Args)]
pub struct Filter {
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
    /// Glob over the target (and the new path); `*` stops at `/`, `**` does not.
    #[arg(long, value_name = "GLOB", value_parser = glob)]
    path: Option<globset::GlobMatcher>,
    /// Name of the acting program: its whole path, or the last part.
    #[arg(long)]
    name: Option<String>,
    /// Process id.
    #[arg(long)]
    pid: Option<u32>,
    /// A process and all that come from it, by the forks in the log.
    #[arg(long, value_name = "PID")]
    tree: Option<u32>,
    /// Text anywhere in the record, as it is written there.
    #[arg(long)]
    text: Option<String>,
}

/// A time as people write it: RFC 3339, or a span before now.
pub fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let hours = |text: &str| {
        let days: i64 = text.strip_suffix('d')?.trim().parse().ok()?;
        Some(jiff::SignedDuration::from_hours(days.checked_mul(24)?))
    };
    let span = match hours(text) {
        Some(span) => span,
        None => text.parse().map_err(|_| {
            "write a time as 2026-11-23T08:00:00Z, or a span before now as 90s, 10m, 2h, 1d"
                .to_owned()
        })?,
    };
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
    /// The options that ask for the same at any time: spans before now become the times that they were.
    pub fn words(&self) -> Vec<String> {
        let number = |it: Option<u32>| it.map(|it| it.to_string());
        let list = |it: &[String]| (!it.is_empty()).then(|| it.join(","));
        let options = [
            ("--agent", self.agent.clone()),
            ("--session", number(self.session)),
            ("--since", self.since.map(|it| it.to_string())),
            ("--until", self.until.map(|it| it.to_string())),
            ("--verdict", list(&self.verdict)),
            ("--op", list(&self.op)),
            ("--rule", self.rule.clone()),
            (
                "--path",
                self.path.as_ref().map(|it| it.glob().glob().to_owned()),
            ),
            ("--name", self.name.clone()),
            ("--pid", number(self.pid)),
            ("--tree", number(self.tree)),
            ("--text", self.text.clone()),
        ];
        let given = options
            .into_iter()
            .filter_map(|(name, value)| Some([name.to_owned(), value?]));
        given.flatten().collect()
    }

    /// As the search takes it.
    pub fn wanted(&self) -> find::Filter {
        find::Filter {
            agent: self.agent.clone(),
            session: self.session,
            since: self.since,
            until: self.until,
            verdicts: self.verdict.clone(),
            ops: self.op.clone(),
            rule: self.rule.clone(),
            path: self.path.clone(),
            name: self.name.clone(),
            pid: self.pid,
            tree: self.tree,
            text: self.text.clone(),
            ..find::Filter::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::audit::Record;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        filter: Filter,
    }

    fn wanted(arguments: &[&str]) -> find::Filter {
        let arguments = std::iter::once("x").chain(arguments.iter().copied());
        Line::try_parse_from(arguments).unwrap().filter.wanted()
    }

    /// Whether a log with only this record has it.
    fn fits(arguments: &[&str], record: &Record<'_>) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("audit.jsonl");
        std::fs::write(&log, serde_json::to_string(record).unwrap() + "\n").unwrap();
        let mut search = find::Search::default();
        let found = search.last(&log, &wanted(arguments), 10).unwrap();
        let mut count = 0;
        let each = search.each(&log, &wanted(arguments), |_, _| {
            count += 1;
            true
        });
        each.unwrap();
        assert_eq!(found.len(), count);
        count == 1
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
            ("--tree", "64", "65"),
            ("--text", "/.env", "/.envy"),
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
            let line = Line::try_parse_from(["x", option, good]).unwrap();
            assert_eq!(line.filter.words(), [option, good]);
            assert!(!fits(&[option, bad], &record), "{option} {bad}");
        }
        assert!(fits(&[], &record));
        assert!(Line::try_parse_from(["x", "--since", "yesterday"]).is_err());
        assert!(Line::try_parse_from(["x", "--path", "["]).is_err());
    }

    #[test]
    fn a_span_is_before_now() {
        for (text, seconds) in [("1h", 3600), ("1d", 86_400), ("90s", 90)] {
            let then = time(text).unwrap();
            let ago = Timestamp::now().duration_since(then).as_secs();
            assert!((seconds..seconds + 60).contains(&ago), "{text}: {ago}");
        }
    }
}
