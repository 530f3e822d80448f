//! What is counted of records, whoever made them.

use super::*;
use crate::event::decode;
use crate::event::sample::Sample;

fn name() -> Arc<str> {
    Arc::from("claude")
}

fn event(counts: &mut Counts, verdict: Verdict, reason: Reason, rule: Option<&str>, errno: u16) {
    let sample = Sample::new(Operation::Open, verdict, reason, b"/etc/x")
        .with(|header| header.errno = errno);
    let bytes = sample.bytes();
    counts.event(Some("claude"), &decode(&bytes).unwrap(), rule);
}

fn records(counts: &Counts, agent: &str) -> Vec<(String, String, u64)> {
    let records = counts.agents()[agent].records().into_iter();
    records
        .map(|((op, verdict), count)| (op.into_owned(), verdict.into_owned(), count))
        .collect()
}

#[test]
fn counting_goes_on_when_an_agent_comes_back() {
    let mut counts = Counts::default();
    for _ in 0..3 {
        counts.begin(&name());
        event(&mut counts, Verdict::Allow, Reason::Rule, None, 0);
        event(&mut counts, Verdict::Deny, Reason::Rule, Some("no"), 0);
        counts.end(&name());
        // Records that come late still count for it.
        event(&mut counts, Verdict::Deny, Reason::Default, None, 0);
    }
    let row = |verdict: &str, count| ("open".to_owned(), verdict.to_owned(), count);
    assert_eq!(
        records(&counts, "claude"),
        [row("allow", 3), row("deny", 6)]
    );
    let mut denials: Vec<_> = counts.agents()["claude"]
        .denials()
        .map(|(rule, cause, count)| (rule.to_owned(), cause.0.to_string(), count))
        .collect();
    denials.sort();
    let of = |rule: &str, cause: &str| (rule.to_owned(), cause.to_owned(), 3);
    assert_eq!(denials, [of("", "default"), of("no", "rule")]);
}

#[test]
fn series_are_bounded_whatever_agents_do() {
    let mut counts = Counts::default();
    counts.begin(&name());
    for number in 0..3 * RULES {
        let rule = format!("rule-{number}");
        event(&mut counts, Verdict::Deny, Reason::Rule, Some(&rule), 0);
    }
    let agents = counts.agents();
    assert_eq!(agents["claude"].denials().count(), RULES + 1);
    let rest: u64 = agents["claude"]
        .denials()
        .filter(|it| it.0 == OTHER)
        .map(|it| it.2)
        .sum();
    assert_eq!(rest, 2 * RULES as u64);
    for number in 0..3 * ENDED_KEPT {
        let run: Arc<str> = format!("run-{number}").into();
        counts.begin(&run);
        counts.end(&run);
    }
    // Those, the one that is there, and nobody.
    assert_eq!(counts.agents().len(), ENDED_KEPT + 2);
    assert!(counts.agents().contains_key("claude"));
}

#[test]
fn failures_of_the_kernel_are_told_from_denials_by_rules_and_by_budgets() {
    let mut counts = Counts::default();
    counts.begin(&name());
    event(&mut counts, Verdict::Deny, Reason::Rule, Some("no"), 0);
    event(&mut counts, Verdict::Deny, Reason::Budget, None, 17);
    event(&mut counts, Verdict::Deny, Reason::PathUnreadable, None, 36);
    event(
        &mut counts,
        Verdict::Deny,
        Reason::ScratchUnavailable,
        None,
        0,
    );
    let agents = counts.agents();
    let failures: Vec<_> = agents["claude"].failures().collect();
    let of = |reason, errno| (Operation::Open, reason, errno, 1);
    let wanted = [
        of(Reason::PathUnreadable, 36),
        of(Reason::ScratchUnavailable, 0),
    ];
    assert_eq!(failures, wanted);
}

#[test]
fn calls_questions_and_policies_are_counted_from_records() {
    let mut counts = Counts::default();
    counts.begin(&name());
    let record = |op: &'static str| Record {
        agent: Some("claude".into()),
        ..Record::new(op)
    };
    let call = |usd: Option<&str>| Record {
        target: Some("openai/gpt/of/the/agent".into()),
        verdict: Some("allow".into()),
        usage: Some(Used {
            input_tokens: 10,
            cached_tokens: 3,
            output_tokens: 5,
            usd: usd.map(str::to_owned),
            estimated: false,
        }),
        ..record(op::MODEL)
    };
    counts.own(&call(Some("0.000000000001")));
    counts.own(&call(None));
    counts.own(&Record {
        target: Some("whatever\\x0ais/asked".into()),
        verdict: Some("deny".into()),
        cause: Some("gateway".into()),
        ..record(op::MODEL)
    });
    counts.own(&Record {
        verdict: Some("deny".into()),
        reply: Some("REFUSED".into()),
        ..record(op::RESOLVE)
    });
    counts.own(&record(op::POLICY_INSTALL));
    counts.own(&record(op::POLICY_ERROR));
    counts.own(&record(op::ALARM));
    let agents = counts.agents();
    let claude = agents["claude"];
    assert_eq!(
        claude.made,
        BTreeMap::from([(
            "openai".into(),
            Made {
                calls: 2,
                input: 20,
                cached: 6,
                output: 10,
                money: 1
            }
        )])
    );
    assert_eq!(claude.calls_refused, 1);
    assert_eq!(claude.questions[&("deny".into(), "REFUSED".into())], 1);
    assert_eq!((claude.installed, claude.refused), (1, 1));
    assert!(claude.last_refused);
    assert_eq!(counts.alarms, 1);
    // What no agent did is nobody's.
    counts.own(&Record::new(op::START));
    assert_eq!(
        records(&counts, ""),
        [("start".to_owned(), String::new(), 1)]
    );
}

#[test]
fn the_peak_of_a_ring_stays() {
    let mut counts = Counts::default();
    counts.rings([5, 9]);
    counts.rings([7, 1]);
    assert_eq!((counts.ring_used, counts.ring_peak), ([7, 1], [7, 9]));
}

#[test]
fn births_and_deaths_are_records_without_a_verdict() {
    let mut counts = Counts::default();
    counts.begin(&name());
    let sample = Sample::new(Operation::Fork, Verdict::Allow, Reason::None, b"");
    let bytes = sample.bytes();
    counts.event(Some("claude"), &decode(&bytes).unwrap(), None);
    let born = ("fork".to_owned(), String::new(), 1);
    assert_eq!(records(&counts, "claude"), [born]);
}
