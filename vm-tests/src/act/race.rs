//! Races: many threads change what a name or an argument means while others use it. What came of it
//! is said in one line; whether that was right is judged elsewhere.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::call::{Memory, address, sys, text};
use super::number;

/// Every verb.
pub const VERBS: &[&str] = &["race-symlink", "race-rename", "race-arguments"];
/// Threads that change, and threads that use.
const CHANGING: usize = 16;
const USING: usize = 48;
/// Between two uses: each becomes a record, and a minute of them must fit into a guest's memory.
const PAUSE: Duration = Duration::from_millis(5);
const HARMLESS: &[u8] = b"harmless";
const DANGER: &[u8] = b"--danger";

/// Performs an act of this module.
pub fn perform(words: &[&str]) -> Option<io::Result<()>> {
    Some(match words {
        ["race-symlink", seconds] => number(seconds).and_then(symlinks),
        ["race-rename", seconds] => number(seconds).and_then(folders),
        ["race-arguments", seconds] => number(seconds).and_then(arguments),
        _ => return None,
    })
}

/// What was seen of all uses.
#[derive(Default)]
struct Seen {
    permitted: AtomicU64,
    refused: AtomicU64,
    forbidden: AtomicU64,
}

impl Seen {
    fn open(&self, path: &str) {
        let count = match fs::read(path) {
            Ok(text) if text == b"key" => &self.forbidden,
            Ok(_) => &self.permitted,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
                &self.refused
            }
            // Between two changes there may be nothing.
            Err(_) => return,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn say(&self) -> io::Result<()> {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        super::say(
            format!(
                "permitted {} refused {} forbidden {}",
                load(&self.permitted),
                load(&self.refused),
                load(&self.forbidden)
            )
            .as_bytes(),
        )
    }
}

/// Runs both kinds of threads until the time is over; each gets its number.
fn race(seconds: usize, change: impl Fn(usize) + Sync, usage: impl Fn(usize) + Sync) {
    let end = Instant::now() + Duration::from_secs(seconds as u64);
    thread::scope(|scope| {
        for index in 0..CHANGING + USING {
            let (change, usage) = (&change, &usage);
            scope.spawn(move || {
                while Instant::now() < end {
                    if index < CHANGING {
                        change(index);
                        thread::yield_now();
                    } else {
                        usage(index);
                        thread::sleep(PAUSE);
                    }
                }
            });
        }
    });
}

/// A link leads now to a free file and now to a secret.
fn symlinks(seconds: usize) -> io::Result<()> {
    let seen = Seen::default();
    let turn = AtomicU64::new(0);
    race(
        seconds,
        |index| {
            let target = if turn.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                "/t/ws/free.txt"
            } else {
                "/t/secret/key"
            };
            let fresh = format!("/t/ws/link-{index}");
            // Another thread may be in the way: the next turn comes at once.
            let _ = symlink(target, &fresh);
            let _ = fs::rename(&fresh, "/t/ws/link");
        },
        |_| seen.open("/t/ws/link"),
    );
    seen.say()
}

/// A folder and a link to the folder of secrets exchange their names.
fn folders(seconds: usize) -> io::Result<()> {
    fs::create_dir("/t/ws/one")?;
    fs::write("/t/ws/one/key", "free")?;
    symlink("/t/secret", "/t/ws/two")?;
    let (one, two) = (text("/t/ws/one")?, text("/t/ws/two")?);
    let seen = Seen::default();
    race(
        seconds,
        |_| {
            let cwd = libc::AT_FDCWD;
            // As above.
            let _ = sys!(SYS_renameat2, cwd, &one, cwd, &two, libc::RENAME_EXCHANGE);
        },
        |index| {
            seen.open(if index.is_multiple_of(2) {
                "/t/ws/one/key"
            } else {
                "/t/ws/two/key"
            });
        },
    );
    seen.say()
}

/// A program is started with an argument that other threads write at the same time.
fn arguments(seconds: usize) -> io::Result<()> {
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let word = Memory::map(4096, libc::PROT_READ | libc::PROT_WRITE, flags, None, 0)?;
    word.write(0, HARMLESS);
    let program = text("/usr/bin/echo")?;
    let list = [address(program.as_bytes_with_nul()), word.address(), 0];
    let list: Vec<u8> = list.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let seen = Seen::default();
    let turn = AtomicU64::new(0);
    race(
        seconds,
        |_| {
            let even = turn.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
            word.write(0, if even { HARMLESS } else { DANGER });
        },
        |_| {
            let Ok(said) = start(&program, &list) else {
                return;
            };
            let count = match said.strip_suffix(b"\n") {
                Some(word) if word == DANGER => &seen.forbidden,
                Some(_) => &seen.permitted,
                None => &seen.refused,
            };
            count.fetch_add(1, Ordering::Relaxed);
        },
    );
    seen.say()
}

/// A child that becomes the program; what it says.
fn start(program: &std::ffi::CStr, list: &[u8]) -> io::Result<Vec<u8>> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let child = sys!(SYS_clone, libc::SIGCHLD, 0, 0, 0, 0)?;
    if child == 0 {
        // Only system calls here: other threads may have held locks when this child was made.
        let _ = sys!(SYS_dup2, writer.as_raw_fd(), 1);
        let _ = sys!(SYS_execve, program, list, 0);
        let _ = sys!(SYS_exit_group, 1);
    }
    drop(writer);
    let mut said = Vec::new();
    std::fs::File::from(reader).read_to_end(&mut said)?;
    sys!(SYS_wait4, child, 0, 0, 0)?;
    Ok(said)
}
