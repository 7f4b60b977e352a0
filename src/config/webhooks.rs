//! `[[webhooks]]`: who is told of status changes. Secrets are never in the file itself.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::SecretPlace;
use crate::domain::{FlowType, JobStatus};

/// `[[webhooks]]`: a receiver of status changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookConfig {
    /// What the database knows it by; unlike every other.
    pub name: String,
    /// Where events are sent.
    pub url: WebhookUrl,
    /// Where the secret is that requests are signed with.
    pub secret: SecretPlace,
    /// Which job types it is told of; all where it is empty.
    pub types: Vec<FlowType>,
    /// Which statuses it is told of; all where it is empty.
    pub statuses: Vec<JobStatus>,
    /// How long one request may take.
    pub timeout: Duration,
    /// Certificates to trust instead of the usual ones, in PEM; absolute.
    pub certificate_authority: Option<PathBuf>,
}

/// An address of the form `https://HOST[:PORT]/PATH`, or of http.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookUrl {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// A name or an address, an IPv6 one without its brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// Path and query; it may hold a secret of the receiver's.
    pub path: String,
}

/// A text is no address of a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no address of the form https://HOST/PATH")]
pub struct InvalidWebhookUrl;

impl FromStr for WebhookUrl {
    type Err = InvalidWebhookUrl;

    fn from_str(url: &str) -> Result<Self, InvalidWebhookUrl> {
        let (tls, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(InvalidWebhookUrl),
        };
        // A fragment never reaches a server, and what is before an @ would be a password in the open.
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) || rest.contains(['#', '"', '<', '>', '\\']) {
            return Err(InvalidWebhookUrl);
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(InvalidWebhookUrl);
        }
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or(InvalidWebhookUrl)?)),
            None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
        };
        let usual = if tls { 443 } else { 80 };
        let port = port.map_or(Ok(usual), |port| port.parse().map_err(|_| InvalidWebhookUrl))?;
        if host.is_empty() || host.contains(['[', ']']) || port == 0 {
            return Err(InvalidWebhookUrl);
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { tls, host: host.to_owned(), port, path })
    }
}

impl WebhookUrl {
    /// Host and port as a request names them.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for WebhookUrl {
    /// Without path and query, which are often all that protects a receiver.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/…", if self.tls { "https" } else { "http" }, self.authority())
    }
}

impl fmt::Debug for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_apart() {
        let parsed = |url: &str| url.parse::<WebhookUrl>().map(|url| (url.tls, url.authority(), url.path));
        assert_eq!(parsed("https://a.example/x?y=1").unwrap(), (true, "a.example".to_owned(), "/x?y=1".to_owned()));
        assert_eq!(parsed("http://[::1]:8080").unwrap(), (false, "[::1]:8080".to_owned(), "/".to_owned()));
        assert_eq!(parsed("https://a:8443?k").unwrap(), (true, "a:8443".to_owned(), "/?k".to_owned()));
        for wrong in [
            "",
            "a.example",
            "ftp://a",
            "http://",
            "http://a:0/",
            "http://a:x",
            "http://u:p@a/",
            "http://a/#b",
            "http://a/\r\nX: y",
            "http://a b/",
        ] {
            assert_eq!(parsed(wrong), Err(InvalidWebhookUrl), "{wrong}");
        }
    }

    #[test]
    fn what_protects_a_receiver_is_not_shown() {
        let url: WebhookUrl = "https://hooks.example/services/T0/secret".parse().unwrap();
        assert_eq!(format!("{url} {url:?}"), "https://hooks.example/… https://hooks.example/…");
    }
}
