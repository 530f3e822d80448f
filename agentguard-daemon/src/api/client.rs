//! The command line's end of the socket.

use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;

use super::wire::{PREFIX, Problem};

/// Why a request had no answer, or a refusal.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no AgentGuard daemon listens at {path}; start one with `systemctl start agentguard`, or `sudo agentguard daemon`", path = .0.display())]
    NoDaemon(PathBuf),
    /// The socket cannot be used.
    #[error("failed to connect to {path}: {source}", path = .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The conversation failed.
    #[error("the conversation with the daemon failed: {0}")]
    Http(#[from] hyper::Error),
    /// The request could not be made.
    #[error("the request could not be made: {0}")]
    Request(#[from] hyper::http::Error),
    /// What was said is not what was expected.
    #[error("the daemon's answer cannot be understood ({0}): is it of another version?")]
    Answer(#[from] serde_json::Error),
    /// The daemon refused.
    #[error("{}", .0.error)]
    Refused(Problem),
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Connects to the daemon's socket.
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    ClientError::NoDaemon(path.to_owned())
                }
                _ => ClientError::Connect {
                    path: path.to_owned(),
                    source,
                },
            })?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("the connection to the daemon ended: {error}");
            }
        });
        Ok(Self { sender })
    }

    /// Asks without a body.
    pub async fn ask<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
    ) -> Result<T, ClientError> {
        self.send(method, path, Bytes::new()).await
    }

    /// Asks with a body.
    pub async fn ask_with<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.send(method, path, serde_json::to_vec(body)?.into())
            .await
    }

    async fn send<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let response = self.request(method, path, body).await?;
        let bytes = response.into_body().collect().await?.to_bytes();
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Listens to lines of the log; `query` as for `GET /v1/audit`.
    pub async fn subscribe(mut self, query: &str) -> Result<Subscription, ClientError> {
        let response = self
            .request(Method::GET, &format!("/audit?{query}"), Bytes::new())
            .await?;
        Ok(Subscription {
            body: response.into_body(),
            rest: Vec::new(),
            _client: self,
        })
    }

    async fn request(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        self.sender.ready().await?;
        let request = Request::builder()
            .method(method)
            .uri(format!("{PREFIX}{path}"))
            .header(hyper::header::HOST, "agentguard")
            .body(Full::new(body))?;
        let response = self.sender.send_request(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let bytes = response.into_body().collect().await?.to_bytes();
        Err(ClientError::Refused(serde_json::from_slice(&bytes)?))
    }
}

/// Lines of the log as they come.
#[derive(Debug)]
pub struct Subscription {
    body: Incoming,
    rest: Vec<u8>,
    _client: Client,
}

impl Subscription {
    /// The next line; `None` when the daemon has ended.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            let frame = self.body.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                self.rest.extend_from_slice(&data);
            }
        }
    }
}
