//! Sessions of agents: from a policy and a cgroup to governed processes, and back.
//!
//! The order of steps is the point of this room: a policy is in force before a label can be given,
//! a label is given before a command runs, and whatever fails on the way leaves nothing ungoverned
//! that was said to be governed.

mod approvals;
mod attach;
mod canary;
mod charges;
mod enforcer;
mod engine;
#[cfg(test)]
mod engine_tests;
mod error;
mod guardian;
mod hunt;
mod launch;
mod leave;
mod limits;
mod look;
mod metrics;
mod names;
mod number;
mod objects;
mod pump;
mod request;
mod restore;
mod scout;
mod store;
mod swap;
mod timekeeper;
mod traffic;
mod watch;
mod webhook;

pub use canary::probe as canary_child;
pub use enforcer::Enforcer;
pub use engine::Engine;
pub use error::SessionError;
pub use guardian::{Action as GuardianAction, Guardian, run as guardian_child};
pub use launch::{Launch, Launched, exec as launch_child, shell_status};
pub use pump::Pump;
pub use request::{AgentInfo, Attach, EngineOptions, Leave, Nearest, PolicyRequest, Target};
pub use restore::{agents_in, saved_agents};
pub use store::{SavedAgent, boot, clear as clear_state};
pub use traffic::{AgentTraffic, Amounts, Destination};
pub use watch::Watcher;
pub use webhook::{Pace, Webhook};
