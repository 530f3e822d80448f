//! What the `kernel` operation was aimed at, in words: `mount:/mnt`, `capabilities:sys_admin`, `signals:9:4711`.

use std::borrow::Cow;
use std::fmt::Write as _;

use agentguard_common::verdict::{Lock, Reason};

use crate::event::escape::escape_into;
use crate::event::{Event, Target};

/// Capabilities by number, as `capabilities(7)` names them.
const CAPABILITIES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// The lock of an event; `None` for a number that this version does not know.
pub fn lock_of(event: &Event<'_>) -> Option<Lock> {
    Lock::from_number(u16::try_from(event.aux).ok()?)
}

/// The target of a `kernel` record.
pub fn target_text<'a>(event: &Event<'a>) -> Cow<'a, str> {
    let Some(lock) = lock_of(event) else {
        return event.aux.to_string().into();
    };
    let mut text = String::from(lock.name());
    if event.reason == Reason::LabelUnavailable {
        return text.into();
    }
    let detail = event.new_exec_id;
    // Writing to a `String` cannot fail.
    let _ = match (lock, event.target) {
        (_, Target::Path(path)) => {
            text.push(':');
            escape_into(&mut text, path);
            Ok(())
        }
        (Lock::Capabilities, _) => match usize::try_from(detail)
            .ok()
            .and_then(|number| CAPABILITIES.get(number))
        {
            Some(name) => write!(text, ":{name}"),
            None => write!(text, ":{detail}"),
        },
        (Lock::Signals, _) => write!(text, ":{}:{}", detail >> 32, detail & 0xffff_ffff),
        (Lock::Ptrace | Lock::Priorities | Lock::Bpf, _) => write!(text, ":{detail}"),
        (Lock::Xattrs, _) => write!(text, ":inode {detail}"),
        _ => Ok(()),
    };
    text.into()
}
