//! Answers as gzip, for clients that take it: pages, their files, and the API's JSON, each of which is whole in memory.
//!
//! What is still being made is never touched: a stream of events would be held back, and a job's output may be as long as
//! it likes. Nor are the metrics, whose scrape is to cost little and comes from nearby. What a page holds that nobody else may
//! know is another text in each answer (see `csrf`), so its length tells nothing of it (BREACH, <https://breachattack.com>).

use std::io::Write;

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::Request;
use axum::http::Method;
use axum::http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, VARY,
};
use axum::middleware::Next;
use axum::response::Response;
use flate2::{Compression, GzBuilder};

use super::body::is_media_type;

const TYPES: [&str; 6] = [
    "text/html",
    "text/css",
    "text/javascript",
    "image/svg+xml",
    "application/json",
    "application/vnd.oai.openapi+json",
];
/// In bytes; what is shorter fits into one packet anyway.
const SHORTEST: u64 = 1 << 10;
/// In bytes; what is longer is for a program, and would take a core for tens of milliseconds.
const LONGEST: u64 = 1 << 20;
/// A page of 150 KB shrinks to a ninth in 1 ms; the best level takes four times that for a fifth less.
const LEVEL: Compression = Compression::new(3);

/// Compresses an answer that is worth it.
pub(super) async fn compress(request: Request, next: Next) -> Response {
    let wanted = request.method() != Method::HEAD && takes_gzip(request.headers());
    let mut response = next.run(request).await;
    if !is_compressible(&response) {
        return response;
    }
    response.headers_mut().append(VARY, HeaderValue::from_static("accept-encoding"));
    if !wanted {
        return response;
    }
    let (mut head, body) = response.into_parts();
    // It is in memory as a whole, so this neither waits nor fails.
    let Ok(bytes) = to_bytes(body, usize::try_from(LONGEST).unwrap_or(usize::MAX)).await else {
        head.status = axum::http::StatusCode::INTERNAL_SERVER_ERROR;
        return Response::from_parts(head, Body::empty());
    };
    let plain = bytes.clone();
    match tokio::task::spawn_blocking(move || gzipped(&plain)).await {
        Ok(Ok(gzipped)) => {
            head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from(gzipped.len()));
            Response::from_parts(head, Body::from(gzipped))
        }
        // It is only longer as it is.
        Ok(Err(_)) | Err(_) => Response::from_parts(head, Body::from(bytes)),
    }
}

fn gzipped(bytes: &Bytes) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().write(Vec::with_capacity(bytes.len() / 4), LEVEL);
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Whether the whole of the answer is here, of a kind and a length that compression is good for.
fn is_compressible(response: &Response) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let length = response.body().size_hint().exact();
    length.is_some_and(|length| (SHORTEST..=LONGEST).contains(&length))
        && TYPES.iter().any(|known| is_media_type(kind, known))
        && !response.headers().contains_key(CONTENT_ENCODING)
}

/// Whether a client says that it takes gzip (RFC 9110, 12.5.3).
fn takes_gzip(headers: &HeaderMap) -> bool {
    let lists = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|list| list.to_str().ok());
    let codings = lists.flat_map(|list| list.split(',')).map(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        (name, weight.map_or(1.0, |weight| weight.parse::<f32>().unwrap_or(0.0)))
    });
    let mut any = None;
    for (name, weight) in codings {
        match name.as_str() {
            "gzip" | "x-gzip" => return weight > 0.0,
            "*" => any = Some(weight > 0.0),
            _ => {}
        }
    }
    any.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn gzip_is_for_who_takes_it() {
        let takes = |value: &'static str| {
            takes_gzip(&HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(value))]))
        };
        for value in ["gzip", "deflate, GZIP;q=0.5, br", "x-gzip", "*", "br;q=1.0, *;q=0.1"] {
            assert!(takes(value), "{value}");
        }
        for value in ["", "br, deflate", "gzip;q=0", "gzip;q=0.000, *", "*;q=0", "gzip; q=x", "gzipped"] {
            assert!(!takes(value), "{value}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    #[test]
    fn only_what_is_whole_and_neither_short_nor_long_is_compressed() {
        let answer = |kind: &'static str, body: Body| {
            let mut response = Response::new(body);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            is_compressible(&response)
        };
        let long = || Body::from("a".repeat(2000));
        assert!(answer("text/html; charset=utf-8", long()) && answer("application/json", long()));
        assert!(!answer("text/html", Body::from("short")) && !answer("application/octet-stream", long()));
        assert!(!answer("text/plain; version=0.0.4; charset=utf-8", long()), "the metrics");
        assert!(!answer("text/html", Body::from(vec![b'a'; (2 << 20) + 1])));
        let stream = futures_util::stream::iter([Ok::<_, std::convert::Infallible>("a".repeat(2000))]);
        assert!(!answer("text/html", Body::from_stream(stream)), "what is still being made");
    }

    #[test]
    fn what_was_compressed_is_what_was_there() {
        let plain = Bytes::from("<li>".repeat(10_000));
        let mut read = Vec::new();
        flate2::read::GzDecoder::new(gzipped(&plain).unwrap().as_slice()).read_to_end(&mut read).unwrap();
        assert_eq!(read, plain);
    }
}
