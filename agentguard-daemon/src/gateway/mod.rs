//! The model gateway: an endpoint on loopback that stands between agents and the providers of models.
//!
//! It counts what calls take, by the providers' own figures, and lets nothing through that no budget has room
//! for. Who calls is asked of the kernel, never read from the request. The providers' keys stay here: they are in
//! no answer, no record and no message. Answers are passed on byte by byte.

mod asked;
mod config;
mod exchange;
mod keys;
mod outcome;
mod prices;
mod problem;
mod provider;
mod record;
mod serve;
mod stream;
mod upstream;
mod usage;

pub use config::{GatewayConfig, ProviderConfig};
pub use keys::Secret;
pub use prices::{Prices, SHIPPED as SHIPPED_PRICES};
pub use provider::Api;
pub use record::Used;
pub use serve::{Caller, Gateway, GatewayError, Host};

/// What agents get instead of a key.
pub const PLACEHOLDER: &str = "agentguard-no-key-needed";
