//! What is done for each type of record. A type that is not listed is refused: its data could hold addresses that
//! nobody opens, or be nothing but a tunnel.

use std::borrow::Cow;

use hickory_proto::rr::RecordType;

/// What an answer of a type may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Addresses: judged one by one and opened.
    Address,
    /// `HTTPS` and `SVCB`: hints of addresses are taken out, other targets must be permitted names.
    Service,
    /// Addresses back to names: answered from what is open for the agent, and never asked upstream.
    Reverse,
    /// Data without addresses: asked for permitted names, and given as it is.
    Data,
    /// Not answered for any name.
    Refused,
}

impl Kind {
    pub(super) fn of(kind: RecordType) -> Self {
        match kind {
            RecordType::A | RecordType::AAAA => Self::Address,
            RecordType::HTTPS | RecordType::SVCB => Self::Service,
            RecordType::PTR => Self::Reverse,
            RecordType::CNAME
            | RecordType::MX
            | RecordType::NS
            | RecordType::SOA
            | RecordType::SRV
            | RecordType::TXT
            | RecordType::CAA
            | RecordType::NAPTR
            | RecordType::SSHFP
            | RecordType::TLSA
            | RecordType::SMIMEA
            | RecordType::OPENPGPKEY
            | RecordType::CERT => Self::Data,
            // ANY and transfers, signatures (see the module `reply`), and what we do not know.
            _ => Self::Refused,
        }
    }
}

/// The name of a type for records: `A`, `TXT`, …, or `TYPE` and the number.
pub(super) fn kind_name(kind: RecordType) -> Cow<'static, str> {
    match kind {
        RecordType::Unknown(number) => format!("TYPE{number}").into(),
        known => <&'static str>::from(known).into(),
    }
}
