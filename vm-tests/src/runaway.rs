//! An agent that calls a model and starts processes for ever, under the limits that `coding-agent` has of its own:
//! it comes to stand still, an agent beside it goes on, and the operator is told why. The calls go through the real
//! gateway, which knows its callers by their sockets, to a provider on loopback.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

use crate::budgets::{frozen, refused, spent};
use crate::dialogue::Dialogue;
use crate::fixture;
use crate::guard::{Agent, PROVIDER, PROVIDER_KEY, agentguard_ok, write_policy};
use crate::trail::Trail;

/// An emulated guest does not make 20,000 processes in a minute: here it is fewer, as any policy may say.
const PROCESSES: u64 = 500;
/// Where the gateway listens for calls of the provider.
const GATEWAY: &str = "127.0.0.1:8377";
/// The provider's key, which no agent has.
const KEY: &str = "the-provider's-key";
/// Tokens that the provider says each call took.
const TOKENS: u64 = 18;
/// Processes between two calls, as long as calls are answered, and when they are not any more. Few, so that a slow
/// machine too makes more calls in a minute than are permitted.
const FEW: usize = 2;
const MANY: usize = 100;

/// What an agent does: a call for each line `call`, then, for the line `for ever`, calls and processes without end.
pub fn main() -> Result<()> {
    for line in std::io::stdin().lines() {
        match line?.as_str() {
            "call" => {
                let answer = call();
                println!("{}", answer.unwrap_or_else(|error| format!("{error:#}")));
            }
            "for ever" => loop {
                let answered = call().is_ok_and(|status| status == "200");
                for _ in 0..if answered { FEW } else { MANY } {
                    process();
                }
            },
            other => bail!("`{other}` is nothing that can be done"),
        }
    }
    Ok(())
}

/// One call of a model; gives the status of the answer.
fn call() -> Result<String> {
    let body = r#"{"model":"m","max_tokens":7,"messages":[{"role":"user","content":"again"}]}"#;
    let mut stream = TcpStream::connect(GATEWAY).context("no gateway")?;
    write!(
        stream,
        "POST /local/v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer placeholder\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).unwrap_or("nothing");
    Ok(status.to_owned())
}

/// Starts a process, which ends at once.
fn process() {
    // SAFETY: the child does nothing but end.
    match unsafe { fork() } {
        // SAFETY: no destructor and no other thread is waited for.
        Ok(ForkResult::Child) => unsafe { libc::_exit(0) },
        Ok(ForkResult::Parent { child }) => drop(waitpid(child, None)),
        // That is what happens in the end.
        Err(_) => {}
    }
}

/// A provider that answers every call that has its key, and counts.
pub(crate) struct Provider {
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Provider {
    /// Writes its key, and listens.
    pub(crate) fn start() -> Result<Self> {
        let mut key = std::fs::File::options()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(PROVIDER_KEY)?;
        key.write_all(KEY.as_bytes())?;
        let listener = TcpListener::bind(PROVIDER)?;
        let provider = Self {
            answered: Arc::default(),
            stop: Arc::default(),
        };
        let (answered, stop) = (provider.answered.clone(), provider.stop.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let answered = answered.clone();
                thread::spawn(move || {
                    // Whoever hangs up has no more to ask.
                    let _ = stream.map(|stream| serve(stream, &answered));
                });
            }
        });
        Ok(provider)
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The listener looks when somebody comes.
        let _ = TcpStream::connect(PROVIDER);
    }
}

/// Answers the calls of one connection.
fn serve(stream: TcpStream, answered: &AtomicU64) -> Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    let mut output = stream;
    loop {
        let (mut length, mut known) = (0, false);
        loop {
            let mut line = String::new();
            if input.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(": ") {
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => length = value.parse()?,
                    "authorization" => known = value == format!("Bearer {KEY}"),
                    _ => {}
                }
            }
        }
        let mut body = vec![0; length];
        input.read_exact(&mut body)?;
        let (status, body) = if known {
            answered.fetch_add(1, Ordering::Relaxed);
            (
                "200 OK",
                r#"{"id":"1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"again"},"finish_reason":"stop"}],"usage":{"prompt_tokens":11,"completion_tokens":7,"total_tokens":18}}"#,
            )
        } else {
            ("401 Unauthorized", r#"{"error":{"message":"no key"}}"#)
        };
        write!(
            output,
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
    }
}

/// A process that does what it is told, outside of every agent until it is taken into one.
fn start(agent: Option<&Agent>) -> Result<Dialogue> {
    let program = std::env::current_exe()?;
    let dialogue = Dialogue::start(Command::new(program).arg("runaway"))?;
    if let Some(agent) = agent {
        agent.group.take(dialogue.pid())?;
    }
    Ok(dialogue)
}

fn answer(dialogue: &mut Dialogue) -> Result<String> {
    dialogue.say("call")?;
    dialogue.hear()
}

/// The limits of `coding-agent` stop a loop, and say so; nobody else notices.
pub fn is_stopped(trail: &mut Trail) -> Result<()> {
    fixture::make(&[])?;
    let policy = format!(
        "version: 1\nextends: [coding-agent]\nvars: {{processes_per_minute: \"{PROCESSES}\"}}\n\
         models: {{providers: [local]}}\n"
    );
    write_policy("looping", &policy)?;
    let provider = Provider::start()?;
    let (wild, calm) = (
        Agent::attach("wild", "looping")?,
        Agent::attach("calm", "looping")?,
    );
    let (mut looping, mut beside, mut outside) =
        (start(Some(&wild))?, start(Some(&calm))?, start(None)?);
    for (name, dialogue) in [("wild", &mut looping), ("calm", &mut beside)] {
        let status = answer(dialogue)?;
        ensure!(status == "200", "`{name}` was answered {status}");
    }
    let status = answer(&mut outside)?;
    ensure!(status == "403", "who is no agent was answered {status}");

    let mark = trail.mark()?;
    let began = Instant::now();
    looping.say("for ever")?;
    trail.wait(mark, &refused("wild", "model", "runaway-calls"))?;
    trail.wait(mark, &refused("wild", "fork", "runaway-processes"))?;
    trail.wait(mark, &frozen("wild", "runaway-processes"))?;
    let events = std::fs::read_to_string(wild.group.path().join("cgroup.events"))?;
    ensure!(events.contains("frozen 1"), "the loop goes on");

    let why = agentguard_ok(&["why", "wild"])?;
    ensure!(
        why.contains("runaway-processes") && why.contains("start each other for ever"),
        "`why` does not say which limit it was: {why}"
    );
    let (calls, processes) = (
        spent("wild", "runaway-session")?,
        spent("wild", "runaway-processes")?,
    );
    // A minute forgets in steps of a second: where all this took longer, as many are permitted anew, and processes
    // from before have been forgotten.
    let took = began.elapsed().as_secs();
    let minutes = took / 59 + 1;
    ensure!(
        calls <= 1 + 120 * minutes,
        "{calls} calls in {took} seconds"
    );
    ensure!(
        processes == PROCESSES || minutes > 1 && processes < PROCESSES,
        "{processes} processes in {took} seconds"
    );
    for _ in 0..3 {
        let status = answer(&mut beside)?;
        ensure!(status == "200", "another agent was answered {status}");
    }
    let all = calls + spent("calm", "runaway-session")?;
    let answered = provider.answered.load(Ordering::Relaxed);
    ensure!(
        all == answered,
        "{all} calls were counted, the provider had {answered}"
    );
    let mut tokens = 0;
    trail.whole(|record| {
        tokens += record["usage"]["input_tokens"].as_u64().unwrap_or(0)
            + record["usage"]["output_tokens"].as_u64().unwrap_or(0);
        Ok(())
    })?;
    ensure!(
        tokens == answered * TOKENS,
        "the trail has {tokens} tokens, the provider gave {}",
        answered * TOKENS
    );
    Ok(())
}
