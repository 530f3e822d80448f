//! The kernel room: loads the programs, installs tables, labels tasks and reads the rings.
//! The only room of the daemon with `unsafe`; it must never decide anything about an action.

mod adopt;
mod approvals;
mod attach;
mod btf;
mod budget;
mod cgroup;
mod error;
mod fields;
mod folders;
mod guard;
mod hooks;
mod journal;
mod load;
mod objects;
mod opened;
mod outgoing;
mod peers;
mod pins;
mod probe;
mod redirect;
mod ring;
mod rings;
mod symbols;
mod sys;
mod tables;
mod traffic;

pub use btf::{BtfError, Structs};
pub use error::KernelError;
pub use fields::FieldError;
pub use guard::{Guard, cgroup_id};
pub use journal::{Batch, Entry, Journal};
pub use load::{GuardOptions, Origin};
pub use objects::Protection;
pub use opened::{NameBook, Opening, Ports};
pub use outgoing::unacknowledged;
pub use peers::{OtherEnd, other_end, socket_cgroup};
pub use pins::{FOLDER as PINS, Pins};
pub use probe::{Probe, ProbeStatus, probe};
pub use redirect::ResolverPlace;
pub use ring::{Glimpse, Ring};
pub use rings::{Positions, Rings, time};
pub use sys::{boot_time, keep_little_memory, trim_memory};
pub use traffic::Counted;

/// The kernel object, built by `build.rs`.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("AGENTGUARD_OBJECT"));
