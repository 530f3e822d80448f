//! One operation of a governed process, for a debugger that follows each instruction: it knows where one operation ends
//! and the next begins by an instruction at an address that both know.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bench_report::trace::{MARK, TIMES};

use super::operation::{OPERATIONS, Operation, Things};
use super::policy::{self, Kind};
use super::{scene, server};
use crate::guard::{Agent, Daemon, write_policy};

const NAME: &str = "traced";
/// The instruction `ret`.
const RET: u8 = 0xc3;
/// Within which whoever started something has done with it.
const SETTLE: Duration = Duration::from_secs(5);

/// Governs a process that does the operation, and keeps the names of all functions.
pub fn run(operation: &str, out: &Path) -> Result<()> {
    find(operation)?;
    scene::make()?;
    server::start()?;
    let daemon = Daemon::start()?;
    write_policy(NAME, &policy::text(Kind::Recorded, 1_000))?;
    let agent = Agent::attach(NAME, NAME)?;
    thread::sleep(SETTLE);
    let status = Command::new("/proc/self/exe")
        .args(["bench", "traced", operation])
        .arg(agent.group.path())
        .status()
        .context("failed to start the traced process")?;
    ensure!(status.success(), "the traced process failed ({status})");
    let symbols = fs::read("/proc/kallsyms").context("failed to read /proc/kallsyms")?;
    fs::write(out, symbols).with_context(|| format!("failed to write {}", out.display()))?;
    drop((agent, daemon));
    Ok(())
}

/// Is that process.
pub fn child(operation: &str, cgroup: &Path) -> Result<()> {
    let operation = find(operation)?;
    let mark = mark()?;
    fs::write(cgroup.join("cgroup.procs"), "0").context("failed to enter the cgroup")?;
    let things = Things::new(true)?;
    let mut good = true;
    for _ in 0..TIMES {
        mark();
        good &= (operation.act)(&things);
    }
    mark();
    ensure!(good, "{} did not succeed", operation.name);
    Ok(())
}

fn find(name: &str) -> Result<&'static Operation> {
    let Some(found) = OPERATIONS.iter().find(|it| it.name == name) else {
        let names: Vec<&str> = OPERATIONS.iter().map(|it| it.name).collect();
        bail!("no operation {name}: one of {}", names.join(", "));
    };
    Ok(found)
}

/// Makes the instruction that marks where an operation begins: before the process is governed, which may make no code.
fn mark() -> Result<extern "C" fn()> {
    // SAFETY: a page of its own at an address where nothing is, written once and then only executed.
    unsafe {
        let page = libc::mmap(
            MARK as *mut libc::c_void,
            1,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        );
        ensure!(
            page as u64 == MARK,
            "failed to map the mark: {}",
            std::io::Error::last_os_error()
        );
        page.cast::<u8>().write(RET);
        let status = libc::mprotect(page, 1, libc::PROT_READ | libc::PROT_EXEC);
        ensure!(
            status == 0,
            "failed to make the mark executable: {}",
            std::io::Error::last_os_error()
        );
        Ok(std::mem::transmute::<*mut libc::c_void, extern "C" fn()>(
            page,
        ))
    }
}
