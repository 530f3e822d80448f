//! All series at one moment as metrics of OpenTelemetry, as they go over OTLP.
//!
//! Names are those of the list, as OpenTelemetry wants it for metrics of Prometheus: whichever way they go, alerts and
//! dashboards find them.

use std::time::SystemTime;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram as ManyPoints, HistogramDataPoint, Metric,
    NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
};

use super::scrape::{Family, Series};
use super::{Amount, Histogram, Kind, Scrape};
use crate::export::otlp::{pair, resource, text};

/// The name of what makes these metrics.
const SCOPE: &str = "agentguard.metrics";

/// The request that hands over a scrape of the host with this name, made `now`.
pub fn request(scrape: &Scrape, host: &str, now: SystemTime) -> ExportMetricsServiceRequest {
    let mut resource = resource(host);
    // Without it Prometheus has the same series for all hosts.
    let instance = pair("service.instance.id", text(host));
    resource.attributes.push(instance);
    let moment = Moment {
        since: scrape.since,
        now: nanoseconds(now),
    };
    let told = scrape.families.iter().filter(|it| !it.series.is_empty());
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(resource),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(InstrumentationScope {
                    name: SCOPE.to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    ..InstrumentationScope::default()
                }),
                metrics: told.map(|family| moment.metric(family)).collect(),
                ..ScopeMetrics::default()
            }],
            ..ResourceMetrics::default()
        }],
    }
}

/// When a scrape was made, and since when it counts.
struct Moment {
    since: SystemTime,
    now: u64,
}

impl Moment {
    fn metric(&self, family: &Family) -> Metric {
        let kind = family.metric.kind;
        let cumulative = AggregationTemporality::Cumulative.into();
        let series = family.series.iter();
        let data = match kind {
            Kind::Gauge => Data::Gauge(Gauge {
                data_points: series.map(|it| self.number(it, kind)).collect(),
            }),
            // Information counts itself, so that it can be added up; so OpenTelemetry wants it.
            Kind::Counter | Kind::Info => Data::Sum(Sum {
                data_points: series.map(|it| self.number(it, kind)).collect(),
                aggregation_temporality: cumulative,
                is_monotonic: kind == Kind::Counter,
            }),
            Kind::Histogram => Data::Histogram(ManyPoints {
                data_points: series.filter_map(|it| self.many(it)).collect(),
                aggregation_temporality: cumulative,
            }),
        };
        Metric {
            name: family.metric.name.to_owned(),
            description: family.metric.help.to_owned(),
            unit: family.metric.unit.to_owned(),
            data: Some(data),
            ..Metric::default()
        }
    }

    fn since(&self, series: &Series) -> u64 {
        // After a clock was put back nothing begins in the future.
        nanoseconds(series.since.unwrap_or(self.since)).min(self.now)
    }

    fn number(&self, series: &Series, kind: Kind) -> NumberDataPoint {
        NumberDataPoint {
            attributes: attributes(series),
            // What is now has no beginning.
            start_time_unix_nano: match kind {
                Kind::Gauge => 0,
                _ => self.since(series),
            },
            time_unix_nano: self.now,
            value: value(&series.amount),
            ..NumberDataPoint::default()
        }
    }

    fn many(&self, series: &Series) -> Option<HistogramDataPoint> {
        let Amount::Many(many) = &series.amount else {
            return None;
        };
        Some(HistogramDataPoint {
            attributes: attributes(series),
            start_time_unix_nano: self.since(series),
            time_unix_nano: self.now,
            count: many.count(),
            sum: Some(many.sum()),
            bucket_counts: many.buckets().into_iter().map(|it| it.1).collect(),
            explicit_bounds: bounds(many),
            ..HistogramDataPoint::default()
        })
    }
}

/// All but the last, which is infinite.
fn bounds(many: &Histogram) -> Vec<f64> {
    let all = many.buckets().into_iter().map(|it| it.0);
    all.filter(|bound| bound.is_finite()).collect()
}

fn attributes(series: &Series) -> Vec<KeyValue> {
    let labels = series.labels.iter();
    labels.map(|(key, value)| pair(key, text(value))).collect()
}

fn value(amount: &Amount) -> Option<Value> {
    match amount {
        // What is larger than their whole numbers is rounded.
        #[expect(clippy::cast_precision_loss, reason = "see above")]
        Amount::Whole(number) => Some(match i64::try_from(*number) {
            Ok(number) => Value::AsInt(number),
            Err(_) => Value::AsDouble(*number as f64),
        }),
        Amount::Real(number) => Some(Value::AsDouble(*number)),
        Amount::Many(_) => None,
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0))
}

#[cfg(test)]
#[path = "otlp_tests.rs"]
mod tests;
