//! A receiver of questions that behaves, or does not, as a test wants it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;

use crate::approval::webhook::{Direction, Secret};

/// A question as it came.
#[derive(Clone, Debug)]
pub struct Heard {
    pub json: Value,
    pub body: Bytes,
    pub path: String,
    pub timestamp: String,
    pub nonce: String,
    pub signature: String,
}

impl Heard {
    pub fn id(&self) -> &str {
        self.json["id"].as_str().unwrap()
    }

    /// What an answer says, with the nonce of this question.
    pub fn says(&self, mut answer: Value) -> Vec<u8> {
        answer["nonce"] = json!(self.nonce);
        answer.to_string().into_bytes()
    }
}

pub type Answered = Response<BoxBody<Bytes, Infallible>>;
type Reply = Box<dyn FnOnce(&Heard) -> Answered + Send>;

/// What is answered next.
pub enum Next {
    At(Reply),
    /// When the test says so.
    Held(oneshot::Receiver<()>, Reply),
    /// Never.
    Silence,
}

pub fn plain(status: u16, body: impl Into<Bytes>) -> Answered {
    let mut answer = Response::new(Full::new(body.into()).boxed());
    *answer.status_mut() = hyper::StatusCode::from_u16(status).unwrap();
    answer
}

pub fn with(mut answer: Answered, name: &'static str, value: &str) -> Answered {
    answer.headers_mut().append(name, value.parse().unwrap());
    answer
}

/// An answer as it has to be.
pub fn signed(secret: &Secret, heard: &Heard, answer: Value) -> Answered {
    let body = heard.says(answer);
    let signature = secret.sign(Direction::Answer, &heard.timestamp, &heard.nonce, &body);
    with(plain(200, body), "agentguard-signature", &signature)
}

/// A body without an end.
pub struct Endless;

impl hyper::body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let chunk = Bytes::from_static(&[b' '; 1024]);
        std::task::Poll::Ready(Some(Ok(Frame::data(chunk))))
    }
}

/// A receiver, and what it has heard. Without anything in its list it says that nothing is decided.
pub struct Receiver {
    pub port: u16,
    pub heard: mpsc::UnboundedReceiver<Heard>,
    script: Arc<Mutex<VecDeque<Next>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Receiver {
    pub async fn start(tls: Option<TlsAcceptor>) -> Self {
        Self::at(0, tls).await
    }

    pub async fn at(port: u16, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (told, heard) = mpsc::unbounded_channel();
        let script = Arc::new(Mutex::new(VecDeque::new()));
        let shared = script.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, told, script) = (tls.clone(), told.clone(), shared.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let (told, script) = (told.clone(), script.clone());
                        async move { Ok::<_, Infallible>(answer(request, &told, &script).await) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    if let Some(tls) = tls {
                        if let Ok(stream) = tls.accept(stream).await {
                            let _ = http.serve_connection(TokioIo::new(stream), service).await;
                        }
                    } else {
                        let _ = http.serve_connection(TokioIo::new(stream), service).await;
                    }
                });
            }
        });
        Self {
            port,
            heard,
            script,
            task,
        }
    }

    pub fn then(&self, next: Next) {
        self.script.lock().unwrap().push_back(next);
    }

    pub fn answers(&self, reply: impl FnOnce(&Heard) -> Answered + Send + 'static) {
        self.then(Next::At(Box::new(reply)));
    }

    pub async fn next(&mut self) -> Heard {
        self.heard.recv().await.unwrap()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    request: Request<Incoming>,
    told: &mpsc::UnboundedSender<Heard>,
    script: &Mutex<VecDeque<Next>>,
) -> Answered {
    let header = |name| {
        let value = request.headers().get(name).unwrap();
        value.to_str().unwrap().to_owned()
    };
    let path = request.uri().path().to_owned();
    let [timestamp, nonce, signature] = [
        "agentguard-timestamp",
        "agentguard-nonce",
        "agentguard-signature",
    ]
    .map(header);
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let heard = Heard {
        json: serde_json::from_slice(&body).unwrap(),
        body,
        path,
        timestamp,
        nonce,
        signature,
    };
    let next = script.lock().unwrap().pop_front();
    let _ = told.send(heard.clone());
    match next {
        None => plain(202, "whatever"),
        Some(Next::At(reply)) => reply(&heard),
        Some(Next::Held(when, reply)) => {
            let _ = when.await;
            reply(&heard)
        }
        Some(Next::Silence) => std::future::pending().await,
    }
}

/// A server's side of TLS with a certificate for `localhost`, which is written to `path`.
pub fn acceptor(path: &Path) -> TlsAcceptor {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(path, cert.pem()).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}
