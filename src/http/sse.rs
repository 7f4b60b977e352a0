//! Server-sent events: their frames, and the answer that carries them for as long as it is wanted.
//!
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html>

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, timeout};

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

/// A stream that is being sent, and its right to be.
struct Sending<S> {
    source: S,
    stop: watch::Receiver<bool>,
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
        tokio::select! {
            biased;
            _ = self.stop.wait_for(|stop| *stop) => None,
            () = tokio::time::sleep_until(self.ends) => None,
            next = timeout(KEEP_ALIVE, self.source.next()) => next.unwrap_or(Some(Bytes::from_static(b": still here\n\n"))),
        }
    }
}

/// The answer that sends what `source` gives, until that or the service ends. `permit` is given back with it.
pub(super) fn respond(source: impl Source, stop: watch::Receiver<bool>, permit: OwnedSemaphorePermit) -> Response {
    // A proxy that would gather an answer before it passes it on is told not to.
    const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");
    let sending = Sending { source, stop, ends: Instant::now() + LONGEST, begun: false, _permit: permit };
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
