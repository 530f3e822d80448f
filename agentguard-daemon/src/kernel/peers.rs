//! Whose a connection is: the kernel tells the cgroup in which the socket at the other end was made.
//!
//! The question goes over netlink (`sock_diag`) and names both addresses and ports, so it finds one socket or
//! none. What is not certain is an error. Needs the module `tcp_diag` and Linux 5.9.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use nix::sys::stat::fstat;

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `NLMSG_ERROR`.
const ERROR: u16 = 2;
/// `INET_DIAG_CGROUP_ID`.
const CGROUP: u16 = 21;
/// Length of `nlmsghdr`.
const HEADER: usize = 16;
/// Length of `inet_diag_msg`.
const MESSAGE: usize = 72;
/// States of a connection that is there: established, and those in which one of the two sides said its last.
const THERE: [u8; 4] = [1, 4, 5, 8];

/// What the kernel says of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    state: u8,
    inode: u32,
    cgroup: Option<u64>,
}

/// The socket at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherEnd {
    /// The cgroup in which it was made.
    pub cgroup: u64,
    /// Its number, as in `/proc/PID/fd`. Zero where no process has it any more.
    pub inode: u32,
}

/// The cgroup in which the socket at the other end of `stream` was made. `client` is that end's address,
/// `server` this one's.
pub fn socket_cgroup(
    stream: &impl std::os::fd::AsFd,
    client: SocketAddr,
    server: SocketAddr,
) -> io::Result<u64> {
    other_end(stream, client, server).map(|other| other.cgroup)
}

/// The socket at the other end of `stream`; addresses as for [`socket_cgroup`].
pub fn other_end(
    stream: &impl std::os::fd::AsFd,
    client: SocketAddr,
    server: SocketAddr,
) -> io::Result<OtherEnd> {
    let other = ask(client, server)?;
    // As long as our end is there, no other socket can have had these addresses meanwhile.
    let ours = ask(server, client)?;
    let inode = fstat(stream)?.st_ino;
    if u64::from(ours.inode) != inode
        || !THERE.contains(&ours.state)
        || !THERE.contains(&other.state)
    {
        return Err(io::Error::new(
            io::ErrorKind::NotConnected,
            "the connection is over",
        ));
    }
    let cgroup = other.cgroup.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel does not tell the cgroup of a socket",
        )
    })?;
    Ok(OtherEnd {
        cgroup,
        inode: other.inode,
    })
}

/// The socket that has the first address, and is connected to the second.
fn ask(own: SocketAddr, other: SocketAddr) -> io::Result<Found> {
    let (IpAddr::V4(own_ip), IpAddr::V4(other_ip)) = (own.ip(), other.ip()) else {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "only IPv4 is served",
        ));
    };
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    send(
        netlink.as_raw_fd(),
        &question(own_ip, own.port(), other_ip, other.port()),
        MsgFlags::empty(),
    )?;
    let answer = receive(&netlink)?;
    read(&answer, (own_ip, own.port()), (other_ip, other.port()))
}

fn receive(netlink: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 4096];
    let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    buffer.truncate(length);
    Ok(buffer)
}

fn question(own: Ipv4Addr, own_port: u16, other: Ipv4Addr, other_port: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + 56);
    bytes.extend((HEADER as u32 + 56).to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    bytes.extend(1_u32.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    // `inet_diag_req_v2`: family, protocol, extensions, padding, states.
    bytes.extend([nix::libc::AF_INET as u8, nix::libc::IPPROTO_TCP as u8, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(identity((own, own_port), (other, other_port)));
    bytes.extend([0; 4]);
    bytes.extend([0xff; 8]);
    bytes
}

/// The first parts of `inet_diag_sockid`.
fn identity(own: (Ipv4Addr, u16), other: (Ipv4Addr, u16)) -> [u8; 36] {
    let mut bytes = [0; 36];
    bytes[0..2].copy_from_slice(&own.1.to_be_bytes());
    bytes[2..4].copy_from_slice(&other.1.to_be_bytes());
    bytes[4..8].copy_from_slice(&own.0.octets());
    bytes[20..24].copy_from_slice(&other.0.octets());
    bytes
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn read(bytes: &[u8], own: (Ipv4Addr, u16), other: (Ipv4Addr, u16)) -> io::Result<Found> {
    let wrong = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel's answer cannot be understood",
        )
    };
    let length = word(bytes, 0).ok_or_else(wrong)? as usize;
    let kind = half(bytes, 4).ok_or_else(wrong)?;
    let bytes = bytes.get(..length).ok_or_else(wrong)?;
    if kind == ERROR {
        let errno = word(bytes, HEADER).ok_or_else(wrong)?;
        return Err(io::Error::from_raw_os_error(
            errno.wrapping_neg().cast_signed(),
        ));
    }
    let message = bytes.get(HEADER..HEADER + MESSAGE).ok_or_else(wrong)?;
    // A listener would be found too where no connection is.
    if kind != BY_FAMILY || message[4..4 + 24] != identity(own, other)[..24] {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "no socket has these addresses",
        ));
    }
    let mut found = Found {
        state: message[1],
        inode: word(message, 68).ok_or_else(wrong)?,
        cgroup: None,
    };
    let mut rest = &bytes[HEADER + MESSAGE..];
    while let (Some(length), Some(kind)) = (half(rest, 0), half(rest, 2)) {
        let length = usize::from(length);
        let Some(value) = rest.get(4..length) else {
            break;
        };
        if kind == CGROUP
            && let Ok(value) = value.try_into()
        {
            found.cgroup = Some(u64::from_ne_bytes(value));
        }
        let Some(next) = rest.get(length.next_multiple_of(4)..) else {
            break;
        };
        rest = next;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_other_end_of_a_connection_has_its_cgroup() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let ours = TcpStream::connect(server).unwrap();
        let (accepted, client) = listener.accept().unwrap();
        let found = match socket_cgroup(&accepted, client, server) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOENT) => {
                eprintln!("skipped: the kernel has no tcp_diag");
                return;
            }
            found => found.unwrap(),
        };
        let hierarchy = crate::agent::Hierarchy::find().unwrap();
        let own = hierarchy.of_process(std::process::id()).unwrap();
        let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(own).unwrap());
        assert_eq!(found, inode);
        let other = other_end(&accepted, client, server).unwrap();
        assert_eq!(other.cgroup, found);
        assert_eq!(u64::from(other.inode), fstat(&ours).unwrap().st_ino);
        // Over: not found, or not there any more.
        drop(ours);
        drop(accepted);
        let (other, _) = (
            TcpStream::connect(server).unwrap(),
            listener.accept().unwrap(),
        );
        assert!(socket_cgroup(&other, client, server).is_err());
    }

    #[test]
    fn any_bytes_are_an_answer_or_an_error() {
        let own = (Ipv4Addr::LOCALHOST, 5);
        for length in 0..200 {
            for fill in [0, 1, 20, 255] {
                let _ = read(&vec![fill; length], own, own);
            }
        }
    }
}
