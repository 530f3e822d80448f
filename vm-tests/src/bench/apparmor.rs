//! `AppArmor` profiles with the rules of the measured policies. They are compiled on the build machine;
//! a guest only loads them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::policy::denials;

/// Profiles by name, and how many rules each has.
pub const PROFILES: [(&str, usize); 2] = [("apparmor-10", 10), ("apparmor-1000", 1000)];

/// What a policy permits, in `AppArmor`'s words.
const PERMITTED: &[&str] = &[
    "/x rwk,",
    "/tmp/** rwkl,",
    "/dev/** rwk,",
    "/{usr,bin,lib,lib64,etc,proc,sys}/** mr,",
    "/{,usr/}bin/* mrix,",
    "/usr/{libexec,share/nodejs}/** mrix,",
];

fn source(name: &str, rules: usize) -> String {
    let mut text = format!(
        "abi <abi/3.0>,\nprofile {name} {{\n  network inet,\n  network netlink,\n  network unix,\n  capability,\n  unix,\n  signal,\n"
    );
    for rule in PERMITTED {
        let _ = writeln!(text, "  {rule}");
    }
    for path in denials(rules) {
        // `**/` of a policy is nothing as well, or some folders.
        let path = match path.strip_prefix("**/") {
            Some(rest) => format!("/{{,**/}}{rest}"),
            None => path,
        };
        let _ = writeln!(text, "  deny \"{path}\" rw,");
    }
    text + "}\n"
}

/// Writes `NAME.profile` for each.
pub fn write_sources(folder: &Path) -> Result<()> {
    for (name, rules) in PROFILES {
        let path = folder.join(format!("{name}.profile"));
        fs::write(&path, source(name, rules))
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

/// Loads a compiled profile; an error says why there is none.
pub fn load(folder: &Path, name: &str) -> Result<()> {
    if let Ok(why) = fs::read_to_string(folder.join(format!("{name}.absent"))) {
        bail!("{}", why.trim());
    }
    let compiled = fs::read(folder.join(name)).context("there is no compiled profile")?;
    // The kernel takes a whole profile in one write.
    fs::write("/sys/kernel/security/apparmor/.replace", compiled)
        .context("this kernel does not take the profile")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_has_the_denials_of_the_policy() {
        let text = source("apparmor-10", 10);
        assert_eq!(text.matches("  deny ").count(), denials(10).count());
        assert!(text.contains("deny \"/{,**/}secret-0-0/**\" rw,"), "{text}");
    }
}
