//! The kernels of the test matrix: Debian's cloud kernels, resolved when they are first needed and
//! kept in the cache.

use std::fs;
use std::path::{Path, PathBuf};

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
}

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
    })
}

/// The kernel if the cache has it.
pub fn cached(choice: &Choice) -> Result<Option<Kernel>> {
    let folder = place::cache()?.join("kernels").join(choice.name);
    let Ok(release) = fs::read_to_string(folder.join("release")) else {
        return Ok(None);
    };
    let image = folder.join("vmlinuz");
    Ok(image.is_file().then(|| Kernel {
        name: choice.name.to_owned(),
        image,
        release: release.trim().to_owned(),
    }))
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
    // Since 6.17 the image is in a package of its own.
    let binary = format!("linux-binary-{release}");
    let package = if apt.has(&binary) {
        binary.as_str()
    } else {
        package
    };
    let scratch = Scratch::new("kernel")?;
    let deb = apt.download(package, scratch.path())?;
    let places = [
        format!("boot/vmlinuz-{release}"),
        format!("usr/lib/modules/{release}/vmlinuz"),
    ];
    let mut tree = Tree::default();
    tree.package(&deb, |path| !places.iter().any(|place| place == path))?;
    let image = places
        .iter()
        .find_map(|place| tree.contents(place))
        .with_context(|| format!("{package} holds no kernel image"))?;
    let folder = place::cache()?.join("kernels").join(choice.name);
    fs::create_dir_all(&folder)
        .with_context(|| format!("failed to create {}", folder.display()))?;
    fs::write(folder.join("vmlinuz"), image)
        .with_context(|| format!("failed to write to {}", folder.display()))?;
    fs::write(folder.join("release"), &release)
        .with_context(|| format!("failed to write to {}", folder.display()))?;
    cached(choice)?.context("the kernel vanished from the cache")
}
