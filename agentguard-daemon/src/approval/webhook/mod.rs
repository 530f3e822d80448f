//! The webhook: a receiver elsewhere is asked about what waits, and its signed answer is an operator's.
//!
//! Here is what is said and how it is signed; `session/webhook.rs` says when, and what an answer leads to. An answer
//! must never count that is not signed for this very question.

mod config;
mod message;
mod post;
mod sign;
#[cfg(test)]
mod tests;

pub use config::{ApprovalsConfig, WebhookConfig};
pub use message::{Answer, Asked};
pub use post::{Failure, Post};
pub use sign::{Direction, Secret};
