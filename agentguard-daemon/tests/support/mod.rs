//! What tests and measurements of the gateway share.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    dead_code,
    missing_docs,
    reason = "tests may panic, and not each of them needs everything"
)]

pub mod host;
pub mod upstream;
