//! Agents: who is governed, in which cgroup, and as which user its command runs.
//!
//! An agent is a cgroup. Nothing in here decides about actions.

pub mod cgroup;
pub mod identity;
mod registry;

pub use cgroup::{Cgroup, CgroupError, Hierarchy};
pub use identity::{Identity, IdentityError, own_home, user};
pub use registry::{Agent, Name, NameError, Registry, RegistryError};
