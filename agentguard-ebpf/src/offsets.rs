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

/// The value of a global that the loader may have set.
#[inline(always)]
pub fn get(global: &u32) -> usize {
    // SAFETY: a valid reference; volatile because the loader replaces the value that the compiler sees.
    unsafe { core::ptr::read_volatile(global) as usize }
}
