//! The files that acts work on. Everything below `/t` is made anew before each act; a picture of it
//! before and after shows every side effect without any row having to describe its own.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fs::{self, Permissions};
use std::hash::{Hash as _, Hasher as _};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, umount2};

use crate::act::{USER, victim};

/// Where acts happen.
pub const ROOT: &str = "/t";
/// Longest component of a path.
const COMPONENT: usize = 200;

/// Makes the tree anew.
pub fn make(setup: &[String]) -> Result<()> {
    let root = Path::new(ROOT);
    detach_mounts()?;
    match fs::remove_dir_all(root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).context("failed to clear /t");
        }
        _ => {}
    }
    for folder in ["ws/dir", "ws/bin", "secret/dir", "secret/bin", "home/.ssh"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let texts = [
        ("ws/free.txt", "free"),
        ("ws/other.txt", "other"),
        ("ws/.env", "TOKEN=1"),
        ("ws/dir/deep.txt", "deep"),
        ("ws/two\nlines", "two"),
        ("secret/key", "key"),
        ("secret/dir/deep", "deep"),
        ("secret/two\nlines", "two"),
        ("home/.ssh/id_rsa", "private"),
    ];
    for (path, text) in texts {
        fs::write(root.join(path), text)?;
    }
    for (path, text) in [
        ("ws/bin/script", "#!/usr/bin/sh\necho ran\n"),
        ("secret/bin/script", "#!/usr/bin/sh\necho ran\n"),
        ("ws/bin/by-secret", "#!/t/secret/bin/tool ran\n"),
    ] {
        program(&root.join(path), text.as_bytes())?;
    }
    let tool = fs::read("/usr/bin/echo").context("failed to read /usr/bin/echo")?;
    for path in ["ws/bin/tool", "secret/bin/tool"] {
        program(&root.join(path), &tool)?;
    }
    symlink("/t/secret/key", root.join("ws/link-to-secret"))?;
    symlink("/t/ws/free.txt", root.join("secret/link-to-free"))?;
    symlink("/t/secret", root.join("ws/folder-link"))?;
    symlink("/t/secret/bin/tool", root.join("ws/bin/link-to-tool"))?;
    fs::hard_link(root.join("ws/free.txt"), root.join("ws/second-name"))?;
    open_to_all(root)?;
    shell(setup)
}

/// Detaches what a row mounted, whoever uses it at this moment: the daemon looks into folders with protected names.
fn detach_mounts() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut points: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| Path::new(point).starts_with(ROOT) && *point != ROOT)
        .collect();
    // What was mounted last lies on top.
    points.reverse();
    for point in points {
        umount2(point, MntFlags::MNT_DETACH)
            .with_context(|| format!("failed to detach what is mounted on {point}"))?;
    }
    Ok(())
}

/// Runs shell lines as root in the fixture.
pub fn shell(lines: &[String]) -> Result<()> {
    for line in lines {
        let status = Command::new("/usr/bin/sh")
            .args(["-ec", &expand(line)])
            .current_dir(ROOT)
            .stdin(Stdio::null())
            .status()?;
        if !status.success() {
            bail!("a shell line failed ({status}): {line}");
        }
    }
    Ok(())
}

fn program(path: &Path, contents: &[u8]) -> Result<()> {
    fs::write(path, contents).with_context(|| format!("failed to write {}", path.display()))
}

/// Lets the ordinary user do everything that file modes can forbid: what then fails was denied by the guard.
fn open_to_all(path: &Path) -> Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if meta.is_symlink() {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(0o777))?;
    chown(path, Some(USER), Some(USER))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            open_to_all(&entry?.path())?;
        }
    }
    Ok(())
}

/// Loads the file systems that rows mount, and what says whose a socket is, where this kernel has them as modules.
pub fn load_modules() -> Result<()> {
    ["overlay", "fuse", "inet_diag", "tcp_diag"]
        .into_iter()
        .try_for_each(load_module)
}

/// Loads a module, where this kernel has it as one.
pub fn load_module(name: &str) -> Result<()> {
    let module = format!("/guest/modules/{name}.ko");
    if Path::new(&module).exists() {
        // It may be loaded already.
        Command::new("/guest/busybox")
            .args(["insmod", &module])
            .stderr(Stdio::null())
            .status()?;
    }
    Ok(())
}

/// Files with long paths, made once: `/long-ws` is free, `/long-secret` is not.
pub fn make_long() -> Result<()> {
    for kind in ["ws", "secret"] {
        for length in [300, 4095] {
            let path = PathBuf::from(long(kind, length));
            let folder = path.parent().context("a long path has a parent")?;
            make_in_steps(folder)?;
            // 4,095 bytes and the final NUL are the most that one call takes.
            fs::write(&path, "long")
                .with_context(|| format!("failed to write a path of {length} bytes"))?;
        }
        let many = deep(kind);
        fs::create_dir_all(
            Path::new(&many)
                .parent()
                .context("a deep path has a parent")?,
        )?;
        fs::write(&many, "deep")?;
        beyond(kind)?;
    }
    Ok(())
}

fn make_in_steps(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| {
        format!(
            "failed to create a path of {} bytes",
            folder.as_os_str().len()
        )
    })
}

/// A path of exactly this many bytes.
pub fn long(kind: &str, length: usize) -> String {
    let mut path = format!("/long-{kind}/n{length}");
    while length - path.len() > COMPONENT + 2 {
        path.push('/');
        path.push_str(&"d".repeat(COMPONENT));
    }
    path.push('/');
    path.push_str(&"f".repeat(length - path.len()));
    path
}

/// A path of 200 components.
pub fn deep(kind: &str) -> String {
    format!("/long-{kind}/{}file", "d/".repeat(198))
}

/// A file whose path no single call can name (about 6,000 bytes).
fn beyond(kind: &str) -> Result<()> {
    let back = std::env::current_dir()?;
    let start = format!("/long-{kind}/beyond");
    fs::create_dir_all(&start)?;
    std::env::set_current_dir(&start)?;
    for _ in 0..30 {
        fs::create_dir_all("d".repeat(COMPONENT))?;
        std::env::set_current_dir("d".repeat(COMPONENT))?;
    }
    fs::write("file", "beyond")?;
    std::env::set_current_dir(back)?;
    Ok(())
}

/// Puts the generated names into a row's word: `${ws-300}`, `${secret-4095}`, `${ws-deep}`, `${component}`.
pub fn expand(word: &str) -> String {
    if !word.contains("${") {
        return word.to_owned();
    }
    let mut word = word
        .replace("${component}", &"d".repeat(COMPONENT))
        .replace("${argument-40000}", &"a".repeat(40_000));
    for name in ["victim", "victim-address", "daemon"] {
        let mark = format!("${{{name}}}");
        if word.contains(&mark) {
            word = word.replace(&mark, &victim::fact(name));
        }
    }
    for kind in ["ws", "secret"] {
        for length in [300, 4095] {
            word = word.replace(&format!("${{{kind}-{length}}}"), &long(kind, length));
        }
        word = word.replace(&format!("${{{kind}-deep}}"), &deep(kind));
    }
    word
}

/// What there is below `/t`: for each path its kind, mode, owner and contents as a digest.
#[derive(Debug, PartialEq, Eq)]
pub struct Picture(BTreeMap<PathBuf, u64>);

impl Picture {
    /// Takes it.
    pub fn take() -> Result<Self> {
        let mut all = BTreeMap::new();
        walk(Path::new(ROOT), &mut all)?;
        Ok(Self(all))
    }

    /// The first path that differs.
    pub fn difference<'a>(&'a self, other: &'a Self) -> Option<&'a Path> {
        let changed = self
            .0
            .iter()
            .find(|(path, digest)| other.0.get(*path) != Some(*digest));
        changed
            .or_else(|| other.0.iter().find(|(path, _)| !self.0.contains_key(*path)))
            .map(|(path, _)| path.as_path())
    }
}

fn walk(path: &Path, all: &mut BTreeMap<PathBuf, u64>) -> Result<()> {
    let meta = fs::symlink_metadata(path)?;
    let mut hasher = DefaultHasher::new();
    (meta.mode(), meta.uid(), meta.gid(), meta.nlink()).hash(&mut hasher);
    if meta.is_file() {
        meta.ino().hash(&mut hasher);
        fs::read(path)?.hash(&mut hasher);
    } else if meta.is_symlink() {
        fs::read_link(path)?
            .as_os_str()
            .as_bytes()
            .hash(&mut hasher);
    }
    all.insert(path.to_owned(), hasher.finish());
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            walk(&entry?.path(), all)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paths_have_the_length_they_promise() {
        for length in [300, 4095] {
            assert_eq!(long("ws", length).len(), length);
            assert!(
                long("secret", length)
                    .split('/')
                    .all(|component| component.len() <= 255)
            );
        }
        assert_eq!(deep("ws").split('/').skip(1).count(), 200);
    }
}
