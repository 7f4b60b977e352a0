//! Workers, and having one drained.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use serde::Serialize;
use utoipa::ToSchema;

use super::Segment;
use super::query::{Parameters, shown};
use crate::domain::WorkerId;
use crate::http::json::{WorkerJson, WorkersJson};
use crate::http::problem::Problem;
use crate::http::{App, Operator, Viewer};
use crate::store::DrainResult;

/// Every worker that shares these tables
#[utoipa::path(
    get, path = "/api/v1/workers", tag = "service", operation_id = "list_workers",
    responses((status = 200, description = "The workers", body = WorkersJson))
)]
pub(super) async fn workers(State(app): State<App>, _: Viewer, uri: Uri) -> Result<Json<WorkersJson>, Problem> {
    Parameters::of(&uri, &[]).finish()?;
    let now = app.store().now().await?;
    let workers = app.store().workers().await?;
    Ok(Json(WorkersJson { workers: workers.iter().map(|row| WorkerJson::new(row, now)).collect() }))
}

/// A worker that was asked to drain.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct DrainJson {
    /// The worker.
    worker_id: String,
    /// Whether this was the first to ask.
    result: DrainWord,
    /// The jobs that it still runs; once they have ended it ends, too.
    waits_for: Vec<i64>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum DrainWord {
    /// It claims nothing new from now on.
    Requested,
    /// Somebody had asked already.
    AlreadyRequested,
    /// It has ended meanwhile.
    Stopped,
}

/// Have a worker claim nothing new, and end when its runs have ended
///
/// However long that takes; its service ends with exit code 0 then. Safe to repeat. A worker that is started anew is not drained.
#[utoipa::path(
    post, path = "/api/v1/workers/{worker_id}/drain", tag = "service", operation_id = "drain_worker",
    params(("worker_id" = String, Path, description = "The worker")),
    responses(
        (status = 202, description = "It drains", body = DrainJson),
        (status = 404, description = "No running service of this worker was seen", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn drain(
    State(app): State<App>,
    Operator(who): Operator,
    Segment(name): Segment,
) -> Result<(StatusCode, Json<DrainJson>), Problem> {
    let none =
        || Problem::new(StatusCode::NOT_FOUND, format!("no running service of worker {} was seen", shown(&name)));
    let worker: WorkerId = name.parse().map_err(|_| none())?;
    let store = app.store_for(&who);
    let (now, workers) = tokio::try_join!(store.now(), store.workers())?;
    if !workers.iter().any(|row| row.worker_id == name && row.is_live(now)) {
        return Err(none());
    }
    let result = match store.request_drain(&worker, &format!("{} (api)", who.name)).await? {
        DrainResult::Requested => DrainWord::Requested,
        DrainResult::AlreadyRequested => DrainWord::AlreadyRequested,
        // It ended between the two looks, which is what was asked for.
        DrainResult::NotFound | DrainResult::Stopped => DrainWord::Stopped,
    };
    let open = store.open_jobs(&worker, None).await?;
    let own = open.iter().filter(|job| job.worker_id.as_deref() == Some(worker.as_str()));
    let waits_for = own.map(|job| job.id.0).collect();
    Ok((StatusCode::ACCEPTED, Json(DrainJson { worker_id: name, result, waits_for })))
}
