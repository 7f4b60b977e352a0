//! The web page: everything that is for people's eyes.

use axum::Router;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use maud::{DOCTYPE, html};

use super::App;
use super::auth::Viewer;

/// `/` and what is under it.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/", get(index))
}

/// What there is to see, for whoever opens the address.
async fn index(_: Viewer) -> Response {
    let version = env!("CARGO_PKG_VERSION");
    let text = format!(
        "callsheet {version}\n\n/healthz            whether the process lives\n/readyz             whether it can work, and if not, why\n\
         /metrics            for Prometheus\n/api/openapi.json   the API\n\nJobs: callsheet list, show, logs; see callsheet --help.\n"
    );
    ([(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))], text).into_response()
}

/// The form that asks for a token; `refusal` says why the last one was not taken, `next` where it leads.
pub(super) fn sign_in(next: &str, refusal: Option<&str>) -> Response {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head { meta charset="utf-8"; title { "Callsheet: sign in" } }
            body {
                h1 { "Callsheet" }
                @if let Some(refusal) = refusal { p role="alert" { (refusal) } }
                form method="post" action="/sign-in" {
                    input type="hidden" name="next" value=(next);
                    label for="token" { "Token" }
                    input id="token" name="token" type="password" autocomplete="current-password" required;
                    button { "Sign in" }
                }
            }
        }
    };
    axum::response::Html(page.into_string()).into_response()
}
