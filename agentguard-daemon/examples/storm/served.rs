//! The resolver in a process of its own: it tells by lines on its standard output what it opened and recorded,
//! before the answer leaves, and keeps nothing of it.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use agentguard::resolver::{AddressVerdict, Asker, Gate, Judged, Limits, Opening, Resolution};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{client, gate};

/// The word that makes a process be it; the address of the other resolver follows.
pub const WORD: &str = "serve";

/// What a record says, as far as it tells ways to behave apart.
pub struct Heard {
    pub name: String,
    pub way: String,
}

/// That process, from outside.
pub struct Served {
    pub at: SocketAddr,
    child: Child,
    output: ChildStdout,
    unread: Vec<u8>,
    records: Vec<Heard>,
    opened: Vec<(String, IpAddr)>,
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Served {
    pub fn start(other: SocketAddr) -> Self {
        let mut child = Command::new("/proc/self/exe")
            .args([WORD, &other.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The first line is all that it says before it is asked.
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let output = output.into_inner();
        fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        Self {
            at: line.trim().parse().unwrap(),
            child,
            output,
            unread: Vec::new(),
            records: Vec::new(),
            opened: Vec::new(),
        }
    }

    pub fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Records since the last call.
    pub fn heard(&mut self) -> Vec<Heard> {
        self.hear();
        std::mem::take(&mut self.records)
    }

    /// What was opened since the last call.
    pub fn opened(&mut self) -> Vec<(String, IpAddr)> {
        self.hear();
        std::mem::take(&mut self.opened)
    }

    fn hear(&mut self) {
        let mut bytes = [0; 8_192];
        loop {
            match self.output.read(&mut bytes) {
                Ok(0) => break,
                Ok(length) => self.unread.extend_from_slice(&bytes[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            let line = String::from_utf8(line).unwrap();
            let (first, rest) = line.trim_end_matches('\n').split_once('\t').unwrap();
            let (second, third) = rest.split_once('\t').unwrap();
            if first == "open" {
                let opened = (third.to_owned(), second.parse().unwrap());
                self.opened.push(opened);
            } else {
                self.records.push(Heard {
                    name: third.to_owned(),
                    way: format!("{first} {second}"),
                });
            }
        }
    }

    /// Its memory in KiB.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.unwrap().trim().trim_end_matches("kB").trim();
        number.parse().unwrap()
    }
}

/// The policy of the tests, that tells what happens and keeps nothing.
struct Telling(Arc<gate::Memory>);

impl Gate for Telling {
    fn judge(&self, asker: Asker, name: &str) -> Judged {
        self.0.judge(asker, name)
    }

    fn address(&self, asker: Asker, name: &str, judged: &Judged, it: IpAddr) -> AddressVerdict {
        self.0.address(asker, name, judged, it)
    }

    fn open(&self, asker: Asker, opening: &Opening<'_>) -> Result<(), String> {
        assert_eq!(asker.agent, 1);
        tell("open", &opening.address.to_string(), opening.name);
        self.0.open(asker, opening)
    }

    fn record(&self, _: Asker, it: &Resolution<'_>) {
        let answers = it.answers.len().min(3);
        tell(it.cause, &format!("{} {answers}", it.kind), it.name);
    }
}

fn tell(first: &str, second: &str, third: &str) {
    // In one piece: several threads tell.
    let line = format!("{first}\t{second}\t{third}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

/// Is that process, until it is killed.
pub async fn be(other: &str, limits: Limits) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        usual(info);
        // Also a thread that nobody waits for.
        std::process::abort();
    }));
    let memory = gate::Memory::permitting(&["*.test", "api.example.com"]);
    memory.forgets.store(true, Ordering::Relaxed);
    let other = other.parse().unwrap();
    let served = client::serve(Arc::new(Telling(memory)), &[other], limits);
    println!("{}", served.at);
    std::future::pending::<()>().await;
}
