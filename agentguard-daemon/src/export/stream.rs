//! Syslog over TCP: with TLS as RFC 5425 has it, or in the clear on this host, records counted by octets.
//!
//! Syslog has no acknowledgement. What the receiver's kernel has acknowledged, the receiver may not have read, and
//! loses it if it ends. But a receiver that is told that nothing more comes, and then closes its own side in good
//! order, has read everything; one that closes with something unread makes its kernel say so (RST). So from time to
//! time, and whenever there is nothing more to send, the connection is ended in good order, and only then are the
//! records taken for delivered.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::pki_types::ServerName;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, ReadHalf, WriteHalf,
};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::config::{SyslogAddress, SyslogConfig};
use super::syslog::{self, Formatter};
use super::{Item, Trouble, host_name};
use crate::kernel::unacknowledged;
use crate::outbound;

/// How long a connection may take to be made, and a receiver to close its side.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a receiver may take for a chunk.
const STALLED: Duration = Duration::from_mins(1);
/// Bytes that are written at once.
const CHUNK: usize = 64 << 10;
/// How long records stay undecided while others are sent.
const UNSETTLED: Duration = Duration::from_secs(1);
/// Records that stay undecided.
const UNSETTLED_MAX: u64 = 4000;
/// Errors at the level of TCP.
const WRONG: PollFlags = PollFlags::ERR;
/// The other side has ended, and will send nothing more.
const HANG_UP: PollFlags = PollFlags::RDHUP;

/// Sends to one receiver.
#[derive(Debug)]
pub struct Stream {
    config: SyslogConfig,
    formatter: Formatter,
    open: Option<Open>,
    settled: u64,
}

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A connection.
struct Open {
    reader: ReadHalf<Box<dyn Wire>>,
    writer: WriteHalf<Box<dyn Wire>>,
    /// Bytes that went into the socket.
    written: Arc<AtomicU64>,
    /// The socket itself, to ask about it.
    socket: std::net::TcpStream,
    /// After so many bytes in the socket, this record is in it whole.
    marks: VecDeque<(u64, u64)>,
    /// When the first record went into it.
    since: Option<Instant>,
    count: u64,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl Stream {
    /// Does nothing yet.
    pub fn new(config: &SyslogConfig) -> Self {
        Self {
            formatter: Formatter::new(&host_name(), config.facility, config.format.form()),
            config: config.clone(),
            open: None,
            settled: 0,
        }
    }

    /// The last record that the receiver has read.
    pub fn settled(&self) -> u64 {
        self.settled
    }

    /// Sends records. After an error, those after [`Self::settled`] must be sent again.
    pub async fn send(&mut self, items: &[Item]) -> Result<(), Trouble> {
        if self.open.is_none() {
            let open = connect(&self.config).await;
            self.open = Some(open.map_err(|error| Trouble::before(error.to_string()))?);
        }
        let outcome = self.try_send(items).await;
        match outcome {
            Ok(()) => Ok(()),
            Err(error) => Err(self.broken(&error).await),
        }
    }

    async fn try_send(&mut self, items: &[Item]) -> io::Result<()> {
        let Some(open) = &mut self.open else {
            return Err(ErrorKind::NotConnected.into());
        };
        open.is_still_open().await?;
        let mut chunk = Vec::with_capacity(CHUNK + (16 << 10));
        for (index, item) in items.iter().enumerate() {
            chunk.extend_from_slice(&syslog::framed(&self.formatter.message(item)));
            if chunk.len() >= CHUNK || index + 1 == items.len() {
                open.write(&chunk).await?;
                open.mark(item.seq);
                chunk.clear();
            }
        }
        open.count += items.len() as u64;
        Ok(())
    }

    /// Finds out what the receiver has read, if it is time for that. `idle`: there is nothing more to send now.
    pub async fn settle(&mut self, idle: bool) -> Result<(), Trouble> {
        let Some(open) = &self.open else {
            return Ok(());
        };
        let due = idle
            || open.count >= UNSETTLED_MAX
            || open.since.is_some_and(|since| since.elapsed() >= UNSETTLED);
        if !due {
            return Ok(());
        }
        let Some(open) = self.open.as_mut() else {
            return Ok(());
        };
        match open.finish().await {
            Ok(()) => {
                self.settled = open.marks.back().map_or(self.settled, |(_, seq)| *seq);
                self.open = None;
                Ok(())
            }
            Err(error) => Err(self.broken(&error).await),
        }
    }

    /// The connection is gone. A receiver that closed it in good order has read what its kernel has acknowledged.
    async fn broken(&mut self, error: &io::Error) -> Trouble {
        if let Some(open) = self.open.take()
            && error.kind() == ErrorKind::UnexpectedEof
            && let Some(seq) = open.read_by_receiver().await
        {
            self.settled = self.settled.max(seq);
        }
        Trouble::passing(error.to_string())
    }
}

impl Open {
    /// Whether the receiver has closed its side, as far as is known now.
    async fn is_still_open(&mut self) -> io::Result<()> {
        tokio::select! {
            biased;
            error = closed(&mut self.reader) => Err(error),
            () = std::future::ready(()) => Ok(()),
        }
    }

    async fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.since.get_or_insert_with(Instant::now);
        let writing = async {
            self.writer.write_all(chunk).await?;
            self.writer.flush().await
        };
        tokio::select! {
            written = timeout(STALLED, writing) => written.unwrap_or_else(|_| {
                let seconds = STALLED.as_secs();
                Err(io::Error::other(format!("the receiver took nothing for {seconds} s")))
            }),
            error = closed(&mut self.reader) => Err(error),
        }
    }

    fn mark(&mut self, seq: u64) {
        self.marks
            .push_back((self.written.load(Ordering::Relaxed), seq));
    }

    /// Says that nothing more comes, and waits until the receiver has closed its side in good order.
    async fn finish(&mut self) -> io::Result<()> {
        timeout(PATIENCE, self.writer.shutdown()).await??;
        match timeout(PATIENCE, self.good_end()).await {
            Ok(ended) => ended,
            // It does not close its side. What its kernel has acknowledged is all that can be known.
            Err(_) if unacknowledged(self.socket.as_fd())? == 0 => Ok(()),
            Err(_) => Err(io::Error::other(
                "the receiver does not take what it was sent",
            )),
        }
    }

    async fn good_end(&mut self) -> io::Result<()> {
        let error = closed(&mut self.reader).await;
        if error.kind() != ErrorKind::UnexpectedEof {
            return Err(error);
        }
        // The end of TLS came; that of TCP, and how it is, comes after it.
        loop {
            let state = self.state();
            if state.intersects(WRONG) {
                return Err(ErrorKind::ConnectionReset.into());
            }
            if state.intersects(HANG_UP) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn state(&self) -> PollFlags {
        let mut ready = [PollFd::new(&self.socket, HANG_UP)];
        let at_once = Timespec::default();
        match poll(&mut ready, Some(&at_once)) {
            Ok(_) => ready[0].revents(),
            Err(_) => WRONG,
        }
    }

    /// The last record that a receiver that closed its side by itself has read: the last one that its kernel
    /// acknowledged before. None if it closed with something unread.
    async fn read_by_receiver(self) -> Option<u64> {
        // How TCP ended may be known a moment later than how TLS did.
        let until = Instant::now() + Duration::from_millis(200);
        while !self.state().intersects(HANG_UP | WRONG) {
            if Instant::now() > until {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let missing = unacknowledged(self.socket.as_fd()).ok()?;
        if self.state().intersects(WRONG) {
            return None;
        }
        let has = self.written.load(Ordering::Relaxed).checked_sub(missing)?;
        let read = self.marks.iter().take_while(|(bytes, _)| *bytes <= has);
        read.last().map(|(_, seq)| *seq)
    }
}

/// Waits until the receiver closes its side; what it sends before that is nothing to us.
async fn closed(reader: &mut ReadHalf<Box<dyn Wire>>) -> io::Error {
    let mut nothing = [0; 512];
    loop {
        match reader.read(&mut nothing).await {
            Ok(0) => {
                let what = "the receiver closed the connection";
                return io::Error::new(ErrorKind::UnexpectedEof, what);
            }
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

async fn connect(config: &SyslogConfig) -> io::Result<Open> {
    let (host, port, secure) = match &config.to {
        SyslogAddress::Tls(host, port) => (host, *port, true),
        SyslogAddress::Tcp(host, port) | SyslogAddress::Udp(host, port) => (host, *port, false),
        SyslogAddress::Unix(_) => return Err(ErrorKind::Unsupported.into()),
    };
    let connected = timeout(PATIENCE, crate::resolver::host::connect(host, port)).await?;
    let tcp = connected.map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("failed to connect to {host}:{port}: {error}"),
        )
    })?;
    tcp.set_nodelay(true)?;
    // A second descriptor of the same socket, because TLS takes the first one.
    let tcp = tcp.into_std()?;
    let socket = tcp.try_clone()?;
    let written = Arc::new(AtomicU64::new(0));
    let counted = Counted {
        inner: TcpStream::from_std(tcp)?,
        written: written.clone(),
    };
    let wire: Box<dyn Wire> = if secure {
        let client = outbound::client(&config.tls).map_err(io::Error::other)?;
        let name = config.tls.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let handshake = TlsConnector::from(client).connect(name, counted);
        Box::new(timeout(PATIENCE, handshake).await??)
    } else {
        Box::new(counted)
    };
    let (reader, writer) = tokio::io::split(wire);
    Ok(Open {
        reader,
        writer,
        written,
        socket,
        marks: VecDeque::new(),
        since: None,
        count: 0,
    })
}

/// A connection of which it is known how many bytes went into it.
struct Counted {
    inner: TcpStream,
    written: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, into)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(context, bytes);
        if let Poll::Ready(Ok(count)) = &outcome {
            self.written.fetch_add(*count as u64, Ordering::Relaxed);
        }
        outcome
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
