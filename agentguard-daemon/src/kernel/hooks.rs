//! The hooks that enforce, and which of them a kernel has. A hook that must be there and is not is a refusal to
//! start; one that may be missing has something that covers for it.

use aya::Btf;
use aya_obj::btf::BtfKind;

/// Hooks of every supported kernel. The label comes first: nothing is judged before it can be inherited.
const REQUIRED: &[&str] = &[
    "task_alloc",
    "bprm_check_security",
    "bprm_committed_creds",
    "file_open",
    // Before those that leave Unix-domain sockets to them.
    "unix_stream_connect",
    "unix_may_send",
    "socket_connect",
    "socket_sendmsg",
    "socket_bind",
    "socket_listen",
    "socket_create",
    "path_rename",
    "path_link",
    "path_unlink",
    "path_rmdir",
    "path_mkdir",
    "path_mknod",
    "path_symlink",
    "path_truncate",
    "path_chmod",
    "path_chown",
    "mmap_file",
    "file_mprotect",
    "file_receive",
    "file_ioctl",
    "ptrace_access_check",
    "ptrace_traceme",
    "task_kill",
    "file_send_sigiotask",
    "task_setrlimit",
    "task_setscheduler",
    "task_setnice",
    "task_setioprio",
    "task_movememory",
    "capable",
    "sb_mount",
    "move_mount",
    "sb_pivotroot",
    "path_chroot",
    "sb_umount",
    "sb_remount",
    "userns_create",
    "bpf",
    "perf_event_open",
    "kernel_module_request",
    "uring_override_creds",
    "uring_cmd",
    "inode_setxattr",
    "inode_removexattr",
];

/// Hooks that not every supported kernel has, and what covers for them there.
const OPTIONAL: &[(&str, &str)] = &[
    (
        "file_ioctl_compat",
        "`file_ioctl` is called for 32-bit programs as well",
    ),
    (
        "inode_set_acl",
        "access lists are extended attributes, which `inode_setxattr` judges",
    ),
    (
        "inode_remove_acl",
        "access lists are extended attributes, which `inode_removexattr` judges",
    ),
];

/// Whether the running kernel has a hook.
fn exists(btf: &Btf, hook: &str) -> bool {
    btf.id_by_type_name_kind(&format!("bpf_lsm_{hook}"), BtfKind::Func)
        .is_ok()
}

/// All of them, in the order in which they are attached.
pub fn known() -> impl Iterator<Item = &'static str> {
    let optional = OPTIONAL.iter().map(|(hook, _)| *hook);
    REQUIRED.iter().copied().chain(optional)
}

/// The programs to load on this kernel, in the order in which they are attached.
pub fn present(btf: &Btf) -> Vec<&'static str> {
    let optional = OPTIONAL.iter().map(|(hook, _)| *hook);
    let optional = optional.filter(|hook| exists(btf, hook));
    REQUIRED.iter().copied().chain(optional).collect()
}

/// The hooks that this kernel lacks, each with what covers for it or, for one that is required, nothing.
pub fn missing(btf: &Btf) -> Vec<(&'static str, Option<&'static str>)> {
    let required = REQUIRED.iter().map(|hook| (*hook, None));
    let optional = OPTIONAL.iter().map(|(hook, cover)| (*hook, Some(*cover)));
    required
        .chain(optional)
        .filter(|(hook, _)| !exists(btf, hook))
        .collect()
}
