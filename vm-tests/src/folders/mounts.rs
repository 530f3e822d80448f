//! Folders that are reached through other mounts.

use std::fs;

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount};

use super::ground::{bind, make, mounts, place, rename, tmpfs, unmount};
use super::scene::{Scene, way};
use crate::guard::Agent;

pub fn bound(scene: &mut Scene, agent: &Agent) -> Result<()> {
    make("free/p/d")?;
    for folder in ["denied/d", "denied/p", "free/bound"] {
        make(folder)?;
    }
    fs::write(place("denied/g"), "covered")?;
    scene.opener(agent)?;
    let own = place("free/p/d/f");
    scene.are(&[way(0, "", &own, &own)])?;
    let mut last: Option<&str> = None;
    for (from, to, below) in [
        ("free/p/d", "denied/d", "/f"),
        ("free/p/d", "free/bound", "/f"),
        ("free/p", "denied/p", "/d/f"),
        ("free/p", "free/bound", "/d/f"),
        ("free/p/d/f", "denied/g", ""),
        ("free/p/d", "denied/d", "/f"),
    ] {
        if let Some(last) = last {
            unmount(last, MntFlags::empty())?;
            let uncovered = place(last) + if last.ends_with('g') { "" } else { "/f" };
            scene.are(&[way(0, "", &uncovered, &uncovered), way(0, "", &own, &own)])?;
        }
        bind(from, to)?;
        last = Some(to);
        let target = place(to) + below;
        scene.are(&[way(0, "", &target, &target), way(0, "", &own, &own)])?;
    }
    // Of two mounts of one folder at once, each has its name.
    bind("free/p/d", "free/bound")?;
    let (denied, free) = (place("denied/d/f"), place("free/bound/f"));
    scene.are(&[
        way(0, "", &denied, &denied),
        way(0, "", &free, &free),
        way(0, "", &own, &own),
    ])?;
    // What is bound is renamed.
    rename("free/p", "denied/q")?;
    let own = place("denied/q/d/f");
    scene.are(&[
        way(0, "", &own, &own),
        way(0, "", &denied, &denied),
        way(0, "", &free, &free),
    ])
}

pub fn mount_moved(scene: &mut Scene, agent: &Agent) -> Result<()> {
    make("free/p/d")?;
    for folder in ["free/one", "denied/one", "free/two"] {
        make(folder)?;
    }
    bind("free/p", "free/one")?;
    scene.start(agent, "free/one/d")?;
    scene.in_folder("free/one/d")?;
    let (mut at, own) = ("free/one", place("free/p/d/f"));
    for to in ["denied/one", "free/two", "denied/one", "free/one"] {
        mounts(at, to, MsFlags::MS_MOVE)?;
        at = to;
        scene.in_folder(&format!("{to}/d"))?;
        scene.are(&[
            way(0, "it", "f", &(place(to) + "/d/f")),
            way(0, "", &own, &own),
        ])?;
    }
    Ok(())
}

/// It has no path but the one from its own root.
pub fn detached(scene: &mut Scene, agent: &Agent) -> Result<()> {
    make("free/p/q/d")?;
    fs::create_dir_all(place("denied/one"))?;
    bind("free/p", "denied/one")?;
    scene.opener(agent)?;
    scene.tell(0, &["hold", "it", &place("denied/one/q/d")])?;
    let (bound, own) = (place("denied/one/q/d/f"), place("free/p/q/d/f"));
    scene.are(&[way(0, "it", "f", &bound), way(0, "", &own, &own)])?;
    unmount("denied/one", MntFlags::MNT_DETACH)?;
    scene.are(&[
        way(0, "it", "f", "/q/d/f").outside(),
        way(0, "", &own, &own),
    ])?;
    rename("free/p/q", "free/p/denied")?;
    let own = place("free/p/denied/d/f");
    scene.are(&[
        way(0, "it", "f", "/denied/d/f").outside(),
        way(0, "", &own, &own),
    ])
}

pub fn mounted_over(scene: &mut Scene, agent: &Agent) -> Result<()> {
    for folder in ["free/d", "denied/d"] {
        make(folder)?;
    }
    scene.opener(agent)?;
    scene.tell(0, &["hold", "free", &place("free/d")])?;
    scene.tell(0, &["hold", "denied", &place("denied/d")])?;
    let (free, denied) = (place("free/d/f"), place("denied/d/f"));
    let all = |scene: &mut Scene| {
        scene.are(&[
            way(0, "free", "f", &free),
            way(0, "", &free, &free),
            way(0, "denied", "f", &denied),
            way(0, "", &denied, &denied),
        ])
    };
    all(scene)?;
    tmpfs("free/d")?;
    make("free/d")?;
    all(scene)?;
    scene.tell(0, &["hold", "over", &place("free/d")])?;
    scene.are(&[way(0, "over", "f", &free), way(0, "free", "f", &free)])?;
    for (from, to) in [("free/d", "denied/d"), ("denied/d", "free/d")] {
        mounts(from, to, MsFlags::MS_MOVE)?;
        let target = place(to) + "/f";
        scene.are(&[way(0, "over", "f", &target)])?;
        all(scene)?;
    }
    // Over a folder above; what is covered keeps its name.
    tmpfs("free")?;
    make("free/d")?;
    all(scene)?;
    scene.are(&[way(0, "over", "f", &free)])?;
    unmount("free", MntFlags::empty())?;
    all(scene)
}

/// Folders that are only in the upper layer may be renamed.
pub fn overlaid(scene: &mut Scene, agent: &Agent) -> Result<()> {
    for folder in [
        "lower/free/low",
        "lower/denied/low",
        "upper",
        "work",
        "over",
    ] {
        fs::create_dir_all(place(folder))?;
    }
    for folder in ["free", "denied"] {
        fs::write(place(&format!("lower/{folder}/low/f")), "low")?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        place("lower"),
        place("upper"),
        place("work")
    );
    mount(
        Some("overlay"),
        place("over").as_str(),
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .context("failed to mount an overlay")?;
    make("over/free/p/d")?;
    scene.layered = true;
    scene.start(agent, "over/free/p/d")?;
    let low = ["over/free/low/f", "over/denied/low/f"].map(place);
    let mut at = "over/free/p";
    for to in [
        "over/denied/p",
        "over/free/q",
        "over/denied/q",
        "over/free/p",
    ] {
        scene.are(&[way(0, "", &low[0], &low[0]), way(0, "", &low[1], &low[1])])?;
        scene.in_folder(&format!("{at}/d"))?;
        rename(at, to)?;
        at = to;
    }
    scene.in_folder(&format!("{at}/d"))?;
    for to in ["over/denied/d", "over/free/d"] {
        let from = if to.contains("denied") {
            "over/free/p/d"
        } else {
            "over/denied/d"
        };
        rename(from, to)?;
        scene.in_folder(to)?;
    }
    Ok(())
}
