//! See `src/log.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| agentguard_fuzz::log::run(data));
