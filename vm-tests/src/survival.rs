//! What outlives the daemon: verdicts, labels, records and counts, through every way of its end. Each
//! scenario has daemons of its own and ends with nobody governed. What is pinned stays for the next, since
//! the kernel takes a minute to check the programs in an emulated guest; after a failure it goes.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::Value;

use crate::dialogue::Dialogue;
use crate::fixture;
use crate::guard::{AUDIT, Agent, Daemon, POLICIES, agentguard, agentguard_ok, write_policy};
use crate::run::{PERMISSIVE, Tally};
use crate::scenario::{FREE, GUARDED, SECRET, must_not_read, must_read};

/// Where everything that outlives a daemon is pinned.
const PINS: &str = "/sys/fs/bpf/agentguard";
/// Forbidden operations of the long scenario: a shorter run by default, and 1,000,000 on demand.
const OPERATIONS: &str = "AGENTGUARD_SURVIVAL_OPERATIONS";
const DEFAULT_OPERATIONS: u64 = 25_000;
/// Seconds between two of them on average: the daemons that start meanwhile need a processor too.
const PAUSE: f64 = 0.0005;
/// How many times the flood fills the ring of denials: a few by default, and 100 on demand.
const FLOOD: &str = "AGENTGUARD_SURVIVAL_FLOOD";
const DEFAULT_FLOOD: u64 = 3;
/// How long the log may be silent before the rest of the records is given up. Guests are emulated and busy.
const PATIENCE: Duration = Duration::from_mins(10);

type Scenario = (&'static str, fn() -> Result<()>);

/// Every scenario, by name.
pub const SCENARIOS: &[Scenario] = &[
    (
        "survival: kill -9 while a process tries forbidden opens",
        killed,
    ),
    ("survival: ten kills and two upgrades under load", cycles),
    (
        "survival: a daemon that is stopped leaves its agents governed",
        stopped,
    ),
    (
        "survival: a broken policy at the restart keeps the old one",
        broken,
    ),
    (
        "survival: a flood of denials while the daemon stands still",
        flood,
    ),
    (
        "survival: forked, moved and gone while the daemon was dead",
        lineage,
    ),
    (
        "survival: `run` holds while its daemon is replaced",
        run_through,
    ),
    (
        "survival: names on a host with IPv6 only",
        crate::names::six::only,
    ),
    (
        "survival: budgets, through kills, stops and a clock set back",
        crate::budgets::survives,
    ),
    (
        "survival: traffic is counted through the death of the daemon",
        crate::traffic::survives,
    ),
    (
        "survival: approvals, through the death of the daemon",
        crate::approvals::restart,
    ),
    (
        "survival: repeats that were counted while no daemon ran",
        crate::recording::survives,
    ),
    (
        "survival: uninstall leaves nothing, and asks first",
        uninstall,
    ),
    // It begins with nothing pinned.
    (
        "survival: names, by `run` alone and through the death of a daemon",
        crate::names::survives,
    ),
];

/// Runs the scenarios whose name contains `filter`. No daemon may run.
pub fn run(filter: &str, tally: &mut Tally) {
    for (name, scenario) in SCENARIOS.iter().filter(|(name, _)| name.contains(filter)) {
        let started = Instant::now();
        let result = scenario().and_then(|()| nobody_is_governed());
        if result.is_err() {
            // Whatever became of it, the next one begins with nothing.
            let cleared = agentguard_ok(&["uninstall", "--yes"]);
            println!("      what was pinned is gone: {}", cleared.is_ok());
        }
        tally.count(name, result, started.elapsed());
    }
}

/// What a scenario must leave: no agent, whether enforcement is pinned or not.
fn nobody_is_governed() -> Result<()> {
    let output = agentguard(&["ps", "--json"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.code() == Some(69) || (output.status.success() && text.trim() == "[]"),
        "it left {text} ({})",
        output.status
    );
    Ok(())
}

/// A process of an agent that tries the same forbidden open again and again, until it is told to stop.
struct Trier(Dialogue);

impl Trier {
    /// Says how often it tried and how often it succeeded, when SIGTERM has come and it tried `least` times.
    /// An attempt at a moment when the fixture has no such file is none.
    const PROGRAM: &'static str = r#"
import os, signal, sys, time
least, pause = int(sys.argv[1]), float(sys.argv[2])
going = True
def stop(*_):
    global going
    going = False
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
sys.stdin.readline()
tried = opened = other = 0
while going or tried < least:
    tried += 1
    try:
        os.close(os.open("/t/secret/key", os.O_RDONLY))
        opened += 1
    except PermissionError:
        pass
    except FileNotFoundError:
        tried -= 1
    except OSError:
        other += 1
    if pause and tried % 50 == 0:
        time.sleep(50 * pause)
print(tried, opened, other, flush=True)
"#;

    fn start(agent: &Agent, least: u64, pause: f64) -> Result<Self> {
        fixture::make(&[])?;
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", Self::PROGRAM, &least.to_string(), &pause.to_string()]);
        let mut trier = Dialogue::start(&mut command)?;
        ensure!(trier.hear()? == "ready", "the process did not start");
        agent.group.take(trier.pid())?;
        // The end of its input lets it begin.
        trier.hang_up();
        Ok(Self(trier))
    }

    /// How often it tried; it must never have succeeded.
    fn end(mut self) -> Result<u64> {
        signal(self.0.pid(), Signal::SIGTERM)?;
        let line = self.0.hear()?;
        self.0.wait()?;
        let numbers: Vec<u64> = line
            .split(' ')
            .filter_map(|word| word.parse().ok())
            .collect();
        let [tried, opened, other] = numbers[..] else {
            bail!("the process said {line:?}");
        };
        ensure!(opened == 0, "{opened} of {tried} forbidden opens succeeded");
        ensure!(other == 0, "{other} of {tried} opens failed in another way");
        Ok(tried)
    }
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?);
    kill(pid, signal).with_context(|| format!("failed to send {signal} to {pid}"))
}

fn guarded(name: &str) -> Result<Agent> {
    write_policy(name, GUARDED)?;
    Agent::attach(name, name)
}

/// The agent's entry in `agentguard ps`.
fn listed(name: &str) -> Result<Value> {
    let agents: Vec<Value> = serde_json::from_str(&agentguard_ok(&["ps", "--json"])?)?;
    let found = agents.into_iter().find(|agent| agent["name"] == name);
    found.with_context(|| format!("`{name}` is not listed"))
}

/// Name, session, generation and beginning: what must not change with the daemon.
fn identity(agent: &Value) -> [Value; 4] {
    ["name", "session", "generation", "since"].map(|key| agent[key].clone())
}

/// A line of the log, as far as it counts here.
#[derive(Deserialize)]
struct Line<'a> {
    seq: u64,
    #[serde(borrow)]
    op: Cow<'a, str>,
    #[serde(borrow)]
    agent: Option<Cow<'a, str>>,
    #[serde(borrow)]
    target: Option<Cow<'a, str>>,
    #[serde(borrow)]
    verdict: Option<Cow<'a, str>>,
    #[serde(borrow)]
    rule: Option<Cow<'a, str>>,
    #[serde(borrow)]
    class: Option<Cow<'a, str>>,
    #[serde(borrow)]
    detail: Option<Cow<'a, str>>,
    lost: Option<u64>,
}

/// How many forbidden opens the log accounts for: one by one, and in gaps. It reads the log as it grows and
/// keeps none of it: there may be a million lines.
#[derive(Default)]
struct Account {
    agent: &'static str,
    read: u64,
    before: Option<u64>,
    denied: u64,
    lost: u64,
    starts: Vec<String>,
    errors: u32,
}

impl Account {
    /// From now on.
    fn of(agent: &'static str) -> Self {
        Self {
            agent,
            read: fs::metadata(AUDIT).map_or(0, |found| found.len()),
            ..Self::default()
        }
    }

    fn refresh(&mut self) -> Result<()> {
        let Ok(mut file) = File::open(AUDIT) else {
            return Ok(());
        };
        file.seek(SeekFrom::Start(self.read))?;
        let mut lines = BufReader::with_capacity(1 << 20, file);
        let mut text = Vec::new();
        loop {
            text.clear();
            let count = lines.read_until(b'\n', &mut text)?;
            if text.last() != Some(&b'\n') {
                return Ok(());
            }
            self.read += count as u64;
            self.take(&text)?;
        }
    }

    fn take(&mut self, text: &[u8]) -> Result<()> {
        let shown = || String::from_utf8_lossy(text).into_owned();
        let line: Line<'_> = serde_json::from_slice(text).with_context(shown)?;
        ensure!(
            self.before.is_none_or(|before| line.seq == before + 1),
            "after record {:?} comes {}",
            self.before,
            line.seq
        );
        self.before = Some(line.seq);
        match &*line.op {
            "open"
                if line.agent.as_deref() == Some(self.agent)
                    && line.target.as_deref() == Some(SECRET) =>
            {
                let rule = (line.verdict.as_deref(), line.rule.as_deref());
                ensure!(rule == (Some("deny"), Some("no-secret")), "{}", shown());
                self.denied += 1;
            }
            "gap" if line.class.as_deref() == Some("denied") => {
                self.lost += line.lost.unwrap_or_default();
            }
            "start" => self.starts.extend(line.detail.map(Cow::into_owned)),
            "policy-error" => self.errors += 1,
            "alarm" | "malformed" | "log-repair" => bail!("{}", shown()),
            _ => {}
        }
        Ok(())
    }

    /// Waits until there is at least one denial.
    fn begin(&mut self) -> Result<()> {
        self.wait("the first denial", |account| Ok(account.denied > 0))
    }

    /// Waits until the numbers add up; more than there were is an error at once.
    fn settle(&mut self, tried: u64) -> Result<()> {
        let what = format!("{tried} forbidden opens");
        self.wait(&what, |account| {
            let sum = account.denied + account.lost;
            ensure!(
                sum <= tried,
                "{tried} forbidden opens, but {} denials and {} lost",
                account.denied,
                account.lost
            );
            Ok(sum == tried)
        })
    }

    fn wait(&mut self, what: &str, done: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let mut progress = (Instant::now(), self.read);
        loop {
            self.refresh()?;
            if done(self)? {
                return Ok(());
            }
            if self.read != progress.1 {
                progress = (Instant::now(), self.read);
            }
            ensure!(
                progress.0.elapsed() < PATIENCE,
                "{what} are not in the log: {} denials, {} lost, {} errors",
                self.denied,
                self.lost,
                self.errors
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// How daemons started after the first, which finds what an earlier scenario left pinned, or nothing.
    fn started(&self, words: &[(&str, usize)]) -> Result<()> {
        let later = self.starts.get(1..).unwrap_or_default();
        for (word, count) in words {
            let found = later.iter().filter(|it| it.contains(word)).count();
            ensure!(found == *count, "the starts are {:?}", self.starts);
        }
        Ok(())
    }
}

/// (a)
fn killed() -> Result<()> {
    let mut account = Account::of("killed");
    let daemon = Daemon::start()?;
    let first = daemon.started_in;
    let agent = guarded("killed")?;
    let before = listed("killed")?;
    let trier = Trier::start(&agent, 0, 0.0005)?;
    account.begin()?;
    daemon.kill()?;
    thread::sleep(Duration::from_millis(500));
    must_not_read(SECRET, &agent.group)?;
    must_read(FREE, &agent.group)?;
    let alone: Vec<Value> = serde_json::from_str(&agentguard_ok(&["ps", "--json"])?)?;
    ensure!(
        alone.len() == 1
            && alone[0]["enforced_by"] == "pins"
            && identity(&alone[0]) == identity(&before),
        "without a daemon `ps` lists {alone:?}"
    );
    let doctor = agentguard_ok(&["doctor"])?;
    ensure!(
        doctor.contains("what is pinned is in force, and 1 agents"),
        "doctor says {doctor}"
    );
    refused_run()?;
    let daemon = Daemon::start()?;
    let after = listed("killed")?;
    ensure!(
        identity(&after) == identity(&before) && after["enforced_by"] == "daemon",
        "it was {before}, and is {after}"
    );
    must_not_read(SECRET, &agent.group)?;
    // One more by each `must_not_read`.
    let tried = trier.end()? + 2;
    account.settle(tried)?;
    println!(
        "      {tried} tried, {} recorded, {} lost; ready after {} ms at first, {} ms adopted",
        account.denied,
        account.lost,
        first.as_millis(),
        daemon.started_in.as_millis()
    );
    account.started(&[("fresh", 0), ("adopted", 1)])?;
    drop(agent);
    drop(daemon);
    Ok(())
}

/// Nothing governs for a new `run`, so nothing is run.
fn refused_run() -> Result<()> {
    let output = agentguard(&["run", "--policy", "permissive", "--", "touch", "/t/ran"])?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(75) && text.contains("uninstall"),
        "a run without a daemon gave {}: {text}",
        output.status
    );
    ensure!(!Path::new("/t/ran").exists(), "the command ran");
    Ok(())
}

/// (b)
fn cycles() -> Result<()> {
    let operations = parameter(OPERATIONS, DEFAULT_OPERATIONS);
    let mut account = Account::of("cycles");
    let mut daemon = Daemon::start()?;
    let agent = guarded("cycles")?;
    let before = listed("cycles")?;
    let began = Instant::now();
    let trier = Trier::start(&agent, operations, PAUSE)?;
    for cycle in 1..=12 {
        thread::sleep(Duration::from_millis(37 * cycle));
        daemon.kill()?;
        // Twice a daemon comes that takes the pins for another build's.
        daemon = Daemon::start_with(cycle == 4 || cycle == 8)?;
        let after = listed("cycles")?;
        ensure!(
            identity(&after) == identity(&before),
            "after cycle {cycle} {before} is {after}"
        );
    }
    let tried = trier.end()?;
    let acted = began.elapsed();
    account.settle(tried)?;
    println!(
        "      {tried} forbidden opens in {} ms, {} recorded, {} lost; all in the log after {} ms",
        acted.as_millis(),
        account.denied,
        account.lost,
        began.elapsed().as_millis()
    );
    account.started(&[("fresh", 0), ("adopted", 10), ("upgraded", 2)])?;
    drop(agent);
    drop(daemon);
    Ok(())
}

/// A number from the environment.
fn parameter(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// (d)
fn stopped() -> Result<()> {
    let daemon = Daemon::start()?;
    let agent = guarded("stopped")?;
    let before = listed("stopped")?;
    drop(daemon);
    ensure!(
        !Path::new("/run/agentguard/control.sock").exists(),
        "the socket is still there"
    );
    must_not_read(SECRET, &agent.group)?;
    must_read(FREE, &agent.group)?;
    let events = fs::read_to_string(agent.group.path().join("cgroup.events"))?;
    ensure!(
        events.contains("frozen 0"),
        "the agent was frozen: {events}"
    );
    let daemon = Daemon::start()?;
    ensure!(
        identity(&listed("stopped")?) == identity(&before),
        "the agent is another one"
    );
    let said = agentguard_ok(&["detach", "--all"])?;
    ensure!(said.contains("stopped is not governed"), "it said {said}");
    must_read(SECRET, &agent.group)?;
    drop(daemon);
    Ok(())
}

/// (e)
fn broken() -> Result<()> {
    const NAME: &str = "at-restart";
    let mut account = Account::of(NAME);
    let daemon = Daemon::start()?;
    let agent = guarded(NAME)?;
    let before = listed(NAME)?;
    daemon.kill()?;
    for (round, text) in (1..).zip([Some("version: 1\nfils: {}\n"), None]) {
        match text {
            Some(text) => write_policy(NAME, text)?,
            None => fs::remove_file(format!("{POLICIES}/{NAME}.yaml"))?,
        }
        let daemon = Daemon::start()?;
        must_not_read(SECRET, &agent.group)?;
        must_read(FREE, &agent.group)?;
        ensure!(
            identity(&listed(NAME)?) == identity(&before),
            "another policy is in force"
        );
        daemon.kill()?;
        account.wait("a policy error", |account| Ok(account.errors == round))?;
    }
    let daemon = Daemon::start()?;
    account.settle(2)?;
    daemon.kill()?;
    // A changed file that is whole comes into force.
    write_policy(NAME, PERMISSIVE)?;
    let daemon = Daemon::start()?;
    must_read(SECRET, &agent.group)?;
    let after = listed(NAME)?;
    ensure!(
        after["session"] == before["session"] && after["generation"] != before["generation"],
        "it is {after}"
    );
    drop(agent);
    drop(daemon);
    Ok(())
}

/// (f)
fn flood() -> Result<()> {
    // The ring has 4 MiB, and a denial of this path takes 120 bytes of it.
    let fits = (4 << 20) / 120;
    let operations = parameter(FLOOD, DEFAULT_FLOOD) * fits;
    let mut account = Account::of("flood");
    let daemon = Daemon::start()?;
    let agent = guarded("flood")?;
    // Nothing may be on its way when it is stopped.
    thread::sleep(Duration::from_millis(500));
    signal(daemon.pid(), Signal::SIGSTOP)?;
    let began = Instant::now();
    let tried = Trier::start(&agent, operations, 0.0)?.end()?;
    let acted = began.elapsed();
    ensure!(tried >= operations, "{tried} of {operations} were tried");
    signal(daemon.pid(), Signal::SIGCONT)?;
    account.settle(tried)?;
    println!(
        "      {tried} forbidden opens in {} ms, {} recorded, {} lost",
        acted.as_millis(),
        account.denied,
        account.lost
    );
    ensure!(
        account.lost > 0 && account.denied > fits / 2,
        "{} were recorded and {} lost: this shows nothing",
        account.denied,
        account.lost
    );
    must_not_read(SECRET, &agent.group)?;
    must_read(FREE, &agent.group)?;
    drop(agent);
    drop(daemon);
    Ok(())
}

/// Who is born, moved or orphaned without a daemon.
fn lineage() -> Result<()> {
    const PROGRAM: &str = r#"
import os, sys, threading, time
def work():
    while True:
        time.sleep(1)
threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
sys.stdin.readline()
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        try:
            open("/t/secret/key").read()
            print(0, flush=True)
        except OSError as error:
            print(error.errno, flush=True)
    os._exit(0)
os.wait()
time.sleep(600)
"#;
    fixture::make(&[])?;
    let daemon = Daemon::start()?;
    let agent = guarded("alone")?;
    daemon.kill()?;
    let mut child = Dialogue::start(Command::new("/usr/bin/python3").args(["-c", PROGRAM]))?;
    child.hear()?;
    // A process with two threads: one of them gets its label by the cgroup.
    let moved = agent.group.take(child.pid());
    child.hang_up();
    let line = child.hear()?;
    let daemon = moved.and_then(|()| Daemon::start())?;
    let listed = listed("alone")?;
    // It leaves the cgroup, and that goes: the label holds, and the next daemon knows of it.
    let left = fs::write("/sys/fs/cgroup/cgroup.procs", child.pid().to_string());
    daemon.kill()?;
    let path = agent.group.path().to_owned();
    let gone = fs::remove_dir(&path);
    fs::create_dir(&path)?;
    let daemon = Daemon::start()?;
    let after = self::listed("alone");
    drop(child);
    ensure!(
        line == "1",
        "a grandchild born without a daemon read the secret: {line}"
    );
    ensure!(
        listed["processes"].as_u64() >= Some(1),
        "it is listed as {listed}"
    );
    left.and(gone)?;
    after.context("an agent whose process left its cgroup was forgotten")?;
    // Another cgroup at the same path is nobody's.
    must_read(SECRET, &agent.group)?;
    daemon.kill()?;
    let daemon = Daemon::start()?;
    ensure!(
        self::listed("alone").is_err(),
        "an agent of which nothing is left is listed"
    );
    drop(agent);
    drop(daemon);
    Ok(())
}

/// A command keeps its exit status, and its agent goes with it.
fn run_through() -> Result<()> {
    write_policy("through", GUARDED)?;
    fixture::make(&[])?;
    let daemon = Daemon::start()?;
    let mut child = Command::new("/usr/bin/agentguard")
        .args([
            "run", "--policy", "through", "--name", "through", "--", "sh", "-c",
        ])
        .arg("echo ready; sleep 30; cat /t/secret/key; exit 7")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut output = BufReader::new(child.stdout.take().context("no output")?);
    let mut line = String::new();
    output.read_line(&mut line)?;
    ensure!(line == "ready\n", "the command said {line:?}");
    daemon.kill()?;
    let daemon = Daemon::start()?;
    let listed = listed("through");
    let result = child.wait_with_output()?;
    listed?;
    let text = String::from_utf8_lossy(&result.stderr);
    ensure!(
        result.status.code() == Some(7),
        "it ended with {}: {text}",
        result.status
    );
    ensure!(text.contains("DENIED"), "no denial was shown: {text}");
    ensure!(self::listed("through").is_err(), "the agent is still there");
    drop(daemon);
    Ok(())
}

/// (c)
fn uninstall() -> Result<()> {
    let daemon = Daemon::start()?;
    let agent = guarded("uninstall")?;
    let busy = agentguard(&["uninstall", "--yes"])?;
    ensure!(
        busy.status.code() == Some(75),
        "beside a daemon it gave {}",
        busy.status
    );
    daemon.kill()?;
    let asked = agentguard(&["uninstall"])?;
    ensure!(
        asked.status.code() == Some(2),
        "without --yes it gave {}",
        asked.status
    );
    // From inside it is refused, whatever it says.
    let inside = crate::scenario::act(
        &["exec", "/usr/bin/agentguard", "uninstall", "--yes"],
        Some(&agent.group),
    );
    ensure!(
        inside.map_or(true, |done| done.errno != 0),
        "an agent ended its own enforcement"
    );
    must_not_read(SECRET, &agent.group)?;
    agentguard_ok(&["uninstall", "--yes"])?;
    ensure!(!Path::new(PINS).exists(), "{PINS} is still there");
    must_read(SECRET, &agent.group)?;
    let left = agentguard(&["ps"])?;
    ensure!(left.status.code() == Some(69), "ps gave {}", left.status);
    // The links are gone, and not only their names.
    let doctor = agentguard_ok(&["doctor"])?;
    ensure!(doctor.contains("nothing is pinned"), "doctor says {doctor}");
    let mut account = Account::of("uninstall");
    let daemon = Daemon::start()?;
    ensure!(listed("uninstall").is_err(), "an agent came back");
    account.wait("the start", |account| Ok(!account.starts.is_empty()))?;
    ensure!(
        account.starts[0].contains("fresh"),
        "the start is {:?}",
        account.starts
    );
    println!("      ready after {} ms", daemon.started_in.as_millis());
    drop(daemon);
    Ok(())
}
