//! Tests of all bytes of a text, eight at once. It must never say of a text what one of its bytes is not.

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// Whether any byte is less than `bound`, which is at most 128. (A byte of which that is said wrongly is behind one of
/// which it is true.)
const fn any_below(word: u64, bound: u8) -> u64 {
    word.wrapping_sub(ONES * bound as u64) & !word & HIGH
}

const fn any_is(word: u64, byte: u8) -> u64 {
    any_below(word ^ (ONES * byte as u64), 1)
}

/// Whether the test is true of any eight bytes in a row. `filler` is a byte of which it is not.
fn any(bytes: &[u8], filler: u8, test: impl Fn(u64) -> u64) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut found = 0;
    for word in words {
        found |= test(u64::from_ne_bytes(*word));
    }
    let mut last = [filler; 8];
    last[..rest.len()].copy_from_slice(rest);
    found | test(u64::from_ne_bytes(last)) != 0
}

/// Whether all bytes are printable ASCII and none is a backslash.
pub fn are_plain(bytes: &[u8]) -> bool {
    !any(bytes, b'x', |word| {
        any_below(word, b' ') | any_is(word, b'\\') | any_is(word, 0x7f) | (word & HIGH)
    })
}

/// Whether JSON writes none of the bytes otherwise than it is.
pub fn are_plain_in_json(bytes: &[u8]) -> bool {
    !any(bytes, b'x', |word| {
        any_below(word, b' ') | any_is(word, b'"') | any_is(word, b'\\')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_seen_at_each_place() {
        for len in 0..20 {
            for byte in 0..=255_u8 {
                for at in 0..len {
                    for around in [b'x', b'~', b' ', b'!', b'#', b'[', b']'] {
                        let mut text = vec![around; len];
                        text[at] = byte;
                        let plain = (b' '..=b'~').contains(&byte) && byte != b'\\';
                        assert_eq!(are_plain(&text), plain, "{byte} at {at} of {len}");
                        let plain = byte >= b' ' && byte != b'"' && byte != b'\\';
                        assert_eq!(are_plain_in_json(&text), plain, "{byte} at {at} of {len}");
                    }
                }
            }
        }
    }
}
