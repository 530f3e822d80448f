//! The system's own tools, and where the package is.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::guard::agentguard_ok;

/// The packaged unit.
pub const UNIT: &str = "agentguard.service";
/// Its configuration.
pub const CONFIG: &str = "/etc/agentguard/agentguard.yaml";
/// The packages, in the order of their versions.
const PACKAGES: &str = "/guest/packages";
/// How long a change may take to be seen. Guests are emulated and busy.
const PATIENCE: Duration = Duration::from_mins(10);

/// Runs a tool; gives what it said, what it complained of and whether it succeeded.
pub fn said(program: &str, words: &[&str]) -> Result<(String, String, bool)> {
    let output = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to start {program}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok((
        text(&output.stdout),
        text(&output.stderr),
        output.status.success(),
    ))
}

/// The same, where it must succeed.
pub fn ok(program: &str, words: &[&str]) -> Result<String> {
    let (said, complaint, succeeded) = said(program, words)?;
    ensure!(
        succeeded,
        "{program} {}: {said} {complaint}",
        words.join(" ")
    );
    Ok(said)
}

/// A property of the daemon's unit.
pub fn property(key: &str) -> Result<String> {
    ok("systemctl", &["show", "--value", "-p", key, UNIT])
}

/// The path of a package.
pub fn packaged(number: usize) -> Result<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(PACKAGES).with_context(|| format!("no {PACKAGES}"))? {
        all.push(entry?.path().display().to_string());
    }
    // `_` comes after `+`.
    all.sort_by_key(String::len);
    all.into_iter()
        .nth(number)
        .context("there are too few packages")
}

/// The version that is installed.
pub fn version() -> Result<String> {
    ok("dpkg-query", &["-W", "-f", "${Version}", "agentguard"])
}

/// Writes the daemon's configuration.
pub fn configure(text: &str) -> Result<()> {
    fs::write(CONFIG, text).with_context(|| format!("failed to write {CONFIG}"))
}

/// Adds a setting to the daemon's unit.
pub fn drop_in(name: &str, setting: &str) -> Result<()> {
    let folder = format!("/etc/systemd/system/{UNIT}.d");
    fs::create_dir_all(&folder)?;
    fs::write(
        format!("{folder}/{name}.conf"),
        format!("[Service]\n{setting}\n"),
    )?;
    ok("systemctl", &["daemon-reload"]).map(drop)
}

/// True while anything is pinned.
pub fn programs_are_pinned() -> bool {
    fs::read_dir("/sys/fs/bpf/agentguard").is_ok_and(|mut entries| entries.next().is_some())
}

/// What an agent keeps whatever becomes of the daemon.
pub fn since_the_boot(name: &str) -> Result<String> {
    let agents: Vec<serde_json::Value> = serde_json::from_str(&agentguard_ok(&["ps", "--json"])?)?;
    let found = agents.iter().find(|agent| agent["name"] == name);
    let found = found.with_context(|| format!("`{name}` is not listed"))?;
    Ok(format!(
        "session {} since {}",
        found["session"], found["since"]
    ))
}

/// The end of what the unit said, without the records of its sink, and what systemd said of it.
pub fn journal_tail() -> String {
    let words = ["--no-pager", "-o", "cat", "-n", "20"];
    let (of, by) = (format!("_SYSTEMD_UNIT={UNIT}"), format!("UNIT={UNIT}"));
    let matches = [of.as_str(), "_TRANSPORT=stdout", "+", &by];
    said("journalctl", &[&words[..], &matches].concat())
        .map_or_else(|error| format!("{error:#}"), |it| it.0)
}

/// Waits until something is true.
pub fn until(what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !is()? {
        if started.elapsed() > PATIENCE {
            bail!("it did not come about that {what}");
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Makes a folder with what users have, which then belongs to a user.
pub fn give(path: &Path, user: &str) -> Result<()> {
    let path = path.display().to_string();
    ok("chown", &["-R", user, &path]).map(drop)
}
