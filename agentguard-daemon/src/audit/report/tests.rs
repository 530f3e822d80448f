//! Reports: their numbers, and that no record can put markup into them.

use super::{Form, Report, Session};
use crate::audit::Record;
use crate::audit::stats::Stats;

fn sample() -> Report {
    let mut stats = Stats::default();
    for number in 0..120 {
        let refused = number % 4 == 0;
        let target = if refused {
            "/x/<script>alert(1)</script>|`&\"'".to_owned()
        } else {
            format!("/work/{}", number % 3)
        };
        stats.add(&Record {
            time: format!("2026-11-23T04:{:02}:00.000000000Z", number / 2).into(),
            agent: Some("claude".into()),
            exe: Some("/usr/bin/git".into()),
            access: Some("read".into()),
            target: Some(target.into()),
            verdict: Some(if refused { "deny" } else { "allow" }.into()),
            rule: refused.then(|| "no-x".into()),
            ..Record::new("open")
        });
    }
    stats.add(&Record {
        time: "2026-11-23T04:30:00.000000000Z".into(),
        lost: Some(17),
        ..Record::new("gap")
    });
    let sessions = vec![Session {
        session: 3,
        agent: "claude<b>".to_owned(),
        policies: vec!["coding-agent".to_owned()],
        allowed: 90,
        refused: 30,
        ..Session::default()
    }];
    Report {
        about: "agent claude".to_owned(),
        command: "agentguard report --agent claude".to_owned(),
        ..Report::new(&stats, sessions, 2)
    }
}

#[test]
fn numbers_are_those_of_the_log() {
    let report = sample();
    assert_eq!(report.summary.records, 121);
    assert_eq!(report.summary.lost, 17);
    assert_eq!(report.summary.verdicts["deny"], 30);
    assert_eq!(report.summary.refused_by[0].count, 30);
    assert_eq!(report.summary.different_files_read, 3);
    assert_eq!(report.summary.files_read.len(), 2);
    let (_, step, slices) = &report.over_time;
    assert_eq!(*step, 60);
    let (allowed, denied) = slices.iter().fold((0, 0), |sum, slice| {
        (sum.0 + slice.allowed, sum.1 + slice.denied)
    });
    assert_eq!((allowed, denied), (90, 30));
    for form in [Form::Text, Form::Markdown, Form::Html] {
        let text = report.write(form);
        for wanted in [
            "121 records",
            "17 records were lost",
            "files read (2 of 3)",
            "session",
            "no-x",
        ] {
            assert!(text.contains(wanted), "{form:?} lacks {wanted}: {text}");
        }
    }
}

#[test]
fn nothing_of_a_record_becomes_markup_and_nothing_is_loaded() {
    let page = sample().write(Form::Html);
    assert!(!page.contains("<script") && !page.contains("<b>"), "{page}");
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;|`&amp;&quot;&#39;"));
    for forbidden in ["http://", "https://", "src=", "href=", "@import", "url("] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert!(page.contains("<svg") && page.contains("Content-Security-Policy"));
    let markdown = sample().write(Form::Markdown);
    assert!(
        markdown.contains(r#"`` read /x/<script>alert(1)</script>\x7c`&"' ``"#),
        "{markdown}"
    );
}

/// What a log of somebody else's may hold: nothing in it is escaped.
#[test]
fn no_text_of_a_log_makes_a_line_of_its_own() {
    let evil = "/a\n# forged\r\n| 9 | x |\x1b[2J\u{202e}\u{2028}\\|`<img src=x>";
    let mut stats = Stats::default();
    let mut session = Session::default();
    let mut record = Record {
        time: evil.into(),
        agent: Some(evil.into()),
        exe: Some(evil.into()),
        policy: Some(evil.into()),
        access: Some(evil.into()),
        target: Some(evil.into()),
        verdict: Some(evil.into()),
        rule: Some(evil.into()),
        ..Record::new(evil)
    };
    stats.add(&record);
    session.add(1, &record);
    record.verdict = Some("allow".into());
    stats.add(&record);
    let mut report = Report::new(&stats, vec![session], 9);
    (report.about, report.log, report.command) = (evil.into(), evil.into(), evil.into());
    let plain = Report::new(&Stats::default(), Vec::new(), 9);
    for form in [Form::Text, Form::Markdown, Form::Html] {
        let text = report.write(form);
        assert!(
            !text
                .chars()
                .any(|it| (it.is_control() && it != '\n') || "\u{202e}\u{2028}".contains(it)),
            "{text:?}"
        );
        for line in text.lines() {
            assert!(
                !line.starts_with("# forged") && !line.starts_with("| 9"),
                "{text}"
            );
        }
        assert!(plain.write(form).lines().count() < text.lines().count());
    }
    let page = report.write(Form::Html);
    assert!(!page.contains("<img"), "{page}");
    // Each row of a table has as many cells as its head.
    for line in report
        .write(Form::Markdown)
        .lines()
        .filter(|it| it.starts_with("| "))
    {
        assert_eq!(line.matches('|').count(), 3, "{line}");
    }
}

#[test]
fn bytes_are_summed_by_host() {
    let record = |target: Option<&'static str>, name: Option<&'static str>, sent| Record {
        target: target.map(Into::into),
        port: target.map(|_| 443),
        name: name.map(Into::into),
        bytes_out: Some(sent),
        bytes_in: Some(0),
        ..Record::new("traffic")
    };
    let mut stats = Stats::default();
    for record in [
        record(Some("192.0.2.1:443"), Some("a.test"), 1_000),
        record(Some("192.0.2.2:443"), Some("a.test"), 500),
        record(Some("192.0.2.3:443"), None, 20),
        record(None, None, 3),
    ] {
        stats.add(&record);
    }
    let report = Report::new(&stats, Vec::new(), 2);
    let sent = &report.summary.bytes_sent;
    assert_eq!(
        (sent[0].what.as_str(), sent[0].count),
        ("a.test:443", 1_500)
    );
    assert_eq!(
        (sent[1].what.as_str(), sent[1].count),
        ("192.0.2.3:443", 20)
    );
    assert_eq!(report.summary.different_bytes_sent, 3);
    assert!(report.summary.bytes_received.is_empty());
    for form in [Form::Text, Form::Markdown, Form::Html] {
        assert!(report.write(form).contains("bytes sent to (2 of 3)"));
    }
}

#[test]
fn what_shadow_mode_let_pass_is_not_called_refused() {
    let record = |verdict: &'static str| Record {
        time: "2026-11-23T04:00:00.000000000Z".into(),
        target: Some("/x".into()),
        verdict: Some(verdict.into()),
        ..Record::new("open")
    };
    let mut stats = Stats::default();
    let mut session = Session::default();
    for verdict in ["allow", "deny", "would-deny", "would-deny"] {
        stats.add(&record(verdict));
        session.add(2, &record(verdict));
    }
    assert_eq!(
        (session.allowed, session.refused, session.would_deny),
        (1, 1, 2)
    );
    let text = Report::new(&stats, vec![session], 9).write(Form::Text);
    assert!(
        text.contains("1 refused, 2 that shadow mode let pass"),
        "{text}"
    );
    assert!(
        text.contains("refused (or would be, in shadow mode) by"),
        "{text}"
    );
}

#[test]
fn hosts_have_their_names_and_listening_is_no_change_of_a_file() {
    let record = |op: &'static str, target: &'static str, name: Option<&'static str>| Record {
        target: Some(target.into()),
        verdict: Some("allow".into()),
        family: (op != "resolve").then(|| "inet".into()),
        port: name.map(|_| 443),
        name: name.map(Into::into),
        ..Record::new(op)
    };
    let mut stats = Stats::default();
    for record in [
        record("connect", "192.0.2.1:443", Some("a.test")),
        record("connect", "192.0.2.2:443", Some("a.test")),
        record("send", "192.0.2.3:53", None),
        record("receive", "192.0.2.3:53", None),
        record("listen", "127.0.0.1:80", None),
        record("resolve", "a.test", None),
    ] {
        stats.add(&record);
    }
    stats.add(&Record {
        verdict: Some("deny".into()),
        ..record("resolve", "b.test", None)
    });
    let summary = Report::new(&stats, Vec::new(), 9).summary;
    let listed = |counts: &[crate::audit::stats::Count]| -> Vec<(String, u64)> {
        counts
            .iter()
            .map(|it| (it.what.clone(), it.count))
            .collect()
    };
    assert_eq!(
        listed(&summary.hosts),
        [("192.0.2.3:53".to_owned(), 2), ("a.test:443".to_owned(), 2)]
    );
    assert_eq!(
        listed(&summary.listened_at),
        [("127.0.0.1:80".to_owned(), 1)]
    );
    assert_eq!(listed(&summary.names_resolved), [("a.test".to_owned(), 1)]);
    assert_eq!(listed(&summary.refused), [("resolve b.test".to_owned(), 1)]);
    assert!(summary.files_changed.is_empty());
}
