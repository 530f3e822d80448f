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
    sinks.stop().await;
    assert_eq!(bench.engine.sinks()[0].doing.name(), "stopped");
    server.abort();
}
