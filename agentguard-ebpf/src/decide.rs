//! The one place where a verdict is made: labels of automata in, a decision out.
//! Every path through here that cannot decide is a denial with its own reason.

use agentguard_common::opened::Address;
use agentguard_common::record::{Destination, reached};
use agentguard_common::table::{
    LARGE_TABLE, MARKS, MAX_COMMAND, SMALL_TABLE, TableHeader, flags, level, network_label,
    path_label,
};
use agentguard_common::verdict::{Reason, Verdict, access};
use core::mem::offset_of;

use crate::bound::{BOTH, ONE, Table, bytes, forget, words};
use crate::maps::{PATH_BUFFER, POLICIES_LARGE, POLICIES_SMALL, SHORT_PATH, Script, Walk};
use crate::opened::opened;

/// A verdict with its reason, before shadow mode is applied.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Decision {
    /// Number of the [`Verdict`]: allow, ask or deny.
    pub verdict: u32,
    /// Number of the [`Reason`].
    pub reason: u32,
    /// Generation of the policy that decided, or 0.
    pub generation: u32,
    /// Flags of that policy, and [`MARKS`] of what was judged.
    pub flags: u32,
}

impl Decision {
    /// A denial that no policy made.
    #[inline(always)]
    pub const fn failure(reason: Reason) -> Self {
        Self {
            verdict: Verdict::Deny as u32,
            reason: reason as u32,
            generation: 0,
            flags: 0,
        }
    }

    /// The same policy, another verdict.
    #[inline(always)]
    pub const fn with(self, verdict: Verdict, reason: Reason) -> Self {
        Self {
            verdict: verdict as u32,
            reason: reason as u32,
            ..self
        }
    }

    /// With the marks of what was judged, for budgets that count certain rules only.
    #[inline(always)]
    const fn marked(self, label: u32) -> Self {
        Self {
            flags: self.flags | label & MARKS,
            ..self
        }
    }

    /// With what the rules that matched say of recording what they allow ([`level`], in the lowest bits); where they say
    /// nothing the policy's `bit` stands.
    #[inline(always)]
    const fn heard(self, level: u32, bit: u32) -> Self {
        // VERIFIER: all kernels: without a branch, of which every way would be followed.
        let said = (level & level::QUIET).wrapping_neg() & bit;
        let quiet = said & (level >> 1 & 1).wrapping_sub(1);
        Self {
            flags: self.flags & !said | quiet,
            ..self
        }
    }

    /// Whether it is allowed, and nobody wants a record of it. `bit` says so for the kind of action.
    #[inline(always)]
    pub const fn is_unheard(self, bit: u32) -> bool {
        self.is_allowed() && self.flags & bit != 0
    }

    /// Nothing stands in the way.
    #[inline(always)]
    pub const fn is_allowed(self) -> bool {
        self.verdict == Verdict::Allow as u32
    }
}

/// The policy of one agent, found once for a whole decision.
#[derive(Clone, Copy)]
pub enum Policy {
    /// In a small table.
    Small(Table<SMALL_TABLE>),
    /// In a large table.
    Large(Table<LARGE_TABLE>),
}

impl Policy {
    /// The table with its header in reach, whatever its size: both begin alike.
    #[inline(always)]
    pub const fn head(self) -> Table<SMALL_TABLE> {
        match self {
            Self::Small(table) => table,
            // VERIFIER: all kernels: it looks at the memory that is there, and a header lies in both.
            Self::Large(table) => Table(table.0),
        }
    }

    /// Flags of the policy.
    #[inline(always)]
    pub fn flags(self) -> u32 {
        self.head().field(offset_of!(TableHeader, flags))
    }
}

/// The policy in force for an agent.
///
/// Small before large: the daemon installs the new table first and removes the old one of the other
/// size only after every program that may have missed it has ended.
#[inline(always)]
pub fn policy(agent: u32) -> Option<Policy> {
    // A key of its own on the stack: a promoted `&0` may be merged with a global that the loader sets.
    let key = core::hint::black_box(0u32);
    if let Some(table) = POLICIES_SMALL.get_value(agent, &key) {
        return Some(Policy::Small(Table(core::ptr::from_ref(table).cast())));
    }
    POLICIES_LARGE
        .get_value(agent, &key)
        .map(|table| Policy::Large(Table(core::ptr::from_ref(table).cast())))
}

/// Runs the same code on the table, whatever its size.
macro_rules! with_table {
    ($policy:expr, $table:ident => $body:expr) => {
        match $policy {
            $crate::decide::Policy::Small($table) => $body,
            $crate::decide::Policy::Large($table) => $body,
        }
    };
}
pub(crate) use with_table;

/// Starts a decision: allowed by nothing yet, with the policy's generation and flags.
#[inline(always)]
fn begin<const BYTES: usize>(table: Table<BYTES>) -> Decision {
    Decision {
        verdict: Verdict::Deny as u32,
        reason: Reason::TableDamaged as u32,
        generation: table.field(offset_of!(TableHeader, generation)),
        flags: table.field(offset_of!(TableHeader, flags)),
    }
}

/// The two-bit verdict of a label, or 0 for none.
#[inline(always)]
const fn opinion(label: u32, shift: u32) -> u32 {
    (label >> shift) & 3
}

#[inline(always)]
const fn stricter(a: u32, b: u32) -> u32 {
    if a >= b { a } else { b }
}

/// Turns an opinion into a decision: the section's default where there is none.
#[inline(always)]
fn settle(decision: Decision, opinion: u32, default: u32) -> Decision {
    if opinion != 0 {
        Decision {
            verdict: opinion,
            reason: Reason::Rule as u32,
            ..decision
        }
    } else if default != 0 {
        Decision {
            verdict: default,
            reason: Reason::Default as u32,
            ..decision
        }
    } else {
        // A table without a default is damaged: deny.
        decision
    }
}

/// The lower bits of the verdicts on which both automata speak.
const LOWER: u32 = 1 << path_label::READ
    | 1 << path_label::WRITE
    | 1 << path_label::EXEC
    | 1 << path_label::CONNECT;

/// The stricter of the labels of both automata, for each access.
///
/// All verdicts at once and without a branch, of which the verifier would follow every combination: of two bits the
/// greater has the upper bit of either, and the lower bit of those whose upper bit is not below the other's.
#[inline(always)]
const fn combined((a, b): (u32, u32)) -> u32 {
    let lower = a & (a >> 1 | !(b >> 1)) | b & (b >> 1 | !(a >> 1));
    lower & LOWER
        | (a | b) & LOWER << 1
        // Abstract names are all anchored.
        | a & 3 << path_label::LISTEN
        | (a | b) & (path_label::EXEC_BY_COMMAND | MARKS | level::PATHS)
}

/// The combined label of a path in a buffer of `SIZE` bytes: the stricter of both automata for each access.
#[inline(never)]
fn label_within<const BYTES: usize, const SIZE: usize>(
    table: Table<BYTES>,
    path: *const u8,
    len: u32,
) -> u32 {
    let anchored = table.field(offset_of!(TableHeader, anchored));
    if table.field(offset_of!(TableHeader, flags)) & flags::ONE_WALK != 0 {
        return table.walk_path::<ONE, SIZE>(path, len, anchored, 0).0;
    }
    let floating = table.field(offset_of!(TableHeader, floating));
    combined(table.walk_path::<BOTH, SIZE>(path, len, anchored, floating))
}

/// The same for any path.
#[inline(always)]
pub fn label_of<const BYTES: usize>(table: Table<BYTES>, path: *const u8, len: u32) -> u32 {
    label_within::<BYTES, PATH_BUFFER>(table, path, len)
}

/// Where the automata stand behind a path. States of the smallest automaton are the same exactly where
/// the same rules apply to everything that may follow.
#[derive(Clone, Copy)]
pub struct Place {
    states: (u32, u32),
    one_walk: bool,
}

/// The place of a path.
#[inline(never)]
pub fn place_of<const BYTES: usize>(table: Table<BYTES>, path: *const u8, len: u32) -> u64 {
    let anchored = table.field(offset_of!(TableHeader, anchored));
    let floating = table.field(offset_of!(TableHeader, floating));
    let one_walk = table.field(offset_of!(TableHeader, flags)) & flags::ONE_WALK != 0;
    let states = if one_walk {
        table.walk_states::<ONE, PATH_BUFFER>(path, len, anchored, 0)
    } else {
        table.walk_states::<BOTH, PATH_BUFFER>(path, len, anchored, floating)
    };
    u64::from(states.0) << 32 | u64::from(states.1)
}

impl Place {
    /// From what [`place_of`] gave.
    #[inline(always)]
    pub fn new<const BYTES: usize>(table: Table<BYTES>, packed: u64) -> Self {
        Self {
            states: ((packed >> 32) as u32, packed as u32),
            one_walk: table.field(offset_of!(TableHeader, flags)) & flags::ONE_WALK != 0,
        }
    }

    /// The label there.
    #[inline(always)]
    pub fn label<const BYTES: usize>(self, table: Table<BYTES>) -> u32 {
        let a = table.word(self.states.0);
        if self.one_walk {
            a
        } else {
            combined((a, table.word(self.states.1)))
        }
    }

    /// Whether the same rules apply below both.
    #[inline(always)]
    pub fn same_below<const BYTES: usize>(self, other: Self, table: Table<BYTES>) -> bool {
        let (a, b) = (
            table.after(b'/', self.states),
            table.after(b'/', other.states),
        );
        a.0 == b.0 && (self.one_walk || a.1 == b.1)
    }
}

/// The same for a path of less than `SHORT_PATH` bytes, in a buffer of that size. Most policies need one
/// walk with few classes, and that is made here: a call would save and restore half of the registers.
#[inline(always)]
pub fn label_of_short<const BYTES: usize>(table: Table<BYTES>, path: *const u8, len: u64) -> u32 {
    if table.field(offset_of!(TableHeader, flags)) & flags::NARROW != 0 {
        let anchored = table.field(offset_of!(TableHeader, anchored));
        return table.walk_short(path, len, anchored);
    }
    label_within::<BYTES, SHORT_PATH>(table, path, len as u32)
}

/// Which automata a table has.
#[inline(always)]
pub fn automata<const BYTES: usize>(table: Table<BYTES>) -> u64 {
    table.long(offset_of!(TableHeader, automata))
}

/// Decides on reading, writing or both.
#[inline(always)]
pub fn file<const BYTES: usize>(
    table: Table<BYTES>,
    path: *const u8,
    len: u32,
    wanted: u32,
) -> Decision {
    file_labelled(table, label_of(table, path, len), wanted)
}

/// The same for a label that is known already.
#[inline(always)]
pub fn file_labelled<const BYTES: usize>(table: Table<BYTES>, label: u32, wanted: u32) -> Decision {
    file_judged(table, label, wanted, |decision, shift| {
        decision.heard(label >> (shift + level::ABOVE), flags::QUIET_OPENS)
    })
}

/// The same where the policy records opens, and [`is_hushed`] is asked whether its rules do.
#[inline(always)]
pub fn file_aloud<const BYTES: usize>(table: Table<BYTES>, label: u32, wanted: u32) -> Decision {
    file_judged(table, label, wanted, |decision, _| decision)
}

/// Whether rules say, and none of them otherwise, that what is allowed with this label is not to be recorded: most say
/// nothing, and that is one test.
#[inline(always)]
pub const fn is_hushed(label: u32, wanted: u32) -> bool {
    const QUIET: (u32, u32) = (
        level::QUIET << (path_label::READ + level::ABOVE),
        level::QUIET << (path_label::WRITE + level::ABOVE),
    );
    if label & (QUIET.0 | QUIET.1) == 0 {
        return false;
    }
    // The upper bit of a level that is there: somebody wants a record.
    let quiet = label & !(label >> 1);
    let both = match wanted {
        ONLY_READ => QUIET.0,
        ONLY_WRITE => QUIET.1,
        _ => QUIET.0 | QUIET.1,
    };
    quiet & both == both
}

const ONLY_READ: u32 = access::READ as u32;
const ONLY_WRITE: u32 = access::WRITE as u32;

#[inline(always)]
fn file_judged<const BYTES: usize>(
    table: Table<BYTES>,
    label: u32,
    wanted: u32,
    heard: impl Fn(Decision, u32) -> Decision,
) -> Decision {
    const _: () = assert!(path_label::READ == 0 && path_label::WRITE == ONLY_WRITE);
    let decision = begin(table).marked(label);
    let default = table.field(offset_of!(TableHeader, path_default));
    let of = |shift| {
        let settled = settle(decision, opinion(label, shift), opinion(default, shift));
        heard(settled, shift)
    };
    if wanted == ONLY_READ || wanted == ONLY_WRITE {
        // The bit of one access is where its verdict begins.
        return of(wanted & ONLY_WRITE);
    }
    // Both, or an open for neither (access mode 3), which the kernel permits for ioctl: the stricter.
    let (read, write) = (of(path_label::READ), of(path_label::WRITE));
    let flags = read.flags & write.flags;
    if write.verdict > read.verdict || (write.verdict == read.verdict && write.reason < read.reason)
    {
        Decision { flags, ..write }
    } else {
        Decision { flags, ..read }
    }
}

/// Decides on starting a program before its arguments are known. Allowed may mean "wait for the
/// arguments": the decision with them always follows.
#[inline(always)]
pub fn program<const BYTES: usize>(table: Table<BYTES>, path: *const u8, len: u32) -> Decision {
    program_labelled(table, label_of(table, path, len))
}

/// The same for a label that is known already.
#[inline(always)]
pub fn program_labelled<const BYTES: usize>(table: Table<BYTES>, label: u32) -> Decision {
    let decision = begin(table).marked(label);
    let exec = opinion(label, path_label::EXEC);
    if exec == 0 && label & path_label::EXEC_BY_COMMAND != 0 {
        return decision.with(Verdict::Allow, Reason::Rule);
    }
    settle(decision, exec, default_of(table, path_label::EXEC))
}

/// Whether a rule on command lines may have an opinion on a program with this label. Where the path
/// alone is refused, the label does not say.
#[inline(always)]
pub const fn asks_for_arguments(label: u32) -> bool {
    label & path_label::EXEC_BY_COMMAND != 0
        || opinion(label, path_label::EXEC) >= Verdict::Ask as u32
}

/// The default for one access to a path.
#[inline(always)]
fn default_of<const BYTES: usize>(table: Table<BYTES>, shift: u32) -> u32 {
    opinion(table.field(offset_of!(TableHeader, path_default)), shift)
}

/// A command line in scratch memory: `path_len` bytes of path, then the arguments, `argv[0]` first.
#[derive(Clone, Copy)]
pub struct Command {
    /// Where the path begins.
    pub buffer: *const u8,
    /// Bytes of path.
    pub path_len: u32,
    /// Bytes behind the path that hold arguments (and perhaps more).
    pub limit: u32,
    /// `left` says how many arguments there are; the decision says in `used` how many bytes they take.
    pub walk: *mut Walk,
}

/// Decides on starting a program of whose arguments no rule speaks.
#[inline(always)]
pub fn started<const BYTES: usize>(table: Table<BYTES>, label: u32) -> Decision {
    settle(
        begin(table),
        opinion(label, path_label::EXEC),
        default_of(table, path_label::EXEC),
    )
}

/// Decides on starting a program whose path has this label with these arguments.
#[inline(always)]
pub fn command<const BYTES: usize>(table: Table<BYTES>, label: u32, command: Command) -> Decision {
    let decision = begin(table);
    let mut verdict = opinion(label, path_label::EXEC);
    let walk = command.walk;
    // Without rules on them the walk still measures the arguments, for the record.
    // SAFETY: the caller owns the walk.
    let (left, state) = unsafe {
        let count = core::ptr::read_volatile(&raw const (*walk).left);
        (*walk).state = u64::from(table.field(offset_of!(TableHeader, command)));
        table.walk_program(command.buffer, command.path_len, walk);
        (*walk).from = u64::from(command.path_len);
        (*walk).left = count;
        (*walk).used = 0;
        table.walk_arguments(command.buffer, command.limit, walk);
        (
            core::ptr::read_volatile(&raw const (*walk).left),
            core::ptr::read_volatile(&raw const (*walk).state),
        )
    };
    if decision.flags & flags::HAS_COMMANDS != 0 && asks_for_arguments(label) {
        if left != 0 {
            return decision.with(Verdict::Deny, Reason::ArgumentsTooLong);
        }
        verdict = stricter(verdict, opinion(table.word(state as u32), 0));
    }
    settle(decision, verdict, default_of(table, path_label::EXEC))
}

/// The command automaton's state behind a program's path.
#[inline(always)]
pub fn behind_path<const BYTES: usize>(
    table: Table<BYTES>,
    path: *const u8,
    len: u32,
    walk: *mut Walk,
) -> u32 {
    // SAFETY: the caller owns the walk.
    unsafe {
        (*walk).state = u64::from(table.field(offset_of!(TableHeader, command)));
        table.walk_program(path, len, walk);
        core::ptr::read_volatile(&raw const (*walk).state) as u32
    }
}

/// Decides on a script by the arguments that its interpreter was given: the last `script.count - 1` of
/// `count` are the script's own. Its `argv[0]` reaches nobody and is taken as empty.
#[inline(always)]
pub fn script<const BYTES: usize>(
    table: Table<BYTES>,
    script: &Script,
    command: Command,
    count: u32,
) -> Decision {
    let decision = begin(table);
    let changed = decision.with(Verdict::Deny, Reason::ArgumentsChanged);
    let own = u64::from(script.count).wrapping_sub(1);
    // States of another policy say nothing; neither do arguments that are fewer than the script was given.
    if script.generation != decision.generation || own >= u64::from(count) {
        return changed;
    }
    let walk = command.walk;
    // SAFETY: the caller owns the walk.
    let (left, state) = unsafe {
        (*walk).from = u64::from(command.path_len);
        (*walk).left = u64::from(count) - own;
        (*walk).used = 0;
        table.walk_arguments(command.buffer, command.limit, walk);
        if core::ptr::read_volatile(&raw const (*walk).left) != 0 {
            return decision.with(Verdict::Deny, Reason::ArgumentsTooLong);
        }
        let skipped = core::ptr::read_volatile(&raw const (*walk).used) as u32;
        (*walk).from = u64::from(command.path_len) + u64::from(skipped);
        (*walk).left = own;
        (*walk).used = 0;
        (*walk).state = u64::from(table.separate(script.state));
        let limit =
            crate::bound::at_most(command.limit.saturating_sub(skipped), MAX_COMMAND as u32);
        table.walk_arguments(command.buffer, limit, walk);
        (
            core::ptr::read_volatile(&raw const (*walk).left),
            core::ptr::read_volatile(&raw const (*walk).state),
        )
    };
    if left != 0 {
        return decision.with(Verdict::Deny, Reason::ArgumentsTooLong);
    }
    let verdict = stricter(
        opinion(script.label, path_label::EXEC),
        opinion(table.word(state as u32), 0),
    );
    let judged = settle(decision, verdict, default_of(table, path_label::EXEC));
    if judged.is_allowed() || judged.verdict == Verdict::Ask as u32 && script.approved != 0 {
        // What is asked about is compared with what was granted.
        judged
    } else {
        changed
    }
}

/// Decides on mapping a file so that it can be executed, `None` where it is a library like any other: what
/// may not be executed by a rule may not be mapped either, and what the agent can write has to be
/// executable for it.
#[inline(always)]
pub fn mapped<const BYTES: usize>(table: Table<BYTES>, label: u32) -> Option<Decision> {
    let decision = begin(table);
    let exec = opinion(label, path_label::EXEC);
    if exec >= Verdict::Ask as u32 {
        return Some(settle(decision, exec, 0));
    }
    let permitted = exec == Verdict::Allow as u32
        || label & path_label::EXEC_BY_COMMAND != 0
        || default_of(table, path_label::EXEC) == Verdict::Allow as u32;
    if permitted || !file_labelled(table, label, u32::from(access::WRITE)).is_allowed() {
        return None;
    }
    Some(settle(decision, 0, default_of(table, path_label::EXEC)))
}

/// What gets another name, as far as it makes a difference.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// A folder, with all that is in it.
    Folder,
    /// A Unix-domain socket, which is reached by its name.
    Socket,
    /// Anything else.
    Other,
}

/// Whether a rule asks about writing the name.
#[inline(always)]
pub fn asks_to_write<const BYTES: usize>(table: Table<BYTES>, place: Place) -> bool {
    let label = place.label(table);
    file_labelled(table, label, u32::from(access::WRITE)).verdict == Verdict::Ask as u32
}

/// Decides on giving an object at `from` the name `to`. Where a rule asks about writing them, `approved` is the number of
/// the grant for that, or 0.
///
/// # Safety
/// `kept` is live memory in a map's value, owned by the caller.
#[inline(always)]
pub unsafe fn moved<const BYTES: usize>(
    table: Table<BYTES>,
    (from, to): (Place, Place),
    what: Moved,
    approved: u32,
    kept: *mut Decision,
) -> Decision {
    // SAFETY: the caller's promise.
    let forget = |decision| unsafe { forget(kept, decision) };
    let (old, new) = (from.label(table), to.label(table));
    let leaves = forget(file_labelled(table, old, u32::from(access::WRITE)));
    let arrives = forget(file_labelled(table, new, u32::from(access::WRITE)));
    let mut worse = if arrives.verdict > leaves.verdict {
        arrives
    } else {
        leaves
    };
    if worse.verdict == Verdict::Ask as u32 && approved != 0 {
        worse = crate::approval::approved(worse, approved);
    }
    let flags = leaves.flags & arrives.flags | (leaves.flags | arrives.flags) & MARKS;
    let worse = forget(Decision { flags, ..worse });
    if !worse.is_allowed() {
        return worse;
    }
    if matches!(what, Moved::Folder) && !from.same_below(to, table) {
        return worse.with(Verdict::Deny, Reason::RulesDiffer);
    }
    // What could be read could be copied to the new name all the same.
    if !file_labelled(table, old, u32::from(access::READ)).is_allowed()
        && (file_labelled(table, new, u32::from(access::READ)).is_allowed()
            || program_labelled(table, new).is_allowed())
    {
        return worse.with(Verdict::Deny, Reason::NameWidens);
    }
    if matches!(what, Moved::Socket)
        && !unix(table, old).is_allowed()
        && unix(table, new).is_allowed()
    {
        return worse.with(Verdict::Deny, Reason::NameWidens);
    }
    worse
}

/// Decides on something that the `kernel` section speaks of.
#[inline(always)]
pub fn lock<const BYTES: usize>(table: Table<BYTES>, lock: u32) -> Decision {
    let decision = begin(table);
    if table.field(offset_of!(TableHeader, kernel)) >> (lock & 31) & 1 != 0 {
        decision.with(Verdict::Allow, Reason::Default)
    } else {
        decision.with(Verdict::Deny, Reason::Locked)
    }
}

/// Decides on a socket destination of an internet family. `name` becomes the number of the name that opened it,
/// where no rule speaks of it.
#[inline(always)]
pub fn destination<const BYTES: usize>(
    table: Table<BYTES>,
    (agent, session): (u32, u32),
    destination: &Destination,
    name: &mut u32,
) -> Decision {
    let decision = begin(table);
    if destination.protocol > 255 {
        return decision.with(Verdict::Deny, Reason::ProtocolNotPermitted);
    }
    let reached = reached(words(destination));
    let state = table.walk_destination(reached, destination.protocol, destination.port);
    let decision = decision.marked(state);
    if decision.flags & flags::HAS_NAMES != 0 && opinion(state, network_label::CONNECT) == 0 {
        let address = Address {
            agent,
            session,
            address: bytes(reached),
        };
        let found = opened(
            &address,
            u64::from(destination.port),
            u64::from(destination.protocol),
        );
        if found != 0 {
            *name = found as u32;
            let said = (found >> 32) as u32;
            return decision
                .marked(said)
                .heard(said, flags::QUIET)
                .with(Verdict::Allow, Reason::Opened);
        }
    }
    settle(
        decision,
        opinion(state, network_label::CONNECT),
        network_default(table, network_label::CONNECT),
    )
    .heard(
        state >> (network_label::CONNECT + level::ABOVE),
        flags::QUIET,
    )
}

/// Decides on listening at an address of an internet family.
#[inline(always)]
pub fn listen<const BYTES: usize>(table: Table<BYTES>, at: &Destination) -> Decision {
    let decision = begin(table);
    if at.protocol > 255 {
        return decision.with(Verdict::Deny, Reason::ProtocolNotPermitted);
    }
    let state = table.walk_destination(words(at), at.protocol, at.port);
    settle(
        decision,
        opinion(state, network_label::LISTEN),
        network_default(table, network_label::LISTEN),
    )
    .heard(
        state >> (network_label::LISTEN + level::ABOVE),
        flags::QUIET,
    )
}

#[inline(always)]
fn network_default<const BYTES: usize>(table: Table<BYTES>, shift: u32) -> u32 {
    opinion(table.field(offset_of!(TableHeader, network_default)), shift)
}

/// Decides on reaching the Unix-domain socket whose name has this label.
#[inline(always)]
pub fn unix<const BYTES: usize>(table: Table<BYTES>, label: u32) -> Decision {
    let decision = settle(
        begin(table),
        opinion(label, path_label::CONNECT),
        network_default(table, network_label::UNIX_CONNECT),
    )
    .heard(label >> (path_label::CONNECT + level::ABOVE), flags::QUIET);
    if decision.reason == Reason::Default as u32 && !decision.is_allowed() {
        return Decision {
            reason: Reason::UnixSocket as u32,
            ..decision
        };
    }
    decision
}

/// Decides on taking the abstract name that has this label.
#[inline(always)]
pub fn abstract_name<const BYTES: usize>(table: Table<BYTES>, label: u32) -> Decision {
    settle(
        begin(table),
        opinion(label, path_label::LISTEN),
        network_default(table, network_label::LISTEN),
    )
    .heard(label >> (path_label::LISTEN + level::ABOVE), flags::QUIET)
}

/// Decides on something that depends on no rule, so that generation and mode are right.
#[inline(always)]
pub fn fixed<const BYTES: usize>(
    table: Table<BYTES>,
    verdict: Verdict,
    reason: Reason,
) -> Decision {
    begin(table).with(verdict, reason)
}
