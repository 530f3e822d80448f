//! How agents come under a policy, change it and go.

use super::*;
use crate::session::engine::lock;

#[tokio::test]
async fn the_policy_is_in_force_before_anybody_is_labelled() {
    let bench = Bench::new();
    let agent = bench.attach("a", "/one").await.unwrap();
    assert_eq!((agent.session, agent.generation), (1, 1));
    assert_eq!(
        bench.kernel(|kernel| kernel.calls.clone()),
        ["install", "protect", "count", "govern", "label"]
    );
    assert_eq!(bench.ops(), ["agent-attach", "policy-install"]);
    let found = bench.engine.agent_of_cgroup(&agent.cgroup.join("below"));
    assert_eq!(found, Some(("a".to_owned(), 1)));
}

#[tokio::test]
async fn who_is_let_go_is_not_listed_where_its_repeats_cannot_be_told() {
    let bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    bench.kernel(|kernel| kernel.fails = Some("tell-repeats"));
    bench.engine.detach("a").await.unwrap();
    assert!(bench.engine.list().is_empty());
    assert!(bench.ops().iter().any(|op| op == "alarm"));
}

#[tokio::test]
async fn detach_leaves_nothing_in_the_kernel() {
    let bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    bench.engine.detach("a").await.unwrap();
    let (tables, cgroups, labelled, calls) = bench.kernel(|kernel| {
        (
            kernel.tables.len(),
            kernel.cgroups.len(),
            kernel.labelled.len() + kernel.objects.len(),
            kernel.calls.split_off(5),
        )
    });
    assert_eq!((tables, cgroups, labelled), (0, 0, 0));
    // Labels are taken until a round finds none; the policy goes last.
    assert_eq!(
        calls,
        [
            "release",
            "unlabel",
            "unlabel",
            "uninstall",
            "count-no-more",
            "forget-traffic",
            "protect",
            "tell-repeats",
        ]
    );
    assert!(bench.engine.list().is_empty());
    assert!(bench.engine.detach("a").await.is_err());
    let again = bench.attach("a", "/one").await.unwrap();
    assert_eq!(again.session, 2);
    // A cgroup that is not ours stays.
    assert!(again.cgroup.is_dir());
}

#[tokio::test]
async fn who_has_gone_is_kept_nowhere() {
    let bench = Bench::new();
    for number in 0..300 {
        let (name, cgroup) = (format!("a{number}"), ["/one", "/two"][number % 2]);
        bench.attach(&name, cgroup).await.unwrap();
        if number % 7 == 0 {
            bench.engine.swap(&name, None).await.unwrap();
        }
        bench.engine.detach(&name).await.unwrap();
    }
    bench.kernel(|kernel| kernel.fails = Some("govern"));
    for number in 0..20 {
        let failed = bench.attach(&format!("b{number}"), "/one").await;
        assert!(failed.is_err());
    }
    bench.kernel(|kernel| kernel.fails = None);
    bench.attach("last", "/one").await.unwrap();
    bench.engine.detach("last").await.unwrap();
    let engine = &bench.engine;
    let state = lock(&engine.state);
    assert_eq!(
        [
            state.registry.iter().count(),
            state.in_force.len(),
            state.retired.len(),
            lock(&engine.owners).len(),
            lock(&engine.limits.told).len(),
        ],
        [0; 5]
    );
    drop(state);
    let [policies, objects, budgets] = engine.recorder().judge().kept();
    assert!(policies <= 8, "{policies} policies are kept");
    assert_eq!((objects, budgets), (0, 0));
}

#[tokio::test]
async fn a_failure_half_way_is_undone() {
    for step in ["install", "protect", "count", "govern", "label"] {
        let bench = Bench::new();
        bench.kernel(|kernel| kernel.fails = Some(step));
        assert!(
            matches!(
                bench.attach("a", "/one").await,
                Err(SessionError::Kernel(_))
            ),
            "{step}"
        );
        let left = bench.kernel(|kernel| {
            kernel.fails = None;
            (
                kernel.tables.len(),
                kernel.cgroups.len(),
                kernel.labelled.len(),
            )
        });
        assert_eq!(left, (0, 0, 0), "{step}");
        assert!(bench.engine.list().is_empty());
        bench.attach("a", "/one").await.unwrap();
    }
}

#[tokio::test]
async fn names_and_cgroups_are_taken_once() {
    let bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    assert!(matches!(
        bench.attach("a", "/two").await,
        Err(SessionError::Registry(_))
    ));
    assert!(matches!(
        bench.attach("b", "/one").await,
        Err(SessionError::Registry(_))
    ));
    assert!(matches!(
        bench.attach("b", "/missing").await,
        Err(SessionError::Cgroup(_))
    ));
    bench.attach("b", "/two").await.unwrap();
    assert_eq!(bench.engine.list().len(), 2);
}

#[tokio::test]
async fn a_broken_policy_changes_nothing_but_the_log() {
    let bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    bench.write("p", "version: 1\nfils: {}\n");
    let outcome = bench.engine.reload(None).await;
    assert!(matches!(outcome[..], [(_, Err(SessionError::Policy(_)))]));
    let agent = &bench.engine.list()[0];
    assert_eq!(agent.generation, 1);
    assert_eq!(bench.kernel(|kernel| kernel.tables[&1]), 1);
    assert_eq!(bench.ops()[2..], ["policy-error"]);

    bench.write("p", "version: 1\nnetwork: {default: allow}\n");
    let outcome = bench.engine.reload(None).await;
    assert!(outcome[0].1.is_ok());
    assert_eq!(bench.ops()[3..], ["policy-install"]);
    let generation = bench.engine.list()[0].generation;
    assert_eq!(bench.kernel(|kernel| kernel.tables[&1]), generation);
    assert!(generation > 1);
}

#[tokio::test]
async fn a_table_that_cannot_be_installed_leaves_the_one_before() {
    let bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    bench.kernel(|kernel| kernel.fails = Some("install"));
    assert!(bench.engine.swap("a", None).await.is_err());
    assert_eq!(bench.engine.list()[0].generation, 1);
    assert_eq!(bench.ops()[2..], ["policy-error"]);
}

#[tokio::test]
async fn only_the_agents_of_a_file_are_reloaded() {
    let bench = Bench::new();
    let agent = bench.attach("a", "/one").await.unwrap();
    bench.attach("b", "/two").await.unwrap();
    let other = bench.write("q", "version: 1\n");
    let request = PolicyRequest {
        policy: "q".to_owned(),
        vars: BTreeMap::new(),
    };
    bench.engine.swap("b", Some(request)).await.unwrap();
    let mine: HashSet<_> = agent.files.into_iter().collect();
    let names = |outcomes: Vec<(String, _)>| -> Vec<String> {
        outcomes
            .into_iter()
            .map(|(name, _): (String, Result<AgentInfo, SessionError>)| name)
            .collect()
    };
    assert_eq!(names(bench.engine.reload(Some(&mine)).await), ["a"]);
    let other = HashSet::from([other.canonicalize().unwrap()]);
    assert_eq!(names(bench.engine.reload(Some(&other)).await), ["b"]);
    assert!(
        bench
            .engine
            .reload(Some(&HashSet::from([PathBuf::from("/x")])))
            .await
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_a_swap() {
    let bench = Bench::new();
    bench.engine.watch_files().unwrap();
    bench.attach("a", "/one").await.unwrap();
    bench.write("p", "version: 1\nnetwork: {default: allow}\n");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while bench.engine.list()[0].generation == 1 {
        assert!(std::time::Instant::now() < end, "no swap");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_first_process_and_ourselves_cannot_be_governed() {
    let bench = Bench::new();
    for pid in [1, std::process::id(), 5_000_000] {
        let outcome = bench
            .engine
            .attach(Attach {
                name: None,
                policy: PolicyRequest {
                    policy: "p".to_owned(),
                    vars: BTreeMap::new(),
                },
                target: Target::Process(pid),
                account: None,
                on_death: GuardianAction::Kill,
            })
            .await;
        assert!(outcome.is_err(), "{pid}");
    }
    assert!(bench.kernel(|kernel| kernel.calls.is_empty()));
}

#[tokio::test]
async fn the_end_kills_and_takes_no_label_away() {
    let bench = Bench::new();
    let agent = bench.attach("a", "/one").await.unwrap();
    let mut escaped = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .unwrap();
    bench.kernel(|kernel| kernel.carriers = HashSet::from([escaped.id()]));
    assert!(bench.engine.end("a", agent.session + 1).await.is_err());
    bench.engine.end("a", agent.session).await.unwrap();
    assert!(!escaped.wait().unwrap().success());
    let calls = bench.kernel(|kernel| kernel.calls.split_off(5));
    assert_eq!(
        calls,
        [
            "release",
            "uninstall",
            "count-no-more",
            "forget-traffic",
            "protect",
            "tell-repeats",
        ]
    );
    assert_eq!(bench.ops()[2..], ["kill", "agent-detach"]);
    assert!(bench.engine.list().is_empty());
}

#[tokio::test]
async fn an_end_that_cannot_be_proved_denies_everything() {
    let bench = Bench::new();
    let agent = bench.attach("a", "/one").await.unwrap();
    bench.kernel(|kernel| kernel.fails = Some("look-up"));
    assert!(bench.engine.end("a", agent.session).await.is_err());
    assert_eq!(
        bench.ops()[2..],
        ["policy-install", "alarm"],
        "the slot stays, with a policy that denies everything"
    );
    let left = bench.engine.list();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].policy, "self-test");
    // A person may still let it go.
    bench.engine.detach("a").await.unwrap();
}

#[tokio::test]
async fn a_workspace_that_is_not_there_governs_nobody() {
    let bench = Bench::new();
    let request = Attach {
        name: None,
        policy: PolicyRequest {
            policy: "p".to_owned(),
            vars: BTreeMap::from([("workspace".to_owned(), "/missing".to_owned())]),
        },
        target: Target::Cgroup(PathBuf::from("/one")),
        account: None,
        on_death: GuardianAction::Kill,
    };
    let outcome = bench.engine.attach(request).await;
    assert!(matches!(outcome, Err(SessionError::Place(_))));
    assert!(bench.kernel(|kernel| kernel.calls.is_empty()));
}
