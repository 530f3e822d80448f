//! What the fuzzer's targets do with bytes, one module for each parser that reads what an agent can
//! influence. A finding is a panic: a broken promise is one too. The corpus is replayed by an ordinary test,
//! which includes this file.

pub mod escape;
pub mod glob;
pub mod log;
pub mod policy;
pub mod record;
pub mod request;
pub mod verdict;

/// A target: its name, which is also that of its folder in the corpus, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("escape", escape::run),
    ("glob", glob::run),
    ("log", log::run),
    ("policy", policy::run),
    ("record", record::run),
    ("request", request::run),
    ("verdict", verdict::run),
];
