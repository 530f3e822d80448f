//! Malformed packets at the resolver from both sides, clients and other resolvers, for as long as is wanted.
//!
//! `cargo run --release --example resolver_storm -- [SECONDS] [SEED] [CORPUS]`
//!
//! It must go on answering, permit nothing that it should not, and never panic. Packets that made it behave in a
//! new way are written to the corpus, which a test replays.

#![expect(
    clippy::unwrap_used,
    reason = "a storm that cannot go on has found something"
)]

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agentguard::resolver::{Limits, special};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tokio::net::UdpSocket;
use tokio::time::timeout;

#[path = "../tests/resolver/client.rs"]
#[expect(dead_code, reason = "of the tests")]
mod client;
#[path = "../tests/resolver/gate.rs"]
#[expect(dead_code, reason = "of the tests")]
mod gate;
#[path = "../tests/resolver/mutate.rs"]
mod mutate;
#[path = "../tests/resolver/upstream.rs"]
#[expect(dead_code, reason = "of the tests")]
mod upstream;

use mutate::{Dice, mutate, seeds};

/// What the other resolver knows.
const ZONE: &str =
    "api.example.com CNAME edge.test\nedge.test A 93.184.216.34\nedge.test AAAA 2606:2800::1";
/// Packets between two looks at whether it still answers as it should.
const BURST: usize = 500;
/// Packets that the corpus keeps.
const KEPT: usize = 400;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().map_or(600, |text| text.parse().unwrap());
    let seed = arguments.next().map_or(1, |text| text.parse().unwrap());
    let corpus = arguments.next();
    let panicked = watch_panics();
    // What the other resolver said last, for the corpus.
    let said: Arc<Mutex<BTreeMap<String, Vec<u8>>>> = Arc::default();
    let (keep, dice) = (said.clone(), Mutex::new(Dice::new(seed ^ 0xabcd)));
    let zone = upstream::zone(ZONE);
    let upstream = upstream::Upstream::start(move |query, _| {
        let mut right = upstream::answer(query, &zone);
        if right.answers.is_empty() {
            let owner = query.queries[0].name().clone();
            right = mutate::long_answer(query, &owner);
        }
        let right = right.to_vec().unwrap();
        let wrong = mutate(&right, &mut dice.lock().unwrap());
        let name = query.queries[0].name().to_lowercase().to_ascii();
        keep.lock().unwrap().insert(name, wrong.clone());
        vec![wrong, right]
    })
    .await;
    let memory = gate::Memory::permitting(&["*.test", "api.example.com"]);
    let limits = Limits {
        rate: u32::MAX,
        ..Limits::default()
    };
    let served = client::serve(memory.clone(), &[upstream.address], limits);
    let mut dice = Dice::new(seed);
    let (mut ways, mut kept): (HashSet<String>, Vec<(char, Vec<u8>)>) = Default::default();
    let (start, mut packets) = (Instant::now(), 0_u64);
    while start.elapsed() < Duration::from_secs(seconds) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(served.at).await.unwrap();
        for turn in 0..BURST {
            packets += 1;
            let asked = if turn % 4 == 0 {
                // A good question, whose answer will be bad.
                let name = format!("s{packets}.test");
                client::query(upstream::name(&name), dice.pick(&mutate::TYPES))
                    .to_vec()
                    .unwrap()
            } else {
                let all = seeds();
                mutate(dice.pick_packet(&all), &mut dice)
            };
            if socket.send(&asked).await.is_err() {
                continue;
            }
            let mut bytes = [0; 4096];
            // Some get no answer, and nothing may be answered twice.
            let reply = timeout(Duration::from_millis(2), socket.recv(&mut bytes)).await;
            let code = match reply {
                Ok(Ok(length)) if length >= 12 => format!("{}", bytes[3] & 15),
                _ => "-".to_owned(),
            };
            let records = std::mem::take(&mut *memory.records.lock().unwrap());
            let way = records.last().map_or_else(String::new, |it| {
                format!("{} {} {}", it.cause, it.kind, it.answers.len().min(3))
            });
            if ways.insert(format!("{code} {way}")) && kept.len() < KEPT {
                match records
                    .last()
                    .and_then(|it| said.lock().unwrap().remove(&format!("{}.", it.name)))
                {
                    Some(answer) if turn % 4 == 0 => kept.push(('a', answer)),
                    _ => kept.push(('q', asked)),
                }
            }
        }
        said.lock().unwrap().clear();
        for (agent, name, address) in std::mem::take(&mut *memory.open.lock().unwrap()) {
            assert_eq!(agent, 1);
            assert!(
                name.rsplit('.').next() == Some("test") || name == "api.example.com",
                "{name}"
            );
            assert_eq!(special(address), None, "{address} is open");
        }
        memory.lifetimes.lock().unwrap().clear();
        let denied = client::resolve(served.at, "evil.example.net").await;
        assert_eq!(denied.0, ResponseCode::Refused);
        let question = client::query(upstream::name("localhost"), RecordType::A);
        let local = client::ask_by_tcp(served.at, &question).await;
        assert_eq!(client::addresses(&local), ["127.0.0.1"]);
        assert!(!panicked.load(Ordering::Relaxed), "after {packets} packets");
    }
    println!(
        "{packets} packets in {seconds} s, {} ways to behave, none wrong",
        ways.len()
    );
    if let Some(path) = corpus {
        write(&path, &kept);
    }
}

/// Set when any thread panics.
fn watch_panics() -> Arc<AtomicBool> {
    let panicked = Arc::new(AtomicBool::new(false));
    let (note, usual) = (panicked.clone(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        note.store(true, Ordering::Relaxed);
        usual(info);
    }));
    panicked
}

/// One packet a line: the side that it came from, and its bytes.
fn write(path: &str, kept: &[(char, Vec<u8>)]) {
    let mut text = String::new();
    for (side, bytes) in kept {
        text.push(*side);
        text.push(' ');
        for byte in bytes {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
    }
    std::fs::write(path, text).unwrap();
}
