//! One call: who and what, a reservation, the provider's answer as it comes, the settlement.
//!
//! From the reservation on a task of its own carries the call. An agent that goes away in the middle does not end
//! it: the answer is read to its end, because the provider charges for it.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use http_body_util::{BodyExt as _, Full, Limited, combinators::UnsyncBoxBody};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::asked;
use super::outcome::{Call, Ended, refused};
use super::prices::Price;
use super::problem::Problem;
use super::provider::{Api, Endpoint};
use super::serve::{Caller, Provider, Shared};
use super::stream::{Events, Watch, contains};
use super::usage::Tracker;
use crate::budget::{Amounts, Refusal, Reservation, Why};
use crate::outbound::causes;
use crate::policy::limits::{AtLimit, Budget, Quantity, UnknownPrice};

/// An answer to an agent.
pub type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// Parts of an answer that wait for the agent.
const WAITING: usize = 16;
/// Largest answer of a provider that refuses, in bytes.
const REFUSAL_MAX: usize = 1 << 20;

/// Headers that belong to one connection, or carry keys.
const NOT_FORWARDED: [&str; 17] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "host",
    "content-length",
    "expect",
    "authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "cookie",
];

/// What is known of a request before anything is granted.
struct Place<'a> {
    name: &'a str,
    provider: &'a Provider,
    path: &'a str,
}

/// Answers one request. `cgroup` is where the kernel says that the caller's socket belongs.
pub async fn answer(
    shared: Arc<Shared>,
    cgroup: Option<u64>,
    request: Request<Incoming>,
) -> Answer {
    let path = request.uri().path().to_owned();
    let (name, rest) = split(&path);
    let provider = shared.providers.get(name);
    let api = provider.map_or(Api::OpenAi, |it| it.api);
    let caller = cgroup.and_then(|cgroup| shared.host.agent_of(cgroup));
    let place = provider.map(|provider| Place {
        name,
        provider,
        path: rest,
    });
    match prepare(&shared, caller.as_ref(), place, request).await {
        Ok((call, upstream)) => {
            let (sender, receiver) = oneshot::channel();
            tokio::spawn(carry(shared.clone(), call, upstream, api, sender));
            receiver.await.unwrap_or_else(|_| {
                problem(
                    &Problem::new(StatusCode::BAD_GATEWAY, "the call ended without an answer"),
                    api,
                )
            })
        }
        Err((it, refusal, target)) => {
            refused(
                &shared,
                caller.as_ref(),
                &target,
                refusal.as_ref(),
                &it.message,
            );
            problem(&it, api)
        }
    }
}

/// `/openai/v1/x` to `openai` and `/v1/x`.
fn split(path: &str) -> (&str, &str) {
    let path = path.strip_prefix('/').unwrap_or(path);
    match path.find('/') {
        Some(at) => path.split_at(at),
        None => (path, ""),
    }
}

/// Why a call does not go out, the budget's word on it if it is one's, and the call's target.
type No = (Problem, Option<Refusal>, String);

async fn prepare(
    shared: &Arc<Shared>,
    caller: Option<&Caller>,
    place: Option<Place<'_>>,
    request: Request<Incoming>,
) -> Result<(Call, Request<Full<Bytes>>), No> {
    let mut target = request.uri().path().to_owned();
    let no = |status, message: String, target: &str| {
        (Problem::new(status, message), None, target.to_owned())
    };
    let caller = caller.ok_or_else(|| {
        let what = "the caller is no governed agent of this host (its socket was not made in an agent's cgroup)";
        no(StatusCode::FORBIDDEN, what.to_owned(), &target)
    })?;
    let Place {
        name,
        provider,
        path,
    } = place.ok_or_else(|| {
        let known: Vec<_> = shared.providers.keys().map(String::as_str).collect();
        let what = format!(
            "there is no provider of this name; known are {}",
            known.join(", ")
        );
        no(StatusCode::NOT_FOUND, what, &target)
    })?;
    let limits = caller.policy.limits().clone();
    let models = limits
        .models
        .as_ref()
        .filter(|it| it.providers.iter().any(|it| it == name));
    let models = models.ok_or_else(|| {
        let what = format!(
            "the policy `{}` does not permit the provider `{name}`",
            caller.policy.name()
        );
        no(StatusCode::FORBIDDEN, what, &target)
    })?;
    let (endpoint, model) = provider
        .api
        .endpoint(request.method(), path)
        .ok_or_else(|| {
            let what = format!(
                "{} {path} cannot be counted, and is not let through",
                request.method()
            );
            no(StatusCode::NOT_FOUND, what, &target)
        })?;
    let (head, body) = request.into_parts();
    if head.headers.contains_key(header::CONTENT_ENCODING) {
        let what = "a compressed request cannot be counted: send it as it is".to_owned();
        return Err(no(StatusCode::UNSUPPORTED_MEDIA_TYPE, what, &target));
    }
    let body = collect(shared, body)
        .await
        .map_err(|it| (it, None, target.clone()))?;
    let asked = asked::read(endpoint, model, &body, models)
        .map_err(|what| no(StatusCode::BAD_REQUEST, what, &target))?;
    target = format!("{name}/{}", asked.model);
    let budgets: Vec<Budget> = limits
        .budgets
        .iter()
        .filter(|it| it.quantity.is_of_calls() && it.covers(&asked.model))
        .cloned()
        .collect();
    let price = price(
        shared,
        endpoint,
        &asked.model,
        &budgets,
        models.unknown_price,
    )
    .map_err(|what| no(StatusCode::FORBIDDEN, what, &target))?;
    let upstream = forward(&head, provider, path, body)
        .map_err(|what| no(StatusCode::BAD_GATEWAY, what, &target))?;
    let amounts = Amounts {
        input: asked.input,
        output: asked.output,
        cached: asked.input,
        money: price.map_or(0, |it| it.most(asked.input, asked.output)),
    };
    let reservation = reserve(shared, caller, budgets, amounts)
        .await
        .map_err(|refusal| (spent(shared, &refusal), Some(refusal), target.clone()))?;
    shared.begun(caller.session);
    let call = Call {
        caller: caller.clone(),
        provider: name.to_owned(),
        endpoint,
        asked,
        price,
        reservation,
        begun: Instant::now(),
    };
    Ok((call, upstream))
}

/// What the model costs; none where nobody asks.
fn price(
    shared: &Shared,
    endpoint: Endpoint,
    model: &str,
    budgets: &[Budget],
    unknown: UnknownPrice,
) -> Result<Option<Price>, String> {
    let known = shared.prices.of(model);
    let counts_money = budgets.iter().any(|it| it.quantity == Quantity::Money);
    if known.is_some() || !counts_money || !endpoint.is_metered() {
        return Ok(known);
    }
    match unknown {
        UnknownPrice::Dearest => Ok(Some(shared.prices.dearest())),
        UnknownPrice::Deny => Err(format!(
            "the model `{model}` has no price, and a budget counts money: add it to {}",
            super::config::PRICES
        )),
    }
}

async fn collect(shared: &Shared, body: Incoming) -> Result<Bytes, Problem> {
    let max = shared.config.max_request;
    match timeout(shared.config.patience(), Limited::new(body, max).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            let what = format!("the request is larger than {max} bytes");
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, what))
        }
        Ok(Err(error)) => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            format!("the request was cut off: {error}"),
        )),
        Err(_) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "the request did not come to its end",
        )),
    }
}

/// The answer where a budget has no room.
fn spent(shared: &Shared, refusal: &Refusal) -> Problem {
    let status = match &refusal.why {
        Why::Ledger => StatusCode::SERVICE_UNAVAILABLE,
        Why::Spent { at_limit, .. } => {
            if *at_limit != AtLimit::Deny {
                shared.host.alert();
            }
            StatusCode::TOO_MANY_REQUESTS
        }
    };
    Problem {
        retry_after: refusal.retry_after,
        ..Problem::new(status, refusal.message.clone())
    }
}

async fn reserve(
    shared: &Arc<Shared>,
    caller: &Caller,
    budgets: Vec<Budget>,
    amounts: Amounts,
) -> Result<Reservation, Refusal> {
    let ledger = shared.ledger.clone();
    if let Some(granted) = ledger.try_reserve(&caller.account, caller.session, &budgets, amounts)? {
        return Ok(granted);
    }
    let (account, session) = (caller.account.clone(), caller.session);
    let work = move || ledger.reserve(&account, session, &budgets, amounts);
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
            Err(Refusal {
                why: Why::Ledger,
                message: format!("the ledger failed: {error}"),
                retry_after: None,
            })
        })
}

/// The request as the provider gets it: the same bytes, with the real key.
fn forward(
    head: &hyper::http::request::Parts,
    provider: &Provider,
    path: &str,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, String> {
    let key = provider.key.as_ref().map_err(Clone::clone)?;
    let query = head.uri.query().map(|query| {
        let kept: Vec<&str> = query
            .split('&')
            .filter(|pair| !pair.starts_with("key=") && !pair.starts_with("access_token="))
            .collect();
        kept.join("&")
    });
    let base = provider.base.path().trim_end_matches('/');
    let mut target = format!("{base}{path}");
    if let Some(query) = query.filter(|it| !it.is_empty()) {
        target = format!("{target}?{query}");
    }
    let mut parts = provider.base.clone().into_parts();
    parts.path_and_query = Some(
        target
            .parse()
            .map_err(|_| "the path cannot be forwarded".to_owned())?,
    );
    let uri = Uri::from_parts(parts).map_err(|_| "the path cannot be forwarded".to_owned())?;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    for (name, value) in kept(&head.headers) {
        headers.append(name.clone(), value.clone());
    }
    // Only what is not compressed can be counted on its way.
    headers.insert(
        header::ACCEPT_ENCODING,
        HeaderValue::from_static("identity"),
    );
    if let Some(key) = key {
        let (name, prefix) = provider.api.key_header();
        let value = key.header(prefix).ok_or("the key cannot be sent")?;
        headers.insert(HeaderName::from_static(name), value);
    }
    Ok(request)
}

/// Headers that are not for one connection only.
fn kept(headers: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|it| it.to_str().ok())
        .flat_map(|it| it.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect();
    headers.iter().filter(move |(name, _)| {
        !NOT_FORWARDED.contains(&name.as_str()) && !named.iter().any(|it| it == name.as_str())
    })
}

/// Sends a call, hands the answer on, and settles.
async fn carry(
    shared: Arc<Shared>,
    call: Call,
    request: Request<Full<Bytes>>,
    api: Api,
    reply: oneshot::Sender<Answer>,
) {
    let nothing = Tracker::default();
    let patience = shared.config.patience();
    let failed = |status, what: &str| problem(&Problem::new(status, what), api);
    let response = match timeout(patience, shared.upstream.request(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            let what = format!(
                "the provider `{}` cannot be reached: {}",
                call.provider,
                causes(&error)
            );
            let answer = failed(StatusCode::BAD_GATEWAY, &what);
            // Without a connection nothing was sent.
            let ended = if error.is_connect() {
                Ended::Free(what)
            } else {
                Ended::Cut(what)
            };
            call.settle(&shared, &nothing, 0, &ended).await;
            let _ = reply.send(answer);
            return;
        }
        Err(_) => {
            let what = format!(
                "the provider `{}` did not answer within {} s",
                call.provider,
                patience.as_secs()
            );
            let answer = failed(StatusCode::GATEWAY_TIMEOUT, &what);
            call.settle(&shared, &nothing, 0, &Ended::Cut(what)).await;
            let _ = reply.send(answer);
            return;
        }
    };
    let (head, body) = response.into_parts();
    let kind = head
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|it| it.to_str().ok());
    let is_sse = kind.is_some_and(|it| it.starts_with("text/event-stream"));
    if head.status.is_success() && (is_sse || call.asked.stream) {
        stream(&shared, call, (head, body), is_sse, api, reply).await;
    } else {
        whole(&shared, call, head, body, api, reply).await;
    }
}

/// An answer that is there at once: read to its end, judged, and handed on as it is.
async fn whole(
    shared: &Shared,
    call: Call,
    head: hyper::http::response::Parts,
    body: Incoming,
    api: Api,
    reply: oneshot::Sender<Answer>,
) {
    let is_good = head.status.is_success();
    let most = usize::try_from(shared.config.max_answer).unwrap_or(usize::MAX);
    let most = if is_good { most } else { REFUSAL_MAX };
    let read = timeout(shared.config.patience(), Limited::new(body, most).collect()).await;
    let mut tracker = Tracker::default();
    let secret = call.secret(shared);
    let judged = match read {
        Ok(Ok(body)) => {
            let body = body.to_bytes();
            if contains_secret(&body, &head.headers, &secret) {
                Err("the provider's answer held the key, and was kept back".to_owned())
            } else if !is_good {
                Ok((
                    body,
                    Ended::Free(format!("status {}", head.status.as_u16())),
                ))
            } else {
                match serde_json::from_slice::<Value>(&body) {
                    Ok(value) => {
                        tracker.take(call.endpoint, &value);
                        Ok((body, Ended::Whole))
                    }
                    Err(error) => Err(format!("the provider's answer is not JSON: {error}")),
                }
            }
        }
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(format!("the provider's answer is larger than {most} bytes"))
        }
        Ok(Err(error)) => Err(format!(
            "the provider's answer was cut off: {}",
            causes(&*error)
        )),
        Err(_) => Err("the provider's answer did not come to its end".to_owned()),
    };
    let answer = match judged {
        Ok((body, ended)) => {
            call.settle(shared, &tracker, 0, &ended).await;
            let mut answer = Response::new(boxed(body));
            *answer.status_mut() = head.status;
            *answer.headers_mut() = kept(&head.headers)
                .map(|(n, v)| (n.clone(), v.clone()))
                .collect();
            answer
        }
        Err(what) => {
            let answer = problem(&Problem::new(StatusCode::BAD_GATEWAY, what.as_str()), api);
            call.settle(shared, &tracker, 0, &Ended::Cut(what)).await;
            answer
        }
    };
    let _ = reply.send(answer);
}

/// An answer in parts: each is handed on as it comes.
async fn stream(
    shared: &Shared,
    call: Call,
    (head, mut body): (hyper::http::response::Parts, Incoming),
    is_sse: bool,
    api: Api,
    reply: oneshot::Sender<Answer>,
) {
    let (sender, parts) = mpsc::channel(WAITING);
    let secret = call.secret(shared);
    let mut answer = Response::new(UnsyncBoxBody::new(Parts(parts)));
    *answer.status_mut() = head.status;
    *answer.headers_mut() = kept(&head.headers)
        .filter(|(_, value)| !contains(value.as_bytes(), &secret) || secret.is_empty())
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect();
    // An error may have to be added.
    answer.headers_mut().remove(header::CONTENT_LENGTH);
    let mut is_there = reply.send(answer).is_ok();
    let (mut tracker, mut events, mut watch) =
        (Tracker::default(), Events::default(), Watch::new(&secret));
    let (mut total, mut text): (u64, Vec<u8>) = (0, Vec::new());
    let endpoint = call.endpoint;
    let trouble = loop {
        let part = match timeout(shared.config.patience(), body.frame()).await {
            Ok(None) => break None,
            Ok(Some(Ok(frame))) => frame.into_data(),
            Ok(Some(Err(error))) => {
                break Some(format!(
                    "the provider's answer was cut off: {}",
                    causes(&error)
                ));
            }
            Err(_) => break Some("the provider's answer stopped".to_owned()),
        };
        let Ok(part) = part else { continue };
        total = total.saturating_add(part.len() as u64);
        if total > shared.config.max_answer {
            break Some(format!(
                "the provider's answer is larger than {} bytes",
                shared.config.max_answer
            ));
        }
        if watch.sees(&part) {
            break Some("the provider's answer held the key, and was kept back".to_owned());
        }
        if is_sse {
            events.take(&part, |value| tracker.take(endpoint, value));
        } else {
            text.extend_from_slice(&part);
        }
        if is_there {
            is_there = sender.send(Ok(part)).await.is_ok();
        }
    };
    if !is_sse && let Ok(value) = serde_json::from_slice::<Value>(&text) {
        tracker.take(endpoint, &value);
    }
    let ended = trouble.clone().map_or(Ended::Whole, Ended::Cut);
    call.settle(shared, &tracker, events.count, &ended).await;
    if let Some(what) = trouble.filter(|_| is_there) {
        let last = if is_sse {
            let it = Problem::new(StatusCode::BAD_GATEWAY, what);
            Ok(it.event(api, endpoint).into())
        } else {
            Err(io::Error::other(what))
        };
        let _ = sender.send(last).await;
    }
}

impl Call {
    /// The bytes that must be in no answer.
    fn secret(&self, shared: &Shared) -> Vec<u8> {
        match shared.providers.get(&self.provider).map(|it| &it.key) {
            Some(Ok(Some(key))) => key.bytes().to_vec(),
            _ => Vec::new(),
        }
    }
}

fn contains_secret(body: &[u8], headers: &HeaderMap, secret: &[u8]) -> bool {
    !secret.is_empty()
        && (contains(body, secret) || headers.values().any(|it| contains(it.as_bytes(), secret)))
}

fn boxed(body: Bytes) -> UnsyncBoxBody<Bytes, io::Error> {
    UnsyncBoxBody::new(Full::new(body).map_err(|never: Infallible| match never {}))
}

/// An error in the provider's shape.
pub fn problem(it: &Problem, api: Api) -> Answer {
    let mut answer = Response::new(boxed(it.body(api).to_string().into()));
    *answer.status_mut() = it.status;
    let headers = answer.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    if it.status == StatusCode::TOO_MANY_REQUESTS {
        let soon = it.retry_after.is_some_and(|wait| wait.as_secs() < 5);
        // Libraries ask this before they try again on their own.
        let again = HeaderValue::from_static(if soon { "true" } else { "false" });
        headers.insert(HeaderName::from_static("x-should-retry"), again);
    }
    if let Some(wait) = it.retry_after {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}

/// A body whose parts come through a channel.
struct Parts(mpsc::Receiver<io::Result<Bytes>>);

impl Body for Parts {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0
            .poll_recv(context)
            .map(|part| part.map(|part| part.map(Frame::data)))
    }
}
