//! The measured process: a program of its own, which confines itself, takes a real-time priority,
//! measures, and prints its cells.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use bench_report::figures::Cell;
use serde::{Deserialize, Serialize};

use super::measure::{PRIORITY, prioritise, rounds};
use super::operation::{OPERATIONS, Operation, Things};
use super::{landlock, seccomp};
use crate::dialogue::Dialogue;

/// Cells by name of the operation.
pub type Cells = BTreeMap<String, Cell>;

/// What confines a measured process by its own doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Confined {
    /// Nothing.
    Not,
    /// It enters this cgroup, under a policy that permits what it does.
    Cgroup(String),
    /// It enters this cgroup, under a policy that denies what it does.
    Denied(String),
    /// It changes to this `AppArmor` profile.
    Profile(String),
    /// It restricts itself to the trees that are used.
    Landlock,
    /// It has a filter that asks another process about each of the calls.
    Seccomp,
}

/// A measured process that has not begun yet.
pub struct Measured(Dialogue);

impl Measured {
    /// Starts it; it confines itself, and waits.
    pub fn start(confined: &Confined) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["bench", "child", &serde_json::to_string(confined)?]);
        // SAFETY: one system call, with a number.
        unsafe { command.pre_exec(always_at_the_same_addresses) };
        let process = Dialogue::start(&mut command);
        Ok(Self(
            process.context("failed to start the measured process")?,
        ))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// The next line that it prints.
    pub fn line(&mut self) -> Result<String> {
        let line = self.0.hear()?;
        ensure!(!line.is_empty(), "the measured process ended early");
        Ok(line)
    }

    /// Lets it measure, and returns its cells.
    pub fn cells(mut self) -> Result<Cells> {
        self.0.say("")?;
        let line = self.line()?;
        ensure!(self.0.wait()?.success(), "the measured process failed");
        serde_json::from_str(&line).with_context(|| format!("it said: {line}"))
    }
}

/// Where things lie decides how many tables a new process needs: it must not differ between rows.
fn always_at_the_same_addresses() -> io::Result<()> {
    // SAFETY: a number only.
    if unsafe { libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A process that is started, measures, and is done.
pub fn measured(confined: &Confined) -> Result<Cells> {
    let mut measured = Measured::start(confined)?;
    measured.line()?;
    measured.cells()
}

/// Is the measured process.
pub fn child(confined: &str) -> Result<()> {
    let confined: Confined = serde_json::from_str(confined)?;
    let permitted = !matches!(confined, Confined::Denied(_));
    prioritise(PRIORITY)?;
    // What it says is where its supervisor finds what it needs, if it has one.
    println!("{}", confine(&confined)?);
    io::stdin().read_exact(&mut [0])?;
    let things = Things::new(permitted)?;
    let mut cells = Cells::new();
    for operation in OPERATIONS {
        let cell = if permitted || operation.deniable {
            measure(operation, &things, permitted)
        } else {
            Cell::Absent("a policy that denies what is done has nothing to say about it".into())
        };
        cells.insert(operation.name.to_owned(), cell);
    }
    println!("{}", serde_json::to_string(&cells)?);
    Ok(())
}

fn measure(operation: &Operation, things: &Things, permitted: bool) -> Cell {
    let act = || (operation.act)(things);
    match rounds(operation.times, operation.per, permitted, act) {
        Ok(spread) => Cell::Measured(spread),
        Err(error) => Cell::Absent(format!("{error:#}")),
    }
}

fn confine(confined: &Confined) -> Result<String> {
    match confined {
        Confined::Not => {}
        Confined::Cgroup(path) | Confined::Denied(path) => {
            fs::write(format!("{path}/cgroup.procs"), "0").context("failed to enter the cgroup")?;
        }
        Confined::Profile(name) => fs::write(
            "/proc/self/attr/apparmor/current",
            format!("changeprofile {name}"),
        )
        .context("failed to change the profile")?,
        Confined::Landlock => landlock::restrict()?,
        Confined::Seccomp => return Ok(seccomp::restrict()?.to_string()),
    }
    Ok("ready".into())
}
