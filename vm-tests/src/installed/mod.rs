//! The package on a Debian system with systemd, from `dpkg -i` to `dpkg -P`, as the README says it. What is started here
//! is the packaged unit and nothing else. It must only run in a guest: it installs and removes packages.

mod commands;
mod system;
mod trier;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::dialogue::Dialogue;
use crate::guard::{AUDIT, PROVIDER, PROVIDER_KEY, agentguard, agentguard_ok, write_policy};
use crate::names::{prepare, text_of};
use crate::run::Tally;
use crate::runaway::Provider;
use crate::trail::{Trail, Wanted};
use system::{
    UNIT, configure, ok, packaged, programs_are_pinned, property, said, since_the_boot, until,
};
use trier::{GUARDED, OPEN, SECRET, Trier};

/// How the names of all these tests begin.
const NAME: &str = "installed";

/// What a guest is told that has no systemd.
pub fn skip(filter: &str, tally: &mut Tally) {
    if NAME.contains(filter) || filter.starts_with(NAME) {
        tally.skip(
            NAME,
            "this guest has no systemd; `cargo xtask vm --debian` boots one that has",
        );
    }
}

type Step = fn(&mut Scene) -> Result<()>;

/// In this order: each begins where the one before ended.
const STEPS: &[(&str, Step)] = &[
    ("the five commands of the README", Scene::five_commands),
    ("the unit is ready, enabled and confined", Scene::unit),
    (
        "a changed configuration is read at a restart",
        Scene::configured,
    ),
    ("a unit is attached by its name", Scene::by_unit),
    ("a unit is attached by its cgroup", Scene::by_cgroup),
    ("a unit is attached by its process", Scene::by_pid),
    ("what cannot be attached is said", Scene::not_attached),
    (
        "without root little is permitted, and the remedy is said",
        Scene::without_root,
    ),
    ("names are resolved for an agent, or refused", Scene::names),
    (
        "models are called with a key from systemd's credentials",
        Scene::credentials,
    ),
    (
        "a reload takes a good policy and keeps it over a bad one",
        Scene::reload,
    ),
    ("restarts let nothing through", Scene::restarts),
    ("the journal has each denial once", Scene::journal),
    ("systemd starts it again after its death", Scene::killed),
    ("an upgrade lets nothing through", Scene::upgrade),
    ("removing the package keeps what is pinned", Scene::removed),
    (
        "uninstall ends it, and purging leaves the log",
        Scene::purged,
    ),
];

/// The program, without which the rest says nothing.
const GUARDED_BY: &str = "/usr/bin/agentguard";

/// Runs them.
pub fn run(filter: &str, tally: &mut Tally) {
    let started = Instant::now();
    let mut scene = match Scene::set() {
        Ok(scene) => scene,
        Err(error) => return tally.count(NAME, Err(error), started.elapsed()),
    };
    // Each begins where the one before ended: a filter says how far to go.
    let last = STEPS
        .iter()
        .rposition(|(name, _)| format!("{NAME}: {name}").contains(filter));
    for (name, step) in STEPS.iter().take(last.map_or(0, |last| last + 1)) {
        let started = Instant::now();
        let result = step(&mut scene);
        let failed = result.is_err();
        tally.count(&format!("{NAME}: {name}"), result, started.elapsed());
        if failed {
            println!("      {}", system::journal_tail());
            if !Path::new(GUARDED_BY).exists() {
                return;
            }
        }
    }
}

struct Scene {
    trail: Trail,
    /// An agent that is governed from [`Scene::by_unit`] on, to the end.
    agent: Option<Trier>,
    session: String,
}

impl Scene {
    fn set() -> Result<Self> {
        ensure!(
            Path::new("/run/systemd/system").is_dir(),
            "systemd does not run here"
        );
        ensure!(
            !Path::new(GUARDED_BY).exists(),
            "the product is installed already"
        );
        // The kernel loads what says whose a socket is by itself where modules are installed.
        crate::fixture::load_modules()?;
        trier::make()?;
        Ok(Self {
            trail: Trail::at(AUDIT),
            agent: None,
            session: String::new(),
        })
    }

    /// As a user does who has the right to `sudo`, in a clone of the repository.
    fn five_commands(_: &mut Self) -> Result<()> {
        let state = said("systemctl", &["is-system-running"])?.0;
        ensure!(
            state == "running",
            "before anything is installed the system is {state}"
        );
        let commands = commands::of_the_readme()?;
        ensure!(commands.len() == 5, "there are not five: {commands:?}");
        for (command, expected) in commands.iter().zip(commands::EXPECTED) {
            commands::run(command, expected)?;
        }
        Ok(())
    }

    fn unit(_: &mut Self) -> Result<()> {
        for (key, value) in [
            ("Type", "notify"),
            ("ActiveState", "active"),
            ("StatusText", "policies are enforced"),
            ("UnitFileState", "enabled"),
            ("NRestarts", "0"),
            // It is never given up.
            ("StartLimitIntervalUSec", "0"),
        ] {
            let is = property(key)?;
            ensure!(is == value, "{key} is {is}");
        }
        ensure!(
            fs::metadata("/etc/agentguard/policies")?.is_dir()
                && fs::metadata("/usr/share/man/man1/agentguard.1.gz")?.is_file()
                && said("getent", &["group", "agentguard"])?.2,
            "the package lacks something"
        );
        let pid = property("MainPID")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
            ensure!(status.contains(line), "{line} is not there: {status}");
        }
        // In its view of the system it may write its own, and nothing else.
        let writes = |path: &str| {
            let words = ["-t", &pid, "-m", "--", "/usr/bin/touch", path];
            said("nsenter", &words).map(|it| it.2)
        };
        for (path, may) in [
            ("/var/lib/agentguard/probe", true),
            ("/var/log/agentguard/probe", true),
            ("/etc/probe", false),
            ("/usr/bin/probe", false),
            ("/home/agent/probe", false),
        ] {
            ensure!(writes(path)? == may, "it could write {path}: {}", !may);
        }
        let security = said("systemd-analyze", &["security", "--no-pager", UNIT])?.0;
        println!("ok    | {}", security.lines().last().unwrap_or_default());
        Ok(())
    }

    /// A sink and a provider; what is broken is refused with its place, and enforcement stands.
    fn configured(_: &mut Self) -> Result<()> {
        configure("sinks:\n  journal:\n    journal: {}\n")?;
        let (_, complaint, started) = said("systemctl", &["restart", UNIT])?;
        ensure!(!started, "a broken configuration was taken");
        let state = property("ActiveState")?;
        ensure!(state == "failed", "it is tried again and again: {state}");
        ensure!(programs_are_pinned(), "enforcement ended: {complaint}");
        let journal = system::journal_tail();
        ensure!(
            journal.contains("agentguard.yaml") && journal.contains("journal"),
            "the mistake is not named: {journal}"
        );
        configure(&format!(
            "sinks:\n  journal:\n    journald: {{}}\ngateway:\n  providers:\n    local: {{ api: openai, upstream: \"http://{PROVIDER}\" }}\n"
        ))?;
        ok("systemctl", &["restart", UNIT]).map(drop)
    }

    fn denied(&mut self, mark: usize, agent: &str) -> Result<()> {
        let wanted = Wanted {
            agent: Some(agent.into()),
            op: Some("open".into()),
            target: Some(SECRET.into()),
            verdict: Some("deny".into()),
            rule: Some("secret".into()),
            ..Wanted::default()
        };
        self.trail.wait(mark, &wanted).map(drop)
    }

    /// An agent in a unit: what it may not read it reads until it is governed, and after that no more.
    fn attach(&mut self, name: &str, who: fn(&Trier) -> Result<[String; 2]>) -> Result<Trier> {
        write_policy("guarded", GUARDED)?;
        let mut trier = Trier::start(name)?;
        let free = trier.count()?;
        ensure!(
            free.opened > 0 && free.refused == 0,
            "not governed: {free:?}"
        );
        let [how, which] = who(&trier)?;
        let mark = self.trail.mark()?;
        agentguard_ok(&[
            "attach", &how, &which, "--policy", "guarded", "--name", name,
        ])?;
        trier.count()?;
        let held = trier.count()?;
        ensure!(held.is_held(), "governed: {held:?}");
        self.denied(mark, name)?;
        Ok(trier)
    }

    /// The twin: who is let go reads it again.
    fn let_go(mut trier: Trier) -> Result<()> {
        agentguard_ok(&["detach", trier.name()])?;
        trier.count()?;
        let free = trier.count()?;
        ensure!(free.opened > 0 && free.refused == 0, "let go: {free:?}");
        ensure!(
            trier.property("ActiveState")? == "active",
            "its unit has ended"
        );
        Ok(())
    }

    fn by_unit(&mut self) -> Result<()> {
        let trier = self.attach("unit", |trier| Ok(["--unit".into(), trier.unit()]))?;
        self.session = since_the_boot("unit")?;
        self.agent = Some(trier);
        Ok(())
    }

    fn by_cgroup(&mut self) -> Result<()> {
        let trier = self.attach("cgroup", |trier| {
            Ok(["--cgroup".into(), trier.property("ControlGroup")?])
        })?;
        Self::let_go(trier)
    }

    fn by_pid(&mut self) -> Result<()> {
        let trier = self.attach("pid", |trier| {
            Ok(["--pid".into(), trier.property("MainPID")?])
        })?;
        Self::let_go(trier)
    }

    fn not_attached(_: &mut Self) -> Result<()> {
        for (how, which, says) in [
            ("--unit", "no-such.service", "is it running"),
            ("--cgroup", "/no.slice", "there is no cgroup"),
            ("--pid", "4194303", "4194303"),
        ] {
            let output =
                agentguard(&["attach", how, which, "--policy", "guarded", "--name", "no"])?;
            let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(
                !output.status.success() && complaint.contains(says),
                "{how} {which}: {complaint}"
            );
        }
        Ok(())
    }

    /// A stranger may nothing, and a member of the group may look.
    fn without_root(_: &mut Self) -> Result<()> {
        let refused = |command: &str| -> Result<()> {
            let output = Command::new("runuser")
                .args(["-u", "agent", "--", "/usr/bin/agentguard"])
                .args(command.split(' '))
                .output()?;
            let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(
                output.status.code() == Some(77)
                    && complaint.contains("root")
                    && complaint.contains("sudo"),
                "`{command}`: {} {complaint}",
                output.status
            );
            Ok(())
        };
        let changes = [
            "daemon",
            "uninstall --yes",
            "run --policy coding-agent -- true",
            "attach --unit agent-unit.service --policy guarded --name more",
            "detach unit",
        ];
        for command in changes.into_iter().chain(["ps"]) {
            refused(command)?;
        }
        ok("usermod", &["-aG", "agentguard", "agent"])?;
        let listed = ok("runuser", &["-u", "agent", "--", "agentguard", "ps"])?;
        ensure!(
            listed.contains("unit"),
            "a member does not see it: {listed}"
        );
        changes.into_iter().try_for_each(refused)
    }

    /// The resolver works from within the unit: it enters the networks of agents, and asks the server.
    fn names(_: &mut Self) -> Result<()> {
        let server = prepare()?;
        let run = |host: &str| {
            let text = text_of(&format!("get('{host}')"));
            let words = ["run", "--policy", "names", "--name", "names", "--"];
            let python = ["/usr/bin/python3", "-c", &text];
            agentguard(&[&words[..], &python].concat())
        };
        let good = run("good.example.com")?;
        ensure!(
            String::from_utf8_lossy(&good.stdout).contains("reached"),
            "what is permitted is not reached: {}",
            String::from_utf8_lossy(&good.stderr)
        );
        server.forget();
        let evil = run("evil.example.net")?;
        ensure!(
            !String::from_utf8_lossy(&evil.stdout).contains("reached")
                && !server.knows("evil.example.net"),
            "what is not permitted is reached or asked for"
        );
        Ok(())
    }

    /// The provider answers only who has the key, which no configuration names.
    fn credentials(_: &mut Self) -> Result<()> {
        let _provider = Provider::start()?;
        write_policy(
            "calling",
            "version: 1\nfiles: {default: allow}\nexec: {default: allow}\nnetwork: {default: deny, allow: [\"127.0.0.1:8377/tcp\"]}\nmodels: {providers: [local]}\n",
        )?;
        let call = || -> Result<String> {
            let mut command = Command::new("/usr/bin/agentguard");
            command.args(["run", "--policy", "calling", "--name", "calling", "--"]);
            let mut caller = Dialogue::start(command.args(["/guest/vm-tests", "runaway"]))?;
            caller.say("call")?;
            let answer = caller.hear()?;
            caller.hang_up();
            caller.wait()?;
            Ok(answer)
        };
        let without = call()?;
        ensure!(without != "200", "it was answered without a key");
        system::drop_in(
            "key",
            &format!("LoadCredential=agentguard-local:{PROVIDER_KEY}"),
        )?;
        ok("systemctl", &["restart", UNIT])?;
        let with = call()?;
        ensure!(
            with == "200",
            "it was answered {with}, and before that {without}"
        );
        Ok(())
    }

    fn agent(&mut self) -> Result<&mut Trier> {
        self.agent.as_mut().context("nobody is governed")
    }

    fn reload(&mut self) -> Result<()> {
        // A policy that cannot be read: the one before holds.
        write_policy("guarded", "version: 1\nfilez: {}\n")?;
        ok("systemctl", &["reload", UNIT])?;
        until("it is active again", || {
            Ok(property("ActiveState")? == "active")
        })?;
        self.agent()?.count()?;
        let held = self.agent()?.count()?;
        ensure!(held.is_held(), "under a broken policy: {held:?}");
        // One that permits it.
        write_policy("guarded", &GUARDED.replace(SECRET, "/nowhere"))?;
        ok("systemctl", &["reload", UNIT])?;
        until("it is permitted", || Ok(self.agent()?.count()?.is_free()))?;
        write_policy("guarded", GUARDED)?;
        ok("systemctl", &["reload", UNIT])?;
        until("it is refused", || Ok(self.agent()?.count()?.is_held()))?;
        let journal = said("journalctl", &["-u", UNIT, "--no-pager", "-o", "cat"])?.0;
        ensure!(
            journal.matches("policies were read again").count() >= 3,
            "three signals were not three readings"
        );
        Ok(())
    }

    /// What is true of the agent through everything that becomes of the daemon.
    fn still_held(&mut self) -> Result<()> {
        let held = self.agent()?.count()?;
        ensure!(held.is_held(), "through it: {held:?}");
        let mark = self.trail.mark()?;
        self.denied(mark, "unit")?;
        let session = since_the_boot("unit")?;
        ensure!(
            session == self.session,
            "it was {}, and is {session}",
            self.session
        );
        Ok(())
    }

    fn restarts(&mut self) -> Result<()> {
        self.agent()?.count()?;
        for _ in 0..3 {
            ok("systemctl", &["restart", UNIT])?;
        }
        self.still_held()
    }

    /// Exactly once, through restarts in good order.
    fn journal(&mut self) -> Result<()> {
        // Nothing is added while both are read.
        ok("systemctl", &["freeze", &self.agent()?.unit()])?;
        let in_log = || -> Result<Vec<u64>> {
            let mut all = Vec::new();
            Trail::at(AUDIT).whole(|record| {
                if record["verdict"] == "deny" {
                    all.extend(record["seq"].as_u64());
                }
                Ok(())
            })?;
            Ok(all)
        };
        let in_journal = || -> Result<Vec<u64>> {
            let words = ["--no-pager", "-o", "cat", "--output-fields=AGENTGUARD_SEQ"];
            let wanted = ["SYSLOG_IDENTIFIER=agentguard", "AGENTGUARD_VERDICT=deny"];
            let text = ok("journalctl", &[&words[..], &wanted].concat())?;
            Ok(text
                .lines()
                .filter_map(|line| line.trim().parse().ok())
                .collect())
        };
        let patience = Instant::now();
        let (log, journal) = loop {
            let (log, journal) = (in_log()?, in_journal()?);
            if journal.len() >= log.len() || patience.elapsed() > Duration::from_mins(1) {
                break (log, journal);
            }
        };
        ok("systemctl", &["thaw", &self.agent()?.unit()])?;
        let set = |all: &[u64]| all.iter().copied().collect::<BTreeSet<u64>>();
        ensure!(
            !log.is_empty() && set(&log) == set(&journal) && journal.len() == log.len(),
            "the log has {} denials, the journal {} entries of {}",
            log.len(),
            journal.len(),
            set(&journal).len()
        );
        println!("ok    | {} denials", log.len());
        Ok(())
    }

    fn killed(&mut self) -> Result<()> {
        self.agent()?.count()?;
        let before = property("MainPID")?;
        ok(
            "systemctl",
            &["kill", "--kill-whom=main", "-s", "KILL", UNIT],
        )?;
        until("another runs", || {
            Ok(property("ActiveState")? == "active" && property("MainPID")? != before)
        })?;
        ensure!(property("NRestarts")? == "1", "systemd did not start it");
        self.still_held()
    }

    /// To a package of a higher version, whose programs replace those that are loaded. Where guests are emulated that
    /// takes longer than the unit is given at first.
    fn upgrade(&mut self) -> Result<()> {
        system::drop_in(
            "other-build",
            "Environment=AGENTGUARD_FORCE_UPGRADE=1\nTimeoutStartSec=30",
        )?;
        let before = property("MainPID")?;
        self.agent()?.count()?;
        ok("dpkg", &["-i", &packaged(1)?])?;
        system::drop_in("other-build", "")?;
        ensure!(property("MainPID")? != before, "it was not started again");
        ensure!(
            system::version()?.ends_with("+1"),
            "the package is {}",
            system::version()?
        );
        let kept = fs::read_to_string(system::CONFIG)?;
        ensure!(
            kept.contains("journald"),
            "the configuration was replaced: {kept}"
        );
        self.still_held()?;
        agentguard_ok(&["doctor"]).map(drop)
    }

    fn removed(&mut self) -> Result<()> {
        self.agent()?.count()?;
        let (_, complaint, removed) = said("dpkg", &["-r", "agentguard"])?;
        ensure!(
            removed && complaint.contains("still in force"),
            "it does not say what stays: {complaint}"
        );
        ensure!(
            !said("systemctl", &["is-active", UNIT])?.2,
            "the daemon runs"
        );
        ensure!(programs_are_pinned(), "enforcement ended");
        let held = self.agent()?.count()?;
        ensure!(held.is_held(), "without a package: {held:?}");
        // Who comes back takes over.
        ok("dpkg", &["-i", &packaged(1)?])?;
        ok("systemctl", &["is-active", UNIT])?;
        self.still_held()
    }

    fn purged(&mut self) -> Result<()> {
        ok("systemctl", &["stop", UNIT])?;
        let refused = agentguard(&["uninstall"])?;
        ensure!(!refused.status.success(), "it did not ask");
        let held = self.agent()?.count()?;
        ensure!(held.is_held(), "nobody said yes: {held:?}");
        agentguard_ok(&["uninstall", "--yes"])?;
        self.agent()?.count()?;
        let free = self.agent()?.count()?;
        ensure!(free.is_free(), "it goes on: {free:?}");
        ensure!(!programs_are_pinned(), "something is pinned");
        ok("dpkg", &["-P", "agentguard"])?;
        for (path, there) in [
            ("/etc/agentguard/agentguard.yaml", false),
            ("/usr/bin/agentguard", false),
            ("/usr/lib/systemd/system/agentguard.service", false),
            (AUDIT, true),
            (OPEN, true),
        ] {
            ensure!(Path::new(path).exists() == there, "{path}: {}", !there);
        }
        let state = said("systemctl", &["is-enabled", UNIT])?;
        ensure!(
            !state.2 && state.0 != "masked",
            "a unit is left: {}",
            state.0
        );
        Ok(())
    }
}
