//! Which class of the schema a record belongs to, which activity it is, and how severe.

use super::objects::Rest;

/// A class with an activity of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// Number of the class.
    pub uid: u16,
    /// Number of its category.
    pub category: u8,
    /// Name of the class.
    pub name: &'static str,
    /// Number of the activity.
    pub activity: u8,
    /// What the schema calls it; the operation's name where the schema knows no such activity.
    pub activity_name: Option<&'static str>,
}

/// Number of the activity that the schema has no name for.
const OTHER: u8 = 99;
/// Number of Detection Finding.
pub const FINDING: u16 = 2004;
/// Number of File System Activity.
pub const FILE: u16 = 1001;
/// Number of Kernel Activity.
pub const KERNEL: u16 = 1003;
/// Number of Process Activity.
pub const PROCESS: u16 = 1007;
/// Number of Event Log Activity.
pub const LOG: u16 = 1008;
/// Number of Network Activity.
pub const NETWORK: u16 = 4001;
/// Number of DNS Activity.
pub const DNS: u16 = 4003;
/// Number of Application Lifecycle.
pub const LIFECYCLE: u16 = 6002;
/// Number of API Activity.
pub const API: u16 = 6003;

/// The class for what no other is for.
pub const BASE: Class = class(0, OTHER, None);

/// A severity, by number and name.
pub type Severity = (u8, &'static str);
/// Something that should be looked at.
pub const HIGH: Severity = (4, "High");
const INFORMATIONAL: Severity = (1, "Informational");
const LOW: Severity = (2, "Low");
const MEDIUM: Severity = (3, "Medium");
const CRITICAL: Severity = (5, "Critical");

const fn class(uid: u16, activity: u8, activity_name: Option<&'static str>) -> Class {
    let name = match uid {
        FILE => "File System Activity",
        KERNEL => "Kernel Activity",
        PROCESS => "Process Activity",
        LOG => "Event Log Activity",
        FINDING => "Detection Finding",
        NETWORK => "Network Activity",
        DNS => "DNS Activity",
        LIFECYCLE => "Application Lifecycle",
        API => "API Activity",
        _ => "Base Event",
    };
    Class {
        uid,
        category: (uid / 1000) as u8,
        name,
        activity,
        activity_name,
    }
}

/// What the schema calls a category.
pub fn category_name(category: u8) -> &'static str {
    match category {
        1 => "System Activity",
        2 => "Findings",
        4 => "Network Activity",
        6 => "Application Activity",
        _ => "Uncategorized",
    }
}

/// The class and activity of a record.
pub fn of(op: &str, verdict: Option<&str>, answered: bool) -> Class {
    if matches!(verdict, Some("deny" | "ask" | "would-deny"))
        || matches!(op, "alarm" | "gap" | "malformed")
    {
        return class(FINDING, 1, Some("Create"));
    }
    let known = |uid, activity, name| class(uid, activity, Some(name));
    match op {
        "open" => known(FILE, 14, "Open"),
        "create" | "mkdir" | "mknod" | "symlink" | "link" => known(FILE, 1, "Create"),
        "truncate" => known(FILE, 3, "Update"),
        "unlink" | "rmdir" => known(FILE, 4, "Delete"),
        "rename" => known(FILE, 5, "Rename"),
        "attribute" => known(FILE, 6, "Set Attributes"),
        "chmod" | "chown" => known(FILE, 7, "Set Security"),
        "map" | "receive" => class(FILE, OTHER, None),
        "exec" | "fork" => known(PROCESS, 1, "Launch"),
        "exit" => known(PROCESS, 2, "Terminate"),
        "attach" => class(PROCESS, OTHER, None),
        "connect" => known(NETWORK, 1, "Open"),
        "send" | "traffic" => known(NETWORK, 6, "Traffic"),
        "listen" => known(NETWORK, 7, "Listen"),
        "socket" => class(NETWORK, OTHER, None),
        "resolve" if answered => known(DNS, 6, "Traffic"),
        "resolve" => known(DNS, 1, "Query"),
        "kernel" => known(KERNEL, 4, "Invoke"),
        "model" => class(API, OTHER, None),
        "start" => known(LIFECYCLE, 3, "Start"),
        "stop" => known(LIFECYCLE, 4, "Stop"),
        "policy-install" => known(LIFECYCLE, 8, "Update"),
        "agent-attach" | "agent-detach" | "agent-restore" | "policy-error" | "freeze" | "thaw"
        | "kill" => class(LIFECYCLE, OTHER, None),
        "segment" => known(LOG, 4, "Archive"),
        "log-repair" | "log-key" | "checkpoint" => class(LOG, OTHER, None),
        _ => BASE,
    }
}

/// How severe a record is.
pub fn severity(op: &str, verdict: Option<&str>, rest: &Rest) -> Severity {
    match (op, verdict) {
        ("alarm", _) => CRITICAL,
        ("gap", _) if rest.peek("class") == Some("log-cut") => CRITICAL,
        ("gap" | "malformed", _) => HIGH,
        // Whoever tries these knows what AgentGuard is.
        (_, Some("deny"))
            if matches!(
                rest.peek("rule"),
                Some("agentguard-files" | "agentguard-program")
            ) =>
        {
            HIGH
        }
        (_, Some("deny")) => MEDIUM,
        (_, Some("ask" | "would-deny"))
        | ("policy-error" | "log-repair" | "kill" | "freeze", _) => LOW,
        _ => INFORMATIONAL,
    }
}
