//! What an engine records goes to sinks, and the daemon's socket says how far they are.

use hyper::Method;

use super::*;
use crate::api::Client;
use crate::daemon::Config;
use crate::export::{Place, SinkState, Sinks};

#[tokio::test(flavor = "multi_thread")]
async fn sinks_send_what_is_recorded_and_can_be_asked_about() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: asking the daemon needs root");
        return;
    }
    let bench = Bench::new();
    let root = bench.folder.path();
    let receiver = tokio::net::UnixDatagram::bind(root.join("receiver")).unwrap();
    let text = format!(
        "sinks: {{ here: {{ syslog: {{ to: 'unix://{}' }} }} }}",
        root.join("receiver").display()
    );
    let config = Config::parse(Path::new("test.yaml"), &text).unwrap();
    let place = Place::new(root.join("audit.jsonl"), root.join("state"));
    let sinks = bench.engine.send_to(Sinks::start(&config.sinks, &place));
    let listener = tokio::net::UnixListener::bind(root.join("control.sock")).unwrap();
    let server = tokio::spawn(crate::api::serve(listener, bench.engine.clone()));

    bench.attach("a", "/one").await.unwrap();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let size = receiver.recv(&mut buffer).await.unwrap();
        if String::from_utf8_lossy(&buffer[..size]).contains("\"op\":\"agent-attach\"") {
            break;
        }
    }
    let last = bench.records().last().unwrap().seq;
    let mut client = Client::connect(&root.join("control.sock")).await.unwrap();
    let state = loop {
        let states: Vec<SinkState> = client.ask(Method::GET, "/sinks").await.unwrap();
        if states[0].position == last {
            break states[0].clone();
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    assert_eq!(
        (&*state.name, &*state.kind, state.lag),
        ("here", "syslog", 0)
    );
    let metrics = bench.engine.metrics().unwrap().text().unwrap();
    for line in [
        "agentguard_sink_waiting_records{sink=\"here\"} 0\n",
        "agentguard_sink_in_trouble{sink=\"here\"} 0\n",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    sinks.stop().await;
    assert_eq!(bench.engine.sinks()[0].doing.name(), "stopped");
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_out_a_record_is_recorded_and_may_do_it_for_that_one_only() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: asking the daemon needs root");
        return;
    }
    let bench = Bench::new();
    let root = bench.folder.path();
    // Takes nothing: what is wrong is always what it was sent.
    let receiver = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = receiver.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = receiver.accept().await.unwrap();
            tokio::spawn(async move {
                use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                let mut buffer = vec![0; 1 << 16];
                let _ = stream.read(&mut buffer).await;
                let answer =
                    "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    let text =
        format!("sinks: {{ otel: {{ otlp: {{ endpoint: 'http://127.0.0.1:{port}/v1/logs' }} }} }}");
    let config = Config::parse(Path::new("test.yaml"), &text).unwrap();
    let place = Place {
        first_wait: std::time::Duration::from_millis(10),
        ..Place::new(root.join("audit.jsonl"), root.join("state"))
    };
    bench.attach("a", "/one").await.unwrap();
    let sinks = bench.engine.send_to(Sinks::start(&config.sinks, &place));
    let listener = tokio::net::UnixListener::bind(root.join("control.sock")).unwrap();
    let server = tokio::spawn(crate::api::serve(listener, bench.engine.clone()));
    let mut client = Client::connect(&root.join("control.sock")).await.unwrap();
    let first = loop {
        if let Some(first) = sinks.states()[0].refuses {
            break first;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    let metrics = || bench.engine.metrics().unwrap().text().unwrap();
    for line in [
        "agentguard_sink_in_trouble{sink=\"otel\"} 1\n",
        "agentguard_sink_undelivered_records_total{sink=\"otel\",cause=\"skipped\"} 0\n",
    ] {
        assert!(metrics().contains(line), "{line}: {}", metrics());
    }
    let order = |record| crate::api::wire::SkipRequest { record };
    let (this, next) = (order(first), order(first + 1));
    let mut skip = async |sink: &str, record| {
        let path = format!("/sinks/{sink}/skip");
        let asked = client.ask_with::<SinkState>(Method::POST, &path, record);
        asked.await.map_err(|error| error.to_string())
    };
    let other = skip("otel", &next).await.unwrap_err();
    assert!(other.contains("is not the one"), "{other}");
    let unknown = skip("x", &this).await.unwrap_err();
    assert!(unknown.contains("no sink `x`"), "{unknown}");
    assert!(bench.ops().iter().all(|it| it != op::SINK));
    // It may be within a try just now.
    let state = loop {
        if let Ok(state) = skip("otel", &this).await {
            break state;
        }
    };
    assert_eq!((state.position, state.skipped), (first, 1));
    let line = "agentguard_sink_undelivered_records_total{sink=\"otel\",cause=\"skipped\"} 1\n";
    assert!(metrics().contains(line), "{line}: {}", metrics());
    let records = bench.records();
    let said = records.iter().find(|it| it.op == op::SINK).unwrap();
    let detail = said.detail.as_deref().unwrap();
    assert!(
        detail.starts_with(&format!("record {first} is left out by "))
            && detail.contains("400 Bad Request"),
        "{detail}"
    );
    assert_eq!(said.target.as_deref(), Some("otel"));
    sinks.stop().await;
    server.abort();
}
