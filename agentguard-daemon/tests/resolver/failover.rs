//! From one resolver to the next: by UDP and TCP, in whatever way one fails, and back when it has recovered.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use agentguard::resolver::Limits;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Record, RecordType};

use crate::client::{Served, ask_by_tcp, query, resolve, serve};
use crate::gate::Memory;
use crate::upstream::{Upstream, answer, empty, name, zone};

const NAME: &str = "api.example.com";
const ZONE: &str = "api.example.com A 93.184.216.34";
const EVIL: &str = "api.example.com A 93.184.216.66";
const RIGHT: &str = "93.184.216.34";
/// After which the resolvers of C libraries give up on a server.
const CLIENTS_PATIENCE: Duration = Duration::from_secs(5);

/// A way to fail: what is said by UDP and by TCP.
type Fails = fn(&Message, bool, &[Record]) -> Vec<Vec<u8>>;

fn said(message: &Message) -> Vec<Vec<u8>> {
    vec![message.to_vec().unwrap()]
}

fn truncated(query: &Message) -> Vec<Vec<u8>> {
    let mut reply = empty(query, ResponseCode::NoError);
    reply.metadata.truncation = true;
    said(&reply)
}

fn with_wrong_number(query: &Message, evil: &[Record]) -> Message {
    let mut reply = answer(query, evil);
    reply.metadata.id = query.metadata.id.wrapping_add(1);
    reply
}

fn with_wrong_question(query: &Message, evil: &[Record]) -> Message {
    let mut reply = answer(query, evil);
    reply.queries[0].set_name(name("evil.example.net"));
    reply
}

/// By TCP, saying nothing closes the connection.
const WAYS: &[(&str, Fails)] = &[
    ("says nothing", |_, _, _| Vec::new()),
    ("cannot", |query, _, _| {
        said(&empty(query, ResponseCode::ServFail))
    }),
    ("does not want to", |query, _, _| {
        said(&empty(query, ResponseCode::Refused))
    }),
    ("lies about the number", |query, _, evil| {
        said(&with_wrong_number(query, evil))
    }),
    ("lies about the question", |query, _, evil| {
        said(&with_wrong_question(query, evil))
    }),
    ("says what is no message", |_, _, _| vec![vec![0xff; 40]]),
    ("cuts, and says nothing by TCP", |query, tcp, _| {
        if tcp { Vec::new() } else { truncated(query) }
    }),
    ("cuts, also by TCP", |query, _, _| truncated(query)),
    ("cuts, and cannot by TCP", |query, tcp, _| {
        if tcp {
            said(&empty(query, ResponseCode::ServFail))
        } else {
            truncated(query)
        }
    }),
    (
        "cuts, and lies by TCP about the number",
        |query, tcp, evil| {
            if tcp {
                said(&with_wrong_number(query, evil))
            } else {
                truncated(query)
            }
        },
    ),
    (
        "cuts, and lies by TCP about the question",
        |query, tcp, evil| {
            if tcp {
                said(&with_wrong_question(query, evil))
            } else {
                truncated(query)
            }
        },
    ),
];

async fn failing(fails: Fails) -> Upstream {
    let evil = zone(EVIL);
    Upstream::start(move |query, tcp| fails(query, tcp, &evil)).await
}

/// An address at which nothing listens: the kernel says so at once.
fn closed() -> SocketAddr {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap()
}

fn asked_of(memory: &std::sync::Arc<Memory>, servers: &[SocketAddr]) -> Served {
    serve(memory.clone(), servers, Limits::default())
}

#[tokio::test]
async fn whoever_fails_is_followed_by_the_next_one() {
    for (way, fails) in WAYS {
        let (bad, good) = (failing(*fails).await, Upstream::with_zone(ZONE).await);
        let memory = Memory::permitting(&[NAME]);
        let served = asked_of(&memory, &[bad.address, good.address]);
        let (code, found) = resolve(served.at, NAME).await;
        assert_eq!(
            (code, found),
            (ResponseCode::NoError, vec![RIGHT.into()]),
            "{way}"
        );
        let opened: Vec<String> = memory.opened().into_iter().map(|it| it.2).collect();
        assert_eq!(opened, [RIGHT], "{way}");
        let by_tcp = bad.asked().iter().any(|it| it.2);
        assert_eq!(by_tcp, way.starts_with("cuts"), "{way}: {:?}", bad.asked());
    }
}

#[tokio::test]
async fn where_all_fail_nothing_opens() {
    for (way, fails) in WAYS {
        let (one, other) = (failing(*fails).await, failing(*fails).await);
        let memory = Memory::permitting(&[NAME]);
        let served = asked_of(&memory, &[one.address, other.address, closed()]);
        let (code, found) = resolve(served.at, NAME).await;
        assert_eq!((code, found), (ResponseCode::ServFail, Vec::new()), "{way}");
        assert!(memory.opened().is_empty(), "{way}");
        assert_eq!(memory.records()[0].cause, "upstream-failed", "{way}");
        for server in [&one, &other] {
            assert!(!server.asked().is_empty(), "{way}: each was asked");
        }
    }
}

/// The best of some: other work of the machine is not the resolver's.
async fn soonest_failure(servers: Vec<SocketAddr>) -> Duration {
    let memory = Memory::permitting(&[NAME]);
    let served = asked_of(&memory, &servers);
    let mut best = Duration::MAX;
    for _ in 0..2 {
        let start = Instant::now();
        // By TCP, because a client by UDP asks again meanwhile.
        let reply = ask_by_tcp(served.at, &query(name(NAME), RecordType::A)).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
        best = best.min(start.elapsed());
    }
    assert!(memory.opened().is_empty());
    best
}

#[tokio::test]
async fn clients_hear_of_it_before_they_give_up() {
    let silent = failing(|_, _, _| Vec::new()).await;
    let cut = failing(|query, tcp, _| if tcp { Vec::new() } else { truncated(query) }).await;
    let (at_once, waited, mixed) = tokio::join!(
        soonest_failure(vec![closed(); 3]),
        soonest_failure(vec![silent.address; 3]),
        soonest_failure(vec![silent.address, closed(), cut.address]),
    );
    println!("{at_once:?}, {waited:?}, {mixed:?}");
    assert!(waited > at_once, "who is silent is waited for");
    for took in [at_once, waited, mixed] {
        assert!(took < CLIENTS_PATIENCE, "{took:?}");
    }
}

#[tokio::test]
async fn what_only_comes_by_tcp_is_heard() {
    let good = zone(ZONE);
    let upstream = Upstream::start(move |query, tcp| {
        if tcp {
            said(&answer(query, &good))
        } else {
            Vec::new()
        }
    })
    .await;
    let memory = Memory::permitting(&[NAME]);
    let served = asked_of(&memory, &[upstream.address]);
    assert_eq!(resolve(served.at, NAME).await.1, [RIGHT]);
    assert_eq!(upstream.asked().iter().filter(|it| it.2).count(), 1);
}

/// One that lost a packet is asked again, although another one said that it cannot.
#[tokio::test]
async fn a_lost_packet_is_not_the_end() {
    let broken = failing(|query, _, _| said(&empty(query, ResponseCode::ServFail))).await;
    let (good, lost) = (zone(ZONE), std::sync::atomic::AtomicBool::new(false));
    let upstream = Upstream::start(move |query, _| {
        if lost.swap(true, std::sync::atomic::Ordering::Relaxed) {
            said(&answer(query, &good))
        } else {
            Vec::new()
        }
    })
    .await;
    let memory = Memory::permitting(&[NAME]);
    let served = asked_of(&memory, &[broken.address, upstream.address]);
    assert_eq!(resolve(served.at, NAME).await.1, [RIGHT]);
    assert_eq!((broken.asked().len(), upstream.asked().len()), (1, 2));
}

/// More of them may be dead than can be waited for: then the next question begins behind them.
#[tokio::test]
async fn many_dead_ones_do_not_hide_one_that_lives() {
    let silent = failing(|_, _, _| Vec::new()).await;
    let good = Upstream::with_zone(ZONE).await;
    let mut servers = vec![silent.address; 7];
    servers.push(good.address);
    let memory = Memory::permitting(&[NAME]);
    let served = asked_of(&memory, &servers);
    let mut codes = Vec::new();
    while codes.last() != Some(&ResponseCode::NoError) && codes.len() < 3 {
        codes.push(resolve(served.at, NAME).await.0);
    }
    assert_eq!(codes.last(), Some(&ResponseCode::NoError), "{codes:?}");
}

/// The first one dies and comes back, whether the second one lives or dies meanwhile; kept answers would hide it,
/// so each question has a name of its own.
#[tokio::test]
async fn one_that_comes_back_is_asked_again() {
    let records = "a.test A 93.184.216.34\nb.test A 93.184.216.34\nc.test A 93.184.216.34\nd.test A 93.184.216.34";
    let (first, second) = (
        Upstream::with_zone(records).await,
        Upstream::with_zone(records).await,
    );
    let memory = Memory::permitting(&["a.test", "b.test", "c.test", "d.test"]);
    let served = asked_of(&memory, &[first.address, second.address]);
    let names = |upstream: &Upstream| -> Vec<String> {
        upstream.asked().into_iter().map(|it| it.0).collect()
    };

    assert_eq!(resolve(served.at, "a.test").await.1, [RIGHT]);
    assert_eq!(
        (names(&first).as_slice(), names(&second).len()),
        (["a.test".to_owned()].as_slice(), 0)
    );
    let address = first.address;
    drop(first);
    assert_eq!(resolve(served.at, "b.test").await.1, [RIGHT]);

    let known = zone(records);
    let first = Upstream::start_at(address, move |query, _| said(&answer(query, &known))).await;
    assert_eq!(resolve(served.at, "c.test").await.1, [RIGHT]);
    assert_eq!(
        names(&second),
        ["b.test", "c.test"],
        "the one that answered last is asked first"
    );
    assert!(first.take_asked().is_empty());
    drop(second);
    assert_eq!(resolve(served.at, "d.test").await.1, [RIGHT]);
    assert_eq!(names(&first), ["d.test"]);
}
