//! Offsets of kernel fields, found in the running kernel's BTF and set before the programs load.

/// What the offset of a field is that a kernel lacks, of the few that it may lack.
pub const ABSENT: u32 = u32::MAX;
/// Fields that a kernel may lack: what they belong to is then not built in.
pub const OPTIONAL: &[&str] = &["OFF_TASK_IO_URING"];

/// What stands, negative, in a load instruction for the offset of the field with index 0, for the next one
/// one more, and so on. The loader replaces it. No object of the kernel is read so far before its
/// beginning, so the verifier refuses what was left.
pub const PLACEHOLDER: i16 = 31_000;

/// Declares the read-only globals once: the eBPF crate makes statics of them, the loader sets them.
#[macro_export]
macro_rules! kernel_offsets {
    ($apply:ident) => {
        $apply! {
            OFF_FILE_PATH: "file" . "f_path",
            OFF_FILE_INODE: "file" . "f_inode",
            OFF_FILE_MODE: "file" . "f_mode",
            OFF_FILE_FLAGS: "file" . "f_flags",
            OFF_INODE_SB: "inode" . "i_sb",
            OFF_INODE_INO: "inode" . "i_ino",
            OFF_SB_DEV: "super_block" . "s_dev",
            OFF_SB_FLAGS: "super_block" . "s_flags",
            OFF_BPRM_FILE: "linux_binprm" . "file",
            OFF_BPRM_P: "linux_binprm" . "p",
            OFF_BPRM_EXEC: "linux_binprm" . "exec",
            OFF_BPRM_FILENAME: "linux_binprm" . "filename",
            OFF_BPRM_INTERP: "linux_binprm" . "interp",
            OFF_BPRM_ARGC: "linux_binprm" . "argc",
            OFF_BPRM_BUF: "linux_binprm" . "buf",
            OFF_TASK_STORAGE: "task_struct" . "bpf_storage",
            OFF_TASK_TGID: "task_struct" . "tgid",
            OFF_TASK_PID: "task_struct" . "pid",
            OFF_TASK_REAL_PARENT: "task_struct" . "real_parent",
            OFF_TASK_CGROUPS: "task_struct" . "cgroups",
            OFF_TASK_CRED: "task_struct" . "cred",
            OFF_CRED_UID: "cred" . "uid",
            OFF_CRED_EUID: "cred" . "euid",
            OFF_TASK_EXIT_CODE: "task_struct" . "exit_code",
            OFF_TASK_SIGNAL: "task_struct" . "signal",
            OFF_SIGNAL_LIVE: "signal_struct" . "live",
            OFF_SIGNAL_NR_THREADS: "signal_struct" . "nr_threads",
            OFF_CSS_SET_DFL_CGRP: "css_set" . "dfl_cgrp",
            OFF_CGROUP_KN: "cgroup" . "kn",
            OFF_KERNFS_NODE_ID: "kernfs_node" . "id",
            OFF_CGROUP_SELF: "cgroup" . "self",
            OFF_CGROUP_ROOT: "cgroup" . "root",
            OFF_CSS_PARENT: "cgroup_subsys_state" . "parent",
            OFF_CSS_CGROUP: "cgroup_subsys_state" . "cgroup",
            OFF_SOCKET_SK: "socket" . "sk",
            OFF_SOCKET_TYPE: "socket" . "type",
            OFF_SOCK_PROTOCOL: "sock" . "sk_protocol",
            OFF_SOCK_FAMILY: "sock_common" . "skc_family",
            OFF_MSGHDR_NAME: "msghdr" . "msg_name",
            OFF_MSGHDR_NAMELEN: "msghdr" . "msg_namelen",
            OFF_PATH_MNT: "path" . "mnt",
            OFF_PATH_DENTRY: "path" . "dentry",
            OFF_DENTRY_SEQ: "dentry" . "d_seq",
            OFF_DENTRY_HASH: "dentry" . "d_hash",
            OFF_DENTRY_PARENT: "dentry" . "d_parent",
            OFF_DENTRY_NAME: "dentry" . "d_name",
            OFF_DENTRY_SB: "dentry" . "d_sb",
            OFF_DENTRY_INODE: "dentry" . "d_inode",
            OFF_QSTR_LEN: "qstr" . "len",
            OFF_QSTR_NAME: "qstr" . "name",
            OFF_MOUNT_MNT: "mount" . "mnt",
            OFF_MOUNT_PARENT: "mount" . "mnt_parent",
            OFF_MOUNT_MOUNTPOINT: "mount" . "mnt_mountpoint",
            OFF_VFSMOUNT_ROOT: "vfsmount" . "mnt_root",
            OFF_TASK_FS: "task_struct" . "fs",
            OFF_FS_ROOT: "fs_struct" . "root",
            OFF_INODE_MODE: "inode" . "i_mode",
            OFF_INODE_RDEV: "inode" . "i_rdev",
            OFF_SB_MAGIC: "super_block" . "s_magic",
            OFF_FILE_PRIVATE: "file" . "private_data",
            OFF_TASK_FLAGS: "task_struct" . "flags",
            OFF_TASK_IO_URING: "task_struct" . "io_uring",
            OFF_TASK_REAL_CRED: "task_struct" . "real_cred",
            OFF_SIGNAL_PIDS: "signal_struct" . "pids",
            OFF_PROC_INODE: "proc_inode" . "vfs_inode",
            OFF_PROC_PID: "proc_inode" . "pid",
            OFF_VMA_FILE: "vm_area_struct" . "vm_file",
            OFF_SOCK_DADDR: "sock_common" . "skc_daddr",
            OFF_SOCK_V6_DADDR: "sock_common" . "skc_v6_daddr",
            OFF_SOCK_DPORT: "sock_common" . "skc_dport",
            OFF_SOCK_RCV_SADDR: "sock_common" . "skc_rcv_saddr",
            OFF_SOCK_V6_RCV_SADDR: "sock_common" . "skc_v6_rcv_saddr",
            OFF_SOCK_NUM: "sock_common" . "skc_num",
            OFF_SOCK_TYPE: "sock" . "sk_type",
            OFF_SOCK_NET: "sock_common" . "skc_net",
            OFF_NET_NS: "net" . "ns",
            OFF_NS_INUM: "ns_common" . "inum",
            OFF_SOCK_CGROUP: "sock" . "sk_cgrp_data",
            OFF_SOCK_CGROUP_DATA: "sock_cgroup_data" . "cgroup",
            OFF_UNIX_ADDR: "unix_sock" . "addr",
            OFF_UNIX_PATH: "unix_sock" . "path",
            OFF_UNIX_PEER: "unix_sock" . "peer",
            OFF_UNIX_ADDRESS_LEN: "unix_address" . "len",
            OFF_UNIX_ADDRESS_NAME: "unix_address" . "name",
        }
    };
}
