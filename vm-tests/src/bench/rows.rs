//! The rows of all tables, one after the other, in one guest.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use bench_report::figures::{Records, Row, Table};
use bench_report::number::counted;
use bench_report::promises::{EMPTY, EMPTY_WITH_PACKETS};

use super::audit::Auditing;
use super::confine::{Cells, Confined, Measured, measured};
use super::fanotify::Permitting;
use super::policy::{self, Kind};
use super::programs::Place;
use super::{apparmor, empty, landlock, operation, ours, scene, seccomp, server, starts, work};
use crate::guard::{Group, write_policy};

/// Guest time for what starts with the guest to come to an end; nobody uses it, so it costs nothing.
pub const SETTLE: Duration = Duration::from_secs(30);

/// A policy that is measured: name and title of the row, kind, rules.
const POLICIES: &[(&str, &str, Kind, usize)] = &[
    (
        "governed-10",
        "governed, 10 rules, everything recorded",
        Kind::Recorded,
        10,
    ),
    (
        "governed-1000",
        "governed, 1,000 rules, everything recorded",
        Kind::Recorded,
        1_000,
    ),
    (
        "governed-10000",
        "governed, 10,000 rules, everything recorded",
        Kind::Recorded,
        10_000,
    ),
    (
        "governed-1000-denials",
        "governed, 1,000 rules, denials, programs and connections recorded",
        Kind::DenialsRecorded,
        1_000,
    ),
    (
        "governed-1000-shadow",
        "governed, 1,000 rules, shadow mode, all would be denied",
        Kind::Shadow,
        1_000,
    ),
    ("denied-1000", "denied, 1,000 rules", Kind::Denied, 1_000),
];

/// The profile, and the policy, under which ordinary work is done.
const WORK_PROFILE: &str = "apparmor-1000";
const WORK_POLICY: &str = "governed-1000";

/// The tables as they grow.
pub struct Tables<'a> {
    only: &'a [String],
    operations: Table,
    starts: Table,
    work: Table,
}

impl Tables<'_> {
    fn wanted(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }

    /// Measures a row of the operations if it is wanted; one that cannot be is kept with its reason.
    fn row(&mut self, name: &str, title: &str, measure: impl FnOnce() -> Result<Measurement>) {
        if self.wanted(name) {
            push(&mut self.operations, name, title, measure);
        }
    }

    fn confined(&mut self, name: &str, title: &str, confined: &Confined) {
        self.row(name, title, || Ok((measured(confined)?, None)));
    }

    /// Measures a row of the work, if work is wanted.
    fn work(&mut self, name: &str, title: &str, measure: impl FnOnce() -> Result<Measurement>) {
        if self.wanted("work") {
            push(&mut self.work, name, title, measure);
        }
    }
}

/// Cells, and what became of the records.
pub type Measurement = (Cells, Option<Records>);

fn push(table: &mut Table, name: &str, title: &str, measure: impl FnOnce() -> Result<Measurement>) {
    println!("measuring: {title} ({})", table.name);
    table.rows.push(match measure() {
        Ok((cells, records)) => Row {
            name: name.to_owned(),
            title: title.to_owned(),
            records,
            cells,
        },
        Err(error) => Row::absent(name, title, &table.operations, &format!("{error:#}")),
    });
}

/// Measures everything and writes the tables.
pub fn run(peers: &Path, out: &Path, only: &[String]) -> Result<()> {
    scene::make()?;
    let _registry = work::make()?;
    server::start()?;
    thread::sleep(SETTLE);
    // What is done for the first time costs more: that is nobody's fault.
    measured(&Confined::Not)?;
    let mut tables = Tables {
        only,
        operations: operation::table(),
        starts: starts::table(),
        work: work::table(),
    };
    push(&mut tables.operations, "bare", "bare kernel", || {
        Ok((measured(&Confined::Not)?, None))
    });
    peers_before(&mut tables, peers);
    let places = of_ours(&mut tables)?;
    let title = "empty programs at AgentGuard's hooks: the kernel's own part";
    let floors = [
        (EMPTY, title, empty::NOTHING),
        (
            "asking-programs",
            "programs there that ask for the current task, and nothing else",
            empty::WHO,
        ),
    ];
    for (name, title, instructions) in floors {
        tables.row(name, title, || {
            let places = places.as_ref().map_err(|error| anyhow!("{error:#}"))?;
            let _attached = empty::Attached::to(places, instructions)?;
            Ok((measured(&Confined::Not)?, None))
        });
        // A program is not gone before all that may still run it has passed.
        thread::sleep(SETTLE);
    }
    let title = "empty programs there, and others that let a cgroup's packets go on";
    tables.row(EMPTY_WITH_PACKETS, title, || {
        let places = places.as_ref().map_err(|error| anyhow!("{error:#}"))?;
        let group = Group::new("packets")?;
        let _attached = empty::Attached::to(places, empty::NOTHING)?.with_packets(group.path())?;
        let cgroup = group.path().display().to_string();
        Ok((measured(&Confined::Cgroup(cgroup))?, None))
    });
    thread::sleep(SETTLE);
    let again = "bare kernel, again, after AgentGuard was removed";
    tables.confined("bare-again", again, &Confined::Not);
    // Both leave something behind in the kernel that costs: nothing is measured after them.
    let title = "fanotify permission events (opens only)";
    tables.row("fanotify", title, || {
        let _permitting = Permitting::start()?;
        Ok((measured(&Confined::Not)?, None))
    });
    let title = "audit rules for the same calls, as auditd has them";
    tables.row("auditd", title, audited);
    let tables = [tables.operations, tables.starts, tables.work];
    let text = serde_json::to_string(&tables)?;
    fs::write(out, text).with_context(|| format!("failed to write {}", out.display()))
}

/// What people would use instead, before any of our programs is loaded.
fn peers_before(tables: &mut Tables<'_>, peers: &Path) {
    tables.work("bare", "bare kernel", || {
        Ok((work::cells(&Place::default(), None), None))
    });
    for (name, count) in apparmor::PROFILES {
        let title = format!("AppArmor, {} rules", counted(count as u64));
        tables.row(name, &title, || {
            apparmor::load(peers, name)?;
            Ok((measured(&Confined::Profile(name.into()))?, None))
        });
    }
    tables.work(WORK_PROFILE, "AppArmor, 1,000 rules", || {
        apparmor::load(peers, WORK_PROFILE)?;
        let place = Place {
            profile: Some(WORK_PROFILE.into()),
            ..Place::default()
        };
        Ok((work::cells(&place, None), None))
    });
    let title = landlock::version().map_or_else(
        |_| "Landlock, same trees".to_owned(),
        |version| {
            let reach = landlock::reach(version);
            format!("Landlock (version {version}: {reach}), same trees")
        },
    );
    tables.row("landlock", &title, || {
        landlock::version()?;
        Ok((measured(&Confined::Landlock)?, None))
    });
    tables.row("seccomp", "seccomp user notification", || {
        let mut child = Measured::start(&Confined::Seccomp)?;
        let listener = child.line()?;
        let listener = listener.parse().with_context(|| listener)?;
        seccomp::supervise(child.pid(), listener)?;
        Ok((child.cells()?, None))
    });
}

/// `AgentGuard`, as its users run it; it is gone when this returns, and the places of its programs are told.
fn of_ours(tables: &mut Tables<'_>) -> Result<Result<Vec<empty::Place>>> {
    let guard = ours::Running::start()?;
    let places = empty::places();
    thread::sleep(SETTLE);
    let title = "ungoverned, AgentGuard running";
    tables.confined("ungoverned", title, &Confined::Not);
    for (name, title, kind, rules) in POLICIES {
        tables.row(name, title, || guard.operations(name, *kind, *rules));
    }
    if tables.wanted("starts") {
        write_policy(WORK_POLICY, &policy::text(Kind::Recorded, 1_000))?;
        tables.starts.rows.push(starts::ours(WORK_POLICY));
    }
    tables.work("ungoverned", "ungoverned, AgentGuard running", || {
        Ok((work::cells(&Place::default(), None), None))
    });
    let title = "governed, 1,000 rules, everything recorded, with the daemon's own work";
    tables.work("governed-1000", title, || guard.work("work", false));
    let title = "governed, 1,000 rules, everything recorded, while the daemon is stopped";
    tables.work("governed-1000-alone", title, || {
        guard.work("work-alone", true)
    });
    guard.end()?;
    thread::sleep(SETTLE);
    Ok(places)
}

fn audited() -> Result<Measurement> {
    let auditing = Auditing::start()?;
    let cells = measured(&Confined::Not)?;
    let records = Records {
        written: 0,
        lost: auditing.lost()?.into(),
        daemon_instructions: None,
    };
    Ok((cells, Some(records)))
}
