//! Names, Unix-domain sockets and listening.

use agentguard_common::record::Destination;
use agentguard_common::verdict::Verdict;

use super::{HOME, Lesson, learn, options, record};
use crate::audit::Record;
use crate::policy::{Action, Policy};

fn to<'a>(op: &'a str, target: &'a str, name: Option<&'a str>) -> Record<'a> {
    let port = target.rsplit(':').next().and_then(|it| it.parse().ok());
    Record {
        port,
        protocol: Some("tcp".into()),
        family: Some("inet".into()),
        cause: Some(name.map_or("default", |_| "opened-by-name").into()),
        verdict: Some(name.map_or("would-deny", |_| "allow").into()),
        name: name.map(Into::into),
        ..record(op, None, target)
    }
}

fn unix<'a>(op: &'a str, target: &'a str, cause: &'a str) -> Record<'a> {
    Record {
        protocol: Some("0".into()),
        family: Some("unix".into()),
        cause: Some(cause.into()),
        ..record(op, None, target)
    }
}

fn destination(address: [u8; 4], port: u16) -> Destination {
    let mut destination = Destination {
        family: 2,
        protocol: 6,
        port,
        ..Destination::default()
    };
    destination.address[10..12].fill(0xff);
    destination.address[12..].copy_from_slice(&address);
    destination
}

fn name(policy: &Policy, name: &str, port: u16) -> Verdict {
    let protocol = 6;
    policy
        .judge(&Action::Name {
            name,
            port,
            protocol,
        })
        .verdict
}

#[test]
fn what_a_name_opened_is_permitted_by_that_name() {
    let resolved = Record {
        cause: Some("rule".into()),
        verdict: Some("allow".into()),
        ..record("resolve", None, "only.asked.test")
    };
    let (text, policy) = learn(&[
        to("connect", "192.0.2.1:443", Some("api.a.test")),
        to("connect", "192.0.2.2:443", Some("api.a.test")),
        to("connect", "192.0.2.9:80", None),
        resolved,
    ]);
    let address = |address, port| {
        let destination = &destination(address, port);
        policy.judge(&Action::Network { destination }).verdict
    };
    assert_eq!(name(&policy, "api.a.test", 443), Verdict::Allow, "{text}");
    for (other, port) in [
        ("api.a.test", 80),
        ("a.test", 443),
        ("x.api.a.test", 443),
        ("only.asked.test", 443),
    ] {
        assert_eq!(name(&policy, other, port), Verdict::Deny, "{other}\n{text}");
    }
    // The addresses are whatever the name has.
    assert_eq!(address([192, 0, 2, 1], 443), Verdict::Deny, "{text}");
    assert_eq!(address([192, 0, 2, 9], 80), Verdict::Allow, "{text}");
    assert_eq!(text.matches("api.a.test").count(), 1, "{text}");
}

#[test]
fn what_is_no_name_becomes_no_rule_by_name() {
    let mut lesson = Lesson::default();
    lesson.add(&to("connect", "192.0.2.1:443", Some("*.test")));
    lesson.add(&to("connect", "192.0.2.2:443", Some("A\\x0a  deny")));
    let (text, policy) = lesson.policy("x", &options()).unwrap();
    assert!(!policy.has_name_rules(), "{text}");
    let destination = &destination([192, 0, 2, 1], 443);
    let verdict = policy.judge(&Action::Network { destination }).verdict;
    assert_eq!(verdict, Verdict::Allow, "{text}");
}

#[test]
fn sockets_are_permitted_by_their_names() {
    let own = unix("connect", "unix:/tmp/own.sock", "own-socket");
    let in_home = format!("unix:{HOME}/x*.sock");
    let (text, policy) = learn(&[
        unix("connect", "unix:/run/pg/.s.5432", "unix-socket"),
        unix("send", &in_home, "unix-socket"),
        unix("connect", "unix:@svc[1]", "unix-socket"),
        unix("connect", "unix:@cut\\x00\\x00", "unix-socket"),
        unix("connect", "unix:@\\x00\\x00", "unix-socket"),
        unix("listen", "unix:@mine", "default"),
        own,
    ]);
    let judge = |name: &[u8], listen| policy.judge(&Action::Unix { name, listen }).verdict;
    for (permitted, listen) in [
        (&b"/run/pg/.s.5432"[..], false),
        (b"/home/ann/x*.sock", false),
        (b"\0svc[1]", false),
        (b"\0cut\0\0", false),
        (b"\0mine", true),
    ] {
        assert_eq!(
            judge(permitted, listen),
            Verdict::Allow,
            "{permitted:?}\n{text}"
        );
    }
    for (refused, listen) in [
        (&b"/run/pg/.s.5433"[..], false),
        (b"/home/ann/xy.sock", false),
        (b"\0svc1", false),
        (b"\0svc[1]", true),
        (b"\0other", false),
        (b"\0mine", false),
        (b"\0mine2", true),
        (b"/tmp/own.sock", false),
    ] {
        assert_ne!(
            judge(refused, listen),
            Verdict::Allow,
            "{refused:?}\n{text}"
        );
    }
    assert!(text.contains("${home}/x\\\\*.sock"), "{text}");
}

#[test]
fn listening_is_permitted_where_it_was() {
    let (text, policy) = learn(&[
        to("listen", "127.0.0.1:8080", None),
        to("listen", "0.0.0.0:9000", None),
        // A port that the kernel picked.
        to("listen", "127.0.0.1:40123", None),
    ]);
    let listen = |address, port| {
        let at = &destination(address, port);
        policy.judge(&Action::Listen { at }).verdict
    };
    let here = [127, 0, 0, 1];
    for (address, port) in [(here, 8080), ([0; 4], 9000), (here, 40123), (here, 51000)] {
        assert_eq!(listen(address, port), Verdict::Allow, "{port}\n{text}");
    }
    for (address, port) in [(here, 9000), ([0; 4], 8080), (here, 8081), ([0; 4], 40123)] {
        assert_eq!(listen(address, port), Verdict::Deny, "{port}\n{text}");
    }
    let destination = &destination(here, 8080);
    let verdict = policy.judge(&Action::Network { destination }).verdict;
    assert_eq!(verdict, Verdict::Deny, "{text}");
}
