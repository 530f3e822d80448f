//! The policies that are measured: some permissions for what is done, and as many denials as it takes.

use std::fmt::Write as _;

/// What kind of policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Permits what is measured, and records all of it.
    Recorded,
    /// Permits it, and records denials, programs and connections only.
    DenialsRecorded,
    /// Denies it.
    Denied,
    /// Would deny it, records that, and lets it go ahead.
    Shadow,
}

impl Kind {
    /// Whether what is measured is permitted, and not only let through.
    pub fn permits(self) -> bool {
        matches!(self, Self::Recorded | Self::DenialsRecorded)
    }
}

/// Rules that permit what is measured; those before the denials.
const PERMITS: usize = 4;

/// What may only be read.
const READ: &str = "/{usr,bin,lib,lib64,etc,proc,sys}/**";
/// What may be started.
const STARTED: &str = "/usr/{bin,libexec,share/nodejs}/**";

/// Denials at any depth for so many rules: three in a hundred, and three at least.
pub fn floating(rules: usize) -> usize {
    (rules * 3 / 100).max(3)
}

/// Paths of denials: `floating` at any depth, the others from the root; half of the former are folders.
pub fn denials(rules: usize) -> impl Iterator<Item = String> {
    let floating = floating(rules);
    let deep = (0..floating).map(|number| {
        let tail = if number % 2 == 0 { "/**" } else { "" };
        format!("**/secret-{number}-{}{tail}", number * 7919 % 1009)
    });
    let anchored = (0..rules.saturating_sub(floating + PERMITS)).map(|number| {
        format!(
            "/srv/tenant-{}/project-{}/data-{number}/**",
            number % 97,
            number % 1013
        )
    });
    deep.chain(anchored)
}

/// The text of the policy.
pub fn text(kind: Kind, rules: usize) -> String {
    let permits = kind.permits();
    let mode = if kind == Kind::Shadow {
        "mode: shadow\n"
    } else {
        ""
    };
    let audit = if kind == Kind::DenialsRecorded {
        "denied"
    } else {
        "all"
    };
    let mut text = format!("version: 1\n{mode}audit: {audit}\nfiles:\n  default: deny\n");
    // What may be written may not be mapped as code: libraries may only be read.
    let (read, both): (&[&str], &[&str]) = if permits {
        (&[READ], &["/x", "/tmp/**", "/dev/**"])
    } else {
        // The measured process itself ends, prints and waits; nothing else is permitted.
        (&["/nowhere/1"], &["/nowhere/2", "/nowhere/3", "/nowhere/4"])
    };
    let owned = |paths: &[&str]| {
        paths
            .iter()
            .map(|&path| path.to_owned())
            .collect::<Vec<_>>()
    };
    text += "  read:\n";
    list(&mut text, "allow", owned(read).into_iter());
    text += "  read_write:\n";
    list(&mut text, "allow", owned(both).into_iter());
    list(&mut text, "deny", denials(rules));
    if permits {
        let _ = writeln!(
            text,
            "exec:\n  default: deny\n  allow: [{{ path: \"{STARTED}\" }}]"
        );
        text += "network:\n  default: deny\n  allow: [\"127.0.0.0/8\"]\n  listen: { default: deny, allow: [\"127.0.0.0/8\"] }\n  unix: { default: deny, allow: [\"/tmp/**\"] }\n";
    } else {
        text += "exec:\n  default: deny\nnetwork:\n  default: deny\n";
    }
    text
}

fn list(text: &mut String, name: &str, patterns: impl Iterator<Item = String>) {
    let _ = writeln!(text, "    {name}:");
    for pattern in patterns {
        let _ = writeln!(text, "      - \"{pattern}\"");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_rules_as_is_said() {
        for rules in [10, 1_000, 10_000] {
            let text = text(Kind::Recorded, rules);
            let count = text
                .lines()
                .filter(|line| line.starts_with("      - "))
                .count();
            assert_eq!(count, rules);
        }
        assert_eq!(floating(10_000), 300);
    }
}
