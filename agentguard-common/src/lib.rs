//! What the kernel programs and the daemon agree on: one definition of every type that crosses
//! the boundary. This crate holds layouts and constants only; it must never allocate, read the
//! environment or decide policy by itself.
//!
//! Kernel to daemon: [`record`] (ring buffers), [`traffic`] (counters). Daemon to kernel: [`table`] (compiled policies),
//! [`label`] (who is governed), [`budget`] (how much), [`approval`] (what an operator has
//! granted) and [`offsets`] (where the running kernel keeps its fields).
#![no_std]

/// Version of everything that pinned maps hold: keys, values, records in the rings, tables.
///
/// Maps outlive the daemon that made them. A build with another number refuses to take them over: raise it
/// with every change of a layout in this crate, of a map's definition, or of the meaning of either. A new
/// operation, reason or map needs none.
pub const ABI: u32 = 6;

/// A struct that kernel programs and daemon share: laid out as in C, and in user space read from and written to bytes.
macro_rules! shared {
    ($item:item) => {
        #[repr(C)]
        #[cfg_attr(
            feature = "user",
            derive(
                zerocopy::FromBytes,
                zerocopy::IntoBytes,
                zerocopy::Immutable,
                zerocopy::KnownLayout
            )
        )]
        $item
    };
}

pub mod approval;
pub mod budget;
pub mod folder;
pub mod identity;
pub mod label;
pub mod offsets;
pub mod opened;
pub mod record;
pub mod selftest;
pub mod table;
pub mod traffic;
pub mod verdict;
