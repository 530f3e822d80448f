//! Syslog over TLS, and by datagrams.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::bench::{Bench, once, state, until};
use crate::receiver::{Got, Manners, Receiver, numbers};

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn config(bench: &Bench, address: SocketAddr) -> String {
    format!(
        "  siem:\n    syslog:\n      to: tls://localhost:{}\n      tls: {{ ca: {} }}\n",
        address.port(),
        bench.path("ca.pem").display()
    )
}

/// Within what came, each number is one more than the one before, or goes back to one that had come already.
fn in_order(numbers: &[u64]) {
    let mut highest = 0;
    for pair in numbers.windows(2) {
        highest = highest.max(pair[0]);
        let next = pair[0] + 1;
        assert!(
            pair[1] == next || pair[1] <= highest,
            "{pair:?} after {highest}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_comes_exactly_once_through_restarts_of_both_sides() {
    let mut bench = Bench::new();
    let got = Got::default();
    let mut receiver = Receiver::listen(bench.folder.path(), ANY, &got, Manners::default());
    let address = receiver.address;
    let config = config(&bench, address);
    let mut sinks = bench.start(&config);
    for round in 0..8 {
        bench.write(1500);
        if round % 2 == 0 {
            // In the middle of it.
            sinks.stop().await;
            sinks = bench.start(&config);
        } else {
            let last = bench.last();
            until(&sinks, |state| state.position == last).await;
            receiver.stop().await;
            bench.write(700);
            receiver = Receiver::listen(bench.folder.path(), address, &got, Manners::default());
        }
    }
    let last = bench.last();
    until(&sinks, |state| state.position == last && state.lag == 0).await;
    assert_eq!(numbers(&got), (1..=last).collect::<Vec<_>>());
    let log = std::fs::read_to_string(bench.path("audit.jsonl")).expect("the log");
    let line = log.lines().last().expect("a line");
    let message = got
        .lock()
        .expect("the list")
        .last()
        .expect("a message")
        .1
        .clone();
    assert!(message.ends_with(&format!("] {line}")), "{message}");
    sinks.stop().await;
    receiver.stop().await;
    assert_eq!(numbers(&got).len() as u64, last);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_closes_within_a_record_gets_everything_in_the_end() {
    let mut bench = Bench::new();
    let got = Got::default();
    bench.write(4000);
    let rude = Manners {
        closes_after: Some(300_000),
        gulp: 10_000,
        ..Manners::default()
    };
    let receiver = Receiver::listen(bench.folder.path(), ANY, &got, rude);
    let sinks = bench.start(&config(&bench, receiver.address));
    // It never lets a whole log through; so somebody better takes over.
    until(&sinks, |state| state.retries >= 5).await;
    let address = receiver.address;
    receiver.stop().await;
    let receiver = Receiver::listen(bench.folder.path(), address, &got, Manners::default());
    let last = bench.last();
    let state = until(&sinks, |state| state.position == last).await;
    let numbers = numbers(&got);
    in_order(&numbers);
    assert_eq!(once(&numbers), (1..=last).collect::<Vec<_>>());
    // What came more than once is known as such.
    assert!(state.repeated >= numbers.len() as u64 - last, "{state:?}");
    sinks.stop().await;
    receiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_receiver_and_one_that_is_not_there_yet_hold_nothing_up() {
    let mut bench = Bench::new();
    let got = Got::default();
    let first = Receiver::listen(bench.folder.path(), ANY, &got, Manners::default());
    let address = first.address;
    first.stop().await;
    let sinks = bench.start(&config(&bench, address));
    bench.write(2000);
    let state = until(&sinks, |state| state.retries >= 3).await;
    assert_eq!(state.position, 0);
    assert!(state.last_error.expect("a reason").contains("refused"));
    assert_eq!(state.lag, state.newest);
    let slow = Manners {
        pause: Duration::from_millis(1),
        gulp: 4096,
        ..Manners::default()
    };
    let receiver = Receiver::listen(bench.folder.path(), address, &got, slow);
    bench.write(2000);
    let last = bench.last();
    until(&sinks, |state| state.position == last).await;
    assert_eq!(once(&numbers(&got)), (1..=last).collect::<Vec<_>>());
    sinks.stop().await;
    receiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_with_a_wrong_certificate_gets_nothing() {
    let mut bench = Bench::new();
    let got = Got::default();
    bench.write(10);
    let receiver = Receiver::listen(bench.folder.path(), ANY, &got, Manners::default());
    let trusted = std::fs::read(bench.path("ca.pem")).expect("certificates");
    std::fs::copy(bench.path("other.pem"), bench.path("ca.pem")).expect("a copy");
    let sinks = bench.start(&config(&bench, receiver.address));
    let state = until(&sinks, |state| state.retries >= 2).await;
    assert!(state.last_error.expect("a reason").contains("certificate"));
    assert_eq!((numbers(&got).len(), state.position), (0, 0));
    // The file is read again for each connection.
    std::fs::write(bench.path("ca.pem"), trusted).expect("written");
    let last = bench.last();
    until(&sinks, |state| state.position == last).await;
    assert_eq!(numbers(&got), (1..=last).collect::<Vec<_>>());
    sinks.stop().await;
    receiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_were_moved_away_before_they_were_sent_are_counted() {
    let mut bench = Bench::new();
    let got = Got::default();
    bench.write(200);
    let receiver = Receiver::listen(bench.folder.path(), ANY, &got, Manners::default());
    let config = config(&bench, receiver.address);
    let sinks = bench.start(&config);
    let sent = bench.last();
    until(&sinks, |state| state.position == sent).await;
    sinks.stop().await;
    bench.write(12_000);
    let closed =
        agentguard::audit::segment::closed_of(&bench.path("audit.jsonl")).expect("segments");
    assert!(closed.len() >= 3, "{closed:?}");
    for segment in &closed[..2] {
        std::fs::remove_file(&segment.path).expect("removed");
    }
    let first = closed[2].first.expect("a number");
    let sinks = bench.start(&config);
    let last = bench.last();
    let state = until(&sinks, |state| state.position == last).await;
    assert_eq!(state.missing, first - sent - 1);
    assert!(
        state
            .last_error
            .expect("a warning")
            .contains("not in the log any more")
    );
    let all: Vec<u64> = (1..=sent).chain(first..=last).collect();
    assert_eq!(numbers(&got), all);
    sinks.stop().await;
    // It stays known.
    let sinks = bench.start(&config);
    until(&sinks, |state| state.missing == first - sent - 1).await;
    sinks.stop().await;
    receiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_go_to_the_socket_of_the_host_and_to_udp() {
    let mut bench = Bench::new();
    bench.write(300);
    let path = bench.path("log");
    let socket = tokio::net::UnixDatagram::bind(&path).expect("a socket");
    let sinks = bench.start(&format!(
        "  here:\n    syslog: {{ to: 'unix://{}' }}\n",
        path.display()
    ));
    let last = bench.last();
    let mut buffer = vec![0; 1 << 16];
    for seq in 1..=last {
        let size = socket.recv(&mut buffer).await.expect("a message");
        let text = String::from_utf8_lossy(&buffer[..size]);
        let own = text.starts_with('<') && text.contains(" agentguard[");
        assert!(own && text.contains(&format!("{{\"seq\":{seq},")), "{text}");
    }
    until(&sinks, |state| state.position == last).await;
    sinks.stop().await;

    let socket = tokio::net::UdpSocket::bind(ANY).await.expect("a socket");
    let port = socket.local_addr().expect("an address").port();
    std::fs::remove_dir_all(bench.path("sinks")).expect("removed");
    let sinks = bench.start(&format!(
        "  here:\n    syslog: {{ to: 'udp://127.0.0.1:{port}', format: ocsf, facility: 4 }}\n"
    ));
    for _ in 1..=2 {
        let size = socket.recv(&mut buffer).await.expect("a message");
        buffer.truncate(size);
        buffer.resize(1 << 16, 0);
    }
    let text = String::from_utf8_lossy(&buffer);
    assert!(
        text.starts_with("<38>1 2026-11-23T04:05:06.123456Z "),
        "{text}"
    );
    assert!(
        text.contains("[agentguard@32473 seq=\"2\"") && text.contains("\"class_uid\":1001"),
        "{text}"
    );
    until(&sinks, |state| state.position > 0).await;
    sinks.stop().await;
    assert_eq!(state(&sinks).doing.name(), "stopped");
}
