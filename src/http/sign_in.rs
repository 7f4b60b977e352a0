//! Signing in to the page with a token, and out again.

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::{RETRY_AFTER, SET_COOKIE};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use serde::Deserialize;

use super::auth::{self, PostedForm};
use super::problem::Problem;
use super::{App, Peer, pages};

pub(super) fn routes() -> Router<App> {
    Router::new().route("/sign-in", get(form).post(sign_in)).route("/sign-out", post(sign_out))
}

#[derive(Default, Deserialize)]
struct Next {
    /// Where to go once signed in: a path of this service.
    next: Option<String>,
}

#[derive(Deserialize)]
struct Credentials {
    token: String,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Nothing {}

async fn form(State(app): State<App>, RawQuery(query): RawQuery) -> Response {
    let next: Next = serde_urlencoded::from_str(&query.unwrap_or_default()).unwrap_or_default();
    let next = our_path(next.next);
    if app.access().is_local() {
        return Redirect::to(&next).into_response();
    }
    pages::sign_in(&next, None)
}

async fn sign_in(State(app): State<App>, parts: Parts, body: Body) -> Result<Response, Problem> {
    let Some(peer) = parts.extensions.get::<Peer>().copied() else {
        return Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "nobody knows where this request came from"));
    };
    let bytes = auth::read_form(&parts.headers, body).await?;
    let Credentials { token, next } = auth::parse_form(&bytes)?;
    let next = our_path(next);
    if app.access().is_local() {
        return Ok(Redirect::to(&next).into_response());
    }
    match app.access().sign_in(&app, &token, peer).await {
        Ok(cookie) => Ok(([(SET_COOKIE, cookie)], Redirect::to(&next)).into_response()),
        Err(problem) if problem.status().is_client_error() => {
            let mut response = pages::sign_in(&next, Some(problem.detail()));
            *response.status_mut() = problem.status();
            // The page is for people; a program that posts here learns from the status and this.
            if let Some(value) = problem.into_response().headers().get(RETRY_AFTER) {
                response.headers_mut().insert(RETRY_AFTER, value.clone());
            }
            Ok(response)
        }
        Err(problem) => Err(problem),
    }
}

async fn sign_out(State(app): State<App>, parts: Parts, posted: PostedForm<Nothing>) -> Result<Response, Problem> {
    let tls = parts.extensions.get::<Peer>().is_some_and(|peer| peer.tls);
    if let Some(session) = posted.viewer.session() {
        app.store_for(&posted.viewer).end_session(&session).await?;
    }
    Ok(([(SET_COOKIE, auth::cookie("", 0, tls))], Redirect::to("/")).into_response())
}

/// The path, if it is one of this service: a sign-in must not send anybody elsewhere.
fn our_path(next: Option<String>) -> String {
    let ours = |next: &String| {
        let rest = next.strip_prefix('/');
        // A browser takes `//host` and `/\host` for another site's address, and drops tabs and line ends before it looks.
        rest.is_some_and(|rest| !rest.starts_with(['/', '\\'])) && !next.contains(char::is_control)
    };
    next.filter(ours).unwrap_or_else(|| "/".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_in_leads_nowhere_else() {
        let leads = |next: &str| our_path(Some(next.to_owned()));
        assert_eq!(leads("/jobs?status=ERROR"), "/jobs?status=ERROR");
        for next in
            ["//evil.example", "/\\evil.example", "https://evil.example", "evil", "", "/\t/evil.example", "/a\nb"]
        {
            assert_eq!(leads(next), "/", "{next:?}");
        }
    }
}
