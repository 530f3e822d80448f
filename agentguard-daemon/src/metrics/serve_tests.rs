//! Who is served over TCP, by real connections.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// Knows one socket, and says of it what it is told.
#[derive(Default)]
struct Book {
    governed: AtomicBool,
}

impl Source for Book {
    fn may_read(&self, other: OtherEnd) -> bool {
        let link = format!("socket:[{}]", other.inode);
        let own = std::fs::read_dir("/proc/self/fd").unwrap();
        let is_ours = own
            .flatten()
            .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == &*link));
        is_ours && !self.governed.load(Ordering::Relaxed)
    }

    fn scrape(&self) -> Result<Scrape, String> {
        Ok(Scrape::default())
    }
}

async fn listener(book: &Arc<Book>) -> Option<Listener> {
    match Listener::start(([127, 0, 0, 1], 0).into(), book.clone()).await {
        Err(MetricsError::Callers(error)) => {
            eprintln!("skipped: {error}");
            None
        }
        started => Some(started.unwrap()),
    }
}

async fn ask(at: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[test]
fn only_loopback_is_served() {
    for wrong in ["0.0.0.0:9477", "192.0.2.1:9477", "[::1]:9477", "[::]:9477"] {
        let error = checked(wrong.parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("127.0.0.1:PORT"), "{error}");
    }
    checked("127.0.0.1:9477".parse().unwrap()).unwrap();
    checked("127.8.0.1:1".parse().unwrap()).unwrap();
}

#[tokio::test]
async fn a_caller_is_judged_for_each_request() {
    let book = Arc::new(Book::default());
    let Some(listener) = listener(&book).await else {
        return;
    };
    let at = listener.address();
    let request = "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:9477\r\n\r\n";
    let text = ask(at, request).await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(text.contains("application/openmetrics-text"), "{text}");
    assert!(text.contains("connection: close"), "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    book.governed.store(true, Ordering::Relaxed);
    let text = ask(at, request).await;
    assert!(text.starts_with("HTTP/1.1 403"), "{text}");
    assert!(!text.contains("EOF"), "{text}");
}

#[tokio::test]
async fn other_requests_are_refused() {
    let book = Arc::new(Book::default());
    let Some(listener) = listener(&book).await else {
        return;
    };
    for (line, host, status) in [
        ("GET /metrics", "localhost", 200),
        ("GET /metrics", "evil.example:9477", 403),
        ("GET /metrics", "127.0.0.1.evil.example", 403),
        ("GET /", "127.0.0.1", 404),
        ("POST /metrics", "127.0.0.1", 404),
        ("GET /v1/agents", "127.0.0.1", 404),
    ] {
        let request = format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let text = ask(listener.address(), &request).await;
        assert!(
            text.starts_with(&format!("HTTP/1.1 {status}")),
            "{line} {host}: {text}"
        );
    }
}

#[tokio::test]
async fn callers_that_say_nothing_keep_nobody_waiting_for_ever() {
    let book = Arc::new(Book::default());
    let Some(listener) = listener(&book).await else {
        return;
    };
    // One less than there is room for.
    let mut silent = Vec::new();
    for _ in 1..MOST {
        silent.push(TcpStream::connect(listener.address()).await.unwrap());
    }
    let request = "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    let text = ask(listener.address(), request).await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_said() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = taken.local_addr().unwrap();
    let error = Listener::start(at, Arc::new(Book::default()))
        .await
        .unwrap_err();
    assert!(error.to_string().contains(&at.to_string()), "{error}");
}
