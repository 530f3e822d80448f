//! Aliases, and addresses that an answer may not have.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use agentguard::resolver::{Limits, special};
use agentguard_common::verdict::Verdict;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{RData, Record, RecordType};
use proptest::prelude::*;

use crate::client::{addresses, ask, extended, query, resolve, serve, with_edns};
use crate::gate::Memory;
use crate::upstream::{Upstream, answer, empty, name, zone};

#[tokio::test]
async fn aliases_are_followed_to_addresses_that_open_for_the_name_asked() {
    let upstream = Upstream::with_zone(
        "api.example.com CNAME edge.cdn.test 60
         edge.cdn.test CNAME pop7.cdn.test
         pop7.cdn.test A 93.184.216.34
         pop7.cdn.test A 93.184.216.35",
    )
    .await;
    let memory = Memory::permitting(&["api.example.com"]);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    let reply = ask(served.at, &query(name("api.example.com"), RecordType::A)).await;
    assert_eq!(addresses(&reply), ["93.184.216.34", "93.184.216.35"]);
    assert_eq!(reply.answers.len(), 4);
    assert!(
        reply.answers.iter().all(|it| it.ttl <= 60),
        "the shortest of the chain"
    );
    assert!(memory.opened().iter().all(|it| it.1 == "api.example.com"));
    let record = &memory.records()[0];
    assert_eq!(
        record.answers,
        [
            "edge.cdn.test",
            "pop7.cdn.test",
            "93.184.216.34",
            "93.184.216.35"
        ]
    );
    // To ask for where it led is another question.
    assert_eq!(
        resolve(served.at, "pop7.cdn.test").await.0,
        ResponseCode::Refused
    );
}

#[tokio::test]
async fn a_chain_that_is_cut_off_is_asked_on() {
    let records = zone(
        "api.example.com CNAME edge.cdn.test
         edge.cdn.test CNAME pop7.cdn.test
         pop7.cdn.test A 93.184.216.34",
    );
    let upstream = Upstream::start(move |query, _| {
        let mut reply = answer(query, &records);
        reply.answers.truncate(1);
        vec![reply.to_vec().unwrap()]
    })
    .await;
    let memory = Memory::permitting(&["api.example.com"]);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    let (code, found) = resolve(served.at, "api.example.com").await;
    assert_eq!(
        (code, found.as_slice()),
        (ResponseCode::NoError, &["93.184.216.34".to_owned()][..])
    );
    assert_eq!(upstream.asked().len(), 3);
}

#[tokio::test]
async fn circles_and_endless_chains_end() {
    let upstream = Upstream::start(|query, _| {
        let question = query.queries[0].name().to_lowercase();
        let mut reply = empty(query, ResponseCode::NoError);
        let mut alias = |from: &str, to: &str| {
            let data = RData::CNAME(CNAME(name(to)));
            reply.answers.push(Record::from_rdata(name(from), 60, data));
        };
        let text = question.to_ascii();
        let text = text.trim_end_matches('.');
        match text {
            "self.test" => alias("self.test", "self.test"),
            "a.test" => {
                alias("a.test", "b.test");
                alias("b.test", "a.test");
            }
            other => alias(
                other,
                &format!("n{}.test", other.len() * 7 + query.metadata.id as usize),
            ),
        }
        vec![reply.to_vec().unwrap()]
    })
    .await;
    let memory = Memory::permitting(&["self.test", "a.test", "endless.test"]);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    for text in ["self.test", "a.test", "endless.test"] {
        assert_eq!(
            resolve(served.at, text).await.0,
            ResponseCode::ServFail,
            "{text}"
        );
        assert_eq!(memory.records().pop().unwrap().cause, "upstream-failed");
    }
    assert!(upstream.asked().len() < 20 && memory.opened().is_empty());
}

#[tokio::test]
async fn an_alias_that_a_rule_denies_refuses_the_answer() {
    let upstream = Upstream::with_zone(
        "api.example.com CNAME evil.example.net
         evil.example.net A 93.184.216.66",
    )
    .await;
    let memory = Memory::permitting(&["api.example.com"]);
    memory
        .denied
        .lock()
        .unwrap()
        .push("evil.example.net".to_owned());
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    let (code, found) = resolve(served.at, "api.example.com").await;
    assert_eq!((code, found.len()), (ResponseCode::Refused, 0));
    let record = &memory.records()[0];
    assert_eq!(
        (record.cause, record.verdict),
        ("alias-denied", Verdict::Deny)
    );
    assert_eq!(
        (record.name.as_str(), record.answers[0].as_str()),
        ("api.example.com", "evil.example.net")
    );
    assert!(memory.opened().is_empty());
}

#[tokio::test]
async fn special_addresses_are_not_given() {
    let special = "10.0.0.1 127.0.0.1 169.254.169.254 0.0.0.0 192.168.1.1 100.64.0.1 224.0.0.1";
    let lines: Vec<String> = special
        .split(' ')
        .enumerate()
        .map(|(number, address)| format!("n{number}.test A {address}"))
        .collect();
    let more = "direct.test CNAME n1.test
        six.test AAAA ::1
        mapped.test AAAA ::ffff:127.0.0.1
        metadata.test AAAA fd00:ec2::254
        translated.test AAAA 64:ff9b::a9fe:a9fe
        mixed.test A 93.184.216.34
        mixed.test A 127.0.0.1";
    let upstream = Upstream::with_zone(&format!("{}\n{more}", lines.join("\n"))).await;
    let names = ["*.test"];
    let memory = Memory::permitting(&names);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    let mut questions: Vec<(String, RecordType)> = (0..7)
        .map(|n| (format!("n{n}.test"), RecordType::A))
        .collect();
    questions.push(("direct.test".to_owned(), RecordType::A));
    for text in ["six", "mapped", "metadata", "translated"] {
        questions.push((format!("{text}.test"), RecordType::AAAA));
    }
    for (text, kind) in questions {
        let reply = ask(served.at, &with_edns(query(name(&text), kind))).await;
        assert_eq!(
            reply.metadata.response_code,
            ResponseCode::Refused,
            "{text}"
        );
        assert!(reply.answers.is_empty());
        assert!(extended(&reply).unwrap().1.contains(" is a"));
        assert_eq!(memory.records().pop().unwrap().cause, "address-denied");
    }
    assert!(memory.opened().is_empty());
    let (code, found) = resolve(served.at, "mixed.test").await;
    assert_eq!(
        (code, found.as_slice()),
        (ResponseCode::NoError, &["93.184.216.34".to_owned()][..])
    );
    assert_eq!(memory.opened().len(), 1);
    let last = memory.records().split_off(memory.records().len() - 2);
    assert_eq!(
        (last[0].verdict, last[0].answers[0].as_str()),
        (Verdict::Deny, "127.0.0.1")
    );
    assert_eq!(
        (last[1].verdict, last[1].answers[0].as_str()),
        (Verdict::Allow, "93.184.216.34")
    );
    // Unless a rule permits the address.
    memory
        .special
        .lock()
        .unwrap()
        .push("10.0.0.1".parse().unwrap());
    assert_eq!(resolve(served.at, "n0.test").await.1, ["10.0.0.1"]);
}

#[tokio::test]
async fn records_of_other_names_have_no_say() {
    let upstream = Upstream::start(|query, _| {
        let mut reply = empty(query, ResponseCode::NoError);
        let address = |of: &str, last: u8| {
            let data = RData::A(A(Ipv4Addr::new(93, 184, 216, last)));
            Record::from_rdata(name(of), 60, data)
        };
        reply.answers.push(address("evil.example.net", 66));
        reply.answers.push(address("api.example.com", 34));
        reply.authorities.push(address("api.example.com", 67));
        reply.additionals.push(address("api.example.com", 68));
        vec![reply.to_vec().unwrap()]
    })
    .await;
    let memory = Memory::permitting(&["api.example.com"]);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    assert_eq!(
        resolve(served.at, "api.example.com").await.1,
        ["93.184.216.34"]
    );
    assert_eq!(memory.opened().len(), 1);
}

/// What may be given for a name: every address at the end of some chain of aliases in the answer.
fn reachable(records: &[Record], from: &str) -> HashSet<IpAddr> {
    let mut names = HashSet::from([name(from)]);
    loop {
        let more: Vec<_> = records
            .iter()
            .filter(|it| names.contains(&it.name))
            .filter_map(|it| match &it.data {
                RData::CNAME(target) => Some(target.0.clone()),
                _ => None,
            })
            .filter(|target| !names.contains(target))
            .collect();
        if more.is_empty() {
            break;
        }
        names.extend(more);
    }
    let mine = records.iter().filter(|it| names.contains(&it.name));
    mine.filter_map(|it| it.data.ip_addr()).collect()
}

fn some_record() -> impl Strategy<Value = Record> {
    let owner = prop::sample::select(vec!["a.test", "b.test", "c.test", "d.test"]);
    let data = prop_oneof![
        prop::sample::select(vec!["a.test", "b.test", "c.test", "d.test"])
            .prop_map(|to| RData::CNAME(CNAME(name(to)))),
        prop::sample::select(vec![
            [93, 184, 216, 1],
            [93, 184, 216, 2],
            [10, 0, 0, 1],
            [127, 0, 0, 1]
        ])
        .prop_map(|octets| RData::A(A(octets.into()))),
    ];
    (owner, data).prop_map(|(owner, data)| Record::from_rdata(name(owner), 60, data))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_is_answered_is_given_only_if_it_is_open_and_belongs_to_the_name(
        records in prop::collection::vec(some_record(), 0..10)
    ) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let answers = records.clone();
            let upstream = Upstream::start(move |query: &Message, _| {
                let mut reply = empty(query, ResponseCode::NoError);
                reply.answers.clone_from(&answers);
                vec![reply.to_vec().unwrap()]
            }).await;
            let memory = Memory::permitting(&["a.test"]);
            let served = serve(memory.clone(), &[upstream.address], Limits::default());
            let (code, found) = resolve(served.at, "a.test").await;
            let may = reachable(&records, "a.test");
            let open = memory.opened();
            for address in &found {
                let parsed: IpAddr = address.parse().unwrap();
                assert!(may.contains(&parsed) && special(parsed).is_none());
                assert!(open.iter().any(|(_, name, it)| name == "a.test" && it == address));
            }
            assert_eq!(open.len(), found.len(), "nothing is open that was not given");
            assert!(code == ResponseCode::NoError || found.is_empty());
            let denied = memory.records().iter().any(|it| it.verdict == Verdict::Deny);
            assert!(code != ResponseCode::Refused || denied);
        });
    }
}
