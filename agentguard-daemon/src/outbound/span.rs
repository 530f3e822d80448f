//! Stretches of time in settings.

use std::time::Duration;

use serde::Deserialize;

use crate::policy::limits::{MICROS, duration_text, parse_duration};

/// A stretch of time between a second and so many seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span<const LONGEST: u64>(pub Duration);

impl<const LONGEST: u64> TryFrom<String> for Span<LONGEST> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let micros =
            parse_duration(&text).map_err(|error| format!("{}; {}", error.message, error.help))?;
        let time = Duration::from_micros(micros);
        let wrong = if time < Duration::from_secs(1) {
            "short"
        } else if time > Duration::from_secs(LONGEST) {
            "long"
        } else {
            return Ok(Self(time));
        };
        Err(format!(
            "`{}` is too {wrong}: between 1s and {}",
            text.escape_debug(),
            duration_text(LONGEST * MICROS)
        ))
    }
}
