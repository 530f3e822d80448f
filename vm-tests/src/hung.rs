//! What makes others wait: a file system that never answers, a pipe that nobody writes to, a file that somebody
//! holds a lease on. Whoever asks waits, and nobody else may. The daemon's search for what is protected must not be
//! among those that wait.

use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::dialogue::Dialogue;
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

/// Takes a lease on the secret and makes pipes of other files that are protected. An open would wait for the lease
/// for as long as the host says, and break it; one of a pipe waits for ever.
const HOLDER: &str = r#"
import fcntl, os, sys
sys.stdin.readline()
secret = os.open("/t/secret/key", os.O_WRONLY)
fcntl.fcntl(secret, fcntl.F_SETLEASE, fcntl.F_WRLCK)
os.unlink("/t/secret/dir/deep")
os.mkfifo("/t/secret/dir/deep")
os.mkfifo("/t/secret/pipe")
print("ready", flush=True)
for line in sys.stdin:
    print(fcntl.fcntl(secret, fcntl.F_GETLEASE) == fcntl.F_WRLCK, flush=True)
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

/// A file system that never answers.
pub fn never_answers(trail: &mut Trail) -> Result<()> {
    fixture::make(&[])?;
    let server = Server::start()?;
    let result = unless_it_waits(server.0.id(), || {
        write_policy(NAME, &policy("no-secret"))?;
        let agent = Agent::attach(NAME, NAME)?;
        // It waits until it is killed.
        let _stuck = Inside::script(&agent, &format!("exec /usr/bin/cat {PLACE}/file"))?;
        judged(trail, &agent)
    });
    drop(server);
    result
}

/// A lease and pipes, of an agent that may write where it may not read.
pub fn leases_and_pipes(trail: &mut Trail) -> Result<()> {
    fixture::make(&[])?;
    write_policy(NAME, &policy("no-secret"))?;
    let agent = Agent::attach(NAME, NAME)?;
    let mut holder = Dialogue::start(Command::new("/usr/bin/python3").args(["-c", HOLDER]))?;
    agent.group.take(holder.pid())?;
    holder.say("go")?;
    ensure!(holder.hear()? == "ready", "there is no lease, or no pipe");
    unless_it_waits(holder.pid(), || {
        judged(trail, &agent)?;
        holder.say("and now?")?;
        ensure!(holder.hear()? == "True", "somebody broke the lease");
        Ok(())
    })
}

/// Does this, and ends whom others wait for when it takes too long: then something waited for it, which is a failure
/// and not a run without end.
fn unless_it_waits(holder: u32, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(holder)?);
    let (done, waits) = mpsc::channel::<()>();
    let guard = thread::spawn(move || {
        let late = waits.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout);
        if late {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        late
    });
    let result = work();
    drop(done);
    let late = guard.join().unwrap_or(true);
    ensure!(
        !late,
        "something waited for who does not answer: {result:?}"
    );
    result
}

/// The agent's acts are judged as ever, and the daemon answers, under one policy and the next.
fn judged(trail: &mut Trail, agent: &Agent) -> Result<()> {
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
