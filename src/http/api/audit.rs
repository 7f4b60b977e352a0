//! The audit trail.

use axum::Json;
use axum::extract::State;
use axum::http::Uri;

use super::query::{Parameters, cursor};
use crate::http::json::{AuditJson, AuditsJson};
use crate::http::problem::Problem;
use crate::http::{App, Viewer};
use crate::store::AuditFilter;

/// Who did what, newest first
#[utoipa::path(
    get, path = "/api/v1/audit", tag = "audit", operation_id = "list_audit",
    params(
        ("actor" = Option<String>, Query, description = "Only what this token or user did"),
        ("action" = Option<String>, Query, description = "Only deeds of this kind, such as `cancel`"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "How many at the most; 100 where nothing is said"),
        ("cursor" = Option<String>, Query, pattern = "^a[0-9a-f]{1,16}$", description = "The `next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page of the audit trail", body = AuditsJson))
)]
pub(super) async fn audit(State(app): State<App>, _: Viewer, uri: Uri) -> Result<Json<AuditsJson>, Problem> {
    let mut parameters = Parameters::of(&uri, &["actor", "action", "limit", "cursor"]);
    let filter = AuditFilter {
        actor: parameters.one("actor"),
        action: parameters.one("action"),
        cursor: parameters.cursor(),
        limit: parameters.limit(),
    };
    parameters.finish()?;
    let page = app.store().audit(&filter).await?;
    let audit = page.rows.iter().map(AuditJson::from).collect();
    Ok(Json(AuditsJson { audit, next_cursor: page.next_cursor.map(cursor) }))
}
