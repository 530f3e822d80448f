//! Differences by meaning, against the reference.

use std::path::Path;

use agentguard_common::verdict::{Verdict, access};

use super::recorded::{SECTION, verb};
use super::{Changes, RECORDED, UNRECORDED, diff};
use crate::policy::generate::Generator;
use crate::policy::{LoadOptions, OwnedAction, Policy, load_text};

fn policy(text: &str) -> Policy {
    load_text(Path::new("/p.yaml"), text, &LoadOptions::default()).unwrap()
}

fn between(before: &str, after: &str) -> Changes {
    diff(&policy(before), &policy(after)).unwrap()
}

#[test]
fn other_words_for_the_same_are_no_difference() {
    let one = "version: 1\nfiles:\n  read:\n    allow: [\"/a/{b,c}/**\", \"/a/b/d\"]\n";
    let other = "version: 1\nname: other\nfiles:\n  read:\n    default: deny\n    allow: [\"/a/c/**\", \"/a/b/**\"]\n";
    assert_eq!(between(one, other).changes, []);
    let more = "version: 1\nfiles:\n  read:\n    allow: [\"/a/{b,c,d}/**\", \"/a/b/d\"]\n";
    let found = between(one, more);
    assert_eq!(found.changes.len(), 1, "{found:#?}");
    let change = &found.changes[0];
    assert_eq!((change.section, change.example.as_str()), ("read", "/a/d"));
    assert!(change.widens);
    assert!(!between(more, one).changes[0].widens);
}

#[test]
fn every_section_is_compared() {
    let one = "version: 1\nexec:\n  allow: [\"git status\", { path: /usr/bin/cc }]\nnetwork:\n  allow: [\"10.0.0.0/8:443/tcp\"]\n";
    let other = "version: 1\nmode: shadow\nkernel: { mount: allow }\nexec:\n  allow: [\"git *\", { path: /usr/bin/cc }]\nnetwork:\n  unix: allow\n  allow: [\"10.0.0.0/8:443/tcp\"]\n  deny: [\"10.0.0.7\"]\n";
    let found = between(one, other);
    let sections: Vec<_> = found.changes.iter().map(|change| change.section).collect();
    assert_eq!(
        sections,
        ["mode", "kernel", "unix", "exec", "network"],
        "{found:#?}"
    );
    assert!(found.changes[3].example.starts_with("/git "), "{found:#?}");
    assert_eq!(found.changes[4].example, "10.0.0.7:443/tcp");
    assert_eq!(found.changes[4].is, "deny");
}

#[test]
fn each_rule_that_decides_otherwise_is_named() {
    let both = "version: 1\nfiles:\n  read:\n    allow:\n      - { id: one, path: \"/a/**\" }\n      - { id: two, path: \"/b/*.rs\" }\n";
    let found = between(both, "version: 1\n");
    let by: Vec<_> = found
        .changes
        .iter()
        .map(|it| (&*it.was_by, &*it.example))
        .collect();
    assert_eq!(by, [("one", "/a"), ("two", "/b/.rs")], "{found:#?}");
}

#[test]
fn what_user_space_holds_is_compared_by_meaning() {
    let with = |limits: &str| format!("version: 1\nmodels: {{ providers: [openai] }}\n{limits}");
    let one = with(
        "budgets:\n  - { id: a, requests: 100, per: day }\nschedule: { hours: \"Mon-Fri 08:00-19:00 UTC\" }\n",
    );
    let same = with(
        "budgets:\n  - { id: b, reason: other words, requests: 100, per: day }\nschedule: { hours: \"mon-fri 08:00-19:00 UTC\" }\n",
    );
    let more = with(
        "budgets:\n  - { id: a, requests: 200, per: day }\nschedule: { hours: \"Mon-Sat 08:00-19:00 UTC\" }\n",
    );
    assert_eq!(between(&one, &same).changes, []);
    let found = between(&one, &more);
    let sections: Vec<_> = found
        .changes
        .iter()
        .map(|it| (it.section, it.widens))
        .collect();
    let expected = [
        ("budgets", true),
        ("schedule", true),
        ("budgets", false),
        ("schedule", false),
    ];
    assert_eq!(sections, expected, "{found:#?}");
    let two = one.replace("openai", "openai, gemini");
    for (before, after, widens) in [(&two, &one, false), (&one, &two, true)] {
        let found = between(before, after);
        assert_eq!(found.changes.len(), 1, "{found:#?}");
        assert_eq!(found.changes[0].widens, widens);
    }
    assert!(
        found.changes[0].was.contains("100 requests per day"),
        "{found:#?}"
    );
}

/// What is told about recording: the example, and whether it is recorded from now on.
fn recorded(before: &str, after: &str) -> Vec<(String, bool)> {
    let changes = between(before, after).changes.into_iter();
    let of_audit = changes.filter(|it| it.section == SECTION);
    of_audit
        .map(|it| {
            assert!(!it.widens && it.was != it.is, "{it:?}");
            (it.example, it.is == RECORDED)
        })
        .collect()
}

#[test]
fn levels_are_compared_by_what_they_record() {
    let all = "version: 1\nfiles: {read: {default: allow}, write: {allow: [\"/w/**\"]}}\nnetwork: {default: allow, unix: allow}\n";
    let with = |level: &str| format!("{all}audit: {level}\n");
    let both_ways = |before: &str, after: &str, less: &[&str]| {
        for (one, other, is_news) in [(before, after, false), (after, before, true)] {
            let expected: Vec<(String, bool)> =
                less.iter().map(|it| ((*it).to_owned(), is_news)).collect();
            assert_eq!(recorded(one, other), expected);
        }
    };
    // Other words for the same.
    both_ways(all, &with("{level: all}"), &[]);
    both_ways(
        &with("decisions"),
        &with("{level: decisions, repeats: each}"),
        &[],
    );
    both_ways(all, &with("decisions"), &["read /", "write /w"]);
    both_ways(
        &with("decisions"),
        &with("denied"),
        &[
            "connect to unix:@",
            "listen at unix:@",
            "connect to [6161:6161:6161:6161:6161:6161:6161:6161]:24929/tcp",
            "use anonymous_code",
        ],
    );
    // The level of a rule against that of the policy, and another rule that wants a record all the same.
    let rule = |rules: &str| format!("version: 1\nfiles: {{read: {{allow: [{rules}]}}}}\n");
    let quiet = "{id: a, path: \"/a/**\", audit: decisions}";
    let loud = "{id: b, path: \"/a/b/**\", audit: all}";
    both_ways(&rule("\"/a/**\""), &rule(quiet), &["read /a"]);
    both_ways(
        &rule(&format!("{quiet}, {loud}")),
        &rule(&format!("{quiet}, {{id: b, path: \"/a/b/**\"}}")),
        &["read /a/b"],
    );
    // Every act that differs comes under the same level: nothing changes.
    let levelled = rule("{id: a, path: \"/a/**\", audit: all}");
    both_ways(&levelled, &format!("{levelled}audit: decisions\n"), &[]);
    // A refusal is recorded, and what takes its place is not.
    let denied = "version: 1\naudit: decisions\n";
    let silent = format!("{}audit: decisions\n", rule("\"/a/**\""));
    assert_eq!(recorded(denied, &silent), [("read /a".to_owned(), false)]);
    let found = between(denied, &silent).changes;
    assert_eq!((found[0].section, found[0].widens), ("read", true));
}

#[test]
fn each_rule_that_records_otherwise_is_named_and_repeats_are() {
    let rules = |level: &str| {
        format!(
            "version: 1\nnetwork:\n  allow:\n    - {{id: one, address: 10.0.0.1, port: 443, protocol: tcp{level}}}\n    - {{id: two, name: a.test, port: 22, protocol: tcp{level}}}\n  listen: {{allow: [{{id: three, address: 127.0.0.1, port: 80, protocol: tcp{level}}}]}}\n"
        )
    };
    let found = between(&rules(""), &rules(", audit: denied")).changes;
    let told: Vec<_> = found
        .iter()
        .map(|it| (&*it.example, &*it.was_by, &*it.is, &*it.is_by))
        .collect();
    let quiet = |example, rule| (example, "audit: all", UNRECORDED, rule);
    assert_eq!(
        told,
        [
            quiet("connect to 10.0.0.1:443/tcp", "one"),
            quiet("listen at 127.0.0.1:80/tcp", "three"),
            quiet("reach a.test:22/tcp", "two"),
        ]
    );
    let found = between("version: 1\n", "version: 1\naudit: {repeats: fold}\n").changes;
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(
        (found[0].section, &*found[0].example, &*found[0].is),
        (SECTION, "what a thread repeats", "counted in one record")
    );
    // Switches have the policy's level.
    let locks = |level: &str| format!("version: 1\nkernel: {{mount: allow}}\naudit: {level}\n");
    assert_eq!(
        recorded(&locks("decisions"), &locks("denied")),
        [("use mount".to_owned(), false)]
    );
}

fn section(action: &OwnedAction) -> Option<&'static str> {
    Some(match action {
        OwnedAction::Path { access, .. } if *access == access::READ => "read",
        OwnedAction::Path { access, .. } if *access == access::WRITE => "write",
        OwnedAction::Exec { argv, .. } if !argv.is_empty() => "exec",
        OwnedAction::Network(_) => "network",
        OwnedAction::Listen(_) => "listen",
        OwnedAction::Unix { name, listen } => match name.first() {
            Some(b'/') if !listen && name.len() > 1 && !name.contains(&0) => "unix",
            Some(0) if *listen => "listen",
            Some(0) => "unix",
            _ => return None,
        },
        _ => return None,
    })
}

#[test]
fn whatever_differs_has_an_example() {
    let (mut differing, mut unheard) = (0, 0);
    for seed in 0..60 {
        let mut one = Generator::new(seed);
        let mut other = Generator::new(seed + 1_000);
        let before = policy(&one.policy());
        let after = policy(&other.policy());
        let found = diff(&before, &after).unwrap();
        assert!(found.unfinished.is_empty(), "seed {seed}");
        for change in &found.changes {
            assert_ne!(change.was, change.is, "seed {seed}");
        }
        for number in 0..300 {
            let action = if number % 2 == 0 {
                one.action()
            } else {
                other.action()
            };
            let Some(section) = section(&action) else {
                continue;
            };
            // No resolved path looks like that, and the root is no program.
            if let OwnedAction::Path { path, .. }
            | OwnedAction::Exec { path, .. }
            | OwnedAction::Unix { name: path, .. } = &action
                && path.first() != Some(&0)
                && (path.first() != Some(&b'/')
                    || path.windows(2).any(|pair| pair == b"//")
                    || (path.len() > 1 && path.last() == Some(&b'/'))
                    || (section == "exec" && path == b"/"))
            {
                continue;
            }
            let judge = |policy: &Policy| action.with(|action| policy.judge(action).verdict);
            let (was, is) = (judge(&before), judge(&after));
            let is_recorded = |policy: &Policy| {
                let verdict = judge(policy);
                verdict != Verdict::Allow || action.with(|action| policy.is_recorded(action))
            };
            let (heard, hears) = (is_recorded(&before), is_recorded(&after));
            if section != "exec" && heard != hears {
                unheard += 1;
                let word = if hears { RECORDED } else { UNRECORDED };
                let verb = verb(section);
                let told = found.changes.iter().any(|change| {
                    change.section == SECTION
                        && change.example.starts_with(verb)
                        && change.is == word
                });
                assert!(
                    told,
                    "seed {seed}: {action:?} {was:?} {is:?} is {word}: {found:#?}"
                );
            }
            if was == is {
                continue;
            }
            differing += 1;
            let told = found.changes.iter().any(|change| {
                change.section == section && change.was == was.name() && change.is == is.name()
            });
            assert!(
                told,
                "seed {seed}: {action:?} was {was:?} and is {is:?}: {found:#?}"
            );
        }
        let same = diff(&before, &before).unwrap();
        assert_eq!(same, Changes::default(), "seed {seed}");
    }
    assert!(differing > 500, "only {differing} actions differ");
    assert!(
        unheard > 200,
        "only {unheard} actions are recorded otherwise"
    );
}

#[test]
fn sockets_and_listening_are_compared() {
    let one = "version: 1\nnetwork:\n  unix: { allow: [\"/run/a.sock\", \"@a*\"] }\n  listen: { allow: [\"127.0.0.1:80/tcp\", \"@x\"] }\n";
    let other = "version: 1\nnetwork:\n  unix: { allow: [\"@ab\", \"@a*\"], default: deny, deny: [\"/run/a.sock\"] }\n  listen: { allow: [\"0.0.0.0:80/tcp\", \"127.0.0.1:80/tcp\"] }\n";
    let found = between(one, other);
    let found: Vec<_> = found
        .changes
        .iter()
        .map(|it| (it.section, &*it.example, it.widens))
        .collect();
    assert_eq!(
        found,
        [
            ("listen", "0.0.0.0:80/tcp", true),
            ("unix", "unix:/run/a.sock", false),
            ("listen", "unix:@x", false),
        ]
    );
}

#[test]
fn names_are_compared_by_what_they_mean() {
    let with = |rules: &str| format!("version: 1\nnetwork:\n{rules}\n");
    let examples = |before: &str, after: &str| -> Vec<(String, bool)> {
        let found = between(&with(before), &with(after));
        assert!(
            found.changes.iter().all(|it| it.section == "names"),
            "{found:#?}"
        );
        let changes = found.changes.into_iter();
        changes.map(|it| (it.example, it.widens)).collect()
    };
    let told = |text: &str, widens| vec![(text.to_owned(), widens)];
    // Other words for the same.
    assert_eq!(
        examples(
            "  allow: [\"a.test:443/tcp\", \"a.test:80/tcp\", \"**.b.test\"]",
            "  allow: [{name: [A.test.], port: [80, 443], protocol: tcp}, \"**.b.test\", \"x.b.test:22\"]",
        ),
        []
    );
    for (before, after, example) in [
        ("[\"a.test:80\"]", "[\"a.test\"]", "a.test:443/tcp"),
        ("[\"a.test:443\"]", "[\"a.test:443-444\"]", "a.test:444/tcp"),
        ("[\"a.test:443/tcp\"]", "[\"a.test:443\"]", "a.test:443/udp"),
        ("[\"*.test\"]", "[\"**.test\"]", "x.x.test:443/tcp"),
        ("[\"x.test\"]", "[\"*.test\"]", "xx.test:443/tcp"),
        (
            "[\"a.test\"]",
            "[\"a.test\", \"b.a.test\"]",
            "b.a.test:443/tcp",
        ),
    ] {
        let (before, after) = (format!("  allow: {before}"), format!("  allow: {after}"));
        assert_eq!(examples(&before, &after), told(example, true), "{after}");
        assert_eq!(examples(&after, &before), told(example, false), "{after}");
    }
    // Exceptions and denials.
    assert_eq!(
        examples(
            "  allow: [{name: \"*.test\", except: a.test}]",
            "  allow: [{name: \"*.test\", except: b.test}]"
        ),
        [
            ("a.test:443/tcp".to_owned(), true),
            ("b.test:443/tcp".to_owned(), false)
        ]
    );
    // Without rules by name somebody else resolves them.
    let found = examples("  default: allow", "  default: allow\n  deny: [ads.test]");
    assert_eq!(
        found,
        [
            ("who resolves names".to_owned(), false),
            ("ads.test:443/tcp".to_owned(), false)
        ]
    );
}
