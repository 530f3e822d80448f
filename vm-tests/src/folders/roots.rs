//! Processes with other roots, and other views of the same folders.

use anyhow::Result;

use super::POLICY;
use super::ground::{bind, make, place, rename};
use super::scene::{Scene, way};
use crate::guard::{Agent, write_policy};

/// Roots that are no roots of mounts: a path is told from there.
pub fn rooted(scene: &mut Scene, agent: &Agent) -> Result<()> {
    for folder in ["free/d", "free/denied/d", "denied/d"] {
        make(folder)?;
    }
    for root in ["", "free", "denied"] {
        let who = scene.opener(agent)?;
        scene.tell(who, &["hold", "denied", &place("denied/d")])?;
        if !root.is_empty() {
            scene.tell(who, &["chroot", &place(root)])?;
        }
    }
    let (free, inner, denied) = (
        place("free/d/f"),
        place("free/denied/d/f"),
        place("denied/d/f"),
    );
    scene.are(&[
        way(0, "", &free, &free),
        way(1, "", "/d/f", "/d/f"),
        way(0, "", &inner, &inner),
        way(1, "", "/denied/d/f", "/denied/d/f"),
        way(0, "denied", "f", &denied),
        // By the whole path, as it is outside of the root.
        way(1, "denied", "f", &denied).outside(),
        way(2, "denied", "f", "/d/f"),
        way(2, "", "/d/f", "/d/f"),
    ])
}

/// The same where the roots are roots of mounts.
pub fn rooted_in_mount(scene: &mut Scene, agent: &Agent) -> Result<()> {
    for folder in ["free/d", "denied/d"] {
        make(folder)?;
    }
    for folder in ["free", "denied"] {
        bind(folder, folder)?;
    }
    for root in ["", "free", "denied"] {
        let who = scene.opener(agent)?;
        scene.tell(who, &["hold", "denied", &place("denied/d")])?;
        if !root.is_empty() {
            scene.tell(who, &["chroot", &place(root)])?;
        }
    }
    let (free, denied) = (place("free/d/f"), place("denied/d/f"));
    scene.are(&[
        way(0, "", &free, &free),
        way(1, "", "/d/f", "/d/f"),
        way(0, "denied", "f", &denied),
        way(2, "denied", "f", "/d/f"),
        way(1, "denied", "f", &denied).outside(),
        way(2, "", "/d/f", "/d/f"),
        way(0, "", &denied, &denied),
    ])
}

/// A process that remembers a folder gets another root, and no count changes.
pub fn root_changes(scene: &mut Scene, agent: &Agent) -> Result<()> {
    make("denied/d")?;
    make("denied/denied/d")?;
    for (who, mounted) in [(0, false), (1, true)] {
        if mounted {
            bind("denied", "denied")?;
        }
        scene.opener(agent)?;
        for (name, folder) in [("it", "denied/d"), ("inner", "denied/denied/d")] {
            scene.tell(who, &["hold", name, &place(folder)])?;
        }
        let (it, inner) = (place("denied/d/f"), place("denied/denied/d/f"));
        for _ in 0..3 {
            scene.is(&way(who, "it", "f", &it))?;
            scene.is(&way(who, "inner", "f", &inner))?;
        }
        scene.tell(who, &["chroot", &place("denied")])?;
        scene.are(&[
            way(who, "it", "f", "/d/f"),
            way(who, "inner", "f", "/denied/d/f"),
        ])?;
    }
    Ok(())
}

/// Mounts that one process has for itself, and then another root.
pub fn unshared(scene: &mut Scene, agent: &Agent) -> Result<()> {
    for folder in ["free/d", "denied/d", "free/bound", "free/sub/d"] {
        make(folder)?;
    }
    for _ in 0..2 {
        let who = scene.opener(agent)?;
        scene.tell(who, &["hold", "old", &place("free/d")])?;
    }
    let (free, denied, over) = (
        place("free/d/f"),
        place("denied/d/f"),
        place("free/bound/f"),
    );
    let mut ways = [
        way(0, "", &free, &free),
        way(1, "", &free, &free),
        way(1, "old", "f", &free),
        way(0, "old", "f", &free),
        way(0, "", &denied, &denied),
        way(1, "", &denied, &denied),
        way(0, "", &over, &over),
        way(1, "", &over, &over),
    ];
    scene.are(&ways)?;
    scene.tell(0, &["unshare"])?;
    // In the mounts of before.
    ways[3].outside = true;
    scene.are(&ways)?;
    for (from, to) in [("free/d", "denied/d"), ("denied/d", "free/bound")] {
        scene.tell(0, &["bind", &place(from), &place(to)])?;
        scene.are(&ways)?;
    }
    scene.tell(0, &["hold", "over", &place("free/bound")])?;
    scene.tell(0, &["unmount", &place("denied/d")])?;
    scene.are(&ways)?;
    scene.are(&[way(0, "over", "f", &over), way(1, "", &over, &over)])?;
    scene.tell(0, &["move", &place("free/bound"), &place("denied/d")])?;
    scene.are(&ways)?;
    scene.are(&[way(0, "over", "f", &denied), way(1, "", &over, &over)])?;
    // As the first process of a system changes to its real root.
    scene.tell(0, &["bind", &place("free/sub"), &place("free/sub")])?;
    scene.tell(0, &["go", &place("free/sub")])?;
    scene.tell(0, &["move", ".", "/"])?;
    scene.tell(0, &["chroot", "."])?;
    let sub = place("free/sub/d/f");
    scene.are(&[way(0, "", "/d/f", "/d/f"), way(1, "", &sub, &sub)])
}

/// What a folder's path means is remembered with it: other rules, and those of another agent.
pub fn policy_changes(scene: &mut Scene, agent: &Agent) -> Result<()> {
    const OTHER: &str = "folders-other";
    let reversed = POLICY.replace("**/denied/**", "**/free/**");
    for folder in ["free/d", "denied/d"] {
        make(folder)?;
    }
    write_policy(OTHER, &reversed)?;
    let other = Agent::attach(OTHER, OTHER)?;
    scene.opener(agent)?;
    scene.opener(&other)?;
    scene.denies(1, "/free/");
    let (free, denied) = (place("free/d/f"), place("denied/d/f"));
    let ways = [
        way(0, "", &free, &free),
        way(1, "", &free, &free),
        way(0, "", &denied, &denied),
        way(1, "", &denied, &denied),
    ];
    scene.are(&ways)?;
    scene.keep("library", &free)?;
    scene.maps("library", &free)?;
    for (text, part) in [(reversed.as_str(), "/free/"), (POLICY, "/denied/")] {
        scene.installs(&agent.name, text)?;
        scene.denies(0, part);
        scene.are(&ways)?;
        scene.maps("library", &free)?;
    }
    // What the other one, who may have it, has made known says nothing to the first.
    rename("free/d", "denied/moved")?;
    let moved = place("denied/moved/f");
    scene.opens(&way(1, "", &moved, &moved), 4)?;
    scene.maps("library", &moved)
}
