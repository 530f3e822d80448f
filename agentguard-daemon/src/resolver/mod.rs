//! The embedded resolver: the only place where governed tasks get names resolved.
//!
//! It answers permitted names only, and an address leaves it only after the kernel has opened that address for
//! the agent that asked. It never decides by itself: policy and kernel are behind [`Gate`].

mod gate;
mod special;

pub use gate::{AddressVerdict, Asker, Gate, Grant, Judged, Opening, Refusal, Resolution};
pub use special::{Special, special};
