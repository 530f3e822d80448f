//! The text of a policy that was learnt: rules, and comments that say what each was seen for.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use agentguard_common::verdict::access;

use super::places::{Place, Room, quote_path, secrets, with_names};
use super::{Lesson, Seen, network};
use crate::event::escape::printable;

/// Writes the policy, upon `base` or by itself.
pub fn write(
    lesson: &Lesson,
    name: &str,
    vars: &BTreeMap<String, String>,
    upon_base: bool,
) -> String {
    let mut text = format!(
        "# Learnt from {} records of what a run did. What it did not do is denied.\n\
         # Behind each rule: how often it was needed, by which programs, and for what.\n\
         # Read it before it is used: what is not needed should go, and what is missing was not seen.\n\
         version: 1\nname: {}\n{}",
        lesson.learnt,
        json(name),
        if upon_base {
            "extends: [base]\n"
        } else {
            "# Not upon `base`: the run did something that `base` denies.\n"
        }
    );
    // The longest first: a workspace within the home folder is the workspace.
    let mut named: Vec<(&str, &str)> = vars
        .iter()
        .filter(|(name, value)| matches!(&***name, "workspace" | "home") && value.len() > 1)
        .map(|(name, value)| (&**name, &**value))
        .collect();
    named.sort_by_key(|(_, value)| std::cmp::Reverse(value.len()));
    let own: Vec<Vec<u8>> = named
        .iter()
        .filter(|(name, _)| *name == "workspace")
        .map(|(_, value)| value.as_bytes().to_vec())
        .collect();
    let sections = [("read", access::READ), ("write", access::WRITE)];
    let mut files = String::new();
    for (section, bit) in sections {
        let Some(tree) = lesson.files.get(&bit) else {
            continue;
        };
        let _ = write!(files, "  {section}:\n    default: deny\n    allow:\n");
        let room = Room {
            own: own.clone(),
            reading: bit == access::READ,
        };
        for place in tree.places(&room) {
            comment(&mut files, &place.seen);
            let pattern = json(&with_names(&place, &named));
            let _ = if place.spares_secrets {
                let secrets = json(&secrets());
                writeln!(files, "      - {{ path: {pattern}, except: {secrets} }}")
            } else {
                writeln!(files, "      - {pattern}")
            };
        }
    }
    if !files.is_empty() {
        let _ = write!(text, "\nfiles:\n{files}");
    }
    text.push_str("\nexec:\n  default: deny\n");
    if !lesson.programs.is_empty() {
        text.push_str("  allow:\n");
    }
    for (path, seen) in &lesson.programs {
        match lesson.opened.get(path) {
            // An interpreter, which is opened for the script that names it.
            Some(opened) if seen.count == 0 => comment(&mut text, opened),
            _ => comment(&mut text, seen),
        }
        let place = Place {
            pattern: quote_path(path),
            root: path.clone(),
            seen: Seen::default(),
            spares_secrets: false,
        };
        let pattern = with_names(&place, &named);
        let _ = writeln!(text, "      - {{ path: {} }}", json(&pattern));
    }
    network::write(&mut text, lesson, &named);
    if !lesson.locks.is_empty() {
        text.push_str("\nkernel:\n");
    }
    for (lock, seen) in &lesson.locks {
        comment(&mut text, seen);
        let _ = writeln!(text, "  {lock}: allow");
    }
    text
}

/// A JSON text is a YAML text.
pub fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// What a rule was seen for.
pub fn comment(text: &mut String, seen: &Seen) {
    if seen.count == 0 {
        return;
    }
    let list = |texts: &std::collections::BTreeSet<String>| {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        texts.join(", ")
    };
    let _ = writeln!(
        text,
        "      # {}× by {}: {}",
        seen.count,
        printable(&list(&seen.by)),
        printable(&list(&seen.examples))
    );
}
