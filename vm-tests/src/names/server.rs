//! What names lead to in the guest: addresses of loopback that look like the Internet's, a resolver for them that
//! keeps a list of what it was asked, and services that say "reached".

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// Addresses of this host, besides its own.
const ADDRESSES: &[&str] = &[
    "93.184.216.1",
    "93.184.216.2",
    "93.184.216.3",
    "93.184.216.4",
    "93.184.216.7",
    "93.184.216.53",
    "93.184.216.66",
    "93.184.216.88",
    "169.254.169.254",
    "2606:2800::1",
    "2606:2800::53",
    "2606:2800::66",
];
/// Ports at which every address says "reached": a service, and a proxy that would forward anything.
const PORTS: &[u16] = &[8080, 3128];
/// Ports at which the resolver answers.
const DNS: &[u16] = &[53, 5353];
/// Hosts that the shipped policies name. Each is at [`SHIPPED_AT`].
pub const SHIPPED: &[&str] = &[
    "deb.debian.org",
    "docs.rs",
    "github.com",
    "proxy.golang.org",
    "pypi.org",
    "raw.githubusercontent.com",
    "registry.npmjs.org",
    "static.crates.io",
];
const SHIPPED_AT: (&str, &str, u32) = ("A", "93.184.216.7", 300);
/// Owner, type, data, TTL.
const ZONE: &[(&str, &str, &str, u32)] = &[
    ("good.example.com", "A", "93.184.216.1", 300),
    ("good.example.com", "AAAA", "2606:2800::1", 300),
    ("alias.example.com", "CNAME", "edge.cdn.net", 300),
    ("edge.cdn.net", "A", "93.184.216.2", 300),
    ("host.wild.example.com", "A", "93.184.216.3", 300),
    ("deep.host.wild.example.com", "A", "93.184.216.66", 300),
    ("short.example.com", "A", "93.184.216.4", 1),
    ("forged.example.com", "A", "93.184.216.1", 300),
    ("toevil.example.com", "CNAME", "evil.example.net", 300),
    ("rebind.example.com", "A", "127.0.0.1", 300),
    ("metadata.example.com", "A", "169.254.169.254", 300),
    ("evil.example.net", "A", "93.184.216.66", 300),
    ("evil.example.net", "AAAA", "2606:2800::66", 300),
    ("other.example.net", "A", "93.184.216.66", 300),
    ("xn--bcher-kva.example.net", "A", "93.184.216.66", 300),
    ("secret.evil.example.net", "TXT", "reached", 300),
];

/// What is noted when a datagram comes to the address that no agent may reach.
pub const DATAGRAM: &str = "a datagram";
const FORBIDDEN: IpAddr = IpAddr::V4(Ipv4Addr::new(93, 184, 216, 66));

/// How long a new address may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs until the process ends; there is one.
pub struct Server {
    asked: Arc<Mutex<BTreeSet<String>>>,
}

/// What the one that runs was asked.
static RUNNING: OnceLock<Arc<Mutex<BTreeSet<String>>>> = OnceLock::new();

impl Server {
    /// Makes the addresses and serves them.
    pub fn start() -> Result<Self> {
        if let Some(asked) = RUNNING.get() {
            return Ok(Self {
                asked: asked.clone(),
            });
        }
        for address in ADDRESSES {
            let bits = if address.contains(':') { 128 } else { 32 };
            let with = format!("{address}/{bits}");
            // It may be there from an earlier scenario.
            let added = Command::new("/usr/sbin/ip")
                .args(["addr", "add", &with, "dev", "lo"])
                .output()
                .context("failed to run ip")?;
            let address: IpAddr = address.parse()?;
            let started = Instant::now();
            // The kernel looks for doubles behind our back, also on loopback.
            while let Err(error) = UdpSocket::bind((address, 0)) {
                ensure!(
                    started.elapsed() < PATIENCE,
                    "{address} is not an address of this guest: {error} {}",
                    String::from_utf8_lossy(&added.stderr)
                );
                thread::sleep(Duration::from_millis(5));
            }
        }
        let asked = Arc::new(Mutex::new(BTreeSet::new()));
        for port in DNS {
            let socket = UdpSocket::bind(("::", *port)).context("failed to serve names by UDP")?;
            // Replies must come from the address that was asked, so each address has a socket of its own.
            drop(socket);
            for address in ADDRESSES {
                let address: IpAddr = address.parse()?;
                let socket = UdpSocket::bind((address, *port))?;
                let listener = TcpListener::bind((address, *port))?;
                let (one, other) = (asked.clone(), asked.clone());
                thread::spawn(move || datagrams(&socket, &one));
                thread::spawn(move || streams(&listener, &other));
            }
        }
        for port in PORTS {
            let listener = TcpListener::bind(("::", *port)).context("failed to serve")?;
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    thread::spawn(move || web(stream));
                }
            });
            for address in ADDRESSES {
                let address: IpAddr = address.parse()?;
                let socket = UdpSocket::bind((address, *port))?;
                let asked = asked.clone();
                thread::spawn(move || {
                    let mut bytes = [0; 64];
                    while let Ok((_, from)) = socket.recv_from(&mut bytes) {
                        if address == FORBIDDEN {
                            note(&asked, DATAGRAM);
                        }
                        let _ = socket.send_to(b"reached", from);
                    }
                });
            }
        }
        // Nobody else starts one.
        let _ = RUNNING.set(asked.clone());
        Ok(Self { asked })
    }

    /// Whether such a question, or a [`DATAGRAM`], has arrived.
    pub fn knows(&self, name: &str) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.contains(name)
    }

    /// Forgets what was asked.
    pub fn forget(&self) {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

fn note(asked: &Mutex<BTreeSet<String>>, what: &str) {
    asked
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(what.to_owned());
}

fn web(mut stream: TcpStream) {
    let mut bytes = [0; 4096];
    // What is asked does not count.
    let _ = stream.read(&mut bytes);
    let _ = stream
        .write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nreached\n");
}

fn datagrams(socket: &UdpSocket, asked: &Mutex<BTreeSet<String>>) {
    let mut bytes = [0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut bytes) {
        let Ok(query) = Message::from_vec(&bytes[..length]) else {
            continue;
        };
        let Some(reply) = answer(&query, asked) else {
            continue;
        };
        if query.queries[0].name().to_lowercase().to_ascii() == "forged.example.com." {
            let mut forged = reply.clone();
            forged.metadata.id = query.metadata.id.wrapping_add(1);
            if let Some(record) = forged.answers.first_mut() {
                record.data = RData::A(A::new(93, 184, 216, 66));
            }
            let _ = socket.send_to(&forged.to_vec().unwrap_or_default(), from);
        }
        let _ = socket.send_to(&reply.to_vec().unwrap_or_default(), from);
    }
}

fn streams(listener: &TcpListener, asked: &Arc<Mutex<BTreeSet<String>>>) {
    for mut stream in listener.incoming().flatten() {
        let asked = asked.clone();
        thread::spawn(move || {
            let mut length = [0; 2];
            while stream.read_exact(&mut length).is_ok() {
                let mut bytes = vec![0; u16::from_be_bytes(length).into()];
                if stream.read_exact(&mut bytes).is_err() {
                    return;
                }
                let reply = Message::from_vec(&bytes)
                    .ok()
                    .and_then(|query| answer(&query, &asked)?.to_vec().ok());
                let Some(reply) = reply else {
                    return;
                };
                let framed = [&(reply.len() as u16).to_be_bytes()[..], &reply].concat();
                if stream.write_all(&framed).is_err() {
                    return;
                }
            }
        });
    }
}

fn name(text: &str) -> Option<Name> {
    Name::from_ascii(format!("{text}.")).ok()
}

fn record(owner: &str, kind: &str, data: &str, ttl: u32) -> Option<Record> {
    let data = match kind {
        "A" => RData::A(A(data.parse().ok()?)),
        "AAAA" => RData::AAAA(AAAA(data.parse().ok()?)),
        "CNAME" => RData::CNAME(CNAME(name(data)?)),
        _ => RData::TXT(TXT::new(vec![data.to_owned()])),
    };
    Some(Record::from_rdata(name(owner)?, ttl, data))
}

fn zone() -> impl Iterator<Item = (&'static str, &'static str, &'static str, u32)> {
    let (kind, data, ttl) = SHIPPED_AT;
    let shipped = SHIPPED.iter().map(move |owner| (*owner, kind, data, ttl));
    ZONE.iter().copied().chain(shipped)
}

fn answer(query: &Message, asked: &Mutex<BTreeSet<String>>) -> Option<Message> {
    let question = query.queries.first()?;
    let mut at = question.name().to_lowercase().to_ascii();
    at.pop();
    note(asked, &at);
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    reply.metadata.recursion_desired = true;
    reply.metadata.recursion_available = true;
    reply.queries.clone_from(&query.queries);
    let kind = question.query_type();
    loop {
        let mine = || zone().filter(|(owner, ..)| *owner == at);
        let of_kind =
            |it: &(&str, &str, &str, u32)| it.1.parse::<RecordType>().is_ok_and(|it| it == kind);
        let found = mine().filter(of_kind);
        let found = found.filter_map(|(owner, kind, data, ttl)| record(owner, kind, data, ttl));
        reply.answers.extend(found);
        let alias = mine().find(|(_, kind, ..)| *kind == "CNAME");
        match alias {
            Some((owner, alias, target, ttl)) if kind != RecordType::CNAME => {
                reply.answers.extend(record(owner, alias, target, ttl));
                target.clone_into(&mut at);
            }
            _ => {
                if reply.answers.is_empty() && mine().next().is_none() {
                    reply.metadata.response_code = ResponseCode::NXDomain;
                }
                return Some(reply);
            }
        }
    }
}
