//! Bytes to printable text and back, without loss.
//!
//! Printable UTF-8 stays as it is, a backslash becomes `\\`, every other byte `\xNN`. So no name can
//! forge a line, move the cursor or reorder text on a terminal, and every name can be restored.

use std::borrow::Cow;
use std::fmt::Write;

use thiserror::Error;

use super::bytes::are_plain;

/// The text of `bytes`. Borrows when nothing needs escaping.
pub fn escape(bytes: &[u8]) -> Cow<'_, str> {
    if are_plain(bytes)
        && let Ok(text) = std::str::from_utf8(bytes)
    {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(bytes.len() + 16);
    escape_into(&mut text, bytes);
    Cow::Owned(text)
}

/// Appends the text of `bytes`.
pub fn escape_into(text: &mut String, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character == '\\' {
                text.push_str("\\\\");
            } else if is_printable(character) {
                text.push(character);
            } else {
                hexadecimal(text, character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        hexadecimal(text, chunk.invalid());
    }
}

/// A text that may come from anywhere, so that it can be shown: as it is, but for characters that are not printable.
/// What [`escape`] made is not changed. It cannot be restored from.
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_printable) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_printable(character) {
            shown.push(character);
        } else {
            hexadecimal(&mut shown, character.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    Cow::Owned(shown)
}

/// Why a text is not the escaped form of anything.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("no escape begins at byte {at} (`\\\\` and `\\xNN` are the only ones)")]
pub struct InvalidEscape {
    /// Offset of the backslash.
    pub at: usize,
}

/// The bytes that [`escape`] made `text` of.
pub fn unescape(text: &str) -> Result<Vec<u8>, InvalidEscape> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let at = text.len() - after.len() - 1;
        rest = match after {
            [b'\\', after @ ..] => {
                bytes.push(b'\\');
                after
            }
            [b'x', high, low, after @ ..] => {
                let digit = |digit: u8| (digit as char).to_digit(16).ok_or(InvalidEscape { at });
                bytes.push((digit(*high)? << 4 | digit(*low)?) as u8);
                after
            }
            _ => return Err(InvalidEscape { at }),
        };
    }
    Ok(bytes)
}

/// Whether a character shows as itself: no control, format, direction, unusual space or private use.
fn is_printable(character: char) -> bool {
    if character.is_ascii() {
        return (' '..='~').contains(&character);
    }
    // `escape_debug` knows Unicode's printable characters. The letter in front keeps combining
    // marks (vowels of Thai or Hindi, decomposed accents) readable: alone they are escaped.
    let mut buffer = [b'a'; 5];
    let end = 1 + character.encode_utf8(&mut buffer[1..]).len();
    std::str::from_utf8(&buffer[..end]).is_ok_and(|text| text.escape_debug().count() == 2)
}

fn hexadecimal(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "\\x{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn printable_text_is_borrowed() {
        assert!(matches!(
            escape(b"/usr/bin/a b"),
            Cow::Borrowed("/usr/bin/a b")
        ));
    }

    #[test]
    fn what_could_deceive_is_escaped() {
        let cases: [(&[u8], &str); 10] = [
            (b"a\nb", r"a\x0ab"),
            (b"a\\x0ab", r"a\\x0ab"),
            (b"\x1b[2J", r"\x1b[2J"),
            (b"\xff\xfe", r"\xff\xfe"),
            ("grün/日本/नमस्ते".as_bytes(), "grün/日本/नमस्ते"),
            ("x\u{202e}y".as_bytes(), r"x\xe2\x80\xaey"),
            ("x\u{2028}y".as_bytes(), r"x\xe2\x80\xa8y"),
            ("x\u{a0}y".as_bytes(), r"x\xc2\xa0y"),
            ("x\u{200b}y".as_bytes(), r"x\xe2\x80\x8by"),
            (b"\x7f\x80", r"\x7f\x80"),
        ];
        for (bytes, text) in cases {
            assert_eq!(escape(bytes), text);
            assert_eq!(unescape(text).unwrap(), bytes);
        }
    }

    #[test]
    fn what_is_shown_cannot_deceive() {
        assert_eq!(
            printable("a\n\x1b[2J\u{202e}b"),
            r"a\x0a\x1b[2J\xe2\x80\xaeb"
        );
        for escaped in [r"/a\x0ab\\c", "grün/日本", "/plain"] {
            assert!(matches!(printable(escaped), Cow::Borrowed(same) if same == escaped));
        }
    }

    #[test]
    fn what_is_no_escape_is_refused() {
        assert_eq!(unescape(r"ab\n"), Err(InvalidEscape { at: 2 }));
        assert_eq!(unescape(r"\x4"), Err(InvalidEscape { at: 0 }));
        assert_eq!(unescape(r"\\\xg0"), Err(InvalidEscape { at: 2 }));
        assert_eq!(unescape("\\"), Err(InvalidEscape { at: 0 }));
    }

    proptest! {
        #[test]
        fn every_name_is_restored(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let text = escape(&bytes);
            prop_assert!(!text.chars().any(char::is_control));
            prop_assert_eq!(unescape(&text).unwrap(), bytes);
        }

        #[test]
        fn every_text_is_restored(name in any::<String>()) {
            let text = escape(name.as_bytes());
            prop_assert!(!text.chars().any(char::is_control));
            prop_assert_eq!(unescape(&text).unwrap(), name.as_bytes());
        }
    }
}
