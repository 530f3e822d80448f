//! The one home of verifier shaping: bounded reads and the walks of the automata.
//! Nothing here knows what a verdict means.

use agentguard_common::record::{Destination, MAPPED};
use agentguard_common::table::{
    COMMAND_CLASSES, MAX_COMMAND, NARROW_CLASSES, NETWORK_CLASSES, PATH_CLASSES, TableHeader,
};
use aya_ebpf::helpers::generated::bpf_loop;
use core::mem::{MaybeUninit, offset_of};

use crate::maps::{PATH_BUFFER, SHORT_PATH, Walk};

/// A walk over both automata of paths.
pub const BOTH: u8 = 0;
/// Over one.
pub const ONE: u8 = 1;
/// Over one whose columns fit a byte each ([`flags::NARROW`](agentguard_common::table::flags::NARROW)): nothing
/// has to be scaled, which saves an instruction for each byte.
pub const NARROW: u8 = 2;

/// Bytes of a path that one iteration of the walk takes. Twice as many save some instructions for each path of more
/// than that, and double what the kernel verifies for each way that leads to a walk.
pub const STRIDE: usize = 16;

/// A policy table of a size known at compile time, which must be a power of two.
#[derive(Clone, Copy)]
pub struct Table<const BYTES: usize>(pub *const u8);

impl<const BYTES: usize> Table<BYTES> {
    /// VERIFIER: all kernels: the mask proves that the word lies inside the map's value and is aligned.
    const MASK: u32 = (BYTES - 4) as u32;

    /// The word at a byte offset, which wraps at the size of the table.
    #[inline(always)]
    pub fn word(self, offset: u32) -> u32 {
        // SAFETY: the mask keeps the offset inside the value and a multiple of four.
        unsafe { *self.0.add((offset & Self::MASK) as usize).cast::<u32>() }
    }

    /// A word of the header, at a constant offset.
    #[inline(always)]
    pub fn field(self, offset: usize) -> u32 {
        // SAFETY: header offsets are constants below the size of the smallest table.
        unsafe { *self.0.add(offset).cast::<u32>() }
    }

    /// A long word of the header.
    #[inline(always)]
    pub fn long(self, offset: usize) -> u64 {
        // SAFETY: as above; it is aligned for it.
        unsafe { *self.0.add(offset).cast::<u64>() }
    }

    /// Class of a byte, as the distance of its word from the start of a row.
    #[inline(always)]
    fn class(self, map: usize, byte: u8) -> u32 {
        // SAFETY: class maps are constants plus at most 510, inside the smallest table.
        u32::from(unsafe { *self.0.add(map + usize::from(byte) * 2).cast::<u16>() })
    }

    /// The byte of a path at `K`, by one of the ways to walk: [`BOTH`], [`ONE`] or [`NARROW`].
    ///
    /// Written by hand: LLVM adds the offset to a copy of the pointer, where the pointer can be added to
    /// the offset that nobody needs any more. That is two instructions of ten, for each byte of each path.
    #[inline(always)]
    fn step_path<const WALK: u8, const K: usize>(self, path: *const u8, a: &mut u64, b: &mut u64) {
        // SAFETY: the caller bounds `path + K` by the size of the buffer; class maps lie inside the smallest
        // table; the mask keeps states inside the value and aligned.
        unsafe {
            match WALK {
                NARROW => core::arch::asm!(
                    "{class} = *(u8 *)({path} + {k})",
                    "{class} += {table}",
                    "{class} = *(u8 *)({class} + {classes})",
                    "{a} += {class}",
                    "{a} &= {mask}",
                    "{a} += {table}",
                    "{a} = *(u32 *)({a} + 0)",
                    class = out(reg) _, path = in(reg) path, table = in(reg) self.0,
                    a = inout(reg) *a,
                    k = const K, classes = const NARROW_CLASSES, mask = const Self::MASK,
                    options(readonly, nostack, preserves_flags),
                ),
                ONE => core::arch::asm!(
                    "{class} = *(u8 *)({path} + {k})",
                    "{class} <<= 1",
                    "{class} += {table}",
                    "{class} = *(u16 *)({class} + {classes})",
                    "{a} += {class}",
                    "{a} &= {mask}",
                    "{a} += {table}",
                    "{a} = *(u32 *)({a} + 0)",
                    class = out(reg) _, path = in(reg) path, table = in(reg) self.0,
                    a = inout(reg) *a,
                    k = const K, classes = const PATH_CLASSES, mask = const Self::MASK,
                    options(readonly, nostack, preserves_flags),
                ),
                _ => core::arch::asm!(
                    "{class} = *(u8 *)({path} + {k})",
                    "{class} <<= 1",
                    "{class} += {table}",
                    "{class} = *(u16 *)({class} + {classes})",
                    "{a} += {class}",
                    "{b} += {class}",
                    "{a} &= {mask}",
                    "{b} &= {mask}",
                    "{a} += {table}",
                    "{b} += {table}",
                    "{a} = *(u32 *)({a} + 0)",
                    "{b} = *(u32 *)({b} + 0)",
                    class = out(reg) _, path = in(reg) path, table = in(reg) self.0,
                    a = inout(reg) *a, b = inout(reg) *b,
                    k = const K, classes = const PATH_CLASSES, mask = const Self::MASK,
                    options(readonly, nostack, preserves_flags),
                ),
            }
        }
    }

    /// `N` bytes of a path from `at`, without a branch; `N` is a power of two up to 128.
    #[inline(always)]
    fn step_paths<const WALK: u8, const N: usize>(
        self,
        path: *const u8,
        at: usize,
        a: &mut u64,
        b: &mut u64,
    ) {
        // SAFETY: the caller bounds `at + N` by the size of the buffer.
        let path = unsafe { path.add(at) };
        // Written out, because LLVM rolls longer loops up again.
        macro_rules! steps {
            ($from:expr; $($k:literal)+) => {
                $(if $from + $k < N {
                    self.step_path::<WALK, { $from + $k }>(path, a, b);
                })+
            };
        }
        macro_rules! sixteen {
            ($($from:literal)+) => { $(steps!($from; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);)+ };
        }
        sixteen!(0 16 32 48 64 80 96 112);
    }

    /// Walks two automata (or only `a`) over a path at once; gives the labels of the states they end in.
    #[inline(always)]
    pub fn walk_path<const WALK: u8, const SIZE: usize>(
        self,
        path: *const u8,
        len: u32,
        a: u32,
        b: u32,
    ) -> (u32, u32) {
        let (a, b) = self.walk_states::<WALK, SIZE>(path, len, a, b);
        (self.word(a), if WALK == BOTH { self.word(b) } else { 0 })
    }

    /// The states behind one more byte of a path.
    #[inline(always)]
    pub fn after(self, byte: u8, states: (u32, u32)) -> (u32, u32) {
        let (mut a, mut b) = (u64::from(states.0), u64::from(states.1));
        let byte = core::hint::black_box(byte);
        self.step_path::<BOTH, 0>(&raw const byte, &mut a, &mut b);
        (a as u32, b as u32)
    }

    /// Walks two automata (or only `a`) over a path in a buffer of `SIZE` bytes at once; gives the states they end in.
    ///
    /// Whole strides go through a loop, the rest in blocks of 8, 4, 2 and 1 bytes, so that most bytes cost
    /// no branch.
    ///
    /// VERIFIER: all kernels: a loop helper (the kernel inlines it). A plain loop of 4,096 steps is
    /// verified step by step in each place that calls it, and its states are compared with each other:
    /// minutes under emulation, and over the limit of a million instructions. The offset of each block
    /// comes from `len` alone, so that the ways to a block are pruned to one.
    #[inline(always)]
    pub fn walk_states<const WALK: u8, const SIZE: usize>(
        self,
        path: *const u8,
        len: u32,
        a: u32,
        b: u32,
    ) -> (u32, u32) {
        let (mut a, mut b) = (u64::from(a), u64::from(b));
        if len >= STRIDE as u32 {
            let mut pair = Pair {
                table: self.0,
                path,
                a,
                b,
            };
            // SAFETY: the callback has the signature that the helper expects, and the context outlives the call.
            unsafe {
                bpf_loop(
                    len / STRIDE as u32,
                    step_pair::<BYTES, WALK, SIZE> as *mut core::ffi::c_void,
                    core::ptr::from_mut(&mut pair).cast(),
                    0,
                );
            }
            (a, b) = (pair.a, pair.b);
        }
        let bits = apart(u64::from(len), SIZE as u64 - 1);
        macro_rules! rest {
            ($($n:literal)+) => {
                $(if bits & $n != 0 {
                    // All higher bits of the length have been walked.
                    let at = len & (SIZE as u32 - 1) & !(2 * $n - 1);
                    self.step_paths::<WALK, $n>(path, at as usize, &mut a, &mut b);
                })+
            };
        }
        rest!(8 4 2 1);
        (a as u32, b as u32)
    }

    /// Walks a narrow automaton over a path of less than [`SHORT_PATH`] bytes in a buffer of that size, without a loop;
    /// gives the label of the state it ends in.
    ///
    /// A pointer that moves along takes two instructions less for each block than an offset that is made
    /// from `len`. The verifier follows every combination of blocks, which are few here.
    #[inline(always)]
    pub fn walk_short(self, path: *const u8, len: u64, state: u32) -> u32 {
        self.walk_up_to::<{ SHORT_PATH as u64 }>(path, len, state)
    }

    /// The same for `len` bytes from `path` on, which are less than `MAX`, a power of two up to [`SHORT_PATH`].
    #[inline(always)]
    pub fn walk_up_to<const MAX: u64>(self, path: *const u8, len: u64, state: u32) -> u32 {
        let (mut a, mut b) = (u64::from(state), 0);
        let (mut path, mut left) = (path, apart(len, MAX - 1));
        macro_rules! rest {
            ($($n:literal)+) => {
                $(if MAX > $n && left >= $n {
                    self.step_paths::<NARROW, $n>(path, 0, &mut a, &mut b);
                    // SAFETY: still inside the buffer, or at its end.
                    path = unsafe { path.add($n) };
                    left -= $n;
                })+
            };
        }
        rest!(128 64 32 16 8 4 2 1);
        self.word(a as u32)
    }

    /// Walks the command automaton over the program's path and its separator.
    #[inline(always)]
    pub fn walk_program(self, path: *const u8, len: u32, walk: *mut Walk) {
        // SAFETY: the caller owns the walk.
        unsafe {
            (*walk).from = 0;
            // One more than any path has: the path itself contains no separator.
            (*walk).left = 1;
        }
        self.walk_arguments(path, len, walk);
        // SAFETY: as above.
        unsafe {
            let state = core::ptr::read_volatile(&raw const (*walk).state) as u32;
            (*walk).state = u64::from(self.separate(state));
        }
    }

    /// The command automaton's state behind a separator.
    #[inline(always)]
    pub fn separate(self, state: u32) -> u32 {
        self.word(state + self.class(COMMAND_CLASSES, 0))
    }

    /// The byte of a destination that is `FROM` bits up in a word.
    #[inline(always)]
    fn step_destination<const FROM: u32>(self, word: u64, state: &mut u64) {
        // SAFETY: a class is a word of a map that lies inside the smallest table; the mask keeps the state inside the
        // value and aligned.
        unsafe {
            macro_rules! step {
                ($scale:literal, $by:expr) => {
                    core::arch::asm!(
                        "{class} = {word}",
                        $scale,
                        "{class} &= 510",
                        "{class} += {table}",
                        "{class} = *(u16 *)({class} + {classes})",
                        "{state} += {class}",
                        "{state} &= {mask}",
                        "{state} += {table}",
                        "{state} = *(u32 *)({state} + 0)",
                        class = out(reg) _, word = in(reg) word, table = in(reg) self.0,
                        state = inout(reg) *state, by = const $by,
                        classes = const NETWORK_CLASSES, mask = const Self::MASK,
                        options(readonly, nostack, preserves_flags),
                    )
                };
            }
            // Twice the byte.
            if FROM == 0 {
                step!("{class} <<= {by}", 1);
            } else {
                step!("{class} >>= {by}", FROM.saturating_sub(1));
            }
        }
    }

    /// Walks the network automaton over a destination: its address in two words, as they lie in memory, its protocol,
    /// which must be less than 256, and its port. Gives the label of the state it ends in.
    ///
    /// Of an address of IPv4 the table knows where the first twelve bytes lead.
    #[inline(always)]
    pub fn walk_destination(self, [first, second]: [u64; 2], protocol: u16, port: u16) -> u32 {
        let is_mapped = first == 0 && second as u32 == MAPPED;
        let mut state = u64::from(if is_mapped {
            self.field(offset_of!(TableHeader, mapped))
        } else {
            self.field(offset_of!(TableHeader, network))
        });
        macro_rules! steps {
            ($word:expr; $($from:literal)+) => {
                $(self.step_destination::<$from>($word, &mut state);)+
            };
        }
        if !is_mapped {
            steps!(first; 0 8 16 24 32 40 48 56);
            steps!(second; 0 8 16 24);
        }
        steps!(second; 32 40 48 56);
        let rest = u64::from(protocol) | u64::from(port.swap_bytes()) << 8;
        steps!(rest; 0 8 16);
        self.word(state as u32)
    }

    /// Walks the command automaton over `walk.left` NUL-terminated arguments, at most `limit` bytes,
    /// that begin at `buffer[walk.from]`. `walk.left` is 0 afterwards if all were there.
    #[inline(always)]
    pub fn walk_arguments(self, buffer: *const u8, limit: u32, walk: *mut Walk) {
        let mut context = Context {
            table: self.0,
            buffer,
            walk,
        };
        // SAFETY: the callback has the signature that the helper expects, and the context outlives the call.
        unsafe {
            bpf_loop(
                limit,
                step::<BYTES> as *mut core::ffi::c_void,
                core::ptr::from_mut(&mut context).cast(),
                0,
            );
        }
    }
}

/// What the loop over a path carries.
#[repr(C)]
struct Pair {
    table: *const u8,
    path: *const u8,
    a: u64,
    b: u64,
}

/// One stride of a path. Returns 1 to stop.
unsafe extern "C" fn step_pair<const BYTES: usize, const WALK: u8, const SIZE: usize>(
    i: u64,
    pair: *mut Pair,
) -> u64 {
    if i >= (SIZE / STRIDE) as u64 {
        return 1;
    }
    // SAFETY: the helper hands back the pointer that it was given.
    let pair = unsafe { &mut *pair };
    let table = Table::<BYTES>(pair.table);
    let (mut a, mut b) = (pair.a, pair.b);
    // Bounded just above.
    table.step_paths::<WALK, STRIDE>(pair.path, i as usize * STRIDE, &mut a, &mut b);
    pair.a = a;
    pair.b = b;
    0
}

/// What the loop over arguments is handed: pointers only, so that a spill keeps its type.
#[repr(C)]
struct Context {
    table: *const u8,
    buffer: *const u8,
    walk: *mut Walk,
}

/// Largest offset of a byte of an argument in its buffer.
const LAST: u64 = (PATH_BUFFER + MAX_COMMAND - 1) as u64;

/// One byte of the arguments. Returns 1 to stop.
///
/// VERIFIER: 5.17: a loop helper, because 32,768 unrolled steps would exceed the limit of a program.
unsafe extern "C" fn step<const BYTES: usize>(i: u64, context: *mut Context) -> u64 {
    // SAFETY: the helper hands back the pointer that it was given; the caller owns the walk.
    let (context, walk) = unsafe { (&*context, &mut *(*context).walk) };
    if walk.left == 0 {
        return 1;
    }
    let at = walk.from + i;
    if at > LAST {
        return 1;
    }
    let table = Table::<BYTES>(context.table);
    // SAFETY: bounded just above.
    let byte = unsafe { *context.buffer.add(at as usize) };
    walk.state = u64::from(table.word(walk.state as u32 + table.class(COMMAND_CLASSES, byte)));
    walk.used = i + 1;
    if byte == 0 {
        walk.left -= 1;
    }
    0
}

/// Bounds a length so that the verifier believes it.
///
/// VERIFIER: all kernels: LLVM may prove a bound, drop the check and keep the unbounded register;
/// the barrier makes the checked register the one that is used.
#[inline(always)]
pub fn at_most(value: u32, max: u32) -> u32 {
    at_most_64(u64::from(value), u64::from(max)) as u32
}

/// The same for a number that is in a whole register already.
#[inline(always)]
pub fn at_most_64(mut value: u64, max: u64) -> u64 {
    // SAFETY: a move of a register to itself. (An empty barrier would leave two entries of line
    // information for one instruction, which the kernel refuses.)
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) value, options(nomem, nostack, preserves_flags))
    };
    if value > max { max } else { value }
}

/// Memory on the stack for a value, aligned as words.
#[repr(C, align(8))]
pub struct Words<T>(MaybeUninit<T>);

impl<T> Words<T> {
    /// Nothing is in it.
    #[inline(always)]
    pub const fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// Zeroes, word by word: the linker makes a call of `memset` of what the compiler writes, and that writes bytes, in
    /// a loop.
    ///
    /// # Safety
    /// Zeroes must be a value of the type.
    #[inline(always)]
    pub unsafe fn zeroed(&mut self) -> &mut T {
        let words = (&raw mut self.0).cast::<u64>();
        let mut i = 0;
        while i < size_of::<Self>() / 8 {
            // SAFETY: inside; a volatile write stays one.
            unsafe { core::ptr::write_volatile(words.add(i), 0) };
            i += 1;
        }
        // SAFETY: the caller's promise.
        unsafe { self.0.assume_init_mut() }
    }
}

/// An address as words, as they lie in memory.
///
/// In one read each: of bytes that it has just seen written LLVM would put words together again.
#[inline(always)]
pub fn words(to: &Destination) -> [u64; 2] {
    const _: () = assert!(offset_of!(Destination, address) % 8 == 0);
    let address = (&raw const to.address).cast::<u64>();
    // SAFETY: inside, and aligned like the whole; every word is a number.
    unsafe {
        [
            core::ptr::read_volatile(address),
            core::ptr::read_volatile(address.add(1)),
        ]
    }
}

/// The bytes of an address of two words.
#[inline(always)]
pub fn bytes(words: [u64; 2]) -> [u8; 16] {
    let [first, second] = words.map(u64::to_ne_bytes);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&first);
    bytes[8..].copy_from_slice(&second);
    bytes
}

/// A value about which LLVM knows nothing.
///
/// VERIFIER: 7.3: of two values that LLVM finds equal it uses one for the other, and the verifier may believe the type
/// of one only.
#[inline(always)]
pub fn opaque(mut value: u64) -> u64 {
    // SAFETY: a move of a register to itself.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) value, options(nomem, nostack, preserves_flags));
    }
    value
}

/// Bytes of a path whose length is given, or nothing where that is an error.
#[inline(always)]
pub fn path_len(len: i64) -> u32 {
    if len < 0 {
        0
    } else {
        at_most(len as u32, PATH_BUFFER as u32 - 1)
    }
}

/// A copy of a number, masked, that the verifier does not take for the same number.
///
/// VERIFIER: 6.12: what a test shows of one copy it shows of all, and each way through the blocks of a walk would
/// go on to the end of the program with another length: half a million instructions where these are 40,000.
#[inline(always)]
fn apart(mut value: u64, mask: u64) -> u64 {
    // SAFETY: arithmetic on a register.
    unsafe {
        core::arch::asm!("{0} &= {1}", inout(reg) value, in(reg) mask, options(pure, nomem, nostack, preserves_flags))
    };
    value
}

/// Gives a value back as the verifier knows nothing about it: by way of memory in a map.
///
/// VERIFIER: 6.1: a decision is a handful of constants, different on each way to it. Kept in registers, every
/// combination of them is followed to the end of the program ("BPF program is too large"); read from a map's
/// value they are unknown numbers, and all ways are one.
///
/// # Safety
/// `slot` is live memory in a map's value, owned by the caller and aligned for `T`.
#[inline(always)]
pub unsafe fn forget<T: Copy>(slot: *mut T, value: T) -> T {
    // SAFETY: the caller's promise.
    unsafe {
        core::ptr::write_volatile(slot, value);
        core::ptr::read_volatile(slot)
    }
}

/// What a hook returns: 0, or `-EPERM`.
///
/// VERIFIER: 6.12: LLVM turns a choice between 0 and -1 into a negation, whose bounds are not known
/// ("R0 has unknown scalar value"); the barrier keeps the choice a branch.
#[inline(always)]
pub fn verdict(refused: bool) -> i32 {
    if !refused {
        return 0;
    }
    let mut result = crate::emit::DENIED_ERRNO as i64;
    // SAFETY: a move of a register to itself.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) result, options(nomem, nostack, preserves_flags))
    };
    let _ = result;
    crate::emit::DENIED_ERRNO
}
