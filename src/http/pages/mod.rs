//! The page, rendered on the server: each view is a function from what was read to markup, in a file of its own; this one
//! says which address shows which view. `deeds` does what the forms ask for.
//!
//! Every view works without a script: links, forms, and a page that is whole as it comes. With it, `live` keeps the parts
//! of a page fresh.

mod actors;
mod audit;
mod bulk;
mod cache;
mod charts;
mod deeds;
mod form;
mod frame;
mod job;
mod jobs;
mod live;
mod log_tail;
mod missing;
mod overview;
mod parts;
mod recurring;
mod renderings;
mod sign_in;
mod svg;
mod timeline;
mod waits;
mod workers;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use maud::{Markup, html};

use self::cache::Overviews;
use self::form::Fields;
use self::frame::{Frame, Notice, laid_out};
use self::jobs::{Filter, JobsView};
use self::overview::{FlowInfo, OverviewView};
use self::renderings::Renderings;
use super::peers::{NoAnswer, find_worker};
use super::{App, Problem, Viewer};
use crate::domain::{Attempt, JobId, Timestamp};
use crate::store::{AuditFilter, RunRow};

pub(super) use self::missing::missing;
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
    /// How far of it is shown, in bytes; `None` where that is not known.
    at: Option<u64>,
    markup: Markup,
}

/// `/` and what is under it.
pub(super) fn routes() -> Router<App> {
    let mut router = Router::new()
        .route("/", get(show))
        .route("/jobs", get(show).post(deeds::enqueue))
        .route("/jobs/bulk", get(deeds::ask).post(deeds::act_on_many))
        .route("/jobs/{id}", get(show))
        .route("/jobs/{id}/cancel", post(deeds::cancel))
        .route("/jobs/{id}/retry", post(deeds::retry))
        .route("/flows/{type}/pause", post(deeds::pause))
        .route("/flows/{type}/resume", post(deeds::resume))
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
    let overviews = Arc::new(Overviews::default());
    let renderings = Arc::new(Renderings::new(Arc::clone(&overviews)));
    router.layer(Extension(overviews)).layer(Extension(renderings))
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
        return Err(refused(&visitor, &Problem::new(StatusCode::NOT_FOUND, "there is no such page")));
    };
    // Whoever has just done something is to see what came of it.
    let has_acted = fields.first("done").is_some();
    let rendered = render(&app, &overviews, &visitor, &place, has_acted).await;
    let rendered = rendered.map_err(|problem| refused(&visitor, &problem))?;
    let sentence = deeds::notice(&fields);
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
    let body = html! { (rendered.above) div.parts { (laid_out(&rendered.parts, &visitor)) } @if let Some(output) = &rendered.output { (output.markup) } @if !rendered.later.is_empty() { div.parts { (laid_out(&rendered.later, &visitor)) } } (rendered.below) };
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
            let recurring = recurring::entries(&app.config(), &snapshot.recurring, snapshot.overview.now);
            let webhooks: Vec<String> = app.config().webhooks.iter().map(|webhook| webhook.name.clone()).collect();
            let undelivered = webhooks.iter().map(|webhook| app.store().undelivered(webhook));
            let undelivered = futures_util::future::try_join_all(undelivered).await?;
            let webhooks: Vec<_> = webhooks.into_iter().zip(undelivered).collect();
            let view = OverviewView {
                overview: &snapshot.overview,
                history: snapshot.history.as_deref(),
                waiting: &snapshot.waiting,
                flows: &flows,
                recurring: &recurring,
                webhooks: &webhooks,
                complaints: &complaints,
                span: span.as_deref(),
            };
            let parts = overview::parts(view, visitor);
            let title = match overview::attention(view).len() {
                0 => "Overview".to_owned(),
                needs => format!("({needs}) Overview"),
            };
            Ok(Rendered::of(&title, "/", parts, snapshot.overview.now))
        }
        Place::Jobs(filter) => {
            let (store, search) = (app.store(), filter.search());
            let (found, known, now) = tokio::try_join!(store.search(&search), store.types(), store.now())?;
            let types = types(app, known);
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
    let store = app.store();
    let Some(job) = store.job(id).await? else {
        return Err(Problem::new(StatusCode::NOT_FOUND, format!("there is no job {id}")));
    };
    let (runs, events, now) = tokio::try_join!(store.runs(id), store.events(id), store.now())?;
    let (wait, awaited) = tokio::try_join!(waits::why(app, &job, now), waits::awaited(store, id))?;
    let config = app.config();
    let flow = config.flows.iter().find_map(|(name, flow)| (name.as_str() == job.job_type).then_some(flow));
    let view = job::JobView {
        job: &job,
        runs: &runs,
        events: &events,
        wait: wait.as_ref(),
        awaited: (&awaited.0, awaited.1),
        maximum_attempts: job.maximum_attempts.or(flow.map(|flow| flow.retry.maximum_attempts())),
        now,
    };
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
        tail = tokio::task::spawn_blocking(move || log_tail::read(&directory, ended)).await.ok().flatten();
    }
    let mut attempts: Vec<u32> = runs.iter().map(|run| run.attempt.0).collect();
    attempts.dedup();
    let elsewhere = match run {
        Some(run) if tail.is_none() => elsewhere(app, run).await,
        Some(_) | None => None,
    };
    let at = tail.as_ref().map(|tail| tail.at);
    let markup = job::log(&job::LogView { job: &job, run, attempts, tail, elsewhere });
    let output =
        run.map(|run| Output { attempt: run.attempt, ended: run.outcome.is_some(), at, markup: markup.clone() });
    let below = html! { @if output.is_none() { (markup) } (job::rest(view)) };
    let (parts, later) = (job::parts(view, visitor), job::later_parts(view));
    let title = format!("{} Job {id}: {}", parts::mark(job.status), parts::plain_name(&job.identifier));
    Ok(Rendered { output, later, below, ..Rendered::of(&title, "/jobs", parts, now) })
}

/// The worker that a run's output can be fetched from, or why it can't be.
async fn elsewhere(app: &App, run: &RunRow) -> Option<Result<String, String>> {
    let worker = run.worker_id.clone().filter(|worker| worker != app.handle().worker().as_str())?;
    Some(match find_worker(app.store(), &worker).await {
        Ok(_) if app.peers().is_none() => Err(NoAnswer::NoSecret(worker).to_string()),
        Ok((_, row)) if row.address.is_none() => {
            Err(NoAnswer::NoAddress { worker, hostname: row.hostname }.to_string())
        }
        Ok(_) => Ok(worker),
        Err(no_answer) => Err(no_answer.to_string()),
    })
}

/// The flows of the configuration.
fn flows(app: &App, now: Timestamp) -> BTreeMap<String, FlowInfo> {
    let config = app.config();
    let flows = config.flows.iter().map(|(name, flow)| {
        let info = FlowInfo {
            concurrency: flow.concurrency.get(),
            requires: flow.requires.clone(),
            heartbeat_timeout: flow.heartbeat_timeout,
            next_tick: flow.schedule.next_after(now),
        };
        (name.as_str().to_owned(), info)
    });
    flows.collect()
}

/// The types that can be chosen: those of the configuration, and those that rows have.
fn types(app: &App, known: Vec<String>) -> Vec<String> {
    let mut types: Vec<String> = app.config().flows.keys().map(|flow| flow.as_str().to_owned()).chain(known).collect();
    types.sort();
    types.dedup();
    types
}

/// What an open page is told.
async fn watch(
    State(app): State<App>,
    Extension(renderings): Extension<Arc<Renderings>>,
    viewer: Viewer,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let fields = Fields::parse(&query.unwrap_or_default());
    let page = fields.first("page").unwrap_or_default();
    let (path, query) = page.split_once('?').unwrap_or((page, ""));
    let Some(place) = Place::of(path, &Fields::parse(query)) else {
        return Err(Problem::new(StatusCode::NOT_FOUND, "there is no such page"));
    };
    let permit = app.stream_permit()?;
    Ok(live::stream(&app, &viewer, place, &renderings, &fields, permit))
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
    let (page, now) = read.await.map_err(|problem| refused(&visitor, &problem))?;
    let frame = Frame { title: "Audit", view: "/audit", visitor: &visitor, notice: None, now, live: None };
    Ok(Html(frame.around(&audit::audit(&page, actor, now)).into_string()).into_response())
}

/// A page that says why there is none.
fn refused(visitor: &Visitor, problem: &Problem) -> Response {
    let body = html! { section.panel.confirm { h1 { (problem.status().canonical_reason().unwrap_or("Not possible")) } p { (problem.detail()) } a.button href="/" { "To the overview" } } };
    let frame = Frame { title: "Not possible", view: "", visitor, notice: None, now: crate::clock::now(), live: None };
    (problem.status(), Html(frame.around(&body).into_string())).into_response()
}
