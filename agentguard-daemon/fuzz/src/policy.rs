//! Policies of any text: they are understood or refused with a diagnostic that can be shown, and what is
//! understood means the same to the reference and in its table.

use std::path::Path;

use agentguard::policy::{LoadOptions, Policy, load_text};

use super::verdict;

/// Larger texts only take longer.
const MAX: usize = 16 << 10;

/// The bytes as a policy.
pub fn run(data: &[u8]) {
    let Some(text) = std::str::from_utf8(data)
        .ok()
        .filter(|text| text.len() <= MAX)
    else {
        return;
    };
    let mut options = LoadOptions::default();
    for (name, value) in [("workspace", "/work"), ("home", "/home/user")] {
        options.vars.insert(name.to_owned(), value.to_owned());
    }
    match load_text(Path::new("/nowhere/fuzz.yaml"), text, &options) {
        Ok(policy) => understood(&policy, data),
        Err(error) => {
            let _ = error.place();
            for character in format!("{error}{}", error.help_text()).chars() {
                assert!(!character.is_control() || character == '\n', "{error}");
            }
            // As the command line shows it.
            assert!(!format!("{:?}", miette::Report::new(error)).is_empty());
        }
    }
}

/// It can be compiled or says why not, its examples can be tried, and both sides agree on some actions.
fn understood(policy: &Policy, data: &[u8]) {
    let _ = policy.run_inline_tests();
    match policy.compile(1) {
        Ok(table) => {
            for chunk in data.chunks(40).take(20) {
                verdict::agree(policy, &table.bytes, chunk);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
