//! The form that asks for a token.

use axum::response::{Html, IntoResponse, Response};
use maud::html;

use super::frame::bare;

/// The form; `refusal` says why the last token was not taken, `next` where it leads.
pub(in crate::http) fn sign_in(next: &str, refusal: Option<&str>) -> Response {
    let body = html! {
        section.panel.sign-in {
            h1 { "Sign in" }
            @if let Some(refusal) = refusal { p.notice.bad role="alert" { (refusal) } }
            form method="post" action="/sign-in" {
                input type="hidden" name="next" value=(next);
                label for="token" { "Token" }
                input #token name="token" type="password" autocomplete="current-password" required autofocus;
                button type="submit" { "Sign in" }
            }
            p.muted { "Tokens stand in the configuration, under [[http.tokens]]." }
        }
    };
    Html(bare("Sign in", &body).into_string()).into_response()
}
