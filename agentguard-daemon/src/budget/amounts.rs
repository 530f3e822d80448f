//! How much of each quantity one call takes.

use crate::policy::limits::Quantity;

/// Amounts of one call of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Tokens read, cached ones included.
    pub input: u64,
    /// Tokens written.
    pub output: u64,
    /// Tokens read from the cache.
    pub cached: u64,
    /// Money, in [`crate::policy::limits::PICO`] parts of a US dollar.
    pub money: u64,
}

impl Amounts {
    /// The amount of a quantity; of what is not a call's, none.
    pub fn of(&self, quantity: Quantity) -> u64 {
        match quantity {
            Quantity::Requests => 1,
            Quantity::InputTokens => self.input,
            Quantity::OutputTokens => self.output,
            Quantity::CachedTokens => self.cached,
            Quantity::Tokens => self.input.saturating_add(self.output),
            Quantity::Money => self.money,
            _ => 0,
        }
    }
}
