//! Names to printable text and back: nothing is lost, and nothing that a terminal or a log would obey is left.

use agentguard::event::escape::{escape, unescape};

/// The bytes as a name, and as the text of one.
pub fn run(data: &[u8]) {
    restored(data);
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(name) = unescape(text)
    {
        restored(&name);
    }
}

/// Any name is printable when escaped, and is restored from that.
pub fn restored(name: &[u8]) {
    let text = escape(name);
    printable(&text);
    assert_eq!(unescape(&text).as_deref(), Ok(name), "{text:?}");
}

/// No control character, line separator, direction or format character.
pub fn printable(text: &str) {
    let deceives = |character: char| {
        character.is_control()
            || matches!(character, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    assert!(!text.chars().any(deceives), "{text:?}");
}
