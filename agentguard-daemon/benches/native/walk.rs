//! The decide code of the hooks in this machine's kernel: the classifier `selftest`, run in bulk.

use agentguard::policy::{LoadOptions, generate, load_text};
use agentguard_common::selftest::{Case, kind};
use agentguard_common::verdict::access;
use anyhow::Context as _;
use bench_report::figures::Spread;

use super::ROUNDS;
use super::selftest::Kernel;

/// Runs in a round.
const REPEAT: u32 = 100_000;
/// Bytes of a short and of a long path; the difference is what a byte takes.
const SHORT: usize = 63;
const LONG: usize = 63 + 1024;

/// Decisions about a path of 63 bytes under a policy of 1,000 rules.
pub fn decision() -> anyhow::Result<Spread> {
    Spread::of(times(SHORT)?).context("no rounds")
}

/// What each byte of a path takes.
pub fn nanoseconds_a_byte() -> anyhow::Result<Spread> {
    let bytes = f64::from(u32::try_from(LONG - SHORT)?);
    let (short, long) = (times(SHORT)?, times(LONG)?);
    let least = short.iter().copied().fold(f64::INFINITY, f64::min);
    let figures = long.iter().map(|time| (time - least) / bytes).collect();
    Spread::of(figures).context("no rounds")
}

/// The record of a permitted open of such a path, from the space in the ring to its delivery, without a reader that
/// would be woken. `repeat` of them in a round must fit the ring together.
pub fn record(repeat: u32) -> anyhow::Result<Spread> {
    let mut figures = Vec::new();
    for _ in 0..ROUNDS.min(3) {
        // A ring that nobody has written.
        let mut kernel = governing()?;
        let mut time = |kind, path_len| {
            let case = kernel.case();
            (case.kind, case.path_len) = (kind, path_len);
            kernel.set();
            kernel.time(repeat).as_secs_f64() * 1e9
        };
        let nothing = time(0, 0);
        figures.push(time(kind::RECORD, SHORT as u32) - nothing);
    }
    Spread::of(figures).context("no rounds")
}

/// What a decision about a path of so many bytes takes, in each round.
fn times(len: usize) -> anyhow::Result<Vec<f64>> {
    let mut kernel = governing()?;
    ask(kernel.case(), len);
    kernel.set();
    let time = |_| kernel.time(REPEAT).as_secs_f64() * 1e9;
    Ok((0..ROUNDS).map(time).collect())
}

/// The programs under a policy of 1,000 rules.
fn governing() -> anyhow::Result<Kernel> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "loading a kernel program needs root"
    );
    let policy = load_text(
        "bench.yaml".as_ref(),
        &generate::large(970, 30),
        &LoadOptions::default(),
    )
    .context("failed to read the policy")?;
    let mut kernel = Kernel::load();
    kernel.guard.install(1, &policy.compile(1)?.bytes)?;
    Ok(kernel)
}

/// Makes the case that of reading a path of so many bytes.
fn ask(case: &mut Case, len: usize) {
    case.kind = kind::FILE;
    case.access = u32::from(access::READ);
    case.path_len = len as u32;
    let path = "/srv".bytes().chain("/abcdefg".bytes().cycle());
    for (place, byte) in case.bytes.iter_mut().zip(path.take(len)) {
        *place = byte;
    }
}
