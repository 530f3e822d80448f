//! Boots a guest: a kernel, an initial root made of concatenated archives, one job, one status.
//! It tells a guest that died (no status came back) from a job that failed, and repeats only the
//! former; a failed job is never repeated.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::archive::Tree;
use crate::command::{find, shell_quoted};
use crate::kernels::Kernel;
use crate::place::Scratch;
use crate::qemu;

/// The guest's first process, and what it becomes in a guest of systemd.
const INIT: &str = include_str!("../../vm-tests/guest/init");
const INIT_SYSTEMD: &str = include_str!("../../vm-tests/guest/init-systemd");
/// What runs the job and reports.
const WORK: &str = include_str!("../../vm-tests/guest/work");
/// The unit that does so in a guest of systemd.
const UNIT: &str = include_str!("../../vm-tests/guest/guest-job.service");
/// How often a guest that died is started again.
const ATTEMPTS: u32 = 3;

/// What to boot and what to do there.
pub struct Guest {
    /// The kernel.
    pub kernel: Kernel,
    /// An archive with a userland that comes before everything else; without it busybox is all there is.
    pub userland: Option<PathBuf>,
    /// The userland's systemd is the first process, and runs the job as a unit.
    pub systemd: bool,
    /// Files of this run.
    pub overlay: Tree,
    /// Shell text that is run; its status is the job's.
    pub job: String,
    /// Files to bring back.
    pub wanted: Vec<String>,
    /// Give the job this terminal.
    pub interactive: bool,
    /// Guest time counts instructions, on one CPU.
    pub icount: bool,
    /// Number of CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory: u32,
    /// A raw image that is the guest's disk (`/dev/nvme0n1`), and outlives it.
    pub disk: Option<PathBuf>,
    /// Where the emulator offers its stub for debuggers.
    pub debugger: Option<PathBuf>,
    /// Host time after which the guest is stopped.
    pub timeout: Duration,
    /// What is shown of the job's output while it runs.
    pub show: Show,
    /// Before each line of [`Show::Remarkable`], where several guests run at the same time.
    pub prefix: String,
}

/// What is shown of a job's output while it runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// All of it, as it comes.
    Everything,
    /// Lines that do not begin with `ok`.
    Remarkable,
    /// None of it.
    Nothing,
}

/// What came back.
pub struct Outcome {
    /// Exit status of the job.
    pub status: i32,
    /// Its output (empty for an interactive guest).
    pub output: String,
    /// Files brought back, by their path in the guest.
    pub files: Vec<(String, Vec<u8>)>,
    /// How many guests died before this one.
    pub repeats: u32,
}

/// What became of one boot.
pub enum Attempt {
    /// A status came back.
    Done(Outcome),
    /// None did; the end of the kernel log.
    Died(String),
}

impl Guest {
    /// A guest with the defaults of `cargo xtask vm`.
    pub fn new(kernel: Kernel, job: String) -> Self {
        let host = thread::available_parallelism().map_or(1, |count| count.get() as u32);
        Self {
            kernel,
            userland: None,
            systemd: false,
            overlay: Tree::default(),
            job,
            wanted: Vec::new(),
            interactive: false,
            icount: false,
            cpus: host.clamp(1, 4),
            memory: 2048,
            disk: None,
            debugger: None,
            timeout: Duration::from_mins(40),
            show: Show::Everything,
            prefix: String::new(),
        }
    }

    /// Boots it, again if it dies, and returns what the job said.
    pub fn run(&mut self) -> Result<Outcome> {
        let accelerator = if self.icount {
            "tcg,thread=single"
        } else {
            qemu::accelerator()?
        };
        let scratch = Scratch::new("guest")?;
        self.pack(&scratch.path().join("initrd"))?;
        for repeats in 0..ATTEMPTS {
            match self.attempt(scratch.path(), accelerator)? {
                Attempt::Done(mut outcome) => {
                    outcome.repeats = repeats;
                    return Ok(outcome);
                }
                Attempt::Died(log) => eprintln!(
                    "xtask: guest {} died (attempt {} of {ATTEMPTS}); the end of its log:\n{log}",
                    self.kernel.name,
                    repeats + 1
                ),
            }
        }
        bail!(
            "the guest with kernel {} died {ATTEMPTS} times",
            self.kernel.name
        )
    }

    /// Writes the initial root.
    pub fn pack(&mut self, initrd: &Path) -> Result<()> {
        let busybox = find("busybox").context("busybox is missing: run `cargo xtask setup`")?;
        let tree = &mut self.overlay;
        tree.file(
            "init",
            0o755,
            if self.systemd { INIT_SYSTEMD } else { INIT },
        );
        tree.file("guest/work", 0o755, WORK);
        if self.systemd {
            let units = "etc/systemd/system";
            tree.file(&format!("{units}/guest-job.service"), 0o644, UNIT);
            tree.symlink(
                &format!("{units}/multi-user.target.wants/guest-job.service"),
                "../guest-job.service",
            );
        }
        tree.copy(&fs::canonicalize(&busybox)?, "guest/busybox")?;
        tree.file("guest/job", 0o755, self.job.as_str());
        for module in &self.kernel.modules {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            tree.copy(module, &format!("guest/modules/{name}"))?;
        }
        if !self.wanted.is_empty() {
            tree.file("guest/return", 0o644, self.wanted.join("\n") + "\n");
        }
        if self.interactive {
            tree.file("guest/interactive", 0o644, "");
        }
        let mut out = io::BufWriter::new(
            File::create(initrd)
                .with_context(|| format!("failed to create {}", initrd.display()))?,
        );
        if let Some(userland) = &self.userland {
            let mut source = File::open(userland)
                .with_context(|| format!("failed to open {}", userland.display()))?;
            io::copy(&mut source, &mut out).context("failed to copy the userland")?;
        }
        tree.write_cpio(&mut out)
            .context("failed to write the initial root")
    }

    /// The emulator's command for what was packed into a folder.
    pub fn command(&self, scratch: &Path, accelerator: &str) -> Result<Command> {
        let (log, report) = (scratch.join("kernel.log"), scratch.join("report"));
        let mut command = qemu::command(accelerator)?;
        command
            .args([
                "-m",
                &self.memory.to_string(),
                "-smp",
                &if self.icount { 1 } else { self.cpus }.to_string(),
            ])
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(scratch.join("initrd"))
            .args([
                "-append",
                "console=ttyS0 loglevel=4 quiet panic=-1 oops=panic random.trust_cpu=on",
            ])
            .args([
                "-chardev",
                &format!("file,id=log,path={}", log.display()),
                "-serial",
                "chardev:log",
            ])
            .args([
                "-chardev",
                if self.interactive {
                    "stdio,id=job,signal=off"
                } else {
                    "stdio,id=job"
                },
                "-serial",
                "chardev:job",
            ])
            .args([
                "-chardev",
                &format!("file,id=report,path={}", report.display()),
                "-serial",
                "chardev:report",
            ]);
        if self.icount {
            command.args(["-icount", "shift=0,sleep=off"]);
        }
        if let Some(socket) = &self.debugger {
            let path = value(socket);
            command
                .args([
                    "-chardev",
                    &format!("socket,id=gdb,path={path},server=on,wait=off"),
                ])
                .args(["-gdb", "chardev:gdb"]);
        }
        if let Some(disk) = &self.disk {
            let file = value(disk);
            command
                .args(["-drive", &format!("file={file},format=raw,if=none,id=disk")])
                .args(["-device", "nvme,drive=disk,serial=agentguard"]);
        }
        Ok(command)
    }

    /// Boots once.
    pub fn attempt(&self, scratch: &Path, accelerator: &str) -> Result<Attempt> {
        let (log, report) = (scratch.join("kernel.log"), scratch.join("report"));
        let mut command = self.command(scratch, accelerator)?;
        if !self.interactive {
            command.stdin(Stdio::null()).stdout(Stdio::piped());
        }
        let mut child = command
            .spawn()
            .context("failed to start qemu-system-x86_64")?;
        let output = collect(&mut child, self.show, self.prefix.clone().into_bytes());
        let in_time = wait(&mut child, (!self.interactive).then_some(self.timeout))?;
        let output = output.map(|(thread, text)| {
            // The reader ends with the pipe; it cannot fail.
            let _ = thread.join();
            text.lock()
                .map(|text| String::from_utf8_lossy(&text).into_owned())
                .unwrap_or_default()
        });
        let output = output.unwrap_or_default();
        let (status, files) = parse_report(&fs::read(&report).unwrap_or_default());
        if let Some(status) = status {
            return Ok(Attempt::Done(Outcome {
                status,
                output,
                files,
                repeats: 0,
            }));
        }
        let log = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        let fatal = ["Kernel panic", "Oops", "BUG:", "general protection fault"]
            .iter()
            .any(|word| log.contains(word));
        if !in_time && !fatal {
            bail!(
                "the job in the guest with kernel {} did not end within {} s\n{tail}",
                self.kernel.name,
                self.timeout.as_secs()
            );
        }
        Ok(Attempt::Died(tail))
    }
}

/// A path as a value of the emulator's options: commas separate these, and are written twice in values.
fn value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

type Collected = (thread::JoinHandle<()>, Arc<Mutex<Vec<u8>>>);

fn collect(child: &mut Child, show: Show, prefix: Vec<u8>) -> Option<Collected> {
    let mut pipe = child.stdout.take()?;
    let text = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&text);
    let thread = thread::spawn(move || {
        let mut buffer = [0; 4096];
        let mut line = Vec::new();
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            match show {
                Show::Everything => print(&buffer[..count]),
                Show::Nothing => {}
                Show::Remarkable => {
                    line.extend_from_slice(&buffer[..count]);
                    while let Some(end) = line.iter().position(|&byte| byte == b'\n') {
                        let rest = line.split_off(end + 1);
                        let whole = std::mem::replace(&mut line, rest);
                        if !whole.starts_with(b"ok ") {
                            print(&[prefix.as_slice(), &whole].concat());
                        }
                    }
                }
            }
            if let Ok(mut text) = sink.lock() {
                text.extend_from_slice(&buffer[..count]);
            }
        }
        print(&line);
    });
    Some((thread, text))
}

fn print(text: &[u8]) {
    // A closed standard output does not end the guest.
    let _ = io::stdout()
        .write_all(text)
        .and_then(|()| io::stdout().flush());
}

/// Waits for the guest's end; false if it had to be stopped.
fn wait(child: &mut Child, timeout: Option<Duration>) -> Result<bool> {
    let started = Instant::now();
    loop {
        if child
            .try_wait()
            .context("failed to wait for qemu-system-x86_64")?
            .is_some()
        {
            return Ok(true);
        }
        if timeout.is_some_and(|timeout| started.elapsed() > timeout) {
            child.kill().context("failed to stop qemu-system-x86_64")?;
            child
                .wait()
                .context("failed to wait for qemu-system-x86_64")?;
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Reads `FILE size path` with that many bytes after it, and `STATUS number`.
fn parse_report(mut bytes: &[u8]) -> (Option<i32>, Vec<(String, Vec<u8>)>) {
    let (mut status, mut files) = (None, Vec::new());
    while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
        let line = String::from_utf8_lossy(&bytes[..end]).into_owned();
        bytes = &bytes[end + 1..];
        if let Some(number) = line.strip_prefix("STATUS ") {
            status = number.trim().parse().ok();
        } else if let Some((size, path)) = line
            .strip_prefix("FILE ")
            .and_then(|rest| rest.split_once(' '))
        {
            let size = size.parse::<usize>().unwrap_or(0).min(bytes.len());
            files.push((path.to_owned(), bytes[..size].to_vec()));
            bytes = &bytes[size..];
        }
    }
    (status, files)
}

/// The job that runs one command line.
pub fn job(words: &[String]) -> String {
    format!(
        "exec {}\n",
        words.iter().map(shell_quoted).collect::<Vec<_>>().join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_gives_status_and_files() {
        let (status, files) = parse_report(b"FILE 3 /a b\nx\ny\nSTATUS 7\n");
        assert_eq!(status, Some(7));
        assert_eq!(files, [("/a b".to_owned(), b"x\ny".to_vec())]);
    }

    #[test]
    fn a_report_cut_short_has_no_status() {
        assert_eq!(parse_report(b"FILE 30 /a\nxy").0, None);
        assert_eq!(parse_report(b"STATUS 0").0, None);
    }
}
