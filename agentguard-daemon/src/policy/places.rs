//! The folders that variables name, under the names by which the kernel knows them.
//!
//! Rules see resolved paths: a pattern made from a symbolic link would never match. Links are followed
//! once, when a variable is set, and must not be followed again: an agent may change them later.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A folder that a variable names cannot be found.
#[derive(Debug, Error)]
#[error("failed to resolve the folder of the variable `{name}`, {path}: {source}", path = .path.display())]
pub struct PlaceError {
    /// The variable.
    pub name: &'static str,
    /// Its value.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

/// Resolves the folders among the variables of a session. The workspace must exist; of a home that does
/// not, as much as does is resolved.
pub fn resolve(vars: &mut BTreeMap<String, String>) -> Result<(), PlaceError> {
    for (name, find) in [
        ("workspace", existing as fn(&Path) -> io::Result<PathBuf>),
        ("home", nearest),
    ] {
        let Some(value) = vars.get_mut(name) else {
            continue;
        };
        let text = |path: PathBuf| {
            path.into_os_string()
                .into_string()
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
        };
        *value = find(Path::new(value.as_str()))
            .and_then(text)
            .map_err(|source| PlaceError {
                name,
                path: PathBuf::from(&*value),
                source,
            })?;
    }
    Ok(())
}

fn existing(path: &Path) -> io::Result<PathBuf> {
    if path.is_absolute() {
        path.canonicalize()
    } else {
        Err(relative())
    }
}

/// The resolved form of a path of which the end need not exist.
pub fn nearest(path: &Path) -> io::Result<PathBuf> {
    match existing(path) {
        // A link to nowhere may lead somewhere later.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(error);
            };
            Ok(nearest(parent)?.join(name))
        }
        outcome => outcome,
    }
}

fn relative() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it must begin with `/`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_behind_a_link_has_its_real_name() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("data/home/u")).unwrap();
        std::os::unix::fs::symlink("data/home", root.join("home")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.join("dangling")).unwrap();
        let resolved = |name: &str, path: &str| {
            let value = root.join(path).to_str().unwrap().to_owned();
            let mut vars = BTreeMap::from([(name.to_owned(), value)]);
            resolve(&mut vars).map(|()| PathBuf::from(&vars[name]))
        };
        for name in ["home", "workspace"] {
            assert_eq!(
                resolved(name, "home/u").unwrap(),
                root.join("data/home/u"),
                "{name}"
            );
            assert!(resolved(name, "dangling/u").is_err(), "{name}");
            let mut vars = BTreeMap::from([(name.to_owned(), "src".to_owned())]);
            assert!(resolve(&mut vars).is_err(), "{name}");
        }
        assert_eq!(
            resolved("home", "home/new/er").unwrap(),
            root.join("data/home/new/er")
        );
        assert!(resolved("workspace", "home/new").is_err());
        assert_eq!(resolved("other", "home").unwrap(), root.join("home"));
    }
}
