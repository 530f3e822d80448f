//! Events of a stream, read along as its bytes go by.

use serde_json::Value;

/// Longest event that is looked at. A longer one goes by unread, and with it what it says of usage.
const MAX_LINE: usize = 4 << 20;

/// Takes in bytes, and hands out events that may speak of usage.
#[derive(Debug, Default)]
pub struct Events {
    line: Vec<u8>,
    too_long: bool,
    /// Events that were seen.
    pub count: u64,
}

impl Events {
    /// Takes in the next bytes.
    pub fn take(&mut self, bytes: &[u8], mut each: impl FnMut(&Value)) {
        let mut rest = bytes;
        while let Some(end) = rest
            .iter()
            .position(|byte| *byte == b'\n' || *byte == b'\r')
        {
            let (part, after) = rest.split_at(end);
            rest = &after[1..];
            if self.line.is_empty() && !self.too_long {
                self.count += u64::from(line(part, &mut each));
            } else {
                self.push(part);
                let whole = std::mem::take(&mut self.line);
                if !std::mem::take(&mut self.too_long) {
                    self.count += u64::from(line(&whole, &mut each));
                }
            }
        }
        self.push(rest);
    }

    fn push(&mut self, part: &[u8]) {
        if self.line.len() + part.len() > MAX_LINE {
            self.too_long = true;
            self.line = Vec::new();
        }
        if !self.too_long {
            self.line.extend_from_slice(part);
        }
    }
}

/// Whether it was an event's data.
fn line(line: &[u8], each: &mut impl FnMut(&Value)) -> bool {
    let Some(data) = line.strip_prefix(b"data:") else {
        return false;
    };
    // Most events say nothing of it, and need not be parsed.
    if contains(data, b"\"usage")
        && let Ok(value) = serde_json::from_slice::<Value>(data)
    {
        each(&value);
    }
    true
}

/// Whether bytes hold others.
pub fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    let Some((first, _)) = wanted.split_first() else {
        return false;
    };
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        rest = &rest[at..];
        if rest.starts_with(wanted) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

/// Looks for a secret in bytes that come in parts.
#[derive(Debug)]
pub struct Watch<'a> {
    secret: &'a [u8],
    tail: Vec<u8>,
}

impl<'a> Watch<'a> {
    /// For this secret; an empty one is never found.
    pub fn new(secret: &'a [u8]) -> Self {
        Self {
            secret,
            tail: Vec::new(),
        }
    }

    /// Whether the secret ends in these bytes.
    pub fn sees(&mut self, bytes: &[u8]) -> bool {
        if self.secret.is_empty() {
            return false;
        }
        let keep = self.secret.len() - 1;
        let edge = bytes.len().min(keep);
        self.tail.extend_from_slice(&bytes[..edge]);
        let found = contains(&self.tail, self.secret) || contains(bytes, self.secret);
        if bytes.len() >= keep {
            self.tail.clear();
            self.tail.extend_from_slice(&bytes[bytes.len() - keep..]);
        } else {
            let cut = self.tail.len().saturating_sub(keep);
            self.tail.drain(..cut);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However the bytes are cut, the same events are seen.
        #[test]
        fn cuts_do_not_matter(cuts in proptest::collection::vec(1..20_usize, 0..60), ends in 0..3_usize) {
            let end = ["\n", "\r\n", "\r"][ends];
            let text = ["event: a", "data: {\"usage\":{\"x\":1}}", "", "data: {\"delta\":\"ü\"}", "", "data:{\"usage\":2}", "", "data: [DONE]", "", ""].join(end);
            let mut events = Events::default();
            let mut seen = Vec::new();
            let mut rest = text.as_bytes();
            for cut in cuts {
                let (part, after) = rest.split_at(cut.min(rest.len()));
                events.take(part, |value| seen.push(value.clone()));
                rest = after;
            }
            events.take(rest, |value| seen.push(value.clone()));
            prop_assert_eq!(seen, vec![serde_json::json!({"usage": {"x": 1}}), serde_json::json!({"usage": 2})]);
            prop_assert_eq!(events.count, 4);
        }

        /// A secret is found wherever it stands and however it is cut.
        #[test]
        fn a_secret_is_found(before in "[ab]{0,20}", after in "[ab]{0,20}", cuts in proptest::collection::vec(1..6_usize, 0..30)) {
            let text = format!("{before}abac{after}");
            let mut watch = Watch::new(b"abac");
            let mut rest = text.as_bytes();
            let mut found = false;
            for cut in cuts {
                let (part, more) = rest.split_at(cut.min(rest.len()));
                found |= watch.sees(part);
                rest = more;
            }
            found |= watch.sees(rest);
            prop_assert!(found);
            prop_assert!(!Watch::new(b"xyz").sees(text.as_bytes()));
        }
    }
}
