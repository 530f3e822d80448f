//! A file system that never answers: whoever asks it waits, and nobody else may. The daemon's search for what is
//! protected must not be among those that wait.

use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::fixture;
use crate::guard::{Agent, Inside, agentguard_ok, write_policy};
use crate::reader::Reader;
use crate::scenario::{FREE, SECRET};
use crate::trail::{Trail, Wanted};

const NAME: &str = "hung";
const PLACE: &str = "/srv/hung";
/// After that the file system goes, and with it whatever waits for it.
const PATIENCE: Duration = Duration::from_mins(2);

/// Mounts, says so, and keeps silent for ever.
const SERVER: &str = r#"
import ctypes, os, sys, time
device = os.open("/dev/fuse", os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
options = ("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other" % device).encode()
if libc.mount(b"hung", sys.argv[1].encode(), b"fuse", 0, options):
    sys.exit("mount: errno %d" % ctypes.get_errno())
print("ready", flush=True)
time.sleep(3600)
"#;

/// What an agent may do, with rules about files that nobody can look at.
fn policy(id: &str) -> String {
    format!(
        "version: 1\nfiles:\n  read:\n    default: allow\n    deny:\n      \
         - {{id: {id}, path: \"/t/secret/**\"}}\n      - \"{PLACE}/key\"\n      - \"{PLACE}/deep/**\"\n  \
         write: {{default: allow}}\nexec: {{default: allow}}\nnetwork: {{default: deny}}\n"
    )
}

/// A process that has mounted something; the file system goes with it.
struct Server(Child);

impl Server {
    fn start() -> Result<Self> {
        std::fs::create_dir_all(PLACE)?;
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", SERVER, PLACE])
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("no output")?;
        let server = Self(child);
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)?;
        ensure!(line == "ready\n", "nothing was mounted");
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = Command::new("/guest/busybox")
            .args(["umount", "-l", PLACE])
            .status();
    }
}

/// The scenario.
pub fn never_answers(trail: &mut Trail) -> Result<()> {
    fixture::make(&[])?;
    let server = Server::start()?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(server.0.id())?);
    let (done, waits) = mpsc::channel::<()>();
    // Whatever waits for it would wait for ever: that is a failure, and not a run without end.
    let guard = thread::spawn(move || {
        let late = waits.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout);
        if late {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        late
    });
    let result = judged(trail);
    drop(done);
    let late = guard.join().unwrap_or(true);
    drop(server);
    ensure!(
        !late,
        "something waited for the file system that does not answer: {result:?}"
    );
    result
}

fn judged(trail: &mut Trail) -> Result<()> {
    write_policy(NAME, &policy("no-secret"))?;
    let agent = Agent::attach(NAME, NAME)?;
    // It waits until it is killed.
    let _stuck = Inside::script(&agent, &format!("exec /usr/bin/cat {PLACE}/file"))?;
    let mut reader = Reader::attend(Some(&agent.group))?;
    for id in ["no-secret", "still-no-secret"] {
        let mark = trail.mark()?;
        if id != "no-secret" {
            write_policy(NAME, &policy(id))?;
            let installed = Wanted {
                agent: Some(NAME.into()),
                op: Some("policy-install".into()),
                ..Wanted::default()
            };
            trail.wait(mark, &installed)?;
        }
        ensure!(reader.read(FREE)? == "0", "a free file was refused");
        ensure!(reader.read(SECRET)? == "1", "the secret was read");
        let denied = Wanted {
            agent: Some(NAME.into()),
            op: Some("open".into()),
            target: Some(SECRET.into()),
            rule: Some(id.into()),
            ..Wanted::default()
        };
        trail.wait(mark, &denied)?;
        ensure!(
            agentguard_ok(&["ps", "--json"])?.contains(NAME),
            "the agent is not listed"
        );
    }
    Ok(())
}
