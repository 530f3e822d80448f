//! What is measured. Each operation is a few system calls and nothing else, and says whether it succeeded.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};

use anyhow::Result;
use bench_report::figures;

use super::{scene, socket};

/// The program that is started.
pub const PROGRAM: &str = "/bin/true";

/// The calls in question, for peers who are told which: by number.
pub const CALLS: &[u32] = &[
    libc::SYS_open as u32,
    libc::SYS_openat as u32,
    libc::SYS_execve as u32,
    libc::SYS_connect as u32,
    libc::SYS_bind as u32,
    libc::SYS_rename as u32,
];

/// One operation.
pub struct Operation {
    /// By which its cells are found.
    pub name: &'static str,
    /// What people read.
    title: &'static str,
    /// Repetitions in a round: some millions of instructions, so that what is done now and then is in it.
    pub times: u32,
    /// How many things one repetition does.
    pub per: u32,
    /// Whether a policy can refuse it as it is.
    pub deniable: bool,
    /// Does it.
    pub act: fn(&Things) -> bool,
}

const fn operation(
    name: &'static str,
    title: &'static str,
    (times, per): (u32, u32),
    deniable: bool,
    act: fn(&Things) -> bool,
) -> Operation {
    Operation {
        name,
        title,
        times,
        per,
        deniable,
        act,
    }
}

/// All of them, in the order of the columns.
pub const OPERATIONS: &[Operation] = &[
    operation("open-2", "open + close, 2 bytes", (200, 1), true, |t| {
        open(&t.two)
    }),
    operation("open-11", "open + close, 11 bytes", (200, 1), true, |t| {
        open(&t.eleven)
    }),
    operation("open-63", "open + close, 63 bytes", (200, 1), true, |t| {
        open(&t.sixty_three)
    }),
    operation("open-255", "open + close, 255 bytes", (150, 1), true, |t| {
        open(&t.longest)
    }),
    operation(
        "tree",
        "openat + close in a tree, for each",
        (2, scene::OPENS),
        false,
        walk,
    ),
    operation("exec", "vfork + exec + wait", (4, 1), true, |_| spawn()),
    operation(
        "connect-tcp",
        "socket + connect + close, TCP",
        (60, 1),
        true,
        |_| socket::connect_tcp(),
    ),
    operation(
        "connect-udp",
        "socket + connect + close, UDP",
        (120, 1),
        true,
        |_| socket::connect_udp(),
    ),
    operation(
        "connect-unix",
        "socket + connect + close, Unix",
        (100, 1),
        true,
        |_| socket::connect_unix(),
    ),
    operation("bind", "socket + bind + close, UDP", (120, 1), true, |_| {
        socket::bind_udp()
    }),
    operation("rename", "rename", (80, 2), true, rename),
    operation("read", "read, 64 bytes", (500, 1), false, read),
    operation("write", "write, 64 bytes", (500, 1), false, write),
    operation("stat", "stat, 63 bytes", (200, 1), false, stat),
    operation("fork", "fork + exit + wait", (8, 1), false, |_| fork()),
];

/// The table, without rows.
pub fn table() -> figures::Table {
    figures::Table {
        name: "operations".into(),
        title: "Single operations".into(),
        unit: "instructions".into(),
        operations: OPERATIONS
            .iter()
            .map(|operation| figures::Operation {
                name: operation.name.to_owned(),
                title: operation.title.to_owned(),
            })
            .collect(),
        rows: Vec::new(),
    }
}

/// What operations work on, made before anything is measured.
pub struct Things {
    two: CString,
    eleven: CString,
    sixty_three: CString,
    longest: CString,
    from: CString,
    to: CString,
    tree: CString,
    walk: Vec<(CString, Vec<CString>)>,
    data: Option<File>,
}

impl Things {
    /// Makes them; `data` is opened only where that is permitted.
    pub fn new(permitted: bool) -> Result<Self> {
        let data = permitted
            .then(|| File::options().read(true).write(true).open(scene::DATA))
            .transpose()?;
        Ok(Self {
            two: CString::new(scene::TWO)?,
            eleven: CString::new(scene::ELEVEN)?,
            sixty_three: CString::new(scene::SIXTY_THREE)?,
            longest: CString::new(scene::two_hundred_and_fifty_five())?,
            from: CString::new(scene::FROM)?,
            to: CString::new(scene::TO)?,
            tree: CString::new(scene::TREE)?,
            walk: scene::walk()?,
            data,
        })
    }
}

fn open(path: &CStr) -> bool {
    // SAFETY: a C string; the descriptor is closed at once.
    unsafe {
        let file = libc::open(path.as_ptr(), libc::O_RDONLY);
        if file >= 0 {
            libc::close(file);
        }
        file >= 0
    }
}

fn walk(things: &Things) -> bool {
    let mut good = true;
    // SAFETY: C strings; each descriptor is closed once.
    unsafe {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let tree = libc::open(things.tree.as_ptr(), flags);
        for (name, files) in &things.walk {
            let folder = libc::openat(tree, name.as_ptr(), flags);
            for file in files {
                let file = libc::openat(folder, file.as_ptr(), libc::O_RDONLY);
                good &= file >= 0;
                libc::close(file);
            }
            libc::close(folder);
        }
        libc::close(tree);
    }
    good
}

/// The standard library starts programs with `vfork` semantics.
fn spawn() -> bool {
    Command::new(PROGRAM)
        .env_clear()
        .stdin(Stdio::inherit())
        .status()
        .is_ok_and(|status| status.success())
}

fn rename(things: &Things) -> bool {
    // SAFETY: C strings.
    unsafe {
        let there = libc::rename(things.from.as_ptr(), things.to.as_ptr());
        let back = libc::rename(things.to.as_ptr(), things.from.as_ptr());
        there == 0 && back == 0
    }
}

fn read(things: &Things) -> bool {
    let mut buffer = [0u8; 64];
    let Some(data) = &things.data else {
        return false;
    };
    // SAFETY: a live buffer of the length that is passed.
    let count = unsafe {
        libc::pread(
            data.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
        )
    };
    count == 64
}

fn write(things: &Things) -> bool {
    let buffer = [7u8; 64];
    let Some(data) = &things.data else {
        return false;
    };
    // SAFETY: a live buffer of the length that is passed.
    let count = unsafe { libc::pwrite(data.as_raw_fd(), buffer.as_ptr().cast(), buffer.len(), 0) };
    count == 64
}

fn stat(things: &Things) -> bool {
    // SAFETY: a C string, and a place for the answer.
    unsafe {
        let mut answer: libc::stat = std::mem::zeroed();
        libc::stat(things.sixty_three.as_ptr(), &raw mut answer) == 0
    }
}

fn fork() -> bool {
    // SAFETY: this process has one thread; the child ends at once.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::_exit(0);
        }
        let mut status = 0;
        libc::waitpid(child, &raw mut status, 0) == child && status == 0
    }
}
