//! Reading what a client sends, with a limit on its size and on its patience.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, HeaderMap};
use futures_util::StreamExt;

use super::problem::Problem;

/// A client that sends nothing for so long is not going to.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);
/// A whole body has to be there by then: the largest one, over a link of 2 Mbit/s.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The bytes of a body.
///
/// # Errors
/// 413 where there are more than `limit`, 408 where they come too slowly, 400 where the connection fails.
pub(super) async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Vec<u8>, Problem> {
    if announced(headers).is_some_and(|length| usize::try_from(length).map_or(true, |length| length > limit)) {
        return Err(too_large(limit));
    }
    let whole = async {
        let mut bytes = Vec::new();
        let mut chunks = body.into_data_stream();
        loop {
            match tokio::time::timeout(CHUNK_TIMEOUT, chunks.next()).await {
                Err(_) => return Err(too_slow()),
                Ok(None) => return Ok(bytes),
                Ok(Some(Err(error))) => {
                    return Err(Problem::new(StatusCode::BAD_REQUEST, format!("the body can't be read: {error}")));
                }
                Ok(Some(Ok(chunk))) if bytes.len() + chunk.len() > limit => return Err(too_large(limit)),
                Ok(Some(Ok(chunk))) => bytes.extend_from_slice(&chunk),
            }
        }
    };
    tokio::time::timeout(WHOLE_TIMEOUT, whole).await.unwrap_or_else(|_| Err(too_slow()))
}

/// Whether a request says that its body has at most so many bytes; hyper holds it to that.
pub(super) fn is_at_most(headers: &HeaderMap, bytes: usize) -> bool {
    announced(headers).is_some_and(|length| usize::try_from(length).is_ok_and(|length| length <= bytes))
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())
}

/// Whether the value of a Content-Type header is of this type, whatever its parameters.
pub(super) fn is_media_type(value: &str, wanted: &str) -> bool {
    value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(wanted)
}

fn too_large(limit: usize) -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {} MiB", limit >> 20))
}

fn too_slow() -> Problem {
    Problem::new(StatusCode::REQUEST_TIMEOUT, "the body came too slowly, or not at all")
}
