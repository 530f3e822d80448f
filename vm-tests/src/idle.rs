//! Nothing happens, and the daemon does nothing: what it takes then is counted in times that it woke, which mean the
//! same on every machine, and printed with the time of the processor, which does not.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::guard::{Agent, Inside, write_policy};
use crate::scenario::{GUARDED, must_not_read};
use crate::trail::{Trail, Wanted};

/// How long is looked.
const LOOK: Duration = Duration::from_secs(15);
/// Until what came before is on the disk and signed, and a look at all protected files is over.
const SETTLE: Duration = Duration::from_secs(5);
/// Times a second that all threads together may wake. Looking into the rings twenty times a second is four times that.
const WAKES: f64 = 5.0;
/// How many denials are to come through afterwards.
const DENIALS: usize = 20;

/// What a daemon took so far.
struct Taken {
    at: Instant,
    /// By thread: its name, times that it woke, ticks of the processor.
    threads: Vec<(u32, String, u64, u64)>,
}

/// An agent that waits, and the daemon with it.
pub fn is_idle(trail: &mut Trail) -> Result<()> {
    write_policy("idle", GUARDED)?;
    let agent = Agent::attach("idle", "idle")?;
    let _waits = Inside::script(&agent, "exec sleep 3600")?;
    let daemon = daemon()?;
    thread::sleep(SETTLE);
    let before = Taken::by(&daemon)?;
    thread::sleep(LOOK);
    let after = Taken::by(&daemon)?;
    let seconds = (after.at - before.at).as_secs_f64();
    let (mut wakes, mut ticks) = (0, 0);
    for (id, name, woke, took) in &after.threads {
        let earlier = before.threads.iter().find(|it| it.0 == *id);
        let (woke, took) = earlier.map_or((*woke, *took), |it| (woke - it.2, took - it.3));
        if woke > 0 {
            println!("  {name}: woke {woke} times, {took} ticks");
        }
        wakes += woke;
        ticks += took;
    }
    let rate = f64::from(u32::try_from(wakes)?) / seconds;
    println!(
        "  idle for {seconds:.0} s: woke {rate:.2} times a second; {ticks} ticks (of 10 ms) of the processor: {:.3} %",
        f64::from(u32::try_from(ticks)?) / seconds
    );
    println!("  memory: {}", memory(&daemon)?);
    ensure!(
        rate <= WAKES,
        "the daemon woke {rate:.1} times a second while nothing happened"
    );
    // The twin: it is there when something does.
    for _ in 0..DENIALS {
        let mark = trail.mark()?;
        must_not_read(crate::scenario::SECRET, &agent.group)?;
        trail.wait(
            mark,
            &Wanted {
                agent: Some("idle".into()),
                verdict: Some("deny".into()),
                ..Wanted::default()
            },
        )?;
    }
    Ok(())
}

/// The folder of the daemon's process.
fn daemon() -> Result<PathBuf> {
    for process in fs::read_dir("/proc")?.flatten() {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        if words.next() == Some(b"/usr/bin/agentguard") && words.next() == Some(b"daemon") {
            return Ok(process.path());
        }
    }
    anyhow::bail!("no daemon runs")
}

/// What a daemon has in memory.
fn memory(daemon: &std::path::Path) -> Result<String> {
    let status = fs::read_to_string(daemon.join("status"))?;
    let wanted = ["VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem"];
    let lines = status
        .lines()
        .filter(|line| wanted.iter().any(|name| line.starts_with(name)));
    let lines: Vec<String> = lines
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    Ok(lines.join(", "))
}

impl Taken {
    fn by(daemon: &std::path::Path) -> Result<Self> {
        let mut threads = Vec::new();
        for task in fs::read_dir(daemon.join("task"))? {
            let task = task?;
            let id = task.file_name().to_string_lossy().parse()?;
            let read = |name| fs::read_to_string(task.path().join(name));
            // A thread that ends meanwhile takes no more.
            let (Ok(status), Ok(stat)) = (read("status"), read("stat")) else {
                continue;
            };
            let value = |key: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(key));
                line.map(|it| it.trim().to_owned())
                    .with_context(|| format!("no {key}"))
            };
            // Behind the name, which may have anything in it: state is the first, times are 12th and 13th.
            let rest = stat.rsplit_once(')').context("no name")?.1;
            let times = rest.split_whitespace().skip(11).take(2);
            let ticks = times.map(str::parse::<u64>).sum::<Result<u64, _>>()?;
            threads.push((
                id,
                value("Name:")?,
                value("voluntary_ctxt_switches:")?.parse()?,
                ticks,
            ));
        }
        Ok(Self {
            at: Instant::now(),
            threads,
        })
    }
}
