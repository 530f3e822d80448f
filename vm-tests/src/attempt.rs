//! One act, tried once: by a process of its own, governed or not, with a picture before and after of
//! all that it may have changed. It judges nothing.

use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::act::{READY, RESULT, victim};
use crate::fixture::{self, Picture};
use crate::guard::Group;
use crate::listen;
use crate::row::Actor;

/// How long an act may take. Guests are emulated and busy.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// What came of one act.
#[derive(Debug)]
pub struct Done {
    /// The errno, 0 for success.
    pub errno: i32,
    /// Its standard output.
    pub output: Vec<u8>,
    /// Whether anything shows that it happened.
    pub effect: Option<String>,
    /// Whether it was killed.
    pub killed: bool,
    /// Its process.
    pub pid: u32,
    /// What it said on standard error.
    pub complaint: String,
}

/// An act as it is tried once.
pub struct Attempt<'a> {
    /// Verb and arguments.
    pub act: &'a [String],
    /// Working directory.
    pub cwd: Option<&'a str>,
    /// Shell lines before.
    pub setup: &'a [String],
    /// Shell lines after.
    pub after: &'a [String],
    /// Acts before, by the acting process.
    pub before: &'a [Vec<String>],
    /// Mounts and host name of its own.
    pub private: bool,
    /// Who acts.
    pub actor: Actor,
    /// The cgroup, if the act is governed.
    pub group: Option<&'a Group>,
    /// How long it may take.
    pub patience: Duration,
}

/// What shows that something happened.
struct Scenery {
    files: Picture,
    arrivals: u32,
    victim: String,
}

impl Scenery {
    fn take() -> Result<Self> {
        Ok(Self {
            files: Picture::take()?,
            arrivals: listen::arrivals()?,
            victim: victim::picture(),
        })
    }

    fn effect(&self, output: &[u8]) -> Result<Option<String>> {
        let now = Self::take()?;
        Ok(if let Some(path) = now.files.difference(&self.files) {
            Some(format!("{} changed", path.display()))
        } else if now.victim != self.victim {
            Some("the victim is not what it was".to_owned())
        } else if !output.is_empty() {
            let text: String = String::from_utf8_lossy(output).chars().take(60).collect();
            Some(format!("it printed {text:?}"))
        } else {
            (now.arrivals != self.arrivals).then(|| "a service was reached".to_owned())
        })
    }
}

/// Performs an act in the fixture, by a process in the attempt's group if it has one.
pub fn perform(attempt: &Attempt<'_>) -> Result<Done> {
    victim::forget();
    fixture::make(attempt.setup)?;
    let done = performed(attempt);
    victim::end();
    fixture::shell(attempt.after)?;
    done
}

fn command(attempt: &Attempt<'_>) -> Result<Command> {
    let mut command = Command::new("/guest/vm-tests");
    command.arg("act");
    if attempt.actor == Actor::User {
        command.arg("--user");
    }
    if attempt.private {
        command.arg("--private");
    }
    if !attempt.before.is_empty() {
        command.args(["--before", &serde_json::to_string(attempt.before)?]);
    }
    if let Some(cwd) = attempt.cwd {
        command.args(["--cwd", &fixture::expand(cwd)]);
    }
    command
        .arg("--")
        .args(attempt.act.iter().map(|word| fixture::expand(word)));
    Ok(command)
}

fn performed(attempt: &Attempt<'_>) -> Result<Done> {
    let mut command = command(attempt)?;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("failed to start the act")?;
    let pid = child.id();
    // The loader's own opens must not be judged: wait until the process says that it has begun.
    let mut ready = [0];
    child
        .stderr
        .as_mut()
        .context("the act has no error output")?
        .read_exact(&mut ready)
        .context("the act did not begin")?;
    if ready != [READY] {
        let output = child.wait_with_output()?;
        bail!(
            "the act did not begin: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    // What came before the act is no effect of it.
    let before = Scenery::take()?;
    if let Some(group) = attempt.group {
        group.take(pid)?;
    }
    child
        .stdin
        .take()
        .context("the act has no input")?
        .write_all(&[0])
        .context("failed to release the act")?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(attempt.patience) else {
        // It may end in this moment.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(i32::try_from(pid)?),
            nix::sys::signal::Signal::SIGKILL,
        );
        bail!(
            "the act did not end within {} s",
            attempt.patience.as_secs()
        );
    };
    let output = output.context("failed to wait for the act")?;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    let killed = output.status.signal() == Some(libc::SIGKILL);
    let errno = if killed {
        0
    } else {
        errno(&complaint, output.status.success())?
    };
    let effect = before.effect(&output.stdout)?;
    Ok(Done {
        errno,
        output: output.stdout,
        effect,
        killed,
        pid,
        complaint,
    })
}

/// From the act's own report, or, when it became another program, from that program's words.
fn errno(complaint: &str, success: bool) -> Result<i32> {
    if let Some(line) = complaint.lines().find_map(|line| line.strip_prefix(RESULT)) {
        let number: i32 = line
            .split(' ')
            .next()
            .unwrap_or_default()
            .parse()
            .context("the act reported no number")?;
        ensure!(
            number != 0 || success,
            "the act failed without an errno: {line}"
        );
        return Ok(number);
    }
    if success {
        return Ok(0);
    }
    if complaint.contains("Operation not permitted") || complaint.contains("Errno 1]") {
        return Ok(libc::EPERM);
    }
    if complaint.contains("Permission denied") || complaint.contains("Errno 13]") {
        return Ok(libc::EACCES);
    }
    bail!(
        "the program failed for another reason: {}",
        complaint.trim()
    )
}
