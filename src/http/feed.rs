//! The stream of status changes, read from the database once for everybody who listens.
//!
//! One task reads what is new and hands it to all streams, each change rendered once. A stream first catches up from the
//! database by itself, from wherever its client was, and does so again whenever it has fallen behind: nothing is missed,
//! and a client that is slow holds up nobody. While nobody listens nothing is read.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;

use super::json::StreamedEventJson;
use super::sse;
use crate::actors::Handle;
use crate::store::StreamedEvent;

/// How many changes a stream may fall behind before it has to read them again, each for itself; some 400 bytes each, once for
/// all streams.
const KEPT: usize = 8192;
/// Changes of one page of reading.
pub(super) const PAGE: u32 = 500;
/// How long after one look the next may come: so much of a burst is read at once.
const PAUSE: Duration = Duration::from_millis(25);
/// So much longer for each that listens: every burst wakes all of them, and 500 take as long as many a job's start.
const PAUSE_FOR_EACH: Duration = Duration::from_micros(250);
/// How long to wait without being told of a change: other workers on a PostgreSQL tell nobody of theirs.
const LOOK_ANYWAY: Duration = Duration::from_millis(500);
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// A status change as it goes to every stream.
#[derive(Clone, Debug)]
pub(super) struct Told(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    id: i64,
    job_id: i64,
    job_type: String,
    frame: Bytes,
}

/// What the one reader tells the streams.
#[derive(Clone, Debug)]
pub(super) enum News {
    /// A change, in the order of their ids.
    Event(Told),
    /// It has begun to read behind this id: what lies before has to be read by oneself.
    From(i64),
}

/// The one reader, and the way to listen to it.
pub(super) struct Feed {
    sender: broadcast::Sender<News>,
    wanted: Notify,
    handle: Handle,
}

impl Told {
    pub(super) fn new(streamed: &StreamedEvent) -> Self {
        let json = StreamedEventJson::from(streamed);
        let id = streamed.event.id;
        let frame = sse::frame(Some(&id.to_string()), None, &serde_json::to_string(&json).unwrap_or_default());
        Self(Arc::new(Parts { id, job_id: streamed.event.job_id.0, job_type: streamed.job_type.clone(), frame }))
    }

    pub(super) fn id(&self) -> i64 {
        self.0.id
    }

    pub(super) fn job_id(&self) -> i64 {
        self.0.job_id
    }

    pub(super) fn job_type(&self) -> &str {
        &self.0.job_type
    }

    /// As it goes over the wire.
    pub(super) fn frame(&self) -> Bytes {
        self.0.frame.clone()
    }
}

impl Feed {
    pub(super) fn new(handle: Handle) -> Self {
        Self { sender: broadcast::Sender::new(KEPT), wanted: Notify::new(), handle }
    }

    /// Listens from now on.
    pub(super) fn listen(&self) -> broadcast::Receiver<News> {
        let receiver = self.sender.subscribe();
        self.wanted.notify_one();
        receiver
    }

    /// Reads for everybody, until `stop` says true.
    pub(super) async fn run(&self, mut stop: watch::Receiver<bool>) {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            () = self.read() => {}
        }
    }

    async fn read(&self) {
        let mut changes = self.handle.changes();
        loop {
            self.wanted.notified().await;
            let Some(mut after) = self.begin().await else { continue };
            while self.sender.receiver_count() > 0 {
                let looked = Instant::now();
                changes.mark_unchanged();
                match self.handle.store().events_after(after, PAGE).await {
                    Ok(page) => {
                        after = page.next;
                        for event in &page.events {
                            // Nobody may be listening any more, which the loop's condition finds out.
                            let _ = self.sender.send(News::Event(Told::new(event)));
                        }
                        if page.more {
                            continue;
                        }
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the status changes can't be read");
                        tokio::time::sleep(TRY_AGAIN).await;
                        continue;
                    }
                }
                // Whether something has changed or the time is over, it is looked again.
                drop(tokio::time::timeout(LOOK_ANYWAY, changes.changed()).await);
                let listeners = u32::try_from(self.sender.receiver_count()).unwrap_or(u32::MAX);
                tokio::time::sleep_until(looked + PAUSE + PAUSE_FOR_EACH.saturating_mul(listeners)).await;
            }
        }
    }

    /// Where reading begins; `None` where nobody listens any more.
    async fn begin(&self) -> Option<i64> {
        while self.sender.receiver_count() > 0 {
            match self.handle.store().final_event().await {
                Ok(last) => {
                    let _ = self.sender.send(News::From(last));
                    return Some(last);
                }
                Err(error) => {
                    tracing::debug!(%error, "the status changes can't be read");
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
        }
        None
    }
}
