//! Resolvers that lie, are slow, cut off or dead.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use agentguard::resolver::Limits;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};

use crate::client::{addresses, ask, ask_by_tcp, query, resolve, serve, with_edns};
use crate::gate::Memory;
use crate::upstream::{Upstream, answer, empty, name, zone};

const ZONE: &str = "api.example.com A 93.184.216.34";

/// An address at which nobody answers and nobody says so.
async fn silent() -> (tokio::net::UdpSocket, SocketAddr) {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[tokio::test]
async fn forged_answers_are_passed_over() {
    let (good, evil) = (zone(ZONE), zone("api.example.com A 93.184.216.66"));
    let upstream = Upstream::start(move |query, _| {
        let mut wrong_id = answer(query, &evil);
        wrong_id.metadata.id = query.metadata.id.wrapping_add(1);
        let mut wrong_name = answer(query, &evil);
        wrong_name.queries[0].set_name(name("evil.example.net"));
        let mut wrong_type = answer(query, &evil);
        wrong_type.queries[0].set_query_type(RecordType::AAAA);
        let mut no_question = answer(query, &evil);
        no_question.queries.clear();
        let mut a_query = answer(query, &evil);
        a_query.metadata.message_type = hickory_proto::op::MessageType::Query;
        let right = answer(query, &good);
        let mut said: Vec<Vec<u8>> = [
            wrong_id,
            wrong_name,
            wrong_type,
            no_question,
            a_query,
            right,
        ]
        .iter()
        .map(|it| it.to_vec().unwrap())
        .collect();
        said.insert(0, vec![0xff; 40]);
        said.insert(0, Vec::new());
        said
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

#[tokio::test]
async fn answers_of_somebody_else_are_not_heard() {
    let evil = zone("api.example.com A 93.184.216.66");
    // The real one is silent; another socket answers to the port that asked.
    let (real, address) = silent().await;
    let forger = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    tokio::spawn(async move {
        let mut bytes = [0; 4096];
        while let Ok((length, from)) = real.recv_from(&mut bytes).await {
            let query = hickory_proto::op::Message::from_vec(&bytes[..length]).unwrap();
            let reply = answer(&query, &evil).to_vec().unwrap();
            forger.send_to(&reply, from).await.unwrap();
        }
    });
    let memory = Memory::permitting(&["api.example.com"]);
    let served = serve(memory.clone(), &[address], Limits::default());
    let (code, found) = resolve(served.at, "api.example.com").await;
    assert_eq!((code, found.len()), (ResponseCode::ServFail, 0));
    assert!(memory.opened().is_empty());
}

#[tokio::test]
async fn what_does_not_fit_is_asked_and_told_by_tcp() {
    let upstream = Upstream::start(|query, tcp| {
        let mut reply = empty(query, ResponseCode::NoError);
        if tcp {
            let owner = query.queries[0].name().clone();
            for last in 1..=60 {
                let data = RData::A(A::new(93, 184, 216, last));
                reply
                    .answers
                    .push(Record::from_rdata(owner.clone(), 60, data));
            }
        } else {
            reply.metadata.truncation = true;
        }
        vec![reply.to_vec().unwrap()]
    })
    .await;
    let memory = Memory::permitting(&["api.example.com"]);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    let question = query(name("api.example.com"), RecordType::A);
    let reply = ask(served.at, &question).await;
    assert!(reply.metadata.truncation && reply.answers.is_empty());
    let reply = ask(served.at, &with_edns(question.clone())).await;
    assert!(!reply.metadata.truncation);
    let reply = ask_by_tcp(served.at, &question).await;
    let given = addresses(&reply);
    assert_eq!(given.len(), 32, "a bounded number of addresses is given");
    let open: Vec<String> = memory.opened().into_iter().map(|it| it.2).collect();
    assert!(given.iter().all(|it| open.contains(it)));
    let by: Vec<bool> = upstream.asked().iter().map(|it| it.2).collect();
    assert_eq!(by, [false, true]);
}

#[tokio::test]
async fn the_next_one_is_asked_where_one_is_dead_slow_or_broken() {
    let good = Upstream::with_zone(ZONE).await;
    let (_silent, silent) = silent().await;
    let closed = {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap()
    };
    let broken =
        Upstream::start(|query, _| vec![empty(query, ResponseCode::ServFail).to_vec().unwrap()])
            .await;
    for bad in [silent, closed, broken.address] {
        let memory = Memory::permitting(&["api.example.com"]);
        let served = serve(memory.clone(), &[bad, good.address], Limits::default());
        assert_eq!(
            resolve(served.at, "api.example.com").await.1,
            ["93.184.216.34"]
        );
    }
}

#[tokio::test]
async fn with_nobody_to_ask_names_fail_and_nothing_opens() {
    let (_silent, silent) = silent().await;
    let broken =
        Upstream::start(|query, _| vec![empty(query, ResponseCode::Refused).to_vec().unwrap()])
            .await;
    for servers in [vec![], vec![silent], vec![broken.address, broken.address]] {
        let memory = Memory::permitting(&["api.example.com"]);
        let served = serve(memory.clone(), &servers, Limits::default());
        assert_eq!(
            resolve(served.at, "api.example.com").await.0,
            ResponseCode::ServFail
        );
        assert_eq!(
            resolve(served.at, "evil.test").await.0,
            ResponseCode::Refused
        );
        assert!(memory.opened().is_empty());
        assert_eq!(memory.records()[0].cause, "upstream-failed");
    }
}

#[tokio::test]
async fn answers_are_kept_also_those_that_say_no() {
    let upstream = Upstream::with_zone(ZONE).await;
    let memory = Memory::permitting(&["api.example.com", "none.example.com"]);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    for _ in 0..3 {
        resolve(served.at, "api.example.com").await;
        let none = ask(served.at, &query(name("none.example.com"), RecordType::A)).await;
        assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(none.authorities.len(), 1);
        let other = ask(served.at, &query(name("api.example.com"), RecordType::AAAA)).await;
        assert_eq!(other.metadata.response_code, ResponseCode::NoError);
    }
    assert_eq!(upstream.asked().len(), 3);
    assert_eq!(memory.opened().len(), 3, "every hit opens");
}

#[tokio::test]
async fn what_several_want_is_asked_once() {
    let count = std::sync::Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    let (socket, address) = silent().await;
    let records = zone(ZONE);
    tokio::spawn(async move {
        let mut bytes = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut bytes).await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(200)).await;
            let query = hickory_proto::op::Message::from_vec(&bytes[..length]).unwrap();
            let reply = answer(&query, &records).to_vec().unwrap();
            socket.send_to(&reply, from).await.unwrap();
        }
    });
    let memory = Memory::permitting(&["api.example.com"]);
    let served = serve(memory.clone(), &[address], Limits::default());
    let asked: Vec<_> = (0..20)
        .map(|_| tokio::spawn(resolve(served.at, "api.example.com")))
        .collect();
    for one in asked {
        assert_eq!(one.await.unwrap().1, ["93.184.216.34"]);
    }
    assert_eq!(count.load(Ordering::Relaxed), 1);
    assert_eq!(memory.opened().len(), 20);
}
