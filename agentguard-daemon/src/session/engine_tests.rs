//! Sessions on an enforcer in memory and folders that stand for cgroups.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

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
use crate::kernel::{Counted, Grants, KernelError, NameBook, Opening, Protection, ResolverPlace};

/// What a kernel would hold.
#[derive(Debug, Default)]
struct Kernel {
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
        _: &mut dyn FnMut(&str) -> Grants,
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
        Ok([0; class::COUNT as usize])
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

#[tokio::test]
async fn the_policy_is_in_force_before_anybody_is_labelled() {
    let bench = Bench::new();
    let agent = bench.attach("a", "/one").await.unwrap();
    assert_eq!((agent.session, agent.generation), (1, 1));
    assert_eq!(
        bench.kernel(|kernel| kernel.calls.clone()),
        ["install", "protect", "count", "govern", "label"]
    );
    assert_eq!(bench.ops(), ["agent-attach", "policy-install"]);
    let found = bench.engine.agent_of_cgroup(&agent.cgroup.join("below"));
    assert_eq!(found, Some(("a".to_owned(), 1)));
}

#[tokio::test]
async fn detach_leaves_nothing_in_the_kernel() {
    let bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    bench.engine.detach("a").await.unwrap();
    let (tables, cgroups, labelled, calls) = bench.kernel(|kernel| {
        (
            kernel.tables.len(),
            kernel.cgroups.len(),
            kernel.labelled.len() + kernel.objects.len(),
            kernel.calls.split_off(5),
        )
    });
    assert_eq!((tables, cgroups, labelled), (0, 0, 0));
    // Labels are taken until a round finds none; the policy goes last.
    assert_eq!(
        calls,
        [
            "release",
            "unlabel",
            "unlabel",
            "uninstall",
            "count-no-more",
            "forget-traffic",
            "protect"
        ]
    );
    assert!(bench.engine.list().is_empty());
    assert!(bench.engine.detach("a").await.is_err());
    let again = bench.attach("a", "/one").await.unwrap();
    assert_eq!(again.session, 2);
    // A cgroup that is not ours stays.
    assert!(again.cgroup.is_dir());
}

/// So many bytes to a port of one address.
fn counted(who: Membership, port: u16, bytes_out: u64) -> Counted {
    Counted {
        who,
        flow: Some(Flow {
            agent: who.agent,
            session: who.session,
            address: std::net::Ipv4Addr::new(192, 0, 2, 1)
                .to_ipv6_mapped()
                .octets(),
            port,
            protocol: 17,
        }),
        name: (port == 443).then(|| "a.test".into()),
        counts: Counts {
            bytes_out,
            packets_out: 1,
            ..Counts::default()
        },
    }
}

#[tokio::test]
async fn traffic_is_forgotten_when_it_is_in_the_log() {
    let mut bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    bench.attach("b", "/two").await.unwrap();
    let who = |slot| Membership {
        agent: slot,
        session: slot,
    };
    bench.kernel(|kernel| {
        kernel.traffic = vec![
            counted(who(1), 53, 100),
            counted(who(1), 443, 5_000),
            counted(who(2), 80, 7),
            counted(who(9), 22, 1),
        ];
    });
    let asked = bench.engine.traffic(None).unwrap();
    let sums: Vec<_> = asked.iter().map(|it| it.amounts.bytes_out).collect();
    assert_eq!(sums, [5_100, 7]);
    assert_eq!(asked[0].destinations[0].port, Some(443));
    assert_eq!(bench.engine.traffic(Some("b")).unwrap().len(), 1);
    assert!(bench.engine.traffic(Some("c")).is_err());
    bench.engine.detach("a").await.unwrap();
    let traffic = |bench: &Bench| -> Vec<(Option<String>, Option<u32>, Option<u64>)> {
        let records = bench.records().into_iter();
        records
            .filter(|record| record.op == "traffic")
            .map(|it| (it.agent.map(Into::into), it.session, it.bytes_out))
            .collect()
    };
    let own = |name: &str, session, bytes| (Some(name.to_owned()), Some(session), Some(bytes));
    assert_eq!(traffic(&bench), [own("a", 1, 5_000), own("a", 1, 100)]);
    assert_eq!(bench.ops().last().map(String::as_str), Some("agent-detach"));
    assert_eq!(bench.kernel(|kernel| kernel.traffic.len()), 2);
    // The next one finds what nobody owns, and an agent whose cgroup has gone; others go on.
    std::fs::remove_dir_all(bench.folder.path().join("cg/two")).unwrap();
    bench.die();
    bench.restore().unwrap();
    let found = traffic(&bench);
    assert_eq!(found[2..], [own("b", 2, 7), (None, Some(9), Some(1))]);
    assert!(bench.kernel(|kernel| kernel.traffic.is_empty()));
}

#[tokio::test]
async fn a_failure_half_way_is_undone() {
    for step in ["install", "protect", "count", "govern", "label"] {
        let bench = Bench::new();
        bench.kernel(|kernel| kernel.fails = Some(step));
        assert!(
            matches!(
                bench.attach("a", "/one").await,
                Err(SessionError::Kernel(_))
            ),
            "{step}"
        );
        let left = bench.kernel(|kernel| {
            kernel.fails = None;
            (
                kernel.tables.len(),
                kernel.cgroups.len(),
                kernel.labelled.len(),
            )
        });
        assert_eq!(left, (0, 0, 0), "{step}");
        assert!(bench.engine.list().is_empty());
        bench.attach("a", "/one").await.unwrap();
    }
}

#[tokio::test]
async fn names_and_cgroups_are_taken_once() {
    let bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    assert!(matches!(
        bench.attach("a", "/two").await,
        Err(SessionError::Registry(_))
    ));
    assert!(matches!(
        bench.attach("b", "/one").await,
        Err(SessionError::Registry(_))
    ));
    assert!(matches!(
        bench.attach("b", "/missing").await,
        Err(SessionError::Cgroup(_))
    ));
    bench.attach("b", "/two").await.unwrap();
    assert_eq!(bench.engine.list().len(), 2);
}

#[tokio::test]
async fn a_broken_policy_changes_nothing_but_the_log() {
    let bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    bench.write("p", "version: 1\nfils: {}\n");
    let outcome = bench.engine.reload(None).await;
    assert!(matches!(outcome[..], [(_, Err(SessionError::Policy(_)))]));
    let agent = &bench.engine.list()[0];
    assert_eq!(agent.generation, 1);
    assert_eq!(bench.kernel(|kernel| kernel.tables[&1]), 1);
    assert_eq!(bench.ops()[2..], ["policy-error"]);

    bench.write("p", "version: 1\nnetwork: {default: allow}\n");
    let outcome = bench.engine.reload(None).await;
    assert!(outcome[0].1.is_ok());
    assert_eq!(bench.ops()[3..], ["policy-install"]);
    let generation = bench.engine.list()[0].generation;
    assert_eq!(bench.kernel(|kernel| kernel.tables[&1]), generation);
    assert!(generation > 1);
}

#[tokio::test]
async fn a_table_that_cannot_be_installed_leaves_the_one_before() {
    let bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    bench.kernel(|kernel| kernel.fails = Some("install"));
    assert!(bench.engine.swap("a", None).await.is_err());
    assert_eq!(bench.engine.list()[0].generation, 1);
    assert_eq!(bench.ops()[2..], ["policy-error"]);
}

#[tokio::test]
async fn only_the_agents_of_a_file_are_reloaded() {
    let bench = Bench::new();
    let agent = bench.attach("a", "/one").await.unwrap();
    bench.attach("b", "/two").await.unwrap();
    let other = bench.write("q", "version: 1\n");
    let request = PolicyRequest {
        policy: "q".to_owned(),
        vars: BTreeMap::new(),
    };
    bench.engine.swap("b", Some(request)).await.unwrap();
    let mine: HashSet<_> = agent.files.into_iter().collect();
    let names = |outcomes: Vec<(String, _)>| -> Vec<String> {
        outcomes
            .into_iter()
            .map(|(name, _): (String, Result<AgentInfo, SessionError>)| name)
            .collect()
    };
    assert_eq!(names(bench.engine.reload(Some(&mine)).await), ["a"]);
    let other = HashSet::from([other.canonicalize().unwrap()]);
    assert_eq!(names(bench.engine.reload(Some(&other)).await), ["b"]);
    assert!(
        bench
            .engine
            .reload(Some(&HashSet::from([PathBuf::from("/x")])))
            .await
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_a_swap() {
    let bench = Bench::new();
    bench.engine.watch_files().unwrap();
    bench.attach("a", "/one").await.unwrap();
    bench.write("p", "version: 1\nnetwork: {default: allow}\n");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while bench.engine.list()[0].generation == 1 {
        assert!(std::time::Instant::now() < end, "no swap");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_first_process_and_ourselves_cannot_be_governed() {
    let bench = Bench::new();
    for pid in [1, std::process::id(), 5_000_000] {
        let outcome = bench
            .engine
            .attach(Attach {
                name: None,
                policy: PolicyRequest {
                    policy: "p".to_owned(),
                    vars: BTreeMap::new(),
                },
                target: Target::Process(pid),
                account: None,
                on_death: GuardianAction::Kill,
            })
            .await;
        assert!(outcome.is_err(), "{pid}");
    }
    assert!(bench.kernel(|kernel| kernel.calls.is_empty()));
}

#[tokio::test]
async fn the_end_kills_and_takes_no_label_away() {
    let bench = Bench::new();
    let agent = bench.attach("a", "/one").await.unwrap();
    let mut escaped = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .unwrap();
    bench.kernel(|kernel| kernel.carriers = HashSet::from([escaped.id()]));
    assert!(bench.engine.end("a", agent.session + 1).await.is_err());
    bench.engine.end("a", agent.session).await.unwrap();
    assert!(!escaped.wait().unwrap().success());
    let calls = bench.kernel(|kernel| kernel.calls.split_off(5));
    assert_eq!(
        calls,
        [
            "release",
            "uninstall",
            "count-no-more",
            "forget-traffic",
            "protect"
        ]
    );
    assert_eq!(bench.ops()[2..], ["kill", "agent-detach"]);
    assert!(bench.engine.list().is_empty());
}

#[tokio::test]
async fn an_end_that_cannot_be_proved_denies_everything() {
    let bench = Bench::new();
    let agent = bench.attach("a", "/one").await.unwrap();
    bench.kernel(|kernel| kernel.fails = Some("look-up"));
    assert!(bench.engine.end("a", agent.session).await.is_err());
    assert_eq!(
        bench.ops()[2..],
        ["policy-install", "alarm"],
        "the slot stays, with a policy that denies everything"
    );
    let left = bench.engine.list();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].policy, "self-test");
    // A person may still let it go.
    bench.engine.detach("a").await.unwrap();
}

#[tokio::test]
async fn a_workspace_that_is_not_there_governs_nobody() {
    let bench = Bench::new();
    let request = Attach {
        name: None,
        policy: PolicyRequest {
            policy: "p".to_owned(),
            vars: BTreeMap::from([("workspace".to_owned(), "/missing".to_owned())]),
        },
        target: Target::Cgroup(PathBuf::from("/one")),
        account: None,
        on_death: GuardianAction::Kill,
    };
    let outcome = bench.engine.attach(request).await;
    assert!(matches!(outcome, Err(SessionError::Place(_))));
    assert!(bench.kernel(|kernel| kernel.calls.is_empty()));
}

#[tokio::test]
async fn who_comes_after_a_death_knows_everybody() {
    let mut bench = Bench::new();
    let before = bench.attach("a", "/one").await.unwrap();
    bench.die();
    bench.restore().unwrap();
    let after = &bench.engine.list()[0];
    assert_eq!(
        (&after.name, after.session, after.generation, after.since),
        (
            &before.name,
            before.session,
            before.generation,
            before.since
        )
    );
    // All of it again, and harmless: the kernel has it already.
    let calls = bench.kernel(|kernel| kernel.calls.clone());
    assert_eq!(calls, ["install", "protect", "count", "govern", "label"]);
    assert_eq!(
        bench.ops(),
        ["agent-attach", "policy-install", "agent-restore"]
    );
    // The same file is no new version.
    bench.engine.refresh().await;
    assert_eq!(bench.engine.list()[0].generation, before.generation);
    // Numbers go on.
    let other = bench.attach("b", "/two").await.unwrap();
    assert_eq!((other.session, other.generation), (2, 2));
    bench.engine.detach("a").await.unwrap();
    bench.die();
    bench.restore().unwrap();
    let names: Vec<_> = bench.engine.list().into_iter().map(|it| it.name).collect();
    assert_eq!(names, ["b"]);
}

#[tokio::test]
async fn a_broken_file_leaves_the_policy_before_a_death_in_force() {
    let mut bench = Bench::new();
    bench.write("p", "version: 1\nname: first\n");
    bench.attach("a", "/one").await.unwrap();
    for text in ["version: 1\nfils: {}\n", ""] {
        bench.write("p", text);
        bench.die();
        bench.restore().unwrap();
        bench.engine.refresh().await;
        let agent = &bench.engine.list()[0];
        assert_eq!((agent.policy.as_str(), agent.generation), ("first", 1));
        assert_eq!(bench.kernel(|kernel| kernel.tables[&1]), 1);
        assert_eq!(bench.ops().last().unwrap(), "policy-error");
    }
    bench.write("p", "version: 1\nname: second\n");
    bench.die();
    bench.restore().unwrap();
    bench.engine.refresh().await;
    let agent = &bench.engine.list()[0];
    assert_eq!(agent.policy, "second");
    assert_eq!(
        bench.kernel(|kernel| kernel.tables[&1]),
        agent.generation,
        "the new version is in force"
    );
    assert!(agent.generation > 1);
}

#[tokio::test]
async fn a_lost_text_is_read_again_and_else_everything_is_denied() {
    let mut bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    let lose = |bench: &Bench| {
        let policies = bench.folder.path().join("state/policies");
        std::fs::remove_dir_all(policies).unwrap();
    };
    lose(&bench);
    bench.die();
    bench.restore().unwrap();
    let agent = &bench.engine.list()[0];
    assert_eq!((agent.policy.as_str(), agent.generation), ("p", 2));
    lose(&bench);
    bench.write("p", "");
    bench.die();
    bench.restore().unwrap();
    let agent = &bench.engine.list()[0];
    assert_eq!((agent.policy.as_str(), agent.generation), ("self-test", 3));
    assert_eq!(bench.kernel(|kernel| kernel.tables[&1]), 3);
}

#[tokio::test]
async fn another_cgroup_at_the_same_path_is_not_trusted() {
    let mut bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    let path = bench.folder.path().join("cg/one");
    std::fs::rename(&path, bench.folder.path().join("kept")).unwrap();
    std::fs::create_dir(&path).unwrap();
    // Somebody still carries the label: it stays, under its policy, and the new cgroup gives none.
    let mut escaped = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .unwrap();
    bench.kernel(|kernel| kernel.carriers = HashSet::from([escaped.id()]));
    bench.die();
    bench.restore().unwrap();
    assert_eq!(bench.engine.list().len(), 1);
    assert!(bench.kernel(|kernel| kernel.cgroups.is_empty() && kernel.tables.len() == 1));
    escaped.kill().unwrap();
    escaped.wait().unwrap();
    bench.kernel(|kernel| kernel.carriers.clear());
    bench.die();
    bench.restore().unwrap();
    assert!(bench.engine.list().is_empty());
    assert!(bench.kernel(|kernel| kernel.tables.is_empty()));
    assert_eq!(bench.ops().last().unwrap(), "agent-detach");
    assert!(path.is_dir(), "a cgroup that is not ours was removed");
}

#[tokio::test]
async fn without_the_state_nobody_is_forgotten() {
    let mut bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    let file = bench.folder.path().join("state/agents.json");
    let text = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    bench.die();
    assert!(matches!(bench.restore(), Err(SessionError::StateGone(1))));
    std::fs::write(&file, "{").unwrap();
    bench.die();
    assert!(matches!(bench.restore(), Err(SessionError::State { .. })));
    assert_eq!(bench.kernel(|kernel| kernel.cgroups.len()), 1);
    // A cgroup that is governed for nobody is released.
    std::fs::write(&file, text).unwrap();
    bench.kernel(|kernel| kernel.cgroups.insert(1, Membership::default()));
    bench.die();
    bench.restore().unwrap();
    assert_eq!(bench.kernel(|kernel| kernel.cgroups.len()), 1);
    assert_eq!(bench.engine.list().len(), 1);
}

#[tokio::test]
async fn agents_of_an_earlier_boot_are_gone() {
    let mut bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    let file = bench.folder.path().join("state/agents.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(&boot(), "another")).unwrap();
    bench.kernel(|kernel| kernel.cgroups.clear());
    bench.die();
    bench.restore().unwrap();
    assert!(bench.engine.list().is_empty());
    assert_eq!(bench.ops().last().unwrap(), "agent-detach");
    let again = bench.attach("a", "/one").await.unwrap();
    assert_eq!((again.session, again.generation), (2, 2));
}

#[tokio::test]
async fn a_swap_that_fails_is_not_what_comes_back() {
    let mut bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    bench.kernel(|kernel| kernel.fails = Some("install"));
    bench.write("p", "version: 1\nname: new\n");
    assert!(bench.engine.swap("a", None).await.is_err());
    bench.kernel(|kernel| kernel.fails = None);
    bench.die();
    bench.restore().unwrap();
    let agent = &bench.engine.list()[0];
    assert_eq!((agent.policy.as_str(), agent.generation), ("p", 1));
}

impl Bench {
    fn inode(&self, file: &str) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        let path = self.folder.path().join(file);
        std::fs::symlink_metadata(path).unwrap().ino()
    }

    /// Accesses that are denied to the first agent for a file.
    fn protected(&self, file: &str) -> u32 {
        let inode = self.inode(file);
        self.kernel(|kernel| {
            let objects = kernel.objects.get(&1).into_iter().flatten();
            objects.filter(|it| it.0 == inode).map(|it| it.2).sum()
        })
    }

    fn guard_secret(&self, rule: &str) {
        let root = self.folder.path().canonicalize().unwrap();
        let text = format!(
            "version: 1\nfiles: {{default: allow, {rule}: {{deny: [\"{}/secret/**\"]}}}}\n",
            root.display()
        );
        self.write("p", &text);
    }
}

#[tokio::test]
async fn what_is_protected_follows_the_policy() {
    let mut bench = Bench::new();
    std::fs::create_dir(bench.folder.path().join("secret")).unwrap();
    std::fs::write(bench.folder.path().join("secret/key"), "x").unwrap();
    bench.guard_secret("read");
    bench.attach("a", "/one").await.unwrap();
    assert_eq!(bench.protected("secret/key"), 1);
    bench.guard_secret("write");
    bench.engine.swap("a", None).await.unwrap();
    assert_eq!(bench.protected("secret/key"), 2);
    // Nobody watches in this test.
    std::fs::write(bench.folder.path().join("secret/new"), "x").unwrap();
    bench
        .engine
        .refresh_objects(Some(&HashSet::from([2])))
        .await;
    assert_eq!(bench.protected("secret/new"), 0);
    bench.engine.refresh_objects(None).await;
    assert_eq!(bench.protected("secret/new"), 2);
    // A daemon that comes back looks for itself, and drops what nobody needs.
    bench.kernel(|kernel| {
        kernel.objects.clear();
        kernel.objects.insert(9, vec![(1, 1, 1)]);
    });
    bench.die();
    bench.restore().unwrap();
    assert_eq!(bench.protected("secret/new"), 2);
    assert_eq!(bench.kernel(|kernel| kernel.objects.len()), 1);
    bench.engine.detach("a").await.unwrap();
    assert!(bench.kernel(|kernel| kernel.objects.is_empty()));
}

#[tokio::test]
async fn a_swap_whose_objects_the_kernel_does_not_take_stands_and_is_told() {
    let bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    bench.kernel(|kernel| kernel.fails = Some("protect"));
    let agent = bench.engine.swap("a", None).await.unwrap();
    assert_eq!(bench.kernel(|kernel| kernel.tables[&1]), agent.generation);
    assert_eq!(bench.ops()[2..], ["policy-install", "alarm"]);
    bench.engine.refresh_objects(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_file_is_protected_soon() {
    let bench = Bench::new();
    std::fs::create_dir(bench.folder.path().join("secret")).unwrap();
    bench.guard_secret("read");
    bench.engine.watch_files().unwrap();
    bench.attach("a", "/one").await.unwrap();
    for content in ["first", "second"] {
        let new = bench.folder.path().join("new");
        std::fs::write(&new, content).unwrap();
        std::fs::rename(&new, bench.folder.path().join("secret/key")).unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while bench.protected("secret/key") != 1 {
            assert!(std::time::Instant::now() < end, "not protected");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

const COUNTED: &str =
    "version: 1\nbudgets:\n  - {id: few, opens: 7, per: session, at_limit: deny-network}\n";

#[tokio::test]
async fn limits_are_in_the_kernel_before_a_policy_that_counts() {
    let bench = Bench::new();
    bench.write("p", COUNTED);
    bench.attach("a", "/one").await.unwrap();
    let calls = bench.kernel(|kernel| std::mem::take(&mut kernel.calls));
    assert_eq!(calls[..2], ["set_limits", "install"]);
    let limits = bench.kernel(|kernel| kernel.limits[&1]);
    assert_eq!((limits.count, limits.charges[0].limit), (1, 7));
    // Told once, until something changes.
    bench.engine.charge_all();
    assert!(bench.kernel(|kernel| kernel.calls.is_empty()));
    bench.engine.grant("a", "few", "3").unwrap();
    assert_eq!(
        bench.kernel(|kernel| kernel.limits[&1].charges[0].limit),
        10
    );
    // Limits that the kernel does not take leave the policy before in force.
    bench.write("p", &COUNTED.replace('7', "8"));
    bench.kernel(|kernel| kernel.fails = Some("set_limits"));
    assert!(bench.engine.swap("a", None).await.is_err());
    assert_eq!(bench.kernel(|kernel| kernel.tables[&1]), 1);
}

#[tokio::test]
async fn what_the_kernel_counted_is_shown_and_acted_on() {
    let bench = Bench::new();
    bench.write("p", COUNTED);
    bench.attach("a", "/one").await.unwrap();
    let charge = bench.kernel(|kernel| kernel.limits[&1].charges[0]);
    let count = |spent| {
        bench.kernel(|kernel| {
            let meter = Meter {
                epoch: charge.epoch,
                sum: spent,
                ..Meter::EMPTY
            };
            kernel.meters.insert(charge.meter, meter);
        });
    };
    count(3);
    let shown = bench.engine.budgets(Some("a")).unwrap();
    assert_eq!(
        (shown[0].budgets[0].spent, shown[0].budgets[0].left),
        (3, 4)
    );
    count(7);
    bench.engine.charge_all();
    bench.engine.charge_all();
    assert_eq!(bench.kernel(|kernel| kernel.limits[&1].count), 2);
    let told = bench.records();
    let told: Vec<_> = told.iter().filter(|it| it.op == op::BUDGET).collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].rule.as_deref(), Some("few"));
    // Gone and come again, it begins anew: a session is another one.
    bench.engine.detach("a").await.unwrap();
    bench.attach("a", "/one").await.unwrap();
    let limits = bench.kernel(|kernel| kernel.limits.clone());
    let [again] = limits.values().collect::<Vec<_>>()[..] else {
        panic!("limits of one that is gone: {limits:?}");
    };
    let again = again.charges[0];
    assert!(again.epoch > charge.epoch && again.base == 0);
}

#[tokio::test]
async fn an_attach_that_fails_leaves_no_meter_taken() {
    let bench = Bench::new();
    bench.write("p", COUNTED);
    bench.kernel(|kernel| kernel.fails = Some("govern"));
    for _ in 0..3 {
        assert!(bench.attach("a", "/one").await.is_err());
    }
    bench.kernel(|kernel| kernel.fails = None);
    bench.attach("a", "/one").await.unwrap();
    let meters = bench.kernel(|kernel| {
        let limits = kernel.limits.values();
        limits.map(|it| it.charges[0].meter).collect::<Vec<_>>()
    });
    assert_eq!(meters, [0], "the first one is free");
}
