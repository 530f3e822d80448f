//! `cargo xtask test`: every test there is, and one table of what came of it. A step that could not
//! run is a failure or a counted skip with its reason, never silence.

mod apart;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::command::{answer, run};
use crate::guest::{Guest, Show};
use crate::kernels::{self, Kernel, MATRIX};
use crate::product::{self, cargo};
use crate::{place, setup, userland};

/// Run every test: on this host, then in a guest with each kernel of the matrix.
#[derive(clap::Args)]
pub struct Options {
    /// Only this kernel: 6.1, 6.12, newest, or the path of an image.
    #[arg(long, conflicts_with = "host_only")]
    kernel: Option<String>,
    /// Only the tests that need no guest.
    #[arg(long)]
    host_only: bool,
    /// Only the tests in guests.
    #[arg(long, conflicts_with = "host_only")]
    guests_only: bool,
    /// Only rows whose name contains this (guests only).
    #[arg(long, conflicts_with = "host_only")]
    filter: Option<String>,
}

/// Parameters of scenarios, from the environment: see `vm-tests/src/survival.rs`.
const PARAMETERS: &[&str] = &[
    "AGENTGUARD_SURVIVAL_OPERATIONS",
    "AGENTGUARD_SURVIVAL_FLOOD",
    "AGENTGUARD_BUDGET_ROUNDS",
    "AGENTGUARD_RACE_SECONDS",
];

/// The kernel on which the tests themselves are tested.
const REVERSED_ON: &str = "6.12";

/// Guests that run at the same time, at most: each is busy on one CPU and takes some GiB of memory.
const MOST_GUESTS: usize = 2;
/// After which a guest is taken to stand still.
const PATIENCE: Duration = Duration::from_mins(75);

/// What the daemon says, in a guest.
const LOG: &str = "/var/log/agentguard-daemon.txt";

/// What came of one step.
struct Outcome {
    step: String,
    passed: u32,
    failed: u32,
    skipped: u32,
    elapsed: Duration,
    note: String,
}

impl Outcome {
    fn of(step: &str, started: Instant, result: Result<Counts>) -> Self {
        let elapsed = started.elapsed();
        let (counts, note) = match result {
            Ok(counts) => (counts, String::new()),
            Err(error) => {
                eprintln!("xtask: {step}: {error:#}");
                (
                    Counts {
                        failed: 1,
                        ..Counts::default()
                    },
                    format!("{error:#}")
                        .lines()
                        .next()
                        .unwrap_or_default()
                        .chars()
                        .take(70)
                        .collect(),
                )
            }
        };
        let note = if counts.note.is_empty() {
            note
        } else {
            counts.note
        };
        Self {
            step: step.to_owned(),
            passed: counts.passed,
            failed: counts.failed,
            skipped: counts.skipped,
            elapsed,
            note,
        }
    }
}

#[derive(Default)]
struct Counts {
    passed: u32,
    failed: u32,
    skipped: u32,
    note: String,
}

impl Counts {
    /// A guest whose job did not come to its end.
    fn broke_off(folder: &Path) -> Self {
        Self {
            failed: 1,
            note: format!("broke off; see {}", folder.display()),
            ..Self::default()
        }
    }
}

/// Runs them; 0 when all passed.
pub fn main(options: &Options) -> Result<i32> {
    setup::main(&setup::Options {
        build_only: options.host_only,
        no_workshop: false,
    })?;
    let whole = options.kernel.is_none() && options.filter.is_none() && !options.guests_only;
    let mut outcomes = Vec::new();
    let (kernels, binaries): (Vec<Kernel>, PathBuf);
    let mut jobs = Vec::new();
    let filter = options.filter.as_deref().unwrap_or_default();
    if whole {
        outcomes.push(step("format", || single(&["fmt", "--all", "--check"])));
        // Compilers wait for one another, and guests wait for time to pass: side by side both cost less.
        jobs.push(Job {
            weight: u32::MAX,
            run: Box::new(host),
        });
    }
    if !options.host_only {
        kernels = match &options.kernel {
            Some(name) => vec![kernels::find(name)?],
            None => MATRIX
                .iter()
                .map(|choice| kernels::find(choice.name))
                .collect::<Result<_>>()?,
        };
        // Also when it fails the host's results are shown.
        let started = Instant::now();
        let built = if whole {
            product::build_with_tests()
        } else {
            product::build()
        };
        match built {
            Ok(built) => {
                binaries = built;
                if !apart::speaks_of(filter) {
                    jobs.extend(guests(&kernels, filter, &binaries));
                }
                jobs.extend(apart::guests(&kernels, filter, &binaries));
            }
            Err(error) => outcomes.push(Outcome::of("release build", started, Err(error))),
        }
    }
    outcomes.extend(side_by_side(jobs));
    Ok(report(&outcomes))
}

fn step(name: &str, work: impl FnOnce() -> Result<Counts>) -> Outcome {
    println!("\n== {name}");
    let started = Instant::now();
    Outcome::of(name, started, work())
}

fn single(arguments: &[&str]) -> Result<Counts> {
    run(cargo().args(arguments))?;
    Ok(Counts {
        passed: 1,
        ..Counts::default()
    })
}

/// What needs no guest.
fn host() -> Vec<Outcome> {
    let lints = || {
        single(&[
            "clippy",
            "--quiet",
            "--profile",
            product::PROFILE,
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ])
    };
    let licences = || {
        if answer("cargo-deny", &["--version"]).is_none() {
            return Ok(Counts {
                skipped: 1,
                note: "cargo-deny is not installed".into(),
                ..Counts::default()
            });
        }
        // The advisory database needs a network of its own; licences and sources do not.
        single(&["deny", "--offline", "check", "licenses", "bans", "sources"])
    };
    vec![
        step("lints", lints),
        step("host tests", cargo_tests),
        step("licences, advisories", licences),
    ]
}

fn cargo_tests() -> Result<Counts> {
    let mut command = cargo();
    command
        .args(["test", "--profile", product::PROFILE])
        // There are no tests in documents, and the lints have compiled the examples.
        .args([
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            "--no-fail-fast",
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = command.output().context("failed to start cargo test")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut counts = Counts::default();
    for line in text
        .lines()
        .filter_map(|line| line.strip_prefix("test result:"))
    {
        let number = |word: &str| {
            line.split(['.', ';'])
                .find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<u32>().ok())
                .unwrap_or(0)
        };
        counts.passed += number("passed");
        counts.failed += number("failed");
        counts.skipped += number("ignored");
    }
    if !output.status.success() {
        println!("{text}");
        counts.failed = counts.failed.max(1);
    }
    Ok(counts)
}

/// What a guest is for, and how long it takes compared to others.
struct Job<'a> {
    weight: u32,
    run: Box<dyn FnOnce() -> Vec<Outcome> + Send + 'a>,
}

/// Runs jobs, a few at a time, the longest first: a guest is busy on one CPU for most of its time. Gives what came of
/// them in their order.
fn side_by_side(jobs: Vec<Job<'_>>) -> Vec<Outcome> {
    let at_once = thread::available_parallelism().map_or(1, usize::from);
    let mut done: Vec<Vec<Outcome>> = jobs.iter().map(|_| Vec::new()).collect();
    let mut waiting: Vec<_> = jobs.into_iter().zip(&mut done).collect();
    waiting.sort_by_key(|(job, _)| job.weight);
    let waiting = Mutex::new(waiting);
    let next = || {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.pop()
    };
    thread::scope(|scope| {
        for _ in 0..at_once.min(MOST_GUESTS) {
            scope.spawn(|| {
                while let Some((job, done)) = next() {
                    *done = (job.run)();
                }
            });
        }
    });
    done.into_iter().flatten().collect()
}

fn guests<'a>(
    kernels: &'a [Kernel],
    filter: &'a str,
    binaries: &'a Path,
) -> impl Iterator<Item = Job<'a>> {
    kernels.iter().map(move |kernel| {
        // Whether the tests would notice is a question about them, which one kernel answers.
        let reversed = kernels.len() == 1 || kernel.name == REVERSED_ON;
        Job {
            weight: if reversed { 3 } else { 2 },
            run: Box::new(move || rows(kernel, filter, binaries, reversed)),
        }
    })
}

fn rows(kernel: &Kernel, filter: &str, binaries: &Path, reversed: bool) -> Vec<Outcome> {
    let name = format!("kernel {}", kernel.name);
    println!("\n== {name} ({})", kernel.release);
    let started = Instant::now();
    match guest(kernel, filter, binaries, reversed) {
        Ok((rows, reversed)) => {
            let mut outcomes = vec![Outcome::of(&name, started, Ok(rows))];
            if let Some(reversed) = reversed {
                let name = format!("{name}, without policies");
                let mut reversed = Outcome::of(&name, started, Ok(reversed));
                reversed.elapsed = Duration::ZERO;
                outcomes.push(reversed);
            }
            outcomes
        }
        Err(error) => vec![Outcome::of(&name, started, Err(error))],
    }
}

/// Keeps what came back from a guest in a folder of the target, and returns that.
fn keep(name: &str, outcome: &crate::guest::Outcome) -> Result<PathBuf> {
    let folder = place::target().join("vm").join(name.replace('/', "_"));
    fs::create_dir_all(&folder)
        .with_context(|| format!("failed to create {}", folder.display()))?;
    fs::write(folder.join("output.txt"), &outcome.output)?;
    for (path, data) in &outcome.files {
        fs::write(folder.join(path.rsplit('/').next().unwrap_or(path)), data)?;
    }
    Ok(folder)
}

/// All rows under their policies, then perhaps the denial rows without, which must fail.
fn guest(
    kernel: &Kernel,
    filter: &str,
    binaries: &Path,
    reversed: bool,
) -> Result<(Counts, Option<Counts>)> {
    const TRAIL: &str = "/tmp/audit-tail.jsonl";
    let quoted = crate::command::shell_quoted(filter);
    // Parameters of long scenarios go into the guest; whoever sets one has time.
    let given: Vec<String> = PARAMETERS
        .iter()
        .filter_map(|name| Some((name, std::env::var(name).ok()?)))
        .map(|(name, value)| format!("export {name}={}\n", crate::command::shell_quoted(&value)))
        .collect();
    let without = if reversed {
        format!(
            "echo 'Without their policies the rows that expect a denial must fail:'\n\
             /guest/vm-tests rows --filter {quoted} --permissive\nreversed=$?\n"
        )
    } else {
        String::new()
    };
    let job = format!(
        "{}/guest/vm-tests rows --filter {quoted}\nrows=$?\nreversed=0\n{without}\
         [ $((rows + reversed)) = 0 ] || tail -c 500000 /var/log/agentguard/audit.jsonl >{TRAIL}\n\
         exit $((rows + reversed))\n",
        given.concat()
    );
    let mut guest = Guest::new(kernel.clone(), job);
    guest.timeout = PATIENCE;
    guest.prefix = format!("{}: ", kernel.name);
    if !given.is_empty() {
        guest.timeout = Duration::from_hours(2);
        // The log of a million records is in the guest's memory.
        guest.memory = 12_288;
    }
    guest.userland = Some(userland::GUEST.get()?);
    guest.show = Show::Remarkable;
    guest.wanted = vec![LOG.into(), TRAIL.into()];
    product::put(&mut guest, binaries)?;
    let outcome = guest.run()?;
    let folder = keep(&kernel.name, &outcome)?;
    let mut closings = outcome.output.lines().filter_map(closing);
    let broken = || Counts::broke_off(&folder);
    let mut rows = closings.next().unwrap_or_else(broken);
    let reversed = reversed.then(|| closings.next().unwrap_or_else(broken));
    if outcome.repeats > 0 {
        rows.note = format!("{} guest(s) died and were repeated", outcome.repeats);
    }
    let failed = rows.failed + reversed.as_ref().map_or(0, |counts| counts.failed);
    if outcome.status != 0 && failed == 0 {
        rows.failed += 1;
        rows.note = format!("the guest's status is {}", outcome.status);
    }
    Ok((rows, reversed))
}

/// Reads `N passed, M failed, K skipped`; a run in which nothing passed has failed.
fn closing(line: &str) -> Option<Counts> {
    let mut parts = line.trim().split(", ");
    let mut number = |word: &str| parts.next()?.strip_suffix(word)?.trim().parse::<u32>().ok();
    let (passed, failed, skipped) = (number("passed")?, number("failed")?, number("skipped")?);
    let failed = if passed == 0 { failed.max(1) } else { failed };
    Some(Counts {
        passed,
        failed,
        skipped,
        note: String::new(),
    })
}

fn report(outcomes: &[Outcome]) -> i32 {
    let width = outcomes
        .iter()
        .map(|outcome| outcome.step.len())
        .max()
        .unwrap_or(0);
    println!("\n{:width$}  passed  failed  skipped    time", "");
    for outcome in outcomes {
        let time = if outcome.elapsed.is_zero() {
            String::new()
        } else {
            format!("{:.0} s", outcome.elapsed.as_secs_f64())
        };
        let line = format!(
            "{:width$}  {:>6}  {:>6}  {:>7}  {time:>6}  {}",
            outcome.step, outcome.passed, outcome.failed, outcome.skipped, outcome.note
        );
        println!("{}", line.trim_end());
    }
    let sum = |field: fn(&Outcome) -> u32| outcomes.iter().map(field).sum::<u32>();
    let (passed, failed, skipped) = (sum(|o| o.passed), sum(|o| o.failed), sum(|o| o.skipped));
    println!("\n{passed} passed, {failed} failed, {skipped} skipped");
    i32::from(failed > 0 || passed == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closings_are_read_and_an_empty_run_fails() {
        let counts = closing("12 passed, 1 failed, 3 skipped").expect("a closing");
        assert_eq!((counts.passed, counts.failed, counts.skipped), (12, 1, 3));
        assert_eq!(
            closing("0 passed, 0 failed, 9 skipped")
                .expect("a closing")
                .failed,
            1
        );
        assert!(closing("ok    12 passed").is_none());
    }
}
