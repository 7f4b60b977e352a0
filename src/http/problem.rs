//! What is answered where something went wrong: RFC 9457, `application/problem+json`.

use std::time::Duration;

use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::actors::status::ErrorChain;
use crate::store;

/// Why a request was not done.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: the status says what kind of problem this is.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The status in words.
    title: &'static str,
    /// The status.
    status: u16,
    /// What went wrong, and what to do, as a sentence.
    detail: String,
    /// Which parts of the request are wrong; absent where it is none in particular.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<FieldError>,
    #[serde(skip)]
    more: More,
}

/// What a header adds.
#[derive(Clone, Copy, Debug)]
enum More {
    Nothing,
    /// How to show who one is.
    Bearer,
    /// In so many seconds it may be tried again.
    RetryAfter(u64),
}

/// One part of a request that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// The parameter's or field's name.
    pub field: String,
    /// Where in the body it stands (RFC 6901); absent for a parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// What is wrong with it.
    pub detail: String,
}

/// How soon to try again once the database is away.
const TRY_AGAIN: Duration = Duration::from_secs(2);

impl Problem {
    /// A problem of this status; `detail` is a sentence.
    #[must_use]
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            detail: detail.into(),
            errors: Vec::new(),
            more: More::Nothing,
        }
    }

    /// A request of which these parts are wrong; never empty.
    #[must_use]
    pub fn invalid(status: StatusCode, errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [only] => format!("{}: {}", only.field, only.detail),
            several => format!("{} values of the request can't be used", several.len()),
        };
        Self { errors, ..Self::new(status, detail) }
    }

    /// A request without the credentials that it takes.
    #[must_use]
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self { more: More::Bearer, ..Self::new(StatusCode::UNAUTHORIZED, detail) }
    }

    /// A request that may be made again after so long.
    #[must_use]
    pub fn later(status: StatusCode, after: Duration, detail: impl Into<String>) -> Self {
        // Rounded up: a client that comes back to the second must not be too early.
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        Self { more: More::RetryAfter(seconds), ..Self::new(status, detail) }
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// What went wrong, as a sentence.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl From<store::Error> for Problem {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::NulCharacter { field } => Self::invalid(
                StatusCode::UNPROCESSABLE_ENTITY,
                vec![FieldError {
                    field: field.to_owned(),
                    pointer: None,
                    detail: "a NUL character can't be kept".to_owned(),
                }],
            ),
            store::Error::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            store::Error::NothingToWaitFor { job } => Self::invalid(
                StatusCode::UNPROCESSABLE_ENTITY,
                vec![FieldError { field: "after".to_owned(), pointer: None, detail: format!("there is no job {job}") }],
            ),
            error if error.is_transient() => {
                tracing::warn!(error = %ErrorChain(&error), "a request could not be answered");
                let detail =
                    "the database is not available at the moment; a change that was asked for may have been made";
                Self::later(StatusCode::SERVICE_UNAVAILABLE, TRY_AGAIN, detail)
            }
            error => {
                tracing::error!(error = %ErrorChain(&error), "a request could not be answered");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the database refused it; the service's log says why")
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (self.status(), body).into_response();
        let headers = response.headers_mut();
        let more = match self.more {
            More::Nothing => None,
            More::Bearer => Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"callsheet\""))),
            More::RetryAfter(seconds) => Some((RETRY_AFTER, HeaderValue::from(seconds))),
        };
        headers.extend(more);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}
