//! AgentGuard in user space: policies, kernel programs' loader, sessions, audit, API and command line.
//!
//! The kernel decides alone. Nothing in this library may ever stand between an action and its
//! verdict: it compiles policies into tables, installs them, and reads what the kernel recorded.

pub mod agent;
pub mod api;
pub mod approval;
pub mod audit;
pub mod budget;
pub mod cli;
pub mod daemon;
pub mod disk;
pub mod event;
pub mod export;
pub mod gateway;
pub mod hex;
pub mod kernel;
pub mod metrics;
pub mod outbound;
pub mod policy;
pub mod resolver;
pub mod session;
