//! The stream of status changes.

use std::collections::VecDeque;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::query::{Parameters, shown};
use crate::domain::JobId;
use crate::http::feed::{News, PAGE, Told};
use crate::http::problem::{FieldError, Problem};
use crate::http::{App, Viewer, sse};

/// Where a client says what it has had already.
pub(super) const LAST_EVENT_ID: &str = "last-event-id";

/// Follow status changes as server-sent events
///
/// Each message is a status change: its `id` is the change's, its `data` the row of `job_events` with the job's `type`. A
/// client that comes back with `Last-Event-ID` (a browser does so by itself) is told everything since, from the database,
/// whatever happened to the service meanwhile; without it the stream begins with what happens next. An event `resync` says
/// that the id is not one of this database, and that the stream begins now. A stream lasts an hour at the most.
#[utoipa::path(
    get, path = "/api/v1/events", tag = "events", operation_id = "follow_events",
    params(
        ("type" = Option<String>, Query, description = "Only of jobs of this type"),
        ("job_id" = Option<i64>, Query, description = "Only of this job"),
        ("after" = Option<i64>, Query, minimum = 0, description = "As `Last-Event-ID`, for clients that can't send that; 0 for all there is"),
        ("Last-Event-ID" = Option<String>, Header, pattern = "^[0-9]{1,18}$", description = "The `id` of the last event that the client has had"),
    ),
    responses((status = 200, description = "The stream", body = String, content_type = "text/event-stream"))
)]
pub(super) async fn events(
    State(app): State<App>,
    viewer: Viewer,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri, &["type", "job_id", "after"]);
    let only_type = parameters.one("type");
    let only_job = parameters.parsed("job_id", "a job's id").map(JobId);
    let after = parameters.read("after", id);
    parameters.finish()?;
    let last = match headers.get(LAST_EVENT_ID).map(|value| id(value.to_str().unwrap_or_default())) {
        Some(Err(detail)) => {
            let error = FieldError { field: "Last-Event-ID".to_owned(), pointer: None, detail };
            return Err(Problem::invalid(StatusCode::BAD_REQUEST, vec![error]));
        }
        Some(Ok(last)) => Some(last),
        None => after,
    };
    let permit = app.stream_permit()?;
    let news = app.feed().listen();
    let newest = app.store().final_event().await?;
    let mut ready = VecDeque::new();
    if last.is_some_and(|last| last > newest) {
        ready.push_back(sse::frame(Some(&newest.to_string()), Some("resync"), "{}"));
    }
    let at = last.map_or(newest, |last| last.min(newest));
    let stream = EventStream { app: app.clone(), news, at, catching_up: true, ready, only_type, only_job };
    Ok(sse::respond(stream, &app, &viewer, permit))
}

/// An event's id.
fn id(text: &str) -> Result<i64, String> {
    let id = text.parse().ok().filter(|id| *id >= 0);
    id.ok_or_else(|| format!("{} is no event's id, which is a whole number", shown(text)))
}

/// One client's stream.
struct EventStream {
    app: App,
    news: broadcast::Receiver<News>,
    /// Everything up to this id has been told.
    at: i64,
    /// Whether there may be changes that only the database can tell.
    catching_up: bool,
    ready: VecDeque<Bytes>,
    only_type: Option<String>,
    only_job: Option<JobId>,
}

impl EventStream {
    fn wants(&self, told: &Told) -> bool {
        self.only_type.as_ref().is_none_or(|only| only == told.job_type())
            && self.only_job.is_none_or(|only| only.0 == told.job_id())
    }

    fn tell(&mut self, told: &Told) {
        if told.id() <= self.at {
            return;
        }
        if self.wants(told) {
            self.ready.push_back(told.frame());
        }
        self.at = told.id();
    }
}

impl sse::Source for EventStream {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Some(frame);
            }
            if self.catching_up {
                match self.app.store().events_after(self.at, PAGE).await {
                    Ok(page) => {
                        for event in &page.events {
                            self.tell(&Told::new(event));
                        }
                        self.at = self.at.max(page.next);
                        self.catching_up = page.more;
                    }
                    Err(error) => {
                        // The client comes back from where it was, by then perhaps to a database that answers.
                        tracing::debug!(%error, "a stream of status changes ends: they can't be read");
                        return None;
                    }
                }
                continue;
            }
            match self.news.recv().await {
                Ok(News::Event(told)) => self.tell(&told),
                // What came before that was told to nobody.
                Ok(News::From(id)) => self.catching_up = id > self.at,
                Err(RecvError::Lagged(_)) => self.catching_up = true,
                Err(RecvError::Closed) => return None,
            }
        }
    }
}
