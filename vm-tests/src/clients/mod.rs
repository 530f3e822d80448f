//! Clients of all kinds under the shipped `coding-agent` policy: each reaches a permitted host at the first try, and
//! one that is not permitted not at all; it learns so from the resolver at once, and the log has the name. The same
//! client reaches that host where it is not governed.

mod hosts;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::act::USER;
use crate::guard::{Agent, Group, write_policy};
use crate::run::Tally;
use crate::trail::{Trail, Wanted};
use hosts::Hosts;

/// The agent's folder, in the workspace of [`Agent`].
const WORKSPACE: &str = "/t/ws/clients";
const HOME: &str = "/t/home";
/// A host that no shipped policy names.
const FORBIDDEN: &str = "other.example.net";
/// `REFUSED`.
const REFUSED: u8 = 5;

/// What `coding-agent` says in its comments that somebody may add.
const MORE: &str = "\
version: 1
extends: [coding-agent]
network:
  allow:
    - {id: git-over-ssh, name: github.com, port: 22, protocol: tcp}
    - {id: quic, name: github.com, port: 443, protocol: udp}
";

/// One client.
struct Client {
    name: &'static str,
    /// A host that the policy names.
    host: &'static str,
    /// What the agent's shell runs; it says "reached" where it reached `$HOST`.
    script: &'static str,
    /// Operation and target of its denial by `coding-agent` as it is, where only an addition permits it.
    more: Option<(&'static str, &'static str)>,
}

impl Client {
    const fn new(name: &'static str, host: &'static str, script: &'static str) -> Self {
        Self {
            name,
            host,
            script,
            more: None,
        }
    }
}

const CLIENTS: &[Client] = &[
    Client::new(
        "curl",
        "raw.githubusercontent.com",
        "curl -sS --max-time 60 https://$HOST/",
    ),
    Client::new(
        "git over HTTPS",
        "github.com",
        "rm -rf copy && git clone -q https://$HOST/project.git copy && cat copy/said.txt",
    ),
    Client {
        name: "git over SSH",
        host: "github.com",
        script: "rm -rf copy && git clone -q ssh://agent@$HOST/srv/hosts/served/project.git copy && cat copy/said.txt",
        more: Some(("connect", "93.184.216.7:22")),
    },
    Client::new(
        "python's requests",
        "pypi.org",
        "python3 -c \"import requests; print(requests.get('https://$HOST/', timeout=60).text)\"",
    ),
    Client::new(
        "pip",
        "pypi.org",
        "rm -rf got && python3 -m pip download -q --no-deps --disable-pip-version-check --retries 0 -d got --index-url https://$HOST/simple/ greet && test -s got/greet-1.0-py3-none-any.whl && echo reached",
    ),
    Client::new(
        "node's fetch",
        "registry.npmjs.org",
        "node -e \"fetch('https://$HOST/').then(it => it.text()).then(it => console.log(it))\"",
    ),
    Client::new(
        "getent (glibc)",
        "static.crates.io",
        "getent ahosts $HOST | grep -q ^93.184.216 && echo reached",
    ),
    Client::new(
        "a program linked with musl",
        "proxy.golang.org",
        "musl-client $HOST",
    ),
    Client::new(
        "dig",
        "deb.debian.org",
        "dig +short $HOST | grep -q ^93.184.216 && echo reached",
    ),
    Client::new(
        "dig by TCP",
        "docs.rs",
        "dig +short +tcp @93.184.216.88 $HOST | grep -q ^93.184.216 && echo reached",
    ),
    Client {
        name: "QUIC",
        host: "github.com",
        script: "python3 quic.py $HOST",
        more: Some(("send", "93.184.216.7:443")),
    },
];

struct Scene<'a> {
    trail: &'a mut Trail,
    _hosts: Hosts,
    plain: Agent,
    more: Agent,
    twin: Group,
}

/// Those whose name contains `filter`.
pub fn run(filter: &str, trail: &mut Trail, tally: &mut Tally) {
    let name = |client: &Client| format!("ordinary work: clients: {}", client.name);
    let chosen: Vec<&Client> = CLIENTS
        .iter()
        .filter(|client| name(client).contains(filter))
        .collect();
    if chosen.is_empty() {
        return;
    }
    let started = Instant::now();
    let mut scene = match Scene::set(trail) {
        Ok(scene) => scene,
        Err(error) => {
            tally.count("ordinary work: clients", Err(error), started.elapsed());
            return;
        }
    };
    for client in chosen {
        let started = Instant::now();
        let result = scene.play(client);
        tally.count(&name(client), result, started.elapsed());
    }
}

impl<'a> Scene<'a> {
    fn set(trail: &'a mut Trail) -> Result<Self> {
        fs::create_dir_all(HOME)?;
        chown(HOME, Some(USER), Some(USER)).context("failed to give the agent a home")?;
        let hosts = Hosts::start()?;
        write_policy("clients-more", MORE)?;
        Ok(Self {
            trail,
            _hosts: hosts,
            plain: Agent::attach("clients", "coding-agent")?,
            more: Agent::attach("clients-more", "clients-more")?,
            twin: Group::new("clients-twin")?,
        })
    }

    fn play(&mut self, client: &Client) -> Result<()> {
        let agent = if client.more.is_some() {
            &self.more
        } else {
            &self.plain
        };
        let (said, complaint) = ran(&agent.group, client, client.host)?;
        ensure!(
            said.contains("reached"),
            "{} was not reached: {said} {complaint}",
            client.host
        );
        let (said, complaint) = ran(&self.twin, client, FORBIDDEN)?;
        ensure!(
            said.contains("reached"),
            "{FORBIDDEN} is not reached ungoverned: {said} {complaint}"
        );
        if let Some((op, target)) = client.more {
            self.denied(client, client.host, false, op, target)?;
        }
        self.refused(client)
    }

    /// A host that no rule names: there is nothing but a refusal, at once.
    fn refused(&mut self, client: &Client) -> Result<()> {
        let before = Hosts::answers().len();
        let more = client.more.is_some();
        let complaint = self.denied(client, FORBIDDEN, more, "resolve", FORBIDDEN)?;
        let answers = Hosts::answers();
        let answers = answers.get(before..).unwrap_or_default();
        let longest = answers
            .iter()
            .fold(0.0, |most: f64, it| most.max(it.millis));
        println!(
            "      {}: {} answers seen, {} of them refusals, {} to come by TCP, the slowest after {longest} ms; {}",
            client.name,
            answers.len(),
            answers
                .iter()
                .filter(|answer| answer.code == REFUSED)
                .count(),
            answers.iter().filter(|answer| answer.cut).count(),
            complaint.lines().last().unwrap_or_default()
        );
        Ok(())
    }

    /// The client does not reach the host, and the log says so.
    fn denied(
        &mut self,
        client: &Client,
        host: &str,
        more: bool,
        op: &str,
        target: &str,
    ) -> Result<String> {
        let agent = if more { &self.more } else { &self.plain };
        let mark = self.trail.mark()?;
        let (said, complaint) = ran(&agent.group, client, host)?;
        ensure!(
            !said.contains("reached"),
            "{host} was reached: {said} {complaint}"
        );
        let wanted = Wanted {
            agent: Some(agent.name.clone()),
            op: Some(op.to_owned()),
            target: Some(target.to_owned()),
            verdict: Some("deny".into()),
            ..Wanted::default()
        };
        let record = self.trail.wait(mark, &wanted)?;
        ensure!(
            op != "resolve" || record["reply"] == "REFUSED",
            "the client was not told: {record}"
        );
        Ok(complaint)
    }
}

/// Runs the client in a cgroup as the agent's user; gives what it said and what it complained of, however it ended.
fn ran(group: &Group, client: &Client, host: &str) -> Result<(String, String)> {
    // A shell of that user waits until it is where it belongs, and becomes the client.
    let mut child = Command::new("/usr/bin/bash")
        .args(["-c", "read -r && exec timeout 120 bash -uc \"$1\"", "sh"])
        .arg(client.script)
        .current_dir(WORKSPACE)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", HOME)
        .env("HOST", host)
        .env("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt")
        .env("NODE_EXTRA_CA_CERTS", "/etc/ssl/certs/guest.crt")
        .env(
            "GIT_SSH_COMMAND",
            "ssh -F none -i deploy-key -o UserKnownHostsFile=known -o IdentitiesOnly=yes -o BatchMode=yes",
        )
        .uid(USER)
        .gid(USER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("failed to start a shell")?;
    group.take(child.id())?;
    child
        .stdin
        .take()
        .context("the shell has no input")?
        .write_all(b"\n")
        .context("failed to release the client")?;
    let output = child.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((text(&output.stdout), text(&output.stderr)))
}
