//! What a browser is shown where there is nothing.

use axum::response::{Html, IntoResponse, Response};
use maud::html;

use super::frame::bare;
use crate::http::Problem;

/// The page that says so: the same for everybody, since nobody knows yet who asks.
pub(in crate::http) fn missing(problem: &Problem) -> Response {
    let body = html! {
        section.panel.confirm {
            h1 { "Not found" }
            p { (problem.detail()) }
            a.button href="/" { "To the overview" }
        }
    };
    (problem.status(), Html(bare("Not found", &body).into_string())).into_response()
}
