//! Looking at jobs, and acting on one.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri};

use super::Segment;
use super::query::{Parameters, cursor, shown};
use crate::domain::JobId;
use crate::http::json::{DependencyJson, EventJson, JobDetailJson, JobJson, JobsJson, RunJson};
use crate::http::problem::{FieldError, Problem};
use crate::http::{App, Operator, Viewer};
use crate::store::{CancelResult, JobFilter, JobSearch, RetryResult};

/// The job that an address names.
pub(super) fn job_id(text: &str) -> Result<JobId, Problem> {
    text.parse().map(JobId).map_err(|_| {
        let detail = format!("{} is no job's id, which is a whole number", shown(text));
        let error = FieldError { field: "id".to_owned(), pointer: None, detail };
        Problem::invalid(StatusCode::BAD_REQUEST, vec![error])
    })
}

pub(super) fn no_such_job(id: JobId) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is no job {id}"))
}

/// List jobs, newest first
///
/// A page is where it is however many rows are added or change meanwhile: the cursor names a row, not a count. It is shorter
/// than `limit` where payloads are large; only without `next_cursor` is it the last.
#[utoipa::path(
    get, path = "/api/v1/jobs", tag = "jobs", operation_id = "list_jobs",
    params(
        ("type" = Option<Vec<String>>, Query, description = "Only of this type; may be repeated", explode = true),
        ("status" = Option<Vec<crate::http::json::StatusWord>>, Query, description = "Only of this status; may be repeated", explode = true),
        ("identifier" = Option<String>, Query, description = "Only with exactly this identifier"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "How many at the most; 100 where nothing is said"),
        ("cursor" = Option<String>, Query, pattern = "^a[0-9a-f]{1,16}$", description = "The `next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page of jobs", body = JobsJson))
)]
pub(super) async fn list(State(app): State<App>, _: Viewer, uri: Uri) -> Result<Json<JobsJson>, Problem> {
    let mut parameters = Parameters::of(&uri, &["type", "status", "identifier", "limit", "cursor"]);
    let (types, statuses) = (parameters.types(), parameters.statuses());
    let identifier = parameters.one("identifier");
    let at = parameters.cursor().map(JobId);
    let limit = parameters.limit();
    parameters.finish()?;
    let (rows, next_cursor) = if identifier.is_some() {
        let page = app.store().list(&JobFilter { types, statuses, identifier, cursor: at, limit }).await?;
        (page.rows, page.next_cursor)
    } else {
        let search = JobSearch { types, statuses, cursor: at, limit, payloads: true, ..JobSearch::default() };
        let found = app.store().search(&search).await?;
        (found.rows, found.next_cursor)
    };
    Ok(Json(JobsJson { jobs: rows.iter().map(JobJson::from).collect(), next_cursor: next_cursor.map(cursor) }))
}

/// One job with every run and every status change
#[utoipa::path(
    get, path = "/api/v1/jobs/{id}", tag = "jobs", operation_id = "get_job",
    params(("id" = i64, Path, description = "The job")),
    responses(
        (status = 200, description = "The job", body = JobDetailJson),
        (status = 404, description = "There is no such job", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show(
    State(app): State<App>,
    _: Viewer,
    Segment(id): Segment,
) -> Result<Json<JobDetailJson>, Problem> {
    let id = job_id(&id)?;
    let store = app.store();
    let job = store.job(id).await?.ok_or_else(|| no_such_job(id))?;
    Ok(Json(JobDetailJson {
        job: JobJson::from(&job),
        runs: store.runs(id).await?.iter().map(RunJson::from).collect(),
        events: store.events(id).await?.iter().map(EventJson::from).collect(),
        after: store.dependencies(id).await?.into_iter().map(DependencyJson::from).collect(),
    }))
}

/// Cancel a job
///
/// One that waits is CANCELLED at once. An open one is marked, and its worker ends its command with all that it started.
#[utoipa::path(
    post, path = "/api/v1/jobs/{id}/cancel", tag = "jobs", operation_id = "cancel_job",
    params(("id" = i64, Path, description = "The job")),
    responses(
        (status = 202, description = "The job, cancelled or about to be", body = JobJson),
        (status = 404, description = "There is no such job", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It has ended", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn cancel(
    State(app): State<App>,
    Operator(who): Operator,
    Segment(id): Segment,
) -> Result<(StatusCode, Json<JobJson>), Problem> {
    let id = job_id(&id)?;
    match app.store_for(&who).request_cancel(id).await? {
        CancelResult::NotFound => Err(no_such_job(id)),
        CancelResult::NotPossible(status) => Err(Problem::new(
            StatusCode::CONFLICT,
            format!("job {id} can't be cancelled: it has ended and is {status}"),
        )),
        CancelResult::Cancelled | CancelResult::Requested | CancelResult::AlreadyRequested => accepted(&app, id).await,
    }
}

/// Have a job tried again
///
/// It must be ERROR or CANCELLED. It waits again, with as many attempts and as much time as a new one; its runs and logs are
/// kept.
#[utoipa::path(
    post, path = "/api/v1/jobs/{id}/retry", tag = "jobs", operation_id = "retry_job",
    params(("id" = i64, Path, description = "The job")),
    responses(
        (status = 202, description = "The job, waiting again", body = JobJson),
        (status = 404, description = "There is no such job", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Its status does not allow it, or an open job has its unique_key", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn retry(
    State(app): State<App>,
    Operator(who): Operator,
    Segment(id): Segment,
) -> Result<(StatusCode, Json<JobJson>), Problem> {
    let id = job_id(&id)?;
    let conflict = |detail: String| Err(Problem::new(StatusCode::CONFLICT, detail));
    match app.store_for(&who).retry(&[id], &format!("{} (api)", who.name)).await?.pop() {
        None | Some(RetryResult::NotFound) => Err(no_such_job(id)),
        Some(RetryResult::Retried) => accepted(&app, id).await,
        Some(RetryResult::NotPossible(status)) => conflict(format!("job {id} can't be retried: it is {status}")),
        Some(RetryResult::KeyTaken(holder)) => {
            conflict(format!("job {id} can't be retried: job {holder} is open and has its unique_key"))
        }
    }
}

async fn accepted(app: &App, id: JobId) -> Result<(StatusCode, Json<JobJson>), Problem> {
    let job = app.store().job(id).await?.ok_or_else(|| no_such_job(id))?;
    Ok((StatusCode::ACCEPTED, Json(JobJson::from(&job))))
}
