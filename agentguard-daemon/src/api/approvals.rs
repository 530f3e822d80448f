//! Requests about approvals: who answers is found out from the kernel, and written down.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};

use super::server::{Answer, Refusal, body, json, may_change, may_look, parameter};
use super::wire::ApprovalRequest;
use super::{Access, Peer};
use crate::approval::Waiting;
use crate::session::Engine;

/// Answers below `/approvals`.
pub(super) async fn route(
    method: &Method,
    parts: &[&str],
    query: &str,
    request: Request<Incoming>,
    engine: &Arc<Engine>,
    (access, peer): (&Access, &Peer),
) -> Result<Answer, Refusal> {
    let number = |id: &str| {
        id.parse::<u64>()
            .map_err(|_| Refusal::Bad("an approval is named by its number".to_owned()))
    };
    match (method, parts) {
        (&Method::GET, []) => {
            may_look(access)?;
            let approvals = engine.approvals(parameter(query, "agent"))?;
            Ok(json(StatusCode::OK, &approvals))
        }
        (&Method::POST, [id, "grant"]) => {
            may_change(access)?;
            let id = number(id)?;
            let ApprovalRequest { scope, key } = body(request).await?;
            let is_meant = |waiting: &Waiting| key.as_ref().is_none_or(|key| *key == waiting.key());
            let by = peer.who();
            let granted = engine.approve_if(id, is_meant, scope, &by).await?;
            Ok(json(StatusCode::OK, &granted))
        }
        (&Method::POST, [id, "deny"]) => {
            may_change(access)?;
            let waiting = engine.refuse(number(id)?, &peer.who()).await?;
            Ok(json(StatusCode::OK, &waiting))
        }
        (&Method::POST, [id, "revoke"]) => {
            may_change(access)?;
            let granted = engine.revoke(number(id)?, &peer.who()).await?;
            Ok(json(StatusCode::OK, &granted))
        }
        _ => Err(Refusal::NotFound),
    }
}
