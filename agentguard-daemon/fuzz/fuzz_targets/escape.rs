//! See `src/escape.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| agentguard_fuzz::escape::run(data));
