//! Protected objects follow policies and files.

use agentguard_common::identity::DENIED;

use super::*;

impl Bench {
    fn inode(&self, file: &str) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        let path = self.folder.path().join(file);
        std::fs::symlink_metadata(path).unwrap().ino()
    }

    /// Accesses that are denied to the first agent for a file.
    fn protected(&self, file: &str) -> u32 {
        let inode = self.inode(file);
        self.kernel(|kernel| {
            let objects = kernel.objects.get(&1).into_iter().flatten();
            objects.filter(|it| it.0 == inode).map(|it| it.2).sum()
        })
    }

    fn guard_secret(&self, rule: &str) {
        let root = self.folder.path().canonicalize().unwrap();
        let text = format!(
            "version: 1\nfiles: {{default: allow, {rule}: {{deny: [\"{}/secret/**\"]}}}}\n",
            root.display()
        );
        self.write("p", &text);
    }
}

#[tokio::test]
async fn what_is_protected_follows_the_policy() {
    let mut bench = Bench::new();
    std::fs::create_dir(bench.folder.path().join("secret")).unwrap();
    std::fs::write(bench.folder.path().join("secret/key"), "x").unwrap();
    bench.guard_secret("read");
    bench.attach("a", "/one").await.unwrap();
    assert_eq!(bench.protected("secret/key"), 1 << DENIED | 1);
    bench.guard_secret("write");
    bench.engine.swap("a", None).await.unwrap();
    assert_eq!(bench.protected("secret/key"), 2 << DENIED | 2);
    // Nobody watches in this test.
    std::fs::write(bench.folder.path().join("secret/new"), "x").unwrap();
    bench
        .engine
        .refresh_objects(Some(&HashSet::from([2])))
        .await;
    assert_eq!(bench.protected("secret/new"), 0);
    bench.engine.refresh_objects(None).await;
    assert_eq!(bench.protected("secret/new"), 2 << DENIED | 2);
    // A daemon that comes back looks for itself, and drops what nobody needs.
    bench.kernel(|kernel| {
        kernel.objects.clear();
        kernel.objects.insert(9, vec![(1, 1, 1)]);
    });
    bench.die();
    bench.restore().unwrap();
    assert_eq!(bench.protected("secret/new"), 2 << DENIED | 2);
    assert_eq!(bench.kernel(|kernel| kernel.objects.len()), 1);
    bench.engine.detach("a").await.unwrap();
    assert!(bench.kernel(|kernel| kernel.objects.is_empty()));
}

#[tokio::test]
async fn a_swap_whose_objects_the_kernel_does_not_take_stands_and_is_told() {
    let bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    bench.kernel(|kernel| kernel.fails = Some("protect"));
    let agent = bench.engine.swap("a", None).await.unwrap();
    assert_eq!(bench.kernel(|kernel| kernel.tables[&1]), agent.generation);
    assert_eq!(bench.ops()[2..], ["policy-install", "alarm"]);
    bench.engine.refresh_objects(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_file_is_protected_soon() {
    let bench = Bench::new();
    std::fs::create_dir(bench.folder.path().join("secret")).unwrap();
    bench.guard_secret("read");
    bench.engine.watch_files().unwrap();
    bench.attach("a", "/one").await.unwrap();
    for content in ["first", "second"] {
        let new = bench.folder.path().join("new");
        std::fs::write(&new, content).unwrap();
        std::fs::rename(&new, bench.folder.path().join("secret/key")).unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while bench.protected("secret/key") != 1 << DENIED | 1 {
            assert!(std::time::Instant::now() < end, "not protected");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}
