//! From the sockets of an agent to the core and back.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};

use super::core::{Client, Core, Step};
use super::question::Transport;

/// The longest query that is read. One that is longer is malformed.
const LONGEST: usize = 4096;
/// Queries of one agent that are read before other work of the thread gets its turn.
const TURN: u32 = 32;

/// Answers datagrams until it is told to end.
pub(super) async fn datagrams(core: Arc<Core>, client: Arc<Client>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut bytes = vec![0; LONGEST];
    loop {
        if let Err(error) = socket.readable().await {
            tracing::error!("the resolver does not hear an agent any more: {error}");
            return;
        }
        let mut read = 0;
        while read < TURN {
            match socket.try_recv_from(&mut bytes) {
                Ok((length, from)) => {
                    read += 1;
                    datagram(&core, &client, &socket, &bytes[..length], from);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // What an earlier reply met, told here by the kernel.
                Err(_) => read += 1,
            }
        }
        let wait = client.pace.take(read, std::time::Instant::now());
        if wait.is_zero() {
            tokio::task::yield_now().await;
        } else {
            sleep(wait).await;
        }
    }
}

fn datagram(
    core: &Arc<Core>,
    client: &Arc<Client>,
    socket: &Arc<UdpSocket>,
    bytes: &[u8],
    from: SocketAddr,
) {
    match core.step(client, bytes, Transport::Udp) {
        Step::Answered(Some(reply)) => send(socket, &reply, from),
        Step::Answered(None) => {}
        Step::Pending(pending) => {
            let (core, client, socket) = (core.clone(), client.clone(), socket.clone());
            tokio::spawn(async move {
                if let Some(reply) = core.finish(&client, pending).await {
                    send(&socket, &reply, from);
                }
            });
        }
    }
}

/// A reply that does not go out now is lost, as on any network; nobody waits for a client.
fn send(socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    if let Err(error) = socket.try_send_to(reply, to) {
        tracing::debug!("a reply to {to} was lost: {error}");
    }
}

/// Takes connections until it is told to end.
pub(super) async fn streams(core: Arc<Core>, client: Arc<Client>, listener: TcpListener) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // No descriptors, most likely: others need time to give some back.
                tracing::warn!("a connection to the resolver failed: {error}");
                sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = client.connections.clone().try_acquire_owned() else {
            continue;
        };
        let (core, client) = (core.clone(), client.clone());
        tokio::spawn(async move {
            let _place = place;
            // The client went, or said what is no query: nobody is left to be told.
            let _ = connection(&core, &client, stream).await;
        });
    }
}

async fn connection(core: &Core, client: &Client, mut stream: TcpStream) -> io::Result<()> {
    let idle = core.limits.idle;
    let mut bytes = vec![0; LONGEST];
    loop {
        let length = usize::from(timeout(idle, stream.read_u16()).await??);
        if length > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        timeout(idle, stream.read_exact(&mut bytes[..length])).await??;
        let wait = client.pace.take(1, std::time::Instant::now());
        if !wait.is_zero() {
            sleep(wait).await;
        }
        let reply = match core.step(client, &bytes[..length], Transport::Tcp) {
            Step::Answered(reply) => reply,
            Step::Pending(pending) => core.finish(client, pending).await,
        };
        let Some(reply) = reply else {
            return Ok(());
        };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&reply);
        timeout(idle, stream.write_all(&framed)).await??;
    }
}
