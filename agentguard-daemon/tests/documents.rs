//! The documents say what the program does: policies in them are read and tried, and lists of fields,
//! causes, operations and statuses are complete. It must never need a kernel or root.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use agentguard::policy::{self, LoadOptions};
use agentguard_common::verdict::{Operation, Reason};

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The blocks of YAML that are whole policies, with their lines.
fn policies(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut block: Option<(usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        match &mut block {
            Some(_) if line == "```" => {
                found.extend(block.take().filter(|(_, text)| text.contains("version: 1")));
            }
            Some((_, text)) => {
                text.push_str(line);
                text.push('\n');
            }
            None if line == "```yaml" => block = Some((number + 2, String::new())),
            None => {}
        }
    }
    found
}

#[test]
fn policies_in_documents_hold_what_they_promise() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("team.yaml"), "version: 1\n").expect("a file");
    let vars = [("workspace", "/work"), ("home", "/home/ann")];
    let options = LoadOptions {
        search: Vec::<PathBuf>::new(),
        vars: BTreeMap::from(vars.map(|(name, value)| (name.to_owned(), value.to_owned()))),
        ..LoadOptions::default()
    };
    let mut tried = 0;
    for name in ["README.md", "docs/policy.md", "docs/budgets.md"] {
        for (line, text) in policies(&document(name)) {
            let path = folder.path().join("example.yaml");
            let policy = policy::load_text(&path, &text, &options)
                .unwrap_or_else(|error| panic!("{name}:{line}: {error}"));
            policy
                .compile(1)
                .unwrap_or_else(|error| panic!("{name}:{line}: {error}"));
            for outcome in policy.run_inline_tests() {
                tried += 1;
                assert_eq!(outcome.failure, None, "{name}:{line}: {outcome:?}");
            }
        }
    }
    assert!(tried > 20, "only {tried} examples were found");
}

#[test]
fn the_manual_of_the_log_names_everything_that_a_record_can_hold() {
    let manual = document("docs/audit.md");
    let source = include_str!("../src/audit/record.rs");
    let fields = source
        .lines()
        .filter_map(|line| line.strip_prefix("    pub ")?.split_once(": "))
        .map(|(field, _)| field)
        .filter(|field| !field.contains("const ") && !field.contains("fn "));
    let own = source
        .lines()
        .filter(|line| line.contains("pub const ") && line.contains("&str"))
        .filter_map(|line| line.split('"').nth(1));
    let operations = Operation::ALL.iter().map(|operation| operation.name());
    let causes = Reason::ALL.iter().map(|reason| reason.name());
    let mut count = 0;
    for word in fields.chain(own).chain(operations).chain(causes) {
        count += 1;
        assert!(
            manual.contains(&format!("`{word}`")),
            "docs/audit.md does not speak of `{word}`"
        );
    }
    assert!(count > 60, "only {count} words were found");
}

#[test]
fn the_configuration_that_is_packaged_can_be_used_with_all_that_it_shows() {
    use agentguard::daemon::Config;
    let packaged = document("agentguard-daemon/packaging/agentguard.yaml");
    let path = Path::new("agentguard.yaml");
    assert_eq!(
        Config::parse(path, &packaged).expect("it is one"),
        Config::default()
    );
    // What is commented out of each section.
    let (_, shown) = packaged
        .split_once("\n# metrics_export:\n")
        .expect("metrics");
    let shown = shown.lines().take_while(|line| line.starts_with("#   "));
    let shown: Vec<&str> = shown.map(|line| line.trim_start_matches("# ")).collect();
    let text = format!("metrics_export:\n  {}", shown.join("\n  "));
    let config = Config::parse(path, &text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(config.metrics_export.is_some());
    let (_, shown) = packaged.split_once("\n# sinks:\n").expect("sinks");
    let shown: Vec<&str> = shown
        .lines()
        .map(|line| line.strip_prefix("# ").unwrap_or(line))
        .collect();
    let shown = shown.join("\n");
    let config = Config::parse(path, &format!("sinks:\n{shown}")).expect("it is one, too");
    assert_eq!(config.sinks.len(), 3);
    let (_, shown) = packaged.split_once("\n# approvals:\n").expect("approvals");
    let (shown, _) = shown.split_once("\n\n").expect("an end");
    let shown: Vec<&str> = shown
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .collect();
    let shown = format!("approvals:\n{}", shown.join("\n"));
    let config = Config::parse(path, &shown).expect("it is one, too");
    assert!(config.approvals.webhook.is_some());
    for (name, section) in [
        ("docs/export.md", "sinks:"),
        ("docs/metrics.md", "metrics_export:"),
        ("docs/approvals.md", "approvals:"),
    ] {
        let manual = document(name);
        let blocks = manual
            .split("```")
            .filter_map(|block| block.split_once('\n'));
        let blocks = blocks.map(|(_, block)| block);
        let blocks: Vec<_> = blocks.filter(|it| it.starts_with(section)).collect();
        assert!(!blocks.is_empty(), "{name}");
        for block in blocks {
            Config::parse(path, block).unwrap_or_else(|error| panic!("{error}: {block}"));
        }
    }
}

#[test]
fn the_manual_of_the_export_has_a_place_for_every_operation() {
    let manual = document("docs/export.md");
    let source = include_str!("../src/audit/record.rs");
    let own = source
        .lines()
        .filter(|line| line.contains("pub const ") && line.contains("&str"))
        .filter_map(|line| line.split('"').nth(1));
    let operations = Operation::ALL.iter().map(|operation| operation.name());
    // Whatever has no class of its own is spoken of as such.
    for word in own.chain(operations).filter(|word| *word != "budget") {
        assert!(
            manual.contains(&format!("`{word}`")),
            "docs/export.md does not speak of `{word}`"
        );
    }
}
