//! Whole programs: what they take, started again and again by one small process.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench_report::figures::Spread;
use serde::{Deserialize, Serialize};

use super::measure::{figure, now, process_time, since};

/// Between two rounds.
const PAUSE: Duration = Duration::from_secs(1);
/// Within which whoever records has done with what it was told.
const CATCHES_UP: Duration = Duration::from_millis(500);

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

/// What is counted of a program.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Counted {
    /// Guest time from its start to its end, with whatever it waits for.
    Time,
    /// Time of the processor, in its own processes and those that they start and wait for.
    Processor {
        /// And of this process meanwhile, until it has caught up.
        beside: Option<u32>,
    },
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
    /// What of it.
    pub counted: Counted,
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
        let figure = program.counted.during(|| run(&program.words))?;
        if round > 0 {
            figures.push(figure);
        }
    }
    let spread = Spread::of(figures).context("no rounds")?;
    println!("{}", serde_json::to_string(&spread)?);
    Ok(())
}

impl Counted {
    /// What `act`, which starts something and waits for it, takes.
    fn during(self, act: impl FnOnce() -> Result<()>) -> Result<f64> {
        match self {
            Self::Time => {
                let start = now();
                act()?;
                Ok(since(start))
            }
            Self::Processor { beside } => {
                let other = || beside.map_or(Ok(0), process_time);
                let (tree, others) = (tree_time()?, other()?);
                act()?;
                let tree = tree_time()? - tree;
                if beside.is_some() {
                    thread::sleep(CATCHES_UP);
                }
                Ok(figure(tree + (other()? - others)))
            }
        }
    }
}

/// Time of the processor that this process has taken, and all that it started and waited for.
fn tree_time() -> Result<u64> {
    let mut sum = 0;
    for whose in [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN] {
        // SAFETY: numbers; a live structure of the kernel's.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            check(libc::getrusage(whose, &raw mut usage))?;
            usage
        };
        for time in [usage.ru_utime, usage.ru_stime] {
            sum +=
                time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_usec.cast_unsigned() * 1_000;
        }
    }
    Ok(sum)
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
