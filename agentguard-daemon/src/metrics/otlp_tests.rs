//! Kinds, units, times and values of what is pushed, compared with what is scraped at the same moment.

use std::collections::BTreeMap;
use std::time::Duration;

use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;

use super::super::list;
use super::*;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Each metric with a series or two.
fn full() -> Scrape {
    let mut scrape = Scrape::since(at(100));
    for (number, metric) in (0_u32..).zip(list::ALL) {
        for round in 1..3 {
            let labels: Vec<String> = metric
                .labels
                .iter()
                .map(|it| format!("{it}\"\n{round}"))
                .collect();
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            let amount = match metric.kind {
                Kind::Info => Amount::Whole(1),
                Kind::Histogram => {
                    let mut many = Histogram::new(Histogram::DISK);
                    for value in [0.0001, 0.3, 9.0] {
                        many.observe(value);
                    }
                    Amount::Many(many)
                }
                _ if number % 2 == 0 => Amount::Whole(u64::from(number * 10 + round)),
                _ => Amount::Real(f64::from(number) + 0.25),
            };
            scrape.put_since(metric, &labels, amount, at(50 + u64::from(number)));
            if labels.is_empty() {
                break;
            }
        }
    }
    scrape
}

fn metrics(request: &ExportMetricsServiceRequest) -> BTreeMap<&str, &Metric> {
    let scope = &request.resource_metrics[0].scope_metrics[0];
    assert_eq!(scope.scope.as_ref().unwrap().name, "agentguard.metrics");
    let named = scope.metrics.iter().map(|it| (&*it.name, it));
    named.collect()
}

/// The lines that Prometheus would have of it, so that both forms can be compared.
fn lines(metric: &Metric) -> Vec<String> {
    let labels = |attributes: &[KeyValue], more: Option<String>| {
        let text = |it: &KeyValue| match it.value.clone().and_then(|it| it.value) {
            Some(Any::StringValue(text)) => {
                let text = text.replace('"', "\\\"").replace('\n', "\\n");
                format!("{}=\"{text}\"", it.key)
            }
            other => panic!("{other:?}"),
        };
        let all: Vec<String> = attributes.iter().map(text).chain(more).collect();
        if all.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", all.join(","))
        }
    };
    let name = &metric.name;
    let number = |it: &NumberDataPoint| {
        let value = match it.value {
            Some(Value::AsInt(value)) => value.to_string(),
            Some(Value::AsDouble(value)) => value.to_string(),
            None => panic!("{name} has no value"),
        };
        format!("{name}{} {value}", labels(&it.attributes, None))
    };
    match metric.data.as_ref().unwrap() {
        Data::Gauge(gauge) => gauge.data_points.iter().map(number).collect(),
        Data::Sum(sum) => sum.data_points.iter().map(number).collect(),
        Data::Histogram(many) => {
            let point = &many.data_points[0];
            assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
            let mut below = 0;
            let bounds = point.explicit_bounds.iter().map(|it| format!("{it:?}"));
            let buckets = bounds.chain(["+Inf".to_owned()]).zip(&point.bucket_counts);
            let mut lines: Vec<String> = buckets
                .map(|(bound, count)| {
                    below += count;
                    let bound = labels(&point.attributes, Some(format!("le=\"{bound}\"")));
                    format!("{name}_bucket{bound} {below}")
                })
                .collect();
            lines.push(format!("{name}_count {}", point.count));
            lines.push(format!("{name}_sum {}", point.sum.unwrap()));
            lines
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn both_forms_say_the_same_of_every_metric_of_the_list() {
    let scrape = full();
    let request = request(&scrape, "host", at(200));
    let metrics = metrics(&request);
    assert_eq!(metrics.len(), list::ALL.len());
    let mut pushed: Vec<String> = metrics.values().flat_map(|it| lines(it)).collect();
    let text = scrape.text().unwrap();
    let scraped = text.lines().filter(|it| !it.starts_with('#'));
    let mut scraped: Vec<String> = scraped.map(str::to_owned).collect();
    pushed.sort();
    scraped.sort();
    assert_eq!(pushed, scraped);
}

#[test]
fn each_has_its_kind_its_unit_and_its_times() {
    let request = request(&full(), "host", at(200));
    let metrics = metrics(&request);
    let second = 1_000_000_000;
    for (number, metric) in (0..).zip(list::ALL) {
        let pushed = metrics[metric.name];
        assert_eq!(
            (&*pushed.unit, &*pushed.description),
            (metric.unit, metric.help)
        );
        let cumulative = AggregationTemporality::Cumulative as i32;
        let since = (50 + number) * second;
        let (kind, times) = match pushed.data.as_ref().unwrap() {
            Data::Gauge(gauge) => {
                let point = &gauge.data_points[0];
                assert_eq!(point.start_time_unix_nano, 0);
                (Kind::Gauge, (since, point.time_unix_nano))
            }
            Data::Sum(sum) => {
                assert_eq!(sum.aggregation_temporality, cumulative);
                let kind = if sum.is_monotonic {
                    Kind::Counter
                } else {
                    Kind::Info
                };
                let point = &sum.data_points[0];
                (kind, (point.start_time_unix_nano, point.time_unix_nano))
            }
            Data::Histogram(many) => {
                assert_eq!(many.aggregation_temporality, cumulative);
                let point = &many.data_points[0];
                (
                    Kind::Histogram,
                    (point.start_time_unix_nano, point.time_unix_nano),
                )
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(kind, metric.kind, "{}", metric.name);
        assert_eq!(times, (since, 200 * second), "{}", metric.name);
    }
}

#[test]
fn who_sends_is_said_and_what_has_no_series_is_left_out() {
    let mut scrape = Scrape::since(at(100));
    scrape.put(&list::ALARMS, &[], u64::MAX);
    let request = request(&scrape, "host", at(90));
    let resource = request.resource_metrics[0].resource.as_ref().unwrap();
    let keys: Vec<&str> = resource.attributes.iter().map(|it| &*it.key).collect();
    assert_eq!(
        keys,
        [
            "service.name",
            "service.version",
            "host.name",
            "service.instance.id"
        ]
    );
    let metrics = metrics(&request);
    assert_eq!(metrics.len(), 1);
    let Some(Data::Sum(sum)) = &metrics["agentguard_alarms_total"].data else {
        panic!("a sum");
    };
    let point = &sum.data_points[0];
    // The clock was put back, and the number is larger than theirs.
    assert_eq!(point.start_time_unix_nano, point.time_unix_nano);
    assert!(matches!(point.value, Some(Value::AsDouble(value)) if value > 1e19));
    let json = serde_json::to_value(&request).unwrap();
    let shown = &json["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["sum"];
    assert_eq!(shown["isMonotonic"], true);
    assert_eq!(shown["aggregationTemporality"], 2);
    assert_eq!(shown["dataPoints"][0]["timeUnixNano"], "90000000000");
}
