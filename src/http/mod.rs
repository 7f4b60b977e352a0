//! The HTTP server: `healthz`, `readyz` and `metrics`, on hyper with limits on headers, connections and time.
//!
//! The address is bound early, before anything is changed, and served once the actors run.

pub mod json;
pub mod words;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::actors::Shared;

/// More connections than this wait to be accepted: a scraper and some people need a handful.
const MOST_CONNECTIONS: usize = 512;
/// A client that has not sent its request's head by then is not going to.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest head of a request that is read.
const LARGEST_HEAD: usize = 32 * 1024;
const MOST_HEADERS: usize = 64;
/// How long open answers may take once the service stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// Probes give up soon; a database that takes longer is not one to be ready on.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// The wait after `accept` failed, as it does while no file descriptor is free.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Why the server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, not ours, or not permitted.
    #[error("can't listen on {address} (http.listen); is another callsheet running?")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// A bound address that is not served yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Binds the address.
    ///
    /// # Errors
    /// Where it can't be had.
    pub async fn bind(address: SocketAddr) -> Result<Self, Error> {
        let bind_error = |source| Error::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        Ok(Self { listener, address })
    }

    /// The address, with the port that the system chose where port 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` says true, then lets open answers finish for a moment.
    pub async fn serve(self, shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
        let service = TowerToHyperService::new(router(shared));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_headers(MOST_HEADERS)
            .max_buf_size(LARGEST_HEAD);
        let graceful = GracefulShutdown::new();
        let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                accepted = accept(&self.listener, &permits) => accepted,
            };
            let Some((stream, permit)) = accepted else { break };
            let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service.clone()));
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection ended badly");
                }
                drop(permit);
            });
        }
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, graceful.shutdown()).await.is_err() {
            tracing::debug!("some connections were still open when the server stopped");
        }
    }
}

/// The next connection, once there is room for one; `None` where the server is being torn down. Safe to cancel.
async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return Some((stream, permit)),
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(shared)
}

const NO_STORE: (HeaderName, HeaderValue) = (CACHE_CONTROL, HeaderValue::from_static("no-store"));
const TEXT: (HeaderName, HeaderValue) = (CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
/// The content type of Prometheus' text format.
const METRICS_TEXT: (HeaderName, HeaderValue) =
    (CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
/// RFC 9457.
const PROBLEM: (HeaderName, HeaderValue) = (CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));

/// What there is to see, for whoever opens the address.
async fn index() -> Response {
    let version = env!("CARGO_PKG_VERSION");
    let text = format!(
        "callsheet {version}\n\n/healthz  whether the process lives\n/readyz   whether it can work, and if not, why\n\
         /metrics  for Prometheus\n\nJobs: callsheet list, show, logs; see callsheet --help.\n"
    );
    ([TEXT, NO_STORE], text).into_response()
}

async fn healthz() -> Response {
    ([TEXT, NO_STORE], "ok\n").into_response()
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let mut complaints = shared.health.complaints();
    match tokio::time::timeout(PING_TIMEOUT, shared.store.ping()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => complaints.push(format!("the database can't be reached: {error}")),
        Err(_) => complaints.push(format!("the database has not answered for {} s", PING_TIMEOUT.as_secs())),
    }
    if complaints.is_empty() {
        return ([TEXT, NO_STORE], "ready\n").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, [TEXT, NO_STORE], complaints.join("\n") + "\n").into_response()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    match shared.metrics.encode() {
        Ok(text) => ([METRICS_TEXT, NO_STORE], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics can't be encoded");
            problem(StatusCode::INTERNAL_SERVER_ERROR, "the metrics can't be encoded; the log says why")
        }
    }
}

async fn not_found(uri: Uri) -> Result<Response, Infallible> {
    Ok(problem(StatusCode::NOT_FOUND, &format!("there is nothing at {}", uri.path())))
}

async fn method_not_allowed() -> Result<Response, Infallible> {
    Ok(problem(StatusCode::METHOD_NOT_ALLOWED, "this address does not take that method"))
}

fn problem(status: StatusCode, detail: &str) -> Response {
    let title = status.canonical_reason().unwrap_or_default();
    let body =
        serde_json::json!({ "type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail });
    (status, [PROBLEM, NO_STORE], body.to_string()).into_response()
}
