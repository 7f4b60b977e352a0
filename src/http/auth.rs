//! Who is asking, and what they may do.
//!
//! With `[[http.tokens]]` a request needs one of them, as a bearer token or by the session that a sign-in with it began.
//! Without any, whoever comes from this machine is an operator, and only the address decides: `guard` keeps web
//! pages of others from using that.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, HeaderMap, HeaderValue};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use tokio::time::Instant;

use super::failures::Failures;
use super::problem::{FieldError, Problem};
use super::{App, Peer, body, csrf};
use crate::config::{AccessRole, KnownToken};
use crate::store::{Session, Who};

/// The cookie that holds a session.
const SESSION_COOKIE: &str = "callsheet_session";
/// Where a script of the page repeats [`Viewer::csrf_token`] when it changes something through the API.
pub const CSRF_HEADER: &str = "x-csrf-token";
/// The field of every form that changes something.
pub const CSRF_FIELD: &str = "csrf";
/// What the forms of the page hold at the most, in bytes.
const LARGEST_FORM: usize = 1 << 20;
/// How long a session lasts.
pub(super) const SESSION_LENGTH: std::time::Duration = std::time::Duration::from_secs(7 * 86_400);

/// Who may use the server.
pub(super) struct Access {
    tokens: watch::Receiver<Arc<[KnownToken]>>,
    failures: Failures,
    /// Wrong tokens that stand in the log: no more than people can read.
    noted: Failures,
    /// What the forms of a server without tokens are recognized by; kept over restarts.
    local_key: String,
}

/// Somebody who may read. As an extractor it refuses everybody else: with 401, or, where a page was asked for, by the way
/// to the sign-in.
#[derive(Clone, Debug)]
pub struct Viewer {
    /// The token's name; `local` where no token was asked for.
    pub name: String,
    /// What they may do.
    pub role: AccessRole,
    /// Where from.
    pub address: IpAddr,
    /// `api` or `page`.
    via: &'static str,
    how: How,
}

/// Somebody who may write too. As an extractor it refuses viewers with 403.
#[derive(Clone, Debug)]
pub struct Operator(pub Viewer);

/// A form of the page, posted by a page of ours: its field [`CSRF_FIELD`] holds the sender's [`Viewer::csrf_token`].
#[derive(Debug)]
pub struct PostedForm<T> {
    /// Who sent it; see [`Viewer::operator`].
    pub viewer: Viewer,
    /// What it holds.
    pub form: T,
}

#[derive(Clone)]
enum How {
    /// No token was asked for; the key of the forms.
    Local(String),
    Bearer,
    /// What the cookie holds.
    Session(String),
}

impl std::fmt::Debug for How {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Local(_) => "Local",
            Self::Bearer => "Bearer",
            Self::Session(_) => "Session",
        })
    }
}

impl Viewer {
    /// Another worker of this database, which may read.
    pub(super) fn worker(address: IpAddr) -> Self {
        Self { name: "another worker".to_owned(), role: AccessRole::Viewer, address, via: "api", how: How::Bearer }
    }

    /// Whether they may write.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        self.role == AccessRole::Operator
    }

    /// The same person as an operator.
    ///
    /// # Errors
    /// 403 for a viewer.
    pub fn operator(self) -> Result<Operator, Problem> {
        if self.is_operator() {
            return Ok(Operator(self));
        }
        let detail = format!("the token {:?} is a viewer's; this takes an operator's", self.name);
        Err(Problem::new(StatusCode::FORBIDDEN, detail))
    }

    /// Whether there is a session to sign out of.
    #[must_use]
    pub fn is_signed_in(&self) -> bool {
        matches!(self.how, How::Session(_))
    }

    /// What a form's field [`CSRF_FIELD`] or a script's header [`CSRF_HEADER`] has to hold: no other site can know it. Another
    /// one at each call, all of them good for as long as the session.
    #[must_use]
    pub fn csrf_token(&self) -> String {
        match &self.how {
            How::Local(key) | How::Session(key) => csrf::token(key),
            How::Bearer => String::new(),
        }
    }

    /// Who they are for the audit trail.
    #[must_use]
    pub fn who(&self) -> Who {
        Who { actor: self.name.clone(), via: self.via, address: Some(self.address.to_string()) }
    }

    pub(super) fn session(&self) -> Option<String> {
        if let How::Session(id) = &self.how { Some(hex(&Sha256::digest(id))) } else { None }
    }

    fn check_csrf(&self, given: Option<&str>) -> Result<(), Problem> {
        let is_ours = match &self.how {
            How::Local(key) | How::Session(key) => csrf::is_token(given.unwrap_or_default(), key),
            How::Bearer => true,
        };
        if is_ours {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::FORBIDDEN,
            "this did not come from a page of this service that is still valid; reload the page and try again",
        ))
    }
}

impl Access {
    pub(super) fn new(tokens: watch::Receiver<Arc<[KnownToken]>>, local_key: String) -> Self {
        Self { tokens, failures: Failures::default(), noted: Failures::default(), local_key }
    }

    /// Whether no token is asked for, and only the address counts.
    pub(super) fn is_local(&self) -> bool {
        self.tokens.borrow().is_empty()
    }

    /// The tokens as the configuration has them now.
    fn tokens(&self) -> Arc<[KnownToken]> {
        Arc::clone(&self.tokens.borrow())
    }

    /// Tells when they have changed: who was let in before has to show again that they may.
    pub(super) fn changes(&self) -> watch::Receiver<Arc<[KnownToken]>> {
        let mut changes = self.tokens.clone();
        changes.mark_unchanged();
        changes
    }

    /// The token that this is, compared with every known one in the same time whatever it is.
    fn recognize(&self, given: &[u8]) -> Option<KnownToken> {
        // No configuration makes a token of nothing; whoever sends it has not been given one, whatever is known here.
        if given.is_empty() {
            return None;
        }
        let hash: [u8; 32] = Sha256::digest(given).into();
        let tokens = self.tokens();
        let found = tokens
            .iter()
            .fold(None, |found, token| if bool::from(token.sha256.ct_eq(&hash)) { Some(token) } else { found });
        found.cloned()
    }

    /// The token that this is.
    ///
    /// # Errors
    /// With 401. Who guesses is not slowed down here: what is random and long enough is not found so, and a program that has a
    /// right token must not suffer from one behind the same address that has not.
    fn admit(&self, given: &[u8], address: IpAddr) -> Result<KnownToken, Problem> {
        if let Some(token) = self.recognize(given) {
            return Ok(token);
        }
        let now = Instant::now();
        if self.noted.wait(address, now).is_none() {
            self.noted.failed(address, now);
            tracing::warn!(%address, "somebody came with a token that nobody has");
        }
        Err(Problem::unauthorized("nobody has this token"))
    }

    /// Begins a session with a token, and says what the cookie is to hold.
    ///
    /// # Errors
    /// 401, or 429 once an address has failed too often; then the right token is refused too, or one could go on guessing.
    pub(super) async fn sign_in(&self, app: &App, given: &str, peer: Peer) -> Result<HeaderValue, Problem> {
        let address = peer.address.ip();
        if let Some(wait) = self.failures.wait(address, Instant::now()) {
            return Err(too_often(wait));
        }
        let who = |actor: &str| Who { actor: actor.to_owned(), via: "page", address: Some(address.to_string()) };
        let token = match self.admit(given.trim().as_bytes(), address) {
            Ok(token) => token,
            Err(problem) => {
                self.failures.failed(address, Instant::now());
                let store = app.handle().store().on_behalf_of(who("unknown"));
                store.note_deed("sign_in", "page", "refused: nobody has this token").await?;
                return Err(problem);
            }
        };
        let id = random_key()
            .ok_or_else(|| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the system gives no random numbers"))?;
        let session = Session {
            session_sha256: hex(&Sha256::digest(&id)),
            token_name: token.name.clone(),
            token_mark: mark(&token),
        };
        app.handle().store().on_behalf_of(who(&token.name)).begin_session(&session, SESSION_LENGTH).await?;
        Ok(cookie(&id, SESSION_LENGTH.as_secs(), peer.tls))
    }

    async fn identify(&self, app: &App, parts: &Parts) -> Result<Viewer, Problem> {
        let Some(peer) = parts.extensions.get::<Peer>().copied() else {
            return Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "nobody knows where this request came from"));
        };
        let via = if parts.uri.path().starts_with("/api/") { "api" } else { "page" };
        let viewer = |token: &KnownToken, how| Viewer {
            name: token.name.clone(),
            role: token.role,
            address: peer.address.ip(),
            via,
            how,
        };
        if self.is_local() {
            let how = How::Local(self.local_key.clone());
            let name = "local".to_owned();
            return Ok(Viewer { name, role: AccessRole::Operator, address: peer.address.ip(), via, how });
        }
        if let Some(given) = parts.headers.get(AUTHORIZATION) {
            let Some(given) = bearer(given) else {
                return Err(Problem::unauthorized("the header Authorization is not of the form `Bearer TOKEN`"));
            };
            return Ok(viewer(&self.admit(given, peer.address.ip())?, How::Bearer));
        }
        let Some(id) = session_cookie(&parts.headers) else {
            return Err(Problem::unauthorized("this takes a token; send it as `Authorization: Bearer TOKEN`"));
        };
        let session = app.handle().store().session(&hex(&Sha256::digest(&id))).await?;
        // A token that was taken out of the configuration, or given another value, takes its sessions along.
        let tokens = self.tokens();
        let token = session.and_then(|session| {
            tokens.iter().find(|token| token.name == session.token_name && mark(token) == session.token_mark)
        });
        let Some(token) = token else {
            return Err(Problem::unauthorized("this session has ended; sign in again"));
        };
        let viewer = viewer(token, How::Session(id));
        if via == "api" && !is_safe(&parts.method) {
            viewer.check_csrf(parts.headers.get(CSRF_HEADER).and_then(|value| value.to_str().ok()))?;
        }
        Ok(viewer)
    }
}

fn too_often(wait: std::time::Duration) -> Problem {
    Problem::later(StatusCode::TOO_MANY_REQUESTS, wait, "too many wrong tokens came from this address; wait a minute")
}

/// What ties a session to its token's value without telling anything about it.
fn mark(token: &KnownToken) -> String {
    let mut hash = Sha256::new_with_prefix(b"callsheet session of ");
    hash.update(token.sha256);
    hex(&hash.finalize())
}

fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = value.as_bytes().split_at_checked(7)?;
    (scheme.eq_ignore_ascii_case(b"bearer ")).then(|| token.trim_ascii())
}

fn session_cookie(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let id = pairs.filter(|(name, _)| *name == SESSION_COOKIE).map(|(_, id)| id).next()?;
    (id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}

/// The session's cookie; one that lasts 0 seconds takes it back.
pub(super) fn cookie(id: &str, seconds: u64, secure: bool) -> HeaderValue {
    let secure = if secure { "; Secure" } else { "" };
    let text = format!("{SESSION_COOKIE}={id}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Whether a request of this method changes nothing (RFC 9110, 9.2.1).
pub(super) fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// 256 bits that nobody can guess, in hexadecimal digits; `None` where the system has no random numbers.
pub(super) fn random_key() -> Option<String> {
    let mut random = [0; 32];
    match getrandom::fill(&mut random) {
        Ok(()) => Some(hex(&random)),
        Err(error) => {
            tracing::error!(%error, "the system gives no random numbers");
            None
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Why somebody was not let in: an API's client is told so, and a person who opened a page is shown the sign-in.
#[derive(Debug)]
pub struct Refused {
    problem: Problem,
    sign_in: Option<String>,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        match self.sign_in {
            Some(address) => Redirect::to(&address).into_response(),
            None => self.problem.into_response(),
        }
    }
}

impl FromRequestParts<App> for Viewer {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refused> {
        app.access().identify(app, parts).await.map_err(|problem| {
            let path = parts.uri.path();
            let is_page = is_safe(&parts.method) && !path.starts_with("/api/") && path != "/metrics";
            let wants_sign_in = is_page && problem.status() == StatusCode::UNAUTHORIZED;
            let next = parts.uri.path_and_query().map_or("/", |next| next.as_str());
            let next = serde_urlencoded::to_string([("next", next)]).unwrap_or_default();
            Refused { problem, sign_in: wants_sign_in.then(|| format!("/sign-in?{next}")) }
        })
    }
}

impl FromRequestParts<App> for Operator {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refused> {
        let viewer = Viewer::from_request_parts(parts, app).await?;
        viewer.operator().map_err(|problem| Refused { problem, sign_in: None })
    }
}

impl<T: DeserializeOwned> FromRequest<App> for PostedForm<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, app: &App) -> Result<Self, Refused> {
        let (mut parts, body) = request.into_parts();
        let viewer = Viewer::from_request_parts(&mut parts, app).await?;
        let refused = |problem| Refused { problem, sign_in: None };
        let bytes = read_form(&parts.headers, body).await.map_err(refused)?;
        let fields: Vec<(String, String)> = parse_form(&bytes).map_err(refused)?;
        let given = fields.iter().find(|(name, _)| name == CSRF_FIELD).map(|(_, value)| value.as_str());
        viewer.check_csrf(given).map_err(refused)?;
        Ok(Self { viewer, form: parse_form(&bytes).map_err(refused)? })
    }
}

/// The bytes of a form.
///
/// # Errors
/// 415, 413 or 408.
pub(super) async fn read_form(headers: &HeaderMap, body: axum::body::Body) -> Result<Vec<u8>, Problem> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !body::is_media_type(kind, "application/x-www-form-urlencoded") {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "this takes a form, as application/x-www-form-urlencoded",
        ));
    }
    body::read(headers, body, LARGEST_FORM).await
}

/// The fields of a form.
///
/// # Errors
/// 422 where they are not those of the form.
pub(super) fn parse_form<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_urlencoded::from_bytes(bytes).map_err(|error| {
        let field = "the form".to_owned();
        Problem::invalid(
            StatusCode::UNPROCESSABLE_ENTITY,
            vec![FieldError { field, pointer: None, detail: error.to_string() }],
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> Access {
        let token = |name: &str, secret: &str, role| KnownToken {
            name: name.to_owned(),
            role,
            sha256: Sha256::digest(secret).into(),
        };
        let tokens = vec![token("a", "first", AccessRole::Viewer), token("b", "second", AccessRole::Operator)];
        Access::new(watch::Sender::new(Arc::from(tokens)).subscribe(), "key".to_owned())
    }

    #[test]
    fn a_token_is_recognized_by_its_whole_value() {
        let known = access().tokens().to_vec();
        let nobody = KnownToken { sha256: Sha256::digest("").into(), ..known[0].clone() };
        let tokens: Arc<[KnownToken]> = known.into_iter().chain([nobody]).collect();
        let access = Access::new(watch::Sender::new(tokens).subscribe(), "key".to_owned());
        let name = |given: &str| access.recognize(given.as_bytes()).map(|token| token.name);
        let names = ["first", "second", "", "firs", "first "].map(name);
        assert_eq!(names.each_ref().map(Option::as_deref), [Some("a"), Some("b"), None, None, None]);
    }

    #[test]
    fn tokens_are_taken_in_any_case_of_the_scheme() {
        let token = |value| bearer(&HeaderValue::from_static(value)).map(<[u8]>::to_vec);
        assert_eq!(token("bEARER  x "), Some(b"x".to_vec()));
        assert_eq!([token("Basic x"), token("Bearer"), token("")], [None, None, None]);
    }

    #[test]
    fn only_our_own_cookie_is_a_session() {
        let id = "0a".repeat(32);
        let session =
            |text: String| session_cookie(&HeaderMap::from_iter([(COOKIE, HeaderValue::try_from(text).unwrap())]));
        assert_eq!(session(format!("a=b; {SESSION_COOKIE}={id}; c=d")), Some(id.clone()));
        assert_eq!(session(format!("x{SESSION_COOKIE}={id}")), None);
        assert_eq!(session(format!("{SESSION_COOKIE}={}", &id[1..])), None);
    }

    #[test]
    fn a_token_of_another_value_has_other_sessions() {
        let access = access();
        let first = access.tokens()[0].clone();
        let mut changed = first.clone();
        changed.sha256[0] ^= 1;
        assert_ne!(mark(&first), mark(&changed));
    }
}
