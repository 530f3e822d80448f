//! `agentguard top` on a real terminal device, against a socket that speaks the daemon's types.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::convert::Infallible;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};

use agentguard::api::wire::{Snapshot, Status, TrafficSum, Why};
use agentguard::approval::{Approvals, Waiting};
use agentguard::audit::{Record, Tally, Totals};
use agentguard::session::{AgentInfo, Amounts};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

/// What an agent would like to write to the terminal: its title, and a screen without us.
const EVIL: &str = "/x\u{1b}]0;forged\u{7}\u{1b}[2J";

fn snapshot() -> Snapshot {
    Snapshot {
        at: 1000,
        status: Status {
            version: "9.9.9".to_owned(),
            pid: 1,
            log: "/x".into(),
            agents: 1,
            totals: Totals::default(),
        },
        agents: vec![AgentInfo {
            name: "claude".to_owned(),
            session: 4,
            policy: "coding-agent".to_owned(),
            mode: "enforce".to_owned(),
            generation: 1,
            files: Vec::new(),
            cgroup: "/x".into(),
            processes: 7,
            frozen: false,
            since: 0,
            tally: Tally {
                allowed: 12,
                denied: 3,
                would_deny: 0,
            },
            budget: None,
            environment: Vec::new(),
        }],
        budgets: Vec::new(),
        traffic: vec![TrafficSum {
            agent: "claude".to_owned(),
            amounts: Amounts::default(),
        }],
        approvals: approvals(),
    }
}

/// An act that waits, with what it would like to write to the terminal.
fn approvals() -> Approvals {
    let waiting = Waiting {
        id: 7,
        agent: "claude".to_owned(),
        session: 4,
        op: "exec".to_owned(),
        target: "/usr/bin/cargo".to_owned(),
        to: None,
        access: Some("exec".to_owned()),
        argv: Some(["cargo", "publish", EVIL].map(str::to_owned).to_vec()),
        exe: None,
        pid: 1,
        uid: 0,
        rule: Some("publish".to_owned()),
        reason: None,
        first: String::new(),
        last: String::new(),
        tries: 1,
        denied_by: None,
    };
    Approvals {
        waiting: vec![waiting],
        ..Approvals::default()
    }
}

fn why() -> Why {
    Why {
        agent: "claude".to_owned(),
        session: 4,
        refusals: vec![Record {
            seq: 1,
            time: "2026-11-26T08:09:10.0Z".into(),
            agent: Some("claude".into()),
            exe: Some("/usr/bin/cat".into()),
            target: Some(EVIL.into()),
            access: Some("read".into()),
            verdict: Some("deny".into()),
            rule: Some("ssh-keys".into()),
            ..Record::new("open")
        }],
    }
}

fn answer(request: &Request<Incoming>, told: &Sender<String>) -> Vec<u8> {
    let path = request.uri().path();
    if request.method() == hyper::Method::POST {
        let _ = told.send(path.to_owned());
        if path.ends_with("/deny") {
            return serde_json::to_vec(&approvals().waiting[0]).unwrap();
        }
        return b"null".to_vec();
    }
    match path {
        "/v1/snapshot" => serde_json::to_vec(&snapshot()).unwrap(),
        "/v1/why" => serde_json::to_vec(&why()).unwrap(),
        _ => Vec::new(),
    }
}

/// Answers at a socket, and tells what was asked to be done.
fn daemon(folder: &Path) -> (PathBuf, Receiver<String>) {
    let path = folder.join("control.sock");
    let (told, heard) = channel();
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let told = told.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let bytes = answer(&request, &told);
                        let body = Full::new(Bytes::from(bytes));
                        async move { Ok::<_, Infallible>(Response::new(body)) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
    });
    (path, heard)
}

/// `top`, and the other end of its terminal.
struct Seen {
    child: Child,
    master: File,
    /// Kept open, so that what was written can be read after the end.
    slave: OwnedFd,
    text: String,
}

impl Seen {
    fn start(socket: &Path, colour: bool) -> Self {
        let size = Winsize {
            ws_row: 24,
            ws_col: 120,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_agentguard"));
        command
            .args(["top", "--socket"])
            .arg(socket)
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR")
            .stdin(end())
            .stdout(end())
            .stderr(end());
        if !colour {
            command.env("NO_COLOR", "1");
        }
        Self {
            child: command.spawn().unwrap(),
            master: File::from(pty.master),
            slave: pty.slave,
            text: String::new(),
        }
    }

    /// Reads until this was written, after what was waited for before.
    fn wait_for(&mut self, what: &str) {
        let from = self.text.len();
        let mut buffer = [0; 4096];
        while !self.text[from..].contains(what) {
            let count = self.master.read(&mut buffer).unwrap();
            self.text
                .push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }

    fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Its status, when it has ended, with the terminal as it was.
    fn end(mut self) -> (i32, String) {
        self.wait_for("\u{1b}[?1049l");
        let status = self.child.wait().unwrap();
        let flags = tcgetattr(self.slave.as_fd()).unwrap().local_flags;
        assert!(flags.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG));
        (status.code().unwrap_or(-1), self.text)
    }
}

#[test]
fn an_agent_is_seen_and_killed_and_its_names_forge_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, heard) = daemon(folder.path());
    let mut seen = Seen::start(&socket, true);
    seen.wait_for("ssh-keys");
    seen.press("K");
    seen.wait_for("kills,");
    assert!(
        heard.try_recv().is_err(),
        "nothing is done before the answer"
    );
    seen.press("y");
    assert_eq!(heard.recv().unwrap(), "/v1/agents/claude/kill");
    seen.press("f");
    assert_eq!(heard.recv().unwrap(), "/v1/agents/claude/freeze");
    seen.press("q");
    let (status, text) = seen.end();
    assert_eq!(status, 0);
    assert!(
        text.contains("\u{1b}[?1049h") && text.contains("9.9.9"),
        "{text:?}"
    );
    assert!(text.contains(r"\x1b]0;forged\x07"), "{text:?}");
    assert!(
        !text.contains("\u{1b}]0;") && !text.contains('\u{7}'),
        "{text:?}"
    );
    assert!(text.contains("\u{1b}[38;5;"), "{text:?}");
}

#[test]
fn an_act_that_waits_is_answered_and_its_arguments_forge_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, heard) = daemon(folder.path());
    let mut seen = Seen::start(&socket, true);
    seen.wait_for("ssh-keys");
    seen.press("a");
    seen.wait_for("publish");
    seen.press("1");
    seen.wait_for("y permits");
    assert!(
        heard.try_recv().is_err(),
        "nothing is permitted before the answer"
    );
    seen.press("y");
    assert_eq!(heard.recv().unwrap(), "/v1/approvals/7/grant");
    seen.press("n");
    assert_eq!(heard.recv().unwrap(), "/v1/approvals/7/deny");
    seen.press("q");
    let (status, text) = seen.end();
    assert_eq!(status, 0);
    assert!(
        !text.contains("\u{1b}]0;") && !text.contains('\u{7}'),
        "{text:?}"
    );
}

#[test]
fn a_signal_gives_the_terminal_back_and_no_color_is_heard() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, _heard) = daemon(folder.path());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut seen = Seen::start(&socket, false);
        seen.wait_for("ssh-keys");
        kill(Pid::from_raw(seen.child.id().cast_signed()), signal).unwrap();
        let (status, text) = seen.end();
        assert_eq!(status, 0, "{signal}");
        assert!(
            !text.contains("\u{1b}[38;") && !text.contains("\u{1b}[31"),
            "{text:?}"
        );
    }
}

#[test]
fn without_a_terminal_there_is_one_look() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, _heard) = daemon(folder.path());
    let top = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agentguard"));
        command.args(["top", "--socket"]).arg(&socket).args(more);
        command.stdin(Stdio::null()).output().unwrap()
    };
    let refused = top(&[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        String::from_utf8(refused.stderr)
            .unwrap()
            .contains("--once")
    );
    let once = String::from_utf8(top(&["--once"]).stdout).unwrap();
    assert!(
        once.contains("claude") && once.contains("coding-agent"),
        "{once}"
    );
    assert!(!once.contains('\u{1b}'), "{once}");
    let json: Snapshot = serde_json::from_slice(&top(&["--once", "--json"]).stdout).unwrap();
    assert_eq!(json.agents[0].processes, 7);
}

#[test]
fn without_a_daemon_the_screen_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = Seen::start(&folder.path().join("nobody"), true);
    seen.wait_for("no AgentGuard daemon listens");
    assert!(!seen.child.wait().unwrap().success());
    assert!(!seen.text.contains("\u{1b}[?1049h"));
}
