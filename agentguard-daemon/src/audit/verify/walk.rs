//! From record to record: the state of a check, and one step of it.
//!
//! After something wrong the walk goes on from what is written there, so that what comes behind is judged by
//! itself. It must never take back a finding.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, Read};

use memchr::memmem;

use super::report::{Finding, Kind, Loss, Report};
use crate::audit::chain::{self, GENESIS, Hash};
use crate::audit::key::PublicKey;
use crate::audit::mark::Mark;
use crate::audit::record::{Record, op};

/// Longest line that can be a record.
const LINE_MAX: u64 = 8 << 20;

/// A mark from outside of the log.
#[derive(Clone, Debug)]
struct Wanted {
    mark: Mark,
    what: &'static str,
    seen: bool,
}

/// One file of the log on the way.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// Its name.
    pub name: &'a str,
    /// The number of its first record, if its name says it: a closed segment.
    pub first: Option<u64>,
}

/// The state of a check. A clone can go another way.
#[derive(Clone, Debug)]
pub struct Walk {
    report: Report,
    keys: Vec<PublicKey>,
    last: u64,
    prev: Option<Hash>,
    log: Option<Hash>,
    wanted: BTreeMap<u64, Vec<Wanted>>,
    /// Digests of packed segments, as the log has them, and as they are.
    recorded: HashMap<String, String>,
    packed: Vec<(String, String)>,
}

impl Walk {
    /// At the beginning of a log. Without keys no signature is checked.
    pub fn new(log: String, keys: &[PublicKey]) -> Self {
        Self {
            report: Report {
                log,
                keys: keys.iter().map(PublicKey::id).collect(),
                ..Report::default()
            },
            keys: keys.to_vec(),
            last: 0,
            prev: None,
            log: None,
            wanted: BTreeMap::new(),
            recorded: HashMap::new(),
            packed: Vec::new(),
        }
    }

    /// What was found so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Something that was found elsewhere.
    pub fn add(&mut self, kind: Kind, segment: Option<&str>, message: String) {
        self.report.add(Finding {
            kind,
            segment: segment.map(str::to_owned),
            line: None,
            byte: None,
            seq: None,
            missing: None,
            message,
        });
    }

    /// The head or an anchor: the log must have this record.
    pub fn expect(&mut self, mark: Mark, what: &'static str) {
        if what == "head" {
            self.report.head = Some(mark.seq);
        } else {
            self.report.anchors += 1;
        }
        if !self.keys.is_empty() && !self.keys.iter().any(|key| mark.is_by(key)) {
            let (known, message) = if self.keys.iter().any(|key| key.id() == mark.key) {
                (Kind::Signature, "its signature does not hold".to_owned())
            } else {
                let message = format!("it is signed by another key, {}", mark.key);
                (Kind::OtherKey, message)
            };
            self.add(
                known,
                None,
                format!("the {what} at record {}: {message}", mark.seq),
            );
            return;
        }
        let seen = false;
        let wanted = self.wanted.entry(mark.seq).or_default();
        wanted.push(Wanted { mark, what, seen });
    }

    /// A packed segment, and the digest that its file has.
    pub fn packed(&mut self, name: &str, digest: String) {
        self.packed.push((name.to_owned(), digest));
    }

    /// Walks through one file. `live` says that the end of its last line may be on its way. Gives what was
    /// read after each piece to `progress`.
    pub fn piece(
        &mut self,
        piece: Piece<'_>,
        text: &mut dyn BufRead,
        live: bool,
        progress: &mut dyn FnMut(u64),
    ) {
        self.report.segments += 1;
        let mut place = Place {
            segment: piece.name,
            line: 0,
            byte: 0,
        };
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut *text).take(LINE_MAX).read_until(b'\n', &mut line);
            if let Err(error) = read {
                self.unreadable(&place, &error);
                return;
            }
            if line.is_empty() {
                break;
            }
            place.line += 1;
            let whole = line.pop_if(|byte| *byte == b'\n').is_some();
            if whole {
                self.line(&line, &place, &piece);
            } else if !live {
                let message = format!("the last line has no end ({} bytes)", line.len());
                self.find(&place, Kind::Torn, None, message);
            }
            place.byte += line.len() as u64 + u64::from(whole);
            progress(line.len() as u64 + 1);
        }
        if place.line == 0 && piece.first.is_some() {
            self.find(
                &place,
                Kind::NotARecord,
                None,
                "the segment is empty".to_owned(),
            );
        }
    }

    fn unreadable(&mut self, place: &Place<'_>, error: &io::Error) {
        let message = format!("it cannot be read from here on: {error}");
        let place = Place {
            line: place.line + 1,
            ..*place
        };
        self.find(&place, Kind::Unreadable, None, message);
    }

    fn find(&mut self, place: &Place<'_>, kind: Kind, seq: Option<u64>, message: String) {
        self.report.add(Finding {
            kind,
            segment: Some(place.segment.to_owned()),
            line: Some(place.line),
            byte: Some(place.byte),
            seq,
            missing: None,
            message,
        });
    }

    fn line(&mut self, line: &[u8], place: &Place<'_>, piece: &Piece<'_>) {
        let parts = chain::split(line).and_then(|(body, hash)| Some((body, hash, number(body)?)));
        let Some((body, hash, seq)) = parts else {
            let message = "the line is no audit record".to_owned();
            self.find(place, Kind::NotARecord, None, message);
            return;
        };
        if place.line == 1 && piece.first.is_some_and(|first| first != seq) {
            let message = format!("the segment begins with record {seq}, and is not named so");
            self.find(place, Kind::OutOfPlace, Some(seq), message);
        }
        let written = prev(body);
        let before = match self.prev {
            Some(prev) => prev,
            None if seq == 1 => GENESIS,
            // The beginning is missing, which the number says below.
            None => written.unwrap_or(GENESIS),
        };
        if chain::verify(line, &before).is_err() {
            let alone = written.is_some_and(|prev| chain::verify(line, &prev).is_ok());
            let (kind, message) = if alone {
                (
                    Kind::OutOfPlace,
                    "the record does not follow the one before it",
                )
            } else {
                (Kind::Changed, "the record was changed")
            };
            self.find(place, kind, Some(seq), message.to_owned());
        } else if written.is_none_or(|written| written != before) {
            let message = "the record names another one before it".to_owned();
            self.find(place, Kind::OutOfPlace, Some(seq), message);
        }
        self.order(seq, place);
        self.report.records += 1;
        self.report.first.get_or_insert(seq);
        self.meaning(line, body, seq, place);
        self.compare(seq, &hash, place);
        if seq == 1 {
            self.log = Some(hash);
        }
        self.prev = Some(hash);
        self.last = seq;
    }

    fn order(&mut self, seq: u64, place: &Place<'_>) {
        let expected = self.last + 1;
        if seq > expected {
            let missing = seq - expected;
            let message = match (self.last, missing) {
                (0, _) => format!("the log begins with record {seq}: {missing} are not here"),
                (_, 1) => format!("record {expected} is missing"),
                _ => format!("records {expected} to {} are missing: {missing}", seq - 1),
            };
            self.report.add(Finding {
                kind: Kind::Gap,
                segment: Some(place.segment.to_owned()),
                line: Some(place.line),
                byte: Some(place.byte),
                seq: Some(seq),
                missing: Some(missing),
                message,
            });
        } else if seq < expected {
            let message = format!("record {seq} comes after record {}", self.last);
            self.find(place, Kind::OutOfPlace, Some(seq), message);
        }
    }

    /// What a record says about the log itself.
    fn meaning(&mut self, line: &[u8], body: &[u8], seq: u64, place: &Place<'_>) {
        const OWN: [&str; 5] = [
            op::CHECKPOINT,
            op::SEGMENT,
            op::GAP,
            op::LOG_REPAIR,
            op::ALARM,
        ];
        let Some(at) = memmem::find(body, b",\"op\":\"") else {
            return;
        };
        let name = &body[at + 7..];
        if !OWN.iter().any(|own| name.starts_with(own.as_bytes())) {
            return;
        }
        let record: Record<'_> = match serde_json::from_slice(line) {
            Ok(record) => record,
            Err(error) => {
                let message = format!("the line is no audit record: {error}");
                self.find(place, Kind::NotARecord, Some(seq), message);
                return;
            }
        };
        let class = record.class.as_deref();
        match (&*record.op, class) {
            (op::CHECKPOINT, _) => self.checkpoint(&record, seq, place),
            (op::SEGMENT, _) => {
                if let (Some(name), Some(digest)) = (record.target, record.digest) {
                    self.recorded.insert(name.into_owned(), digest.into_owned());
                }
            }
            (op::GAP, Some("log-cut")) | (op::ALARM, Some("log-replaced")) => {
                let message = record
                    .detail
                    .unwrap_or(Cow::Borrowed("the log was changed"));
                self.find(place, Kind::Replaced, Some(seq), message.into_owned());
            }
            (op::GAP, _) => self.report.losses.push(Loss {
                seq,
                class: class.unwrap_or("?").to_owned(),
                lost: record.lost.unwrap_or(0),
            }),
            (op::LOG_REPAIR, _) => self.report.repairs.push(seq),
            _ => {}
        }
    }

    fn checkpoint(&mut self, record: &Record<'_>, seq: u64, place: &Place<'_>) {
        if self.keys.is_empty() {
            return;
        }
        let text = |text: &Option<Cow<'_, str>>| text.as_deref().unwrap_or_default().to_owned();
        let mark = Mark {
            log: text(&record.log),
            seq: seq.saturating_sub(1),
            hash: record.prev.clone().into_owned(),
            time: record.time.clone().into_owned(),
            key: text(&record.key),
            signature: text(&record.signature),
        };
        if self.keys.iter().any(|key| mark.is_by(key)) {
            if self.is_ours(&mark) {
                self.report.checkpoints += 1;
                self.report.signed_to = self.report.signed_to.max(seq - 1);
            } else {
                let message = "the checkpoint was made for another log".to_owned();
                self.find(place, Kind::Replaced, Some(seq), message);
            }
        } else if self.keys.iter().any(|key| key.id() == mark.key) {
            let message = "the signature of the checkpoint does not hold".to_owned();
            self.find(place, Kind::Signature, Some(seq), message);
        } else {
            let message = format!("the checkpoint is signed by another key, {}", mark.key);
            self.find(place, Kind::OtherKey, Some(seq), message);
        }
    }

    /// Whether a mark speaks of this log. Where its beginning is not here, the first mark says which it is.
    fn is_ours(&mut self, mark: &Mark) -> bool {
        let Ok(log) = Hash::try_from(mark.log.as_bytes()) else {
            return false;
        };
        *self.log.get_or_insert(log) == log
    }

    /// Compares a record with the marks from outside that speak of it.
    fn compare(&mut self, seq: u64, hash: &Hash, place: &Place<'_>) {
        let Some(mut marks) = self.wanted.remove(&seq) else {
            return;
        };
        for wanted in &mut marks {
            wanted.seen = true;
            if hash[..] == *wanted.mark.hash.as_bytes() {
                self.report.signed_to = self.report.signed_to.max(seq);
            } else {
                let message = format!("the {} has another record {seq}", wanted.what);
                self.find(place, Kind::Replaced, Some(seq), message);
            }
        }
        self.wanted.insert(seq, marks);
    }

    /// The end of the log.
    pub fn finish(mut self, live: bool) -> Report {
        let last = self.last;
        for wanted in std::mem::take(&mut self.wanted).into_values().flatten() {
            let Wanted { mark, what, seen } = wanted;
            if !seen && mark.seq > last {
                self.report.add(Finding {
                    kind: Kind::Replaced,
                    segment: None,
                    line: None,
                    byte: None,
                    seq: Some(mark.seq),
                    missing: Some(mark.seq - last),
                    message: format!(
                        "the log ends at record {last}, the {what} speaks of record {}: {} are missing at the end",
                        mark.seq,
                        mark.seq - last
                    ),
                });
            } else if !seen {
                let message = format!(
                    "record {}, of which the {what} speaks, is not here",
                    mark.seq
                );
                self.add(Kind::Replaced, None, message);
            } else if !self.is_ours(&mark) {
                let message = format!("the {what} at record {} was made for another log", mark.seq);
                self.add(Kind::Replaced, None, message);
            }
        }
        for (name, digest) in std::mem::take(&mut self.packed) {
            match self.recorded.get(&name) {
                Some(recorded) if *recorded == digest => {}
                Some(_) => {
                    let message = "the compressed file is not the one that was recorded".to_owned();
                    self.add(Kind::Repacked, Some(&name), message);
                }
                None if live => {}
                None => {
                    let message = "the log does not speak of the compressed file".to_owned();
                    self.add(Kind::Repacked, Some(&name), message);
                }
            }
        }
        if !self.keys.is_empty() && self.report.head.is_none() && last > 0 {
            let message = "there is no head: whether the end was cut off cannot be seen".to_owned();
            self.add(Kind::Unsigned, None, message);
        }
        self.report.live = live;
        self.report.last = (last > 0).then_some(last);
        self.report.hash = self
            .prev
            .map(|hash| String::from_utf8_lossy(&hash).into_owned());
        self.report.unsigned = last.saturating_sub(self.report.signed_to);
        self.report
    }
}

#[derive(Clone, Copy)]
struct Place<'a> {
    segment: &'a str,
    line: u64,
    byte: u64,
}

/// `seq` of a line.
fn number(body: &[u8]) -> Option<u64> {
    let rest = body.strip_prefix(b"{\"seq\":")?;
    let end = memchr::memchr(b',', rest)?;
    let digits = rest.get(..end).filter(|digits| digits.len() <= 20)?;
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (number > 0).then_some(number)
}

/// `prev` of a line, which is its last field but one.
fn prev(body: &[u8]) -> Option<Hash> {
    const FIELD: &[u8] = b",\"prev\":\"";
    let at = body.len().checked_sub(FIELD.len() + 65)?;
    let hash = body[at..].strip_prefix(FIELD)?.strip_suffix(b"\"")?;
    hash.try_into().ok()
}
