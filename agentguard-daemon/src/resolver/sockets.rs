//! The sockets of one agent: UDP and TCP on the loopback addresses of its network, all with one port number.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, bind,
    listen, setsockopt, socket, sockopt,
};

/// How many port numbers are tried until one is free for all sockets.
const TRIES: usize = 32;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;
/// Bytes of queries that may wait to be read, at most.
const BUFFER: usize = 256 << 10;

/// A network namespace.
#[derive(Debug)]
pub struct NetPlace {
    file: File,
    id: (u64, u64),
}

impl NetPlace {
    /// The one of a process.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::of_file(File::open(format!("/proc/{pid}/ns/net"))?)
    }

    /// Our own.
    pub fn own() -> io::Result<Self> {
        Self::of_file(File::open("/proc/thread-self/ns/net")?)
    }

    fn of_file(file: File) -> io::Result<Self> {
        let found = file.metadata()?;
        let id = (found.dev(), found.ino());
        Ok(Self { file, id })
    }

    /// What tells it from others while it exists.
    pub fn id(&self) -> (u64, u64) {
        self.id
    }
}

/// What an agent's queries come in at.
#[derive(Debug)]
pub struct Sockets {
    /// The number that all of them have.
    pub port: u16,
    /// One for each family that there is.
    pub datagrams: Vec<UdpSocket>,
    /// The same.
    pub streams: Vec<TcpListener>,
}

/// Makes the sockets in a network namespace. `port` is tried first, and no other where `only` says so.
///
/// A thread of its own enters the namespace, because a thread cannot always come back.
pub fn make(place: &NetPlace, port: Option<u16>, only: bool) -> io::Result<Sockets> {
    let file = place.file.try_clone()?;
    let own = NetPlace::own()?.id == place.id;
    let work = move || {
        if !own {
            setns(&file, CloneFlags::CLONE_NEWNET)?;
        }
        make_here(port, only)
    };
    thread::Builder::new()
        .name("resolver-sockets".to_owned())
        .spawn(work)?
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that makes sockets panicked")))
}

fn make_here(port: Option<u16>, only: bool) -> io::Result<Sockets> {
    if let Some(port) = port {
        match all(port) {
            Ok(sockets) => return Ok(sockets),
            Err(error) if only => return Err(error),
            Err(_) => {}
        }
    }
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..TRIES {
        match all(0) {
            Ok(sockets) => return Ok(sockets),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// All sockets with one number; 0 is one that the kernel chooses. A family that this host has not is left out.
fn all(port: u16) -> io::Result<Sockets> {
    let mut sockets = Sockets {
        port,
        datagrams: Vec::new(),
        streams: Vec::new(),
    };
    for host in [
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, 0)),
    ] {
        let mut address = host;
        address.set_port(sockets.port);
        let datagram = match bound(address, SockType::Datagram) {
            Ok(datagram) => UdpSocket::from(datagram),
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => continue,
            Err(errno) => return Err(errno.into()),
        };
        sockets.port = datagram.local_addr()?.port();
        address.set_port(sockets.port);
        let stream = bound(address, SockType::Stream)?;
        listen(&stream, Backlog::new(BACKLOG)?)?;
        sockets.datagrams.push(datagram);
        sockets.streams.push(stream.into());
    }
    if sockets.datagrams.is_empty() {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    }
    Ok(sockets)
}

/// Also on an address that is not up yet: whoever starts a container configures its loopback in its own time.
fn bound(address: SocketAddr, kind: SockType) -> nix::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let made = socket(family, kind, flags, None::<SockProtocol>)?;
    match kind {
        // Connections of the daemon before us may still be closing. Only TCP: for UDP it would share the port.
        SockType::Stream => setsockopt(&made, sockopt::ReuseAddr, &true)?,
        _ => setsockopt(&made, sockopt::RcvBuf, &BUFFER)?,
    }
    match address {
        SocketAddr::V4(address) => {
            setsockopt(&made, sockopt::IpFreebind, &true)?;
            bind(made.as_raw_fd(), &SockaddrIn::from(address))?;
        }
        SocketAddr::V6(address) => {
            setsockopt(&made, sockopt::Ipv6V6Only, &true)?;
            setsockopt(&made, sockopt::IpFreebind, &true)?;
            bind(made.as_raw_fd(), &SockaddrIn6::from(address))?;
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sockets_have_one_number_and_keep_it() {
        let place = NetPlace::own().unwrap();
        let sockets = make(&place, None, false).unwrap();
        assert_ne!(sockets.port, 0);
        for datagram in &sockets.datagrams {
            assert_eq!(datagram.local_addr().unwrap().port(), sockets.port);
        }
        for stream in &sockets.streams {
            assert_eq!(stream.local_addr().unwrap().port(), sockets.port);
        }
        let port = sockets.port;
        assert!(make(&place, Some(port), true).is_err(), "it is taken");
        assert_ne!(make(&place, Some(port), false).unwrap().port, port);
        drop(sockets);
        assert_eq!(make(&place, Some(port), true).unwrap().port, port);
    }
}
