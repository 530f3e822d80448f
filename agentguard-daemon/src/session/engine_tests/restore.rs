//! What a daemon finds that comes after a death, a swap that failed, or another boot.

use super::*;

#[tokio::test]
async fn who_comes_after_a_death_knows_everybody() {
    let mut bench = Bench::new();
    let before = bench.attach("a", "/one").await.unwrap();
    bench.die();
    bench.restore().unwrap();
    let after = &bench.engine.list()[0];
    assert_eq!(
        (&after.name, after.session, after.generation, after.since),
        (
            &before.name,
            before.session,
            before.generation,
            before.since
        )
    );
    // All of it again, and harmless: the kernel has it already.
    let calls = bench.kernel(|kernel| kernel.calls.clone());
    assert_eq!(calls, ["install", "protect", "count", "govern", "label"]);
    assert_eq!(
        bench.ops(),
        ["agent-attach", "policy-install", "agent-restore"]
    );
    // The same file is no new version.
    bench.engine.refresh().await;
    assert_eq!(bench.engine.list()[0].generation, before.generation);
    // Numbers go on.
    let other = bench.attach("b", "/two").await.unwrap();
    assert_eq!((other.session, other.generation), (2, 2));
    bench.engine.detach("a").await.unwrap();
    bench.die();
    bench.restore().unwrap();
    let names: Vec<_> = bench.engine.list().into_iter().map(|it| it.name).collect();
    assert_eq!(names, ["b"]);
}

#[tokio::test]
async fn a_broken_file_leaves_the_policy_before_a_death_in_force() {
    let mut bench = Bench::new();
    bench.write("p", "version: 1\nname: first\n");
    bench.attach("a", "/one").await.unwrap();
    for text in ["version: 1\nfils: {}\n", ""] {
        bench.write("p", text);
        bench.die();
        bench.restore().unwrap();
        bench.engine.refresh().await;
        let agent = &bench.engine.list()[0];
        assert_eq!((agent.policy.as_str(), agent.generation), ("first", 1));
        assert_eq!(bench.kernel(|kernel| kernel.tables[&1]), 1);
        assert_eq!(bench.ops().last().unwrap(), "policy-error");
    }
    bench.write("p", "version: 1\nname: second\n");
    bench.die();
    bench.restore().unwrap();
    bench.engine.refresh().await;
    let agent = &bench.engine.list()[0];
    assert_eq!(agent.policy, "second");
    assert_eq!(
        bench.kernel(|kernel| kernel.tables[&1]),
        agent.generation,
        "the new version is in force"
    );
    assert!(agent.generation > 1);
}

#[tokio::test]
async fn a_lost_text_is_read_again_and_else_everything_is_denied() {
    let mut bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    let lose = |bench: &Bench| {
        let policies = bench.folder.path().join("state/policies");
        std::fs::remove_dir_all(policies).unwrap();
    };
    lose(&bench);
    bench.die();
    bench.restore().unwrap();
    let agent = &bench.engine.list()[0];
    assert_eq!((agent.policy.as_str(), agent.generation), ("p", 2));
    lose(&bench);
    bench.write("p", "");
    bench.die();
    bench.restore().unwrap();
    let agent = &bench.engine.list()[0];
    assert_eq!((agent.policy.as_str(), agent.generation), ("self-test", 3));
    assert_eq!(bench.kernel(|kernel| kernel.tables[&1]), 3);
}

#[tokio::test]
async fn another_cgroup_at_the_same_path_is_not_trusted() {
    let mut bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    let path = bench.folder.path().join("cg/one");
    std::fs::rename(&path, bench.folder.path().join("kept")).unwrap();
    std::fs::create_dir(&path).unwrap();
    // Somebody still carries the label: it stays, under its policy, and the new cgroup gives none.
    let mut escaped = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .unwrap();
    bench.kernel(|kernel| kernel.carriers = HashSet::from([escaped.id()]));
    bench.die();
    bench.restore().unwrap();
    assert_eq!(bench.engine.list().len(), 1);
    assert!(bench.kernel(|kernel| kernel.cgroups.is_empty() && kernel.tables.len() == 1));
    escaped.kill().unwrap();
    escaped.wait().unwrap();
    bench.kernel(|kernel| kernel.carriers.clear());
    bench.die();
    bench.restore().unwrap();
    assert!(bench.engine.list().is_empty());
    assert!(bench.kernel(|kernel| kernel.tables.is_empty()));
    assert_eq!(bench.ops().last().unwrap(), "agent-detach");
    assert!(path.is_dir(), "a cgroup that is not ours was removed");
}

#[tokio::test]
async fn without_the_state_nobody_is_forgotten() {
    let mut bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    let file = bench.folder.path().join("state/agents.json");
    let text = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    bench.die();
    assert!(matches!(bench.restore(), Err(SessionError::StateGone(1))));
    std::fs::write(&file, "{").unwrap();
    bench.die();
    assert!(matches!(bench.restore(), Err(SessionError::State { .. })));
    assert_eq!(bench.kernel(|kernel| kernel.cgroups.len()), 1);
    // A cgroup that is governed for nobody is released.
    std::fs::write(&file, text).unwrap();
    bench.kernel(|kernel| kernel.cgroups.insert(1, Membership::default()));
    bench.die();
    bench.restore().unwrap();
    assert_eq!(bench.kernel(|kernel| kernel.cgroups.len()), 1);
    assert_eq!(bench.engine.list().len(), 1);
}

#[tokio::test]
async fn agents_of_an_earlier_boot_are_gone() {
    let mut bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    let file = bench.folder.path().join("state/agents.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(&boot(), "another")).unwrap();
    bench.kernel(|kernel| kernel.cgroups.clear());
    bench.die();
    bench.restore().unwrap();
    assert!(bench.engine.list().is_empty());
    assert_eq!(bench.ops().last().unwrap(), "agent-detach");
    let again = bench.attach("a", "/one").await.unwrap();
    assert_eq!((again.session, again.generation), (2, 2));
}

#[tokio::test]
async fn a_swap_that_fails_is_not_what_comes_back() {
    let mut bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    bench.kernel(|kernel| kernel.fails = Some("install"));
    bench.write("p", "version: 1\nname: new\n");
    assert!(bench.engine.swap("a", None).await.is_err());
    bench.kernel(|kernel| kernel.fails = None);
    bench.die();
    bench.restore().unwrap();
    let agent = &bench.engine.list()[0];
    assert_eq!((agent.policy.as_str(), agent.generation), ("p", 1));
}
