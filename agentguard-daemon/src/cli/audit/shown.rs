//! Records as people read them.

use crate::audit::Record;
use crate::cli::denial;
use crate::cli::report::red;

/// What was done, in a few words.
pub fn action(record: &Record<'_>) -> String {
    match (&*record.op, record.child, record.status, record.lost) {
        ("fork", Some(child), ..) => format!("fork {child}"),
        ("exit", _, Some(status), _) if status & 0x7f != 0 => {
            format!("exit by signal {}", status & 0x7f)
        }
        ("exit", _, Some(status), _) => format!("exit {}", status >> 8),
        ("gap", .., Some(lost)) => {
            format!(
                "{lost} records lost ({})",
                record.class.as_deref().unwrap_or("?")
            )
        }
        ("traffic", ..) => traffic(record),
        ("open" | "exec" | "connect" | "send", ..) => denial::deed(record) + &denial::times(record),
        _ => match record.detail.as_deref().or(record.target.as_deref()) {
            Some(detail) => format!("{}: {detail}", record.op),
            None => record.op.to_string(),
        },
    }
}

/// How much was exchanged, and with whom.
fn traffic(record: &Record<'_>) -> String {
    let target = record.target.as_deref().or(record.detail.as_deref());
    let name = record.name.as_deref();
    format!(
        "traffic: {}{}{}, {} bytes in, {} out",
        record
            .protocol
            .as_deref()
            .map_or(String::new(), |it| format!("{it} ")),
        target.unwrap_or("?"),
        name.map_or(String::new(), |name| format!(" ({name})")),
        record.bytes_in.unwrap_or(0),
        record.bytes_out.unwrap_or(0)
    )
}

/// One line of `tail`.
pub fn line(text: &[u8], json: bool, colour: bool) -> String {
    let as_it_is = || format!("{}\n", String::from_utf8_lossy(text));
    if json {
        return as_it_is();
    }
    let Ok(record) = serde_json::from_slice::<Record<'_>>(text) else {
        return as_it_is();
    };
    let time = record.time.get(11..23).unwrap_or(&record.time);
    let agent = record.agent.as_deref().unwrap_or("-");
    if record.is_denied() {
        return format!("{time} {agent} {}\n", denial::line(&record, colour));
    }
    let verdict = record.verdict.as_deref().unwrap_or("-");
    let exe = record.exe.as_deref().unwrap_or("-");
    let pid = record
        .pid
        .map_or(String::new(), |pid| format!(" (pid {pid})"));
    let verdict = red(verdict, colour && record.op == "alarm");
    format!(
        "{time} {agent} {verdict} {exe}{pid} → {}\n",
        action(&record)
    )
}
