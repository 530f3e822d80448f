//! What this engine has to say in numbers, and to whom over TCP.

#![expect(
    clippy::cast_precision_loss,
    reason = "Prometheus has floating-point numbers only"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use agentguard_common::record::{ALLOWED_RING, DENIED_RING, class};
use agentguard_common::verdict::Verdict;
use nix::errno::Errno;

use super::engine::{Engine, lock};
use super::{AgentInfo, SessionError, canary};
use crate::agent::{Cgroup, cgroup::FOLDER};
use crate::audit::{LogWork, Totals};
use crate::export::SinkState;
use crate::kernel::OtherEnd;
use crate::metrics::{Amount, Counts, Made, Process, Pushes, Scrape, Source, list};
use crate::policy::limits::{MICROS, PICO, Quantity};

/// Names of the classes of records, by number.
const CLASSES: [(&str, u32); 2] = [("allowed", class::ALLOWED), ("denied", class::DENIED)];

/// What is taken from the recorder while its lock is held.
struct Recorded {
    counts: Counts,
    totals: Totals,
    accounted: [u64; class::COUNT as usize],
    work: LogWork,
    waiting: usize,
    segment: u64,
    folder: std::path::PathBuf,
}

impl Engine {
    /// All metrics now.
    pub fn metrics(&self) -> Result<Scrape, SessionError> {
        let mut scrape = Scrape::since(self.started);
        self.put_daemon(&mut scrape);
        let agents = self.list();
        put_agents(&mut scrape, &agents);
        let recorded = self.recorded();
        put_counts(&mut scrape, &recorded.counts);
        self.put_records(&mut scrape, &recorded);
        put_log(&mut scrape, &recorded);
        self.put_budgets(&mut scrape)?;
        self.put_approvals(&mut scrape);
        put_sinks(&mut scrape, &self.sinks());
        for (agent, counts) in self.all_traffic()? {
            let both = [
                ("in", counts.bytes_in, counts.packets_in),
                ("out", counts.bytes_out, counts.packets_out),
            ];
            for (direction, bytes, packets) in both {
                let labels = [&*agent, direction];
                scrape.put_since(&list::TRAFFIC_BYTES, &labels, bytes, self.booted);
                scrape.put_since(&list::TRAFFIC_PACKETS, &labels, packets, self.booted);
            }
        }
        for (outcome, count) in self.pushes.by_outcome() {
            scrape.put(&list::PUSHES, &[outcome], count);
        }
        Ok(scrape)
    }

    /// Where pushes of metrics are counted.
    pub fn pushes(&self) -> Arc<Pushes> {
        self.pushes.clone()
    }

    /// How long this engine has been there.
    pub fn uptime(&self) -> std::time::Duration {
        self.began.elapsed()
    }

    fn recorded(&self) -> Recorded {
        let mut recorder = self.recorder();
        let counts = recorder.counts().clone();
        let log = recorder.log();
        Recorded {
            counts,
            totals: recorder.totals(),
            accounted: recorder.accounted(),
            work: log.work().clone(),
            waiting: log.waiting_bytes(),
            segment: log.segment_bytes(),
            folder: crate::disk::folder_of(log.path()).to_owned(),
        }
    }

    fn put_daemon(&self, scrape: &mut Scrape) {
        let kernel = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        scrape.put(&list::BUILD, &[env!("CARGO_PKG_VERSION"), &kernel], true);
        let since = self.started.duration_since(SystemTime::UNIX_EPOCH);
        let since = since.map_or(0.0, |since| since.as_secs_f64());
        scrape.put(&list::START, &[], since);
        let uptime = self.uptime().as_secs_f64();
        scrape.put(&list::UPTIME, &[], uptime);
        if let Some(own) = Process::own() {
            scrape.put(&list::MEMORY, &[], own.memory);
            let began = self.booted + own.began;
            scrape.put_since(&list::PROCESSOR, &[], own.processor, began);
            scrape.put(&list::DESCRIPTORS, &[], own.descriptors);
        }
    }

    fn put_records(&self, scrape: &mut Scrape, recorded: &Recorded) {
        let Recorded { counts, totals, .. } = recorded;
        scrape.put(&list::KERNEL_RECORDS, &[], totals.records);
        scrape.put(&list::MALFORMED, &[], totals.malformed);
        scrape.put(&list::DISAGREEMENTS, &[], totals.alarms);
        scrape.put(&list::ALARMS, &[], counts.alarms);
        for (name, class) in CLASSES {
            let class = class as usize;
            let size = [ALLOWED_RING, DENIED_RING][class];
            let lost = recorded.accounted[class];
            scrape.put_since(&list::LOST, &[name], lost, self.booted);
            scrape.put(&list::RING_SIZE, &[name], size);
            scrape.put(&list::RING_USED, &[name], counts.ring_used[class]);
            scrape.put(&list::RING_PEAK, &[name], counts.ring_peak[class]);
        }
        scrape.put(&list::LOST, &["log"], recorded.work.lost);
        scrape.put(&list::BATCH, &[], Amount::Many(counts.batches.clone()));
    }

    fn put_approvals(&self, scrape: &mut Scrape) {
        scrape.put(&list::WAITING, &[], self.waiting_count());
        let webhook = self.webhook().unwrap_or_default();
        for (outcome, count) in [
            ("granted", webhook.granted),
            ("denied", webhook.denied),
            ("pending", webhook.pending),
            ("failed", webhook.failed),
            ("invalid", webhook.invalid),
            ("late", webhook.late),
        ] {
            scrape.put(&list::WEBHOOK, &[outcome], count);
        }
    }

    fn put_budgets(&self, scrape: &mut Scrape) -> Result<(), SessionError> {
        // Whoever has no budgets has no ledger, and looking makes none.
        let broken = match self.limits.ledger.get() {
            Some(ledger) => ledger.broken().is_some(),
            None => false,
        };
        scrape.put(&list::LEDGER_BROKEN, &[], broken);
        for account in self.budgets(None)? {
            for budget in account.budgets {
                let labels = [&*account.agent, &*budget.id, &*budget.quantity];
                let amount = |amount: u64| in_base_unit(&budget.quantity, amount);
                let limit = budget.limit.saturating_add(budget.granted);
                let taken = budget.spent.saturating_add(budget.reserved);
                scrape.put(&list::BUDGET_SPENT, &labels, amount(budget.spent));
                scrape.put(&list::BUDGET_RESERVED, &labels, amount(budget.reserved));
                scrape.put(&list::BUDGET_LIMIT, &labels, amount(limit));
                scrape.put(&list::BUDGET_LEFT, &labels, amount(budget.left));
                let ratio = taken as f64 / limit.max(1) as f64;
                scrape.put(&list::BUDGET_USED, &labels, ratio);
            }
        }
        Ok(())
    }
}

/// Seconds, dollars, or the number itself.
fn in_base_unit(quantity: &str, amount: u64) -> f64 {
    let known = Quantity::ALL.iter().find(|it| it.name() == quantity);
    let amount = amount as f64;
    match known {
        Some(Quantity::Money) => amount / PICO as f64,
        Some(quantity) if quantity.is_time() => amount / MICROS as f64,
        _ => amount,
    }
}

fn put_agents(scrape: &mut Scrape, agents: &[AgentInfo]) {
    for mode in ["enforce", "shadow"] {
        let count = agents.iter().filter(|agent| agent.mode == mode).count();
        scrape.put(&list::AGENTS, &[mode], count);
    }
    for agent in agents {
        let labels = [&*agent.name];
        scrape.put(
            &list::AGENT,
            &[&agent.name, &agent.policy, &agent.mode],
            true,
        );
        scrape.put(&list::PROCESSES, &labels, agent.processes);
        scrape.put(&list::FROZEN, &labels, agent.frozen);
        scrape.put(&list::GENERATION, &labels, u64::from(agent.generation));
    }
}

fn put_counts(scrape: &mut Scrape, counts: &Counts) {
    let canary = canary::name();
    for (name, agent) in counts.agents() {
        // The self-test is no agent of anybody, and each start would make new series of it.
        if name == canary.as_str() {
            continue;
        }
        let records = agent.records();
        let mut verdicts: BTreeMap<&str, u64> = BTreeMap::new();
        if !name.is_empty() {
            let four = [
                Verdict::Allow,
                Verdict::Deny,
                Verdict::Ask,
                Verdict::WouldDeny,
            ];
            verdicts.extend(four.map(|verdict| (verdict.name(), 0)));
            let changes = [("installed", agent.installed), ("refused", agent.refused)];
            for (outcome, count) in changes {
                scrape.put(&list::POLICY_CHANGES, &[name, outcome], count);
            }
            scrape.put(&list::POLICY_REFUSED, &[name], agent.last_refused);
        }
        for ((operation, verdict), count) in &records {
            scrape.put(&list::RECORDS, &[name, operation, verdict], *count);
            if !verdict.is_empty() {
                *verdicts.entry(verdict).or_default() += count;
            }
        }
        for (verdict, count) in verdicts {
            scrape.put(&list::VERDICTS, &[name, verdict], count);
        }
        for (rule, (cause, verdict), count) in agent.denials() {
            scrape.put(&list::DENIALS, &[name, rule, cause, verdict], count);
        }
        for (operation, reason, errno, count) in agent.failures() {
            let errno = match errno {
                0 => String::new(),
                errno => format!("{:?}", Errno::from_raw(i32::from(errno))),
            };
            let labels = [name, operation.name(), reason.name(), &errno];
            scrape.put(&list::FAILURES, &labels, count);
        }
        for ((verdict, reply), count) in &agent.questions {
            scrape.put(&list::QUESTIONS, &[name, verdict, reply], *count);
        }
        for (provider, made) in &agent.made {
            put_calls(scrape, name, provider, made);
        }
        if agent.calls_refused > 0 || !agent.made.is_empty() {
            let labels = [name, "", "refused"];
            scrape.put(&list::GATEWAY_CALLS, &labels, agent.calls_refused);
        }
    }
}

fn put_calls(scrape: &mut Scrape, agent: &str, provider: &str, made: &Made) {
    scrape.put(&list::GATEWAY_CALLS, &[agent, provider, "made"], made.calls);
    let kinds = [
        ("input", made.input),
        ("cached", made.cached),
        ("output", made.output),
    ];
    for (kind, tokens) in kinds {
        scrape.put(&list::GATEWAY_TOKENS, &[agent, provider, kind], tokens);
    }
    let cost = made.money as f64 / PICO as f64;
    scrape.put(&list::GATEWAY_COST, &[agent, provider], cost);
}

fn put_log(scrape: &mut Scrape, recorded: &Recorded) {
    let Recorded { work, totals, .. } = recorded;
    scrape.put(&list::LOG_RECORDS, &[], work.records);
    scrape.put(&list::LOG_BYTES, &[], work.bytes);
    scrape.put(&list::LOG_WAITING, &[], recorded.waiting);
    scrape.put(&list::LOG_SEGMENT, &[], recorded.segment);
    scrape.put(&list::LOG_SEGMENTS, &[], work.segments);
    scrape.put(&list::LOG_ERRORS, &[], totals.log_errors);
    scrape.put(&list::LOG_SYNC, &[], Amount::Many(work.syncs.clone()));
    if let Ok(disk) = rustix::fs::statvfs(&recorded.folder) {
        scrape.put(&list::DISK_SIZE, &[], disk.f_blocks * disk.f_frsize);
        scrape.put(&list::DISK_FREE, &[], disk.f_bavail * disk.f_frsize);
    }
}

fn put_sinks(scrape: &mut Scrape, sinks: &[SinkState]) {
    // What is kept with a sink's position began at a time that nobody has written down.
    let unknown = SystemTime::UNIX_EPOCH;
    for sink in sinks {
        let name = [&*sink.name];
        scrape.put(&list::SINK_SENT, &name, sink.sent);
        scrape.put(&list::SINK_WAITING, &name, sink.lag);
        scrape.put(&list::SINK_TROUBLE, &name, sink.doing.is_trouble());
        scrape.put(&list::SINK_FAILURES, &name, sink.retries);
        let causes = [
            ("missing", sink.missing),
            ("rejected", sink.rejected),
            ("skipped", sink.skipped),
        ];
        for (cause, count) in causes {
            let labels = [&*sink.name, cause];
            scrape.put_since(&list::SINK_UNSENT, &labels, count, unknown);
        }
    }
}

/// The engine, for those who scrape over TCP.
pub(super) struct EngineSource(Weak<Engine>);

impl Engine {
    /// What is served over TCP.
    pub fn metrics_source(self: &Arc<Self>) -> Arc<dyn Source> {
        Arc::new(EngineSource(Arc::downgrade(self)))
    }

    /// Whether a cgroup is of an agent, or may be.
    fn may_be_governed(&self, cgroup: u64) -> bool {
        let left = self.hierarchy.mount().join(FOLDER);
        let mut own: Vec<Cgroup> = {
            let state = lock(&self.state);
            let agents = state.registry.iter();
            agents.map(|agent| agent.cgroup.clone()).collect()
        };
        // Left over from another engine: nobody knows whose.
        own.extend(left.is_dir().then(|| Cgroup::at(left)));
        own.iter().any(|it| {
            it.ids()
                .map_or(it.path().is_dir(), |ids| ids.contains(&cgroup))
        })
    }

    /// Whether a process is certainly not governed, by its label and by its cgroup.
    fn is_free(&self, pid: u32) -> bool {
        let raw = i32::try_from(pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let Some(Ok(pidfd)) =
            raw.map(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()))
        else {
            return false;
        };
        let Ok(cgroup) = self.hierarchy.of_process(pid) else {
            return false;
        };
        let ours = self.hierarchy.mount().join(FOLDER);
        let label = self.label_of(std::os::fd::AsFd::as_fd(&pidfd));
        matches!(label, Ok(None))
            && self.agent_of_cgroup(&cgroup).is_none()
            && !cgroup.starts_with(ours)
    }
}

impl Source for EngineSource {
    fn may_read(&self, other: OtherEnd) -> bool {
        let Some(engine) = self.0.upgrade() else {
            return false;
        };
        if engine.may_be_governed(other.cgroup) {
            return false;
        }
        // A governed process that left its cgroup still has its label: whoever holds the socket is looked at.
        let holders = holders(other.inode);
        !holders.is_empty() && holders.into_iter().all(|pid| engine.is_free(pid))
    }

    fn scrape(&self) -> Result<Scrape, String> {
        let engine = self.0.upgrade().ok_or("the daemon is ending")?;
        engine.metrics().map_err(|error| error.line())
    }
}

/// Processes that have a socket open.
fn holders(inode: u32) -> Vec<u32> {
    let link = format!("socket:[{inode}]");
    let has = |pid: &u32| {
        let Ok(descriptors) =
            std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"))
        else {
            return false;
        };
        descriptors
            .flatten()
            .any(|it| std::fs::read_link(it.path()).is_ok_and(|to| to.as_os_str() == &*link))
    };
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = processes
        .flatten()
        .filter_map(|it| it.file_name().to_str()?.parse().ok());
    pids.filter(has).collect()
}
