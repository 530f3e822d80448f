//! All series at one moment, and the text that is made of them.

use std::fmt;
use std::mem::discriminant;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::list::ALL;
use super::{Histogram, Kind, Metric};

/// One number.
#[derive(Clone, Debug, PartialEq)]
pub enum Amount {
    /// A whole number.
    Whole(u64),
    /// One with a fraction.
    Real(f64),
    /// Many.
    Many(Histogram),
}

impl From<u64> for Amount {
    fn from(number: u64) -> Self {
        Self::Whole(number)
    }
}

impl From<usize> for Amount {
    fn from(number: usize) -> Self {
        Self::Whole(number as u64)
    }
}

impl From<bool> for Amount {
    fn from(yes: bool) -> Self {
        Self::Whole(u64::from(yes))
    }
}

impl From<f64> for Amount {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

/// One series now.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub labels: Vec<(&'static str, String)>,
    pub amount: Amount,
    /// Since when it is counted; none for since the daemon started.
    pub since: Option<SystemTime>,
}

/// A metric with its series.
#[derive(Clone, Debug)]
pub(super) struct Family {
    pub metric: &'static Metric,
    pub series: Vec<Series>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Scrape {
    /// When the daemon started; the beginning of time where that is not known.
    pub(super) since: SystemTime,
    pub(super) families: Vec<Family>,
}

impl Default for Scrape {
    fn default() -> Self {
        let family = |metric: &&'static Metric| Family {
            metric,
            series: Vec::new(),
        };
        Self {
            since: SystemTime::UNIX_EPOCH,
            families: ALL.iter().map(family).collect(),
        }
    }
}

impl Scrape {
    /// Nothing yet, counted since this time.
    pub fn since(time: SystemTime) -> Self {
        Self {
            since: time,
            ..Self::default()
        }
    }

    /// Adds a series; `labels` are the values of the metric's labels, in their order.
    pub fn put(&mut self, metric: &Metric, labels: &[&str], amount: impl Into<Amount>) {
        self.add(metric, labels, amount.into(), None);
    }

    /// The same, of what is counted since another time than the daemon's start: where it began, or before that.
    pub fn put_since(
        &mut self,
        metric: &Metric,
        labels: &[&str],
        amount: impl Into<Amount>,
        since: SystemTime,
    ) {
        self.add(metric, labels, amount.into(), Some(since));
    }

    fn add(&mut self, metric: &Metric, labels: &[&str], amount: Amount, since: Option<SystemTime>) {
        debug_assert_eq!(labels.len(), metric.labels.len(), "{}", metric.name);
        let is_many = discriminant(&amount) == discriminant(&Amount::Many(Histogram::new(&[])));
        debug_assert_eq!(is_many, metric.kind == Kind::Histogram, "{}", metric.name);
        let Some(family) = self.families.iter_mut().find(|it| it.metric == metric) else {
            return;
        };
        let values = labels.iter().map(|value| (*value).to_owned());
        let labels = family.metric.labels.iter().copied().zip(values).collect();
        family.series.push(Series {
            labels,
            amount,
            since,
        });
    }

    /// The text, in the format `OpenMetrics`.
    pub fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for family in &self.families {
            let Metric {
                name, help, kind, ..
            } = family.metric;
            // The format puts the endings of these behind the name itself.
            let name = match kind {
                Kind::Counter => name.strip_suffix("_total"),
                Kind::Info => name.strip_suffix("_info"),
                Kind::Gauge | Kind::Histogram => None,
            }
            .unwrap_or(name);
            let kind = match kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Info => MetricType::Info,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for series in &family.series {
                encode(&mut metric, family.metric.kind, series)?;
            }
        }
        Ok(())
    }
}

fn encode(metric: &mut MetricEncoder<'_>, kind: Kind, series: &Series) -> fmt::Result {
    if kind == Kind::Info {
        return metric.encode_info(&series.labels);
    }
    if series.labels.is_empty() {
        return encode_amount(metric, kind, &series.amount);
    }
    let mut metric = metric.encode_family(&series.labels)?;
    encode_amount(&mut metric, kind, &series.amount)
}

fn encode_amount(metric: &mut MetricEncoder<'_>, kind: Kind, amount: &Amount) -> fmt::Result {
    match (kind, amount) {
        (Kind::Counter, Amount::Whole(number)) => {
            metric.encode_counter::<NoLabelSet, _, u64>(number, None)
        }
        (Kind::Counter, Amount::Real(number)) => {
            metric.encode_counter::<NoLabelSet, _, u64>(number, None)
        }
        (_, Amount::Many(many)) => {
            metric.encode_histogram::<NoLabelSet>(many.sum(), many.count(), &many.buckets(), None)
        }
        (_, Amount::Whole(number)) => metric.encode_gauge(number),
        (_, Amount::Real(number)) => metric.encode_gauge(number),
    }
}

#[cfg(test)]
mod tests {
    use super::super::list;
    use super::*;

    #[test]
    fn series_have_the_form_that_is_scraped() {
        let mut scrape = Scrape::default();
        scrape.put(&list::BUILD, &["1.2", "6.12"], true);
        scrape.put(&list::VERDICTS, &["a", "deny"], 3_u64);
        scrape.put(&list::GATEWAY_COST, &["a", "openai"], 0.25);
        scrape.put(&list::AGENTS, &["enforce"], 2_usize);
        let mut histogram = Histogram::new(Histogram::DISK);
        histogram.observe(0.002);
        scrape.put(&list::LOG_SYNC, &[], Amount::Many(histogram));
        let text = scrape.text().unwrap();
        for line in [
            "# TYPE agentguard_build info",
            "agentguard_build_info{version=\"1.2\",kernel=\"6.12\"} 1",
            "# TYPE agentguard_verdicts counter",
            "agentguard_verdicts_total{agent=\"a\",verdict=\"deny\"} 3",
            "agentguard_gateway_cost_usd_total{agent=\"a\",provider=\"openai\"} 0.25",
            "# TYPE agentguard_agents gauge",
            "agentguard_agents{mode=\"enforce\"} 2",
            "agentguard_log_sync_seconds_bucket{le=\"0.001\"} 0",
            "agentguard_log_sync_seconds_bucket{le=\"0.0025\"} 1",
            "agentguard_log_sync_seconds_bucket{le=\"+Inf\"} 1",
            "agentguard_log_sync_seconds_count 1",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_label_cannot_forge_a_line() {
        let mut scrape = Scrape::default();
        scrape.put(
            &list::DENIALS,
            &["a\"} 1\nx{y=\"", "\\", "c", "deny"],
            1_u64,
        );
        let text = scrape.text().unwrap();
        let wanted = r#"agentguard_denials_total{agent="a\"} 1\nx{y=\"",rule="\\",cause="c",verdict="deny"} 1"#;
        assert!(text.lines().any(|line| line == wanted), "{text}");
    }
}
