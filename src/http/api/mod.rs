//! `/api`: the HTTP API (CONTRACT §5), described by itself at `/api/openapi.json`.

mod actors;
mod audit;
mod bulk;
mod deliveries;
mod document;
pub(super) mod enqueue;
mod events;
mod flows;
mod jobs;
pub(super) mod logs;
mod prune;
mod query;
mod workers;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{FromRequestParts, Path};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, Info, OpenApi, Paths, Ref, RefOr, ResponseBuilder};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::problem::{FieldError, Problem};

/// What every operation may answer besides what it says itself.
const COMMON: [(&str, &str); 5] = [
    ("400", "The request can't be understood"),
    ("401", "It takes a token, and there is none or a wrong one"),
    ("403", "The token is a viewer's, or the request comes from a page of another site"),
    ("500", "The service failed; its log says why"),
    ("503", "The database is not available at the moment, or too many streams are open"),
];
const PROBLEM: &str = "application/problem+json";

/// The routes, and the description of them.
pub(super) fn routes() -> Router<App> {
    let mut described = OpenApi::new(
        Info::builder()
            .title("Callsheet")
            .version(env!("CARGO_PKG_VERSION"))
            .description(Some(
                "Rows of a jobs table become supervised processes. Keys are the column names; times are RFC 3339 in UTC. \
                 Errors are RFC 9457 problems that name the fields that are wrong.",
            ))
            .build(),
        Paths::new(),
    );
    described.info.license = Some(utoipa::openapi::License::builder().name("MIT OR Apache-2.0").build());
    let (router, mut openapi) = OpenApiRouter::with_openapi(described)
        .routes(routes!(jobs::list, enqueue::enqueue))
        .routes(routes!(bulk::cancel))
        .routes(routes!(bulk::retry))
        .routes(routes!(jobs::show))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::retry))
        .routes(routes!(logs::logs))
        .routes(routes!(events::events))
        .routes(routes!(flows::flows))
        .routes(routes!(flows::pause))
        .routes(routes!(flows::resume))
        .routes(routes!(flows::recurring))
        .routes(routes!(workers::workers))
        .routes(routes!(workers::drain))
        .routes(routes!(actors::actors))
        .routes(routes!(audit::audit))
        .routes(routes!(prune::prune))
        .routes(routes!(deliveries::list))
        .routes(routes!(deliveries::again))
        .split_for_parts();
    complete(&mut openapi);
    let description = Bytes::from(openapi.to_json().unwrap_or_default());
    router.route("/api/openapi.json", get(async move || describe(description.clone())))
}

/// The last part of an address that names something; one that is no text is refused as any other mistake.
struct Segment(String);

impl FromRequestParts<App> for Segment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let path = Path::<String>::from_request_parts(parts, app).await;
        path.map(|Path(name)| Self(name)).map_err(|refusal| Problem::new(StatusCode::BAD_REQUEST, refusal.body_text()))
    }
}

/// The description is the same for everybody and tells nothing of what is here, so it takes no token.
fn describe(description: Bytes) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], description).into_response()
}

/// Adds to every operation what all of them have in common.
fn complete(openapi: &mut OpenApi) {
    let components = openapi.components.get_or_insert_default();
    components.schemas.insert(Problem::name().into(), Problem::schema());
    components.schemas.insert(FieldError::name().into(), FieldError::schema());
    components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    openapi.security = Some(vec![SecurityRequirement::new("token", Vec::<String>::new())]);
    for item in openapi.paths.paths.values_mut() {
        for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
            for (status, what) in COMMON {
                problem(operation, status, what);
            }
        }
    }
}

fn problem(operation: &mut Operation, status: &str, what: &str) {
    let content = Content::new(Some(RefOr::<utoipa::openapi::Schema>::Ref(Ref::from_schema_name(Problem::name()))));
    let response = ResponseBuilder::new().description(what).content(PROBLEM, content).build();
    operation.responses.responses.entry(status.to_owned()).or_insert(RefOr::T(response));
}
