//! Approvals: what a rule asks about is refused and waits, an operator grants exactly that, and nothing else opens.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::dialogue::Dialogue;
use crate::fixture;
use crate::guard::{Agent, Daemon, agentguard, agentguard_ok, write_policy};
use crate::trail::{Trail, Wanted};

const POLICY: &str = "\
version: 1
files:
  read:
    default: allow
    ask: [{id: ask-read, path: \"/t/ask/r/**\", reason: Somebody should look.}]
    deny: [{id: never, path: \"/t/ask/never/**\"}]
  write:
    default: allow
    ask: [{id: ask-write, path: \"/t/ask/w/**\"}]
exec:
  default: allow
  ask:
    - {id: ask-program, path: \"/t/ask/bin/*\"}
    - {id: ask-command, command: \"/usr/bin/true ask **\"}
    - {id: ask-script, command: \"/t/ask/scripts/asked.sh **\"}
network:
  default: allow
  ask: [{id: ask-net, address: 127.0.0.1, port: 7000-7999}]
  listen:
    default: allow
    ask: [{id: ask-listen, address: 127.0.0.1, port: 8000-8999}, {id: ask-name, unix: \"@ask-*\"}]
  unix:
    default: allow
    ask: [{id: ask-unix, path: \"/t/ask/sock/*\"}]
";

/// Does what it is told, line by line, and says how that ended: 0, an errno, or a program's status.
const ACTOR: &str = r"
import json, os, socket, subprocess, sys, threading
def inet(kind, port, act):
    with socket.socket(socket.AF_INET, kind) as s:
        act(s, ('127.0.0.1', port))
def unix(act):
    with socket.socket(socket.AF_UNIX) as s:
        act(s)
def listen(s, at):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(at); s.listen()
def opens(path, flags):
    os.close(os.open(path, flags, 0o644))
def race(path, count):
    done, gate = [], threading.Barrier(count)
    def one():
        gate.wait()
        try:
            opens(path, os.O_RDONLY); done.append(1)
        except PermissionError:
            pass
    threads = [threading.Thread(target=one) for _ in range(count)]
    [t.start() for t in threads]; [t.join() for t in threads]
    return len(done)
def run(*argv):
    status = subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    return status if status >= 0 else 1000 - status
acts = {
    'read': lambda p: opens(p, os.O_RDONLY),
    'cut': lambda p: opens(p, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    'update': lambda p: opens(p, os.O_RDWR),
    'new': lambda p: opens(p, os.O_RDWR | os.O_CREAT | os.O_TRUNC),
    'unlink': os.unlink, 'mkdir': os.mkdir, 'rename': os.rename, 'truncate': lambda p: os.truncate(p, 0),
    'chmod': lambda p: os.chmod(p, 0o600),
    'run': run,
    'connect': lambda port: inet(socket.SOCK_DGRAM, port, lambda s, at: s.connect(at)),
    'send': lambda port: inet(socket.SOCK_DGRAM, port, lambda s, at: s.sendto(b'x', at)),
    'listen': lambda port: inet(socket.SOCK_STREAM, port, listen),
    'unix': lambda p: unix(lambda s: s.connect(p)),
    'name': lambda n: unix(lambda s: s.bind('\0' + n)),
    'race': race,
}
print('ready', flush=True)
for line in sys.stdin:
    act, *arguments = json.loads(line)
    try:
        result = acts[act](*arguments)
        print(0 if result is None else result, flush=True)
    except OSError as error:
        print(error.errno, flush=True)
";

const EPERM: i32 = 1;

/// An agent that does what it is told.
struct Actor {
    name: &'static str,
    /// Detached when it is dropped.
    _agent: Agent,
    dialogue: Dialogue,
}

impl Actor {
    fn start(name: &'static str, policy: &str) -> Result<Self> {
        let agent = Agent::attach(name, policy)?;
        let mut dialogue = Dialogue::start(Command::new("/usr/bin/python3").args(["-c", ACTOR]))?;
        ensure!(dialogue.hear()? == "ready", "the actor did not start");
        agent.group.take(dialogue.pid())?;
        Ok(Self {
            name,
            _agent: agent,
            dialogue,
        })
    }

    fn act(&mut self, line: &str) -> Result<i32> {
        self.dialogue.say(line)?;
        let answer = self.dialogue.hear()?;
        answer
            .parse()
            .with_context(|| format!("{line}: `{answer}` is no number"))
    }

    fn expect(&mut self, line: &str, wanted: i32, when: &str) -> Result<()> {
        let is = self.act(line)?;
        ensure!(is == wanted, "{line} gave {is} {when}, not {wanted}");
        Ok(())
    }

    /// All that waits, what somebody denied too.
    fn waiting(&self) -> Result<Vec<Value>> {
        let shown = agentguard_ok(&["approvals", "list", self.name, "--all", "--json"])?;
        let shown: Value = serde_json::from_str(&shown)?;
        Ok(shown["waiting"].as_array().cloned().unwrap_or_default())
    }

    /// Tries what must be refused, and gives the number that it then waits under.
    fn refused(&mut self, line: &str, when: &str) -> Result<String> {
        let tries = |waiting: &[Value]| -> u64 {
            let tries = waiting.iter().map(|it| it["tries"].as_u64());
            tries.map(Option::unwrap_or_default).sum()
        };
        let before = tries(&self.waiting()?);
        self.expect(line, EPERM, when)?;
        let started = std::time::Instant::now();
        loop {
            let waiting = self.waiting()?;
            if tries(&waiting) > before {
                let last = waiting.iter().max_by_key(|it| it["last"].as_str());
                return Ok(last.context("nothing waits")?["id"].to_string());
            }
            ensure!(
                started.elapsed() < Duration::from_mins(1),
                "{line} {when}: it does not wait: {waiting:?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn make() -> Result<()> {
    fixture::make(&[])?;
    let script = "\
umask 022
mkdir -p /t/ask/r /t/ask/w /t/ask/bin /t/ask/scripts /t/ask/sock /t/ask/never /t/free
for name in a b; do echo text >/t/ask/r/$name; echo text >/t/ask/w/$name; cp /usr/bin/true /t/ask/bin/$name; done
echo secret >/t/ask/never/key
printf '#!/bin/sh\\nexit 0\\n' >/t/ask/scripts/asked.sh
chmod 755 /t/ask/scripts/asked.sh
";
    let made = Command::new("/bin/sh").args(["-ec", script]).status()?;
    ensure!(made.success(), "the fixture of approvals was not made");
    Ok(())
}

fn servers() -> Result<Vec<std::os::unix::net::UnixListener>> {
    ["a", "b"]
        .iter()
        .map(|name| {
            let path = format!("/t/ask/sock/{name}");
            let _ = std::fs::remove_file(&path);
            Ok(std::os::unix::net::UnixListener::bind(path)?)
        })
        .collect()
}

/// What is asked about, its twin that stays refused, and what puts things back.
const ACTS: &[(&str, &str, &str)] = &[
    (r#"["read", "/t/ask/r/a"]"#, r#"["read", "/t/ask/r/b"]"#, ""),
    (r#"["cut", "/t/ask/w/a"]"#, r#"["cut", "/t/ask/w/b"]"#, ""),
    (
        r#"["update", "/t/ask/w/a"]"#,
        r#"["cut", "/t/ask/w/b"]"#,
        "",
    ),
    (
        r#"["new", "/t/ask/w/new"]"#,
        r#"["new", "/t/ask/w/new2"]"#,
        "/t/ask/w/new",
    ),
    (
        r#"["truncate", "/t/ask/w/a"]"#,
        r#"["truncate", "/t/ask/w/b"]"#,
        "",
    ),
    (
        r#"["chmod", "/t/ask/w/a"]"#,
        r#"["chmod", "/t/ask/w/b"]"#,
        "",
    ),
    (
        r#"["mkdir", "/t/ask/w/folder"]"#,
        r#"["mkdir", "/t/ask/w/folder2"]"#,
        "/t/ask/w/folder",
    ),
    (
        r#"["run", "/t/ask/bin/a", "x"]"#,
        r#"["run", "/t/ask/bin/a", "y"]"#,
        "",
    ),
    (
        r#"["run", "/usr/bin/true", "ask", "one"]"#,
        r#"["run", "/usr/bin/true", "ask", "one", ""]"#,
        "",
    ),
    (
        r#"["run", "/t/ask/scripts/asked.sh", "one", "two"]"#,
        r#"["run", "/t/ask/scripts/asked.sh", "one", "three"]"#,
        "",
    ),
    (r#"["connect", 7001]"#, r#"["connect", 7002]"#, ""),
    (r#"["send", 7003]"#, r#"["send", 7004]"#, ""),
    (r#"["listen", 8001]"#, r#"["listen", 8002]"#, ""),
    (
        r#"["unix", "/t/ask/sock/a"]"#,
        r#"["unix", "/t/ask/sock/b"]"#,
        "",
    ),
    (r#"["name", "ask-a"]"#, r#"["name", "ask-b"]"#, ""),
];

fn put_back(path: &str) {
    // What is not there need not be removed.
    let _ = std::fs::remove_file(path);
    let _ = std::fs::remove_dir(path);
}

/// Each kind of act: refused, granted once, done once, refused again; and its twin never.
pub fn once(trail: &mut Trail) -> Result<()> {
    make()?;
    let _servers = servers()?;
    write_policy("asking", POLICY)?;
    let mut actor = Actor::start("asking", "asking")?;
    let mut other = Actor::start("bystander", "asking")?;
    let mark = trail.mark()?;
    for (act, twin, made) in ACTS {
        let id = actor.refused(act, "before anybody granted it")?;
        agentguard_ok(&["approvals", "grant", &id])?;
        other.refused(act, "for an agent that it was not granted to")?;
        let denied = actor.refused(twin, "though only something else was granted")?;
        agentguard_ok(&["approvals", "deny", &denied])?;
        actor.expect(act, 0, "once granted")?;
        put_back(made);
        let id = actor.refused(act, "a second time")?;
        agentguard_ok(&["approvals", "grant", &id, "--session"])?;
        for _ in 0..3 {
            actor.expect(act, 0, "granted for the session")?;
            put_back(made);
        }
        let again = actor.refused(twin, "though only something else was granted")?;
        ensure!(again == denied, "{twin} waits anew after it was denied");
        agentguard_ok(&["approvals", "revoke", &id])?;
        actor.refused(act, "after it was taken back")?;
    }
    for (op, detail) in [
        ("approval", "open: granted once by root"),
        ("approval", "open: denied by root"),
        ("approval", "exec: granted for the session by root"),
        ("approval", "exec: taken back by root"),
    ] {
        let wanted = Wanted {
            agent: Some("asking".into()),
            op: Some(op.into()),
            detail: Some(detail.into()),
            ..Wanted::default()
        };
        trail.wait(mark, &wanted)?;
    }
    for op in ["open", "exec", "connect", "listen", "truncate", "create"] {
        let wanted = Wanted {
            agent: Some("asking".into()),
            op: Some(op.into()),
            verdict: Some("allow".into()),
            cause: Some("approved".into()),
            ..Wanted::default()
        };
        trail.wait(mark, &wanted)?;
    }
    let alarm = Wanted {
        op: Some("alarm".into()),
        ..Wanted::default()
    };
    ensure!(
        !trail.has(mark, &alarm)?,
        "a use that was granted is an alarm"
    );
    Ok(())
}

/// Renaming asks about both names; a time ends; and of many that race for one use one has it.
pub fn bounds(_trail: &mut Trail) -> Result<()> {
    make()?;
    write_policy("asking", POLICY)?;
    let mut actor = Actor::start("asking", "asking")?;
    let moves = r#"["rename", "/t/ask/w/a", "/t/ask/w/c"]"#;
    let id = actor.refused(moves, "before anybody granted it")?;
    agentguard_ok(&["approvals", "grant", &id])?;
    actor.expect(moves, 0, "once granted")?;
    let back = r#"["rename", "/t/ask/w/c", "/t/ask/w/a"]"#;
    actor.expect(back, EPERM, "the other way round")?;

    let read = r#"["read", "/t/ask/r/a"]"#;
    let id = actor.refused(read, "before anybody granted it")?;
    agentguard_ok(&["approvals", "grant", &id, "--for", "4s"])?;
    actor.expect(read, 0, "within its time")?;
    actor.expect(read, 0, "within its time")?;
    std::thread::sleep(Duration::from_secs(5));
    for count in [2, 16, 64] {
        let id = actor.refused(read, "after its time, or its use")?;
        agentguard_ok(&["approvals", "grant", &id])?;
        actor.expect(
            &format!(r#"["race", "/t/ask/r/a", {count}]"#),
            1,
            "of many that raced for one use",
        )?;
    }

    // Another name of what another rule denies stays denied, whoever approves that name.
    std::fs::hard_link("/t/ask/never/key", "/t/ask/r/innocent")?;
    agentguard_ok(&["reload"])?;
    let linked = r#"["read", "/t/ask/r/innocent"]"#;
    let id = actor.refused(linked, "before anybody granted it")?;
    agentguard_ok(&["approvals", "grant", &id, "--session"])?;
    actor.expect(
        linked,
        EPERM,
        "though its inode is denied under another name",
    )?;

    // A loader is started by nobody's leave.
    let mut program = std::fs::read("/usr/bin/true")?;
    let loader = b"/lib64/ld-linux-x86-64.so.2\0";
    let at = program.windows(loader.len()).position(|it| it == loader);
    let at = at.context("`true` names another loader")?;
    let asked = b"/t/ask/bin/a\0";
    program[at..at + asked.len()].copy_from_slice(asked);
    std::fs::write("/t/free/loads", program)?;
    let made = Command::new("/bin/chmod")
        .args(["755", "/t/free/loads"])
        .status()?;
    ensure!(
        made.success(),
        "the program with another loader was not made"
    );
    let is = actor.act(r#"["run", "/t/free/loads"]"#)?;
    ensure!(
        is == 1009,
        "a loader that a rule asks about: {is}, not killed"
    );
    Ok(())
}

/// Nobody inside the agent may answer, also root.
pub fn inside(_trail: &mut Trail) -> Result<()> {
    make()?;
    write_policy("asking", POLICY)?;
    let mut actor = Actor::start("asking", "asking")?;
    let read = r#"["read", "/t/ask/r/a"]"#;
    let id = actor.refused(read, "before anybody granted it")?;
    let inside = format!(r#"["run", "/usr/bin/agentguard", "approvals", "grant", "{id}"]"#);
    let is = actor.act(&inside)?;
    ensure!(is != 0, "a governed root granted itself an approval");
    actor.expect(read, EPERM, "after its own attempt to grant it")?;
    let why = agentguard_ok(&["why", "asking"])?;
    ensure!(
        why.contains(&format!("approvals grant {id}")) && why.contains("Somebody should look."),
        "`why` does not say what an operator could do: {why}"
    );
    Ok(())
}

/// The death of a daemon gives nothing back and takes nothing away.
pub fn restart() -> Result<()> {
    let daemon = Daemon::start()?;
    make()?;
    write_policy("asking", POLICY)?;
    let mut actor = Actor::start("asking", "asking")?;
    let (read, other) = (r#"["read", "/t/ask/r/a"]"#, r#"["read", "/t/ask/r/b"]"#);
    let third = r#"["cut", "/t/ask/w/a"]"#;
    let id = actor.refused(read, "before anybody granted it")?;
    agentguard_ok(&["approvals", "grant", &id, "--session"])?;
    let once = actor.refused(other, "before anybody granted it")?;
    agentguard_ok(&["approvals", "grant", &once])?;
    actor.expect(other, 0, "once granted")?;
    // Seen in a list, and never answered.
    let seen = actor.refused(third, "before anybody granted it")?;
    daemon.kill()?;
    actor.expect(read, 0, "granted, while no daemon runs")?;
    actor.expect(other, EPERM, "used, while no daemon runs")?;
    let _daemon = Daemon::start()?;
    actor.expect(read, 0, "granted, after a restart")?;
    let again = actor.refused(other, "used, after a restart")?;
    ensure!(
        again.parse::<u64>()? > once.parse::<u64>()?,
        "the number {again} was given out before a restart already ({once})"
    );
    for answer in ["grant", "deny"] {
        let stale = agentguard(&["approvals", answer, &seen])?;
        let says = String::from_utf8_lossy(&stale.stderr).into_owned();
        ensure!(
            stale.status.code() == Some(66) && says.contains("does not wait any more"),
            "{answer} of the number {seen}, which was listed before a restart: {:?}, {says}",
            stale.status
        );
    }
    actor.expect(other, EPERM, "which nobody granted again")?;
    let listed = actor.refused(third, "after a restart")?;
    ensure!(listed != seen && listed != again, "a number came again");
    agentguard_ok(&["approvals", "grant", &listed])?;
    actor.expect(third, 0, "granted under its new number")?;
    agentguard_ok(&["approvals", "revoke", &id])?;
    actor.expect(read, EPERM, "taken back, after a restart")?;
    let refused = agentguard(&["approvals", "grant", "999999"])?;
    let says = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        !refused.status.success() && says.contains("approvals list"),
        "a number that nobody has: {says}"
    );
    // While there is a daemon that can let it go.
    drop(actor);
    Ok(())
}
