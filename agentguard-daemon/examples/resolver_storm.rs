//! Malformed packets at the resolver from both sides, clients and other resolvers, for as long as is wanted.
//!
//! `cargo run --release --example resolver_storm -- [SECONDS] [SEED] [CORPUS]`
//!
//! It must go on answering, permit nothing that it should not, never panic, and come to an end with its memory. It
//! is a process of its own, so that what the storm remembers is not counted with it. Packets that made it behave in
//! a new way are written to the corpus, which a test replays.

#![expect(
    clippy::unwrap_used,
    reason = "a storm that cannot go on has found something"
)]

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::io::Write as _;
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
#[path = "storm/served.rs"]
mod served;
#[path = "../tests/resolver/upstream.rs"]
#[expect(dead_code, reason = "of the tests")]
mod upstream;

use mutate::{Dice, mutate, seeds};
use served::Served;

/// What the other resolver knows.
const ZONE: &str =
    "api.example.com CNAME edge.test\nedge.test A 93.184.216.34\nedge.test AAAA 2606:2800::1";
/// Packets between two looks at whether it still answers as it should.
const BURST: usize = 500;
/// Packets that the corpus keeps.
const KEPT: usize = 400;
/// Between two looks at its memory.
const LOOK: Duration = Duration::from_secs(30);

/// What was sent and what came of it.
struct Storm {
    served: Served,
    dice: Dice,
    /// What the other resolver said last, by name, for the corpus.
    said: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    ways: HashSet<String>,
    kept: Vec<(char, Vec<u8>)>,
    packets: u64,
    /// Names that were asked of the other resolver, each once.
    names: u64,
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some(served::WORD) {
        return served::be(
            &arguments.next().unwrap(),
            Limits {
                rate: u32::MAX,
                ..Limits::default()
            },
        )
        .await;
    }
    let seconds = first.map_or(600, |text| text.parse().unwrap());
    let seed = arguments.next().map_or(1, |text| text.parse().unwrap());
    let corpus = arguments.next();
    let said: Arc<Mutex<BTreeMap<String, Vec<u8>>>> = Arc::default();
    let upstream = lying(seed, said.clone()).await;
    let mut storm = Storm {
        served: Served::start(upstream.address),
        dice: Dice::new(seed),
        said,
        ways: HashSet::new(),
        kept: Vec::new(),
        packets: 0,
        names: 0,
    };
    let start = Instant::now();
    let mut looked = start;
    storm.tell(start);
    while start.elapsed() < Duration::from_secs(seconds) {
        storm.burst().await;
        storm.still_right().await;
        upstream.take_asked();
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            storm.tell(start);
        }
    }
    storm.tell(start);
    println!(
        "{} packets in {seconds} s, {} ways to behave, none wrong",
        storm.packets,
        storm.ways.len()
    );
    if let Some(path) = corpus {
        write(&path, &storm.kept);
    }
}

/// Another resolver, that says something wrong before it says what is right.
async fn lying(seed: u64, said: Arc<Mutex<BTreeMap<String, Vec<u8>>>>) -> upstream::Upstream {
    let dice = Mutex::new(Dice::new(seed ^ 0xabcd));
    let zone = upstream::zone(ZONE);
    upstream::Upstream::start(move |query, _| {
        let mut right = upstream::answer(query, &zone);
        if right.answers.is_empty() {
            let owner = query.queries[0].name().clone();
            right = mutate::long_answer(query, &owner);
        }
        let right = right.to_vec().unwrap();
        let wrong = mutate(&right, &mut dice.lock().unwrap());
        let name = query.queries[0].name().to_lowercase().to_ascii();
        said.lock().unwrap().insert(name, wrong.clone());
        vec![wrong, right]
    })
    .await
}

impl Storm {
    async fn burst(&mut self) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.served.at).await.unwrap();
        let all = seeds();
        for turn in 0..BURST {
            self.packets += 1;
            let is_good = turn % 4 == 0;
            let asked = if is_good {
                // A good question, whose answer will be bad.
                self.names += 1;
                let name = format!("s{}.test", self.packets);
                client::query(upstream::name(&name), self.dice.pick(&mutate::TYPES))
                    .to_vec()
                    .unwrap()
            } else {
                mutate(self.dice.pick_packet(&all), &mut self.dice)
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
            self.note(&code, is_good, asked);
        }
        self.said.lock().unwrap().clear();
    }

    /// Keeps what made it behave in a new way.
    fn note(&mut self, code: &str, is_good: bool, asked: Vec<u8>) {
        let record = self.served.heard().pop();
        let way = record.as_ref().map_or("", |record| &record.way);
        if !self.ways.insert(format!("{code} {way}")) || self.kept.len() >= KEPT {
            return;
        }
        let mut said = self.said.lock().unwrap();
        let answer = record.and_then(|record| said.remove(&format!("{}.", record.name)));
        self.kept.push(match answer {
            Some(answer) if is_good => ('a', answer),
            _ => ('q', asked),
        });
    }

    /// Nothing is open that should not be, and it answers as before.
    async fn still_right(&mut self) {
        for (name, address) in self.served.opened() {
            assert!(
                name.rsplit('.').next() == Some("test") || name == "api.example.com",
                "{name}"
            );
            assert_eq!(special(address), None, "{address} is open");
        }
        let denied = client::resolve(self.served.at, "evil.example.net").await;
        assert_eq!(denied.0, ResponseCode::Refused);
        let question = client::query(upstream::name("localhost"), RecordType::A);
        let local = client::ask_by_tcp(self.served.at, &question).await;
        assert_eq!(client::addresses(&local), ["127.0.0.1"]);
        let ended = self.served.ended();
        assert!(!ended, "it ended after {} packets", self.packets);
    }

    fn tell(&self, start: Instant) {
        println!(
            "{:>5} s: {:>8} packets, {:>7} names, {:>6} KiB",
            start.elapsed().as_secs(),
            self.packets,
            self.names,
            self.served.resident()
        );
        let _ = std::io::stdout().flush();
    }
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
