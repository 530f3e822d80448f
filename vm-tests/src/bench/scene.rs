//! The files that are opened, read, renamed and walked over while it is measured.

use std::ffi::CString;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// Two bytes, one component.
pub const TWO: &str = "/x";
/// Eleven bytes, two components.
pub const ELEVEN: &str = "/tmp/abcdef";
/// Sixty-three bytes, eleven components.
pub const SIXTY_THREE: &str = "/tmp/aaaaa/bbbbb/ccccc/ddddd/eeeee/fffff/ggggg/hhhhh/iiiii/jjjj";
/// What is read and written.
pub const DATA: &str = "/tmp/data";
/// Renamed to [`TO`] and back.
pub const FROM: &str = "/tmp/name-one";
/// See [`FROM`].
pub const TO: &str = "/tmp/name-two";
/// Whose files are opened one after the other.
pub const TREE: &str = "/tmp/tree";
/// Folders in the tree, and files in each.
pub const FOLDERS: u32 = 10;
/// See [`FOLDERS`].
pub const FILES: u32 = 12;
/// Opens of one walk: the tree, its folders, their files.
pub const OPENS: u32 = 1 + FOLDERS + FOLDERS * FILES;

/// Two hundred and fifty-five bytes, twenty-nine components.
pub fn two_hundred_and_fifty_five() -> String {
    format!("/tmp{}/last567", "/abcdefgh".repeat(27))
}

/// Makes them.
pub fn make() -> Result<()> {
    let longest = two_hundred_and_fifty_five();
    ensure!(
        [TWO.len(), ELEVEN.len(), SIXTY_THREE.len(), longest.len()] == [2, 11, 63, 255],
        "the paths are not as long as their rows say: the longest has {}",
        longest.len()
    );
    for path in [TWO, ELEVEN, SIXTY_THREE, &longest, FROM] {
        write(path, b"x")?;
    }
    write(DATA, &[7; 4096])?;
    for (folder, file) in tree_names() {
        write(&format!("{TREE}/{folder}/{file}"), b"x")?;
    }
    Ok(())
}

fn write(path: &str, data: &[u8]) -> Result<()> {
    if let Some(folder) = Path::new(path).parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("failed to create {}", folder.display()))?;
    }
    fs::write(path, data).with_context(|| format!("failed to write {path}"))
}

fn tree_names() -> impl Iterator<Item = (String, String)> {
    (0..FOLDERS).flat_map(|folder| {
        (0..FILES).map(move |file| (format!("module_{folder}"), format!("part_{file}.c")))
    })
}

/// The names in the tree, for the walk.
pub fn walk() -> Result<Vec<(CString, Vec<CString>)>> {
    (0..FOLDERS)
        .map(|folder| {
            let files = (0..FILES)
                .map(|file| CString::new(format!("part_{file}.c")))
                .collect::<Result<_, _>>()?;
            Ok((CString::new(format!("module_{folder}"))?, files))
        })
        .collect()
}
