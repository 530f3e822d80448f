//! A glance at a line: what filters and indexes ask of it, borrowed and without the rest.
//!
//! Reading a whole [`Record`] takes memory for each of its texts, and most lines are read to be left alone. A
//! glance must never see in a record's line what the record does not have. It may see something in a line that is
//! no record: whoever shows a line reads all of it.

use memchr::{memchr, memchr2};

use super::record::Record;

/// See the module. Texts are as they are written: escaped for names, plain for JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Glance<'a> {
    /// Number of the record.
    pub seq: u64,
    /// When it happened.
    pub time: &'a str,
    /// Name of the agent.
    pub agent: Option<&'a str>,
    /// Its session.
    pub session: Option<u32>,
    /// The process.
    pub pid: Option<u32>,
    /// The program that acted.
    pub exe: Option<&'a str>,
    /// What was done or tried.
    pub op: &'a str,
    /// What it was done to.
    pub target: Option<&'a str>,
    /// The new path.
    pub to: Option<&'a str>,
    /// The verdict.
    pub verdict: Option<&'a str>,
    /// Id of the rule.
    pub rule: Option<&'a str>,
    /// fork: the new process.
    pub child: Option<u32>,
    /// exec: the number of the new program.
    pub new_exec_id: Option<u64>,
}

impl<'a> Glance<'a> {
    /// At a line without its newline. `None` if the line is not plain enough: an escape of JSON in a text that is
    /// asked for, or a form that the writer does not use. It may be a record all the same.
    pub fn at(line: &'a [u8]) -> Option<Self> {
        let mut seen = Self::default();
        let mut rest = std::str::from_utf8(line).ok()?.strip_prefix('{')?;
        loop {
            let (key, after) = plain(rest.strip_prefix('"')?)?;
            rest = seen.field(key, after.strip_prefix(':')?)?;
            match rest.as_bytes() {
                [b'}'] => break,
                [b',', ..] => rest = &rest[1..],
                _ => return None,
            }
        }
        (seen.seq > 0 && !seen.op.is_empty()).then_some(seen)
    }

    /// Takes a field's value, if it is asked for; gives what follows.
    fn field(&mut self, key: &str, value: &'a str) -> Option<&'a str> {
        let text = |place: &mut &'a str| {
            let (text, rest) = plain(value.strip_prefix('"')?)?;
            *place = text;
            Some(rest)
        };
        let optional = |place: &mut Option<&'a str>| {
            let (text, rest) = plain(value.strip_prefix('"')?)?;
            *place = Some(text);
            Some(rest)
        };
        let small = |place: &mut Option<u32>| {
            let (number, rest) = number(value)?;
            *place = Some(u32::try_from(number).ok()?);
            Some(rest)
        };
        // Most fields are not asked for: told by length and first letter, they need not be compared.
        let may_be_asked = matches!(
            (key.len(), key.as_bytes().first()?),
            (2, b'o' | b't')
                | (3, b's' | b'p' | b'e')
                | (4, b't' | b'r')
                | (5, b'a' | b'c')
                | (6, b't')
                | (7, b's' | b'v')
                | (11, b'n')
        );
        if !may_be_asked {
            return skipped(value);
        }
        match key {
            "seq" => {
                let (number, rest) = number(value)?;
                self.seq = number;
                Some(rest)
            }
            "time" => text(&mut self.time),
            "op" => text(&mut self.op),
            "agent" => optional(&mut self.agent),
            "exe" => optional(&mut self.exe),
            "target" => optional(&mut self.target),
            "to" => optional(&mut self.to),
            "verdict" => optional(&mut self.verdict),
            "rule" => optional(&mut self.rule),
            "session" => small(&mut self.session),
            "pid" => small(&mut self.pid),
            "child" => small(&mut self.child),
            "new_exec_id" => {
                let (number, rest) = number(value)?;
                self.new_exec_id = Some(number);
                Some(rest)
            }
            _ => skipped(value),
        }
    }

    /// Whether it records that something was refused, or in shadow mode would have been.
    pub fn is_refused(&self) -> bool {
        self.verdict.is_some_and(is_refusal)
    }
}

/// Whether a verdict is one of those that refuse, or would.
pub fn is_refusal(verdict: &str) -> bool {
    matches!(verdict, "deny" | "ask" | "would-deny")
}

impl<'a> From<&'a Record<'_>> for Glance<'a> {
    fn from(record: &'a Record<'_>) -> Self {
        Self {
            seq: record.seq,
            time: &record.time,
            agent: record.agent.as_deref(),
            session: record.session,
            pid: record.pid,
            exe: record.exe.as_deref(),
            op: &record.op,
            target: record.target.as_deref(),
            to: record.to.as_deref(),
            verdict: record.verdict.as_deref(),
            rule: record.rule.as_deref(),
            child: record.child,
            new_exec_id: record.new_exec_id,
        }
    }
}

/// A text up to its closing quote, if nothing in it is escaped, and what follows.
fn plain(text: &str) -> Option<(&str, &str)> {
    let end = memchr2(b'"', b'\\', text.as_bytes())?;
    (text.as_bytes()[end] == b'"').then(|| (&text[..end], &text[end + 1..]))
}

/// A number as the writer has it: digits only.
fn number(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    let leads = number.len() > 1 && number.starts_with('0');
    (!leads).then(|| number.parse().ok().map(|number| (number, rest)))?
}

/// What follows a value of any kind.
fn skipped(value: &str) -> Option<&str> {
    let bytes = value.as_bytes();
    match bytes.first()? {
        b'"' => Some(&value[1 + end_of_text(&bytes[1..])?..]),
        b'0'..=b'9' => number(value).map(|(_, rest)| rest),
        b'[' | b'{' => {
            let mut depth = 0_u32;
            let mut at = 0;
            loop {
                match bytes.get(at)? {
                    b'[' | b'{' => depth += 1,
                    b']' | b'}' => depth -= 1,
                    b'"' => at += end_of_text(&bytes[at + 1..])?,
                    _ => {}
                }
                at += 1;
                if depth == 0 {
                    return value.get(at..);
                }
            }
        }
        b't' => value.strip_prefix("true"),
        b'f' => value.strip_prefix("false"),
        _ => None,
    }
}

/// Where a text ends that began before, behind its closing quote.
fn end_of_text(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr(b'"', bytes.get(at..)?)?;
        let escapes = bytes[..at].iter().rev().take_while(|it| **it == b'\\');
        at += 1;
        if escapes.count() % 2 == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn some<T: std::fmt::Debug>(
        value: impl Strategy<Value = T>,
    ) -> impl Strategy<Value = Option<T>> {
        proptest::option::of(value)
    }

    proptest! {
        #[test]
        fn a_glance_sees_what_the_record_has(
            (seq, session, child, id) in (1_u64.., some(any::<u32>()), some(any::<u32>()), some(any::<u64>())),
            (agent, exe, target, rule) in (some("[a-z]{1,9}"), some("[ -~]{1,20}"), some(any::<String>()), some("[ -~]{0,9}")),
            (argv, detail, reason) in (some(proptest::collection::vec("[ -~]{0,9}", 0..4)), some(any::<String>()), some("[\"\\\\a]{0,9}")),
            refused: bool,
        ) {
            let record = Record {
                seq,
                time: "2026-11-23T04:05:06.000000000Z".into(),
                agent: agent.map(Into::into),
                session,
                child,
                new_exec_id: id,
                exe: exe.map(Into::into),
                target: target.map(Into::into),
                rule: rule.map(Into::into),
                argv: argv.map(|argv| argv.into_iter().map(Into::into).collect()),
                detail: detail.map(Into::into),
                reason: reason.map(Into::into),
                verdict: refused.then(|| "deny".into()),
                prev: "0".repeat(64).into(),
                ..Record::new("open")
            };
            let line = serde_json::to_vec(&record).unwrap();
            let escaped = |text: &Option<std::borrow::Cow<'_, str>>| {
                text.as_deref().is_some_and(|text| serde_json::to_string(text).unwrap().len() != text.len() + 2)
            };
            match Glance::at(&line) {
                Some(seen) => prop_assert_eq!(seen, Glance::from(&record)),
                None => prop_assert!(escaped(&record.target) || escaped(&record.exe) || escaped(&record.rule)),
            }
        }

        #[test]
        fn any_line_is_seen_or_left(line in "[{}\\[\\]\",:\\\\a-z0-9]{0,80}") {
            let _ = Glance::at(line.as_bytes());
        }

        #[test]
        fn a_damaged_line_never_panics(at in 0_usize..90, byte: u8) {
            let mut line = br#"{"seq":7,"time":"t","argv":["a\"","[",{"x":1}],"op":"exec","usage":{"estimated":true},"prev":"0"}"#.to_vec();
            prop_assert!(Glance::at(&line).is_some());
            line[at] = byte;
            let _ = Glance::at(&line);
        }
    }
}
