//! The hash chain: each line's hash covers the line and, through `prev`, all lines before it.
//!
//! `hash` is SHA-256 over the previous record's hash (64 hexadecimal digits) and the line without
//! its last field, exactly as written: everything before `,"hash":"…"}` and then `}`.

use sha2::{Digest, Sha256};
use thiserror::Error;

/// A hash in hexadecimal digits.
pub type Hash = [u8; 64];

/// The `prev` of a log's first record.
pub const GENESIS: Hash = [b'0'; 64];

const FIELD: &[u8] = b",\"hash\":\"";
const END: &[u8] = b"\"}";

/// The hash of a line (without `hash`) that follows the record with hash `prev`.
pub fn hash(prev: &Hash, line: &[u8]) -> Hash {
    digits(Sha256::new().chain_update(prev).chain_update(line))
}

fn digits(state: Sha256) -> Hash {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hash = GENESIS;
    let (pairs, _) = hash.as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(state.finalize()) {
        *pair = [
            DIGITS[usize::from(byte >> 4)],
            DIGITS[usize::from(byte & 15)],
        ];
    }
    hash
}

/// Turns the last `line` of `buffer` (which begins at `start` and ends in `}`) into a sealed line
/// with its newline, and gives its hash.
pub fn seal(buffer: &mut Vec<u8>, start: usize, prev: &Hash) -> Hash {
    let hash = hash(prev, &buffer[start..]);
    buffer.pop();
    buffer.extend_from_slice(FIELD);
    buffer.extend_from_slice(&hash);
    buffer.extend_from_slice(END);
    buffer.push(b'\n');
    hash
}

/// Why a line is not a link of the chain.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Broken {
    /// The line does not end in a hash.
    #[error("the line has no hash")]
    NoHash,
    /// The line, or one before it, was changed.
    #[error("the hash does not fit the line")]
    Mismatch,
}

/// What a line (without its newline) is without its last field and `}`, and the hash in that.
pub fn split(line: &[u8]) -> Option<(&[u8], Hash)> {
    let at = line.len().checked_sub(FIELD.len() + 64 + END.len())?;
    let (body, tail) = line.split_at(at);
    let written = tail.strip_prefix(FIELD)?.strip_suffix(END)?;
    Some((body, written.try_into().ok()?))
}

/// Checks a line (without its newline) that follows the record with hash `prev`.
pub fn verify(line: &[u8], prev: &Hash) -> Result<Hash, Broken> {
    let (body, written) = split(line).ok_or(Broken::NoHash)?;
    let state = Sha256::new()
        .chain_update(prev)
        .chain_update(body)
        .chain_update(b"}");
    if digits(state) == written {
        Ok(written)
    } else {
        Err(Broken::Mismatch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_line_verifies_and_a_changed_one_does_not() {
        let mut buffer = b"before".to_vec();
        buffer.extend_from_slice(br#"{"seq":1,"op":"x"}"#);
        let hash = seal(&mut buffer, 6, &GENESIS);
        let line = buffer[6..].strip_suffix(b"\n").unwrap().to_vec();
        assert_eq!(verify(&line, &GENESIS), Ok(hash));
        assert_eq!(verify(&line, &hash), Err(Broken::Mismatch));
        for at in 0..line.len() {
            let mut changed = line.clone();
            changed[at] ^= 1;
            assert!(verify(&changed, &GENESIS).is_err(), "byte {at}");
        }
        assert_eq!(verify(b"{}", &GENESIS), Err(Broken::NoHash));
    }
}
