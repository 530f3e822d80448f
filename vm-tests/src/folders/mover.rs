//! A process that moves a folder to and fro, and its children, which open a file in it by a descriptor that they hold.
//! A number that all of them see is odd while the folder moves: an open that sees it even, and the same before and
//! after, knows where the folder was.

use std::io::{BufRead as _, PipeReader, Read as _, Write as _};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, fork};

/// How many open the file.
pub const OPENERS: usize = 4;
/// Opens without a pause: in each burst the folder becomes known, and is moved.
const BURST: u64 = 12;
/// Between two bursts: each open becomes a record, and a minute of them must fit into a guest's memory.
const PAUSE: Duration = Duration::from_millis(5);
/// Conclusive opens of each of them, in each place, before which there is no end: a busy machine is slower.
pub const ENOUGH: u64 = 200;
/// How long all of them may take to open a few times.
const PATIENCE: Duration = Duration::from_secs(30);
/// Of the folder above the one that is held, of which nothing changes, and of that itself: each second one leads back.
const MOVES: &[(&str, &str, RenameFlags)] = &[
    ("free/p", "denied/p", RenameFlags::empty()),
    ("denied/p", "free/p", RenameFlags::empty()),
    ("free/p", "denied/q", RenameFlags::RENAME_EXCHANGE),
    ("denied/q", "free/p", RenameFlags::RENAME_EXCHANGE),
    ("free/p/d", "denied/q/e", RenameFlags::empty()),
    ("denied/q/e", "free/p/d", RenameFlags::empty()),
    ("free/p/d", "denied/q/d", RenameFlags::RENAME_EXCHANGE),
    ("denied/q/d", "free/p/d", RenameFlags::RENAME_EXCHANGE),
];
/// There are no more moves.
const END: u64 = u64::MAX;

/// What one of them has seen.
#[derive(Default)]
#[repr(align(128))]
struct Seen {
    opens: AtomicU64,
    /// Opens while the folder was known to be where they are permitted, and where they are not.
    conclusive: [AtomicU64; 2],
    /// Opens that did not come to what they must there.
    wrong: AtomicU64,
    /// The number and the errno of the first of them.
    first: [AtomicU64; 2],
}

/// What all of them see.
#[derive(Default)]
struct Board {
    moves: AtomicU64,
    seen: [Seen; OPENERS],
}

impl Board {
    /// One that is shared with the children that this process makes, for as long as any of them lives.
    fn shared() -> Result<&'static Self> {
        let length = NonZero::new(size_of::<Self>()).context("a board of nothing")?;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: new pages, which nothing else uses.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), length.get(), protection, flags, -1, 0) };
        ensure!(at != libc::MAP_FAILED, "failed to share memory");
        // SAFETY: aligned as pages are, of this size, never unmapped; zeros are numbers, and all is atomic.
        Ok(unsafe { &*at.cast::<Self>() })
    }

    /// Whether each has seen enough to tell.
    fn has_enough(&self) -> bool {
        let mut counts = self.seen.iter().flat_map(|seen| &seen.conclusive);
        counts.all(|count| count.load(SeqCst) > ENOUGH)
    }
}

/// Moves for so many seconds, when a line comes, and says what was seen: for each that opens a line of numbers.
pub fn main(seconds: u64, root: &Path) -> Result<()> {
    let board = Board::shared()?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let folder = openat(AT_FDCWD, &root.join("free/p/d"), flags, Mode::empty())
        .context("failed to hold the folder")?;
    let (start, mut begin) = std::io::pipe()?;
    for seen in &board.seen {
        // SAFETY: there is one thread.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                // Else it would keep itself alive.
                drop(begin);
                serve(board, seen, &folder, start);
                std::process::exit(0);
            }
            Ok(ForkResult::Parent { .. }) => {}
            Err(error) => bail!("failed to fork: {error}"),
        }
    }
    println!("ready");
    std::io::stdin().lock().read_line(&mut String::new())?;
    begin.write_all(&[1; OPENERS])?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut turn = 0;
    // To where it was at first.
    while Instant::now() < end || turn % MOVES.len() != 0 || !board.has_enough() {
        let (from, to, flags) = MOVES[turn % MOVES.len()];
        let (from, to) = (root.join(from), root.join(to));
        board.moves.fetch_add(1, SeqCst);
        let moved = renameat2(AT_FDCWD, &from, AT_FDCWD, &to, flags);
        board.moves.fetch_add(1, SeqCst);
        moved.with_context(|| format!("failed to move to {}", to.display()))?;
        turn += 1;
        all_open(board, 4 + turn as u64 % 5)?;
    }
    board.moves.store(END, SeqCst);
    println!("{turn}");
    for seen in &board.seen {
        println!(
            "{} {} {} {} {}",
            seen.conclusive[0].load(SeqCst),
            seen.conclusive[1].load(SeqCst),
            seen.wrong.load(SeqCst),
            seen.first[0].load(SeqCst),
            seen.first[1].load(SeqCst),
        );
    }
    Ok(())
}

/// Waits until each has opened so many times more.
fn all_open(board: &Board, times: u64) -> Result<()> {
    let started = Instant::now();
    let opens = || board.seen.each_ref().map(|seen| seen.opens.load(SeqCst));
    let before = opens();
    while opens()
        .iter()
        .zip(&before)
        .any(|(now, before)| now - before < times)
    {
        ensure!(started.elapsed() < PATIENCE, "the openers do not go on");
        thread::yield_now();
    }
    Ok(())
}

/// Opens until there are no more moves.
fn serve(board: &Board, seen: &Seen, folder: &OwnedFd, mut start: PipeReader) {
    if start.read_exact(&mut [0]).is_err() {
        return;
    }
    loop {
        for _ in 0..BURST {
            let before = board.moves.load(SeqCst);
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            let opened = openat(folder, "f", flags, Mode::empty());
            let errno = opened.map(drop).err().map_or(0, |error| error as i32);
            let after = board.moves.load(SeqCst);
            if before == END || after == END {
                return;
            }
            seen.opens.fetch_add(1, SeqCst);
            if before == after && before.is_multiple_of(2) {
                seen.judge(before, errno);
            }
        }
        thread::sleep(PAUSE);
    }
}

impl Seen {
    fn judge(&self, moves: u64, errno: i32) {
        let denied = moves / 2 % 2 == 1;
        self.conclusive[usize::from(denied)].fetch_add(1, SeqCst);
        let expected = if denied { libc::EPERM } else { 0 };
        if errno != expected && self.wrong.fetch_add(1, SeqCst) == 0 {
            self.first[0].store(moves, SeqCst);
            self.first[1].store(u64::from(errno.unsigned_abs()), SeqCst);
        }
    }
}
