//! The acts that rows perform, done by the calling process itself: what an act tries is one system
//! call that the guard judges, and as little as possible around it.
//!
//! An act that reads writes what it read to standard output (already open), so that a leak shows.
//! Its errno goes to standard error in a line of its own.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixStream};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrIn6,
};
use nix::unistd::{Gid, Uid, execve, fexecve, setgroups, setresgid, setresuid};

/// Every verb.
pub const VERBS: &[&str] = &[
    "open-read",
    "open-write",
    "open-both",
    "append",
    "truncate",
    "create",
    "create-exclusive",
    "temporary",
    "list",
    "open-deep",
    "reopen",
    "exec",
    "exec-memfd",
    "connect",
    "connect-udp",
    "connect-unix",
    "connect-unix-datagram",
    "send",
    "send-unix",
    "fast-open",
];
/// Begins the line that carries the errno.
pub const RESULT: &str = "\u{1}errno ";
/// Uid and gid of the ordinary user.
pub const USER: u32 = 1000;

/// Says that the process is loaded: from here on it opens nothing but what the act opens.
pub const READY: u8 = b'>';

/// The process that performs one act: says that it is ready, waits for a byte on standard input (the parent has put it
/// where it belongs), drops privileges, acts, reports. Does not return from a successful exec.
pub fn main(user: bool, cwd: Option<&str>, act: &[String]) -> i32 {
    let outcome = prepare(user, cwd).and_then(|()| perform(act));
    match outcome {
        Ok(()) => {
            eprintln!("{RESULT}0");
            0
        }
        Err(error) => {
            eprintln!("{RESULT}{} {error}", error.raw_os_error().unwrap_or(0));
            1
        }
    }
}

fn prepare(user: bool, cwd: Option<&str>) -> io::Result<()> {
    if let Some(cwd) = cwd {
        std::env::set_current_dir(cwd)?;
    }
    io::stderr().write_all(&[READY])?;
    io::stdin().read_exact(&mut [0])?;
    if user {
        setgroups(&[])?;
        let (uid, gid) = (Uid::from_raw(USER), Gid::from_raw(USER));
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
    }
    Ok(())
}

fn perform(act: &[String]) -> io::Result<()> {
    let words: Vec<&str> = act.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["open-read", path] => show(File::open(path)?),
        ["open-write", path] => OpenOptions::new()
            .write(true)
            .open(path)?
            .write_all_at(b"X", 0),
        ["open-both", path] => OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)?
            .write_all_at(b"X", 0),
        ["append", path] => OpenOptions::new().append(true).open(path)?.write_all(b"X"),
        ["truncate", path] => OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(path)
            .map(drop),
        ["create", path] => OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?
            .write_all(b"X"),
        ["create-exclusive", path] => OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map(drop),
        ["temporary", folder] => temporary(folder),
        ["list", path] => list(path),
        ["open-deep", start, component, count, name] => deep(
            start,
            component,
            count.parse().map_err(io::Error::other)?,
            name,
        ),
        ["reopen", path] => reopen(path),
        ["exec", program, rest @ ..] => Err(exec(program, rest)),
        ["exec-memfd", program, rest @ ..] => Err(exec_memfd(program, rest)),
        ["connect", address] => {
            TcpStream::connect_timeout(&parse(address)?, Duration::from_secs(5)).map(drop)
        }
        ["connect-udp", address] => {
            let socket = udp(address)?;
            socket.connect(parse(address)?)?;
            socket.send(b"X").map(drop)
        }
        ["send", address] => udp(address)?.send_to(b"X", parse(address)?).map(drop),
        ["fast-open", address] => fast_open(address),
        ["connect-unix", name] => UnixStream::connect_addr(&unix(name)?).map(drop),
        ["connect-unix-datagram", name] => {
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&unix(name)?)?;
            socket.send(b"X").map(drop)
        }
        ["send-unix", name] => UnixDatagram::unbound()?
            .send_to_addr(b"X", &unix(name)?)
            .map(drop),
        _ => Err(io::Error::other(format!("no such act: {act:?}"))),
    }
}

fn show(mut file: File) -> io::Result<()> {
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    io::stdout().write_all(&text)
}

fn list(path: &str) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        io::stdout().write_all(entry?.file_name().as_bytes())?;
    }
    Ok(())
}

/// A file without a name, which gets its contents and then vanishes: only success or failure shows.
fn temporary(folder: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(folder)?;
    file.write_all(b"X")?;
    io::stdout().write_all(b"made")
}

/// Walks down one component at a time, to where the whole path is longer than any one call can name.
fn deep(start: &str, component: &str, count: usize, name: &str) -> io::Result<()> {
    std::env::set_current_dir(start)?;
    for _ in 0..count {
        std::env::set_current_dir(component)?;
    }
    show(File::open(name)?)
}

/// Opens by handle first (`O_PATH` reads nothing), then for reading through `/proc/self/fd`.
fn reopen(path: &str) -> io::Result<()> {
    let handle = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)?;
    show(File::open(format!("/proc/self/fd/{}", handle.as_raw_fd()))?)
}

fn strings(first: &str, rest: &[&str]) -> io::Result<Vec<CString>> {
    std::iter::once(&first)
        .chain(rest)
        .map(|word| CString::new(*word).map_err(io::Error::other))
        .collect()
}

fn environment() -> Vec<CString> {
    [
        "PATH=/usr/local/bin:/usr/bin:/bin",
        "HOME=/t/home",
        "LANG=C",
    ]
    .iter()
    .filter_map(|variable| CString::new(*variable).ok())
    .collect()
}

fn exec(program: &str, rest: &[&str]) -> io::Error {
    let attempt = || -> io::Result<()> {
        let words = strings(program, rest)?;
        execve(&words[0], &words, &environment())?;
        Ok(())
    };
    attempt()
        .err()
        .unwrap_or_else(|| io::Error::other("exec returned"))
}

/// Runs a copy of the program that has no name on any file system.
fn exec_memfd(program: &str, rest: &[&str]) -> io::Error {
    let attempt = || -> io::Result<()> {
        let memory = memfd_create("copy", MFdFlags::empty())?;
        let contents = fs::read(program)?;
        File::from(memory.try_clone()?).write_all(&contents)?;
        fexecve(&memory, &strings(program, rest)?, &environment())?;
        Ok(())
    };
    attempt()
        .err()
        .unwrap_or_else(|| io::Error::other("exec returned"))
}

fn parse(address: &str) -> io::Result<SocketAddr> {
    address
        .parse()
        .map_err(|_| io::Error::other(format!("no socket address: {address}")))
}

fn udp(address: &str) -> io::Result<UdpSocket> {
    UdpSocket::bind(if parse(address)?.is_ipv6() {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    })
}

/// Sends data with the first packet of a connection: there is no `connect` call.
fn fast_open(address: &str) -> io::Result<()> {
    let address = parse(address)?;
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    let stream = |family| socket::socket(family, SockType::Stream, SockFlag::empty(), None);
    match address {
        SocketAddr::V4(address) => socket::sendto(
            stream(AddressFamily::Inet)?.as_raw_fd(),
            b"X",
            &SockaddrIn::from(address),
            flags,
        )?,
        SocketAddr::V6(address) => socket::sendto(
            stream(AddressFamily::Inet6)?.as_raw_fd(),
            b"X",
            &SockaddrIn6::from(address),
            flags,
        )?,
    };
    Ok(())
}

fn unix(name: &str) -> io::Result<UnixAddr> {
    match name.strip_prefix('@') {
        Some(name) => UnixAddr::from_abstract_name(name),
        None => UnixAddr::from_pathname(name),
    }
}
