//! Lookups of our own against files and a server of the test.

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::{A, AAAA};

use super::*;

/// A server that knows one name by both kinds of addresses, one by its IPv4 address alone, and says of `broken.test`
/// that it cannot.
async fn server() -> SocketAddr {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut bytes = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut bytes).await {
            let mut message = Message::from_vec(&bytes[..length]).unwrap();
            let query = message.queries[0].clone();
            let name = query.name().clone();
            message.metadata.message_type = MessageType::Response;
            let mut put = |data| {
                message.add_answer(Record::from_rdata(name.clone(), 60, data));
            };
            match (name.to_string().as_str(), query.query_type()) {
                ("both.test." | "four.inner.test.", RecordType::A) => {
                    put(RData::A(A::new(127, 0, 0, 9)));
                }
                ("both.test.", RecordType::AAAA) => {
                    put(RData::AAAA(AAAA(Ipv6Addr::LOCALHOST)));
                }
                ("four.inner.test.", _) => {}
                ("broken.test.", _) => message.metadata.response_code = ResponseCode::ServFail,
                _ => message.metadata.response_code = ResponseCode::NXDomain,
            }
            let _ = socket.send_to(&message.to_vec().unwrap(), from).await;
        }
    });
    address
}

async fn host(folder: &Path) -> Host {
    let (hosts, conf) = (folder.join("hosts"), folder.join("resolv.conf"));
    fs::write(
        &hosts,
        "127.0.0.7 Named other # both.test\nbroken\n::1 named\n",
    )
    .unwrap();
    fs::write(&conf, "search outer.test inner.test\noptions ndots:2\n").unwrap();
    Host {
        hosts,
        conf,
        upstreams: Upstreams::new(Servers::These(vec![server().await])),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_host_is_found_by_address_file_and_server() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path()).await;
    let find = async |name: &str| host.addresses(name).await.unwrap();
    assert_eq!(find("192.0.2.1").await, [ip("192.0.2.1")]);
    assert_eq!(find("[2001:db8::1]").await, [ip("2001:db8::1")]);
    assert_eq!(find("LOCALHOST").await[0], ip("127.0.0.1"));
    let mut named = find("named").await;
    named.sort();
    assert_eq!(named, [ip("127.0.0.7"), ip("::1")]);
    let mut both = find("both.test").await;
    both.sort();
    assert_eq!(both, [ip("127.0.0.9"), ip("::1")]);
    // By a domain of the file, of the one kind that there is.
    assert_eq!(find("four").await, [ip("127.0.0.9")]);
    assert_eq!(find("four.inner.test.").await, [ip("127.0.0.9")]);
}

#[tokio::test]
async fn what_is_not_found_is_said_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut host = host(folder.path()).await;
    for (name, why) in [
        ("nobody.test.", "no such host"),
        ("broken.test.", "the resolvers said"),
        ("a b", "`a b`"),
    ] {
        let error = host.addresses(name).await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    host.upstreams = Upstreams::new(Servers::These(Vec::new()));
    let error = host.addresses("both.test").await.unwrap_err().to_string();
    assert!(error.contains("/etc/resolv.conf"), "{error}");
}

#[test]
fn unfinished_names_are_tried_in_the_domains_of_the_file() {
    let conf =
        "domain ignored.test\nnameserver 192.0.2.1\nsearch a.test. b.test\noptions edns0 ndots:2\n";
    assert_eq!(candidates("x", conf), ["x.a.test", "x.b.test", "x"]);
    assert_eq!(candidates("x.y", conf), ["x.y.a.test", "x.y.b.test", "x.y"]);
    assert_eq!(candidates("x.y.z", conf)[0], "x.y.z");
    assert_eq!(candidates("x.", conf), ["x"]);
    assert_eq!(candidates("x.y", ""), ["x.y"]);
}
