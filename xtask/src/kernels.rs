//! The kernels of the test matrix: Debian's cloud kernels, resolved when they are first needed and
//! kept in the cache.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail};

use crate::archive::Tree;
use crate::debian::Apt;
use crate::place::{self, Scratch};

/// One row of the matrix.
pub struct Choice {
    /// What users call it.
    pub name: &'static str,
    suites: &'static [&'static str],
}

/// The matrix, oldest first.
pub const MATRIX: &[Choice] = &[
    Choice {
        name: "6.1",
        suites: &["bookworm", "bookworm-updates", "bookworm-security"],
    },
    Choice {
        name: "6.12",
        suites: &["trixie", "trixie-updates", "trixie-security"],
    },
    Choice {
        name: "newest",
        suites: &["trixie-backports"],
    },
];

/// A kernel that can be booted.
#[derive(Clone)]
pub struct Kernel {
    /// Its name in the matrix, or its path.
    pub name: String,
    /// The bootable image.
    pub image: PathBuf,
    /// What `uname -r` says in the guest, where it is known.
    pub release: String,
    /// Its modules that tests load, as they are in [`MODULES`]; some kernels have some of them built in.
    pub modules: Vec<PathBuf>,
}

/// Modules that tests load: two file systems, what says whose a socket is, one that does nothing, and what networks of
/// containers are made of, with what that needs.
const MODULES: &[&str] = &[
    "overlay",
    "fuse",
    "inet_diag",
    "tcp_diag",
    "dummy",
    "llc",
    "stp",
    "bridge",
    "veth",
];
/// Where it is noted of which modules a kernel in the cache has what there is.
const LOOKED_FOR: &str = "looked-for";

/// The kernel of this name in the matrix, or the image at this path.
pub fn find(name: &str) -> Result<Kernel> {
    if let Some(choice) = MATRIX.iter().find(|choice| choice.name == name) {
        return cached(choice)?.with_context(|| {
            format!("kernel {name} is not in the cache: run `cargo xtask setup` first")
        });
    }
    let path = Path::new(name);
    if !path.is_file() {
        let names: Vec<&str> = MATRIX.iter().map(|choice| choice.name).collect();
        bail!(
            "no kernel {name}: neither a file nor one of {}",
            names.join(", ")
        );
    }
    Ok(Kernel {
        name: name.to_owned(),
        image: path.to_owned(),
        release: "given by path".to_owned(),
        modules: Vec::new(),
    })
}

/// The kernel if the cache has it.
pub fn cached(choice: &Choice) -> Result<Option<Kernel>> {
    let folder = place::cache()?.join("kernels").join(choice.name);
    let Ok(release) = fs::read_to_string(folder.join("release")) else {
        return Ok(None);
    };
    let image = folder.join("vmlinuz");
    // A cache of before there were modules lacks their folder, and is filled again.
    let Ok(modules) = fs::read_dir(folder.join("modules")) else {
        return Ok(None);
    };
    let modules = modules.flatten().map(|entry| entry.path()).collect();
    Ok(image.is_file().then(|| Kernel {
        name: choice.name.to_owned(),
        image,
        release: release.trim().to_owned(),
        modules,
    }))
}

/// Whether the cache has all of [`MODULES`] that the kernel has. Without some of them, tests are left out.
pub fn has_modules(choice: &Choice) -> bool {
    let noted = place::cache().and_then(|cache| {
        let path = cache.join("kernels").join(choice.name).join(LOOKED_FOR);
        Ok(fs::read_to_string(path)?)
    });
    noted.is_ok_and(|noted| noted == MODULES.join("\n"))
}

/// Downloads the newest kernel of the row into the cache.
pub fn fetch(choice: &Choice, apt: &Apt) -> Result<Kernel> {
    let (_, depends) = apt.newest("linux-image-cloud-amd64", choice.suites, "Depends")?;
    let package = depends
        .split([',', ' '])
        .find(|word| word.starts_with("linux-image-") && word.ends_with("-cloud-amd64"))
        .with_context(|| {
            format!("linux-image-cloud-amd64 depends on no kernel image ({depends})")
        })?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    // Since 6.17 the image and the modules are in packages of their own.
    let image_in = [format!("linux-binary-{release}"), package.to_owned()];
    let modules_in = [format!("linux-modules-{release}"), package.to_owned()];
    let places = [
        format!("boot/vmlinuz-{release}"),
        format!("usr/lib/modules/{release}/vmlinuz"),
    ];
    let mut tree = Tree::default();
    for packages in [image_in, modules_in] {
        let Some(package) = packages.iter().find(|package| apt.has(package)) else {
            continue;
        };
        let scratch = Scratch::new("kernel")?;
        let deb = apt.download(package, scratch.path())?;
        tree.package(&deb, |path| {
            !places.iter().any(|place| place == path) && module(path).is_none()
        })?;
    }
    let image = places
        .iter()
        .find_map(|place| tree.contents(place))
        .with_context(|| format!("{package} holds no kernel image"))?;
    let folder = place::cache()?.join("kernels").join(choice.name);
    let modules = folder.join("modules");
    fs::create_dir_all(&modules)
        .with_context(|| format!("failed to create {}", modules.display()))?;
    let failed = || format!("failed to write to {}", folder.display());
    for path in tree.paths() {
        if let (Some(name), Some(data)) = (module(path), tree.contents(path)) {
            let data = decompressed(path, data)?;
            fs::write(modules.join(format!("{name}.ko")), data).with_context(failed)?;
        }
    }
    fs::write(folder.join("vmlinuz"), image).with_context(failed)?;
    fs::write(folder.join("release"), &release).with_context(failed)?;
    fs::write(folder.join(LOOKED_FOR), MODULES.join("\n")).with_context(failed)?;
    cached(choice)?.context("the kernel vanished from the cache")
}

/// The module of [`MODULES`] that is at this path of a package.
fn module(path: &str) -> Option<&'static str> {
    let file = path.strip_suffix(".xz").unwrap_or(path);
    let name = file.rsplit('/').next()?.strip_suffix(".ko")?;
    MODULES.iter().copied().find(|module| *module == name)
}

/// What the kernel takes: not all of them unpack modules.
fn decompressed(path: &str, data: &[u8]) -> Result<Vec<u8>> {
    if path.strip_suffix(".xz").is_none() {
        return Ok(data.to_vec());
    }
    let mut child = Command::new("xz")
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("failed to start xz (Debian has it in xz-utils)")?;
    let mut input = child.stdin.take().context("xz has no input")?;
    let data = data.to_vec();
    let writer = thread::spawn(move || input.write_all(&data));
    let output = child.wait_with_output().context("failed to wait for xz")?;
    if !output.status.success() || !writer.join().is_ok_and(|written| written.is_ok()) {
        bail!("xz failed on {path} ({})", output.status);
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::module;

    #[test]
    fn modules_are_known_by_their_names() {
        let path = "usr/lib/modules/6.12/kernel/fs/overlayfs/overlay.ko.xz";
        assert_eq!(module(path), Some("overlay"));
        assert_eq!(
            module("lib/modules/6.1/kernel/fs/fuse/fuse.ko"),
            Some("fuse")
        );
        assert_eq!(module("lib/modules/6.1/kernel/fs/fuse/virtiofs.ko"), None);
    }
}
