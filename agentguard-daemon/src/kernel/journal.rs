//! What must be known after the death of the daemon, in a pinned map: which build made the pins, and how
//! far the rings and the loss counters have been brought into the log.
//!
//! A batch of records is *opened* here before its lines are written, and closed when they are in the file.
//! So whoever comes next knows which records are in the log already, and neither writes one twice nor
//! forgets one. It lives as long as the rings do, in the kernel: a file could belong to another boot.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use agentguard_common::record::class;

use super::rings::Positions;
use super::sys;

const COUNT: usize = class::COUNT as usize;

/// The value of the map.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
)]
pub struct Entry {
    /// [`agentguard_common::ABI`] of the build that made the maps.
    pub abi: u32,
    /// Number of the set of links that is in force; 0 before there is a whole one.
    pub link_set: u32,
    /// Links in that set.
    pub links: u64,
    /// Maps that were pinned with it.
    pub maps: u64,
    /// SHA-256 of the object that they come from.
    pub object: [u8; 32],
    /// The batch that is being written.
    pub batch: Batch,
    /// Losses that are gap records in the log.
    pub accounted: [u64; COUNT],
}

/// A batch of records on its way into the log.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
)]
pub struct Batch {
    /// 1 while it is open.
    pub open: u64,
    /// Number of its first line.
    pub first: u64,
    /// Number after its last line.
    pub end: u64,
    /// Where its last records end in the rings.
    pub read_to: Positions,
    /// The losses that its gap records make up for.
    pub losses: [u64; COUNT],
}

/// The map. Clones are the same map.
#[derive(Clone, Debug)]
pub struct Journal(Arc<OwnedFd>);

impl Journal {
    /// Opens the pinned one; `None` if there is none.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        match sys::object(path) {
            Ok(fd) => {
                let shape = sys::map_shape(fd.as_fd())?;
                if shape.value_size as usize != size_of::<Entry>() {
                    return Err(io::Error::other("it is of another version"));
                }
                Ok(Some(Self(Arc::new(fd))))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes and pins an empty one.
    pub fn create(path: &Path) -> io::Result<Self> {
        let fd = sys::create_array("journal", size_of::<Entry>() as u32)?;
        sys::pin(fd.as_fd(), path)?;
        Ok(Self(Arc::new(fd)))
    }

    /// What it says.
    pub fn read(&self) -> io::Result<Entry> {
        let mut entry = Entry::default();
        sys::look_up(self.0.as_fd(), 0, &mut entry)?;
        Ok(entry)
    }

    /// Changes it. There is one writer: the daemon that holds the lock.
    pub fn change(&self, change: impl FnOnce(&mut Entry)) -> io::Result<()> {
        let mut entry = self.read()?;
        change(&mut entry);
        sys::update(self.0.as_fd(), 0, &entry)
    }

    /// These lines are about to be written.
    pub fn begin(&self, batch: Batch) -> io::Result<()> {
        self.change(|entry| {
            entry.batch = batch;
            entry.batch.open = 1;
        })
    }

    /// The lines of the open batch are in the file, and its records were given back.
    pub fn end(&self) -> io::Result<()> {
        self.change(|entry| {
            entry.accounted = entry.batch.losses;
            entry.batch.open = 0;
        })
    }
}
