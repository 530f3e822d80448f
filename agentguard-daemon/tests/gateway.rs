//! The model gateway against a provider that speaks the real wire formats over TLS.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use support::host::Bench;
use support::upstream::KEY;

type Http = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

fn http(bench: &Bench) -> Http {
    let mut roots = rustls::RootCertStore::empty();
    for it in CertificateDer::pem_file_iter(&bench.upstream.ca).expect("certificates") {
        roots.add(it.expect("a certificate")).expect("a root");
    }
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .expect("versions")
    .with_root_certificates(roots)
    .with_no_client_auth();
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http()
        .enable_http1()
        .build();
    Client::builder(TokioExecutor::new()).build(https)
}

fn request(base: &str, path: &str, key: &str, body: &Value) -> Request<Full<Bytes>> {
    let method = if body.is_null() { "GET" } else { "POST" };
    let text = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    Request::builder()
        .method(method)
        .uri(format!("{base}{path}"))
        .header("authorization", format!("Bearer {key}"))
        .header("x-api-key", "")
        .header("accept-encoding", "gzip, deflate")
        .header("content-type", "application/json")
        .body(Full::new(text.into()))
        .expect("a request")
}

async fn call(
    http: &Http,
    base: &str,
    path: &str,
    key: &str,
    body: &Value,
) -> (u16, hyper::HeaderMap, Bytes) {
    let response: Response<Incoming> = http
        .request(request(base, path, key, body))
        .await
        .expect("an answer");
    let (head, body) = response.into_parts();
    let body = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    (head.status.as_u16(), head.headers, body)
}

/// Provider, path and request.
fn rows() -> Vec<(&'static str, &'static str, Value)> {
    let messages = json!([{"role": "user", "content": "Wie geht's?"}]);
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": {}}}]);
    let mut rows = Vec::new();
    for stream in [false, true] {
        rows.extend([
            ("openai", "/v1/chat/completions", json!({"model": "m", "messages": messages, "stream": stream, "stream_options": {"include_usage": true}})),
            ("openai", "/v1/chat/completions", json!({"model": "m", "messages": messages, "tools": tools, "stream": stream, "stream_options": {"include_usage": true}})),
            ("openai", "/v1/responses", json!({"model": "m", "input": "hi", "stream": stream})),
            ("anthropic", "/v1/messages", json!({"model": "m", "messages": messages, "max_tokens": 7, "stream": stream})),
            ("anthropic", "/v1/messages", json!({"model": "m", "messages": messages, "max_tokens": 7, "tools": tools, "stream": stream})),
        ]);
    }
    rows.extend([
        (
            "openai",
            "/v1/embeddings",
            json!({"model": "m", "input": "hi"}),
        ),
        ("openai", "/v1/models", Value::Null),
        (
            "gemini",
            "/v1beta/models/m:generateContent",
            json!({"contents": [{"parts": [{"text": "hi"}]}]}),
        ),
        (
            "gemini",
            "/v1beta/models/m:streamGenerateContent?alt=sse&key=placeholder",
            json!({"contents": [{"parts": [{"text": "hi"}]}]}),
        ),
    ]);
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_the_same_bytes_and_tokens_are_counted_to_the_token() {
    let bench = Bench::new("  - {tokens: 10_000_000, per: day}\n  - {requests: 1000, per: day}\n  - {usd: 100, per: total}\n  - {cached_tokens: 10_000_000, per: total}\n").await;
    let http = http(&bench);
    let told = || {
        (
            bench.upstream.told.input.load(Ordering::Relaxed),
            bench.upstream.told.output.load(Ordering::Relaxed),
        )
    };
    let (mut direct, mut money, mut cached) = ((0, 0), 0, 0);
    for (provider, path, body) in rows() {
        let before = told();
        let expected = call(&http, &bench.upstream.url(), path, KEY, &body).await;
        let after = told();
        let (input, output) = (after.0 - before.0, after.1 - before.1);
        direct = (direct.0 + input, direct.1 + output);
        if !body.is_null() && !path.ends_with("embeddings") {
            cached += input / 2;
            money += (input - input / 2) * 1_000_000 + input / 2 * 500_000 + output * 2_000_000;
        } else if !body.is_null() {
            money += input * 1_000_000;
        }
        let found = call(&http, &bench.url(provider), path, "placeholder", &body).await;
        assert_eq!(found.0, 200, "{path}: {:?}", found.2);
        assert_eq!(
            (found.0, &found.2),
            (expected.0, &expected.2),
            "{provider}{path}"
        );
        for name in ["content-type", "x-request-id"] {
            assert_eq!(found.1.get(name), expected.1.get(name), "{path}");
        }
    }
    let spent = bench.spent();
    assert_eq!(spent[0], direct.0 + direct.1);
    assert_eq!(spent[1], rows().len() as u64);
    assert_eq!((spent[2], spent[3]), (money, cached));
    assert_eq!(bench.reserved(), 0);
    let lines = bench.lines();
    assert_eq!(lines.len(), rows().len());
    assert!(
        lines.iter().all(|it| it["op"] == "model"
            && it["verdict"] == "allow"
            && it["usage"]["estimated"].is_null()),
        "{lines:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_budget_is_refused_in_the_providers_shape() {
    let bench =
        Bench::new("  - {id: few, requests: 1, per: day, reason: So it was agreed.}\n").await;
    let http = http(&bench);
    let chat = json!({"model": "m", "messages": []});
    assert_eq!(
        call(
            &http,
            &bench.url("openai"),
            "/v1/chat/completions",
            "x",
            &chat
        )
        .await
        .0,
        200
    );
    let rows = [
        (
            "openai",
            "/v1/chat/completions",
            "/error/message",
            "/error/code",
            json!("agentguard_budget"),
        ),
        (
            "anthropic",
            "/v1/messages",
            "/error/message",
            "/error/type",
            json!("rate_limit_error"),
        ),
        (
            "gemini",
            "/v1beta/models/m:generateContent",
            "/error/message",
            "/error/status",
            json!("RESOURCE_EXHAUSTED"),
        ),
    ];
    for (provider, path, message, kind, expected) in rows {
        let (status, headers, body) = call(&http, &bench.url(provider), path, "x", &chat).await;
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(status, 429);
        assert_eq!(body.pointer(kind), Some(&expected), "{body}");
        let message = body
            .pointer(message)
            .and_then(Value::as_str)
            .unwrap_or_default();
        assert!(
            message.contains("`few`") && message.contains("So it was agreed."),
            "{message}"
        );
        let wait: u64 = headers["retry-after"]
            .to_str()
            .expect("text")
            .parse()
            .expect("a number");
        assert!(wait > 0 && wait <= 86_400, "{wait}");
        assert_eq!(headers["x-should-retry"], "false");
    }
    let calls = bench.upstream.told.calls.load(Ordering::Relaxed);
    assert_eq!(calls, 1, "a refused call went out");
    let lines = bench.lines();
    let refused: Vec<_> = lines.iter().filter(|it| it["verdict"] == "deny").collect();
    assert_eq!(refused.len(), 3);
    assert!(
        refused
            .iter()
            .all(|it| it["rule"] == "few" && it["cause"] == "budget"),
        "{refused:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_permitted_or_not_understood_does_not_go_out() {
    let bench = Bench::with("  - {usd: 100, per: day}\n", |config| {
        config.max_request = 10_000;
    })
    .await;
    let http = http(&bench);
    let chat = "/v1/chat/completions";
    let rows = [
        ("openai", "/v1/files", json!({"model": "m"}), 404),
        (
            "openai",
            "/v1/images/generations",
            json!({"model": "m"}),
            404,
        ),
        ("nobody", chat, json!({"model": "m"}), 404),
        ("openai", chat, json!({"model": 5}), 400),
        (
            "openai",
            "/v1/responses",
            json!({"model": "m", "background": true}),
            400,
        ),
        (
            "openai",
            chat,
            json!({"model": "m", "x": "y".repeat(20_000)}),
            413,
        ),
        // It has no price.
        ("openai", chat, json!({"model": "unknown"}), 403),
    ];
    for (provider, path, body, status) in &rows {
        let found = call(&http, &bench.url(provider), path, "x", body).await;
        assert_eq!(found.0, *status, "{path}: {:?}", found.2);
        let body: Value = serde_json::from_slice(&found.2).expect("JSON");
        assert!(
            body["error"]["message"]
                .as_str()
                .is_some_and(|it| it.starts_with("AgentGuard: ")),
            "{body}"
        );
    }
    let narrow = agentguard::policy::load_text(
        std::path::Path::new("n.yaml"),
        "version: 1\nmodels: {providers: [gemini]}\n",
        &agentguard::policy::LoadOptions::default(),
    );
    *bench.host.policy.lock().expect("a policy") = Some(Arc::new(narrow.expect("a policy")));
    assert_eq!(
        call(
            &http,
            &bench.url("openai"),
            chat,
            "x",
            &json!({"model": "m"})
        )
        .await
        .0,
        403
    );
    // Nobody's socket, whatever the request says of itself.
    *bench.host.policy.lock().expect("a policy") = None;
    assert_eq!(
        call(
            &http,
            &bench.url("openai"),
            chat,
            KEY,
            &json!({"model": "m"})
        )
        .await
        .0,
        403
    );
    let lines = bench.lines();
    assert_eq!(lines.len(), rows.len() + 2);
    assert!(lines.iter().all(|it| it["verdict"] == "deny"), "{lines:#?}");
    assert!(lines.last().is_some_and(|it| it["agent"].is_null()));
    assert_eq!(bench.upstream.told.calls.load(Ordering::Relaxed), 0);
    assert_eq!((bench.spent()[0], bench.reserved()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_upstream_is_told_settled_and_leaks_nothing() {
    let budgets = "  - {tokens: 1_000_000, per: day}\n";
    // Model, whether it streams, status, a word of the message, whether it is charged.
    let rows = [
        ("fault-cut", false, 502, "cut off", true),
        ("fault-cut", true, 200, "cut off", true),
        ("fault-malformed", false, 502, "not JSON", true),
        ("fault-malformed", true, 200, "oops", true),
        ("fault-oversized", true, 200, "larger than", true),
        ("fault-stall", false, 504, "did not answer", true),
        ("fault-500", false, 500, "upstream is ill", false),
        ("fault-echo", false, 502, "held the key", true),
        ("fault-echo-401", false, 502, "held the key", true),
        ("no-usage", false, 200, "chat.completion", true),
    ];
    for (model, stream, status, word, charged) in rows {
        let bench = Bench::with(budgets, |config| {
            config.max_answer = 1_000_000;
        })
        .await;
        let http = http(&bench);
        let body = json!({"model": model, "messages": [], "stream": stream, "max_tokens": 50});
        let found = call(
            &http,
            &bench.url("openai"),
            "/v1/chat/completions",
            "x",
            &body,
        )
        .await;
        let text = String::from_utf8_lossy(&found.2).into_owned();
        assert_eq!(found.0, status, "{model}: {text}");
        assert!(text.contains(word), "{model}: {text:.300}");
        assert!(!text.contains(KEY), "{model}: {text}");
        assert_eq!(bench.reserved(), 0, "{model}");
        // What is not known is charged as reserved: more than the answer's limit, and the request's bytes.
        assert_eq!(
            bench.spent()[0] >= 50,
            charged,
            "{model}: {:?}",
            bench.spent()
        );
        let lines = bench.lines();
        assert_eq!(lines.len(), 1, "{model}");
        assert_eq!(
            lines[0]["usage"]["estimated"] == true,
            charged,
            "{model}: {lines:#?}"
        );
        nowhere(&bench);
    }
}

/// The key is in no line and in no file but its own.
fn nowhere(bench: &Bench) {
    let lines = bench.host.lines.lock().expect("lines");
    assert!(lines.iter().all(|it| !it.contains(KEY)));
    for entry in std::fs::read_dir(bench.folder.path().join("state")).expect("a folder") {
        let text = std::fs::read(entry.expect("an entry").path()).expect("a file");
        assert!(!String::from_utf8_lossy(&text).contains(KEY));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_is_down_or_not_who_it_says_takes_nothing() {
    let body = json!({"model": "m", "messages": []});
    for wrong_tls in [false, true] {
        let bench = Bench::with("  - {tokens: 1_000_000, per: day}\n", |config| {
            if wrong_tls {
                config.ca = None;
            } else {
                for provider in config.providers.values_mut() {
                    provider.upstream = "https://127.0.0.1:1".to_owned();
                }
            }
        })
        .await;
        let http = http(&bench);
        let (status, _, text) =
            call(&http, &bench.url("anthropic"), "/v1/messages", "x", &body).await;
        let text: Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(
            (status, &text["error"]["type"]),
            (502, &json!("api_error")),
            "{text}"
        );
        assert!(
            text["error"]["message"]
                .as_str()
                .is_some_and(|it| it.contains("cannot be reached")),
            "{text}"
        );
        assert_eq!((bench.spent()[0], bench.reserved()), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_streams_do_not_overshoot_a_cap() {
    // Four fit at once, and less than two thirds of them in all.
    let limit = 5000;
    let bench = Bench::new(&format!("  - {{id: cap, tokens: {limit}, per: total}}\n")).await;
    let http = http(&bench);
    let body = json!({"model": "slow-stream", "messages": [{"role": "user", "content": "x"}], "stream": true, "max_tokens": 12, "stream_options": {"include_usage": true}});
    let url = bench.url("openai");
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let (http, url, body) = (http.clone(), url.clone(), body.clone());
            tokio::spawn(async move {
                call(&http, &url, "/v1/chat/completions", "x", &body)
                    .await
                    .0
            })
        })
        .collect();
    let mut statuses = Vec::new();
    for it in calls {
        statuses.push(it.await.expect("a call"));
    }
    let good = statuses.iter().filter(|it| **it == 200).count();
    assert!(good > 3 && good < 200, "{good}");
    assert!(statuses.iter().all(|it| *it == 200 || *it == 429));
    let told = &bench.upstream.told;
    let sum = told.input.load(Ordering::Relaxed) + told.output.load(Ordering::Relaxed);
    assert_eq!(bench.spent()[0], sum);
    assert!(sum <= limit);
    // To the last: what is left is less than one more call would reserve.
    while call(&http, &url, "/v1/chat/completions", "x", &body)
        .await
        .0
        == 200
    {}
    assert!(
        bench.spent()[0] <= limit && bench.spent()[0] > limit - 1500,
        "{:?}",
        bench.spent()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_goes_away_is_charged_what_the_answer_takes() {
    let bench = Bench::new("  - {tokens: 1_000_000, per: day}\n").await;
    let http = http(&bench);
    let body = json!({"model": "slow-stream", "messages": [], "stream": true, "max_tokens": 12, "stream_options": {"include_usage": true}});
    let mut answer = http
        .request(request(
            &bench.url("openai"),
            "/v1/chat/completions",
            "x",
            &body,
        ))
        .await
        .expect("an answer");
    let first = answer
        .body_mut()
        .frame()
        .await
        .expect("a part")
        .expect("a part");
    // The first part is there long before the last.
    assert!(first.into_data().is_ok_and(|it| it.starts_with(b"data: ")));
    assert!(bench.reserved() > 0);
    drop(answer);
    drop(http);
    while bench.reserved() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let told = &bench.upstream.told;
    assert_eq!(
        bench.spent()[0],
        told.input.load(Ordering::Relaxed) + told.output.load(Ordering::Relaxed)
    );
}
