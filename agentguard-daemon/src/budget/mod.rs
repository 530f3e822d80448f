//! The ledger: how much of each budget is spent, reserved and left.
//!
//! Charges are exact and saturating. What was granted is on the disk, or under a ceiling that is, before it is
//! given out, so that no crash and no restart gives a unit back. Nothing here knows about agents in the kernel;
//! accounts have names. What kernel programs charge they count themselves, and it is taken over from there. What cannot be read or written grants nothing.

mod account;
mod amounts;
mod clock;
mod kernel;
#[cfg(test)]
mod kernel_tests;
mod ledger;
#[cfg(test)]
mod ledger_tests;
mod meter;
mod report;
mod state;
mod times;

pub use amounts::Amounts;
pub use clock::{Clock, HostClock, Reading};
pub use kernel::Charged;
pub use ledger::{Event, Ledger, Refusal, Reservation, Why};
pub use meter::Meter;
pub use report::{AccountStatus, BudgetStatus};
pub use state::{FILE as LEDGER, StateError};
pub use times::{Overrun, Sight};
