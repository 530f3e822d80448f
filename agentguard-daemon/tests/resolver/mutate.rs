//! Packets that are nearly right.

use std::net::Ipv4Addr;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::svcb::{IpHint, SVCB, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{A, CNAME, HTTPS, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::client::{query, with_edns};
use super::upstream::{empty, name};

pub const TYPES: [RecordType; 7] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::HTTPS,
    RecordType::TXT,
    RecordType::SRV,
    RecordType::PTR,
    RecordType::CNAME,
];

/// Numbers that are the same for the same seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % sides.max(1)
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len())]
    }

    pub fn pick_packet<'a>(&mut self, of: &'a [Vec<u8>]) -> &'a [u8] {
        &of[self.roll(of.len())]
    }
}

/// Queries that are right, and some bytes that are nothing.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = TYPES
        .iter()
        .flat_map(|kind| {
            let plain = query(name("api.example.com"), *kind);
            let with = with_edns(query(name("evil.example.net"), *kind));
            [plain, with].map(|it| it.to_vec().unwrap())
        })
        .collect();
    seeds.push(query(Name::root(), RecordType::NS).to_vec().unwrap());
    seeds.push(vec![0; 12]);
    seeds.push(vec![0xff; 300]);
    // A name that points at itself.
    seeds.push([&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1][..]].concat());
    seeds
}

/// An answer with something of everything in it.
pub fn long_answer(query: &Message, owner: &Name) -> Message {
    let mut reply = empty(query, ResponseCode::NoError);
    let hints = vec![
        (
            SvcParamKey::Mandatory,
            SvcParamValue::Mandatory(hickory_proto::rr::rdata::svcb::Mandatory(vec![
                SvcParamKey::Port,
            ])),
        ),
        (SvcParamKey::Port, SvcParamValue::Port(443)),
        (
            SvcParamKey::Ipv4Hint,
            SvcParamValue::Ipv4Hint(IpHint(vec![A(Ipv4Addr::LOCALHOST)])),
        ),
    ];
    for data in [
        RData::CNAME(CNAME(name("edge.test"))),
        RData::TXT(TXT::new(vec!["text".to_owned()])),
        RData::SRV(SRV::new(1, 1, 443, name("edge.test"))),
        RData::HTTPS(HTTPS(SVCB::new(1, Name::root(), hints))),
    ] {
        reply
            .answers
            .push(Record::from_rdata(owner.clone(), 60, data));
    }
    for last in 1..4 {
        let data = RData::A(A::new(93, 184, 216, last));
        reply
            .answers
            .push(Record::from_rdata(name("edge.test"), 60, data));
    }
    reply
}

/// Some bytes changed, cut, doubled or put in.
pub fn mutate(bytes: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=dice.roll(6) {
        let at = dice.roll(bytes.len());
        match dice.roll(7) {
            0 if !bytes.is_empty() => bytes[at] = dice.roll(256) as u8,
            1 if !bytes.is_empty() => bytes[at] ^= 1 << dice.roll(8),
            2 => bytes.truncate(at),
            3 => {
                let part = bytes[at..].to_vec();
                bytes.extend(part);
            }
            4 => bytes.insert(at, dice.pick(&[0, 1, 0x3f, 0x40, 0xc0, 0xff])),
            5 if bytes.len() > 12 => bytes[4 + dice.roll(8)] = dice.pick(&[0, 1, 2, 0xff]),
            _ => bytes.extend(
                (0..dice.roll(40))
                    .map(|_| dice.roll(256) as u8)
                    .collect::<Vec<_>>(),
            ),
        }
        bytes.truncate(4000);
    }
    bytes
}
