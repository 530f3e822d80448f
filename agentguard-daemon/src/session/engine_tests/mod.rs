//! Sessions on an enforcer in memory and folders that stand for cgroups.

mod agents;
mod approvals;
mod budgets;
mod look;
mod metrics;
mod objects;
mod restore;
mod sinks;
mod traffic;
mod webhook;

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use agentguard_common::approval::{Grant, Key};
use agentguard_common::budget::{Limits, Meter};
use agentguard_common::label::{Label, Membership};
use agentguard_common::record::class;
use agentguard_common::traffic::{Counts, Flow};

use super::engine::Parts;
use super::*;
use crate::agent::Hierarchy;
use crate::audit::read::Reader;
use crate::audit::record::op;
use crate::audit::{Log, Record, Recorder};
use crate::kernel::{Counted, KernelError, NameBook, Opening, Ports, Protection, ResolverPlace};

/// What a kernel would hold.
#[derive(Debug, Default)]
struct Kernel {
    /// Whether all repeats were asked for.
    told_all: bool,
    /// Generation of the table of each agent.
    tables: BTreeMap<u32, u32>,
    cgroups: BTreeMap<u64, Membership>,
    labelled: HashSet<u32>,
    objects: BTreeMap<u32, Vec<Protection>>,
    limits: BTreeMap<u32, Limits>,
    meters: BTreeMap<u32, Meter>,
    /// Processes that carry the label of the first agent.
    carriers: HashSet<u32>,
    traffic: Vec<Counted>,
    approved: Vec<(Key, Grant)>,
    /// Records lost, by class.
    lost: [u64; class::COUNT as usize],
    /// The operation that fails.
    fails: Option<&'static str>,
    /// What was asked, in order.
    calls: Vec<&'static str>,
}

#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<Kernel>>);

impl Memory {
    fn call<T>(
        &self,
        name: &'static str,
        act: impl FnOnce(&mut Kernel) -> T,
    ) -> Result<T, KernelError> {
        let mut kernel = self.0.lock().unwrap();
        kernel.calls.push(name);
        if kernel.fails == Some(name) {
            return Err(KernelError::Slot(0));
        }
        Ok(act(&mut kernel))
    }
}

impl Enforcer for Memory {
    fn set_limits(&mut self, agent: u32, limits: &Limits) -> Result<(), KernelError> {
        self.call("set_limits", |kernel| {
            kernel.limits.insert(agent, *limits);
        })
    }

    fn meter(&self, number: u32) -> Result<Meter, KernelError> {
        let kernel = self.0.lock().unwrap();
        Ok(kernel.meters.get(&number).copied().unwrap_or(Meter::EMPTY))
    }

    fn approve(&mut self, key: Key, grant: Grant) -> Result<(), KernelError> {
        self.call("approve", |kernel| {
            kernel.approved.retain(|(other, _)| *other != key);
            kernel.approved.push((key, grant));
        })
    }

    fn disapprove(&mut self, key: Key, number: u32) -> Result<(), KernelError> {
        self.call("disapprove", |kernel| {
            kernel
                .approved
                .retain(|(other, grant)| *other != key || grant.number != number);
        })
    }

    fn approval(&self, key: Key) -> Result<Option<Grant>, KernelError> {
        let kernel = self.0.lock().unwrap();
        let mut entries = kernel.approved.iter();
        Ok(entries.find(|(other, _)| *other == key).map(|it| it.1))
    }

    fn keep_approvals(&mut self, keep: &dyn Fn(&Key, u32) -> bool) -> Result<(), KernelError> {
        let mut kernel = self.0.lock().unwrap();
        kernel
            .approved
            .retain(|(key, grant)| keep(key, grant.number));
        Ok(())
    }

    fn install(&mut self, agent: u32, table: &[u8]) -> Result<(), KernelError> {
        let generation = u32::from_ne_bytes(table[8..12].try_into().unwrap());
        self.call("install", |kernel| {
            kernel.tables.insert(agent, generation);
        })
    }

    fn uninstall(&mut self, agent: u32) -> Result<(), KernelError> {
        self.call("uninstall", |kernel| {
            kernel.tables.remove(&agent);
            kernel.limits.remove(&agent);
        })
    }

    fn open_address(&mut self, _: &Opening) -> Result<(), KernelError> {
        Ok(())
    }

    fn judge_addresses(
        &mut self,
        _: u32,
        _: u16,
        _: &mut dyn FnMut(&str) -> Vec<Ports>,
    ) -> Result<(), KernelError> {
        Ok(())
    }

    fn resolver_at(
        &mut self,
        _: u32,
        _: &Path,
        _: Option<ResolverPlace>,
    ) -> Result<(), KernelError> {
        Ok(())
    }

    fn resolver_of(&self, _: u32) -> Result<Option<ResolverPlace>, KernelError> {
        Ok(None)
    }

    fn names(&self) -> NameBook {
        NameBook::default()
    }

    fn protect(&mut self, agent: u32, objects: &[Protection]) -> Result<(), KernelError> {
        self.call("protect", |kernel| {
            kernel.objects.insert(agent, objects.to_vec());
            if objects.is_empty() {
                kernel.objects.remove(&agent);
            }
        })
    }

    fn protected_from(&self) -> Vec<u32> {
        self.0.lock().unwrap().objects.keys().copied().collect()
    }

    fn govern(&mut self, cgroup: u64, membership: Membership) -> Result<(), KernelError> {
        self.call("govern", |kernel| {
            kernel.cgroups.insert(cgroup, membership);
        })
    }

    fn release(&mut self, cgroup: u64) -> Result<(), KernelError> {
        self.call("release", |kernel| {
            kernel.cgroups.remove(&cgroup);
        })
    }

    fn label_members(&mut self) -> Result<usize, KernelError> {
        self.call("label", |kernel| {
            let agents: Vec<_> = kernel.cgroups.values().map(|member| member.agent).collect();
            kernel.labelled.extend(agents);
            0
        })
    }

    fn unlabel(&mut self, agent: u32) -> Result<usize, KernelError> {
        self.call("unlabel", |kernel| {
            usize::from(kernel.labelled.remove(&agent))
        })
    }

    fn unsettled(&self) -> Result<u64, KernelError> {
        Ok(0)
    }

    fn tell_repeats(&mut self, all: bool) -> Result<(), KernelError> {
        self.call("tell-repeats", |kernel| kernel.told_all |= all)
    }

    fn label_of(&self, pidfd: BorrowedFd<'_>) -> Result<Option<Label>, KernelError> {
        let kernel = self.0.lock().unwrap();
        if kernel.fails == Some("look-up") {
            return Err(KernelError::Slot(0));
        }
        let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
        let info = std::fs::read_to_string(path).unwrap();
        let carries = kernel
            .carriers
            .iter()
            .any(|pid| info.lines().any(|line| line == format!("Pid:\t{pid}")));
        Ok(carries.then(|| Label {
            agent: 1,
            session: 1,
            ..Label::default()
        }))
    }

    fn losses(&self) -> Result<[u64; class::COUNT as usize], KernelError> {
        Ok(self.0.lock().unwrap().lost)
    }

    fn memberships(&self) -> Result<Vec<(u64, Membership)>, KernelError> {
        let kernel = self.0.lock().unwrap();
        Ok(kernel.cgroups.iter().map(|(id, it)| (*id, *it)).collect())
    }

    fn count_traffic(&mut self, _: &Path, _: Membership) -> Result<(), KernelError> {
        self.call("count", |_| ())
    }

    fn count_no_more(&mut self, _: &Path) -> Result<(), KernelError> {
        self.call("count-no-more", |_| ())
    }

    fn traffic(&self) -> Result<Vec<Counted>, KernelError> {
        Ok(self.0.lock().unwrap().traffic.clone())
    }

    fn forget_traffic(&mut self, who: Membership) -> Result<(), KernelError> {
        self.call("forget-traffic", |kernel| {
            kernel.traffic.retain(|it| it.who != who);
        })
    }

    fn take_over(&mut self) -> Result<(), KernelError> {
        self.call("take-over", |_| ())
    }
}

fn parts(root: &std::path::Path, kernel: &Memory) -> Parts {
    let log = Log::open(&root.join("audit.jsonl")).unwrap();
    Parts {
        enforcer: Arc::new(Mutex::new(Box::new(kernel.clone()))),
        recorder: Arc::new(Mutex::new(Recorder::new(log, [0, 0]))),
        hierarchy: Hierarchy::at(root.join("cg")),
        guardian: None,
        pump: Pump::idle(),
        search: vec![root.join("policies")],
        own: Vec::new(),
        state: root.join("state"),
        store: Some(super::store::Store::at(&root.join("state"))),
        gateway: crate::gateway::GatewayConfig::default(),
    }
}

fn engine(root: &std::path::Path, kernel: &Memory) -> Arc<Engine> {
    Arc::new(Engine::assemble(parts(root, kernel)))
}

struct Bench {
    folder: tempfile::TempDir,
    engine: Arc<Engine>,
    kernel: Memory,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for name in ["cg/one", "cg/two", "policies"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        for name in ["one", "two"] {
            let events = "populated 0\nfrozen 0\n";
            std::fs::write(root.join("cg").join(name).join("cgroup.events"), events).unwrap();
            std::fs::write(root.join("cg").join(name).join("cgroup.procs"), "").unwrap();
        }
        let kernel = Memory::default();
        let bench = Self {
            engine: engine(&root, &kernel),
            folder,
            kernel,
        };
        bench.write("p", "version: 1\n");
        bench
    }

    /// The engine dies without a word, and another one finds what it left.
    fn die(&mut self) {
        let root = self.folder.path().canonicalize().unwrap();
        // The log has one writer at a time.
        self.engine = Arc::new(Engine::assemble(parts(&root.join("nowhere"), &self.kernel)));
        self.engine = engine(&root, &self.kernel);
        self.kernel(|kernel| kernel.calls.clear());
    }

    fn restore(&self) -> Result<(), SessionError> {
        let notes = self.engine.restore()?;
        self.engine.tell(notes);
        Ok(())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(format!("policies/{name}.yaml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    async fn attach(&self, name: &str, cgroup: &str) -> Result<AgentInfo, SessionError> {
        self.engine
            .attach(Attach {
                name: Some(name.parse().unwrap()),
                policy: PolicyRequest {
                    policy: "p".to_owned(),
                    vars: BTreeMap::new(),
                },
                target: Target::Cgroup(PathBuf::from(cgroup)),
                account: None,
                on_death: GuardianAction::Kill,
            })
            .await
    }

    fn kernel<T>(&self, look: impl FnOnce(&mut Kernel) -> T) -> T {
        look(&mut self.kernel.0.lock().unwrap())
    }

    fn records(&self) -> Vec<Record<'static>> {
        self.engine.recorder().settle();
        let mut reader = Reader::open(&self.folder.path().join("audit.jsonl")).unwrap();
        std::iter::from_fn(|| reader.next_line().unwrap())
            .map(|line| line.record.unwrap())
            .collect()
    }

    fn ops(&self) -> Vec<String> {
        self.records()
            .into_iter()
            .map(|record| record.op.into_owned())
            .collect()
    }
}
