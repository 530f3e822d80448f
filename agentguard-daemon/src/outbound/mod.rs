//! How the daemon calls others on the network: whom it trusts, where it may call in the clear, one request with one
//! answer, and how long it waits after a failure.
//!
//! It must never follow a redirect, read more than it was told to, wait without an end, or show a secret.

mod address;
mod call;
mod pause;
mod span;
mod tls;

pub use address::{Endpoint, is_here};
pub use call::{Caller, Unanswered, call, caller, causes};
pub use pause::pause;
pub use span::Span;
pub use tls::{TlsConfig, client, secret};
