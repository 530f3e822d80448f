//! Verdicts, reasons and operations, with their stable numbers and names.
//!
//! Strictness is the numeric order of [`Verdict`]: the strictest verdict of all that match wins,
//! so combining two is [`Verdict::strictest`].

/// Declares an enum of stable numbers and names, with conversions that refuse unknown numbers.
macro_rules! stable {
    ($(#[$meta:meta])* $name:ident : $repr:ty { $($(#[$vmeta:meta])* $variant:ident = $value:literal => $text:literal,)+ }) => {
        $(#[$meta])*
        #[repr($repr)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vmeta])* $variant = $value,)+ }

        impl $name {
            /// Every value, in numeric order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The value with this number, or `None` for a number this version does not know.
            pub const fn from_number(number: $repr) -> Option<Self> {
                match number { $($value => Some(Self::$variant),)+ _ => None }
            }

            /// The name users read in audit records and diagnostics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

stable! {
    /// What was decided about one action.
    Verdict: u8 {
        /// No rule has an opinion. Never final: the section's default replaces it.
        None = 0 => "none",
        /// The action goes ahead.
        Allow = 1 => "allow",
        /// Denied now; an operator may grant it.
        Ask = 2 => "ask",
        /// Denied.
        Deny = 3 => "deny",
        /// Went ahead only because the policy runs in shadow mode.
        WouldDeny = 4 => "would-deny",
    }
}

impl Verdict {
    /// The stricter of two verdicts.
    #[inline(always)]
    #[must_use]
    pub const fn strictest(self, other: Self) -> Self {
        if (self as u8) >= (other as u8) {
            self
        } else {
            other
        }
    }
}

stable! {
    /// Why a verdict was reached. Every kernel-side failure of a governed task has its own number.
    Reason: u16 {
        /// No reason given (records that carry no decision).
        None = 0 => "none",
        /// A rule matched. The daemon finds which.
        Rule = 1 => "rule",
        /// Nothing matched; the section's default applied.
        Default = 2 => "default",
        /// The task is governed, but its agent has no policy installed.
        NoPolicy = 3 => "no-policy",
        /// The path is longer than the kernel interface can give (4,095 bytes), or could not be read.
        PathUnreadable = 4 => "path-unreadable",
        /// No scratch memory for the decision.
        ScratchUnavailable = 5 => "scratch-unavailable",
        /// The new program's arguments could not be read.
        ArgumentsUnreadable = 6 => "arguments-unreadable",
        /// The new program's arguments are longer than can be checked.
        ArgumentsTooLong = 7 => "arguments-too-long",
        /// The arguments differ from those that were approved; the process is killed.
        ArgumentsChanged = 8 => "arguments-changed",
        /// The socket address could not be read or is too short for its family.
        AddressUnreadable = 9 => "address-unreadable",
        /// The address family is not one that policies can permit.
        FamilyNotPermitted = 10 => "family-not-permitted",
        /// The protocol is not one that policies can permit.
        ProtocolNotPermitted = 11 => "protocol-not-permitted",
        /// The compiled policy is damaged.
        TableDamaged = 12 => "table-damaged",
        /// An object without a name (pipe, memfd, …): readable and writable by its holder, never executable.
        Anonymous = 13 => "anonymous-object",
        /// The lineage label could not be given to a new task, so the task was not created.
        LabelUnavailable = 14 => "label-unavailable",
        /// Unix-domain sockets are not permitted by this policy.
        UnixSocket = 15 => "unix-socket",
        /// The policy's `kernel` section does not permit it. See [`Lock`].
        Locked = 16 => "locked",
        /// The object is known by its inode as one that the policy protects, whatever name it was reached by.
        ProtectedObject = 17 => "protected-object",
        /// A folder may not go to where other rules apply to what is in it.
        RulesDiffer = 18 => "rules-differ",
        /// The new name would permit what the old one does not.
        NameWidens = 19 => "name-widens",
        /// No rule speaks of this Unix-domain socket, and it was made by the agent itself.
        OwnSocket = 20 => "own-socket",
        /// No rule speaks of the address, and a name that was resolved opened it.
        Opened = 21 => "opened-by-name",
        /// A question to a name server, which goes to the agent's resolver.
        Redirected = 22 => "redirected",
        /// A question to a name server that would not get to the agent's resolver, or a resolver that was called
        /// directly.
        ResolverOnly = 23 => "resolver-only",
        /// A budget that the kernel charges is spent.
        Budget = 24 => "budget",
        /// A rule says `ask`, and an operator has granted exactly this.
        Approved = 25 => "approved",
        /// A program that a rule asks about is opened to be started: what it is started with is judged next.
        AsksLater = 26 => "judged-with-arguments",
    }
}

stable! {
    /// What the task did or tried to do.
    Operation: u8 {
        /// Execute a program.
        Exec = 1 => "exec",
        /// Open a file.
        Open = 2 => "open",
        /// Connect a socket.
        Connect = 3 => "connect",
        /// Send to an address without connecting.
        Send = 4 => "send",
        /// Create a task.
        Fork = 5 => "fork",
        /// The last thread of a process ended.
        Exit = 6 => "exit",
        /// A task was put under governance.
        Attach = 7 => "attach",
        /// Give a file or folder another name.
        Rename = 8 => "rename",
        /// Give a file a second name.
        Link = 9 => "link",
        /// Remove a name of a file.
        Unlink = 10 => "unlink",
        /// Remove a folder.
        Rmdir = 11 => "rmdir",
        /// Make a folder.
        Mkdir = 12 => "mkdir",
        /// Make a regular file.
        Create = 13 => "create",
        /// Make a pipe, socket or device with a name.
        Mknod = 14 => "mknod",
        /// Make a symbolic link.
        Symlink = 15 => "symlink",
        /// Cut a file by its path.
        Truncate = 16 => "truncate",
        /// Change the mode of a file.
        Chmod = 17 => "chmod",
        /// Change the owner of a file.
        Chown = 18 => "chown",
        /// Change flags of a file that no other operation names.
        Attribute = 19 => "attribute",
        /// Map a file so that it can be executed.
        Map = 20 => "map",
        /// Take a descriptor that another process has sent.
        Receive = 21 => "receive",
        /// Do something that the policy's `kernel` section speaks of. See [`Lock`].
        Kernel = 22 => "kernel",
        /// Make a socket.
        Socket = 23 => "socket",
        /// Take an address, or an abstract name, on which others can be heard.
        Listen = 24 => "listen",
    }
}

stable! {
    /// What the policy's `kernel` section speaks of: ways to change the system or to reach outside of the agent.
    /// Everything is locked unless the policy says `allow`, but [`Lock::AnonymousCode`].
    Lock: u16 {
        /// Mount, unmount, move a mount, change the root.
        Mount = 1 => "mount",
        /// Make a user namespace.
        UserNamespaces = 2 => "user_namespaces",
        /// Use a capability that reaches beyond files and processes of one's own.
        Capabilities = 3 => "capabilities",
        /// Trace, or read the memory of, a process that is not of the agent.
        Ptrace = 4 => "ptrace",
        /// Send a signal to a process that is not of the agent.
        Signals = 5 => "signals",
        /// Call `bpf(2)`.
        Bpf = 6 => "bpf",
        /// Open performance events.
        Perf = 7 => "perf",
        /// Open or make block devices and devices of memory.
        RawDevices = 8 => "raw_devices",
        /// Write settings of the kernel: sysfs, cgroups, bpffs, debugfs, tracefs, securityfs, configfs, efivarfs.
        Settings = 9 => "settings",
        /// Put characters into the input of a terminal.
        TerminalInput = 10 => "terminal_input",
        /// Make the kernel load a module.
        Modules = 11 => "modules",
        /// Change limits or scheduling of a process that is not of the agent.
        Priorities = 12 => "priorities",
        /// Change extended attributes and access lists.
        Xattrs = 13 => "xattrs",
        /// Execute memory that comes from no named file. Permitted unless the policy says `deny`.
        AnonymousCode = 14 => "anonymous_code",
        /// Use `io_uring` with credentials of another process, or its commands for devices.
        UringCommands = 15 => "uring_commands",
    }
}

/// Access bits of a file operation, as stored in records.
pub mod access {
    /// Contents or directory entries can be read.
    pub const READ: u8 = 1;
    /// Contents can be changed, or the file created or truncated.
    pub const WRITE: u8 = 2;
    /// The file is executed.
    pub const EXEC: u8 = 4;
    /// The Unix-domain socket is connected to, or sent to. Never in the record of a file.
    pub const CONNECT: u8 = 8;
    /// The abstract name is taken. Never in the record of a file.
    pub const LISTEN: u8 = 16;
}
