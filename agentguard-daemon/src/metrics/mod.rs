//! Metrics: what there is, how it is written down as `OpenMetrics` and as OTLP, who may read it over TCP, and pushing it.
//!
//! What is counted is counted where it happens; here it only gets its name. Names come from one list, from which the
//! manual is written too. A label never holds text that an agent can choose without bounds.

mod config;
mod counts;
mod growth;
mod histogram;
pub mod list;
pub mod otlp;
mod process;
mod push;
mod scrape;
mod serve;

pub use config::{Interval, MetricsExport, PushConfig};
pub use counts::{AgentCounts, Counts, Made};
pub use growth::Growth;
pub use histogram::Histogram;
pub use list::{Kind, Metric};
pub use process::Process;
pub use push::{Pusher, Pushes};
pub use scrape::{Amount, Scrape};
pub use serve::{Listener, MetricsError, Source, checked};

/// What an answer is, for whoever scrapes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
