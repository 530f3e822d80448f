//! Amounts as people write them: counts, money, stretches of time. Whole numbers all the way.

use super::Quantity;
use crate::policy::diagnostic::PatternError;

/// The unit of money: parts of one US dollar. A token at 1 USD for a million costs a million of them.
pub const PICO: u64 = 1_000_000_000_000;
/// The unit of time: parts of one second.
pub const MICROS: u64 = 1_000_000;

/// A whole number; `_` may stand between digits.
pub fn parse_count(text: &str) -> Result<u64, PatternError> {
    let digits = text.replace('_', "");
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(PatternError::new(
            0,
            text.len(),
            format!("`{}` is not a whole number", text.escape_debug()),
            "write digits: `100000`, or `100_000`",
        ));
    }
    digits.parse().map_err(|_| {
        PatternError::new(
            0,
            text.len(),
            "the number is too large",
            format!("at most {}", u64::MAX),
        )
    })
}

/// An amount of a quantity, as people write it.
pub fn parse_amount(quantity: Quantity, text: &str) -> Result<u64, String> {
    let parsed = match quantity {
        Quantity::Money => parse_usd(text),
        _ if quantity.is_time() => parse_duration(text),
        _ if quantity.is_of_packets() => parse_size(text),
        _ => parse_count(text),
    };
    parsed.map_err(|error| format!("{}; {}", error.message, error.help))
}

/// Units of bytes.
const UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Bytes: a whole number, with a unit perhaps.
pub fn parse_size(text: &str) -> Result<u64, PatternError> {
    let wrong = || {
        PatternError::new(
            0,
            text.len(),
            format!("`{}` is not an amount of bytes", text.escape_debug()),
            "write a whole number, with a unit perhaps: `100000`, `10MB`, `1GiB`",
        )
    };
    let digits = text.trim_end_matches(|it: char| it.is_ascii_alphabetic());
    let unit = &text[digits.len()..];
    let factor = match unit {
        "" => 1,
        unit => {
            UNITS
                .iter()
                .find(|(name, _)| *name == unit)
                .ok_or_else(wrong)?
                .1
        }
    };
    let count = parse_count(digits.trim_end_matches(' ')).map_err(|_| wrong())?;
    count.checked_mul(factor).ok_or_else(wrong)
}

/// Bytes as people read them: three digits and a unit of a thousand.
pub fn size_text(bytes: u64) -> String {
    let unit = UNITS[..5].iter().rev().find(|(_, size)| bytes >= *size);
    let Some((name, size)) = unit.filter(|(_, size)| *size > 1) else {
        return format!("{bytes} B");
    };
    let tenths = u128::from(bytes) * 10 / u128::from(*size);
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// US dollars to millionths of millionths. Exact, or refused.
pub fn parse_usd(text: &str) -> Result<u64, PatternError> {
    let wrong = |message: String, help: &str| PatternError::new(0, text.len(), message, help);
    let plain = text.replace('_', "");
    let (whole, part) = plain.split_once('.').unwrap_or((&plain, "0"));
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
    if !is_digits(whole) || !is_digits(part) {
        return Err(wrong(
            format!("`{}` is not an amount of money", text.escape_debug()),
            "write US dollars as a decimal number without a sign: `5`, `0.25`",
        ));
    }
    let part = part.trim_end_matches('0');
    if part.len() > 12 {
        return Err(wrong(
            "more than 12 digits behind the point".to_owned(),
            "the smallest amount is 0.000000000001",
        ));
    }
    let part: u64 = format!("{part:0<12}").parse().unwrap_or(0);
    let whole = whole.parse::<u64>().ok();
    whole
        .and_then(|whole| whole.checked_mul(PICO)?.checked_add(part))
        .ok_or_else(|| {
            wrong(
                "the amount is too large".to_owned(),
                "at most 18 million US dollars",
            )
        })
}

/// Millionths of millionths of a dollar as a decimal number, exactly, with two digits at least.
pub fn usd_text(pico: u64) -> String {
    let part = format!("{:012}", pico % PICO);
    let part = part.trim_end_matches('0');
    format!("{}.{part:0<2}", pico / PICO)
}

/// `1h30m` to microseconds.
pub fn parse_duration(text: &str) -> Result<u64, PatternError> {
    let wrong = || {
        PatternError::new(
            0,
            text.len(),
            format!("`{}` is not a stretch of time", text.escape_debug()),
            "write numbers with units: `45s`, `30m`, `1h30m`, `2d`",
        )
    };
    let mut micros: u64 = 0;
    let mut number: Option<u64> = None;
    for byte in text.bytes() {
        match byte {
            b'0'..=b'9' => {
                let digit = u64::from(byte - b'0');
                let longer = number
                    .unwrap_or(0)
                    .checked_mul(10)
                    .and_then(|it| it.checked_add(digit));
                number = Some(longer.ok_or_else(wrong)?);
            }
            b's' | b'm' | b'h' | b'd' => {
                let unit = match byte {
                    b's' => 1,
                    b'm' => 60,
                    b'h' => 3600,
                    _ => 86_400,
                };
                let part = number.take().and_then(|it| it.checked_mul(unit * MICROS));
                micros = part
                    .and_then(|it| it.checked_add(micros))
                    .ok_or_else(wrong)?;
            }
            _ => return Err(wrong()),
        }
    }
    if number.is_some() || micros == 0 {
        return Err(wrong());
    }
    Ok(micros)
}

/// Microseconds as people read them: the two largest units.
pub fn duration_text(micros: u64) -> String {
    let seconds = micros / MICROS;
    if seconds == 0 {
        return format!("{}ms", micros / 1000);
    }
    let parts = [
        (seconds / 86_400, 'd'),
        (seconds / 3600 % 24, 'h'),
        (seconds / 60 % 60, 'm'),
        (seconds % 60, 's'),
    ];
    let from = parts.iter().position(|part| part.0 > 0).unwrap_or(3);
    let mut text = String::new();
    for (number, unit) in parts[from..].iter().take(2).filter(|part| part.0 > 0) {
        text.push_str(&number.to_string());
        text.push(*unit);
    }
    if text.is_empty() {
        "0s".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn money_is_exact_or_refused() {
        for (text, pico) in [
            ("5", 5 * PICO),
            ("0.25", PICO / 4),
            ("1_000.10", 1000 * PICO + PICO / 10),
            ("0.000000000001", 1),
            ("18446744.07370955161500", u64::MAX),
        ] {
            assert_eq!(parse_usd(text).unwrap(), pico, "{text}");
        }
        for text in [
            "",
            "-1",
            "1.",
            ".5",
            "1e3",
            "1,5",
            "0.0000000000001",
            "18446745",
            "$1",
            "٣",
        ] {
            assert!(parse_usd(text).is_err(), "{text}");
        }
        assert_eq!(usd_text(5 * PICO), "5.00");
        assert_eq!(usd_text(1), "0.000000000001");
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("100_000", 100_000),
            ("10MB", 10_000_000),
            ("10 kB", 10_000),
            ("1GiB", 1 << 30),
            ("7B", 7),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in [
            "",
            "MB",
            "1.5MB",
            "-1",
            "10mb",
            "10M",
            "1 0",
            "20000000TB",
            "1  MBx",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(size_text(999), "999 B");
        assert_eq!(size_text(1_550_000), "1.5 MB");
        assert_eq!(size_text(u64::MAX), "18446744.0 TB");
    }

    #[test]
    fn stretches_of_time() {
        for (text, seconds) in [("45s", 45), ("1h30m", 5400), ("2d", 172_800)] {
            assert_eq!(parse_duration(text).unwrap(), seconds * MICROS, "{text}");
        }
        for text in [
            "",
            "5",
            "0s",
            "h",
            "1w",
            "1h 5m",
            "99999999999999999999s",
            "-1s",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(duration_text(5400 * MICROS), "1h30m");
        assert_eq!(duration_text(90_061 * MICROS), "1d1h");
    }

    proptest! {
        #[test]
        fn money_survives_text(pico: u64) {
            prop_assert_eq!(parse_usd(&usd_text(pico)).unwrap(), pico);
        }
    }
}
