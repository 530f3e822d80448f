//! Traffic: what `agentguard traffic` and the log say is, byte for byte, what was sent and received, as a server that
//! nobody governs counts it, on any number of daemons.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, TcpListener, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::guard::{AUDIT, Agent, Daemon, Group, Inside, agentguard_ok, write_policy};
use crate::names::said_in;
use crate::run::{PERMISSIVE, UNLOCKED};
use crate::trail::Trail;

const PORT: u16 = 7207;
/// Headers of IP and UDP.
const V4: u64 = 28;
const V6: u64 = 48;
/// Payloads of the datagrams of one round; each is answered with twice as much.
const SIZES: &[u64] = &[0, 1, 700, 9_000];
/// Bytes of one round over TCP, and of the answer.
const STREAM: u64 = 400_000;
const ANSWER: u64 = 50_000;

/// One round of a client: datagrams to two addresses and over IPv6, and a stream to each. It says how many bytes its
/// kernel sent in each stream: those that it sent again, because nobody was quick to say that they came, count too.
const ROUND: &str = r"
import socket, struct
def datagrams(family, host):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(60)
    for n in (0, 1, 700, 9000):
        s.sendto(b'x' * n, (host, 7207))
        assert len(s.recv(65535)) == 2 * n
def stream(family, host):
    s = socket.socket(family, socket.SOCK_STREAM)
    s.settimeout(60)
    s.connect((host, 7207))
    s.sendall(b'x' * 400000)
    s.shutdown(socket.SHUT_WR)
    got = 0
    while True:
        n = len(s.recv(65536))
        if not n: break
        got += n
    assert got == 50000
    info = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    print(host, struct.unpack_from('=Q', info, 200)[0])
for family, host in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET, '127.0.0.2'), (socket.AF_INET6, '::1')):
    datagrams(family, host)
    stream(family, host)
";

/// Clients that are servers as well, one of them with a header of options in its packets, and one that asks for an echo.
const SELF: &str = r"
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(('127.0.0.7', 7300))
for n in range(3):
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.bind(('127.0.0.8', 0))
    client.sendto(b'x' * 100, ('127.0.0.7', 7300))
    data, whom = server.recvfrom(1000)
    server.sendto(b'y' * 10, whom)
    client.recv(1000)
server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
server.bind(('::1', 7301))
client = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
client.sendto(b'x' * 100, ('::1', 7301))
data, whom = server.recvfrom(1000)
server.sendto(b'y' * 10, whom)
client.recv(1000)
server = socket.socket()
server.bind(('127.0.0.7', 7302))
server.listen()
for n in range(3):
    client = socket.socket()
    client.bind(('127.0.0.8', 0))
    client.connect(('127.0.0.7', 7302))
    peer, whom = server.accept()
    client.sendall(b'x' * 5000)
    client.shutdown(socket.SHUT_WR)
    while peer.recv(10000): pass
    peer.close()
    client.recv(1)
    client.close()
ping = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
ping.settimeout(60)
ping.sendto(bytes([8, 0, 0, 0, 0, 0, 0, 1]) + b'p' * 56, ('127.0.0.9', 0))
ping.recv(1000)
print('done')
";

/// Sends datagrams until its input ends, and says how many.
const STREAMING: &str = r"
import select, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(60)
print('ready', flush=True)
sent = 0
while not select.select([sys.stdin], [], [], 0)[0] or sent < 500:
    s.sendto(b'x' * 100, ('127.0.0.3', 7207))
    s.recv(1000)
    sent += 1
    time.sleep(.001)
print(sent, flush=True)
";

/// What the server got.
#[derive(Default)]
struct Served {
    datagrams: AtomicU64,
    datagram_bytes: AtomicU64,
    stream_bytes: AtomicU64,
}

impl Served {
    fn read(&self) -> [u64; 3] {
        let each = [&self.datagrams, &self.datagram_bytes, &self.stream_bytes];
        each.map(|it| it.load(Ordering::SeqCst))
    }
}

/// Serves until the process ends; there is one.
fn server() -> Result<&'static Served> {
    static RUNNING: OnceLock<Arc<Served>> = OnceLock::new();
    if let Some(served) = RUNNING.get() {
        return Ok(served);
    }
    let served = Arc::new(Served::default());
    for host in ["127.0.0.1", "127.0.0.2", "127.0.0.3", "::1"] {
        let host: IpAddr = host.parse()?;
        let socket = UdpSocket::bind((host, PORT)).context("failed to serve datagrams")?;
        let listener = TcpListener::bind((host, PORT)).context("failed to serve streams")?;
        let (one, other) = (served.clone(), served.clone());
        thread::spawn(move || datagrams(&socket, &one));
        thread::spawn(move || streams(&listener, &other));
    }
    Ok(RUNNING.get_or_init(|| served))
}

fn datagrams(socket: &UdpSocket, served: &Served) {
    let mut bytes = vec![0; 65_535];
    while let Ok((len, from)) = socket.recv_from(&mut bytes) {
        served.datagrams.fetch_add(1, Ordering::SeqCst);
        served
            .datagram_bytes
            .fetch_add(len as u64, Ordering::SeqCst);
        let _ = socket.send_to(&vec![7; 2 * len], from);
    }
}

fn streams(listener: &TcpListener, served: &Served) {
    for mut stream in listener.incoming().flatten() {
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got);
        served
            .stream_bytes
            .fetch_add(got.len() as u64, Ordering::SeqCst);
        let _ = stream.write_all(&vec![7; ANSWER as usize]);
        let _ = stream.shutdown(Shutdown::Write);
    }
}

/// Bytes in and out, packets in and out.
type Numbers = [u64; 4];
/// By protocol and destination.
type Table = BTreeMap<(String, String), Numbers>;

fn numbers(value: &Value) -> Result<Numbers> {
    let mut numbers = [0; 4];
    let fields = ["bytes_in", "bytes_out", "packets_in", "packets_out"];
    for (number, field) in numbers.iter_mut().zip(fields) {
        *number = value[field]
            .as_u64()
            .with_context(|| format!("no {field} in {value}"))?;
    }
    Ok(numbers)
}

/// What the command says of an agent; its sums must be those of its rows.
fn asked(name: &str) -> Result<Table> {
    let said: Value = serde_json::from_str(&agentguard_ok(&["traffic", name, "--json"])?)?;
    let agent = &said[0];
    ensure!(agent["agent"] == name, "{said}");
    let mut table = Table::new();
    let mut sum = [0; 4];
    for to in agent["destinations"]
        .as_array()
        .context("no destinations")?
    {
        let text = |key: &str| to[key].as_str().unwrap_or_default().to_owned();
        let place = match to["port"].as_u64() {
            Some(port) => format!("{} {port}", text("address")),
            None => text("address"),
        };
        let each = numbers(to)?;
        for (sum, number) in sum.iter_mut().zip(each) {
            *sum += number;
        }
        table.insert((text("protocol"), place), each);
    }
    ensure!(
        sum == numbers(agent)?,
        "the sum is not that of the rows: {said}"
    );
    Ok(table)
}

/// The records of an agent since a mark, in the same form.
fn recorded(trail: &mut Trail, mark: usize, name: &str) -> Result<Table> {
    let mut table = Table::new();
    for record in trail.since(mark)? {
        if record["op"] != "traffic" || record["agent"] != name {
            continue;
        }
        let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
        let target = text("target");
        let place = match record["port"].as_u64() {
            Some(port) => {
                let address = target.strip_suffix(&format!(":{port}")).context("a port")?;
                let address = address.trim_start_matches('[').trim_end_matches(']');
                format!("{address} {port}")
            }
            None => target,
        };
        table.insert((text("protocol"), place), numbers(record)?);
    }
    Ok(table)
}

fn row(table: &Table, protocol: &str, place: &str) -> Result<Numbers> {
    let found = table.get(&(protocol.to_owned(), place.to_owned()));
    let found = found.with_context(|| format!("no {protocol} {place} in {table:?}"))?;
    Ok(*found)
}

/// What clients did so far.
#[derive(Default)]
struct Done {
    rounds: u64,
    /// Bytes that the kernel sent in streams, by host.
    sent: BTreeMap<String, u64>,
}

impl Done {
    fn round(&mut self, group: &Group) -> Result<()> {
        let (said, complaint) = said_in(group, &["/usr/bin/python3", "-c", ROUND])?;
        ensure!(said.lines().count() == 3, "{said} {complaint}");
        for line in said.lines() {
            let (host, bytes) = line.split_once(' ').context("a host and a number")?;
            let bytes: u64 = bytes.parse()?;
            ensure!(bytes >= STREAM, "{said}");
            *self.sent.entry(host.to_owned()).or_default() += bytes;
        }
        self.rounds += 1;
        Ok(())
    }
}

/// What was done, exactly for datagrams and within bounds for streams.
fn check(table: &Table, Done { rounds, sent }: &Done) -> Result<()> {
    let payload: u64 = SIZES.iter().sum();
    let packets = SIZES.len() as u64;
    for (host, header) in [("127.0.0.1", V4), ("127.0.0.2", V4), ("::1", V6)] {
        let place = format!("{host} {PORT}");
        let found = row(table, "udp", &place)?;
        let one = [
            header * packets + 2 * payload,
            header * packets + payload,
            packets,
            packets,
        ];
        let expected = one.map(|number| number * rounds);
        ensure!(found == expected, "{host}: {found:?}, not {expected:?}");
        let [bytes_in, bytes_out, packets_in, packets_out] = row(table, "tcp", &place)?;
        println!(
            "      {rounds} rounds with {host}: {bytes_in} bytes in {packets_in} packets came, {bytes_out} in {packets_out} went"
        );
        let sent = *sent.get(host).context("a host")?;
        // The server may send a segment of 64 KiB again.
        for (bytes, packets, payload, again) in [
            (bytes_in, packets_in, ANSWER * rounds, 65_536 * rounds),
            (bytes_out, packets_out, sent, 0),
        ] {
            // 20 to 60 bytes of IP and of TCP each.
            ensure!(
                bytes >= payload + 40 * packets && bytes <= payload + again + 120 * packets,
                "{host}: {bytes} bytes in {packets} packets for {payload}"
            );
        }
    }
    Ok(())
}

/// What a server counts is what the guard says, for this agent and no other.
pub fn counted(trail: &mut Trail) -> Result<()> {
    let served = server()?;
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
    write_policy("traffic", UNLOCKED)?;
    let beside = Agent::attach("traffic-beside", "traffic")?;
    let agent = Agent::attach("traffic", "traffic")?;
    let twin = Group::new("traffic-twin")?;
    let before = served.read();
    let mut done = Done::default();
    done.round(&agent.group)?;
    done.round(&agent.group)?;
    let after = served.read();
    let payload: u64 = SIZES.iter().sum();
    let expected = [6 * SIZES.len() as u64, 6 * payload, 6 * STREAM];
    for ((before, after), expected) in before.iter().zip(after).zip(expected) {
        ensure!(
            after - before == expected,
            "the server got {}",
            after - before
        );
    }
    let table = asked("traffic")?;
    check(&table, &done)?;
    ensure!(table.len() == 6, "{table:?}");
    // Nobody's who is not governed, and nobody's else.
    Done::default().round(&twin)?;
    ensure!(asked("traffic")? == table, "ungoverned traffic was counted");
    ensure!(
        asked("traffic-beside")?.is_empty(),
        "another agent has traffic"
    );
    both_ends(&agent)?;
    let table = asked("traffic")?;
    let mark = trail.mark()?;
    drop(agent);
    let log = recorded(trail, mark, "traffic")?;
    ensure!(log == table, "the log has {log:?}, not {table:?}");
    drop(beside);
    ensure!(
        recorded(trail, mark, "traffic-beside")?.is_empty(),
        "an agent without traffic has records"
    );
    Ok(())
}

/// Both ends are the agent's: each counts, the called one without the caller's port.
fn both_ends(agent: &Agent) -> Result<()> {
    let before = asked(&agent.name)?.len();
    let (said, complaint) = said_in(&agent.group, &["/usr/bin/python3", "-c", SELF])?;
    ensure!(said.trim() == "done", "{said} {complaint}");
    let table = asked(&agent.name)?;
    // Options are 8 bytes, and asking for an echo takes the sizes of a datagram.
    let exact = [
        (
            "udp",
            "127.0.0.7 7300",
            [3 * (V4 + 10), 3 * (V4 + 100), 3, 3],
        ),
        ("udp", "127.0.0.8", [3 * (V4 + 100), 3 * (V4 + 10), 3, 3]),
        ("udp", "::1 7301", [V6 + 10, V6 + 8 + 100, 1, 1]),
        ("udp", "::1", [V6 + 8 + 100, V6 + 10, 1, 1]),
        ("icmp", "127.0.0.9", [V4 + 56, V4 + 56, 1, 1]),
    ];
    for (protocol, place, expected) in exact {
        let found = row(&table, protocol, place)?;
        ensure!(found == expected, "{protocol} {place}: {found:?}");
    }
    // A stream's ends see the same packets, but for those that are under way when one of them has gone.
    let [back, there, ..] = row(&table, "tcp", "127.0.0.7 7302")?;
    let [called_in, called_out, ..] = row(&table, "tcp", "127.0.0.8")?;
    ensure!(
        there >= 15_000 && called_in >= 15_000 && there - called_in <= 600,
        "{there} bytes went, and {called_in} came"
    );
    ensure!(
        called_out >= back && called_out - back <= 600,
        "{called_out} bytes went back, and {back} came"
    );
    ensure!(table.len() == before + 7, "{table:?}");
    Ok(())
}

/// Counts go on while no daemon runs, and through the replacement of the programs. No daemon may run.
pub fn survives() -> Result<()> {
    server()?;
    let daemon = Daemon::start()?;
    write_policy("traffic", PERMISSIVE)?;
    let agent = Agent::attach("traffic-survive", "traffic")?;
    let mut inside = Inside(
        Command::new("/usr/bin/dash")
            .arg("-c")
            .arg(format!(
                "echo $$ >{}/cgroup.procs && exec python3 -c \"$1\"",
                agent.group.path().display()
            ))
            .args(["sh", STREAMING])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let mut output = inside.0.stdout.take().context("no output")?;
    let mut ready = [0; 6];
    output.read_exact(&mut ready)?;
    let mut done = Done::default();
    done.round(&agent.group)?;
    daemon.kill()?;
    done.round(&agent.group)?;
    let daemon = Daemon::start()?;
    check(&asked("traffic-survive")?, &done)?;
    daemon.kill()?;
    let daemon = Daemon::start_with(true)?;
    done.round(&agent.group)?;
    drop(inside.0.stdin.take());
    let mut said = String::new();
    output.read_to_string(&mut said)?;
    let sent: u64 = said.trim().parse().with_context(|| said.clone())?;
    let table = asked("traffic-survive")?;
    check(&table, &done)?;
    let found = row(&table, "udp", &format!("127.0.0.3 {PORT}"))?;
    println!("      {sent} datagrams went while daemons came and went");
    ensure!(
        found == [sent * (V4 + 200), sent * (V4 + 100), sent, sent],
        "{sent} datagrams: {found:?}"
    );
    let mut trail = Trail::at(AUDIT);
    let mark = trail.mark()?;
    drop(agent);
    let log = recorded(&mut trail, mark, "traffic-survive")?;
    ensure!(log == table, "the log has {log:?}, not {table:?}");
    drop(daemon);
    Ok(())
}
