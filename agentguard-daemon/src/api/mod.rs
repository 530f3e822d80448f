//! The daemon's interface: HTTP with JSON over a Unix socket, and who may ask what.
//!
//! Every request is judged by who the peer is at that moment. A governed process may ask why it was
//! refused, and nothing else, whatever its user.

mod approvals;
mod client;
mod peer;
mod server;
pub mod wire;

pub use client::{Client, ClientError, Subscription};
pub use peer::{Access, Peer};
pub use server::serve;
