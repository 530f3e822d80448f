//! The objects within events: taken from a record field by field, so that what is left is what has no place.

use serde_json::{Map, Value, json};

use super::class::{self, Class};

/// The fields of a record that have not found their place yet.
#[derive(Debug, Default)]
pub struct Rest(Map<String, Value>);

impl Rest {
    /// All fields of a record.
    pub fn new(record: Map<String, Value>) -> Self {
        Self(record)
    }

    /// A text, which stays.
    pub fn peek(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// Whether there is such a field.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A text, which has found its place. Anything else stays.
    pub fn text(&mut self, name: &str) -> Option<String> {
        self.peek(name)?;
        match self.0.remove(name) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// A number, which has found its place. Anything else stays.
    pub fn number(&mut self, name: &str) -> Option<u64> {
        let number = self.0.get(name)?.as_u64()?;
        self.0.remove(name);
        Some(number)
    }

    /// A list of texts, which stays: an event has them in another form.
    fn texts(&self, name: &str) -> Option<Vec<&str>> {
        self.0
            .get(name)?
            .as_array()?
            .iter()
            .map(Value::as_str)
            .collect()
    }

    /// Puts a field back.
    pub fn put(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    /// What is left.
    pub fn into_value(self) -> Value {
        Value::Object(self.0)
    }

    /// Who acted: the process, and the agent that it belongs to.
    pub fn actor(&mut self) -> Option<Value> {
        let mut actor = Map::new();
        if let Some(agent) = self.text("agent") {
            actor.insert("app_name".into(), agent.into());
        }
        if let Some(session) = self.number("session") {
            actor.insert("session".into(), json!({ "uid": session.to_string() }));
        }
        if let Some(process) = self.process() {
            actor.insert("process".into(), process);
        }
        (!actor.is_empty()).then_some(Value::Object(actor))
    }

    fn process(&mut self) -> Option<Value> {
        let pid = self.number("pid")?;
        let mut process = Map::new();
        process.insert("pid".into(), pid.into());
        if let Some(exe) = self.text("exe") {
            process.insert("name".into(), last(&exe).into());
            process.insert("path".into(), exe.clone().into());
            process.insert("file".into(), file(&exe, REGULAR));
        }
        if let Some(tid) = self.number("tid") {
            process.insert("tid".into(), tid.into());
        }
        if let Some(exec) = self.number("exec_id") {
            process.insert("uid".into(), exec.to_string().into());
        }
        if let Some(parent) = self.number("ppid") {
            process.insert("parent_process".into(), json!({ "pid": parent }));
        }
        if let Some(uid) = self.number("uid") {
            process.insert("user".into(), json!({ "uid": uid.to_string() }));
        }
        Some(Value::Object(process))
    }
}

/// The bits of a wait status that hold a signal.
const SIGNAL: u64 = 0x7f;
const UNKNOWN: u8 = 0;
const REGULAR: u8 = 1;
const FOLDER: u8 = 2;
const LINK: u8 = 7;

/// The last part of a path.
fn last(path: &str) -> &str {
    match path.rsplit('/').next() {
        Some(name) if !name.is_empty() => name,
        _ => path,
    }
}

fn file(path: &str, type_id: u8) -> Value {
    json!({ "name": last(path), "path": path, "type_id": type_id })
}

/// What kind of file an operation is about, where it says so.
fn kind_of(op: &str) -> u8 {
    match op {
        "create" | "exec" | "map" | "truncate" => REGULAR,
        "mkdir" | "rmdir" => FOLDER,
        "symlink" => LINK,
        _ => UNKNOWN,
    }
}

/// What a finding is about. Title and time are the event's.
pub fn finding(op: &str, title: &str, event: &Map<String, Value>, rest: &mut Rest) -> Value {
    let mut finding = Map::new();
    let uid = event["metadata"]["uid"].as_str().unwrap_or_default();
    finding.insert("uid".into(), uid.into());
    finding.insert("title".into(), title.into());
    finding.insert("created_time".into(), event["time"].clone());
    finding.insert("types".into(), json!([op]));
    if let Some(text) = rest.text("reason").or_else(|| rest.text("detail")) {
        finding.insert("desc".into(), text.into());
    }
    let name = event
        .get("firewall_rule")
        .and_then(|rule| rule["uid"].as_str())
        .or_else(|| rest.peek("cause"))
        .unwrap_or(op);
    let analytic = json!({ "name": name, "uid": name, "type_id": 1, "type": "Rule" });
    finding.insert("analytic".into(), analytic);
    Value::Object(finding)
}

/// Puts the objects of its class into an event.
pub fn fill(
    class: Class,
    op: &str,
    actor: Option<Value>,
    host: &str,
    event: &mut Map<String, Value>,
    rest: &mut Rest,
) {
    // Classes that ask for an actor get one, also where the record has none.
    let actor = actor.unwrap_or_else(|| json!({ "app_name": "agentguard" }));
    match class.uid {
        class::FILE => files(op, event, rest),
        class::PROCESS => {
            let process = process(op, &actor, rest);
            event.insert("process".into(), process);
            if op == "exit" {
                exit(event, rest);
            }
        }
        class::NETWORK => network(op, host, event, rest),
        class::DNS => dns(host, event, rest),
        class::KERNEL => {
            let name = rest.text("target").unwrap_or_else(|| op.to_owned());
            event.insert(
                "kernel".into(),
                json!({ "name": name, "type_id": 99, "type": "policy section kernel" }),
            );
        }
        class::API => {
            let operation = rest.text("target").unwrap_or_else(|| op.to_owned());
            event.insert("api".into(), json!({ "operation": operation }));
            event.insert("src_endpoint".into(), here(host));
        }
        class::LIFECYCLE => {
            event.insert("app".into(), super::product());
        }
        class::LOG => {
            event.insert("log_name".into(), "agentguard audit".into());
        }
        class::FINDING => {
            let evidence = evidence(op, &actor, host, rest);
            event.insert("evidences".into(), json!([evidence]));
        }
        _ => {}
    }
    event.insert("actor".into(), actor);
}

fn here(host: &str) -> Value {
    json!({ "name": host, "hostname": host })
}

fn files(op: &str, event: &mut Map<String, Value>, rest: &mut Rest) {
    let target = rest.text("target").unwrap_or_default();
    event.insert("file".into(), file(&target, kind_of(op)));
    if let Some(to) = rest.text("to") {
        event.insert("file_result".into(), file(&to, UNKNOWN));
    }
}

/// The process that an operation on processes is about.
fn process(op: &str, actor: &Value, rest: &mut Rest) -> Value {
    let mut process = match actor.get("process") {
        Some(Value::Object(process)) => process.clone(),
        _ => Map::from_iter([("uid".to_owned(), Value::from("0"))]),
    };
    match op {
        "exec" => {
            // It is still the same process, and runs another program.
            if process.contains_key("pid") {
                process.remove("uid");
            }
            if let Some(target) = rest.text("target") {
                process.insert("name".into(), last(&target).into());
                process.insert("path".into(), target.clone().into());
                process.insert("file".into(), file(&target, REGULAR));
            }
            if let Some(argv) = rest.texts("argv") {
                // Where one argument ends and the next begins is in `unmapped.argv`.
                process.insert("cmd_line".into(), argv.join(" ").into());
            }
            if let Some(exec) = rest.number("new_exec_id") {
                process.insert("uid".into(), exec.to_string().into());
            }
        }
        "fork" => {
            if let Some(child) = rest.number("child") {
                let parent = process.get("pid").cloned();
                process.insert("pid".into(), child.into());
                if let Some(parent) = parent {
                    process.insert("parent_process".into(), json!({ "pid": parent }));
                }
            }
        }
        _ => {}
    }
    Value::Object(process)
}

/// A wait status has an exit code or a signal; the status itself stays in `unmapped`.
fn exit(event: &mut Map<String, Value>, rest: &Rest) {
    let status = rest.0.get("status").and_then(Value::as_u64);
    if let Some(status) = status.filter(|status| (status & SIGNAL) == 0) {
        event.insert("exit_code".into(), (status >> 8).into());
    }
}

/// An address, or what stands in its place.
fn endpoint(target: &str, port: Option<u64>, name: Option<String>) -> Value {
    let mut endpoint = Map::new();
    endpoint.insert("name".into(), target.into());
    let address = match target.parse::<std::net::SocketAddr>() {
        Ok(address) => Some((address.ip(), Some(u64::from(address.port())))),
        Err(_) => target.parse().ok().map(|ip: std::net::IpAddr| (ip, None)),
    };
    if let Some((ip, _)) = address {
        endpoint.insert("ip".into(), ip.to_string().into());
    }
    if let Some(port) = port.or_else(|| address?.1) {
        endpoint.insert("port".into(), port.into());
    }
    if let Some(name) = name {
        endpoint.insert("hostname".into(), name.into());
    }
    Value::Object(endpoint)
}

fn connection(op: &str, target: &str, rest: &mut Rest) -> Value {
    let direction = match op {
        "connect" | "send" => 2,
        "listen" => 1,
        _ => 0,
    };
    let mut connection = Map::new();
    connection.insert("direction_id".into(), direction.into());
    if let Some(protocol) = rest.text("protocol") {
        let number = match &*protocol {
            "icmp" => Some(1),
            "tcp" => Some(6),
            "udp" => Some(17),
            "icmpv6" => Some(58),
            "sctp" => Some(132),
            "udplite" => Some(136),
            other => other.parse::<u8>().ok(),
        };
        if let Some(number) = number {
            connection.insert("protocol_num".into(), number.into());
        }
        connection.insert("protocol_name".into(), protocol.into());
    }
    let version = match rest.peek("family") {
        Some("inet") => Some(4),
        Some("inet6") => Some(6),
        _ => None,
    };
    if let Some(version) = version {
        connection.insert("protocol_ver_id".into(), version.into());
    }
    if target.starts_with("unix:") {
        connection.insert("direction_id".into(), 4.into());
    }
    Value::Object(connection)
}

fn network(op: &str, host: &str, event: &mut Map<String, Value>, rest: &mut Rest) {
    let target = rest.text("target").unwrap_or_default();
    let port = rest.number("port");
    let name = rest.text("name");
    event.insert("connection_info".into(), connection(op, &target, rest));
    event.insert("src_endpoint".into(), here(host));
    if !target.is_empty() {
        event.insert("dst_endpoint".into(), endpoint(&target, port, name));
    }
    let mut traffic = Map::new();
    for name in ["bytes_in", "bytes_out", "packets_in", "packets_out"] {
        if let Some(number) = rest.number(name) {
            traffic.insert(name.into(), number.into());
        }
    }
    if !traffic.is_empty() {
        event.insert("traffic".into(), Value::Object(traffic));
    }
}

fn query(rest: &mut Rest) -> Option<Value> {
    let hostname = rest.text("target")?;
    let mut query = Map::new();
    query.insert("hostname".into(), hostname.into());
    if let Some(kind) = rest.text("question") {
        query.insert("type".into(), kind.into());
    }
    Some(Value::Object(query))
}

fn dns(host: &str, event: &mut Map<String, Value>, rest: &mut Rest) {
    event.insert("src_endpoint".into(), here(host));
    if let Some(query) = query(rest) {
        event.insert("query".into(), query);
    }
    let answers = rest.texts("answers").map(|answers| {
        let answers = answers.iter().map(|answer| {
            let kind = match answer.parse() {
                Ok(std::net::IpAddr::V4(_)) => "A",
                Ok(std::net::IpAddr::V6(_)) => "AAAA",
                Err(_) => "CNAME",
            };
            json!({ "rdata": answer, "type": kind })
        });
        answers.collect::<Vec<_>>()
    });
    if let Some(answers) = answers {
        event.insert("answers".into(), answers.into());
        rest.0.remove("answers");
    }
    if let Some(reply) = rest.text("reply") {
        let code = match &*reply {
            "NOERROR" => 0,
            "FORMERR" => 1,
            "SERVFAIL" => 2,
            "NXDOMAIN" => 3,
            "NOTIMP" => 4,
            "REFUSED" => 5,
            _ => 99,
        };
        event.insert("rcode_id".into(), code.into());
        event.insert("rcode".into(), reply.into());
    }
}

/// What a finding rests on: the action, with the objects that its own class would have.
fn evidence(op: &str, actor: &Value, host: &str, rest: &mut Rest) -> Value {
    let mut evidence = Map::new();
    evidence.insert("name".into(), op.into());
    evidence.insert("actor".into(), actor.clone());
    // The class that the action would have had if it had been permitted.
    match class::of(op, None, false).uid {
        class::FILE => {
            if let Some(target) = rest.text("target") {
                evidence.insert("file".into(), file(&target, kind_of(op)));
            }
        }
        class::PROCESS => {
            let process = process(op, actor, rest);
            evidence.insert("process".into(), process);
        }
        class::NETWORK => {
            let target = rest.text("target").unwrap_or_default();
            let port = rest.number("port");
            let name = rest.text("name");
            evidence.insert("connection_info".into(), connection(op, &target, rest));
            evidence.insert("src_endpoint".into(), here(host));
            if !target.is_empty() {
                evidence.insert("dst_endpoint".into(), endpoint(&target, port, name));
            }
        }
        class::DNS => {
            if let Some(query) = query(rest) {
                evidence.insert("query".into(), query);
            }
        }
        class::API => {
            if let Some(operation) = rest.text("target") {
                evidence.insert("api".into(), json!({ "operation": operation }));
            }
        }
        _ => {}
    }
    Value::Object(evidence)
}
