//! Asking the service on this machine, for commands of its own: one GET, over TLS where the service speaks that.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use crate::config::TlsConfig;

/// Status and body of the answer to a GET of at most `longest` bytes. `tls` are the files that the service has, whose
/// certificate, and no other, it must show: no name in it is that of this machine's own address.
///
/// # Errors
/// Where nobody answers, or not in HTTP, or with another certificate.
pub async fn get(
    address: SocketAddr,
    tls: Option<&TlsConfig>,
    path: &str,
    token: Option<&str>,
    longest: u64,
) -> io::Result<(u16, String)> {
    let stream = TcpStream::connect(address).await?;
    let bearer = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: application/json\r\n{bearer}Connection: close\r\n\r\n"
    );
    match tls {
        None => exchange(stream, &request, longest).await,
        Some(files) => {
            let connector = TlsConnector::from(Arc::new(trusting(files)?));
            exchange(connector.connect(address.ip().into(), stream).await?, &request, longest).await
        }
    }
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
    longest: u64,
) -> io::Result<(u16, String)> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    match stream.take(longest).read_to_end(&mut answer).await {
        // A peer that closes without saying so in TLS; the answer says itself where it ends.
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
        Ok(_) | Err(_) => {}
    }
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
    let (Some(status), Some((_, body))) = (status, answer.split_once("\r\n\r\n")) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "what answers there does not speak HTTP"));
    };
    Ok((status, body.to_owned()))
}

fn trusting(files: &TlsConfig) -> io::Result<ClientConfig> {
    let certificate = CertificateDer::from_pem_file(&files.certificate).map_err(|error| {
        io::Error::other(format!(
            "{} can't be read, and only who shows it is trusted: {error}",
            files.certificate.display()
        ))
    })?;
    let provider = Arc::new(ring::default_provider());
    let verifier = OnlyThis { certificate, algorithms: provider.signature_verification_algorithms };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(config)
}

/// Trusts one certificate, whatever stands in it.
#[derive(Debug)]
struct OnlyThis {
    certificate: CertificateDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for OnlyThis {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *end_entity == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::General("it shows another certificate than http.tls names".to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
