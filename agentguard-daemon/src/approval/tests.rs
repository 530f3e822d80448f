use agentguard_common::approval::MAX_OBJECT;
use agentguard_common::record::Destination;
use agentguard_common::verdict::{Operation, Reason, Verdict, access};
use zerocopy::IntoBytes as _;

use super::*;
use crate::event::decode;
use crate::event::sample::Sample;

fn items(sample: &Sample) -> Option<Vec<Item>> {
    let bytes = sample.bytes();
    items_of(&decode(&bytes).unwrap(), |path| path != b"/free")
}

fn ask(operation: Operation, target: &[u8], accesses: u8) -> Sample {
    Sample::new(operation, Verdict::Ask, Reason::Rule, target).with(|it| it.access = accesses)
}

fn objects(sample: &Sample) -> Vec<(u32, u32, Vec<u8>)> {
    let items = items(sample).unwrap();
    let keys = items.iter().map(|item| item.key(1, 2));
    keys.map(|key| {
        assert_eq!((key.agent, key.session), (1, 2));
        assert!(key.object[key.len as usize..].iter().all(|byte| *byte == 0));
        (
            key.access,
            key.split,
            key.object[..key.len as usize].to_vec(),
        )
    })
    .collect()
}

#[test]
fn each_access_is_an_item_of_its_own() {
    let both = ask(Operation::Open, b"/x", access::READ | access::WRITE);
    assert_eq!(
        objects(&both),
        [(1, 0, b"/x".to_vec()), (2, 0, b"/x".to_vec())]
    );
    let read = ask(Operation::Open, b"/x", access::READ);
    assert_eq!(objects(&read), [(1, 0, b"/x".to_vec())]);
}

#[test]
fn a_program_is_granted_with_its_arguments() {
    let push = ask(Operation::Exec, b"/usr/bin/git", access::EXEC).argv(&["git", "push"]);
    let object = b"/usr/bin/gitgit\0push\0".to_vec();
    assert_eq!(objects(&push), [(4, 12, object)]);
    let cut = ask(Operation::Exec, b"/usr/bin/git", access::EXEC)
        .argv(&["git"])
        .with(|it| it.aux = 2);
    assert_eq!(items(&cut), None, "not all arguments are known");
    let none = ask(Operation::Exec, b"/usr/bin/git", access::EXEC);
    assert_eq!(items(&none), None, "its arguments are not known");
}

#[test]
fn of_two_names_those_that_a_rule_asks_about_are_granted() {
    let moved = |from: &[u8], to: &str| {
        let mut sample = ask(Operation::Rename, from, access::WRITE);
        sample.arguments = to.as_bytes().to_vec();
        sample
    };
    assert_eq!(
        objects(&moved(b"/free", "/asked")),
        [(2, 0, b"/asked".to_vec())]
    );
    assert_eq!(objects(&moved(b"/a", "/b")).len(), 2);
    assert_eq!(items(&moved(b"/free", "/free")), None);
}

#[test]
fn an_address_is_granted_as_it_was_given() {
    let destination = Destination {
        family: 2,
        protocol: 6,
        port: 443,
        kind: 1,
        address: [1; 16],
    };
    let connect = ask(Operation::Connect, destination.as_bytes(), 0);
    assert_eq!(objects(&connect), [(8, 0, destination.as_bytes().to_vec())]);
    let listen = ask(Operation::Listen, destination.as_bytes(), 0);
    assert_eq!(objects(&listen)[0].0, 16);
}

#[test]
fn what_is_too_long_or_never_granted_has_no_items() {
    let long = vec![b'a'; MAX_OBJECT];
    let path = [b"/", long.as_slice()].concat();
    assert_eq!(items(&ask(Operation::Open, &path, access::READ)), None);
    assert!(items(&ask(Operation::Open, &path[..MAX_OBJECT], access::READ)).is_some());
    assert_eq!(items(&ask(Operation::Map, b"/x", access::EXEC)), None);
    assert_eq!(items(&ask(Operation::Receive, b"/x", access::READ)), None);
    assert_eq!(items(&ask(Operation::Open, b"/x", access::EXEC)), None);
}

fn waiting(session: u32) -> Waiting {
    Waiting {
        id: 0,
        agent: "claude".to_owned(),
        session,
        op: "open".to_owned(),
        target: "/x".to_owned(),
        to: None,
        access: None,
        argv: None,
        exe: None,
        pid: 1,
        uid: 0,
        rule: None,
        reason: None,
        first: "first".to_owned(),
        last: "last".to_owned(),
        tries: 1,
        denied_by: None,
    }
}

fn path(path: &str) -> Vec<Item> {
    items(&ask(Operation::Open, path.as_bytes(), access::READ)).unwrap()
}

#[test]
fn the_same_act_waits_once_and_other_acts_beside_it() {
    let book = Book::default();
    let id = book.ask(1, path("/x"), waiting(2)).unwrap();
    assert_eq!(book.ask(1, path("/x"), waiting(2)), Some(id));
    let other = book.ask(1, path("/y"), waiting(2)).unwrap();
    let stranger = book.ask(1, path("/x"), waiting(3)).unwrap();
    assert!(id != other && id != stranger && other != stranger);
    assert_eq!(book.waiting(id).unwrap().tries, 2);
    assert_eq!(book.show(Some(2)).waiting.len(), 2);
    book.forget_session(2);
    let left = book.show(None).waiting;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].id, stranger);
}

#[test]
fn a_flood_of_one_session_keeps_nobody_else_out() {
    let book = Book::default();
    for number in 0..MOST_WAITING {
        assert!(
            book.ask(1, path(&format!("/{number}")), waiting(2))
                .is_some()
        );
    }
    assert_eq!(book.ask(1, path("/one-more"), waiting(2)), None);
    assert!(
        book.ask(1, path("/0"), waiting(2)).is_some(),
        "it waits already"
    );
    assert!(book.ask(1, path("/one-more"), waiting(3)).is_some());
    assert_eq!(book.show(None).dropped, 1);
    book.forget_session(2);
    assert!(book.ask(1, path("/one-more"), waiting(2)).is_some());
}

#[test]
fn a_grant_takes_the_place_of_one_for_the_same_and_is_known_when_it_is_over() {
    let book = Book::default();
    let grant = |scope| {
        let id = book.ask(1, path("/x"), waiting(2)).unwrap();
        let granting = book.prepare(id, scope, "root", "now").unwrap();
        let replaced = book.grant(granting.clone());
        assert_eq!(book.waiting(id), None, "it waits no more");
        (granting, replaced)
    };
    let (first, none) = grant(Scope::Once);
    assert_eq!(first.value().most, 1);
    assert!(none.is_empty());
    let (second, replaced) = grant(Scope::Session);
    assert_eq!(second.value().most, 0);
    assert_eq!(replaced, std::slice::from_ref(&first));
    book.end(first.number);
    assert_eq!(book.granting(first.number, 2).unwrap(), first);
    assert_eq!(book.granting(first.number, 3), None, "of another session");
    assert_eq!(book.grants(), std::slice::from_ref(&second));
    for _ in 0..70_000 {
        let id = book.ask(1, path("/z"), waiting(2)).unwrap();
        let granting = book.prepare(id, Scope::Once, "root", "now").unwrap();
        assert!(granting.number != 0 && granting.number != second.number);
    }
}

#[test]
fn numbers_of_approvals_go_on_after_a_restart() {
    let book = Book::default();
    let id = book.ask(1, path("/x"), waiting(2)).unwrap();
    let granting = book.prepare(id, Scope::Once, "root", "now").unwrap();
    book.grant(granting.clone());
    let next = Book::default();
    next.adopt(book.last_id(), book.grants());
    assert_eq!(next.of_approval(id), Some(granting));
    assert!(next.ask(1, path("/y"), waiting(2)).unwrap() > id);
}

#[test]
fn what_cannot_be_numbered_does_not_wait_and_a_closed_book_has_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("numbers.partial");
    std::fs::create_dir(&blocked).unwrap();
    let book = Book::kept_at(folder.path().join("numbers"));
    assert_eq!(book.ask(1, path("/x"), waiting(2)), None);
    let shown = book.show(None);
    assert!(shown.waiting.is_empty() && shown.dropped == 1);
    std::fs::remove_dir(&blocked).unwrap();
    assert_eq!(book.ask(1, path("/x"), waiting(2)), Some(1));
    let next = Book::kept_at(folder.path().join("numbers"));
    assert!(next.ask(1, path("/y"), waiting(2)).unwrap() > 1);
    let closed = Book::closed();
    assert_eq!(closed.ask(1, path("/x"), waiting(2)), None);
    assert_eq!(closed.show(None), Approvals::default());
}

#[test]
fn who_says_no_is_remembered() {
    let book = Book::default();
    let id = book.ask(1, path("/x"), waiting(2)).unwrap();
    assert!(book.deny(id, "root") && !book.deny(id + 1, "root"));
    book.ask(1, path("/x"), waiting(2)).unwrap();
    assert_eq!(book.waiting(id).unwrap().denied_by.as_deref(), Some("root"));
}

#[test]
fn deeds_name_both_ends() {
    let moved = Waiting {
        op: "rename".to_owned(),
        target: "/a".to_owned(),
        to: Some("/b".to_owned()),
        ..waiting(1)
    };
    assert_eq!(moved.deed(), "rename /a to /b");
}

#[test]
fn no_two_acts_have_one_key_and_trying_again_makes_no_other() {
    let act = Waiting {
        id: 7,
        argv: Some(vec!["a".to_owned(), "b".to_owned()]),
        ..waiting(2)
    };
    let again = Waiting {
        tries: 9,
        last: "later".to_owned(),
        pid: 4,
        ..act.clone()
    };
    assert_eq!(act.key(), again.key());
    let change = |change: fn(&mut Waiting)| {
        let mut other = act.clone();
        change(&mut other);
        other.key()
    };
    let keys = [
        act.key(),
        change(|it| it.id = 8),
        change(|it| it.agent = "codex".to_owned()),
        change(|it| it.session = 3),
        change(|it| it.first = "another day".to_owned()),
        change(|it| it.op = "exec".to_owned()),
        change(|it| it.target = "/y".to_owned()),
        change(|it| it.to = Some("/z".to_owned())),
        change(|it| it.access = Some("write".to_owned())),
        change(|it| it.argv = Some(vec!["a b".to_owned()])),
        change(|it| it.argv = None),
    ];
    let once: std::collections::HashSet<&String> = keys.iter().collect();
    assert_eq!(once.len(), keys.len());
}
