//! A receiver of syslog over TLS, which can be told how to behave.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::bench::acceptor;

/// How a receiver behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manners {
    /// It waits so long after each reading.
    pub pause: Duration,
    /// It reads so much at once.
    pub gulp: usize,
    /// It closes the connection after so many bytes, wherever it is, and with what it has not read.
    pub closes_after: Option<usize>,
}

/// One that listens.
pub struct Receiver {
    pub address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// What came, in its order: numbers, and whole messages.
pub type Got = Arc<Mutex<Vec<(u64, String)>>>;

/// The numbers in their order.
pub fn numbers(got: &Got) -> Vec<u64> {
    got.lock()
        .expect("the list")
        .iter()
        .map(|(seq, _)| *seq)
        .collect()
}

impl Receiver {
    /// Listens at an address; port 0 is any.
    pub fn listen(folder: &Path, address: SocketAddr, got: &Got, manners: Manners) -> Self {
        let until = Instant::now() + Duration::from_secs(10);
        let socket = loop {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.set_reuseaddr(true).expect("reused");
            match socket.bind(address) {
                Ok(()) => break socket,
                // A process that another test starts has all descriptors until it is another program.
                Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("the port: {error}"),
            }
        };
        let listener = socket.listen(16).expect("listening");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(serve(
            listener,
            acceptor(folder),
            got.clone(),
            manners,
            stopped,
        ));
        Self {
            address,
            stop,
            task,
        }
    }

    /// Ends as a good service does: what has arrived is read, and each connection is closed in good order.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        self.task.await.expect("the receiver");
    }
}

async fn serve(
    listener: TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
    got: Got,
    manners: Manners,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let (stream, _) = accepted.expect("a connection");
        let (acceptor, got, stop) = (acceptor.clone(), got.clone(), stop.clone());
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            converse(stream, &got, manners, stop).await;
        });
    }
    drop(listener);
    connections.join_all().await;
}

async fn converse<S: AsyncRead + tokio::io::AsyncWrite + Unpin>(
    mut stream: S,
    got: &Got,
    manners: Manners,
    mut stop: watch::Receiver<bool>,
) {
    let mut text = Vec::new();
    let mut buffer = vec![
        0;
        if manners.gulp == 0 {
            64 << 10
        } else {
            manners.gulp
        }
    ];
    let mut total = 0;
    loop {
        let read = tokio::select! {
            biased;
            read = stream.read(&mut buffer) => read,
            // Everything that has arrived was read.
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let Ok(count @ 1..) = read else {
            break;
        };
        total += count;
        text.extend_from_slice(&buffer[..count]);
        take(&mut text, got);
        if manners.closes_after.is_some_and(|limit| total >= limit) {
            return;
        }
        if !manners.pause.is_zero() {
            tokio::time::sleep(manners.pause).await;
        }
    }
    let _ = stream.shutdown().await;
}

/// Takes whole messages, which have their length before them.
fn take(text: &mut Vec<u8>, got: &Got) {
    loop {
        let Some(blank) = text.iter().take(16).position(|byte| *byte == b' ') else {
            return;
        };
        let length = std::str::from_utf8(&text[..blank]).expect("a length");
        let length: usize = length.parse().expect("a length");
        let end = blank + 1 + length;
        if text.len() < end {
            return;
        }
        let message = String::from_utf8(text[blank + 1..end].to_vec()).expect("text");
        text.drain(..end);
        let seq = message
            .split("seq=\"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        let seq = seq.and_then(|seq| seq.parse().ok()).expect("a number");
        got.lock().expect("the list").push((seq, message));
    }
}
