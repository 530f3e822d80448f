//! Names, Unix-domain sockets and listening.

use agentguard_common::verdict::{Operation, Reason, Verdict};
use zerocopy::IntoBytes;

use super::{Destination, Outcome, Policy, Recorder, Sample, UNIX, load, one, recorder, replay};
use crate::audit::Record;
use crate::policy::Action;

pub const NAMES: &[&str] = &["a.test", "b.test", "x.a.test", "y.x.a.test", "c.example"];
/// Rules by name for a random policy: what it permits, and what it denies.
pub const SOME: &str = "- {name: [a.test, \"**.a.test\"], port: 443, protocol: tcp}";
pub const OTHERS: &str = "- {name: [b.test, \"*.a.test\"], port: [80, 443]}";

/// A random policy with rules by name in it.
pub fn with_rules(policy: &str, allow: &str) -> String {
    let (before, network) = policy.split_once("\nnetwork:\n").unwrap();
    let mut network = format!("\n{network}");
    for (list, rule) in [("allow", allow), ("deny", "- y.x.a.test")] {
        let empty = format!("\n    {list}: []\n");
        let begun = format!("\n    {list}:\n");
        network = network.replacen(&empty, &begun, 1);
        network = network.replacen(&begun, &format!("{begun}      {rule}\n"), 1);
    }
    format!("{before}\nnetwork:{network}")
}

fn destination(last: u8, port: u16) -> Destination {
    let mut address = [0; 16];
    address[10..].copy_from_slice(&[0xff, 0xff, 192, 0, 2, last]);
    Destination {
        family: 2,
        protocol: 6,
        port,
        kind: 1,
        address,
    }
}

/// The name and the destination with a number.
fn deed(number: u64) -> (usize, Destination) {
    let number = number / 16;
    let name = number as usize % NAMES.len();
    let port = [443, 80, 22][number as usize % 3];
    (name, destination(name as u8 + 1, port))
}

fn is_resolution(number: u64) -> bool {
    number / 16 % 4 == 3
}

/// The verdict on what an address was opened for, if it was.
fn opened(policy: &Policy, name: &str, to: &Destination) -> Option<Verdict> {
    let by_address = policy.judge(&Action::Network { destination: to });
    if by_address.rule.is_some() || !policy.has_name_rules() {
        return None;
    }
    let (port, protocol) = (to.port, to.protocol as u8);
    let by_name = policy.judge(&Action::Name {
        name,
        port,
        protocol,
    });
    Some(by_name.verdict)
}

/// Records the resolution of a name, or a connection to what it opened.
pub fn record(number: u64, policy: &Policy, recorder: &mut Recorder) {
    let (index, to) = deed(number);
    let name = NAMES[index];
    if is_resolution(number) {
        let judged = policy.judge_name(name);
        let allowed = judged.verdict == Verdict::Allow;
        recorder.decided(Record {
            session: Some(7),
            target: Some(name.into()),
            verdict: Some(if allowed { "allow" } else { "deny" }.into()),
            cause: Some(judged.reason.name().into()),
            protocol: Some("udp".into()),
            ..Record::new("resolve")
        });
        return;
    }
    let by_address = policy.judge(&Action::Network { destination: &to });
    let sample = if was_opened(policy, name, &to) {
        Sample::new(
            Operation::Connect,
            Verdict::Allow,
            Reason::Opened,
            to.as_bytes(),
        )
        .with(|header| header.name = index as u32 + 1)
    } else {
        let (verdict, reason) = (by_address.verdict, by_address.reason);
        Sample::new(Operation::Connect, verdict, reason, to.as_bytes())
    };
    recorder.record(&sample.bytes());
}

/// Whether a rule by name opened the address: a default opens none.
fn was_opened(policy: &Policy, name: &str, to: &Destination) -> bool {
    opened(policy, name, to) == Some(Verdict::Allow)
        && policy
            .judge_name(name)
            .grants
            .iter()
            .any(|it| it.covers(to.port, to.protocol as u8))
}

/// Whether another policy decides otherwise about it.
pub fn differs(number: u64, before: &Policy, after: &Policy) -> bool {
    let (index, to) = deed(number);
    let name = NAMES[index];
    if is_resolution(number) {
        let allows = |policy: &Policy| policy.judge_name(name).verdict == Verdict::Allow;
        return after.has_name_rules() && allows(before) != allows(after);
    }
    let by_address = |policy: &Policy| policy.judge(&Action::Network { destination: &to }).verdict;
    if !was_opened(before, name, &to) {
        return by_address(before) != by_address(after);
    }
    let after = opened(after, name, &to).unwrap_or_else(|| by_address(after));
    after != Verdict::Allow
}

fn network(rules: &str) -> String {
    format!("version: 1\nnetwork:\n{rules}\n")
}

fn counts(outcome: &Outcome) -> [u64; 4] {
    [
        outcome.asked,
        outcome.not_asked,
        outcome.would_refuse,
        outcome.would_permit,
    ]
}

const BY_NAME: &str = "  allow: [\"a.test:443/tcp\"]";

#[test]
fn what_a_name_opened_is_asked_by_address_and_then_by_name() {
    let sample = Sample::new(
        Operation::Connect,
        Verdict::Allow,
        Reason::Opened,
        destination(1, 443).as_bytes(),
    )
    .with(|header| header.name = 1);
    for (rules, expected) in [
        (BY_NAME, [1, 0, 0, 0]),
        ("  allow: [\"*.test\"]", [1, 0, 0, 0]),
        // Another port, another name, a rule that denies the name.
        ("  allow: [\"a.test:80\"]", [1, 0, 1, 0]),
        ("  allow: [\"b.test\"]", [1, 0, 1, 0]),
        ("  default: allow\n  deny: [\"a.test\"]", [1, 0, 1, 0]),
        // Rules about the address come first.
        (
            "  allow: [\"a.test\"]\n  deny: [\"192.0.2.0/24\"]",
            [1, 0, 1, 0],
        ),
        (
            "  allow: [\"b.test\", \"192.0.2.0/24\"]\n  deny: [\"a.test\"]",
            [1, 0, 0, 0],
        ),
        // Without rules by name only the address counts.
        ("  allow: [\"192.0.2.1\"]", [1, 0, 0, 0]),
        ("  default: deny", [1, 0, 1, 0]),
        ("  default: allow", [1, 0, 0, 0]),
    ] {
        let outcome = one(&sample, &network(BY_NAME), &network(rules));
        assert_eq!(counts(&outcome), expected, "{rules}: {outcome:#?}");
    }
}

#[test]
fn questions_to_name_servers_are_not_asked_under_rules_by_name() {
    let make = |verdict, reason| {
        let to = destination(1, 53);
        Sample::new(Operation::Send, verdict, reason, to.as_bytes())
    };
    let by_name = network(BY_NAME);
    let open = network("  default: allow");
    for (sample, before, after, expected) in [
        (
            make(Verdict::Allow, Reason::Redirected),
            &by_name,
            &open,
            [0, 1, 0, 0],
        ),
        (
            make(Verdict::Deny, Reason::ResolverOnly),
            &by_name,
            &open,
            [0, 1, 0, 0],
        ),
        (
            make(Verdict::Allow, Reason::Default),
            &open,
            &by_name,
            [0, 1, 0, 0],
        ),
        (
            make(Verdict::Allow, Reason::Default),
            &open,
            &network("  default: deny"),
            [1, 0, 1, 0],
        ),
    ] {
        let outcome = one(&sample, before, after);
        assert_eq!(counts(&outcome), expected, "{sample:?}");
    }
}

#[test]
fn names_that_were_resolved_are_asked_where_the_name_decided() {
    let outcome = |verdict: &'static str, cause: &'static str, after: &str| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let mut recorder = recorder(&path, &load(&network(BY_NAME)));
        recorder.decided(Record {
            target: Some("a.test".into()),
            verdict: Some(verdict.into()),
            cause: Some(cause.into()),
            ..Record::new("resolve")
        });
        recorder.settle();
        drop(recorder);
        counts(&replay(&path, load(&network(after))))
    };
    let other = "  allow: [\"b.test\"]";
    let denies = "  default: allow\n  deny: [\"a.test\"]";
    assert_eq!(outcome("allow", "rule", BY_NAME), [1, 0, 0, 0]);
    assert_eq!(outcome("allow", "rule", other), [1, 0, 1, 0]);
    assert_eq!(outcome("allow", "rule", denies), [1, 0, 1, 0]);
    assert_eq!(outcome("deny", "default", BY_NAME), [1, 0, 0, 1]);
    assert_eq!(outcome("deny", "default", other), [1, 0, 0, 0]);
    assert_eq!(outcome("would-deny", "default", other), [1, 0, 0, 0]);
    // Nobody would have been asked by way of us.
    assert_eq!(outcome("allow", "rule", "  default: deny"), [0, 1, 0, 0]);
    for cause in ["address-denied", "alias-denied", "upstream-failed", "busy"] {
        assert_eq!(outcome("deny", cause, BY_NAME), [0, 1, 0, 0], "{cause}");
    }
    assert_eq!(outcome("allow", "localhost", other), [0, 1, 0, 0]);
}

fn unix(operation: Operation, verdict: Verdict, reason: Reason, name: &[u8]) -> Sample {
    let mut sample = Sample::new(operation, verdict, reason, UNIX.as_bytes());
    sample.target.extend_from_slice(name);
    sample
}

#[test]
fn unix_sockets_are_asked_by_their_names() {
    let open = network("  unix: allow");
    for (name, rules, refused) in [
        (&b"/run/x\n.sock"[..], "[\"/run/*\"]", 0),
        (b"/run/x.sock", "[\"/run/y.sock\"]", 1),
        (b"\0abc/\\d", "[\"@abc*\"]", 0),
        (b"\0abc", "[\"/**\", \"@b*\"]", 1),
        // One is a path, one an abstract name that looks like it.
        (b"\0/run/x", "[\"/run/x\"]", 1),
        (b"/run/x", "[\"@/run/x\"]", 1),
    ] {
        let sample = unix(Operation::Connect, Verdict::Allow, Reason::Default, name);
        let after = network(&format!("  unix: {{ allow: {rules} }}"));
        let outcome = one(&sample, &open, &after);
        assert_eq!(counts(&outcome), [1, 0, refused, 0], "{name:?} {rules}");
        let sample = unix(Operation::Connect, Verdict::Deny, Reason::UnixSocket, name);
        let outcome = one(&sample, "version: 1\n", &after);
        assert_eq!(counts(&outcome), [1, 0, 0, 1 - refused], "{name:?} {rules}");
    }
}

#[test]
fn an_own_socket_is_refused_by_rules_alone() {
    let own = unix(
        Operation::Connect,
        Verdict::Allow,
        Reason::OwnSocket,
        b"/tmp/own.sock",
    );
    let denies = network("  unix: { deny: [\"/tmp/*\"] }");
    let other = network("  unix: { deny: [\"/run/*\"] }");
    let allows = network("  unix: { allow: [\"/tmp/*\"] }");
    for (after, refused) in [
        ("version: 1\n", 0),
        (&*other, 0),
        (&*allows, 0),
        (&*denies, 1),
    ] {
        let outcome = one(&own, "version: 1\n", after);
        assert_eq!(counts(&outcome), [1, 0, refused, 0], "{after}");
    }
}

#[test]
fn listening_is_asked_by_its_own_rules() {
    let open = network("  listen: { default: allow }");
    let mut anywhere = destination(0, 8080);
    anywhere.address[12..].fill(0);
    for (at, rules, refused) in [
        (destination(1, 8080), "[\"192.0.2.1:8000-8999/tcp\"]", 0),
        (destination(1, 80), "[\"192.0.2.1:8000-8999/tcp\"]", 1),
        // The unspecified address stands for itself.
        (anywhere, "[\"0.0.0.0:8080\"]", 0),
        (anywhere, "[\"127.0.0.1:8080\"]", 1),
    ] {
        let after = network(&format!("  listen: {{ allow: {rules} }}"));
        let sample =
            |verdict| Sample::new(Operation::Listen, verdict, Reason::Default, at.as_bytes());
        let outcome = one(&sample(Verdict::Allow), &open, &after);
        assert_eq!(counts(&outcome), [1, 0, refused, 0], "{rules}");
        let outcome = one(&sample(Verdict::Deny), "version: 1\n", &after);
        assert_eq!(counts(&outcome), [1, 0, 0, 1 - refused], "{rules}");
        // Rules for connecting have no say.
        let connects = network(&format!("  allow: {rules}\n  listen: {{ default: deny }}"));
        let outcome = one(&sample(Verdict::Allow), &open, &connects);
        assert_eq!(counts(&outcome), [1, 0, 1, 0], "{rules}");
    }
    let taken = unix(
        Operation::Listen,
        Verdict::Allow,
        Reason::Default,
        b"\0mine",
    );
    for (rules, refused) in [("[\"@mine\"]", 0), ("[\"@other\"]", 1)] {
        let after = network(&format!("  listen: {{ allow: {rules} }}"));
        let outcome = one(&taken, &open, &after);
        assert_eq!(counts(&outcome), [1, 0, refused, 0], "{rules}");
    }
}
