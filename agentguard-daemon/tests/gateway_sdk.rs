//! The official libraries of `OpenAI` and `Anthropic`, for Python and Node, through the gateway and past it.
//!
//! They are installed from the machine's configured index into a folder outside of the repository. Where that is
//! not possible the test says so and counts what it left out.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::Ordering;

use support::host::Bench;
use support::upstream::KEY;

fn folder(name: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || std::env::home_dir().unwrap_or_default().join(".cache"),
        PathBuf::from,
    );
    cache.join("agentguard").join(name)
}

fn works(command: &mut Command) -> bool {
    command.output().is_ok_and(|it| it.status.success())
}

/// An interpreter that has the libraries.
fn python() -> Result<PathBuf, String> {
    let folder = folder("sdk");
    let python = folder.join("bin/python");
    let has = |python: &Path| works(Command::new(python).args(["-c", "import openai, anthropic"]));
    if has(&python) {
        return Ok(python);
    }
    let made = works(Command::new("python3").args(["-m", "venv"]).arg(&folder))
        && works(Command::new(&python).args(["-m", "pip", "install", "-q", "openai", "anthropic"]));
    if made && has(&python) {
        Ok(python)
    } else {
        Err("no Python with `openai` and `anthropic`, and they could not be installed from the index".into())
    }
}

/// A folder with the libraries for Node.
fn node() -> Result<PathBuf, String> {
    let folder = folder("sdk-node");
    let has = || {
        folder.join("node_modules/openai").is_dir()
            && folder.join("node_modules/@anthropic-ai/sdk").is_dir()
    };
    if !works(Command::new("node").arg("--version")) {
        return Err("no Node".into());
    }
    if has() {
        return Ok(folder);
    }
    let made = std::fs::create_dir_all(&folder).is_ok()
        && works(
            Command::new("npm")
                .args(["install", "--silent", "openai", "@anthropic-ai/sdk"])
                .current_dir(&folder),
        );
    if made && has() {
        Ok(folder)
    } else {
        Err("the libraries for Node could not be installed from the index".into())
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/support")
        .join(name)
}

async fn run(mut command: Command) -> String {
    // Nothing of this machine's own settings may lead elsewhere.
    for name in [
        "OPENAI_BASE_URL",
        "ANTHROPIC_BASE_URL",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "http_proxy",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ] {
        command.env_remove(name);
    }
    let output: Output = tokio::task::spawn_blocking(move || command.output())
        .await
        .expect("a task")
        .expect("a program");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

type Make = Box<dyn Fn(&str, &str, &str, &str, &Path) -> Command>;

fn libraries() -> (Vec<(&'static str, Make)>, usize) {
    let mut found: Vec<(&'static str, Make)> = Vec::new();
    let mut skipped = 0;
    match python() {
        Ok(python) => found.push((
            "Python",
            Box::new(move |mode, openai, anthropic, key, ca| {
                let mut command = Command::new(&python);
                command
                    .arg(script("sdk.py"))
                    .args([mode, openai, anthropic, key])
                    .arg(ca);
                command
            }),
        )),
        Err(why) => {
            eprintln!("skipped: {why}");
            skipped += 1;
        }
    }
    match node() {
        Ok(folder) => found.push((
            "Node",
            Box::new(move |mode, openai, anthropic, key, ca| {
                let mut command = Command::new("node");
                command
                    .arg(script("sdk.mjs"))
                    .arg(&folder)
                    .args([mode, openai, anthropic, key])
                    .env("NODE_EXTRA_CA_CERTS", ca);
                command
            }),
        )),
        Err(why) => {
            eprintln!("skipped: {why}");
            skipped += 1;
        }
    }
    (found, skipped)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_libraries_notice_nothing_until_a_budget_is_spent() {
    let (found, skipped) = libraries();
    for (name, make) in &found {
        let bench = Bench::new("  - {id: cap, tokens: 50_000_000, per: day}\n").await;
        let upstream = bench.upstream.url();
        let direct = run(make(
            "all",
            &format!("{upstream}/v1"),
            &upstream,
            KEY,
            &bench.upstream.ca,
        ))
        .await;
        let told = &bench.upstream.told;
        let sum = || told.input.load(Ordering::Relaxed) + told.output.load(Ordering::Relaxed);
        let before = sum();
        let (openai, anthropic) = (
            format!("{}/v1", bench.url("openai")),
            bench.url("anthropic"),
        );
        let ca = bench.upstream.ca.clone();
        let through = run(make("all", &openai, &anthropic, "placeholder", &ca)).await;
        assert!(direct.lines().count() >= 6, "{direct}");
        assert_eq!(through, direct, "{name}");
        assert_eq!(bench.spent()[0], sum() - before, "{name}: tokens");

        let bench =
            Bench::new("  - {id: cap, requests: 0, per: day, reason: The team agreed on it.}\n")
                .await;
        let (openai, anthropic) = (
            format!("{}/v1", bench.url("openai")),
            bench.url("anthropic"),
        );
        let refused = run(make("cap", &openai, &anthropic, "placeholder", &ca)).await;
        for line in refused.lines() {
            let (kind, message) = if *name == "Python" {
                ("RateLimitError", "The team agreed on it.")
            } else {
                ("true", "The team agreed on it.")
            };
            assert!(
                line.contains(kind) && line.contains(message) && line.contains("429"),
                "{name}: {line}"
            );
        }
        assert!(refused.lines().count() >= 2, "{refused}");
        assert_eq!(bench.upstream.told.calls.load(Ordering::Relaxed), 0);
    }
    eprintln!(
        "{} kinds of libraries were tried, {skipped} skipped",
        found.len()
    );
}
