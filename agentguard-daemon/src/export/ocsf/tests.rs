//! Events against the published schema: an extract of its compiled form, see `tests/fixtures/ocsf`.

use std::collections::BTreeSet;

use agentguard_common::verdict::{Operation, Verdict};
use regex_automata::meta::Regex;
use serde_json::{Map, Value, json};

use super::*;

/// The schema, as far as we use it.
struct Schema(Value);

impl Schema {
    fn load() -> Self {
        let text = include_str!("../../../tests/fixtures/ocsf/schema-1.7.0.json");
        Self(serde_json::from_str(text).unwrap())
    }

    /// Everything that is wrong with an event.
    fn faults(&self, event: &Value) -> Vec<String> {
        let mut faults = Vec::new();
        let uid = &event["class_uid"];
        let classes = self.0["classes"].as_object().unwrap();
        let Some((_, class)) = classes.iter().find(|(_, class)| class["uid"] == *uid) else {
            return vec![format!("no class {uid}")];
        };
        if class["category_uid"] != event["category_uid"] {
            faults.push("another category".to_owned());
        }
        let type_uid = uid.as_u64().unwrap() * 100 + event["activity_id"].as_u64().unwrap();
        if event["type_uid"] != type_uid {
            faults.push("type_uid does not fit".to_owned());
        }
        if event["metadata"]["version"] != self.0["version"] {
            faults.push("another version".to_owned());
        }
        let profiles = event["metadata"]["profiles"].as_array().unwrap();
        for profile in profiles {
            if !class["profiles"].as_array().unwrap().contains(profile) {
                faults.push(format!("the class has no profile {profile}"));
            }
        }
        self.object("", class, event, profiles, &mut faults);
        faults
    }

    fn object(
        &self,
        at: &str,
        of: &Value,
        value: &Value,
        profiles: &[Value],
        faults: &mut Vec<String>,
    ) {
        let Some(fields) = value.as_object() else {
            faults.push(format!("{at} is no object"));
            return;
        };
        let attributes = of["attributes"].as_object().unwrap();
        let applies = |attribute: &Value| {
            attribute
                .get("profile")
                .is_none_or(|profile| profiles.contains(profile))
        };
        for (name, attribute) in attributes {
            if attribute["required"] == true && applies(attribute) && !fields.contains_key(name) {
                faults.push(format!("{at}.{name} is required"));
            }
        }
        for (name, field) in fields {
            match attributes.get(name).filter(|attribute| applies(attribute)) {
                Some(attribute) => {
                    self.attribute(&format!("{at}.{name}"), attribute, field, profiles, faults);
                }
                None => faults.push(format!("{at}.{name} is unknown")),
            }
        }
        if let Some(any) = of["constraints"].get("at_least_one") {
            let any = any.as_array().unwrap();
            if !any
                .iter()
                .any(|name| fields.contains_key(name.as_str().unwrap()))
            {
                faults.push(format!("{at} has none of {any:?}"));
            }
        }
    }

    fn attribute(
        &self,
        at: &str,
        attribute: &Value,
        value: &Value,
        profiles: &[Value],
        faults: &mut Vec<String>,
    ) {
        let values = match (attribute["array"] == true, value) {
            (true, Value::Array(values)) => values.as_slice(),
            (false, value) => std::slice::from_ref(value),
            (true, _) => {
                faults.push(format!("{at} is no list"));
                return;
            }
        };
        let kind = attribute["type"].as_str().unwrap();
        for value in values {
            if let Some(known) = attribute.get("enum") {
                let shown = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                if !known.as_array().unwrap().iter().any(|it| *it == shown) {
                    faults.push(format!("{at}: {shown} is none of {known}"));
                }
            }
            if kind == "object" {
                // It may hold anything.
                if !value.is_object() {
                    faults.push(format!("{at} is no object"));
                }
            } else if self.0["types"].get(kind).is_some() {
                self.scalar(at, kind, value, faults);
            } else if let Some(of) = self.0["objects"].get(kind) {
                self.object(at, of, value, profiles, faults);
            } else {
                faults.push(format!("{at}: the extract has no {kind}"));
            }
        }
    }

    fn scalar(&self, at: &str, kind: &str, value: &Value, faults: &mut Vec<String>) {
        let definition = &self.0["types"][kind];
        let base = definition
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or(kind);
        let fits = match base {
            "integer_t" | "long_t" => value.is_i64() || value.is_u64(),
            "float_t" => value.is_number(),
            "boolean_t" => value.is_boolean(),
            "string_t" => value.is_string(),
            "json_t" => true,
            _ => false,
        };
        if !fits {
            faults.push(format!("{at}: {value} is no {kind}"));
        }
        if let (Some(pattern), Some(text)) = (definition["regex"].as_str(), value.as_str())
            && !Regex::new(pattern).unwrap().is_match(text)
        {
            faults.push(format!("{at}: {text} does not match {kind}"));
        }
        if let (Some(range), Some(number)) = (definition["range"].as_array(), value.as_i64())
            && !(range[0].as_i64() <= Some(number) && Some(number) <= range[1].as_i64())
        {
            faults.push(format!("{at}: {number} is out of {range:?}"));
        }
    }
}

/// A record with every field that there is, each with a value of its own.
fn full(op: &str) -> Map<String, Value> {
    let text = r#"{
        "seq": 4711, "time": "2026-11-23T04:05:06.123456789Z", "agent": "claude", "session": 3, "pid": 6401,
        "ppid": 6402, "uid": 1001, "exe": "/usr/bin/git", "target": "/work/a\\x0ab", "to": "/work/new",
        "access": "read+write", "rule": "secrets", "reason": "No secrets.", "policy": "coding-agent",
        "cause": "rule", "rule_at": "/etc/agentguard/policies/base.yaml:18", "argv": ["git", "push me"],
        "argc": 4012, "port": 4443, "name": "api.example.com", "protocol": "tcp", "family": "inet6",
        "question": "AAAA", "answers": ["2001:db8::5", "alias.example.com"], "reply": "NOERROR",
        "inode": 18446744073709551615, "device": "8:77", "generation": 5077, "exec_id": 6077,
        "new_exec_id": 6078, "tid": 6403, "euid": 1002, "open_flags": 32768, "mode": "100644", "child": 6404,
        "status": 256, "errno": 113, "flags": ["for-exec"], "class": "allowed", "lost": 9013,
        "usage": { "input_tokens": 7001, "cached_tokens": 7002, "output_tokens": 7003, "usd": "0.017" },
        "bytes_in": 8001, "bytes_out": 8002, "packets_in": 8003, "packets_out": 8004, "detail": "in words",
        "log": "aa", "key": "bb", "signature": "cc", "digest": "dd", "prev": "ee", "hash": "ff",
        "of_a_later_version": { "x": [1] }
    }"#;
    let mut record: Map<String, Value> = serde_json::from_str(text).unwrap();
    record.insert("op".to_owned(), op.into());
    record
}

fn operations() -> BTreeSet<String> {
    let source = include_str!("../../audit/record.rs");
    let own = source
        .lines()
        .filter(|line| line.contains("pub const ") && line.contains("&str"))
        .filter_map(|line| line.split('"').nth(1));
    let kernel = Operation::ALL.iter().map(|operation| operation.name());
    own.chain(kernel)
        .chain(["of-a-later-version"])
        .map(str::to_owned)
        .collect()
}

fn verdicts() -> Vec<Option<&'static str>> {
    let all = Verdict::ALL.iter().map(|verdict| Some(verdict.name()));
    std::iter::once(None).chain(all).collect()
}

/// All values in a tree that are no objects or lists.
fn leaves<'a>(value: &'a Value, into: &mut Vec<&'a Value>) {
    match value {
        Value::Array(list) => list.iter().for_each(|value| leaves(value, into)),
        Value::Object(map) => map.values().for_each(|value| leaves(value, into)),
        leaf => into.push(leaf),
    }
}

#[test]
fn every_kind_of_record_is_a_valid_event_and_nothing_is_lost() {
    let schema = Schema::load();
    let mapper = Mapper::new("host.example");
    let mut classes = BTreeSet::new();
    for op in operations() {
        for verdict in verdicts() {
            let mut record = full(&op);
            if let Some(verdict) = verdict {
                record.insert("verdict".into(), verdict.into());
            }
            let event = mapper.event(Value::Object(record.clone()).to_string().as_bytes());
            assert_eq!(
                schema.faults(&event),
                Vec::<String>::new(),
                "{op} {verdict:?}: {event:#}"
            );
            classes.insert(event["class_uid"].as_u64().unwrap());
            let mut have = Vec::new();
            leaves(&event, &mut have);
            for (name, value) in &record {
                let mut wanted = Vec::new();
                leaves(value, &mut wanted);
                for value in wanted {
                    let text = value
                        .as_str()
                        .map_or_else(|| value.to_string(), str::to_owned);
                    let found = have
                        .iter()
                        .any(|it| *it == value || it.as_str() == Some(&text));
                    assert!(found, "{op} {verdict:?}: {name} {value} is lost: {event:#}");
                }
            }
        }
    }
    let all = [0, 1001, 1003, 1007, 1008, 2004, 4001, 4003, 6002, 6003];
    assert_eq!(classes.into_iter().collect::<Vec<_>>(), all);
}

#[test]
fn records_with_little_in_them_are_valid_events() {
    let schema = Schema::load();
    let mapper = Mapper::new("host.example");
    for op in operations() {
        for verdict in verdicts() {
            // Each field alone, and none.
            for (name, value) in full(&op).into_iter().chain([("seq".to_owned(), json!(1))]) {
                let mut record =
                    json!({ "seq": 1, "time": "2026-11-23T04:05:06Z", "op": op, "hash": "ff" });
                record[name] = value;
                if let Some(verdict) = verdict {
                    record["verdict"] = verdict.into();
                }
                let event = mapper.event(record.to_string().as_bytes());
                assert_eq!(
                    schema.faults(&event),
                    Vec::<String>::new(),
                    "{record}: {event:#}"
                );
            }
        }
    }
    let strange = mapper.event(b"\xff no record");
    assert_eq!(schema.faults(&strange), Vec::<String>::new());
    assert_eq!(strange["raw_data"], r"\xff no record");
}

/// What a fault is called, and a change that makes it.
type Break = (&'static str, fn(&mut Value));

#[test]
fn the_check_finds_what_is_wrong() {
    let schema = Schema::load();
    let event = Mapper::new("host").event(Value::Object(full("connect")).to_string().as_bytes());
    let broken: [Break; 8] = [
        ("unknown", |event| event["nonsense"] = 1.into()),
        ("required", |event| {
            event.as_object_mut().unwrap().remove("severity_id");
        }),
        ("is none of", |event| event["severity_id"] = 42.into()),
        ("is no integer_t", |event| event["severity_id"] = "1".into()),
        ("unknown", |event| {
            event["metadata"]["product"]["colour"] = "red".into();
        }),
        ("does not match", |event| {
            event["dst_endpoint"]["ip"] = "here".into();
        }),
        ("out of", |event| {
            event["dst_endpoint"]["port"] = 70_000.into();
        }),
        ("type_uid", |event| event["type_uid"] = 1.into()),
    ];
    for (says, change) in broken {
        let mut changed = event.clone();
        change(&mut changed);
        let faults = schema.faults(&changed).join("; ");
        assert!(faults.contains(says), "{says}: {faults}");
    }
}

#[test]
fn what_matters_is_where_people_look_for_it() {
    let mapper = Mapper::new("host");
    let mut record = full("open");
    record.insert("verdict".into(), "deny".into());
    let event = mapper.event(Value::Object(record).to_string().as_bytes());
    assert_eq!(event["class_uid"], 2004);
    assert_eq!(
        (&event["action_id"], &event["disposition_id"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(event["evidences"][0]["file"]["path"], r"/work/a\x0ab");
    assert_eq!(
        event["evidences"][0]["actor"]["process"]["path"],
        "/usr/bin/git"
    );
    assert_eq!(
        event["evidences"][0]["actor"]["process"]["parent_process"]["pid"],
        6402
    );
    assert_eq!(event["firewall_rule"]["uid"], "secrets");
    assert_eq!(event["metadata"]["sequence"], 4711);
    assert_eq!(event["time"], 1_795_406_706_123_i64);
    let mut record = full("connect");
    record.insert("target".into(), "[2001:db8::1]:443".into());
    record.insert("port".into(), 443.into());
    record.insert("verdict".into(), "allow".into());
    let event = mapper.event(Value::Object(record).to_string().as_bytes());
    assert_eq!(event["type_uid"], 400_101);
    assert_eq!(event["dst_endpoint"]["ip"], "2001:db8::1");
    assert_eq!(event["dst_endpoint"]["port"], 443);
    assert_eq!(event["dst_endpoint"]["hostname"], "api.example.com");
    let event = mapper.event(Value::Object(full("exec")).to_string().as_bytes());
    assert_eq!(event["process"]["cmd_line"], "git push me");
    assert_eq!(event["unmapped"]["argv"], json!(["git", "push me"]));
}
