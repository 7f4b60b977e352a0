//! The live supervision tree.

use axum::Json;
use axum::extract::State;
use axum::http::Uri;

use super::query::Parameters;
use crate::http::json::{ActorJson, ActorsJson};
use crate::http::problem::Problem;
use crate::http::{App, Viewer};

/// The live supervision tree of this worker
#[utoipa::path(
    get, path = "/api/v1/actors", tag = "service", operation_id = "list_actors",
    responses((status = 200, description = "The actors", body = ActorsJson))
)]
pub(super) async fn actors(State(app): State<App>, _: Viewer, uri: Uri) -> Result<Json<ActorsJson>, Problem> {
    Parameters::of(&uri, &[]).finish()?;
    let actors = app.handle().actors().iter().map(ActorJson::from).collect();
    Ok(Json(ActorsJson { worker_id: app.handle().worker().to_string(), actors }))
}
