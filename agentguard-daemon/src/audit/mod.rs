//! The audit trail: every action of a governed process as one line of JSON in a hash chain.
//!
//! Nothing may be left out in silence: what could not be decoded, kept or written is itself a record.

pub mod chain;
pub mod clock;
pub mod judge;
mod kernel_words;
pub mod log;
pub mod objects;
pub mod programs;
pub mod read;
pub mod record;
mod recorder;
#[cfg(test)]
mod recorder_tests;
pub mod words;

pub use log::{Log, LogError, Written};
pub use record::Record;
pub use recorder::{Notice, Recorder, Tally, Totals};
