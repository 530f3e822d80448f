//! One request over HTTP, and its answer: within a time, and up to a size.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::http::response::Parts;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::ServerName;

use super::{Endpoint, TlsConfig, tls};
use crate::resolver::host::Lookup;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// Most bytes of the head of an answer.
const HEAD_MAX: usize = 64 << 10;

/// Makes requests to one receiver. It follows no redirect.
pub type Caller = Client<HttpsConnector<HttpConnector<Lookup>>, Full<Bytes>>;

/// Why a request has no answer.
#[derive(Debug)]
pub struct Unanswered {
    /// What is wrong, for people.
    pub what: String,
    /// Nothing of the request has left this host.
    pub unsent: bool,
}

/// Whoever calls an address. Certificates and keys are read now.
pub fn caller(to: &Endpoint, config: &TlsConfig) -> Result<Caller, String> {
    let mut tcp = HttpConnector::new_with_resolver(Lookup);
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    let client = if to.0.scheme_str() == Some("http") {
        // Nothing is trusted, and nothing needs to be.
        rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth()
    } else {
        std::sync::Arc::unwrap_or_clone(tls::client(config)?)
    };
    let mut builder = HttpsConnectorBuilder::new()
        .with_tls_config(client)
        .https_or_http();
    if let Some(name) = &config.server_name {
        let name = ServerName::try_from(name.clone()).map_err(|error| error.to_string())?;
        builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let connector = builder.enable_http1().wrap_connector(tcp);
    Ok(Client::builder(TokioExecutor::new())
        .http1_max_buf_size(HEAD_MAX)
        .build(connector))
}

/// Makes a request. The whole answer must be there within `patience`, and its body have at most `most` bytes.
pub async fn call(
    caller: &Caller,
    request: Request<Full<Bytes>>,
    patience: Duration,
    most: usize,
) -> Result<(Parts, Bytes), Unanswered> {
    let lost = |what: String| Unanswered {
        what,
        unsent: false,
    };
    let answer = tokio::time::timeout(patience, async {
        let answer = caller.request(request).await;
        let answer = answer.map_err(|error| Unanswered {
            what: causes(&error),
            unsent: error.is_connect(),
        })?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, most).collect().await;
        let body = body.map_err(|error| lost(causes(&*error)))?;
        Ok((head, body.to_bytes()))
    });
    answer.await.unwrap_or_else(|_| {
        let seconds = patience.as_secs();
        Err(lost(format!("no answer within {seconds} s")))
    })
}

/// An error with all of its causes, as names and certificates are in the inner ones.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
        next = error.source();
    }
    text
}
