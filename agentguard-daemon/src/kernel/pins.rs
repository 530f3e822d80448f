//! Pins: what lets enforcement outlive the daemon. Maps and links have names in bpffs; as long as those are
//! there, the kernel goes on judging.
//!
//! Links lie in numbered sets. A set is in force when the journal says so, and an old one goes only after
//! that: whenever the daemon dies, a whole set is attached.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use agentguard_common::label::Label;

use super::journal::{Entry, Journal};
use super::{KernelError, sys};

/// `f_type` of bpffs.
const BPF_MAGIC: libc::c_long = 0xcafe_4a11;
/// Our folder in bpffs.
pub const FOLDER: &str = "/sys/fs/bpf/agentguard";
const JOURNAL: &str = "journal";
const MAPS: &str = "maps";
const LINKS: &str = "links-";

/// The folder with the pins, which need not exist.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

fn failed(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KernelError {
    let path = path.to_owned();
    move |error| KernelError::Pin { call, path, error }
}

impl Pins {
    /// Those of this host.
    pub fn of_host() -> Self {
        Self {
            root: PathBuf::from(FOLDER),
        }
    }

    /// Those in another folder of bpffs.
    #[cfg(test)]
    pub(super) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Mounts bpffs and makes the folders, where they are not there.
    pub(super) fn prepare(&self) -> Result<(), KernelError> {
        let bpffs = self.root.parent().unwrap_or(Path::new("/"));
        if !is_bpffs(bpffs) {
            mount(bpffs)?;
        }
        let maps = self.root.join(MAPS);
        for folder in [&self.root, &maps] {
            match DirBuilder::new().mode(0o700).create(folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("make the folder", folder)(error));
                }
                _ => {}
            }
            let found = fs::symlink_metadata(folder).map_err(failed("look at", folder))?;
            if !found.is_dir() || found.uid() != 0 {
                let error = io::Error::other("it is not a folder of root's");
                return Err(failed("use", folder)(error));
            }
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
                .map_err(failed("close", folder))?;
        }
        Ok(())
    }

    /// The journal; `None` if nothing was ever pinned.
    pub fn journal(&self) -> Result<Option<Journal>, KernelError> {
        let path = self.root.join(JOURNAL);
        Journal::open(&path).map_err(failed("open the pin", &path))
    }

    /// What the journal says, where a whole set of links is in force. An error where that cannot be seen.
    pub fn in_force(&self) -> Result<Option<Entry>, KernelError> {
        let path = self.root.join(JOURNAL);
        let Some(journal) = self.journal()? else {
            return Ok(None);
        };
        let entry = journal.read().map_err(failed("read the pin", &path))?;
        let links = self.count_links(entry.link_set)?;
        Ok((entry.link_set != 0 && links > 0).then_some(entry))
    }

    /// A new journal.
    pub(super) fn create_journal(&self) -> Result<Journal, KernelError> {
        let path = self.root.join(JOURNAL);
        Journal::create(&path).map_err(failed("pin", &path))
    }

    /// The name of a map. A dot is reserved in bpffs.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join(MAPS).join(name.trim_start_matches('.'))
    }

    /// The label of the process behind a pidfd, as pinned programs gave it; `None` where nothing is pinned.
    pub fn label_of(&self, pidfd: BorrowedFd<'_>) -> Result<Option<Label>, KernelError> {
        let path = self.map("LABELS");
        let labels = match sys::object(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            labels => labels.map_err(failed("open the pin", &path))?,
        };
        let mut label = Label::default();
        sys::look_up_task(labels.as_fd(), pidfd, &mut label)
            .map(|found| found.then_some(label))
            .map_err(failed("look into", &path))
    }

    /// The folder of a set of links.
    pub(super) fn link_set(&self, number: u32) -> PathBuf {
        self.root.join(format!("{LINKS}{number}"))
    }

    /// An empty folder for a set of links. What a dead daemon left of an unfinished set is removed.
    pub(super) fn new_link_set(&self, number: u32) -> Result<PathBuf, KernelError> {
        let folder = self.link_set(number);
        remove(&folder)?;
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(failed("make the folder", &folder))?;
        Ok(folder)
    }

    /// Links of a set that are there and can be opened.
    pub(super) fn count_links(&self, number: u32) -> Result<u64, KernelError> {
        let folder = self.link_set(number);
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries.map_err(failed("list", &folder))?,
        };
        Ok(entries
            .flatten()
            .filter(|entry| sys::object(&entry.path()).is_ok())
            .count() as u64)
    }

    /// Maps that are there.
    pub(super) fn count_maps(&self) -> Result<u64, KernelError> {
        let folder = self.root.join(MAPS);
        let entries = fs::read_dir(&folder).map_err(failed("list", &folder))?;
        Ok(entries.flatten().count() as u64)
    }

    /// Removes all sets of links but one: their programs end.
    pub(super) fn keep_only(&self, number: u32) -> Result<(), KernelError> {
        let kept = self.link_set(number);
        let entries = fs::read_dir(&self.root).map_err(failed("list", &self.root))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(LINKS) && path != kept {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Removes everything. Links first: a program without its maps' names is whole, one without its links is
    /// gone.
    pub fn clear(&self) -> Result<(), KernelError> {
        match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("list", &self.root)(error)),
            Ok(_) => {}
        }
        self.keep_only(0)?;
        remove(&self.root)
    }
}

fn remove(folder: &Path) -> Result<(), KernelError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

fn is_bpffs(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|found| found.filesystem_type().0 == BPF_MAGIC)
}

/// Mounts bpffs. In a mount namespace of our own it would end with us, and the pins with it.
fn mount(path: &Path) -> Result<(), KernelError> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt"));
    let same = matches!((namespace("self"), namespace("1")), (Ok(own), Ok(first)) if own == first);
    if !same {
        let error = io::Error::other(
            "it is not there, and a mount of this service's own would not outlive it; on the host: `mount -t bpf bpf /sys/fs/bpf`",
        );
        return Err(failed("use bpffs at", path)(error));
    }
    let none: Option<&str> = None;
    nix::mount::mount(
        Some("bpf"),
        path,
        Some("bpf"),
        nix::mount::MsFlags::MS_NOSUID
            | nix::mount::MsFlags::MS_NODEV
            | nix::mount::MsFlags::MS_NOEXEC,
        none,
    )
    .map_err(|errno| failed("mount bpffs at", path)(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_pinned_where_there_is_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        let pins = Pins {
            root: folder.path().join("agentguard"),
        };
        assert!(pins.journal().unwrap().is_none());
        assert!(pins.in_force().unwrap().is_none());
        assert_eq!(pins.count_links(1).unwrap(), 0);
        pins.clear().unwrap();
        assert_eq!(pins.map(".bss"), pins.map("bss"));
    }

    #[test]
    fn only_the_set_in_force_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let pins = Pins {
            root: folder.path().to_owned(),
        };
        for number in [1, 2] {
            let set = pins.new_link_set(number).unwrap();
            fs::write(set.join("file_open"), "").unwrap();
        }
        pins.keep_only(2).unwrap();
        assert!(!pins.link_set(1).exists() && pins.link_set(2).exists());
        // What is left of an unfinished set is no part of the next.
        let set = pins.new_link_set(2).unwrap();
        assert!(fs::read_dir(set).unwrap().next().is_none());
        pins.clear().unwrap();
        assert!(!folder.path().exists());
    }
}
