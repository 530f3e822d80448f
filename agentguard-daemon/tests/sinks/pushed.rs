//! Metrics that are pushed to the decoder of OpenTelemetry's own Python library: what arrives is what is scraped at the
//! same moment.

use std::collections::BTreeMap;
use std::process::Command;

use agentguard::metrics::{Kind, list};

use crate::bench::Bench;
use crate::push::{Push, config};
use crate::real::{Service, port, python, skipped};

/// The series of a text, by name and labels.
pub fn series(text: &str) -> Values {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let split = lines.map(|line| line.rsplit_once(' ').expect("a value"));
    let number = |value: &str| value.parse().expect("a number");
    split
        .map(|(name, value)| (name.to_owned(), number(value)))
        .collect()
}

const COLLECTOR: &str = r#"
import http.server, json, os, ssl, sys
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service
from opentelemetry.proto.metrics.v1 import metrics_pb2 as proto

folder, port = sys.argv[1], int(sys.argv[2])
out = open(folder + "/pushed", "a")

def labels(point, *more):
    pairs = ['%s="%s"' % (it.key, it.value.string_value) for it in point.attributes] + list(more)
    return "{%s}" % ",".join(pairs) if pairs else ""

def series(metric):
    kind = metric.WhichOneof("data")
    data = getattr(metric, kind)
    for point in data.data_points:
        assert point.time_unix_nano > 10**18
        if kind != "gauge":
            assert 10**18 < point.start_time_unix_nano <= point.time_unix_nano
            assert data.aggregation_temporality == proto.AGGREGATION_TEMPORALITY_CUMULATIVE
        if kind == "histogram":
            assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
            below = 0
            for bound, count in zip(list(point.explicit_bounds) + ["+Inf"], point.bucket_counts):
                below += count
                yield "%s_bucket%s" % (metric.name, labels(point, 'le="%s"' % bound)), below
            yield metric.name + "_count", point.count
            yield metric.name + "_sum", point.sum
        else:
            yield metric.name + labels(point), getattr(point, point.WhichOneof("value"))

class Collector(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        assert self.path == "/v1/metrics", self.path
        body = self.rfile.read(int(self.headers["content-length"]))
        request = service.ExportMetricsServiceRequest()
        json_too = self.headers["content-type"] == "application/json"
        if json_too:
            json_format.Parse(body, request)
        else:
            request.ParseFromString(body)
        all, kinds = {}, {}
        for resource in request.resource_metrics:
            names = {it.key: it.value.string_value for it in resource.resource.attributes}
            assert names["service.name"] == "agentguard" and names["host.name"], names
            for scope in resource.scope_metrics:
                assert scope.scope.name == "agentguard.metrics"
                for metric in scope.metrics:
                    kind = metric.WhichOneof("data")
                    if kind == "sum" and not metric.sum.is_monotonic:
                        kind = "info"
                    kinds[metric.name] = [kind, metric.unit, metric.description]
                    all.update(series(metric))
        out.write(json.dumps([all, kinds]) + "\n")
        out.flush()
        answer = service.ExportMetricsServiceResponse()
        answer = json_format.MessageToJson(answer).encode() if json_too else answer.SerializeToString()
        self.send_response(200)
        self.send_header("content-type", self.headers["content-type"])
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *what):
        pass

class Server(http.server.ThreadingHTTPServer):
    # Connections that end are what is tried here; what is wrong with a request is shown.
    def handle_error(self, *where):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(*where)

server = Server(("127.0.0.1", port), Collector)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(folder + "/cert.pem", folder + "/key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"#;

/// Series by name and labels.
pub type Values = BTreeMap<String, f64>;
/// Kind, unit and description by name.
type Kinds = BTreeMap<String, [String; 3]>;

/// What the decoder made of each push.
fn pushed(bench: &Bench) -> Vec<(Values, Kinds)> {
    let text = std::fs::read_to_string(bench.path("pushed")).unwrap_or_default();
    // The last line may be one that is being written.
    let whole = text.rsplit_once('\n').map_or("", |it| it.0);
    let lines = whole.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("what the decoder says"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn opentelemetrys_own_decoder_gets_every_metric_as_it_is_scraped_through_restarts() {
    let Some(python) = python() else {
        return skipped("no Python with `opentelemetry-proto`, and it could not be installed");
    };
    for encoding in ["protobuf", "json"] {
        let bench = Bench::new();
        let port = port();
        std::fs::write(bench.path("collector.py"), COLLECTOR).expect("written");
        let start = || {
            let mut command = Command::new(&python);
            command
                .arg(bench.path("collector.py"))
                .arg(bench.folder.path())
                .arg(port.to_string());
            Service::start(&mut command)
        };
        let ca = bench.path("ca.pem");
        let text = format!(
            "endpoint: 'https://localhost:{port}/v1/metrics', encoding: {encoding}, tls: {{ ca: {} }}",
            ca.display()
        );
        // Nobody is there yet.
        let push = Push::start(&config(&text, 50));
        push.until("failed", 2).await;
        for round in 1..=3 {
            let mut service = start();
            push.until("delivered", round * 4).await;
            service.stop();
            let failed = push.count("failed");
            push.until("failed", failed + 1).await;
        }
        let _service = start();
        push.until("delivered", push.count("delivered") + 1).await;
        let (source, pushes) = (push.source.clone(), push.pushes.clone());
        push.pusher.stop().await;
        let texts = source.texts.lock().expect("the texts").clone();
        let pushed = pushed(&bench);
        let mut last = None;
        for (values, kinds) in &pushed {
            let number = values[list::UPTIME.name];
            let is_it = |text: &String| series(text)[list::UPTIME.name].total_cmp(&number).is_eq();
            let at = texts.iter().position(is_it);
            assert!(at > last, "each comes once, and in order");
            last = at;
            assert_eq!(at.map(|at| series(&texts[at])).as_ref(), Some(values));
            assert_eq!(kinds.len(), list::ALL.len());
            for metric in list::ALL {
                let kind = match metric.kind {
                    Kind::Counter => "sum",
                    other => other.name(),
                };
                assert_eq!(kinds[metric.name], [kind, metric.unit, metric.help]);
            }
        }
        let count = |outcome: &str| {
            let all = pushes.by_outcome();
            all.into_iter().find(|it| it.0 == outcome).expect("it").1
        };
        // What a receiver took before it died need not have been acknowledged.
        let taken = pushed.len() as u64;
        assert!(taken >= count("delivered"), "{taken} {pushes:?}");
        // The last push was made when the end was asked for.
        assert_eq!(last, texts.len().checked_sub(1));
        eprintln!("OTLP as {encoding}: {taken} pushes of all metrics, {pushes:?}");
    }
}
