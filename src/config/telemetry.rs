//! Where traces are sent: `[telemetry]`, and the variables that OpenTelemetry has for every program, which stand over it
//! (opentelemetry.io/docs/specs/otel/protocol/exporter).

use std::fmt;
use std::path::PathBuf;

use super::{Config, Error};

/// Where a collector takes OTLP over HTTP, and who we are to it.
#[derive(Clone, PartialEq, Eq)]
pub struct OtlpEndpoint {
    /// Whether it is asked over TLS.
    pub tls: bool,
    /// Whom it is known by there, in PEM; `None` for whoever the usual authorities vouch for.
    pub certificate: Option<PathBuf>,
    /// A name or an address, an IPv6 one without its brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// Where traces go, such as `/v1/traces`.
    pub path: String,
    /// Further headers of each request; they may be secrets.
    pub headers: Vec<(String, String)>,
    /// What the service calls itself.
    pub service_name: String,
}

/// Why an address can't be used for OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEndpoint {
    /// It is no URL of the kind.
    #[error("it is no address of the form http://HOST:PORT or https://HOST:PORT")]
    Form,
}

/// What the service calls itself where `OTEL_SERVICE_NAME` says nothing.
const SERVICE_NAME: &str = "callsheet";
/// Where a collector takes traces, below its endpoint.
const TRACES: &str = "/v1/traces";

impl OtlpEndpoint {
    /// The endpoint of a collector, to which the path of traces is added.
    ///
    /// # Errors
    /// Where the address can't be used.
    pub fn parse(url: &str) -> Result<Self, InvalidEndpoint> {
        let mut endpoint = Self::parse_whole(url)?;
        endpoint.path = format!("{}{TRACES}", endpoint.path.trim_end_matches('/'));
        Ok(endpoint)
    }

    /// The very address of traces.
    fn parse_whole(url: &str) -> Result<Self, InvalidEndpoint> {
        let (tls, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(InvalidEndpoint::Form),
        };
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) || rest.contains(['@', '?', '#', '"', '<', '>', '\\']) {
            return Err(InvalidEndpoint::Form);
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or(InvalidEndpoint::Form)?)),
            None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
        };
        let port =
            port.map_or(Ok(if tls { 443 } else { 80 }), |port| port.parse().map_err(|_| InvalidEndpoint::Form))?;
        if host.is_empty() || host.contains(['[', ']']) || port == 0 {
            return Err(InvalidEndpoint::Form);
        }
        let path = if path.is_empty() { "/" } else { path };
        let (host, path) = (host.to_owned(), path.to_owned());
        let service_name = SERVICE_NAME.to_owned();
        Ok(Self { tls, certificate: None, host, port, path, headers: Vec::new(), service_name })
    }

    /// Host and port as a request names them.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for OtlpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

impl fmt::Debug for OtlpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where this service sends traces; `None` where it sends none.
///
/// # Errors
/// [`Error::Telemetry`] where a variable of the environment can't be used.
pub fn otlp_endpoint(config: &Config) -> Result<Option<OtlpEndpoint>, Error> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    from_variables(config.otlp.clone(), variable)
}

fn from_variables(
    configured: Option<OtlpEndpoint>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<OtlpEndpoint>, Error> {
    const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    let is = |name: &str, value: &str| variable(name).is_some_and(|found| found.eq_ignore_ascii_case(value));
    if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
        return Ok(None);
    }
    let wrong = |name| move |reason: InvalidEndpoint| Error::Telemetry { variable: name, reason: reason.to_string() };
    let endpoint = match (variable(TRACES_ENDPOINT), variable(ENDPOINT)) {
        (Some(url), _) => Some(OtlpEndpoint::parse_whole(&url).map_err(wrong(TRACES_ENDPOINT))?),
        (None, Some(url)) => Some(OtlpEndpoint::parse(&url).map_err(wrong(ENDPOINT))?),
        (None, None) => configured,
    };
    let Some(mut endpoint) = endpoint else { return Ok(None) };
    for name in ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"] {
        if let Some(list) = variable(name) {
            endpoint.headers = headers(&list)
                .ok_or_else(|| Error::Telemetry { variable: name, reason: "it is no list of NAME=VALUE".to_owned() })?;
            break;
        }
    }
    for name in ["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"] {
        if let Some(path) = variable(name) {
            let path = PathBuf::from(path);
            std::fs::File::open(&path).map_err(|error| Error::Telemetry {
                variable: name,
                reason: format!("{} can't be read: {error}", path.display()),
            })?;
            endpoint.certificate = Some(path);
            break;
        }
    }
    endpoint.service_name = variable("OTEL_SERVICE_NAME").unwrap_or(endpoint.service_name);
    Ok(Some(endpoint))
}

/// `NAME=VALUE,NAME=VALUE`, values percent-encoded; `None` where a name or a value could end a header's line.
fn headers(list: &str) -> Option<Vec<(String, String)>> {
    let named = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    named
        .map(|entry| {
            let (name, value) = entry.split_once('=')?;
            let (name, value) = (name.trim(), decoded(value.trim())?);
            let is_name = !name.is_empty()
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
            (is_name && !value.chars().any(char::is_control)).then(|| (name.to_owned(), value))
        })
        .collect()
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
        } else {
            byte
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(url: &str) -> Result<String, InvalidEndpoint> {
        OtlpEndpoint::parse(url).map(|endpoint| endpoint.to_string())
    }

    #[test]
    fn an_endpoint_is_an_http_address_to_which_the_path_is_added() {
        assert_eq!(shown("http://localhost:4318").unwrap(), "http://localhost:4318/v1/traces");
        assert_eq!(shown("http://otel.example/base/").unwrap(), "http://otel.example:80/base/v1/traces");
        assert_eq!(shown("http://[::1]:4318").unwrap(), "http://[::1]:4318/v1/traces");
        assert_eq!(shown("https://otel.example").unwrap(), "https://otel.example:443/v1/traces");
        assert_eq!(shown("https://otel.example:4318/").unwrap(), "https://otel.example:4318/v1/traces");
        for wrong in [
            "",
            "localhost:4318",
            "http://",
            "http://:4318",
            "http://host:port",
            "http://host:0",
            "http://a b:1",
            "http://user:secret@host",
            "http://host/?x",
            "http://host\r\nX: y",
            "http://[::1",
            "grpc://host",
            "https://",
            "HTTPS://host",
        ] {
            assert_eq!(shown(wrong), Err(InvalidEndpoint::Form), "{wrong}");
        }
    }

    #[test]
    fn the_variables_stand_over_the_file() {
        let file = OtlpEndpoint::parse("http://file:1").unwrap();
        let told = |variables: &[(&str, &str)]| {
            let find =
                |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            from_variables(Some(file.clone()), find)
        };
        assert_eq!(told(&[]).unwrap().unwrap().to_string(), "http://file:1/v1/traces");
        let base = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://base:2");
        assert_eq!(told(&[base]).unwrap().unwrap().to_string(), "http://base:2/v1/traces");
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://own:3/spans");
        assert_eq!(told(&[base, own]).unwrap().unwrap().to_string(), "http://own:3/spans");
        for off in [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(told(&[base, off]).unwrap(), None);
        }
        let headers =
            told(&[base, ("OTEL_EXPORTER_OTLP_HEADERS", "a=b, Authorization=Bearer%20x=y,")]).unwrap().unwrap();
        assert_eq!(
            headers.headers,
            [("a".to_owned(), "b".to_owned()), ("Authorization".to_owned(), "Bearer x=y".to_owned())]
        );
        assert!(!format!("{headers:?}").contains("Bearer"));
        for wrong in ["a", "=b", "a:=b", "a=b%0d%0aX: y", "a=%", "a=%zz"] {
            let error = told(&[base, ("OTEL_EXPORTER_OTLP_HEADERS", wrong)]).unwrap_err().to_string();
            assert!(error.contains("OTEL_EXPORTER_OTLP_HEADERS"), "{wrong}: {error}");
        }
        let certificate = ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/at/all.pem");
        let error = told(&[base, certificate]).unwrap_err().to_string();
        assert!(error.contains("OTEL_EXPORTER_OTLP_CERTIFICATE") && error.contains("/nowhere/at/all.pem"), "{error}");
    }
}
