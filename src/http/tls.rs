//! TLS by rustls, with a certificate that may be replaced while the service runs.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

use super::Error;
use crate::config::{Config, TlsConfig};

/// A client that has not shaken hands by then is not going to.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the files are looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Shakes hands with the certificate that the files held last.
#[derive(Clone)]
pub(super) struct Tls {
    files: TlsConfig,
    current: Arc<RwLock<Arc<ServerConfig>>>,
}

impl Tls {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// Where they can't be read, or don't belong together.
    pub(super) fn load(files: &TlsConfig) -> Result<Self, Error> {
        let current = Arc::new(RwLock::new(Arc::new(read(files)?)));
        Ok(Self { files: files.clone(), current })
    }

    /// The encrypted stream.
    ///
    /// # Errors
    /// Where the client does not speak TLS, or takes too long.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        let handshake = TlsAcceptor::from(config).accept(stream);
        tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Takes new certificates up, soon after the files have changed and when the configuration is read again.
    pub(super) async fn keep_fresh(self, mut config: watch::Receiver<Arc<Config>>) {
        let mut seen = self.stamp();
        loop {
            // Once nobody can read the configuration again, only the time wakes this up.
            if let Ok(Err(_)) = tokio::time::timeout(LOOK_AGAIN, config.changed()).await {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            let now = self.stamp();
            if now == seen {
                continue;
            }
            seen = now;
            match read(&self.files) {
                Ok(new) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                    tracing::info!(certificate = %self.files.certificate.display(), "the certificate was read anew");
                }
                // Two files can't be replaced at once, so this may well be between the one and the other.
                Err(error) => {
                    tracing::warn!(%error, "the certificate has changed and can't be used; the old one is kept");
                }
            }
        }
    }

    /// What changes when a file is written or replaced.
    fn stamp(&self) -> [Option<(u64, i64, i64, u64)>; 2] {
        let of = |found: Metadata| (found.ino(), found.mtime(), found.mtime_nsec(), found.len());
        [&self.files.certificate, &self.files.key].map(|path| std::fs::metadata(path).ok().map(of))
    }
}

fn read(files: &TlsConfig) -> Result<ServerConfig, Error> {
    let error = |path: &Path, reason: String| Error::Tls { path: PathBuf::from(path), reason };
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(&files.certificate).and_then(|certificates| certificates.collect());
    let certificates = certificates.map_err(|cause| error(&files.certificate, cause.to_string()))?;
    if certificates.is_empty() {
        return Err(error(&files.certificate, "it holds no certificate in PEM".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|cause| error(&files.key, cause.to_string()))?;
    let wrong = |cause: tokio_rustls::rustls::Error| error(&files.key, cause.to_string());
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(wrong)?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(wrong)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
