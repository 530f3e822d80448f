//! Records as messages of syslog: RFC 5424, and the older form that sockets of a host speak.

use std::fmt::Write as _;

use serde::Deserialize;

use super::{Form, Item};

/// The name of our structured data. 32473 is the enterprise number that RFC 5612 keeps for those who have none.
pub const SD_ID: &str = "agentguard@32473";
/// Longest text that goes into one datagram. Larger ones are not taken by every receiver.
pub const DATAGRAM_MAX: usize = 60_000;

/// What of a record stands beside the message.
#[derive(Debug, Deserialize)]
struct Shown<'a> {
    #[serde(default, borrow)]
    time: std::borrow::Cow<'a, str>,
    #[serde(default, borrow)]
    op: std::borrow::Cow<'a, str>,
    #[serde(default, borrow)]
    agent: Option<std::borrow::Cow<'a, str>>,
    #[serde(default, borrow)]
    verdict: Option<std::borrow::Cow<'a, str>>,
    #[serde(default, borrow)]
    rule: Option<std::borrow::Cow<'a, str>>,
}

/// Makes messages.
#[derive(Debug)]
pub struct Formatter {
    host: String,
    facility: u8,
    form: Form,
}

impl Formatter {
    /// For records of the host with this name.
    pub fn new(host: &str, facility: u8, form: Form) -> Self {
        // HOSTNAME is printable ASCII without blanks.
        let host: String = host
            .chars()
            .filter(char::is_ascii_graphic)
            .take(255)
            .collect();
        Self {
            host: if host.is_empty() {
                "-".to_owned()
            } else {
                host
            },
            facility,
            form,
        }
    }

    /// A message of RFC 5424.
    pub fn message(&self, item: &Item) -> Vec<u8> {
        let shown = shown(&item.line);
        let mut text = format!(
            "<{}>1 {} {} agentguard {} {} [{SD_ID} seq=\"{}\" hash=\"{}\"",
            self.priority(&shown),
            stamp(&shown.time),
            self.host,
            std::process::id(),
            word(&shown.op, 32),
            item.seq,
            parameter(&item.hash),
        );
        let more = [
            ("agent", &shown.agent),
            ("verdict", &shown.verdict),
            ("rule", &shown.rule),
        ];
        for (name, value) in more {
            if let Some(value) = value {
                // Writing to a `String` cannot fail.
                let _ = write!(text, " {name}=\"{}\"", parameter(value));
            }
        }
        text.push_str("] ");
        let mut message = text.into_bytes();
        message.extend_from_slice(&self.form.text(&item.line));
        message
    }

    /// A message as `syslog(3)` writes it to the socket of the host.
    pub fn local(&self, item: &Item) -> Vec<u8> {
        let shown = shown(&item.line);
        let time = shown.time.parse::<jiff::Timestamp>().unwrap_or_default();
        let text = format!(
            "<{}>{} agentguard[{}]: ",
            self.priority(&shown),
            time.strftime("%b %e %H:%M:%S"),
            std::process::id(),
        );
        let mut message = text.into_bytes();
        message.extend_from_slice(&self.form.text(&item.line));
        message
    }

    fn priority(&self, shown: &Shown<'_>) -> u32 {
        u32::from(self.facility) * 8 + u32::from(severity(&shown.op, shown.verdict.as_deref()))
    }
}

fn shown(line: &[u8]) -> Shown<'_> {
    serde_json::from_slice(line).unwrap_or(Shown {
        time: "".into(),
        op: "".into(),
        agent: None,
        verdict: None,
        rule: None,
    })
}

/// The severity of RFC 5424: 1 alert, 3 error, 4 warning, 5 notice, 6 informational.
pub fn severity(op: &str, verdict: Option<&str>) -> u8 {
    match (op, verdict) {
        ("alarm", _) => 1,
        ("gap" | "malformed", _) => 3,
        (_, Some("deny" | "ask")) | ("policy-error" | "log-repair", _) => 4,
        (_, Some("would-deny")) | ("kill" | "freeze" | "budget", _) => 5,
        _ => 6,
    }
}

/// A message with its length before it (octet counting), as streams have it.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut frame = format!("{} ", message.len()).into_bytes();
    frame.extend_from_slice(message);
    frame
}

/// Cuts a message that is too long for a datagram, and says so. Whether it was.
pub fn shorten(message: &mut Vec<u8>) -> bool {
    const MARK: &[u8] = b" [cut: too long for a datagram, see the log]";
    if message.len() <= DATAGRAM_MAX {
        return false;
    }
    message.truncate(DATAGRAM_MAX - MARK.len());
    // Not within a character.
    while message.last().is_some_and(|byte| byte & 0xc0 == 0x80) {
        message.pop();
    }
    message.pop();
    message.extend_from_slice(MARK);
    true
}

/// A time as RFC 5424 has it: six digits of a second at most.
fn stamp(time: &str) -> String {
    match time.parse::<jiff::Timestamp>() {
        Ok(time) => time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        Err(_) => "-".to_owned(),
    }
}

/// A word of the header.
fn word(text: &str, most: usize) -> String {
    let word: String = text
        .chars()
        .filter(char::is_ascii_graphic)
        .take(most)
        .collect();
    if word.is_empty() {
        "-".to_owned()
    } else {
        word
    }
}

/// A value of structured data.
fn parameter(text: &str) -> String {
    let mut value = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '"' | '\\' | ']') {
            value.push('\\');
        }
        value.push(character);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(line: &str) -> Item {
        Item {
            seq: 7,
            hash: "ff".to_owned(),
            line: line.as_bytes().to_vec(),
        }
    }

    #[test]
    fn a_message_is_as_the_standard_has_it() {
        let formatter = Formatter::new("host.example", 13, Form::Record);
        let line = r#"{"seq":7,"time":"2026-11-23T04:05:06.123456789Z","agent":"a\"]\\b","op":"open","verdict":"deny","rule":"ssh"}"#;
        let text = String::from_utf8(formatter.message(&item(line))).unwrap();
        let pid = std::process::id();
        let head = format!(
            r#"<108>1 2026-11-23T04:05:06.123456Z host.example agentguard {pid} open [agentguard@32473 seq="7" hash="ff" agent="a\"\]\\b" verdict="deny" rule="ssh"] "#
        );
        assert_eq!(text, format!("{head}{line}"));
        let local = String::from_utf8(formatter.local(&item(line))).unwrap();
        assert_eq!(
            local,
            format!("<108>Nov 23 04:05:06 agentguard[{pid}]: {line}")
        );
        assert_eq!(framed(b"abc"), b"3 abc");
        let strange = formatter.message(&item("no record"));
        let strange = String::from_utf8(strange).unwrap();
        assert!(
            strange.starts_with("<110>1 - host.example agentguard"),
            "{strange}"
        );
    }

    #[test]
    fn what_is_too_long_for_a_datagram_is_cut_at_a_character() {
        let mut long = "é".repeat(DATAGRAM_MAX).into_bytes();
        assert!(shorten(&mut long));
        assert!(long.len() <= DATAGRAM_MAX);
        assert!(String::from_utf8(long).unwrap().ends_with("see the log]"));
        let mut short = b"short".to_vec();
        assert!(!shorten(&mut short));
        assert_eq!(short, b"short");
    }
}
