//! The ways to receivers, behind one face.

use super::config::{SinkConfig, SyslogAddress};
use super::datagram::Datagrams;
use super::http::Http;
use super::journald::Journal;
use super::stream::Stream;
use super::{Item, Trouble};

/// The way to a receiver.
#[derive(Debug)]
pub enum Carrier {
    Stream(Box<Stream>),
    Datagrams(Datagrams),
    Http(Box<Http>),
    Journal(Journal),
}

impl Carrier {
    /// Does nothing yet.
    pub fn new(config: &SinkConfig) -> Self {
        match config {
            SinkConfig::Syslog(syslog) => match syslog.to {
                SyslogAddress::Tls(..) | SyslogAddress::Tcp(..) => {
                    Self::Stream(Box::new(Stream::new(syslog)))
                }
                SyslogAddress::Udp(..) | SyslogAddress::Unix(_) => {
                    Self::Datagrams(Datagrams::new(syslog))
                }
            },
            SinkConfig::Otlp(otlp) => Self::Http(Box::new(Http::new(otlp))),
            SinkConfig::Journald(journald) => Self::Journal(Journal::new(journald)),
        }
    }

    /// Hands records over. What comes back beside success is to be told.
    pub async fn send(&mut self, items: &[Item]) -> Result<Option<String>, Trouble> {
        match self {
            Self::Stream(stream) => stream.send(items).await.map(|()| None),
            Self::Datagrams(datagrams) => datagrams.send(items).await.map(|()| None),
            Self::Http(http) => http.send(items).await,
            Self::Journal(journal) => journal.send(items).await.map(|()| None),
        }
    }

    /// Finds out what the receiver has, where that is another matter. `idle`: there is nothing more to send now.
    pub async fn settle(&mut self, idle: bool) -> Result<(), Trouble> {
        match self {
            Self::Stream(stream) => stream.settle(idle).await,
            _ => Ok(()),
        }
    }

    /// The last record that the receiver has.
    pub fn settled(&self) -> u64 {
        match self {
            Self::Stream(stream) => stream.settled(),
            Self::Datagrams(datagrams) => datagrams.settled(),
            Self::Http(http) => http.settled(),
            Self::Journal(journal) => journal.settled(),
        }
    }

    /// How many records were thrown away by the receiver, and cut on the way, since this was asked last.
    pub fn take_counts(&mut self) -> (u64, u64) {
        match self {
            Self::Http(http) => (http.take_rejected(), 0),
            Self::Datagrams(datagrams) => (0, datagrams.take_shortened()),
            _ => (0, 0),
        }
    }
}
