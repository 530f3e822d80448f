//! Names: real clients under a policy with rules by name, and every way to a host that it does not name. Each way
//! must lead there for a process that is not governed.

pub mod containers;
mod podman;
pub(crate) mod server;
pub mod six;
mod ways;

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::guard::{Agent, Daemon, Group, agentguard, agentguard_ok, write_policy};
use crate::run::Tally;
use crate::trail::{Trail, Wanted};
use server::{DATAGRAM, Server};
use ways::{GOOD, OTHER, POLICY, PRELUDE, PROGRAMS, WAYS};

struct Scene {
    trail: Trail,
    server: Server,
    agent: Agent,
    twin: Group,
}

/// Everything about names, where `filter` is part of "names by rule".
pub fn run(audit: &str, filter: &str, tally: &mut Tally) {
    const NAME: &str = "egress: names by rule";
    if !NAME.contains(filter) && !filter.contains("egress") {
        return;
    }
    let started = std::time::Instant::now();
    let mut scene = match Scene::set(audit) {
        Ok(scene) => scene,
        Err(error) => {
            tally.count(NAME, Err(error), started.elapsed());
            return;
        }
    };
    let mut each = |name: &str, step: &mut dyn FnMut(&mut Scene) -> Result<()>| {
        let started = std::time::Instant::now();
        let name = format!("egress: {name}");
        if filter.contains("egress") && !name.contains(filter) {
            return;
        }
        tally.count(&name, step(&mut scene), started.elapsed());
    };
    for (name, words) in GOOD {
        each(&format!("{name} reaches it"), &mut |scene| {
            scene.reaches(words)
        });
    }
    each(
        "asked by UDP and TCP, with and without connecting",
        &mut Scene::asks,
    );
    for (name, script, op, target) in WAYS {
        each(name, &mut |scene| scene.way(script, op, target));
    }
    for (name, words) in PROGRAMS {
        each(name, &mut |scene| scene.denied(words, "", ""));
    }
    each("traffic has the names", &mut Scene::traffic);
    each("refused at once", &mut Scene::at_once);
    each("the resolver's own port", &mut Scene::own_port);
    each("what another agent was given", &mut Scene::others);
    each("an address whose time is over", &mut Scene::over);
    each("in a network of its own", &mut Scene::apart);
    each("a budget by a rule about names", &mut Scene::counted);
    each(
        "a name that a new policy does not permit",
        &mut Scene::swapped,
    );
}

/// A script with what all of them have.
pub(crate) fn text_of(script: &str) -> String {
    format!("{PRELUDE}\n{script}\n")
}

fn python(text: &str) -> [&str; 3] {
    ["/usr/bin/python3", "-c", text]
}

/// Runs a program in a cgroup; gives what it said and what it complained of, however it ended.
pub(crate) fn said_in(group: &Group, words: &[&str]) -> Result<(String, String)> {
    let procs = group.path().join("cgroup.procs");
    let script = format!("echo $$ >{} && exec \"$@\"", procs.display());
    let output = Command::new("/usr/bin/dash")
        .args(["-c", &script, "sh", "/usr/bin/timeout", "60"])
        .args(words)
        .stdin(Stdio::null())
        .output()
        .context("failed to start a shell")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((text(&output.stdout), text(&output.stderr)))
}

/// The server, and a guest whose programs ask it.
pub(crate) fn prepare() -> Result<Server> {
    const HOST: &str = "93.184.216.66 hosts.example.org\n";
    let server = Server::start()?;
    fs::write(
        "/etc/resolv.conf",
        "search example.net\nnameserver 93.184.216.53\n",
    )
    .context("failed to write /etc/resolv.conf")?;
    fs::write("/etc/nsswitch.conf", "hosts: files dns\n")?;
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    if !hosts.ends_with(HOST) {
        fs::write("/etc/hosts", format!("{hosts}\n{HOST}"))?;
    }
    write_policy("names", POLICY)?;
    Ok(server)
}

impl Scene {
    fn set(audit: &str) -> Result<Self> {
        let server = prepare()?;
        Ok(Self {
            trail: Trail::at(audit),
            server,
            agent: Agent::attach("names", "names")?,
            twin: Group::new("names-twin")?,
        })
    }

    /// Runs a program, governed or not; gives what it said.
    fn said(&self, words: &[&str], governed: bool) -> Result<(String, String)> {
        let group = if governed {
            &self.agent.group
        } else {
            &self.twin
        };
        said_in(group, words)
    }

    fn reaches(&mut self, words: &[&str]) -> Result<()> {
        for governed in [false, true] {
            let (said, complaint) = self.said(words, governed)?;
            ensure!(
                said.contains("reached"),
                "governed {governed}: {said} {complaint}"
            );
        }
        Ok(())
    }

    fn denied(&mut self, words: &[&str], op: &str, target: &str) -> Result<()> {
        self.server.forget();
        let (said, complaint) = self.said(words, false)?;
        ensure!(
            said.contains("reached") || self.server.knows(DATAGRAM),
            "not even ungoverned: {said} {complaint}"
        );
        self.server.forget();
        let mark = self.trail.mark()?;
        let (said, complaint) = self.said(words, true)?;
        ensure!(
            !said.contains("reached"),
            "it was reached: {said} {complaint}"
        );
        for known in [
            "evil.example.net",
            "secret.evil.example.net",
            "deep.host.wild.example.com",
            DATAGRAM,
        ] {
            ensure!(!self.server.knows(known), "{known} came to the server");
        }
        let wanted = Wanted {
            agent: Some("names".into()),
            op: (!op.is_empty()).then(|| op.to_owned()),
            target: (!target.is_empty()).then(|| target.to_owned()),
            verdict: Some("deny".into()),
            ..Wanted::default()
        };
        self.trail.wait(mark, &wanted).map(drop)
    }

    fn way(&mut self, script: &str, op: &str, target: &str) -> Result<()> {
        let text = text_of(script);
        self.denied(&python(&text), op, target)
    }

    /// What was exchanged is counted by address, with the name that opened it.
    fn traffic(&mut self) -> Result<()> {
        self.reaches(GOOD[0].1)?;
        let said = agentguard_ok(&["traffic", "names", "--json"])?;
        let said: serde_json::Value = serde_json::from_str(&said)?;
        let all = said[0]["destinations"].as_array().context("a list")?;
        let fits = |it: &&serde_json::Value| {
            it["name"] == "good.example.com" && it["port"] == 8080 && it["protocol"] == "tcp"
        };
        let bytes = all.iter().find(fits).map(|it| it["bytes_in"].as_u64());
        ensure!(bytes.flatten().is_some_and(|it| it > 0), "{said}");
        Ok(())
    }

    fn asks(&mut self) -> Result<()> {
        for how in ["", ", tcp=True", ", connect=False"] {
            for server in [
                "93.184.216.53",
                "8.8.8.8",
                "2606:2800::53",
                "2001:4860:4860::8888",
            ] {
                let text = text_of(&format!("by('{server}', 'good.example.com'{how})"));
                let (said, complaint) = self.said(&python(&text), true)?;
                ensure!(
                    said.contains("reached"),
                    "{server}{how}: {said} {complaint}"
                );
            }
        }
        Ok(())
    }

    /// By an answer, and not by a time-out of five seconds. The best of some: other work of the guest is not the
    /// resolver's.
    fn at_once(&mut self) -> Result<()> {
        const TIME_OUT: f64 = 5000.0;
        let script = "best = 9\nfor n in range(5):\n t = time.monotonic()\n try: socket.getaddrinfo('evil.example.net', 1)\n except OSError: best = min(best, time.monotonic() - t)\nprint('%.1f' % (best * 1000))";
        let text = text_of(script);
        let (said, complaint) = self.said(&python(&text), true)?;
        let took: f64 = said.trim().parse().with_context(|| complaint.clone())?;
        println!("a denied name is refused after {took} ms");
        ensure!(took < TIME_OUT, "it took {took} ms");
        Ok(())
    }

    /// Nobody who is governed reaches a resolver's port but by asking a name server.
    fn own_port(&mut self) -> Result<()> {
        let script = "ports = [int(l.split()[1].split(':')[1], 16) for l in open('/proc/net/udp').readlines()[1:] if l.split()[1].startswith('0100007F')]\nfor p in ports:\n for t in (False, True):\n  try: ask('127.0.0.1', 'good.example.com', port=p, tcp=t); print('reached')\n  except OSError: pass";
        self.way(script, "connect", "127.0.0.1:*")
    }

    /// Addresses are open for the agent that asked, and for no other.
    fn others(&mut self) -> Result<()> {
        write_policy("names-other", OTHER)?;
        let other = Agent::attach("names-other", "names-other")?;
        let text = text_of("get('evil.example.net')");
        let (said, complaint) = said_in(&other.group, &python(&text))?;
        ensure!(
            said.contains("reached"),
            "the other agent does not reach it: {said} {complaint}"
        );
        let script = "get('93.184.216.66')";
        self.way(script, "connect", "93.184.216.66:8080")
    }

    /// Kept 5 seconds at least, and open 10 more.
    fn over(&mut self) -> Result<()> {
        let script = "get('short.example.com')\ntime.sleep(20)\ntry: get('93.184.216.4'); print('again')\nexcept OSError as e: print(e.errno)";
        let text = text_of(script);
        let (said, complaint) = self.said(&python(&text), true)?;
        if !said.starts_with("reached") || said.contains("again") {
            bail!("{said} {complaint}");
        }
        ensure!(said.trim().ends_with('1'), "{said}");
        Ok(())
    }

    /// In another network namespace the agent's names are resolved there.
    fn apart(_: &mut Self) -> Result<()> {
        write_policy("names-apart", POLICY)?;
        let agent = Agent::attach("names-apart", "names-apart")?;
        // It looks every second where agents are; until then, asking is denied.
        let script = "found = None\nfor n in range(60):\n try: found = ask('8.8.8.8', 'good.example.com')\n except OSError: pass\n if found: break\n time.sleep(.5)\nprint(found)\nask('8.8.8.8', 'evil.example.net', tcp=True)";
        let text = text_of(script);
        // Made by somebody else, as a container is.
        let mut child = Command::new("/usr/bin/dash")
            .args(["-c", "read go; exec \"$@\"", "sh"])
            .args([
                "/usr/bin/unshare",
                "--net",
                "/usr/bin/dash",
                "-c",
                "/usr/sbin/ip link set lo up && echo made; read go; exec \"$@\"",
                "sh",
            ])
            .args(python(&text))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take().context("no input")?;
        input.write_all(b"\n")?;
        let mut made = [0; 5];
        child
            .stdout
            .as_mut()
            .context("no output")?
            .read_exact(&mut made)?;
        agent.group.take(child.id())?;
        input.write_all(b"\n")?;
        drop(input);
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            said.contains("93.184.216.1\ncode 5"),
            "{said} {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// A budget counts what the names of its rule opened, through a change of the policy, and nothing else. (The names
    /// are asked for by hand: the C library also connects to each address of an answer, to put them in order.)
    fn counted(&mut self) -> Result<()> {
        let policy = |limit: u32| {
            format!(
                "{POLICY}budgets:\n  - {{id: few, connects: {limit}, rules: good, per: session}}\n"
            )
        };
        write_policy("counted", &policy(3))?;
        let agent = Agent::attach("counted", "counted")?;
        let reached = |name: &str, times: usize| -> Result<usize> {
            let text = text_of(&format!(
                "for n in range({times}):\n try: by('93.184.216.53', '{name}')\n except OSError as e: print(e)"
            ));
            let (said, _) = said_in(&agent.group, &python(&text))?;
            Ok(said.matches("reached").count())
        };
        let refused = Wanted {
            agent: Some("counted".into()),
            op: Some("connect".into()),
            verdict: Some("deny".into()),
            cause: Some("budget".into()),
            rule: Some("few".into()),
            ..Wanted::default()
        };
        let mark = self.trail.mark()?;
        let (wild, good) = ("host.wild.example.com", "good.example.com");
        ensure!(reached(wild, 4)? == 4, "another rule's names are counted");
        let got = reached(good, 5)?;
        ensure!(got == 3, "{got} connections of 3 were granted");
        self.trail.wait(mark, &refused)?;
        // What is open already is counted by the policy that comes.
        let mark = self.trail.mark()?;
        write_policy("counted", &policy(5))?;
        let installed = Wanted {
            agent: Some("counted".into()),
            op: Some("policy-install".into()),
            ..Wanted::default()
        };
        self.trail.wait(mark, &installed)?;
        let text = text_of(
            "for n in range(5):\n try: get('93.184.216.1')\n except OSError as e: print(e)",
        );
        let (said, complaint) = said_in(&agent.group, &python(&text))?;
        let got = said.matches("reached").count();
        ensure!(
            got == 2,
            "{got} connections of 2 were granted: {said} {complaint}"
        );
        ensure!(reached(wild, 2)? == 2, "another rule's names are counted");
        Ok(())
    }

    /// What is open closes with the rule that opened it, and the name is refused. (An address that another permitted
    /// name leads to as well would stay.)
    fn swapped(&mut self) -> Result<()> {
        let text = text_of("get('alias.example.com')");
        self.reaches(&python(&text))?;
        let installed = Wanted {
            agent: Some("names".into()),
            op: Some("policy-install".into()),
            ..Wanted::default()
        };
        let mark = self.trail.mark()?;
        write_policy("names", &POLICY.replace("alias.example.com, ", ""))?;
        self.trail.wait(mark, &installed)?;
        let ended = self
            .way("get('alias.example.com')", "resolve", "alias.example.com")
            .and_then(|()| self.way("get('93.184.216.2')", "connect", "93.184.216.2:8080"));
        let mark = self.trail.mark()?;
        write_policy("names", POLICY)?;
        self.trail.wait(mark, &installed)?;
        ended?;
        self.reaches(&python(&text))
    }
}

/// Names through `run` without a daemon, and through the death of a daemon. No daemon may run.
pub fn survives() -> Result<()> {
    let good = GOOD[0].1;
    let elsewhere = GOOD[2].1;
    let evil = PROGRAMS[0].1;
    prepare()?;
    // A `run` alone is refused where something is pinned.
    agentguard_ok(&["uninstall", "--yes"])?;
    alone(good, evil)?;

    let daemon = Daemon::start()?;
    let agent = Agent::attach("names-survive", "names")?;
    let reached = |words: &[&str]| -> Result<bool> {
        Ok(said_in(&agent.group, words)?.0.contains("reached"))
    };
    ensure!(reached(good)?, "not even with the first daemon");
    daemon.kill()?;
    ensure!(!reached(evil)?, "without a daemon a denied name is reached");
    ensure!(!reached(elsewhere)?, "without a daemon a name is resolved");
    let daemon = Daemon::start()?;
    ensure!(reached(good)?, "not with the second daemon");
    ensure!(reached(elsewhere)?, "not with the second daemon");
    ensure!(!reached(evil)?, "the second daemon gives a denied name");
    drop(agent);
    drop(daemon);
    Ok(())
}

/// Both programs in one `run` without a daemon: the kernel takes a minute to check what is loaded for it.
fn alone(good: &[&str], evil: &[&str]) -> Result<()> {
    let quoted = |words: &[&str]| {
        let words = words.iter().map(|word| word.replace('\'', r"'\''"));
        format!("'{}'", words.collect::<Vec<_>>().join("' '"))
    };
    let script = format!("{}; {}", quoted(good), quoted(evil));
    let output = agentguard(&[
        "run",
        "--policy",
        "names",
        "--",
        "/usr/bin/dash",
        "-c",
        &script,
    ])?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    ensure!(
        said.matches("reached").count() == 1 && said.contains("evil.example.net"),
        "by `run` alone: {said}"
    );
    Ok(())
}
