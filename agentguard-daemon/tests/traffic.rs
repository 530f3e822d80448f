//! Traffic is counted in the kernel, byte for byte. Needs root and a cgroup v2 hierarchy, but no BPF LSM.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};

use agentguard::agent::Hierarchy;
use agentguard::kernel::{Guard, GuardOptions, cgroup_id};
use agentguard_common::label::Membership;
use agentguard_common::traffic::Counts;

/// Headers of IP and UDP.
const V4: u64 = 28;
const V6: u64 = 48;

/// A cgroup, which is removed when dropped. Threads cannot move between cgroups one by one, so whoever wants a socket
/// in it goes there with the whole process.
struct Group {
    path: PathBuf,
    home: PathBuf,
}

impl Group {
    fn new(hierarchy: &Hierarchy) -> Self {
        let name = format!("agentguard-traffic-test-{}", std::process::id());
        let path = hierarchy.mount().join(name);
        fs::create_dir_all(path.join("below")).expect("a cgroup");
        let home = hierarchy.of_process(std::process::id()).expect("our own");
        Self { path, home }
    }

    /// Makes sockets in it.
    fn within<T>(&self, below: &str, make: impl FnOnce() -> T) -> T {
        enter(&self.path.join(below));
        let made = make();
        enter(&self.home);
        made
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        enter(&self.home);
        let _ = fs::remove_dir(self.path.join("below"));
        let _ = fs::remove_dir(&self.path);
    }
}

fn enter(cgroup: &Path) {
    let pid = std::process::id().to_string();
    fs::write(cgroup.join("cgroup.procs"), pid).expect("to move into a cgroup");
}

/// What is there for an address and protocol of the first agent, by port.
fn counted(guard: &Guard, who: Membership, address: &str, protocol: u16) -> Vec<(u16, Counts)> {
    let address: std::net::IpAddr = address.parse().expect("an address");
    let address = match address {
        std::net::IpAddr::V4(it) => it.to_ipv6_mapped(),
        std::net::IpAddr::V6(it) => it,
    };
    let rows = guard.traffic().expect("counters");
    let rows = rows.into_iter().filter(|it| it.who == who);
    let mut found: Vec<_> = rows
        .filter_map(|it| Some((it.flow?, it.counts)))
        .filter(|(flow, _)| Ipv6Addr::from(flow.address) == address && flow.protocol == protocol)
        .map(|(flow, counts)| (flow.port, counts))
        .collect();
    found.sort_by_key(|(port, _)| *port);
    found
}

fn sum(guard: &Guard, who: Membership) -> Counts {
    let rows = guard.traffic().expect("counters").into_iter();
    rows.filter(|it| it.who == who)
        .fold(Counts::default(), |sum, it| sum.plus(it.counts))
}

fn send(socket: &UdpSocket, to: SocketAddr, payload: usize) {
    let sent = socket.send_to(&vec![7; payload], to).expect("to send");
    assert_eq!(sent, payload);
}

fn receive(socket: &UdpSocket) -> (usize, SocketAddr) {
    socket.recv_from(&mut vec![0; 65_535]).expect("a datagram")
}

/// One test, because all of it moves the process between cgroups.
#[test]
fn every_byte_of_an_agent_is_counted_once_and_nobody_elses() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: loading a kernel program needs root; run the tests with sudo");
        return;
    }
    let Ok(hierarchy) = Hierarchy::find() else {
        eprintln!("skipped: there is no cgroup v2 hierarchy");
        return;
    };
    let mut guard = Guard::load_object(&GuardOptions::default()).expect("the object");
    guard.load_counters().expect("to load the programs");
    let group = Group::new(&hierarchy);
    let who = Membership {
        agent: 3,
        session: 77,
    };
    guard.count_traffic(&group.path, who).expect("to attach");
    // Again is no harm.
    guard.count_traffic(&group.path, who).expect("to attach");
    let id = cgroup_id(&group.path).expect("a number");
    guard.govern(id, who).expect("to govern");

    datagrams(&guard, &group, who);
    below_and_called(&guard, &group, who);
    streams(&guard, &group, who);
    many(&guard, &group, who);
    outside(&guard, who);

    // An agent that has gone is not counted for, also by the sockets that it made.
    let socket = group.within("", || UdpSocket::bind("127.0.0.1:0").expect("a socket"));
    guard.release(id).expect("to release");
    let before = sum(&guard, who);
    send(&socket, "127.0.0.1:9".parse().expect("an address"), 10);
    assert_eq!(sum(&guard, who), before);
    // Another one in the same cgroup has numbers of its own.
    let next = Membership {
        agent: 4,
        session: 78,
    };
    guard.count_traffic(&group.path, next).expect("to attach");
    guard.govern(id, next).expect("to govern");
    send(&socket, "127.0.0.1:9".parse().expect("an address"), 10);
    assert_eq!(sum(&guard, who), before);
    assert_eq!(sum(&guard, next).bytes_out, V4 + 10);
    guard.forget_traffic(who).expect("to forget");
    assert!(sum(&guard, who).is_empty());
    assert_eq!(sum(&guard, next).bytes_out, V4 + 10);
    guard.count_no_more(&group.path).expect("to detach");
    send(&socket, "127.0.0.1:9".parse().expect("an address"), 10);
    assert_eq!(sum(&guard, next).bytes_out, V4 + 10);
}

fn datagrams(guard: &Guard, group: &Group, who: Membership) {
    for (host, header) in [("127.0.0.1", V4), ("127.0.0.2", V4), ("::1", V6)] {
        let server = UdpSocket::bind((host, 0)).expect("a server");
        let there = server.local_addr().expect("an address");
        let bind = if header == V4 {
            "127.0.0.1:0"
        } else {
            "[::1]:0"
        };
        let client = group.within("", || UdpSocket::bind(bind).expect("a client"));
        for payload in [0, 1, 1_000, 20_000] {
            send(&client, there, payload);
            let (_, from) = receive(&server);
            send(&server, from, 2 * payload);
            receive(&client);
        }
        let expected = Counts {
            bytes_out: 4 * header + 21_001,
            packets_out: 4,
            bytes_in: 4 * header + 42_002,
            packets_in: 4,
        };
        assert_eq!(counted(guard, who, host, 17), [(there.port(), expected)]);
    }
}

/// A server of the agent's, in a cgroup below: its callers have one row.
fn below_and_called(guard: &Guard, group: &Group, who: Membership) {
    let server = group.within("below", || {
        UdpSocket::bind("127.0.0.3:0").expect("a server")
    });
    let there = server.local_addr().expect("an address");
    for _ in 0..5 {
        let client = UdpSocket::bind("127.0.0.4:0").expect("a client");
        send(&client, there, 100);
        let (_, from) = receive(&server);
        send(&server, from, 300);
        receive(&client);
    }
    let expected = Counts {
        bytes_in: 5 * (V4 + 100),
        packets_in: 5,
        bytes_out: 5 * (V4 + 300),
        packets_out: 5,
    };
    assert_eq!(counted(guard, who, "127.0.0.4", 17), [(0, expected)]);
}

fn streams(guard: &Guard, group: &Group, who: Membership) {
    const SENT: u64 = 300_000;
    // Called by others, from a port of each one's own.
    let listener = group.within("", || TcpListener::bind("127.0.0.5:0").expect("a server"));
    for _ in 0..3 {
        let mut client =
            TcpStream::connect(listener.local_addr().expect("an address")).expect("to connect");
        let (mut served, _) = listener.accept().expect("a client");
        exchange(&mut client, &mut served, SENT, 10);
    }
    let rows = counted(guard, who, "127.0.0.1", 6);
    let [(0, counts)] = rows[..] else {
        panic!("{rows:?}");
    };
    assert!(
        within(counts.bytes_in, 3 * SENT) && within(counts.bytes_out, 30),
        "{counts:?}"
    );
    // Calling others.
    let listener = TcpListener::bind("127.0.0.6:0").expect("a server");
    let there = listener.local_addr().expect("an address");
    let mut client = group.within("", || TcpStream::connect(there).expect("to connect"));
    let (mut served, _) = listener.accept().expect("a client");
    exchange(&mut client, &mut served, SENT, 20);
    let rows = counted(guard, who, "127.0.0.6", 6);
    let [(port, counts)] = rows[..] else {
        panic!("{rows:?}");
    };
    assert_eq!(port, there.port());
    assert!(
        within(counts.bytes_out, SENT) && within(counts.bytes_in, 20),
        "{counts:?}"
    );
}

/// At least the payload, and not more than a header for each 500 bytes and for the ends.
fn within(bytes: u64, payload: u64) -> bool {
    bytes >= payload && bytes < payload + payload / 5 + 2_000
}

fn exchange(client: &mut TcpStream, served: &mut TcpStream, there: u64, back: usize) {
    let mut writer = client.try_clone().expect("a second end");
    let sender = std::thread::spawn(move || {
        let bytes = vec![1; usize::try_from(there).expect("a size")];
        writer.write_all(&bytes).expect("to write");
        writer.shutdown(std::net::Shutdown::Write).expect("to end");
    });
    let mut got = Vec::new();
    served.read_to_end(&mut got).expect("to read");
    assert_eq!(got.len() as u64, there);
    served.write_all(&vec![2; back]).expect("to answer");
    served.shutdown(std::net::Shutdown::Write).expect("to end");
    got.clear();
    client.read_to_end(&mut got).expect("to read");
    assert_eq!(got.len(), back);
    sender.join().expect("the sender");
}

/// More destinations than an agent has rows: the sums stay exact.
fn many(guard: &Guard, group: &Group, who: Membership) {
    let before = sum(guard, who);
    let client = group.within("", || UdpSocket::bind("127.0.0.1:0").expect("a client"));
    // Nobody listens: each is answered by ICMP, which is not for the socket's filter.
    let count = 5_000u64;
    for number in 0..count {
        let to = format!("127.1.{}.{}:9", number / 200, number % 200 + 1);
        let mut sent = client.send_to(&[0; 50], &to);
        // The error that the one before was answered with.
        if sent.is_err() {
            sent = client.send_to(&[0; 50], &to);
        }
        sent.expect("to send");
    }
    let after = sum(guard, who);
    assert_eq!(after.packets_out - before.packets_out, count);
    assert_eq!(after.bytes_out - before.bytes_out, count * (V4 + 50));
    let rows = guard.traffic().expect("counters");
    let own = rows.iter().filter(|it| it.who == who);
    let (rows, rest): (Vec<_>, Vec<_>) = own.partition(|it| it.flow.is_some());
    assert_eq!(rows.len() as u64, agentguard_common::traffic::FLOWS_EACH);
    assert_eq!(rest.len(), 1);
    assert!(rest[0].counts.packets_out > 800, "{:?}", rest[0]);
}

/// Sockets of nobody who is governed.
fn outside(guard: &Guard, who: Membership) {
    let before = guard.traffic().expect("counters");
    let server = UdpSocket::bind("127.0.0.1:0").expect("a server");
    let client = UdpSocket::bind("127.0.0.1:0").expect("a client");
    send(&client, server.local_addr().expect("an address"), 123);
    receive(&server);
    assert_eq!(guard.traffic().expect("counters").len(), before.len());
    let sum_of = |rows: &[agentguard::kernel::Counted]| {
        rows.iter()
            .fold(Counts::default(), |sum, it| sum.plus(it.counts))
    };
    assert_eq!(sum_of(&guard.traffic().expect("counters")), sum_of(&before));
    assert_eq!(sum(guard, who), sum_of(&before));
}
