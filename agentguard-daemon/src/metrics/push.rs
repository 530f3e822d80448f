//! Pushing all metrics to a receiver of OTLP, again and again.
//!
//! Counters are cumulative, so a push that fails is dropped: the next one has all of it. Nothing ever waits for the
//! receiver, and nothing of it is believed but its status and what it says about a part that it has thrown away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use hyper::header::HeaderMap;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::config::PushConfig;
use super::{Source, otlp};
use crate::event::escape::printable;
use crate::export::config::Encoding;
use crate::export::http;
use crate::export::{Trouble, host_name};
use crate::outbound::Caller;

/// How often failures are told.
const TELL: Duration = Duration::from_mins(5);
/// How long the last push may take, when the daemon ends.
const GRACE: Duration = Duration::from_secs(3);
/// What a receiver may say in words.
const WORDS: usize = 200;

/// How often all metrics were pushed, by what became of it.
#[derive(Debug, Default)]
pub struct Pushes {
    delivered: AtomicU64,
    partial: AtomicU64,
    failed: AtomicU64,
}

impl Pushes {
    /// By name.
    pub fn by_outcome(&self) -> [(&'static str, u64); 3] {
        [
            ("delivered", self.delivered.load(Ordering::Relaxed)),
            ("partial", self.partial.load(Ordering::Relaxed)),
            ("failed", self.failed.load(Ordering::Relaxed)),
        ]
    }
}

/// Pushes as long as it is not dropped.
#[derive(Debug)]
pub struct Pusher {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Pusher {
    /// Begins at once. Needs a tokio runtime.
    pub fn start(config: &PushConfig, source: Arc<dyn Source>, pushes: Arc<Pushes>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let work = Work {
            config: config.clone(),
            host: host_name(),
            source,
            pushes,
            way: None,
            told: None,
            failing: false,
        };
        let task = tokio::spawn(work.run(stopped));
        Self { stop, task }
    }

    /// Pushes once more, so that what was counted last is not lost, and ends, all in a short time.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        let _ = tokio::time::timeout(GRACE, &mut self.task).await;
    }
}

impl Drop for Pusher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Work {
    config: PushConfig,
    host: String,
    source: Arc<dyn Source>,
    pushes: Arc<Pushes>,
    /// Made anew after each failure, with the files as they are then.
    way: Option<(Caller, HeaderMap)>,
    /// When a failure was told last.
    told: Option<Instant>,
    /// Whether one was told since the last success.
    failing: bool,
}

impl Work {
    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let interval = self.config.interval.0;
        tracing::info!(
            "metrics are pushed to {} every {} s",
            self.config.endpoint.0,
            interval.as_secs()
        );
        loop {
            let began = Instant::now();
            let asked = tokio::select! {
                asked = self.turn() => asked,
                // What is under way may take long, and what the last push has is newer.
                _ = stop.wait_for(|stop| *stop) => {
                    self.way = None;
                    None
                }
            };
            let rest = interval.saturating_sub(began.elapsed());
            let rest = rest.max(asked.unwrap_or_default());
            let stopped = stop.wait_for(|stop| *stop);
            if tokio::time::timeout(rest, stopped).await.is_ok() {
                if asked.is_none() {
                    self.turn().await;
                }
                return;
            }
        }
    }

    /// One push, counted and told; how long the receiver wants to be left alone.
    async fn turn(&mut self) -> Option<Duration> {
        let outcome = self.push().await;
        let count = match &outcome {
            Ok(None) => &self.pushes.delivered,
            Ok(Some(_)) => &self.pushes.partial,
            Err(_) => &self.pushes.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Ok(None) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!("metrics are pushed again");
                }
                None
            }
            Ok(Some(told)) => {
                self.tell(&told);
                None
            }
            Err(trouble) => {
                self.tell(&trouble.what);
                trouble.wait
            }
        }
    }

    /// A receiver that is down, or hostile, does not fill the daemon's log.
    fn tell(&mut self, what: &str) {
        if self.told.is_some_and(|at| at.elapsed() < TELL) {
            return;
        }
        tracing::warn!("metrics were not pushed, or not all; the next push has all again: {what}");
        self.told = Some(Instant::now());
        self.failing = true;
    }

    async fn push(&mut self) -> Result<Option<String>, Trouble> {
        let source = self.source.clone();
        let scrape = tokio::task::spawn_blocking(move || source.scrape()).await;
        let scrape = scrape
            .map_err(|error| Trouble::before(error.to_string()))?
            .map_err(Trouble::before)?;
        let request = otlp::request(&scrape, &self.host, SystemTime::now());
        let (kind, body) = match self.config.encoding {
            Encoding::Protobuf => (http::PROTOBUF, request.encode_to_vec()),
            Encoding::Json => (
                http::JSON,
                serde_json::to_vec(&request).map_err(|error| Trouble::before(error.to_string()))?,
            ),
        };
        let was_open = self.way.is_some();
        let answer = match self.ask(kind, body.clone()).await {
            // Between two pushes a receiver may well have ended a connection that was kept.
            Err(_) if was_open => self.ask(kind, body).await?,
            answer => answer?,
        };
        let (head, body) = answer;
        if head.status.is_success() {
            return Ok(self.thrown_away(&body));
        }
        self.way = None;
        Err(http::refusal(head.status, &head.headers, 1))
    }

    async fn ask(&mut self, kind: &'static str, body: Vec<u8>) -> Result<http::Answer, Trouble> {
        let config = &self.config;
        let way = match self.way.take() {
            Some(way) => way,
            None => http::connect(&config.endpoint, config.headers.as_deref(), &config.tls)
                .map_err(Trouble::before)?,
        };
        let answer = http::ask(&way, &config.endpoint, kind, body).await?;
        self.way = Some(way);
        Ok(answer)
    }

    /// What a success says about points that were thrown away. The protocol forbids to send those again.
    fn thrown_away(&self, body: &[u8]) -> Option<String> {
        let answer = match self.config.encoding {
            Encoding::Protobuf => ExportMetricsServiceResponse::decode(body).ok(),
            Encoding::Json => serde_json::from_slice(body).ok(),
        };
        let partial =
            answer.and_then(|answer: ExportMetricsServiceResponse| answer.partial_success);
        let partial = partial.filter(|it| it.rejected_data_points > 0)?;
        let words: String = partial.error_message.chars().take(WORDS).collect();
        Some(format!(
            "the receiver has thrown {} points away: {}",
            partial.rejected_data_points,
            printable(&words)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::OtherEnd;
    use crate::metrics::{Interval, Scrape};

    struct Broken;

    impl Source for Broken {
        fn may_read(&self, _: OtherEnd) -> bool {
            false
        }

        fn scrape(&self) -> Result<Scrape, String> {
            Err("nobody knows".to_owned())
        }
    }

    #[tokio::test]
    async fn failures_are_counted_each_and_told_now_and_then() {
        let endpoint = "http://127.0.0.1:1/v1/metrics".to_owned();
        let mut work = Work {
            config: PushConfig {
                endpoint: endpoint.try_into().unwrap(),
                encoding: Encoding::Json,
                headers: None,
                tls: crate::outbound::TlsConfig::default(),
                interval: Interval::default(),
            },
            host: "host".to_owned(),
            source: Arc::new(Broken),
            pushes: Arc::default(),
            way: None,
            told: None,
            failing: false,
        };
        work.turn().await;
        let first = work.told;
        assert!(first.is_some() && work.failing);
        for _ in 0..9 {
            work.turn().await;
        }
        assert_eq!(work.told, first, "it is told once in five minutes");
        assert_eq!(work.pushes.by_outcome()[2], ("failed", 10));
        work.told = first.and_then(|at| at.checked_sub(TELL));
        work.turn().await;
        assert!(work.told > first);
    }
}
