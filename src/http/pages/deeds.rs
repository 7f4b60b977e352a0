//! What the forms of the page do: each is posted by a page of ours, does it in the sender's name, and leads back to where
//! it was sent from, which then says what came of it.

use std::time::Duration;

use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::{HOST, HeaderMap, REFERER};
use axum::response::{Html, IntoResponse, Redirect, Response};
use maud::{Markup, html};

use super::bulk::{self, Deed};
use super::form::Fields;
use super::frame::Frame;
use super::jobs::{self, Draft, Filter};
use super::{Visitor, address_of, parts, refused, types};
use crate::domain::payload::check_together;
use crate::domain::{FlowType, JobId};
use crate::http::api::enqueue::Written;
use crate::http::{App, Operator, PostedForm, Problem, Viewer};
use crate::store::{CancelResult, Due, NewJob, PauseResult, RetryResult, Store};

/// Who has sent a form that only operators may send.
struct Doer {
    visitor: Visitor,
    /// What is done through it is put down to them.
    store: Store,
    /// Who they are, as events and flows keep it.
    by: String,
}

impl Doer {
    /// The sender.
    ///
    /// # Errors
    /// A page that says why not, for a viewer.
    #[expect(clippy::result_large_err, reason = "axum's own answer, made for a viewer only and passed on at once")]
    fn of(app: &App, viewer: Viewer) -> Result<Self, Response> {
        let visitor = Visitor::from(&viewer);
        match viewer.operator() {
            Ok(Operator(viewer)) => {
                Ok(Self { visitor, store: app.store_for(&viewer), by: format!("{} (page)", viewer.name) })
            }
            Err(problem) => Err(refused(&visitor, &problem)),
        }
    }

    /// The page that says why it was not done.
    fn refused(&self, problem: impl Into<Problem>) -> Response {
        refused(&self.visitor, &problem.into())
    }

    /// A page with nothing but this in it.
    fn page(&self, title: &str, body: &Markup) -> Html<String> {
        let now = crate::clock::now();
        let frame = Frame { title, view: "/jobs", visitor: &self.visitor, notice: None, now, live: None };
        Html(frame.around(body).into_string())
    }
}

pub(super) async fn cancel(
    State(app): State<App>,
    Path(id): Path<i64>,
    headers: HeaderMap,
    posted: PostedForm<Fields>,
) -> Result<Response, Response> {
    let doer = Doer::of(&app, posted.viewer)?;
    let result = doer.store.request_cancel(JobId(id)).await.map_err(|error| doer.refused(error))?;
    let done = match result {
        CancelResult::Cancelled => "cancelled",
        CancelResult::Requested | CancelResult::AlreadyRequested => "cancel-requested",
        CancelResult::NotPossible(_) => "not-cancelled",
        CancelResult::NotFound => return Err(doer.refused(no_such_job(id))),
    };
    Ok(back(&headers, &format!("/jobs/{id}"), done))
}

pub(super) async fn retry(
    State(app): State<App>,
    Path(id): Path<i64>,
    headers: HeaderMap,
    posted: PostedForm<Fields>,
) -> Result<Response, Response> {
    let doer = Doer::of(&app, posted.viewer)?;
    let results = doer.store.retry(&[JobId(id)], &doer.by).await.map_err(|error| doer.refused(error))?;
    let done = match results.first() {
        Some(RetryResult::Retried) => "retried",
        Some(RetryResult::NotPossible(_)) => "not-retried",
        Some(RetryResult::KeyTaken(_)) => "key-taken",
        Some(RetryResult::NotFound) | None => return Err(doer.refused(no_such_job(id))),
    };
    Ok(back(&headers, &format!("/jobs/{id}"), done))
}

fn no_such_job(id: i64) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is no job {id}"))
}

pub(super) async fn pause(
    State(app): State<App>,
    Path(flow): Path<String>,
    headers: HeaderMap,
    posted: PostedForm<Fields>,
) -> Result<Response, Response> {
    set_paused(&app, &flow, &headers, posted, true).await
}

pub(super) async fn resume(
    State(app): State<App>,
    Path(flow): Path<String>,
    headers: HeaderMap,
    posted: PostedForm<Fields>,
) -> Result<Response, Response> {
    set_paused(&app, &flow, &headers, posted, false).await
}

async fn set_paused(
    app: &App,
    flow: &str,
    headers: &HeaderMap,
    posted: PostedForm<Fields>,
    paused: bool,
) -> Result<Response, Response> {
    let doer = Doer::of(app, posted.viewer)?;
    let no_flow = || {
        let detail = format!("there is no flow {}", parts::plain_name(flow));
        doer.refused(Problem::new(StatusCode::NOT_FOUND, detail))
    };
    let flow: FlowType = flow.parse().map_err(|_| no_flow())?;
    let result =
        if paused { doer.store.pause(&flow, &doer.by).await } else { doer.store.resume(&flow, &doer.by).await };
    match result.map_err(|error| doer.refused(error))? {
        PauseResult::NotFound => Err(no_flow()),
        PauseResult::Changed | PauseResult::Unchanged => {
            Ok(back(headers, "/", if paused { "paused" } else { "resumed" }))
        }
    }
}

/// Asks before many jobs are cancelled or retried.
pub(super) async fn ask(
    State(app): State<App>,
    viewer: Viewer,
    RawQuery(query): RawQuery,
) -> Result<Response, Response> {
    let (doer, fields) = (Doer::of(&app, viewer)?, Fields::parse(&query.unwrap_or_default()));
    let (deed, all) = deed(&fields).map_err(|problem| doer.refused(problem))?;
    let chosen = bulk::chosen(app.store(), deed, all, &fields).await.map_err(|error| doer.refused(error))?;
    Ok(doer.page("Are you sure?", &bulk::confirm(deed, all, &chosen, &fields, &doer.visitor)).into_response())
}

fn deed(fields: &Fields) -> Result<(Deed, bool), Problem> {
    let deed = fields.first("do").and_then(Deed::of);
    let refused = |why: &str| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why);
    let (deed, all) = deed.ok_or_else(|| refused("the form says neither cancel nor retry"))?;
    match bulk::mistakes(fields).as_slice() {
        // What the filter does not hold back would be done too.
        [mistake, ..] if all => Err(refused(mistake)),
        _ => Ok((deed, all)),
    }
}

pub(super) async fn act_on_many(State(app): State<App>, posted: PostedForm<Fields>) -> Result<Response, Response> {
    let (doer, fields) = (Doer::of(&app, posted.viewer)?, posted.form);
    let (deed, all) = deed(&fields).map_err(|problem| doer.refused(problem))?;
    let (done, count) = act(&doer, deed, all, &fields).await.map_err(|error| doer.refused(error))?;
    let address = bulk::back(&fields);
    let is_one = address != Filter::of(&fields).address(None);
    // It has ended while somebody was asked.
    let done = match deed {
        Deed::Cancel if is_one && count == 0 => "not-cancelled",
        Deed::Retry if is_one && count == 0 => "not-retried",
        Deed::Cancel | Deed::Retry => done,
    };
    Ok(Redirect::to(&saying(&address, done, count)).into_response())
}

/// Does it, and says what it was and to how many jobs.
async fn act(
    doer: &Doer,
    deed: Deed,
    all: bool,
    fields: &Fields,
) -> Result<(&'static str, usize), crate::store::Error> {
    let chosen = bulk::chosen(&doer.store, deed, all, fields).await?;
    Ok(match deed {
        Deed::Retry => {
            let ids: Vec<JobId> = chosen.rows.iter().map(|row| row.id).collect();
            let results = doer.store.retry(&ids, &doer.by).await?;
            ("retried", results.iter().filter(|result| **result == RetryResult::Retried).count())
        }
        Deed::Cancel => {
            let jobs: Vec<_> = chosen.rows.iter().map(|row| (row.id, row.status)).collect();
            ("cancel-requested", doer.store.cancel_chosen(&jobs).await?.len())
        }
    })
}

pub(super) async fn enqueue(State(app): State<App>, posted: PostedForm<Fields>) -> Result<Response, Response> {
    let (doer, draft) = (Doer::of(&app, posted.viewer)?, Draft::of(&posted.form));
    let jobs = match new_jobs(&app, &draft) {
        Ok(jobs) => jobs,
        Err(refusal) => {
            // What was typed is not lost: the form comes back with the reason.
            let known = app.store().types().await.map_err(|error| doer.refused(error))?;
            let form = jobs::enqueue(&types(&app, known), &doer.visitor, &draft, Some(&refusal));
            let body = html! { section.panel { h1 { "Enqueue jobs" } (form) } };
            return Err((StatusCode::UNPROCESSABLE_ENTITY, doer.page("Enqueue jobs", &body)).into_response());
        }
    };
    let enqueued = doer.store.enqueue(&jobs).await.map_err(|error| doer.refused(error))?;
    let address = match enqueued.as_slice() {
        [only] if only.existing => format!("/jobs/{}?done=existing", only.id),
        [only] => saying(&format!("/jobs/{}", only.id), "enqueued", 1),
        many => saying("/jobs", "enqueued", many.len()),
    };
    Ok(Redirect::to(&address).into_response())
}

/// Leads back to where a form was sent from, to say what came of it.
fn back(headers: &HeaderMap, fallback: &str, done: &str) -> Response {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let path = text(REFERER).split_once("://").and_then(|(_, rest)| rest.strip_prefix(text(HOST)));
    let path = path.filter(|path| path.starts_with('/') && !path.starts_with("//") && !path.starts_with("/jobs/bulk"));
    let uri: Option<axum::http::Uri> = path.and_then(|path| path.parse().ok());
    let address = uri.map_or_else(|| fallback.to_owned(), |uri| address_of(&uri));
    Redirect::to(&saying(&address, done, 1)).into_response()
}

/// The address of a page that says what was done, and to how many jobs.
fn saying(address: &str, done: &str, count: usize) -> String {
    let joint = if address.contains('?') { '&' } else { '?' };
    format!("{address}{joint}done={done}&n={count}")
}

/// The sentence about what was just done, and whether it is bad news.
pub(super) fn notice(fields: &Fields) -> Option<(String, bool)> {
    let count: usize = fields.first("n").and_then(|count| count.parse().ok()).unwrap_or(1);
    let (jobs, were) = if count == 1 { ("1 job".to_owned(), "was") } else { (format!("{count} jobs"), "were") };
    let (sentence, bad) = match fields.first("done")? {
        "cancelled" => (format!("{jobs} {were} cancelled."), false),
        "cancel-requested" => (format!("{jobs} {were} asked to end; a command gets SIGTERM first."), false),
        "not-cancelled" => ("It has ended, so it can't be cancelled.".to_owned(), true),
        "retried" => (format!("{jobs} will be tried again."), false),
        "not-retried" => ("Only ERROR and CANCELLED jobs can be retried.".to_owned(), true),
        "key-taken" => ("Not retried: an open job has its unique key by now.".to_owned(), true),
        "paused" => ("The flow is paused: nothing of it is started any more.".to_owned(), false),
        "resumed" => ("The flow goes on.".to_owned(), false),
        "enqueued" => (format!("{jobs} {were} enqueued."), false),
        "existing" => ("An open job has this unique key; here it is.".to_owned(), true),
        _ => return None,
    };
    Some((sentence, bad))
}

/// What the form asks for.
///
/// # Errors
/// A sentence, where it can't be done.
fn new_jobs(app: &App, draft: &Draft) -> Result<Vec<NewJob>, String> {
    /// As for the API.
    const MOST: usize = 10_000;
    let identifiers: Vec<&str> = draft.identifiers.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if identifiers.is_empty() || identifiers.len() > MOST {
        return Err(format!("write 1 to {MOST} identifiers, one a line; there are {}", identifiers.len()));
    }
    let payload = Some(draft.payload.trim()).filter(|payload| !payload.is_empty());
    let unique_key = Some(draft.unique_key.as_str()).filter(|key| !key.is_empty());
    let config = app.config();
    for (place, identifier) in identifiers.iter().enumerate() {
        // All have the same payload, which is read once.
        let payload = payload.filter(|_| place == 0);
        let written = Written { job_type: &draft.flow, identifier, payload, unique_key };
        if let Some((field, fault)) = written.faults(&config.flows).into_iter().next() {
            return Err(format!("{field}: {fault}"));
        }
    }
    if let Some(payload) = payload {
        check_together(payload, identifiers.len()).map_err(|refusal| format!("payload: {refusal}"))?;
    }
    let flow: FlowType = draft.flow.parse().map_err(|error| format!("{error}"))?;
    if identifiers.len() > 1 && !draft.unique_key.is_empty() {
        return Err("a unique key is one job's; write one identifier".to_owned());
    }
    let number = |name: &str, text: &str| {
        text.trim().parse::<i32>().map_err(|_| format!("{name} is no whole number: {}", parts::plain_name(text)))
    };
    let priority = if draft.priority.trim().is_empty() { 0 } else { number("priority", &draft.priority)? };
    let maximum_attempts = match draft.maximum_attempts.trim() {
        "" => None,
        text => Some(
            u32::try_from(number("attempts", text)?).ok().filter(|most| *most > 0).ok_or("attempts is 1 or more")?,
        ),
    };
    let due = draft.due()?.map_or(Due::After(Duration::ZERO), Due::At);
    let job = |identifier: &str| NewJob {
        flow: flow.clone(),
        identifier: identifier.to_owned(),
        payload: payload.map(ToOwned::to_owned),
        priority,
        due,
        maximum_attempts,
        unique_key: unique_key.map(ToOwned::to_owned),
        trace: None,
    };
    Ok(identifiers.into_iter().map(job).collect())
}
