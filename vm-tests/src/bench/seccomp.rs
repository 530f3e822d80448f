//! Seccomp user notification: each of the measured calls waits for another process, which lets it go
//! on. It looks at nothing: a real supervisor reads the paths as well, and costs more.

use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};
use std::thread;

use anyhow::{Result, ensure};

use super::measure::{PRIORITY, prioritise};
use super::operation::CALLS;

const SET_MODE_FILTER: u32 = 1;
const NEW_LISTENER: u64 = 1 << 3;
const NOTIFY: u32 = 0x7fc0_0000;
const ALLOW: u32 = 0x7fff_0000;
const RECEIVE: u64 = 0xc050_2100;
const SEND: u64 = 0xc018_2101;
const CONTINUE: u32 = 1;

/// `struct seccomp_notif`, of which only the number is used.
#[repr(C)]
struct Question {
    id: u64,
    rest: [u64; 9],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const fn statement(code: u16, jump_true: u8, jump_false: u8, value: u32) -> libc::sock_filter {
    libc::sock_filter {
        code,
        jt: jump_true,
        jf: jump_false,
        k: value,
    }
}

/// Loads the number of the call, compares it with each, and asks or allows.
fn filter() -> Vec<libc::sock_filter> {
    let count = CALLS.len();
    let mut program = vec![statement(0x20, 0, 0, 0)];
    for (index, call) in CALLS.iter().enumerate() {
        program.push(statement(0x15, (count - index) as u8, 0, *call));
    }
    program.push(statement(0x06, 0, 0, ALLOW));
    program.push(statement(0x06, 0, 0, NOTIFY));
    program
}

/// Puts the filter on this process, and returns the number of the descriptor that is asked.
pub fn restrict() -> Result<i64> {
    let filter = filter();
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: a live program of the length that it says.
    let listener = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(
            libc::SYS_seccomp,
            SET_MODE_FILTER,
            NEW_LISTENER,
            &raw const program,
        )
    };
    ensure!(
        listener >= 0,
        "failed to set the filter: {}",
        std::io::Error::last_os_error()
    );
    Ok(listener)
}

/// Answers for a process until it ends.
pub fn supervise(pid: u32, listener: i32) -> Result<()> {
    // SAFETY: numbers only; what is returned are new descriptors.
    let listener = unsafe {
        let process = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        ensure!(process >= 0, "failed to open the measured process");
        let process = OwnedFd::from_raw_fd(i32::try_from(process)?);
        let taken = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), listener, 0);
        ensure!(
            taken >= 0,
            "failed to take the descriptor: {}",
            std::io::Error::last_os_error()
        );
        OwnedFd::from_raw_fd(i32::try_from(taken)?)
    };
    thread::spawn(move || {
        // Before others, but never before the measured process. Without it the figures have more in them.
        let _ = prioritise(PRIORITY - 1);
        while answer(&listener) {}
    });
    Ok(())
}

/// Answers one question; false when nobody is left to ask.
fn answer(listener: &impl AsRawFd) -> bool {
    let mut question = Question {
        id: 0,
        rest: [0; 9],
    };
    // SAFETY: places of the sizes that the kernel knows.
    unsafe {
        if libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut question) != 0 {
            // A process that ended while it asked.
            return std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOENT);
        }
        let answer = Answer {
            id: question.id,
            value: 0,
            error: 0,
            flags: CONTINUE,
        };
        libc::ioctl(listener.as_raw_fd(), SEND, &raw const answer);
    }
    true
}
