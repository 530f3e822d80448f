//! The audit trail: every action of a governed process as one line of JSON in a hash chain.
//!
//! Nothing may be left out in silence: what could not be decoded, kept or written is itself a record.

pub mod chain;
pub mod clock;
pub mod log;
pub mod read;
pub mod record;

pub use log::{Log, LogError};
pub use record::Record;
