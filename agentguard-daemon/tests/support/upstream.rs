//! A provider that speaks the real wire formats over TLS, with a certificate authority of its own.
//!
//! What it answers follows from the request alone. The name of the model can ask for trouble.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// The key that it wants.
pub const KEY: &str = "sk-real-0123456789abcdefghijklmnopqrstuvwxyz";

/// What it told of tokens, and how many asked.
#[derive(Default)]
pub struct Told {
    pub calls: AtomicU64,
    pub input: AtomicU64,
    pub output: AtomicU64,
    pub bodies: Mutex<HashMap<String, Vec<u8>>>,
}

/// The provider.
pub struct Upstream {
    pub address: SocketAddr,
    pub ca: PathBuf,
    pub told: Arc<Told>,
    _folder: tempfile::TempDir,
}

impl Upstream {
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// Listens at a free port of loopback.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (acceptor, ca) = certificates(folder.path());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let told = Arc::new(Told::default());
        let shared = told.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, told) = (acceptor.clone(), shared.clone());
                let _ = stream.set_nodelay(true);
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(move |request| {
                        let told = told.clone();
                        async move { answer(request, &told).await }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            address,
            ca,
            told,
            _folder: folder,
        }
    }
}

fn certificates(folder: &Path) -> (TlsAcceptor, PathBuf) {
    let ca_key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "the test's authority");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).expect("a certificate");
    let path = folder.join("ca.pem");
    std::fs::write(&path, ca.pem()).expect("a file");
    let issuer = rcgen::Issuer::new(params, ca_key);
    let key = rcgen::KeyPair::generate().expect("a key");
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = rcgen::CertificateParams::new(names)
        .expect("parameters")
        .signed_by(&key, &issuer)
        .expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .expect("a configuration");
    (TlsAcceptor::from(Arc::new(config)), path)
}

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Parts of a body; `Err` cuts the connection.
fn parts(list: Vec<Result<String, ()>>, pause: Duration) -> Body {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        for part in list {
            let part = part
                .map(|text| Frame::data(Bytes::from(text)))
                .map_err(|()| std::io::Error::other("cut"));
            if sender.send(part).await.is_err() {
                return;
            }
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    });
    let stream = futures_stream(receiver);
    UnsyncBoxBody::new(StreamBody::new(stream))
}

fn futures_stream(
    mut receiver: tokio::sync::mpsc::Receiver<Result<Frame<Bytes>, std::io::Error>>,
) -> impl futures_core::Stream<Item = Result<Frame<Bytes>, std::io::Error>> {
    struct Poll<F>(F);
    impl<T, F: FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<T>> + Unpin>
        futures_core::Stream for Poll<F>
    {
        type Item = T;
        fn poll_next(
            mut self: std::pin::Pin<&mut Self>,
            context: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<T>> {
            (self.0)(context)
        }
    }
    Poll(move |context: &mut std::task::Context<'_>| receiver.poll_recv(context))
}

fn reply(status: u16, kind: &str, body: Body) -> Response<Body> {
    Response::builder()
        .status(StatusCode::from_u16(status).expect("a status"))
        .header("content-type", kind)
        .header("x-request-id", "req_1")
        .body(body)
        .expect("an answer")
}

fn json_reply(status: u16, value: &Value) -> Response<Body> {
    reply(
        status,
        "application/json",
        parts(vec![Ok(value.to_string())], Duration::ZERO),
    )
}

async fn answer(request: Request<Incoming>, told: &Told) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let header = |name: &str| {
        request
            .headers()
            .get(name)
            .and_then(|it| it.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let key = [
        header("authorization").replace("Bearer ", ""),
        header("x-api-key"),
        header("x-goog-api-key"),
    ]
    .concat();
    if key != KEY {
        return Ok(json_reply(
            401,
            &json!({"error": {"message": "wrong key", "type": "invalid_request_error"}}),
        ));
    }
    told.calls.fetch_add(1, Ordering::Relaxed);
    let body = request
        .into_body()
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    told.bodies
        .lock()
        .expect("bodies")
        .insert(path.clone(), body.to_vec());
    let model = asked["model"].as_str().map_or_else(
        || {
            path.rsplit('/')
                .next()
                .unwrap_or_default()
                .split(':')
                .next()
                .unwrap_or_default()
                .to_owned()
        },
        str::to_owned,
    );
    if let Some(trouble) = trouble(&model, &asked, &path).await {
        return Ok(trouble);
    }
    // Words stand for tokens.
    let input = 10 + body.len() as u64 / 16;
    let words: Vec<String> = (0..asked["max_tokens"].as_u64().unwrap_or(12).min(12))
        .map(|n| format!("wörd{n} "))
        .collect();
    let output = words.len() as u64;
    let usage = (input, output);
    if path.ends_with("models") {
        let list = json!([{"id": "m", "object": "model", "created": 1, "owned_by": "x"}]);
        return Ok(json_reply(200, &json!({"object": "list", "data": list})));
    }
    told.input.fetch_add(input, Ordering::Relaxed);
    if !path.ends_with("embeddings") {
        told.output.fetch_add(output, Ordering::Relaxed);
    }
    let stream = asked["stream"] == true;
    let pause = if model.starts_with("slow-stream") {
        Duration::from_millis(20)
    } else {
        Duration::ZERO
    };
    let tools = asked["tools"].as_array().is_some_and(|it| !it.is_empty());
    Ok(match path.as_str() {
        "/v1/chat/completions" if stream => {
            let include = asked["stream_options"]["include_usage"] == true;
            sse(chat_stream(&model, &words, usage, tools, include), pause)
        }
        "/v1/chat/completions" => json_reply(200, &chat(&model, &words, usage, tools)),
        "/v1/responses" if stream => sse(responses_stream(&model, &words, usage), pause),
        "/v1/responses" => json_reply(200, &response(&model, &words, usage)),
        "/v1/embeddings" => json_reply(
            200,
            &json!({"object": "list", "model": model, "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}], "usage": {"prompt_tokens": input, "total_tokens": input}}),
        ),
        "/v1/messages" if stream => sse(messages_stream(&model, &words, usage, tools), pause),
        "/v1/messages" => json_reply(200, &message(&model, &words, usage, tools)),
        _ if path.contains(":streamGenerateContent") => sse(gemini_stream(&words, usage), pause),
        _ if path.contains(":generateContent") => {
            json_reply(200, &gemini(&words.concat(), Some("STOP"), usage))
        }
        _ => json_reply(
            404,
            &json!({"error": {"message": "no such path", "type": "invalid_request_error"}}),
        ),
    })
}

fn sse(events: Vec<String>, pause: Duration) -> Response<Body> {
    reply(
        200,
        "text/event-stream; charset=utf-8",
        parts(events.into_iter().map(Ok).collect(), pause),
    )
}

async fn trouble(model: &str, asked: &Value, path: &str) -> Option<Response<Body>> {
    let stream = asked["stream"] == true || path.contains("stream");
    let kind = if stream {
        "text/event-stream"
    } else {
        "application/json"
    };
    Some(match model {
        "fault-cut" => {
            let first = if stream {
                "data: {\"id\":\"x\",\"choices\":[{\"delta\":{\"con"
            } else {
                "{\"id\": \"x\", \"cho"
            };
            reply(
                200,
                kind,
                parts(
                    vec![Ok(first.to_owned()), Err(())],
                    Duration::from_millis(20),
                ),
            )
        }
        "fault-malformed" => reply(
            200,
            kind,
            parts(vec![Ok("<html>oops</html>".to_owned())], Duration::ZERO),
        ),
        "fault-oversized" => {
            let line = format!("data: \"{}\"\n\n", "x".repeat(100_000));
            reply(
                200,
                kind,
                parts(std::iter::repeat_n(Ok(line), 40).collect(), Duration::ZERO),
            )
        }
        "fault-stall" => {
            tokio::time::sleep(Duration::from_secs(30)).await;
            json_reply(200, &json!({}))
        }
        "endless-stream" => {
            let event =
                "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n".to_owned();
            reply(
                200,
                kind,
                parts(
                    std::iter::repeat_n(Ok(event), 100).collect(),
                    Duration::from_secs(5),
                ),
            )
        }
        "fault-500" => json_reply(
            500,
            &json!({"error": {"message": "upstream is ill", "type": "server_error"}}),
        ),
        "fault-echo" => json_reply(200, &json!({"echo": KEY})),
        "fault-echo-401" => json_reply(
            401,
            &json!({"error": {"message": format!("bad key {KEY}")}}),
        ),
        "no-usage" if !stream => json_reply(
            200,
            &json!({"id": "x", "object": "chat.completion", "created": 1, "model": model, "choices": []}),
        ),
        _ => return None,
    })
}

fn openai_usage((input, output): (u64, u64)) -> Value {
    json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output, "prompt_tokens_details": {"cached_tokens": input / 2}})
}

fn tool() -> Value {
    json!([{"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\":\"Köln\"}"}}])
}

fn chat(model: &str, words: &[String], usage: (u64, u64), tools: bool) -> Value {
    let (message, finish) = if tools {
        (
            json!({"role": "assistant", "content": null, "tool_calls": tool()}),
            "tool_calls",
        )
    } else {
        (
            json!({"role": "assistant", "content": words.concat()}),
            "stop",
        )
    };
    json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": model, "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": null}], "usage": openai_usage(usage)})
}

fn chat_stream(
    model: &str,
    words: &[String],
    usage: (u64, u64),
    tools: bool,
    include: bool,
) -> Vec<String> {
    let chunk = |choices: Value, usage: Value| {
        let mut chunk = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": model, "choices": choices});
        if include {
            chunk["usage"] = usage;
        }
        format!("data: {chunk}\n\n")
    };
    let mut events: Vec<String> = if tools {
        vec![chunk(
            json!([{"index": 0, "delta": {"role": "assistant", "tool_calls": tool()}, "finish_reason": null}]),
            Value::Null,
        )]
    } else {
        words.iter().map(|it| chunk(json!([{"index": 0, "delta": {"role": "assistant", "content": it}, "finish_reason": null}]), Value::Null)).collect()
    };
    events.push(chunk(json!([{"index": 0, "delta": {}, "finish_reason": if tools { "tool_calls" } else { "stop" }}]), Value::Null));
    if include {
        events.push(chunk(json!([]), openai_usage(usage)));
    }
    events.push("data: [DONE]\n\n".to_owned());
    events
}

fn response(model: &str, words: &[String], (input, output): (u64, u64)) -> Value {
    json!({"id": "resp_1", "object": "response", "created_at": 1_700_000_000, "status": "completed", "model": model, "parallel_tool_calls": true, "tool_choice": "auto", "tools": [],
        "output": [{"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [{"type": "output_text", "text": words.concat(), "annotations": []}]}],
        "usage": {"input_tokens": input, "input_tokens_details": {"cached_tokens": input / 2}, "output_tokens": output, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": input + output}})
}

fn responses_stream(model: &str, words: &[String], usage: (u64, u64)) -> Vec<String> {
    let event = |name: &str, value: Value| format!("event: {name}\ndata: {value}\n\n");
    let mut whole = response(model, words, usage);
    let mut begun = whole.clone();
    begun["usage"] = Value::Null;
    begun["status"] = "in_progress".into();
    begun["output"] = json!([]);
    let mut events = vec![event(
        "response.created",
        json!({"type": "response.created", "sequence_number": 0, "response": begun}),
    )];
    for (number, word) in words.iter().enumerate() {
        events.push(event("response.output_text.delta", json!({"type": "response.output_text.delta", "sequence_number": number + 1, "item_id": "msg_1", "output_index": 0, "content_index": 0, "delta": word, "logprobs": []})));
    }
    whole["status"] = "completed".into();
    events.push(event("response.completed", json!({"type": "response.completed", "sequence_number": words.len() + 1, "response": whole})));
    events
}

fn message(model: &str, words: &[String], (input, output): (u64, u64), tools: bool) -> Value {
    let content = if tools {
        json!([{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln"}}])
    } else {
        json!([{"type": "text", "text": words.concat()}])
    };
    json!({"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": content, "stop_reason": if tools { "tool_use" } else { "end_turn" }, "stop_sequence": null,
        "usage": {"input_tokens": input - input / 2, "cache_read_input_tokens": input / 2, "cache_creation_input_tokens": 0, "output_tokens": output}})
}

fn messages_stream(
    model: &str,
    words: &[String],
    (input, output): (u64, u64),
    tools: bool,
) -> Vec<String> {
    let event = |value: Value| {
        format!(
            "event: {}\ndata: {value}\n\n",
            value["type"].as_str().unwrap_or_default()
        )
    };
    let mut events = vec![event(
        json!({"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": [], "stop_reason": null, "stop_sequence": null, "usage": {"input_tokens": input - input / 2, "cache_read_input_tokens": input / 2, "cache_creation_input_tokens": 0, "output_tokens": 1}}}),
    )];
    if tools {
        events.push(event(json!({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}})));
        events.push(event(json!({"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": "{\"city\":\"Köln\"}"}})));
    } else {
        events.push(event(json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})));
        events.push(event(json!({"type": "ping"})));
        for word in words {
            events.push(event(json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}})));
        }
    }
    events.push(event(json!({"type": "content_block_stop", "index": 0})));
    events.push(event(json!({"type": "message_delta", "delta": {"stop_reason": if tools { "tool_use" } else { "end_turn" }, "stop_sequence": null}, "usage": {"output_tokens": output}})));
    events.push(event(json!({"type": "message_stop"})));
    events
}

fn gemini(text: &str, finish: Option<&str>, (input, output): (u64, u64)) -> Value {
    let mut candidate =
        json!({"content": {"role": "model", "parts": [{"text": text}]}, "index": 0});
    if let Some(finish) = finish {
        candidate["finishReason"] = finish.into();
    }
    json!({"candidates": [candidate], "usageMetadata": {"promptTokenCount": input, "candidatesTokenCount": output, "totalTokenCount": input + output, "cachedContentTokenCount": input / 2}, "modelVersion": "m"})
}

fn gemini_stream(words: &[String], (input, output): (u64, u64)) -> Vec<String> {
    let count = words.len();
    words
        .iter()
        .enumerate()
        .map(|(at, word)| {
            let last = at + 1 == count;
            format!(
                "data: {}\r\n\r\n",
                gemini(
                    word,
                    last.then_some("STOP"),
                    (input, if last { output } else { at as u64 })
                )
            )
        })
        .collect()
}
