//! One pattern in each place where there can be one, and inputs that it may match: the reference, the table
//! and the examples of the policy must agree.

use std::path::Path;

use agentguard::policy::{LoadOptions, load_text};
use serde_json::json;

use super::verdict;

/// Longer patterns only take longer.
const MAX: usize = 300;

/// Up to the first newline a pattern, up to the second an exception to it; the rest are inputs.
pub fn run(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut word = || {
        std::str::from_utf8(lines.next()?)
            .ok()
            .filter(|text| text.len() <= MAX)
    };
    let Some(pattern) = word().filter(|pattern| quick(pattern)) else {
        return;
    };
    let except: Vec<&str> = word().filter(|text| !text.is_empty()).into_iter().collect();
    if !except.iter().copied().all(quick) {
        return;
    }
    let rest: Vec<&[u8]> = lines.take(20).collect();
    for section in [
        json!({"files": {"read": {"default": "allow", "deny": [{"path": pattern, "except": except}]}}}),
        json!({"exec": {"default": "allow", "deny": [{"path": pattern, "except": except}]}}),
        json!({"exec": {"allow": [{"command": pattern, "except": except}]}}),
        json!({"network": {"allow": [pattern]}}),
    ] {
        let mut policy = section;
        policy["version"] = json!(1);
        // JSON is YAML.
        let text = policy.to_string();
        let Ok(policy) = load_text(
            Path::new("/nowhere/fuzz.yaml"),
            &text,
            &LoadOptions::default(),
        ) else {
            continue;
        };
        let Ok(table) = policy.compile(1) else {
            continue;
        };
        for input in rest.iter().copied().chain([pattern.as_bytes()]) {
            for kind in 0..verdict::KINDS {
                verdict::agree_on(&policy, &table.bytes, kind, input);
            }
        }
    }
}

/// Behind a `*`, each further place doubles the states, up to the compiler's bound: seconds, which are known.
fn quick(pattern: &str) -> bool {
    pattern.matches(['?', '[']).count() <= 6
}
