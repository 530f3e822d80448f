//! From an outcome to the bytes of a reply.
//!
//! Signatures (DNSSEC) end here: we change answers (addresses are left out, hints removed), so what we send could
//! not be validated. `AD` is never set, `DO` is neither passed on nor echoed, and signatures are not given.

use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::opt::EdnsOption;

use super::question::{Echo, Transport};

/// What we say we take, and the most that a reply by UDP has: it fits every loopback.
const PAYLOAD: u16 = 4096;
/// What a client without EDNS takes.
const PLAIN: u16 = 512;
/// Number of the option with an extended error (RFC 8914).
const EXTENDED_ERROR: u16 = 15;
/// Bytes of the text in an extended error.
const TEXT: usize = 200;

/// Codes of extended errors.
pub(super) mod extended {
    /// Not a permitted name.
    pub const BLOCKED: u16 = 15;
    /// Not a permitted question.
    pub const PROHIBITED: u16 = 18;
    /// No resolver that we may ask gave an answer.
    pub const NO_REACHABLE_AUTHORITY: u16 = 22;
    /// Something of ours failed.
    pub const OTHER: u16 = 0;
}

/// What a client is told.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    /// Code and text of an extended error.
    pub(super) error: Option<(u16, String)>,
}

impl Reply {
    /// An answer.
    pub(super) fn with(code: ResponseCode, answers: Vec<Record>) -> Self {
        Self {
            code,
            answers,
            authorities: Vec::new(),
            error: None,
        }
    }

    /// An error without an answer.
    pub(super) fn error(code: ResponseCode, extended: u16, text: impl Into<String>) -> Self {
        Self {
            code,
            answers: Vec::new(),
            authorities: Vec::new(),
            error: Some((extended, text.into())),
        }
    }

    /// The bytes; nothing where even an empty reply cannot be written.
    pub(super) fn bytes(&self, echo: &Echo) -> Option<Vec<u8>> {
        let mut message = Message::response(echo.id, echo.op_code);
        message.metadata.recursion_desired = echo.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = echo.checking_disabled;
        message.metadata.response_code = self.code;
        message.queries.extend(echo.query.clone());
        if let Some(asked) = &echo.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD).set_version(0);
            if let Some((code, text)) = &self.error {
                let mut data = code.to_be_bytes().to_vec();
                data.extend_from_slice(cut(text, TEXT).as_bytes());
                edns.options_mut()
                    .insert(EdnsOption::Unknown(EXTENDED_ERROR, data));
            }
            message.set_edns(edns);
            let limit = asked.max_payload().clamp(PLAIN, PAYLOAD);
            return self.fill(message, echo, limit);
        }
        if self.code.high() != 0 {
            message.metadata.response_code = ResponseCode::ServFail;
        }
        self.fill(message, echo, PLAIN)
    }

    fn fill(&self, mut message: Message, echo: &Echo, limit: u16) -> Option<Vec<u8>> {
        if echo.transport == Transport::Udp && self.is_ignored_by(echo) {
            message.metadata.response_code = ResponseCode::NoError;
            return message.truncate().to_vec().ok();
        }
        message.answers.clone_from(&self.answers);
        message.authorities.clone_from(&self.authorities);
        let limit = match echo.transport {
            Transport::Udp => usize::from(limit),
            Transport::Tcp => usize::from(u16::MAX),
        };
        match message.to_vec() {
            Ok(bytes) if bytes.len() <= limit => Some(bytes),
            _ => message.truncate().to_vec().ok(),
        }
    }

    /// The resolver of musl ignores a refusal that comes by UDP and waits for its time-out, and that of the GNU C
    /// library asks again; by TCP both take it. Their queries look alike: neither has EDNS. So who asks without is told
    /// to come by TCP, and refused there, for one more round trip on loopback.
    fn is_ignored_by(&self, echo: &Echo) -> bool {
        self.code == ResponseCode::Refused && echo.edns.is_none()
    }
}

/// The beginning of a text, of at most so many bytes.
fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
