//! Where a secret is that callers or receivers share with this service; never what it is.

use std::path::PathBuf;

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretPlace {
    /// In this variable of the service's environment.
    Env(String),
    /// In this file; absolute.
    File(PathBuf),
}
