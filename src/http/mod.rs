//! The HTTP server: probes, metrics, the API and the page, on hyper with limits on headers, bodies, connections and time.
//!
//! The address is bound early, before anything is changed, and served once the actors run.
//!
//! # How a handler is written
//!
//! - It is given [`App`] as its state: `State(app): State<App>`; [`App::handle`] leads to the tables and the actors.
//! - It takes a [`Viewer`] if it reads and an [`Operator`] if it writes, and so never runs for anybody else: the API answers
//!   401 and 403, and whoever opens a page is led to the sign-in.
//! - What it changes it changes through [`App::store_for`], so that the audit trail knows who did it.
//! - A form of the page holds a hidden field [`auth::CSRF_FIELD`] with [`Viewer::csrf_token`], and its handler takes a
//!   [`PostedForm`], which has checked that. A script of the page repeats the token in the header [`auth::CSRF_HEADER`].
//! - It answers a [`Problem`] where something is wrong; `?` makes one of a [`store::Error`].
//!
//! `guard` has checked Host and Origin before, and sets the security headers of every answer: no inline script or style
//! works in any page.
//!
//! [`store::Error`]: crate::store::Error

mod api;
pub mod attention;
pub mod auth;
mod body;
pub mod client;
mod compression;
mod connection;
mod csrf;
mod failures;
mod feed;
mod guard;
pub mod json;
pub mod pages;
pub mod peers;
pub mod problem;
mod sign_in;
mod silent;
mod sse;
mod tls;
pub mod words;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use axum::http::{StatusCode, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch};
use tower::{Layer, ServiceExt};

pub use self::auth::{Operator, PostedForm, Viewer};
use self::connection::Patient;
use self::peers::Peers;
pub use self::problem::{FieldError, Problem};
use self::silent::Silent;
use crate::actors::Handle;
use crate::config::{Config, KnownToken, TlsConfig};
use crate::store::Store;

/// More connections than this wait to be accepted: each is a file descriptor, of which a process usually has 1024.
const MOST_CONNECTIONS: usize = 800;
/// More streams than this are refused, so that there are always connections for everything else.
const MOST_STREAMS: usize = 600;
/// So many large bodies are read at once; at 16 MiB each, and as much again while they are taken apart.
const MOST_LARGE_BODIES: usize = 8;
const TURN_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon to try again what was too much.
const LATER: Duration = Duration::from_secs(5);
/// A client that has not sent its request's head by then is not going to.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest head of a request that is read.
const LARGEST_HEAD: usize = 32 * 1024;
const MOST_HEADERS: usize = 64;
/// How long open answers may take once the service stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// Probes give up soon; a database that takes longer is not one to be ready on.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// While there is no room for one more connection, a silent one is ended this often.
const MAKE_ROOM: Duration = Duration::from_millis(20);
/// The wait after `accept` failed, as it does while no file descriptor is free.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Why the server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificate can't be used.
    #[error("can't use {} for TLS (http.tls): {reason}", path.display())]
    Tls {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        reason: String,
    },
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

/// What every handler is given.
#[derive(Clone)]
pub struct App(Arc<Parts>);

struct Parts {
    handle: Handle,
    config: watch::Receiver<Arc<Config>>,
    access: auth::Access,
    peers: Option<Peers>,
    feed: feed::Feed,
    streams: Arc<Semaphore>,
    large_bodies: Semaphore,
    stop: watch::Receiver<bool>,
}

impl App {
    /// The running service.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.0.handle
    }

    /// The tables, for reading.
    #[must_use]
    pub fn store(&self) -> &Store {
        self.0.handle.store()
    }

    /// The tables, with everything that is done through them put down to `viewer` in the audit trail.
    #[must_use]
    pub fn store_for(&self, viewer: &Viewer) -> Store {
        self.store().on_behalf_of(viewer.who())
    }

    /// The configuration as it was last read.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.0.config.borrow())
    }

    /// Says true once the service stops: what goes on for long has to end then.
    #[must_use]
    pub fn stop(&self) -> watch::Receiver<bool> {
        self.0.stop.clone()
    }

    fn peers(&self) -> Option<&Peers> {
        self.0.peers.as_ref()
    }

    fn access(&self) -> &auth::Access {
        &self.0.access
    }

    fn feed(&self) -> &feed::Feed {
        &self.0.feed
    }

    /// The right to one more stream that stays open.
    ///
    /// # Errors
    /// 503 where there are too many: the last connections are for what does not stay.
    fn stream_permit(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.0.streams).try_acquire_owned().map_err(|_| {
            let detail = format!("{MOST_STREAMS} streams are open already");
            Problem::later(StatusCode::SERVICE_UNAVAILABLE, LATER, detail)
        })
    }

    /// A turn at reading a large body: what many of them at once would take in memory is more than there may be.
    ///
    /// # Errors
    /// 503 where it does not come soon.
    async fn large_body_turn(&self) -> Result<SemaphorePermit<'_>, Problem> {
        match tokio::time::timeout(TURN_TIMEOUT, self.0.large_bodies.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => {
                Err(Problem::later(StatusCode::SERVICE_UNAVAILABLE, LATER, "many large requests are being read"))
            }
        }
    }
}

/// What the server is started with.
pub struct Settings {
    /// The running service.
    pub handle: Handle,
    /// The configuration, and each that is read later.
    pub config: watch::Receiver<Arc<Config>>,
    /// Who is let in, and whenever that is changed.
    pub tokens: watch::Receiver<Arc<[KnownToken]>>,
    /// What the forms of a server without tokens are recognized by; nobody else may know it.
    pub local_key: String,
    /// How other workers are asked; `None` where they are not.
    pub peers: Option<Peers>,
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
struct Peer {
    address: SocketAddr,
    tls: bool,
}

/// Checks that a service could speak TLS with these files.
///
/// # Errors
/// Where they can't be read, or don't belong together.
pub fn check_tls(files: &TlsConfig) -> Result<(), Error> {
    tls::Tls::load(files).map(drop)
}

/// A bound address that is not served yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<tls::Tls>,
}

impl Server {
    /// Binds the address, and reads the certificate where there is to be one.
    ///
    /// # Errors
    /// Where they can't be had.
    pub async fn bind(address: SocketAddr, tls: Option<&TlsConfig>) -> Result<Self, Error> {
        let tls = tls.map(tls::Tls::load).transpose()?;
        let bind_error = |source| Error::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        Ok(Self { listener, address, tls })
    }

    /// The address, with the port that the system chose where port 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` says true, then lets open answers finish for a moment.
    pub async fn serve(self, settings: Settings, mut stop: watch::Receiver<bool>) {
        let Self { listener, tls, .. } = self;
        let Settings { handle, config, tokens, local_key, peers } = settings;
        if let Some(tls) = tls.clone() {
            tokio::spawn(tls.keep_fresh(config.clone()));
        }
        let access = auth::Access::new(tokens, local_key);
        let app = App(Arc::new(Parts {
            feed: feed::Feed::new(handle.clone()),
            handle,
            config,
            access,
            peers,
            streams: Arc::new(Semaphore::new(MOST_STREAMS)),
            large_bodies: Semaphore::new(MOST_LARGE_BODIES),
            stop: stop.clone(),
        }));
        let feeding = app.clone();
        tokio::spawn(async move { feeding.feed().run(feeding.stop()).await });
        // Around the router rather than a layer of it, which would not see the header Allow of what the router refuses.
        let router = from_fn(compression::compress).layer(router(app.clone()));
        let router = from_fn_with_state(app, guard::guard).layer(router);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_headers(MOST_HEADERS)
            .max_buf_size(LARGEST_HEAD);
        let graceful = GracefulShutdown::new();
        let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        let silent = Arc::new(Silent::default());
        loop {
            let accepted = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                accepted = accept(&listener, &permits, &silent) => accepted,
            };
            let Some((stream, address, permit)) = accepted else { break };
            // An IPv4 address that came in by an IPv6 socket is still one of IPv4.
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            let peer = Peer { address, tls: tls.is_some() };
            let router = router.clone();
            let guest = Arc::new(silent.enter(peer.address.ip()));
            let speaker = Arc::clone(&guest);
            let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
                speaker.spoke();
                request.extensions_mut().insert(peer);
                router.clone().oneshot(request.map(axum::body::Body::new))
            });
            let (http, watcher, tls) = (http.clone(), graceful.watcher(), tls.clone());
            tokio::spawn(async move {
                let served = async {
                    match tls {
                        None => watcher.watch(http.serve_connection(TokioIo::new(Patient::new(stream)), service)).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => {
                                watcher.watch(http.serve_connection(TokioIo::new(Patient::new(stream)), service)).await
                            }
                            Err(error) => {
                                tracing::debug!(%error, "a client did not come to speak TLS");
                                Ok(())
                            }
                        },
                    }
                };
                let ended = tokio::select! {
                    ended = served => ended,
                    () = guest.told_to_leave() => Ok(()),
                };
                if let Err(error) = ended {
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
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
    silent: &Silent,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = loop {
        match tokio::time::timeout(MAKE_ROOM, Arc::clone(permits).acquire_owned()).await {
            Ok(permit) => break permit.ok()?,
            Err(_) => silent.make_room(),
        }
    };
    loop {
        match listener.accept().await {
            Ok((stream, address)) => return Some((stream, address, permit)),
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

fn router(app: App) -> Router {
    Router::new()
        .merge(pages::routes())
        .merge(sign_in::routes())
        .merge(api::routes())
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route(peers::PATH, get(peers::answer))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(app)
}

const TEXT: (HeaderName, HeaderValue) = (CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
/// The content type of Prometheus' text format.
const METRICS_TEXT: (HeaderName, HeaderValue) =
    (CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));

async fn healthz() -> Response {
    ([TEXT], "ok\n").into_response()
}

async fn readyz(State(app): State<App>) -> Response {
    let mut complaints = app.handle().complaints();
    match tokio::time::timeout(PING_TIMEOUT, app.store().ping()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => complaints.push(format!("the database can't be reached: {error}")),
        Err(_) => complaints.push(format!("the database has not answered for {} s", PING_TIMEOUT.as_secs())),
    }
    if complaints.is_empty() {
        return ([TEXT], "ready\n").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, [TEXT], complaints.join("\n") + "\n").into_response()
}

async fn metrics(State(app): State<App>, _: Viewer) -> Result<Response, Problem> {
    match app.handle().metrics().encode() {
        Ok(text) => Ok(([METRICS_TEXT], text).into_response()),
        Err(error) => {
            tracing::error!(%error, "the metrics can't be encoded");
            let detail = "the metrics can't be encoded; the log says why";
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail))
        }
    }
}

async fn not_found(uri: Uri, headers: HeaderMap) -> Response {
    let problem = Problem::new(StatusCode::NOT_FOUND, format!("there is nothing at {}", uri.path()));
    let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_browser = accepted.split(',').any(|kind| body::is_media_type(kind, "text/html"));
    if is_browser && !uri.path().starts_with("/api/") { pages::missing(&problem) } else { problem.into_response() }
}

async fn method_not_allowed() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this address does not take that method; the header Allow names those it takes",
    )
}
