//! Records as a table (RFC 4180): a column for each field of a record, always the same ones in the same order.
//!
//! Lists and mappings are JSON in their cell. A field that has no column of its own is in the last one.

use serde_json::{Map, Value};

/// The columns, which are the fields of a record in their order.
pub const COLUMNS: &[&str] = &[
    "seq",
    "time",
    "agent",
    "session",
    "pid",
    "ppid",
    "uid",
    "exe",
    "op",
    "target",
    "to",
    "access",
    "verdict",
    "rule",
    "reason",
    "policy",
    "cause",
    "approval",
    "rule_at",
    "argv",
    "argc",
    "port",
    "name",
    "protocol",
    "family",
    "question",
    "answers",
    "reply",
    "inode",
    "device",
    "generation",
    "exec_id",
    "new_exec_id",
    "tid",
    "euid",
    "open_flags",
    "mode",
    "child",
    "status",
    "errno",
    "flags",
    "repeats",
    "since",
    "class",
    "lost",
    "usage",
    "bytes_in",
    "bytes_out",
    "packets_in",
    "packets_out",
    "detail",
    "log",
    "key",
    "signature",
    "digest",
    "prev",
    "hash",
];

/// The column for everything else.
const MORE: &str = "more";

/// The first line.
pub fn header() -> String {
    format!("{},{MORE}\r\n", COLUMNS.join(","))
}

/// The line of a record.
pub fn line(record: &[u8]) -> serde_json::Result<String> {
    let mut fields: Map<String, Value> = serde_json::from_slice(record)?;
    let mut text = String::with_capacity(record.len());
    for column in COLUMNS {
        if let Some(value) = fields.remove(*column) {
            cell(&mut text, &value);
        }
        text.push(',');
    }
    if !fields.is_empty() {
        cell(&mut text, &Value::Object(fields));
    }
    text.push_str("\r\n");
    Ok(text)
}

fn cell(text: &mut String, value: &Value) {
    let plain = match value {
        Value::String(plain) => plain.clone(),
        other => other.to_string(),
    };
    if plain.contains(['"', ',', '\n', '\r']) {
        text.push('"');
        text.push_str(&plain.replace('"', "\"\""));
        text.push('"');
    } else {
        text.push_str(&plain);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_record_has_a_column_in_its_order() {
        let source = include_str!("../audit/record.rs");
        let fields: Vec<&str> = source
            .lines()
            .filter_map(|line| line.strip_prefix("    pub ")?.split_once(": "))
            .map(|(field, _)| field)
            .filter(|field| !field.contains("const ") && !field.contains("fn "))
            .collect();
        assert_eq!(fields, COLUMNS);
    }

    #[test]
    fn cells_hold_what_records_hold() {
        let record = br#"{"seq":7,"target":"/a,\"b\"","argv":["x","y"],"new":1,"hash":"ff"}"#;
        let line = line(record).unwrap();
        assert!(line.starts_with("7,,"), "{line}");
        assert!(line.contains(r#","/a,""b""","#), "{line}");
        assert!(line.contains(r#","[""x"",""y""]","#), "{line}");
        assert!(line.ends_with(",ff,\"{\"\"new\"\":1}\"\r\n"), "{line}");
        assert_eq!(header().matches(',').count(), COLUMNS.len());
        assert!(super::line(b"no record").is_err());
    }
}
