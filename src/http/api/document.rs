//! JSON that a request brings, every mistake in it told by its place.

use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderMap};
use serde::de::DeserializeOwned;

use crate::http::body;
use crate::http::problem::{FieldError, Problem};

/// Checks that a body is said to be JSON.
pub(super) fn expect_json(headers: &HeaderMap) -> Result<(), Problem> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if body::is_media_type(kind, "application/json") {
        return Ok(());
    }
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "this takes JSON, as application/json"))
}

/// A document that is one value.
pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| unreadable(&error))?;
    end(&mut json)?;
    Ok(value)
}

/// Checks that nothing follows the value that was read.
pub(super) fn end<'de>(json: &mut serde_json::Deserializer<impl serde_json::de::Read<'de>>) -> Result<(), Problem> {
    json.end().map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("the body is no JSON: {error}")))
}

/// What serde says of a body, with the place in the words of RFC 6901.
pub(super) fn unreadable(error: &serde_path_to_error::Error<serde_json::Error>) -> Problem {
    use serde_path_to_error::Segment;
    let cause = error.inner();
    if !cause.is_data() {
        return Problem::new(StatusCode::BAD_REQUEST, format!("the body is no JSON: {cause}"));
    }
    let mut pointer = "#".to_owned();
    let mut field = None;
    for segment in error.path() {
        match segment {
            Segment::Seq { index } => pointer = format!("{pointer}/{index}"),
            Segment::Map { key } | Segment::Enum { variant: key } => {
                pointer = format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"));
                field = Some(key.clone());
            }
            Segment::Unknown => {}
        }
    }
    let detail = in_words_of_json(&cause.to_string());
    // An unknown or missing field is told of where it should stand, and named in the sentence only.
    let names_field = detail.starts_with("unknown field") || detail.starts_with("missing field");
    let named = || detail.split('`').nth(1).filter(|_| names_field).map(ToOwned::to_owned);
    let field = field.or_else(named).unwrap_or_else(|| "body".to_owned());
    Problem::invalid(
        StatusCode::UNPROCESSABLE_ENTITY,
        vec![FieldError { field, pointer: Some(pointer), detail: detail.clone() }],
    )
}

/// What serde expected, in the words of JSON where it names types of Rust.
fn in_words_of_json(said: &str) -> String {
    let (told, place) = said.rfind(" at line ").map_or((said, ""), |place| said.split_at(place));
    let Some((found, expected)) = told.rsplit_once(", expected ") else { return said.to_owned() };
    let expected = match expected {
        "i32" => format!("a whole number from {} to {}", i32::MIN, i32::MAX),
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "i64" => "a whole number".to_owned(),
        "a sequence" => "an array".to_owned(),
        other => other.to_owned(),
    };
    format!("{found}, expected {expected}{place}")
}
