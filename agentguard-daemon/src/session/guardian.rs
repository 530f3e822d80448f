//! The guardian: a small process of ours that outlives us by one act.
//!
//! The kernel programs end with the process that loaded them. If that process dies without taking
//! leave, the guardian kills or freezes every agent, so that none runs on ungoverned.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::sys::signal::SigSet;

use super::SessionError;
use crate::event::escape::{escape, unescape};

/// The hidden subcommand that runs [`run`].
pub const SUBCOMMAND: &str = "internal-guardian";

/// What happens to an agent when its engine dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Its processes are killed.
    Kill,
    /// Its processes are frozen, for somebody to look at.
    Freeze,
}

/// The engine's end of the guardian.
#[derive(Debug)]
pub struct Guardian {
    child: Child,
    input: Option<ChildStdin>,
}

impl Guardian {
    /// Starts it.
    pub fn start() -> Result<Self, SessionError> {
        let mut child = Command::new("/proc/self/exe")
            .arg(SUBCOMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .current_dir("/")
            .spawn()
            .map_err(|source| SessionError::Spawn {
                what: "the guardian process",
                source,
            })?;
        let input = child.stdin.take();
        Ok(Self { child, input })
    }

    /// From now on it watches over a cgroup.
    pub fn add(&mut self, cgroup: &Path, action: Action) -> Result<(), SessionError> {
        let word = match action {
            Action::Kill => "kill",
            Action::Freeze => "freeze",
        };
        self.tell(word, cgroup)
    }

    /// It need not watch over a cgroup any more.
    pub fn remove(&mut self, cgroup: &Path) -> Result<(), SessionError> {
        self.tell("forget", cgroup)
    }

    fn tell(&mut self, word: &str, cgroup: &Path) -> Result<(), SessionError> {
        let line = format!("{word} {}\n", escape(cgroup.as_os_str().as_bytes()));
        let written = match &mut self.input {
            Some(input) => input.write_all(line.as_bytes()),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        };
        written.map_err(|source| SessionError::Spawn {
            what: "the guardian process",
            source,
        })
    }
}

impl Drop for Guardian {
    /// Taking leave: nothing happens to those it still watches over.
    fn drop(&mut self) {
        if let Some(mut input) = self.input.take() {
            let _ = input.write_all(b"bye\n");
        }
        let _ = self.child.wait();
    }
}

/// The guardian's own life: reads lines, acts at the end of input.
pub fn run(input: impl BufRead) {
    // Neither the terminal nor a stray signal may end it before its time.
    let _ = SigSet::all().thread_block();
    let _ = nix::unistd::setsid();
    for (cgroup, file) in watch_over(input) {
        if let Err(error) = std::fs::write(cgroup.join(file), "1") {
            let cgroup = cgroup.display();
            eprintln!("agentguard: the engine died, and {cgroup}/{file} failed: {error}");
        } else {
            eprintln!(
                "agentguard: the engine died; {file} was written for {}",
                cgroup.display()
            );
        }
    }
}

/// Reads to the end; what is left to do for each cgroup.
fn watch_over(input: impl BufRead) -> HashMap<PathBuf, &'static str> {
    let mut agents = HashMap::new();
    for line in input.lines() {
        let Ok(line) = line else { break };
        if line == "bye" {
            agents.clear();
            break;
        }
        let Some((word, path)) = line.split_once(' ') else {
            continue;
        };
        let Ok(path) = unescape(path) else { continue };
        let path = PathBuf::from(std::ffi::OsString::from_vec(path));
        match word {
            "kill" => agents.insert(path, "cgroup.kill"),
            "freeze" => agents.insert(path, "cgroup.freeze"),
            _ => agents.remove(&path),
        };
    }
    agents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_still_watched_are_acted_on_and_none_after_a_farewell() {
        let lines = "kill /cg/a\nfreeze /cg/b\\x0ac\nkill /cg/d\nforget /cg/d\n";
        let left = watch_over(lines.as_bytes());
        assert_eq!(left.len(), 2);
        assert_eq!(left[Path::new("/cg/a")], "cgroup.kill");
        assert_eq!(left[Path::new("/cg/b\nc")], "cgroup.freeze");
        assert!(watch_over(format!("{lines}bye\n").as_bytes()).is_empty());
    }
}
