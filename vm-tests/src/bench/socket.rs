//! Sockets as system calls make them, without a library in between.

use std::mem::zeroed;

use super::server::{TCP, UDP, UNIX};

/// A port that is bound by the measured process.
const BOUND: u16 = 4567;

fn address(port: u16) -> libc::sockaddr_in {
    // SAFETY: an address of zeros is a valid one.
    let mut address: libc::sockaddr_in = unsafe { zeroed() };
    address.sin_family = libc::AF_INET as u16;
    address.sin_port = port.to_be();
    address.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
    address
}

type Call =
    unsafe extern "C" fn(libc::c_int, *const libc::sockaddr, libc::socklen_t) -> libc::c_int;

/// Makes a socket, does one call with an address, and closes it.
fn once<A>(family: i32, kind: i32, call: Call, address: &A, prepare: impl Fn(i32)) -> bool {
    // SAFETY: a live address of the length that is passed; the descriptor is closed at once.
    unsafe {
        let socket = libc::socket(family, kind, 0);
        prepare(socket);
        let done = call(
            socket,
            std::ptr::from_ref(address).cast(),
            size_of::<A>() as u32,
        );
        libc::close(socket);
        done == 0
    }
}

/// Closing resets the connection: none is left waiting.
fn reset_on_close(socket: i32) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: a live option of the length that is passed.
    unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of_val(&linger) as u32,
        );
    }
}

/// Connects to a TCP server.
pub fn connect_tcp() -> bool {
    let to = address(TCP);
    let kind = libc::SOCK_STREAM;
    once(libc::AF_INET, kind, libc::connect, &to, reset_on_close)
}

/// Connects a UDP socket.
pub fn connect_udp() -> bool {
    let to = address(UDP);
    once(libc::AF_INET, libc::SOCK_DGRAM, libc::connect, &to, |_| ())
}

/// Binds a UDP socket to an address of this host.
pub fn bind_udp() -> bool {
    let to = address(BOUND);
    once(libc::AF_INET, libc::SOCK_DGRAM, libc::bind, &to, |_| ())
}

/// Connects to the server behind a path.
pub fn connect_unix() -> bool {
    // SAFETY: an address of zeros is a valid one.
    let mut to: libc::sockaddr_un = unsafe { zeroed() };
    to.sun_family = libc::AF_UNIX as u16;
    for (place, byte) in to.sun_path.iter_mut().zip(UNIX.bytes()) {
        *place = byte.cast_signed();
    }
    once(libc::AF_UNIX, libc::SOCK_STREAM, libc::connect, &to, |_| ())
}
