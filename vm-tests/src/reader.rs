//! A process that opens files when it is told to.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::dialogue::Dialogue;
use crate::fixture;
use crate::guard::Group;

/// A process that opens files when it is told to, in its main thread or in a second one that has
/// been there from the start.
pub struct Reader(pub Dialogue);

impl Reader {
    const PROGRAM: &'static str = r#"
import queue, sys, threading
def read(path):
    try:
        open(path).read()
        print(0, flush=True)
    except OSError as error:
        print(error.errno, flush=True)
orders = queue.Queue()
def work():
    while True:
        read(orders.get())
threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    where, path = line.rstrip("\n").split(" ", 1)
    if where == "thread":
        orders.put(path)
    else:
        read(path)
"#;

    /// Starts in a fixture of its own.
    pub fn start(group: Option<&Group>) -> Result<Self> {
        fixture::make(&[])?;
        Self::attend(group)
    }

    /// Starts in the fixture as it is.
    pub fn attend(group: Option<&Group>) -> Result<Self> {
        let mut reader =
            Dialogue::start(Command::new("/usr/bin/python3").args(["-c", Self::PROGRAM]))?;
        ensure!(reader.hear()? == "ready", "the reader did not start");
        if let Some(group) = group {
            group.take(reader.pid())?;
        }
        Ok(Self(reader))
    }

    fn order(&mut self, place: &str, path: &str) -> Result<String> {
        self.0.say(&format!("{place} {path}"))?;
        self.0.hear()
    }

    /// Opens in the main thread; the errno, `0` for success.
    pub fn read(&mut self, path: &str) -> Result<String> {
        self.order("main", path)
    }

    /// Opens in the other thread.
    pub fn read_in_thread(&mut self, path: &str) -> Result<String> {
        self.order("thread", path)
    }
}
