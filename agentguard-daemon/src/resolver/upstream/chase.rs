//! From a name along its aliases to records. Only what hangs on the name that was asked for is taken out of an
//! answer: records of other names have no say, wherever they stand.

use std::fmt;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::{PATIENCE, Upstreams};
use crate::resolver::cache::{Found, KEPT, KEPT_NEGATIVE};
use crate::resolver::name::same;

/// Aliases that a name may have on its way.
const LINKS: usize = 12;
/// Records that an answer may have.
const RECORDS: usize = 64;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::resolver) enum Failure {
    /// Nobody is there to be asked.
    NoServers,
    /// Nobody answered in time.
    Silent,
    /// Somebody said that it cannot.
    Told(ResponseCode),
    /// The aliases lead in a circle, or on and on.
    Loop,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoServers => f.write_str(
                "there is no resolver to ask: name one in /etc/resolv.conf or in the daemon's configuration",
            ),
            Self::Silent => f.write_str("no resolver answered in time"),
            Self::Told(code) => write!(f, "the resolvers said: {code}"),
            Self::Loop => f.write_str("the aliases of the name lead nowhere"),
        }
    }
}

impl Upstreams {
    /// What a name and type resolve to, asking as often as its aliases need.
    pub(in crate::resolver) async fn find(
        &self,
        name: &Name,
        kind: RecordType,
    ) -> Result<Found, Failure> {
        let deadline = Instant::now() + PATIENCE;
        let mut found = Found {
            exists: true,
            chain: Vec::new(),
            records: Vec::new(),
            authority: None,
            until: deadline,
        };
        let mut at = name.clone();
        loop {
            let answer = self.ask(&at, kind, deadline).await?;
            let links = found.chain.len();
            let end = follow(&answer, at, kind, &mut found)?;
            if !found.records.is_empty() {
                break;
            }
            // What ends in an alias is asked on, unless the server says that there is nothing.
            let is_whole = found.chain.len() == links || authority(&answer).is_some();
            if is_whole || answer.metadata.response_code == ResponseCode::NXDomain {
                found.exists = answer.metadata.response_code != ResponseCode::NXDomain;
                found.authority = authority(&answer).cloned();
                break;
            }
            at = end;
        }
        found.until = Instant::now() + lifetime(&found);
        Ok(found)
    }
}

/// Takes the aliases and records of a name out of an answer; gives the name at the end of the chain.
fn follow(
    answer: &Message,
    name: Name,
    kind: RecordType,
    found: &mut Found,
) -> Result<Name, Failure> {
    let mut at = name;
    loop {
        let of_name =
            |record: &&Record| record.dns_class == DNSClass::IN && same(&record.name, &at);
        let mine = || answer.answers.iter().filter(of_name);
        let records = mine().filter(|record| record.record_type() == kind);
        found.records.extend(records.take(RECORDS).cloned());
        if !found.records.is_empty() || kind == RecordType::CNAME {
            return Ok(at);
        }
        let alias = mine().find_map(|record| match &record.data {
            RData::CNAME(target) => Some((record.clone(), target.0.clone())),
            _ => None,
        });
        let Some((record, target)) = alias else {
            return Ok(at);
        };
        let seen = same(&target, &at) || found.chain.iter().any(|link| same(&link.name, &target));
        if seen || found.chain.len() >= LINKS {
            return Err(Failure::Loop);
        }
        found.chain.push(record);
        at = target;
    }
}

/// The record that says how long "nothing" holds.
fn authority(answer: &Message) -> Option<&Record> {
    let mut authorities = answer.authorities.iter();
    authorities.find(|record| record.record_type() == RecordType::SOA)
}

/// How long an answer may be used: its shortest TTL, within bounds.
fn lifetime(found: &Found) -> Duration {
    let ttl = |records: &[Record]| records.iter().map(|record| record.ttl).min();
    let chain = ttl(&found.chain).unwrap_or(u32::MAX);
    if let Some(records) = ttl(&found.records) {
        return seconds(chain.min(records)).clamp(KEPT.0, KEPT.1);
    }
    let negative = found
        .authority
        .as_ref()
        .map_or(0, |record| match &record.data {
            RData::SOA(soa) => record.ttl.min(soa.minimum),
            _ => 0,
        });
    seconds(chain.min(negative)).clamp(KEPT_NEGATIVE.0, KEPT_NEGATIVE.1)
}

/// A TTL with its highest bit set is none (RFC 2181).
fn seconds(ttl: u32) -> Duration {
    Duration::from_secs(if ttl > i32::MAX as u32 { 0 } else { ttl.into() })
}
