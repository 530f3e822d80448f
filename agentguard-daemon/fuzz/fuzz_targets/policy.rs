//! See `src/policy.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| agentguard_fuzz::policy::run(data));
