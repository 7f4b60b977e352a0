//! Events on their way to webhooks.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri};

use super::Segment;
use super::query::{Parameters, cursor, shown};
use crate::http::json::{DeliveriesJson, DeliveryJson};
use crate::http::problem::Problem;
use crate::http::{App, Operator, Viewer};
use crate::store::{AgainResult, DeliveryFilter};

const STATES: [&str; 3] = ["WAITING", "DELIVERED", "FAILED"];

/// What has been sent to webhooks, newest first
#[utoipa::path(
    get, path = "/api/v1/deliveries", tag = "webhooks", operation_id = "list_deliveries",
    params(
        ("webhook" = Option<String>, Query, description = "Only those to the webhook of this name"),
        ("state" = Option<String>, Query, pattern = "^(WAITING|DELIVERED|FAILED)$", description = "Only those in this state"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "How many at the most; 100 where nothing is said"),
        ("cursor" = Option<String>, Query, pattern = "^a[0-9a-f]{1,16}$", description = "The `next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page of deliveries", body = DeliveriesJson))
)]
pub(super) async fn list(State(app): State<App>, _: Viewer, uri: Uri) -> Result<Json<DeliveriesJson>, Problem> {
    let mut parameters = Parameters::of(&uri, &["webhook", "state", "limit", "cursor"]);
    let filter = DeliveryFilter {
        webhook: parameters.one("webhook"),
        state: parameters.read("state", |text| match STATES.contains(&text) {
            true => Ok(text.to_owned()),
            false => Err(format!("{} is none of {}", shown(text), STATES.join(", "))),
        }),
        cursor: parameters.cursor(),
        limit: parameters.limit(),
    };
    parameters.finish()?;
    let page = app.store().deliveries(&filter).await?;
    let deliveries = page.rows.into_iter().map(DeliveryJson::from).collect();
    Ok(Json(DeliveriesJson { deliveries, next_cursor: page.next_cursor.map(cursor) }))
}

/// Send a delivery again that has failed
#[utoipa::path(
    post, path = "/api/v1/deliveries/{id}/again", tag = "webhooks", operation_id = "deliver_again",
    params(("id" = i64, Path, description = "The delivery")),
    responses(
        (status = 202, description = "It is sent again"),
        (status = 404, description = "There is no such delivery", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It has not failed", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn again(
    State(app): State<App>,
    Operator(who): Operator,
    Segment(id): Segment,
) -> Result<StatusCode, Problem> {
    let none = || Problem::new(StatusCode::NOT_FOUND, format!("there is no delivery {}", shown(&id)));
    let number = id.parse().map_err(|_| none())?;
    match app.store_for(&who).deliver_again(number).await? {
        AgainResult::NotFound => Err(none()),
        AgainResult::NotPossible => {
            Err(Problem::new(StatusCode::CONFLICT, "it has not failed; only FAILED deliveries are sent again"))
        }
        AgainResult::Waits => Ok(StatusCode::ACCEPTED),
    }
}
