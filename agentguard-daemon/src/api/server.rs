//! The daemon's end of the socket.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body_util::{BodyExt, Full, Limited, combinators::BoxBody};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, mpsc};

use super::wire::{
    AttachRequest, BODY_MAX, GrantRequest, PREFIX, Problem, Reloaded, ResetRequest, SkipRequest,
    Snapshot, Status, TargetRequest, TrafficSum, Why,
};
use super::{Access, Peer, approvals};
use crate::audit::Notice;
use crate::cli::exit::Exit;
use crate::kernel::KernelError;
use crate::session::{Attach, Engine, GuardianAction, PolicyRequest, SessionError, Target};

pub(super) type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Serves until the listener fails.
pub async fn serve(listener: UnixListener, engine: Arc<Engine>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(converse(stream, engine.clone()));
            }
            Err(error) => {
                tracing::error!("failed to accept a connection: {error}");
                // Out of descriptors: others must end first.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, engine: Arc<Engine>) {
    let peer = match Peer::of(&stream) {
        Ok(peer) => Arc::new(peer),
        Err(error) => {
            tracing::warn!("a connection was closed, its peer cannot be known: {error}");
            return;
        }
    };
    let service = service_fn(move |request| {
        let (engine, peer) = (engine.clone(), peer.clone());
        async move { Ok::<_, Infallible>(answer(request, &engine, &peer).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!("a connection ended early: {error}");
    }
}

/// Why a request has no good answer.
pub(super) enum Refusal {
    Forbidden(&'static str),
    NotFound,
    Bad(String),
    Failed(SessionError),
}

impl From<SessionError> for Refusal {
    fn from(error: SessionError) -> Self {
        Self::Failed(error)
    }
}

async fn answer(request: Request<Incoming>, engine: &Arc<Engine>, peer: &Peer) -> Answer {
    let access = peer.access(engine.hierarchy().mount(), |pidfd, cgroup| {
        let label = engine.label_of(pidfd)?;
        Ok::<_, KernelError>(match label {
            // The agent may be gone, and the label still there: that is nobody, and governed.
            Some(label) => {
                let name = engine.agent_of_session(label.session);
                Some((name.unwrap_or_default(), label.session))
            }
            None => engine.agent_of_cgroup(cgroup),
        })
    });
    let changes = request.method() != Method::GET;
    let answered = route(request, engine, &access, peer).await;
    if changes {
        // What was done is in the log when that is told.
        engine.pump().drain().await;
    }
    answered.unwrap_or_else(|refusal| {
        let (status, error, exit) = match refusal {
            Refusal::Forbidden(what) => {
                (StatusCode::FORBIDDEN, what.to_owned(), Exit::NotPermitted)
            }
            Refusal::NotFound => {
                let what = "the daemon does not know this request: is it of another version?";
                (StatusCode::NOT_FOUND, what.to_owned(), Exit::Failure)
            }
            Refusal::Bad(what) => (StatusCode::BAD_REQUEST, what, Exit::Usage),
            Refusal::Failed(error) => {
                let exit = Exit::from(&error);
                (StatusCode::CONFLICT, crate::cli::report::text(&error), exit)
            }
        };
        json(
            status,
            &Problem {
                error,
                exit: exit as u8,
            },
        )
    })
}

async fn route(
    request: Request<Incoming>,
    engine: &Arc<Engine>,
    access: &Access,
    peer: &Peer,
) -> Result<Answer, Refusal> {
    let path = request.uri().path().to_owned();
    if (request.method(), path.as_str()) == (&Method::GET, "/metrics") {
        may_look(access)?;
        return metrics(engine).await;
    }
    let path = path.strip_prefix(PREFIX).ok_or(Refusal::NotFound)?;
    let query = request.uri().query().unwrap_or_default().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let method = request.method().clone();
    match (&method, parts.as_slice()) {
        (&Method::GET, ["why"]) => why(engine, access, &query),
        (&Method::GET, ["status"]) => {
            may_look(access)?;
            Ok(json(StatusCode::OK, &status(engine)))
        }
        (&Method::GET, ["snapshot"]) => {
            may_look(access)?;
            Ok(json(StatusCode::OK, &snapshot(engine)?))
        }
        (&Method::GET, ["agents"]) => {
            may_look(access)?;
            Ok(json(StatusCode::OK, &engine.list()))
        }
        (&Method::GET, ["traffic"]) => {
            may_look(access)?;
            let traffic = engine.traffic(parameter(&query, "agent"))?;
            Ok(json(StatusCode::OK, &traffic))
        }
        (_, ["sinks", rest @ ..]) => sinks(&method, rest, request, engine, (access, peer)).await,
        (&Method::GET, ["audit"]) => {
            may_look(access)?;
            let owner = parameter(&query, "owner") == Some("true");
            if owner {
                may_change(access)?;
            }
            Ok(subscribe(engine, &query, owner))
        }
        (&Method::POST, ["agents"]) => {
            may_change(access)?;
            let request: AttachRequest = body(request).await?;
            Ok(json(
                StatusCode::OK,
                &engine.attach(attach_of(request)?).await?,
            ))
        }
        (&Method::DELETE, ["agents", name]) => {
            may_change(access)?;
            Ok(json(StatusCode::OK, &engine.detach(name).await?))
        }
        (&Method::PUT, ["agents", name, "policy"]) => {
            may_change(access)?;
            let request: PolicyRequest = body(request).await?;
            Ok(json(
                StatusCode::OK,
                &engine.swap(name, Some(request)).await?,
            ))
        }
        (&Method::POST, ["agents", name, "end"]) => {
            may_change(access)?;
            let session = parameter(&query, "session").and_then(|it| it.parse::<u32>().ok());
            let session = session.ok_or_else(|| Refusal::Bad("name the session".to_owned()))?;
            Ok(json(StatusCode::OK, &engine.end(name, session).await?))
        }
        (_, ["approvals", rest @ ..]) => {
            approvals::route(&method, rest, &query, request, engine, (access, peer)).await
        }
        (_, ["budgets", ..] | ["agents", _, "grant"] | ["environment"]) => {
            limits(&method, &parts, &query, request, engine, access).await
        }
        (&Method::POST, ["agents", name, act]) => {
            may_change(access)?;
            match *act {
                "freeze" => engine.freeze(name)?,
                "thaw" => engine.thaw(name)?,
                "kill" => engine.kill(name)?,
                _ => return Err(Refusal::NotFound),
            }
            Ok(json(StatusCode::OK, &()))
        }
        (&Method::POST, ["reload"]) => {
            may_change(access)?;
            let outcomes = engine.reload(None).await;
            let outcomes: Vec<_> = outcomes
                .into_iter()
                .map(|(agent, outcome)| Reloaded {
                    agent,
                    generation: outcome.as_ref().ok().map(|info| info.generation),
                    error: outcome.err().map(|error| error.line()),
                })
                .collect();
            Ok(json(StatusCode::OK, &outcomes))
        }
        _ => Err(Refusal::NotFound),
    }
}

/// Requests about sinks.
async fn sinks(
    method: &Method,
    parts: &[&str],
    request: Request<Incoming>,
    engine: &Arc<Engine>,
    (access, peer): (&Access, &Peer),
) -> Result<Answer, Refusal> {
    match (method, parts) {
        (&Method::GET, []) => {
            may_look(access)?;
            Ok(json(StatusCode::OK, &engine.sinks()))
        }
        (&Method::POST, [name, "skip"]) => {
            may_change(access)?;
            let SkipRequest { record } = body(request).await?;
            let state = engine.skip_record(name, record, &peer.who()).await?;
            Ok(json(StatusCode::OK, &state))
        }
        (&Method::POST, [name, "retry"]) => {
            may_change(access)?;
            Ok(json(StatusCode::OK, &engine.retry_sink(name).await?))
        }
        _ => Err(Refusal::NotFound),
    }
}

/// Requests about budgets and the gateway.
async fn limits(
    method: &Method,
    parts: &[&str],
    query: &str,
    request: Request<Incoming>,
    engine: &Arc<Engine>,
    access: &Access,
) -> Result<Answer, Refusal> {
    match (method, parts) {
        (&Method::GET, ["budgets"]) => {
            may_look(access)?;
            let status = engine.budgets(parameter(query, "agent"))?;
            Ok(json(StatusCode::OK, &status))
        }
        (&Method::POST, ["budgets", "reset"]) => {
            may_change(access)?;
            let request: ResetRequest = body(request).await?;
            let engine = engine.clone();
            blocking(move || match request {
                ResetRequest { clock: true, .. } => engine.believe_clock(),
                ResetRequest { account, .. } => engine.reset_budgets(account.as_deref()),
            })
            .await
        }
        (&Method::POST, ["agents", name, "grant"]) => {
            may_change(access)?;
            let GrantRequest { budget, amount } = body(request).await?;
            let (engine, name) = (engine.clone(), (*name).to_owned());
            blocking(move || engine.grant(&name, &budget, &amount)).await
        }
        (&Method::POST, ["environment"]) => {
            may_change(access)?;
            let request: PolicyRequest = body(request).await?;
            Ok(json(StatusCode::OK, &engine.environment(&request).await?))
        }
        _ => Err(Refusal::NotFound),
    }
}

/// All metrics, gathered on a thread of its own.
async fn metrics(engine: &Arc<Engine>) -> Result<Answer, Refusal> {
    let source = engine.metrics_source();
    let text = tokio::task::spawn_blocking(move || source.text()).await;
    let text = text.unwrap_or_else(|error| Err(error.to_string()));
    let text = text.map_err(Refusal::Bad)?;
    let mut answer = Response::new(Full::new(Bytes::from(text)).boxed());
    let kind = hyper::header::HeaderValue::from_static(crate::metrics::CONTENT_TYPE);
    answer
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, kind);
    Ok(answer)
}

/// Waits for the disk on a thread of its own.
async fn blocking(
    work: impl FnOnce() -> Result<(), SessionError> + Send + 'static,
) -> Result<Answer, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Refusal::Bad(error.to_string()))??;
    Ok(json(StatusCode::OK, &()))
}

pub(super) fn may_look(access: &Access) -> Result<(), Refusal> {
    match access {
        Access::Full | Access::Look => Ok(()),
        Access::Why { .. } => Err(GOVERNED),
        Access::None => Err(Refusal::Forbidden(
            "this needs root, or membership of the group `agentguard`; use sudo",
        )),
    }
}

pub(super) fn may_change(access: &Access) -> Result<(), Refusal> {
    match access {
        Access::Full => Ok(()),
        Access::Why { .. } => Err(GOVERNED),
        Access::Look | Access::None => Err(Refusal::Forbidden("this needs root; use sudo")),
    }
}

const GOVERNED: Refusal =
    Refusal::Forbidden("a governed process may ask `agentguard why`, and nothing else");

fn why(engine: &Engine, access: &Access, query: &str) -> Result<Answer, Refusal> {
    let (agent, session) = if let Access::Why { agent, session } = access {
        (agent.clone(), *session)
    } else {
        may_look(access)?;
        let name = parameter(query, "agent").ok_or_else(|| {
            Refusal::Bad(
                "you are not governed: name an agent, as in `agentguard why NAME`".to_owned(),
            )
        })?;
        let session = engine.recorder().last_session(name);
        let session = session.ok_or_else(|| {
            SessionError::from(crate::agent::RegistryError::Unknown(name.to_owned()))
        })?;
        (name.to_owned(), session)
    };
    let refusals = engine.recorder().refusals(session);
    let refusals = refusals
        .iter()
        .filter_map(|notice| serde_json::from_str(&notice.line).ok())
        .collect();
    Ok(json(
        StatusCode::OK,
        &Why {
            agent,
            session,
            refusals,
        },
    ))
}

fn status(engine: &Engine) -> Status {
    let agents = engine.list().len();
    let recorder = engine.recorder();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        log: recorder.log_path().to_owned(),
        agents,
        totals: recorder.totals(),
    }
}

fn snapshot(engine: &Engine) -> Result<Snapshot, SessionError> {
    let sums = engine.traffic(None)?.into_iter().map(|it| TrafficSum {
        agent: it.agent,
        amounts: it.amounts,
    });
    Ok(Snapshot {
        at: u64::try_from(engine.uptime().as_millis()).unwrap_or(u64::MAX),
        status: status(engine),
        agents: engine.list(),
        budgets: engine.budgets(None)?,
        traffic: sums.collect(),
        approvals: engine.approvals(None)?,
    })
}

fn attach_of(request: AttachRequest) -> Result<Attach, Refusal> {
    let name = request.name.map(|name| name.parse()).transpose();
    let account = request.account.map(|name| name.parse()).transpose();
    Ok(Attach {
        name: name.map_err(|error: crate::agent::NameError| Refusal::Bad(error.to_string()))?,
        policy: request.policy,
        account: account
            .map_err(|error: crate::agent::NameError| Refusal::Bad(error.to_string()))?,
        target: match request.target {
            TargetRequest::Pid(pid) => Target::Process(pid),
            TargetRequest::Cgroup(path) => Target::Cgroup(path),
        },
        on_death: if request.dies_with_daemon {
            GuardianAction::Kill
        } else {
            GuardianAction::Freeze
        },
    })
}

/// The value of a query parameter. Names of agents and numbers need no decoding.
pub(super) fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// The lines of the log from now on. With an owner, the session ends with the conversation.
fn subscribe(engine: &Arc<Engine>, query: &str, owner: bool) -> Answer {
    let session = parameter(query, "session").and_then(|session| session.parse::<u32>().ok());
    let receiver = {
        let recorder = engine.recorder();
        match parameter(query, "refused") {
            Some("true") => recorder.subscribe_refusals(),
            _ => recorder.subscribe(),
        }
    };
    let (sender, lines) = mpsc::channel(256);
    let engine = engine.clone();
    if owner && let Some(session) = session {
        engine.claim(session);
    }
    tokio::spawn(async move {
        forward(receiver, sender, session).await;
        if owner
            && let Some(session) = session
            && let Some(name) = engine.agent_of_session(session)
        {
            tracing::warn!("the `agentguard run` of `{name}` is gone; the agent is killed");
            if let Err(error) = engine.end(&name, session).await {
                tracing::error!("failed to end `{name}`: {error}");
            }
        }
    });
    Response::new(Lines(lines).boxed())
}

async fn forward(
    mut receiver: broadcast::Receiver<Arc<Notice>>,
    sender: mpsc::Sender<Bytes>,
    session: Option<u32>,
) {
    loop {
        let next = tokio::select! {
            next = receiver.recv() => next,
            () = sender.closed() => return,
        };
        let line = match next {
            Ok(notice) if session.is_none_or(|session| session == notice.session) => {
                format!("{}\n", notice.line)
            }
            Ok(_) => continue,
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                // The log has them: only this listener was too slow.
                format!("{{\"op\":\"gap\",\"class\":\"listener\",\"lost\":{lost}}}\n")
            }
            Err(broadcast::error::RecvError::Closed) => return,
        };
        tokio::select! {
            sent = sender.send(line.into()) => if sent.is_err() { return },
            () = sender.closed() => return,
        }
    }
}

/// A body that goes on for as long as there are lines.
struct Lines(mpsc::Receiver<Bytes>);

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

pub(super) async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    let bytes = Limited::new(request.into_body(), BODY_MAX)
        .collect()
        .await
        .map_err(|error| Refusal::Bad(error.to_string()))?
        .to_bytes();
    serde_json::from_slice(&bytes).map_err(|error| Refusal::Bad(error.to_string()))
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let (status, bytes) = match serde_json::to_vec(value) {
        Ok(bytes) => (status, bytes),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            error.to_string().into_bytes(),
        ),
    };
    let mut answer = Response::new(Full::new(Bytes::from(bytes)).boxed());
    *answer.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("application/json");
    answer
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, kind);
    answer
}
