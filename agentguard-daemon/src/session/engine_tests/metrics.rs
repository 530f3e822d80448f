//! What is told in numbers: all of it, and never less than before.

use agentguard_common::verdict::{Operation, Reason, Verdict};

use super::*;
use crate::daemon::Config;
use crate::event::sample::Sample;
use crate::export::{Place, Sinks};
use crate::gateway::Used;
use crate::kernel::OtherEnd;
use crate::metrics::{list, otlp};

/// The value of a series, by how its line begins.
fn value(text: &str, series: &str) -> Option<f64> {
    let found = text.lines().find_map(|line| line.strip_prefix(series));
    found.map(|rest| rest.trim().parse().unwrap())
}

fn text(bench: &Bench) -> String {
    bench.engine.metrics().unwrap().text().unwrap()
}

fn act(bench: &Bench, session: u32, verdict: Verdict, reason: Reason, errno: u16) {
    let sample = Sample::new(Operation::Open, verdict, reason, b"/etc/x").with(|header| {
        header.session = session;
        header.errno = errno;
    });
    bench.engine.recorder().record(&sample.bytes());
}

fn sent(bench: &Bench, session: u32, bytes_out: u64) {
    bench.kernel(|kernel| {
        kernel.traffic = vec![Counted {
            who: Membership {
                agent: session,
                session,
            },
            flow: None,
            name: None,
            counts: Counts {
                bytes_out,
                packets_out: 1,
                ..Counts::default()
            },
        }];
    });
}

#[tokio::test]
async fn every_metric_of_the_list_is_told_and_no_other() {
    let bench = Bench::new();
    let limits =
        "version: 1\nbudgets:\n  - { id: day, wall_time: 2h, per: day, at_limit: freeze }\n";
    bench.write("p", limits);
    bench.attach("a", "/one").await.unwrap();
    act(&bench, 1, Verdict::Allow, Reason::Rule, 0);
    act(&bench, 1, Verdict::Deny, Reason::PathUnreadable, 36);
    let record = |op: &'static str| Record {
        agent: Some("a".into()),
        session: Some(1),
        verdict: Some("allow".into()),
        reply: Some("NOERROR".into()),
        ..Record::new(op)
    };
    bench.engine.recorder().decided(record(op::RESOLVE));
    bench.engine.recorder().note(Record {
        target: Some("openai/any".into()),
        usage: Some(Used {
            input_tokens: 1,
            cached_tokens: 0,
            output_tokens: 2,
            usd: Some("0.5".to_owned()),
            estimated: false,
        }),
        ..record(op::MODEL)
    });
    sent(&bench, 1, 7);
    let root = bench.folder.path();
    let text = "sinks: { here: { syslog: { to: 'unix:///nowhere' } } }";
    let config = Config::parse(Path::new("test.yaml"), text).unwrap();
    let place = Place::new(root.join("audit.jsonl"), root.join("state"));
    let sinks = Sinks::start(&config.sinks, &place);
    bench.engine.send_to(sinks);
    // The self-test has no series.
    let canary = format!("canary-{}", std::process::id());
    bench.engine.recorder().begin_session(9, &canary);
    let scrape = bench.engine.metrics().unwrap();
    // What is pushed is made of the same.
    let request = otlp::request(&scrape, "host", std::time::SystemTime::now());
    let pushed = &request.resource_metrics[0].scope_metrics[0].metrics;
    let names: Vec<&str> = pushed.iter().map(|it| &*it.name).collect();
    let all: Vec<&str> = list::ALL.iter().map(|it| it.name).collect();
    assert_eq!(names, all);
    let text = scrape.text().unwrap();
    assert!(!text.contains("canary"), "{text}");
    for metric in list::ALL {
        let series = text.lines().find(|line| {
            let rest = line.strip_prefix(metric.name).unwrap_or_default();
            rest.starts_with(['{', ' ']) || rest.starts_with("_count")
        });
        let series = series.unwrap_or_else(|| panic!("{} is missing in {text}", metric.name));
        let labels = metric
            .labels
            .iter()
            .all(|it| series.contains(&format!("{it}=\"")));
        assert!(labels, "{series}");
    }
    let types = text.lines().filter(|line| line.starts_with("# TYPE "));
    assert_eq!(types.count(), list::ALL.len());
    assert_eq!(
        value(
            &text,
            "agentguard_budget_limit{agent=\"a\",budget=\"day\",quantity=\"wall_time\"}"
        ),
        Some(7200.0)
    );
    assert_eq!(
        value(
            &text,
            "agentguard_gateway_cost_usd_total{agent=\"a\",provider=\"openai\"}"
        ),
        Some(0.5)
    );
    let failure = "agentguard_kernel_failures_total{agent=\"a\",op=\"open\",cause=\"path-unreadable\",errno=\"ENAMETOOLONG\"}";
    assert_eq!(value(&text, failure), Some(1.0));
    // The resolver's question, the call of a model, and the open.
    assert_eq!(
        value(
            &text,
            "agentguard_verdicts_total{agent=\"a\",verdict=\"allow\"}"
        ),
        Some(3.0)
    );
    assert_eq!(
        value(
            &text,
            "agentguard_verdicts_total{agent=\"a\",verdict=\"would-deny\"}"
        ),
        Some(0.0)
    );
}

#[tokio::test]
async fn counters_go_on_when_an_agent_is_attached_again() {
    let bench = Bench::new();
    let denied = "agentguard_verdicts_total{agent=\"a\",verdict=\"deny\"}";
    let bytes = "agentguard_traffic_bytes_total{agent=\"a\",direction=\"out\"}";
    let mut before = (0.0, 0.0);
    for session in 1..4 {
        bench.attach("a", "/one").await.unwrap();
        act(&bench, session, Verdict::Deny, Reason::Default, 0);
        sent(&bench, session, 10);
        let now = text(&bench);
        let after = (value(&now, denied).unwrap(), value(&now, bytes).unwrap());
        assert_eq!(after, (before.0 + 1.0, before.1 + 10.0));
        sent(&bench, session, 15);
        bench.engine.detach("a").await.unwrap();
        let now = text(&bench);
        // It is gone, and what it did is not.
        before = (after.0, after.1 + 5.0);
        assert_eq!(
            (value(&now, denied), value(&now, bytes)),
            (Some(before.0), Some(before.1))
        );
        assert_eq!(value(&now, "agentguard_agent_processes{agent=\"a\"}"), None);
    }
}

#[tokio::test]
async fn a_policy_that_was_refused_is_seen_until_one_is_installed() {
    let bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    bench.write("p", "version: 2\n");
    bench.engine.reload(None).await;
    let now = text(&bench);
    assert_eq!(
        value(&now, "agentguard_policy_refused{agent=\"a\"}"),
        Some(1.0)
    );
    bench.write("p", "version: 1\n");
    bench.engine.reload(None).await;
    let now = text(&bench);
    assert_eq!(
        value(&now, "agentguard_policy_refused{agent=\"a\"}"),
        Some(0.0)
    );
    // One at its start, and one after the mistake.
    for (outcome, count) in [("installed", 2.0), ("refused", 1.0)] {
        let series =
            format!("agentguard_policy_changes_total{{agent=\"a\",outcome=\"{outcome}\"}}");
        assert_eq!(value(&now, &series), Some(count), "{outcome}");
    }
}

/// A socket of this process, as its holder finds it.
fn own_socket() -> (std::os::unix::net::UnixStream, u32) {
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let inode = nix::sys::stat::fstat(&socket).unwrap().st_ino;
    (socket, u32::try_from(inode).unwrap())
}

#[tokio::test]
async fn only_a_caller_that_is_known_to_be_free_may_scrape() {
    let bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    let source = bench.engine.metrics_source();
    let (_socket, inode) = own_socket();
    let cgroup = |name: &str| {
        let path = bench.folder.path().join("cg").join(name);
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap())
    };
    let other = |name: &str, inode| OtherEnd {
        cgroup: cgroup(name),
        inode,
    };
    assert!(source.may_read(other("two", inode)));
    // Made in the agent's cgroup, whoever has it now.
    assert!(!source.may_read(other("one", inode)));
    // Nobody has it.
    assert!(!source.may_read(other("two", 1)));
    // The one who has it carries a label, wherever it is.
    bench.kernel(|kernel| kernel.carriers.insert(std::process::id()));
    assert!(!source.may_read(other("two", inode)));
    bench.kernel(|kernel| kernel.carriers.clear());
    // Nobody can tell.
    bench.kernel(|kernel| kernel.fails = Some("look-up"));
    assert!(!source.may_read(other("two", inode)));
}
