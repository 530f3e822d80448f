//! The audit trail for others: records in other people's formats, and sinks that send them.
//!
//! The log on the disk is the queue. A sink reads it behind everybody's back: it must never hold up the recorder,
//! leave out a record, or take one for delivered that the receiver may not have.

mod carrier;
pub mod config;
pub mod csv;
pub mod cursor;
pub mod datagram;
pub mod feed;
pub mod http;
pub mod journald;
pub mod ocsf;
pub mod otlp;
mod runner;
pub mod sink;
pub mod state;
pub mod stream;
pub mod syslog;

pub use config::{SinkConfig, SinkName};
pub use feed::Item;
pub use sink::{Place, SinkError, Sinks};
pub use state::SinkState;

/// The name of this host; `localhost` if it has none.
pub fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

/// What a record is sent as.
#[derive(Clone, Debug)]
pub enum Form {
    /// The line of the log, byte for byte.
    Record,
    /// An event of OCSF.
    Ocsf(ocsf::Mapper),
}

impl Form {
    /// The text of a record.
    pub fn text<'a>(&self, line: &'a [u8]) -> std::borrow::Cow<'a, [u8]> {
        match self {
            Self::Record => line.into(),
            Self::Ocsf(mapper) => mapper.line(line).into(),
        }
    }
}

/// What a receiver does not want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Whatever comes from here, as far as it says.
    All,
    /// The one record that it was sent.
    Record,
}

/// Why something could not be sent.
#[derive(Debug)]
pub struct Trouble {
    /// What is wrong, for people. It never holds a secret.
    pub what: String,
    /// Not before this has passed is it worth trying again.
    pub wait: Option<std::time::Duration>,
    /// The receiver understood, and does not want it: trying again alone will not help.
    pub refused: Option<Refused>,
    /// The batch was too much at once.
    pub too_large: bool,
    /// Nothing of it has left this host.
    pub unsent: bool,
}

impl Trouble {
    /// Something that may be better at the next try.
    pub fn passing(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            wait: None,
            refused: None,
            too_large: false,
            unsent: false,
        }
    }

    /// The same, before anything was sent.
    pub fn before(what: impl Into<String>) -> Self {
        Self {
            unsent: true,
            ..Self::passing(what)
        }
    }
}
