use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::policy::{Action, LoadOptions, load_text};

fn policy(text: &str) -> Policy {
    load_text("names.yaml".as_ref(), text, &LoadOptions::default()).expect("a policy")
}

#[test]
fn shapes_mean_what_the_manual_says() {
    for (pattern, yes, no) in [
        (
            "api.example.com",
            &["api.example.com"][..],
            &[
                "example.com",
                "x.api.example.com",
                "api.example.com.evil.org",
                "apixexample.com",
            ][..],
        ),
        (
            "*.example.com",
            &["a.example.com", "xn--bcher-kva.example.com"],
            &[
                "example.com",
                "a.b.example.com",
                "aexample.com",
                "example.com.evil.org",
            ],
        ),
        (
            "**.example.com",
            &["a.example.com", "a.b.c.example.com"],
            &["example.com", "badexample.com", "a.example.com.evil.org"],
        ),
        ("*", &["router"], &["a.b"]),
        ("**", &["a", "a.b.c"], &[]),
        (
            "API.Example.COM.",
            &["api.example.com"],
            &["api.example.co"],
        ),
        (
            "bücher.example",
            &["xn--bcher-kva.example"],
            &["bucher.example"],
        ),
    ] {
        let pattern = NamePattern::parse(pattern).expect(pattern);
        for name in yes {
            assert!(pattern.matches(name), "{pattern:?} {name}");
        }
        for name in no {
            assert!(!pattern.matches(name), "{pattern:?} {name}");
        }
    }
}

#[test]
fn malformed_names_are_errors_at_their_place() {
    for (text, at) in [
        ("", 0),
        ("a..b", 2),
        (".a", 0),
        ("a*.example.com", 1),
        ("*a.example.com", 0),
        ("a.*.com", 2),
        ("***.com", 0),
        ("ex ample.com", 0),
        ("a.b$c.com", 2),
        ("10.0.0.300", 0),
        ("1.2.3", 0),
        ("a.com:70000", 6),
        ("a.com/sctp", 6),
        ("a.com:80/icmp", 0),
    ] {
        let error = NamePattern::parse(text).expect_err(text);
        assert_eq!(error.at, at, "{text}: {}", error.message);
    }
    let long = format!("{}.com", "a".repeat(64));
    assert!(NamePattern::parse(&long).is_err());
    assert!(NamePattern::parse(&["a."; 130].concat()).is_err());
}

#[test]
fn ports_of_all_permitting_rules_are_opened() {
    let policy = policy(
        "version: 1\nnetwork:\n  allow: [\"a.test:443/tcp\", \"*.test:80,8000-8010/tcp\", \"**:53/udp\"]\n  deny: [\"bad.test\"]\n",
    );
    let judged = policy.judge_name("a.test");
    assert_eq!(judged.verdict, Verdict::Allow);
    let covers = |port, protocol| judged.grants.iter().any(|g| g.covers(port, protocol));
    assert!(covers(443, 6) && covers(80, 6) && covers(8005, 6) && covers(53, 17));
    assert!(!covers(443, 17) && !covers(22, 6) && !covers(8011, 6));
    let bad = policy.judge_name("bad.test");
    assert_eq!(bad.verdict, Verdict::Deny);
    assert!(bad.grants.is_empty());
    assert_eq!(policy.judge_name("x.bad.test").grants.len(), 1);
}

#[test]
fn denials_of_addresses_hold_for_answers() {
    let policy = policy(
        "version: 1\nnetwork:\n  allow: [\"a.test:443/tcp\"]\n  deny: [\"10.0.0.0/8\", \"192.0.2.1:22\"]\n",
    );
    let grants = policy.judge_name("a.test").grants;
    let address = |text: &str| {
        let v4: std::net::Ipv4Addr = text.parse().expect(text);
        v4.to_ipv6_mapped().octets()
    };
    assert_eq!(
        policy.judge_answer(address("10.1.2.3"), &grants).0,
        Verdict::Deny
    );
    assert_eq!(
        policy.judge_answer(address("192.0.2.1"), &grants).0,
        Verdict::None
    );
    assert_eq!(
        policy.judge_answer(address("192.0.2.2"), &grants).0,
        Verdict::None
    );
}

/// Few labels, so that names and patterns meet.
fn name() -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::sample::select(vec!["a", "b", "c", "com"]), 1..5)
        .prop_map(|labels| labels.join("."))
}

fn pattern() -> impl Strategy<Value = String> {
    (proptest::sample::select(vec!["", "*.", "**."]), name())
        .prop_map(|(front, name)| format!("{front}{name}"))
}

fn list() -> impl Strategy<Value = Vec<(String, Option<String>)>> {
    proptest::collection::vec((pattern(), proptest::option::of(pattern())), 0..6)
}

proptest! {
    #[test]
    fn the_index_finds_what_asking_every_rule_finds(allow in list(), deny in list(), names in proptest::collection::vec(name(), 20)) {
        let lines = |rules: &[(String, Option<String>)]| {
            rules.iter().map(|(pattern, except)| match except {
                Some(except) => format!("    - {{name: \"{pattern}\", except: \"{except}\"}}"),
                None => format!("    - \"{pattern}\""),
            }).collect::<Vec<_>>().join("\n")
        };
        let mut text = String::from("version: 1\nnetwork:\n  default: deny\n");
        for (key, rules) in [("allow", &allow), ("deny", &deny)] {
            if !rules.is_empty() {
                let _ = writeln!(text, "  {key}:\n{}", lines(rules));
            }
        }
        let policy = policy(&text);
        for name in names {
            prop_assert_eq!(policy.judge_name(&name), policy.judge_name_plainly(&name), "{}\n{}", name, text);
        }
    }
}

#[test]
fn an_empty_list_of_ports_is_no_port() {
    for (rule, expected) in [
        ("{name: a.test}", Verdict::Allow),
        ("{name: a.test, port: []}", Verdict::Deny),
        ("{name: a.test, port: [80]}", Verdict::Deny),
        ("{name: a.test, port: [80, 443]}", Verdict::Allow),
    ] {
        let policy = policy(&format!(
            "version: 1\nnetwork:\n  default: deny\n  allow:\n    - {rule}\n"
        ));
        let action = Action::Name {
            name: "a.test",
            port: 443,
            protocol: 6,
        };
        assert_eq!(policy.judge(&action).verdict, expected, "{rule}");
    }
}

#[test]
fn ten_thousand_names_cost_what_ten_cost() {
    let of = |count: usize| {
        let mut text = String::from("version: 1\nnetwork:\n  allow:\n");
        for i in 0..count {
            let wildcard = ["", "*.", "**."][i % 3];
            let _ = writeln!(text, "    - \"{wildcard}h{i}.example{}.com:443\"", i % 97);
        }
        policy(&text)
    };
    let (few, many) = (of(10), of(10_000));
    // Work is counted in rules that are asked, which no machine's speed changes.
    for name in ["a.b.c.h5.example5.com", "h9.example9.com", "nobody.test"] {
        let asked = |policy: &Policy| policy.names.candidates(name).len();
        assert!(asked(&few) <= 1 && asked(&many) <= 1, "{name}");
    }
    assert_eq!(
        many.judge_name("h9999.example8.com").verdict,
        Verdict::Allow
    );
}

#[test]
fn budgets_that_count_by_rules_about_names_mark_what_those_open() {
    let policy = policy(
        "version: 1\nnetwork:\n  default: deny\n  allow:\n    - {id: one, name: \"a.test\", port: 443}\n    - {id: all, name: \"*.test\", port: 443}\n    - {id: other, name: \"**.test\", port: 80}\nbudgets:\n  - {connects: 5, rules: one, per: hour}\n  - {connects: 9, rules: [all, other], per: hour}\n",
    );
    let marks = |name: &str| -> Vec<(u16, u16)> {
        let grants = policy.judge_name(name).grants;
        grants.iter().map(|it| (it.low, it.marks)).collect()
    };
    // One port, by two rules: both count.
    assert_eq!(marks("a.test"), [(80, 0x2000), (443, 0x3000)]);
    assert_eq!(marks("b.test"), [(80, 0x2000), (443, 0x2000)]);
    assert_eq!(marks("a.b.test"), [(80, 0x2000)]);
    assert_eq!(policy.marks_of_names(), 0x3000);
}
