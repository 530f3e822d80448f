//! What a client is told about a question, what is opened for it, and what is recorded.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use agentguard_common::verdict::{Reason, Verdict};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::svcb::{SVCB, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{A, AAAA, HTTPS, PTR};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::cache::Found;
use super::core::{Client, Core};
use super::gate::{AddressVerdict, Judged, Opening, Refusal, Resolution};
use super::kind::{Kind, kind_name};
use super::name::{plain, reverse, shown};
use super::question::{Echo, Question, Wrong};
use super::reply::{Reply, extended};

/// How much longer than the TTL of the answer an address stays open, so that who asked has the time to connect.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// Addresses of one answer that are given and opened.
const ADDRESSES: usize = 32;
/// Labels that a list of search domains may have added to a permitted name.
const SEARCHED: usize = 8;
/// The cause of records about addresses that may not be given.
const ADDRESS: &str = "address-denied";
/// TTL of what we answer ourselves.
const LOCAL_TTL: u32 = 60;

/// One question on its last step.
pub(super) struct Conclusion<'a> {
    pub(super) core: &'a Core,
    pub(super) client: &'a Client,
    pub(super) echo: &'a Echo,
    pub(super) question: &'a Question,
}

impl Core {
    /// What could not even be judged.
    pub(super) fn refuse_unread(
        &self,
        client: &Client,
        echo: &Echo,
        wrong: Wrong,
    ) -> Option<Vec<u8>> {
        let query = echo.query.as_ref();
        let name = query.map_or_else(String::new, |query| shown(query.name()));
        let kind = query.map(|query| kind_name(query.query_type()));
        let resolution = Resolution {
            name: &name,
            kind: kind.as_deref().unwrap_or_default(),
            verdict: Verdict::Deny,
            rule: None,
            reason: Some(wrong.reason.into()),
            rule_at: None,
            cause: wrong.cause,
            answers: Vec::new(),
            code: code_name(wrong.code),
            generation: 0,
            transport: echo.transport.name(),
        };
        self.gate.record(client.asker, &resolution);
        Reply::error(wrong.code, extended::PROHIBITED, wrong.reason).bytes(echo)
    }
}

impl Conclusion<'_> {
    /// What is answered without policy and without anybody else: this host's own name (RFC 6761), and names of
    /// addresses that the agent was given.
    pub(super) fn local(&self) -> Option<Reply> {
        let text = self.question.text.as_str();
        if text == "localhost" || text.ends_with(".localhost") {
            let data = match self.question.kind {
                RecordType::A => Some(RData::A(A(Ipv4Addr::LOCALHOST))),
                RecordType::AAAA => Some(RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))),
                _ => None,
            };
            return Some(self.of_our_own("localhost", data));
        }
        if Kind::of(self.question.kind) != Kind::Reverse {
            return None;
        }
        let (name, _) = self.client.open.name(reverse(text)?, Instant::now())?;
        let name = Name::from_ascii(format!("{name}.")).ok()?;
        Some(self.of_our_own("open-address", Some(RData::PTR(PTR(name)))))
    }

    fn of_our_own(&self, cause: &'static str, data: Option<RData>) -> Reply {
        let answers: Vec<Record> = data
            .into_iter()
            .map(|data| Record::from_rdata(self.asked_name(), LOCAL_TTL, data))
            .collect();
        let shown = answers.iter().map(|record| record.data.to_string());
        self.core.gate.record(
            self.client.asker,
            &Resolution {
                cause,
                answers: shown.collect(),
                ..self.resolution(Verdict::Allow, ResponseCode::NoError)
            },
        );
        Reply::with(ResponseCode::NoError, answers)
    }

    /// A name that the policy does not permit. Refused at once, and the name stays on this host.
    ///
    /// With one difference: clients try lists of search domains, and stop trying at a refusal. A name that is a
    /// permitted one with more behind it is said not to exist, so that they go on to the permitted one.
    pub(super) fn denied(&self, judged: &Judged) -> Reply {
        let code = if judged.rule.is_none() && self.begins_with_permitted() {
            ResponseCode::NXDomain
        } else {
            ResponseCode::Refused
        };
        let reason = judged
            .reason
            .as_deref()
            .unwrap_or("the policy does not permit this name");
        self.record_judged(judged, Verdict::Deny, code, cause_of(judged), Vec::new());
        Reply::error(code, extended::BLOCKED, reason)
    }

    fn begins_with_permitted(&self) -> bool {
        let mut rest = self.question.text.as_str();
        for _ in 0..SEARCHED {
            match rest.rsplit_once('.') {
                Some((before, _)) => rest = before,
                None => return false,
            }
            if self.core.gate.judge(self.client.asker, rest).verdict == Verdict::Allow {
                return true;
            }
        }
        false
    }

    /// A type that is not answered for any name.
    pub(super) fn type_refused(&self, judged: &Judged) -> Reply {
        let reason = "records of this type are not answered";
        self.failed(
            judged,
            ResponseCode::Refused,
            (extended::PROHIBITED, "type-refused"),
            reason,
        )
    }

    /// The agent has as many questions under way as it may.
    pub(super) fn busy(&self, judged: &Judged) -> Reply {
        let reason = "too many questions of this agent wait for an answer";
        self.failed(
            judged,
            ResponseCode::ServFail,
            (extended::OTHER, "busy"),
            reason,
        )
    }

    /// A permitted name that there is no answer for.
    pub(super) fn failed(
        &self,
        judged: &Judged,
        code: ResponseCode,
        (extended, cause): (u16, &'static str),
        reason: &str,
    ) -> Reply {
        // Nobody forbade it, and it did not work: what the policy said stands in the record.
        let verdict = match cause {
            "upstream-failed" => judged.verdict,
            _ => Verdict::Deny,
        };
        let resolution = Resolution {
            reason: Some(reason.into()),
            cause,
            generation: judged.generation,
            ..self.resolution(verdict, code)
        };
        self.core.gate.record(self.client.asker, &resolution);
        Reply::error(code, extended, reason)
    }

    /// A permitted name and what it resolves to.
    pub(super) fn found(&self, judged: &Judged, found: &Found) -> Reply {
        if let Some((alias, denial)) = self.denied_alias(found) {
            let refusal = Refusal {
                rule: denial.rule.clone(),
                reason: denial.reason.clone().unwrap_or_else(|| {
                    "the name leads to another one that the policy denies".into()
                }),
            };
            return self.withheld(judged, &refusal, "alias-denied", vec![alias]);
        }
        let left = found.until.saturating_duration_since(Instant::now());
        let ttl = u32::try_from(left.as_secs()).unwrap_or(u32::MAX).max(1);
        let with_ttl = |record: &Record| {
            let mut record = record.clone();
            record.ttl = ttl;
            record
        };
        let mut answers: Vec<Record> = found.chain.iter().map(with_ttl).collect();
        if let Some(first) = answers.first_mut() {
            first.name = self.asked_name();
        }
        let mut given: Vec<String> = found.chain.iter().filter_map(alias_of).collect();
        match Kind::of(self.question.kind) {
            Kind::Address => {
                let addresses = match self.addresses(judged, found, left) {
                    Ok(addresses) => addresses,
                    Err(reply) => return *reply,
                };
                given.extend(
                    addresses
                        .iter()
                        .filter_map(|it| it.data.ip_addr())
                        .map(|it| it.to_string()),
                );
                answers.extend(addresses.into_iter().map(with_ttl));
            }
            Kind::Service => {
                let kept = found
                    .records
                    .iter()
                    .filter_map(|record| self.service(record));
                answers.extend(kept.map(|record| with_ttl(&record)));
            }
            Kind::Data | Kind::Reverse => answers.extend(found.records.iter().map(with_ttl)),
            Kind::Refused => {}
        }
        if found.chain.is_empty() {
            for record in &mut answers {
                record.name = self.asked_name();
            }
        }
        let code = if found.exists {
            ResponseCode::NoError
        } else {
            ResponseCode::NXDomain
        };
        self.record_judged(judged, judged.verdict, code, cause_of(judged), given);
        let mut reply = Reply::with(code, answers);
        if found.records.is_empty() {
            reply
                .authorities
                .extend(found.authority.iter().map(with_ttl));
        }
        reply
    }

    /// The first alias that a rule denies. One that merely no rule permits is followed.
    fn denied_alias(&self, found: &Found) -> Option<(String, Judged)> {
        found.chain.iter().find_map(|link| {
            let RData::CNAME(target) = &link.data else {
                return None;
            };
            let text = plain(&target.0)?;
            let judged = self.core.gate.judge(self.client.asker, &text);
            (!judged.passes() && judged.rule.is_some()).then_some((text, judged))
        })
    }

    /// The addresses that may be given, each open by now.
    fn addresses<'f>(
        &self,
        judged: &Judged,
        found: &'f Found,
        left: Duration,
    ) -> Result<Vec<&'f Record>, Box<Reply>> {
        let gate = &self.core.gate;
        let (asker, name) = (self.client.asker, self.question.text.as_str());
        let (mut given, mut withheld, mut shadowed) = (Vec::new(), Vec::new(), Vec::new());
        let (mut first, mut would): (Option<Refusal>, Option<Refusal>) = (None, None);
        for record in &found.records {
            let Some(address) = record.data.ip_addr().map(|it| it.to_canonical()) else {
                continue;
            };
            match gate.address(asker, name, judged, address) {
                AddressVerdict::Given => given.push((address, record)),
                AddressVerdict::WouldWithhold(refusal) => {
                    given.push((address, record));
                    shadowed.push(address.to_string());
                    would.get_or_insert(refusal);
                }
                AddressVerdict::Withheld(refusal) => {
                    withheld.push(address.to_string());
                    first.get_or_insert(refusal);
                }
            }
        }
        if let Some(refusal) = first {
            if given.is_empty() {
                return Err(Box::new(self.withheld(judged, &refusal, ADDRESS, withheld)));
            }
            let code = ResponseCode::NoError;
            self.record_withheld(judged, &refusal, (Verdict::Deny, ADDRESS), withheld, code);
        }
        if let Some(refusal) = would {
            let code = ResponseCode::NoError;
            self.record_withheld(
                judged,
                &refusal,
                (Verdict::WouldDeny, ADDRESS),
                shadowed,
                code,
            );
        }
        given.truncate(ADDRESSES);
        let lifetime = left + GRACE;
        for (address, _) in &given {
            let opening = Opening {
                name,
                address: *address,
                grants: &judged.grants,
                lifetime,
                generation: judged.generation,
            };
            if let Err(error) = gate.open(asker, &opening) {
                let reason = format!("the address could not be opened: {error}");
                tracing::warn!("{name}: {reason}");
                let kind = (extended::OTHER, "opening-failed");
                return Err(Box::new(self.failed(
                    judged,
                    ResponseCode::ServFail,
                    kind,
                    &reason,
                )));
            }
            self.client
                .open
                .add(*address, name, Instant::now(), lifetime);
        }
        Ok(given.into_iter().map(|(_, record)| record).collect())
    }

    /// A record about a service, without hints of addresses; none where it leads to a name that is not permitted.
    fn service(&self, record: &Record) -> Option<Record> {
        let (RData::HTTPS(HTTPS(service)) | RData::SVCB(service)) = &record.data else {
            return None;
        };
        if !service.target_name.is_root() {
            let target = plain(&service.target_name)?;
            let same = target == self.question.text;
            if !same && !self.core.gate.judge(self.client.asker, &target).passes() {
                return None;
            }
        }
        let hint = |key: &SvcParamKey| matches!(key, SvcParamKey::Ipv4Hint | SvcParamKey::Ipv6Hint);
        // A record that insists on its hints is none without them.
        let params = service.svc_params.iter();
        let kept: Vec<_> = params.filter(|(key, _)| !hint(key)).cloned().collect();
        let insists = service.svc_params.iter().any(|(key, value)| {
            *key == SvcParamKey::Mandatory
                && match value {
                    SvcParamValue::Mandatory(keys) => keys.0.iter().any(hint),
                    _ => true,
                }
        });
        if insists {
            return None;
        }
        let service = SVCB::new(service.svc_priority, service.target_name.clone(), kept);
        let mut record = record.clone();
        record.data = match record.data {
            RData::HTTPS(_) => RData::HTTPS(HTTPS(service)),
            _ => RData::SVCB(service),
        };
        Some(record)
    }

    fn withheld(
        &self,
        judged: &Judged,
        refusal: &Refusal,
        cause: &'static str,
        answers: Vec<String>,
    ) -> Reply {
        let code = ResponseCode::Refused;
        self.record_withheld(judged, refusal, (Verdict::Deny, cause), answers, code);
        Reply::error(code, extended::BLOCKED, &*refusal.reason)
    }

    fn record_withheld(
        &self,
        judged: &Judged,
        refusal: &Refusal,
        (verdict, cause): (Verdict, &'static str),
        answers: Vec<String>,
        code: ResponseCode,
    ) {
        let resolution = Resolution {
            rule: refusal.rule.clone(),
            reason: Some(refusal.reason.clone()),
            cause,
            answers,
            generation: judged.generation,
            ..self.resolution(verdict, code)
        };
        self.core.gate.record(self.client.asker, &resolution);
    }

    fn record_judged(
        &self,
        judged: &Judged,
        verdict: Verdict,
        code: ResponseCode,
        cause: &'static str,
        answers: Vec<String>,
    ) {
        let resolution = Resolution {
            rule: judged.rule.clone(),
            reason: judged.reason.clone(),
            rule_at: judged.rule_at.clone(),
            cause,
            answers,
            generation: judged.generation,
            ..self.resolution(verdict, code)
        };
        self.core.gate.record(self.client.asker, &resolution);
    }

    fn resolution(&self, verdict: Verdict, code: ResponseCode) -> Resolution<'_> {
        Resolution {
            name: &self.question.text,
            kind: &self.question.kind_name,
            verdict,
            rule: None,
            reason: None,
            rule_at: None,
            cause: Reason::None.name(),
            answers: Vec::new(),
            code: code_name(code),
            generation: 0,
            transport: self.echo.transport.name(),
        }
    }

    /// In the case in which the client wrote it: some compare.
    fn asked_name(&self) -> Name {
        let query = self.echo.query.as_ref();
        query.map_or_else(|| self.question.name.clone(), |query| query.name().clone())
    }
}

fn cause_of(judged: &Judged) -> &'static str {
    match judged.rule {
        Some(_) => Reason::Rule.name(),
        None => Reason::Default.name(),
    }
}

fn alias_of(link: &Record) -> Option<String> {
    match &link.data {
        RData::CNAME(target) => Some(shown(&target.0)),
        _ => None,
    }
}

/// A code as `dig` writes it.
fn code_name(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::BADVERS => "BADVERS",
        _ => "OTHER",
    }
}
