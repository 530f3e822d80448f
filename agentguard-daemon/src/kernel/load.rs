//! From the object to loaded and attached programs, of this process alone or pinned.
//!
//! Lineage is attached first, and nothing of an earlier build goes before all of this one is attached.

use std::io;
use std::path::PathBuf;

use agentguard_common::offsets::{ABSENT, OPTIONAL};
use agentguard_common::{ABI, kernel_offsets};
use aya::maps::Map;
use aya::{Btf, Ebpf, EbpfLoader, Endianness};
use sha2::Digest as _;

use super::adopt::{living_state, plan, read_journal, shared_maps};
use super::journal::{Entry, Journal};
use super::pins::Pins;
use super::symbols::Counts;
use super::{BtfError, Guard, KernelError, OBJECT, Structs, probe};

/// Where the running kernel describes its types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// What a guard may be told.
#[derive(Clone, Debug, Default)]
pub struct GuardOptions {
    /// Type information to use instead of the running kernel's own.
    pub btf: Option<PathBuf>,
    /// Print what the verifier says about each program.
    pub log: bool,
    /// Called after each program that was loaded: on a slow machine all of them take minutes.
    pub loaded: Option<fn()>,
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
            vec![$((stringify!($name), match structs.offset($type, $field) {
                // What a kernel may lack is what it was built without.
                Err(BtfError::NoField(..)) if OPTIONAL.contains(&stringify!($name)) => ABSENT,
                found => found?,
            })),+]
        };
    }
    Ok(kernel_offsets!(collect))
}

/// Where an entry keeps a short name itself; 0 where no field says so, and then every name is read as a long one.
fn inline_name(structs: &Structs<'_>) -> u32 {
    ["d_iname", "d_shortname"]
        .iter()
        .find_map(|field| structs.offset("dentry", field).ok())
        .unwrap_or(0)
}

/// Whether the hooks that are given an address know it as one whose bytes they may read.
fn has_plain_address(structs: &Structs<'_>) -> Result<bool, BtfError> {
    Ok(structs.takes("bpf_lsm_socket_connect", 1, "sockaddr")?
        && structs.takes("bpf_lsm_socket_bind", 1, "sockaddr")?)
}

impl Guard {
    /// Loads and attaches every program, or nothing. They end with this process.
    ///
    /// Needs root, BPF LSM and Linux 6.1.54, or 6.2 and later. On any error the kernel is as it was.
    pub fn load(options: &GuardOptions) -> Result<Self, KernelError> {
        probe::require()?;
        let mut guard = Self::load_maps(options, None, Counts::of_kernel())?;
        let btf = btf(options)?.1;
        guard.load_programs(&btf, options.loaded)?;
        guard.prove_folders();
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
        // Programs that go on have their own.
        let counts = match origin {
            Origin::Adopted => Counts::default(),
            Origin::Fresh | Origin::Upgraded => Counts::of_kernel(),
        };
        let mut guard = Self::load_maps(options, Some(pins), counts)?;
        let btf = btf(options)?.1;
        if origin == Origin::Adopted {
            guard.load_iterators(&btf)?;
            guard.load_redirects()?;
            guard.load_counters()?;
            guard.forget_scratch();
            let entry = journal.read().map_err(read_journal)?;
            pins.keep_only(entry.link_set)?;
        } else {
            guard.load_programs(&btf, options.loaded)?;
            guard.prove_folders();
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
        Self::load_maps(options, None, Counts::default())
    }

    fn load_maps(
        options: &GuardOptions,
        pins: Option<&Pins>,
        counts: Counts,
    ) -> Result<Self, KernelError> {
        let (data, btf) = btf(options)?;
        let structs = Structs::parse(&data)?;
        let shared = u32::from(structs.is_shared("file", "f_path")?);
        let inline_name = inline_name(&structs);
        let plain_address = u32::from(has_plain_address(&structs)?);
        let offsets = offsets(&structs)?;
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
        loader.override_global("FILE_PATH_SHARED", &shared, true);
        loader.override_global("DENTRY_INLINE_NAME", &inline_name, true);
        loader.override_global("PLAIN_ADDRESS", &plain_address, true);
        loader.override_global("RENAME_LOCK", &counts.renames, true);
        loader.override_global("MOUNT_LOCK", &counts.mounts, true);
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
