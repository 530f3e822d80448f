//! Counting instructions: guest time is the count, where the guest was started so.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench_report::figures::Spread;
use nix::time::{ClockId, clock_gettime};

/// Rounds of each operation.
pub const ROUNDS: u32 = 9;
/// Between two rounds, in which whoever records catches up. Guest time that nobody uses costs nothing.
const PAUSE: Duration = Duration::from_millis(200);
/// Real-time priority of what is measured: nothing but interrupts runs beside it.
pub const PRIORITY: i32 = 10;

/// Nanoseconds of guest time, which are instructions.
pub fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_RAW, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// What has passed since then, as figures are calculated with.
pub fn since(start: u64) -> f64 {
    figure(now() - start)
}

/// A time, as figures are calculated with.
#[expect(
    clippy::cast_precision_loss,
    reason = "exact up to 2^53 ns, which are months"
)]
pub const fn figure(nanoseconds: u64) -> f64 {
    nanoseconds as f64
}

/// Instructions of a process so far, with its threads that have ended: the kernel counts their time.
pub fn process_time(pid: u32) -> Result<u64> {
    // The clock of another process, as `clock_getcpuclockid` makes its number.
    let clock = (!i32::try_from(pid)? << 3) | 2;
    let time =
        clock_gettime(ClockId::from_raw(clock)).context("failed to read a process's time")?;
    u64::try_from(Duration::from(time).as_nanos()).context("a process's time is too long")
}

/// Gives this process a real-time priority.
pub fn prioritise(priority: i32) -> Result<()> {
    let parameter = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: a live parameter.
    let status = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) };
    ensure!(
        status == 0,
        "failed to take a real-time priority: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// What `act` takes, done `times` times in each round, of which each does `per` things. It must
/// always answer as `expected`.
pub fn rounds(
    times: u32,
    per: u32,
    expected: bool,
    mut act: impl FnMut() -> bool,
) -> Result<Spread> {
    let mut as_expected = true;
    for _ in 0..=times / 4 {
        as_expected &= act() == expected;
    }
    ensure!(
        as_expected,
        "it was to {}, and did not",
        if expected { "succeed" } else { "be refused" }
    );
    let mut figures = Vec::new();
    for _ in 0..ROUNDS {
        thread::sleep(PAUSE);
        let start = now();
        for _ in 0..times {
            as_expected &= act() == expected;
        }
        figures.push((since(start) / f64::from(times * per)).round());
    }
    ensure!(as_expected, "it did not answer alike in all rounds");
    Spread::of(figures).ok_or_else(|| anyhow::anyhow!("no rounds"))
}
