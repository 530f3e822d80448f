//! The receiver that the manual shows, as it is printed there.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use super::*;

// What is read from the example blocks this thread, and no other.
#[tokio::test(flavor = "multi_thread")]
async fn the_receiver_in_the_manual_works() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: there is no python3 to run the example of docs/approvals.md");
        return;
    }
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/approvals.md");
    let manual = std::fs::read_to_string(manual).unwrap();
    let (_, code) = manual.split_once("```python\n").unwrap();
    let (code, _) = code.split_once("```").unwrap();
    let hall = Hall::new().await;
    let path = hall.bench.folder.path().join("receiver.py");
    std::fs::write(&path, code).unwrap();
    let mut python = Command::new("python3")
        .arg(&path)
        .args(["0", hall.config.secret.to_str().unwrap(), "alice"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(python.stdout.take().unwrap()).lines();
    let mut answers = python.stdin.take().unwrap();
    // `listening at 127.0.0.1:PORT`
    let first = said.next().unwrap().unwrap();
    let port: u16 = first.rsplit(':').next().unwrap().parse().unwrap();
    let mut hall = hall;
    hall.config = config(&format!("http://127.0.0.1:{port}/"), &hall.config.secret);
    let webhook = hall.start();
    let mut asked = async |path: &str, far: &str| {
        ask(&hall.bench, 1, path);
        let line = said.next().unwrap().unwrap();
        assert!(line.ends_with(&format!("asks to read {path}")), "{line}");
        let id = line.split(' ').next().unwrap().to_owned();
        // It has been told, and nobody has decided.
        until(&webhook, |state| state.pending > 0).await;
        writeln!(answers, "{id} {far}").unwrap();
    };
    asked("/asked/x", "once").await;
    until(&webhook, |state| state.granted == 1).await;
    assert_eq!(
        hall.detail(),
        "open: granted once by webhook 127.0.0.1 (alice)"
    );
    asked("/asked/y", "15m").await;
    until(&webhook, |state| state.granted == 2).await;
    assert_eq!(
        hall.detail(),
        "open: granted for 900 s by webhook 127.0.0.1 (alice)"
    );
    asked("/asked/z", "deny").await;
    let state = until(&webhook, |state| state.denied == 1).await;
    assert_eq!((state.invalid, state.failed), (0, 0));
    // A question that is not ours is not answered, and the question is not shown.
    write_secret(&hall.config.secret, &"x".repeat(40));
    ask(&hall.bench, 1, "/asked/other");
    let state = until(&webhook, |state| {
        state.failed > 0 && state.trouble.is_some()
    })
    .await;
    assert!(state.trouble.unwrap().contains("403"));
    webhook.stop().await;
    python.kill().unwrap();
    python.wait().unwrap();
    assert!(said.next().is_none());
}
