//! Acts on sockets: every way to make one, to connect it, and to send.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixStream};
use std::time::Duration;

use nix::sys::socket::{
    self, AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrIn6,
};

use super::call::{address, call32, owned, sys};
use super::files::done;
use super::number;

/// Every verb.
pub const VERBS: &[&str] = &[
    "connect",
    "connect-udp",
    "connect-unix",
    "connect-unix-datagram",
    "connect-unix-packet",
    "connect-unix-from",
    "connect-multipath",
    "connect-deferred",
    "connect-again",
    "connect32",
    "send",
    "send-message",
    "send-many",
    "send-elsewhere",
    "send-unspecified",
    "send-other-family",
    "send-unix",
    "fast-open",
    "socket",
    "receive",
    "receive-and-send",
    "set-option",
];

/// Performs an act of this module.
pub fn perform(words: &[&str]) -> Option<io::Result<()>> {
    Some(match words {
        ["connect", to] => parse(to)
            .and_then(|to| TcpStream::connect_timeout(&to, Duration::from_secs(5)).map(drop)),
        ["connect-udp", to] => udp(to).and_then(|socket| {
            socket.connect(parse(to)?)?;
            socket.send(b"X").map(drop)
        }),
        ["connect-unix", name] => {
            unix(name).and_then(|name| UnixStream::connect_addr(&name).map(drop))
        }
        ["connect-unix-datagram", name] => UnixDatagram::unbound().and_then(|socket| {
            socket.connect_addr(&unix(name)?)?;
            socket.send(b"X").map(drop)
        }),
        ["connect-unix-packet", name] => connect_packet(name),
        ["connect-unix-from", folder, name] => std::env::set_current_dir(folder)
            .and_then(|()| UnixStream::connect_addr(&unix(name)?).map(drop)),
        ["connect-multipath", to] => connect_raw(to, libc::SOCK_STREAM, 262, None),
        ["connect-deferred", to] => connect_raw(to, libc::SOCK_STREAM, 0, Some(30)),
        ["connect-again", first, to] => connect_again(first, to),
        ["connect32", to] => connect32(to),
        ["send", to] => udp(to).and_then(|socket| socket.send_to(b"X", parse(to)?).map(drop)),
        ["send-message", to] => send_message(to, false),
        ["send-many", to] => send_message(to, true),
        ["send-elsewhere", first, to] => udp(first).and_then(|socket| {
            socket.connect(parse(first)?)?;
            socket.send_to(b"X", parse(to)?).map(drop)
        }),
        ["send-unspecified", to] => send_as(to, libc::AF_INET, libc::AF_UNSPEC),
        ["send-other-family", to] => send_as(to, libc::AF_INET6, libc::AF_INET),
        ["fast-open", to] => fast_open(to),
        ["send-unix", name] => UnixDatagram::unbound()
            .and_then(|socket| socket.send_to_addr(b"X", &unix(name)?).map(drop)),
        ["socket", domain, kind, protocol] => make(domain, kind, protocol),
        ["receive", name] => receive(name).and_then(|held| match held {
            Some(held) => super::show(held.into()),
            None => Ok(()),
        }),
        ["receive-and-send", name] => receive(name).and_then(|held| match held {
            Some(held) => UdpSocket::from(held).send(b"X").map(drop),
            None => Ok(()),
        }),
        ["set-option", level, option, value] => set_option(level, option, value),
        _ => return None,
    })
}

fn parse(address: &str) -> io::Result<SocketAddr> {
    address
        .parse()
        .map_err(|_| io::Error::other(format!("no socket address: {address}")))
}

/// An IPv4 address as the kernel takes it.
pub fn inet(address: &str) -> io::Result<[u8; 16]> {
    let SocketAddr::V4(address) = parse(address)? else {
        return Err(io::Error::other("no IPv4 address"));
    };
    let mut bytes = [0; 16];
    bytes[0] = 2;
    bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
    bytes[4..8].copy_from_slice(&address.ip().octets());
    Ok(bytes)
}

fn udp(address: &str) -> io::Result<UdpSocket> {
    UdpSocket::bind(if parse(address)?.is_ipv6() {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    })
}

fn make(domain: &str, kind: &str, protocol: &str) -> io::Result<()> {
    sys!(
        SYS_socket,
        number(domain)?,
        number(kind)?,
        number(protocol)?
    )?;
    done("socket")
}

fn connect_raw(to: &str, kind: i32, protocol: i32, option: Option<i32>) -> io::Result<()> {
    let socket = owned(sys!(SYS_socket, libc::AF_INET, kind, protocol)?)?;
    if let Some(option) = option {
        let one = 1i32.to_ne_bytes();
        sys!(
            SYS_setsockopt,
            socket.as_fd(),
            libc::IPPROTO_TCP,
            option,
            &one[..],
            4
        )?;
    }
    sys!(SYS_connect, socket.as_fd(), &inet(to)?[..], 16)?;
    // A deferred connection is only made now.
    sys!(SYS_write, socket.as_fd(), &b"X"[..], 1).map(drop)
}

/// Connects where it may, dissolves that, and connects elsewhere with the same socket.
fn connect_again(first: &str, to: &str) -> io::Result<()> {
    let socket = udp(first)?;
    socket.connect(parse(first)?)?;
    let nothing = [0u8; 16];
    sys!(SYS_connect, socket.as_fd(), &nothing[..], nothing.len())?;
    socket.connect(parse(to)?)?;
    socket.send(b"X").map(drop)
}

fn connect32(to: &str) -> io::Result<()> {
    let socket = owned(sys!(SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0)?)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
    let memory =
        super::call::Memory::map(4096, libc::PROT_READ | libc::PROT_WRITE, flags, None, 0)?;
    memory.write(0, &inet(to)?);
    let at = u32::try_from(memory.address()).map_err(io::Error::other)?;
    call32(362, [socket.as_raw_fd().cast_unsigned(), at, 16, 0]).map(drop)
}

fn send_message(to: &str, many: bool) -> io::Result<()> {
    let socket = udp(to)?;
    let name = inet(to)?;
    let data = [b'X'];
    let mut vector = [0u8; 16];
    vector[..8].copy_from_slice(&address(&data).to_ne_bytes());
    vector[8] = 1;
    let mut header = [0u8; 64];
    header[..8].copy_from_slice(&address(&name).to_ne_bytes());
    header[8] = 16;
    header[16..24].copy_from_slice(&address(&vector).to_ne_bytes());
    header[24] = 1;
    if many {
        let sent = sys!(SYS_sendmmsg, socket.as_fd(), &header[..], 1, 0)?;
        return if sent == 1 {
            Ok(())
        } else {
            Err(io::Error::other("nothing was sent"))
        };
    }
    sys!(SYS_sendmsg, socket.as_fd(), &header[..], 0).map(drop)
}

/// Sends with a socket of one family to an address that says another.
fn send_as(to: &str, domain: i32, family: i32) -> io::Result<()> {
    let socket = owned(sys!(SYS_socket, domain, libc::SOCK_DGRAM, 0)?)?;
    let mut name = inet(to)?;
    name[..2].copy_from_slice(&family.to_ne_bytes()[..2]);
    sys!(SYS_sendto, socket.as_fd(), &b"X"[..], 1, 0, &name[..], 16).map(drop)
}

/// Sends data with the first packet of a connection: there is no `connect` call.
fn fast_open(address: &str) -> io::Result<()> {
    let address = parse(address)?;
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    let stream = |family| socket::socket(family, SockType::Stream, SockFlag::empty(), None);
    match address {
        SocketAddr::V4(address) => socket::sendto(
            stream(AddressFamily::Inet)?.as_raw_fd(),
            b"X",
            &SockaddrIn::from(address),
            flags,
        )?,
        SocketAddr::V6(address) => socket::sendto(
            stream(AddressFamily::Inet6)?.as_raw_fd(),
            b"X",
            &SockaddrIn6::from(address),
            flags,
        )?,
    };
    Ok(())
}

fn unix(name: &str) -> io::Result<UnixAddr> {
    match name.strip_prefix('@') {
        Some(name) => UnixAddr::from_abstract_name(name),
        None => UnixAddr::from_pathname(name),
    }
}

fn connect_packet(name: &str) -> io::Result<()> {
    let socket = owned(sys!(SYS_socket, libc::AF_UNIX, libc::SOCK_SEQPACKET, 0)?)?;
    let mut bytes = vec![1, 0];
    bytes.extend(name.replace('@', "\0").as_bytes());
    sys!(SYS_connect, socket.as_fd(), &bytes[..], bytes.len())?;
    done("connected")
}

/// Takes a descriptor from whoever listens there. `None` when the message came without it: the
/// kernel has no error for a receiver who may not have it.
fn receive(name: &str) -> io::Result<Option<OwnedFd>> {
    let giver = UnixStream::connect_addr(&unix(name)?)?;
    let mut byte = [0];
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message = socket::recvmsg::<()>(
        giver.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::empty(),
    )?;
    let parts = match message.cmsgs() {
        Ok(parts) => parts,
        // The kernel kept the descriptor back, and says only that something is missing.
        Err(nix::errno::Errno::ENOBUFS) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    for part in parts {
        if let ControlMessageOwned::ScmRights(held) = part
            && let Some(number) = held.first()
        {
            return owned(i64::from(*number)).map(Some);
        }
    }
    Ok(None)
}

fn set_option(level: &str, option: &str, value: &str) -> io::Result<()> {
    let socket = owned(sys!(SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0)?)?;
    let value = value
        .parse::<i32>()
        .map_err(io::Error::other)?
        .to_ne_bytes();
    sys!(
        SYS_setsockopt,
        socket.as_fd(),
        number(level)?,
        number(option)?,
        &value[..],
        4
    )?;
    done("set")
}
