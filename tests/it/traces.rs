//! A trace for each job, as a receiver that knows the protocol sees it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use callsheet::domain::{JobId, JobStatus};
use serde::Deserialize;

use crate::support::service::{On, Service};
use crate::support::tools;
use crate::support::{eventually, own_address};

/// The JSON of an `ExportTraceServiceRequest` as the specification has it; an unknown key is an error.
mod otlp {
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub struct Request {
        pub resource_spans: Vec<ResourceSpans>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub struct ResourceSpans {
        pub resource: Resource,
        pub scope_spans: Vec<ScopeSpans>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Resource {
        pub attributes: Vec<KeyValue>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct ScopeSpans {
        #[serde(rename = "scope")]
        pub _scope: Scope,
        pub spans: Vec<Span>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Scope {
        #[serde(rename = "name")]
        pub _name: String,
        #[serde(rename = "version")]
        pub _version: String,
    }

    #[derive(Clone, Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub struct Span {
        pub trace_id: String,
        pub span_id: String,
        pub parent_span_id: Option<String>,
        pub trace_state: Option<String>,
        pub name: String,
        pub kind: u8,
        pub start_time_unix_nano: String,
        pub end_time_unix_nano: String,
        pub attributes: Vec<KeyValue>,
        pub status: Option<Status>,
    }

    #[derive(Clone, Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Status {
        pub code: u8,
        pub message: String,
    }

    #[derive(Clone, Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct KeyValue {
        pub key: String,
        pub value: Any,
    }

    #[derive(Clone, Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    pub struct Any {
        pub string_value: Option<String>,
        pub int_value: Option<String>,
        pub double_value: Option<f64>,
    }
}

use otlp::Span;

impl Span {
    fn start(&self) -> i64 {
        self.start_time_unix_nano.parse::<i64>().unwrap() / 1_000_000
    }

    fn end(&self) -> i64 {
        self.end_time_unix_nano.parse::<i64>().unwrap() / 1_000_000
    }

    fn says(&self, key: &str) -> String {
        let found = self
            .attributes
            .iter()
            .find(|attribute| attribute.key == key)
            .unwrap_or_else(|| panic!("no {key} in {self:?}"));
        let value = &found.value;
        value
            .string_value
            .clone()
            .or(value.int_value.clone())
            .unwrap_or_else(|| value.double_value.unwrap().to_string())
    }
}

/// An OTLP receiver; its first answers are refusals, as of a collector that is overloaded.
struct Receiver {
    address: String,
    bodies: Arc<Mutex<Vec<String>>>,
}

impl Receiver {
    fn start(refusals: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let (kept, left) = (Arc::clone(&bodies), AtomicUsize::new(refusals));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let body = request(&mut stream);
                let refused =
                    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
                let status = if refused { "503 Service Unavailable" } else { "200 OK" };
                if !refused {
                    kept.lock().unwrap().push(body);
                }
                write!(stream, "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}")
                    .unwrap();
            }
        });
        Self { address, bodies }
    }

    fn spans(&self) -> Vec<Span> {
        let mut spans = Vec::new();
        for body in self.bodies.lock().unwrap().iter() {
            let request: otlp::Request = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"));
            for resource in request.resource_spans {
                let names: Vec<_> =
                    resource.resource.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
                assert_eq!(names, ["service.name", "service.version", "service.instance.id", "host.name"]);
                spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        spans
    }

    /// The spans of a job by their names, once it is complete: a job's own span comes with its last.
    async fn trace(&self, job: JobId) -> BTreeMap<String, Vec<Span>> {
        let of_job = |span: &Span| span.says("callsheet.job.id") == job.to_string();
        eventually(&format!("the trace of job {job}"), async || {
            self.spans().iter().any(|span| of_job(span) && span.name.starts_with("job "))
        })
        .await;
        let mut trace: BTreeMap<String, Vec<Span>> = BTreeMap::new();
        for span in self.spans().into_iter().filter(of_job) {
            trace.entry(span.name.clone()).or_default().push(span);
        }
        let whole = &trace[trace.keys().find(|name| name.starts_with("job ")).unwrap()];
        assert_eq!(whole.len(), 1, "a job is told once: {whole:?}");
        for span in trace.values().flatten() {
            assert_eq!(span.trace_id, whole[0].trace_id);
            assert!(span.trace_id.len() == 32 && span.span_id.len() == 16, "{span:?}");
            assert!(
                span.name.starts_with("job ") || span.parent_span_id.as_ref() == Some(&whole[0].span_id),
                "{span:?}"
            );
            assert!(span.start() <= span.end() && span.end() <= whole[0].end(), "{span:?} of {whole:?}");
        }
        trace
    }
}

fn request(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
    let header = |name: &str| {
        let line = head
            .lines()
            .find(|line| line.to_lowercase().starts_with(&format!("{name}:")))
            .unwrap_or_else(|| panic!("no {name} in {head}"));
        line.split_once(':').unwrap().1.trim().to_owned()
    };
    assert_eq!(header("content-type"), "application/json");
    assert!(!header("host").is_empty());
    let mut body = vec![0; header("content-length").parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    String::from_utf8(body).unwrap()
}

const FLOWS: &str = "[flows.ONE]\n{job}\nconcurrency = 8\n[flows.ONE.retry]\nmaximum_attempts = 2\ninitial_interval = \"0s\"\n\
    [flows.MISSING]\ncommand = [\"/nowhere/at/all\"]\n";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const OTHER: &str = "00-11111111111111111111111111111111-1111111111111111-01";
const STATE: &str = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// `TRACEPARENT` in what a command with `environment` in its identifier wrote down.
fn told(service: &Service, job: JobId) -> Option<String> {
    told_in(service, job, "TRACEPARENT")
}

fn told_in(service: &Service, job: JobId, variable: &str) -> Option<String> {
    let environment = std::fs::read_to_string(service.path(&format!("evidence/{job}.1.environment"))).unwrap();
    environment.lines().find_map(|line| line.strip_prefix(&format!("{variable}=")).map(str::to_owned))
}

async fn each_job_is_a_trace_from_its_enqueue_to_its_end(on: On) {
    let Some(mut service) = Service::prepare(on, FLOWS).await else { return };
    let receiver = Receiver::start(1);
    service.configure(&format!("[telemetry]\notlp_endpoint = \"http://{}\"\n", receiver.address));
    // What the service itself is a part of is nothing to its commands.
    service.serve_with(&[("TRACEPARENT", OTHER), ("TRACESTATE", "a=1")]).await;
    let plain = service.insert("ONE", &["run:0.1+environment"]).await[0];
    let failing = service.insert("ONE", &["complain:why+exit:3"]).await[0];
    let refused = service.insert("ONE", &["..no"]).await[0];
    let missing = service.insert("MISSING", &["a"]).await[0];
    let with = |identifier: &str, column: &str, value: &str| {
        format!("INSERT INTO jobs (type, identifier, {column}) VALUES ('ONE', '{identifier}', '{value}')")
    };
    service.sql(&with("environment", "tracestate, traceparent", &format!("{STATE}', '{PARENT}"))).await;
    service
        .sql(&with(
            "environment",
            "payload",
            &format!("{{\"traceparent\": \"{PARENT}\", \"tracestate\": \"{STATE}\"}}"),
        ))
        .await;
    service.sql(&with("environment", "traceparent", "00-what-ever-01")).await;
    service.sql(&with("environment", "traceparent", &PARENT.replace("-01", "-00"))).await;
    let [column, payload, invalid, unsampled] = [1, 2, 3, 4].map(|n| JobId(missing.0 + n));

    let trace = receiver.trace(plain).await;
    assert_eq!(trace.keys().collect::<Vec<_>>(), ["job ONE", "launch", "queued", "run"]);
    let (row, run) = (service.until(plain, JobStatus::Completed).await, service.runs(plain).await.remove(0));
    let [whole, launch, queued, ran] = ["job ONE", "launch", "queued", "run"].map(|name| &trace[name][0]);
    let at = |time: callsheet::domain::Timestamp| time.unix_millis();
    assert_eq!((whole.start(), whole.end()), (at(row.created_time), at(row.completed_time.unwrap())));
    assert_eq!((ran.start(), ran.end()), (at(run.started_time.unwrap()), at(run.completed_time.unwrap())));
    // The defaults of two columns of one row are two looks at the database's clock.
    let runnable_since = at(row.run_at.max(row.created_time));
    assert_eq!((queued.start(), queued.end()), (runnable_since, at(row.queued_time.unwrap())));
    assert_eq!((launch.start(), launch.end()), (queued.end(), ran.start().max(queued.end())));
    assert!(whole.parent_span_id.is_none() && whole.status.is_none() && whole.kind == 5 && ran.kind == 1);
    assert_eq!(ran.says("callsheet.run.token"), run.run_token);
    assert_eq!(
        (ran.says("process.exit.code"), ran.says("callsheet.outcome")),
        ("0".to_owned(), "COMPLETED".to_owned())
    );
    assert_eq!(whole.says("callsheet.job.status"), "COMPLETED");
    assert_eq!(told(&service, plain), Some(format!("00-{}-{}-01", whole.trace_id, ran.span_id)));

    let trace = receiver.trace(failing).await;
    assert_eq!(trace["run"].len(), 2, "both attempts: {trace:?}");
    assert_ne!(trace["run"][0].span_id, trace["run"][1].span_id);
    for span in trace["run"].iter().chain(&trace["job ONE"]) {
        let status = span.status.as_ref().unwrap();
        assert_eq!((status.code, status.message.as_str()), (2, "the command failed with exit code 3"));
    }
    let trace = receiver.trace(refused).await;
    assert_eq!(trace.keys().collect::<Vec<_>>(), ["job ONE", "queued"]);
    let trace = receiver.trace(missing).await;
    assert!(trace["launch"][0].status.as_ref().unwrap().message.starts_with("the command could not be started"));

    for job in [column, payload] {
        let trace = receiver.trace(job).await;
        let whole = &trace["job ONE"][0];
        assert_eq!((whole.trace_id.as_str(), whole.parent_span_id.as_deref()), (TRACE, Some("00f067aa0ba902b7")));
        assert_eq!(told(&service, job), Some(format!("00-{TRACE}-{}-01", trace["run"][0].span_id)));
        let row = service.job(job).await;
        assert_eq!((row.traceparent.as_deref(), row.tracestate.as_deref()), (Some(PARENT), Some(STATE)));
        assert!(trace.values().flatten().all(|span| span.trace_state.as_deref() == Some(STATE)), "{trace:?}");
        assert_eq!(told_in(&service, job, "TRACESTATE").as_deref(), Some(STATE));
    }
    let trace = receiver.trace(invalid).await;
    assert!(trace["job ONE"][0].trace_id != TRACE && trace["job ONE"][0].parent_span_id.is_none());
    assert_eq!((&trace["job ONE"][0].trace_state, told_in(&service, invalid, "TRACESTATE")), (&None, None));
    service.until(unsampled, JobStatus::Completed).await;
    let told_unsampled = told(&service, unsampled).unwrap();
    assert!(told_unsampled.starts_with(&format!("00-{TRACE}-")) && told_unsampled.ends_with("-00"), "{told_unsampled}");

    // One that is cancelled while it waits has no run to tell of it.
    let cancelled = service.insert_row("type, identifier, run_at", "'ONE', 'later', 4102444800000").await;
    assert!(service.cli(&["cancel", &cancelled.to_string()]).status.success());
    let trace = receiver.trace(cancelled).await;
    assert_eq!(trace.keys().collect::<Vec<_>>(), ["job ONE"]);
    let (whole, row) = (&trace["job ONE"][0], service.job(cancelled).await);
    assert_eq!((whole.start(), whole.end()), (at(row.created_time), at(row.completed_time.unwrap())));
    assert_eq!(
        (whole.says("callsheet.job.status"), whole.says("callsheet.attempts")),
        ("CANCELLED".into(), "0".into())
    );
    assert!(whole.status.is_none() && whole.parent_span_id.is_none());

    // A service that dies and comes back breaks no trace.
    let lasting = service.insert("ONE", &["environment+wait"]).await[0];
    service.until(lasting, JobStatus::Progress).await;
    service.begun(lasting, 1).await;
    let before = told(&service, lasting).unwrap();
    service.kill_9();
    service.serve().await;
    eventually("the run to be taken over", async || service.log().contains("reattached")).await;
    service.go();
    let trace = receiver.trace(lasting).await;
    assert_eq!(trace.keys().collect::<Vec<_>>(), ["job ONE", "launch", "queued", "run"]);
    assert_eq!(before, format!("00-{}-{}-01", trace["run"][0].trace_id, trace["run"][0].span_id));
    let row = service.until(lasting, JobStatus::Completed).await;
    assert_eq!(trace["job ONE"][0].start(), at(row.created_time));
    assert!(receiver.spans().iter().all(|span| span.says("callsheet.job.id") != unsampled.to_string()));
    service.stop().await;
    right_by_the_protocols_own_definition(&receiver.bodies.lock().unwrap());
}
crate::on_each_database!(each_job_is_a_trace_from_its_enqueue_to_its_end);

/// Parses requests by the protocol's published Protobuf definitions, which know no other key and type.
fn right_by_the_protocols_own_definition(bodies: &[String]) {
    const CHECK: &str = "
import base64, json, sys
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
def protobuf_json(value):  # OTLP's JSON differs from Protobuf's in this alone: ids are hexadecimal
    if isinstance(value, list): return [protobuf_json(each) for each in value]
    if not isinstance(value, dict): return value
    ids = ('traceId', 'spanId', 'parentSpanId')
    return {key: base64.b64encode(bytes.fromhex(each)).decode() if key in ids else protobuf_json(each) for key, each in value.items()}
for line in sys.stdin:
    request = json_format.Parse(json.dumps(protobuf_json(json.loads(line))), ExportTraceServiceRequest())
    for span in request.resource_spans[0].scope_spans[0].spans:
        assert len(span.trace_id) == 16 and len(span.span_id) == 8 and 0 < span.start_time_unix_nano <= span.end_time_unix_nano
        print(span.name)
";
    // The packages are in .ci/tools' own Python only.
    let Some(python) = tools::program("hadolint").map(|hadolint| hadolint.with_file_name("python")) else { return };
    let mut check = Command::new(python)
        .args(["-c", CHECK])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all((bodies.join("\n") + "\n").as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    assert!(output.status.success() && tools::said(&output).contains("job ONE"), "{}", tools::said(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_exporter_a_command_is_told_who_asked_for_its_job() {
    let service = Service::start(On::Sqlite, FLOWS).await.unwrap();
    let plain = service.insert("ONE", &["environment"]).await[0];
    service
        .sql(&format!("INSERT INTO jobs (type, identifier, traceparent) VALUES ('ONE', 'environment', '{PARENT}')"))
        .await;
    let asked = JobId(plain.0 + 1);
    for job in [plain, asked] {
        service.until(job, JobStatus::Completed).await;
    }
    assert_eq!((told(&service, plain), told(&service, asked)), (None, Some(PARENT.to_owned())));
}

async fn who_enqueues_says_what_the_job_is_a_part_of(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let of = async |id: &str| {
        let row = service.job(JobId(id.trim().parse().unwrap())).await;
        (row.traceparent, row.tracestate)
    };
    let said = |parent: &str, state: Option<&str>| (Some(parent.to_owned()), state.map(ToOwned::to_owned));
    let in_payload = format!("{{\"traceparent\": \"{PARENT}\"}}");

    let enqueue = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut command = service.command();
        command.args(["enqueue", "MISSING", "a", "--delay", "1h"]).args(arguments).envs(environment.iter().copied());
        command.output().unwrap()
    };
    for (arguments, environment, expected) in [
        (&["--traceparent", PARENT, "--tracestate", STATE][..], &[][..], said(PARENT, Some(STATE))),
        (&[], &[("TRACEPARENT", PARENT), ("TRACESTATE", STATE)], said(PARENT, Some(STATE))),
        (&["--traceparent", PARENT], &[("TRACEPARENT", OTHER), ("TRACESTATE", "a=1")], said(PARENT, None)),
        (&["--payload", &in_payload], &[("TRACEPARENT", OTHER)], (None, None)),
        (&[], &[("TRACEPARENT", "00-what"), ("TRACESTATE", "a=1")], (None, None)),
        (&[], &[("TRACEPARENT", PARENT), ("TRACESTATE", "what")], said(PARENT, None)),
    ] {
        let output = enqueue(arguments, environment);
        assert!(output.status.success(), "{}", tools::said(&output));
        assert_eq!(of(&tools::said(&output)).await, expected, "{arguments:?} {environment:?}");
    }
    for (arguments, reason) in [
        (&["--traceparent", "00-what"][..], "not a traceparent of W3C Trace Context"),
        (&["--traceparent", PARENT, "--tracestate", "what"], "not a tracestate of W3C Trace Context"),
        (&["--tracestate", STATE], "--traceparent"),
    ] {
        let output = enqueue(arguments, &[]);
        assert_eq!(output.status.code(), Some(2));
        assert!(tools::said(&output).contains(reason), "{}", tools::said(&output));
    }

    // By the API: a field, or for all jobs of a request that say nothing its own headers.
    let post = |headers: &[&str], body: &serde_json::Value| {
        let headers = [&["Content-Type: application/json"], headers].concat();
        service.request("POST", "/api/v1/jobs", &headers, body.to_string().as_bytes())
    };
    let job = |more: serde_json::Value| {
        let mut job = serde_json::json!({ "type": "MISSING", "identifier": "a", "run_at": "2100-01-01T00:00:00Z" });
        job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        job
    };
    let header = format!("traceparent: {OTHER}");
    let jobs = serde_json::json!([
        job(serde_json::json!({ "traceparent": PARENT, "tracestate": STATE })),
        job(serde_json::json!({})),
        job(serde_json::json!({ "payload": { "traceparent": PARENT } })),
    ]);
    let answer = post(&[&header, "tracestate: a=1", "tracestate: b=2"], &jobs);
    assert_eq!(answer.status, 201, "{}", answer.text());
    let answer = answer.json();
    let field = |place: usize, name: &str| answer[place][name].as_str().map(ToOwned::to_owned);
    let answers: Vec<_> = (0..3).map(|place| (field(place, "traceparent"), field(place, "tracestate"))).collect();
    assert_eq!(answers, [said(PARENT, Some(STATE)), said(OTHER, Some("a=1,b=2")), (None, None)]);
    for headers in [&["traceparent: 00-what"][..], &["tracestate: a=1"], &[header.as_str(), header.as_str()]] {
        let answer = post(headers, &job(serde_json::json!({})));
        assert_eq!((answer.status, &answer.json()["traceparent"]), (201, &serde_json::Value::Null), "{headers:?}");
    }
    for (more, field) in [
        (serde_json::json!({ "traceparent": "00-what" }), "traceparent"),
        (serde_json::json!({ "traceparent": PARENT, "tracestate": "a" }), "tracestate"),
        (serde_json::json!({ "tracestate": STATE }), "tracestate"),
    ] {
        let refusal = post(&[], &job(more));
        assert_eq!(refusal.status, 422);
        let error = &refusal.json()["errors"][0];
        assert!(
            error["pointer"] == format!("#/{field}") && error["detail"].as_str().unwrap().starts_with("it is not"),
            "{error}"
        );
    }
    // And so it comes to the command.
    let asked = post(&[&header, "tracestate: a=1"], &serde_json::json!({ "type": "ONE", "identifier": "environment" }));
    let asked = JobId(asked.json()["id"].as_i64().unwrap());
    service.until(asked, JobStatus::Completed).await;
    let environment = (told(&service, asked), told_in(&service, asked, "TRACESTATE"));
    assert_eq!(environment, said(OTHER, Some("a=1")));
}
crate::on_each_database!(who_enqueues_says_what_the_job_is_a_part_of);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_holds_up_nothing() {
    let mut service = Service::prepare(On::Sqlite, FLOWS).await.unwrap();
    // Nobody listens there.
    let address = own_address();
    service.serve_with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{address}"))]).await;
    let job = service.insert("ONE", &["say:a"]).await[0];
    service.until(job, JobStatus::Completed).await;
    let asked = std::time::Instant::now();
    service.stop().await;
    // An export is tried for nearly a minute.
    assert!(asked.elapsed().as_secs() < 40, "the stop took {:?}", asked.elapsed());

    let refused = service.command().arg("serve").env("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://x").output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", tools::said(&refused));
    assert!(tools::said(&refused).contains("OTEL_EXPORTER_OTLP_ENDPOINT") && tools::said(&refused).contains("https"));
}

/// Takes one request over TLS, and says what it was.
async fn taken_over_tls(listener: tokio::net::TcpListener) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let key = PrivateKeyDer::from_pem_file(format!("{}/tests/tls/collector.key.pem", tools::ROOT)).unwrap();
    let certificate = CertificateDer::from_pem_file(format!("{}/tests/tls/collector.pem", tools::ROOT)).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        // Somebody who does not trust this certificate ends the handshake.
        let Ok(mut stream) = acceptor.accept(stream).await else { continue };
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).ends_with("}]}") {
            let mut some = [0; 4096];
            let read = stream.read(&mut some).await.unwrap();
            text.extend_from_slice(&some[..read]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await.unwrap();
        stream.shutdown().await.ok();
        return String::from_utf8(text).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_is_asked_over_tls_and_only_if_it_is_who_it_should_be() {
    let certificate = |name: &str| format!("{}/tests/tls/{name}.pem", tools::ROOT);
    for (trusted, taken) in [("first", false), ("collector", true)] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let receiver = tokio::spawn(taken_over_tls(listener));
        let mut service = Service::prepare(On::Sqlite, FLOWS).await.unwrap();
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", &certificate(trusted)),
        ];
        service.serve_with(&variables).await;
        let job = service.insert("ONE", &["say:a"]).await[0];
        service.until(job, JobStatus::Completed).await;
        if taken {
            let request = receiver.await.unwrap();
            assert!(request.starts_with("POST /v1/traces HTTP/1.1") && request.contains("job ONE"), "{request}");
        } else {
            service.stop().await;
            // By the last try, or where the first one was under way still.
            let says = ["traces can't be sent", "the last traces could not be sent in time"];
            assert!(says.iter().any(|says| service.log().contains(says)), "{}", service.log());
            assert!(!receiver.is_finished());
            receiver.abort();
        }
    }
}

/// A line of the log in JSON.
#[derive(Debug, Deserialize)]
struct Line {
    level: String,
    #[serde(default)]
    job: Option<i64>,
    #[serde(default)]
    from: Option<String>,
    #[serde(default)]
    to: Option<String>,
    #[serde(default, rename = "type")]
    flow: Option<String>,
    #[serde(default)]
    run_token: Option<String>,
    #[serde(default)]
    span: Option<serde_json::Map<String, serde_json::Value>>,
    #[serde(default)]
    message: String,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_status_change_is_one_line_and_every_line_about_a_run_names_it() {
    let mut service = Service::prepare(On::Sqlite, FLOWS).await.unwrap();
    service.arguments = ["--log-format", "json"].map(str::to_owned).to_vec();
    service.serve().await;
    let jobs = service.insert("ONE", &["say:a", "exit:3", "..no", "wait"]).await;
    for (job, status) in jobs.iter().zip([JobStatus::Completed, JobStatus::Error, JobStatus::Error]) {
        service.until(*job, status).await;
    }
    service.until(jobs[3], JobStatus::Progress).await;
    // A line that is not about a status: the run's shim is gone.
    let begun = service.begun(jobs[3], 1).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", begun.pid)).unwrap();
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(shim).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    service.begun(jobs[3], 2).await;
    service.go();
    service.until(jobs[3], JobStatus::Completed).await;
    service.stop().await;
    let log = service.log();
    let lines: Vec<Line> =
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    for job in &jobs {
        let told: Vec<_> = lines.iter().filter(|line| line.job == Some(job.0) && line.to.is_some()).collect();
        let events = service.store.events(*job).await.unwrap();
        let changes: Vec<_> = events.iter().filter(|event| event.from_status.is_some()).collect();
        assert_eq!(told.len(), changes.len(), "{told:?} against {changes:?}");
        for (line, event) in told.iter().zip(changes) {
            assert_eq!((line.from.as_ref(), line.to.as_ref()), (event.from_status.as_ref(), Some(&event.to_status)));
            assert_eq!((line.level.as_str(), line.flow.as_deref()), ("INFO", Some("ONE")));
            assert!(line.run_token.as_ref().is_some_and(|token| token.len() == 32), "{line:?}");
        }
    }
    let gone = lines.iter().find(|line| line.message.contains("shim is gone")).expect("a line about the shim");
    let span = gone.span.as_ref().unwrap();
    assert_eq!(
        (gone.level.as_str(), span["name"].as_str(), span["job"].as_i64()),
        ("WARN", Some("run"), Some(jobs[3].0))
    );
    assert!(
        span["type"] == "ONE" && span["attempt"] == 1 && span["run_token"].as_str().unwrap().len() == 32,
        "{span:?}"
    );
    assert!(lines.iter().all(|line| line.level != "ERROR"), "nothing here is a fault of the service: {log}");
}
