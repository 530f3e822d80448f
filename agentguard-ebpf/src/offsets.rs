//! The kernel's field offsets as read-only globals. The loader sets them from the running kernel's
//! BTF before the object is loaded and the map is frozen, so the verifier sees constants.

/// Makes a read-only global of each offset, and a function that reads it.
macro_rules! globals {
    ($($name:ident : $type:literal . $field:literal,)+) => {
        $(
            #[unsafe(no_mangle)]
            pub static $name: u32 = 0;
        )+
    };
}

agentguard_common::kernel_offsets!(globals);

/// Addresses of the kernel's counts of renames and mounts (`rename_lock`, `mount_lock`); 0 where they are not known.
#[unsafe(no_mangle)]
pub static RENAME_LOCK: u64 = 0;
#[unsafe(no_mangle)]
pub static MOUNT_LOCK: u64 = 0;
/// Where in `struct dentry` short names are (`d_iname`; `d_shortname` from 6.14 on), or 0 where that is not known.
#[unsafe(no_mangle)]
pub static DENTRY_INLINE_NAME: u32 = 0;
/// 1 where the address that `socket_connect` and `socket_bind` are given is a `struct sockaddr` for the verifier.
#[unsafe(no_mangle)]
pub static PLAIN_ADDRESS: u32 = 0;
/// 1 where `f_path` is in a union of `struct file` (from 6.18 on).
#[unsafe(no_mangle)]
pub static FILE_PATH_SHARED: u32 = 0;

/// Makes a number of each field: its place in the list.
macro_rules! numbers {
    ($($name:ident : $type:literal . $field:literal,)+) => {
        /// The fields by number.
        #[allow(non_camel_case_types, dead_code, reason = "named like the globals, and numbered like them")]
        #[derive(Clone, Copy)]
        #[repr(i16)]
        pub enum Field {
            $($name,)+
        }
    };
}

agentguard_common::kernel_offsets!(numbers);

impl Field {
    /// What a load says in place of the offset until the loader sets it.
    pub const fn placeholder(self) -> i16 {
        agentguard_common::offsets::PLACEHOLDER + self as i16
    }
}

/// Loads a field of an object that the verifier tracks by BTF, like `label::load`, in one instruction:
/// the offset is part of it. With a global it takes five, and an open reads seventeen fields.
///
/// It must be used inside `unsafe`: the object must be a kernel object known to the verifier.
macro_rules! field {
    ($object:expr, $name:ident, u64) => {
        $crate::offsets::field!($object, $name, u64, reg, "{value} = *(u64 *)({object} - {offset})")
    };
    ($object:expr, $name:ident, u32) => {
        $crate::offsets::field!($object, $name, u32, wreg, "{value} = *(u32 *)({object} - {offset})")
    };
    ($object:expr, $name:ident, u16) => {
        $crate::offsets::field!($object, $name, u32, wreg, "{value} = *(u16 *)({object} - {offset})") as u16
    };
    ($object:expr, $name:ident, $type:ident, $class:ident, $instruction:literal) => {{
        let value: $type;
        let object: *const u8 = $object;
        core::arch::asm!(
            $instruction,
            value = out($class) value,
            object = in(reg) object,
            offset = const $crate::offsets::Field::$name.placeholder(),
            options(readonly, nostack, preserves_flags),
        );
        value
    }};
}
pub(crate) use field;

/// The value of a global that the loader may have set.
#[inline(always)]
pub fn get(global: &u32) -> usize {
    // SAFETY: a valid reference; volatile because the loader replaces the value that the compiler sees.
    unsafe { core::ptr::read_volatile(global) as usize }
}

/// The same for an address.
#[inline(always)]
pub fn address(global: &u64) -> u64 {
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(global) }
}
