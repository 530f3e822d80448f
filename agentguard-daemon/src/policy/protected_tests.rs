//! The search on folders of its own.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

use nix::sys::stat::{major, minor};

use super::*;
use crate::policy::{LoadOptions, load_text};

struct Tree {
    _folder: tempfile::TempDir,
    root: PathBuf,
}

impl Tree {
    fn new(files: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        Self {
            _folder: folder,
            root,
        }
    }

    fn policy(&self, files: &str) -> Policy {
        let text =
            format!("version: 1\nfiles: {files}\n").replace('@', self.root.to_str().unwrap());
        load_text(Path::new("/p.yaml"), &text, &LoadOptions::default()).unwrap()
    }

    fn search(&self, files: &str, limits: Limits) -> (Found, Vec<PathBuf>) {
        let mut entered = Vec::new();
        let places = [self.root.join("ws")];
        let found = self
            .policy(files)
            .protected(&places, limits, &mut |path, _| {
                entered.push(path.to_owned());
            });
        (found, entered)
    }

    /// Accesses denied for each file, 0 where it is not protected.
    fn accesses(&self, found: &Found, file: &str) -> u32 {
        let stat = fs::symlink_metadata(self.root.join(file)).unwrap();
        let device = (major(stat.dev()) << 20 | minor(stat.dev())) as u32;
        let object = found.objects.get(&(stat.ino(), device));
        object.map_or(0, |object| object.accesses & 0xff)
    }
}

const READ: u32 = access::READ as u32;
const WRITE: u32 = access::WRITE as u32;

#[test]
fn what_a_rule_denies_is_protected_and_nothing_else() {
    let tree = Tree::new(&[
        "secret/key",
        "secret/public",
        "ws/free",
        "ws/settings",
        "other/x",
    ]);
    fs::hard_link(tree.root.join("secret/key"), tree.root.join("ws/alias")).unwrap();
    let rules = r#"{default: deny, read: {allow: ["@/ws/**"], deny: [{id: no-secret, path: "@/secret/**", except: "@/secret/pub*"}]}, write: {ask: ["@/ws/settings"], allow: ["@/ws/**"]}}"#;
    let (found, entered) = tree.search(rules, Limits::default());
    // The alias is the same object.
    assert_eq!(tree.accesses(&found, "ws/alias"), READ);
    assert_eq!(tree.accesses(&found, "ws/settings"), WRITE);
    for free in ["secret/public", "ws/free", "other/x", "secret"] {
        assert_eq!(tree.accesses(&found, free), 0, "{free}");
    }
    let rules = found
        .objects
        .values()
        .flat_map(|object| &object.rules)
        .flatten();
    let rules: BTreeSet<&str> = rules.map(|rule| rule.id.as_str()).collect();
    assert_eq!(rules, BTreeSet::from(["no-secret", "p:files.write.ask/1"]));
    assert!(found.cut.is_empty());
    assert!(entered.contains(&tree.root.join("secret")) && entered.contains(&tree.root));
    assert!(!entered.contains(&tree.root.join("other")));
}

#[test]
fn only_folders_that_can_hold_a_match_are_read() {
    let tree = Tree::new(&[
        "home/a/.ssh/id_rsa",
        "home/b/.ssh/id_rsa",
        "home/b/deep/down/x",
        "home/b/skip/down/key",
        "home/b/.ssh/config",
    ]);
    let rules = r#"{default: allow, read: {deny: [{path: "@/home/*/.ssh/id_*"}, {path: "@/home/**/key", except: "@/home/b/skip/**"}]}}"#;
    let (found, entered) = tree.search(rules, Limits::default());
    assert_eq!(found.objects.len(), 2);
    assert!(!entered.contains(&tree.root.join("home/b/skip")));
    let narrow = r#"{default: allow, read: {deny: ["@/home/*/.ssh/id_*"]}}"#;
    let (found, entered) = tree.search(narrow, Limits::default());
    assert_eq!(found.objects.len(), 2);
    assert!(!entered.contains(&tree.root.join("home/b/deep")));
}

#[test]
fn links_are_not_followed() {
    let tree = Tree::new(&["real/key", "secret/own"]);
    symlink(tree.root.join("real"), tree.root.join("secret/folder")).unwrap();
    symlink(tree.root.join("real/key"), tree.root.join("secret/file")).unwrap();
    symlink(tree.root.join("real"), tree.root.join("alias")).unwrap();
    let rules = r#"{default: allow, read: {deny: ["@/secret/**", "@/alias/**", "@/alias/key"]}}"#;
    let (found, _) = tree.search(rules, Limits::default());
    assert_eq!(tree.accesses(&found, "real/key"), 0);
    assert_eq!(tree.accesses(&found, "secret/own"), READ);
    assert_eq!(found.objects.len(), 1);
}

#[test]
fn what_is_not_there_yet_is_waited_for_where_it_would_come() {
    let tree = Tree::new(&["home/x"]);
    let policy = tree.policy(r#"{default: allow, read: {deny: ["@/home/.aws/credentials"]}}"#);
    let mut last = None;
    policy.protected(&[], Limits::default(), &mut |path, interest| {
        last = Some((path.to_owned(), interest));
    });
    let (path, interest) = last.unwrap();
    assert_eq!(path, tree.root.join("home"));
    assert!(interest.wants(b".aws", true) && !interest.wants(b"x", false));
}

#[test]
fn rules_of_any_depth_are_looked_for_in_the_places() {
    let tree = Tree::new(&["ws/a/b/.env", "elsewhere/.env"]);
    let rules = r#"{default: allow, read_write: {deny: ["**/.env"]}}"#;
    let (found, entered) = tree.search(rules, Limits::default());
    assert_eq!(tree.accesses(&found, "ws/a/b/.env"), READ | WRITE);
    assert_eq!(tree.accesses(&found, "elsewhere/.env"), 0);
    assert!(entered.is_empty());
}

#[test]
fn bounds_are_kept_and_said() {
    let files: Vec<String> = (0..50).map(|number| format!("secret/{number}")).collect();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let tree = Tree::new(&files);
    let rules = r#"{default: allow, read: {deny: [{id: many, path: "@/secret/**"}, {id: one, path: "@/secret/7"}]}}"#;
    for limits in [
        Limits {
            entries: 10,
            ..Limits::default()
        },
        Limits {
            objects: 10,
            ..Limits::default()
        },
    ] {
        let (found, _) = tree.search(rules, limits);
        assert!(found.objects.len() <= 11);
        assert_eq!(found.cut, BTreeSet::from(["many".to_owned()]));
        // What is named by itself needs no search.
        assert_eq!(tree.accesses(&found, "secret/7"), READ);
    }
    let floating = r#"{default: allow, read: {deny: ["**/secret"]}}"#;
    let tree = Tree::new(&["ws/a", "ws/b", "ws/c"]);
    let (found, _) = tree.search(
        floating,
        Limits {
            entries: 1,
            ..Limits::default()
        },
    );
    assert!(found.floating_cut && found.cut.is_empty());
}
