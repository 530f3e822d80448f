//! Acts on files: opening in every way there is, and changing names, modes and attributes without
//! opening. Nothing here checks anything: what comes of an act is seen from outside.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

use super::call::{Memory, call32, owned, sys, text};
use super::{number, show};

/// Every verb.
pub const VERBS: &[&str] = &[
    "open-read",
    "open-write",
    "open-both",
    "open-only",
    "append",
    "truncate",
    "create",
    "create-exclusive",
    "creat",
    "temporary",
    "list",
    "open-deep",
    "reopen",
    "hold",
    "reopen-held",
    "open-beneath",
    "open2",
    "open32",
    "rename32",
    "open-by-handle",
    "open-clone",
    "rename",
    "rename-no-replace",
    "exchange",
    "link",
    "link-handle",
    "link-temporary",
    "unlink",
    "unlink-at",
    "rmdir",
    "mkdir",
    "mkfifo",
    "mknod",
    "mknod-device",
    "bind-unix",
    "symlink",
    "truncate-path",
    "chmod",
    "chmod-at2",
    "chmod-open",
    "chmod-handle",
    "chown",
    "chown-open",
    "set-flags",
    "set-flags-no-access",
    "set-xattr",
    "set-xattr-open",
    "remove-xattr",
    "set-capability",
    "set-immutable",
];

/// Number of a handle that is kept between two acts.
const HELD: i32 = 200;
const CWD: i32 = libc::AT_FDCWD;

/// Performs an act of this module.
pub fn perform(words: &[&str]) -> Option<io::Result<()>> {
    open(words)
        .or_else(|| names(words))
        .or_else(|| attributes(words))
}

fn open(words: &[&str]) -> Option<io::Result<()>> {
    let options = OpenOptions::new;
    Some(match words {
        ["open-read", path] => File::open(path).and_then(show),
        ["open-write", path] => options()
            .write(true)
            .open(path)
            .and_then(|file| file.write_all_at(b"X", 0)),
        ["open-both", path] => options()
            .read(true)
            .write(true)
            .open(path)
            .and_then(|file| file.write_all_at(b"X", 0)),
        // Opens for writing and writes nothing.
        ["open-only", path] => options()
            .write(true)
            .open(path)
            .and_then(|_| done("opened")),
        ["append", path] => options()
            .append(true)
            .open(path)
            .and_then(|mut file| file.write_all(b"X")),
        ["truncate", path] => options().write(true).truncate(true).open(path).map(drop),
        ["create", path] => options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .and_then(|mut file| file.write_all(b"X")),
        ["create-exclusive", path] => options().write(true).create_new(true).open(path).map(drop),
        ["creat", path] => text(path).and_then(|path| sys!(SYS_creat, &path, 0o644).map(drop)),
        ["temporary", folder] => temporary(folder).and_then(|_| done("made")),
        ["list", path] => list(path),
        ["open-deep", start, component, count, name] => deep(start, component, count, name),
        ["reopen", path] => reopen(path),
        // Keeps a handle for a later act of this process.
        ["hold", path] => handle(path).and_then(|file| {
            sys!(SYS_dup2, file.as_raw_fd(), HELD)?;
            Ok(())
        }),
        ["reopen-held"] => File::open(format!("/proc/self/fd/{HELD}")).and_then(show),
        ["open-beneath", folder, name] => beneath(folder, name),
        ["open2", path] => open2(path),
        ["open32", path] => open32(path),
        ["rename32", from, to] => low(&[from, to])
            .and_then(|at| call32(38, [at[0], at[1], 0, 0]))
            .map(drop),
        ["open-by-handle", path] => by_handle(path),
        ["open-clone", folder, name] => clone(folder, name),
        _ => return None,
    })
}

fn names(words: &[&str]) -> Option<io::Result<()>> {
    Some(match words {
        ["rename", from, to] => fs::rename(from, to),
        ["rename-no-replace", from, to] => rename(from, to, libc::RENAME_NOREPLACE),
        ["exchange", from, to] => rename(from, to, libc::RENAME_EXCHANGE),
        ["link", from, to] => fs::hard_link(from, to),
        ["link-handle", from, to] => link_handle(from, to),
        ["link-temporary", folder, to] => link_temporary(folder, to),
        ["unlink", path] => fs::remove_file(path),
        ["unlink-at", folder, name] => File::open(folder)
            .and_then(|folder| sys!(SYS_unlinkat, folder.as_fd(), &text(name)?, 0))
            .map(drop),
        ["rmdir", path] => fs::remove_dir(path),
        ["mkdir", path] => fs::create_dir(path),
        ["mkfifo", path] => mknod(path, libc::S_IFIFO, 0),
        ["mknod", path] => mknod(path, libc::S_IFREG, 0),
        // The number of /dev/zero.
        ["mknod-device", path] => mknod(path, libc::S_IFCHR, libc::makedev(1, 5)),
        ["bind-unix", path] => std::os::unix::net::UnixDatagram::bind(path).map(drop),
        ["symlink", target, path] => std::os::unix::fs::symlink(target, path),
        _ => return None,
    })
}

fn attributes(words: &[&str]) -> Option<io::Result<()>> {
    Some(match words {
        ["truncate-path", path] => {
            text(path).and_then(|path| sys!(SYS_truncate, &path, 1).map(drop))
        }
        ["chmod", path] => text(path).and_then(|path| sys!(SYS_chmod, &path, 0o600).map(drop)),
        ["chmod-at2", path] => text(path).and_then(|path| call_chmod_at2(&path)),
        ["chmod-open", path] => {
            File::open(path).and_then(|file| sys!(SYS_fchmod, file.as_fd(), 0o600).map(drop))
        }
        ["chmod-handle", path] => chmod_handle(path),
        ["chown", path] => text(path)
            .and_then(|path| sys!(SYS_chown, &path, -1, 1000))
            .and_then(|_| done("changed")),
        ["chown-open", path] => File::open(path)
            .and_then(|file| sys!(SYS_fchown, file.as_fd(), -1, 1000))
            .and_then(|_| done("changed")),
        ["set-flags", path] => File::open(path).and_then(|file| set_flags(&file)),
        ["set-immutable", path] => File::open(path).and_then(|file| immutable(&file)),
        // Access mode 3: neither read nor write, but ioctl.
        ["set-flags-no-access", path] => text(path)
            .and_then(|path| owned(sys!(SYS_openat, CWD, &path, 3)?))
            .and_then(|file| set_flags(&file.into())),
        ["set-xattr", name, path] => text(path)
            .and_then(|path| sys!(SYS_setxattr, &path, &text(name)?, &b"value"[..], 5, 0))
            .and_then(|_| done("set")),
        ["set-capability", path] => text(path)
            .and_then(|path| {
                let value = capability();
                sys!(
                    SYS_setxattr,
                    &path,
                    c"security.capability",
                    &value[..],
                    value.len(),
                    0
                )
            })
            .and_then(|_| done("set")),
        ["set-xattr-open", name, path] => File::open(path)
            .and_then(|file| {
                sys!(
                    SYS_fsetxattr,
                    file.as_fd(),
                    &text(name)?,
                    &b"value"[..],
                    5,
                    0
                )
            })
            .and_then(|_| done("set")),
        ["remove-xattr", name, path] => text(path)
            .and_then(|path| sys!(SYS_removexattr, &path, &text(name)?))
            .and_then(|_| done("removed")),
        _ => return None,
    })
}

/// Says that a call succeeded whose effect a picture of the files does not show.
pub fn done(word: &str) -> io::Result<()> {
    super::say(word.as_bytes())
}

fn list(path: &str) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        io::stdout().write_all(entry?.file_name().as_bytes())?;
    }
    Ok(())
}

/// A file without a name, with contents; without a link it vanishes with its descriptor.
fn temporary(folder: &str) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(folder)?;
    file.write_all(b"X")?;
    Ok(file)
}

/// Walks down one component at a time, to where the whole path is longer than any one call can name.
fn deep(start: &str, component: &str, count: &str, name: &str) -> io::Result<()> {
    std::env::set_current_dir(start)?;
    for _ in 0..number(count)? {
        std::env::set_current_dir(component)?;
    }
    show(File::open(name)?)
}

/// A handle (`O_PATH` reads nothing).
pub fn handle(path: &str) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)
}

/// Opens by handle first, then for reading through `/proc/self/fd`.
fn reopen(path: &str) -> io::Result<()> {
    let handle = handle(path)?;
    show(File::open(format!("/proc/self/fd/{}", handle.as_raw_fd()))?)
}

/// Opens relative to a folder's handle.
fn beneath(folder: &str, name: &str) -> io::Result<()> {
    let folder = handle(folder)?;
    show(owned(sys!(SYS_openat, folder.as_fd(), &text(name)?, 0)?)?.into())
}

fn open2(path: &str) -> io::Result<()> {
    // Flags, mode and resolve, all zero: read, and no restriction.
    let how = [0u8; 24];
    show(owned(sys!(SYS_openat2, CWD, &text(path)?, &how[..], how.len())?)?.into())
}

/// Puts strings where 32-bit pointers reach them.
pub fn low(words: &[&str]) -> io::Result<Vec<u32>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
    let memory = Memory::map(65536, libc::PROT_READ | libc::PROT_WRITE, flags, None, 0)?;
    let mut at = 0;
    let mut addresses = Vec::new();
    for word in words {
        let word = text(word)?;
        memory.write(at, word.as_bytes_with_nul());
        addresses.push(u32::try_from(memory.address() + at as u64).map_err(io::Error::other)?);
        at += word.as_bytes_with_nul().len();
    }
    Ok(addresses)
}

fn open32(path: &str) -> io::Result<()> {
    let at = low(&[path])?;
    show(owned(i64::from(call32(5, [at[0], 0, 0, 0])?))?.into())
}

/// Opens by the number that the file system knows the file by: no name is walked.
fn by_handle(path: &str) -> io::Result<()> {
    let mut handle = [0u8; 136];
    handle[0] = 128;
    let mut mount = [0u8; 4];
    sys!(
        SYS_name_to_handle_at,
        CWD,
        &text(path)?,
        &mut handle[..],
        &mut mount[..],
        0
    )?;
    let root = File::open("/t")?;
    show(
        owned(sys!(
            SYS_open_by_handle_at,
            root.as_fd(),
            &mut handle[..],
            0
        )?)?
        .into(),
    )
}

/// Opens through a copy of the mount that is attached nowhere.
fn clone(folder: &str, name: &str) -> io::Result<()> {
    const OPEN_TREE_CLONE: i32 = 1;
    let tree = owned(sys!(SYS_open_tree, CWD, &text(folder)?, OPEN_TREE_CLONE)?)?;
    show(owned(sys!(SYS_openat, tree.as_fd(), &text(name)?, 0)?)?.into())
}

fn rename(from: &str, to: &str, flags: u32) -> io::Result<()> {
    sys!(SYS_renameat2, CWD, &text(from)?, CWD, &text(to)?, flags).map(drop)
}

/// Links a file by its handle: its name is not in the call.
fn link_handle(from: &str, to: &str) -> io::Result<()> {
    let handle = handle(from)?;
    let name = text(&format!("/proc/self/fd/{}", handle.as_raw_fd()))?;
    sys!(
        SYS_linkat,
        CWD,
        &name,
        CWD,
        &text(to)?,
        libc::AT_SYMLINK_FOLLOW
    )
    .map(drop)
}

/// Gives a nameless file a name.
fn link_temporary(folder: &str, to: &str) -> io::Result<()> {
    let file = temporary(folder)?;
    let name = text(&format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    sys!(
        SYS_linkat,
        CWD,
        &name,
        CWD,
        &text(to)?,
        libc::AT_SYMLINK_FOLLOW
    )
    .map(drop)
}

fn mknod(path: &str, kind: u32, device: u64) -> io::Result<()> {
    let device = i64::try_from(device).map_err(io::Error::other)?;
    sys!(SYS_mknod, &text(path)?, kind | 0o644, device).map(drop)
}

fn call_chmod_at2(path: &std::ffi::CString) -> io::Result<()> {
    const SYS_FCHMODAT2: i64 = 452;
    use super::call::{Arg, call};
    let mut arguments = [
        Arg::from(CWD),
        Arg::from(path),
        Arg::from(0o600),
        Arg::from(0),
    ];
    call(SYS_FCHMODAT2, &mut arguments).map(drop)
}

fn chmod_handle(path: &str) -> io::Result<()> {
    let handle = handle(path)?;
    let name = text(&format!("/proc/self/fd/{}", handle.as_raw_fd()))?;
    sys!(SYS_chmod, &name, 0o600).map(drop)
}

/// `FS_IOC_SETFLAGS` with the flag "no dump", which is harmless and needs no capability.
fn set_flags(file: &File) -> io::Result<()> {
    const FS_IOC_SETFLAGS: i64 = 0x4008_6602;
    const NODUMP: u64 = 0x40;
    sys!(
        SYS_ioctl,
        file.as_fd(),
        FS_IOC_SETFLAGS,
        &NODUMP.to_ne_bytes()[..]
    )?;
    done("flagged")
}

/// Sets the flag that keeps even root from writing, and takes it away again.
fn immutable(file: &File) -> io::Result<()> {
    for flags in [0x10u64, 0] {
        sys!(
            SYS_ioctl,
            file.as_fd(),
            0x4008_6602,
            &flags.to_ne_bytes()[..]
        )?;
    }
    done("flagged")
}

/// Capability `cap_net_raw`, permitted and effective, in the second revision of the attribute.
fn capability() -> [u8; 20] {
    let mut value = [0; 20];
    value[..4].copy_from_slice(&0x0200_0001u32.to_le_bytes());
    value[4..8].copy_from_slice(&(1u32 << 13).to_le_bytes());
    value
}
