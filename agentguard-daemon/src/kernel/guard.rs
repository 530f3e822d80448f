//! The loaded and attached kernel programs, and everything the daemon may ask of them.

use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use agentguard_common::kernel_offsets;
use agentguard_common::label::{Control, Label, Membership, State};
use agentguard_common::record::class;
use agentguard_common::table::{LARGE_TABLE, MAGIC, MAX_AGENTS, SMALL_TABLE};
use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, RingBuf};
use aya::programs::{BtfTracePoint, Iter, Lsm};
use aya::{Btf, Ebpf, EbpfLoader, Endianness};

use super::{KernelError, OBJECT, Rings, Structs, hooks, probe, sys};

/// Where the running kernel describes its types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Tracepoints that keep lineage and record the life of processes.
const TRACEPOINTS: &[&str] = &["cgroup_attach_task", "task_newtask", "sched_process_exit"];
/// The task iterator.
const ITERATOR: &str = "settle_tasks";

/// Walks over all tasks in one go. Two are enough but for tasks that fork at that very moment.
const MAX_WALKS: u32 = 16;

/// What `Guard::load` may be told.
#[derive(Clone, Debug, Default)]
pub struct GuardOptions {
    /// Type information to use instead of the running kernel's own.
    pub btf: Option<PathBuf>,
    /// Print what the verifier says about each program.
    pub log: bool,
}

/// A membership that the map takes as bytes.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Bytes<T>(T);

// SAFETY: both are `repr(C)` structs of integers without padding.
unsafe impl aya::Pod for Bytes<Membership> {}
// SAFETY: as above.
unsafe impl aya::Pod for Bytes<State> {}
// SAFETY: as above.
unsafe impl aya::Pod for Bytes<Control> {}

/// Programs, maps and links. Dropping it detaches everything.
pub struct Guard {
    ebpf: Ebpf,
    small: Tables,
    large: Tables,
    cgroups: HashMap<MapData, u64, Bytes<Membership>>,
    losses: Array<MapData, u64>,
    control: Array<MapData, Bytes<Control>>,
    state: Array<MapData, Bytes<State>>,
    rings: Option<(MapData, MapData)>,
}

/// Collects the offsets of all fields that the programs read.
fn offsets(structs: &Structs<'_>) -> Result<Vec<(&'static str, u32)>, KernelError> {
    macro_rules! collect {
        ($($name:ident : $type:literal . $field:literal,)+) => {
            vec![$((stringify!($name), structs.offset($type, $field)?)),+]
        };
    }
    Ok(kernel_offsets!(collect))
}

impl Guard {
    /// Loads and attaches every program, or nothing.
    ///
    /// Needs root, BPF LSM and Linux 6.1.54, or 6.2 and later. On any error the kernel is as it was.
    pub fn load(options: &GuardOptions) -> Result<Self, KernelError> {
        probe::require()?;
        let mut guard = Self::load_object(options)?;
        guard.attach(&Self::btf(options)?.1)?;
        Ok(guard)
    }

    fn btf(options: &GuardOptions) -> Result<(Vec<u8>, Btf), KernelError> {
        let path = options.btf.clone().unwrap_or_else(|| VMLINUX.into());
        let data = std::fs::read(&path).map_err(|error| KernelError::NoBtf {
            path: path.clone(),
            error,
        })?;
        let btf = Btf::parse(&data, Endianness::default()).map_err(|error| KernelError::NoBtf {
            path,
            error: io::Error::other(error),
        })?;
        Ok((data, btf))
    }

    /// Loads the maps and takes the programs apart, without loading one. For tests of single programs.
    #[doc(hidden)]
    pub fn load_object(options: &GuardOptions) -> Result<Self, KernelError> {
        let (data, btf) = Self::btf(options)?;
        let offsets = offsets(&Structs::parse(&data)?)?;
        let object = super::fields::complete(OBJECT, &offsets)?;
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&btf)).allow_unsupported_maps();
        if options.log {
            loader
                .verifier_log_level(aya::VerifierLogLevel::VERBOSE | aya::VerifierLogLevel::STATS);
        }
        for (name, offset) in &offsets {
            loader.override_global(name, offset, true);
        }
        let mut ebpf = loader.load(object.bytes()).map_err(Box::new)?;
        follow_log(&mut ebpf)?;
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
            state: open(".bss", take(".bss")?)?,
            rings: Some((
                ring("DENIED", take("DENIED")?)?,
                ring("ALLOWED", take("ALLOWED")?)?,
            )),
            ebpf,
        })
    }

    /// The programs and maps that are not the guard's own. For tests of single programs.
    #[doc(hidden)]
    pub fn object(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    fn attach(&mut self, btf: &Btf) -> Result<(), KernelError> {
        for name in TRACEPOINTS {
            let failed = |action| {
                move |error| KernelError::Program {
                    action,
                    program: name,
                    error: Box::new(error),
                }
            };
            let program: &mut BtfTracePoint = program(&mut self.ebpf, name)?;
            program.load(name, btf).map_err(failed("load"))?;
        }
        let iterator: &mut Iter = program(&mut self.ebpf, ITERATOR)?;
        iterator
            .load("task", btf)
            .map_err(|error| KernelError::Program {
                action: "load",
                program: ITERATOR,
                error: Box::new(error),
            })?;
        let hooks = hooks::present(btf);
        for name in &hooks {
            let program: &mut Lsm = program(&mut self.ebpf, name)?;
            program
                .load(name, btf)
                .map_err(|error| refused(name, error))?;
        }
        // Everything verifies: now attach, lineage first.
        for name in &hooks {
            let program: &mut Lsm = program(&mut self.ebpf, name)?;
            program.attach().map_err(|error| refused(name, error))?;
        }
        for name in TRACEPOINTS {
            let program: &mut BtfTracePoint = program(&mut self.ebpf, name)?;
            program.attach().map_err(|error| KernelError::Program {
                action: "attach",
                program: name,
                error: Box::new(error),
            })?;
        }
        Ok(())
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
        check_slot(agent)?;
        self.small.clear(agent)?;
        self.large.clear(agent)
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
        match self.cgroups.remove(&cgroup) {
            Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
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
        let iterator: &mut Iter = program(&mut self.ebpf, ITERATOR)?;
        let attach = |error| KernelError::Program {
            action: "attach",
            program: ITERATOR,
            error: Box::new(error),
        };
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
        let control = self
            .control
            .get(&0, 0)
            .map_err(|error| failed("CONTROL", &error))?;
        Ok(control.0.changed as usize)
    }

    /// The ring buffers. Can be taken once, inside a tokio runtime.
    pub fn rings(&mut self) -> Result<Rings, KernelError> {
        let (denied, allowed) = self.rings.take().ok_or(KernelError::RingsTaken)?;
        let open =
            |name, map| RingBuf::try_from(Map::RingBuf(map)).map_err(|error| failed(name, &error));
        Rings::new(open("DENIED", denied)?, open("ALLOWED", allowed)?).map_err(|error| {
            KernelError::Io {
                action: "watch the ring buffers",
                error,
            }
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

/// Hands what the programs log to the daemon's own log. Only objects built with `AGENTGUARD_EBPF_LOG`
/// log anything; others have no such map.
fn follow_log(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    let (Ok(logger), Ok(runtime)) = (
        aya_log::EbpfLogger::init(ebpf),
        tokio::runtime::Handle::try_current(),
    ) else {
        return Ok(());
    };
    // SAFETY: the logger owns its descriptor for as long as it lives, and always gives the same one.
    let logger = unsafe { tokio::io::unix::AsyncFd::register(logger) };
    let mut logger = logger.map_err(|error| KernelError::Io {
        action: "watch the programs' log",
        error: io::Error::other(error.to_string()),
    })?;
    runtime.spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Ok(())
}

fn check_slot(agent: u32) -> Result<(), KernelError> {
    if agent == 0 || agent >= MAX_AGENTS {
        Err(KernelError::Slot(agent))
    } else {
        Ok(())
    }
}

fn failed(map: &'static str, error: &aya::maps::MapError) -> KernelError {
    let cause =
        std::error::Error::source(error).map_or_else(String::new, |cause| format!(": {cause}"));
    KernelError::Map {
        map,
        error: format!("{error}{cause}"),
    }
}

fn open<T: TryFrom<Map, Error = aya::maps::MapError>>(
    name: &'static str,
    map: Map,
) -> Result<T, KernelError> {
    T::try_from(map).map_err(|error| failed(name, &error))
}

fn ring(name: &'static str, map: Map) -> Result<MapData, KernelError> {
    match map {
        Map::RingBuf(data) => Ok(data),
        _ => Err(KernelError::Map {
            map: name,
            error: "not a ring buffer".into(),
        }),
    }
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, KernelError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or_else(|| KernelError::Map {
            map: name,
            error: "no such program in the object".into(),
        })?
        .try_into()
        .map_err(|error| KernelError::Program {
            action: "find",
            program: name,
            error: Box::new(error),
        })
}

/// Tells a kernel that refuses LSM programs on principle from a program that does not verify.
fn refused(program: &'static str, error: aya::programs::ProgramError) -> KernelError {
    if let aya::programs::ProgramError::LoadError {
        io_error,
        verifier_log,
    } = &error
        && io_error.raw_os_error() == Some(libc::EPERM)
        && verifier_log.to_string().trim().is_empty()
    {
        return KernelError::LsmRefused(io::Error::from_raw_os_error(libc::EPERM));
    }
    KernelError::Program {
        action: "load",
        program,
        error: Box::new(error),
    }
}

/// A map of maps from agent slot to table.
struct Tables {
    name: &'static str,
    map: ArrayOfMaps<MapData, MapData>,
    fd: OwnedFd,
}

impl Tables {
    fn open(name: &'static str, map: Map) -> Result<Self, KernelError> {
        let Map::ArrayOfMaps(data) = map else {
            return Err(KernelError::Map {
                map: name,
                error: "not an array of maps".into(),
            });
        };
        let fd = data.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|error| KernelError::Io {
            action: "keep a map open",
            error,
        })?;
        Ok(Self {
            name,
            map: open(name, Map::ArrayOfMaps(data))?,
            fd,
        })
    }

    /// Puts a table, padded with zeroes to `size`, in the place of the one before.
    fn set(&mut self, agent: u32, size: usize, table: &[u8]) -> Result<(), KernelError> {
        let io = |error| KernelError::Io {
            action: "make a table",
            error,
        };
        let fd = sys::create_table_map(size as u32).map_err(io)?;
        sys::fill_table_map(&fd, size, table).map_err(io)?;
        let inner = MapData::from_fd(fd).map_err(|error| failed(self.name, &error))?;
        self.map
            .set(agent, &inner, 0)
            .map_err(|error| failed(self.name, &error))
    }

    fn clear(&self, agent: u32) -> Result<(), KernelError> {
        sys::delete(self.fd.as_fd(), agent).map_err(|error| KernelError::Map {
            map: self.name,
            error: error.to_string(),
        })
    }
}

/// The directory of a cgroup, as the kernel numbers it: the inode number of the directory.
pub fn cgroup_id(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(std::fs::metadata(path)?.ino())
}
