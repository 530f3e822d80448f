//! What an earlier daemon left: whether it can be taken over, and how. It must never remove anything.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use agentguard_common::ABI;
use agentguard_common::label::State;

use super::guard::Bytes;
use super::journal::Journal;
use super::pins::Pins;
use super::{KernelError, OBJECT, Origin, sys};

/// Maps that each load has for itself: constants, working memory of the programs, tests. All others are
/// pinned.
const PRIVATE: &[&str] = &[
    ".rodata",
    "PATH_SCRATCH",
    "EXEC_SCRATCH",
    "NAME_SCRATCH",
    "GRANT_SCRATCH",
    "ZEROES",
    "FOLDERS",
    "LEARNING",
    "SELFTEST",
    "AYA_",
];
/// Set to anything but nothing, a daemon takes pins over as if they came from another build. For tests.
const FORCE_UPGRADE: &str = "AGENTGUARD_FORCE_UPGRADE";
/// How far the numbers of execs are moved on when maps are taken over: more execs than can happen while the
/// number is read and written.
const EXEC_IDS_APART: u64 = 1 << 20;

/// What to do with the pins that are there; `None` where none are whole. What cannot be taken over is an
/// error, and stays in force.
pub(super) fn plan(
    pins: &Pins,
    object: [u8; 32],
) -> Result<Option<(Journal, Origin)>, KernelError> {
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
pub(super) fn shared_maps(pins: Option<&Pins>) -> Result<Vec<(String, PathBuf)>, KernelError> {
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
pub(super) fn living_state(pins: &Pins) -> Result<Option<Bytes<State>>, KernelError> {
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

pub(super) fn read_journal(error: io::Error) -> KernelError {
    KernelError::Io {
        action: "use the pinned journal",
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Entry;
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
