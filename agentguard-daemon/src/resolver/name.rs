//! Names from the wire as the texts that policies speak of. It must never make two names of one, or one of two.

use std::fmt::Write as _;

use hickory_proto::rr::Name;

/// The name in lower case, without a dot at the end, or `None` if it holds a byte that names of hosts do not have.
/// Names in other scripts are `xn--…` on the wire; raw bytes above 127 are no such name.
pub(super) fn plain(name: &Name) -> Option<String> {
    // What is written otherwise has a `\`, which such names have not.
    let text = shown(name);
    (text != "." && !text.contains('\\')).then_some(text)
}

/// The name for a record, whatever is in it: what [`plain`] does not take is written as `\DDD`. The root is `.`.
pub(super) fn shown(name: &Name) -> String {
    let mut text = String::with_capacity(name.len());
    for label in name {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            let byte = byte.to_ascii_lowercase();
            if matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_') {
                text.push(char::from(byte));
            } else {
                // Writing to a string does not fail.
                let _ = write!(text, "\\{byte:03}");
            }
        }
    }
    if text.is_empty() {
        text.push('.');
    }
    text
}

/// Whether two names of the wire are the same for DNS: case does not count.
pub(super) fn same(one: &Name, other: &Name) -> bool {
    one.num_labels() == other.num_labels()
        && one
            .iter()
            .zip(other.iter())
            .all(|(one, other)| one.eq_ignore_ascii_case(other))
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` speaks of. Only whole addresses.
pub(super) fn reverse(text: &str) -> Option<std::net::IpAddr> {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    if let Some(digits) = text.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut parts = digits.split('.');
        for octet in octets.iter_mut().rev() {
            *octet = parts.next()?.parse().ok()?;
        }
        return parts
            .next()
            .is_none()
            .then(|| IpAddr::V4(Ipv4Addr::from(octets)));
    }
    let digits = text.strip_suffix(".ip6.arpa")?;
    let (mut bits, mut count) = (0_u128, 0);
    for digit in digits.split('.').rev() {
        let value = match digit.as_bytes() {
            [digit] => char::from(*digit).to_digit(16)?,
            _ => return None,
        };
        bits = bits << 4 | u128::from(value);
        count += 1;
    }
    (count == 32).then(|| IpAddr::V6(Ipv6Addr::from(bits)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(labels: &[&[u8]]) -> Name {
        let mut name = Name::from_labels(labels.iter().map(|label| label.to_vec())).unwrap();
        name.set_fqdn(true);
        name
    }

    #[test]
    fn only_names_of_hosts_are_plain() {
        let plain_of = |labels: &[&[u8]]| plain(&name(labels));
        assert_eq!(
            plain_of(&[b"Api", b"EXAMPLE", b"com"]).as_deref(),
            Some("api.example.com")
        );
        assert_eq!(plain_of(&[b"_srv", b"a-b"]).as_deref(), Some("_srv.a-b"));
        assert_eq!(
            plain_of(&[b"xn--bcher-kva", b"de"]).as_deref(),
            Some("xn--bcher-kva.de")
        );
        for odd in [
            &b"a.b"[..],
            b"a b",
            b"a\0",
            "b\u{fc}cher".as_bytes(),
            b"a\\",
            b"*",
            b"a\n",
        ] {
            assert_eq!(plain_of(&[odd, b"com"]), None);
        }
        assert_eq!(plain(&Name::root()), None);
        assert_eq!(shown(&Name::root()), ".");
        assert_eq!(shown(&name(&[b"a.b\xff", b"COM"])), "a\\046b\\255.com");
    }

    #[test]
    fn names_of_addresses_are_read_whole_or_not_at_all() {
        let address = |text: &str| reverse(text).map(|it| it.to_string());
        assert_eq!(address("4.3.2.1.in-addr.arpa").as_deref(), Some("1.2.3.4"));
        let six = format!("1.{}8.b.d.0.1.0.0.2.ip6.arpa", "0.".repeat(23));
        assert_eq!(address(&six).as_deref(), Some("2001:db8::1"));
        for not in [
            "3.2.1.in-addr.arpa",
            "5.4.3.2.1.in-addr.arpa",
            "256.3.2.1.in-addr.arpa",
            "1.ip6.arpa",
            "x.in-addr.arpa",
            "in-addr.arpa",
            "10.1.2.3",
        ] {
            assert_eq!(reverse(not), None, "{not}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_tells_names_apart(
            one in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..6), 1..4),
            other in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..6), 1..4),
        ) {
            let of = |labels: &Vec<Vec<u8>>| Name::from_labels(labels.clone()).unwrap();
            let (one, other) = (of(&one), of(&other));
            prop_assert_eq!(shown(&one) == shown(&other), same(&one, &other));
            if let Some(text) = plain(&one) {
                prop_assert_eq!(text, shown(&one));
            }
        }
    }
}
