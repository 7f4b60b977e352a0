//! Traces for OpenTelemetry: spans of jobs, sent as OTLP over HTTP in its JSON encoding. Off unless an endpoint is named.
//!
//! By hand rather than with the `opentelemetry` crates: their SDK and exporter bring some fifty crates for one request of
//! one shape, and are made for spans that are open in this process, while ours are known only when they have ended, last
//! for days and over restarts, and bring their own ids. Protocol: opentelemetry.io/docs/specs/otlp, section OTLP/HTTP.
//!
//! Nothing of the service waits for it: what can't be sent is tried again for a while, then dropped and counted.

mod unrun;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::config::OtlpEndpoint;
use crate::domain::trace::{SpanId, TraceId, TraceState};
use crate::domain::{Timestamp, WorkerId};
use crate::metrics::Metrics;

pub use self::unrun::tell_unrun;

/// What waits to be sent at most: some minutes of a busy service, in a few megabytes.
const MOST_WAITING: usize = 16_384;
const LARGEST_REQUEST: usize = 512;
/// A request goes this long after its first span at the latest.
const GATHER: Duration = Duration::from_secs(1);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The waits before a request is tried again; after the last its spans are dropped.
const WAITS: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(30),
];

/// A part of a job that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The job's trace.
    pub trace: TraceId,
    /// This span.
    pub id: SpanId,
    /// The span that it is a part of.
    pub parent: Option<SpanId>,
    /// What goes along with the trace.
    pub state: Option<TraceState>,
    /// What it is, without anything that is different each time.
    pub name: String,
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// What else is known.
    pub attributes: Vec<(&'static str, Value)>,
    /// What went wrong; `None` where nothing did.
    pub error: Option<String>,
}

/// The way to the exporter; does nothing where there is none.
#[derive(Clone, Debug, Default)]
pub struct Telemetry(Option<Arc<Exporter>>);

#[derive(Debug)]
struct Exporter {
    spans: mpsc::Sender<Order>,
    metrics: Arc<Metrics>,
    task: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

#[derive(Debug)]
enum Order {
    Export(Vec<Span>),
    Flush(oneshot::Sender<()>),
}

impl Telemetry {
    /// Starts the exporter, where there is somewhere to send to. Needs a tokio runtime.
    #[must_use]
    pub fn start(endpoint: Option<OtlpEndpoint>, worker: &WorkerId, hostname: &str, metrics: &Arc<Metrics>) -> Self {
        let Some(endpoint) = endpoint else { return Self::default() };
        let resource = json!({ "attributes": attributes(&[
            ("service.name", json!(endpoint.service_name)),
            ("service.version", json!(env!("CARGO_PKG_VERSION"))),
            ("service.instance.id", json!(worker.as_str())),
            ("host.name", json!(hostname)),
        ])});
        let (spans, orders) = mpsc::channel(MOST_WAITING);
        tracing::info!(endpoint = %endpoint, "traces are sent by OTLP");
        let task = tokio::spawn(export(endpoint, resource, orders, Arc::clone(metrics)));
        Self(Some(Arc::new(Exporter { spans, metrics: Arc::clone(metrics), task: Mutex::new(Some(task)) })))
    }

    /// Whether spans are wanted.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Sends these spans some time later, or drops and counts them where too many wait.
    pub fn export(&self, spans: Vec<Span>) {
        let Some(exporter) = &self.0 else { return };
        let count = spans.len();
        if !spans.is_empty() && exporter.spans.try_send(Order::Export(spans)).is_err() {
            exporter.metrics.spans_dropped(count);
        }
    }

    /// Sends what waits, for as long as is left.
    pub async fn flush(&self, until: Instant) {
        let Some(exporter) = &self.0 else { return };
        let (done, flushed) = oneshot::channel();
        let flush = async {
            if exporter.spans.send(Order::Flush(done)).await.is_ok() {
                // An exporter that ended instead has nothing to send any more.
                let _: Result<(), _> = flushed.await;
            }
        };
        if tokio::time::timeout_at(until, flush).await.is_err() {
            tracing::warn!("the last traces could not be sent in time");
        }
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().ok().and_then(Option::take) {
            task.abort();
        }
    }
}

async fn export(endpoint: OtlpEndpoint, resource: Value, mut orders: mpsc::Receiver<Order>, metrics: Arc<Metrics>) {
    let mut waiting: VecDeque<Span> = VecDeque::new();
    let mut failing = false;
    while let Some(order) = orders.recv().await {
        let mut flushes = Vec::new();
        let gathered = Instant::now() + GATHER;
        let mut next = Some(order);
        while let Some(order) = next.take() {
            match order {
                Order::Export(spans) => waiting.extend(spans),
                Order::Flush(done) => {
                    flushes.push(done);
                    break;
                }
            }
            if waiting.len() < LARGEST_REQUEST {
                next = tokio::time::timeout_at(gathered, orders.recv()).await.ok().flatten();
            }
        }
        while !waiting.is_empty() {
            let batch: Vec<Span> = waiting.drain(..waiting.len().min(LARGEST_REQUEST)).collect();
            let body = request(&resource, &batch).to_string();
            // While the service stops there is one try: what nobody takes must not hold it up.
            let waits = if flushes.is_empty() { &WAITS[..] } else { &[] };
            match send(&endpoint, &body, waits).await {
                Ok(()) => {
                    metrics.spans_exported(batch.len());
                    failing = false;
                }
                Err(error) => {
                    metrics.spans_dropped(batch.len());
                    // Once, not for each request while it lasts.
                    if !failing {
                        tracing::warn!(endpoint = %endpoint, error, "traces can't be sent and are dropped");
                    }
                    failing = true;
                }
            }
        }
        for done in flushes {
            if done.send(()).is_err() {
                tracing::debug!("nobody waits for the last traces any more");
            }
        }
    }
}

/// Sends a request until it is answered for good.
async fn send(endpoint: &OtlpEndpoint, body: &str, waits: &[Duration]) -> Result<(), String> {
    let mut waits = waits.iter();
    loop {
        let error = match tokio::time::timeout(REQUEST_TIMEOUT, post(endpoint, body)).await {
            Ok(Ok(200..=299)) => return Ok(()),
            // The specification's list of what may be tried again; every other answer is the last word.
            Ok(Ok(status @ (429 | 502 | 503 | 504))) => format!("the answer was status {status}"),
            Ok(Ok(status)) => return Err(format!("the answer was status {status}")),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()),
        };
        match waits.next() {
            Some(wait) => tokio::time::sleep(*wait).await,
            None => return Err(error),
        }
    }
}

/// One HTTP/1.1 request on a connection of its own, and the status of its answer.
async fn post(endpoint: &OtlpEndpoint, body: &str) -> io::Result<u16> {
    let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
    if !endpoint.tls {
        return exchange(stream, endpoint, body).await;
    }
    let name = ServerName::try_from(endpoint.host.clone()).map_err(io::Error::other)?;
    // Made anew each time: some seconds lie between two, and a certificate that was replaced holds from then on.
    let connector = TlsConnector::from(Arc::new(trusting(endpoint)?));
    exchange(connector.connect(name, stream).await?, endpoint, body).await
}

/// Whom an endpoint is believed to be: whoever its own certificate vouches for, or else the authorities that browsers know.
fn trusting(endpoint: &OtlpEndpoint) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    match &endpoint.certificate {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let wrong = |cause: String| io::Error::other(format!("{} can't be used: {cause}", path.display()));
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))? {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(wrong("it holds no certificate in PEM".to_owned()));
            }
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    endpoint: &OtlpEndpoint,
    body: &str,
) -> io::Result<u16> {
    const LONGEST_HEAD: u64 = 16_384;
    let headers: String = endpoint.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: callsheet/{}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n{headers}\r\n",
        endpoint.path,
        endpoint.authority(),
        env!("CARGO_PKG_VERSION"),
        body.len(),
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    // To the end of the answer, so that the peer is not cut off while it writes.
    match stream.take(LONGEST_HEAD).read_to_end(&mut answer).await {
        // A peer that closes without saying so in TLS; its status has come.
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
        Ok(_) | Err(_) => {}
    }
    let status = std::str::from_utf8(answer.get(..12).unwrap_or_default()).ok();
    let status = status.and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok());
    status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is no HTTP"))
}

/// An `ExportTraceServiceRequest` in JSON: ids in hexadecimal, 64-bit numbers as texts, enums as numbers.
fn request(resource: &Value, spans: &[Span]) -> Value {
    /// SPAN_KIND_INTERNAL, and SPAN_KIND_CONSUMER for what somebody else asked for.
    const INTERNAL: u8 = 1;
    const CONSUMER: u8 = 5;
    const STATUS_ERROR: u8 = 2;
    let nanoseconds = |time: Timestamp| (i128::from(time.unix_millis().max(0)) * 1_000_000).to_string();
    let spans: Vec<Value> = spans
        .iter()
        .map(|span| {
            let mut value = json!({
                "traceId": span.trace.to_string(),
                "spanId": span.id.to_string(),
                "name": span.name,
                "kind": if span.name.starts_with("job ") { CONSUMER } else { INTERNAL },
                "startTimeUnixNano": nanoseconds(span.start),
                "endTimeUnixNano": nanoseconds(span.end.max(span.start)),
                "attributes": attributes(&span.attributes),
            });
            if let Some(parent) = span.parent {
                value["parentSpanId"] = parent.to_string().into();
            }
            if let Some(state) = &span.state {
                value["traceState"] = state.as_str().into();
            }
            if let Some(error) = &span.error {
                value["status"] = json!({ "code": STATUS_ERROR, "message": error });
            }
            value
        })
        .collect();
    let scope = json!({ "name": "callsheet", "version": env!("CARGO_PKG_VERSION") });
    json!({ "resourceSpans": [{ "resource": resource, "scopeSpans": [{ "scope": scope, "spans": spans }] }] })
}

fn attributes(attributes: &[(&str, Value)]) -> Vec<Value> {
    let value = |value: &Value| match value {
        Value::Bool(value) => json!({ "boolValue": value }),
        Value::Number(number) if number.is_f64() => json!({ "doubleValue": number }),
        Value::Number(number) => json!({ "intValue": number.to_string() }),
        Value::String(text) => json!({ "stringValue": text }),
        other => json!({ "stringValue": other.to_string() }),
    };
    let told = attributes.iter().filter(|(_, value)| !value.is_null());
    told.map(|(key, told)| json!({ "key": key, "value": value(told) })).collect()
}
