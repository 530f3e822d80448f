//! Budgets that the kernel charges: exactly the limit is granted, whoever tries and however often something is
//! restarted, and the trail says why the rest was refused.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

use crate::contend::CONTENDERS;
use crate::dialogue::Dialogue;
use crate::fixture;
use crate::guard::{Agent, Daemon, Inside, agentguard, agentguard_ok, write_policy};
use crate::run::PERMISSIVE;
use crate::trail::{Trail, Wanted};

/// Rounds of each race: a few by default, and 100 on demand.
const ROUNDS: &str = "AGENTGUARD_BUDGET_ROUNDS";
const DEFAULT_ROUNDS: u32 = 10;

fn policy(name: &str, budgets: &str) -> Result<()> {
    write_policy(name, &format!("{PERMISSIVE}budgets:\n{budgets}"))
}

/// What is refused, in the trail: by the budget, with its id.
pub(crate) fn refused(agent: &str, op: &str, budget: &str) -> Wanted {
    Wanted {
        agent: Some(agent.into()),
        op: Some(op.into()),
        verdict: Some("deny".into()),
        cause: Some("budget".into()),
        rule: Some(budget.into()),
        ..Wanted::default()
    }
}

/// An agent was frozen because of a budget, in the trail.
pub(crate) fn frozen(agent: &str, budget: &str) -> Wanted {
    Wanted {
        agent: Some(agent.into()),
        op: Some("budget".into()),
        detail: Some("frozen".into()),
        rule: Some(budget.into()),
        ..Wanted::default()
    }
}

/// What is spent of an agent's budget, as the command line says.
pub(crate) fn spent(agent: &str, budget: &str) -> Result<u64> {
    let shown = agentguard_ok(&["budget", "show", agent, "--json"])?;
    let shown: serde_json::Value =
        serde_json::from_str(&shown).context("`budget show --json` is no JSON")?;
    let budgets = shown[0]["budgets"].as_array().context("no budgets")?;
    let found = budgets.iter().find(|it| it["id"] == budget);
    let spent = found.and_then(|it| it["spent"].as_u64());
    spent.with_context(|| format!("no number of `{budget}` is spent: {shown}"))
}

/// 64 that contend, started outside and put into the agent when all are there.
struct Contest(Dialogue);

impl Contest {
    fn start(agent: &Agent, what: &str, who: &str) -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut contest = Dialogue::start(Command::new(program).args(["contend", what, who]))?;
        ensure!(contest.hear()? == "ready", "the contenders did not start");
        let parent = contest.pid();
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
        for child in children.split_whitespace() {
            agent.group.take(child.parse()?)?;
        }
        agent.group.take(parent)?;
        Ok(Self(contest))
    }

    /// How many of all of them succeed at once.
    fn round(&mut self) -> Result<u32> {
        self.0.say("")?;
        let line = self.0.hear()?;
        line.parse()
            .with_context(|| format!("`{line}` is no number"))
    }
}

/// Whoever races for the last units, exactly those are granted.
pub fn races(trail: &mut Trail) -> Result<()> {
    fixture::make(&[])?;
    let rounds = match std::env::var(ROUNDS) {
        Ok(text) => text.parse().context(ROUNDS)?,
        Err(_) => DEFAULT_ROUNDS,
    };
    for (what, key, op) in [
        ("open", "opens", "open"),
        ("connect", "connects", "connect"),
        ("exec", "execs", "exec"),
        ("process", "processes", "fork"),
    ] {
        for who in ["threads", "processes"] {
            // Many programs start here, and each leaves many records.
            trail.forget();
            let name = format!("{what}-{who}");
            policy(&name, &format!("  - {{id: few, {key}: 0, per: session}}\n"))?;
            let agent = Agent::attach(&name, &name)?;
            let mark = trail.mark()?;
            let mut contest = Contest::start(&agent, what, who)?;
            let before = contest.round()?;
            ensure!(before == 0, "{name}: {before} were granted of nothing");
            let wanted = refused(&name, op, "few");
            trail.wait(mark, &wanted)?;
            let mut all = 0;
            for round in 0..rounds {
                let more = 1 + round % 40;
                agentguard_ok(&["budget", "grant", &name, "few", &more.to_string()])?;
                let granted = contest.round()?;
                ensure!(
                    granted == more,
                    "{name}, round {round}: {granted} of {CONTENDERS} were granted, {more} were left"
                );
                all += u64::from(more);
            }
            let spent = spent(&name, "few")?;
            ensure!(
                spent == all,
                "{name}: {spent} are spent, {all} were granted"
            );
        }
    }
    Ok(())
}

/// Only what certain rules permit is counted; what is refused and what others permit is not.
pub fn by_rule(trail: &mut Trail) -> Result<()> {
    fixture::make(&[])?;
    let text = "\
version: 1
files:
  read:
    default: allow
    allow: [{id: letters, path: \"/t/ws/letters/**\"}]
    deny: [{id: no, path: \"/t/ws/letters/secret\"}]
  write: {default: allow}
exec: {default: allow}
network:
  default: deny
  unix: allow
  allow:
    - {id: one, address: 127.0.0.1, port: 9, protocol: udp}
    - {id: two, address: 127.0.0.1, port: 10, protocol: udp}
budgets:
  - {id: few-letters, opens: 3, rules: letters, per: session}
  - {id: few-calls, connects: 2, rules: [one], per: session}
  - {id: all-calls, connects: 5, per: session}
";
    write_policy("by-rule", text)?;
    let agent = Agent::attach("by-rule", "by-rule")?;
    let mark = trail.mark()?;
    let script = "\
import os, socket, sys
os.makedirs('/t/ws/letters', exist_ok=True)
for name in ('a', 'secret', 'other'):
    open('/t/ws/' + ('letters/' if name != 'other' else '') + name, 'w').close()
sys.stdout.write('made\\n'); sys.stdout.flush(); sys.stdin.readline()
def reads(path, times):
    done = 0
    for _ in range(times):
        try:
            os.close(os.open(path, os.O_RDONLY)); done += 1
        except PermissionError:
            pass
    return done
def calls(port, times):
    done = 0
    for _ in range(times):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            try:
                s.connect(('127.0.0.1', port)); done += 1
            except PermissionError:
                pass
    return done
print(reads('/t/ws/letters/secret', 5), reads('/t/ws/other', 20), reads('/t/ws/letters/a', 5),
      calls(9, 4), calls(10, 9), reads('/t/ws/other', 20))
";
    let mut child = Dialogue::start(Command::new("/usr/bin/python3").args(["-c", script]))?;
    child.hear()?;
    agent.group.take(child.pid())?;
    child.hang_up();
    let line = child.hear()?;
    child.wait()?;
    ensure!(
        line == "0 20 3 2 3 20",
        "what was granted is not what the budgets leave: {line}"
    );
    for (op, budget) in [
        ("open", "few-letters"),
        ("connect", "few-calls"),
        ("connect", "all-calls"),
    ] {
        trail.wait(mark, &refused("by-rule", op, budget))?;
    }
    Ok(())
}

/// Doubles until it cannot, and goes on trying; not so fast that its refusals fill the guest's memory.
const BOMB: &str = "\
import os, time
while True:
    try:
        os.fork()
    except PermissionError:
        time.sleep(0.5)
";

/// A fork bomb comes to an end, and an agent beside it does not notice.
pub fn fork_bomb(trail: &mut Trail) -> Result<()> {
    fixture::make(&[])?;
    policy(
        "bomb",
        "  - {id: enough, processes: 200, per: session, at_limit: freeze, reason: Loops end here.}\n",
    )?;
    policy("calm", "  - {id: enough, processes: 200, per: session}\n")?;
    let (bomb, calm) = (
        Agent::attach("bomb", "bomb")?,
        Agent::attach("calm", "calm")?,
    );
    let mark = trail.mark()?;
    let _bomb = Inside::start(&bomb, Command::new("/usr/bin/python3").args(["-c", BOMB]))?;
    trail.wait(mark, &refused("bomb", "fork", "enough"))?;
    trail.wait(mark, &frozen("bomb", "enough"))?;
    let events = std::fs::read_to_string(bomb.group.path().join("cgroup.events"))?;
    ensure!(events.contains("frozen 1"), "the fork bomb is not frozen");
    ensure!(
        spent("bomb", "enough")? == 200,
        "{} processes were made",
        spent("bomb", "enough")?
    );
    let why = agentguard_ok(&["why", "bomb"])?;
    ensure!(
        why.contains("enough") && why.contains("Loops end here"),
        "`why` does not say which budget it was: {why}"
    );
    let mut beside = Inside::script(&calm, "for i in 1 2 3; do /usr/bin/true || exit 1; done")?;
    ensure!(beside.0.wait()?.success(), "another agent was disturbed");
    Ok(())
}

/// Too many refusals: the agent stands still.
pub fn refusals(trail: &mut Trail) -> Result<()> {
    fixture::make(&[])?;
    let text = format!(
        "{}budgets:\n  - {{id: patience, denials: 20, per: session}}\n",
        crate::scenario::GUARDED
    );
    write_policy("stubborn", &text)?;
    let agent = Agent::attach("stubborn", "stubborn")?;
    let mark = trail.mark()?;
    let _inside = Inside::script(
        &agent,
        "while :; do /usr/bin/cat /t/secret/key 2>/dev/null; /usr/bin/sleep 0.02; done",
    )?;
    trail.wait(mark, &frozen("stubborn", "patience"))?;
    Ok(())
}

/// When a budget is spent that says so, the network is closed, and nothing else.
pub fn no_network(trail: &mut Trail) -> Result<()> {
    fixture::make(&[])?;
    let text = "\
version: 1
files:
  read: {default: allow, allow: [{id: own, path: /t/ws/free.txt}]}
  write: {default: allow}
exec: {default: allow}
network: {default: allow, unix: allow}
budgets:
  - {id: some, opens: 5, per: session, rules: own, at_limit: deny-network}
";
    write_policy("quiet", text)?;
    let agent = Agent::attach("quiet", "quiet")?;
    let mark = trail.mark()?;
    let mut contest = Contest::start(&agent, "connect", "threads")?;
    ensure!(
        contest.round()? == CONTENDERS as u32,
        "the network was closed too early"
    );
    let mut opens = Contest::start(&agent, "open", "threads")?;
    let opened = opens.round()?;
    ensure!(opened == 5, "{opened} files were opened");
    let closed = Wanted {
        agent: Some("quiet".into()),
        op: Some("budget".into()),
        detail: Some("no connection is permitted".into()),
        rule: Some("some".into()),
        ..Wanted::default()
    };
    trail.wait(mark, &closed)?;
    let left = contest.round()?;
    ensure!(left == 0, "{left} connections were made");
    trail.wait(mark, &refused("quiet", "connect", "some"))?;
    let mut files = Inside::script(&agent, "/usr/bin/cat /etc/hostname >/dev/null")?;
    ensure!(files.0.wait()?.success(), "files were closed, too");
    Ok(())
}

/// A count belongs to the agent's name: neither another cgroup, nor one below, nor detaching gives a unit back.
pub fn by_name(_: &mut Trail) -> Result<()> {
    fixture::make(&[])?;
    policy("kept", "  - {id: few, opens: 100, per: total}\n")?;
    agentguard_ok(&["budget", "reset", "kept"])?;
    let mut granted = 0;
    for round in 0..3 {
        let agent = Agent::attach("kept", "kept")?;
        let below = agent.group.path().join("below");
        std::fs::create_dir_all(&below)?;
        let mut contest = Contest::start(&agent, "open", "threads")?;
        std::fs::write(below.join("cgroup.procs"), contest.0.pid().to_string())?;
        granted += contest.round()?;
        drop(contest);
        ensure!(
            std::fs::remove_dir(&below).is_ok(),
            "the cgroup below is busy"
        );
        ensure!(granted <= 100, "round {round}: {granted} were granted");
    }
    ensure!(granted == 100, "{granted} were granted");
    agentguard_ok(&["budget", "reset", "kept"])?;
    Ok(())
}

/// Budgets through the death of a daemon, and a clock that is set back a day: not a unit is regained.
pub fn survives() -> Result<()> {
    fixture::make(&[])?;
    let daemon = Daemon::start()?;
    policy("left", "  - {id: few, opens: 150, per: day}\n")?;
    let agent = Agent::attach("left", "left")?;
    let mut contest = Contest::start(&agent, "open", "processes")?;
    let mut granted = contest.round()?;
    ensure!(granted == CONTENDERS as u32, "{granted} were granted");
    daemon.kill()?;
    // Nobody is there: the kernel goes on counting.
    granted += contest.round()?;
    set_back_a_day()?;
    let mut daemon = Daemon::start()?;
    ensure!(
        spent("left", "few")? == u64::from(granted),
        "{} are spent",
        spent("left", "few")?
    );
    for _ in 0..3 {
        granted += contest.round()?;
        drop(daemon);
        granted += contest.round()?;
        daemon = Daemon::start()?;
    }
    ensure!(granted == 150, "{granted} were granted of 150");
    let more = agentguard(&["budget", "grant", "left", "few", "10"])?;
    ensure!(more.status.success(), "an operator could not grant more");
    let more = contest.round()?;
    ensure!(more == 10, "{more} were granted of 10 more");
    drop(contest);
    drop(agent);
    drop(daemon);
    Ok(())
}

/// Sets the clock on the wall back.
fn set_back_a_day() -> Result<()> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
    clock_settime(
        ClockId::CLOCK_REALTIME,
        TimeSpec::new(now.tv_sec() - 86_400, now.tv_nsec()),
    )
    .context("the clock cannot be set")
}

/// A budget of bytes is kept to the packet, in its own direction; when it is spent connections are refused with it.
pub fn bytes(trail: &mut Trail) -> Result<()> {
    fixture::make(&[])?;
    policy(
        "bytes",
        "  - {id: out, bytes_sent: 100kB, per: session}\n  - {id: in, bytes_received: 50kB, per: session}\n",
    )?;
    let agent = Agent::attach("bytes", "bytes")?;
    let mark = trail.mark()?;
    let outside = UdpSocket::bind("127.0.0.1:0")?;
    outside.set_read_timeout(Some(Duration::from_secs(20)))?;
    let port = outside.local_addr()?.port().to_string();
    let script = "\
import socket, sys
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sys.stdin.readline()
out.connect(('127.0.0.1', int(sys.argv[1])))
sent = 0
for _ in range(200):
    try:
        out.send(b'x' * 1000); sent += 1
    except PermissionError:
        pass
print(sent, flush=True)
out.settimeout(20)
got = 0
try:
    while True:
        out.recv(2000); got += 1
        out.settimeout(5)
except TimeoutError:
    pass
print(got, flush=True)
sys.stdin.readline()
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', int(sys.argv[1])))
    print('connected', flush=True)
except PermissionError:
    print('refused', flush=True)
";
    // The shell waits outside; what it becomes makes its sockets inside.
    let mut child = Dialogue::start(Command::new("/usr/bin/dash").args([
        "-c",
        "read go; exec /usr/bin/python3 -c \"$0\" \"$1\"",
        script,
        &port,
    ]))?;
    agent.group.take(child.pid())?;
    // Whoever reads late must find them all.
    setsockopt(&outside, RcvBufForce, &(4 << 20))?;
    let server = outside.try_clone()?;
    let counted = std::thread::spawn(move || {
        let (mut arrived, mut from, mut buffer) = (0, None, [0; 2000]);
        while arrived < 97
            && let Ok((_, address)) = server.recv_from(&mut buffer)
        {
            (arrived, from) = (arrived + 1, Some(address));
        }
        (arrived, from)
    });
    child.say("\n")?;
    // A datagram is 1,028 bytes on the network layer.
    let sent = child.hear()?;
    ensure!(sent == "97", "{sent} datagrams were sent, 97 are 100 kB");
    let (arrived, from) = counted.join().map_err(|_| anyhow!("the server failed"))?;
    ensure!(arrived == 97, "{arrived} datagrams arrived");
    for _ in 0..100 {
        outside.send_to(&[0; 1000], from.context("nothing arrived")?)?;
    }
    let got = child.hear()?;
    ensure!(got == "48", "{got} datagrams were received, 48 are 50 kB");
    let closed = Wanted {
        agent: Some("bytes".into()),
        op: Some("budget".into()),
        detail: Some("no connection is permitted".into()),
        ..Wanted::default()
    };
    trail.wait(mark, &closed)?;
    child.say("")?;
    let last = child.hear()?;
    ensure!(last == "refused", "a connection after that: {last}");
    trail.wait(mark, &refused("bytes", "connect", "out"))?;
    child.wait()?;
    Ok(())
}
