//! OTLP over HTTP: what answers of a receiver lead to.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};

use agentguard::export::SinkError;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use prost::Message as _;
use tokio::net::TcpListener;

use crate::bench::{Bench, acceptor, until};

/// How a request is answered.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// With this status, and perhaps `Retry-After` in seconds.
    Status(u16, Option<u64>),
    /// What was in it is kept, and the connection is closed without an answer.
    Hangup,
    /// It is kept, but so many of its records are not.
    Partial(i64),
}

/// What a receiver has seen, and what it is to answer next. Without anything in the list it takes what comes, in
/// requests of up to `most` records.
struct Desk {
    numbers: Vec<u64>,
    bodies: Vec<String>,
    answers: VecDeque<Answer>,
    most: usize,
    /// Answers 401 as long as it is set.
    closed: bool,
    /// Answers 400 to whatever has this record in it.
    hated: Option<u64>,
    requests: u64,
    authorization: Option<String>,
}

type Shared = Arc<Mutex<Desk>>;

fn desk(answers: &[Answer], most: usize) -> Shared {
    Arc::new(Mutex::new(Desk {
        numbers: Vec::new(),
        bodies: Vec::new(),
        answers: answers.iter().copied().collect(),
        most,
        closed: false,
        hated: None,
        requests: 0,
        authorization: None,
    }))
}

async fn listen(folder: &Path, desk: &Shared) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (acceptor, desk) = (acceptor(folder), desk.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, desk) = (acceptor.clone(), desk.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = service_fn(move |request| {
                    let desk = desk.clone();
                    async move { answer(request, &desk).await }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    port
}

async fn answer(
    request: Request<Incoming>,
    desk: &Shared,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let header = |name| {
        let value = request.headers().get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    let is_json = header("content-type").as_deref() == Some("application/json");
    let authorization = header("authorization");
    let body = request
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    let asked: ExportLogsServiceRequest = if is_json {
        serde_json::from_slice(&body).expect("JSON")
    } else {
        ExportLogsServiceRequest::decode(&*body).expect("protobuf")
    };
    let records = asked.resource_logs.into_iter().flat_map(|it| it.scope_logs);
    let records: Vec<_> = records.flat_map(|it| it.log_records).collect();
    let mut desk = desk.lock().expect("the desk");
    desk.requests += 1;
    desk.authorization = authorization;
    let mut response = Response::new(Full::default());
    if desk.closed {
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        return Ok(response);
    }
    if records.len() > desk.most {
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        return Ok(response);
    }
    let seq_of = |record: &LogRecord| {
        let mut attributes = record.attributes.iter();
        let seq = attributes.find(|it| it.key == "agentguard.seq")?;
        match seq.value.as_ref()?.value.as_ref()? {
            Value::IntValue(seq) => u64::try_from(*seq).ok(),
            _ => None,
        }
    };
    if desk.hated.is_some() && records.iter().any(|it| seq_of(it) == desk.hated) {
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return Ok(response);
    }
    let next = desk.answers.pop_front();
    if let Some(Answer::Status(status, after)) = next {
        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
        if let Some(seconds) = after {
            response.headers_mut().insert("retry-after", seconds.into());
        }
        return Ok(response);
    }
    for record in records {
        let seq = record
            .attributes
            .iter()
            .find(|it| it.key == "agentguard.seq");
        match seq.and_then(|it| it.value.clone()).and_then(|it| it.value) {
            Some(Value::IntValue(seq)) => desk.numbers.push(seq.try_into().expect("a number")),
            other => panic!("{other:?} is no number"),
        }
        match record.body.and_then(|it| it.value) {
            Some(Value::StringValue(text)) => desk.bodies.push(text),
            other => panic!("{other:?} is no text"),
        }
    }
    match next {
        Some(Answer::Hangup) => return Err(std::io::Error::other("gone")),
        Some(Answer::Partial(rejected)) => {
            let partial = ExportLogsServiceResponse {
                partial_success: Some(ExportLogsPartialSuccess {
                    rejected_log_records: rejected,
                    error_message: "too\u{1b} old".to_owned(),
                }),
            };
            let bytes = if is_json {
                serde_json::to_vec(&partial).expect("JSON")
            } else {
                partial.encode_to_vec()
            };
            *response.body_mut() = Full::from(bytes);
        }
        _ => {}
    }
    Ok(response)
}

fn config(bench: &Bench, port: u16, more: &str) -> String {
    format!(
        "  otel:\n    otlp:\n      endpoint: https://localhost:{port}/v1/logs\n      tls: {{ ca: {} }}\n{more}",
        bench.path("ca.pem").display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_that_pass_cost_nothing_and_a_batch_that_is_too_large_is_halved() {
    for encoding in ["protobuf", "json"] {
        let mut bench = Bench::new();
        bench.write(3000);
        let answers = [
            Answer::Status(503, None),
            Answer::Status(429, Some(1)),
            Answer::Status(500, None),
            Answer::Status(400, None),
            Answer::Partial(0),
        ];
        let desk = desk(&answers, 100);
        let port = listen(bench.folder.path(), &desk).await;
        let more = format!("      encoding: {encoding}\n");
        let began = std::time::Instant::now();
        let sinks = bench.start(&config(&bench, port, &more));
        let last = bench.last();
        let state = until(&sinks, |state| state.position == last).await;
        // `Retry-After` was heeded.
        assert!(began.elapsed() >= std::time::Duration::from_secs(1));
        assert!(state.retries >= 5, "{state:?}");
        assert_eq!(state.rejected, 0);
        {
            let desk = desk.lock().expect("the desk");
            assert_eq!(desk.numbers, (1..=last).collect::<Vec<_>>());
            let log = std::fs::read_to_string(bench.path("audit.jsonl")).expect("the log");
            assert_eq!(desk.bodies.last().map(String::as_str), log.lines().last());
        }
        // Acknowledged is acknowledged: another daemon goes on from there.
        sinks.stop().await;
        bench.write(10);
        let sinks = bench.start(&config(&bench, port, &more));
        let last = bench.last();
        until(&sinks, |state| state.position == last).await;
        sinks.stop().await;
        let desk = desk.lock().expect("the desk");
        assert_eq!(desk.numbers, (1..=last).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_come_means_that_it_is_sent_again() {
    let mut bench = Bench::new();
    bench.write(1200);
    let desk = desk(&[Answer::Hangup], 10_000);
    let port = listen(bench.folder.path(), &desk).await;
    let sinks = bench.start(&config(&bench, port, ""));
    let last = bench.last();
    let state = until(&sinks, |state| state.position == last).await;
    assert_eq!(state.retries, 1);
    let numbers = desk.lock().expect("the desk").numbers.clone();
    let first = numbers
        .iter()
        .skip(1)
        .position(|seq| *seq == 1)
        .expect("once more")
        + 1;
    assert_eq!(numbers[first..], (1..=last).collect::<Vec<_>>());
    assert_eq!(state.repeated, first as u64);
    sinks.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_receiver_throws_away_is_counted_and_told() {
    let mut bench = Bench::new();
    bench.write(100);
    let desk = desk(&[Answer::Partial(7)], 10_000);
    let port = listen(bench.folder.path(), &desk).await;
    let sinks = bench.start(&config(&bench, port, ""));
    let last = bench.last();
    let state = until(&sinks, |state| state.position == last && state.rejected > 0).await;
    assert_eq!((state.rejected, state.retries), (7, 0));
    let told = state.last_error.expect("it is told");
    assert!(
        told.contains("7 records") && told.contains(r"too\x1b old"),
        "{told}"
    );
    sinks.stop().await;
    let sinks = bench.start(&config(&bench, port, ""));
    until(&sinks, |state| state.rejected == 7).await;
    sinks.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_does_not_want_us_is_told_and_nothing_is_skipped() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut bench = Bench::new();
    bench.write(50);
    let desk = desk(&[], 10_000);
    desk.lock().expect("the desk").closed = true;
    let port = listen(bench.folder.path(), &desk).await;
    let path = bench.path("headers");
    std::fs::write(&path, "Authorization: Bearer hunter2\n").expect("written");
    let more = format!("      headers: {}\n", path.display());
    let sinks = bench.start(&config(&bench, port, &more));
    // Others may read the file: it is not used.
    let state = until(&sinks, |state| state.retries >= 1).await;
    assert!(
        state
            .last_error
            .expect("a reason")
            .contains("may be read by others")
    );
    assert_eq!(desk.lock().expect("the desk").requests, 0);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("closed");
    let state = until(&sinks, |state| state.doing.name() == "refused").await;
    assert_eq!(state.position, 0);
    let told = state.last_error.clone().expect("a reason");
    assert!(told.contains("401") && told.contains("record 1"), "{told}");
    let shown = format!("{state:?} {sinks:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    desk.lock().expect("the desk").closed = false;
    let last = bench.last();
    until(&sinks, |state| state.position == last).await;
    let desk = desk.lock().expect("the desk");
    assert_eq!(desk.authorization.as_deref(), Some("Bearer hunter2"));
    assert_eq!(desk.numbers, (1..=last).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_one_record_that_is_never_taken_is_left_out_when_an_operator_says_so_and_no_other() {
    let mut bench = Bench::new();
    bench.write(300);
    let desk = desk(&[], 10_000);
    desk.lock().expect("the desk").hated = Some(77);
    let port = listen(bench.folder.path(), &desk).await;
    let sinks = bench.start(&config(&bench, port, ""));
    let state = until(&sinks, |state| state.refuses == Some(77)).await;
    assert_eq!((state.position, state.doing.name()), (76, "refused"));
    let told = state.last_error.expect("a reason");
    assert!(told.contains("audit sinks skip otel 77"), "{told}");
    // No other record, and no other sink.
    let error = sinks.skip("otel", 78).await.expect_err("another record");
    assert!(error.to_string().contains("that is 77"), "{error}");
    assert!(sinks.skip("otel", 76).await.is_err());
    let error = sinks.skip("siem", 77).await.expect_err("another sink");
    assert_eq!(error, SinkError::Unknown("siem".to_owned()));
    assert_eq!(until(&sinks, |_| true).await.skipped, 0);
    let state = sinks.skip("otel", 77).await.expect("it is left out");
    assert_eq!(
        (state.position, state.skipped, state.refuses),
        (77, 1, None)
    );
    let last = bench.last();
    until(&sinks, |state| state.position == last).await;
    // Now there is none.
    assert!(sinks.skip("otel", last).await.is_err());
    assert!(sinks.retry("otel").await.is_err(), "it does not wait");
    sinks.stop().await;
    let all_but = |hated| (1..=last).filter(|it| *it != hated).collect::<Vec<_>>();
    assert_eq!(desk.lock().expect("the desk").numbers, all_but(77));
    // Another daemon knows of it; and who wants nothing of us is no reason to leave out a record.
    desk.lock().expect("the desk").closed = true;
    bench.write(5);
    let sinks = bench.start(&config(&bench, port, ""));
    let state = until(&sinks, |state| state.doing.name() == "refused").await;
    assert_eq!((state.skipped, state.refuses), (1, None));
    assert!(sinks.skip("otel", last + 1).await.is_err());
    desk.lock().expect("the desk").closed = false;
    // Whether it is in time or not: what was refused is sent.
    let _ = sinks.retry("otel").await;
    let last = bench.last();
    until(&sinks, |state| state.position == last).await;
    sinks.stop().await;
    let numbers = desk.lock().expect("the desk").numbers.clone();
    let expected: Vec<u64> = (1..=last).filter(|it| *it != 77).collect();
    assert_eq!(numbers, expected);
}
