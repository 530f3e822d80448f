//! From files that were seen to few patterns that cover them, and little else.

use std::collections::BTreeMap;

use super::Seen;

/// Files of one folder after which all files of it are meant.
const MANY: usize = 4;
/// Folders of one folder, each with many files, after which all below is meant.
const MANY_FOLDERS: usize = 3;

/// Names in which secrets are kept: no pattern is widened over them, nor over a folder that may hold them.
const SECRET: &[&str] = &[
    ".ssh",
    ".gnupg",
    ".aws",
    ".azure",
    ".kube",
    ".docker",
    ".netrc",
    ".pgpass",
    ".password-store",
    ".git-credentials",
    ".npmrc",
    ".pypirc",
    ".env",
    ".config",
    ".mozilla",
    ".thunderbird",
    ".bash_history",
    "shadow",
    "gshadow",
    "sudoers",
    "sudoers.d",
    "credentials",
];

/// Folders of the system in which many files that are read may be taken for all: nothing of a person is in them.
const READ_FREELY: &[&str] = &[
    "/usr",
    "/lib",
    "/lib64",
    "/lib32",
    "/bin",
    "/sbin",
    "/opt",
    "/nix",
    "/snap",
    "/etc/alternatives",
    "/etc/ssl/certs",
    "/etc/ld.so.conf.d",
    "/var/lib/dpkg",
];

/// Folders below which, each by itself, many files may be taken for all of the folder.
const TEMPORARY: &[&str] = &["/tmp/", "/var/tmp/", "/dev/shm/"];

/// Where patterns may speak of files that were not seen.
#[derive(Debug)]
pub struct Room {
    /// Folders in which the agent's work is.
    pub own: Vec<Vec<u8>>,
    /// Whether it is about reading.
    pub reading: bool,
}

impl Room {
    fn may_widen(&self, path: &[u8]) -> bool {
        if path.is_empty() || path.split(|byte| *byte == b'/').any(is_secret) {
            return false;
        }
        self.own.iter().any(|folder| within(path, folder))
            || TEMPORARY
                .iter()
                .any(|folder| path.starts_with(folder.as_bytes()))
            || self.is_of_the_system(path)
    }

    /// Whether no person's secrets can be there, so that no exceptions are needed.
    fn is_of_the_system(&self, path: &[u8]) -> bool {
        let holds = |folder: &&str| within(path, folder.as_bytes());
        self.reading && READ_FREELY.iter().any(holds)
    }
}

fn is_secret(name: &[u8]) -> bool {
    SECRET.iter().any(|secret| name == secret.as_bytes())
}

/// A pattern over all names of secrets, for exceptions.
pub fn secrets() -> String {
    format!("**/{{{}}}/**", SECRET.join(","))
}

fn within(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder)
        .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Paths that were seen, by their parts.
#[derive(Debug, Default)]
pub struct Tree {
    below: BTreeMap<Vec<u8>, Tree>,
    here: Option<Seen>,
}

/// A pattern, and what it was seen for.
#[derive(Clone, Debug)]
pub struct Place {
    /// As policies have it, without variables.
    pub pattern: String,
    /// The folder or file that it begins with, plain.
    pub root: Vec<u8>,
    /// What for.
    pub seen: Seen,
    /// Whether names of secrets are excepted.
    pub spares_secrets: bool,
}

impl Tree {
    /// A path was seen.
    pub fn see(&mut self, path: &[u8], note: impl FnOnce(&mut Seen)) {
        let mut tree = self;
        for part in path
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty())
        {
            tree = tree.below.entry(part.to_vec()).or_default();
        }
        note(tree.here.get_or_insert_default());
    }

    /// Few patterns for all of it.
    pub fn places(&self, room: &Room) -> Vec<Place> {
        let mut places = Vec::new();
        self.collect(&mut Vec::new(), "", room, &mut places);
        places.sort_by(|a, b| a.pattern.cmp(&b.pattern));
        places.dedup_by(|b, a| {
            let same = a.pattern == b.pattern && a.spares_secrets == b.spares_secrets;
            if same {
                a.seen.join(&b.seen);
            }
            same
        });
        places
    }

    fn collect(&self, path: &mut Vec<u8>, pattern: &str, room: &Room, places: &mut Vec<Place>) {
        let place = |pattern: String, seen: Seen, is_wide: bool| Place {
            pattern,
            root: if path.is_empty() { b"/" } else { &path[..] }.to_vec(),
            seen,
            spares_secrets: is_wide && !room.is_of_the_system(path),
        };
        let may_widen = room.may_widen(path);
        let whole = may_widen && self.is_busy();
        if whole {
            places.push(place(format!("{pattern}/**"), self.all(), true));
        } else if let Some(seen) = &self.here {
            let exact = if path.is_empty() { "/" } else { pattern };
            places.push(place(exact.to_owned(), seen.clone(), false));
        }
        let files: Vec<_> = self
            .below
            .iter()
            .filter(|(name, tree)| tree.below.is_empty() && !is_secret(name))
            .collect();
        let widened = may_widen && !whole && files.len() >= MANY;
        if widened {
            let mut seen = Seen::default();
            for (_, tree) in &files {
                seen.join(&tree.all());
            }
            places.push(place(format!("{pattern}/*"), seen, true));
        }
        for (part, tree) in &self.below {
            let secret = is_secret(part);
            if widened && tree.below.is_empty() && !secret {
                continue;
            }
            let before = path.len();
            path.push(b'/');
            path.extend_from_slice(part);
            let pattern = format!("{pattern}/{}", name_pattern(path, part));
            if !whole || secret {
                tree.collect(path, &pattern, room, places);
            } else {
                tree.collect_secrets(path, &pattern, room, places);
            }
            path.truncate(before);
        }
    }

    /// What a pattern over all of it excepts, but was seen.
    fn collect_secrets(
        &self,
        path: &mut Vec<u8>,
        pattern: &str,
        room: &Room,
        places: &mut Vec<Place>,
    ) {
        for (part, tree) in &self.below {
            let before = path.len();
            path.push(b'/');
            path.extend_from_slice(part);
            let pattern = format!("{pattern}/{}", name_pattern(path, part));
            if is_secret(part) {
                tree.collect(path, &pattern, room, places);
            } else {
                tree.collect_secrets(path, &pattern, room, places);
            }
            path.truncate(before);
        }
    }

    /// Whether so much was seen in so many folders of it that all is meant.
    fn is_busy(&self) -> bool {
        let busy = self
            .below
            .values()
            .filter(|tree| tree.below.len() >= MANY || tree.is_busy());
        busy.count() >= MANY_FOLDERS
    }

    fn all(&self) -> Seen {
        let mut seen = self.here.clone().unwrap_or_default();
        for tree in self.below.values() {
            seen.join(&tree.all());
        }
        seen
    }
}

/// A name as a pattern: numbers of processes and names that are made up anew each time become `*`.
fn name_pattern(path: &[u8], part: &[u8]) -> String {
    let is_number = part.iter().all(u8::is_ascii_digit);
    let below_proc = path.starts_with(b"/proc/") && path.split(|byte| *byte == b'/').count() == 3;
    if is_number && below_proc {
        return "*".to_owned();
    }
    let temporary = TEMPORARY
        .iter()
        .any(|folder| path.starts_with(folder.as_bytes()));
    if temporary && let Some(stem) = made_up(part) {
        return format!("{}*", quote(stem));
    }
    quote(part)
}

/// What a made-up name begins with: `tmp` of `tmpab12cd3x`, `pip-build-` of `pip-build-k3j_x91`.
fn made_up(part: &[u8]) -> Option<&[u8]> {
    let end = part
        .iter()
        .rposition(|byte| !(byte.is_ascii_alphanumeric() || *byte == b'_'))
        .map_or(0, |at| at + 1);
    let tail = &part[end..];
    let looks_so = tail.len() >= 6
        && (tail.iter().any(u8::is_ascii_digit)
            || (tail.iter().any(u8::is_ascii_uppercase)
                && tail.iter().any(u8::is_ascii_lowercase)));
    if looks_so && end > 0 {
        return Some(&part[..end]);
    }
    // `tmpk3jx91ab`, as Python makes them.
    let rest = part.strip_prefix(b"tmp")?;
    (rest.len() >= 6).then_some(&part[..3])
}

/// A name as plain text within a pattern. Bytes that are not printable ASCII are written as such.
pub fn quote(name: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for &byte in name {
        match byte {
            b'*' | b'?' | b'[' | b']' | b'{' | b'}' | b'\\' | b'$' | b'~' => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b'!'..=b'~' => text.push(char::from(byte)),
            // Writing to a `String` cannot fail.
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text
}

/// A path as plain text within a pattern.
pub fn quote_path(path: &[u8]) -> String {
    let parts: Vec<String> = path.split(|byte| *byte == b'/').map(quote).collect();
    parts.join("/")
}

/// A pattern with `${workspace}` and `${home}` for what they stand for.
pub fn with_names(place: &Place, named: &[(&str, &str)]) -> String {
    for (name, value) in named {
        let rest = place.root.strip_prefix(value.as_bytes());
        let whole = rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
        if whole && let Some(rest) = place.pattern.strip_prefix(&quote_path(value.as_bytes())) {
            return format!("${{{name}}}{rest}");
        }
    }
    place.pattern.clone()
}
