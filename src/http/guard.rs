//! What every request passes before anything else, and what every answer carries.
//!
//! Without tokens the address is all that tells friend from foe, and a browser on this machine has that address whatever
//! page it shows. So the Host header must name this machine (a page of another site whose name was made to point here, DNS
//! rebinding, names itself), and with or without tokens a page of another origin gets nothing.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, REFERRER_POLICY,
    STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::uri::Authority;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use super::{App, LARGEST_HEAD, Peer};

/// Nothing but our own files, no script inside a page, and no page of ours inside another.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
    form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses what must not be answered, and sets the headers that every answer has.
pub(super) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let tls = request.extensions().get::<Peer>().is_some_and(|peer| peer.tls);
    let is_options = request.method() == Method::OPTIONS;
    let mut response = match check(&app, &request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    if is_options && response.status() == StatusCode::METHOD_NOT_ALLOWED {
        response = options(response.headers());
    }
    let headers = response.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        // Not `no-referrer`: with that a browser calls the origin of a form's post `null`.
        (REFERRER_POLICY, "same-origin"),
        (OPENER_POLICY, "same-origin"),
        (RESOURCE_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if tls {
        headers.insert(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
    response
}

/// The answer to OPTIONS: what the address takes. Nothing about other origins, which get nothing here.
fn options(refusal: &HeaderMap) -> Response {
    let methods = refusal.get(ALLOW).and_then(|methods| methods.to_str().ok()).filter(|methods| !methods.is_empty());
    let methods = methods.map_or_else(|| "OPTIONS".to_owned(), |methods| format!("{methods},OPTIONS"));
    let allow = HeaderValue::try_from(methods).unwrap_or(HeaderValue::from_static("OPTIONS"));
    (StatusCode::NO_CONTENT, [(ALLOW, allow)]).into_response()
}

fn check(app: &App, request: &Request) -> Result<(), Problem> {
    if head_length(request.uri(), request.headers()) > LARGEST_HEAD {
        let detail = format!("the request's head is longer than {} KiB", LARGEST_HEAD / 1024);
        return Err(Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, detail));
    }
    let host = host(request.uri(), request.headers())?;
    if app.access().is_local() && !host.as_ref().is_none_or(names_this_machine) {
        let detail = "this service has no tokens, so it answers only under the name of this machine (127.0.0.1, [::1] or \
             localhost in the header Host); see [[http.tokens]] to serve others";
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    let foreign = || Problem::new(StatusCode::FORBIDDEN, "pages of other sites may not use this service");
    if let Some(origin) = request.headers().get(ORIGIN) {
        let theirs = origin.to_str().ok().and_then(|origin| origin.split_once("://")?.1.parse::<Authority>().ok());
        if theirs.is_none() || theirs != host {
            return Err(foreign());
        }
    }
    // What a browser says of a request that it sends without an Origin, such as an image's.
    match request.headers().get(FETCH_SITE).map(HeaderValue::as_bytes) {
        Some(b"cross-site" | b"same-site") if !super::auth::is_safe(request.method()) => Err(foreign()),
        _ => Ok(()),
    }
}

/// How long the head is without the few bytes around its parts. hyper bounds only what it buffers before it has found the
/// end of a head, so that one which comes all at once may be longer.
fn head_length(uri: &Uri, headers: &HeaderMap) -> usize {
    let line = uri.path_and_query().map_or(0, |target| target.as_str().len());
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).fold(line, usize::saturating_add)
}

/// Whom the client thinks it speaks to; `None` where it does not say, as no browser does.
fn host(uri: &Uri, headers: &HeaderMap) -> Result<Option<Authority>, Problem> {
    let invalid = || Problem::new(StatusCode::BAD_REQUEST, "the header Host is not one name or address with a port");
    let mut named = headers.get_all(HOST).iter();
    let in_header = named.next().map(|host| Authority::try_from(host.as_bytes())).transpose().map_err(|_| invalid())?;
    let in_line = uri.authority().cloned();
    if named.next().is_some() || in_line.is_some() && in_header.is_some() && in_line != in_header {
        return Err(invalid());
    }
    Ok(in_line.or(in_header))
}

/// Whether the name can only mean this machine, under any port: a tunnel may have another one.
fn names_this_machine(host: &Authority) -> bool {
    let name = host.host();
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_pass() {
        let passes = |host: &str| names_this_machine(&host.parse().unwrap());
        for host in ["localhost", "LocalHost:1", "127.0.0.1:8440", "127.8.9.1", "[::1]:8440"] {
            assert!(passes(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[::2]", "0.0.0.0"]
        {
            assert!(!passes(host), "{host}");
        }
    }

    #[test]
    fn there_is_one_host() {
        let of = |uri: &str, hosts: &[&'static str]| {
            let headers = hosts.iter().map(|host| (HOST, HeaderValue::from_static(host))).collect();
            host(&uri.parse().unwrap(), &headers).map(|host| host.map(|host| host.to_string()))
        };
        assert_eq!(of("/", &["a:1"]).unwrap().as_deref(), Some("a:1"));
        assert_eq!(of("http://a:1/", &["a:1"]).unwrap().as_deref(), Some("a:1"));
        assert!(of("/", &[]).unwrap().is_none());
        assert!(of("/", &["a", "a"]).is_err() && of("http://b/", &["a"]).is_err() && of("/", &["a b"]).is_err());
    }
}
