//! The embedded resolver: the only place where governed tasks get names resolved.
//!
//! It answers permitted names only, and an address leaves it only after the kernel has opened that address for
//! the agent that asked. It never decides by itself: policy and kernel are behind [`Gate`].

mod cache;
mod conclude;
mod core;
mod gate;
pub mod host;
mod kind;
mod limits;
mod listen;
mod name;
mod open;
mod question;
mod reply;
mod serve;
mod sockets;
mod special;
mod upstream;

pub use gate::{AddressVerdict, Asker, Gate, Judged, Opening, Refusal, Resolution};
pub use limits::Limits;
pub use question::Transport;
pub use serve::Resolver;
pub use sockets::{NetPlace, Sockets, make as make_sockets};
pub use special::{Special, special};
pub use upstream::{Server, Servers};
