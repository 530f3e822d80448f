//! The ready-made policies of the folder `policies`, built into the program.
//!
//! Files in the search directories come first, so each of these can be replaced.

/// A policy that comes with the program.
#[derive(Debug)]
pub struct BuiltIn {
    /// Its name.
    pub name: &'static str,
    /// What stands for its path in diagnostics and records.
    pub path: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! built_in {
    ($($name:literal),+ $(,)?) => {
        /// Their names.
        pub const NAMES: &[&str] = &[$($name),+];

        static ALL: &[BuiltIn] = &[$(BuiltIn {
            name: $name,
            path: concat!("<built-in>/", $name, ".yaml"),
            text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../policies/", $name, ".yaml")),
        }),+];
    };
}

built_in!(
    "base",
    "coding-agent",
    "read-only-analyst",
    "locked-down",
    "permissive",
    "claude-code",
    "codex"
);

/// The policy of this name.
pub fn find(name: &str) -> Option<&'static BuiltIn> {
    ALL.iter().find(|policy| policy.name == name)
}
