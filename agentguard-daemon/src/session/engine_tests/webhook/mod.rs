//! A webhook over loopback: what counts grants or denies, and what does not leads to nothing but another question.

mod python;
mod receiver;

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use self::receiver::{Endless, Heard, Next, Receiver, acceptor, plain, signed, with};
use super::approvals::{ASKS, ask, numbers, waiting};
use super::*;
use crate::approval::webhook::{Direction, Secret, WebhookConfig};
use crate::approval::{Scope, WebhookState};
use crate::daemon::Config;

/// An engine with an agent, a secret, and a receiver.
struct Hall {
    bench: Bench,
    receiver: Receiver,
    secret: Secret,
    config: WebhookConfig,
}

impl Hall {
    async fn new() -> Self {
        let receiver = Receiver::start(None).await;
        let url = format!("http://127.0.0.1:{}/hook", receiver.port);
        Self::with(receiver, &url).await
    }

    async fn with(receiver: Receiver, url: &str) -> Self {
        let bench = Bench::new();
        bench.write("p", ASKS);
        bench.attach("a", "/one").await.unwrap();
        let path = bench.folder.path().join("secret");
        let secret = write_secret(&path, "0123456789abcdef0123456789abcdef\n");
        let config = config(url, &path);
        Self {
            bench,
            receiver,
            secret,
            config,
        }
    }

    fn start(&self) -> Arc<Webhook> {
        let pace = Pace {
            first_wait: Duration::from_millis(1),
            longest_wait: Duration::from_millis(4),
            spacing: Duration::from_millis(1),
        };
        self.bench.engine.ask_webhook(&self.config, pace)
    }

    /// The next question is answered as it has to be.
    fn says(&self, answer: Value) {
        let secret = self.secret.clone();
        self.receiver
            .answers(move |heard| signed(&secret, heard, answer));
    }

    fn detail(&self) -> String {
        let last = self.bench.records().pop().unwrap();
        assert_eq!(last.op, op::APPROVAL);
        last.detail.unwrap().into_owned()
    }
}

fn config(url: &str, secret: &Path) -> WebhookConfig {
    let text = format!(
        "approvals: {{ webhook: {{ url: '{url}', secret: '{}', poll: 1s, timeout: 1h }} }}",
        secret.display()
    );
    let config = Config::parse(Path::new("test.yaml"), &text).unwrap();
    let mut config = config.approvals.webhook.unwrap();
    config.poll.0 = Duration::from_millis(1);
    config
}

fn write_secret(path: &Path, text: &str) -> Secret {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    Secret::read(path).unwrap()
}

async fn until(webhook: &Webhook, what: impl FnMut(&WebhookState) -> bool) -> WebhookState {
    webhook.watch().wait_for(what).await.unwrap().clone()
}

fn grant(far: &str) -> Value {
    json!({"answer": "grant", "for": far, "by": "alice"})
}

#[tokio::test]
async fn an_act_that_begins_to_wait_is_asked_about_and_granted_once() {
    let mut hall = Hall::new().await;
    let webhook = hall.start();
    hall.says(grant("once"));
    ask(&hall.bench, 1, "/asked/x");
    until(&webhook, |state| state.granted == 1).await;
    let heard = hall.receiver.next().await;
    let (timestamp, nonce) = (heard.timestamp.as_str(), heard.nonce.as_str());
    let question = Direction::Question;
    assert!(
        hall.secret
            .verify(question, (timestamp, nonce), &heard.body, &heard.signature)
    );
    let it = &heard.json;
    assert_eq!((&it["nonce"], &it["number"]), (&json!(nonce), &json!(1)));
    assert_eq!((&it["agent"], &it["policy"]), (&json!("a"), &json!("p")));
    assert_eq!(
        (&it["asks_to"], &it["rule"]),
        (&json!("read /asked/x"), &json!("look"))
    );
    assert_eq!(heard.path, "/hook");
    // What the kernel has, what the log has, and what is listed.
    let (key, given) = hall.bench.kernel(|kernel| kernel.approved[0]);
    assert_eq!(&key.object[..key.len as usize], b"/asked/x");
    assert_eq!((given.most, given.until), (1, 0));
    assert_eq!(
        hall.detail(),
        "open: granted once by webhook 127.0.0.1 (alice)"
    );
    assert!(waiting(&hall.bench).is_empty());
    let shown = hall.bench.engine.approvals(None).unwrap();
    assert_eq!(shown.granted[0].by, "webhook 127.0.0.1 (alice)");
    let origin = format!("http://127.0.0.1:{}", hall.receiver.port);
    assert_eq!(shown.webhook.unwrap().to, origin);
    // A death doubles nothing and loses nothing.
    webhook.stop().await;
    let number = numbers(&hall.bench);
    hall.bench.die();
    hall.bench.restore().unwrap();
    assert_eq!(numbers(&hall.bench), number);
    let webhook = hall.start();
    ask(&hall.bench, 1, "/asked/y");
    let heard = hall.receiver.next().await;
    assert_eq!(heard.json["asks_to"], "read /asked/y");
    webhook.stop().await;
}

#[tokio::test]
async fn it_grants_for_a_time_and_for_the_session() {
    let hall = Hall::new().await;
    let webhook = hall.start();
    hall.says(grant("15m"));
    ask(&hall.bench, 1, "/asked/x");
    until(&webhook, |state| state.granted == 1).await;
    let given = hall.bench.kernel(|kernel| kernel.approved[0].1);
    assert!(given.most == 0 && given.until > 0);
    assert_eq!(
        hall.detail(),
        "open: granted for 900 s by webhook 127.0.0.1 (alice)"
    );
    // Longer than anybody may grant: nothing comes of it, and it is asked again.
    hall.says(grant("400d"));
    hall.says(json!({"answer": "grant", "for": "session"}));
    ask(&hall.bench, 1, "/asked/y");
    let state = until(&webhook, |state| state.granted == 2).await;
    assert_eq!(state.trouble, None, "it is over");
    let given = hall.bench.kernel(|kernel| kernel.approved[1].1);
    assert_eq!((given.most, given.until), (0, 0));
    assert_eq!(
        hall.detail(),
        "open: granted for the session by webhook 127.0.0.1"
    );
}

#[tokio::test]
async fn what_is_denied_is_not_asked_about_again() {
    let mut hall = Hall::new().await;
    let webhook = hall.start();
    hall.says(json!({"answer": "deny", "by": "bob\u{1b}[2J\n"}));
    ask(&hall.bench, 1, "/asked/x");
    until(&webhook, |state| state.denied == 1).await;
    let by = r"webhook 127.0.0.1 (bob\x1b[2J\x0a)";
    let shown = hall.bench.engine.approvals(None).unwrap();
    assert_eq!(shown.waiting[0].denied_by.as_deref(), Some(by));
    assert!(hall.detail().starts_with("open: denied by webhook"));
    assert!(numbers(&hall.bench).is_empty());
    hall.receiver.next().await;
    ask(&hall.bench, 1, "/asked/x");
    ask(&hall.bench, 1, "/asked/y");
    let heard = hall.receiver.next().await;
    assert_eq!(heard.json["asks_to"], "read /asked/y");
}

#[tokio::test]
async fn it_is_asked_until_somebody_has_decided() {
    let mut hall = Hall::new().await;
    let webhook = hall.start();
    hall.says(json!({"answer": "pending"}));
    hall.receiver.answers(|_| plain(202, ""));
    hall.says(grant("once"));
    ask(&hall.bench, 1, "/asked/x");
    let state = until(&webhook, |state| state.granted == 1).await;
    assert_eq!((state.pending, state.failed, state.invalid), (2, 0, 0));
    let (first, second) = (hall.receiver.next().await, hall.receiver.next().await);
    let third = hall.receiver.next().await;
    assert!(first.id() == second.id() && second.id() == third.id());
    assert!(first.nonce != second.nonce && second.nonce != third.nonce);
    let text = hall.bench.engine.metrics().unwrap().text().unwrap();
    for series in [
        "agentguard_webhook_questions_total{outcome=\"pending\"} 2",
        "agentguard_webhook_questions_total{outcome=\"granted\"} 1",
        "agentguard_webhook_questions_total{outcome=\"late\"} 0",
        "agentguard_approvals_waiting 0",
    ] {
        assert!(text.lines().any(|line| line == series), "{series}\n{text}");
    }
}

/// What a bad answer can be made of.
#[derive(Clone)]
struct Means {
    ours: Secret,
    other: Secret,
    /// An earlier question.
    old: Heard,
    port: u16,
}

type Bad = fn(&Means, &Heard) -> receiver::Answered;

const SIGNATURE: &str = "agentguard-signature";

fn with_status(means: &Means, heard: &Heard, status: u16) -> receiver::Answered {
    let mut answer = signed(&means.ours, heard, grant("once"));
    *answer.status_mut() = hyper::StatusCode::from_u16(status).unwrap();
    answer
}

/// A body of our own choice, signed as if it went this way.
fn signed_as(means: &Means, heard: &Heard, way: Direction, body: Vec<u8>) -> receiver::Answered {
    let ours = &means.ours;
    let signature = ours.sign(way, &heard.timestamp, &heard.nonce, &body);
    with(plain(200, body), SIGNATURE, &signature)
}

/// Answers that say yes and do not count.
const INVALID: &[(&str, Bad)] = &[
    ("signed with another secret", |it, heard| {
        signed(&it.other, heard, grant("once"))
    }),
    ("not signed", |_, heard| {
        plain(200, heard.says(grant("once")))
    }),
    ("signed twice", |it, heard| {
        with(signed(&it.ours, heard, grant("once")), SIGNATURE, "v1=00")
    }),
    ("an old answer, as it was", |it, _| {
        signed(&it.ours, &it.old, grant("once"))
    }),
    ("the old nonce, signed anew", |it, heard| {
        let body = it.old.says(grant("once"));
        signed_as(it, heard, Direction::Answer, body)
    }),
    ("the question itself", |_, heard| {
        let answer = plain(200, heard.body.clone());
        with(answer, SIGNATURE, &heard.signature)
    }),
    ("signed as a question", |it, heard| {
        let body = heard.says(grant("once"));
        signed_as(it, heard, Direction::Question, body)
    }),
    ("about another act", |it, heard| {
        let mut answer = grant("once");
        answer["id"] = json!("2-00");
        signed(&it.ours, heard, answer)
    }),
    ("how far is missing", |it, heard| {
        signed(&it.ours, heard, json!({"answer": "grant"}))
    }),
];

/// What is no answer at all, and says yes.
const FAILED: &[(&str, Bad)] = &[
    ("too long", |it, heard| {
        let mut answer = grant("once");
        answer["by"] = json!("x".repeat(17 << 10));
        signed(&it.ours, heard, answer)
    }),
    ("without an end", |_, _| {
        hyper::Response::new(http_body_util::BodyExt::boxed(Endless))
    }),
    ("elsewhere", |it, heard| {
        let elsewhere = format!("http://127.0.0.1:{}/elsewhere", it.port);
        with(with_status(it, heard, 307), "location", &elsewhere)
    }),
    ("an error that says yes", |it, heard| {
        with_status(it, heard, 500)
    }),
];

#[tokio::test]
async fn an_answer_that_does_not_count_grants_nothing_and_the_next_may() {
    let mut hall = Hall::new().await;
    let webhook = hall.start();
    hall.says(json!({"answer": "pending"}));
    ask(&hall.bench, 1, "/asked/x");
    let old = hall.receiver.next().await;
    webhook
        .watch()
        .wait_for(|state| state.pending > 0)
        .await
        .unwrap();
    let means = Means {
        ours: hall.secret.clone(),
        other: write_secret(&hall.bench.folder.path().join("other"), &"x".repeat(32)),
        old,
        port: hall.receiver.port,
    };
    let (mut invalid, mut failed) = (0, 0);
    let all = INVALID.iter().map(|it| (it, true));
    for ((what, bad), is_answer) in all.chain(FAILED.iter().map(|it| (it, false))) {
        let means = means.clone();
        hall.receiver.answers(move |heard| bad(&means, heard));
        if is_answer {
            invalid += 1;
        } else {
            failed += 1;
        }
        let state = until(&webhook, |it| it.invalid + it.failed == invalid + failed).await;
        assert_eq!(
            (state.invalid, state.failed),
            (invalid, failed),
            "{what}: {state:?}"
        );
        assert_eq!(state.granted, 0, "{what}");
        assert!(numbers(&hall.bench).is_empty(), "{what}");
        assert_eq!(waiting(&hall.bench), [1], "{what}");
    }
    hall.says(grant("once"));
    until(&webhook, |state| state.granted == 1).await;
    assert_eq!(numbers(&hall.bench).len(), 1);
    // Nobody was followed elsewhere.
    while let Ok(heard) = hall.receiver.heard.try_recv() {
        assert_eq!(heard.path, "/hook");
    }
}

#[tokio::test]
async fn a_receiver_that_was_down_is_asked_when_it_is_up() {
    let mut hall = Hall::new().await;
    let port = hall.receiver.port;
    let (secret, elsewhere) = (hall.secret.clone(), Receiver::start(None).await);
    drop(std::mem::replace(&mut hall.receiver, elsewhere));
    let webhook = hall.start();
    ask(&hall.bench, 1, "/asked/x");
    let state = until(&webhook, |state| {
        state.failed > 2 && state.trouble.is_some()
    })
    .await;
    assert_eq!(state.granted + state.invalid, 0);
    // An operator needs nobody for it.
    ask(&hall.bench, 1, "/asked/y");
    hall.bench
        .engine
        .approve(2, Scope::Once, "root")
        .await
        .unwrap();
    hall.receiver = Receiver::at(port, None).await;
    hall.receiver
        .answers(move |heard| signed(&secret, heard, grant("once")));
    let state = until(&webhook, |state| {
        state.granted == 1 && state.trouble.is_none()
    })
    .await;
    assert_eq!((state.invalid, numbers(&hall.bench).len()), (0, 2));
    assert_eq!(hall.receiver.next().await.json["asks_to"], "read /asked/x");
}

#[tokio::test]
async fn an_act_that_does_not_wait_any_more_is_not_answered() {
    for meanwhile in ["granted", "denied", "detached"] {
        let mut hall = Hall::new().await;
        let webhook = hall.start();
        let (now, when) = oneshot::channel();
        let secret = hall.secret.clone();
        let reply = Box::new(move |heard: &Heard| signed(&secret, heard, grant("session")));
        hall.receiver.then(Next::Held(when, reply));
        ask(&hall.bench, 1, "/asked/x");
        hall.receiver.next().await;
        let engine = &hall.bench.engine;
        match meanwhile {
            "granted" => {
                engine.approve(1, Scope::Once, "root").await.unwrap();
            }
            "denied" => {
                engine.refuse(1, "root").await.unwrap();
            }
            _ => {
                engine.detach("a").await.unwrap();
            }
        }
        now.send(()).unwrap();
        let state = until(&webhook, |state| state.late == 1).await;
        assert_eq!((state.granted, state.invalid), (0, 0), "{meanwhile}");
        // What an operator said is all there is.
        let given = hall.bench.kernel(|kernel| kernel.approved.clone());
        assert_eq!(
            given.len(),
            usize::from(meanwhile == "granted"),
            "{meanwhile}"
        );
        assert!(given.iter().all(|it| it.1.most == 1), "{meanwhile}");
    }
}

#[tokio::test]
async fn the_same_number_after_a_restart_is_another_act() {
    let mut hall = Hall::new().await;
    let webhook = hall.start();
    ask(&hall.bench, 1, "/asked/x");
    let before = hall.receiver.next().await;
    webhook.stop().await;
    hall.bench.die();
    // Numbers go on after a restart, unless somebody removes what says how far they were.
    let state = hall.bench.folder.path().join("state");
    std::fs::remove_file(state.join("approval-numbers")).unwrap();
    hall.bench.restore().unwrap();
    while hall.receiver.heard.try_recv().is_ok() {}
    // The receiver takes the one for the other.
    let (secret, id) = (hall.secret.clone(), before.id().to_owned());
    hall.receiver.answers(move |heard| {
        let mut answer = grant("once");
        answer["id"] = json!(id);
        signed(&secret, heard, answer)
    });
    let webhook = hall.start();
    ask(&hall.bench, 1, "/asked/y");
    let after = hall.receiver.next().await;
    assert_eq!(after.json["number"], before.json["number"]);
    assert_ne!(after.id(), before.id());
    until(&webhook, |state| state.invalid == 1).await;
    assert!(numbers(&hall.bench).is_empty());
}

#[tokio::test]
async fn silence_holds_up_nobody() {
    let mut hall = Hall::new().await;
    hall.config.timeout.0 = Duration::from_millis(50);
    let webhook = hall.start();
    for number in 0..6 {
        hall.receiver.then(Next::Silence);
        ask(&hall.bench, 1, &format!("/asked/{number}"));
    }
    hall.receiver.next().await;
    hall.bench
        .engine
        .approve(1, Scope::Once, "root")
        .await
        .unwrap();
    hall.bench.engine.refuse(2, "root").await.unwrap();
    assert_eq!(numbers(&hall.bench).len(), 1);
    let state = until(&webhook, |state| {
        state.failed > 0 && state.trouble.is_some()
    })
    .await;
    assert!(state.trouble.unwrap().contains("no answer within"));
    for _ in 0..4 {
        hall.says(grant("once"));
    }
    // Whoever answers at last is asked about everything that waits.
    until(&webhook, |state| state.granted >= 1).await;
    webhook.stop().await;
}

#[tokio::test]
async fn an_agent_that_asks_for_much_keeps_no_other_waiting() {
    let mut hall = Hall::new().await;
    hall.bench.attach("b", "/two").await.unwrap();
    for number in 0..100 {
        ask(&hall.bench, 1, &format!("/asked/{number}"));
    }
    let asked = crate::event::sample::Sample::new(
        agentguard_common::verdict::Operation::Open,
        agentguard_common::verdict::Verdict::Ask,
        agentguard_common::verdict::Reason::Rule,
        b"/asked/other",
    );
    let asked = asked.with(|it| {
        (it.agent, it.session, it.generation) = (2, 2, 2);
        it.access = agentguard_common::verdict::access::READ;
    });
    {
        let mut recorder = hall.bench.engine.recorder();
        recorder.record(&asked.bytes());
        recorder.settle();
    }
    let webhook = hall.start();
    let mut agents = Vec::new();
    for _ in 0..6 {
        let heard = hall.receiver.next().await;
        agents.push(heard.json["agent"].as_str().unwrap().to_owned());
    }
    assert!(agents.contains(&"b".to_owned()), "{agents:?}");
    webhook.stop().await;
}

#[tokio::test]
async fn over_tls_only_who_has_the_right_certificate_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, other) = (
        folder.path().join("ca.pem"),
        folder.path().join("other.pem"),
    );
    let (tls, _) = (acceptor(&ours), acceptor(&other));
    for (ca, name, good) in [
        (&ours, None, true),
        (&other, None, false),
        (&ours, Some("chat.example.com"), false),
    ] {
        let receiver = Receiver::start(Some(tls.clone())).await;
        let url = format!("https://localhost:{}/hook", receiver.port);
        let mut hall = Hall::with(receiver, &url).await;
        hall.config.tls.ca = Some(ca.clone());
        hall.config.tls.server_name = name.map(str::to_owned);
        let webhook = hall.start();
        hall.says(grant("once"));
        ask(&hall.bench, 1, "/asked/x");
        let state = until(&webhook, |it| it.granted + it.failed > 0).await;
        assert_eq!(state.granted == 1, good, "{state:?}");
        assert_eq!(hall.receiver.heard.try_recv().is_ok(), good);
        if good {
            assert_eq!(
                hall.detail(),
                "open: granted once by webhook localhost (alice)"
            );
        } else {
            assert!(numbers(&hall.bench).is_empty());
            let state = until(&webhook, |it| it.trouble.is_some()).await;
            assert!(state.trouble.unwrap().contains("certificate"));
        }
        webhook.stop().await;
    }
}

#[tokio::test]
async fn without_a_secret_that_is_secret_nothing_is_sent() {
    let mut hall = Hall::new().await;
    let mode = |hall: &Hall, mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&hall.config.secret, permissions).unwrap();
    };
    mode(&hall, 0o644);
    hall.says(grant("once"));
    let webhook = hall.start();
    ask(&hall.bench, 1, "/asked/x");
    until(&webhook, |it| it.failed > 1 && it.trouble.is_some()).await;
    assert!(hall.receiver.heard.try_recv().is_err());
    mode(&hall, 0o600);
    until(&webhook, |state| state.granted == 1).await;
}
