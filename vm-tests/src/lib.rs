//! Scenarios that run AgentGuard on real kernels: rows of acts with what must come of each, and the
//! machinery that performs them in a guest. It uses the product only as its users do: through the
//! command line and the audit trail.

pub mod act;
pub mod approvals;
pub mod attempt;
pub mod bench;
pub mod budgets;
pub mod clients;
pub mod contend;
pub mod demo;
pub mod dialogue;
pub mod fixture;
pub mod folders;
pub mod guard;
pub mod hung;
pub mod idle;
pub mod installed;
pub mod limits;
pub mod listen;
pub mod names;
pub mod races;
mod reader;
mod recording;
pub mod row;
pub mod run;
pub mod runaway;
pub mod scenario;
mod service;
pub mod survival;
pub mod swap;
pub mod table;
pub mod traffic;
pub mod trail;
pub mod workshop;
