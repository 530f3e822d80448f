//! Records as events of the Open Cybersecurity Schema Framework (OCSF).
//!
//! One record is one event, whatever it is. What has no place in an event's class goes into `unmapped` under the name
//! that it has in the log: nothing may be left out, and no field may be given a meaning that it has not.

mod class;
mod objects;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};

use self::class::{BASE, Class, FINDING};
use self::objects::Rest;

/// The version of the schema that events follow.
pub const VERSION: &str = "1.7.0";

/// Makes events.
#[derive(Clone, Debug)]
pub struct Mapper {
    host: String,
}

impl Mapper {
    /// For records of the host with this name.
    pub fn new(host: &str) -> Self {
        Self {
            host: host.to_owned(),
        }
    }

    /// For records of this host.
    pub fn here() -> Self {
        Self::new(&super::host_name())
    }

    /// The event of a line of the log. A line that is no record becomes an event that has it as it is.
    pub fn event(&self, line: &[u8]) -> Value {
        match serde_json::from_slice(line) {
            Ok(record) => self.of_record(Rest::new(record)),
            Err(_) => self.of_anything(line),
        }
    }

    /// The event as a line, without a newline.
    pub fn line(&self, line: &[u8]) -> Vec<u8> {
        self.event(line).to_string().into_bytes()
    }

    fn of_record(&self, mut rest: Rest) -> Value {
        let op = rest.text("op").unwrap_or_default();
        let verdict = rest.text("verdict");
        let time = rest.text("time").unwrap_or_default();
        let class = class::of(&op, verdict.as_deref(), rest.has("reply"));
        let message = message(&op, verdict.as_deref(), &rest);
        let severity = class::severity(&op, verdict.as_deref(), &rest);
        let mut event = frame(class, &op, severity);
        event.insert("time".into(), milliseconds(&time).into());
        event.insert("message".into(), message.clone().into());
        event.insert("device".into(), self.device());
        event.insert("metadata".into(), metadata(&op, &time, &mut rest));
        control(&mut event, verdict.as_deref(), &mut rest);
        if let (Some(count), Some(since)) = (rest.number("repeats"), rest.text("since")) {
            event.insert("count".into(), count.into());
            event.insert("start_time".into(), milliseconds(&since).into());
            event.insert("end_time".into(), milliseconds(&time).into());
        }
        if class.uid == FINDING {
            let finding = objects::finding(&op, &message, &event, &mut rest);
            event.insert("finding_info".into(), finding);
        }
        let actor = rest.actor();
        objects::fill(class, &op, actor, &self.host, &mut event, &mut rest);
        if let Some(verdict) = verdict {
            rest.put("verdict", verdict.into());
        }
        event.insert("unmapped".into(), rest.into_value());
        Value::Object(event)
    }

    fn of_anything(&self, line: &[u8]) -> Value {
        let mut event = frame(BASE, "unreadable", class::HIGH);
        event.insert("time".into(), 0.into());
        let what = "this line of the audit log is no record";
        event.insert("message".into(), what.into());
        event.insert("device".into(), self.device());
        event.insert(
            "metadata".into(),
            metadata("unreadable", "", &mut Rest::default()),
        );
        let text = crate::event::escape::escape(line).into_owned();
        event.insert("raw_data".into(), text.into());
        Value::Object(event)
    }

    fn device(&self) -> Value {
        json!({ "name": self.host, "hostname": self.host, "type_id": 0 })
    }
}

/// What every event has.
fn frame(class: Class, op: &str, (severity_id, severity): (u8, &str)) -> Map<String, Value> {
    let activity = class.activity_name.unwrap_or(op);
    let mut event = Map::new();
    let mut put = |name: &str, value: Value| {
        event.insert(name.to_owned(), value);
    };
    put("category_uid", class.category.into());
    put("category_name", class::category_name(class.category).into());
    put("class_uid", class.uid.into());
    put("class_name", class.name.into());
    put("activity_id", class.activity.into());
    put("activity_name", activity.into());
    let type_uid = u64::from(class.uid) * 100 + u64::from(class.activity);
    put("type_uid", type_uid.into());
    put("type_name", format!("{}: {activity}", class.name).into());
    put("severity_id", severity_id.into());
    put("severity", severity.into());
    event
}

fn metadata(op: &str, time: &str, rest: &mut Rest) -> Value {
    let mut metadata = Map::new();
    metadata.insert("version".into(), VERSION.into());
    metadata.insert("product".into(), product());
    metadata.insert("profiles".into(), json!(["host", "security_control"]));
    metadata.insert("log_name".into(), "agentguard audit".into());
    metadata.insert("event_code".into(), op.into());
    if !time.is_empty() {
        metadata.insert("original_time".into(), time.into());
    }
    if let Some(seq) = rest.number("seq") {
        metadata.insert("sequence".into(), seq.into());
    }
    // It stands for the record and all before it, and no other record has it.
    if let Some(hash) = rest.text("hash") {
        metadata.insert("uid".into(), hash.into());
    }
    Value::Object(metadata)
}

fn product() -> Value {
    json!({
        "name": "AgentGuard",
        "vendor_name": "AgentGuard",
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// What became of the action, by which policy and rule.
fn control(event: &mut Map<String, Value>, verdict: Option<&str>, rest: &mut Rest) {
    let (action, disposition) = match verdict {
        Some("allow") => ((1, "Allowed"), (1, "Allowed")),
        Some("deny" | "ask") => ((2, "Denied"), (2, "Blocked")),
        Some("would-deny") => ((3, "Observed"), (15, "Detected")),
        Some(_) => ((99, "Other"), (99, "Other")),
        None => ((3, "Observed"), (17, "Logged")),
    };
    event.insert("action_id".into(), action.0.into());
    event.insert("action".into(), action.1.into());
    event.insert("disposition_id".into(), disposition.0.into());
    event.insert("disposition".into(), disposition.1.into());
    let refused = matches!(verdict, Some("deny" | "ask" | "would-deny"));
    let alarming = matches!(event["metadata"]["event_code"].as_str(), Some("alarm"));
    event.insert("is_alert".into(), (refused || alarming).into());
    if let Some(name) = rest.text("policy") {
        let mut policy = Map::new();
        policy.insert("name".into(), name.into());
        if let Some(generation) = rest.number("generation") {
            policy.insert("version".into(), generation.to_string().into());
        }
        event.insert("policy".into(), Value::Object(policy));
    }
    if let Some(rule) = rest.text("rule") {
        let mut of = Map::new();
        of.insert("uid".into(), rule.clone().into());
        of.insert("name".into(), rule.into());
        let names = [
            ("reason", "desc"),
            ("cause", "type"),
            ("rule_at", "match_location"),
        ];
        for (ours, theirs) in names {
            if let Some(text) = rest.text(ours) {
                of.insert(theirs.into(), text.into());
            }
        }
        event.insert("firewall_rule".into(), Value::Object(of));
    }
}

/// The record in one sentence, for people.
fn message(op: &str, verdict: Option<&str>, rest: &Rest) -> String {
    let mut text = String::new();
    if let Some(agent) = rest.peek("agent") {
        text.push_str(agent);
        text.push_str(": ");
    }
    text.push_str(op);
    if let Some(target) = rest.peek("target") {
        text.push(' ');
        text.push_str(target);
    }
    if let Some(verdict) = verdict {
        text.push_str(": ");
        text.push_str(verdict);
    }
    for name in ["rule", "reason", "detail"] {
        if let Some(more) = rest.peek(name) {
            text.push_str(if name == "rule" { " by " } else { ": " });
            text.push_str(more);
        }
    }
    text
}

/// Milliseconds since the epoch, as the schema has times. The whole time is in `metadata.original_time`.
fn milliseconds(time: &str) -> i64 {
    time.parse::<jiff::Timestamp>()
        .map_or(0, jiff::Timestamp::as_millisecond)
}
