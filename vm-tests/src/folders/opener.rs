//! A process that opens files, and changes its own view of them, when it is told to. It opens nothing of its own accord:
//! each of its opens is one that a test knows of.

use std::collections::BTreeMap;
use std::io::BufRead as _;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, mkdirat};
use nix::unistd::{UnlinkatFlags, chdir, chroot, fchdir, unlinkat};

/// What it has open, by name.
struct Opener(BTreeMap<String, OwnedFd>);

/// Does what the lines of its input say, each a list of words as JSON; its answers are errnos, 0 for success.
pub fn main() -> Result<()> {
    let mut opener = Opener(BTreeMap::new());
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let words: Vec<String> = serde_json::from_str(&line?).context("the input is no list")?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        println!("{}", opener.answer(&words)?);
    }
    Ok(())
}

impl Opener {
    fn answer(&mut self, words: &[&str]) -> Result<String> {
        let ["open", at, path, times] = *words else {
            return Ok(errno(self.act(words)?).to_string());
        };
        let (at, path) = (self.at(at)?, self.path(path)?);
        let mut all = Vec::new();
        for _ in 0..times.parse()? {
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            let opened = openat(at, path.as_str(), flags, Mode::empty());
            all.push(errno(opened.map(drop)).to_string());
        }
        Ok(all.join(" "))
    }

    fn act(&mut self, words: &[&str]) -> Result<nix::Result<()>> {
        let none: Option<&str> = None;
        Ok(match *words {
            // Neither reads nor writes, and is not judged.
            ["hold", name, path] => self.keep(name, path, OFlag::O_PATH | OFlag::O_DIRECTORY),
            ["keep", name, path] => self.keep(name, path, OFlag::O_RDONLY),
            ["chmod", at, path] => {
                let mode = Mode::from_bits_truncate(0o644);
                fchmodat(self.at(at)?, path, mode, FchmodatFlags::FollowSymlink)
            }
            ["mkdir", at, path] => mkdirat(self.at(at)?, path, Mode::S_IRWXU),
            ["rmdir", at, path] => unlinkat(self.at(at)?, path, UnlinkatFlags::RemoveDir),
            ["map", name] => map(self.at(name)?),
            ["temporary", at] => {
                let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                openat(self.at(at)?, ".", flags, Mode::S_IRWXU).map(drop)
            }
            ["go", path] => chdir(path),
            ["go-to", name] => fchdir(self.at(name)?),
            ["chroot", path] => chroot(path),
            ["unshare"] => unshare(CloneFlags::CLONE_NEWNS).and_then(|()| {
                let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(none, "/", none, flags, none)
            }),
            ["bind", from, to] => mount(Some(from), to, none, MsFlags::MS_BIND, none),
            ["move", from, to] => mount(Some(from), to, none, MsFlags::MS_MOVE, none),
            ["unmount", path] => umount2(path, MntFlags::empty()),
            _ => bail!("no such act: {words:?}"),
        })
    }

    fn keep(&mut self, name: &str, path: &str, flags: OFlag) -> nix::Result<()> {
        let opened = openat(AT_FDCWD, path, flags | OFlag::O_CLOEXEC, Mode::empty())?;
        self.0.insert(name.to_owned(), opened);
        Ok(())
    }

    /// A folder that it holds, or its working directory.
    fn at(&self, name: &str) -> Result<BorrowedFd<'_>> {
        if name.is_empty() {
            return Ok(AT_FDCWD);
        }
        Ok(self.0.get(name).context("there is no such folder")?.as_fd())
    }

    /// A path; what begins with `=` is a file that it has open.
    fn path(&self, word: &str) -> Result<String> {
        let Some(name) = word.strip_prefix('=') else {
            return Ok(word.to_owned());
        };
        let file = self.0.get(name).context("there is no such file")?;
        Ok(format!("/proc/self/fd/{}", file.as_raw_fd()))
    }
}

/// Maps the beginning of a file as code, for a moment.
fn map(file: BorrowedFd<'_>) -> nix::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    let none = std::ptr::null_mut();
    // SAFETY: wherever there is room; nobody reads it.
    unsafe {
        let mapped = libc::mmap(none, 1, protection, libc::MAP_PRIVATE, file.as_raw_fd(), 0);
        if mapped == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Errno::result(libc::munmap(mapped, 1)).map(drop)
    }
}

fn errno(result: nix::Result<()>) -> i32 {
    result.err().map_or(0, |error| error as i32)
}
