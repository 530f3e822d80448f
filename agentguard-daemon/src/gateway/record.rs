//! The line of the log about one call.

use serde::{Deserialize, Serialize};

use super::usage::Usage;
use crate::policy::limits::usd_text;

/// What a call took, as the log has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Tokens read.
    pub input_tokens: u64,
    /// Of them, from the cache.
    pub cached_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Money, as an exact decimal number; absent where the model has no price.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usd: Option<String>,
    /// The provider did not say it to the end: it is what the call may have taken at most.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
}

impl Used {
    /// From tokens and money.
    pub fn of(usage: &Usage, money: Option<u64>, estimated: bool) -> Self {
        Self {
            input_tokens: usage.input,
            cached_tokens: usage.cached,
            output_tokens: usage.output,
            usd: money.map(usd_text),
            estimated,
        }
    }
}
