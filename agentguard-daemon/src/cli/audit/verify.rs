//! `agentguard audit verify`, `key` and `anchor`: whether the log is whole, and by whose word.

use std::fmt::Write as _;
use std::io::{IsTerminal, Read, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use clap::Args;

use crate::audit::key::{self, Key, PublicKey};
use crate::audit::mark::{Head, Mark};
use crate::audit::segment;
use crate::audit::verify::{Finding, Report, verify};
use crate::cli::exit::Exit;
use crate::cli::report::{CliError, has_colour, red};
use crate::cli::{LOG, STATE, print, print_json};

/// Arguments of `audit verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo agentguard audit verify
  sudo agentguard audit verify --anchor /mnt/elsewhere/anchors.txt
  agentguard audit verify --file copy/audit.jsonl --key audit.pub --json

It reads every segment, and says what was checked. A head (`audit.jsonl.head`) belongs to a log: copy it with the
rest. An anchor file has what `agentguard audit anchor` printed, one or more lines, also as a system log has them.

Exit status: 0 whole and signed, 1 changed or incomplete, 3 nothing is wrong but nothing proves it (no key was
given, or nothing is signed yet), 66 no such file, 74 it cannot be read.")]
pub struct VerifyArgs {
    /// The log.
    #[arg(long, value_name = "FILE", default_value = LOG)]
    file: PathBuf,
    /// A public key: 64 digits, or a file with them; can be given more than once [default: the daemon's]
    #[arg(long, value_name = "KEY")]
    key: Vec<String>,
    /// Anchors: a file, or `-` for standard input.
    #[arg(long, value_name = "FILE")]
    anchor: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `audit key`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  agentguard audit key
  agentguard audit key --export > audit.pub

The secret half is in the state folder, for root only (audit.key, mode 0600), and is made at the first start.")]
pub struct KeyArgs {
    /// Print only the 64 digits that `audit verify --key` takes.
    #[arg(long)]
    export: bool,
    /// Folder of state.
    #[arg(long, value_name = "DIR", default_value = STATE)]
    state_dir: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Where an anchor goes.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum To {
    /// Standard output.
    Stdout,
    /// The system's journal.
    Journald,
    /// The system's log, `/dev/log`.
    Syslog,
}

/// Arguments of `audit anchor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo agentguard audit anchor >> /mnt/elsewhere/anchors.txt
  sudo agentguard audit anchor --to journald
  sudo agentguard audit anchor --command ssh vault 'cat >> anchors.txt'

An anchor is one line: the number and the hash of the last record on the disk, signed. Kept where nobody who can
change the log can reach it, it shows (`audit verify --anchor`) that the log was not replaced since.")]
pub struct AnchorArgs {
    /// The log.
    #[arg(long, value_name = "FILE", default_value = LOG)]
    file: PathBuf,
    /// Where to.
    #[arg(long, value_enum, default_value = "stdout")]
    to: To,
    /// A command that is given the line on its standard input; all that follows belongs to it.
    #[arg(long, value_name = "CMD", num_args = 1.., allow_hyphen_values = true, conflicts_with = "to")]
    command: Vec<std::ffi::OsString>,
}

fn wrong(exit: Exit, message: impl std::fmt::Display) -> CliError {
    CliError::Other(exit, message.to_string())
}

/// The keys to check with: those that were given, or the one of this machine, if there is one.
pub fn keys(given: &[String]) -> Result<Vec<PublicKey>, CliError> {
    if given.is_empty() {
        let path = Path::new(STATE).join(key::PUBLIC_FILE);
        return Ok(PublicKey::read(&path).into_iter().collect());
    }
    given
        .iter()
        .map(|text| {
            PublicKey::parse(text)
                .or_else(|_| PublicKey::read(Path::new(text)))
                .map_err(|error| wrong(Exit::Usage, error))
        })
        .collect()
}

fn anchors(files: &[PathBuf]) -> Result<Vec<Mark>, CliError> {
    let mut marks = Vec::new();
    for file in files {
        let text = if file == Path::new("-") {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map(|_| text)
                .map_err(|error| CliError::file("read", Path::new("standard input"), &error))?
        } else {
            std::fs::read_to_string(file).map_err(|error| CliError::file("read", file, &error))?
        };
        let found = Mark::all_in(&text);
        if found.is_empty() {
            let message = format!("there is no anchor in {}", file.display());
            return Err(wrong(Exit::Usage, message));
        }
        marks.extend(found);
    }
    Ok(marks)
}

/// A bar on a terminal, and nothing elsewhere. Of 0 bytes: nobody knows how many there are.
pub fn progress(total: u64) -> indicatif::ProgressBar {
    if !std::io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    let (bar, template) = if total == 0 {
        let template = "{spinner} {bytes} of records that fit, {elapsed}";
        (indicatif::ProgressBar::new_spinner(), template)
    } else {
        let template = "{bar:40} {bytes} of about {total_bytes}, {bytes_per_sec}, {eta} left";
        (indicatif::ProgressBar::new(total), template)
    };
    if let Ok(style) = indicatif::ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

pub fn run(args: &VerifyArgs) -> Result<ExitCode, CliError> {
    let keys = keys(&args.key)?;
    let anchors = anchors(&args.anchor)?;
    let failed = |error: std::io::Error| CliError::file("read", &args.file, &error);
    let segments = segment::all_of(&args.file).map_err(failed)?;
    // Packed segments become about seven times as long.
    let total = segments
        .iter()
        .map(|segment| segment.size() * if segment.packed { 7 } else { 1 })
        .sum();
    let bar = progress(total);
    let mut since = 0;
    let report = verify(&args.file, &keys, anchors, &mut |bytes| {
        since += bytes;
        if since > 4 << 20 {
            bar.inc(since);
            since = 0;
        }
    })
    .map_err(failed)?;
    bar.finish_and_clear();
    if args.json {
        print_json(&report)?;
    } else {
        print(&in_words(&report, has_colour(&std::io::stdout())))?;
    }
    Ok(if !report.is_whole() {
        Exit::Failure
    } else if report.is_proved() {
        Exit::Ok
    } else {
        Exit::Unproved
    }
    .into())
}

fn in_words(report: &Report, colour: bool) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let _ = writeln!(text, "{}  {}", red("WRONG", colour), place(finding));
    }
    if report.more > 0 {
        let _ = writeln!(text, "and {} more", report.more);
    }
    let word = match (report.is_whole(), report.is_proved()) {
        (true, true) => "whole: ".to_owned(),
        (true, false) => "nothing is wrong, and nothing proves it: ".to_owned(),
        _ => red("not whole: ", colour),
    };
    let range = match (report.first, report.last) {
        (Some(first), Some(last)) => format!(", {first} to {last}"),
        _ => String::new(),
    };
    let _ = writeln!(
        text,
        "{word}{} records{range}, in {} segments of {}",
        report.records, report.segments, report.log
    );
    if report.missing > 0 {
        let _ = writeln!(text, "  missing:      {} records", report.missing);
    }
    let keys = match report.keys.as_slice() {
        [] => "none, so no signature was checked (--key)".to_owned(),
        keys => keys.join(", "),
    };
    let _ = writeln!(text, "  key:          {keys}");
    let _ = writeln!(
        text,
        "  checkpoints:  {} hold; signed to record {}, {} after it are chained only",
        report.checkpoints, report.signed_to, report.unsigned
    );
    let head = report
        .head
        .map_or("none".to_owned(), |seq| format!("record {seq}"));
    let _ = writeln!(text, "  head:         {head}");
    let _ = writeln!(text, "  anchors:      {}", report.anchors);
    for loss in &report.losses {
        let _ = writeln!(
            text,
            "  recorded gap: {} records were lost ({}), says record {}",
            loss.lost, loss.class, loss.seq
        );
    }
    for seq in &report.repairs {
        let _ = writeln!(text, "  repaired:     see record {seq}");
    }
    if report.live {
        let _ = writeln!(text, "  the log is being written");
    }
    text
}

fn place(finding: &Finding) -> String {
    let mut text = String::new();
    if let Some(segment) = &finding.segment {
        text.push_str(segment);
        if let (Some(line), Some(byte)) = (finding.line, finding.byte) {
            let _ = write!(text, ", line {line} (byte {byte})");
        }
        if let Some(seq) = finding.seq {
            let _ = write!(text, ", record {seq}");
        }
        text.push_str(": ");
    }
    text.push_str(&finding.message);
    text
}

pub fn key(args: &KeyArgs) -> Result<ExitCode, CliError> {
    let public = args.state_dir.join(key::PUBLIC_FILE);
    let key = match PublicKey::read(&public) {
        Ok(key) => key,
        // Only root can read the secret half, and there is none before the first start.
        Err(_) if args.state_dir.join(key::FILE).exists() => Key::of_state(&args.state_dir)
            .map_err(|error| wrong(Exit::NotPermitted, error))?
            .0
            .public(),
        Err(error) => {
            let message =
                format!("{error}; the key is made when AgentGuard starts for the first time");
            return Err(wrong(Exit::Missing, message));
        }
    };
    if args.json {
        print_json(&serde_json::json!({
            "algorithm": "ed25519", "id": key.id(), "public": key.hex(),
        }))?;
    } else if args.export {
        print(&format!("{}\n", key.hex()))?;
    } else {
        print(&format!("{}  ed25519 {}\n", key.id(), key.hex()))?;
    }
    Ok(Exit::Ok.into())
}

pub fn anchor(args: &AnchorArgs) -> Result<ExitCode, CliError> {
    let head = Head::read(&args.file)
        .map_err(|error| CliError::file("read the head of", &args.file, &error))?
        .ok_or_else(|| {
            let message = format!("{} has no head yet", args.file.display());
            wrong(Exit::Missing, message)
        })?;
    let line = head.line();
    if !args.command.is_empty() {
        return give_to(&args.command, &line);
    }
    match args.to {
        To::Stdout => print(&format!("{line}\n"))?,
        To::Journald => send(
            "/run/systemd/journal/socket",
            &format!("MESSAGE=audit anchor {line}\nSYSLOG_IDENTIFIER=agentguard\nPRIORITY=5\n"),
        )?,
        // Facility `authpriv`, level `notice`.
        To::Syslog => send("/dev/log", &format!("<85>agentguard: audit anchor {line}"))?,
    }
    Ok(Exit::Ok.into())
}

fn send(socket: &str, message: &str) -> Result<(), CliError> {
    UnixDatagram::unbound()
        .and_then(|from| from.send_to(message.as_bytes(), socket))
        .map(|_| ())
        .map_err(|error| CliError::file("send the anchor to", Path::new(socket), &error))
}

fn give_to(command: &[std::ffi::OsString], line: &str) -> Result<ExitCode, CliError> {
    let name = command[0].to_string_lossy().into_owned();
    let failed =
        |error: std::io::Error| wrong(Exit::Failure, format!("failed to run {name}: {error}"));
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        writeln!(input, "{line}").map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    if status.success() {
        Ok(Exit::Ok.into())
    } else {
        Err(wrong(
            Exit::Failure,
            format!("{name} did not take the anchor: {status}"),
        ))
    }
}
