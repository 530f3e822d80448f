//! How questions and answers are signed: HMAC-SHA256 with a secret that both sides have.
//!
//! What is signed begins with the direction, so that no question can come back as an answer; then the question's time
//! and nonce, so that an answer is for one question only.

use std::path::Path;

use ring::hmac;

use crate::disk;
use crate::hex::{from_hex, hex};

/// Header with the time of a question, in seconds since 1970.
pub const TIMESTAMP: &str = "agentguard-timestamp";
/// Header with the nonce of a question.
pub const NONCE: &str = "agentguard-nonce";
/// Header with the signature of a question, or of an answer.
pub const SIGNATURE: &str = "agentguard-signature";
/// What a signature begins with: how it was made.
const VERSION: &str = "v1=";
/// Fewest and most bytes of a secret.
const SIZE: std::ops::RangeInclusive<usize> = 32..=4096;

/// Which way something goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the daemon to the receiver.
    Question,
    /// Back.
    Answer,
}

impl Direction {
    fn word(self) -> &'static str {
        match self {
            Self::Question => "question",
            Self::Answer => "answer",
        }
    }
}

/// What both sides know. It is never shown.
#[derive(Clone, Debug)]
pub struct Secret(hmac::Key);

impl Secret {
    /// From its file, which only root, or who we are, may read. A line break at its end does not count.
    pub fn read(path: &Path) -> Result<Self, String> {
        let bytes = disk::secret(path, "the secret of the webhook", *SIZE.end() as u64 + 2)?;
        let secret = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        if !SIZE.contains(&secret.len()) {
            return Err(format!(
                "the secret of the webhook {} must have between {} and {} bytes: `openssl rand -hex 32` makes one",
                path.display(),
                SIZE.start(),
                SIZE.end()
            ));
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, secret)))
    }

    /// The signature of a body.
    pub fn sign(&self, way: Direction, timestamp: &str, nonce: &str, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(&signed(way, timestamp, nonce, body));
        format!("{VERSION}{}", hex(context.sign().as_ref()))
    }

    /// Whether it is the signature of a body. How long this takes does not depend on where it differs.
    pub fn verify(
        &self,
        way: Direction,
        (timestamp, nonce): (&str, &str),
        body: &[u8],
        signature: &str,
    ) -> bool {
        let given = signature.strip_prefix(VERSION).and_then(from_hex::<32>);
        given.is_some_and(|given| {
            hmac::verify(&self.0, &signed(way, timestamp, nonce, body), &given).is_ok()
        })
    }
}

fn signed(way: Direction, timestamp: &str, nonce: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("{}.{timestamp}.{nonce}.", way.word());
    [head.as_bytes(), body].concat()
}
