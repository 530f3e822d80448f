//! How many cached queries the resolver answers on one core: one thread serves, the others ask.
//!
//! `cargo run --release --example resolver_load -- [SECONDS] [LOG]`
//!
//! Given a file, each query is recorded there as the daemon records it; without one, policy and log cost nothing.
//! It counts replies by the clock, and by the time that the serving thread was on a core: the latter is the figure
//! to compare on a machine that does something else meanwhile.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on ends")]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agentguard::audit::{Log, Record, Recorder};
use agentguard::resolver::{AddressVerdict, Asker, Gate, Judged, Limits, Opening, Resolution};
use hickory_proto::rr::RecordType;

#[path = "../tests/resolver/client.rs"]
#[expect(dead_code, reason = "of the tests")]
mod client;
#[path = "../tests/resolver/gate.rs"]
#[expect(dead_code, reason = "of the tests")]
mod gate;
#[path = "../tests/resolver/upstream.rs"]
#[expect(dead_code, reason = "of the tests")]
mod upstream;

/// Names that are asked for in turn.
const NAMES: usize = 100;
/// Threads that ask, each with so many queries on their way.
const CLIENTS: usize = 2;
const WINDOW: usize = 32;

/// The policy of the tests, with the log of the daemon.
struct Logged {
    memory: Arc<gate::Memory>,
    recorder: Option<Mutex<Recorder>>,
}

impl Gate for Logged {
    fn judge(&self, asker: Asker, name: &str) -> Judged {
        self.memory.judge(asker, name)
    }

    fn address(
        &self,
        asker: Asker,
        name: &str,
        judged: &Judged,
        address: IpAddr,
    ) -> AddressVerdict {
        self.memory.address(asker, name, judged, address)
    }

    fn open(&self, asker: Asker, opening: &Opening<'_>) -> Result<(), String> {
        self.memory.open(asker, opening)
    }

    fn record(&self, asker: Asker, resolution: &Resolution<'_>) {
        let Some(recorder) = &self.recorder else {
            return;
        };
        let mut recorder = recorder.lock().unwrap();
        recorder.note(Record {
            session: Some(asker.session),
            target: Some(resolution.name.into()),
            verdict: Some(resolution.verdict.name().into()),
            cause: Some(resolution.cause.into()),
            protocol: Some(resolution.transport.into()),
            detail: Some(resolution.answers.join(" ").into()),
            ..Record::new("resolve")
        });
        recorder.flush();
    }
}

/// Nanoseconds that a thread of ours was on a core.
fn on_core(thread: &str) -> u64 {
    let path = format!("/proc/self/task/{thread}/schedstat");
    let text = std::fs::read_to_string(path).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

fn ask_on_and_on(at: SocketAddr, number: usize, stop: &AtomicBool, count: &AtomicU64) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(at).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let queries: Vec<Vec<u8>> = (0..NAMES)
        .map(|name| {
            let name = upstream::name(&format!("n{name}.example.com"));
            client::query(name, RecordType::A).to_vec().unwrap()
        })
        .collect();
    let mut next = queries.iter().cycle().skip(number * NAMES / CLIENTS);
    let mut bytes = [0; 512];
    let mut send = || socket.send(next.next().unwrap()).unwrap();
    for _ in 0..WINDOW {
        send();
    }
    while !stop.load(Ordering::Relaxed) {
        match socket.recv(&mut bytes) {
            // The code of an answer, and that there is one.
            Ok(length) if length > 12 && bytes[3].trailing_zeros() >= 4 && bytes[7] == 1 => {
                count.fetch_add(1, Ordering::Relaxed);
                send();
            }
            Ok(_) => panic!("not the answer"),
            // Lost on the way: the window is filled again.
            Err(_) => (0..WINDOW).for_each(|_| {
                send();
            }),
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().map_or(10, |text| text.parse().unwrap());
    let log = arguments.next();
    let memory = gate::Memory::permitting(&["*.example.com"]);
    let recorder =
        log.map(|path| Mutex::new(Recorder::new(Log::open(Path::new(&path)).unwrap(), [0, 0])));
    let gate = Arc::new(Logged {
        memory: memory.clone(),
        recorder,
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (served, thread, _upstream) = runtime.block_on(async {
        let lines: Vec<String> = (0..NAMES)
            .map(|name| format!("n{name}.example.com A 93.184.216.{name}"))
            .collect();
        let upstream = upstream::Upstream::with_zone(&lines.join("\n")).await;
        let limits = Limits {
            rate: u32::MAX,
            ..Limits::default()
        };
        let served = client::serve(gate, &[upstream.address], limits);
        for name in 0..NAMES {
            client::resolve(served.at, &format!("n{name}.example.com")).await;
        }
        let own = tokio::spawn(async { nix::unistd::gettid().to_string() });
        (served, own.await.unwrap(), upstream)
    });
    memory.forgets.store(true, Ordering::Relaxed);
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (stop, count, at) = (&stop, &count, served.at);
            scope.spawn(move || ask_on_and_on(at, number, stop, count));
        }
        std::thread::sleep(Duration::from_secs(1));
        let (start, core, before) = (
            Instant::now(),
            on_core(&thread),
            count.load(Ordering::Relaxed),
        );
        std::thread::sleep(Duration::from_secs(seconds));
        let answered = count.load(Ordering::Relaxed) - before;
        let (clock, core) = (start.elapsed(), on_core(&thread) - core);
        let a_second =
            |nanoseconds: u128| u128::from(answered) * 1_000_000_000 / nanoseconds.max(1);
        println!(
            "{answered} answers in {clock:.1?}: {} a second by the clock, {} a second of one core",
            a_second(clock.as_nanos()),
            a_second(core.into())
        );
        stop.store(true, Ordering::Relaxed);
    });
}
