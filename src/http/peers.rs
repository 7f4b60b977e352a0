//! How the workers of one database ask each other for the output of runs.
//!
//! Who has a run is in its row; where that worker is reached it has written into its own, in the same database. A question is
//! one GET, signed with the secret that all of them share, for this start of this worker and this moment of the database's
//! clock; the answer carries a proof made of the signature, so that what answers at an address without knowing the secret is
//! believed nothing. Nobody's token is passed on, no redirect is followed, and whoever is asked answers from its own disk or
//! not at all.

mod relay;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Request, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use ring::hmac;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

pub use self::relay::{Event, Relay};
use super::api::logs::{Asked, answer_here};
use super::problem::Problem;
use super::{App, Peer, Viewer};
use crate::actors::AbortOnDrop;
use crate::config::{HttpConfig, SecretPlace, WebhookUrl};
use crate::domain::{Attempt, JobId, RunToken, Timestamp};
use crate::outgoing;
use crate::process::logs::Selection;
use crate::process::text::made_safe;
use crate::store::{self, RunRow, Store, WorkerRow};

/// Where it is asked.
pub(super) const PATH: &str = "/peer/v1/log";
const TIME: HeaderName = HeaderName::from_static("callsheet-peer-time");
const SIGNATURE: HeaderName = HeaderName::from_static("callsheet-peer-signature");
const PROOF: HeaderName = HeaderName::from_static("callsheet-peer-proof");
/// In characters: as many as 32 random bytes have in hexadecimal, or half.
const SHORTEST_SECRET: usize = 32;
/// A question that is older than this is not answered; nor is one of the future.
const FRESH: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the beginning of an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// More questions than this are not on their way at once.
const MOST_QUESTIONS: usize = 64;
/// How much is read of an answer that says why there is none, in bytes.
const LONGEST_REASON: usize = 16 * 1024;

/// Why this worker can't ask others.
#[derive(Debug, thiserror::Error)]
#[error("the secret of the workers (http.peers) can't be used: {place}: {reason}")]
pub struct Unusable {
    place: String,
    reason: String,
}

/// What a worker needs to ask others, and to know them when they ask.
#[derive(Clone)]
pub struct Peers(Arc<Parts>);

struct Parts {
    key: hmac::Key,
    tls: TlsConnector,
    hostname: String,
    turns: Arc<Semaphore>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Peers(…)")
    }
}

/// Why there is no answer of another worker.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// Nobody knows it.
    #[error(
        "worker {0}, which ran it, is not among the workers of this database any more, and its output went with it"
    )]
    Unknown(String),
    /// It has stopped, or is silent.
    #[error("worker {worker} on {hostname}, which has its output, {since}; it can be read once that worker is back")]
    Gone {
        /// Its name.
        worker: String,
        /// Its machine.
        hostname: String,
        /// Since when, in words.
        since: String,
    },
    /// It does not say where it is.
    #[error(
        "worker {worker} on {hostname} has its output, and has no address at which others may ask for it; see [http.peers]"
    )]
    NoAddress {
        /// Its name.
        worker: String,
        /// Its machine.
        hostname: String,
    },
    /// This worker has no secret.
    #[error("worker {0} has its output, and this one can't ask for it without [http.peers]; ask that worker")]
    NoSecret(String),
    /// It can't be reached.
    #[error("worker {worker}, which has its output, can't be reached at {address}: {reason}")]
    Unreachable {
        /// Its name.
        worker: String,
        /// Where it says it is.
        address: String,
        /// Why.
        reason: String,
    },
    /// It does not answer.
    #[error("worker {worker}, which has its output, has not answered at {address} for {seconds} s")]
    Late {
        /// Its name.
        worker: String,
        /// Where it says it is.
        address: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// It says that it has none.
    #[error("worker {worker} says: {reason}")]
    Refused {
        /// Its name.
        worker: String,
        /// What it says.
        reason: String,
    },
    /// Too many are being asked.
    #[error("{MOST_QUESTIONS} outputs are being fetched from other workers already")]
    Busy,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl From<NoAnswer> for Problem {
    fn from(no_answer: NoAnswer) -> Self {
        let detail = no_answer.to_string();
        let status = match no_answer {
            NoAnswer::Unknown(_) => StatusCode::GONE,
            NoAnswer::Gone { .. }
            | NoAnswer::NoAddress { .. }
            | NoAnswer::NoSecret(_)
            | NoAnswer::Unreachable { .. } => StatusCode::BAD_GATEWAY,
            NoAnswer::Late { .. } => StatusCode::GATEWAY_TIMEOUT,
            NoAnswer::Refused { .. } => StatusCode::NOT_FOUND,
            NoAnswer::Busy => return Self::later(StatusCode::SERVICE_UNAVAILABLE, CONNECT_TIMEOUT, detail),
            NoAnswer::Store(error) => return error.into(),
        };
        Self::new(status, detail)
    }
}

/// What is asked of another worker.
#[derive(Clone, Debug)]
pub struct Question {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: Attempt,
    /// The run's token.
    pub token: String,
    /// Which streams.
    pub selection: Selection,
    /// Where to begin, in bytes.
    pub offset: Option<u64>,
    /// Instead: so many lines from the end.
    pub tail: Option<usize>,
    /// As what it is wanted.
    pub form: Form,
}

/// How output is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As it was written.
    Text,
    /// What there is by now, as events.
    Events,
    /// As events to the end of the run.
    Follow,
}

impl Question {
    /// About all of this run.
    #[must_use]
    pub fn of(run: &RunRow, selection: Selection, form: Form) -> Self {
        let (job, attempt, token) = (run.job_id, run.attempt, run.run_token.clone());
        Self { job, attempt, token, selection, offset: None, tail: None, form }
    }

    fn path(&self) -> String {
        let stream = self.selection.as_str();
        let form = match self.form {
            Form::Text => "text",
            Form::Events => "events",
            Form::Follow => "follow",
        };
        // A token of the tables may be anything.
        let token: RunToken = self.token.parse().unwrap_or_else(|_| RunToken::from_bytes([0; 16]));
        let mut path =
            format!("{PATH}?job={}&attempt={}&token={token}&stream={stream}&form={form}", self.job, self.attempt);
        for (name, value) in [("offset", self.offset), ("tail", self.tail.and_then(|lines| u64::try_from(lines).ok()))]
        {
            if let Some(value) = value {
                path += &format!("&{name}={value}");
            }
        }
        path
    }
}

/// What this worker's row says about where others reach it; `None` where they can't.
#[must_use]
pub fn advertised(config: &HttpConfig, listening: Option<std::net::SocketAddr>) -> Option<String> {
    let peers = config.peers.as_ref()?;
    if let Some(url) = &peers.advertise {
        return Some(format!("{}://{}", if url.tls { "https" } else { "http" }, url.authority()));
    }
    let address = listening.filter(|address| !address.ip().is_unspecified())?;
    Some(format!("{}://{address}", if config.tls.is_some() { "https" } else { "http" }))
}

impl Peers {
    /// Of this configuration; `None` where it has none.
    ///
    /// # Errors
    /// Where the secret or the certificates can't be read.
    pub fn of(config: &HttpConfig) -> Result<Option<Self>, Unusable> {
        let Some(peers) = &config.peers else { return Ok(None) };
        let (place, text) = match &peers.secret {
            SecretPlace::Env(variable) => {
                let text = std::env::var(variable).map_err(|_| "it is not set, or is no text".to_owned());
                (format!("the environment variable {variable}"), text)
            }
            SecretPlace::File(path) => {
                (path.display().to_string(), std::fs::read_to_string(path).map_err(|error| error.to_string()))
            }
        };
        let text = text.map_err(|reason| Unusable { place: place.clone(), reason })?;
        let secret = text.trim();
        if secret.len() < SHORTEST_SECRET {
            let reason = format!("it holds {} characters, and {SHORTEST_SECRET} are the least", secret.len());
            return Err(Unusable { place, reason });
        }
        let tls = outgoing::connector(peers.certificate_authority.as_deref())
            .map_err(|error| Unusable { place: "certificate_authority".to_owned(), reason: error.to_string() })?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Some(Self(Arc::new(Parts { key, tls, hostname, turns: Arc::new(Semaphore::new(MOST_QUESTIONS)) }))))
    }

    fn sign(&self, text: &str) -> String {
        URL_SAFE_NO_PAD.encode(hmac::sign(&self.0.key, text.as_bytes()))
    }

    /// In constant time.
    fn is_signed(&self, text: &str, signature: &str) -> bool {
        let tag = URL_SAFE_NO_PAD.decode(signature).unwrap_or_default();
        hmac::verify(&self.0.key, text.as_bytes(), &tag).is_ok()
    }

    /// Asks the worker that has a run. Cancel safe: the connection ends.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn ask(&self, store: &Store, worker: &str, question: &Question) -> Result<Relay, NoAnswer> {
        let turn = Arc::clone(&self.0.turns).try_acquire_owned().map_err(|_| NoAnswer::Busy)?;
        let (now, row) = find_worker(store, worker).await?;
        let no_address = || NoAnswer::NoAddress { worker: row.worker_id.clone(), hostname: row.hostname.clone() };
        let shown = row.address.clone().ok_or_else(no_address)?;
        let address = shown.parse::<WebhookUrl>().ok().filter(|url| url.path == "/").ok_or_else(no_address)?;
        let is_here = address.host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if is_here && row.hostname != self.0.hostname {
            // Whatever listens there is on this machine.
            return Err(no_address());
        }
        let unreachable =
            |reason: String| NoAnswer::Unreachable { worker: worker.to_owned(), address: shown.clone(), reason };
        let late = |seconds: Duration| NoAnswer::Late {
            worker: worker.to_owned(),
            address: shown.clone(),
            seconds: seconds.as_secs(),
        };
        let (path, time) = (question.path(), now.unix_millis().to_string());
        let signature = self.sign(&to_be_signed(&time, &row, &path));
        let request = Request::get(&path)
            .header(HOST, address.authority())
            .header(TIME, &time)
            .header(SIGNATURE, &signature)
            .body(Body::empty())
            .map_err(|error| unreachable(error.to_string()))?;
        let connected = timeout(CONNECT_TIMEOUT, self.connect(&address)).await;
        let (mut sender, connection) =
            connected.map_err(|_| late(CONNECT_TIMEOUT))?.map_err(|error| unreachable(error.to_string()))?;
        let response = timeout(ANSWER_TIMEOUT, sender.send_request(request)).await;
        let response = response.map_err(|_| late(ANSWER_TIMEOUT))?.map_err(|error| unreachable(error.to_string()))?;
        let (head, body) = response.into_parts();
        let proof = head.headers.get(PROOF).and_then(|proof| proof.to_str().ok()).unwrap_or_default();
        if !self.is_signed(&format!("answer\n{signature}"), proof) {
            let reason = "what answers there is not that worker, or has another secret (http.peers)";
            return Err(unreachable(reason.to_owned()));
        }
        if head.status != StatusCode::OK {
            let reason = timeout(ANSWER_TIMEOUT, axum::body::to_bytes(Body::new(body), LONGEST_REASON)).await;
            let reason = reason.ok().and_then(Result::ok).unwrap_or_default();
            let reason = serde_json::from_slice::<serde_json::Value>(&reason).unwrap_or_default();
            let reason = made_safe(reason["detail"].as_str().unwrap_or("it can't say why").as_bytes());
            return Err(NoAnswer::Refused { worker: worker.to_owned(), reason });
        }
        Ok(Relay::new(head.headers, Body::new(body), connection, turn))
    }

    async fn connect(&self, address: &WebhookUrl) -> std::io::Result<(http1::SendRequest<Body>, AbortOnDrop)> {
        let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
        if !address.tls {
            return handshake(stream).await;
        }
        let name = ServerName::try_from(address.host.clone()).map_err(std::io::Error::other)?;
        handshake(self.0.tls.connect(name, stream).await?).await
    }

    /// Whether this is a fresh question of another worker to this start of this one; the signature, where it is.
    async fn recognize(&self, app: &App, uri: &Uri, headers: &HeaderMap) -> Result<String, Problem> {
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (time, signature) = (text(&TIME), text(&SIGNATURE));
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        let handle = app.handle();
        let signed = signed_text(time, handle.worker().as_str(), handle.incarnation(), path);
        if !self.is_signed(&signed, signature) {
            return Err(Problem::new(
                StatusCode::UNAUTHORIZED,
                "this is no question of a worker with the same secret (http.peers) to this start of this worker",
            ));
        }
        let now = app.store().now().await?;
        let asked = Timestamp::from_unix_millis(time.parse().unwrap_or(0));
        if now.since(asked).max(asked.since(now)) > FRESH {
            return Err(Problem::new(StatusCode::UNAUTHORIZED, "the question is not of this moment"));
        }
        Ok(signature.to_owned())
    }
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> std::io::Result<(http1::SendRequest<Body>, AbortOnDrop)> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    let connection = AbortOnDrop::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to another worker ended");
        }
    });
    Ok((sender, connection))
}

fn to_be_signed(time: &str, to: &WorkerRow, path: &str) -> String {
    signed_text(time, &to.worker_id, &to.incarnation, path)
}

fn signed_text(time: &str, worker: &str, incarnation: &str, path: &str) -> String {
    format!("ask\n{time}\n{worker}\n{incarnation}\n{path}")
}

/// The row of a worker that lives, and the database's time.
pub(super) async fn find_worker(store: &Store, worker: &str) -> Result<(Timestamp, WorkerRow), NoAnswer> {
    let (now, workers) = tokio::try_join!(store.now(), store.workers())?;
    let row = workers.into_iter().find(|row| row.worker_id == worker);
    let row = row.ok_or_else(|| NoAnswer::Unknown(worker.to_owned()))?;
    if row.is_live(now) {
        return Ok((now, row));
    }
    let ago = humantime::format_duration(Duration::from_secs(now.since(row.heartbeat_time).as_secs()));
    let since = if row.state == store::WorkerState::Stopped.as_str() {
        format!("stopped {ago} ago")
    } else {
        format!("has shown no sign of life for {ago}")
    };
    Err(NoAnswer::Gone { worker: row.worker_id, hostname: row.hostname, since })
}

/// What another worker asks.
pub(super) async fn answer(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let Some(peers) = app.peers() else {
        return Problem::new(StatusCode::NOT_FOUND, "this worker answers no other (http.peers)").into_response();
    };
    let signature = match peers.recognize(&app, &uri, &headers).await {
        Ok(signature) => signature,
        Err(problem) => return problem.into_response(),
    };
    let answered = match Asked::read(&uri) {
        Ok(asked) => answer_here(&app, &Viewer::worker(peer.address.ip()), asked).await,
        Err(problem) => Err(problem),
    };
    let mut response = answered.unwrap_or_else(IntoResponse::into_response);
    if let Ok(proof) = HeaderValue::try_from(peers.sign(&format!("answer\n{signature}"))) {
        response.headers_mut().insert(PROOF, proof);
    }
    response
}
