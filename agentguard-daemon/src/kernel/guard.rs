//! The loaded and attached kernel programs, and everything the daemon may ask of them.

use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use agentguard_common::folder::Learning;
use agentguard_common::label::{Control, Label, Membership, State};
use agentguard_common::record::{class, folding};
use agentguard_common::table::{LARGE_TABLE, MAGIC, MAX_AGENTS, SMALL_TABLE};
use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData};
use aya::programs::Iter;

use super::approvals::Approvals;
use super::attach::{LABELLING, TELLING, of_program, program};
use super::budget::Budgets;
use super::folders::LEARNING;
use super::journal::Journal;
use super::load::{failed, open};
use super::objects::Objects;
use super::opened::Names;
use super::pins::Pins;
use super::tables::Tables;
use super::traffic::Traffic;
use super::{KernelError, Protection, Rings, sys};

/// Walks over all tasks in one go. Two are enough but for tasks that fork at that very moment.
const MAX_WALKS: u32 = 16;

/// A membership that the map takes as bytes.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Bytes<T>(pub T);

// SAFETY: all are `repr(C)` structs of integers without padding.
unsafe impl aya::Pod for Bytes<Membership> {}
// SAFETY: as above.
unsafe impl aya::Pod for Bytes<State> {}
// SAFETY: as above.
unsafe impl aya::Pod for Bytes<Control> {}
// SAFETY: as above.
unsafe impl aya::Pod for Bytes<Learning> {}

/// What outlives a guard on pins.
struct Kept {
    pins: Pins,
    journal: Journal,
    /// SHA-256 of our object.
    object: [u8; 32],
}

/// Programs, maps and links. Dropping it detaches everything that is not pinned.
pub struct Guard {
    ebpf: Ebpf,
    small: Tables,
    large: Tables,
    cgroups: HashMap<MapData, u64, Bytes<Membership>>,
    losses: Array<MapData, u64>,
    control: Array<MapData, Bytes<Control>>,
    folding: Array<MapData, u64>,
    pub(super) learning: Array<MapData, Bytes<Learning>>,
    state: Array<MapData, Bytes<State>>,
    objects: Objects,
    pub(super) names: Names,
    pub(super) approvals: Approvals,
    pub(super) budgets: Budgets,
    pub(super) traffic: Traffic,
    /// Programs are loaded by the numbers of these descriptors: they stay open.
    denied: Map,
    allowed: Map,
    rings_taken: bool,
    kept: Option<Kept>,
}

impl Guard {
    /// Takes the maps that it works with out of a loaded object.
    pub(super) fn assemble(mut ebpf: Ebpf) -> Result<Self, KernelError> {
        let mut take = |name: &'static str| {
            ebpf.take_map(name).ok_or_else(|| KernelError::Map {
                map: name,
                error: "not in the object".into(),
            })
        };
        Ok(Self {
            small: Tables::open("POLICIES_SMALL", take("POLICIES_SMALL")?)?,
            large: Tables::open("POLICIES_LARGE", take("POLICIES_LARGE")?)?,
            cgroups: open("CGROUPS", take("CGROUPS")?)?,
            losses: open("LOSSES", take("LOSSES")?)?,
            control: open("CONTROL", take("CONTROL")?)?,
            folding: open("FOLDING", take("FOLDING")?)?,
            learning: open(LEARNING, take(LEARNING)?)?,
            state: open(".bss", take(".bss")?)?,
            objects: Objects::open(take("OBJECTS")?, take("OBJECT_FILTER")?)?,
            names: Names::open([
                take("OPENED")?,
                take("NAMES")?,
                take("RESOLVERS")?,
                take("RESOLVER_PORTS")?,
            ])?,
            approvals: Approvals::open(take("APPROVED")?)?,
            budgets: Budgets::open([take("LIMITS")?, take("METERS")?])?,
            traffic: Traffic::open([take("FLOWS")?, take("ACCOUNTS")?])?,
            denied: take("DENIED")?,
            allowed: take("ALLOWED")?,
            rings_taken: false,
            ebpf,
            kept: None,
        })
    }

    /// The programs and maps that are not the guard's own. For tests of single programs.
    #[doc(hidden)]
    pub fn object(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Our working memory, where the programs of an earlier daemon have their own.
    pub(super) fn forget_scratch(&mut self) {
        // Programs that are loaded later hold it themselves; without any it is freed.
        drop(self.ebpf.take_map("PATH_SCRATCH"));
        drop(self.ebpf.take_map("EXEC_SCRATCH"));
        drop(self.ebpf.take_map("NAME_SCRATCH"));
        drop(self.ebpf.take_map("GRANT_SCRATCH"));
    }

    /// From now on it is pinned.
    pub(super) fn keep(&mut self, pins: Pins, journal: Journal, object: [u8; 32]) {
        self.kept = Some(Kept {
            pins,
            journal,
            object,
        });
    }

    pub(super) fn kept(&self) -> Option<(Pins, Journal, [u8; 32])> {
        let kept = self.kept.as_ref()?;
        Some((kept.pins.clone(), kept.journal.clone(), kept.object))
    }

    /// How far the rings have been brought into the log. Only a pinned guard has one.
    pub fn journal(&self) -> Option<Journal> {
        self.kept.as_ref().map(|kept| kept.journal.clone())
    }

    /// Who is governed in which cgroup.
    pub fn memberships(&self) -> Result<Vec<(u64, Membership)>, KernelError> {
        self.cgroups
            .iter()
            .map(|entry| entry.map(|(cgroup, membership)| (cgroup, membership.0)))
            .collect::<Result<_, _>>()
            .map_err(|error| failed("CGROUPS", &error))
    }

    /// Puts a policy in force for an agent, replacing the one before in a single step.
    /// When it returns, no program sees the old one any more.
    pub fn install(&mut self, agent: u32, table: &[u8]) -> Result<(), KernelError> {
        check_slot(agent)?;
        if table.len() > LARGE_TABLE
            || table.len() < size_of::<u32>()
            || table[..4] != MAGIC.to_ne_bytes()
        {
            return Err(KernelError::TableSize(table.len()));
        }
        // Each call waits until every running program has ended, so nobody who missed the small table
        // can still be on the way to the large one when that is removed.
        if table.len() <= SMALL_TABLE {
            self.small.set(agent, SMALL_TABLE, table)?;
            self.large.clear(agent)
        } else {
            self.large.set(agent, LARGE_TABLE, table)?;
            self.small.clear(agent)
        }
    }

    /// Takes an agent's policy away: whatever still carries its label is denied everything.
    pub fn uninstall(&mut self, agent: u32) -> Result<(), KernelError> {
        self.forget_names(agent)?;
        check_slot(agent)?;
        self.small.clear(agent)?;
        self.large.clear(agent)?;
        self.forget_limits(agent)
    }

    /// Replaces the objects that an agent may not reach by whatever name. New ones come before old ones go.
    pub fn protect(&mut self, agent: u32, objects: &[Protection]) -> Result<(), KernelError> {
        check_slot(agent)?;
        self.objects.replace(agent, objects)
    }

    /// Agents from which objects are protected, also those of an earlier daemon.
    pub fn protected_from(&self) -> Vec<u32> {
        self.objects.agents()
    }

    /// From now on, tasks that enter the cgroup or one below it get this label.
    pub fn govern(&mut self, cgroup: u64, membership: Membership) -> Result<(), KernelError> {
        check_slot(membership.agent)?;
        self.cgroups
            .insert(cgroup, Bytes(membership), 0)
            .map_err(|error| failed("CGROUPS", &error))
    }

    /// Stops labelling tasks that enter the cgroup. Labels given stay.
    pub fn release(&mut self, cgroup: u64) -> Result<(), KernelError> {
        use aya::maps::MapError;
        match self.cgroups.remove(&cgroup) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(())
            }
            Err(error) => Err(failed("CGROUPS", &error)),
        }
    }

    /// Labels every thread that already is in a governed cgroup or below one; how many it labelled.
    /// The cgroup must be governed first.
    pub fn label_members(&mut self) -> Result<usize, KernelError> {
        let mut labelled = 0;
        // A child that was being made while its parent had no label is caught by the next walk: a walk that
        // labels nobody has seen no such parent.
        for _ in 0..MAX_WALKS {
            let settled = self.unsettled()?;
            let changed = self.iterate(Control {
                unlabel_agent: 0,
                settled,
                changed: 0,
            })?;
            labelled += changed;
            if changed == 0 {
                break;
            }
        }
        Ok(labelled)
    }

    /// Takes the label from every task of an agent; how many had it.
    pub fn unlabel(&mut self, agent: u32) -> Result<usize, KernelError> {
        check_slot(agent)?;
        self.iterate(Control {
            unlabel_agent: u64::from(agent),
            settled: 0,
            changed: 0,
        })
    }

    /// The label of the process behind a pidfd, in whatever cgroup it is now; `None` if it is not governed.
    /// The answer is the kernel's own: unlike its cgroup, a process cannot change it.
    pub fn label_of(&self, pidfd: BorrowedFd<'_>) -> Result<Option<Label>, KernelError> {
        let Some(Map::Unsupported(labels)) = self.ebpf.map("LABELS") else {
            return Err(KernelError::Map {
                map: "LABELS",
                error: "not in the object".into(),
            });
        };
        let mut label = Label::default();
        sys::look_up_task(labels.fd().as_fd(), pidfd, &mut label)
            .map(|found| found.then_some(label))
            .map_err(|error| KernelError::Io {
                action: "look up the label of a process",
                error,
            })
    }

    /// Tasks that were moved into a governed cgroup in bulk and may lack their label. They are judged
    /// by their cgroup meanwhile; call [`Guard::label_members`] soon, since that costs everybody.
    pub fn unsettled(&self) -> Result<u64, KernelError> {
        Ok(self
            .state
            .get(&0, 0)
            .map_err(|error| failed(".bss", &error))?
            .0
            .unsettled)
    }

    fn iterate(&mut self, control: Control) -> Result<usize, KernelError> {
        self.control
            .set(0, Bytes(control), 0)
            .map_err(|error| failed("CONTROL", &error))?;
        self.walk(LABELLING)?;
        let control = self
            .control
            .get(&0, 0)
            .map_err(|error| failed("CONTROL", &error))?;
        Ok(control.0.changed as usize)
    }

    /// Has the repeats told that threads have counted and not told yet: all, or those of the last second not.
    pub fn tell_repeats(&mut self, all: bool) -> Result<(), KernelError> {
        let failed = |error| failed("FOLDING", &error);
        if self.folding.get(&folding::PENDING, 0).map_err(failed)? == 0 {
            return Ok(());
        }
        self.folding
            .set(folding::ALL, u64::from(all), 0)
            .map_err(failed)?;
        self.walk(TELLING)
    }

    /// Runs a program over all tasks.
    fn walk(&mut self, name: &'static str) -> Result<(), KernelError> {
        let iterator: &mut Iter = program(&mut self.ebpf, name)?;
        let attach = |error| of_program("attach", name, error);
        let link = iterator.attach().map_err(attach)?;
        let link = iterator.take_link(link).map_err(attach)?;
        let io = |error| KernelError::Io {
            action: "walk the tasks",
            error,
        };
        let mut file = link
            .into_file()
            .map_err(|error| io(io::Error::other(error)))?;
        let mut sink = Vec::new();
        file.read_to_end(&mut sink).map_err(io)?;
        Ok(())
    }

    /// The ring buffers. Can be taken once, inside a tokio runtime.
    pub fn rings(&mut self) -> Result<Rings, KernelError> {
        if std::mem::replace(&mut self.rings_taken, true) {
            return Err(KernelError::RingsTaken);
        }
        let (denied, allowed) = (
            ring("DENIED", &self.denied)?,
            ring("ALLOWED", &self.allowed)?,
        );
        Rings::new(denied, allowed).map_err(|error| KernelError::Io {
            action: "watch the ring buffers",
            error,
        })
    }

    /// Records lost so far, by class. Only ever counts up.
    pub fn losses(&self) -> Result<[u64; class::COUNT as usize], KernelError> {
        let mut losses = [0; class::COUNT as usize];
        for (index, lost) in (0..).zip(&mut losses) {
            *lost = self
                .losses
                .get(&index, 0)
                .map_err(|error| failed("LOSSES", &error))?;
        }
        Ok(losses)
    }
}

pub(super) fn check_slot(agent: u32) -> Result<(), KernelError> {
    if agent == 0 || agent >= MAX_AGENTS {
        Err(KernelError::Slot(agent))
    } else {
        Ok(())
    }
}

fn ring(name: &'static str, map: &Map) -> Result<OwnedFd, KernelError> {
    let Map::RingBuf(data) = map else {
        return Err(KernelError::Map {
            map: name,
            error: "not a ring buffer".into(),
        });
    };
    let fd = data.fd().as_fd().try_clone_to_owned();
    fd.map_err(|error| KernelError::Io {
        action: "keep a ring open",
        error,
    })
}

/// The directory of a cgroup, as the kernel numbers it: the inode number of the directory.
pub fn cgroup_id(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(std::fs::metadata(path)?.ino())
}
