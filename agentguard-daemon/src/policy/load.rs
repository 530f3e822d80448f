//! From a name to the parsed files of a policy: itself and everything that it extends.
//!
//! Files are bounded in size, depth and number before anything is done with them, and nothing but
//! regular files is opened.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::builtin;
use super::diagnostic::{PolicyError, Source, Span};
use super::own;
use super::schema::Document;
use super::yaml::parse;

/// Largest policy file.
pub const MAX_FILE: u64 = 4 << 20;
/// Most files of one policy.
const MAX_FILES: usize = 64;

/// Where policies are looked for, and what their variables hold.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Directories that are searched, in order, for policies given by name (also in `extends`).
    pub search: Vec<PathBuf>,
    /// Values of variables; they win over those written in files.
    pub vars: BTreeMap<String, String>,
    /// AgentGuard's own files and folders: no policy permits them. See [`super::own`].
    pub own: Vec<PathBuf>,
}

/// One file of a policy.
pub struct Part {
    /// Its text.
    pub source: Arc<Source>,
    /// Its contents.
    pub document: Document,
}

/// All files of a policy, the outermost first.
pub struct Parts {
    /// The files in the order of reading.
    pub parts: Vec<Part>,
    /// The files on disk, for watching.
    pub files: Vec<PathBuf>,
}

/// Reads a policy and all that it extends.
pub fn read(name_or_path: &str, options: &LoadOptions) -> Result<Parts, PolicyError> {
    let mut reader = Reader {
        options,
        parts: Vec::new(),
        files: Vec::new(),
        open: Vec::new(),
        seen: Vec::new(),
        candidates: Vec::new(),
    };
    let place =
        find(name_or_path, None, options).ok_or_else(|| not_found(name_or_path, options))?;
    reader.visit(&place, None)?;
    reader.protect_own()?;
    Ok(Parts {
        parts: reader.parts,
        files: reader.files,
    })
}

/// A policy given as text; `extends` finds names only.
pub fn read_text(path: &Path, text: &str, options: &LoadOptions) -> Result<Parts, PolicyError> {
    let mut reader = Reader {
        options,
        parts: Vec::new(),
        files: Vec::new(),
        open: Vec::new(),
        seen: Vec::new(),
        candidates: Vec::new(),
    };
    reader.take(path, PathBuf::from(path), text)?;
    reader.protect_own()?;
    Ok(Parts {
        parts: reader.parts,
        files: reader.files,
    })
}

/// The files of a policy as they were when it was read: nothing is looked for, and nothing is read again.
pub fn read_sources(
    sources: &[(PathBuf, String)],
    files: &[PathBuf],
) -> Result<Parts, PolicyError> {
    let mut parts = Vec::new();
    for (path, text) in sources {
        let source = Arc::new(Source::new(path, text));
        let document = parse(&source)?;
        parts.push(Part { source, document });
    }
    if parts.is_empty() {
        return Err(PolicyError::general(
            "a policy of no files",
            "give at least one",
        ));
    }
    Ok(Parts {
        parts,
        files: files.to_vec(),
    })
}

enum Place {
    File(PathBuf),
    BuiltIn(&'static builtin::BuiltIn),
}

/// The name of a file in its resolved folder; the file itself need not exist, and is not followed.
fn place_of(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (path.parent().map(std::fs::canonicalize), path.file_name()) {
        (Some(Ok(folder)), Some(name)) => folder.join(name),
        _ => path,
    }
}

fn is_path(name: &str) -> bool {
    name.contains('/')
        || Path::new(name)
            .extension()
            .is_some_and(|e| e == "yaml" || e == "yml")
}

/// `beside` is the directory of the file that names the policy.
fn find(name: &str, beside: Option<&Path>, options: &LoadOptions) -> Option<Place> {
    if is_path(name) {
        let name = name.strip_prefix("./").unwrap_or(name);
        let path = beside.map_or_else(|| PathBuf::from(name), |dir| dir.join(name));
        return Some(Place::File(path));
    }
    let file = format!("{name}.yaml");
    beside
        .into_iter()
        .chain(options.search.iter().map(PathBuf::as_path))
        .map(|dir| dir.join(&file))
        .find(|path| path.is_file())
        .map(Place::File)
        .or_else(|| builtin::find(name).map(Place::BuiltIn))
}

fn not_found(name: &str, options: &LoadOptions) -> PolicyError {
    PolicyError::general(format!("no policy named `{name}`"), not_found_help(options))
}

fn not_found_help(options: &LoadOptions) -> String {
    let searched = options
        .search
        .iter()
        .map(|dir| dir.display().to_string())
        .collect::<Vec<_>>()
        .join(", ");
    let searched = if searched.is_empty() {
        "no directory".to_owned()
    } else {
        searched
    };
    format!(
        "searched {searched}; built in: {}; a path holds a `/` or ends in `.yaml`",
        builtin::NAMES.join(", ")
    )
}

/// The place in a file that asked for another file.
type Asked<'a> = (&'a Source, Span);

struct Reader<'a> {
    options: &'a LoadOptions,
    parts: Vec<Part>,
    files: Vec<PathBuf>,
    /// Files that are being read, outermost first.
    open: Vec<PathBuf>,
    /// Files that were read.
    seen: Vec<PathBuf>,
    /// Names where a file, if there were one, would be read instead of another.
    candidates: Vec<PathBuf>,
}

impl Reader<'_> {
    fn visit(&mut self, place: &Place, asked: Option<Asked<'_>>) -> Result<(), PolicyError> {
        let (path, key) = match place {
            Place::File(path) => (
                path.clone(),
                std::fs::canonicalize(path).unwrap_or_else(|_| path.clone()),
            ),
            Place::BuiltIn(policy) => (PathBuf::from(policy.path), PathBuf::from(policy.path)),
        };
        if let Some(at) = self.open.iter().position(|open| *open == key)
            && let Some((source, span)) = asked
        {
            let name = |p: &PathBuf| {
                p.file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned()
            };
            let circle = self.open[at..]
                .iter()
                .chain([&key])
                .map(name)
                .collect::<Vec<_>>()
                .join(" -> ");
            return Err(PolicyError::at(
                source,
                span,
                "the policy extends itself",
                format!("remove one `extends` of the circle: {circle}"),
            )
            .label("closes the circle"));
        }
        if self.seen.contains(&key) {
            return Ok(());
        }
        if self.parts.len() == MAX_FILES {
            let message = format!("more than {MAX_FILES} files in one policy");
            let help = "merge some of the files";
            return Err(asked.map_or_else(
                || PolicyError::general(&message, help),
                |(source, span)| PolicyError::at(source, span, &message, help),
            ));
        }
        match place {
            Place::BuiltIn(policy) => self.take(&path, key, policy.text),
            Place::File(_) => {
                let text = read_file(&path, asked)?;
                self.files.push(path.clone());
                self.take(&path, key, &text)
            }
        }
    }

    /// Adds the rules about AgentGuard's own files.
    fn protect_own(&mut self) -> Result<(), PolicyError> {
        if self.options.own.is_empty() {
            return Ok(());
        }
        // Both the file and the name that was followed to it: a link in its place would be read next time.
        let mut policies = Vec::new();
        for path in self.files.iter().chain(&self.candidates) {
            policies.push(place_of(path));
            policies.extend(std::fs::canonicalize(path));
        }
        policies.sort();
        policies.dedup();
        let own = own::Own {
            closed: self.options.own.clone(),
            program: Some(own::program()),
            policies,
        };
        let text = own.text().map_err(|path| {
            PolicyError::general(
                format!(
                    "AgentGuard's own path {} is not UTF-8, so no rule can protect it",
                    path.display()
                ),
                "give it a name in UTF-8",
            )
        })?;
        self.take(Path::new(own::PATH), PathBuf::from(own::PATH), &text)
    }

    fn take(&mut self, path: &Path, key: PathBuf, text: &str) -> Result<(), PolicyError> {
        let source = Arc::new(Source::new(path, text));
        let document = parse(&source)?;
        let extends = document.extends.clone().unwrap_or_default();
        self.parts.push(Part {
            source: source.clone(),
            document,
        });
        self.open.push(key.clone());
        for base in &extends {
            if !is_path(&base.value)
                && let Some(folder) = path.parent()
                && path.is_file()
            {
                self.candidates
                    .push(folder.join(format!("{}.yaml", base.value)));
            }
            let place = find(&base.value, path.parent(), self.options).ok_or_else(|| {
                let message = format!("no policy named `{}`", base.value);
                PolicyError::at(&source, base.span, message, not_found_help(self.options))
            })?;
            self.visit(&place, Some((&source, base.span)))?;
        }
        self.open.pop();
        self.seen.push(key);
        Ok(())
    }
}

fn read_file(path: &Path, asked: Option<Asked<'_>>) -> Result<String, PolicyError> {
    let failed = |what: String, help: &str| match asked {
        Some((source, span)) => PolicyError::at(source, span, what, help),
        None => PolicyError::general(what, help),
    };
    let shown = path.display();
    let metadata = std::fs::metadata(path).map_err(|error| {
        failed(
            format!("cannot read the policy `{shown}`: {error}"),
            "check the path, and that it may be read",
        )
    })?;
    if !metadata.is_file() {
        return Err(failed(
            format!("`{shown}` is not a regular file"),
            "give the path of a policy file",
        ));
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(|error| {
            failed(
                format!("cannot read the policy `{shown}`: {error}"),
                "check that it may be read",
            )
        })?;
    if bytes.len() as u64 > MAX_FILE {
        let excerpt = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        return Err(PolicyError::in_excerpt(
            path,
            excerpt.lines().next().unwrap_or_default(),
            Span::default(),
            format!("the policy is larger than {} MiB", MAX_FILE >> 20),
            "split it with `extends`, or use patterns instead of lists of files",
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let bytes = error.as_bytes();
        let excerpt = String::from_utf8_lossy(&bytes[..bytes.len().min(valid + 80)]).into_owned();
        PolicyError::in_excerpt(
            path,
            &excerpt,
            Span { offset: valid, len: 1 },
            format!("the policy is not valid UTF-8 (byte 0x{:02x} at offset {valid})", bytes[valid]),
            "save the file as UTF-8; a byte of a file name that is not UTF-8 is written `\\xHH` in a pattern",
        )
    })
}
