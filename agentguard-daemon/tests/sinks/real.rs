//! Real receivers: rsyslog over TLS, the decoder of OpenTelemetry's own Python library, and the journal's program.
//!
//! Each test says what is missing where it cannot be run.

use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use agentguard::export::Sinks;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bench::{Bench, once, until};

/// A port that is free now.
pub fn port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// A program, if it is there.
pub fn find(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/usr/local/bin", "/lib/systemd"]
        .map(|folder| Path::new(folder).join(name))
        .into_iter()
        .find(|path| path.exists())
}

pub fn skipped(why: &str) {
    eprintln!("skipped: {why}");
    eprintln!("0 real receivers were tried here, 1 skipped");
}

/// A program that ends with the test.
pub struct Service(Child);

impl Service {
    pub fn start(command: &mut Command) -> Self {
        let spawned = command.stdin(Stdio::null()).process_group(0).spawn();
        Self(spawned.expect("a program"))
    }

    /// As a service manager stops it.
    pub fn stop(&mut self) {
        let pid = Pid::from_raw(self.0.id().try_into().expect("a process"));
        let _ = kill(pid, Signal::SIGTERM);
        self.0.wait().expect("the program ended");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn rsyslog(bench: &Bench, program: &Path, port: u16) -> Service {
    let folder = bench.folder.path().display();
    let text = format!(
        r#"global(workDirectory="{folder}" maxMessageSize="256k" defaultNetstreamDriver="gtls"
  defaultNetstreamDriverCAFile="{folder}/ca.pem" defaultNetstreamDriverCertFile="{folder}/cert.pem"
  defaultNetstreamDriverKeyFile="{folder}/key.pem" parser.escapeControlCharactersOnReceive="off")
main_queue(queue.timeoutShutdown="600000")
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="anon")
template(name="whole" type="string" string="%structured-data%\t%msg%\n")
ruleset(name="ours") {{ action(type="omfile" file="{folder}/received" template="whole") }}
input(type="imtcp" address="127.0.0.1" port="{port}" ruleset="ours")
"#
    );
    let config = bench.path("rsyslog.conf");
    std::fs::write(&config, text).expect("written");
    let mut command = Command::new(program);
    command
        .arg("-n")
        .arg("-f")
        .arg(config)
        .arg("-i")
        .arg(bench.path("rsyslog.pid"));
    Service::start(&mut command)
}

/// The numbers that rsyslog has written, and whether each message is the line of the log.
fn received(bench: &Bench) -> Vec<u64> {
    let text = std::fs::read_to_string(bench.path("received")).unwrap_or_default();
    let mut numbers = Vec::new();
    for line in text.lines() {
        let (data, message) = line.split_once('\t').expect("two columns");
        let seq = data
            .split("seq=\"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        let seq: u64 = seq.expect("a number").parse().expect("a number");
        assert!(
            message
                .trim_start()
                .starts_with(&format!("{{\"seq\":{seq},")),
            "{line}"
        );
        assert!(message.ends_with("\"}"), "it is whole: {line}");
        numbers.push(seq);
    }
    numbers
}

#[tokio::test(flavor = "multi_thread")]
async fn rsyslog_gets_every_record_over_tls_through_restarts_of_both_sides() {
    let has_tls = Path::new("/usr/lib/x86_64-linux-gnu/rsyslog/lmnsd_gtls.so").exists();
    let Some(program) = find("rsyslogd").filter(|_| has_tls) else {
        return skipped("no rsyslog with TLS: `apt-get install rsyslog rsyslog-gnutls`");
    };
    let mut bench = Bench::new();
    let port = port();
    let config = format!(
        "  siem:\n    syslog:\n      to: tls://localhost:{port}\n      tls: {{ ca: {} }}\n",
        bench.path("ca.pem").display()
    );
    // In quiet moments: without anybody counting.
    let mut service = rsyslog(&bench, &program, port);
    let mut sinks = bench.start(&config);
    let start = |bench: &Bench| rsyslog(bench, &program, port);
    for _ in 0..3 {
        restart_in_quiet(
            (&mut bench, &config),
            (&mut service, &mut sinks),
            (start, received),
            [2000, 500],
        )
        .await;
    }
    let last = bench.last();
    until(&sinks, |state| state.position == last).await;
    let quiet = received(&bench).len() as u64 - once(&received(&bench)).len() as u64;
    // Under load: nothing is lost, and what comes again has the same number.
    for round in 0..6 {
        bench.write(4000);
        let seen = until(&sinks, |state| state.sent_to > last + 4000 * round).await;
        service.stop();
        service = rsyslog(&bench, &program, port);
        until(&sinks, |state| {
            state.retries > seen.retries || state.lag == 0
        })
        .await;
    }
    let last = bench.last();
    let state = until(&sinks, |state| state.position == last).await;
    sinks.stop().await;
    service.stop();
    let numbers = received(&bench);
    assert_eq!(once(&numbers), (1..=last).collect::<Vec<_>>());
    let repeated = numbers.len() as u64 - last;
    assert_eq!(quiet, 0);
    assert!(
        repeated <= state.repeated,
        "{repeated} came again, {state:?}"
    );
    eprintln!(
        "rsyslog: {last} records, each there; {repeated} came twice, in restarts under load ({} retries)",
        state.retries
    );
}

/// Restarts both sides while nothing is under way: each record is there exactly once. So many records are written before
/// the receiver stops, and while it is away.
pub async fn restart_in_quiet(
    (bench, config): (&mut Bench, &str),
    (service, sinks): (&mut Service, &mut Sinks),
    (start, numbers): (impl Fn(&Bench) -> Service, impl Fn(&Bench) -> Vec<u64>),
    [before, meanwhile]: [u64; 2],
) {
    bench.write(before);
    let last = bench.last();
    until(sinks, |state| state.position == last).await;
    service.stop();
    assert_eq!(numbers(bench), (1..=last).collect::<Vec<_>>());
    bench.write(meanwhile);
    *service = start(bench);
    // The sender in the middle of it.
    sinks.stop().await;
    *sinks = bench.start(config);
}

/// Each record up to the last was received, and of those that came again no more than four batches whose answers were
/// lost in restarts.
pub fn none_is_lost(whose: &str, numbers: &[u64], last: u64, retries: u64) {
    assert_eq!(once(numbers), (1..=last).collect::<Vec<_>>());
    let repeated = numbers.len() as u64 - last;
    assert!(repeated <= 4 * 512, "{repeated} of {last}");
    eprintln!(
        "{whose}: {last} records, each there; {repeated} came twice, in restarts under load ({retries} retries)"
    );
}

/// Where downloads are kept, as `cargo xtask` has them.
pub fn cache() -> PathBuf {
    if let Some(folder) = std::env::var_os("AGENTGUARD_CACHE") {
        return folder.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || std::env::home_dir().unwrap_or_default().join(".cache"),
        PathBuf::from,
    );
    cache.join("agentguard")
}

/// A Python that can decode OTLP.
pub fn python() -> Option<PathBuf> {
    let probe = "import opentelemetry.proto.collector.logs.v1.logs_service_pb2; import opentelemetry.proto.collector.metrics.v1.metrics_service_pb2";
    environment("otlp", &["opentelemetry-proto"], |python| {
        works(Command::new(python).args(["-c", probe])).then(|| python.to_owned())
    })
}

/// What `find` finds by the Python of an environment of its own, which is made where there is none that has it.
pub fn environment<T>(
    name: &str,
    packages: &[&str],
    find: impl Fn(&Path) -> Option<T>,
) -> Option<T> {
    let folder = cache().join(name);
    let python = folder.join("bin/python");
    find(&python).or_else(|| {
        let made = works(Command::new("python3").args(["-m", "venv"]).arg(&folder))
            && works(
                Command::new(&python)
                    .args(["-m", "pip", "install", "-q"])
                    .args(packages),
            );
        made.then(|| find(&python)).flatten()
    })
}

/// Whether a command ends well.
pub fn works(command: &mut Command) -> bool {
    command.output().is_ok_and(|it| it.status.success())
}

const COLLECTOR: &str = r#"
import http.server, json, os, signal, ssl, sys, threading
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs

folder, port = sys.argv[1], int(sys.argv[2])
out = open(folder + "/collected", "a")

class Collector(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        request = logs.ExportLogsServiceRequest()
        json_too = self.headers["content-type"] == "application/json"
        if json_too:
            json_format.Parse(body, request)
        else:
            request.ParseFromString(body)
        for resource in request.resource_logs:
            names = {it.key: it.value.string_value for it in resource.resource.attributes}
            assert names["service.name"] == "agentguard", names
            for scope in resource.scope_logs:
                for record in scope.log_records:
                    attributes = {it.key: it.value for it in record.attributes}
                    line = json.loads(record.body.string_value)
                    assert line["seq"] == attributes["agentguard.seq"].int_value
                    assert line["hash"] == attributes["log.record.uid"].string_value
                    assert record.event_name == "agentguard." + line["op"]
                    assert record.time_unix_nano > 10**18 and record.severity_number > 0
                    out.write("%d\n" % line["seq"])
        out.flush()
        os.fsync(out.fileno())
        answer = logs.ExportLogsServiceResponse()
        answer = json_format.MessageToJson(answer).encode() if json_too else answer.SerializeToString()
        self.send_response(200)
        self.send_header("content-type", self.headers["content-type"])
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *what):
        pass

class Server(http.server.ThreadingHTTPServer):
    # What was begun is finished.
    daemon_threads = False
    block_on_close = False

server = Server(("127.0.0.1", port), Collector)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(folder + "/cert.pem", folder + "/key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
busy = threading.Lock()
plain = Collector.do_POST
def one(self):
    with busy:
        plain(self)
Collector.do_POST = one
def stop(*_):
    # Not within a request.
    threading.Thread(target=lambda: (busy.acquire(), os._exit(0))).start()
signal.signal(signal.SIGTERM, stop)
server.serve_forever()
"#;

#[tokio::test(flavor = "multi_thread")]
async fn opentelemetrys_own_decoder_gets_every_record_through_restarts_of_both_sides() {
    let Some(python) = python() else {
        return skipped("no Python with `opentelemetry-proto`, and it could not be installed");
    };
    for encoding in ["protobuf", "json"] {
        let mut bench = Bench::new();
        let port = port();
        let config = format!(
            "  otel:\n    otlp:\n      endpoint: https://localhost:{port}/v1/logs\n      encoding: {encoding}\n      tls: {{ ca: {} }}\n",
            bench.path("ca.pem").display()
        );
        std::fs::write(bench.path("collector.py"), COLLECTOR).expect("written");
        let start = |bench: &Bench| {
            let mut command = Command::new(&python);
            command
                .arg(bench.path("collector.py"))
                .arg(bench.folder.path())
                .arg(port.to_string());
            Service::start(&mut command)
        };
        let mut service = start(&bench);
        let mut sinks = bench.start(&config);
        for round in 1..=4 {
            bench.write(2000);
            until(&sinks, |state| state.sent_to > 2000 * round - 1500).await;
            service.stop();
            service = start(&bench);
            sinks.stop().await;
            sinks = bench.start(&config);
        }
        let last = bench.last();
        let state = until(&sinks, |state| state.position == last).await;
        sinks.stop().await;
        service.stop();
        let text = std::fs::read_to_string(bench.path("collected")).expect("collected");
        let numbers: Vec<u64> = text
            .lines()
            .map(|line| line.parse().expect("a number"))
            .collect();
        none_is_lost(
            &format!("OTLP as {encoding}"),
            &numbers,
            last,
            state.retries,
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_has_every_record_with_its_fields() {
    let (Some(program), Some(reader)) = (find("systemd-journald"), find("journalctl")) else {
        return skipped("no systemd-journald and journalctl");
    };
    // A journal of one's own, in a namespace of mounts where its folders are empty.
    let mut bench = Bench::new();
    bench.write(400);
    let root = bench.path("journal");
    std::fs::create_dir(&root).expect("a folder");
    let script = format!(
        "mount -t tmpfs none /run && mount -t tmpfs none /var/log && mkdir -p /run/systemd/journal && \
         ({program} & echo $! > {root}/pid; \
         until test -S /run/systemd/journal/socket; do sleep 0.1; done; touch {root}/ready; \
         until test -e {root}/enough; do sleep 0.1; done; \
         until {reader} -D /run/log/journal -o json SYSLOG_IDENTIFIER=agentguard --all > {root}/out; \
         test $(wc -l < {root}/out) -ge $(cat {root}/enough); do sleep 0.1; done; \
         kill $(cat {root}/pid); touch {root}/done)",
        program = program.display(),
        reader = reader.display(),
        root = root.display(),
    );
    let mut service = Service::start(Command::new("unshare").args(["-m", "sh", "-c", &script]));
    loop {
        if root.join("ready").exists() {
            break;
        }
        if service.0.try_wait().expect("its state").is_some() {
            return skipped(
                "no journal of one's own can be started here (needs root and namespaces of mounts)",
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let socket = format!("/proc/{}/root/run/systemd/journal/socket", service.0.id());
    let sinks = bench.start(&format!("  here:\n    journald: {{ socket: {socket} }}\n"));
    let last = bench.last();
    until(&sinks, |state| state.position == last).await;
    sinks.stop().await;
    std::fs::write(root.join("enough.part"), last.to_string()).expect("written");
    std::fs::rename(root.join("enough.part"), root.join("enough")).expect("named");
    while !root.join("done").exists() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let text = std::fs::read_to_string(root.join("out")).expect("the journal");
    let mut numbers = Vec::new();
    for line in text.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let record = entry["AGENTGUARD_RECORD"].as_str().expect("the record");
        let seq: u64 = entry["AGENTGUARD_SEQ"]
            .as_str()
            .expect("a number")
            .parse()
            .expect("a number");
        assert!(record.starts_with(&format!("{{\"seq\":{seq},")) && record.ends_with("\"}"));
        assert_eq!(
            entry["MESSAGE_ID"],
            agentguard::export::journald::MESSAGE_ID
        );
        numbers.push(seq);
    }
    assert_eq!(numbers, (1..=last).collect::<Vec<_>>());
}
