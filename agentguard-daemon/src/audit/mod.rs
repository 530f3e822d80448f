//! The audit trail: every action of a governed process as one line of JSON in a hash chain.
//!
//! Nothing may be left out in silence: what could not be decoded, kept or written is itself a record.

pub mod ancestry;
pub mod chain;
pub mod clock;
pub mod find;
#[cfg(test)]
mod find_tests;
pub mod glance;
pub mod index;
pub mod judge;
mod kernel_words;
pub mod key;
pub mod learn;
mod line;
pub mod log;
pub mod mark;
pub mod objects;
pub mod programs;
pub mod read;
pub mod record;
mod recorder;
#[cfg(test)]
mod recorder_tests;
pub mod replay;
pub mod report;
pub mod segment;
mod spent;
pub mod stats;
pub mod verify;
pub mod words;

pub use log::{Left, Log, LogError, LogOptions, LogWork, Sync, Written};
pub use record::Record;
pub(crate) use recorder::is_action;
pub use recorder::{Notice, Recorder, Tally, Totals};
