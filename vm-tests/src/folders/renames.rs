//! Folders and files that get another name, lose it, or have several.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::Result;

use super::ground::{exchange, make, place, rename};
use super::scene::{Scene, way};
use crate::guard::Agent;

/// The first folder of the path moves between the places; the file is in the last one.
pub fn renamed(scene: &mut Scene, agent: &Agent, path: &str) -> Result<()> {
    let (top, below) = path.split_at(path.find('/').unwrap_or(path.len()));
    make(&format!("free/{path}"))?;
    scene.start(agent, &format!("free/{path}"))?;
    scene.in_folder(&format!("free/{path}"))?;
    let mut at = format!("free/{top}");
    for to in [
        "denied/d",
        "free/d",
        "free/other",
        "denied/d",
        "denied/e",
        "free/e",
    ] {
        rename(&at, to)?;
        to.clone_into(&mut at);
        scene.in_folder(&format!("{to}{below}"))?;
    }
    Ok(())
}

/// The folders that exchange their names, or those above them.
pub fn exchanged(scene: &mut Scene, agent: &Agent, below: &str) -> Result<()> {
    let (one, two) = (format!("free/d{below}"), format!("denied/e{below}"));
    make(&one)?;
    make(&two)?;
    scene.opener(agent)?;
    scene.tell(0, &["hold", "d", &place(&one)])?;
    scene.tell(0, &["hold", "e", &place(&two)])?;
    let (one, two) = (place(&one) + "/f", place(&two) + "/f");
    for turn in 0..4 {
        let (d, e) = if turn % 2 == 0 {
            (&one, &two)
        } else {
            (&two, &one)
        };
        scene.are(&[
            way(0, "d", "f", d),
            way(0, "e", "f", e),
            way(0, "", d, d),
            way(0, "", e, e),
        ])?;
        exchange("free/d", "denied/e")?;
    }
    Ok(())
}

/// What was opened under one name is mapped under others.
pub fn mapped(scene: &mut Scene, agent: &Agent) -> Result<()> {
    make("free/d")?;
    scene.start(agent, "free/d")?;
    scene.keep("library", &(place("free/d") + "/f"))?;
    let mut at = "free/d";
    for to in ["free/e", "denied/d", "free/d", "denied/e", "free/e"] {
        scene.in_folder(at)?;
        scene.maps("library", &(place(at) + "/f"))?;
        rename(at, to)?;
        scene.maps("library", &(place(to) + "/f"))?;
        at = to;
    }
    Ok(())
}

pub fn made_anew(scene: &mut Scene, agent: &Agent) -> Result<()> {
    scene.opener(agent)?;
    for turn in 0..20 {
        let folder = if turn % 2 == 0 { "free/d" } else { "denied/d" };
        let target = place(folder) + "/f";
        make(folder)?;
        // Nothing is renamed, so that everything that may be is remembered.
        for _ in 0..2 {
            scene.is(&way(0, "", &target, &target))?;
        }
        fs::remove_dir_all(place(folder))?;
    }
    Ok(())
}

pub fn file_renamed(scene: &mut Scene, agent: &Agent) -> Result<()> {
    make("free/d")?;
    fs::create_dir_all(place("denied/e"))?;
    scene.opener(agent)?;
    scene.tell(0, &["hold", "d", &place("free/d")])?;
    let first = place("free/d/f");
    scene.are(&[way(0, "d", "f", &first)])?;
    scene.keep("f", &first)?;
    let mut at = "free/d/f";
    for to in ["free/d/g", "denied/e/g", "denied/e/f", "free/d/f"] {
        rename(at, to)?;
        at = to;
        let target = place(to);
        scene.are(&[way(0, "", "=f", &target), way(0, "", &target, &target)])?;
    }
    Ok(())
}

pub fn linked(scene: &mut Scene, agent: &Agent) -> Result<()> {
    make("free/d")?;
    fs::create_dir_all(place("denied/e"))?;
    fs::hard_link(place("free/d/f"), place("denied/e/g"))?;
    scene.opener(agent)?;
    let (free, denied) = (place("free/d/f"), place("denied/e/g"));
    scene.are(&[way(0, "", &free, &free), way(0, "", &denied, &denied)])?;
    exchange("free/d", "denied/e")?;
    let (free, denied) = (place("free/d/g"), place("denied/e/f"));
    scene.are(&[way(0, "", &free, &free), way(0, "", &denied, &denied)])
}

/// What was removed is judged by the name that it had.
pub fn removed(scene: &mut Scene, agent: &Agent) -> Result<()> {
    make("free/p/d")?;
    for name in ["f (deleted)", "g (deleted)"] {
        fs::write(place("free/p/d/") + name, "a name like this")?;
    }
    scene.opener(agent)?;
    let names = ["f", "f (deleted)", "g (deleted)"];
    let paths = |folder: &str| names.map(|name| format!("{}/{name}", place(folder)));
    let here = paths("free/p/d");
    for (name, path) in names.iter().zip(&here) {
        scene.are(&[way(0, "", path, path)])?;
        scene.keep(name, path)?;
    }
    let again = |scene: &mut Scene, folder: &str| {
        let [f, deleted, other] = paths(folder);
        scene.are(&[
            way(0, "", "=f", &f),
            way(0, "", "=f (deleted)", &deleted),
            way(0, "", "=g (deleted)", &other),
        ])
    };
    again(scene, "free/p/d")?;
    for path in &here[..2] {
        fs::remove_file(path)?;
    }
    again(scene, "free/p/d")?;
    rename("free/p/d", "denied/d")?;
    again(scene, "denied/d")?;
    rename("denied/d", "free/p/d")?;
    again(scene, "free/p/d")?;
    fs::remove_dir_all(place("free/p/d"))?;
    again(scene, "free/p/d")?;
    // Another of the same name does not change what was.
    make("free/p/d")?;
    let anew = place("free/p/d/f");
    scene.are(&[way(0, "", "=f", &anew), way(0, "", &anew, &anew)])?;
    rename("free/p", "denied/p")?;
    again(scene, "denied/p/d")?;
    rename("denied/p", "free/p")?;
    again(scene, "free/p/d")
}

pub fn temporary(scene: &mut Scene, agent: &Agent) -> Result<()> {
    make("free/d")?;
    scene.start(agent, "free/d")?;
    let mut at = "free/d";
    for to in ["denied/d", "free/e", "denied/d", "free/d"] {
        scene.in_folder(at)?;
        for _ in 0..3 {
            scene.judged(0, "open", &["temporary", "it"], &(place(at) + "/#*"))?;
        }
        rename(at, to)?;
        at = to;
        for _ in 0..3 {
            scene.judged(0, "open", &["temporary", "it"], &(place(at) + "/#*"))?;
        }
    }
    scene.in_folder(at)
}

/// Lengths of names: around those up to which the kernel keeps one in the entry itself (31 and 39 bytes), words of eight
/// bytes, and the longest that is looked for in a known folder.
const NAMES: &[usize] = &[
    1, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 32, 33, 38, 39, 40, 41, 62, 63, 64, 65, 255,
];

/// A name of this length, of which no two neighbouring parts are alike.
fn name_of(length: usize) -> String {
    ('a'..='z').chain('0'..='9').cycle().take(length).collect()
}

/// Around every length at which something is done differently.
pub fn lengths(scene: &mut Scene, agent: &Agent) -> Result<()> {
    scene.opener(agent)?;
    for length in [
        63, 64, 65, 127, 128, 129, 189, 190, 191, 192, 193, 254, 255, 256,
    ] {
        for kind in ["free", "denied"] {
            // Long names one below the other.
            let mut folder = place(&format!("{kind}/"));
            while length - folder.len() > 102 {
                folder += &"d".repeat(100);
                folder.push('/');
            }
            folder += &"e".repeat(length - folder.len());
            fs::create_dir_all(&folder)?;
            for name in NAMES {
                let path = format!("{folder}/{}", name_of(*name));
                fs::write(&path, "long")?;
                scene.opens(&way(0, "", &path, &path), 4)?;
            }
        }
    }
    Ok(())
}

pub fn topmost(scene: &mut Scene, agent: &Agent) -> Result<()> {
    const TOP: &str = "/vm-tests-top";
    make("free/d")?;
    make("denied/d")?;
    symlink(place("denied/d"), place("free/link"))?;
    fs::write(TOP, "top")?;
    scene.opener(agent)?;
    let (free, denied) = (place("free/d/f"), place("denied/d/f"));
    let link = place("free/link/f");
    let seen = scene.are(&[
        way(0, "", TOP, TOP),
        way(0, "", &free, &free),
        way(0, "", &link, &denied),
        way(0, "", "/t/moves/denied/../free/d/f", &free),
    ]);
    fs::remove_file(TOP)?;
    seen
}
