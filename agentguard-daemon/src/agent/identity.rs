//! As whom an agent's command runs: under sudo, as the user who called it.
//!
//! The user database is read from its files, not through NSS, which a static program does not have: no user of a
//! directory elsewhere is known by name. An identity that cannot be found out is an error: a command never runs as root by accident.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why the user cannot be found out.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// A variable does not hold a number.
    #[error(
        "{variable} is `{value}`, which is not a number; run `sudo agentguard run …` from a login, or unset it"
    )]
    NotANumber {
        /// `SUDO_UID` or `SUDO_GID`.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// Only one of the two variables is there.
    #[error("SUDO_UID is set, but SUDO_GID is not; set both or none")]
    NoGroup,
    /// The database cannot be read.
    #[error("failed to read {path}: {source}", path = .path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// A user with groups and home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, `gid` included.
    pub groups: Vec<u32>,
    /// Login name; the number where the database has none.
    pub name: String,
    /// Home folder; `/` where the database has none.
    pub home: PathBuf,
}

impl Identity {
    /// The user who called through sudo; `None` if nobody did.
    pub fn of_invoker() -> Result<Option<Self>, IdentityError> {
        let uid = number("SUDO_UID")?;
        let gid = number("SUDO_GID")?;
        match (uid, gid) {
            (None | Some(0), _) => Ok(None),
            (Some(_), None) => Err(IdentityError::NoGroup),
            (Some(uid), Some(gid)) => {
                let read = |path: &str| {
                    std::fs::read_to_string(path).map_err(|source| IdentityError::Database {
                        path: Path::new(path).to_owned(),
                        source,
                    })
                };
                Ok(Some(Self::look_up(
                    uid,
                    gid,
                    &read("/etc/passwd")?,
                    &read("/etc/group")?,
                )))
            }
        }
    }

    /// An identity from the texts of `passwd` and `group`.
    fn look_up(uid: u32, gid: u32, passwd: &str, group: &str) -> Self {
        let entry = entry(uid, passwd);
        let known = entry.is_some();
        let (name, home) = entry.unwrap_or_else(|| (uid.to_string(), PathBuf::from("/")));
        let mut groups = vec![gid];
        for line in group.lines() {
            let fields: Vec<_> = line.split(':').collect();
            if let [_, _, number, members, ..] = fields[..]
                && known
                && members.split(',').any(|member| member == name)
                && let Ok(number) = number.parse()
                && !groups.contains(&number)
            {
                groups.push(number);
            }
        }
        Self {
            uid,
            gid,
            groups,
            name,
            home,
        }
    }
}

/// Name and home of a user, in the text of `passwd`.
fn entry(uid: u32, passwd: &str) -> Option<(String, PathBuf)> {
    passwd.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let found = fields.len() >= 6 && fields[2].parse() == Ok(uid);
        found.then(|| (fields[0].to_owned(), PathBuf::from(fields[5])))
    })
}

/// Name and home of a user; none of one whom `/etc/passwd` does not have.
pub fn user(uid: u32) -> Option<(String, PathBuf)> {
    entry(uid, &std::fs::read_to_string("/etc/passwd").ok()?)
}

/// The home of whoever calls: what `HOME` says, else the database.
pub fn own_home() -> Option<PathBuf> {
    let told = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let own = || user(nix::unistd::getuid().as_raw()).map(|(_, home)| home);
    told.map(PathBuf::from).or_else(own)
}

fn number(variable: &'static str) -> Result<Option<u32>, IdentityError> {
    let Some(value) = std::env::var_os(variable) else {
        return Ok(None);
    };
    let value = value.to_string_lossy();
    match value.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(IdentityError::NotANumber {
            variable,
            value: value.into_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000:Ann:/home/ann:/bin/sh\n+::::::\n";
    const GROUP: &str = "root:x:0:\nann:x:1000:\ndocker:x:99:bob,ann\nannex:x:98:anna\nbroken\n";

    #[test]
    fn a_user_has_home_and_groups() {
        let ann = Identity::look_up(1000, 1000, PASSWD, GROUP);
        assert_eq!(ann.name, "ann");
        assert_eq!(ann.home, Path::new("/home/ann"));
        assert_eq!(ann.groups, [1000, 99]);
    }

    #[test]
    fn a_user_without_entry_gets_nothing_extra() {
        let nobody = Identity::look_up(4242, 4242, PASSWD, "x:x:7:4242\n");
        assert_eq!(nobody.name, "4242");
        assert_eq!(nobody.home, Path::new("/"));
        assert_eq!(nobody.groups, [4242]);
    }
}
