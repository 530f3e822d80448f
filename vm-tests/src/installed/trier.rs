//! An agent in a systemd unit of its own, that opens a file which its policy denies and one which it permits, again and
//! again.

use std::fs;
use std::process::Command;

use anyhow::{Result, bail, ensure};

use super::system::ok;
use crate::dialogue::Dialogue;

/// What the policy denies.
pub const SECRET: &str = "/srv/secret/key";
/// What it permits.
pub const OPEN: &str = "/srv/open.txt";
/// The policy.
pub const GUARDED: &str = "\
version: 1
files:
  default: allow
  read:
    deny: [{id: secret, path: /srv/secret/key}]
exec: {default: allow}
";
/// It says how often each came about since it was asked the last time. The pause keeps it below what a journal in memory keeps.
const PROGRAM: &str = r#"
import os, select, sys
counts = [0] * 5
print("ready", flush=True)
while True:
    try:
        os.close(os.open("/srv/secret/key", os.O_RDONLY))
        counts[0] += 1
    except PermissionError:
        counts[1] += 1
    except OSError:
        counts[2] += 1
    try:
        os.close(os.open("/srv/open.txt", os.O_RDONLY))
        counts[3] += 1
    except OSError:
        counts[4] += 1
    if select.select([sys.stdin], [], [], 0.05)[0]:
        if not sys.stdin.readline():
            break
        print(*counts, flush=True)
        counts = [0] * 5
"#;

/// What came of its attempts since the last count.
#[derive(Debug)]
pub struct Count {
    /// The forbidden file was opened.
    pub opened: u64,
    /// It was refused.
    pub refused: u64,
    other: u64,
    fine: u64,
    broken: u64,
}

impl Count {
    /// All that is denied was refused, and nothing else.
    pub fn is_held(&self) -> bool {
        self.opened == 0 && self.refused > 0 && self.is_whole()
    }

    /// Nothing was refused.
    pub fn is_free(&self) -> bool {
        self.opened > 0 && self.refused == 0 && self.is_whole()
    }

    fn is_whole(&self) -> bool {
        self.fine > 0 && self.other == 0 && self.broken == 0
    }
}

/// Makes the files.
pub fn make() -> Result<()> {
    fs::create_dir_all("/srv/secret")?;
    fs::write(SECRET, "secret\n")?;
    fs::write(OPEN, "open\n")?;
    Ok(())
}

/// The agent; ended when dropped.
pub struct Trier {
    name: String,
    dialogue: Dialogue,
}

impl Trier {
    /// Starts it in a unit, governed by nobody.
    pub fn start(name: &str) -> Result<Self> {
        let mut command = Command::new("systemd-run");
        command.args(["--quiet", "--pipe", "--collect", "--uid=agent"]);
        command.arg(format!("--unit={}", unit(name)));
        let mut dialogue = Dialogue::start(command.args(["/usr/bin/python3", "-c", PROGRAM]))?;
        ensure!(dialogue.hear()? == "ready", "the unit did not start");
        Ok(Self {
            name: name.to_owned(),
            dialogue,
        })
    }

    /// Name of the agent.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its unit.
    pub fn unit(&self) -> String {
        unit(&self.name)
    }

    /// A property of its unit.
    pub fn property(&self, key: &str) -> Result<String> {
        ok("systemctl", &["show", "--value", "-p", key, &self.unit()])
    }

    /// Waits for some attempts, and says what came of those since the last time.
    pub fn count(&mut self) -> Result<Count> {
        std::thread::sleep(std::time::Duration::from_millis(200));
        self.dialogue.say("count")?;
        let line = self.dialogue.hear()?;
        let numbers: Vec<u64> = line
            .split(' ')
            .filter_map(|word| word.parse().ok())
            .collect();
        let [opened, refused, other, fine, broken] = numbers[..] else {
            bail!("the agent said {line:?}");
        };
        Ok(Count {
            opened,
            refused,
            other,
            fine,
            broken,
        })
    }
}

fn unit(name: &str) -> String {
    format!("agent-{name}.service")
}
