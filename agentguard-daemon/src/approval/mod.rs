//! Approvals: what rules with `ask` refused, waiting for an operator, and what operators granted of it.
//!
//! The kernel refuses and permits alone. Here is who asked for what, byte for byte, and what that comes to in the
//! kernel's map. A grant must never be wider than the act that was refused.

mod book;
mod numbers;
mod object;
mod status;
#[cfg(test)]
mod tests;
pub mod webhook;

pub use book::{Book, Granting, MOST_WAITING};
pub use object::{Item, items_of};
pub use status::{Approvals, Granted, Scope, Waiting, WebhookState, seconds};
