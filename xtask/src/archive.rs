//! A file tree in memory: read from Debian packages, written as a `newc` cpio archive (what the
//! kernel unpacks as its initial root). It must never depend on the host's users or permissions:
//! everything in an archive belongs to root, so that any user can build one.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::command::quiet;

const TYPE_MASK: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// Directories that are links into `/usr` in every Debian since 12.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64"];

struct Node {
    mode: u32,
    /// Contents of a file, target of a symbolic link.
    data: Vec<u8>,
    /// Set for a hard link: the path that holds the contents.
    link_to: Option<String>,
}

/// The tree. Paths are relative to the root, without a leading or trailing slash.
#[derive(Default)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// An empty tree in which `/bin`, `/lib` and so on are links into `/usr`.
    pub fn merged() -> Self {
        let mut tree = Self::default();
        for name in MERGED {
            tree.directory(&format!("usr/{name}"), 0o755);
            tree.symlink(name, &format!("usr/{name}"));
        }
        tree
    }

    fn put(&mut self, path: &str, node: Node) {
        let path = path.trim_matches('/');
        let mut at = 0;
        while let Some(slash) = path[at..].find('/') {
            let parent = &path[..at + slash];
            if !self.nodes.contains_key(parent) {
                self.directory(parent, 0o755);
            }
            at += slash + 1;
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// Adds a directory; one that exists keeps its place and takes the mode.
    pub fn directory(&mut self, path: &str, mode: u32) {
        self.put(
            path,
            Node {
                mode: DIRECTORY | mode,
                data: Vec::new(),
                link_to: None,
            },
        );
    }

    /// Adds a file with these contents.
    pub fn file(&mut self, path: &str, mode: u32, data: impl Into<Vec<u8>>) {
        self.put(
            path,
            Node {
                mode: REGULAR | mode,
                data: data.into(),
                link_to: None,
            },
        );
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.put(
            path,
            Node {
                mode: SYMLINK | 0o777,
                data: target.into(),
                link_to: None,
            },
        );
    }

    /// True when nothing has this path.
    pub fn lacks(&self, path: &str) -> bool {
        !self.nodes.contains_key(path)
    }

    /// The contents of a file.
    pub fn contents(&self, path: &str) -> Option<&[u8]> {
        self.nodes
            .get(path)
            .filter(|node| node.mode & TYPE_MASK == REGULAR)
            .map(|node| node.data.as_slice())
    }

    /// Every path.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// The contents of all files whose path begins with this.
    pub fn contents_below(&self, prefix: &str) -> Vec<Vec<u8>> {
        let files = self
            .nodes
            .iter()
            .filter(|(path, node)| path.starts_with(prefix) && node.mode & TYPE_MASK == REGULAR);
        files.map(|(_, node)| node.data.clone()).collect()
    }

    /// Copies a file or a directory with all that is in it from the host to `at`.
    pub fn copy(&mut self, from: &Path, at: &str) -> Result<()> {
        let failed = || format!("failed to read {}", from.display());
        let meta = fs::symlink_metadata(from).with_context(failed)?;
        let mode = meta.permissions().mode() & 0o7777;
        if meta.is_dir() {
            self.directory(at, mode);
            for entry in fs::read_dir(from).with_context(failed)? {
                let entry = entry.with_context(failed)?;
                let name = entry.file_name();
                let name = name.to_str().with_context(|| {
                    format!("{} has a name that is not UTF-8", entry.path().display())
                })?;
                self.copy(&entry.path(), &format!("{at}/{name}"))?;
            }
        } else if meta.is_symlink() {
            let target = fs::read_link(from).with_context(failed)?;
            self.put(
                at,
                Node {
                    mode: SYMLINK | 0o777,
                    data: target.as_os_str().as_bytes().to_vec(),
                    link_to: None,
                },
            );
        } else if meta.is_file() {
            self.file(at, mode, fs::read(from).with_context(failed)?);
        }
        Ok(())
    }

    /// Adds the contents of a Debian package, and gives the names of all that it has.
    pub fn package(&mut self, deb: &Path, unwanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        self.unpacked(deb, "--fsys-tarfile", |path| {
            (!unwanted(path)).then(|| path.to_owned())
        })
    }

    /// Adds what a part of a package has, each where `place` puts it.
    fn unpacked(
        &mut self,
        deb: &Path,
        part: &str,
        place: impl Fn(&str) -> Option<String>,
    ) -> Result<Vec<String>> {
        let mut child = Command::new("dpkg-deb")
            .arg(part)
            .arg(deb)
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to start dpkg-deb")?;
        let pipe = child.stdout.take().context("dpkg-deb has no output")?;
        let read = self.tar(io::BufReader::new(pipe), place);
        let status = child.wait().context("failed to wait for dpkg-deb")?;
        let names = read.with_context(|| format!("failed to unpack {}", deb.display()))?;
        if !status.success() {
            bail!("dpkg-deb failed on {} ({status})", deb.display());
        }
        Ok(names)
    }

    /// Adds a package whose contents have these names to the database of `dpkg`, as one that is installed. Its scripts
    /// are there, and have not run.
    pub fn register(&mut self, deb: &Path, names: &[String]) -> Result<()> {
        const DATABASE: &str = "var/lib/dpkg";
        let control = quiet(Command::new("dpkg-deb").arg("--field").arg(deb))?;
        let field = |key: &str| {
            let mut lines = control.lines();
            lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
        };
        let name = field("Package").context("a package has no name")?;
        let qualified = match (field("Multi-Arch"), field("Architecture")) {
            (Some("same"), Some(architecture)) => format!("{name}:{architecture}"),
            _ => name.to_owned(),
        };
        let info = |what: &str| format!("{DATABASE}/info/{qualified}.{what}");
        self.unpacked(deb, "--ctrl-tarfile", |path| {
            (path != "control").then(|| info(path))
        })?;
        let list: String = names
            .iter()
            .flat_map(|name| ["/", name.as_str(), "\n"])
            .collect();
        self.file(&info("list"), 0o644, format!("/.\n{list}"));
        self.file(&format!("{DATABASE}/info/format"), 0o644, "1\n");
        let status = format!("{DATABASE}/status");
        let mut text = self.contents(&status).unwrap_or_default().to_vec();
        // A paragraph's first line is its package's name.
        let (first, rest) = control
            .split_once('\n')
            .context("a package has one field")?;
        let paragraph = format!(
            "{first}\nStatus: install ok installed\n{}\n\n",
            rest.trim_end()
        );
        text.extend_from_slice(paragraph.as_bytes());
        self.file(&status, 0o644, text);
        Ok(())
    }

    fn tar(
        &mut self,
        mut source: impl Read,
        place: impl Fn(&str) -> Option<String>,
    ) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut header = [0u8; 512];
        let (mut long_name, mut long_link) = (None, None);
        loop {
            source.read_exact(&mut header)?;
            if header.iter().all(|&byte| byte == 0) {
                io::copy(&mut source, &mut io::sink())?;
                return Ok(names);
            }
            let size = octal(&header[124..136])?;
            let mut data = vec![0; usize::try_from(size)?.next_multiple_of(512)];
            source.read_exact(&mut data)?;
            data.truncate(usize::try_from(size)?);
            match header[156] {
                b'L' => long_name = Some(text(&data)?),
                b'K' => long_link = Some(text(&data)?),
                kind => {
                    let name = long_name.take().map_or_else(|| text(&header[..100]), Ok)?;
                    let target = long_link
                        .take()
                        .map_or_else(|| text(&header[157..257]), Ok)?;
                    let path = merged_path(&name);
                    if path.is_empty() {
                        continue;
                    }
                    if let Some(place) = place(&path) {
                        let mode = u32::try_from(octal(&header[100..108])?)? & 0o7777;
                        self.member(kind, &place, mode, &target, data);
                    }
                    names.push(path);
                }
            }
        }
    }

    fn member(&mut self, kind: u8, path: &str, mode: u32, target: &str, data: Vec<u8>) {
        match kind {
            b'0' | 0 => self.file(path, mode, data),
            b'1' => self.put(
                path,
                Node {
                    mode: REGULAR | mode,
                    data: Vec::new(),
                    link_to: Some(merged_path(target)),
                },
            ),
            b'2' => self.symlink(path, target),
            b'5' if self
                .nodes
                .get(path)
                .is_none_or(|node| node.mode & TYPE_MASK != SYMLINK) =>
            {
                self.directory(path, mode);
            }
            // Devices and FIFOs: the guest has devtmpfs.
            _ => {}
        }
    }

    /// Writes the tree as a `newc` archive.
    pub fn write_cpio(&self, mut out: impl Write) -> io::Result<()> {
        let mut links: HashMap<&str, u32> = HashMap::new();
        for (path, node) in &self.nodes {
            *links
                .entry(node.link_to.as_deref().unwrap_or(path))
                .or_default() += 1;
        }
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        for (path, node) in &self.nodes {
            let owner = node.link_to.as_deref().unwrap_or(path);
            let known = numbers.len() as u32 + 1;
            let first = !numbers.contains_key(owner);
            let inode = *numbers.entry(owner).or_insert(known);
            let source = self.nodes.get(owner).unwrap_or(node);
            let data: &[u8] = if first { &source.data } else { &[] };
            entry(
                &mut out,
                path,
                source.mode,
                inode,
                links.get(owner).copied().unwrap_or(1),
                data,
            )?;
        }
        entry(&mut out, "TRAILER!!!", 0, 0, 1, &[])?;
        // Archives that follow one another must start at a multiple of four; a block is safe.
        out.write_all(&[0; 512])?;
        out.flush()
    }
}

fn entry(
    out: &mut impl Write,
    path: &str,
    mode: u32,
    inode: u32,
    links: u32,
    data: &[u8],
) -> io::Result<()> {
    let size = u32::try_from(data.len())
        .map_err(|_| io::Error::other(format!("{path} is too large for a cpio archive")))?;
    let links = if mode & TYPE_MASK == DIRECTORY {
        2
    } else {
        links
    };
    write!(
        out,
        "070701{inode:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{size:08x}",
        0, 0, 0
    )?;
    write!(
        out,
        "{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}",
        0,
        0,
        0,
        0,
        path.len() + 1,
        0
    )?;
    out.write_all(path.as_bytes())?;
    out.write_all(&[0; 4][..=padding(110 + path.len() + 1)])?;
    out.write_all(data)?;
    out.write_all(&[0; 4][..padding(data.len())])
}

fn padding(length: usize) -> usize {
    length.next_multiple_of(4) - length
}

fn octal(field: &[u8]) -> Result<u64> {
    let digits = text(field)?;
    let digits = digits.trim();
    u64::from_str_radix(if digits.is_empty() { "0" } else { digits }, 8)
        .with_context(|| format!("bad number {digits:?} in a tar header"))
}

fn text(field: &[u8]) -> Result<String> {
    let end = field
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(field.len());
    Ok(std::str::from_utf8(&field[..end])
        .context("a name in a package is not UTF-8")?
        .to_owned())
}

/// The path in the tree of a tar member: relative, and below `/usr` where the directory is a link.
fn merged_path(name: &str) -> String {
    let path = name.trim_start_matches("./").trim_matches('/');
    let path = if path == "." { "" } else { path };
    let first = path.split('/').next().unwrap_or_default();
    if path.len() > first.len() && MERGED.contains(&first) {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_merged_directories_move_below_usr() {
        assert_eq!(merged_path("./bin/ls"), "usr/bin/ls");
        assert_eq!(merged_path("./usr/bin/ls"), "usr/bin/ls");
        assert_eq!(merged_path("./bin"), "bin");
        assert_eq!(merged_path("./binary/x"), "binary/x");
        assert_eq!(merged_path("./"), "");
    }

    #[test]
    fn cpio_entries_are_aligned_and_hard_links_share_an_inode() {
        let mut tree = Tree::default();
        tree.file("a/first", 0o644, "abc");
        tree.put(
            "a/second",
            Node {
                mode: REGULAR | 0o644,
                data: Vec::new(),
                link_to: Some("a/first".into()),
            },
        );
        let mut out = Vec::new();
        tree.write_cpio(&mut out).expect("writing to memory");
        assert_eq!(out.len() % 4, 0);
        let text = String::from_utf8_lossy(&out);
        let headers: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(headers.len(), 4);
        assert!(headers.iter().all(|at| at % 4 == 0));
        let inode = |n: usize| &text[headers[n] + 6..headers[n] + 14];
        assert_eq!(inode(1), inode(2));
        assert_ne!(inode(0), inode(1));
    }
}
