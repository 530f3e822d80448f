//! Acts on other processes, and ways out of the agent's lineage.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::call::{address, owned, sys};
use super::files::done;
use super::{number, show};

/// Every verb.
pub const VERBS: &[&str] = &[
    "signal",
    "signal-group",
    "signal-all",
    "signal-thread",
    "signal-queue",
    "signal-pidfd",
    "signal-owner",
    "signal-child",
    "ptrace-attach",
    "ptrace-seize",
    "ptrace-child",
    "ptrace-me",
    "vm-read",
    "vm-write",
    "memory-read",
    "memory-write",
    "getfd",
    "getfd-child",
    "advise",
    "set-nice",
    "set-scheduler",
    "set-scheduler-attributes",
    "set-affinity",
    "set-limit",
    "set-io-priority",
    "terminal-input",
    "terminal-own",
    "spawn-into",
    "join",
    "thread-id",
];

/// Performs an act of this module.
pub fn perform(words: &[&str]) -> Option<io::Result<()>> {
    signals(words)
        .or_else(|| memory(words))
        .or_else(|| priorities(words))
        .or_else(|| places(words))
}

fn signals(words: &[&str]) -> Option<io::Result<()>> {
    let two = |signal: &str, pid: &str| Ok::<_, io::Error>((number(signal)?, number(pid)?));
    Some(match words {
        ["signal", signal, pid] => two(signal, pid)
            .and_then(|(signal, pid)| sys!(SYS_kill, pid, signal))
            .and_then(|_| after_signal(pid)),
        ["signal-group", signal, pid] => two(signal, pid)
            .and_then(|(signal, pid)| sys!(SYS_kill, -signed(pid), signal))
            .and_then(|_| after_signal(pid)),
        ["signal-all", signal, pid] => number(signal)
            .and_then(|signal| sys!(SYS_kill, -1, signal))
            .and_then(|_| wait_gone(pid)),
        ["signal-thread", signal, pid] => two(signal, pid)
            .and_then(|(signal, pid)| sys!(SYS_tgkill, pid, pid, signal))
            .and_then(|_| after_signal(pid)),
        ["signal-queue", signal, pid] => two(signal, pid)
            .and_then(|(signal, pid)| {
                let mut info = [0u8; 128];
                info[..4].copy_from_slice(&(signal as u32).to_ne_bytes());
                // SI_QUEUE
                info[8..12].copy_from_slice(&(-1i32).to_ne_bytes());
                sys!(SYS_rt_sigqueueinfo, pid, signal, &info[..])
            })
            .and_then(|_| after_signal(pid)),
        ["signal-pidfd", signal, pid] => two(signal, pid)
            .and_then(|(signal, number)| {
                let process = pidfd(number)?;
                sys!(SYS_pidfd_send_signal, process.as_fd(), signal, 0, 0)
            })
            .and_then(|_| after_signal(pid)),
        ["signal-owner", signal, pid] => two(signal, pid)
            .and_then(|(signal, pid)| by_owner(signal, pid))
            .and_then(|()| wait_gone(pid)),
        ["signal-child", signal] => child().and_then(|mut child| {
            sys!(SYS_kill, child.id(), number(signal)?)?;
            child.wait()?;
            done("the child is gone")
        }),
        _ => return None,
    })
}

fn signed(pid: usize) -> i64 {
    (pid as u64).cast_signed()
}

/// A picture of the victim is taken afterwards: it must have had the time to show what happened.
fn after_signal(pid: &str) -> io::Result<()> {
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(300) {
        let state = state(pid);
        if matches!(state, None | Some('T' | 't' | 'Z' | 'X')) {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    done("sent")
}

/// For ways that report no failure: only what became of the victim tells.
fn wait_gone(pid: &str) -> io::Result<()> {
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(500) {
        if matches!(state(pid), None | Some('Z' | 'X')) {
            return done("the victim is gone");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// State of a process as the kernel names it.
pub fn state(pid: &str) -> Option<char> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit(')').next()?.trim_start().chars().next()
}

/// Lets the kernel send the signal: as the owner of a pipe the victim is told that there is data.
fn by_owner(signal: usize, pid: usize) -> io::Result<()> {
    let (reader, writer) = nix::unistd::pipe()?;
    let fcntl = |command: i32, value: i64| sys!(SYS_fcntl, reader.as_fd(), command, value);
    // F_SETOWN, F_SETSIG, F_SETFL with O_ASYNC
    fcntl(8, signed(pid))?;
    fcntl(10, signed(signal))?;
    fcntl(4, i64::from(libc::O_ASYNC))?;
    nix::unistd::write(&writer, b"X")?;
    Ok(())
}

fn child() -> io::Result<std::process::Child> {
    Command::new("/usr/bin/sleep")
        .arg("60")
        .stdin(Stdio::null())
        .spawn()
}

fn pidfd(pid: usize) -> io::Result<std::os::fd::OwnedFd> {
    owned(sys!(SYS_pidfd_open, pid, 0)?)
}

fn ptrace(request: i64, pid: usize) -> io::Result<()> {
    sys!(SYS_ptrace, request, pid, 0, 0).map(drop)
}

fn memory(words: &[&str]) -> Option<io::Result<()>> {
    Some(match words {
        ["ptrace-attach", pid] => number(pid)
            .and_then(|pid| ptrace(16, pid))
            .and_then(|()| done("attached")),
        ["ptrace-seize", pid] => number(pid)
            .and_then(|pid| ptrace(0x4206, pid))
            .and_then(|()| done("seized")),
        ["ptrace-child"] => child().and_then(|mut child| {
            ptrace(16, child.id() as usize)?;
            child.kill()?;
            done("attached")
        }),
        ["ptrace-me"] => ptrace(0, 0).and_then(|()| done("traced")),
        ["vm-read", pid, at] => vm(310, pid, at).and_then(|bytes| done(&bytes)),
        ["vm-write", pid, at] => vm(311, pid, at).and_then(|_| done("written")),
        ["memory-read", pid, at] => number(at).and_then(|at| {
            let mut bytes = [0; 6];
            File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut bytes, at as u64)?;
            done(&String::from_utf8_lossy(&bytes))
        }),
        ["memory-write", pid, at] => number(at).and_then(|at| {
            let file = OpenOptions::new()
                .write(true)
                .open(format!("/proc/{pid}/mem"))?;
            file.write_all_at(b"X", at as u64)?;
            done("written")
        }),
        ["getfd", pid, held] => number(pid).and_then(|pid| getfd(pid, number(held)?)),
        ["getfd-child"] => child().and_then(|mut child| {
            let process = pidfd(child.id() as usize)?;
            // The parent goes on as soon as the child has left its memory, and the new one is closed to
            // others until the program is set up.
            let mut taken = sys!(SYS_pidfd_getfd, process.as_fd(), 0, 0).and_then(owned);
            for _ in 0..100 {
                if taken.is_ok() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
                taken = sys!(SYS_pidfd_getfd, process.as_fd(), 0, 0).and_then(owned);
            }
            child.kill()?;
            taken?;
            done("taken")
        }),
        ["advise", pid, at] => number(pid).and_then(|pid| advise(pid, number(at)?)),
        _ => return None,
    })
}

/// `process_vm_readv` or `process_vm_writev` of six bytes.
fn vm(call: i64, pid: &str, at: &str) -> io::Result<String> {
    use super::call::{Arg, call as raw};
    let bytes = *b"XXXXXX";
    let vector = |at: u64| {
        let mut all = [0u8; 16];
        all[..8].copy_from_slice(&at.to_ne_bytes());
        all[8] = 6;
        all
    };
    let buffer = super::call::Memory::map(
        4096,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        None,
        0,
    )?;
    buffer.write(0, &bytes);
    let (own, other) = (vector(buffer.address()), vector(number(at)? as u64));
    let mut arguments = [
        Arg::from(number(pid)?),
        Arg::from(&own[..]),
        Arg::from(1),
        Arg::from(&other[..]),
        Arg::from(1),
        Arg::from(0),
    ];
    raw(call, &mut arguments)?;
    let seen: Vec<u8> = [buffer.read(0), buffer.read(4)]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .take(6)
        .collect();
    Ok(String::from_utf8_lossy(&seen).into_owned())
}

/// Takes a descriptor out of another process and reads from it.
fn getfd(pid: usize, held: usize) -> io::Result<()> {
    let process = pidfd(pid)?;
    let taken: File = owned(sys!(SYS_pidfd_getfd, process.as_fd(), held, 0)?)?.into();
    let mut bytes = [0; 3];
    taken.read_exact_at(&mut bytes, 0)?;
    done(&String::from_utf8_lossy(&bytes))
}

fn advise(pid: usize, at: usize) -> io::Result<()> {
    let process = pidfd(pid)?;
    let mut vector = [0u8; 16];
    vector[..8].copy_from_slice(&((at & !4095) as u64).to_ne_bytes());
    vector[8..].copy_from_slice(&4096u64.to_ne_bytes());
    sys!(
        SYS_process_madvise,
        process.as_fd(),
        &vector[..],
        1,
        libc::MADV_COLD,
        0
    )?;
    done("advised")
}

fn priorities(words: &[&str]) -> Option<io::Result<()>> {
    let zero = 0i32.to_ne_bytes();
    let call = match words {
        ["set-nice", pid] => number(pid).and_then(|pid| sys!(SYS_setpriority, 0, pid, 5)),
        // SCHED_IDLE may be set without any privilege.
        ["set-scheduler", pid] => {
            number(pid).and_then(|pid| sys!(SYS_sched_setscheduler, pid, 5, &zero[..]))
        }
        ["set-scheduler-attributes", pid] => number(pid).and_then(|pid| {
            let mut attributes = [0u8; 48];
            attributes[0] = 48;
            attributes[4] = 3;
            sys!(SYS_sched_setattr, pid, &attributes[..], 0)
        }),
        ["set-affinity", pid] => {
            number(pid).and_then(|pid| sys!(SYS_sched_setaffinity, pid, 8, &1u64.to_ne_bytes()[..]))
        }
        ["set-limit", pid] => number(pid).and_then(|pid| {
            // RLIMIT_CORE to nothing, which lowers it.
            sys!(SYS_prlimit64, pid, 4, &[0u8; 16][..], 0)
        }),
        // The idle class.
        ["set-io-priority", pid] => {
            number(pid).and_then(|pid| sys!(SYS_ioprio_set, 1, pid, 3 << 13))
        }
        _ => return None,
    };
    Some(call.and_then(|_| done("set")))
}

fn places(words: &[&str]) -> Option<io::Result<()>> {
    Some(match words {
        ["terminal-input"] => terminal(true),
        ["terminal-own"] => terminal(false),
        ["spawn-into", group, path] => spawn_into(group, path),
        ["join", group] => {
            fs::write(format!("{group}/cgroup.procs"), "0").and_then(|()| done("joined"))
        }
        ["thread-id"] => thread_id(),
        _ => return None,
    })
}

/// Types into a terminal as if a person had; without `inject` it only writes to it.
fn terminal(inject: bool) -> io::Result<()> {
    const TIOCSTI: i64 = 0x5412;
    // Kept until the process ends: without its other end the terminal would hang up before that is said.
    let terminal = std::mem::ManuallyDrop::new(nix::pty::openpty(None, None)?);
    let slave = terminal.slave.as_fd();
    // A terminal of one's own takes input from its own session.
    nix::unistd::setsid()?;
    sys!(SYS_ioctl, slave, 0x540e, 0)?;
    if !inject {
        nix::unistd::write(slave, b"X")?;
        return done("written");
    }
    sys!(SYS_ioctl, slave, TIOCSTI, &b"X"[..])?;
    done("typed")
}

/// A child that is born in another cgroup and reads a file there.
fn spawn_into(group: &str, path: &str) -> io::Result<()> {
    let group = File::open(group)?;
    let mut words = [0u64; 11];
    // CLONE_INTO_CGROUP, SIGCHLD, and the cgroup.
    words[0] = 0x2_0000_0000;
    words[4] = 17;
    words[10] = u64::from(group.as_raw_fd().cast_unsigned());
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let child = sys!(SYS_clone3, &bytes[..], bytes.len())?;
    if child == 0 {
        let status = match File::open(path).and_then(show) {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().unwrap_or(255),
        };
        std::process::exit(status);
    }
    let mut status = [0u8; 4];
    sys!(SYS_wait4, child, &mut status[..], 0, 0)?;
    match status[1] {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(i32::from(errno))),
    }
}

/// Chooses the number of a new process.
fn thread_id() -> io::Result<()> {
    let wanted = 30_000i32.to_ne_bytes();
    let mut words = [0u64; 11];
    words[4] = 17;
    words[8] = address(&wanted);
    words[9] = 1;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let child = sys!(SYS_clone3, &bytes[..], 88)?;
    if child == 0 {
        std::process::exit(0);
    }
    sys!(SYS_wait4, child, 0, 0, 0)?;
    done("chosen")
}
