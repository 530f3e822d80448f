//! Policies that cannot be used: each is refused with file, line, column, caret and help.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use agentguard::policy::{LoadOptions, PolicyError, load};
use miette::{GraphicalReportHandler, GraphicalTheme};

const FOLDER: &str = "tests/policies-bad";

fn options() -> LoadOptions {
    let vars = BTreeMap::from([
        ("workspace".to_owned(), "/work".to_owned()),
        ("home".to_owned(), "/home/u".to_owned()),
    ]);
    LoadOptions {
        search: Vec::new(),
        vars,
        ..LoadOptions::default()
    }
}

/// Files whose names begin with `ok-` are good: others extend them.
fn fixtures() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(FOLDER)
        .expect("the folder of bad policies")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            !path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("ok-"))
        })
        .collect();
    files.sort();
    files
}

fn refusal(path: &Path) -> PolicyError {
    let name = path.to_str().expect("a UTF-8 path");
    match load(name, &options()) {
        Ok(policy) => panic!("{name} was accepted, with {} rules", policy.rules().len()),
        Err(error) => error,
    }
}

fn render(error: &PolicyError) -> String {
    let mut text = String::new();
    GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        .with_width(100)
        .with_links(false)
        .render_report(&mut text, error)
        .expect("a rendered report");
    text
}

/// A caret or an underline below a line of the file, and the place above it.
fn check(path: &Path, error: &PolicyError) {
    let text = render(error);
    let (file, line, column) = error
        .place()
        .unwrap_or_else(|| panic!("{}: no place\n{text}", path.display()));
    assert!(line >= 1 && column >= 1, "{text}");
    assert!(
        text.contains(&format!("{file}:{line}:{column}")),
        "the place is missing: {text}"
    );
    assert!(text.contains('┬') || text.contains('▲'), "no caret: {text}");
    assert!(
        text.contains("help: ") && error.help_text().len() > 5,
        "no help: {text}"
    );
}

#[test]
fn every_refusal_has_place_caret_and_help() {
    let files = fixtures();
    assert!(files.len() >= 20, "{} fixtures", files.len());
    for path in &files {
        check(path, &refusal(path));
    }
}

#[test]
fn refusals_read_well() {
    for path in fixtures() {
        let name = path
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        insta::assert_snapshot!(name, render(&refusal(&path)));
    }
}

#[test]
fn a_huge_file_is_refused_without_being_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("huge.yaml");
    let line = "version: 1 # a line that is repeated until the file is huge\n";
    std::fs::write(&path, line.repeat((50 << 20) / line.len())).expect("a huge file");
    let begin = std::time::Instant::now();
    let error = refusal(&path);
    assert!(begin.elapsed() < std::time::Duration::from_secs(5));
    check(&path, &error);
    insta::assert_snapshot!(
        "huge",
        render(&error).replace(&*folder.path().to_string_lossy(), "FOLDER")
    );
}

#[test]
fn what_is_not_a_file_is_refused_without_waiting() {
    let folder = tempfile::tempdir().expect("a folder");
    let fifo = folder.path().join("fifo.yaml");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    for path in [
        &fifo,
        &folder.path().join("missing.yaml"),
        &folder.path().join("./"),
    ] {
        let error = refusal(path);
        assert!(!error.help_text().is_empty(), "{error}");
    }
    assert!(load("no-such-name", &options()).is_err());
}

#[test]
fn a_policy_that_cannot_fit_names_its_costliest_rules() {
    use std::fmt::Write as _;
    // Each rule must be remembered by itself, whatever comes between: the states multiply.
    let mut text = "version: 1\nfiles:\n  read:\n    allow:\n      - /usr/**\n".to_owned();
    for number in 0..40 {
        let _ = writeln!(
            text,
            "      - {{id: far-{number}, path: '**/a{number}/**/b{number}/**/c{number}'}}"
        );
    }
    let policy = agentguard::policy::load_text(Path::new("far.yaml"), &text, &options())
        .expect("a valid policy");
    let error = policy.compile(1).expect_err("a table larger than any");
    check(Path::new("far.yaml"), &error);
    assert!(error.to_string().contains("too large"), "{error}");
    assert!(error.help_text().contains("far-"), "{}", error.help_text());
    assert!(
        !error.help_text().contains("allow/1"),
        "{}",
        error.help_text()
    );
}
