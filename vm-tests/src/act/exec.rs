//! Acts that run programs: by name, by descriptor, without a name, and by mapping code instead of
//! starting it.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{execve, fexecve};

use super::call::{Memory, call32, sys, text};
use super::files::{done, handle, low};

/// Every verb.
pub const VERBS: &[&str] = &[
    "exec",
    "exec-memfd",
    "exec-at",
    "exec-descriptor",
    "exec-deleted",
    "exec-temporary",
    "exec-no-arguments",
    "exec32",
    "exec-copied",
    "exec-renamed",
    "exec-linked",
    "exec-overwritten",
    "exec-exchanged",
    "exec-many",
    "map-exec",
    "map-shared",
    "map-protect",
    "map-memfd",
    "map-anonymous",
    "protect-anonymous",
    "protect-stack",
];

/// Performs an act of this module. Those that start programs return only when they fail.
pub fn perform(words: &[&str]) -> Option<io::Result<()>> {
    Some(match words {
        ["exec", program, rest @ ..] => run(program, rest),
        ["exec-memfd", program, rest @ ..] => memfd(program, rest),
        ["exec-at", program, rest @ ..] => {
            handle(program).and_then(|file| start(&file, program, rest))
        }
        ["exec-descriptor", program, rest @ ..] => descriptor(program, rest),
        ["exec-deleted", program, name, rest @ ..] => deleted(program, name, rest),
        ["exec-temporary", program, folder, rest @ ..] => temporary(program, folder, rest),
        ["exec-no-arguments", program] => text(program).and_then(|program| {
            Ok(execve::<CString, CString>(&program, &[], &environment()).map(drop)?)
        }),
        ["exec32", program, word] => exec32(program, word),
        ["exec-copied", program, name, rest @ ..] => {
            copy(program, name).and_then(|()| run(name, rest))
        }
        ["exec-renamed", program, name, rest @ ..] => {
            fs::rename(program, name).and_then(|()| run(name, rest))
        }
        ["exec-linked", program, name, rest @ ..] => {
            fs::hard_link(program, name).and_then(|()| run(name, rest))
        }
        ["exec-overwritten", program, name, rest @ ..] => fs::read(program)
            .and_then(|contents| fs::write(name, contents))
            .and_then(|()| run(name, rest)),
        ["exec-exchanged", program, name, rest @ ..] => {
            exchange(program, name).and_then(|()| run(name, rest))
        }
        ["exec-many", program, count, last] => many(program, count, last),
        ["map-exec", path] => map(path, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE)
            .and_then(|_| done("mapped")),
        ["map-shared", path] => map(path, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_SHARED)
            .and_then(|_| done("mapped")),
        ["map-protect", path] => map(path, libc::PROT_READ, libc::MAP_PRIVATE)
            .and_then(|memory| memory.protect(libc::PROT_READ | libc::PROT_EXEC))
            .and_then(|()| done("mapped")),
        ["map-memfd"] => memory_file(),
        ["map-anonymous"] => anonymous(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC)
            .and_then(|_| done("mapped")),
        ["protect-anonymous"] => anonymous(libc::PROT_READ | libc::PROT_WRITE)
            .and_then(|memory| {
                memory.write(0, &[0xc3]);
                memory.protect(libc::PROT_READ | libc::PROT_EXEC)
            })
            .and_then(|()| done("executable")),
        ["protect-stack"] => stack(),
        _ => return None,
    })
}

fn strings(first: &str, rest: &[&str]) -> io::Result<Vec<CString>> {
    std::iter::once(&first)
        .chain(rest)
        .map(|word| text(word))
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

fn run(program: &str, rest: &[&str]) -> io::Result<()> {
    let words = strings(program, rest)?;
    execve(&words[0], &words, &environment())?;
    Ok(())
}

/// `execveat` of a descriptor, without any name.
fn start(file: &File, program: &str, rest: &[&str]) -> io::Result<()> {
    fexecve(file, &strings(program, rest)?, &environment())?;
    Ok(())
}

/// Runs a copy of the program that has no name on any file system.
fn memfd(program: &str, rest: &[&str]) -> io::Result<()> {
    let memory = memfd_create("copy", MFdFlags::empty())?;
    let contents = fs::read(program)?;
    File::from(memory.try_clone()?).write_all(&contents)?;
    fexecve(&memory, &strings(program, rest)?, &environment())?;
    Ok(())
}

fn descriptor(program: &str, rest: &[&str]) -> io::Result<()> {
    let file = handle(program)?;
    // The name must still be there when the new program is loaded, so the descriptor stays open.
    run(&format!("/proc/self/fd/{}", file.as_raw_fd()), rest)
}

fn copy(program: &str, name: &str) -> io::Result<()> {
    fs::write(name, fs::read(program)?)?;
    fs::set_permissions(name, Permissions::from_mode(0o755))
}

/// Runs a file that is there no more.
fn deleted(program: &str, name: &str, rest: &[&str]) -> io::Result<()> {
    copy(program, name)?;
    let file = handle(name)?;
    fs::remove_file(name)?;
    start(&file, program, rest)
}

/// Runs a file that never had a name.
fn temporary(program: &str, folder: &str, rest: &[&str]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o755)
        .open(folder)?;
    file.write_all(&fs::read(program)?)?;
    let again = handle(&format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    drop(file);
    start(&again, program, rest)
}

fn exec32(program: &str, word: &str) -> io::Result<()> {
    let at = low(&[program, word])?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
    let memory = Memory::map(4096, libc::PROT_READ | libc::PROT_WRITE, flags, None, 0)?;
    for (index, pointer) in at.iter().enumerate() {
        memory.write(4 * index, &pointer.to_ne_bytes());
    }
    let list = u32::try_from(memory.address()).map_err(io::Error::other)?;
    // The list ends with a zero, which also serves as the empty environment.
    call32(11, [at[0], list, list + 8, 0]).map(drop)
}

fn exchange(program: &str, name: &str) -> io::Result<()> {
    let cwd = libc::AT_FDCWD;
    sys!(
        SYS_renameat2,
        cwd,
        &text(program)?,
        cwd,
        &text(name)?,
        libc::RENAME_EXCHANGE
    )
    .map(drop)
}

/// Many arguments, and only the last of them matters.
fn many(program: &str, count: &str, last: &str) -> io::Result<()> {
    let mut words = vec!["fine"; super::number(count)?];
    words.push(last);
    run(program, &words)
}

fn map(path: &str, protection: i32, flags: i32) -> io::Result<Memory> {
    Memory::map(4096, protection, flags, Some(File::open(path)?.as_fd()), 0)
}

fn memory_file() -> io::Result<()> {
    let memory = memfd_create("code", MFdFlags::empty())?;
    File::from(memory.try_clone()?).write_all(&[0xc3; 4096])?;
    Memory::map(
        4096,
        libc::PROT_READ | libc::PROT_EXEC,
        libc::MAP_SHARED,
        Some(memory.as_fd()),
        0,
    )?;
    done("mapped")
}

fn anonymous(protection: i32) -> io::Result<Memory> {
    Memory::map(
        4096,
        protection,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        None,
        0,
    )
}

/// Makes the page of a local variable executable.
fn stack() -> io::Result<()> {
    let local = [0u8; 16];
    let page = super::call::address(&local) & !4095;
    let page = i64::try_from(page).map_err(io::Error::other)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    sys!(SYS_mprotect, page, 4096, protection)?;
    done("executable")
}
