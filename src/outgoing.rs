//! Requests to others: one HTTP/1.1 POST on a connection of its own, with or without TLS.
//!
//! By hand on tokio-rustls, which is here anyway for the server: a client with pools, redirects and HTTP/2 would be
//! rebuilt with every feature that it brings, and a webhook is a request of one shape to a place that the configuration names.

use std::fmt;
use std::io::{Error, ErrorKind, Result};
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::config::{SecretPlace, WebhookConfig, WebhookUrl};

/// A receiver can't be sent to.
#[derive(Debug, thiserror::Error)]
#[error("the webhook {name:?} can't be used: {place}: {reason}")]
pub struct Unusable {
    /// The webhook's name.
    name: String,
    /// What is wrong.
    place: String,
    /// What is wrong with it.
    reason: String,
}

/// What requests to a webhook are signed with.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey(Vec<u8>);

impl SigningKey {
    /// The key of a webhook, read from where its configuration says it is.
    ///
    /// # Errors
    /// Where it is not there, or is none.
    pub fn of(webhook: &WebhookConfig) -> std::result::Result<Self, Unusable> {
        let (place, text) = match &webhook.secret {
            SecretPlace::Env(variable) => {
                let value = std::env::var(variable).ok().filter(|value| !value.is_empty());
                let text = value.ok_or_else(|| "it is not set, or is empty".to_owned());
                (format!("the environment variable {variable}"), text)
            }
            SecretPlace::File(path) => {
                (path.display().to_string(), std::fs::read_to_string(path).map_err(|error| error.to_string()))
            }
        };
        let none = || "it does not hold whsec_ and the base64 of 24 to 64 bytes behind it".to_owned();
        let key = text.and_then(|text| Self::parse(&text).ok_or_else(none));
        key.map_err(|reason| Unusable { name: webhook.name.clone(), place, reason })
    }

    /// As receivers are given it (standardwebhooks.com).
    fn parse(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text.trim().strip_prefix("whsec_")?).ok()?;
        (24..=64).contains(&bytes.len()).then_some(Self(bytes))
    }

    /// The header `webhook-signature` of a message (standardwebhooks.com, "Verifying signatures").
    #[must_use]
    pub fn sign(&self, id: &str, timestamp: i64, body: &str) -> String {
        let key = ::ring::hmac::Key::new(::ring::hmac::HMAC_SHA256, &self.0);
        let tag = ::ring::hmac::sign(&key, format!("{id}.{timestamp}.{body}").as_bytes());
        format!("v1,{}", STANDARD.encode(tag.as_ref()))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(…)")
    }
}

/// A webhook and all that is needed to send to it.
#[derive(Clone, Debug)]
pub struct Receiver {
    /// As it is configured.
    pub webhook: WebhookConfig,
    /// What is signed with.
    pub key: SigningKey,
    /// How it is reached.
    pub poster: Poster,
}

impl Receiver {
    /// Of this webhook.
    ///
    /// # Errors
    /// Where its secret or its certificates can't be read.
    pub fn of(webhook: &WebhookConfig) -> std::result::Result<Self, Unusable> {
        let key = SigningKey::of(webhook)?;
        let authority = webhook.certificate_authority.as_deref();
        let poster = Poster::new(&webhook.url, authority).map_err(|error| Unusable {
            name: webhook.name.clone(),
            place: "certificate_authority".to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Self { webhook: webhook.clone(), key, poster })
    }
}

/// Speaks to one receiver.
#[derive(Clone)]
pub struct Poster {
    url: WebhookUrl,
    tls: Option<TlsConnector>,
}

impl fmt::Debug for Poster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poster").field("url", &self.url).finish_non_exhaustive()
    }
}

/// More of an answer is not read.
const LONGEST_ANSWER: u64 = 64 * 1024;

impl Poster {
    /// For this address; with the certificates in a file in PEM to trust, else with those that browsers trust.
    ///
    /// # Errors
    /// Where the file can't be used.
    pub fn new(url: &WebhookUrl, authority: Option<&Path>) -> Result<Self> {
        let tls = if url.tls { Some(connector(authority)?) } else { None };
        Ok(Self { url: url.clone(), tls })
    }

    /// The status of the answer to this body. Cancel safe in that the connection ends.
    ///
    /// # Errors
    /// Where there is no answer.
    pub async fn post(&self, headers: &[(&str, String)], body: &str) -> Result<u16> {
        let stream = TcpStream::connect((self.url.host.as_str(), self.url.port)).await?;
        match &self.tls {
            None => exchange(stream, &self.url, headers, body).await,
            Some(tls) => {
                let name = ServerName::try_from(self.url.host.clone()).map_err(Error::other)?;
                exchange(tls.connect(name, stream).await?, &self.url, headers, body).await
            }
        }
    }
}

/// What speaks TLS as a client; with the certificates in a file in PEM to trust, else with those that browsers trust.
///
/// # Errors
/// Where the file can't be used.
pub fn connector(authority: Option<&Path>) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    match authority {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let wrong = |reason: String| Error::other(format!("{}: {reason}", path.display()));
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))? {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(wrong("it holds no certificate in PEM".to_owned()));
            }
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    url: &WebhookUrl,
    headers: &[(&str, String)],
    body: &str,
) -> Result<u16> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: callsheet/{}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n",
        url.path,
        url.authority(),
        env!("CARGO_PKG_VERSION"),
        body.len(),
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    // To its end, so that the peer is not cut off while it writes; one that goes on without end is.
    let read = (&mut stream).take(LONGEST_ANSWER).read_to_end(&mut answer).await;
    match status(&answer) {
        Some(status) => Ok(status),
        // A peer that ends the connection without the end of TLS has still said what it said before.
        None => Err(read.err().unwrap_or_else(|| Error::new(ErrorKind::InvalidData, "the answer is no HTTP"))),
    }
}

/// The status of the last answer's first line: interim ones (1xx) may come before it.
fn status(mut answer: &[u8]) -> Option<u16> {
    loop {
        let line = std::str::from_utf8(answer.get(..12)?).ok()?;
        let status: u16 = line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
        if !(100..200).contains(&status) {
            return Some(status);
        }
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
        answer = &answer[end + 4..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_signed_as_the_standard_says() {
        // The example of standardwebhooks.com.
        let key = SigningKey::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let signature = key.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(format!("{key:?}"), "SigningKey(…)");
        for wrong in
            ["", "whsec_", "whsec_AAAA", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_Mf KQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
        {
            assert_eq!(SigningKey::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_status_is_that_of_the_final_answer() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r\n\r\n"), Some(204));
        assert_eq!(status(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 x\r\n\r\n"), Some(503));
        for wrong in ["", "HTTP/1.1 20", "SSH-2.0-OpenSSH_9.2", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/2.0 200 OK\r\n"]
        {
            assert_eq!(status(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
