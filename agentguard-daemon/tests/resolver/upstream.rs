//! A resolver for the resolver: it says what a script says, by UDP and TCP, on loopback.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

/// One query as it came: name in lower case without a dot at the end, type, whether by TCP.
pub type Asked = (String, RecordType, bool);

/// What is said to a query: messages, sent in order. By TCP only the first one.
pub type Script = dyn Fn(&Message, bool) -> Vec<Vec<u8>> + Send + Sync;

/// See the module.
pub struct Upstream {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Upstream {
    pub async fn start(
        script: impl Fn(&Message, bool) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::start_at(any, script).await
    }

    /// The same at an address that one of them had before.
    pub async fn start_at(
        wanted: SocketAddr,
        script: impl Fn(&Message, bool) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let script: Arc<Script> = Arc::new(script);
        // A port may be free for UDP only, and the one that had this before may still be closing.
        let (socket, listener) = loop {
            if let Ok(socket) = UdpSocket::bind(wanted).await
                && let Ok(listener) = TcpListener::bind(socket.local_addr().unwrap()).await
            {
                break (socket, listener);
            }
            tokio::task::yield_now().await;
        };
        let address = socket.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let datagrams = tokio::spawn(datagrams(socket, script.clone(), asked.clone()));
        let streams = tokio::spawn(streams(listener, script, asked.clone()));
        Self {
            address,
            asked,
            tasks: [datagrams, streams],
        }
    }

    /// Answers from lines `name type data`, as [`zone`] reads them.
    pub async fn with_zone(text: &str) -> Self {
        let zone = zone(text);
        Self::start(move |query, _| vec![answer(query, &zone).to_vec().unwrap()]).await
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// What it was asked, which it forgets.
    pub fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn note(query: &Message, tcp: bool, asked: &Mutex<Vec<Asked>>) {
    let question = &query.queries[0];
    let name = question.name().to_lowercase().to_ascii();
    let name = name.trim_end_matches('.').to_owned();
    asked
        .lock()
        .unwrap()
        .push((name, question.query_type(), tcp));
}

async fn datagrams(socket: UdpSocket, script: Arc<Script>, asked: Arc<Mutex<Vec<Asked>>>) {
    let mut bytes = [0; 4096];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut bytes).await else {
            continue;
        };
        let Ok(query) = Message::from_vec(&bytes[..length]) else {
            continue;
        };
        note(&query, false, &asked);
        for reply in script(&query, false) {
            let _ = socket.send_to(&reply, from).await;
        }
    }
}

async fn streams(listener: TcpListener, script: Arc<Script>, asked: Arc<Mutex<Vec<Asked>>>) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            continue;
        };
        let (script, asked) = (script.clone(), asked.clone());
        tokio::spawn(async move {
            while let Ok(length) = stream.read_u16().await {
                let mut bytes = vec![0; length.into()];
                if stream.read_exact(&mut bytes).await.is_err() {
                    return;
                }
                let Ok(query) = Message::from_vec(&bytes) else {
                    return;
                };
                note(&query, true, &asked);
                let Some(reply) = script(&query, true).into_iter().next() else {
                    return;
                };
                let length = u16::try_from(reply.len()).unwrap();
                let _ = stream.write_all(&length.to_be_bytes()).await;
                let _ = stream.write_all(&reply).await;
            }
        });
    }
}

pub fn name(text: &str) -> Name {
    Name::from_ascii(format!("{text}.")).unwrap()
}

/// Records from lines `name type data [ttl]`. The usual TTL is 300.
pub fn zone(text: &str) -> Vec<Record> {
    let mut zone = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [owner, kind, data, ttl @ ..] = words.as_slice() else {
            continue;
        };
        let data = match *kind {
            "A" => RData::A(A(data.parse().unwrap())),
            "AAAA" => RData::AAAA(AAAA(data.parse().unwrap())),
            "CNAME" => RData::CNAME(CNAME(name(data))),
            "TXT" => RData::TXT(TXT::new(vec![(*data).to_owned()])),
            "MX" => RData::MX(MX::new(10, name(data))),
            other => panic!("{other}"),
        };
        let ttl = ttl.first().map_or(300, |ttl| ttl.parse().unwrap());
        zone.push(Record::from_rdata(name(owner), ttl, data));
    }
    zone
}

/// A reply to a query with nothing in it.
pub fn empty(query: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    let metadata: &mut Metadata = &mut reply.metadata;
    metadata.response_code = code;
    metadata.recursion_desired = true;
    metadata.recursion_available = true;
    reply.queries.clone_from(&query.queries);
    reply
}

/// What a full resolver would answer from these records.
pub fn answer(query: &Message, zone: &[Record]) -> Message {
    let question = &query.queries[0];
    let (mut at, kind) = (question.name().to_lowercase(), question.query_type());
    let mut reply = empty(query, ResponseCode::NoError);
    for _ in 0..20 {
        let of_name: Vec<&Record> = zone.iter().filter(|it| it.name == at).collect();
        let found: Vec<Record> = of_name
            .iter()
            .filter(|it| it.record_type() == kind)
            .map(|it| (*it).clone())
            .collect();
        if !found.is_empty() {
            reply.answers.extend(found);
            return reply;
        }
        let alias = of_name.iter().find_map(|it| match &it.data {
            RData::CNAME(target) => Some(((*it).clone(), target.0.clone())),
            _ => None,
        });
        let Some((record, target)) = alias else {
            if of_name.is_empty() {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            let soa = SOA::new(name("ns.test"), name("root.test"), 1, 60, 60, 60, 60);
            reply
                .authorities
                .push(Record::from_rdata(name("test"), 60, RData::SOA(soa)));
            return reply;
        };
        reply.answers.push(record);
        at = target;
    }
    reply
}
