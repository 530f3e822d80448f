//! Whom the measured process connects to. Servers accept between its rounds, never during one: they
//! have an ordinary priority.

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::thread;

use anyhow::{Context as _, Result, ensure};

/// Port of the TCP server.
pub const TCP: u16 = 7001;
/// Port that UDP sockets are connected to; nobody needs to be there.
pub const UDP: u16 = 7002;
/// Path of the Unix server.
pub const UNIX: &str = "/tmp/server.sock";
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4000;

/// Starts them; they end with this process.
pub fn start() -> Result<()> {
    std::fs::write("/proc/sys/net/core/somaxconn", BACKLOG.to_string())
        .context("failed to allow long queues")?;
    // A leftover of an earlier run.
    let _ = std::fs::remove_file(UNIX);
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, TCP)).context("failed to listen (TCP)")?;
    let unix = UnixListener::bind(UNIX).context("failed to listen (Unix)")?;
    lengthen(&tcp)?;
    lengthen(&unix)?;
    thread::spawn(move || while tcp.accept().is_ok() {});
    thread::spawn(move || while unix.accept().is_ok() {});
    Ok(())
}

/// Gives a listening socket the long queue.
fn lengthen(socket: &impl AsRawFd) -> Result<()> {
    // SAFETY: a live socket.
    let status = unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) };
    ensure!(
        status == 0,
        "failed to listen: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}
