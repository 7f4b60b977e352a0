//! What retention removes, now.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;

use super::query::{Parameters, shown};
use crate::http::json::PrunedJson;
use crate::http::problem::Problem;
use crate::http::{App, Operator};

/// How long a request removes rows; the service goes on by itself with the rest.
const WITHIN: Duration = Duration::from_secs(10);

/// Remove now what `[retention]` lets go
///
/// The service does this by itself each hour. It goes on for some seconds; where `more` is true the rest goes later. The
/// logs of this worker are looked for after the answer. Safe to repeat.
#[utoipa::path(
    post, path = "/api/v1/prune", tag = "service", operation_id = "prune",
    params(("dry_run" = Option<bool>, Query, description = "Only say what would go")),
    responses((status = 200, description = "What went, or would go", body = PrunedJson))
)]
pub(super) async fn prune(
    State(app): State<App>,
    Operator(who): Operator,
    uri: Uri,
) -> Result<Json<PrunedJson>, Problem> {
    let mut parameters = Parameters::of(&uri, &["dry_run"]);
    let dry_run = parameters.read("dry_run", |text| match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("{} is neither true nor false", shown(text))),
    });
    parameters.finish()?;
    let dry_run = dry_run.unwrap_or(false);
    let store = app.store_for(&who);
    let horizon = app.config().retention.horizon(store.now().await?);
    if dry_run {
        return Ok(Json(PrunedJson::new(store.prunable(&horizon).await?, None, true)));
    }
    let pruned = store.prune(&horizon, WITHIN).await?;
    if pruned.total() > 0 {
        store.note_deed("prune", "what retention lets go", &format!("{} rows removed", pruned.total())).await?;
    }
    app.handle().look_for_old();
    Ok(Json(PrunedJson::new(pruned, None, false)))
}
