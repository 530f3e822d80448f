//! Whole programs: how long they take in guest time, started again and again by one small process.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench_report::figures::Spread;
use serde::{Deserialize, Serialize};

use super::measure::{now, since};

/// Between two rounds.
const PAUSE: Duration = Duration::from_secs(1);

/// Where and how programs are started.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Place {
    /// The cgroup that the starting process enters first.
    pub cgroup: Option<String>,
    /// The `AppArmor` profile that it changes to.
    pub profile: Option<String>,
    /// Whether its root is moved to where it can be replaced: a guest's first root cannot be, which
    /// `bwrap` needs.
    pub moved_root: bool,
}

/// What is started, and how often.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Program {
    /// Where and how.
    pub place: Place,
    /// Program and arguments.
    pub words: Vec<String>,
    /// Rounds that are measured; one more is not.
    pub rounds: u32,
}

/// What a program takes, measured by a process of its own.
pub fn measured(program: &Program) -> Result<Spread> {
    let output = Command::new("/proc/self/exe")
        .args(["bench", "program", &serde_json::to_string(program)?])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("failed to start the process that starts programs")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}", text.trim());
    serde_json::from_str(text.trim()).with_context(|| format!("it said: {text}"))
}

/// Is that process.
pub fn serve(program: &str) -> Result<()> {
    let program: Program = serde_json::from_str(program)?;
    let place = &program.place;
    if place.moved_root {
        move_root().context("failed to move the root")?;
    }
    if let Some(cgroup) = &place.cgroup {
        fs::write(format!("{cgroup}/cgroup.procs"), "0").context("failed to enter the cgroup")?;
    }
    if let Some(profile) = &place.profile {
        let change = format!("changeprofile {profile}");
        fs::write("/proc/self/attr/apparmor/current", change)
            .context("failed to change the profile")?;
    }
    let mut figures = Vec::new();
    for round in 0..=program.rounds {
        thread::sleep(PAUSE);
        let start = now();
        run(&program.words)?;
        if round > 0 {
            figures.push(since(start));
        }
    }
    let spread = Spread::of(figures).context("no rounds")?;
    println!("{}", serde_json::to_string(&spread)?);
    Ok(())
}

fn run(words: &[String]) -> Result<()> {
    let (program, arguments) = words.split_first().context("no program is named")?;
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to start {program}"))?;
    ensure!(
        output.status.success(),
        "{} failed ({}): {}",
        words.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Makes a bind mount of the root the root, in a mount namespace of this process.
fn move_root() -> Result<()> {
    let place = c"/run/root";
    fs::create_dir_all("/run/root")?;
    // SAFETY: numbers only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    mount(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE)?;
    mount(c"/", place, libc::MS_BIND | libc::MS_REC)?;
    std::env::set_current_dir("/run/root")?;
    mount(c".", c"/", libc::MS_MOVE)?;
    // SAFETY: a C string.
    check(unsafe { libc::chroot(c".".as_ptr()) })?;
    std::env::set_current_dir("/")?;
    Ok(())
}

fn mount(from: &CStr, to: &CStr, flags: libc::c_ulong) -> Result<()> {
    // SAFETY: C strings; no data.
    check(unsafe {
        libc::mount(
            from.as_ptr(),
            to.as_ptr(),
            std::ptr::null(),
            flags,
            std::ptr::null(),
        )
    })
}

fn check(status: i32) -> Result<()> {
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error().into())
    }
}
