//! What waits for an answer: how it is drawn, and that nothing is permitted without a question.

use super::keys::Key;
use super::state::{Filter, Order, Over, Reply, Say, Sort, State};
use super::tests::{drawn, snapshot, text};
use crate::api::wire::Snapshot;
use crate::approval::{Approvals, Granted, Scope, Waiting};

const EVIL: &str = "x\u{1b}[2J\u{202e}\u{7}\n\r\u{9b}31m";

fn waiting(id: u64, argv: &[&str]) -> Waiting {
    Waiting {
        id,
        agent: "claude".to_owned(),
        session: 1,
        op: "exec".to_owned(),
        target: "/usr/bin/cargo".to_owned(),
        to: None,
        access: Some("exec".to_owned()),
        argv: Some(argv.iter().map(|it| (*it).to_owned()).collect()),
        exe: Some("/usr/bin/bash".to_owned()),
        pid: 1,
        uid: 0,
        rule: Some("publish".to_owned()),
        reason: Some("Nothing is published without a person.".to_owned()),
        first: "2026-03-02T10:11:12.000000001Z".to_owned(),
        last: "2026-03-02T10:15:00.000000001Z".to_owned(),
        tries: 3,
        denied_by: None,
    }
}

fn granted(id: u64, over: bool) -> Granted {
    Granted {
        what: waiting(id, &["cargo", "login"]),
        scope: Scope::Seconds(900),
        by: "root, process 7".to_owned(),
        at: String::new(),
        until: Some("2026-03-02T10:30:00.5Z".to_owned()),
        used: 1,
        over,
    }
}

fn with(approvals: Approvals) -> Snapshot {
    Snapshot {
        approvals,
        ..snapshot(1000, 1)
    }
}

/// Two that wait, one that was denied, one that is granted, and one of which nothing is left.
fn state() -> State {
    let denied = Waiting {
        denied_by: Some("root".to_owned()),
        ..waiting(3, &["cargo", "yank"])
    };
    let waits = |id| waiting(id, &["cargo", "publish", "--token=1"]);
    let mut state = State::new(Sort::Denials, Filter::Denials, false);
    state.look(with(Approvals {
        waiting: vec![denied, waits(7), waits(8)],
        granted: vec![granted(2, true), granted(5, false)],
        ..Approvals::default()
    }));
    state
}

fn reply(id: u64, what: Say, state: &State) -> Order {
    let line = state.lines.iter().find(|it| it.id == id).unwrap();
    let deed = line.deed.clone();
    Order::Answer(Reply { id, what, deed })
}

fn key(state: &State, id: u64) -> String {
    let line = state.lines.iter().find(|it| it.id == id).unwrap();
    line.key.clone()
}

fn write(state: &mut State, keys: &str) {
    for letter in keys.chars() {
        assert_eq!(state.press(Key::Letter(letter)), None);
    }
}

#[test]
fn what_waits_is_told_in_the_head_and_shown_with_all_of_it() {
    let mut state = state();
    assert!(text(&state, 120, 24).contains("2 for an answer (a)"));
    write(&mut state, "a");
    insta::assert_snapshot!(text(&state, 120, 24));
    write(&mut state, "a");
    assert!(text(&state, 120, 24).contains("denials, the newest first"));
    // What there is no room for is said.
    let long = "y".repeat(3000);
    state.look(with(Approvals {
        waiting: vec![waiting(9, &["cargo", &long])],
        ..Approvals::default()
    }));
    write(&mut state, "a");
    let shown = text(&state, 120, 24);
    assert!(
        shown.contains("`agentguard approvals list` shows all of it"),
        "{shown}"
    );
    state.look(with(Approvals::default()));
    let shown = text(&state, 120, 24);
    assert!(shown.contains("nothing waits") && !shown.contains("for an answer (a)"));
    for width in 0..140 {
        for height in 0..40 {
            drawn(&state, width, height);
        }
    }
}

#[test]
fn a_grant_needs_a_yes_and_is_for_what_was_asked_about() {
    let mut state = state();
    // Where acts are not shown nothing is answered.
    write(&mut state, "123nr");
    assert_eq!(state.over, Over::Nothing);
    write(&mut state, "a1");
    assert!(text(&state, 120, 24).contains("permit 7 once? y permits, any other key does not"));
    assert_eq!(state.press(Key::Enter), None);
    assert!(text(&state, 120, 24).contains("7 was not permitted"));
    write(&mut state, "1");
    // What is there meanwhile does not matter.
    let seen = key(&state, 7);
    let other = waiting(7, &["cargo", "owner", "--add"]);
    state.look(with(Approvals {
        waiting: vec![other],
        ..Approvals::default()
    }));
    assert_ne!(key(&state, 7), seen);
    let Some(Order::Answer(Reply { what, deed, .. })) = state.press(Key::Letter('y')) else {
        panic!("it was permitted");
    };
    assert_eq!(what, Say::Grant(Scope::Once, seen));
    assert!(deed.contains("--token=1"), "{deed}");
    write(&mut state, "3");
    let session = Say::Grant(Scope::Session, key(&state, 7));
    let order = reply(7, session, &state);
    assert_eq!(state.press(Key::Letter('y')), Some(order));
    assert_eq!(state.press(Key::Letter('y')), None);
}

#[test]
fn a_time_is_written_and_has_to_be_one() {
    let mut state = state();
    write(&mut state, "a");
    state.press(Key::Down);
    let grant = |state: &State, seconds| {
        let what = Say::Grant(Scope::Seconds(seconds), key(state, 8));
        reply(8, what, state)
    };
    write(&mut state, "2");
    assert!(text(&state, 120, 24).contains("permit 8 for: 15m_"));
    assert_eq!(state.press(Key::Enter), Some(grant(&state, 900)));
    write(&mut state, "2");
    for _ in 0..5 {
        assert_eq!(state.press(Key::Backspace), None);
    }
    // Neither `y` nor `q` is an answer here.
    write(&mut state, "yq");
    assert_eq!(state.press(Key::Enter), None);
    assert!(text(&state, 120, 24).contains("is not a stretch of time"));
    state.press(Key::Backspace);
    state.press(Key::Backspace);
    write(&mut state, "1h30m");
    assert_eq!(state.press(Key::Enter), Some(grant(&state, 5400)));
    for refusal in [Key::Escape, Key::Interrupt] {
        write(&mut state, "2");
        assert_eq!(state.press(refusal), None);
        assert_eq!(state.over, Over::Nothing);
        assert_eq!(state.message.as_deref(), Some("8 was not permitted"));
    }
    assert_eq!(state.press(Key::Interrupt), Some(Order::Quit));
}

#[test]
fn what_waits_is_denied_and_what_is_granted_taken_back() {
    let mut state = state();
    write(&mut state, "a");
    assert_eq!(state.press(Key::Letter('r')), None);
    assert_eq!(state.message.as_deref(), Some("7 is not granted"));
    let deny = reply(7, Say::Deny, &state);
    assert_eq!(state.press(Key::Letter('n')), Some(deny));
    state.press(Key::End);
    assert_eq!(state.line().map(|it| it.id), Some(5));
    assert_eq!(state.press(Key::Letter('n')), None);
    write(&mut state, "1");
    assert_eq!(state.over, Over::Nothing);
    assert!(text(&state, 120, 24).contains("5 is granted already"));
    let revoke = reply(5, Say::Revoke, &state);
    assert_eq!(state.press(Key::Letter('r')), Some(revoke));
    // One that was denied can still be permitted.
    state.press(Key::Up);
    assert_eq!(state.line().map(|it| it.id), Some(3));
    write(&mut state, "1");
    let once = Say::Grant(Scope::Once, key(&state, 3));
    let order = reply(3, once, &state);
    assert_eq!(state.press(Key::Letter('y')), Some(order));
    // The choice of an agent is another one.
    assert_eq!(state.chosen.as_deref(), Some("look"));
}

#[test]
fn nothing_of_an_act_reaches_the_terminal_unescaped() {
    let evil = || EVIL.to_owned();
    let act = |id, denied_by| Waiting {
        id,
        agent: evil(),
        op: evil(),
        target: evil(),
        to: Some(evil()),
        access: Some(evil()),
        argv: None,
        exe: Some(evil()),
        rule: Some(evil()),
        reason: Some(evil()),
        last: evil(),
        denied_by,
        ..waiting(id, &[])
    };
    let mut state = State::new(Sort::Denials, Filter::All, true);
    let given = Granted {
        what: act(3, None),
        by: evil(),
        until: Some(evil()),
        ..granted(3, false)
    };
    let program = Waiting {
        argv: Some(vec![evil(), evil()]),
        op: "exec".to_owned(),
        ..act(4, None)
    };
    state.look(with(Approvals {
        waiting: vec![act(1, None), act(2, Some(evil())), program],
        granted: vec![given],
        ..Approvals::default()
    }));
    write(&mut state, "a");
    for _ in 0..4 {
        let mut screens = vec![text(&state, 400, 40)];
        for letter in ['1', '2'] {
            state.press(Key::Letter(letter));
            screens.push(text(&state, 400, 40));
            state.press(Key::Escape);
        }
        for shown in screens {
            let bad = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
            assert!(!shown.contains(bad), "{shown:?}");
            assert!(shown.contains(r"x\x1b[2J"), "{shown}");
        }
        state.over = Over::Nothing;
        state.press(Key::Down);
    }
}
