//! Ordinary work goes on: what people let an agent do on any day, under the shipped `coding-agent` policy,
//! by the programs that they use for it. Each job runs to its end and is checked by what it made; then the
//! log is read. A denial that is not on the job's list is a failure, and so is one on the list that does not come.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::act::USER;
use crate::clients;
use crate::guard::{self, Daemon};
use crate::run::Tally;
use crate::trail::{Trail, Wanted};

const HOME: &str = "/home/agent";
const ROOTS_HOME: &str = "/root";
const POLICY: &str = "coding-agent";

/// One job.
struct Job {
    name: &'static str,
    /// What the agent's shell runs in a folder of its own, with `set -eu`.
    script: &'static str,
    /// Whether it is root's agent, and not the user's.
    root: bool,
    /// Shell lines that an ungoverned process of the same user runs there afterwards; each must succeed.
    proofs: &'static [&'static str],
    /// Programs of which the log must say that they ran: else there is no log of this job.
    ran: &'static [&'static str],
    /// The denials that there must be.
    asked: &'static [Asked],
    /// Why it does not run.
    skip: Option<&'static str>,
}

/// A denial that the policy asks for.
struct Asked {
    /// Its rule, or its cause where no rule is named.
    by: &'static str,
    /// `~` is the home of the agent's owner.
    target: &'static str,
    why: &'static str,
}

impl Asked {
    fn target(&self, home: &str) -> String {
        let own = self.target.strip_prefix('~');
        own.map_or_else(|| self.target.to_owned(), |rest| format!("{home}{rest}"))
    }
}

/// Denials that the policy asks for, and that may come in any job.
const TOLERATED: &[Asked] = &[Asked {
    by: "unix-socket",
    target: "unix:/var/run/nscd/socket",
    why: "the C library asks a cache of user names, if there is one, and then reads /etc/passwd itself",
}];

/// What must be refused to code that tries it.
const FORBIDDEN: &[Asked] = &[
    Asked {
        by: "ssh-keys",
        target: "~/.ssh/id_rsa",
        why: "a key",
    },
    Asked {
        by: "run-later",
        target: "~/.bashrc",
        why: "a shell reads it later",
    },
    Asked {
        by: "other-identity",
        target: "/usr/bin/sudo",
        why: "another identity",
    },
];

/// What code that `NODE_OPTIONS` carries has written down: it ran in both programs, and could do nothing in either.
const CARRIED: &[&str] = &[
    "test \"$(grep -c '^carried$' said.txt)\" = 2",
    "test \"$(grep -c '^read: EPERM$' said.txt)\" = 2",
    "test \"$(grep -c '^append: EPERM$' said.txt)\" = 2",
    "test \"$(grep -c '^start: EPERM$' said.txt)\" = 2",
    "test \"$(wc -l <said.txt)\" = 8 && ! test -s ~/.bashrc",
];

const JOBS: &[Job] = &[
    Job {
        name: "git",
        script: include_str!("../workshop/git.sh"),
        root: false,
        proofs: &[
            "git -C upstream.git log --format=%s main | grep -qx Third",
            "git -C copy log --format=%s | grep -qx Second",
            "test \"$(git -C upstream.git rev-parse main)\" = \"$(git -C copy rev-parse main)\"",
            "git -C upstream.git cat-file -e v1",
            "test -f tree/notes.txt && test -z \"$(git -C copy status --porcelain)\"",
        ],
        ran: &["/usr/bin/git"],
        asked: &[],
        skip: None,
    },
    Job {
        name: "gcc, make",
        script: include_str!("../workshop/c.sh"),
        root: false,
        proofs: &[
            "test \"$(cat said.txt)\" = \"$(printf 'compiled 42\\ncompiled 42')\"",
            "test \"$(./program)\" = 'compiled 42'",
            "grep -q part.o again.txt && ! grep -q plugin.c again.txt",
        ],
        ran: &["/usr/bin/make"],
        asked: &[],
        skip: None,
    },
    Job {
        name: "ssh-keygen",
        script: include_str!("../workshop/keys.sh"),
        root: false,
        proofs: &[
            "grep -q ED25519 fingerprint.txt",
            "test \"$(cut -d' ' -f1,2 again.pub)\" = \"$(cut -d' ' -f1,2 deploy-key.pub)\"",
            "ssh-keygen -Y verify -f signers -I me -n file -s message.txt.sig <message.txt",
            "ssh-keygen -y -P '' -f rsa-key",
        ],
        ran: &["/usr/bin/ssh-keygen"],
        asked: &[],
        skip: None,
    },
    Job {
        name: "python: venv, pip from a local index",
        script: include_str!("../workshop/python.sh"),
        root: false,
        proofs: &[
            "grep -qx 'greetings from the index' greeting.txt",
            "grep -q '^greet  *1.0' installed.txt",
            "grep -q 'GET /greet/greet-1.0-py3-none-any.whl' served.txt",
            "test -x .venv/bin/greet && test -s data.sqlite",
        ],
        ran: &["/usr/bin/python3.13"],
        asked: &[],
        skip: None,
    },
    Job {
        name: "cargo build",
        script: include_str!("../workshop/cargo.sh"),
        root: false,
        proofs: &[
            "grep -qx 'BUILT 42' said.txt",
            "test \"$(target/debug/program)\" = 'BUILT 42'",
            "test \"$(installed/bin/program)\" = 'BUILT 42'",
        ],
        ran: &["/usr/bin/cargo", "/usr/bin/rustc"],
        asked: &[],
        skip: None,
    },
    Job {
        name: "tmux",
        script: include_str!("../workshop/tmux.sh"),
        root: false,
        proofs: &[
            "grep -qx typed typed.txt",
            "grep -q 'screen of 42' screen.txt",
        ],
        ran: &["/usr/bin/tmux"],
        asked: &[],
        skip: None,
    },
    Job {
        name: "what is denied is in the log",
        script: include_str!("../workshop/control.sh"),
        root: false,
        proofs: &["test ! -e denied-nothing"],
        ran: &["/usr/bin/cat"],
        asked: FORBIDDEN,
        skip: None,
    },
    Job {
        name: "node, npm from a local registry",
        script: include_str!("../workshop/node.sh"),
        root: false,
        proofs: &[
            "grep -qx 'answered greetings from the registry from a tarball 8999994' said.txt",
            "grep -qx 'greetings from the registry' said.txt",
            "grep -q 'GET /greet-1.0.0.tgz' served.txt",
            "test \"$(cat app/node_modules/local/built)\" = yes",
            "test \"$(cat app/worker.txt)\" = ran",
        ],
        ran: &["/usr/bin/node"],
        asked: &[],
        skip: None,
    },
    Job {
        name: "what NODE_OPTIONS carries into node",
        script: include_str!("../workshop/carrier.sh"),
        root: false,
        proofs: CARRIED,
        ran: &["/usr/bin/node"],
        asked: FORBIDDEN,
        skip: None,
    },
    Job {
        name: "what NODE_OPTIONS carries into node, as root",
        script: include_str!("../workshop/carrier.sh"),
        root: true,
        proofs: CARRIED,
        ran: &["/usr/bin/node"],
        asked: FORBIDDEN,
        skip: None,
    },
];

/// Runs the jobs whose name contains `filter`.
pub fn run(filter: &str, tally: &mut Tally) -> Result<()> {
    home(HOME, USER)?;
    home(ROOTS_HOME, 0)?;
    compile()?;
    let _daemon = Daemon::start()?;
    let mut trail = Trail::at(guard::AUDIT);
    for (number, job) in JOBS.iter().enumerate() {
        let name = format!("ordinary work: {}", job.name);
        if !name.contains(filter) {
            continue;
        }
        if let Some(why) = job.skip {
            tally.skip(&name, why);
            continue;
        }
        let started = Instant::now();
        let result = job.run(number, &mut trail);
        tally.count(&name, result, started.elapsed());
    }
    clients::run(filter, &mut trail, tally);
    Ok(())
}

/// A home as it is before any of the tools has run: they make their own folders. But for `~/.cargo`: what its
/// owner runs is in there too, so `coding-agent` lets no agent make it.
fn home(home: &str, user: u32) -> Result<()> {
    for folder in ["", ".ssh", ".cargo"] {
        fs::create_dir_all(Path::new(home).join(folder))?;
    }
    let identity =
        "[user]\n\tname = Agent\n\temail = agent@example.org\n[init]\n\tdefaultBranch = main\n";
    for (name, text) in [
        (".gitconfig", identity),
        (".bashrc", ""),
        (".ssh/id_rsa", "PRIVATE KEY"),
    ] {
        fs::write(Path::new(home).join(name), text)?;
    }
    for name in ["", ".gitconfig", ".bashrc", ".ssh", ".ssh/id_rsa", ".cargo"] {
        owned(&Path::new(home).join(name), user)?;
    }
    Ok(())
}

/// What the packages' own scripts do when they are installed: without it each start of python would try to
/// write what it compiled beside its modules.
fn compile() -> Result<()> {
    let started = Instant::now();
    let status = Command::new("/usr/bin/python3")
        .args([
            "-m",
            "compileall",
            "-q",
            "-j",
            "0",
            "/usr/lib/python3.13",
            "/usr/lib/python3",
        ])
        .status()?;
    println!(
        "      python's modules were compiled in {:?} ({status})",
        started.elapsed()
    );
    Ok(())
}

fn owned(path: &Path, user: u32) -> Result<()> {
    chown(path, Some(user), Some(user))
        .with_context(|| format!("failed to give {}", path.display()))
}

impl Job {
    /// Whose agent it is, and where that is at home.
    fn owner(&self) -> (u32, &'static str) {
        if self.root {
            (0, ROOTS_HOME)
        } else {
            (USER, HOME)
        }
    }

    fn run(&self, number: usize, trail: &mut Trail) -> Result<()> {
        let agent = format!("work-{number}");
        let (user, home) = self.owner();
        let folder = PathBuf::from(home).join("work").join(&agent);
        fs::create_dir_all(&folder)?;
        owned(&folder, user)?;
        let script = folder.join("job.sh");
        fs::write(&script, self.script)?;
        fs::set_permissions(&script, Permissions::from_mode(0o755))?;
        let mark = trail.mark()?;
        let mut command = Command::new("agentguard");
        command
            .args(["run", "--policy", POLICY, "--name", &agent])
            .args(["--", "bash", "-eux", "job.sh"])
            .current_dir(&folder)
            .env("HOME", home)
            .env("PS4", "+ ${SECONDS} s: ")
            .stdin(Stdio::null());
        if !self.root {
            // As `sudo agentguard run` is used, by the user whom it becomes.
            command
                .env("SUDO_UID", user.to_string())
                .env("SUDO_GID", user.to_string())
                .env("SUDO_USER", "agent");
        }
        let output = command.output().context("failed to start agentguard run")?;
        let wrong = self.complaints(&agent, mark, trail)?.join("\n      ");
        if !output.status.success() {
            let said = tail(&output.stdout, &output.stderr);
            bail!("{}: {said}\n      {wrong}", output.status);
        }
        ensure!(wrong.is_empty(), "it ended well, but:\n      {wrong}");
        self.proofs
            .iter()
            .try_for_each(|proof| proved(proof, &folder, self.owner()))
    }

    /// What is wrong with the log; nothing when every denial is one that was asked for.
    fn complaints(&self, agent: &str, mark: usize, trail: &mut Trail) -> Result<Vec<String>> {
        trail.wait(
            mark,
            &Wanted {
                agent: Some(agent.into()),
                op: Some("agent-detach".into()),
                ..Wanted::default()
            },
        )?;
        let records = trail.since(mark)?;
        let mut wrong: Vec<String> = records.iter().filter_map(unwell).collect();
        let own: Vec<&Value> = records.iter().filter(|it| it["agent"] == agent).collect();
        println!("      {agent}: {} records", own.len());
        let mut unasked: BTreeMap<String, u32> = BTreeMap::new();
        let mut came = vec![false; self.asked.len()];
        let refused = |it: &&&Value| !matches!(it["verdict"].as_str(), None | Some("allow"));
        for record in own.iter().filter(refused) {
            let is = |asked: &Asked| {
                record["target"] == asked.target(self.owner().1)
                    && (record["rule"] == asked.by || record["cause"] == asked.by)
            };
            if let Some(at) = self.asked.iter().position(is) {
                came[at] = true;
            } else if !TOLERATED.iter().any(is) {
                let words = ["op", "access", "target", "exe", "rule", "cause"];
                let words = words.map(|key| record[key].as_str().unwrap_or("-"));
                *unasked.entry(words.join(" ")).or_default() += 1;
            }
        }
        wrong.extend(
            unasked.into_iter().map(|(what, times)| {
                format!("nobody asked for this denial, {times} times: {what}")
            }),
        );
        for (asked, _) in self.asked.iter().zip(&came).filter(|(_, came)| !**came) {
            wrong.push(format!(
                "no denial of {} by {} ({})",
                asked.target, asked.by, asked.why
            ));
        }
        for program in self.ran {
            if !own
                .iter()
                .any(|it| it["op"] == "exec" && it["target"] == *program)
            {
                wrong.push(format!("no record that {program} ran"));
            }
        }
        Ok(wrong)
    }
}

/// A record that says that others are missing or wrong. Losses of allowed actions are none: they are counted,
/// and there may be more than the ring holds.
fn unwell(record: &Value) -> Option<String> {
    let wrong = match record["op"].as_str() {
        Some("alarm" | "malformed") => true,
        Some("gap") => record["class"] != "allowed",
        _ => false,
    };
    if record["op"] == "gap" && !wrong {
        println!("      {record}");
    }
    wrong.then(|| record.to_string())
}

/// An ungoverned process of the same user looks at what the job made.
fn proved(proof: &str, folder: &Path, (user, home): (u32, &str)) -> Result<()> {
    let output = Command::new("/usr/bin/bash")
        .args(["-c", proof])
        .current_dir(folder)
        .env("HOME", home)
        .uid(user)
        .gid(user)
        .stdin(Stdio::null())
        .output()?;
    ensure!(
        output.status.success(),
        "it ended well, but this is not so: {proof} {}",
        tail(&output.stdout, &output.stderr)
    );
    Ok(())
}

fn tail(output: &[u8], errors: &[u8]) -> String {
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(output),
        String::from_utf8_lossy(errors)
    );
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n      ")
}
