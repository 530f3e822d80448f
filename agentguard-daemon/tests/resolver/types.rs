//! What each type of record may say.

use std::net::Ipv4Addr;

use agentguard::resolver::Limits;
use hickory_proto::op::{MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::svcb::{IpHint, SVCB, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{A, HTTPS};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::client::{ask, query, resolve, serve, with_edns};
use crate::gate::Memory;
use crate::upstream::{Upstream, empty, name};

#[tokio::test]
async fn data_is_given_for_permitted_names_only_and_without_addresses_beside_it() {
    let upstream = Upstream::start(|query, _| {
        let mut reply = crate::upstream::answer(
            query,
            &crate::upstream::zone("example.com MX mail.example.com\nexample.com TXT hello"),
        );
        let data = RData::A(A(Ipv4Addr::new(93, 184, 216, 66)));
        reply
            .additionals
            .push(Record::from_rdata(name("mail.example.com"), 60, data));
        vec![reply.to_vec().unwrap()]
    })
    .await;
    let memory = Memory::permitting(&["example.com"]);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    for kind in [RecordType::MX, RecordType::TXT] {
        let reply = ask(served.at, &query(name("example.com"), kind)).await;
        assert_eq!(reply.answers.len(), 1);
        assert!(reply.additionals.is_empty());
        let other = ask(served.at, &query(name("example.net"), kind)).await;
        assert_eq!(other.metadata.response_code, ResponseCode::Refused);
    }
    assert!(memory.opened().is_empty());
    assert_eq!(upstream.asked().len(), 2);
}

#[tokio::test]
async fn services_lose_their_hints_and_targets_that_are_not_permitted() {
    let upstream = Upstream::start(|query, _| {
        let mut reply = empty(query, ResponseCode::NoError);
        let owner = query.queries[0].name().clone();
        let hints = vec![
            (SvcParamKey::Port, SvcParamValue::Port(8443)),
            (
                SvcParamKey::Ipv4Hint,
                SvcParamValue::Ipv4Hint(IpHint(vec![A(Ipv4Addr::LOCALHOST)])),
            ),
        ];
        for target in [
            Name::root(),
            name("evil.example.net"),
            name("cdn.example.com"),
        ] {
            let data = RData::HTTPS(HTTPS(SVCB::new(1, target, hints.clone())));
            reply
                .answers
                .push(Record::from_rdata(owner.clone(), 60, data));
        }
        vec![reply.to_vec().unwrap()]
    })
    .await;
    let memory = Memory::permitting(&["example.com", "cdn.example.com"]);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    let reply = ask(served.at, &query(name("example.com"), RecordType::HTTPS)).await;
    let services: Vec<&SVCB> = reply
        .answers
        .iter()
        .filter_map(|it| match &it.data {
            RData::HTTPS(HTTPS(service)) => Some(service),
            _ => None,
        })
        .collect();
    let targets: Vec<String> = services
        .iter()
        .map(|it| it.target_name.to_ascii())
        .collect();
    assert_eq!(targets, [".", "cdn.example.com."]);
    for service in services {
        let keys: Vec<_> = service.svc_params.iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, [SvcParamKey::Port]);
    }
    assert!(memory.opened().is_empty());
}

#[tokio::test]
async fn reverse_names_are_known_of_what_is_open_and_asked_of_nobody() {
    let upstream = Upstream::with_zone("api.example.com A 93.184.216.34").await;
    let memory = Memory::permitting(&["api.example.com"]);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    let reverse = query(name("34.216.184.93.in-addr.arpa"), RecordType::PTR);
    let before = ask(served.at, &reverse).await;
    assert_eq!(before.metadata.response_code, ResponseCode::Refused);
    resolve(served.at, "api.example.com").await;
    let after = ask(served.at, &reverse).await;
    assert_eq!(after.answers[0].data.to_string(), "api.example.com.");
    assert_eq!(upstream.asked().len(), 1);
}

#[tokio::test]
async fn other_types_classes_and_operations_are_refused() {
    let upstream = Upstream::with_zone("api.example.com A 93.184.216.34").await;
    let memory = Memory::permitting(&["api.example.com"]);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    let types = [
        RecordType::ANY,
        RecordType::AXFR,
        RecordType::NULL,
        RecordType::DNSKEY,
        RecordType::RRSIG,
        RecordType::Unknown(65_280),
    ];
    for kind in types {
        let reply = ask(served.at, &with_edns(query(name("api.example.com"), kind))).await;
        assert_eq!(
            reply.metadata.response_code,
            ResponseCode::Refused,
            "{kind}"
        );
        assert_eq!(memory.records().pop().unwrap().cause, "type-refused");
    }
    assert_eq!(memory.records()[5].kind, "TYPE65280");
    let mut chaos = query(name("version.bind"), RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    let chaos = with_edns(chaos);
    let mut update = query(name("api.example.com"), RecordType::SOA);
    update.metadata.op_code = OpCode::Update;
    let mut two = query(name("api.example.com"), RecordType::A);
    two.add_query(two.queries[0].clone());
    let mut none = two.clone();
    none.queries.clear();
    for (message, code) in [
        (chaos, ResponseCode::Refused),
        (update, ResponseCode::NotImp),
        (two, ResponseCode::FormErr),
        (none, ResponseCode::FormErr),
    ] {
        assert_eq!(ask(served.at, &message).await.metadata.response_code, code);
    }
    assert_eq!(memory.records().len(), 10);
    assert!(upstream.asked().is_empty() && memory.opened().is_empty());
}

#[tokio::test]
async fn answers_are_not_answered() {
    let memory = Memory::permitting(&["api.example.com"]);
    let served = serve(memory.clone(), &[], Limits::default());
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut answer = query(name("api.example.com"), RecordType::A);
    answer.metadata.message_type = MessageType::Response;
    for bytes in [answer.to_vec().unwrap(), vec![0; 11], Vec::new()] {
        socket.send_to(&bytes, served.at).await.unwrap();
    }
    let question = query(name("evil.test"), RecordType::A);
    socket
        .send_to(&question.to_vec().unwrap(), served.at)
        .await
        .unwrap();
    let mut bytes = [0; 512];
    let length = socket.recv(&mut bytes).await.unwrap();
    let reply = hickory_proto::op::Message::from_vec(&bytes[..length]).unwrap();
    assert_eq!(
        reply.queries[0].name(),
        &name("evil.test"),
        "the first that is answered"
    );
}
