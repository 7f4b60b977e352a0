//! Flows.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri};

use super::Segment;
use super::query::{Parameters, shown};
use crate::domain::FlowType;
use crate::http::json::{FlowJson, FlowsJson, RecurringsJson};
use crate::http::problem::Problem;
use crate::http::{App, Operator, Viewer};
use crate::store::{FlowState, PauseResult};

/// How each flow's queue stands
///
/// Types that waiting rows have and that no flow of this service has are listed too; such rows are left alone.
#[utoipa::path(
    get, path = "/api/v1/flows", tag = "flows", operation_id = "list_flows",
    responses((status = 200, description = "The flows", body = FlowsJson))
)]
pub(super) async fn flows(State(app): State<App>, _: Viewer, uri: Uri) -> Result<Json<FlowsJson>, Problem> {
    Parameters::of(&uri, &[]).finish()?;
    let (states, alive) = tokio::try_join!(app.store().flow_states(), app.store().labels_alive())?;
    let states: BTreeMap<&str, &FlowState> = states.iter().map(|state| (state.job_type.as_str(), state)).collect();
    let config = app.config();
    let names: BTreeSet<&str> = config.flows.keys().map(FlowType::as_str).chain(states.keys().copied()).collect();
    let flow = |name: &str| config.flows.values().find(|flow| flow.flow.as_str() == name);
    let flows = names
        .into_iter()
        .map(|name| FlowJson::new(name, flow(name).map(AsRef::as_ref), states.get(name).copied(), &alive));
    Ok(Json(FlowsJson { flows: flows.collect() }))
}

/// Pause a flow over all workers
///
/// Nothing of it is claimed any more; what runs runs on. Safe to repeat.
#[utoipa::path(
    post, path = "/api/v1/flows/{type}/pause", tag = "flows", operation_id = "pause_flow",
    params(("type" = String, Path, description = "The flow's job type")),
    responses(
        (status = 200, description = "The flow", body = FlowJson),
        (status = 404, description = "There is no such flow", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn pause(
    State(app): State<App>,
    Operator(who): Operator,
    Segment(name): Segment,
) -> Result<Json<FlowJson>, Problem> {
    set_paused(&app, &who, &name, true).await
}

/// Let a paused flow go on
///
/// Safe to repeat.
#[utoipa::path(
    post, path = "/api/v1/flows/{type}/resume", tag = "flows", operation_id = "resume_flow",
    params(("type" = String, Path, description = "The flow's job type")),
    responses(
        (status = 200, description = "The flow", body = FlowJson),
        (status = 404, description = "There is no such flow", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn resume(
    State(app): State<App>,
    Operator(who): Operator,
    Segment(name): Segment,
) -> Result<Json<FlowJson>, Problem> {
    set_paused(&app, &who, &name, false).await
}

async fn set_paused(app: &App, who: &Viewer, name: &str, paused: bool) -> Result<Json<FlowJson>, Problem> {
    let no_such_flow = || Problem::new(StatusCode::NOT_FOUND, format!("there is no flow {}", shown(name)));
    let flow: FlowType = name.parse().map_err(|_| no_such_flow())?;
    let store = app.store_for(who);
    let by = format!("{} (api)", who.name);
    let result = if paused { store.pause(&flow, &by).await? } else { store.resume(&flow, &by).await? };
    match result {
        PauseResult::NotFound => return Err(no_such_flow()),
        PauseResult::Changed | PauseResult::Unchanged => {}
    }
    let (states, alive) = tokio::try_join!(store.flow_states(), store.labels_alive())?;
    let state = states.iter().find(|state| state.job_type == flow.as_str());
    Ok(Json(FlowJson::new(flow.as_str(), app.config().flows.get(&flow).map(AsRef::as_ref), state, &alive)))
}

/// The jobs that are enqueued by the clock
#[utoipa::path(
    get, path = "/api/v1/recurring", tag = "flows", operation_id = "list_recurring",
    responses((status = 200, description = "The recurring jobs", body = RecurringsJson))
)]
pub(super) async fn recurring(State(app): State<App>, _: Viewer, uri: Uri) -> Result<Json<RecurringsJson>, Problem> {
    Parameters::of(&uri, &[]).finish()?;
    let rows = app.store().recurring().await?;
    Ok(Json(RecurringsJson::new(&app.config(), &rows, app.store().now().await?)))
}
