//! Acts on the machine: mounts, namespaces, the clock, modules, programs of the kernel, devices.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _};

use super::call::{address, owned, sys, text};
use super::files::done;
use super::number;

/// Every verb.
pub const VERBS: &[&str] = &[
    "mount-tmpfs",
    "mount-bind",
    "mount-bind-read",
    "mount-move",
    "mount-new",
    "mount-proc",
    "mount-overlay",
    "mount-fuse",
    "mount-attributes",
    "remount",
    "umount",
    "pivot-root",
    "chroot",
    "chroot-read",
    "unshare",
    "spawn-namespace",
    "enter",
    "host-name",
    "set-clock",
    "adjust-clock",
    "alarm-clock",
    "kernel-log",
    "io-privilege",
    "io-port",
    "open-device",
    "kexec-unload",
    "ctrl-alt-delete",
    "account",
    "hang-up",
    "bpf-map",
    "bpf-program",
    "bpf-by-id",
    "bpf-next-id",
    "bpf-pin",
    "perf",
    "module",
    "module-load",
    "module-file",
    "module-remove",
    "watch-content",
    "raise-limit",
    "interface-up",
    "set-memory-map",
    "keep-identity",
    "set-group-identity",
    "lock-memory",
];

const CWD: i32 = libc::AT_FDCWD;
const NONE: i32 = 0;

/// Gives this process mounts and a host name of its own.
pub fn private() -> io::Result<()> {
    sys!(SYS_unshare, libc::CLONE_NEWNS | libc::CLONE_NEWUTS)?;
    mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE)
}

/// Performs an act of this module.
pub fn perform(words: &[&str]) -> Option<io::Result<()>> {
    mounts(words)
        .or_else(|| programs(words))
        .or_else(|| machine(words))
}

fn mount(source: &str, target: &str, kind: &str, flags: u64) -> io::Result<()> {
    let (source, target, kind) = (text(source)?, text(target)?, text(kind)?);
    sys!(
        SYS_mount,
        &source,
        &target,
        &kind,
        i64::try_from(flags).map_err(io::Error::other)?,
        NONE
    )
    .map(drop)
}

fn mounts(words: &[&str]) -> Option<io::Result<()>> {
    Some(match words {
        ["mount-tmpfs", target] => mount("none", target, "tmpfs", 0).and_then(|()| done("mounted")),
        ["mount-proc", target] => mount("none", target, "proc", 0).and_then(|()| done("mounted")),
        ["mount-bind", source, target] => {
            mount(source, target, "", libc::MS_BIND).and_then(|()| done("mounted"))
        }
        ["mount-bind-read", source, target, name] => mount(source, target, "", libc::MS_BIND)
            .and_then(|()| super::show(File::open(format!("{target}/{name}"))?)),
        ["mount-move", source, target] => {
            mount(source, target, "", libc::MS_MOVE).and_then(|()| done("moved"))
        }
        ["mount-overlay", lower, target] => overlay(lower, target),
        ["mount-fuse", target] => fuse(target),
        ["mount-new", target] => mount_new(target),
        ["mount-attributes", target] => text(target)
            .and_then(|target| {
                // MOUNT_ATTR_NODEV is set.
                let mut attributes = [0u8; 32];
                attributes[0] = 4;
                sys!(
                    SYS_mount_setattr,
                    CWD,
                    &target,
                    0,
                    &attributes[..],
                    attributes.len()
                )
            })
            .and_then(|_| done("set")),
        ["remount", target] => mount(
            "none",
            target,
            "",
            libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY,
        )
        .and_then(|()| done("remounted")),
        ["umount", target] => text(target)
            .and_then(|target| sys!(SYS_umount2, &target, libc::MNT_DETACH))
            .and_then(|_| done("unmounted")),
        ["pivot-root", root, old] => text(root)
            .and_then(|root| sys!(SYS_pivot_root, &root, &text(old)?))
            .and_then(|_| done("pivoted")),
        ["chroot", root] => text(root)
            .and_then(|root| sys!(SYS_chroot, &root))
            .and_then(|_| done("changed")),
        ["chroot-read", root, path] => text(root)
            .and_then(|root| sys!(SYS_chroot, &root))
            .and_then(|_| super::show(File::open(path)?)),
        ["unshare", kind] => namespace(kind)
            .and_then(|flag| sys!(SYS_unshare, flag))
            .and_then(|_| done("unshared")),
        ["spawn-namespace", kind] => namespace(kind).and_then(spawn),
        ["enter", pid, kind] => number(pid)
            .and_then(|pid| {
                let process = owned(sys!(SYS_pidfd_open, pid, 0)?)?;
                sys!(SYS_setns, process.as_fd(), namespace(kind)?)
            })
            .and_then(|_| done("entered")),
        ["host-name", name] => {
            sys!(SYS_sethostname, name.as_bytes(), name.len()).and_then(|_| done("named"))
        }
        _ => return None,
    })
}

/// The kernel's flag of a kind of namespace.
fn namespace(kind: &str) -> io::Result<i64> {
    Ok(i64::from(match kind {
        "user" => libc::CLONE_NEWUSER,
        "mount" => libc::CLONE_NEWNS,
        "net" => libc::CLONE_NEWNET,
        "pid" => libc::CLONE_NEWPID,
        "uts" => libc::CLONE_NEWUTS,
        "ipc" => libc::CLONE_NEWIPC,
        "cgroup" => libc::CLONE_NEWCGROUP,
        "time" => 0x80,
        _ => return Err(io::Error::other("no such namespace")),
    }))
}

fn spawn(flag: i64) -> io::Result<()> {
    let child = sys!(SYS_clone, flag | i64::from(libc::SIGCHLD), 0, 0, 0, 0)?;
    if child == 0 {
        std::process::exit(0);
    }
    sys!(SYS_wait4, child, 0, 0, 0)?;
    done("made")
}

/// With the calls that name neither source nor options as `mount` does.
fn mount_new(target: &str) -> io::Result<()> {
    let context = owned(sys!(SYS_fsopen, c"tmpfs", 0)?)?;
    // FSCONFIG_CMD_CREATE
    sys!(SYS_fsconfig, context.as_fd(), 6, NONE, NONE, 0)?;
    let mount = owned(sys!(SYS_fsmount, context.as_fd(), 0, 0)?)?;
    // MOVE_MOUNT_F_EMPTY_PATH
    sys!(SYS_move_mount, mount.as_fd(), c"", CWD, &text(target)?, 4)?;
    done("mounted")
}

fn overlay(lower: &str, target: &str) -> io::Result<()> {
    let options = text(&format!("lowerdir={lower}:/t/ws/dir"))?;
    sys!(SYS_mount, c"none", &text(target)?, c"overlay", 0, &options)?;
    done("mounted")
}

/// A file system whose files this process would answer for.
fn fuse(target: &str) -> io::Result<()> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        device.as_raw_fd()
    );
    sys!(
        SYS_mount,
        c"own",
        &text(target)?,
        c"fuse",
        0,
        &text(&options)?
    )?;
    done("mounted")
}

fn bpf(command: i32, attributes: &mut [u8; 128]) -> io::Result<i64> {
    sys!(SYS_bpf, command, &mut attributes[..], 128)
}

fn programs(words: &[&str]) -> Option<io::Result<()>> {
    let mut attributes = [0u8; 128];
    Some(match words {
        ["bpf-map"] => {
            attributes[..16].copy_from_slice(&[2, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0]);
            bpf(0, &mut attributes).and_then(|_| done("made"))
        }
        ["bpf-program"] => program().and_then(|_| done("loaded")),
        ["bpf-pin", path] => program().and_then(|program| {
            let path = text(path)?;
            attributes[..8].copy_from_slice(&address(path.as_bytes_with_nul()).to_ne_bytes());
            attributes[8..12].copy_from_slice(&program.as_raw_fd().to_ne_bytes());
            bpf(6, &mut attributes).and_then(|_| done("pinned"))
        }),
        // The kernel's own type information has the first number.
        ["bpf-by-id"] => {
            attributes[0] = 1;
            bpf(19, &mut attributes).and_then(|_| done("opened"))
        }
        ["bpf-next-id"] => bpf(23, &mut attributes).and_then(|_| done("found")),
        ["perf"] => {
            attributes[0] = 1;
            attributes[4] = 128;
            sys!(SYS_perf_event_open, &mut attributes[..], 0, -1, -1, 0)
                .and_then(|_| done("opened"))
        }
        ["module"] => sys!(SYS_init_module, &[0u8; 64][..], 64, c"").and_then(|_| done("loaded")),
        ["module-load", path] => std::fs::read(path)
            .and_then(|module| sys!(SYS_init_module, &module[..], module.len(), c""))
            .and_then(|_| done("loaded")),
        ["module-file", path] => File::open(path)
            .and_then(|module| sys!(SYS_finit_module, module.as_fd(), c"", 0))
            .and_then(|_| done("loaded")),
        ["module-remove", name] => text(name)
            .and_then(|name| sys!(SYS_delete_module, &name, 0x800))
            .and_then(|_| done("removed")),
        ["kexec-unload"] => sys!(SYS_kexec_load, 0, 0, NONE, 0).and_then(|_| done("unloaded")),
        _ => return None,
    })
}

/// A program that returns 0: the smallest that there is.
fn program() -> io::Result<std::os::fd::OwnedFd> {
    let code: [u8; 16] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    let mut attributes = [0u8; 128];
    attributes[0] = 1;
    attributes[4] = 2;
    attributes[8..16].copy_from_slice(&address(&code).to_ne_bytes());
    attributes[16..24].copy_from_slice(&address(b"GPL\0").to_ne_bytes());
    owned(bpf(5, &mut attributes)?)
}

fn machine(words: &[&str]) -> Option<io::Result<()>> {
    let call = match words {
        ["set-clock"] => set_clock(),
        // ADJ_OFFSET_SS_READ would be free; ADJ_TICK with today's value is not.
        ["adjust-clock"] => adjust_clock(),
        ["alarm-clock"] => sys!(SYS_timerfd_create, libc::CLOCK_BOOTTIME_ALARM, 0),
        // SYSLOG_ACTION_READ_ALL
        ["kernel-log"] => sys!(SYS_syslog, 3, &mut [0u8; 256][..], 256),
        ["io-privilege"] => sys!(SYS_iopl, 3),
        ["io-port"] => sys!(SYS_ioperm, 0x80, 1, 1),
        ["open-device", path] => File::open(path).map(|_| 0),
        // CAD_OFF, which is what guests have anyway.
        ["ctrl-alt-delete"] => sys!(SYS_reboot, 0xfee1_deadu32, 672_274_793, 0, 0),
        ["account", path] => text(path)
            .and_then(|path| sys!(SYS_acct, &path))
            .and_then(|_| sys!(SYS_acct, NONE)),
        ["hang-up"] => nix::unistd::setsid()
            .map_err(io::Error::from)
            .and_then(|_| sys!(SYS_vhangup)),
        // FAN_CLASS_CONTENT: others wait until it answers.
        ["watch-content"] => sys!(SYS_fanotify_init, 4, 0),
        ["raise-limit"] => raise_limit(),
        ["interface-up"] => interface_up(),
        // PR_SET_MM, PR_SET_MM_BRK with the present value refused only later.
        ["set-memory-map"] => set_memory_map(),
        // PR_SET_KEEPCAPS
        ["keep-identity"] => sys!(SYS_prctl, 8, 1, 0, 0, 0),
        ["set-group-identity", group] => number(group).and_then(|group| sys!(SYS_setgid, group)),
        ["lock-memory"] => sys!(SYS_mlock2, address(&[0; 8]) as usize & !4095, 4096, 0),
        _ => return None,
    };
    Some(call.and_then(|_| done("done")))
}

fn set_clock() -> io::Result<i64> {
    let mut now = [0u8; 16];
    sys!(SYS_clock_gettime, libc::CLOCK_REALTIME, &mut now[..])?;
    sys!(SYS_clock_settime, libc::CLOCK_REALTIME, &now[..])
}

fn adjust_clock() -> io::Result<i64> {
    let mut state = [0u8; 208];
    sys!(SYS_adjtimex, &mut state[..])?;
    // ADJ_TICK: the tick as it is.
    state[..4].copy_from_slice(&0x4000u32.to_ne_bytes());
    sys!(SYS_adjtimex, &mut state[..])
}

/// Raises a hard limit by one: `RLIMIT_MSGQUEUE`, which nothing here uses.
fn raise_limit() -> io::Result<i64> {
    let mut limit = [0u8; 16];
    sys!(SYS_prlimit64, 0, 12, NONE, &mut limit[..])?;
    let hard = u64::from_ne_bytes(std::array::from_fn(|index| limit[8 + index]));
    limit[8..].copy_from_slice(&hard.saturating_add(1).to_ne_bytes());
    sys!(SYS_prlimit64, 0, 12, &limit[..], NONE)
}

/// Sets the flags of the loopback interface to what they are.
fn interface_up() -> io::Result<i64> {
    let socket = owned(sys!(SYS_socket, libc::AF_INET, libc::SOCK_DGRAM, 0)?)?;
    let mut request = [0u8; 40];
    request[..2].copy_from_slice(b"lo");
    sys!(SYS_ioctl, socket.as_fd(), 0x8913, &mut request[..])?;
    sys!(SYS_ioctl, socket.as_fd(), 0x8914, &mut request[..])
}

fn set_memory_map() -> io::Result<i64> {
    let program = OpenOptions::new().read(true).open("/proc/self/stat")?;
    let mut text = String::new();
    (&program).read_to_string(&mut text)?;
    // PR_SET_MM_START_STACK is field 28, of which 26 come after the name.
    let stack = text
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_ascii_whitespace().nth(25))
        .map_or(Ok(0), number)?;
    sys!(SYS_prctl, 35, 5, stack, 0, 0)
}
