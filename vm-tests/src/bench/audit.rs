//! The kernel's own audit with a rule for each of the measured calls, as `auditctl` would set it, and a
//! process that receives the records and throws them away.
//!
//! A kernel that has audited keeps a part of the cost for every process that is started later: this is
//! measured last.

use std::mem::zeroed;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::operation::CALLS;

const SET: u16 = 1001;
const GET: u16 = 1000;
const ADD_RULE: u16 = 1011;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const ERROR: u16 = 2;
/// Which members of the status are set: on, whom to tell, how many may wait, and that nobody waits.
const STATUS: u32 = 1 | 4 | 16 | 32;
/// Records that may wait; more than a round has.
const BACKLOG: u32 = 200_000;
const EXIT: u32 = 4;
const ALWAYS: u32 = 2;
const FIELD_ARCHITECTURE: u32 = 11;
const EQUAL: u32 = 0x4000_0000;
const X86_64: u32 = 0xc000_003e;
/// Bytes of a header.
const HEADER: usize = 16;
/// Words of a rule: flags, action, number of fields, mask, fields, values, operators, length.
const RULE: usize = 3 + 64 * 4 + 1;

/// Audit that is switched on.
pub struct Auditing(OwnedFd);

impl Auditing {
    /// Switches it on, with the rule.
    pub fn start() -> Result<Self> {
        let (orders, records) = (connect()?, connect()?);
        let mut status = [0u32; 10];
        status[..6].copy_from_slice(&[STATUS, 1, 0, std::process::id(), 0, BACKLOG]);
        // Whoever registers is who is sent the records.
        ask(&records, SET, &status)?;
        thread::spawn(move || {
            let mut buffer = [0u8; 16384];
            while receive(&records, &mut buffer).is_ok() {}
        });
        ask(&orders, ADD_RULE, &rule())?;
        Ok(Self(orders))
    }

    /// Records that the kernel threw away, once all others were received.
    pub fn lost(&self) -> Result<u32> {
        thread::sleep(Duration::from_secs(2));
        send(&self.0, GET, REQUEST, &[])?;
        let mut buffer = [0u8; 16384];
        let mut words = [0u32; 8];
        let count = receive(&self.0, &mut buffer)?;
        ensure!(count >= HEADER + 32, "the audit status is short");
        for (word, bytes) in words.iter_mut().zip(buffer[HEADER..].chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Ok(words[6])
    }
}

impl Drop for Auditing {
    fn drop(&mut self) {
        let mut status = [0u32; 10];
        status[0] = 1;
        // The guest ends soon.
        let _ = ask(&self.0, SET, &status);
    }
}

fn rule() -> [u32; RULE] {
    let mut rule = [0u32; RULE];
    rule[..3].copy_from_slice(&[EXIT, ALWAYS, 1]);
    for &call in CALLS {
        rule[3 + (call / 32) as usize] |= 1 << (call % 32);
    }
    rule[3 + 64] = FIELD_ARCHITECTURE;
    rule[3 + 128] = X86_64;
    rule[3 + 192] = EQUAL;
    rule
}

fn connect() -> Result<OwnedFd> {
    // SAFETY: numbers only; what is returned is a new descriptor.
    let socket = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_AUDIT,
        )
    };
    ensure!(
        socket >= 0,
        "this kernel has no audit: {}",
        std::io::Error::last_os_error()
    );
    let room = 64i32 << 20;
    // SAFETY: an own descriptor, and a live number of the size that is passed.
    unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const room).cast(),
            4,
        );
        Ok(OwnedFd::from_raw_fd(socket))
    }
}

fn send(socket: &OwnedFd, kind: u16, flags: u16, words: &[u32]) -> Result<()> {
    let length = HEADER + words.len() * 4;
    let mut message = Vec::with_capacity(length);
    message.extend_from_slice(&u32::try_from(length)?.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    for word in words {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    // SAFETY: an address of zeros is the kernel's; the message is as long as is said.
    let sent = unsafe {
        let mut to: libc::sockaddr_nl = zeroed();
        to.nl_family = libc::AF_NETLINK as u16;
        libc::sendto(
            socket.as_raw_fd(),
            message.as_ptr().cast(),
            message.len(),
            0,
            (&raw const to).cast(),
            size_of_val(&to) as u32,
        )
    };
    ensure!(
        usize::try_from(sent) == Ok(length),
        "failed to speak with the kernel's audit: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: a live buffer of the length that is passed.
    let count = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
        )
    };
    usize::try_from(count).map_err(|_| {
        let error = std::io::Error::last_os_error();
        anyhow::anyhow!("failed to hear from the kernel's audit: {error}")
    })
}

/// Asks for something, and waits until it is done. Records that come in between are thrown away.
fn ask(socket: &OwnedFd, kind: u16, words: &[u32]) -> Result<()> {
    send(socket, kind, REQUEST | ACKNOWLEDGE, words)?;
    let mut buffer = [0u8; 16384];
    loop {
        let count = receive(socket, &mut buffer)?;
        if count >= HEADER + 4 && buffer[4..6] == ERROR.to_ne_bytes() {
            let code = i32::from_ne_bytes([buffer[16], buffer[17], buffer[18], buffer[19]]);
            if code != 0 {
                let error = std::io::Error::from_raw_os_error(-code);
                bail!("the kernel's audit refuses message {kind}: {error}");
            }
            return Ok(());
        }
    }
}
