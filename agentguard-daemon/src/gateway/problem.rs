//! Errors in the providers' own shapes, so that their libraries raise them as their own.

use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value, json};

use super::provider::{Api, Endpoint};

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The status of the answer.
    pub status: StatusCode,
    /// In words.
    pub message: String,
    /// When it may be tried again.
    pub retry_after: Option<Duration>,
}

impl Problem {
    /// Of a status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: format!("AgentGuard: {}", message.into()),
            retry_after: None,
        }
    }

    /// A stable name for programs.
    fn code(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "agentguard_budget",
            StatusCode::FORBIDDEN => "agentguard_denied",
            StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => "agentguard_upstream",
            _ => "agentguard_request",
        }
    }

    /// The body of an answer.
    pub fn body(&self, api: Api) -> Value {
        let status = self.status.as_u16();
        let message = &self.message;
        match api {
            Api::OpenAi => {
                let kind = match status {
                    429 => "insufficient_quota",
                    403 => "permission_error",
                    400..500 => "invalid_request_error",
                    _ => "server_error",
                };
                json!({"error": {"message": message, "type": kind, "param": null, "code": self.code()}})
            }
            Api::Anthropic => {
                let kind = match status {
                    429 => "rate_limit_error",
                    403 => "permission_error",
                    404 => "not_found_error",
                    413 => "request_too_large",
                    400..500 => "invalid_request_error",
                    _ => "api_error",
                };
                json!({"type": "error", "error": {"type": kind, "message": message}})
            }
            Api::Gemini => {
                let kind = match status {
                    429 => "RESOURCE_EXHAUSTED",
                    403 => "PERMISSION_DENIED",
                    404 => "NOT_FOUND",
                    400..500 => "INVALID_ARGUMENT",
                    504 => "DEADLINE_EXCEEDED",
                    _ => "UNAVAILABLE",
                };
                json!({"error": {"code": status, "message": message, "status": kind}})
            }
        }
    }

    /// The last event of a stream that cannot go on. It begins with an empty line, which ends an event that was
    /// cut off.
    pub fn event(&self, api: Api, endpoint: Endpoint) -> String {
        let body = self.body(api);
        match (api, endpoint) {
            (Api::Anthropic, _) => format!("\n\nevent: error\ndata: {body}\n\n"),
            (Api::OpenAi, Endpoint::Responses) => {
                let body = json!({"type": "error", "code": self.code(), "message": self.message, "param": null, "sequence_number": 0});
                format!("\n\nevent: error\ndata: {body}\n\n")
            }
            _ => format!("\n\ndata: {body}\n\n"),
        }
    }
}
