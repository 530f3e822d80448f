//! The hosts to which clients go: HTTPS, QUIC and SSH at two addresses of the guest, with certificates of its own
//! authority, which every client is told to trust; and a watch on what is asked about the name that is not permitted.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::{FORBIDDEN, WORKSPACE};
use crate::names::server::{SHIPPED, Server};

const FOLDER: &str = "/srv/hosts";
/// The addresses of the permitted hosts and of the other one.
const ADDRESSES: &[&str] = &["93.184.216.7", "93.184.216.66"];
/// How long what is started here may take; guests are emulated and busy.
const PATIENCE: Duration = Duration::from_mins(2);

/// One answer about the forbidden name, as it went over the wire.
#[derive(Debug)]
pub struct Answer {
    /// The response code.
    pub code: u8,
    /// Whether it told the client to come by TCP.
    pub cut: bool,
    /// Between the packet that asked and this one.
    pub millis: f64,
}

/// They run until dropped.
pub struct Hosts {
    services: Vec<Child>,
    _names: Server,
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for service in &mut self.services {
            // It may have ended by itself.
            let _ = service.kill();
            let _ = service.wait();
        }
    }
}

impl Hosts {
    /// Makes and starts them, and points this guest's resolver at their names.
    pub fn start() -> Result<Self> {
        let names = Server::start()?;
        fs::write("/etc/resolv.conf", "nameserver 93.184.216.53\n")
            .context("failed to write /etc/resolv.conf")?;
        fs::write(
            "/etc/nsswitch.conf",
            "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
        )
        .context("failed to write /etc/nsswitch.conf")?;
        prepare()?;
        let mut hosts = Self {
            services: Vec::new(),
            _names: names,
        };
        hosts.serve(
            "hosts",
            "/usr/bin/python3",
            &[&["hosts.py"], ADDRESSES].concat(),
        )?;
        hosts.serve("watch", "/usr/bin/python3", &["watch.py", FORBIDDEN])?;
        let configuration = format!("{FOLDER}/sshd.conf");
        hosts.serve(
            "sshd",
            "/usr/sbin/sshd",
            &["-D", "-e", "-f", &configuration],
        )?;
        hosts.until("HTTPS and QUIC", || {
            Path::new(FOLDER).join("ready").exists()
        })?;
        hosts.until("the watch", || said("watch").contains("watching"))?;
        hosts.until("SSH", || {
            ADDRESSES
                .iter()
                .all(|address| std::net::TcpStream::connect((*address, 22)).is_ok())
        })?;
        Ok(hosts)
    }

    fn serve(&mut self, name: &str, program: &str, words: &[&str]) -> Result<()> {
        let log = File::create(Path::new(FOLDER).join(name).with_extension("log"))?;
        let service = Command::new(program)
            .args(words)
            .current_dir(FOLDER)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("failed to start {program}"))?;
        self.services.push(service);
        Ok(())
    }

    fn until(&mut self, what: &str, ready: impl Fn() -> bool) -> Result<()> {
        let started = Instant::now();
        while !ready() {
            for service in &mut self.services {
                if let Some(status) = service.try_wait()? {
                    bail!(
                        "a service ended ({status}): {} {} {}",
                        said("hosts"),
                        said("watch"),
                        said("sshd")
                    );
                }
            }
            ensure!(started.elapsed() < PATIENCE, "{what} did not start");
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// What was answered so far about the forbidden name.
    pub fn answers() -> Vec<Answer> {
        let read = |line: &str| {
            let mut words = line.split(' ');
            Some(Answer {
                code: words.next()?.parse().ok()?,
                cut: words.next()? == "TC",
                millis: words.next()?.parse().ok()?,
            })
        };
        said("watch").lines().filter_map(read).collect()
    }
}

fn said(service: &str) -> String {
    let path = Path::new(FOLDER).join(service).with_extension("log");
    fs::read_to_string(path).unwrap_or_default()
}

/// Everything that they are made of.
fn prepare() -> Result<()> {
    for folder in [FOLDER, WORKSPACE] {
        fs::create_dir_all(folder).with_context(|| format!("failed to make {folder}"))?;
    }
    for (name, text) in [
        ("hosts.sh", include_str!("../../workshop/hosts.sh")),
        ("hosts.py", include_str!("../../workshop/hosts.py")),
        ("watch.py", include_str!("../../workshop/watch.py")),
        ("quic.py", include_str!("../../workshop/quic.py")),
        ("musl.c", include_str!("../../workshop/musl.c")),
    ] {
        fs::write(Path::new(FOLDER).join(name), text)?;
    }
    fs::set_permissions(FOLDER, fs::Permissions::from_mode(0o755))?;
    let output = Command::new("/usr/bin/bash")
        .args(["-eu", "hosts.sh"])
        .args(SHIPPED)
        .arg(FORBIDDEN)
        .current_dir(FOLDER)
        .env("HOME", "/root")
        .stdin(Stdio::null())
        .output()
        .context("failed to start a shell")?;
    ensure!(
        output.status.success(),
        "the hosts could not be made: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
