//! `[http.peers]`: how the workers of one database reach each other.

use std::path::PathBuf;

use super::{SecretPlace, WebhookUrl};

/// `[http.peers]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeersConfig {
    /// Where the secret is that all of them share.
    pub secret: SecretPlace,
    /// How the others reach this worker; `None` for where it listens.
    pub advertise: Option<WebhookUrl>,
    /// Certificates to trust instead of the usual ones, in PEM; absolute.
    pub certificate_authority: Option<PathBuf>,
}
