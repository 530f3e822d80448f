//! The acts that rows perform, done by the calling process itself: what an act tries is one system
//! call that the guard judges, and as little as possible around it.
//!
//! An act that reads writes what it read to standard output (already open), so that a leak shows;
//! one whose effect no picture of the files shows says there that it succeeded. Its errno goes to
//! standard error in a line of its own.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

mod call;
mod exec;
mod files;
mod kernel;
mod network;
mod process;
mod race;
mod uring;
pub mod victim;

/// Every verb, by the module that performs it.
pub const VERBS: &[&[&str]] = &[
    files::VERBS,
    exec::VERBS,
    network::VERBS,
    process::VERBS,
    kernel::VERBS,
    uring::VERBS,
    race::VERBS,
];
/// Begins the line that carries the errno.
pub const RESULT: &str = "\u{1}errno ";
/// Uid and gid of the ordinary user.
pub const USER: u32 = 1000;

/// Says that the process is loaded: from here on it opens nothing but what the act opens.
pub const READY: u8 = b'>';

/// What comes before an act has no effect that counts.
static SILENT: AtomicBool = AtomicBool::new(false);

/// How an act is performed.
#[derive(clap::Args)]
pub struct Options {
    /// Become the ordinary user first.
    #[arg(long)]
    user: bool,
    /// Working directory.
    #[arg(long)]
    cwd: Option<String>,
    /// Have mounts and a host name of one's own, so that nothing that changes there stays.
    #[arg(long)]
    private: bool,
    /// Acts before, as root and not yet governed: each a list of words, as JSON.
    #[arg(long, default_value = "[]")]
    before: String,
    /// Verb and arguments.
    #[arg(last = true, required = true)]
    act: Vec<String>,
}

/// The process that performs one act: says that it is ready, waits for a byte on standard input (the parent has put it
/// where it belongs), drops privileges, acts, reports. Does not return from a successful exec.
pub fn main(options: &Options) -> i32 {
    let outcome = prepare(options).and_then(|()| perform(&options.act));
    match outcome {
        Ok(()) => {
            eprintln!("{RESULT}0");
            0
        }
        Err(error) => {
            eprintln!("{RESULT}{} {error}", error.raw_os_error().unwrap_or(0));
            1
        }
    }
}

fn prepare(options: &Options) -> io::Result<()> {
    if options.private {
        kernel::private()?;
    }
    let before: Vec<Vec<String>> = serde_json::from_str(&options.before)?;
    SILENT.store(true, Ordering::Relaxed);
    for act in before {
        perform(&act)?;
    }
    SILENT.store(false, Ordering::Relaxed);
    if let Some(cwd) = &options.cwd {
        std::env::set_current_dir(cwd)?;
    }
    io::stderr().write_all(&[READY])?;
    io::stdin().read_exact(&mut [0])?;
    if options.user {
        setgroups(&[])?;
        let (uid, gid) = (Uid::from_raw(USER), Gid::from_raw(USER));
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
    }
    Ok(())
}

fn perform(act: &[String]) -> io::Result<()> {
    let words: Vec<&str> = act.iter().map(String::as_str).collect();
    files::perform(&words)
        .or_else(|| exec::perform(&words))
        .or_else(|| network::perform(&words))
        .or_else(|| process::perform(&words))
        .or_else(|| kernel::perform(&words))
        .or_else(|| uring::perform(&words))
        .or_else(|| race::perform(&words))
        .unwrap_or_else(|| Err(io::Error::other(format!("no such act: {act:?}"))))
}

/// Writes what a file holds to standard output.
fn show(mut file: File) -> io::Result<()> {
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    say(&text)
}

/// Writes to standard output, unless it is of what comes before an act.
fn say(text: &[u8]) -> io::Result<()> {
    if SILENT.load(Ordering::Relaxed) {
        return Ok(());
    }
    io::stdout().write_all(text)?;
    io::stdout().flush()
}

/// A number in a row, decimal or hexadecimal.
fn number(word: &str) -> io::Result<usize> {
    match word.strip_prefix("0x") {
        Some(digits) => usize::from_str_radix(digits, 16),
        None => word.parse(),
    }
    .map_err(|_| io::Error::other(format!("no number: {word}")))
}
