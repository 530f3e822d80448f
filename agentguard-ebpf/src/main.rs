//! AgentGuard's kernel programs. The way of a verdict: hook → label → object → `decide` → `emit`.
//!
//! For a governed task every error, miss, truncation, full map or unreadable argument is a denial
//! with its own reason code. For an ungoverned task nothing is ever denied.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics, adt_const_params)]
#![expect(
    internal_features,
    reason = "atomic instructions of BPF have no stable interface"
)]

mod approval;
mod atomic;
mod bound;
mod budget;
mod climb;
mod decide;
mod emit;
mod fold;
mod folder;
mod hooks;
mod identity;
mod label;
mod maps;
mod offsets;
mod opened;
mod scratch;
mod selftest;

/// The licence that the kernel reads; the helpers in use need a GPL-compatible one.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
