//! Where a process came from: back from a record, by the execs and forks in the log.
//!
//! It says only what the log has. Where that ends, the process was there before its agent was governed.

use std::io;
use std::path::Path;

use serde::Serialize;

use super::find::{Filter, Search};
use super::record::Record;

/// More than any real chain of processes; a log that was forged into a circle ends here.
const LONGEST: usize = 256;

/// A program on the way to a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ancestor {
    /// The process.
    pub pid: u32,
    /// The program that it ran.
    pub exe: Option<String>,
    /// Its arguments, escaped.
    pub argv: Option<Vec<String>>,
    /// User id.
    pub uid: Option<u32>,
    /// When it was started.
    pub time: Option<String>,
    /// The record that says so.
    pub seq: Option<u64>,
}

/// The programs that led to a record, the nearest first.
pub fn of(log: &Path, record: &Record<'_>) -> io::Result<Vec<Ancestor>> {
    let mut chain = Vec::new();
    let (mut pid, mut exec, mut seq) = (record.pid, record.exec_id.unwrap_or(0), record.seq);
    let session = record.session;
    let mut exe = record.exe.as_deref().map(str::to_owned);
    let mut parent = record.ppid;
    while let Some(process) = pid.filter(|_| chain.len() < LONGEST) {
        let before = |filter: Filter| Filter {
            seqs: Some((0, seq.saturating_sub(1))),
            session,
            ..filter
        };
        // The program that it runs.
        let start = if exec == 0 {
            None
        } else {
            let wanted = before(Filter {
                exec: Some(exec),
                ..Filter::default()
            });
            last(log, &wanted)?
        };
        chain.push(match &start {
            Some(line) => {
                let record: Record<'_> = serde_json::from_slice(line)?;
                Ancestor {
                    pid: record.pid.unwrap_or(process),
                    exe: record.target.as_deref().map(str::to_owned),
                    argv: record
                        .argv
                        .as_ref()
                        .map(|argv| argv.iter().map(|text| text.clone().into_owned()).collect()),
                    uid: record.uid,
                    time: Some(record.time.clone().into_owned()),
                    seq: Some(record.seq),
                }
            }
            None => Ancestor {
                pid: process,
                exe: exe.take(),
                argv: None,
                uid: None,
                time: None,
                seq: None,
            },
        });
        let mut from = None;
        if let Some(line) = &start {
            let record: Record<'_> = serde_json::from_slice(line)?;
            // Before it ran this program, the same process ran another: that is who started it.
            from = Some((
                record.pid,
                record.exec_id.unwrap_or(0),
                record.seq,
                record.exe.as_deref().map(str::to_owned),
                record.ppid,
            ));
        }
        let (now, at_exec, at, at_exe, at_parent) =
            from.unwrap_or((Some(process), 0, seq, None, parent));
        // A process that was forked and ran its parent's program is its parent, on the way to the root.
        let wanted = Filter {
            seqs: Some((0, at.saturating_sub(1))),
            session,
            child: now,
            ..Filter::default()
        };
        match last(log, &wanted)? {
            Some(line) => {
                let fork: Record<'_> = serde_json::from_slice(&line)?;
                pid = fork.pid;
                exec = fork.exec_id.unwrap_or(0);
                seq = fork.seq;
                exe = fork.exe.as_deref().map(str::to_owned);
                parent = fork.ppid;
            }
            // No fork is known: it was there before. Its program before this one may be.
            None if start.is_some() => {
                pid = now;
                exec = at_exec;
                seq = at;
                exe = at_exe;
                parent = at_parent;
                if exec == 0 {
                    let known = exe.is_some();
                    if known {
                        chain.push(Ancestor {
                            pid: now.unwrap_or(process),
                            exe: exe.take(),
                            argv: None,
                            uid: None,
                            time: None,
                            seq: None,
                        });
                    }
                    break;
                }
            }
            None => break,
        }
    }
    Ok(chain)
}

fn last(log: &Path, filter: &Filter) -> io::Result<Option<Vec<u8>>> {
    let mut lines = Search::default().last(log, filter, 1)?;
    Ok(lines.pop())
}
