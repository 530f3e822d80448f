//! Receivers of OTLP that others wrote, and that decode by code of their own: rotel, a small collector, for records, and
//! VictoriaMetrics for metrics.
//!
//! Each test says what is missing where it cannot be run.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use agentguard::metrics::list;
use serde::Deserialize;

use crate::bench::{Bench, until};
use crate::push::{Push, config};
use crate::pushed::series;
use crate::real::{
    Service, cache, environment, find, none_is_lost, port, restart_in_quiet, skipped, works,
};

/// The version whose output is understood here.
const ROTEL: &str = "rotel==0.0.1a15";
/// How long a receiver may take to begin.
const BEGIN: Duration = Duration::from_secs(20);

/// Rotel, in an environment of its own, as its package has it.
fn rotel() -> Option<PathBuf> {
    let place = "import sysconfig; print(sysconfig.get_path('purelib'), end='')";
    environment("rotel", &["--no-deps", ROTEL], |python| {
        let output = Command::new(python).args(["-c", place]).output().ok()?;
        let program =
            PathBuf::from(String::from_utf8(output.stdout).ok()?).join("rotel/rotel-agent");
        works(Command::new(&program).arg("--version")).then_some(program)
    })
}

/// Whether something listens at a port within the time.
fn listens(port: u16) -> bool {
    let started = Instant::now();
    while started.elapsed() < BEGIN {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// Receives records, takes each apart, and shows what it found.
fn collector(bench: &Bench, program: &Path, port: u16) -> Service {
    let shown = File::options()
        .create(true)
        .append(true)
        .open(bench.path("shown"));
    let mut command = Command::new(program);
    command
        .args(["start", "--exporter", "blackhole", "--debug-log", "logs"])
        .args(["--debug-log-verbosity", "detailed"])
        .arg("--otlp-http-endpoint")
        .arg(format!("127.0.0.1:{port}"))
        // Nobody uses it, and it must not be in anybody's way.
        .args(["--otlp-grpc-endpoint", "127.0.0.1:0"])
        .current_dir(bench.folder.path())
        .stdout(shown.expect("a file"));
    Service::start(&mut command)
}

/// The numbers of the records that were shown, each with its fields where they belong.
fn shown(bench: &Bench) -> Vec<u64> {
    let text = std::fs::read_to_string(bench.path("shown")).unwrap_or_default();
    let within = |line: &str, before: &str| -> Option<String> {
        let value = line.trim().strip_prefix(before)?.strip_suffix(')')?;
        Some(value.to_owned())
    };
    let (mut numbers, mut named) = (Vec::new(), 0);
    let mut line_of_log = serde_json::Value::Null;
    let mut event = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("EventName: ") {
            event = name;
        } else if let Some(body) = within(line, "Body: Str(") {
            line_of_log = serde_json::from_str(&body).expect("a line of the log");
            numbers.push(line_of_log["seq"].as_u64().expect("a number"));
            let op = line_of_log["op"].as_str().expect("an operation");
            assert_eq!(event, format!("agentguard.{op}"));
        } else if let Some(seq) = within(line, "-> agentguard.seq: Int(") {
            assert_eq!(seq, line_of_log["seq"].to_string());
            named += 1;
        } else if let Some(hash) = within(line, "-> log.record.uid: Str(") {
            assert_eq!(hash, line_of_log["hash"]);
        } else if let Some(service) = within(line, "-> service.name: Str(") {
            assert_eq!(service, "agentguard");
        }
    }
    assert_eq!(numbers.len(), named);
    numbers
}

#[tokio::test(flavor = "multi_thread")]
async fn rotel_gets_every_record_through_restarts_of_both_sides() {
    let Some(program) = rotel() else {
        return skipped(
            "no rotel, and it could not be installed (`pip install rotel`, for Python 3.11)",
        );
    };
    for encoding in ["protobuf", "json"] {
        let mut bench = Bench::new();
        let port = port();
        let config = format!(
            "  otel:\n    otlp:\n      endpoint: http://127.0.0.1:{port}/v1/logs\n      encoding: {encoding}\n"
        );
        let mut service = collector(&bench, &program, port);
        if !listens(port) {
            return skipped("rotel does not begin to listen");
        }
        let mut sinks = bench.start(&config);
        let start = |bench: &Bench| collector(bench, &program, port);
        for _ in 0..2 {
            restart_in_quiet(
                (&mut bench, &config),
                (&mut service, &mut sinks),
                (start, shown),
                [1000, 300],
            )
            .await;
        }
        let last = bench.last();
        until(&sinks, |state| state.position == last).await;
        service.stop();
        assert_eq!(shown(&bench), (1..=last).collect::<Vec<_>>());
        // In the middle of it, either side: each at least once, and what comes again is known.
        service = collector(&bench, &program, port);
        for round in 0..2 {
            bench.write(2000);
            until(&sinks, |state| state.sent_to > last + 2000 * round + 300).await;
            service.stop();
            service = collector(&bench, &program, port);
            sinks.stop().await;
            sinks = bench.start(&config);
        }
        let last = bench.last();
        let state = until(&sinks, |state| state.position == last).await;
        sinks.stop().await;
        service.stop();
        let numbers = shown(&bench);
        none_is_lost(
            &format!("rotel, OTLP as {encoding}"),
            &numbers,
            last,
            state.retries,
        );
    }
}

/// One request; status and body of the answer.
fn http(port: u16, method: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let request =
        format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

const PUSHED_TO: &str = "/opentelemetry/v1/metrics";

/// What `/api/v1/export` says of one series.
#[derive(Deserialize)]
struct Exported {
    metric: BTreeMap<String, String>,
    values: Vec<f64>,
    timestamps: Vec<i64>,
}

/// A series by its name and its labels in order, without what says who pushed it.
fn canonical(name: &str, labels: impl IntoIterator<Item = (String, String)>) -> String {
    let labels: BTreeMap<String, String> = labels
        .into_iter()
        .filter(|(label, _)| !["__name__", "host.name", "service.name"].contains(&label.as_str()))
        .filter(|(label, _)| !label.starts_with("service.") && !label.starts_with("host."))
        .collect();
    // Bounds of buckets are numbers, however they are written.
    let value = |(label, value): (&String, &String)| match value.parse::<f64>() {
        Ok(number) if label == "le" => format!("{label}={number}"),
        _ => format!("{label}={value}"),
    };
    let labels: Vec<String> = labels.iter().map(value).collect();
    format!("{name}{{{}}}", labels.join(","))
}

/// The same of a line of the text that is scraped.
fn of_text(series: &str) -> String {
    let Some((name, labels)) = series.trim_end_matches('}').split_once('{') else {
        return canonical(series, []);
    };
    let pair = |pair: &str| {
        let (label, value) = pair.split_once('=').expect("a label");
        (label.to_owned(), value.trim_matches('"').to_owned())
    };
    canonical(name, labels.split(',').map(pair))
}

#[tokio::test(flavor = "multi_thread")]
async fn victoria_metrics_has_every_push_as_it_was_scraped_through_restarts() {
    let cached = Some(cache().join("receivers/victoria-metrics")).filter(|it| it.exists());
    let Some(program) = cached.or_else(|| find("victoria-metrics")) else {
        return skipped(
            "no VictoriaMetrics: `cargo xtask setup`, or `apt-get install victoria-metrics` on Debian 13",
        );
    };
    let bench = Bench::new();
    let port = port();
    let start = || {
        let mut command = Command::new(&program);
        command
            .arg(format!("-storageDataPath={}", bench.path("data").display()))
            .arg(format!("-httpListenAddr=127.0.0.1:{port}"))
            .arg("-loggerLevel=ERROR");
        Service::start(&mut command)
    };
    // Nobody is there yet.
    let text = format!("endpoint: 'http://127.0.0.1:{port}{PUSHED_TO}'");
    let push = Push::start(&config(&text, 50));
    push.until("failed", 1).await;
    let mut service = start();
    if !listens(port) || http(port, "POST", PUSHED_TO).is_none_or(|it| it.0 >= 400) {
        return skipped("this VictoriaMetrics does not begin, or takes no OTLP (before 1.93)");
    }
    for round in 1..=2 {
        push.until("delivered", round * 8).await;
        service.stop();
        let failed = push.count("failed");
        push.until("failed", failed + 1).await;
        service = start();
    }
    push.until("delivered", push.count("delivered") + 4).await;
    let (source, pushes) = (push.source.clone(), push.pushes.clone());
    push.pusher.stop().await;
    // What is in memory alone may not be found at once; what is read again from the disk is.
    service.stop();
    service = start();
    assert!(listens(port), "it begins again");
    // Without an end it has nothing of the second in which it is asked.
    let everything = "/api/v1/export?match%5B%5D=%7B__name__!%3D%22%22%7D&end=2100-01-01T00:00:00Z";
    let (_, exported) = http(port, "GET", everything).expect("what it has");
    service.stop();
    let mut moments: BTreeMap<i64, BTreeMap<String, f64>> = BTreeMap::new();
    for line in exported.lines() {
        let one: Exported = serde_json::from_str(line).expect("a series");
        let name = one.metric["__name__"].clone();
        assert_eq!(one.metric["service.name"], "agentguard");
        let key = canonical(&name, one.metric);
        for (at, value) in one.timestamps.into_iter().zip(one.values) {
            let before = moments.entry(at).or_default().insert(key.clone(), value);
            assert_eq!(before, None, "{key} came twice for one moment");
        }
    }
    let texts = source.texts.lock().expect("the texts").clone();
    let uptime = of_text(list::UPTIME.name);
    let mut numbers = HashSet::new();
    for values in moments.values() {
        let number = values[&uptime];
        let scraped = texts.iter().map(|text| series(text));
        let mut same = scraped.filter(|it| it[list::UPTIME.name].total_cmp(&number).is_eq());
        let scraped = same.next().expect("a moment that was scraped");
        let scraped = scraped
            .into_iter()
            .map(|(key, value)| (of_text(&key), value));
        assert_eq!(values, &scraped.collect::<BTreeMap<_, _>>());
        assert!(numbers.insert(number.to_bits()), "each comes once");
    }
    let all = pushes.by_outcome();
    let delivered = all.iter().find(|it| it.0 == "delivered").expect("it").1;
    // What it took before it ended need not have been acknowledged.
    assert!(
        moments.len() as u64 >= delivered,
        "{} {pushes:?}",
        moments.len()
    );
    eprintln!(
        "VictoriaMetrics: {} pushes of all {} metrics, {pushes:?}",
        moments.len(),
        list::ALL.len()
    );
}
