//! Metrics that are pushed to receivers that behave badly: nothing is lost by it but single pushes.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agentguard::daemon::Config;
use agentguard::kernel::OtherEnd;
use agentguard::metrics::{
    Amount, Histogram, Kind, MetricsExport, PushConfig, Pusher, Pushes, Scrape, Source, list,
};
use agentguard::outbound::Span;
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::bench::Bench;

/// Has every metric, and a text of each moment at which it was asked: `agentguard_uptime_seconds` is its number.
#[derive(Default)]
pub struct Everything {
    pub texts: Mutex<Vec<String>>,
}

impl Source for Everything {
    fn may_read(&self, _: OtherEnd) -> bool {
        false
    }

    fn scrape(&self) -> Result<Scrape, String> {
        let mut texts = self.texts.lock().expect("the texts");
        let number = u32::try_from(texts.len()).expect("a number");
        let mut scrape = Scrape::since(std::time::SystemTime::now());
        for metric in list::ALL {
            let labels: Vec<String> = metric
                .labels
                .iter()
                .map(|it| format!("some {it}"))
                .collect();
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            let amount = match metric.kind {
                Kind::Info => Amount::Whole(1),
                Kind::Histogram => {
                    let mut many = Histogram::new(Histogram::BATCH);
                    (0..=number).for_each(|it| many.observe(f64::from(it) * 700.0));
                    Amount::Many(many)
                }
                _ if metric.name == list::UPTIME.name => Amount::Whole(number.into()),
                _ if metric.unit == "s" => Amount::Real(f64::from(number) + 0.125),
                _ => Amount::Whole(u64::from(number) * 3 + metric.name.len() as u64),
            };
            scrape.put(metric, &labels, amount);
        }
        texts.push(scrape.clone().text().map_err(|error| error.to_string())?);
        Ok(scrape)
    }
}

/// A pusher of everything.
pub struct Push {
    pub source: Arc<Everything>,
    pub pushes: Arc<Pushes>,
    pub pusher: Pusher,
}

impl Push {
    pub fn start(config: &PushConfig) -> Self {
        let (source, pushes) = (Arc::<Everything>::default(), Arc::<Pushes>::default());
        let pusher = Pusher::start(config, source.clone(), pushes.clone());
        Self {
            source,
            pushes,
            pusher,
        }
    }

    pub fn count(&self, outcome: &str) -> u64 {
        let all = self.pushes.by_outcome();
        let found = all.iter().find(|it| it.0 == outcome);
        found.expect("an outcome").1
    }

    pub async fn until(&self, outcome: &str, count: u64) {
        while self.count(outcome) < count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The settings, as they are read; pushing every so many milliseconds.
pub fn config(text: &str, interval: u64) -> PushConfig {
    let text = format!("metrics_export:\n  otlp: {{ {text} }}\n");
    let config = Config::parse(Path::new("test.yaml"), &text).expect("a configuration");
    let Some(MetricsExport::Otlp(mut push)) = config.metrics_export else {
        panic!("no section");
    };
    push.interval = Span(Duration::from_millis(interval));
    push
}

/// What a receiver does with a request.
#[derive(Clone, Debug)]
enum Answer {
    /// Status, further headers, and body.
    With(u16, &'static str, Vec<u8>),
    /// It takes, and is silent.
    Silence,
    /// It says what is no HTTP.
    Bytes(&'static [u8]),
    /// It answers, and closes the connection without having said that it would.
    ThenGone,
}

#[derive(Default)]
struct Desk {
    answers: VecDeque<Answer>,
    heads: Vec<String>,
    requests: Vec<ExportMetricsServiceRequest>,
}

type Shared = Arc<Mutex<Desk>>;

/// Listens without TLS, and answers with these first, and with success after that.
async fn listen(answers: &[Answer]) -> (u16, Shared) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let desk = Shared::default();
    desk.lock().expect("the desk").answers = answers.iter().cloned().collect();
    let shared = desk.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(converse(stream, shared.clone()));
        }
    });
    (port, desk)
}

async fn request(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).expect("a head").to_lowercase();
    let (_, rest) = head.split_once("content-length: ").expect("a length");
    let length = rest.lines().next().expect("a length");
    let mut body = vec![0; length.parse().expect("a length")];
    stream.read_exact(&mut body).await.ok()?;
    Some((head, body))
}

async fn converse(mut stream: TcpStream, desk: Shared) -> Option<()> {
    loop {
        let (head, body) = request(&mut stream).await?;
        let decoded = ExportMetricsServiceRequest::decode(&*body).expect("protobuf");
        let answer = {
            let mut desk = desk.lock().expect("the desk");
            desk.heads.push(head);
            desk.requests.push(decoded);
            desk.answers.pop_front()
        };
        let text = |status: u16, more: &str, body: &[u8]| {
            let length = body.len();
            let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n{more}\r\n");
            [head.as_bytes(), body].concat()
        };
        match answer {
            None => stream.write_all(&text(200, "", b"")).await.ok()?,
            Some(Answer::With(status, more, body)) => {
                stream.write_all(&text(status, more, &body)).await.ok()?;
            }
            Some(Answer::ThenGone) => {
                stream.write_all(&text(200, "", b"")).await.ok()?;
                return None;
            }
            Some(Answer::Bytes(bytes)) => {
                stream.write_all(bytes).await.ok()?;
                return None;
            }
            Some(Answer::Silence) => std::future::pending().await,
        }
    }
}

fn local(port: u16, more: &str, interval: u64) -> PushConfig {
    let text = format!("endpoint: 'http://127.0.0.1:{port}/v1/metrics'{more}");
    config(&text, interval)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_refuses_or_lies_costs_a_push_and_nothing_else() {
    let partial = ExportMetricsServiceResponse {
        partial_success: Some(ExportMetricsPartialSuccess {
            rejected_data_points: 7,
            error_message: "too\u{1b} many".repeat(100),
        }),
    };
    let with = |status, more, body| Answer::With(status, more, body);
    let answers = [
        with(503, "", b"try later".to_vec()),
        with(429, "retry-after: 1\r\n", Vec::new()),
        with(400, "", vec![0xff; 100]),
        with(401, "", Vec::new()),
        // Nobody is led elsewhere.
        with(307, "location: http://192.0.2.1/\r\n", Vec::new()),
        with(200, "", partial.encode_to_vec()),
        // A success is one, whatever is in it.
        with(200, "", vec![0xff; 100]),
        // More than is read of an answer.
        with(200, "", vec![0; 2 << 20]),
        Answer::Bytes(b"SSH-2.0-none\r\n"),
        Answer::Bytes(b""),
    ];
    let (port, desk) = listen(&answers).await;
    let began = Instant::now();
    let push = Push::start(&local(port, "", 10));
    push.until("delivered", 3).await;
    // `Retry-After` was heeded.
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(push.count("partial"), 1);
    let failed = push.count("failed");
    assert!((5..=8).contains(&failed), "{failed}");
    push.pusher.stop().await;
    // Each push has all of them.
    let desk = desk.lock().expect("the desk");
    for request in &desk.requests {
        let scope = &request.resource_metrics[0].scope_metrics[0];
        assert_eq!(scope.metrics.len(), list::ALL.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_the_receiver_closed_in_between_is_no_failure() {
    let (port, desk) = listen(&[Answer::ThenGone, Answer::ThenGone, Answer::ThenGone]).await;
    let push = Push::start(&local(port, "", 20));
    push.until("delivered", 5).await;
    assert_eq!(push.count("failed"), 0);
    push.pusher.stop().await;
    assert!(desk.lock().expect("the desk").requests.len() >= 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_silent_holds_up_nobody_and_the_end_is_short() {
    let (port, desk) = listen(&[Answer::Silence, Answer::Silence]).await;
    let push = Push::start(&local(port, "", 10));
    while desk.lock().expect("the desk").requests.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let began = Instant::now();
    push.pusher.stop().await;
    assert!(began.elapsed() < Duration::from_secs(6));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_counted_last_is_pushed_at_the_end() {
    let (port, desk) = listen(&[]).await;
    let push = Push::start(&local(port, "", 3_600_000));
    push.until("delivered", 1).await;
    let pushes = push.pushes.clone();
    push.pusher.stop().await;
    assert_eq!(pushes.by_outcome()[0], ("delivered", 2));
    assert_eq!(desk.lock().expect("the desk").requests.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_others_may_read_are_not_used() {
    use std::os::unix::fs::PermissionsExt as _;
    let bench = Bench::new();
    let (port, desk) = listen(&[]).await;
    let path = bench.path("headers");
    std::fs::write(&path, "Authorization: Bearer hunter2\n").expect("written");
    let more = format!(", headers: {}", path.display());
    let push = Push::start(&local(port, &more, 10));
    push.until("failed", 3).await;
    assert_eq!(desk.lock().expect("the desk").requests.len(), 0);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("closed");
    push.until("delivered", 1).await;
    push.pusher.stop().await;
    let desk = desk.lock().expect("the desk");
    assert!(desk.heads[0].contains("authorization: bearer hunter2\r\n"));
}
