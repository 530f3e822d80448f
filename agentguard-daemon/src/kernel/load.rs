//! From the object to loaded and attached programs, of this process alone or pinned.
//!
//! Lineage is attached first, and nothing of an earlier build goes before all of this one is attached.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use agentguard_common::label::State;
use agentguard_common::{ABI, kernel_offsets};
use aya::maps::Map;
use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, Iter, Lsm};
use aya::{Btf, Ebpf, EbpfLoader, Endianness};
use sha2::Digest as _;

use super::guard::Bytes;
use super::journal::{Entry, Journal};
use super::pins::Pins;
use super::{Guard, KernelError, OBJECT, Structs, hooks, probe, sys};

/// Where the running kernel describes its types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Tracepoints that keep lineage and record the life of processes.
const TRACEPOINTS: &[&str] = &["cgroup_attach_task", "task_newtask", "sched_process_exit"];
/// The task iterator.
pub(super) const ITERATOR: &str = "settle_tasks";
/// Maps that each load has for itself: constants, working memory of the programs, tests. All others are
/// pinned.
const PRIVATE: &[&str] = &[
    ".rodata",
    "PATH_SCRATCH",
    "EXEC_SCRATCH",
    "NAME_SCRATCH",
    "SELFTEST",
    "AYA_",
];
/// Set to anything but nothing, a daemon takes pins over as if they came from another build. For tests.
const FORCE_UPGRADE: &str = "AGENTGUARD_FORCE_UPGRADE";
/// How far the numbers of execs are moved on when maps are taken over: more execs than can happen while the
/// number is read and written.
const EXEC_IDS_APART: u64 = 1 << 20;

/// What a guard may be told.
#[derive(Clone, Debug, Default)]
pub struct GuardOptions {
    /// Type information to use instead of the running kernel's own.
    pub btf: Option<PathBuf>,
    /// Print what the verifier says about each program.
    pub log: bool,
}

/// Where the enforcement of a guard comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Loaded now.
    Fresh,
    /// An earlier daemon of the same build attached it, and it went on without that.
    Adopted,
    /// An earlier daemon of another build attached it: [`Guard::take_over`] replaces its programs.
    Upgraded,
}

impl Origin {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Adopted => "adopted",
            Self::Upgraded => "upgraded",
        }
    }
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
    /// Loads and attaches every program, or nothing. They end with this process.
    ///
    /// Needs root, BPF LSM and Linux 6.1.54, or 6.2 and later. On any error the kernel is as it was.
    pub fn load(options: &GuardOptions) -> Result<Self, KernelError> {
        probe::require()?;
        let mut guard = Self::load_object(options)?;
        let btf = btf(options)?.1;
        guard.load_programs(&btf)?;
        guard.attach(None)?;
        Ok(guard)
    }

    /// Enforcement that goes on without this process: taken over from the pins, or loaded and pinned.
    ///
    /// After [`Origin::Upgraded`] the programs of the other build are still in force, on maps that both share.
    pub fn pinned(options: &GuardOptions, pins: &Pins) -> Result<(Self, Origin), KernelError> {
        probe::require()?;
        pins.prepare()?;
        let object: [u8; 32] = sha2::Sha256::digest(OBJECT).into();
        let (journal, origin) = if let Some(found) = plan(pins, object)? {
            found
        } else {
            // Nothing, or what a start left that never came to its end and governed nobody.
            pins.clear()?;
            pins.prepare()?;
            (pins.create_journal()?, Origin::Fresh)
        };
        let made = Self::on_pins(options, pins, journal.clone(), origin, object);
        if made.is_err() && origin == Origin::Fresh {
            pins.clear()?;
        }
        made.map(|guard| (guard, origin))
    }

    fn on_pins(
        options: &GuardOptions,
        pins: &Pins,
        journal: Journal,
        origin: Origin,
        object: [u8; 32],
    ) -> Result<Self, KernelError> {
        let mut guard = Self::load_maps(options, Some(pins))?;
        let btf = btf(options)?.1;
        if origin == Origin::Adopted {
            guard.load_iterator(&btf)?;
            guard.forget_scratch();
            let entry = journal.read().map_err(read_journal)?;
            pins.keep_only(entry.link_set)?;
        } else {
            guard.load_programs(&btf)?;
        }
        guard.keep(pins.clone(), journal, object);
        if origin == Origin::Fresh {
            guard.take_over()?;
        }
        Ok(guard)
    }

    /// Attaches and pins the programs that are loaded, and then lets go of those before them.
    pub fn take_over(&mut self) -> Result<(), KernelError> {
        let Some((pins, journal, object)) = self.kept() else {
            return Ok(());
        };
        let number = journal.read().map_err(read_journal)?.link_set + 1;
        let folder = pins.new_link_set(number)?;
        if let Err(error) = self.attach(Some(&folder)) {
            // Those before are in force still.
            let _ = std::fs::remove_dir_all(&folder);
            return Err(error);
        }
        let (links, maps) = (pins.count_links(number)?, pins.count_maps()?);
        let commit = |entry: &mut Entry| {
            entry.abi = ABI;
            entry.object = object;
            entry.link_set = number;
            entry.links = links;
            entry.maps = maps;
        };
        journal.change(commit).map_err(read_journal)?;
        pins.keep_only(number)
    }

    /// Loads the maps and takes the programs apart, without loading one. For tests of single programs.
    #[doc(hidden)]
    pub fn load_object(options: &GuardOptions) -> Result<Self, KernelError> {
        Self::load_maps(options, None)
    }

    fn load_maps(options: &GuardOptions, pins: Option<&Pins>) -> Result<Self, KernelError> {
        let (data, btf) = btf(options)?;
        let offsets = offsets(&Structs::parse(&data)?)?;
        let names = shared_maps(pins)?;
        let state = pins.map_or(Ok(None), living_state)?;
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&btf)).allow_unsupported_maps();
        if options.log {
            loader
                .verifier_log_level(aya::VerifierLogLevel::VERBOSE | aya::VerifierLogLevel::STATS);
        }
        for (name, offset) in &offsets {
            loader.override_global(name, offset, true);
        }
        for (name, path) in &names {
            loader.map_pin_path(name.as_str(), path.as_path());
        }
        if let Some(state) = &state {
            // The loader writes this into the living map.
            loader.override_global("STATE", state, true);
        }
        let object = super::fields::complete(OBJECT, &offsets)?;
        let mut ebpf = loader.load(object.bytes()).map_err(Box::new)?;
        follow_log(&mut ebpf)?;
        Self::assemble(ebpf)
    }

    fn load_programs(&mut self, btf: &Btf) -> Result<(), KernelError> {
        for name in TRACEPOINTS {
            let program: &mut BtfTracePoint = program(self.object(), name)?;
            program
                .load(name, btf)
                .map_err(|error| of_program("load", name, error))?;
        }
        self.load_iterator(btf)?;
        for name in hooks::present(btf) {
            let program: &mut Lsm = program(self.object(), name)?;
            program
                .load(name, btf)
                .map_err(|error| refused(name, error))?;
        }
        Ok(())
    }

    fn load_iterator(&mut self, btf: &Btf) -> Result<(), KernelError> {
        let iterator: &mut Iter = program(self.object(), ITERATOR)?;
        iterator
            .load("task", btf)
            .map_err(|error| of_program("load", ITERATOR, error))
    }

    /// Everything verifies: now attach, lineage first. In a folder the links outlive this process.
    fn attach(&mut self, folder: Option<&Path>) -> Result<(), KernelError> {
        for name in hooks::known() {
            let program: &mut Lsm = program(self.object(), name)?;
            if program.fd().is_err() {
                // This kernel has no such hook, so it was not loaded.
                continue;
            }
            let link = program.attach().map_err(|error| refused(name, error))?;
            if let Some(folder) = folder {
                let link = program
                    .take_link(link)
                    .map_err(|error| of_program("keep", name, error))?;
                pin(link.into(), folder, name)?;
            }
        }
        for name in TRACEPOINTS {
            let program: &mut BtfTracePoint = program(self.object(), name)?;
            let link = program
                .attach()
                .map_err(|error| of_program("attach", name, error))?;
            if let Some(folder) = folder {
                let link = program
                    .take_link(link)
                    .map_err(|error| of_program("keep", name, error))?;
                pin(link.into(), folder, name)?;
            }
        }
        Ok(())
    }
}

fn pin(link: FdLink, folder: &Path, name: &str) -> Result<(), KernelError> {
    let path = folder.join(name);
    match link.pin(&path) {
        // The descriptor may go: the name holds the link.
        Ok(_) => Ok(()),
        Err(error) => Err(KernelError::Pin {
            call: "pin the link",
            path,
            error: io::Error::other(error),
        }),
    }
}

/// What to do with the pins that are there; `None` where none are whole. What cannot be taken over is an
/// error, and stays in force.
fn plan(pins: &Pins, object: [u8; 32]) -> Result<Option<(Journal, Origin)>, KernelError> {
    let Some(journal) = pins.journal()? else {
        return Ok(None);
    };
    let entry = journal.read().map_err(read_journal)?;
    if entry.link_set == 0 {
        return Ok(None);
    }
    if entry.abi != ABI {
        return Err(KernelError::Abi {
            pinned: entry.abi,
            ours: ABI,
        });
    }
    // The programs that are attached have maps whose names are gone: others of these names would be empty.
    if pins.count_maps()? < entry.maps {
        return Err(KernelError::PinsRemoved);
    }
    let whole = pins.count_links(entry.link_set)? == entry.links;
    if !whole {
        tracing::error!("pinned links were removed by somebody; all are attached again");
    }
    let forced = std::env::var_os(FORCE_UPGRADE).is_some_and(|value| !value.is_empty());
    let origin = if whole && entry.object == object && !forced {
        Origin::Adopted
    } else {
        Origin::Upgraded
    };
    Ok(Some((journal, origin)))
}

/// The maps that are pinned, with their names there. Those that exist must be what this build would make.
fn shared_maps(pins: Option<&Pins>) -> Result<Vec<(String, PathBuf)>, KernelError> {
    let Some(pins) = pins else {
        return Ok(Vec::new());
    };
    let object = aya_obj::Object::parse(OBJECT).map_err(|error| KernelError::Map {
        map: "of the object",
        error: error.to_string(),
    })?;
    let mut names = Vec::new();
    for (name, map) in &object.maps {
        if PRIVATE.iter().any(|private| name.starts_with(private)) {
            continue;
        }
        let path = pins.map(name);
        if let Some(pinned) = open_pin(&path)? {
            let found = sys::map_shape(pinned.as_fd()).map_err(|error| KernelError::Pin {
                call: "look at",
                path: path.clone(),
                error,
            })?;
            let own = [
                map.map_type(),
                map.key_size(),
                map.value_size(),
                map.max_entries(),
            ];
            let found = [
                found.map_type,
                found.key_size,
                found.value_size,
                found.max_entries,
            ];
            if own != found {
                return Err(KernelError::Shape {
                    map: name.clone(),
                    pinned: found,
                    ours: own,
                });
            }
        }
        names.push((name.clone(), path));
    }
    Ok(names)
}

fn open_pin(path: &Path) -> Result<Option<OwnedFd>, KernelError> {
    match sys::object(path) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(KernelError::Pin {
            call: "open the pin",
            path: path.to_owned(),
            error,
        }),
    }
}

/// The counters that programs keep changing, if they are pinned, so that the loader can write what is there.
///
/// A change between reading and writing is lost. So one more task counts as unsettled, which makes the
/// kernel judge by cgroups until every task has been seen, and execs are numbered on from far above.
fn living_state(pins: &Pins) -> Result<Option<Bytes<State>>, KernelError> {
    let Some(map) = open_pin(&pins.map(".bss"))? else {
        return Ok(None);
    };
    let mut words = [0u64; size_of::<State>() / 8];
    sys::look_up(map.as_fd(), 0, &mut words).map_err(|error| KernelError::Io {
        action: "read the programs' counters",
        error,
    })?;
    let [unsettled, exec_ids] = words;
    Ok(Some(Bytes(State {
        unsettled: unsettled.saturating_add(1),
        exec_ids: exec_ids.saturating_add(EXEC_IDS_APART),
    })))
}

fn read_journal(error: io::Error) -> KernelError {
    KernelError::Io {
        action: "use the pinned journal",
        error,
    }
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

/// What aya says about a map, with its cause.
pub(super) fn failed(map: &'static str, error: &aya::maps::MapError) -> KernelError {
    let cause =
        std::error::Error::source(error).map_or_else(String::new, |cause| format!(": {cause}"));
    KernelError::Map {
        map,
        error: format!("{error}{cause}"),
    }
}

/// A map under its type.
pub(super) fn open<T: TryFrom<Map, Error = aya::maps::MapError>>(
    name: &'static str,
    map: Map,
) -> Result<T, KernelError> {
    T::try_from(map).map_err(|error| failed(name, &error))
}

/// A program under its type.
pub(super) fn program<'a, P>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut P, KernelError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or_else(|| KernelError::Map {
            map: name,
            error: "no such program in the object".into(),
        })?
        .try_into()
        .map_err(|error| of_program("find", name, error))
}

pub(super) fn of_program(
    action: &'static str,
    program: &'static str,
    error: aya::programs::ProgramError,
) -> KernelError {
    KernelError::Program {
        action,
        program,
        error: Box::new(error),
    }
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
    of_program("load", program, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a test on pins in a bpffs of its own, which nobody else sees. Says so where that cannot be had.
    fn on_pins(test: impl FnOnce(&Pins) + Send) {
        use nix::mount::{MsFlags, mount};
        use nix::sched::{CloneFlags, unshare};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let none: Option<&str> = None;
        let on_own_mounts = || {
            let mounted = unshare(CloneFlags::CLONE_NEWNS)
                .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
                .and_then(|()| mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), none))
                .and_then(|()| {
                    sys::create_array("probe", 8)
                        .map(drop)
                        .map_err(|_| nix::errno::Errno::EPERM)
                });
            if let Err(errno) = mounted {
                eprintln!("skipped: nothing can be pinned here: {errno}");
                return;
            }
            let pins = Pins::at(path.join("agentguard"));
            pins.prepare().unwrap();
            test(&pins);
            pins.clear().unwrap();
            assert!(!pins.root().exists());
        };
        // Mounts are a thread's own.
        std::thread::scope(|scope| scope.spawn(on_own_mounts).join().unwrap());
    }

    #[test]
    fn what_another_layout_pinned_is_refused_and_stays() {
        on_pins(another_layout);
    }

    fn another_layout(pins: &Pins) {
        assert!(plan(pins, [1; 32]).unwrap().is_none());
        let journal = pins.create_journal().unwrap();
        // A start that never came to its end governed nobody.
        assert!(plan(pins, [1; 32]).unwrap().is_none());
        let set = |abi, maps| {
            let change = |entry: &mut Entry| {
                entry.abi = abi;
                entry.maps = maps;
                entry.object = [1; 32];
                entry.link_set = 1;
            };
            journal.change(change).unwrap();
        };
        set(ABI, 0);
        let origin = |object| plan(pins, object).unwrap().map(|(_, origin)| origin);
        assert_eq!(origin([1; 32]), Some(Origin::Adopted));
        assert_eq!(origin([2; 32]), Some(Origin::Upgraded));
        set(ABI + 1, 0);
        assert!(matches!(
            plan(pins, [1; 32]),
            Err(KernelError::Abi { pinned, ours }) if pinned == ABI + 1 && ours == ABI
        ));
        set(ABI, 1);
        assert!(matches!(plan(pins, [1; 32]), Err(KernelError::PinsRemoved)));
        assert!(
            pins.journal().unwrap().is_some(),
            "a refusal removed the pins"
        );
    }

    #[test]
    fn a_map_of_another_shape_is_refused() {
        on_pins(another_shape);
    }

    fn another_shape(pins: &Pins) {
        let names = shared_maps(Some(pins)).unwrap();
        for needed in ["LABELS", "CGROUPS", "DENIED", "LOSSES", ".bss"] {
            assert!(names.iter().any(|(name, _)| name == needed), "{needed}");
        }
        assert!(!names.iter().any(|(name, _)| name.contains("SCRATCH")));
        let map = sys::create_array("losses", 8).unwrap();
        sys::pin(map.as_fd(), &pins.map("LOSSES")).unwrap();
        assert!(matches!(
            shared_maps(Some(pins)),
            Err(KernelError::Shape { map, .. }) if map == "LOSSES"
        ));
    }

    #[test]
    fn a_journal_remembers_the_open_batch() {
        on_pins(open_batch);
    }

    fn open_batch(pins: &Pins) {
        let journal = pins.create_journal().unwrap();
        let batch = super::super::Batch {
            open: 1,
            first: 7,
            end: 9,
            read_to: [16, 32],
            losses: [3, 4],
        };
        journal.begin(batch).unwrap();
        // Another one finds it.
        let found = pins.journal().unwrap().unwrap();
        assert_eq!(found.read().unwrap().batch, batch);
        assert_eq!(found.read().unwrap().accounted, [0, 0]);
        found.end().unwrap();
        let entry = journal.read().unwrap();
        assert_eq!((entry.batch.open, entry.accounted), (0, [3, 4]));
    }
}
