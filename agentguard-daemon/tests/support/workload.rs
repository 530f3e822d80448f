//! Records as the ring has them, of several agents at their work: mostly opens, some programs with arguments,
//! forks, ends, connections and new files, now and then a refusal, and sometimes many.
//!
//! What is refused is not made up: the policy says it, so that the recorder's own judgement agrees.
#![allow(
    clippy::allow_attributes,
    dead_code,
    missing_docs,
    reason = "not each of its users needs everything"
)]

use std::path::Path;
use std::sync::Arc;

use agentguard::audit::key::Key;
use agentguard::audit::{Log, LogOptions, Recorder};
use agentguard::policy::{Action, Judgement, LoadOptions, Policy, load_text};
use agentguard_common::record::{Destination, HEADER_LEN, RecordHeader};
use agentguard_common::verdict::{Operation, Verdict, access};
use anyhow::Context as _;
use zerocopy::IntoBytes;

pub const AGENTS: [&str; 6] = ["claude", "codex", "aider", "review", "nightly", "docs"];
const GENERATION: u32 = 3;
/// Processes of an agent that are there at the same time.
const PROCESSES: usize = 24;
/// Records after which other agents work, and sessions end.
const SHIFT: u64 = 120_000;
/// Agents that work at the same time.
const AT_WORK: u64 = 2;

const POLICY: &str = r#"
version: 1
name: workshop
files:
  default: deny
  read:
    allow: ["/work/**", "/usr/**", "/etc/**", "/tmp/**"]
    deny:
      - { path: "/work/*/.env", id: no-env, reason: "secrets stay secret" }
      - { path: "/etc/shadow", id: no-shadow, reason: "passwords of the host" }
  write:
    allow: ["/work/**", "/tmp/**"]
    deny:
      - { path: "/work/*/.git/hooks/**", id: no-hooks, reason: "hooks run outside" }
exec:
  allow: [{ path: "/usr/bin/*" }]
network:
  default: deny
  allow:
    - { cidr: 10.0.0.0/8, port: 443 }
"#;

const PROGRAMS: [&str; 6] = ["git", "cc", "python3", "node", "bash", "rg"];

/// One record but for who does it and when.
struct Shape {
    operation: Operation,
    access: u8,
    target: Vec<u8>,
    arguments: Vec<u8>,
    verdict: Verdict,
    reason: u16,
    inode: u64,
    aux: u32,
}

/// See the module.
pub struct Workload {
    policy: Arc<Policy>,
    /// Of each agent: what is permitted, and what is not.
    ordinary: Vec<Vec<Shape>>,
    refused: Vec<Vec<Shape>>,
    random: u64,
    done: u64,
    execs: u64,
    /// Of each agent: processes with the number of the exec that they run.
    processes: Vec<[(u32, u64); PROCESSES]>,
    next_pid: u32,
}

impl Workload {
    pub fn new(seed: u64) -> anyhow::Result<Self> {
        let policy = load_text(
            Path::new("/p/workshop.yaml"),
            POLICY,
            &LoadOptions::default(),
        )
        .context("failed to read the policy")?;
        let mut workload = Self {
            policy: Arc::new(policy),
            ordinary: Vec::new(),
            refused: Vec::new(),
            random: seed | 1,
            done: 0,
            execs: AGENTS.len() as u64 * PROCESSES as u64,
            processes: Vec::new(),
            next_pid: 5_000_000,
        };
        for agent in 0..AGENTS.len() {
            workload.add_agent(agent);
        }
        Ok(workload)
    }

    /// A recorder that knows the policy, and the programs that run at the beginning.
    pub fn recorder(&self, folder: &Path, options: LogOptions) -> anyhow::Result<Recorder> {
        let (key, _) = Key::of_state(folder)?;
        let log = Log::open_after(&folder.join("audit.jsonl"), 0..0, options, Some(key))?;
        let mut recorder = Recorder::new(log, [0, 0]);
        recorder
            .judge()
            .add(GENERATION, self.policy.clone(), &[GENERATION]);
        for (_, id) in self.processes.iter().flatten() {
            recorder.name_program(*id, "/usr/bin/bash");
        }
        Ok(recorder)
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % sides
    }

    fn add_agent(&mut self, agent: usize) {
        let first = 1 + (agent * PROCESSES) as u64;
        let mut processes = [(0, 0); PROCESSES];
        for (number, process) in processes.iter_mut().enumerate() {
            self.next_pid += 1;
            *process = (self.next_pid, first + number as u64);
        }
        self.processes.push(processes);
        let name = AGENTS[agent];
        let mut ordinary = Vec::new();
        for number in 0..4_000_u64 {
            ordinary.push(self.ordinary(name, number));
        }
        let mut refused = Vec::new();
        for number in 0..60 {
            let path = match number % 3 {
                0 => format!("/work/{name}/.env"),
                1 => "/etc/shadow".to_owned(),
                _ => format!("/root/.ssh/key-{number}"),
            };
            refused.push(self.file(Operation::Open, access::READ, &path, number));
        }
        refused.push(self.connect([192, 0, 2, 7], 25));
        let hook = format!("/work/{name}/.git/hooks/pre-commit");
        refused.push(self.file(Operation::Create, access::WRITE, &hook, 7));
        self.ordinary.push(ordinary);
        self.refused.push(refused);
    }

    fn ordinary(&mut self, name: &str, number: u64) -> Shape {
        let source = format!(
            "/work/{name}/src/module_{}/{}_{number}.rs",
            number % 61,
            ["parser", "table", "walk", "request"][(number % 4) as usize]
        );
        match self.roll(100) {
            0..=4 => {
                let program = PROGRAMS[(number % 6) as usize];
                let path = format!("/usr/bin/{program}");
                let arguments = format!("{program}\0-C\0/work/{name}\0--quiet\0{source}\0");
                self.program(&path, arguments.into_bytes())
            }
            5..=7 => self.connect([10, 0, (number % 200) as u8, 9], 443),
            8..=11 => self.file(Operation::Create, access::WRITE, &source, number),
            12..=14 => {
                let path = format!("/tmp/{name}-{number}.tmp");
                self.file(Operation::Unlink, access::WRITE, &path, number)
            }
            15..=30 => {
                let path = format!("/usr/lib/python3/dist-packages/mod_{}.py", number % 900);
                self.file(Operation::Open, access::READ, &path, number)
            }
            31..=45 => self.file(Operation::Open, access::WRITE, &source, number),
            _ => self.file(Operation::Open, access::READ, &source, number),
        }
    }

    fn file(&self, operation: Operation, access: u8, path: &str, inode: u64) -> Shape {
        let judged = self.policy.judge(&Action::Path {
            path: path.as_bytes(),
            access,
        });
        Shape {
            inode: 70_000 + inode,
            aux: if operation == Operation::Create {
                0o100_644
            } else {
                0x8000
            },
            ..Shape::of(operation, access, path.as_bytes().to_vec(), &judged)
        }
    }

    fn program(&self, path: &str, arguments: Vec<u8>) -> Shape {
        let argv: Vec<&[u8]> = arguments
            .split(|byte| *byte == 0)
            .filter(|argument| !argument.is_empty())
            .collect();
        let judged = self.policy.judge(&Action::Exec {
            path: path.as_bytes(),
            argv: Some(&argv),
        });
        let argc = argv.len() as u32;
        Shape {
            inode: 4_000,
            aux: argc,
            arguments,
            ..Shape::of(
                Operation::Exec,
                access::EXEC,
                path.as_bytes().to_vec(),
                &judged,
            )
        }
    }

    fn connect(&self, address: [u8; 4], port: u16) -> Shape {
        let mut destination = Destination {
            family: 2,
            protocol: 6,
            port,
            kind: 1,
            address: [0; 16],
        };
        destination.address[10..12].fill(0xff);
        destination.address[12..].copy_from_slice(&address);
        let judged = self.policy.judge(&Action::Network {
            destination: &destination,
        });
        Shape::of(
            Operation::Connect,
            0,
            destination.as_bytes().to_vec(),
            &judged,
        )
    }

    /// The session in which an agent is at a time, counted in records.
    fn session(agent: usize, done: u64) -> u32 {
        (done / SHIFT) as u32 * AGENTS.len() as u32 + agent as u32 + 1
    }

    /// Adds the next record. A recorder that takes it must be told of new sessions: see [`Workload::shifts`].
    pub fn record(&mut self, time: u64, to: &mut Vec<u8>) {
        let shift = self.done / SHIFT;
        let agent = ((shift + self.roll(AT_WORK)) % AGENTS.len() as u64) as usize;
        // Somebody tries again and again, for a while.
        let storm = self.done % 90_000 < 1_500;
        let is_refused = self.roll(1_000) < if storm { 250 } else { 3 };
        let process = self.roll(PROCESSES as u64) as usize;
        let (pid, exec_id) = self.processes[agent][process];
        let life = self.roll(100);
        let header = RecordHeader {
            time,
            agent: agent as u32 + 1,
            session: Self::session(agent, self.done),
            generation: GENERATION,
            pid,
            tid: pid,
            ppid: 4_999_999,
            uid: 1000,
            euid: 1000,
            exec_id,
            device: 0x80_0001,
            ..RecordHeader::default()
        };
        self.done += 1;
        if life < 6 && !is_refused {
            self.life(header, agent, process, life < 3, to);
            return;
        }
        let list = if is_refused {
            &self.refused
        } else {
            &self.ordinary
        };
        let pick = self.random >> 20;
        let shape = &list[agent][(pick % list[agent].len() as u64) as usize];
        let mut header = RecordHeader {
            operation: shape.operation as u8,
            verdict: shape.verdict as u8,
            reason: shape.reason,
            access: shape.access,
            inode: shape.inode,
            aux: shape.aux,
            ..header
        };
        if shape.operation == Operation::Exec {
            self.execs += 1;
            header.new_exec_id = self.execs;
            self.processes[agent][process].1 = self.execs;
        }
        put(header, &shape.target, &shape.arguments, to);
    }

    /// A process ends, or another is made.
    fn life(
        &mut self,
        header: RecordHeader,
        agent: usize,
        process: usize,
        ends: bool,
        to: &mut Vec<u8>,
    ) {
        let mut header = RecordHeader {
            generation: 0,
            device: 0,
            ..header
        };
        if ends {
            header.operation = Operation::Exit as u8;
        } else {
            self.next_pid += 1;
            header.operation = Operation::Fork as u8;
            header.aux = self.next_pid;
            self.processes[agent][process] = (self.next_pid, header.exec_id);
        }
        put(header, &[], &[], to);
    }

    /// Sessions that begin with the next record, with the names of their agents.
    pub fn shifts(&self) -> Vec<(u32, &'static str)> {
        if !self.done.is_multiple_of(SHIFT) {
            return Vec::new();
        }
        let agents = AGENTS.iter().enumerate();
        agents
            .map(|(agent, name)| (Self::session(agent, self.done), *name))
            .collect()
    }
}

impl Shape {
    fn of(operation: Operation, access: u8, target: Vec<u8>, judged: &Judgement) -> Self {
        Self {
            operation,
            access,
            target,
            arguments: Vec::new(),
            verdict: judged.verdict,
            reason: judged.reason as u16,
            inode: 0,
            aux: 0,
        }
    }
}

fn put(mut header: RecordHeader, target: &[u8], arguments: &[u8], to: &mut Vec<u8>) {
    header.target_len = target.len() as u32;
    header.args_len = arguments.len() as u32;
    header.len = HEADER_LEN as u32 + header.target_len + header.args_len;
    to.extend_from_slice(header.as_bytes());
    to.extend_from_slice(target);
    to.extend_from_slice(arguments);
}
