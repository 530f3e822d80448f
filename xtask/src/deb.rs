//! The release as a Debian package, made of the files of the archive: no tool of Debian is needed for it but `tar`
//! and `gzip`. It must never start or stop anything by itself; that do its scripts, where they are installed.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::quiet;
use crate::dist::{copy, write};
use crate::{elf, place};

/// Files that an upgrade does not replace where the operator has changed them.
const CONFFILES: &[&str] = &["etc/agentguard/agentguard.yaml"];
/// Where files of the archive are in a Debian system, where that is another place.
const MOVES: &[(&str, &str)] = &[
    (
        "usr/share/zsh/site-functions/_agentguard",
        "usr/share/zsh/vendor-completions/_agentguard",
    ),
    (
        "usr/share/agentguard/sysusers.conf",
        "usr/lib/sysusers.d/agentguard.conf",
    ),
    (
        "usr/share/agentguard/agentguard.yaml",
        "etc/agentguard/agentguard.yaml",
    ),
];
/// What a Debian system has already, or the copyright says.
const LEFT_OUT: &[&str] = &["LICENSE", "LICENSE-APACHE", "LICENSE-MIT"];
const SCRIPTS: &[&str] = &["postinst", "prerm", "postrm"];
const MAINTAINER: &str = "AgentGuard maintainers <agentguard@users.noreply.github.com>";
/// When files were changed, where nothing says it: 2026-01-01.
const TIME: &str = "1767225600";

/// Makes the package of the files below `root`, and gives its path.
pub fn make(root: &Path, dist: &Path, version: &str) -> Result<PathBuf> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let work = dist.join("deb");
    let (data, control) = (work.join("data"), work.join("control"));
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("failed to clear {}", work.display()))?;
    }
    let time = time();
    lay_out(root, &data)?;
    write_changes(&data, version, &time)?;
    if crate::command::find("strip").is_some() && is_elf(&data.join("usr/bin/agentguard")) {
        let mut strip = Command::new("strip");
        quiet(
            strip
                .arg("--strip-unneeded")
                .arg(data.join("usr/bin/agentguard")),
        )?;
    }
    let files = files_of(&data)?;
    let size: u64 = files.iter().map(|it| it.1.len() as u64).sum();
    let binary = fs::read(data.join("usr/bin/agentguard")).context("failed to read the program")?;
    let text = control_text(version, architecture, &depends(&binary), size);
    write(&control.join("control"), text)?;
    let conffiles = format!("/{}\n", CONFFILES.join("\n/"));
    write(&control.join("conffiles"), conffiles)?;
    write(&control.join("md5sums"), md5sums(&data, &files)?)?;
    for script in SCRIPTS {
        let from = place::workspace().join("xtask/debian").join(script);
        copy(&from, &control.join(script), 0o755)?;
    }
    let members = [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.gz", packed(&control, &time)?),
        ("data.tar.gz", packed(&data, &time)?),
    ];
    let path = dist.join(format!("agentguard_{version}_{architecture}.deb"));
    write(&path, ar(&members, &time)?)?;
    Ok(path)
}

fn is_elf(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF"))
}

/// The files where Debian wants them, manuals and changes compressed.
fn lay_out(root: &Path, data: &Path) -> Result<()> {
    for (name, contents) in files_of(root)? {
        let file = Path::new(&name).file_name().unwrap_or_default();
        if LEFT_OUT.iter().any(|it| file == *it) {
            continue;
        }
        let moved = MOVES.iter().find(|(from, _)| *from == name);
        let to = data.join(moved.map_or(name.as_str(), |(_, to)| to));
        let mode = if name.starts_with("usr/bin/") {
            0o755
        } else {
            0o644
        };
        write(&to, contents)?;
        fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(mode))
            .with_context(|| format!("failed to set the mode of {}", to.display()))?;
        if name.starts_with("usr/share/man/") {
            quiet(Command::new("gzip").args(["-9", "-n", "-f"]).arg(&to))?;
        }
    }
    let copyright = place::workspace().join("xtask/debian/copyright");
    copy(
        &copyright,
        &data.join("usr/share/doc/agentguard/copyright"),
        0o644,
    )?;
    fs::create_dir_all(data.join("etc/agentguard/policies"))
        .context("failed to make the folder of policies")
}

/// What Debian's tools read of a package's history.
fn write_changes(data: &Path, version: &str, time: &str) -> Result<()> {
    let mut date = Command::new("date");
    date.env("LC_ALL", "C").args(["-u", "-R", "-d"]);
    let date = quiet(date.arg(format!("@{time}")))?;
    let text = format!(
        "agentguard ({version}) unstable; urgency=medium\n\n  * What has changed is in /usr/share/doc/agentguard/CHANGELOG.md.\n\n -- {MAINTAINER}  {date}"
    );
    let path = data.join("usr/share/doc/agentguard/changelog");
    write(&path, text)?;
    quiet(Command::new("gzip").args(["-9", "-n", "-f"]).arg(&path)).map(|_| ())
}

/// All files below a folder by their relative names, in order.
fn files_of(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        let failed = || format!("failed to read {}", at.display());
        for entry in fs::read_dir(&at).with_context(failed)? {
            let path = entry.with_context(failed)?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(folder).unwrap_or(&path);
            let name = name.to_str().context("a name is not UTF-8")?.to_owned();
            files.push((name, fs::read(&path).with_context(failed)?));
        }
    }
    files.sort();
    Ok(files)
}

fn md5sums(data: &Path, files: &[(String, Vec<u8>)]) -> Result<String> {
    let mut text = String::new();
    for (name, _) in files
        .iter()
        .filter(|it| !CONFFILES.contains(&it.0.as_str()))
    {
        let sum = quiet(Command::new("md5sum").current_dir(data).arg(name))?;
        text.push_str(&sum);
    }
    Ok(text)
}

/// The libraries that the program asks for, with the newest version of their symbols.
fn depends(binary: &[u8]) -> String {
    // The C library is in it, and speaks of versions all the same.
    if matches!(elf::is_linked(binary), Ok(false)) {
        return String::new();
    }
    let has = |text: &[u8]| binary.windows(text.len()).any(|at| at == text);
    let newest = binary
        .split(|byte| *byte == 0)
        .filter_map(|word| std::str::from_utf8(word).ok()?.strip_prefix("GLIBC_"))
        .filter_map(|version| {
            let numbers = version.split('.').map(|it| it.parse::<u32>().ok());
            numbers.collect::<Option<Vec<u32>>>()
        })
        .max();
    let mut depends = match newest {
        Some(version) => {
            let numbers: Vec<String> = version.iter().map(u32::to_string).collect();
            format!("libc6 (>= {})", numbers.join("."))
        }
        None => String::new(),
    };
    if has(b"libgcc_s.so.1\0") {
        depends.push_str(if depends.is_empty() { "" } else { ", " });
        depends.push_str("libgcc-s1 (>= 4.2)");
    }
    depends
}

fn control_text(version: &str, architecture: &str, depends: &str, size: u64) -> String {
    let mut text = format!(
        "Package: agentguard\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: {MAINTAINER}\nInstalled-Size: {}\n",
        size.div_ceil(1024)
    );
    if !depends.is_empty() {
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "Depends: {depends}");
    }
    text.push_str(
        "Section: admin\nPriority: optional\nHomepage: https://github.com/agentguard/agentguard\n\
         Description: runtime enforcement for AI agents, in the kernel\n \
         Holds AI agents, and everything that they start, to a policy: which files they\n \
         open, which programs they run, which hosts they reach, and how much of it. What\n \
         is not permitted fails with EPERM, and everything is recorded.\n .\n \
         Decisions are made by eBPF programs on the hooks of the kernel's security\n \
         modules (BPF LSM), and hold while no daemon runs.\n",
    );
    text
}

/// A folder as an archive: same files, same bytes.
fn packed(folder: &Path, time: &str) -> Result<Vec<u8>> {
    let output = Command::new("tar")
        .current_dir(folder)
        .args([
            "--sort=name",
            "--owner=root:0",
            "--group=root:0",
            "--format=gnu",
            "--mode=u+rwX,go+rX,go-w",
        ])
        .arg(format!("--mtime=@{time}"))
        .args(["--use-compress-program=gzip -9 -n", "-cf", "-", "."])
        .output()
        .context("failed to start tar")?;
    if !output.status.success() {
        let what = String::from_utf8_lossy(&output.stderr);
        bail!("tar failed on {}: {what}", folder.display());
    }
    Ok(output.stdout)
}

/// The time of the last change, as tools that make the same bytes of the same sources are told it.
fn time() -> String {
    let told = std::env::var("SOURCE_DATE_EPOCH").ok();
    let of_commit = || {
        let mut git = Command::new("git");
        git.current_dir(place::workspace());
        quiet(git.args(["log", "-1", "--format=%ct"])).ok()
    };
    let time = told.or_else(of_commit).unwrap_or_default();
    let time = time.trim();
    if time.parse::<u64>().is_ok() {
        time
    } else {
        TIME
    }
    .to_owned()
}

/// An `ar` archive, as `deb(5)` wants it.
fn ar(members: &[(&str, Vec<u8>)], time: &str) -> Result<Vec<u8>> {
    let mut archive = b"!<arch>\n".to_vec();
    for (name, contents) in members {
        let header = format!(
            "{name:<16}{time:<12}{:<6}{:<6}{:<8}{:<10}`\n",
            0,
            0,
            "100644",
            contents.len()
        );
        if header.len() != 60 {
            bail!("{name} does not fit into an ar archive");
        }
        archive.extend(header.as_bytes());
        archive.extend(contents);
        if contents.len() % 2 == 1 {
            archive.push(b'\n');
        }
    }
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_begin_at_even_places() {
        let members = [
            ("debian-binary", b"2.0\n".to_vec()),
            ("odd", vec![1, 2, 3]),
            ("b", vec![4]),
        ];
        let archive = ar(&members, "5").expect("an archive");
        assert_eq!(archive.len(), 8 + 60 + 4 + 60 + 4 + 60 + 2);
        assert_eq!(&archive[..24], b"!<arch>\ndebian-binary   ");
        assert_eq!(&archive[8 + 58..8 + 60], b"`\n");
        let second = 8 + 60 + 4;
        assert_eq!(&archive[second..second + 4], b"odd ");
        assert!(ar(&[("a-name-that-is-too-long", vec![])], "5").is_err());
    }

    #[test]
    fn what_the_program_is_linked_with_is_depended_on() {
        let binary = b"\0GLIBC_2.9\0GLIBC_2.34\0GLIBC_PRIVATE\0libgcc_s.so.1\0x";
        assert_eq!(depends(binary), "libc6 (>= 2.34), libgcc-s1 (>= 4.2)");
        assert_eq!(depends(b"nothing"), "");
    }

    #[test]
    fn a_package_is_made_that_debian_reads() {
        if crate::command::find("dpkg-deb").is_none() {
            eprintln!("skipped: no dpkg-deb");
            return;
        }
        let folder = place::target().join("test-deb");
        let _ = fs::remove_dir_all(&folder);
        let root = folder.join("root");
        for (name, text) in [
            ("usr/bin/agentguard", "GLIBC_2.36\0"),
            ("usr/share/man/man1/agentguard.1", ".TH x"),
            ("usr/share/agentguard/agentguard.yaml", "on_stop: keep\n"),
            ("usr/share/agentguard/sysusers.conf", "g agentguard -\n"),
            ("usr/share/doc/agentguard/CHANGELOG.md", "# Changelog\n"),
            ("usr/share/doc/agentguard/LICENSE-MIT", "x"),
        ] {
            write(&root.join(name), text).expect("a file");
        }
        let first = make(&root, &folder, "1.2.3").expect("a package");
        let bytes = fs::read(&first).expect("its bytes");
        let again = make(&root, &folder, "1.2.3").expect("a package");
        assert!(
            bytes == fs::read(again).expect("its bytes"),
            "same files, same bytes"
        );
        let ask = |what: &str| quiet(Command::new("dpkg-deb").arg(what).arg(&first)).expect(what);
        let info = ask("--info");
        assert!(
            info.contains("Version: 1.2.3") && info.contains("postinst"),
            "{info}"
        );
        let contents = ask("--contents");
        for name in [
            "./usr/bin/agentguard",
            "./usr/share/man/man1/agentguard.1.gz",
            "./etc/agentguard/agentguard.yaml",
            "./etc/agentguard/policies/",
            "./usr/lib/sysusers.d/agentguard.conf",
            "./usr/share/doc/agentguard/changelog.gz",
            "./usr/share/doc/agentguard/CHANGELOG.md",
            "./usr/share/doc/agentguard/copyright",
        ] {
            assert!(
                contents.lines().any(|line| line.ends_with(name)),
                "{name}\n{contents}"
            );
        }
        assert!(!contents.contains("LICENSE"), "{contents}");
        assert!(
            contents.lines().all(|line| line.contains(" root/root ")),
            "{contents}"
        );
    }
}
