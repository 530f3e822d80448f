//! Packets that once made the resolver behave in a new way (see `examples/resolver_storm.rs`), once more.

use std::sync::{Arc, Mutex};

use agentguard::resolver::{Limits, special};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tokio::net::UdpSocket;

use crate::client::{ask, query, resolve, serve};
use crate::gate::Memory;
use crate::mutate::{Dice, mutate, seeds};
use crate::upstream::{Upstream, answer, name, zone};

fn corpus(side: &str) -> Vec<Vec<u8>> {
    include_str!("corpus.txt")
        .lines()
        .filter_map(|line| line.strip_prefix(side))
        .map(|hex| {
            let hex = hex.trim();
            (0..hex.len() / 2)
                .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
                .collect()
        })
        .collect()
}

/// It answers as it should, after whatever it has heard.
async fn is_well(at: std::net::SocketAddr) {
    assert_eq!(
        resolve(at, "evil.example.net").await.0,
        ResponseCode::Refused
    );
    assert_eq!(resolve(at, "good.example.com").await.1, ["93.184.216.34"]);
}

#[tokio::test]
async fn malformed_questions_do_no_harm() {
    let upstream = Upstream::with_zone("good.example.com A 93.184.216.34").await;
    let memory = Memory::permitting(&["good.example.com", "api.example.com"]);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut dice = Dice::new(7);
    let (seeds, mut packets) = (seeds(), corpus("q"));
    packets.extend((0..2_000).map(|_| mutate(dice.pick_packet(&seeds), &mut dice)));
    for packet in packets {
        // The kernel does not send what is too long.
        let _ = socket.send_to(&packet, served.at).await;
        tokio::task::yield_now().await;
    }
    is_well(served.at).await;
    for (_, name, _) in memory.opened() {
        assert!(
            ["good.example.com", "api.example.com"].contains(&name.as_str()),
            "{name}"
        );
    }
}

#[tokio::test]
async fn malformed_answers_do_no_harm() {
    let mut answers = corpus("a");
    let mut dice = Dice::new(9);
    let good = zone("good.example.com A 93.184.216.34");
    let first = query(name("n.test"), RecordType::TXT);
    let right = crate::mutate::long_answer(&first, &name("n.test"))
        .to_vec()
        .unwrap();
    answers.extend((0..300).map(|_| mutate(&right, &mut dice)));
    let count = answers.len();
    let left = Arc::new(Mutex::new(answers));
    let upstream = Upstream::start(move |query, _| {
        let mut said = Vec::new();
        if query.queries[0].name().to_ascii().starts_with("good") {
            return vec![answer(query, &good).to_vec().unwrap()];
        }
        // With the number of the question, or it would not be looked at.
        if let Some(mut bytes) = left.lock().unwrap().pop() {
            let number = query.metadata.id.to_be_bytes();
            let length = bytes.len().min(2);
            bytes[..length].copy_from_slice(&number[..length]);
            said.push(bytes);
        }
        said.push(answer(query, &good).to_vec().unwrap());
        said
    })
    .await;
    let memory = Memory::permitting(&["*.test", "good.example.com"]);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    for _ in 0..count {
        // Always the same question, so that the one in the answer fits; the answer is not kept for it.
        ask(served.at, &query(name("n.test"), RecordType::TXT)).await;
        served.resolver.forget_answers();
    }
    is_well(served.at).await;
    for (_, _, address) in memory.open.lock().unwrap().iter() {
        assert_eq!(special(*address), None);
    }
}
