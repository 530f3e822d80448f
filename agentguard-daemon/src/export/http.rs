//! OTLP over HTTP: a batch is one request, and its answer says what became of it.

use std::path::Path;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Request, StatusCode};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use prost::Message as _;

use super::config::{Encoding, OtlpConfig};
use super::otlp::{self, Encoder};
use super::{Item, Refused, Trouble, host_name};
use crate::outbound::{self, Caller, Endpoint, TlsConfig};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest answer that is read.
const ANSWER_MAX: usize = 1 << 20;
/// Longest wait that a receiver can ask for.
const WAIT_MAX: Duration = Duration::from_hours(1);

/// Content that is binary.
pub const PROTOBUF: &str = "application/x-protobuf";
/// Content that is JSON.
pub const JSON: &str = "application/json";

/// The head of an answer, and its body.
pub type Answer = (hyper::http::response::Parts, Bytes);

/// Sends to one receiver.
#[derive(Debug)]
pub struct Http {
    config: OtlpConfig,
    encoder: Encoder,
    /// Made anew after each failure, with the files as they are then.
    caller: Option<(Caller, HeaderMap)>,
    settled: u64,
    rejected: u64,
}

impl Http {
    /// Does nothing yet.
    pub fn new(config: &OtlpConfig) -> Self {
        Self {
            config: config.clone(),
            encoder: Encoder::new(&host_name(), config.format.form()),
            caller: None,
            settled: 0,
            rejected: 0,
        }
    }

    /// The last record that was acknowledged.
    pub fn settled(&self) -> u64 {
        self.settled
    }

    /// How many records the receiver has thrown away, since this was asked last.
    pub fn take_rejected(&mut self) -> u64 {
        std::mem::take(&mut self.rejected)
    }

    /// Sends a batch and waits for the answer.
    pub async fn send(&mut self, items: &[Item]) -> Result<Option<String>, Trouble> {
        let outcome = self.post(items).await;
        match &outcome {
            Ok(_) => self.settled = items.last().map_or(self.settled, |item| item.seq),
            Err(_) => self.caller = None,
        }
        outcome
    }

    async fn post(&mut self, items: &[Item]) -> Result<Option<String>, Trouble> {
        let lines = items.iter().map(|item| &*item.line);
        let request = self.encoder.request(lines, otlp::now());
        let (kind, body) = match self.config.encoding {
            Encoding::Protobuf => (PROTOBUF, request.encode_to_vec()),
            Encoding::Json => (
                JSON,
                serde_json::to_vec(&request)
                    .map_err(|error| Trouble::passing(error.to_string()))?,
            ),
        };
        let config = &self.config;
        if self.caller.is_none() {
            let way = connect(&config.endpoint, config.headers.as_deref(), &config.tls);
            self.caller = Some(way.map_err(Trouble::before)?);
        }
        let Some(way) = &self.caller else {
            return Err(Trouble::passing("no client"));
        };
        let (head, body) = ask(way, &config.endpoint, kind, body).await?;
        if head.status.is_success() {
            return Ok(self.accepted(&body));
        }
        Err(refusal(head.status, &head.headers, items.len()))
    }

    /// A success may still say that some of it was thrown away. The protocol forbids to send those again.
    fn accepted(&mut self, body: &[u8]) -> Option<String> {
        let answer = match self.config.encoding {
            Encoding::Protobuf => ExportLogsServiceResponse::decode(body).ok(),
            Encoding::Json => serde_json::from_slice(body).ok(),
        };
        let partial = answer.and_then(|answer| answer.partial_success);
        let partial = partial.filter(|it| it.rejected_log_records > 0)?;
        let rejected = u64::try_from(partial.rejected_log_records).unwrap_or(0);
        self.rejected += rejected;
        let why = crate::event::escape::printable(&partial.error_message).into_owned();
        Some(format!(
            "the receiver has thrown {rejected} records away: {why}"
        ))
    }
}

/// Sends a request, and waits for all of the answer.
pub async fn ask(
    (caller, headers): &(Caller, HeaderMap),
    endpoint: &Endpoint,
    kind: &'static str,
    body: Vec<u8>,
) -> Result<Answer, Trouble> {
    let mut request = Request::post(endpoint.0.clone())
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| Trouble::passing(error.to_string()))?;
    request.headers_mut().extend(headers.clone());
    request
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    let answer = outbound::call(caller, request, PATIENCE, ANSWER_MAX).await;
    answer.map_err(|failed| Trouble {
        unsent: failed.unsent,
        ..Trouble::passing(failed.what)
    })
}

/// A client, and the headers that it sends, with the files as they are now.
pub fn connect(
    endpoint: &Endpoint,
    file: Option<&Path>,
    tls: &TlsConfig,
) -> Result<(Caller, HeaderMap), String> {
    let headers = match file {
        Some(path) => headers(&outbound::secret(path)?).ok_or_else(|| {
            format!(
                "{} holds no headers: one `Name: value` a line",
                path.display()
            )
        })?,
        None => HeaderMap::new(),
    };
    Ok((outbound::caller(endpoint, tls)?, headers))
}

/// The headers in a file. Each is marked so that nothing shows it.
fn headers(text: &[u8]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert(
        USER_AGENT,
        HeaderValue::from_static(concat!("agentguard/", env!("CARGO_PKG_VERSION"))),
    );
    for line in std::str::from_utf8(text)
        .ok()?
        .lines()
        .filter(|line| !line.trim().is_empty())
    {
        let (name, value) = line.split_once(':')?;
        let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
        let mut value = HeaderValue::from_str(value.trim()).ok()?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Some(headers)
}

/// What an answer other than success means. What the receiver says in words is not repeated: it may quote us.
pub fn refusal(status: StatusCode, headers: &HeaderMap, count: usize) -> Trouble {
    let wait = headers
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(retry_after)
        .map(|wait| wait.min(WAIT_MAX));
    let passing = status.is_server_error()
        || matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
        );
    // A receiver that cannot take a batch may take its halves, and shows so which record it is that it cannot take.
    let about_content = matches!(
        status,
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY
    );
    let (too_large, refused) = match (passing, about_content) {
        (true, _) => (false, None),
        (false, true) if count > 1 => (true, None),
        (false, true) => (false, Some(Refused::Record)),
        (false, false) => (false, Some(Refused::All)),
    };
    Trouble {
        what: format!("the receiver answered {status}"),
        wait,
        refused,
        too_large,
        unsent: false,
    }
}

/// Seconds, or a date.
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text.trim()).ok()?;
    let span = date.timestamp().duration_since(jiff::Timestamp::now());
    Some(span.try_into().unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_mean_what_the_protocol_says() {
        let none = HeaderMap::new();
        for (status, refused, halved) in [
            (429, false, false),
            (500, false, false),
            (503, false, false),
            (400, false, true),
            (413, false, true),
            (422, false, true),
            (401, true, false),
            (403, true, false),
            (404, true, false),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let trouble = refusal(status, &none, 8);
            let all = refused.then_some(Refused::All);
            assert_eq!(
                (trouble.refused, trouble.too_large),
                (all, halved),
                "{status}"
            );
            let alone = refusal(status, &none, 1);
            let one = if halved { Some(Refused::Record) } else { all };
            assert_eq!((alone.refused, alone.too_large), (one, false), "{status}");
        }
        let mut later = HeaderMap::new();
        later.insert(RETRY_AFTER, HeaderValue::from_static("7"));
        let trouble = refusal(StatusCode::TOO_MANY_REQUESTS, &later, 8);
        assert_eq!(trouble.wait, Some(Duration::from_secs(7)));
        assert!(retry_after("Fri, 01 Jan 2100 00:00:00 GMT").unwrap() > Duration::from_hours(1));
        assert_eq!(
            retry_after("Thu, 01 Jan 1970 00:00:00 GMT"),
            Some(Duration::ZERO)
        );
        assert_eq!(retry_after("soon"), None);
    }

    #[test]
    fn headers_are_read_and_not_shown() {
        let read = headers(b"Authorization: Bearer hunter2\n\nX-Scope: a:b\n").unwrap();
        assert_eq!(read["authorization"], "Bearer hunter2");
        assert_eq!(read["x-scope"], "a:b");
        assert!(!format!("{read:?}").contains("hunter2"));
        assert!(headers(b"no header").is_none());
    }
}
