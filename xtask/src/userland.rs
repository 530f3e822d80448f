//! The guest's userland: real programs from Debian packages, as one archive in the cache. What is
//! in it is what demo and tests need; documentation, translations and the package manager are left out.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::archive::Tree;
use crate::debian::Apt;
use crate::place;

/// The packages, with all they depend on.
const PACKAGES: &[&str] = &[
    "bash",
    "coreutils",
    "curl",
    "dash",
    "diffutils",
    "findutils",
    "git",
    "grep",
    "hostname",
    "iproute2",
    "login",
    "mawk",
    "netbase",
    "openssh-client",
    "passwd",
    "procps",
    "python3",
    "sed",
    "sudo",
    "tar",
    "gzip",
    "util-linux",
];
/// Changes whenever the archive must be built anew.
const EDITION: &str = "1";

/// Folders and files that no guest needs.
const UNWANTED: &[&str] = &[
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/bash-completion",
    "usr/share/zoneinfo",
    "usr/share/bug",
    "usr/share/i18n",
    "usr/share/gitweb",
    "usr/share/common-licenses",
    "usr/share/zsh",
    "usr/share/perl",
    "usr/lib/x86_64-linux-gnu/perl",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/apt",
    "usr/lib/systemd",
    "usr/lib/udev",
    "usr/lib/python3/dist-packages",
    "usr/lib/python3.13/test",
    "usr/lib/python3.13/ensurepip",
    "usr/lib/python3.13/idlelib",
    "usr/lib/python3.13/tkinter",
    "usr/lib/python3.13/pydoc_data",
    "usr/share/python-wheels",
    "var/lib/dpkg",
    "usr/bin/apt",
    "usr/lib/git-core/git-remote-http",
    "usr/bin/dpkg",
    "usr/lib/x86_64-linux-gnu/libapt",
    "usr/share/dpkg",
    "usr/share/debconf",
];

/// The archive, if the cache has it.
pub fn cached() -> Result<Option<PathBuf>> {
    let path = archive()?;
    Ok(path.is_file().then_some(path))
}

fn archive() -> Result<PathBuf> {
    Ok(place::cache()?.join(format!("userland-{EDITION}.cpio")))
}

/// Downloads the packages and packs them.
pub fn fetch() -> Result<PathBuf> {
    let apt = Apt::over("guest", |suite| {
        suite.starts_with("trixie") && !suite.ends_with("backports")
    })?;
    apt.update()?;
    let packages = apt.download_closure(PACKAGES)?;
    let mut tree = Tree::merged();
    for package in &packages {
        tree.package(package, |path| {
            UNWANTED.iter().any(|prefix| path.starts_with(prefix))
        })?;
    }
    finish(&mut tree);
    let path = archive()?;
    let partial = path.with_extension("partial");
    let out = BufWriter::new(
        File::create(&partial)
            .with_context(|| format!("failed to create {}", partial.display()))?,
    );
    tree.write_cpio(out)
        .with_context(|| format!("failed to write {}", partial.display()))?;
    fs::rename(&partial, &path).with_context(|| format!("failed to write {}", path.display()))?;
    for package in packages {
        fs::remove_file(&package)
            .with_context(|| format!("failed to remove {}", package.display()))?;
    }
    Ok(path)
}

/// What the packages' own scripts would have set up.
fn finish(tree: &mut Tree) {
    let user = "agent:x:1000:1000:Agent:/home/agent:/bin/bash\n";
    tree.file("etc/passwd", 0o644, format!("root:x:0:0:root:/root:/bin/bash\n{user}nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"));
    tree.file(
        "etc/group",
        0o644,
        "root:x:0:\ntty:x:5:\nsudo:x:27:agent\nagent:x:1000:\nnogroup:x:65534:\n",
    );
    tree.file(
        "etc/shadow",
        0o640,
        "root:*:20000:0:99999:7:::\nagent:*:20000:0:99999:7:::\n",
    );
    tree.file(
        "etc/hosts",
        0o644,
        "127.0.0.1 localhost guest\n::1 localhost\n",
    );
    tree.file("etc/hostname", 0o644, "guest\n");
    tree.file(
        "etc/nsswitch.conf",
        0o644,
        "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
    );
    tree.file(
        "etc/sudoers",
        0o440,
        "root ALL=(ALL:ALL) NOPASSWD: ALL\nagent ALL=(ALL:ALL) NOPASSWD: ALL\n",
    );
    let permit = "auth sufficient pam_permit.so\naccount sufficient pam_permit.so\nsession sufficient pam_permit.so\npassword sufficient pam_permit.so\n";
    for service in [
        "sudo",
        "sudo-i",
        "su",
        "su-l",
        "login",
        "other",
        "runuser",
        "runuser-l",
    ] {
        tree.file(&format!("etc/pam.d/{service}"), 0o644, permit);
    }
    for (name, program) in [("awk", "mawk"), ("which", "which.debianutils")] {
        let path = format!("usr/bin/{name}");
        if tree.lacks(&path) && !tree.lacks(&format!("usr/bin/{program}")) {
            tree.symlink(&path, program);
        }
    }
    tree.directory("root", 0o700);
}
