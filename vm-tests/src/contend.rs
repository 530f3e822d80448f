//! A process of an agent whose 64 threads, or 64 child processes, all try the same thing at once, as often as they
//! are told to. Each line of its input is a round; its answer is how many of them succeeded.

use std::fs::File;
use std::io::{BufRead as _, PipeReader, PipeWriter, Read as _, Write as _};
use std::net::UdpSocket;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

/// How many try at once.
pub const CONTENDERS: usize = 64;
/// A file that everybody may open.
pub const FILE: &str = "/t/ws/free.txt";

/// What they try.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum What {
    /// Open a file.
    Open,
    /// Start a program.
    Exec,
    /// Connect a socket.
    Connect,
    /// Make a process.
    Process,
}

/// Who tries.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Who {
    /// Threads of one process.
    Threads,
    /// Processes.
    Processes,
}

impl What {
    fn succeeds(self) -> bool {
        match self {
            Self::Open => File::open(FILE).is_ok(),
            Self::Exec => Command::new("/usr/bin/true")
                .status()
                .is_ok_and(|status| status.success()),
            // Nothing is sent: nobody need listen.
            Self::Connect => UdpSocket::bind("127.0.0.1:0")
                .and_then(|socket| socket.connect("127.0.0.1:9"))
                .is_ok(),
            // SAFETY: the child does nothing but end.
            Self::Process => match unsafe { fork() } {
                Ok(ForkResult::Child) => {
                    // SAFETY: no destructor and no other thread is waited for.
                    unsafe { libc::_exit(0) }
                }
                Ok(ForkResult::Parent { child }) => waitpid(child, None).is_ok(),
                Err(_) => false,
            },
        }
    }

    /// Tries once for each byte that comes.
    fn serve(self, mut start: PipeReader, mut answers: PipeWriter) {
        let mut go = [0];
        while start.read_exact(&mut go).is_ok() {
            if answers.write_all(&[u8::from(self.succeeds())]).is_err() {
                return;
            }
        }
    }
}

/// Plays the rounds until its input ends.
pub fn main(what: What, who: Who) -> Result<()> {
    let (start, mut begin) = std::io::pipe()?;
    let (mut answers, answer) = std::io::pipe()?;
    for _ in 0..CONTENDERS {
        let (start, answer) = (start.try_clone()?, answer.try_clone()?);
        match who {
            Who::Threads => {
                std::thread::spawn(move || what.serve(start, answer));
            }
            // SAFETY: there is one thread.
            Who::Processes => match unsafe { fork() } {
                Ok(ForkResult::Child) => {
                    // Else it would keep itself alive.
                    drop(begin);
                    what.serve(start, answer);
                    std::process::exit(0);
                }
                Ok(ForkResult::Parent { .. }) => {}
                Err(error) => bail!("failed to fork: {error}"),
            },
        }
    }
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        line.context("failed to read the input")?;
        begin.write_all(&[1; CONTENDERS])?;
        let mut all = [0; CONTENDERS];
        answers.read_exact(&mut all)?;
        println!("{}", all.iter().map(|it| u32::from(*it)).sum::<u32>());
    }
    Ok(())
}
