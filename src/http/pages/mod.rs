//! The page, rendered on the server: each view is a function from what was read to markup, in a file of its own; this one
//! says which address shows which view, and does what the forms ask for.
//!
//! Every view works without a script: links, forms, and a page that is whole as it comes. With it, `live` keeps the parts
//! of a page fresh.

mod actors;
mod audit;
mod bulk;
mod cache;
mod charts;
mod form;
mod frame;
mod job;
mod jobs;
mod live;
mod overview;
mod parts;
mod sign_in;
mod timeline;
mod workers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, REFERER};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use maud::{Markup, html};

use self::bulk::Deed;
use self::cache::Overviews;
use self::form::Fields;
use self::frame::{Frame, Notice, laid_out};
use self::jobs::{Draft, Filter, JobsView};
use self::overview::{FlowInfo, OverviewView};
use super::{App, Operator, PostedForm, Problem, Viewer};
use crate::domain::{Attempt, FlowType, JobId, Timestamp};
use crate::process::logs::{RunLog, Selection};
use crate::process::text::made_safe;
use crate::store::{AuditFilter, CancelResult, Due, NewJob, PauseResult, RetryResult};

pub(super) use self::sign_in::sign_in;

/// Who looks, as far as a view has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Visitor {
    /// What they are called; `None` where nobody has to sign in.
    name: Option<String>,
    /// Whether they may change anything.
    operator: bool,
    /// What their forms have to bring.
    csrf: String,
}

impl From<&Viewer> for Visitor {
    fn from(viewer: &Viewer) -> Self {
        Self {
            name: viewer.is_signed_in().then(|| viewer.name.clone()),
            operator: viewer.is_operator(),
            csrf: viewer.csrf_token(),
        }
    }
}

/// A piece of a page that is replaced when it changes while the page is open.
struct Part {
    /// The id of its element, which the page has once.
    id: &'static str,
    class: &'static str,
    body: Markup,
}

/// A view that changes while it is open, with what its address says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// The timeline's span.
    Overview(Option<String>),
    Jobs(Box<Filter>),
    Job(JobId, Option<Attempt>),
    Workers,
    Actors,
}

impl Place {
    fn of(path: &str, fields: &Fields) -> Option<Self> {
        match path {
            "/" => Some(Self::Overview(fields.first("span").map(ToOwned::to_owned))),
            "/jobs" => Some(Self::Jobs(Box::new(Filter::of(fields)))),
            "/workers" => Some(Self::Workers),
            "/actors" => Some(Self::Actors),
            other => {
                let id = other.strip_prefix("/jobs/")?.parse().ok()?;
                Some(Self::Job(JobId(id), fields.first("attempt").and_then(|text| text.parse().ok()).map(Attempt)))
            }
        }
    }
}

/// A view as it is at one moment.
struct Rendered {
    title: String,
    /// The path of the view that the head of the page marks.
    view: &'static str,
    /// What stands above the parts and does not change.
    above: Markup,
    parts: Vec<Part>,
    /// A job's output, which is told line by line.
    output: Option<Output>,
    /// More parts, below that.
    later: Vec<Part>,
    below: Markup,
    now: Timestamp,
}

/// The output of one attempt.
struct Output {
    attempt: Attempt,
    /// Whether nothing more will be written.
    ended: bool,
    markup: Markup,
}

/// `/` and what is under it.
pub(super) fn routes() -> Router<App> {
    let mut router = Router::new()
        .route("/", get(show))
        .route("/jobs", get(show).post(enqueue))
        .route("/jobs/bulk", get(ask).post(act_on_many))
        .route("/jobs/{id}", get(show))
        .route("/jobs/{id}/cancel", post(cancel))
        .route("/jobs/{id}/retry", post(retry))
        .route("/flows/{type}/pause", post(pause))
        .route("/flows/{type}/resume", post(resume))
        .route("/workers", get(show))
        .route("/actors", get(show))
        .route("/audit", get(audit_trail))
        .route("/live", get(watch));
    for asset in frame::assets() {
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static(asset.content_type)),
            // Its name says what is in it, so it never changes.
            (CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable")),
        ];
        router = router.route(&asset.path, get(move || std::future::ready((headers.clone(), asset.text))));
    }
    router.layer(Extension(Arc::new(Overviews::default())))
}

type Looking = Extension<Arc<Overviews>>;

/// A view, whole.
async fn show(
    State(app): State<App>,
    Extension(overviews): Looking,
    viewer: Viewer,
    uri: axum::http::Uri,
) -> Result<Response, Response> {
    let fields = Fields::parse(uri.query().unwrap_or_default());
    let visitor = Visitor::from(&viewer);
    let Some(place) = Place::of(uri.path(), &fields) else {
        return Err(refused(&app, &visitor, &Problem::new(StatusCode::NOT_FOUND, "there is no such page")));
    };
    // Whoever has just done something is to see what came of it.
    let has_acted = fields.first("done").is_some();
    let rendered = render(&app, &overviews, &visitor, &place, has_acted).await;
    let rendered = rendered.map_err(|problem| refused(&app, &visitor, &problem))?;
    let sentence = notice(&fields);
    let address = address_of(&uri);
    let mut live = format!("/live?page={}", parts::encoded(&address));
    if let Some(output) = &rendered.output {
        live.push_str(&format!("&attempt={}", output.attempt));
    }
    let frame = Frame {
        title: &rendered.title,
        view: rendered.view,
        visitor: &visitor,
        notice: sentence.as_ref().map(|(sentence, is_bad)| Notice { sentence, is_bad: *is_bad }),
        now: rendered.now,
        live: Some(&live),
    };
    let body = html! { (rendered.above) div.parts { (laid_out(&rendered.parts)) } @if let Some(output) = &rendered.output { (output.markup) } @if !rendered.later.is_empty() { div.parts { (laid_out(&rendered.later)) } } (rendered.below) };
    Ok(Html(frame.around(&body).into_string()).into_response())
}

/// The address of a page without what was just done there.
fn address_of(uri: &axum::http::Uri) -> String {
    let kept = |pair: &&str| !pair.starts_with("done=") && !pair.starts_with("n=") && !pair.starts_with("of=");
    let query: Vec<&str> =
        uri.query().unwrap_or_default().split('&').filter(kept).filter(|pair| !pair.is_empty()).collect();
    if query.is_empty() { uri.path().to_owned() } else { format!("{}?{}", uri.path(), query.join("&")) }
}

/// Reads what a view shows, and renders it; `now` means as it is after what has just been done.
async fn render(
    app: &App,
    overviews: &Overviews,
    visitor: &Visitor,
    place: &Place,
    now: bool,
) -> Result<Rendered, Problem> {
    match place {
        Place::Overview(span) => {
            let snapshot = overviews.read(app.store(), now).await?;
            let flows = flows(app, snapshot.overview.now);
            let complaints = app.handle().complaints();
            let view = OverviewView {
                overview: &snapshot.overview,
                history: snapshot.history.as_deref(),
                waiting: &snapshot.waiting,
                flows: &flows,
                complaints: &complaints,
                span: span.as_deref(),
            };
            let parts = overview::parts(view, visitor);
            Ok(Rendered::of("Overview", "/", parts, snapshot.overview.now))
        }
        Place::Jobs(filter) => {
            let found = app.store().search(&filter.search()).await?;
            let overview = overviews.read(app.store(), false).await?.overview;
            let types = types(app, overview.queues.iter().map(|queue| queue.job_type.clone()));
            let now = app.store().now().await?;
            let view = JobsView { filter, found: &found, types: &types, now };
            let above = jobs::head(view, visitor);
            Ok(Rendered { above, ..Rendered::of("Jobs", "/jobs", vec![jobs::list(view, visitor)], now) })
        }
        Place::Workers => {
            let snapshot = overviews.read(app.store(), now).await?;
            let overview = &snapshot.overview;
            let body = html! { h1 { "Workers" } (workers::workers_table(&overview.workers, Some(&overview.open), overview.now)) };
            let part = Part { id: "workers", class: "panel", body };
            Ok(Rendered::of("Workers", "/workers", vec![part], overview.now))
        }
        Place::Actors => {
            let now = app.store().now().await?;
            let body = actors::actors(&app.handle().actors(), app.handle().worker().as_str(), now);
            let part = Part { id: "actors", class: "panel", body };
            Ok(Rendered::of("Actors", "/actors", vec![part], now))
        }
        Place::Job(id, attempt) => a_job(app, visitor, *id, *attempt).await,
    }
}

impl Rendered {
    fn of(title: &str, view: &'static str, parts: Vec<Part>, now: Timestamp) -> Self {
        Self {
            title: title.to_owned(),
            view,
            above: html! {},
            parts,
            output: None,
            later: Vec::new(),
            below: html! {},
            now,
        }
    }
}

async fn a_job(app: &App, visitor: &Visitor, id: JobId, attempt: Option<Attempt>) -> Result<Rendered, Problem> {
    /// So many lines are shown without a script.
    const TAIL: usize = 300;
    let store = app.store();
    let Some(job) = store.job(id).await? else {
        return Err(Problem::new(StatusCode::NOT_FOUND, format!("there is no job {id}")));
    };
    let (runs, events, now) = (store.runs(id).await?, store.events(id).await?, store.now().await?);
    let view = job::JobView { job: &job, runs: &runs, events: &events, now };
    let run = match attempt {
        Some(attempt) => runs.iter().rfind(|run| run.attempt == attempt),
        None => runs.last(),
    };
    let mut tail = None;
    if let Some(run) = run
        && let Ok(token) = run.run_token.parse()
    {
        let directory = app.handle().run_dir(id, run.attempt, &token);
        let ended = run.outcome.is_some();
        let read = tokio::task::spawn_blocking(move || {
            let log = RunLog::open(&directory, Selection::Both, ended);
            directory.is_dir().then(|| log.tail(TAIL).map(|page| page.pieces).unwrap_or_default())
        });
        let pieces = read.await.ok().flatten();
        tail = pieces
            .map(|pieces| pieces.into_iter().map(|piece| (piece.stream, made_safe(&piece.bytes))).collect::<Vec<_>>());
    }
    let mut attempts: Vec<u32> = runs.iter().map(|run| run.attempt.0).collect();
    attempts.dedup();
    let markup = job::log(&job::LogView { job: id, run, attempts, tail });
    let output = run.map(|run| Output { attempt: run.attempt, ended: run.outcome.is_some(), markup: markup.clone() });
    let below = html! { @if output.is_none() { (markup) } (job::rest(view)) };
    let (parts, later) = (job::parts(view, visitor), job::later_parts(view));
    let title = format!("Job {id}: {}", parts::plain_name(&job.identifier));
    Ok(Rendered { output, later, below, ..Rendered::of(&title, "/jobs", parts, now) })
}

/// The flows of the configuration.
fn flows(app: &App, now: Timestamp) -> BTreeMap<String, FlowInfo> {
    let config = app.config();
    let flows = config.flows.iter().map(|(name, flow)| {
        let info = FlowInfo {
            concurrency: flow.concurrency.get(),
            heartbeat_timeout: flow.heartbeat_timeout,
            next_tick: flow.schedule.next_after(now),
        };
        (name.as_str().to_owned(), info)
    });
    flows.collect()
}

/// The types that can be chosen: those of the configuration, and those that rows have.
fn types(app: &App, known: impl Iterator<Item = String>) -> Vec<String> {
    let mut types: Vec<String> = app.config().flows.keys().map(|flow| flow.as_str().to_owned()).chain(known).collect();
    types.sort();
    types.dedup();
    types
}

/// What an open page is told.
async fn watch(
    State(app): State<App>,
    Extension(overviews): Looking,
    viewer: Viewer,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let fields = Fields::parse(&query.unwrap_or_default());
    let page = fields.first("page").unwrap_or_default();
    let (path, query) = page.split_once('?').unwrap_or((page, ""));
    let Some(place) = Place::of(path, &Fields::parse(query)) else {
        return Err(Problem::new(StatusCode::NOT_FOUND, "there is no such page"));
    };
    Ok(live::stream(app, Visitor::from(&viewer), place, overviews, &fields))
}

async fn audit_trail(State(app): State<App>, viewer: Viewer, RawQuery(query): RawQuery) -> Result<Response, Response> {
    let (visitor, fields) = (Visitor::from(&viewer), Fields::parse(&query.unwrap_or_default()));
    let actor = fields.first("actor").unwrap_or_default().trim();
    let filter = AuditFilter {
        actor: (!actor.is_empty()).then(|| actor.to_owned()),
        action: None,
        cursor: fields.first("cursor").and_then(|cursor| cursor.parse().ok()),
        limit: 100,
    };
    let read = async { Ok::<_, Problem>((app.store().audit(&filter).await?, app.store().now().await?)) };
    let (page, now) = read.await.map_err(|problem| refused(&app, &visitor, &problem))?;
    let frame = Frame { title: "Audit", view: "/audit", visitor: &visitor, notice: None, now, live: None };
    Ok(Html(frame.around(&audit::audit(&page, actor, now)).into_string()).into_response())
}

/// A page that says why there is none.
fn refused(_: &App, visitor: &Visitor, problem: &Problem) -> Response {
    let body = html! { section.panel.confirm { h1 { (problem.status().canonical_reason().unwrap_or("Not possible")) } p { (problem.detail()) } a.button href="/" { "To the overview" } } };
    let frame = Frame { title: "Not possible", view: "", visitor, notice: None, now: crate::clock::now(), live: None };
    (problem.status(), Html(frame.around(&body).into_string())).into_response()
}

/// Leads back to where a form was sent from, to say what came of it.
fn back(headers: &HeaderMap, fallback: &str, done: &str, count: usize) -> Response {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let path = text(REFERER).split_once("://").and_then(|(_, rest)| rest.strip_prefix(text(HOST)));
    let path = path.filter(|path| path.starts_with('/') && !path.starts_with("//") && !path.starts_with("/jobs/bulk"));
    let uri: Option<axum::http::Uri> = path.and_then(|path| path.parse().ok());
    let address = uri.map_or_else(|| fallback.to_owned(), |uri| address_of(&uri));
    let joint = if address.contains('?') { '&' } else { '?' };
    Redirect::to(&format!("{address}{joint}done={done}&n={count}")).into_response()
}

/// The sentence about what was just done, and whether it is bad news.
fn notice(fields: &Fields) -> Option<(String, bool)> {
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

async fn cancel(
    State(app): State<App>,
    Path(id): Path<i64>,
    headers: HeaderMap,
    posted: PostedForm<Fields>,
) -> Result<Response, Response> {
    let visitor = Visitor::from(&posted.viewer);
    let act = async {
        let Operator(viewer) = posted.viewer.operator()?;
        Ok::<_, Problem>(app.store_for(&viewer).request_cancel(JobId(id)).await?)
    };
    let fallback = format!("/jobs/{id}");
    match act.await.map_err(|problem| refused(&app, &visitor, &problem))? {
        CancelResult::Cancelled => Ok(back(&headers, &fallback, "cancelled", 1)),
        CancelResult::Requested | CancelResult::AlreadyRequested => {
            Ok(back(&headers, &fallback, "cancel-requested", 1))
        }
        CancelResult::NotPossible(_) => Ok(back(&headers, &fallback, "not-cancelled", 1)),
        CancelResult::NotFound => Err(refused(&app, &visitor, &no_such_job(id))),
    }
}

fn no_such_job(id: i64) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is no job {id}"))
}

async fn retry(
    State(app): State<App>,
    Path(id): Path<i64>,
    headers: HeaderMap,
    posted: PostedForm<Fields>,
) -> Result<Response, Response> {
    let visitor = Visitor::from(&posted.viewer);
    let act = async {
        let Operator(viewer) = posted.viewer.operator()?;
        Ok::<_, Problem>(app.store_for(&viewer).retry(&[JobId(id)], &by(&viewer)).await?)
    };
    let fallback = format!("/jobs/{id}");
    match act.await.map_err(|problem| refused(&app, &visitor, &problem))?.first() {
        Some(RetryResult::Retried) => Ok(back(&headers, &fallback, "retried", 1)),
        Some(RetryResult::NotPossible(_)) => Ok(back(&headers, &fallback, "not-retried", 1)),
        Some(RetryResult::KeyTaken(_)) => Ok(back(&headers, &fallback, "key-taken", 1)),
        Some(RetryResult::NotFound) | None => Err(refused(&app, &visitor, &no_such_job(id))),
    }
}

/// Who asked, as events and flows keep it.
fn by(viewer: &Viewer) -> String {
    format!("{} (page)", viewer.name)
}

async fn pause(
    State(app): State<App>,
    Path(flow): Path<String>,
    headers: HeaderMap,
    posted: PostedForm<Fields>,
) -> Result<Response, Response> {
    set_paused(&app, &flow, &headers, posted, true).await
}

async fn resume(
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
    let visitor = Visitor::from(&posted.viewer);
    let no_flow = || Problem::new(StatusCode::NOT_FOUND, format!("there is no flow {}", parts::plain_name(flow)));
    let act = async {
        let Operator(viewer) = posted.viewer.operator()?;
        let flow: FlowType = flow.parse().map_err(|_| no_flow())?;
        let (store, who) = (app.store_for(&viewer), by(&viewer));
        let result = if paused { store.pause(&flow, &who).await? } else { store.resume(&flow, &who).await? };
        if result == PauseResult::NotFound { Err(no_flow()) } else { Ok(()) }
    };
    act.await.map_err(|problem| refused(app, &visitor, &problem))?;
    Ok(back(headers, "/", if paused { "paused" } else { "resumed" }, 1))
}

/// Asks before many jobs are cancelled or retried.
async fn ask(State(app): State<App>, viewer: Viewer, RawQuery(query): RawQuery) -> Result<Response, Response> {
    let (visitor, fields) = (Visitor::from(&viewer), Fields::parse(&query.unwrap_or_default()));
    let read = async {
        let Operator(_) = viewer.operator()?;
        let (deed, all) = deed(&fields)?;
        Ok::<_, Problem>((deed, all, bulk::chosen(app.store(), deed, all, &fields).await?))
    };
    let (deed, all, chosen) = read.await.map_err(|problem| refused(&app, &visitor, &problem))?;
    let frame = Frame {
        title: "Are you sure?",
        view: "/jobs",
        visitor: &visitor,
        notice: None,
        now: crate::clock::now(),
        live: None,
    };
    Ok(Html(frame.around(&bulk::confirm(deed, all, &chosen, &fields, &visitor)).into_string()).into_response())
}

fn deed(fields: &Fields) -> Result<(Deed, bool), Problem> {
    let deed = fields.first("do").and_then(Deed::of);
    deed.ok_or_else(|| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "the form says neither cancel nor retry"))
}

async fn act_on_many(State(app): State<App>, posted: PostedForm<Fields>) -> Result<Response, Response> {
    let (visitor, fields) = (Visitor::from(&posted.viewer), posted.form);
    let act = async {
        let Operator(viewer) = posted.viewer.operator()?;
        let (deed, all) = deed(&fields)?;
        let chosen = bulk::chosen(app.store(), deed, all, &fields).await?;
        let ids: Vec<JobId> = chosen.rows.iter().map(|row| row.id).collect();
        let store = app.store_for(&viewer);
        match deed {
            Deed::Retry => {
                let results = store.retry(&ids, &by(&viewer)).await?;
                Ok::<_, Problem>(("retried", results.iter().filter(|result| **result == RetryResult::Retried).count()))
            }
            Deed::Cancel => {
                let jobs: Vec<_> = chosen.rows.iter().map(|row| (row.id, row.status)).collect();
                let asked = store.cancel_chosen(&jobs).await?.len();
                Ok(("cancel-requested", asked))
            }
        }
    };
    let (done, count) = act.await.map_err(|problem| refused(&app, &visitor, &problem))?;
    let address = Filter::of(&fields).address(None);
    let joint = if address.contains('?') { '&' } else { '?' };
    Ok(Redirect::to(&format!("{address}{joint}done={done}&n={count}")).into_response())
}

async fn enqueue(
    State(app): State<App>,
    Extension(overviews): Looking,
    posted: PostedForm<Fields>,
) -> Result<Response, Response> {
    let (visitor, draft) = (Visitor::from(&posted.viewer), Draft::of(&posted.form));
    let act = async {
        let Operator(viewer) = posted.viewer.operator()?;
        let jobs = match new_jobs(&app, &draft) {
            Ok(jobs) => jobs,
            Err(refusal) => return Ok::<_, Problem>(Err(refusal)),
        };
        Ok(Ok(app.store_for(&viewer).enqueue(&jobs).await?))
    };
    match act.await.map_err(|problem| refused(&app, &visitor, &problem))? {
        Ok(enqueued) => Ok(match enqueued.as_slice() {
            [only] if only.existing => Redirect::to(&format!("/jobs/{}?done=existing", only.id)).into_response(),
            [only] => Redirect::to(&format!("/jobs/{}?done=enqueued&n=1", only.id)).into_response(),
            many => Redirect::to(&format!("/jobs?done=enqueued&n={}", many.len())).into_response(),
        }),
        Err(refusal) => {
            // What was typed is not lost: the form comes back with the reason.
            let known = overviews.read(app.store(), false).await.map(|snapshot| snapshot.overview);
            let known =
                known.map(|overview| overview.queues.iter().map(|queue| queue.job_type.clone()).collect::<Vec<_>>());
            let types = types(&app, known.unwrap_or_default().into_iter());
            let body = html! { section.panel { h1 { "Enqueue jobs" } (jobs::enqueue(&types, &visitor, &draft, Some(&refusal))) } };
            let frame = Frame {
                title: "Enqueue jobs",
                view: "/jobs",
                visitor: &visitor,
                notice: None,
                now: crate::clock::now(),
                live: None,
            };
            Err((StatusCode::UNPROCESSABLE_ENTITY, Html(frame.around(&body).into_string())).into_response())
        }
    }
}

/// What the form asks for.
///
/// # Errors
/// A sentence, where it can't be done.
fn new_jobs(app: &App, draft: &Draft) -> Result<Vec<NewJob>, String> {
    /// As for the API.
    const MOST: usize = 10_000;
    let flow: FlowType = draft.flow.parse().map_err(|error| format!("{error}"))?;
    let identifiers: Vec<&str> = draft.identifiers.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if identifiers.is_empty() || identifiers.len() > MOST {
        return Err(format!("write 1 to {MOST} identifiers, one a line; there are {}", identifiers.len()));
    }
    let config = app.config();
    if let Some(flow) = config.flows.get(&flow)
        && let Some((identifier, error)) = identifiers
            .iter()
            .find_map(|identifier| Some((identifier, flow.identifier_pattern.check(identifier).err()?)))
    {
        return Err(format!("{}: {error}", parts::plain_name(identifier)));
    }
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
    let payload = draft.payload.trim();
    if !payload.is_empty() {
        serde_json::from_str::<serde::de::IgnoredAny>(payload)
            .map_err(|error| format!("the payload is no JSON: {error}"))?;
    }
    let due = draft.due()?.map_or(Due::After(Duration::ZERO), Due::At);
    let job = |identifier: &str| NewJob {
        flow: flow.clone(),
        identifier: identifier.to_owned(),
        payload: (!payload.is_empty()).then(|| payload.to_owned()),
        priority,
        due,
        maximum_attempts,
        unique_key: (!draft.unique_key.is_empty()).then(|| draft.unique_key.clone()),
    };
    Ok(identifiers.into_iter().map(job).collect())
}
