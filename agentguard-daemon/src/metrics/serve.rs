//! `/metrics` over TCP on loopback, for a Prometheus that cannot read from a Unix socket.
//!
//! Every process of the host can connect there, also one whose policy permits loopback. So the kernel is asked whose
//! a connection is, for each request, and what is not certain is refused. It must never answer a governed process.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::{CONTENT_TYPE as OPEN_METRICS, Scrape};
use crate::kernel::{OtherEnd, other_end};

/// Conversations at a time; others wait.
const MOST: usize = 4;
/// How long a caller may take to ask.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why nobody can scrape.
#[derive(Debug, Error)]
pub enum MetricsError {
    /// The address is not one where callers are known.
    #[error(
        "metrics cannot be served at {0}: callers are only known on 127.0.0.0/8; write 127.0.0.1:PORT, and let a proxy of your own carry them further"
    )]
    Address(SocketAddr),
    /// The address is taken, or may not be used.
    #[error("metrics cannot be served at {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel does not say whose a socket is.
    #[error(
        "metrics are not served over TCP, callers cannot be known: {0}; `modprobe tcp_diag` may help"
    )]
    Callers(io::Error),
}

/// An address that metrics can be served at.
pub fn checked(address: SocketAddr) -> Result<SocketAddr, MetricsError> {
    if address.ip().is_loopback() && address.is_ipv4() {
        Ok(address)
    } else {
        Err(MetricsError::Address(address))
    }
}

/// What is served, and to whom.
pub trait Source: Send + Sync + 'static {
    /// Whether whoever is at the other end of a connection is certainly not governed.
    fn may_read(&self, other: OtherEnd) -> bool;
    /// All metrics now.
    fn scrape(&self) -> Result<Scrape, String>;

    /// The same as text.
    fn text(&self) -> Result<String, String> {
        self.scrape()?.text().map_err(|error| error.to_string())
    }
}

/// The listener, as long as it is not dropped.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Listener {
    /// Listens. Needs a tokio runtime.
    pub async fn start(address: SocketAddr, source: Arc<dyn Source>) -> Result<Self, MetricsError> {
        checked(address)?;
        let failed = |source| MetricsError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        probe(&listener, address)
            .await
            .map_err(MetricsError::Callers)?;
        let task = tokio::spawn(serve(listener, source));
        Ok(Self { address, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks the kernel once about a connection of our own.
async fn probe(listener: &TcpListener, address: SocketAddr) -> io::Result<()> {
    let (ours, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (_ours, (stream, peer)) = (ours?, accepted?);
    other_end(&stream, peer, address).map(|_| ())
}

async fn serve(listener: TcpListener, source: Arc<dyn Source>) {
    let room = Arc::new(Semaphore::new(MOST));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let source = source.clone();
                tokio::spawn(async move {
                    // A caller that asks nothing, or does not read the answer, gives its place back all the same.
                    let _ =
                        tokio::time::timeout(2 * PATIENCE, converse(stream, peer, source)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::error!("failed to accept a connection for metrics: {error}");
                // Out of descriptors: others must end first.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, peer: SocketAddr, source: Arc<dyn Source>) {
    let (Ok(local), Ok(watched)) = (stream.local_addr(), dup(&stream)) else {
        return;
    };
    let watched = Arc::new(watched);
    let service = service_fn(move |request| {
        let (source, watched) = (source.clone(), watched.clone());
        async move {
            let work = move || answer(&request, &*source, other_end(&*watched, peer, local));
            let answered = tokio::task::spawn_blocking(work).await;
            Ok::<_, Infallible>(
                answered.unwrap_or_else(|_| plain(StatusCode::INTERNAL_SERVER_ERROR, "")),
            )
        }
    });
    // One request for each connection: whoever was not governed at the last one may be at the next.
    let served = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!("a scrape ended early: {error}");
    }
}

/// The same socket, for asking about it.
fn dup(stream: &TcpStream) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::AsFd as _;
    stream.as_fd().try_clone_to_owned()
}

fn answer(
    request: &Request<Incoming>,
    source: &dyn Source,
    other: io::Result<OtherEnd>,
) -> Response<Full<Bytes>> {
    // The name in a request of a web page that was led here is not ours.
    if !request.headers().get(HOST).is_some_and(is_local) {
        return plain(StatusCode::FORBIDDEN, "ask for 127.0.0.1\n");
    }
    match other {
        Ok(other) if source.may_read(other) => {}
        Ok(_) => {
            return plain(
                StatusCode::FORBIDDEN,
                "a governed process may not read metrics\n",
            );
        }
        Err(error) => {
            tracing::warn!("a scrape was refused, its caller is not known: {error}");
            return plain(StatusCode::FORBIDDEN, "the caller is not known\n");
        }
    }
    if (request.method(), request.uri().path()) != (&Method::GET, "/metrics") {
        return plain(StatusCode::NOT_FOUND, "there is GET /metrics only\n");
    }
    match source.text() {
        Ok(text) => {
            let mut answer = Response::new(Full::new(Bytes::from(text)));
            let kind = HeaderValue::from_static(OPEN_METRICS);
            answer.headers_mut().insert(CONTENT_TYPE, kind);
            answer
        }
        Err(error) => {
            tracing::error!("metrics could not be gathered: {error}");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "see the daemon's log\n")
        }
    }
}

/// Whether a request names this host by its address, or as `localhost`.
fn is_local(host: &HeaderValue) -> bool {
    let Ok(host) = host.to_str() else {
        return false;
    };
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost"
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *answer.status_mut() = status;
    answer
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
