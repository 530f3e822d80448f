//! One guest for each kernel, in which everything is measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bench_report::figures::{FORMAT, Figures, Table};

use super::circumstances;
use crate::command::{find, quiet, shell_quoted};
use crate::guest::{Guest, Show};
use crate::kernels::Kernel;
use crate::place::Scratch;
use crate::{product, userland};

/// Where the guest leaves what it measured.
const RESULT: &str = "/tmp/bench.json";
/// The same for single steps.
const STEPS: &str = "/tmp/steps.json";
/// Where it leaves the names of the kernel's security modules.
const MODULES: &str = "/tmp/modules";
/// What the daemon says, in a guest.
const LOG: &str = "/var/log/agentguard-daemon.txt";
/// After which a guest is taken to stand still.
const PATIENCE: Duration = Duration::from_hours(2);
/// Memory in MiB: the log of all that is recorded is in it.
const MEMORY: u32 = userland::WORKSHOP_MEMORY + 1024;

const METHOD: &[&str] = &[
    "Guest time counts instructions: with one CPU and `-icount shift=0`, each executed instruction is one nanosecond of guest time. Wall time has no say, and what else the machine does has none either. A copy of n bytes by `rep movsb` counts as n instructions.",
    "The measured process has a real-time priority, so its figure is what the call itself takes, with the interrupts in between. Between rounds it sleeps, and whoever records catches up.",
    "Addresses are not randomised in the measured process, because where things lie decides how many page tables a new process needs.",
    "All rows of a kernel are from one guest, in this order; what is loaded for one is removed before the next. One pass before the first row is thrown away.",
    "Steps are the code of the hooks, run in bulk by `BPF_PROG_TEST_RUN` before the daemon is started; of the record that is all but the name, which lies in the ring's space already.",
    "Ordinary work is the processor's time in its own processes (`getrusage`), without what it waits for; with the daemon's own work, that of the daemon besides, until half a second after the end.",
    "AgentGuard is the daemon as users run it, with its log on; rows that are governed are measured in a cgroup that was attached to it. Peers that permit (AppArmor, Landlock) record nothing of what they permit. Supervisors behind fanotify and seccomp look at nothing, and permit: the least that one can do.",
];

/// What all runs share.
pub struct Bench {
    binaries: PathBuf,
    /// What runs single steps of the programs.
    steps: PathBuf,
    /// Compiled profiles of the peers.
    peers: Scratch,
    policy: String,
}

impl Bench {
    /// Builds what is measured, and the profiles of the peers.
    pub fn prepare() -> Result<Self> {
        let binaries = product::build()?;
        let steps = product::bench("agentguard-daemon", "native")?;
        let program = binaries.join("vm-tests");
        let peers = Scratch::new("bench")?;
        quiet(
            Command::new(&program)
                .args(["bench", "profiles"])
                .arg(peers.path()),
        )?;
        compile_profiles(peers.path())?;
        let policy = quiet(Command::new(&program).args(["bench", "policy"]))?;
        Ok(Self {
            binaries,
            steps,
            peers,
            policy,
        })
    }

    /// Boots the kernel and measures.
    pub fn run(&self, kernel: Kernel, only: &[String]) -> Result<Figures> {
        let command = format!("cargo xtask bench --kernel {}", kernel.name);
        let (name, release) = (kernel.name.clone(), kernel.release.clone());
        let words: Vec<String> = only
            .iter()
            .map(|part| format!(" --only {}", shell_quoted(part)))
            .collect();
        let job = format!(
            "cat /sys/kernel/security/lsm >{MODULES}\n/guest/native steps >{STEPS} || exit\nexec /guest/vm-tests bench run --out {RESULT}{}\n",
            words.concat()
        );
        let mut guest = Guest::new(kernel, job);
        guest.icount = true;
        guest.memory = MEMORY;
        guest.timeout = PATIENCE;
        guest.show = Show::Everything;
        guest.wanted = vec![RESULT.into(), STEPS.into(), MODULES.into(), LOG.into()];
        guest.userland = Some(userland::WORKSHOP.get()?);
        product::put(&mut guest, &self.binaries)?;
        guest.overlay.copy(&self.steps, "guest/native")?;
        guest.overlay.copy(self.peers.path(), "guest/bench")?;
        let outcome = guest.run()?;
        let text = |wanted: &str| {
            let found = outcome.files.iter().find(|(path, _)| path == wanted);
            found.map(|(_, data)| String::from_utf8_lossy(data).trim().to_owned())
        };
        if outcome.status != 0 {
            bail!(
                "measuring on kernel {name} failed ({})\n{}",
                outcome.status,
                text(LOG).unwrap_or_default()
            );
        }
        let result = text(RESULT).context("the guest brought no figures back")?;
        let mut tables: Vec<Table> =
            serde_json::from_str(&result).context("the guest's figures cannot be read")?;
        let steps = text(STEPS).context("the guest brought no figures of steps back")?;
        tables.push(serde_json::from_str(&steps).context("the guest's steps cannot be read")?);
        let mut about = circumstances::here(command);
        about.kernel = name;
        about.release = release;
        about.modules = text(MODULES).unwrap_or_default();
        about.emulator = circumstances::emulator();
        about.method = METHOD.iter().map(|&sentence| sentence.to_owned()).collect();
        about.policy.clone_from(&self.policy);
        Ok(Figures {
            format: FORMAT,
            circumstances: about,
            tables,
        })
    }
}

/// Compiles each `NAME.profile` to NAME; where that cannot be, `NAME.absent` says why.
fn compile_profiles(folder: &Path) -> Result<()> {
    let parser = find("apparmor_parser");
    for entry in fs::read_dir(folder)? {
        let source = entry?.path();
        if source
            .extension()
            .is_none_or(|extension| extension != "profile")
        {
            continue;
        }
        let compiled = source.with_extension("");
        let Some(parser) = &parser else {
            let why = "the machine that ran it has no apparmor_parser (Debian: package apparmor)";
            fs::write(source.with_extension("absent"), why)?;
            continue;
        };
        let output = Command::new(parser)
            .args(["-S", "-K", "-T", "-Q", "-M", "/etc/apparmor.d/abi/3.0"])
            .arg(&source)
            .output()
            .context("failed to start apparmor_parser")?;
        if output.status.success() {
            fs::write(compiled, output.stdout)?;
        } else {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            fs::write(
                source.with_extension("absent"),
                format!("apparmor_parser: {why}"),
            )?;
        }
    }
    Ok(())
}
