//! Addresses that a name on the Internet has no business to point to. An answer with one of them is the means of
//! rebinding: a name that is permitted is made to lead to a service that is not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A kind of special address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// This host by an address that stands for "none" (`0.0.0.0/8`, `::`).
    Unspecified,
    /// This host.
    Loopback,
    /// The link, where clouds have their metadata.
    LinkLocal,
    /// A network of somebody's own (also carriers' shared space and site-local).
    Private,
    /// Many hosts at once.
    Multicast,
    /// Reserved for documents, measurements or nothing yet.
    Reserved,
}

impl Special {
    /// In words, as part of "… is …".
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "an unspecified address",
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address",
            Self::Private => "a private address",
            Self::Multicast => "a multicast or broadcast address",
            Self::Reserved => "a reserved address",
        }
    }
}

/// What is special about an address, or `None` for an ordinary one of the Internet. Addresses of IPv6 that carry
/// one of IPv4 (mapped, compatible, NAT64, 6to4) are what that one is.
pub fn special(address: IpAddr) -> Option<Special> {
    match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => match carried(address) {
            Some(carried) => special_v4(carried),
            None => special_v6(address),
        },
    }
}

/// The address of IPv4 inside one of IPv6.
fn carried(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let of = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        // `::` and `::1` are addresses of their own.
        [0, 0, 0, 0, 0, 0, 0, 0..=1] => None,
        [0, 0, 0, 0, 0 | 0xffff, 0, high, low]
        | [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => of(high, low),
        _ => None,
    }
}

fn special_v4(address: Ipv4Addr) -> Option<Special> {
    match address.octets() {
        [0, ..] => Some(Special::Unspecified),
        [127, ..] => Some(Special::Loopback),
        [169, 254, ..] => Some(Special::LinkLocal),
        [10, ..] | [192, 168, ..] => Some(Special::Private),
        [172, b, ..] if b & 0xf0 == 16 => Some(Special::Private),
        [100, b, ..] if b & 0xc0 == 64 => Some(Special::Private),
        [192, 0, 0 | 2, _] | [198, 18 | 19, ..] | [198, 51, 100, _] | [203, 0, 113, _] => {
            Some(Special::Reserved)
        }
        [224..=239, ..] | [255, 255, 255, 255] => Some(Special::Multicast),
        [240..=255, ..] => Some(Special::Reserved),
        _ => None,
    }
}

fn special_v6(address: Ipv6Addr) -> Option<Special> {
    let segments = address.segments();
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some(Special::Unspecified),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some(Special::Loopback),
        [first, ..] if first & 0xffc0 == 0xfe80 => Some(Special::LinkLocal),
        [first, ..] if first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfec0 => {
            Some(Special::Private)
        }
        [first, ..] if first & 0xff00 == 0xff00 => Some(Special::Multicast),
        // A translator of the site's own: it may lead anywhere in it.
        [0x64, 0xff9b, 1, ..] => Some(Special::Private),
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0x0fff, ..] | [0x100, 0, 0, 0, ..] => {
            Some(Special::Reserved)
        }
        // Teredo carries an address of IPv4 that is written upside down.
        [0x2001, 0, ..] => Some(Special::Reserved),
        // What is global is in 2000::/3.
        [first, ..] if first & 0xe000 != 0x2000 => Some(Special::Reserved),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        let kinds = [
            (
                None,
                "8.8.8.8 172.15.0.1 172.32.0.1 100.63.0.1 100.128.0.1 192.0.1.1 1.1.1.1 2606:4700::1 64:ff9b::8.8.8.8 ::ffff:8.8.8.8 2002:808:808::1",
            ),
            (
                Some(Special::Unspecified),
                "0.0.0.0 0.1.2.3 :: ::ffff:0.0.0.0",
            ),
            (
                Some(Special::Loopback),
                "127.0.0.1 127.255.0.9 ::1 ::ffff:127.0.0.1 ::127.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: ::ffff:0:127.0.0.1",
            ),
            (
                Some(Special::LinkLocal),
                "169.254.169.254 fe80::1 febf::1 64:ff9b::169.254.169.254",
            ),
            (
                Some(Special::Private),
                "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 fd00:ec2::254 fc00::1 fec0::1 64:ff9b:1::1 ::ffff:10.0.0.1",
            ),
            (
                Some(Special::Multicast),
                "224.0.0.251 255.255.255.255 ff02::1",
            ),
            (
                Some(Special::Reserved),
                "240.0.0.1 192.0.2.1 198.18.0.1 203.0.113.9 2001:db8::1 2001::1 100::1 4000::1 3fff::1",
            ),
        ];
        for (kind, addresses) in kinds {
            for address in addresses.split(' ') {
                assert_eq!(special(address.parse().unwrap()), kind, "{address}");
            }
        }
    }
}
