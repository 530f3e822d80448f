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
        let text = std::str::from_utf8(line).ok()?;
        let mut marks = Marks::default();
        let seen = if line.len() <= MARKED && marks.find(line) {
            Self::of(Walk {
                text,
                at: 0,
                quotes: marks.quotes(),
            })
        } else {
            Self::of(Walk {
                text,
                at: 0,
                quotes: Search,
            })
        }?;
        (seen.seq > 0 && !seen.op.is_empty()).then_some(seen)
    }

    fn of(mut walk: Walk<'a, impl Quotes>) -> Option<Self> {
        let mut seen = Self::default();
        walk.expect(b'{')?;
        loop {
            let key = walk.plain()?;
            walk.expect(b':')?;
            seen.field(key, &mut walk)?;
            match walk.next()? {
                b',' => {}
                b'}' => break,
                _ => return None,
            }
        }
        (walk.at == walk.text.len()).then_some(seen)
    }

    /// Takes a field's value, if it is asked for.
    fn field(&mut self, key: &str, walk: &mut Walk<'a, impl Quotes>) -> Option<()> {
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
            return walk.skip();
        }
        let small = |number: u64| u32::try_from(number).ok();
        match key {
            "seq" => self.seq = walk.number()?,
            "time" => self.time = walk.plain()?,
            "op" => self.op = walk.plain()?,
            "agent" => self.agent = Some(walk.plain()?),
            "exe" => self.exe = Some(walk.plain()?),
            "target" => self.target = Some(walk.plain()?),
            "to" => self.to = Some(walk.plain()?),
            "verdict" => self.verdict = Some(walk.plain()?),
            "rule" => self.rule = Some(walk.plain()?),
            "session" => self.session = Some(small(walk.number()?)?),
            "pid" => self.pid = Some(small(walk.number()?)?),
            "child" => self.child = Some(small(walk.number()?)?),
            "new_exec_id" => self.new_exec_id = Some(walk.number()?),
            _ => walk.skip()?,
        }
        Some(())
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

/// Where the quotes of a line are.
trait Quotes {
    /// Where a text ends that begins at `at`, and has no escape: its closing quote.
    fn end_of_plain(&mut self, line: &[u8], at: usize) -> Option<usize>;
    /// The same of any text.
    fn end(&mut self, line: &[u8], at: usize) -> Option<usize>;
}

/// Looked for one by one.
struct Search;

impl Quotes for Search {
    fn end_of_plain(&mut self, line: &[u8], at: usize) -> Option<usize> {
        let end = at + memchr2(b'"', b'\\', line.get(at..)?)?;
        (line[end] == b'"').then_some(end)
    }

    fn end(&mut self, line: &[u8], begin: usize) -> Option<usize> {
        let mut at = begin;
        loop {
            at += memchr(b'"', line.get(at..)?)?;
            let escapes = line[begin..at].iter().rev().take_while(|it| **it == b'\\');
            if escapes.count() % 2 == 0 {
                return Some(at);
            }
            at += 1;
        }
    }
}

/// Bytes of lines whose quotes are found all at once.
const MARKED: usize = 2048;

/// A bit for each quote of a line.
struct Marks([u64; MARKED / 64]);

impl Default for Marks {
    fn default() -> Self {
        Self([0; MARKED / 64])
    }
}

impl Marks {
    /// False if the line has a backslash, so that a quote may be part of a text.
    fn find(&mut self, line: &[u8]) -> bool {
        let mut escapes = 0;
        let (blocks, rest) = line.as_chunks::<64>();
        for (mark, block) in self.0.iter_mut().zip(blocks) {
            *mark = bytes_that_are(block, b'"', b'\\', &mut escapes);
        }
        if !rest.is_empty() {
            let mut last = [0; 64];
            last[..rest.len()].copy_from_slice(rest);
            self.0[blocks.len()] = bytes_that_are(&last, b'"', b'\\', &mut escapes);
        }
        escapes == 0
    }

    fn quotes(&self) -> Marked<'_> {
        Marked {
            bits: self.0[0],
            block: 0,
            marks: &self.0,
        }
    }
}

/// A bit for each byte that is `wanted`; `others` is not zero afterwards if one is `other`.
fn bytes_that_are(block: &[u8; 64], wanted: u8, other: u8, others: &mut u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const LOW: u64 = !(ONES << 7);
    // The highest bit of each byte that is zero, and no other.
    let zeros = |word: u64| !(((word & LOW) + LOW) | word | LOW);
    let mut marks = 0;
    let (words, _) = block.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        *others |= zeros(word ^ (ONES * u64::from(other)));
        let found = zeros(word ^ (ONES * u64::from(wanted))) >> 7;
        // The bits, which are eight apart, side by side.
        marks |= (found.wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * at);
    }
    marks
}

/// Taken one after the other: in a line without escapes each opens or closes a text.
struct Marked<'m> {
    bits: u64,
    block: usize,
    marks: &'m [u64],
}

impl Quotes for Marked<'_> {
    fn end_of_plain(&mut self, line: &[u8], at: usize) -> Option<usize> {
        // What lies before is known: texts are read in their order.
        loop {
            while self.bits == 0 {
                self.block += 1;
                self.bits = *self.marks.get(self.block)?;
            }
            let quote = self.block * 64 + self.bits.trailing_zeros() as usize;
            self.bits &= self.bits - 1;
            if quote >= at {
                return (quote < line.len()).then_some(quote);
            }
        }
    }

    fn end(&mut self, line: &[u8], at: usize) -> Option<usize> {
        self.end_of_plain(line, at)
    }
}

/// A place in a line. It may be in the middle of a character only behind an error.
struct Walk<'a, Q> {
    text: &'a str,
    at: usize,
    quotes: Q,
}

impl<'a, Q: Quotes> Walk<'a, Q> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    /// A text with quotes, if nothing in it is escaped.
    fn plain(&mut self) -> Option<&'a str> {
        self.expect(b'"')?;
        let begin = self.at;
        let end = self.quotes.end_of_plain(self.text.as_bytes(), begin)?;
        self.at = end + 1;
        self.text.get(begin..end)
    }

    /// A number as the writer has it: digits only.
    fn number(&mut self) -> Option<u64> {
        let begin = self.at;
        let mut number = 0_u64;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            number = number
                .checked_mul(10)?
                .checked_add(u64::from(digit - b'0'))?;
            self.at += 1;
        }
        let digits = self.at - begin;
        let leads = digits > 1 && self.text.as_bytes()[begin] == b'0';
        (digits > 0 && !leads).then_some(number)
    }

    /// Goes on behind a value of any kind.
    fn skip(&mut self) -> Option<()> {
        match self.peek()? {
            b'"' => self.skip_text(),
            b'0'..=b'9' => self.number().map(|_| ()),
            b'[' | b'{' => {
                let mut depth = 0_u32;
                loop {
                    match self.peek()? {
                        b'"' => {
                            self.skip_text()?;
                            continue;
                        }
                        b'[' | b'{' => depth += 1,
                        b']' | b'}' => depth -= 1,
                        _ => {}
                    }
                    self.at += 1;
                    if depth == 0 {
                        return Some(());
                    }
                }
            }
            b't' => self.skip_word(b"true"),
            b'f' => self.skip_word(b"false"),
            _ => None,
        }
    }

    fn skip_text(&mut self) -> Option<()> {
        self.at += 1;
        self.at = self.quotes.end(self.text.as_bytes(), self.at)? + 1;
        Some(())
    }

    fn skip_word(&mut self, word: &[u8]) -> Option<()> {
        let rest = self.text.as_bytes().get(self.at..)?;
        self.at += word.len();
        rest.starts_with(word).then_some(())
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
        fn both_ways_to_find_quotes_find_the_same(
            fields in proptest::collection::vec(
                ("op|seq|to|exe|x|[a-z]{3,11}", "\"[a-zü,:{}]{0,90}\"|[0-9]{1,21}|[{]\"a\":[0-9]\\}|\\[(\"[a-z\\]]{0,4}\",?){0,3}\\]|true|\"|-1"), 0..40),
            cut in 0_usize..40,
        ) {
            let fields: Vec<String> = fields.into_iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
            let mut line = format!("{{{}}}", fields.join(","));
            if cut > 30 {
                line.truncate(line.floor_char_boundary(line.len().saturating_sub(cut)));
            }
            let mut marks = Marks::default();
            if line.len() <= MARKED {
                prop_assert!(marks.find(line.as_bytes()));
                let text = &*line;
                let marked = Glance::of(Walk { text, at: 0, quotes: marks.quotes() });
                prop_assert_eq!(marked, Glance::of(Walk { text, at: 0, quotes: Search }));
            }
        }

        #[test]
        fn quotes_are_marked_where_they_are(line in proptest::collection::vec(any::<u8>(), 0..300), shape in "[\"a!#]{0,200}") {
            for line in [&line[..], shape.as_bytes()] {
                let mut marks = Marks::default();
                prop_assert_eq!(marks.find(line), !line.contains(&b'\\'));
                for (at, byte) in line.iter().enumerate() {
                    prop_assert_eq!(marks.0[at / 64] >> (at % 64) & 1 == 1, *byte == b'"');
                }
            }
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
