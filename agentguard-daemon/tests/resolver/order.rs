//! What happens when policies change, agents end, openings fail, or an agent wants more than its share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agentguard::resolver::{Limits, NetPlace};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

use crate::client::{ask, asker, query, resolve, serve};
use crate::gate::Memory;
use crate::upstream::{Upstream, answer, name, zone};

const ZONE: &str = "api.example.com A 93.184.216.34
    api.example.com AAAA 2606:2800::1
    web.example.com A 93.184.216.35";

/// An upstream that answers when it is told to; it says when it was asked.
async fn held() -> (SocketAddr, Arc<Notify>, Arc<Notify>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let (asked, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (asked.clone(), go.clone());
    tokio::spawn(async move {
        let mut bytes = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut bytes).await {
            tell.notify_one();
            wait.notified().await;
            let query = hickory_proto::op::Message::from_vec(&bytes[..length]).unwrap();
            let reply = answer(&query, &zone(ZONE)).to_vec().unwrap();
            socket.send_to(&reply, from).await.unwrap();
        }
    });
    (address, asked, go)
}

#[tokio::test]
async fn a_policy_that_changes_meanwhile_decides() {
    let (address, asked, go) = held().await;
    let memory = Memory::permitting(&["api.example.com"]);
    let served = serve(memory.clone(), &[address], Limits::default());
    let answer = tokio::spawn(resolve(served.at, "api.example.com"));
    asked.notified().await;
    memory.permitted.lock().unwrap().clear();
    memory.generation.fetch_add(1, Ordering::Relaxed);
    go.notify_one();
    assert_eq!(answer.await.unwrap().0, ResponseCode::Refused);
    assert!(memory.opened().is_empty());
}

#[tokio::test]
async fn what_cannot_be_opened_is_not_given() {
    let upstream = Upstream::with_zone(ZONE).await;
    let memory = Memory::permitting(&["api.example.com"]);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    memory.refuses_to_open.store(true, Ordering::Relaxed);
    let (code, found) = resolve(served.at, "api.example.com").await;
    assert_eq!((code, found.len()), (ResponseCode::ServFail, 0));
    assert_eq!(memory.records()[0].cause, "opening-failed");
    memory.refuses_to_open.store(false, Ordering::Relaxed);
    assert_eq!(resolve(served.at, "api.example.com").await.1.len(), 1);
}

#[tokio::test]
async fn an_agent_that_ended_is_answered_no_more() {
    let (address, asked, go) = held().await;
    let memory = Memory::permitting(&["api.example.com"]);
    let served = serve(memory.clone(), &[address], Limits::default());
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let question = query(name("api.example.com"), RecordType::A)
        .to_vec()
        .unwrap();
    socket.send_to(&question, served.at).await.unwrap();
    asked.notified().await;
    served.resolver.stop(asker(1));
    go.notify_one();
    // Another agent's answer comes after: by then the first one would have been there.
    memory
        .permitted
        .lock()
        .unwrap()
        .insert(2, vec!["web.example.com".to_owned()]);
    let second = crate::client::serve_agent(&served.resolver, 2);
    go.notify_one();
    assert_eq!(resolve(second, "web.example.com").await.1.len(), 1);
    assert!(memory.opened().iter().all(|it| it.0 == 2));
    assert_eq!(served.resolver.places(asker(1)), []);
}

#[tokio::test]
async fn openings_are_judged_again_and_ports_are_kept() {
    let upstream = Upstream::with_zone(ZONE).await;
    let memory = Memory::permitting(&["api.example.com", "web.example.com"]);
    let served = serve(memory.clone(), &[upstream.address], Limits::default());
    resolve(served.at, "api.example.com").await;
    resolve(served.at, "web.example.com").await;
    memory
        .permitted
        .lock()
        .unwrap()
        .insert(1, vec!["web.example.com".to_owned()]);
    memory.generation.fetch_add(1, Ordering::Relaxed);
    memory.open.lock().unwrap().clear();
    served.resolver.judge_again(asker(1));
    let names: Vec<String> = memory.opened().into_iter().map(|it| it.1).collect();
    assert_eq!(names, ["web.example.com"]);
    assert_eq!(
        resolve(served.at, "api.example.com").await.0,
        ResponseCode::Refused
    );
    // Somebody who comes after us finds the port, and the agent finds him there.
    let port = served.at.port();
    drop(served);
    let again = loop {
        let resolver = agentguard::resolver::Resolver::new(
            memory.clone(),
            agentguard::resolver::Servers::These(vec![upstream.address]),
            Limits::default(),
        );
        let place = NetPlace::own().unwrap();
        if resolver.serve(asker(1), &place, Some(port)).unwrap() == port {
            break resolver;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(again.places(asker(1)).len(), 1);
    let six = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port));
    let reply = ask(six, &query(name("web.example.com"), RecordType::A)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
}

#[tokio::test]
async fn one_agent_has_its_share_and_no_more() {
    let (silent, address) = {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    };
    let memory = Memory::permitting(&["*.example.com"]);
    let limits = Limits {
        lookups: 3,
        connections: 2,
        ..Limits::default()
    };
    let served = serve(memory.clone(), &[address], limits);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for number in 0..3 {
        let question = query(name(&format!("n{number}.example.com")), RecordType::A);
        socket
            .send_to(&question.to_vec().unwrap(), served.at)
            .await
            .unwrap();
        let mut bytes = [0; 512];
        silent.recv(&mut bytes).await.unwrap();
    }
    let (code, _) = resolve(served.at, "n9.example.com").await;
    assert_eq!(code, ResponseCode::ServFail);
    assert_eq!(memory.records()[0].cause, "busy");
    assert_eq!(
        resolve(served.at, "evil.test").await.0,
        ResponseCode::Refused,
        "that waits for nobody"
    );

    // Connections: two may stay, the third is closed.
    let first = tokio::net::TcpStream::connect(served.at).await.unwrap();
    let second = tokio::net::TcpStream::connect(served.at).await.unwrap();
    let third = tokio::net::TcpStream::connect(served.at).await.unwrap();
    third.readable().await.unwrap();
    assert_eq!(third.try_read(&mut [0; 1]).unwrap_or(0), 0);
    drop((first, second));
}

#[tokio::test]
async fn a_connection_that_stands_still_is_closed() {
    let memory = Memory::permitting(&[]);
    let limits = Limits {
        idle: Duration::from_millis(50),
        ..Limits::default()
    };
    let served = serve(memory, &[], limits);
    let stream = tokio::net::TcpStream::connect(served.at).await.unwrap();
    stream.try_write(&[0]).unwrap();
    stream.readable().await.unwrap();
    assert_eq!(stream.try_read(&mut [0; 1]).unwrap_or(0), 0);
}
