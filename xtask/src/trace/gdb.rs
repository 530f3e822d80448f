//! The emulator's stub for debuggers: its protocol, as far as one instruction after the other needs it.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bench_report::trace::Step;

/// Places of the stack pointer and of the instruction pointer among the registers, and their length in digits.
const STACK: usize = 7;
const INSTRUCTION: usize = 16;
const DIGITS: usize = 16;

/// A connection; the guest stands still unless it was told to go on.
pub struct Stub {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Stub {
    /// Connects as soon as there is a stub.
    pub fn connect(path: &Path, patience: Duration) -> Result<Self> {
        let started = Instant::now();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if started.elapsed() > patience => {
                    return Err(error).context("the emulator offers no debugger");
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        };
        let mut stub = Self {
            stream,
            received: Vec::new(),
        };
        // Why it stands still: nothing is known of it yet.
        stub.ask("?")?;
        Ok(stub)
    }

    /// Runs until this instruction is next.
    pub fn run_to(&mut self, address: u64) -> Result<()> {
        self.expect(&format!("Z1,{address:x},1"), "OK")?;
        self.ask("c")?;
        self.expect(&format!("z1,{address:x},1"), "OK")
    }

    /// Executes one instruction.
    pub fn step(&mut self) -> Result<Step> {
        self.ask("s")?;
        self.here()
    }

    /// What is next.
    fn here(&mut self) -> Result<Step> {
        let registers = self.ask("g")?;
        let number = |index: usize| {
            let digits = registers.get(index * DIGITS..(index + 1) * DIGITS);
            let digits = digits.with_context(|| format!("the debugger said {registers:?}"))?;
            let number = u64::from_str_radix(digits, 16)
                .with_context(|| format!("the debugger said {registers:?}"))?;
            anyhow::Ok(number.swap_bytes())
        };
        Ok(Step {
            address: number(INSTRUCTION)?,
            stack: number(STACK)?,
        })
    }

    /// Lets the guest go on, and is done.
    pub fn leave(mut self) -> Result<()> {
        self.expect("D", "OK")
    }

    fn expect(&mut self, command: &str, expected: &str) -> Result<()> {
        let answer = self.ask(command)?;
        ensure!(
            answer == expected,
            "the debugger answered {answer:?} to {command}"
        );
        Ok(())
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        let sum = command.bytes().fold(0u8, u8::wrapping_add);
        write!(self.stream, "${command}#{sum:02x}").context("the emulator has gone")?;
        loop {
            // An answer is between `$` and `#`, and two digits follow.
            let start = self.received.iter().position(|byte| *byte == b'$');
            let end = self.received.iter().position(|byte| *byte == b'#');
            if let (Some(start), Some(end)) = (start, end)
                && end + 3 <= self.received.len()
            {
                let answer = String::from_utf8_lossy(&self.received[start + 1..end]).into_owned();
                self.received.drain(..end + 3);
                self.stream
                    .write_all(b"+")
                    .context("the emulator has gone")?;
                return Ok(answer);
            }
            let mut buffer = [0; 4096];
            let count = self
                .stream
                .read(&mut buffer)
                .context("the emulator has gone")?;
            if count == 0 {
                bail!("the emulator ended");
            }
            self.received.extend_from_slice(&buffer[..count]);
        }
    }
}
