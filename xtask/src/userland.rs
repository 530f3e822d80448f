//! The guests' userlands: real programs from Debian packages, each as one archive in the cache. What is
//! in them is what demo and tests need; documentation, translations and the package manager are left out.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::archive::Tree;
use crate::debian::Apt;
use crate::place;
use crate::setup::step;

/// A userland: what is in its archive, with all that depends on, and what is not.
pub struct Userland {
    /// What people read.
    pub name: &'static str,
    /// What it is for.
    pub why: &'static str,
    /// Name of the archive in the cache.
    file: &'static str,
    /// Changes whenever the archive must be built anew.
    edition: u32,
    packages: &'static [&'static [&'static str]],
    unwanted: &'static [&'static [&'static str]],
    /// Whether it is a whole system, with systemd as its first process and the database of its packages.
    pub system: bool,
}

/// What every guest has.
pub const GUEST: Userland = Userland {
    name: "guest userland",
    why: "real git, python and shells for the demo and the tests",
    file: "userland",
    edition: 1,
    packages: &[BASE],
    unwanted: &[DOCUMENTATION, SYSTEM, SPARE],
    system: false,
};

/// The tools of a day's work, for the tests that nothing of it is broken and for what it costs. Ten times as large.
pub const WORKSHOP: Userland = Userland {
    name: "guest workshop",
    why: "compilers, node, package managers and clients of all kinds, to show that ordinary work goes on, and what it costs",
    file: "workshop",
    edition: 3,
    packages: &[BASE, TOOLS, CLIENTS, &["bubblewrap"]],
    unwanted: &[DOCUMENTATION, SYSTEM, HEAVY],
    system: false,
};

/// What runs containers, for the scenario that governs one.
pub const CONTAINERS: Userland = Userland {
    name: "guest containers",
    why: "an engine for containers, to show that what runs in one can be governed",
    file: "containers",
    edition: 1,
    packages: &[BASE, ENGINE],
    unwanted: &[DOCUMENTATION, SYSTEM, SPARE],
    system: false,
};

/// A Debian system, for the scenario that installs the package there.
pub const DEBIAN: Userland = Userland {
    name: "guest Debian",
    why: "systemd and dpkg, to show that the package does there what the README says",
    file: "debian",
    edition: 1,
    packages: &[BASE, SERVICES],
    unwanted: &[DOCUMENTATION, PERL],
    system: true,
};

/// Memory in MiB of a guest that has the workshop: it is unpacked there.
pub const WORKSHOP_MEMORY: u32 = 5120;

const BASE: &[&str] = &[
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
const TOOLS: &[&str] = &[
    "ca-certificates",
    "cargo",
    "gcc",
    "libc6-dev",
    "make",
    "nodejs",
    "npm",
    "python3-pip",
    "python3-venv",
    "rustc",
    "tmux",
];
/// What reaches other hosts in a way of its own, and what serves it here.
const CLIENTS: &[&str] = &[
    "bind9-dnsutils",
    "libc-bin",
    "musl-tools",
    "openssh-server",
    "openssl",
    "python3-aioquic",
    "python3-requests",
];

/// Podman, with what it starts: its monitor, its runtime, and what makes its networks.
const ENGINE: &[&str] = &["conmon", "crun", "netavark", "podman"];

/// What makes a Debian system of it: the service manager, and what `dpkg` and scripts of packages need.
const SERVICES: &[&str] = &[
    "base-files",
    "base-passwd",
    "ca-certificates",
    "dbus",
    "debianutils",
    "dpkg",
    "init-system-helpers",
    "kmod",
    "libc-bin",
    "perl-base",
    "systemd",
    "systemd-sysv",
];

/// What no guest needs.
const DOCUMENTATION: &[&str] = &[
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
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/python3.13/test",
    "usr/lib/python3.13/idlelib",
    "usr/lib/python3.13/tkinter",
    "usr/lib/python3.13/pydoc_data",
];

/// What only a whole system needs.
const SYSTEM: &[&str] = &[
    "usr/lib/apt",
    "usr/lib/systemd",
    "usr/lib/udev",
    "var/lib/dpkg",
    "usr/bin/apt",
    "usr/bin/dpkg",
    "usr/lib/x86_64-linux-gnu/libapt",
    "usr/share/dpkg",
    "usr/share/debconf",
];

/// Modules of Perl beyond those that packages count on.
const PERL: &[&str] = &[
    "usr/share/perl/",
    "usr/lib/x86_64-linux-gnu/perl/",
    "usr/lib/python3.13/ensurepip",
];

/// What only the workshop needs.
const SPARE: &[&str] = &[
    "usr/share/perl",
    "usr/lib/x86_64-linux-gnu/perl",
    "usr/lib/python3/dist-packages",
    "usr/lib/python3.13/ensurepip",
    "usr/share/python-wheels",
    "usr/lib/git-core/git-remote-http",
];

/// Large parts of the tools that no ordinary work comes near.
const HEAVY: &[&str] = &[
    "usr/lib/gcc/x86_64-linux-gnu/14/libasan.a",
    "usr/lib/gcc/x86_64-linux-gnu/14/libhwasan.a",
    "usr/lib/gcc/x86_64-linux-gnu/14/liblsan.a",
    "usr/lib/gcc/x86_64-linux-gnu/14/libtsan.a",
    "usr/lib/gcc/x86_64-linux-gnu/14/libubsan.a",
    "usr/libexec/gcc/x86_64-linux-gnu/14/lto1",
];

impl Userland {
    /// The archive, which is downloaded when it is first needed.
    pub fn get(&self) -> Result<PathBuf> {
        let archive = self.archive()?;
        if archive.is_file() {
            return Ok(archive);
        }
        step(self.name, self.why, || self.fetch())
    }

    fn archive(&self) -> Result<PathBuf> {
        Ok(place::cache()?.join(format!("{}-{}.cpio", self.file, self.edition)))
    }

    /// Downloads the packages and packs them.
    fn fetch(&self) -> Result<PathBuf> {
        let apt = Apt::over("guest", |suite| {
            suite.starts_with("trixie") && !suite.ends_with("backports")
        })?;
        apt.update()?;
        let packages = apt.download_closure(&self.packages.concat())?;
        let unwanted = self.unwanted.concat();
        let mut tree = Tree::merged();
        for package in &packages {
            let names = tree.package(package, |path| {
                unwanted.iter().any(|prefix| path.starts_with(prefix))
            })?;
            if self.system {
                tree.register(package, &names)?;
            }
        }
        finish(&mut tree);
        if self.system {
            finish_system(&mut tree);
        }
        let path = self.archive()?;
        let partial = path.with_extension("partial");
        let out = BufWriter::new(
            File::create(&partial)
                .with_context(|| format!("failed to create {}", partial.display()))?,
        );
        tree.write_cpio(out)
            .with_context(|| format!("failed to write {}", partial.display()))?;
        fs::rename(&partial, &path)
            .with_context(|| format!("failed to write {}", path.display()))?;
        for package in packages {
            fs::remove_file(&package)
                .with_context(|| format!("failed to remove {}", package.display()))?;
        }
        Ok(path)
    }
}

/// The same for a whole system: it has booted before, and people log in nowhere.
fn finish_system(tree: &mut Tree) {
    // Groups and users of services are made at the boot, as the packages' files say.
    for (name, from) in [("passwd", "passwd.master"), ("group", "group.master")] {
        let master = tree.contents(&format!("usr/share/base-passwd/{from}"));
        let own = tree.contents(&format!("etc/{name}"));
        let (Some(master), Some(own)) = (master, own) else {
            continue;
        };
        let (master, own) = (
            String::from_utf8_lossy(master),
            String::from_utf8_lossy(own),
        );
        let known = |line: &&str| {
            let name = line.split(':').next().unwrap_or_default();
            !own.lines().any(|own| own.split(':').next() == Some(name))
        };
        let more: String = master
            .lines()
            .filter(known)
            .flat_map(|line| [line, "\n"])
            .collect();
        let text = format!("{own}{more}");
        tree.file(&format!("etc/{name}"), 0o644, text);
    }
    tree.file(
        "etc/machine-id",
        0o444,
        "5e8d0c5b7f2a4c0f9a3c1d2e4b6f8091\n",
    );
    tree.file("etc/fstab", 0o644, "");
    tree.file(
        "etc/nsswitch.conf",
        0o644,
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
    );
    tree.symlink(
        "etc/systemd/system/default.target",
        "/usr/lib/systemd/system/multi-user.target",
    );
    for masked in [
        "serial-getty@.service",
        "getty@.service",
        "ldconfig.service",
    ] {
        tree.symlink(&format!("etc/systemd/system/{masked}"), "/dev/null");
    }
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
    for (name, program) in [
        ("awk", "mawk"),
        ("which", "which.debianutils"),
        ("cc", "gcc"),
    ] {
        let path = format!("usr/bin/{name}");
        if tree.lacks(&path) && !tree.lacks(&format!("usr/bin/{program}")) {
            tree.symlink(&path, program);
        }
    }
    let bundle = tree.contents_below("usr/share/ca-certificates/").concat();
    if !bundle.is_empty() {
        tree.file("etc/ssl/certs/ca-certificates.crt", 0o644, bundle);
    }
    tree.directory("root", 0o700);
}
