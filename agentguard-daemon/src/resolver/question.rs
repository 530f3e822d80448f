//! From the bytes of a query to a question, or to what is answered instead. It must never panic on bytes.

use std::borrow::Cow;

use hickory_proto::op::{Edns, Header, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder};

use super::kind::kind_name;
use super::name;

/// Bytes of the fixed part of a message.
const HEADER: usize = 12;

/// How a query came. The length of an answer depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One datagram each.
    Udp,
    /// A connection.
    Tcp,
}

impl Transport {
    /// As records say it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// What a reply repeats of its query.
#[derive(Clone, Debug)]
pub(super) struct Echo {
    pub(super) id: u16,
    pub(super) op_code: OpCode,
    pub(super) recursion_desired: bool,
    pub(super) checking_disabled: bool,
    /// With the case in which the client wrote the name.
    pub(super) query: Option<Query>,
    /// The client's own, if it sent one.
    pub(super) edns: Option<Edns>,
    pub(super) transport: Transport,
}

/// A question that can be judged.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// As policies know it.
    pub(super) text: String,
    /// In lower case.
    pub(super) name: Name,
    pub(super) kind: RecordType,
    /// As records say it.
    pub(super) kind_name: Cow<'static, str>,
}

/// What bytes turned out to be.
#[derive(Debug)]
pub(super) enum Read {
    /// Nothing that is answered: too short for a header, or itself an answer.
    Nothing,
    /// Answered with an error without being judged.
    Wrong(Echo, Wrong),
    /// To be judged.
    Asked(Echo, Question),
}

/// What is wrong with a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) code: ResponseCode,
    /// Stable name of the cause.
    pub(super) cause: &'static str,
    /// In words.
    pub(super) reason: &'static str,
}

pub(super) fn read(bytes: &[u8], transport: Transport) -> Read {
    if bytes.len() < HEADER {
        return Read::Nothing;
    }
    let Ok(header) = Header::read(&mut BinDecoder::new(&bytes[..HEADER])) else {
        return Read::Nothing;
    };
    let header = header.metadata;
    if header.message_type == MessageType::Response {
        return Read::Nothing;
    }
    let mut echo = Echo {
        id: header.id,
        op_code: header.op_code,
        recursion_desired: header.recursion_desired,
        checking_disabled: header.checking_disabled,
        query: None,
        edns: None,
        transport,
    };
    let wrong = |echo, code, cause, reason| {
        Read::Wrong(
            echo,
            Wrong {
                code,
                cause,
                reason,
            },
        )
    };
    if header.op_code != OpCode::Query {
        let reason = "only questions are answered, not updates, notices or other operations";
        return wrong(echo, ResponseCode::NotImp, "query-refused", reason);
    }
    let Ok(message) = Message::from_vec(bytes) else {
        let reason = "the query is malformed";
        return wrong(echo, ResponseCode::FormErr, "query-malformed", reason);
    };
    echo.edns = message.edns;
    let mut queries = message.queries.into_iter();
    let (Some(query), None) = (queries.next(), queries.next()) else {
        let reason = "a query has exactly one question";
        return wrong(echo, ResponseCode::FormErr, "query-malformed", reason);
    };
    let (class, kind) = (query.query_class(), query.query_type());
    let (text, lower) = (name::plain(query.name()), query.name().to_lowercase());
    echo.query = Some(query);
    if echo.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        let reason = "only version 0 of EDNS is known";
        return wrong(echo, ResponseCode::BADVERS, "query-malformed", reason);
    }
    if class != DNSClass::IN {
        let reason = "only the class of the Internet is answered";
        return wrong(echo, ResponseCode::Refused, "query-refused", reason);
    }
    let Some(text) = text else {
        let reason = "the name holds bytes that names of hosts do not have";
        return wrong(echo, ResponseCode::Refused, "name-malformed", reason);
    };
    let question = Question {
        text,
        name: lower,
        kind,
        kind_name: kind_name(kind),
    };
    Read::Asked(echo, question)
}
