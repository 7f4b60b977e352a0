//! Server-sent events: their frames, and the answer that carries them for as long as it is wanted.
//!
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html>

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{App, Viewer};
use crate::config::KnownToken;

/// How often something is sent where there is nothing to say, so that both sides learn of a connection that is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a stream lasts; a client comes back by itself, from where it was, and has to show again that it may.
const LONGEST: Duration = Duration::from_secs(3600);
/// How soon a browser comes back, in milliseconds.
const RETRY_MS: u32 = 2_000;

/// What a stream is made of.
pub(super) trait Source: Send + 'static {
    /// The next frame; `None` where there will be none. Safe to cancel.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

/// One event. Line ends in `data` are kept; `id` and `event` must not hold any.
pub(super) fn frame(id: Option<&str>, event: Option<&str>, data: &str) -> Bytes {
    let mut text = String::with_capacity(data.len() + 48);
    for (field, value) in [("id", id), ("event", event)] {
        if let Some(value) = value {
            text.extend([field, ": ", value, "\n"]);
        }
    }
    for line in data.split('\n') {
        text.extend(["data: ", line, "\n"]);
    }
    text.push('\n');
    text.into()
}

/// How often it is looked whether a session still lasts that a stream was opened in.
const CHECK_SESSION: Duration = Duration::from_secs(5);

/// A stream that is being sent, and its right to be.
struct Sending<S> {
    source: S,
    app: App,
    /// The session of whoever opened it.
    session: Option<String>,
    check_at: Instant,
    stop: watch::Receiver<bool>,
    tokens: watch::Receiver<Arc<[KnownToken]>>,
    ends: Instant,
    begun: bool,
    _permit: OwnedSemaphorePermit,
}

impl<S: Source> Sending<S> {
    async fn next(&mut self) -> Option<Bytes> {
        if !self.begun {
            self.begun = true;
            return Some(Bytes::from(format!("retry: {RETRY_MS}\n\n")));
        }
        let silent_until = Instant::now() + KEEP_ALIVE;
        loop {
            let told = tokio::select! {
                biased;
                _ = self.stop.wait_for(|stop| *stop) => return None,
                Ok(()) = self.tokens.changed() => return None,
                () = sleep_until(self.ends) => return None,
                () = sleep_until(self.check_at), if self.session.is_some() => None,
                next = timeout_at(silent_until, self.source.next()) => Some(next),
            };
            match told {
                Some(Ok(next)) => return next,
                Some(Err(_)) => return Some(Bytes::from_static(b": still here\n\n")),
                None if self.has_ended().await => return None,
                None => {}
            }
        }
    }

    /// Whether the session has ended that it was opened in.
    async fn has_ended(&mut self) -> bool {
        self.check_at = Instant::now() + CHECK_SESSION;
        let Some(session) = &self.session else { return false };
        // A database that is away says nothing of it, and is asked again.
        matches!(self.app.store().session(session).await, Ok(None))
    }
}

/// The answer that sends what `source` gives, until that or the service ends, other tokens hold, or the session of `viewer`
/// has ended. `permit` is given back with it.
pub(super) fn respond(source: impl Source, app: &App, viewer: &Viewer, permit: OwnedSemaphorePermit) -> Response {
    // A proxy that would gather an answer before it passes it on is told not to.
    const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");
    let (stop, tokens) = (app.stop(), app.access().changes());
    let now = Instant::now();
    let sending = Sending {
        source,
        app: app.clone(),
        session: viewer.session(),
        check_at: now + CHECK_SESSION,
        stop,
        tokens,
        ends: now + LONGEST,
        begun: false,
        _permit: permit,
    };
    let frames = stream::unfold(sending, |mut sending| async move {
        let frame = sending.next().await?;
        Some((Ok::<_, Infallible>(frame), sending))
    });
    let text = HeaderValue::from_static;
    let headers =
        [(CONTENT_TYPE, text("text/event-stream")), (CACHE_CONTROL, text("no-store")), (UNBUFFERED, text("no"))];
    (headers, Body::from_stream(frames)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_block_of_lines() {
        assert_eq!(frame(Some("7"), None, "{}"), "id: 7\ndata: {}\n\n");
        assert_eq!(frame(None, Some("end"), "a\nb"), "event: end\ndata: a\ndata: b\n\n");
    }
}
