//! One question, and what comes back for it.

use std::sync::{Arc, Mutex, PoisonError};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use ring::rand::{SecureRandom as _, SystemRandom};

use super::config::WebhookConfig;
use super::message::{Answer, Asked};
use super::sign::{Direction, NONCE, SIGNATURE, Secret, TIMESTAMP};
use crate::hex::hex;
use crate::outbound::{self, Caller};

/// Largest answer that is read.
const ANSWER_MAX: usize = 16 << 10;

/// Why a question has no answer that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is none: the receiver cannot be reached, is too slow, or says that something is wrong.
    Unanswered(String),
    /// There is one, and it does not count.
    Invalid(String),
}

impl Failure {
    /// In words; never a secret.
    pub fn text(&self) -> String {
        match self {
            Self::Unanswered(what) => what.clone(),
            Self::Invalid(what) => format!("an answer does not count: {what}"),
        }
    }
}

/// Asks one receiver.
#[derive(Debug)]
pub struct Post {
    config: WebhookConfig,
    host: String,
    /// Made anew after each failure, with the certificates as they are then.
    caller: Mutex<Option<Caller>>,
}

impl Post {
    /// Does nothing yet.
    pub fn new(config: &WebhookConfig, host: String) -> Arc<Self> {
        Arc::new(Self {
            config: config.clone(),
            host,
            caller: Mutex::new(None),
        })
    }

    /// Its settings.
    pub fn config(&self) -> &WebhookConfig {
        &self.config
    }

    /// Asks about an act, and waits for the answer.
    pub async fn ask(&self, asked: &Asked) -> Result<Answer, Failure> {
        let outcome = self.exchange(asked).await;
        if outcome.is_err() {
            *self.caller.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        outcome
    }

    async fn exchange(&self, asked: &Asked) -> Result<Answer, Failure> {
        let unanswered = Failure::Unanswered;
        // Read each time, so that it can be replaced while the daemon runs.
        let secret = Secret::read(&self.config.secret).map_err(unanswered)?;
        let nonce = nonce().map_err(unanswered)?;
        let patience = self.config.timeout.0;
        let now = jiff::Timestamp::now();
        let timestamp = now.as_second().to_string();
        let expires = (now + patience).to_string();
        let body = asked.question(&self.host, &nonce, [&now.to_string(), &expires]);
        let body = body.map_err(unanswered)?;
        let signature = secret.sign(Direction::Question, &timestamp, &nonce, &body);
        let request = self.request(body, [&timestamp, &nonce, &signature]);
        let caller = self.caller().map_err(unanswered)?;
        let called = outbound::call(&caller, request.map_err(unanswered)?, patience, ANSWER_MAX);
        let (head, body) = called.await.map_err(|failed| unanswered(failed.what))?;
        match head.status {
            StatusCode::OK => {}
            // That nothing is decided changes nothing, whoever says it.
            StatusCode::ACCEPTED => return Ok(Answer::Pending),
            status if status.is_redirection() => {
                return Err(unanswered(format!(
                    "the receiver answered {status}, and nobody is followed elsewhere"
                )));
            }
            status => return Err(unanswered(format!("the receiver answered {status}"))),
        }
        let signature = only(&head.headers, SIGNATURE)
            .ok_or_else(|| Failure::Invalid("it is not signed".to_owned()))?;
        if !secret.verify(Direction::Answer, (&timestamp, &nonce), &body, signature) {
            let what = "its signature is not made with our secret for this question";
            return Err(Failure::Invalid(what.to_owned()));
        }
        Answer::read(&body, &asked.id(), &nonce).map_err(Failure::Invalid)
    }

    fn request(&self, body: Vec<u8>, signed: [&str; 3]) -> Result<Request<Full<Bytes>>, String> {
        let mut request = Request::post(self.config.url.0.clone())
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("agentguard/", env!("CARGO_PKG_VERSION"))),
        );
        for (name, value) in [TIMESTAMP, NONCE, SIGNATURE].into_iter().zip(signed) {
            let value = HeaderValue::from_str(value).map_err(|error| error.to_string())?;
            headers.insert(HeaderName::from_static(name), value);
        }
        Ok(request)
    }

    fn caller(&self) -> Result<Caller, String> {
        let mut kept = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(caller) = &*kept {
            return Ok(caller.clone());
        }
        let caller = outbound::caller(&self.config.url, &self.config.tls)?;
        Ok(kept.insert(caller).clone())
    }
}

/// The value of a header that is there once.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    value.to_str().ok()
}

/// What nobody can foresee.
fn nonce() -> Result<String, String> {
    let mut bytes = [0; 16];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| "the kernel has no random numbers".to_owned())?;
    Ok(hex(&bytes))
}
