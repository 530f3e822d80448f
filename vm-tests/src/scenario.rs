//! What rows cannot say: things that happen over time. Each scenario makes its own agent and its
//! own ungoverned twin, and leaves nothing behind.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::attempt::{Attempt, Done, PATIENCE, perform};
use crate::fixture;
use crate::guard::{Agent, Group, agentguard, agentguard_ok, write_policy};
use crate::races;
use crate::reader::Reader;
use crate::row::Actor;
use crate::run::{PERMISSIVE, Tally};
use crate::trail::{Trail, Wanted};

/// What no agent may read.
pub const SECRET: &str = "/t/secret/key";
/// What every agent may read.
pub const FREE: &str = "/t/ws/free.txt";
/// Everything but the secret.
pub const GUARDED: &str = "\
version: 1
files:
  read: {default: allow, deny: [{id: no-secret, path: \"/t/secret/**\"}]}
  write: {default: allow}
exec: {default: allow}
network: {default: allow, unix: allow}
";

/// How long the daemon may take to see that others changed what is protected.
const SOON: Duration = Duration::from_mins(1);

/// What a scenario has to work with.
pub struct Stage {
    trail: Trail,
}

type Scenario = (&'static str, fn(&mut Stage) -> Result<()>);

/// Every scenario, by name.
pub const SCENARIOS: &[Scenario] = &[
    (
        "policy: a new version of the file takes effect while the agent runs",
        swap,
    ),
    (
        "policy: a thousand rules are swapped under load, with no mixture",
        |stage| crate::swap::under_load(&mut stage.trail),
    ),
    (
        "policy: a broken version leaves the old one in force",
        broken,
    ),
    ("agent: detached, it is free", detach),
    (
        "agent: a running process with threads is attached by its cgroup",
        attach_running,
    ),
    (
        "agent: a running process is attached by its pid",
        attach_pid,
    ),
    ("lineage: forked directly into the cgroup", fork_into),
    ("lineage: a cgroup below the agent's", nested),
    ("record: exit status", exit_status),
    ("record: arguments of a program", arguments),
    ("run: exit status and denial", run_command),
    ("run: what the launcher has open stays outside", run_closes),
    ("run: under sudo it drops to the invoking user", run_drops),
    ("agent: frozen, thawed, killed", freeze),
    (
        "budget: processor time is spent, and the agent killed, and no other",
        |stage| crate::limits::processor_time(&mut stage.trail),
    ),
    (
        "budget: wall-clock time is spent, the agent frozen until it is granted more",
        |stage| crate::limits::wall_time(&mut stage.trail),
    ),
    (
        "budget: 64 race for the last unit, and exactly the limit is granted",
        |stage| crate::budgets::races(&mut stage.trail),
    ),
    ("budget: what certain rules permit is counted", |stage| {
        crate::budgets::by_rule(&mut stage.trail)
    }),
    (
        "budget: a fork bomb ends, and is frozen, and nobody else is",
        |stage| crate::budgets::fork_bomb(&mut stage.trail),
    ),
    (
        "budget: a loop of calls and processes is stopped by the limits of coding-agent",
        |stage| crate::runaway::is_stopped(&mut stage.trail),
    ),
    ("budget: too many refusals freeze the agent", |stage| {
        crate::budgets::refusals(&mut stage.trail)
    }),
    ("budget: bytes are kept to the packet", |stage| {
        crate::budgets::bytes(&mut stage.trail)
    }),
    ("budget: a spent budget closes the network", |stage| {
        crate::budgets::no_network(&mut stage.trail)
    }),
    (
        "budget: a count belongs to the name, whatever the cgroup",
        |stage| crate::budgets::by_name(&mut stage.trail),
    ),
    (
        "approval: exactly what was granted goes ahead, as often as was granted",
        |stage| crate::approvals::once(&mut stage.trail),
    ),
    (
        "approval: two names, a time, a race, another name, a loader",
        |stage| crate::approvals::bounds(&mut stage.trail),
    ),
    ("approval: nobody inside may answer", |stage| {
        crate::approvals::inside(&mut stage.trail)
    }),
    (
        "traffic: bytes are those that a server counts, and no other's",
        |stage| crate::traffic::counted(&mut stage.trail),
    ),
    ("guard: a second daemon is refused", second_daemon),
    (
        "guard: a governed root process may not command the daemon",
        commands_from_inside,
    ),
    ("guard: doctor finds everything it needs", doctor),
    (
        "guard: a file system that never answers holds up nobody else",
        |stage| crate::hung::never_answers(&mut stage.trail),
    ),
    (
        "guard: leases and pipes of an agent hold up nobody else",
        |stage| crate::hung::leases_and_pipes(&mut stage.trail),
    ),
    (
        "names: a protected file by a hard link made before the agent was attached",
        linked_before,
    ),
    (
        "names: a protected file by a bind mount made by an ungoverned root",
        mounted_before,
    ),
    (
        "names: a protected file by an overlay made by an ungoverned root",
        overlaid_before,
    ),
    (
        "names: a protected file that others replaced and linked while the agent runs",
        replaced_and_linked,
    ),
    (
        "names: a protected folder that others replaced while the agent runs",
        replaced_folder,
    ),
    (
        "names: what is protected is forgotten with its rule, and with its agent",
        protected_no_more,
    ),
    (
        "record: nothing happens, and the daemon does nothing",
        |stage| crate::idle::is_idle(&mut stage.trail),
    ),
    (
        "record: thousands of opens, each judged again by the reference",
        bulk,
    ),
    (
        "record: repeats of eight threads are counted, and each once",
        |stage| crate::recording::repeats(&mut stage.trail),
    ),
    (
        "record: repeats are told of who goes quiet, is killed or let go",
        |stage| crate::recording::told(&mut stage.trail),
    ),
    ("record: levels of policies and of rules", |stage| {
        crate::recording::levels(&mut stage.trail)
    }),
    ("record: the arguments that programs get", |stage| {
        crate::recording::arguments(&mut stage.trail)
    }),
    (
        "record: no alarm, no gap, nothing malformed in this run",
        quiet,
    ),
    // These are more than the ring buffers hold: only now may there be gaps.
    ("race: a symlink is swapped while it is followed", |_| {
        races::race("race-symlink")
    }),
    (
        "race: a folder and a link exchange names while they are walked",
        |_| races::race("race-rename"),
    ),
    (
        "race: an argument is rewritten while a program starts",
        |_| races::race("race-arguments"),
    ),
    (
        "folders: nothing is opened under a name it does not have while folders move",
        |stage| crate::folders::while_folders_move(&mut stage.trail),
    ),
    ("race: no alarm, nothing malformed in the races", calm),
];

/// Runs the scenarios whose name contains `filter`.
pub fn run(audit: &Path, filter: &str, tally: &mut Tally) {
    let mut stage = Stage {
        trail: Trail::at(audit),
    };
    for (name, scenario) in SCENARIOS.iter().filter(|(name, _)| name.contains(filter)) {
        let started = Instant::now();
        stage.trail.forget();
        let result = scenario(&mut stage);
        tally.count(name, result, started.elapsed());
    }
}

pub(crate) fn act(words: &[&str], group: Option<&Group>) -> Result<Done> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    perform(&Attempt {
        act: &words,
        cwd: None,
        setup: &[],
        after: &[],
        before: &[],
        private: false,
        actor: Actor::Root,
        group,
        patience: PATIENCE,
    })
}

/// The open succeeds in a process of the group.
pub fn must_read(path: &str, group: &Group) -> Result<()> {
    let done = act(&["open-read", path], Some(group))?;
    ensure!(
        done.errno == 0,
        "reading {path} failed with errno {}",
        done.errno
    );
    Ok(())
}

/// The open is refused in a process of the group.
pub fn must_not_read(path: &str, group: &Group) -> Result<()> {
    let done = act(&["open-read", path], Some(group))?;
    ensure!(
        done.errno == libc::EPERM || done.errno == libc::EACCES,
        "reading {path} gave errno {}",
        done.errno
    );
    ensure!(
        done.output.is_empty(),
        "reading {path} was denied and yet gave its contents"
    );
    Ok(())
}

fn guarded(name: &str) -> Result<Agent> {
    write_policy(name, GUARDED)?;
    Agent::attach(name, name)
}

fn denial(agent: &str, op: &str, target: &str) -> Wanted {
    Wanted {
        agent: Some(agent.into()),
        op: Some(op.into()),
        target: Some(target.into()),
        verdict: Some("deny".into()),
        ..Wanted::default()
    }
}

fn swap(stage: &mut Stage) -> Result<()> {
    let agent = guarded("swap")?;
    must_not_read(SECRET, &agent.group)?;
    for (text, permitted) in [(PERMISSIVE, true), (GUARDED, false)] {
        let mark = stage.trail.mark()?;
        write_policy("swap", text)?;
        stage.trail.wait(
            mark,
            &Wanted {
                agent: Some("swap".into()),
                op: Some("policy-install".into()),
                ..Wanted::default()
            },
        )?;
        if permitted {
            must_read(SECRET, &agent.group)?;
        } else {
            must_not_read(SECRET, &agent.group)?;
        }
    }
    Ok(())
}

fn broken(stage: &mut Stage) -> Result<()> {
    let agent = guarded("broken")?;
    for text in [
        "version: 1\nfils: {}\n",
        "",
        "version: 1\nfiles: {read: {allow: [\"/a[\"]}}\n",
    ] {
        let mark = stage.trail.mark()?;
        write_policy("broken", text)?;
        stage.trail.wait(
            mark,
            &Wanted {
                op: Some("policy-error".into()),
                ..Wanted::default()
            },
        )?;
        must_not_read(SECRET, &agent.group)?;
        must_read(FREE, &agent.group)?;
    }
    Ok(())
}

fn detach(stage: &mut Stage) -> Result<()> {
    let agent = guarded("detach")?;
    let mut inside = Reader::start(Some(&agent.group))?;
    ensure!(
        inside.read(SECRET)? == "1",
        "the agent could read before it was detached"
    );
    agentguard_ok(&["detach", "detach"])?;
    let mark = stage.trail.mark()?;
    ensure!(
        inside.read(SECRET)? == "0",
        "a process of the agent is still governed after detach"
    );
    must_read(SECRET, &agent.group)?;
    let recorded = stage.trail.has(
        mark,
        &Wanted {
            agent: Some("detach".into()),
            op: Some("open".into()),
            ..Wanted::default()
        },
    )?;
    ensure!(!recorded, "a detached agent is still recorded");
    Ok(())
}

fn attach_running(stage: &mut Stage) -> Result<()> {
    write_policy("running", GUARDED)?;
    let group = Group::new("running")?;
    let mut inside = Reader::start(Some(&group))?;
    ensure!(
        inside.read(SECRET)? == "0",
        "an ungoverned process could not read"
    );
    let path = group
        .path()
        .to_str()
        .context("the cgroup's path is UTF-8")?
        .to_owned();
    let mark = stage.trail.mark()?;
    agentguard_ok(&[
        "attach", "--cgroup", &path, "--policy", "running", "--name", "running",
    ])?;
    let result = inside
        .read(SECRET)
        .and_then(|main| Ok((main, inside.read_in_thread(SECRET)?)));
    stage.trail.wait(mark, &denial("running", "open", SECRET))?;
    agentguard_ok(&["detach", "running"])?;
    let (main, thread) = result?;
    ensure!(
        main == "1",
        "the main thread is not governed (errno {main})"
    );
    ensure!(
        thread == "1",
        "a thread that ran before is not governed (errno {thread})"
    );
    Ok(())
}

fn attach_pid(stage: &mut Stage) -> Result<()> {
    write_policy("by-pid", GUARDED)?;
    let mut inside = Reader::start(None)?;
    let mark = stage.trail.mark()?;
    agentguard_ok(&[
        "attach",
        "--pid",
        &inside.0.pid().to_string(),
        "--policy",
        "by-pid",
        "--name",
        "by-pid",
    ])?;
    let read = inside.read(SECRET);
    stage.trail.wait(mark, &denial("by-pid", "open", SECRET))?;
    agentguard_ok(&["detach", "by-pid"])?;
    ensure!(read? == "1", "the process is not governed");
    Ok(())
}

/// `clone3` with `CLONE_INTO_CGROUP`: the child is never moved, it is born there.
fn fork_into(stage: &mut Stage) -> Result<()> {
    const PROGRAM: &str = r#"
import ctypes, os, struct, sys
group = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
libc = ctypes.CDLL(None, use_errno=True)
r, w = os.pipe()
arguments = struct.pack("11Q", 0x200000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, group)
child = libc.syscall(435, arguments, len(arguments))
if child == 0:
    try:
        open("/t/secret/key").read()
        os.write(w, b"0")
    except OSError as error:
        os.write(w, str(error.errno).encode())
    os._exit(0)
if child < 0:
    sys.exit("clone3: errno %d" % ctypes.get_errno())
os.close(w)
print(os.read(r, 10).decode(), end="")
"#;
    let agent = guarded("born-inside")?;
    fixture::make(&[])?;
    let mark = stage.trail.mark()?;
    let output = Command::new("/usr/bin/python3")
        .args(["-c", PROGRAM])
        .arg(agent.group.path())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(text == "1", "the child read a denied file (errno {text})");
    stage
        .trail
        .wait(mark, &denial("born-inside", "open", SECRET))
        .map(drop)
}

fn nested(stage: &mut Stage) -> Result<()> {
    let agent = guarded("nested")?;
    let below = Group::new("nested/below")?;
    let mark = stage.trail.mark()?;
    must_not_read(SECRET, &below)?;
    must_read(FREE, &below)?;
    drop(below);
    stage
        .trail
        .wait(mark, &denial(&agent.name, "open", SECRET))
        .map(drop)
}

/// The inode behind a denied path is refused under its other name, and only it.
fn other_name(stage: &mut Stage, name: &str, setup: &str, alias: &str) -> Result<()> {
    fixture::make(&[setup.to_owned()])?;
    let mut control = Reader::attend(None)?;
    ensure!(
        control.read(alias)? == "0",
        "an ungoverned process could not read {alias}"
    );
    drop(control);
    let agent = guarded(name)?;
    let mut inside = Reader::attend(Some(&agent.group))?;
    let mark = stage.trail.mark()?;
    let answer = inside.read(alias)?;
    ensure!(
        matches!(answer.as_str(), "1" | "13"),
        "the secret was read as {alias} (errno {answer})"
    );
    ensure!(
        inside.read("/t/ws/second-name")? == "0",
        "a second name of a free file was refused"
    );
    stage
        .trail
        .wait(
            mark,
            &Wanted {
                cause: Some("protected-object".into()),
                ..denial(name, "open", alias)
            },
        )
        .map(drop)
}

fn linked_before(stage: &mut Stage) -> Result<()> {
    other_name(
        stage,
        "linked-before",
        "ln secret/key ws/alias",
        "/t/ws/alias",
    )
}

fn mounted_before(stage: &mut Stage) -> Result<()> {
    let done = other_name(
        stage,
        "mounted-before",
        "/guest/busybox mount -o bind secret ws/dir",
        "/t/ws/dir/key",
    );
    fixture::shell(&["/guest/busybox umount /t/ws/dir".to_owned()])?;
    done
}

/// A layer's files are the same objects, whatever their names in the overlay.
fn overlaid_before(stage: &mut Stage) -> Result<()> {
    const NAME: &str = "overlaid-before";
    fixture::make(&[
        "mkdir up work".to_owned(),
        "/guest/busybox mount -t overlay -o lowerdir=/t/secret,upperdir=/t/up,workdir=/t/work none ws/dir"
            .to_owned(),
    ])?;
    let done = overlaid(stage, NAME);
    fixture::shell(&["/guest/busybox umount /t/ws/dir".to_owned()])?;
    done
}

fn overlaid(stage: &mut Stage, name: &str) -> Result<()> {
    const ALIAS: &str = "/t/ws/dir/key";
    let mut control = Reader::attend(None)?;
    ensure!(control.read(ALIAS)? == "0", "nobody can read {ALIAS}");
    drop(control);
    let agent = guarded(name)?;
    let mut inside = Reader::attend(Some(&agent.group))?;
    let mark = stage.trail.mark()?;
    let answer = inside.read(ALIAS)?;
    ensure!(answer == "1", "the secret was read as {ALIAS} ({answer})");
    ensure!(inside.read(FREE)? == "0", "a free file was refused");
    // By its name in the overlay, or by that in its layer.
    let denied = Wanted {
        agent: Some(name.into()),
        op: Some("open".into()),
        verdict: Some("deny".into()),
        rule: Some("no-secret".into()),
        ..Wanted::default()
    };
    stage.trail.wait(mark, &denied).map(drop)
}

/// Reads until the answer is the one that is waited for: the daemon has to see what others did.
fn answers_soon(inside: &mut Reader, path: &str, refused: bool) -> Result<Duration> {
    let started = Instant::now();
    loop {
        let answer = inside.read(path)?;
        if matches!(answer.as_str(), "1" | "13") == refused {
            return Ok(started.elapsed());
        }
        ensure!(
            started.elapsed() < SOON,
            "reading {path} still gives errno {answer}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The alias is refused soon, and the record names the rule whose file it is.
fn alias_is_seen(stage: &mut Stage, name: &str, steps: &str, alias: &str) -> Result<()> {
    fixture::make(&[])?;
    let agent = guarded(name)?;
    let mut inside = Reader::attend(Some(&agent.group))?;
    let mark = stage.trail.mark()?;
    fixture::shell(&[steps.to_owned()])?;
    let took = answers_soon(&mut inside, alias, true)?;
    println!("      refused {took:?} after the shell that made it ended");
    let mut control = Reader::attend(None)?;
    ensure!(
        control.read(alias)? == "0",
        "an ungoverned process could not read {alias}"
    );
    ensure!(inside.read(FREE)? == "0", "a free file was refused");
    let record = stage.trail.wait(
        mark,
        &Wanted {
            cause: Some("protected-object".into()),
            ..denial(name, "open", alias)
        },
    )?;
    ensure!(
        record["rule"] == "no-secret" && record["rule_at"].is_string(),
        "the record does not name the rule: {record}"
    );
    Ok(())
}

fn replaced_and_linked(stage: &mut Stage) -> Result<()> {
    alias_is_seen(
        stage,
        "replaced-file",
        "echo new > fresh; mv fresh secret/key; ln secret/key ws/alias",
        "/t/ws/alias",
    )
}

fn replaced_folder(stage: &mut Stage) -> Result<()> {
    alias_is_seen(
        stage,
        "replaced-folder",
        "mv secret old; rm -r old; mkdir -p secret/below; echo new > secret/below/key; ln secret/below/key ws/alias",
        "/t/ws/alias",
    )
}

fn protected_no_more(_: &mut Stage) -> Result<()> {
    fixture::make(&["ln secret/key ws/alias".to_owned()])?;
    let agent = guarded("no-more")?;
    let mut inside = Reader::attend(Some(&agent.group))?;
    answers_soon(&mut inside, "/t/ws/alias", true)?;
    write_policy("no-more", PERMISSIVE)?;
    answers_soon(&mut inside, "/t/ws/alias", false)?;
    write_policy("no-more", GUARDED)?;
    answers_soon(&mut inside, "/t/ws/alias", true)?;
    // The other name leads out of what the rule protects.
    fixture::shell(&["mv secret/key ws/moved".to_owned()])?;
    answers_soon(&mut inside, "/t/ws/alias", false)?;
    drop(inside);
    drop(agent);
    // Nothing of it is left to the next agent.
    fixture::shell(&["mv ws/moved secret/key".to_owned()])?;
    write_policy("no-more", PERMISSIVE)?;
    let agent = Agent::attach("no-more", "no-more")?;
    let mut inside = Reader::attend(Some(&agent.group))?;
    let answer = inside.read("/t/ws/alias")?;
    ensure!(
        answer == "0",
        "the next agent is refused with errno {answer}"
    );
    Ok(())
}

fn exit_status(stage: &mut Stage) -> Result<()> {
    let agent = guarded("exits")?;
    let mark = stage.trail.mark()?;
    let done = act(
        &[
            "exec",
            "/usr/bin/dash",
            "-c",
            "dash -c 'exit 7'; kill -9 $$",
        ],
        Some(&agent.group),
    )?;
    ensure!(done.killed, "a process that kills itself went on");
    let exits = |stage: &mut Stage, status: u64| -> Result<bool> {
        Ok(stage.trail.since(mark)?.iter().any(|record| {
            record["op"] == "exit"
                && record["agent"] == "exits"
                && record["status"].as_u64() == Some(status)
        }))
    };
    let started = Instant::now();
    while !(exits(stage, 7 << 8)? && exits(stage, 9)?) {
        ensure!(
            started.elapsed().as_secs() < 10,
            "no exit records with the statuses of a process that exited with 7 and of one that was killed"
        );
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Ok(())
}

fn arguments(stage: &mut Stage) -> Result<()> {
    let agent = guarded("arguments")?;
    let mark = stage.trail.mark()?;
    act(
        &[
            "exec",
            "/usr/bin/echo",
            "",
            "two words",
            "new\nline",
            "\u{e9}",
        ],
        Some(&agent.group),
    )?;
    let wanted = Wanted {
        op: Some("exec".into()),
        target: Some("/usr/bin/echo".into()),
        ..denial("arguments", "exec", "")
    };
    let record = stage.trail.wait(
        mark,
        &Wanted {
            verdict: Some("allow".into()),
            ..wanted
        },
    )?;
    let argv: Vec<&str> = record["argv"]
        .as_array()
        .context("the record has no argv")?
        .iter()
        .filter_map(|word| word.as_str())
        .collect();
    ensure!(
        argv == ["/usr/bin/echo", "", "two words", r"new\x0aline", "\u{e9}"],
        "argv is {argv:?}"
    );
    Ok(())
}

fn run_command(stage: &mut Stage) -> Result<()> {
    write_policy("run", GUARDED)?;
    fixture::make(&[])?;
    let mark = stage.trail.mark()?;
    let output = agentguard(&[
        "run",
        "--policy",
        "run",
        "--name",
        "run",
        "--",
        "sh",
        "-c",
        "cat /t/ws/free.txt; cat /t/secret/key; exit 7",
    ])?;
    ensure!(
        output.status.code() == Some(7),
        "the exit status is {}",
        output.status
    );
    ensure!(
        output.stdout == b"free",
        "the output is {:?}",
        String::from_utf8_lossy(&output.stdout)
    );
    stage
        .trail
        .wait(mark, &denial("run", "open", SECRET))
        .map(drop)
}

/// A secret that is open when the agent is started does not come along.
fn run_closes(_: &mut Stage) -> Result<()> {
    write_policy("run", GUARDED)?;
    fixture::make(&[])?;
    let governed = "agentguard run --policy run --name closes -- ";
    for (before, reads) in [("", true), (governed, false)] {
        let script = format!("exec 9<{SECRET}; {before}sh -c 'cat <&9'");
        let output = Command::new("/usr/bin/sh").args(["-c", &script]).output()?;
        ensure!(
            (output.stdout == b"key") == reads && output.status.success() == reads,
            "with `{before}`: {}, {}",
            output.status,
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(())
}

fn run_drops(_: &mut Stage) -> Result<()> {
    write_policy("run", GUARDED)?;
    let script = "SUDO_UID=1000 SUDO_GID=1000 SUDO_USER=agent agentguard run --policy run --name drops -- sh -c 'id -u; id -g; cat /proc/self/status | grep CapEff'";
    let output = Command::new("/usr/bin/sh").args(["-c", script]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    ensure!(
        lines.first() == Some(&"1000") && lines.get(1) == Some(&"1000"),
        "it ran as {lines:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(
        lines
            .get(2)
            .is_some_and(|line| line.ends_with("0000000000000000")),
        "it kept capabilities: {lines:?}"
    );
    Ok(())
}

fn freeze(_: &mut Stage) -> Result<()> {
    let agent = guarded("freeze")?;
    let mut inside = Reader::start(Some(&agent.group))?;
    let state =
        || std::fs::read_to_string(agent.group.path().join("cgroup.events")).unwrap_or_default();
    agentguard_ok(&["freeze", "freeze"])?;
    ensure!(
        state().contains("frozen 1"),
        "the cgroup is not frozen: {}",
        state()
    );
    agentguard_ok(&["thaw", "freeze"])?;
    ensure!(
        inside.read(FREE)? == "0",
        "the agent does not run after thaw"
    );
    agentguard_ok(&["kill", "freeze"])?;
    let status = inside.0.wait()?;
    ensure!(!status.success(), "the agent's process survived kill");
    Ok(())
}

fn second_daemon(_: &mut Stage) -> Result<()> {
    let output = agentguard(&["daemon"])?;
    ensure!(!output.status.success(), "a second daemon ran");
    ensure!(
        !output.stderr.is_empty(),
        "a second daemon was refused without a word"
    );
    Ok(())
}

fn commands_from_inside(_: &mut Stage) -> Result<()> {
    write_policy("inside", PERMISSIVE)?;
    let agent = Agent::attach("inside", "inside")?;
    let control = act(&["exec", "/usr/bin/agentguard", "ps"], None)?;
    ensure!(control.errno == 0, "an ungoverned root may not list agents");
    for words in [
        &["exec", "/usr/bin/agentguard", "ps"][..],
        &["exec", "/usr/bin/agentguard", "traffic"],
        &["exec", "/usr/bin/agentguard", "detach", "inside"],
    ] {
        // Whatever it says: it must not succeed.
        if let Ok(done) = act(words, Some(&agent.group)) {
            ensure!(done.errno != 0, "{words:?} succeeded from inside");
        }
    }
    let listed = agentguard_ok(&["ps", "--json"])?;
    ensure!(listed.contains("inside"), "the agent freed itself");
    Ok(())
}

fn doctor(_: &mut Stage) -> Result<()> {
    agentguard_ok(&["doctor"]).map(drop)
}

fn bulk(stage: &mut Stage) -> Result<()> {
    const PROGRAM: &str = r#"
import os, random
random.seed(7)
words = [".env", "a", "b.key", "src", ".git", "x y", "id_rsa", "\n", "*", "node_modules", "target", "\xe9"]
opened = 0
for _ in range(6000):
    path = "/t/" + "/".join(random.choice(words) for _ in range(random.randint(1, 6)))
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, random.choice([os.O_RDONLY, os.O_WRONLY, os.O_RDWR]) | os.O_CREAT, 0o600))
    except OSError:
        pass
"#;
    let policy = "\
version: 1
files:
  read: {default: allow, deny: [\"**/.env\", \"**/*.key\", \"/t/**/id_*\", \"/t/a/**\"]}
  write: {allow: [{path: \"/t/**\", except: [\"**/.git/**\"]}], deny: [\"**/node_modules/**\", \"/t/*/src\"]}
exec: {default: allow}
network: {default: deny}
";
    write_policy("bulk", policy)?;
    let agent = Agent::attach("bulk", "bulk")?;
    let mark = stage.trail.mark()?;
    let done = act(
        &["exec", "/usr/bin/python3", "-c", PROGRAM],
        Some(&agent.group),
    );
    // It prints nothing, so only a failure is of interest.
    ensure!(done?.errno == 0, "the program failed");
    let wanted = Wanted {
        agent: Some("bulk".into()),
        op: Some("exit".into()),
        ..Wanted::default()
    };
    stage.trail.wait(mark, &wanted)?;
    let (mut opens, mut denied) = (0, 0);
    for record in stage.trail.since(mark)? {
        ensure!(
            record["op"] != "alarm",
            "kernel and reference disagree: {record}"
        );
        if matches!(record["op"].as_str(), Some("open" | "create" | "mkdir"))
            && record["target"]
                .as_str()
                .is_some_and(|target| target.starts_with("/t/"))
        {
            opens += 1;
            denied += u32::from(record["verdict"] == "deny");
        }
    }
    ensure!(
        opens > 2000 && denied > 200 && denied < opens,
        "{opens} opens and creations were recorded, {denied} of them denied"
    );
    Ok(())
}

fn calm(stage: &mut Stage) -> Result<()> {
    none_of(stage, &["alarm", "malformed", "log-repair"])
}

fn quiet(stage: &mut Stage) -> Result<()> {
    none_of(stage, &["alarm", "gap", "malformed", "log-repair"])
}

fn none_of(stage: &Stage, operations: &[&str]) -> Result<()> {
    stage.trail.whole(|record| {
        let op = record["op"].as_str().unwrap_or_default();
        ensure!(!operations.contains(&op), "{record}");
        Ok(())
    })
}
