//! Syslog by datagrams: UDP on this host, and the socket of the host's own logger.
//!
//! A datagram is done with when the kernel has taken it. Nobody says whether the receiver has read it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::net::{UdpSocket, UnixDatagram};

use super::config::{SyslogAddress, SyslogConfig};
use super::syslog::{self, Formatter};
use super::{Item, Trouble, host_name};

/// An open socket.
#[derive(Debug)]
enum Open {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

/// Sends to one receiver.
#[derive(Debug)]
pub struct Datagrams {
    to: SyslogAddress,
    formatter: Formatter,
    open: Option<Open>,
    settled: u64,
    shortened: u64,
}

impl Datagrams {
    /// Does nothing yet.
    pub fn new(config: &SyslogConfig) -> Self {
        Self {
            to: config.to.clone(),
            formatter: Formatter::new(&host_name(), config.facility, config.format.form()),
            open: None,
            settled: 0,
            shortened: 0,
        }
    }

    /// The last record that the kernel took.
    pub fn settled(&self) -> u64 {
        self.settled
    }

    /// How many records were cut, since this was asked last.
    pub fn take_shortened(&mut self) -> u64 {
        std::mem::take(&mut self.shortened)
    }

    /// Sends records, each as a datagram.
    pub async fn send(&mut self, items: &[Item]) -> Result<(), Trouble> {
        for item in items {
            if let Err(error) = self.one(item).await {
                self.open = None;
                return Err(Trouble::passing(error.to_string()));
            }
            self.settled = item.seq;
        }
        Ok(())
    }

    async fn one(&mut self, item: &Item) -> std::io::Result<()> {
        let open = match self.open.take() {
            Some(open) => open,
            None => connect(&self.to).await?,
        };
        let mut message = match open {
            Open::Udp(_) => self.formatter.message(item),
            Open::Unix(_) => self.formatter.local(item),
        };
        if syslog::shorten(&mut message) {
            self.shortened += 1;
        }
        match &open {
            Open::Udp(socket) => socket.send(&message).await?,
            Open::Unix(socket) => socket.send(&message).await?,
        };
        self.open = Some(open);
        Ok(())
    }
}

async fn connect(to: &SyslogAddress) -> std::io::Result<Open> {
    match to {
        SyslogAddress::Unix(path) => {
            let socket = UnixDatagram::unbound()?;
            socket.connect(path)?;
            Ok(Open::Unix(socket))
        }
        SyslogAddress::Udp(host, port)
        | SyslogAddress::Tcp(host, port)
        | SyslogAddress::Tls(host, port) => {
            let addresses = crate::resolver::host::addresses(host).await?;
            let address = addresses
                .first()
                .ok_or(std::io::ErrorKind::AddrNotAvailable)?;
            let any: IpAddr = match address {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            let socket = UdpSocket::bind((any, 0)).await?;
            socket.connect((*address, *port)).await?;
            Ok(Open::Udp(socket))
        }
    }
}
