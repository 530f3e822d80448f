//! Processes outside of every agent that acts have something to do with: one that waits to be
//! harmed, and one that gives descriptors away. Setup starts them; after the act they are killed.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, IoSlice, Write as _};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::call::{address, owned, sys};
use super::process::state;

/// Where the harness finds its process.
pub const PLACE: &str = "/run/vm-tests";
/// Number of the descriptor of a secret file that the victim holds.
pub const HELD: i32 = 100;
const SECRET: &str = "/t/secret/key";

/// Starts an outsider as the ordinary user (who may then harm it) and returns when it is ready.
pub fn start(words: &[String]) -> io::Result<()> {
    fs::create_dir_all(PLACE)?;
    let mut child = Command::new("/proc/self/exe")
        .arg("outsider")
        .args(words)
        .uid(super::USER)
        .gid(super::USER)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line)?;
    }
    let Some(at) = line.strip_prefix("ready ") else {
        return Err(io::Error::other(format!("the outsider said {line:?}")));
    };
    fs::write(format!("{PLACE}/victim"), child.id().to_string())?;
    fs::write(format!("{PLACE}/victim-address"), at.trim())
}

/// The outsider itself. It ends when it is killed.
pub fn serve(words: &[String]) -> io::Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["giver", name, what] => give(name, what),
        ["packets"] => packets(),
        _ => wait(),
    }
}

fn wait() -> io::Result<()> {
    // Whoever may signal it may also trace it, also where Yama asks for consent: PR_SET_PTRACER, any.
    // Kernels without Yama do not know the call.
    let _ = sys!(SYS_prctl, 0x5961_6d61, -1i64, 0, 0, 0);
    let memory = b"victim".to_vec();
    let secret = File::open(SECRET)?;
    sys!(SYS_dup2, secret.as_raw_fd(), HELD)?;
    println!("ready {}", address(&memory));
    loop {
        std::thread::park();
    }
}

/// Listens where packets are connected.
fn packets() -> io::Result<()> {
    let socket = owned(sys!(SYS_socket, libc::AF_UNIX, libc::SOCK_SEQPACKET, 0)?)?;
    let name = b"\x01\0\0packets";
    sys!(SYS_bind, socket.as_raw_fd(), &name[..], name.len())?;
    sys!(SYS_listen, socket.as_raw_fd(), 8)?;
    println!("ready 0");
    loop {
        owned(sys!(SYS_accept4, socket.as_raw_fd(), 0, 0, 0)?)?;
    }
}

fn give(name: &str, what: &str) -> io::Result<()> {
    let held: OwnedFd = match what.strip_prefix("udp:") {
        Some(to) => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(to)?;
            socket.into()
        }
        None => File::open(what)?.into(),
    };
    let name = SocketAddr::from_abstract_name(name.trim_start_matches('@'))?;
    let listener = UnixListener::bind_addr(&name)?;
    println!("ready 0");
    loop {
        let (taker, _) = listener.accept()?;
        sendmsg::<()>(
            taker.as_raw_fd(),
            &[IoSlice::new(b"X")],
            &[ControlMessage::ScmRights(&[held.as_raw_fd()])],
            MsgFlags::empty(),
            None,
        )?;
    }
}

/// Notes the process that rows mean by `${daemon}`; without a daemon something sleeps in its place.
pub fn stand_in(daemon: Option<u32>) -> io::Result<()> {
    fs::create_dir_all(PLACE)?;
    let pid = match daemon {
        Some(pid) => pid,
        None => Command::new("/usr/bin/sleep")
            .arg("infinity")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?
            .id(),
    };
    fs::write(format!("{PLACE}/daemon"), pid.to_string())
}

/// What is known of the outsider: empty when there is none.
pub fn fact(name: &str) -> String {
    fs::read_to_string(format!("{PLACE}/{name}")).unwrap_or_default()
}

/// What an act can change about the outsider: whether it runs, its priorities and limits, its memory.
pub fn picture() -> String {
    let pid = fact("victim");
    if pid.is_empty() {
        return String::new();
    }
    let there = match state(&pid) {
        None | Some('Z' | 'X') => "gone",
        Some('T' | 't') => "stopped",
        Some(_) => "runs",
    };
    let file = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    // Priority, nice value, policy and real-time priority.
    let stat = file("stat");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .collect();
    let pick = |index: usize| fields.get(index).copied().unwrap_or_default();
    let allowed = file("status")
        .lines()
        .find(|line| line.starts_with("Cpus_allowed_list"))
        .unwrap_or_default()
        .to_owned();
    format!(
        "{there} {} {} {} {} {allowed} {}",
        pick(15),
        pick(16),
        pick(37),
        pick(38),
        file("limits")
    )
}

/// Kills the outsider, if there is one.
pub fn end() {
    let pid = fact("victim");
    if let Ok(number) = pid.parse::<i32>() {
        // It may be gone, which is what some acts are for.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(number),
            nix::sys::signal::Signal::SIGKILL,
        );
        while Path::new(&format!("/proc/{pid}")).exists()
            && !matches!(state(&pid), None | Some('Z' | 'X'))
        {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// Forgets the outsider of the row before.
pub fn forget() {
    // There may be none.
    let _ = fs::remove_file(format!("{PLACE}/victim"));
    let _ = fs::remove_file(format!("{PLACE}/victim-address"));
    let _ = io::stdout().flush();
}
