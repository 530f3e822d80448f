//! Which names are answered, and what those hear that are not.

use agentguard::resolver::Limits;
use agentguard_common::verdict::Verdict;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

use crate::client::{addresses, ask, ask_by_tcp, extended, query, resolve, send, serve, with_edns};
use crate::gate::Memory;
use crate::upstream::{Upstream, name};

const ZONE: &str = "api.example.com A 93.184.216.34
    api.example.com AAAA 2606:2800::1
    xn--bcher-kva.example.com A 93.184.216.35
    evil.example.net A 93.184.216.66";

#[tokio::test]
async fn a_permitted_name_is_answered_and_opened_and_recorded() {
    let upstream = Upstream::with_zone(ZONE).await;
    let memory = Memory::permitting(&["api.example.com"]);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    let (code, found) = resolve(served.at, "api.example.com").await;
    assert_eq!(
        (code, found),
        (ResponseCode::NoError, vec!["93.184.216.34".to_owned()])
    );
    let opened = (1, "api.example.com".to_owned(), "93.184.216.34".to_owned());
    assert_eq!(memory.opened(), [opened]);
    let record = &memory.records()[0];
    assert_eq!(record.verdict, Verdict::Allow);
    assert_eq!(
        (record.name.as_str(), record.kind.as_str()),
        ("api.example.com", "A")
    );
    assert_eq!(record.answers, ["93.184.216.34"]);
    let lifetime = memory.lifetimes.lock().unwrap()[0].as_secs();
    assert!((300..=310).contains(&lifetime), "{lifetime}");
}

#[tokio::test]
async fn another_name_is_refused_at_once_and_never_leaves_the_host() {
    let upstream = Upstream::with_zone(ZONE).await;
    let memory = Memory::permitting(&["api.example.com", "*.example.org"]);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    for text in [
        "evil.example.net",
        "secret.api.example.com",
        "example.org",
        "a.b.example.org",
        "com",
    ] {
        let question = query(name(text), RecordType::A);
        for reply in [
            ask(served.at, &with_edns(question.clone())).await,
            ask_by_tcp(served.at, &with_edns(question)).await,
        ] {
            assert_eq!(
                reply.metadata.response_code,
                ResponseCode::Refused,
                "{text}"
            );
            assert!(reply.answers.is_empty() && reply.authorities.is_empty());
            let (code, reason) = extended(&reply).unwrap();
            assert_eq!(code, 15);
            assert!(reason.contains("policy"), "{reason}");
        }
        let record = memory.records().pop().unwrap();
        assert_eq!(
            (record.name.as_str(), record.verdict),
            (text, Verdict::Deny)
        );
        assert_eq!((record.cause, record.code), ("default", "REFUSED"));
    }
    assert!(upstream.asked().is_empty() && memory.opened().is_empty());
    assert_eq!(memory.records().len(), 10, "one for each query");
}

#[tokio::test]
async fn case_does_not_count_and_comes_back_as_it_was_written() {
    let upstream = Upstream::with_zone(ZONE).await;
    let memory = Memory::permitting(&["api.example.com"]);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    let mixed = name("aPi.eXample.COM");
    let reply = ask(served.at, &query(mixed.clone(), RecordType::A)).await;
    assert!(reply.queries[0].name().eq_case(&mixed));
    assert!(reply.answers[0].name.eq_case(&mixed));
    assert_eq!(memory.opened()[0].1, "api.example.com");
    let evil = ask(served.at, &query(name("EVIL.Example.Net"), RecordType::A)).await;
    assert_eq!(evil.metadata.response_code, ResponseCode::Refused);
    assert_eq!(memory.records()[1].name, "evil.example.net");
}

#[tokio::test]
async fn names_in_other_scripts_have_one_form() {
    let upstream = Upstream::with_zone(ZONE).await;
    let memory = Memory::permitting(&["xn--bcher-kva.example.com", "*.example.com"]);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    let (code, _) = resolve(served.at, "xn--bcher-kva.example.com").await;
    assert_eq!(code, ResponseCode::NoError);
    let odd: [&[u8]; 4] = [
        "b\u{fc}cher".as_bytes(),
        b"api.example.com\0",
        b"a b",
        b"evil\n",
    ];
    for label in odd {
        let mut odd = Name::from_labels([label, b"example", b"com"]).unwrap();
        odd.set_fqdn(true);
        let reply = ask(served.at, &query(odd, RecordType::A)).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
        let record = memory.records().pop().unwrap();
        assert_eq!(record.cause, "name-malformed");
        assert!(
            record.name.is_ascii() && !record.name.contains('\n'),
            "{}",
            record.name
        );
    }
    assert_eq!(upstream.asked().len(), 1);
}

#[tokio::test]
async fn search_domains_do_not_end_the_search_and_lead_nowhere() {
    let upstream = Upstream::with_zone(ZONE).await;
    let memory = Memory::permitting(&["api.example.com"]);
    memory
        .denied
        .lock()
        .unwrap()
        .push("api.example.com.evil.test".to_owned());
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    for (text, code) in [
        (
            "api.example.com.default.svc.cluster.local",
            ResponseCode::NXDomain,
        ),
        ("api.example.com.corp", ResponseCode::NXDomain),
        ("evil.example.net.corp", ResponseCode::Refused),
        ("x.api.example.com", ResponseCode::Refused),
        ("api.example.com.evil.test", ResponseCode::Refused),
    ] {
        assert_eq!(resolve(served.at, text).await.0, code, "{text}");
        let record = memory.records().pop().unwrap();
        assert_eq!(
            (record.name.as_str(), record.verdict),
            (text, Verdict::Deny)
        );
    }
    assert!(upstream.asked().is_empty() && memory.opened().is_empty());
}

#[tokio::test]
async fn a_client_without_edns_hears_a_refusal_by_tcp() {
    let memory = Memory::permitting(&[]);
    let served = serve(memory.clone(), &[], Limits::default());
    let question = query(name("evil.example.net"), RecordType::A);
    let reply = send(served.at, &question.to_vec().unwrap()).await;
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert!(reply.metadata.truncation && reply.answers.is_empty());
    let reply = ask_by_tcp(served.at, &question).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    let reply = send(served.at, &with_edns(question).to_vec().unwrap()).await;
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn the_name_of_this_host_is_known() {
    let memory = Memory::permitting(&[]);
    let served = serve(memory.clone(), &[], Limits::default());
    let (code, found) = resolve(served.at, "localhost").await;
    assert_eq!(
        (code, found),
        (ResponseCode::NoError, vec!["127.0.0.1".to_owned()])
    );
    assert!(
        memory.opened().is_empty(),
        "it is a rule's affair whether that is permitted"
    );
    let reply = ask(served.at, &query(name("localhost"), RecordType::TXT)).await;
    assert_eq!(addresses(&reply).len(), 0);
}

#[tokio::test]
async fn agents_have_their_own_names_and_openings() {
    let upstream = Upstream::with_zone(ZONE).await;
    let memory = Memory::permitting(&["api.example.com"]);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    let second = crate::client::serve_agent(&served.resolver, 2);
    assert_eq!(
        resolve(served.at, "api.example.com").await.0,
        ResponseCode::NoError
    );
    assert_eq!(
        resolve(second, "api.example.com").await.0,
        ResponseCode::Refused
    );
    assert_eq!(memory.opened().len(), 1);
    let also = vec!["api.example.com".to_owned()];
    memory.permitted.lock().unwrap().insert(2, also);
    assert_eq!(
        resolve(second, "api.example.com").await.0,
        ResponseCode::NoError
    );
    let agents: Vec<u32> = memory.opened().iter().map(|it| it.0).collect();
    assert_eq!(
        (agents, upstream.asked().len()),
        (vec![1, 2], 1),
        "a hit opens, too"
    );
}
