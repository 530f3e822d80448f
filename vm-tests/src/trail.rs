//! The audit trail as tests read it: lines as they arrive, and waiting for one of them. It never
//! sleeps longer than the record takes, and says what was there instead when the time is over.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// How long a record may take from the act to the file. Guests are emulated and busy.
const PATIENCE: Duration = Duration::from_mins(1);

/// As an operation: a program's start, refused at its exec or already when it is opened for that.
pub const START: &str = "start of a program";

/// What a record must say. Fields that are absent may have any value.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Name of the agent.
    pub agent: Option<String>,
    /// Operation; `*` for any.
    pub op: Option<String>,
    /// Target, escaped as in the record; with a final `*` only its beginning.
    pub target: Option<String>,
    /// Verdict.
    pub verdict: Option<String>,
    /// Id of the rule.
    pub rule: Option<String>,
    /// Cause.
    pub cause: Option<String>,
    /// Second path.
    pub to: Option<String>,
    /// How its detail begins.
    pub detail: Option<String>,
    /// Process.
    pub pid: Option<u32>,
    /// Version of the policy.
    pub generation: Option<u64>,
}

impl Wanted {
    fn op_fits(&self, record: &Value) -> bool {
        let text = |key: &str| record.get(key).and_then(Value::as_str).unwrap_or_default();
        match self.op.as_deref() {
            None | Some("*") => true,
            Some(START) => text("op") == "exec" || text("access") == "exec",
            Some(op) => text("op") == op,
        }
    }

    fn fits(&self, record: &Value) -> bool {
        let text = |key: &str, wanted: &Option<String>| {
            wanted
                .as_deref()
                .is_none_or(|wanted| record.get(key).and_then(Value::as_str) == Some(wanted))
        };
        text("agent", &self.agent)
            && self.op_fits(record)
            && self.target.as_deref().is_none_or(|wanted| {
                target_fits(
                    wanted,
                    record
                        .get("target")
                        .and_then(Value::as_str)
                        .unwrap_or_default(),
                )
            })
            && text("verdict", &self.verdict)
            && text("rule", &self.rule)
            && text("cause", &self.cause)
            && text("to", &self.to)
            && self.detail.as_deref().is_none_or(|wanted| {
                let detail = record.get("detail").and_then(Value::as_str);
                detail.is_some_and(|detail| detail.starts_with(wanted))
            })
            && self
                .pid
                .is_none_or(|pid| record.get("pid").and_then(Value::as_u64) == Some(pid.into()))
            && self.generation.is_none_or(|generation| {
                record.get("generation").and_then(Value::as_u64) == Some(generation)
            })
    }
}

/// Equal, or equal up to a final `*`.
fn target_fits(wanted: &str, target: &str) -> bool {
    wanted
        .strip_suffix('*')
        .map_or(wanted == target, |start| target.starts_with(start))
}

/// The trail as it grows from where a test begins: logs of a million records do not fit into a guest's memory.
pub struct Trail {
    path: PathBuf,
    /// Bytes of the file that have been read.
    read: u64,
    /// How long a record may take.
    pub patience: Duration,
    /// Records that have been forgotten.
    before: usize,
    records: Vec<Value>,
}

impl Trail {
    /// The trail in this file, which need not exist yet, from its present end.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            read: std::fs::metadata(&path).map_or(0, |data| data.len()),
            path,
            patience: PATIENCE,
            before: 0,
            records: Vec::new(),
        }
    }

    /// Forgets what was read; earlier marks are of no use any more. Gives the place behind it.
    pub fn forget(&mut self) -> usize {
        self.before += self.records.len();
        self.records.clear();
        self.before
    }

    /// The place that later records come after.
    pub fn mark(&mut self) -> Result<usize> {
        self.refresh()?;
        Ok(self.before + self.records.len())
    }

    /// Records since a mark.
    pub fn since(&mut self, mark: usize) -> Result<&[Value]> {
        self.refresh()?;
        let from = mark
            .checked_sub(self.before)
            .context("the records since this mark were forgotten")?;
        Ok(&self.records[from..])
    }

    fn refresh(&mut self) -> Result<()> {
        let records = &mut self.records;
        self.read = each(&self.path, self.read, |record| {
            records.push(record);
            Ok(())
        })?;
        Ok(())
    }

    /// Shows every record that the file has, from its beginning.
    pub fn whole(&self, see: impl FnMut(Value) -> Result<()>) -> Result<()> {
        each(&self.path, 0, see).map(drop)
    }

    /// True if a record since the mark fits now.
    pub fn has(&mut self, mark: usize, wanted: &Wanted) -> Result<bool> {
        Ok(self.since(mark)?.iter().any(|record| wanted.fits(record)))
    }

    /// Waits for a record since the mark that fits.
    pub fn wait(&mut self, mark: usize, wanted: &Wanted) -> Result<Value> {
        let started = Instant::now();
        loop {
            if let Some(record) = self.since(mark)?.iter().find(|record| wanted.fits(record)) {
                return Ok(record.clone());
            }
            if started.elapsed() > self.patience {
                bail!(
                    "no audit record fits {wanted:?}; there are: {}",
                    self.near(mark, wanted)
                );
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Records that might have been meant, for people to read.
    fn near(&self, mark: usize, wanted: &Wanted) -> String {
        let alike = |record: &&Value| wanted.op_fits(record);
        let field = |record: &Value, key: &str| {
            record
                .get(key)
                .map(|value| {
                    value
                        .as_str()
                        .map_or_else(|| value.to_string(), str::to_owned)
                })
                .unwrap_or_default()
        };
        let records = &self.records[mark.saturating_sub(self.before)..];
        let lines: Vec<String> = records
            .iter()
            .filter(alike)
            .rev()
            .take(8)
            .map(|record| {
                ["op", "target", "access", "verdict", "rule", "cause"]
                    .map(|key| field(record, key))
                    .join(" ")
            })
            .collect();
        if lines.is_empty() {
            format!("none of this operation ({} others)", records.len())
        } else {
            lines.join(" | ")
        }
    }
}

/// Shows each whole line of a log from a byte on, and gives the place behind the last.
fn each(path: &Path, from: u64, mut see: impl FnMut(Value) -> Result<()>) -> Result<u64> {
    let Ok(mut file) = File::open(path) else {
        return Ok(from);
    };
    file.seek(SeekFrom::Start(from))?;
    let mut lines = BufReader::new(file);
    let (mut line, mut at) = (Vec::new(), from);
    loop {
        line.clear();
        let count = lines.read_until(b'\n', &mut line)?;
        if count == 0 || line.last() != Some(&b'\n') {
            return Ok(at);
        }
        at += count as u64;
        see(serde_json::from_slice(&line).with_context(|| {
            format!(
                "a line of the audit trail is not JSON: {}",
                String::from_utf8_lossy(&line)
            )
        })?)?;
    }
}
