//! What the model gateway costs: latency at the first byte, requests a second, memory of open streams.
//!
//! `cargo run --release -p agentguard-daemon --example gateway_cost [streams]`. The provider runs in this process, so the
//! figures are for the machine as a whole; direct calls and those through the gateway take turns.

#![expect(
    clippy::unwrap_used,
    reason = "a measurement that fails has nothing to say"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use support::host::Bench;
use support::upstream::KEY;

type Http = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

fn http(bench: &Bench) -> Http {
    let mut roots = rustls::RootCertStore::empty();
    for it in CertificateDer::pem_file_iter(&bench.upstream.ca).unwrap() {
        roots.add(it.unwrap()).unwrap();
    }
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_root_certificates(roots)
    .with_no_client_auth();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Client::builder(TokioExecutor::new()).build(https)
}

fn request(base: &str, model: &str) -> Request<Full<Bytes>> {
    let body = format!(
        r#"{{"model":"{model}","messages":[{{"role":"user","content":"hello"}}],"stream":true,"max_tokens":12,"stream_options":{{"include_usage":true}}}}"#
    );
    Request::post(format!("{base}/v1/chat/completions"))
        .header("authorization", format!("Bearer {KEY}"))
        .body(Full::new(body.into()))
        .unwrap()
}

/// Time to the first byte of the answer's body; the rest is read as well.
async fn first_byte(http: &Http, base: &str) -> Option<Duration> {
    let begin = Instant::now();
    let mut answer = http.request(request(base, "m")).await.ok()?;
    if !answer.status().is_success() {
        return None;
    }
    answer.body_mut().frame().await?.ok()?;
    let first = begin.elapsed();
    answer.into_body().collect().await.ok()?;
    Some(first)
}

fn at(sorted: &[Duration], part: usize) -> f64 {
    sorted[(sorted.len() - 1) * part / 1000].as_secs_f64() * 1000.0
}

fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text
        .lines()
        .find_map(|it| it.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Direct and through, in turns, so many a second in all.
async fn latency(http: &Http, direct: &str, through: &str, rate: u32, count: u32) {
    let mut timer = tokio::time::interval(Duration::from_secs(1) / rate);
    let mut calls = Vec::new();
    for number in 0..count {
        timer.tick().await;
        let (http, base, side) = (
            http.clone(),
            if number % 2 == 0 { direct } else { through }.to_owned(),
            number % 2,
        );
        calls.push(tokio::spawn(async move {
            (side, first_byte(&http, &base).await)
        }));
    }
    let mut sides = [Vec::new(), Vec::new()];
    for it in calls {
        let (side, time) = it.await.unwrap();
        sides[side as usize].push(time.expect("a good answer"));
    }
    for side in &mut sides {
        side.sort_unstable();
    }
    let [direct, through] = &sides;
    println!(
        "first byte at {rate} requests a second, ms:  direct p50 {:.3} p99 {:.3};  through p50 {:.3} p99 {:.3};  added p50 {:.3} p99 {:.3}",
        at(direct, 500),
        at(direct, 990),
        at(through, 500),
        at(through, 990),
        at(through, 500) - at(direct, 500),
        at(through, 990) - at(direct, 990)
    );
}

async fn throughput(http: &Http, base: &str, what: &str) {
    let (done, end) = (
        Arc::new(AtomicU64::new(0)),
        Instant::now() + Duration::from_secs(10),
    );
    let workers: Vec<_> = (0..64)
        .map(|_| {
            let (http, base, done) = (http.clone(), base.to_owned(), done.clone());
            tokio::spawn(async move {
                while Instant::now() < end {
                    first_byte(&http, &base).await.expect("a good answer");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for it in workers {
        it.await.unwrap();
    }
    println!(
        "{what}: {} requests a second, 64 at a time",
        done.load(Ordering::Relaxed) / 10
    );
}

#[tokio::main]
async fn main() {
    let bench = Bench::new("  - {tokens: 9_000_000_000_000, per: day}\n  - {requests: 9_000_000_000, per: day}\n  - {usd: 1_000_000, per: total}\n").await;
    let http = http(&bench);
    let (direct, through) = (bench.upstream.url(), bench.url("openai"));
    for _ in 0..200 {
        first_byte(&http, &direct).await.unwrap();
        first_byte(&http, &through).await.unwrap();
    }
    // Both sides get so many each.
    if std::env::args()
        .nth(1)
        .is_some_and(|what| what == "streams")
    {
        streams(&http, &through).await;
    } else {
        latency(&http, &direct, &through, 400, 8000).await;
        throughput(&http, &direct, "direct").await;
        throughput(&http, &through, "through the gateway").await;
    }
    assert!(!bench.lines().is_empty());
}

/// What a thousand open streams hold. In a process of its own: what other work has left would be used again.
async fn streams(http: &Http, through: &str) {
    let before = memory();
    let mut open = Vec::new();
    for _ in 0..1000 {
        let mut answer = http
            .request(request(through, "endless-stream"))
            .await
            .unwrap();
        answer.body_mut().frame().await.unwrap().unwrap();
        open.push(answer);
    }
    let held = memory() - before;
    println!(
        "1,000 open streams: {held} KiB more in this process, which is client, gateway and provider at once"
    );
}
