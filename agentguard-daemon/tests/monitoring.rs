//! The manual, the alerts and the dashboard speak of metrics that there are, and of all labels by their names.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use agentguard::metrics::{Kind, Metric, list};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    let path = path(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The metric that a name in an expression means.
fn metric(word: &str) -> Option<&'static Metric> {
    let named = |it: &&&'static Metric| {
        let parts = ["_bucket", "_sum", "_count"];
        it.name == word
            || it.kind == Kind::Histogram
                && parts
                    .iter()
                    .any(|part| word.strip_suffix(part) == Some(it.name))
    };
    list::ALL.iter().find(named).copied()
}

/// Everything in a text that looks like a metric of ours.
fn names(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("agentguard_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

/// The expressions of a dashboard or of alerts, wherever they are.
fn expressions(value: &serde_json::Value, into: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(text) if key == "expr" || key == "query" => into.push(text.to_owned()),
                    _ => expressions(value, into),
                }
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|it| expressions(it, into)),
        _ => {}
    }
}

/// Every name is a metric, and every label that is asked for is one of its labels.
fn check(expression: &str) -> usize {
    let found = names(expression);
    for name in &found {
        let metric = metric(name).unwrap_or_else(|| panic!("{name} in {expression}"));
        for (_, rest) in expression
            .match_indices(name.as_str())
            .map(|(at, _)| expression[at..].split_at(name.len()))
        {
            let Some(selector) = rest.strip_prefix('{').and_then(|it| it.split_once('}')) else {
                continue;
            };
            for matcher in selector.0.split(',') {
                let label = matcher.split(['=', '!']).next().unwrap_or_default().trim();
                let of_scrape = ["job", "instance"].contains(&label);
                assert!(
                    of_scrape || metric.labels.contains(&label),
                    "{label} of {name}"
                );
            }
        }
    }
    found.len()
}

#[test]
fn the_manual_has_the_table_of_all_metrics() {
    let manual = read("../docs/metrics.md");
    let table = list::table();
    assert!(
        manual.ends_with(&table),
        "docs/metrics.md: write the table again with `cargo run -p agentguard-daemon --example metrics_table`"
    );
}

#[test]
fn alerts_and_dashboard_ask_for_what_there_is() {
    let alerts: serde_json::Value =
        serde_saphyr::from_str(&read("packaging/monitoring/alerts.yaml")).expect("alerts");
    let board: serde_json::Value =
        serde_json::from_str(&read("packaging/monitoring/dashboard.json")).expect("a dashboard");
    let (mut asked, mut used) = (0, BTreeSet::new());
    for file in [alerts, board] {
        let mut found = Vec::new();
        expressions(&file, &mut found);
        assert!(found.len() > 10, "only {} expressions", found.len());
        for expression in found {
            asked += check(&expression);
            used.extend(
                names(&expression)
                    .iter()
                    .filter_map(|it| metric(it))
                    .map(|it| it.name),
            );
        }
    }
    assert!(asked > 50, "only {asked} metrics are asked for");
    assert!(used.len() > 35, "only {} metrics are of use", used.len());
}

#[test]
fn prometheus_takes_the_alerts() {
    let alerts = path("packaging/monitoring/alerts.yaml");
    match Command::new("promtool")
        .args(["check", "rules"])
        .arg(alerts)
        .output()
    {
        Err(error) => eprintln!("skipped: promtool: {error}"),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{text}");
        }
    }
}
