//! Records as log records of OpenTelemetry, as they go over OTLP.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList,
};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;
use serde_json::{Map, Value};

use super::{Form, syslog};

/// The name of what makes these log records.
const SCOPE: &str = "agentguard.audit";

/// Makes requests.
#[derive(Debug)]
pub struct Encoder {
    host: String,
    form: Form,
}

impl Encoder {
    /// For records of the host with this name.
    pub fn new(host: &str, form: Form) -> Self {
        Self {
            host: host.to_owned(),
            form,
        }
    }

    /// The request that hands over these lines of the log, seen at `now` (nanoseconds since the epoch).
    pub fn request<'a>(
        &self,
        lines: impl Iterator<Item = &'a [u8]>,
        now: u64,
    ) -> ExportLogsServiceRequest {
        ExportLogsServiceRequest {
            resource_logs: vec![ResourceLogs {
                resource: Some(resource(&self.host)),
                scope_logs: vec![ScopeLogs {
                    scope: Some(InstrumentationScope {
                        name: SCOPE.to_owned(),
                        version: env!("CARGO_PKG_VERSION").to_owned(),
                        ..InstrumentationScope::default()
                    }),
                    log_records: lines.map(|line| self.record(line, now)).collect(),
                    ..ScopeLogs::default()
                }],
                ..ResourceLogs::default()
            }],
        }
    }

    fn record(&self, line: &[u8], now: u64) -> LogRecord {
        let fields: Map<String, Value> = serde_json::from_slice(line).unwrap_or_default();
        let field = |name: &str| fields.get(name).and_then(Value::as_str);
        let op = field("op").unwrap_or("unreadable");
        let (severity_number, severity_text) = severity(op, field("verdict"));
        let time = field("time").and_then(|time| time.parse::<jiff::Timestamp>().ok());
        let time = time.and_then(|time| u64::try_from(time.as_nanosecond()).ok());
        LogRecord {
            time_unix_nano: time.unwrap_or(0),
            observed_time_unix_nano: now,
            severity_number,
            severity_text: severity_text.to_owned(),
            body: Some(text(&String::from_utf8_lossy(&self.form.text(line)))),
            attributes: attributes(op, &fields),
            event_name: format!("agentguard.{op}"),
            ..LogRecord::default()
        }
    }
}

/// Who sends, from the host with this name.
pub fn resource(host: &str) -> Resource {
    let attributes = [
        ("service.name", "agentguard"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("host.name", host),
    ];
    let attributes = attributes.map(|(key, value)| pair(key, text(value)));
    Resource {
        attributes: attributes.to_vec(),
        ..Resource::default()
    }
}

/// Numbers and names of the appendix of OpenTelemetry's data model.
fn severity(op: &str, verdict: Option<&str>) -> (i32, &'static str) {
    match syslog::severity(op, verdict) {
        1 => (19, "ERROR3"),
        3 => (17, "ERROR"),
        4 => (13, "WARN"),
        5 => (10, "INFO2"),
        _ => (9, "INFO"),
    }
}

/// Fields by the names that OpenTelemetry has for them, or by our own. The chain is in the body.
fn attributes(op: &str, fields: &Map<String, Value>) -> Vec<KeyValue> {
    let mut attributes = Vec::with_capacity(fields.len());
    for (name, value) in fields {
        let value = match (name.as_str(), value) {
            ("time" | "prev", _) => continue,
            // A text, says the convention.
            ("uid", Value::Number(uid)) => text(&uid.to_string()),
            (_, value) => any(value),
        };
        attributes.push(pair(&key(op, name), value));
    }
    attributes
}

fn key(op: &str, name: &str) -> std::borrow::Cow<'static, str> {
    let known = match (name, op) {
        ("hash", _) => "log.record.uid",
        ("pid", _) => "process.pid",
        ("ppid", _) => "process.parent_pid",
        ("exe", _) => "process.executable.path",
        ("argv", _) => "process.command_args",
        ("uid", _) => "user.id",
        ("protocol", _) => "network.transport",
        ("port", "connect" | "send") => "network.peer.port",
        ("target", "connect" | "send") => "network.peer.address",
        ("target", "resolve") => "dns.question.name",
        (
            "target",
            "open" | "create" | "unlink" | "mkdir" | "rmdir" | "rename" | "link" | "symlink"
            | "mknod" | "truncate" | "chmod" | "chown" | "attribute" | "map",
        ) => "file.path",
        _ => return format!("agentguard.{name}").into(),
    };
    known.into()
}

/// An attribute.
pub fn pair(key: &str, value: AnyValue) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(value),
        ..KeyValue::default()
    }
}

/// A text as a value.
pub fn text(text: &str) -> AnyValue {
    AnyValue {
        value: Some(Any::StringValue(text.to_owned())),
    }
}

fn any(value: &Value) -> AnyValue {
    let value = match value {
        Value::Null => None,
        Value::Bool(it) => Some(Any::BoolValue(*it)),
        Value::String(it) => Some(Any::StringValue(it.clone())),
        // What is too large for a number of theirs is a text.
        Value::Number(it) => Some(match it.as_i64() {
            Some(number) => Any::IntValue(number),
            None => Any::StringValue(it.to_string()),
        }),
        Value::Array(list) => Some(Any::ArrayValue(ArrayValue {
            values: list.iter().map(any).collect(),
        })),
        Value::Object(map) => Some(Any::KvlistValue(KeyValueList {
            values: map
                .iter()
                .map(|(key, value)| pair(key, any(value)))
                .collect(),
        })),
    };
    AnyValue { value }
}

/// Now, in nanoseconds since the epoch.
pub fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_record_has_the_whole_line_and_its_fields() {
        let line = br#"{"seq":7,"time":"2026-11-23T04:05:06.123456789Z","agent":"a","pid":5,"uid":1000,"op":"open","target":"/x","verdict":"deny","argv":["a","b"],"inode":18446744073709551615,"prev":"00","hash":"ff"}"#;
        let encoder = Encoder::new("host", Form::Record);
        let request = encoder.request([line.as_slice()].into_iter(), 9);
        let record = &request.resource_logs[0].scope_logs[0].log_records[0];
        assert_eq!(record.time_unix_nano, 1_795_406_706_123_456_789);
        assert_eq!(
            (record.severity_number, &*record.event_name),
            (13, "agentguard.open")
        );
        assert_eq!(record.body, Some(text(&String::from_utf8_lossy(line))));
        let has = |name: &str| {
            let found = record.attributes.iter().find(|it| it.key == name);
            found
                .and_then(|it| it.value.clone())
                .and_then(|it| it.value)
        };
        assert_eq!(has("agentguard.seq"), Some(Any::IntValue(7)));
        assert_eq!(
            has("log.record.uid"),
            Some(Any::StringValue("ff".to_owned()))
        );
        assert_eq!(has("file.path"), Some(Any::StringValue("/x".to_owned())));
        assert_eq!(has("user.id"), Some(Any::StringValue("1000".to_owned())));
        let large = "18446744073709551615".to_owned();
        assert_eq!(has("agentguard.inode"), Some(Any::StringValue(large)));
        let json = serde_json::to_value(&request).unwrap();
        let shown = &json["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0];
        assert_eq!(shown["timeUnixNano"], "1795406706123456789");
        assert_eq!(
            shown["body"]["stringValue"].as_str().unwrap().as_bytes(),
            line
        );
    }
}
