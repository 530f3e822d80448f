//! The decide code of the hooks in this machine's kernel: the classifier `selftest`, run in bulk.

use agentguard::kernel::{Guard, GuardOptions};
use agentguard::policy::{LoadOptions, generate, load_text};
use agentguard_common::selftest::{Case, kind};
use agentguard_common::table::MAX_COMMAND;
use agentguard_common::verdict::access;
use anyhow::Context as _;
use aya::maps::Array;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use bench_report::figures::Spread;

use super::ROUNDS;

/// Runs in a round.
const REPEAT: u32 = 100_000;
/// Bytes of a short and of a long path; the difference is what a byte takes.
const SHORT: usize = 63;
const LONG: usize = 63 + 1024;

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Input(Case);

// SAFETY: `Case` is `repr(C)` and has no padding.
unsafe impl aya::Pod for Input {}

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

/// What a decision about a path of so many bytes takes, in each round.
fn times(len: usize) -> anyhow::Result<Vec<f64>> {
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
    let mut guard = Guard::load_object(&GuardOptions::default())?;
    guard.install(1, &policy.compile(1)?.bytes)?;
    let input = guard.object().take_map("SELFTEST").context("no SELFTEST")?;
    let mut input: Array<_, Input> = Array::try_from(input)?;
    input.set(0, case(len), 0)?;
    let program = guard.object().program_mut("selftest");
    let program: &mut SchedClassifier = program.context("no selftest")?.try_into()?;
    program.load()?;
    let run = |_| {
        let mut options = TestRunOptions::new();
        options.data_in = Some(&[0u8; 64]);
        options.repeat = REPEAT;
        let result = program.test_run(options)?;
        Ok(result.duration.as_secs_f64() * 1e9)
    };
    (0..ROUNDS).map(run).collect()
}

#[expect(
    clippy::large_stack_arrays,
    reason = "the type has that size; it is made once"
)]
fn case(len: usize) -> Input {
    let mut case = Case {
        kind: kind::FILE,
        access: u32::from(access::READ),
        path_len: len as u32,
        args_len: 0,
        count: 0,
        reserved: 0,
        bytes: [0; 4096 + MAX_COMMAND],
    };
    let path = "/srv".bytes().chain("/abcdefg".bytes().cycle());
    for (place, byte) in case.bytes.iter_mut().zip(path.take(len)) {
        *place = byte;
    }
    Input(case)
}
