//! A client of the resolver, and what it needs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agentguard::resolver::{Asker, Gate, Limits, NetPlace, Resolver, Servers};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Longer than any answer takes.
const LONG: Duration = Duration::from_mins(1);

pub fn asker(agent: u32) -> Asker {
    Asker { agent, session: 7 }
}

/// A resolver that serves agent 1.
pub struct Served {
    pub resolver: Resolver,
    pub at: SocketAddr,
}

pub fn serve(gate: Arc<dyn Gate>, servers: &[SocketAddr], limits: Limits) -> Served {
    let resolver = Resolver::new(gate, Servers::These(servers.to_vec()), limits);
    let at = serve_agent(&resolver, 1);
    Served { resolver, at }
}

pub fn serve_agent(resolver: &Resolver, agent: u32) -> SocketAddr {
    let place = NetPlace::own().unwrap();
    let port = resolver.serve(asker(agent), &place, None).unwrap();
    SocketAddr::from(([127, 0, 0, 1], port))
}

pub fn query(name: Name, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    message
}

pub fn with_edns(mut message: Message) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(1232).set_version(0);
    message.set_edns(edns);
    message
}

pub async fn send(at: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let local = if at.is_ipv4() {
        "127.0.0.1:0"
    } else {
        "[::1]:0"
    };
    let socket = UdpSocket::bind(local).await.unwrap();
    socket.connect(at).await.unwrap();
    let mut reply = vec![0; 65_535];
    // As clients do: a packet may be lost where others fill the listener's buffer.
    for _ in 0..LONG.as_secs() {
        socket.send(bytes).await.unwrap();
        if let Ok(length) = timeout(Duration::from_secs(1), socket.recv(&mut reply)).await {
            reply.truncate(length.unwrap());
            return reply;
        }
    }
    panic!("no answer within {LONG:?}");
}

pub async fn ask(at: SocketAddr, message: &Message) -> Message {
    let reply = send(at, &message.to_vec().unwrap()).await;
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(reply.metadata.id, message.metadata.id);
    assert_eq!(reply.metadata.message_type, MessageType::Response);
    assert!(!reply.metadata.authentic_data);
    // A refusal is heard by TCP where there is no EDNS, as clients hear it.
    if reply.metadata.truncation && reply.edns.is_none() {
        let heard = ask_by_tcp(at, message).await;
        if heard.metadata.response_code == ResponseCode::Refused {
            return heard;
        }
    }
    reply
}

pub async fn ask_by_tcp(at: SocketAddr, message: &Message) -> Message {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let bytes = message.to_vec().unwrap();
    stream
        .write_u16(u16::try_from(bytes.len()).unwrap())
        .await
        .unwrap();
    stream.write_all(&bytes).await.unwrap();
    let length = timeout(LONG, stream.read_u16())
        .await
        .expect("an answer")
        .unwrap();
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await.unwrap();
    Message::from_vec(&bytes).unwrap()
}

/// Code and addresses of an answer.
pub async fn resolve(at: SocketAddr, name: &str) -> (ResponseCode, Vec<String>) {
    let reply = ask(at, &query(super::upstream::name(name), RecordType::A)).await;
    (reply.metadata.response_code, addresses(&reply))
}

pub fn addresses(reply: &Message) -> Vec<String> {
    let addresses = reply.answers.iter().filter_map(|it| it.data.ip_addr());
    addresses.map(|it| it.to_string()).collect()
}

/// Code and text of the extended error.
pub fn extended(reply: &Message) -> Option<(u16, String)> {
    match reply.edns.as_ref()?.option(EdnsCode::Unknown(15))? {
        EdnsOption::Unknown(_, data) => Some((
            u16::from_be_bytes([data[0], data[1]]),
            String::from_utf8(data[2..].to_vec()).unwrap(),
        )),
        _ => None,
    }
}
