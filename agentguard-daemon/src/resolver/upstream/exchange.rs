//! One query to one server.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::resolver::name::same;

/// The longest answer by UDP that we say we take: it fits one packet of any network.
const PAYLOAD: u16 = 1232;

/// Asks by UDP, and by TCP where the answer does not fit or it is told to.
pub(super) async fn ask(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
    by_tcp: bool,
    within: Duration,
) -> io::Result<Message> {
    let work = async {
        if !by_tcp {
            let answer = by_datagram(server, &query(name, kind)).await?;
            if !answer.metadata.truncation {
                return Ok(answer);
            }
        }
        by_stream(server, &query(name, kind)).await
    };
    timeout(within, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// With a random number. Signatures are not asked for, because we could not give them on.
fn query(name: &Name, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD).set_version(0);
    message.set_edns(edns);
    message
}

/// Waits for the answer, and passes over everything that is none: a connected socket takes packets of the server
/// only, and of those only the one with our number and question counts.
async fn by_datagram(server: SocketAddr, query: &Message) -> io::Result<Message> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // The kernel chooses a port at random, a new one for each query.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket
        .send(&query.to_vec().map_err(io::Error::other)?)
        .await?;
    let mut bytes = vec![0; 4096];
    loop {
        let length = socket.recv(&mut bytes).await?;
        match Message::from_vec(&bytes[..length]) {
            Ok(answer) if answers(&answer, query) => return Ok(answer),
            _ => tracing::debug!("{server} sent what answers nothing that was asked"),
        }
    }
}

async fn by_stream(server: SocketAddr, query: &Message) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let bytes = query.to_vec().map_err(io::Error::other)?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(&bytes);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    match Message::from_vec(&bytes) {
        Ok(answer) if answers(&answer, query) && !answer.metadata.truncation => Ok(answer),
        Ok(_) => Err(io::Error::other("the answer is to another question")),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Whether it is an answer to exactly this query.
fn answers(answer: &Message, query: &Message) -> bool {
    let (one, other) = (&answer.metadata, &query.metadata);
    one.id == other.id
        && one.message_type == MessageType::Response
        && one.op_code == OpCode::Query
        && match (answer.queries.as_slice(), query.queries.as_slice()) {
            ([one], [other]) => {
                same(one.name(), other.name())
                    && one.query_type() == other.query_type()
                    && one.query_class() == other.query_class()
            }
            _ => false,
        }
}
