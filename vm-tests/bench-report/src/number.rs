//! Numbers as people read them.

/// With commas between thousands; one decimal below ten where it says something.
pub fn grouped(value: f64) -> String {
    let text = thousands(value);
    let zero = text.chars().all(|digit| matches!(digit, '0' | '.'));
    if value < 0.0 && !zero {
        format!("−{text}")
    } else {
        text
    }
}

/// The same of a count.
pub fn counted(value: u64) -> String {
    separated(&value.to_string())
}

fn thousands(value: f64) -> String {
    let digits = if value.abs() < 10.0 && (value - value.round()).abs() > 0.05 {
        format!("{:.1}", value.abs())
    } else {
        format!("{:.0}", value.abs())
    };
    match digits.split_once('.') {
        Some((whole, rest)) => format!("{}.{rest}", separated(whole)),
        None => separated(&digits),
    }
}

fn separated(digits: &str) -> String {
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The same with its sign.
pub fn signed(value: f64) -> String {
    let text = grouped(value);
    if text.starts_with('−') {
        text
    } else {
        format!("+{text}")
    }
}

/// A part of a whole in percent.
pub fn percent(part: f64, whole: f64) -> String {
    if whole == 0.0 {
        return "–".into();
    }
    let value = part / whole * 100.0;
    let text = format!("{value:+.1} %").replace('-', "−");
    if matches!(text.as_str(), "−0.0 %") {
        "+0.0 %".into()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_signed() {
        assert_eq!(grouped(1_234_567.0), "1,234,567");
        assert_eq!(grouped(999.4), "999");
        assert_eq!(grouped(2.25), "2.2");
        assert_eq!(grouped(-0.02), "0");
        assert_eq!(signed(1200.0), "+1,200");
        assert_eq!(signed(-1200.0), "−1,200");
        assert_eq!(signed(0.0), "+0");
    }

    #[test]
    fn parts_are_in_percent() {
        assert_eq!(percent(5.0, 1000.0), "+0.5 %");
        assert_eq!(percent(-0.1, 1000.0), "+0.0 %");
        assert_eq!(percent(1.0, 0.0), "–");
    }
}
