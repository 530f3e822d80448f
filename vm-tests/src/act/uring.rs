//! Acts that ask the kernel through `io_uring`: one ring, one entry, one completion. They make none of
//! the system calls that they stand for.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{Ordering, fence};

use super::call::{Memory, address, owned, sys, text};
use super::{network, show};

/// Every verb.
pub const VERBS: &[&str] = &[
    "uring-open",
    "uring-open-polled",
    "uring-open-worker",
    "uring-rename",
    "uring-link",
    "uring-unlink",
    "uring-mkdir",
    "uring-symlink",
    "uring-set-xattr",
    "uring-connect",
    "uring-socket",
    "uring-command",
];

const SHARED: i32 = libc::MAP_SHARED | libc::MAP_POPULATE;
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const SQPOLL: u32 = 2;
/// Let a worker thread of the kernel do it.
const ASYNC: u8 = 16;
const CWD: i32 = libc::AT_FDCWD;

/// What a submission says.
#[derive(Default)]
struct Entry {
    operation: u8,
    flags: u8,
    file: i32,
    second: u64,
    first: u64,
    third: u64,
    length: u32,
    options: u32,
}

impl Entry {
    fn bytes(&self) -> [u8; 64] {
        let mut all = [0; 64];
        all[0] = self.operation;
        all[1] = self.flags;
        all[4..8].copy_from_slice(&self.file.to_ne_bytes());
        all[8..16].copy_from_slice(&self.second.to_ne_bytes());
        all[16..24].copy_from_slice(&self.first.to_ne_bytes());
        all[24..28].copy_from_slice(&self.length.to_ne_bytes());
        all[48..56].copy_from_slice(&self.third.to_ne_bytes());
        all[28..32].copy_from_slice(&self.options.to_ne_bytes());
        all
    }
}

fn number(parameters: &[u8], at: usize) -> usize {
    parameters[at..at + 4]
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// Makes a ring, submits, and waits for the one completion.
fn submit(setup: u32, entry: &Entry) -> io::Result<i32> {
    let mut parameters = [0u8; 120];
    parameters[8..12].copy_from_slice(&setup.to_ne_bytes());
    let ring = owned(sys!(SYS_io_uring_setup, 1, &mut parameters[..])?)?;
    let at = |offset| number(&parameters, offset);
    let length = (at(64) + 4 * at(0)).max(at(100) + 16 * at(4));
    let rings = Memory::map(length, READ_WRITE, SHARED, Some(ring.as_fd()), 0)?;
    let entries = Memory::map(
        64 * at(0),
        READ_WRITE,
        SHARED,
        Some(ring.as_fd()),
        0x1000_0000,
    )?;
    entries.write(0, &entry.bytes());
    rings.write(at(64), &0u32.to_ne_bytes());
    fence(Ordering::SeqCst);
    rings.write(at(44), &1u32.to_ne_bytes());
    fence(Ordering::SeqCst);
    // Wait for a completion; wake the polling thread if it sleeps.
    let flags = if setup & SQPOLL == 0 { 1 } else { 3 };
    sys!(SYS_io_uring_enter, ring.as_fd(), 1, 1, flags, 0, 0)?;
    if rings.read(at(84)) == 0 {
        return Err(io::Error::other("nothing was completed"));
    }
    let result = rings.read(at(100) + 8).cast_signed();
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    Ok(result)
}

fn open(path: &str, setup: u32, flags: u8) -> io::Result<()> {
    let path = text(path)?;
    let entry = Entry {
        operation: 18,
        flags,
        file: CWD,
        first: address(path.as_bytes_with_nul()),
        ..Entry::default()
    };
    show(owned(i64::from(submit(setup, &entry)?))?.into())
}

/// An operation on one or two paths.
fn paths(operation: u8, first: &str, second: Option<&str>, options: u32) -> io::Result<()> {
    let first = text(first)?;
    let second = second.map(text).transpose()?;
    let second = second
        .as_ref()
        .map_or(0, |second| address(second.as_bytes_with_nul()));
    let entry = Entry {
        operation,
        file: CWD,
        first: address(first.as_bytes_with_nul()),
        second,
        // Rename and link have the second folder here, mkdir the mode.
        length: if operation == 37 {
            0o777
        } else if matches!(operation, 35 | 39) {
            CWD.cast_unsigned()
        } else {
            0
        },
        options,
        ..Entry::default()
    };
    submit(0, &entry).map(drop)
}

/// Performs an act of this module.
pub fn perform(words: &[&str]) -> Option<io::Result<()>> {
    Some(match words {
        ["uring-open", path] => open(path, 0, 0),
        ["uring-open-polled", path] => open(path, SQPOLL, 0),
        ["uring-open-worker", path] => open(path, 0, ASYNC),
        ["uring-rename", from, to] => paths(35, from, Some(to), 0),
        ["uring-link", from, to] => paths(39, from, Some(to), 0),
        ["uring-unlink", path] => paths(36, path, None, 0),
        ["uring-mkdir", path] => paths(37, path, None, 0),
        ["uring-symlink", target, path] => paths(38, target, Some(path), 0),
        ["uring-set-xattr", name, path] => set_xattr(name, path),
        ["uring-connect", address] => connect(address),
        ["uring-socket", domain, kind, protocol] => socket(domain, kind, protocol),
        ["uring-command", path] => command(path),
        _ => return None,
    })
}

fn set_xattr(name: &str, path: &str) -> io::Result<()> {
    let (name, path) = (text(name)?, text(path)?);
    let entry = Entry {
        operation: 42,
        first: address(name.as_bytes_with_nul()),
        second: address(b"X"),
        third: address(path.as_bytes_with_nul()),
        length: 1,
        ..Entry::default()
    };
    submit(0, &entry)?;
    io::stdout().write_all(b"set")
}

fn connect(to: &str) -> io::Result<()> {
    let socket = owned(sys!(SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0)?)?;
    let bytes = network::inet(to)?;
    let entry = Entry {
        operation: 16,
        file: socket.as_raw_fd(),
        first: address(&bytes),
        second: bytes.len() as u64,
        ..Entry::default()
    };
    submit(0, &entry).map(drop)
}

fn socket(domain: &str, kind: &str, protocol: &str) -> io::Result<()> {
    let entry = Entry {
        operation: 45,
        file: domain.parse().map_err(io::Error::other)?,
        second: kind.parse().map_err(io::Error::other)?,
        length: protocol.parse().map_err(io::Error::other)?,
        ..Entry::default()
    };
    let made = submit(0, &entry)?;
    println!("socket {made}");
    Ok(())
}

/// A command that the file's own driver would interpret.
fn command(path: &str) -> io::Result<()> {
    let file = std::fs::OpenOptions::new().write(true).open(path)?;
    let entry = Entry {
        operation: 46,
        file: file.as_raw_fd(),
        ..Entry::default()
    };
    let result = submit(0, &entry)?;
    println!("command returned {result}");
    Ok(())
}
