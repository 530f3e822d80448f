//! The kernel room: loads the programs, installs tables, labels tasks and reads the rings.
//! The only room of the daemon with `unsafe`; it must never decide anything about an action.

mod btf;
mod error;
mod fields;
mod guard;
mod hooks;
mod probe;
mod rings;
mod sys;

pub use btf::{BtfError, Structs};
pub use error::KernelError;
pub use fields::FieldError;
pub use guard::{Guard, GuardOptions, cgroup_id};
pub use probe::{Probe, ProbeStatus, probe};
pub use rings::Rings;

/// The kernel object, built by `build.rs`.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("AGENTGUARD_OBJECT"));
