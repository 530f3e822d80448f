//! `cargo xtask powercut`: a guest with a disk that outlives it loses its power under load, again and again. It must
//! never count as proved what a boot did not get to say.

mod boot;
mod trail;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::command::{answer, find, quiet};
use crate::guest::Guest;
use crate::place::Scratch;
use crate::{kernels, product, qemu};

use self::boot::{Boot, Cut};
use self::trail::Trail;

/// What the guest does in each boot.
const JOB: &str = include_str!("../../../vm-tests/guest/powercut");
/// Under it the load runs: one file is refused, the others are not.
const POLICY: &str = r#"
version: 1
files:
  read: {default: allow, deny: [{id: no-secret, path: "/secret/**"}]}
  write: {default: allow}
exec: {default: allow}
"#;
/// Small segments, so that power also goes while one is closed or compressed.
const CONFIG: &str = "audit_log: {segment_mib: 1, checkpoint_records: 2000}\n";
/// Bytes of the disk.
const DISK: u64 = 512 << 20;

/// Cut the power of a guest under load, many times, and check the log after each.
///
/// A guest with the daemon and an agent that is refused every ninth open writes its log to ext4 on a disk that outlives
/// it. QEMU is killed (SIGKILL) at a random moment of the load, or of the start before it. The next boot, on the
/// same disk, checks: the log can be read and is whole but for a last line that was cut off; each denial that `audit
/// tail` had shown before the cut is there, with its hash; after the daemon's start the log is whole and signed, and
/// says so where whoever wrote before did not stop. Then it goes on with load.
///
/// The disk is a device of QEMU without a cache of its own: what the guest's kernel had not written yet is lost,
/// what the device had taken is not. The kernel needs drivers for `nvme` and `ext4` built in, as Debian's 6.1 has them.
#[derive(clap::Args)]
pub struct Options {
    /// Kernel: 6.1, or the path of an image.
    #[arg(long, default_value = "6.1")]
    kernel: String,
    /// How often the power goes.
    #[arg(long, default_value_t = 100)]
    cuts: u32,
    /// For the moments of the cuts; printed, so that they can be had again.
    #[arg(long)]
    seed: Option<u64>,
    /// Seconds of load after which the power is gone at the latest.
    #[arg(long, default_value_t = 8)]
    most: u64,
    /// Cuts after which the disk is made anew, so that checking stays short.
    #[arg(long, default_value_t = 25)]
    fresh: u32,
    /// Host seconds in which a boot must come to its load.
    #[arg(long, default_value_t = 900)]
    timeout: u64,
    /// The disk; it is made, and stays. A temporary one if none is named.
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// The program to test, instead of one that is built now.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// What writes the log instead of the daemon: the example `audit_load`, which is all of its recorder but for the
    /// kernel's end of the ring. Where guests are emulated it begins in seconds, and the daemon in minutes.
    #[arg(long, value_name = "FILE")]
    writer: Option<PathBuf>,
}

/// Cuts, and checks. 1 if something was not as it must be.
pub fn main(options: &Options) -> Result<i32> {
    let scratch = Scratch::new("powercut")?;
    let disk = options
        .disk
        .clone()
        .unwrap_or_else(|| scratch.path().join("disk"));
    let seed = options
        .seed
        .unwrap_or_else(|| u64::from(std::process::id()));
    println!("seed {seed}, {} cuts", options.cuts);
    let guest = guest(options, scratch.path(), &disk)?;
    let accelerator = qemu::accelerator()?;
    let mut trail = Trail::default();
    let mut dice = Dice(seed | 1);
    for number in 0..=options.cuts {
        if number % options.fresh.max(1) == 0 {
            make(&disk)?;
            trail.begin_anew();
        }
        // The last boot only checks what the last cut left.
        let cut = if number == options.cuts {
            Cut::Checked
        } else if dice.roll(6) == 0 {
            Cut::Starting(Duration::from_millis(dice.roll(20_000)))
        } else {
            Cut::Loaded(Duration::from_millis(dice.roll(options.most * 1000)))
        };
        let begun = Instant::now();
        let boot = Boot {
            guest: &guest,
            scratch: scratch.path(),
            accelerator,
            patience: Duration::from_secs(options.timeout),
        };
        let told = boot.run(cut, &mut trail)?;
        println!(
            "{number:4}: {told} ({:.0} s)",
            begun.elapsed().as_secs_f64()
        );
    }
    println!("{trail}");
    Ok(i32::from(!trail.failures.is_empty()))
}

/// What is booted each time: busybox, the program with its libraries, policy and configuration.
fn guest(options: &Options, scratch: &Path, disk: &Path) -> Result<Guest> {
    let program = match &options.program {
        Some(program) => fs::canonicalize(program)
            .with_context(|| format!("failed to find {}", program.display()))?,
        None => product::build()?.join("agentguard"),
    };
    let mut guest = Guest::new(kernels::find(&options.kernel)?, JOB.to_owned());
    guest.disk = Some(disk.to_owned());
    let tree = &mut guest.overlay;
    tree.copy(&program, "usr/bin/agentguard")?;
    let listed = answer("ldd", &[&program.to_string_lossy()]).context("ldd says nothing")?;
    let libraries = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for library in libraries {
        let from = fs::canonicalize(library)
            .with_context(|| format!("failed to find the library {library}"))?;
        tree.copy(&from, library)?;
    }
    if let Some(writer) = &options.writer {
        let writer = fs::canonicalize(writer)
            .with_context(|| format!("failed to find {}", writer.display()))?;
        tree.copy(&writer, "guest/writer")?;
    }
    tree.file("etc/agentguard/cut.yaml", 0o644, POLICY);
    tree.file("etc/agentguard/agentguard.yaml", 0o644, CONFIG);
    guest.pack(&scratch.join("initrd"))?;
    Ok(guest)
}

/// A disk with an empty ext4.
fn make(disk: &Path) -> Result<()> {
    let mkfs = find("mkfs.ext4").context("mkfs.ext4 is missing (Debian has it in e2fsprogs)")?;
    let file = File::create(disk).with_context(|| format!("failed to make {}", disk.display()))?;
    file.set_len(DISK)
        .with_context(|| format!("failed to make {}", disk.display()))?;
    quiet(
        std::process::Command::new(mkfs)
            .args(["-q", "-F"])
            .arg(disk),
    )
    .map(drop)
}

/// A sequence of numbers that looks random (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides.max(1)
    }
}
