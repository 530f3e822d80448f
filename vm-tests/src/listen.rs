//! The services that acts try to reach. One thread serves them all and counts what arrives; the
//! count is asked for through a port of its own, which is served last in each round, so that
//! everything that had arrived before the question is in the answer.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener};
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Ports of TCP and UDP services, on every address of the host, in both families.
pub const PORTS: &[u16] = &[7001, 7002];
/// Stream sockets in the file system or, with `@`, in the abstract name space.
pub const STREAMS: &[&str] = &["/t-sockets/stream", "@stream"];
/// Datagram sockets.
pub const DATAGRAMS: &[&str] = &["/t-sockets/datagram", "@datagram"];
const QUESTIONS: u16 = 7000;

enum Service {
    Tcp(TcpListener),
    Udp(UdpSocket),
    Stream(UnixListener),
    Datagram(UnixDatagram),
}

impl AsFd for Service {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Udp(socket) => socket.as_fd(),
            Self::Stream(socket) => socket.as_fd(),
            Self::Datagram(socket) => socket.as_fd(),
        }
    }
}

impl Service {
    fn take_one(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.accept().map(drop),
            Self::Udp(socket) => socket.recv(&mut [0; 64]).map(drop),
            Self::Stream(socket) => socket.accept().map(drop),
            Self::Datagram(socket) => socket.recv(&mut [0; 64]).map(drop),
        }
    }
}

fn unix(name: &str) -> io::Result<UnixAddr> {
    match name.strip_prefix('@') {
        Some(name) => UnixAddr::from_abstract_name(name),
        None => UnixAddr::from_pathname(name),
    }
}

fn services() -> io::Result<Vec<Service>> {
    let mut services = Vec::new();
    for port in PORTS {
        // A socket of the IPv6 wildcard address takes IPv4 as well.
        services.push(Service::Tcp(TcpListener::bind(("::", *port))?));
        services.push(Service::Udp(UdpSocket::bind(("::", *port))?));
    }
    match fs::remove_dir_all("/t-sockets") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir_all("/t-sockets")?,
    }
    for name in STREAMS {
        services.push(Service::Stream(UnixListener::bind_addr(&unix(name)?)?));
    }
    for name in DATAGRAMS {
        services.push(Service::Datagram(UnixDatagram::bind_addr(&unix(name)?)?));
    }
    for name in STREAMS
        .iter()
        .chain(DATAGRAMS)
        .filter(|name| !name.starts_with('@'))
    {
        fs::set_permissions(Path::new(name), fs::Permissions::from_mode(0o777))?;
    }
    Ok(services)
}

/// Opens every service and serves them from a thread until the process ends.
pub fn start() -> io::Result<()> {
    let services = services()?;
    let questions = TcpListener::bind(("127.0.0.1", QUESTIONS))?;
    std::thread::spawn(move || serve(&services, &questions));
    Ok(())
}

fn serve(services: &[Service], questions: &TcpListener) {
    let mut count = 0u32;
    loop {
        let mut waits: Vec<PollFd<'_>> = services
            .iter()
            .map(Service::as_fd)
            .chain([questions.as_fd()])
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        if poll(&mut waits, PollTimeout::NONE).is_err() {
            continue;
        }
        let ready = |wait: &PollFd<'_>| wait.any().unwrap_or(false);
        let arrived: Vec<&Service> = services
            .iter()
            .zip(&waits)
            .filter(|(_, wait)| ready(wait))
            .map(|(service, _)| service)
            .collect();
        for service in &arrived {
            count += u32::from(service.take_one().is_ok());
        }
        // Questions wait until a round in which nothing else had arrived.
        if arrived.is_empty()
            && ready(&waits[services.len()])
            && let Ok((mut asker, _)) = questions.accept()
        {
            // An asker that has gone needs no answer.
            let _ = asker.write_all(&count.to_le_bytes());
        }
    }
}

/// How many connections and datagrams have arrived so far.
pub fn arrivals() -> io::Result<u32> {
    let mut answer = [0; 4];
    TcpStream::connect(("127.0.0.1", QUESTIONS))?.read_exact(&mut answer)?;
    Ok(u32::from_le_bytes(answer))
}
