//! What is recorded of what is permitted, and repeats: counted in place of a record for each, and never miscounted.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::attempt::{Attempt, PATIENCE, perform};
use crate::fixture;
use crate::guard::{AUDIT, Agent, Daemon, Inside, agentguard_ok, write_policy};
use crate::row::Actor;
use crate::scenario::SECRET;
use crate::trail::{Trail, Wanted};

/// How long records may take to be in the log.
const SOON: Duration = Duration::from_mins(1);
/// A policy that counts repeats. `ask` must never be counted.
const FOLDED: &str = "\
version: 1
audit: {level: all, repeats: fold}
files:
  read:
    default: allow
    deny: [{id: no-secret, path: \"/t/secret/**\"}]
    ask: [{id: asked, path: \"/t/ws/asked\"}]
  write: {default: allow}
exec: {default: allow}
network: {default: allow, unix: allow}
";
/// Eight threads open files again and again, in bursts, each with more files than a thread has places for. Two names of one
/// file, two ways to open one, and one that is refused. Prints how often each was tried.
const THREADS: &str = r#"
import json, os, random, threading
acts = [(f"/t/ws/f{n}", os.O_RDONLY) for n in range(12)]
acts += [("/t/ws/f0", os.O_RDONLY | os.O_NONBLOCK), ("/t/ws/other", os.O_RDONLY), ("/t/secret/key", os.O_RDONLY)]
totals, lock = {}, threading.Lock()
def work(seed):
    dice, done = random.Random(seed), {}
    for _ in range(250):
        path, flags = dice.choice(acts[: dice.choice([3, 15])])
        for _ in range(dice.choice([1, 1, 2, 9, 40])):
            try:
                os.close(os.open(path, flags))
            except PermissionError:
                pass
            key = f"{path} {'slow' if flags & os.O_NONBLOCK else ''}"
            done[key] = done.get(key, 0) + 1
    with lock:
        for key, count in done.items():
            totals[key] = totals.get(key, 0) + count
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
for one in threads: one.start()
for one in threads: one.join()
print(json.dumps(totals))
"#;
/// What a process does when it is governed, and then stays, until somebody ends it.
const STAYS: &str = r#"
import os, socket, time
while not os.path.exists("/t/ws/go"): time.sleep(0.01)
for _ in range(50):
    os.close(os.open("/t/ws/f1", os.O_RDONLY))
    try: os.open("/t/secret/key", os.O_RDONLY)
    except PermissionError: pass
for _ in range(5):
    try: os.open("/t/ws/asked", os.O_RDONLY)
    except PermissionError: pass
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(30): udp.sendto(b"x", ("127.0.0.1", 9))
open(f"/t/ws/done-{os.getpid()}", "w").close()
time.sleep(100000)
"#;

/// How many acts the log has of a target, and in how many records.
fn acts(
    trail: &mut Trail,
    mark: usize,
    agent: &str,
    target: &str,
    slow: bool,
) -> Result<(u64, u64)> {
    let (mut acts, mut records) = (0, 0);
    for record in trail.since(mark)? {
        ensure!(
            record["op"] != "alarm" && record["op"] != "gap" && record["op"] != "malformed",
            "{record}"
        );
        let nonblocking = record["open_flags"].as_u64().unwrap_or(0) & libc::O_NONBLOCK as u64 != 0;
        if record["agent"] == agent
            && record["target"] == target
            && matches!(record["op"].as_str(), Some("open" | "send"))
            && nonblocking == slow
        {
            well_formed(record)?;
            acts += record["repeats"].as_u64().unwrap_or(1);
            records += 1;
        }
    }
    Ok((acts, records))
}

/// A record of repeats says how many and since when, in the order of time.
fn well_formed(record: &Value) -> Result<()> {
    let since = record["since"].as_str();
    ensure!(
        record["repeats"].is_u64() == since.is_some()
            && record["repeats"].as_u64() != Some(0)
            && since.is_none_or(|since| Some(since) <= record["time"].as_str()),
        "{record}"
    );
    Ok(())
}

/// Waits until the log has exactly so many acts of a target; in how many records.
fn wait_for_acts(
    trail: &mut Trail,
    mark: usize,
    agent: &str,
    (target, slow): (&str, bool),
    wanted: u64,
) -> Result<u64> {
    let started = Instant::now();
    loop {
        let (found, records) = acts(trail, mark, agent, target, slow)?;
        if found == wanted {
            return Ok(records);
        }
        ensure!(
            found < wanted && started.elapsed() < SOON,
            "{wanted} acts on {target}, and {found} in {records} records"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// The files that are opened.
fn files() -> Vec<String> {
    let line = "for n in 0 1 2 3 4 5 6 7 8 9 10 11; do echo x > ws/f$n; done; echo x > ws/asked; ln ws/f0 ws/other";
    vec![line.to_owned()]
}

/// Runs a program of Python in an agent, beside the files; gives what it prints.
fn python(program: &str, agent: &Agent) -> Result<Vec<u8>> {
    let words = ["exec", "/usr/bin/python3", "-c", program].map(str::to_owned);
    let done = perform(&Attempt {
        act: &words,
        cwd: None,
        setup: &files(),
        after: &[],
        before: &[],
        private: false,
        actor: Actor::Root,
        group: Some(&agent.group),
        patience: PATIENCE,
    })?;
    ensure!(done.errno == 0, "the program failed with {}", done.errno);
    Ok(done.output)
}

/// Threads that repeat themselves: every act is counted, and none twice.
pub fn repeats(trail: &mut Trail) -> Result<()> {
    write_policy("repeats", FOLDED)?;
    let agent = Agent::attach("repeats", "repeats")?;
    let mark = trail.mark()?;
    let output = python(THREADS, &agent)?;
    let totals: BTreeMap<String, u64> = serde_json::from_slice(&output)
        .with_context(|| format!("it said {:?}", String::from_utf8_lossy(&output)))?;
    ensure!(totals.len() == 15, "it tried {totals:?}");
    let (mut tried, mut records) = (0, 0);
    for (key, count) in &totals {
        let (path, how) = key.split_once(' ').unwrap_or((key, ""));
        tried += count;
        records += wait_for_acts(trail, mark, "repeats", (path, how == "slow"), *count)?;
    }
    ensure!(
        records * 3 < tried,
        "{tried} acts have {records} records: hardly any was counted"
    );
    println!("      {tried} acts in {records} records");
    let own = trail.since(mark)?;
    let own = own.iter().find(|record| record["agent"] == "repeats");
    let session = own.context("no record")?["session"].to_string();
    let stats = agentguard_ok(&["audit", "stats", "--session", &session, "--json"])?;
    let stats: Value = serde_json::from_str(&stats)?;
    let refused = stats["refused"].as_array().context("no refusals")?;
    let wanted = totals.get("/t/secret/key ");
    ensure!(
        refused.iter().any(|it| {
            it["what"] == "read /t/secret/key" && it["count"].as_u64() == wanted.copied()
        }),
        "{wanted:?} refusals are counted as {refused:?}"
    );
    Ok(())
}

/// Waits until a process has done everything, and sleeps.
fn is_done(inside: &Inside) -> Result<()> {
    let started = Instant::now();
    while !Path::new(&format!("/t/ws/done-{}", inside.0.id())).exists() {
        ensure!(
            started.elapsed() < SOON,
            "the program did not come to its end"
        );
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// A thread that goes quiet, one that is killed, and one whose agent is let go: what they counted is told.
pub fn told(trail: &mut Trail) -> Result<()> {
    fixture::make(&files())?;
    write_policy("told", FOLDED)?;
    for ending in ["quiet", "killed", "detached"] {
        fixture::shell(&["rm -f ws/go".to_owned()])?;
        let agent = Agent::attach("told", "told")?;
        let mark = trail.mark()?;
        let mut inside =
            Inside::start(&agent, Command::new("/usr/bin/python3").args(["-c", STAYS]))?;
        fixture::shell(&["> ws/go".to_owned()])?;
        let wait = |trail: &mut Trail| -> Result<()> {
            for (target, count) in [("/t/ws/f1", 50), (SECRET, 50), ("127.0.0.1:9", 30)] {
                wait_for_acts(trail, mark, "told", (target, false), count)?;
            }
            let records = wait_for_acts(trail, mark, "told", ("/t/ws/asked", false), 5)?;
            ensure!(
                records == 5,
                "what is asked about was counted: {records} records"
            );
            Ok(())
        };
        is_done(&inside)?;
        match ending {
            "quiet" => wait(trail)?,
            "killed" => {
                inside.0.kill()?;
                wait(trail)?;
            }
            _ => {
                agentguard_ok(&["detach", "told"])?;
                wait(trail)?;
            }
        }
        drop(inside);
        drop(agent);
    }
    Ok(())
}

/// What a thread repeats while no daemon runs is told to the next one, whether the thread lives on or has ended.
pub fn survives() -> Result<()> {
    let daemon = Daemon::start()?;
    let mut trail = Trail::at(AUDIT);
    fixture::make(&files())?;
    write_policy("survives", FOLDED)?;
    let agent = Agent::attach("survives", "survives")?;
    let mark = trail.mark()?;
    let mut lives = Inside::start(&agent, Command::new("/usr/bin/python3").args(["-c", STAYS]))?;
    let mut ends = Inside::start(&agent, Command::new("/usr/bin/python3").args(["-c", STAYS]))?;
    daemon.kill()?;
    fixture::shell(&["> ws/go".to_owned()])?;
    for inside in [&lives, &ends] {
        is_done(inside)?;
    }
    ends.0.kill()?;
    ends.0.wait()?;
    let daemon = Daemon::start()?;
    for (target, count) in [("/t/ws/f1", 100), (SECRET, 100), ("127.0.0.1:9", 60)] {
        let records = wait_for_acts(&mut trail, mark, "survives", (target, false), count)?;
        ensure!(
            records * 5 < count,
            "{count} acts on {target} have {records} records"
        );
    }
    lives.0.kill()?;
    drop(agent);
    drop(daemon);
    Ok(())
}

/// What is done under a policy, and which of it must have a record.
struct Level {
    policy: &'static str,
    recorded: &'static [&'static str],
}

const LEVELS: &[Level] = &[
    Level {
        policy: "\
audit: denied
files:
  read: {default: allow, allow: [{path: \"/t/ws/f1\", audit: all}], deny: [\"/t/secret/**\"]}
  write: {default: allow, allow: [{path: \"/t/ws/**\", audit: all}]}
network: {default: allow, unix: allow, allow: [{address: 127.0.0.1, port: 9, audit: decisions}]}
",
        recorded: &["read /t/ws/f1", "write /t/ws/f3", "connect 127.0.0.1:9"],
    },
    Level {
        policy: "\
audit: decisions
files:
  read: {default: allow, deny: [\"/t/secret/**\"]}
  write: {default: allow}
network: {default: allow, unix: allow, allow: [{address: 127.0.0.1, port: 9, audit: denied}]}
",
        recorded: &["connect 127.0.0.1:10"],
    },
    Level {
        policy: "\
audit: all
files:
  read: {default: allow, allow: [{path: \"/t/ws/*\", audit: decisions}, {path: \"/t/ws/f2\", audit: all}], deny: [\"/t/secret/**\"]}
  write: {default: allow}
network: {default: allow, unix: allow}
",
        recorded: &[
            "read /t/ws/f2",
            "write /t/ws/f3",
            "connect 127.0.0.1:9",
            "connect 127.0.0.1:10",
        ],
    },
];
const ACTS: &str = r#"
import os, socket
for path in ["/t/ws/f1", "/t/ws/f2"]: os.close(os.open(path, os.O_RDONLY))
os.close(os.open("/t/ws/f3", os.O_WRONLY))
for port in [9, 10]: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", port))
try: os.open("/t/secret/key", os.O_RDONLY)
except PermissionError: pass
"#;

/// Levels of policies and of rules: what must be recorded is, and nothing else.
pub fn levels(trail: &mut Trail) -> Result<()> {
    for level in LEVELS {
        let policy = format!("version: 1\nexec: {{default: allow}}\n{}", level.policy);
        write_policy("levels", &policy)?;
        let agent = Agent::attach("levels", "levels")?;
        let mark = trail.mark()?;
        python(ACTS, &agent)?;
        let wanted = |op: &str, target: &str, verdict: &str| Wanted {
            agent: Some("levels".into()),
            op: Some(op.into()),
            target: Some(target.into()),
            verdict: Some(verdict.into()),
            ..Wanted::default()
        };
        // The last act is refused, and programs are always recorded.
        trail.wait(mark, &wanted("open", SECRET, "deny"))?;
        let exit = Wanted {
            agent: Some("levels".into()),
            op: Some("exit".into()),
            ..Wanted::default()
        };
        trail.wait(mark, &exit)?;
        ensure!(
            trail
                .since(mark)?
                .iter()
                .any(|record| record["op"] == "exec" && record["agent"] == "levels"),
            "the program has no record"
        );
        for (act, op, access, target) in [
            ("read /t/ws/f1", "open", "read", "/t/ws/f1"),
            ("read /t/ws/f2", "open", "read", "/t/ws/f2"),
            ("write /t/ws/f3", "open", "write", "/t/ws/f3"),
            ("connect 127.0.0.1:9", "connect", "", "127.0.0.1:9"),
            ("connect 127.0.0.1:10", "connect", "", "127.0.0.1:10"),
        ] {
            let found = trail.since(mark)?.iter().any(|record| {
                record["op"] == op
                    && record["target"] == target
                    && record["access"].as_str().unwrap_or("") == access
            });
            ensure!(
                found == level.recorded.contains(&act),
                "under\n{}\n`{act}` is {}recorded",
                level.policy,
                if found { "" } else { "not " }
            );
        }
    }
    Ok(())
}

/// Starts a program with each of some lists of arguments, in an environment that is not small; prints them.
const STARTS: &str = r#"
import json, os, random
dice = random.Random(7)
word = lambda most: "".join(dice.choice("abc ") for _ in range(dice.randrange(most)))
lists = [["true", "", ""], ["true"] + ["n"] * 3000, ["true", "x" * 9000, "y"], ["true", "", "z" * 28000]]
lists += [["true", "x" * length, "y"] for length in [4094, 4095, 4096, 4097]]
lists += [["true"] + ["v" * length] * 8 for length in [3571, 3572, 3583, 3584, 4094]]
lists += [["true"] + [word(most) for _ in range(dice.randrange(40))] for most in [2, 9, 90, 900] * 8]
lists += [["true", "x" * 40000, "y"], ["true"] + ["w" * 400] * 90]
for arguments in lists:
    os.waitpid(os.posix_spawn("/usr/bin/true", arguments, {"LONG": "e" * 5000}), 0)
print(json.dumps(lists))
"#;
/// What `argv` has at most, in bytes.
const MOST: usize = 32 << 10;

/// What a program got for arguments is what its record says, however many there are and however long they are.
pub fn arguments(trail: &mut Trail) -> Result<()> {
    write_policy("arguments", FOLDED)?;
    let agent = Agent::attach("arguments", "arguments")?;
    let mark = trail.mark()?;
    let lists: Vec<Vec<String>> = serde_json::from_slice(&python(STARTS, &agent)?)?;
    let detached = Wanted {
        agent: Some("arguments".into()),
        op: Some("agent-detach".into()),
        ..Wanted::default()
    };
    drop(agent);
    trail.wait(mark, &detached)?;
    let records = trail.since(mark)?;
    let starts: Vec<&Value> = records
        .iter()
        .filter(|record| record["op"] == "exec" && record["target"] == "/usr/bin/true")
        .collect();
    ensure!(
        starts.len() == lists.len(),
        "{} starts have {} records",
        lists.len(),
        starts.len()
    );
    let mut cut = 0;
    for (list, record) in lists.iter().zip(starts) {
        let said: Vec<String> = serde_json::from_value(record["argv"].clone())?;
        let there = list.len();
        let bytes: usize = list.iter().map(|word| word.len() + 1).sum();
        if bytes <= MOST {
            let lengths = |words: &[String]| words.iter().map(String::len).collect::<Vec<_>>();
            ensure!(
                said == *list,
                "arguments of {:?} bytes are recorded as others, of {:?}",
                lengths(list),
                lengths(&said)
            );
            continue;
        }
        cut += 1;
        let (all, said) = (list.join("\0"), said.join("\0"));
        ensure!(
            all.starts_with(&said) && said.len() + 1 >= MOST && record["argc"] == there,
            "{there} arguments, of which the record has {} bytes, and argc {}",
            said.len(),
            record["argc"]
        );
    }
    ensure!(cut == 2, "{cut} lists were too long");
    Ok(())
}
