//! Who may use the HTTP server: the tokens as configured, and as they are known once the environment has been read.

use std::fmt;

use sha2::{Digest, Sha256};

use super::{Error, HttpConfig};

/// What a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AccessRole {
    /// Reads.
    Viewer,
    /// Reads and writes.
    Operator,
}

impl AccessRole {
    /// Every role.
    pub const ALL: [Self; 2] = [Self::Viewer, Self::Operator];

    /// The word in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        }
    }
}

/// `[[http.tokens]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenConfig {
    /// Who has it: what the audit trail says.
    pub name: String,
    /// What it allows.
    pub role: AccessRole,
    /// How it is recognized.
    pub secret: TokenSecret,
}

/// How a token is recognized.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSecret {
    /// By its SHA-256.
    Sha256([u8; 32]),
    /// It is the value of this environment variable.
    Env(String),
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(_) => f.write_str("Sha256(…)"),
            Self::Env(variable) => f.debug_tuple("Env").field(variable).finish(),
        }
    }
}

/// A token as the running service knows it: never itself, only its hash.
#[derive(Clone, PartialEq, Eq)]
pub struct KnownToken {
    /// Who has it.
    pub name: String,
    /// What it allows.
    pub role: AccessRole,
    /// Its SHA-256.
    pub sha256: [u8; 32],
}

impl fmt::Debug for KnownToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KnownToken").field("name", &self.name).field("role", &self.role).finish_non_exhaustive()
    }
}

impl HttpConfig {
    /// The variables of the environment that hold tokens.
    #[must_use]
    pub fn token_variables(&self) -> Vec<String> {
        let variable = |token: &TokenConfig| match &token.secret {
            TokenSecret::Sha256(_) => None,
            TokenSecret::Env(variable) => Some(variable.clone()),
        };
        self.tokens.iter().filter_map(variable).collect()
    }
}

/// The tokens of a configuration, those that are in the environment read from there and hashed.
///
/// # Errors
/// [`Error::TokenUnset`] where a variable is not set or empty, [`Error::TokenUnfit`] where no request could carry its value: a
/// token that nobody could give would go unnoticed.
pub fn known_tokens(config: &HttpConfig) -> Result<Vec<KnownToken>, Error> {
    let known = |token: &TokenConfig| {
        let sha256 = match &token.secret {
            TokenSecret::Sha256(hash) => *hash,
            TokenSecret::Env(variable) => {
                let (name, variable) = (token.name.clone(), variable.clone());
                match std::env::var_os(&variable).filter(|value| !value.is_empty()) {
                    Some(value) if is_fit(value.as_encoded_bytes()) => Sha256::digest(value.as_encoded_bytes()).into(),
                    Some(_) => return Err(Error::TokenUnfit { name, variable }),
                    None => return Err(Error::TokenUnset { name, variable }),
                }
            }
        };
        Ok(KnownToken { name: token.name.clone(), role: token.role, sha256 })
    };
    config.tokens.iter().map(known).collect()
}

/// Whether a header can carry the token as it is: blanks at its ends are no part of a header's value (RFC 9110, 5.5).
fn is_fit(token: &[u8]) -> bool {
    token.iter().all(u8::is_ascii_graphic)
}

/// Whether this is what `printf %s "$TOKEN" | sha256sum` says where `TOKEN` is not set.
pub(super) fn is_of_nothing(sha256: &[u8; 32]) -> bool {
    *sha256 == <[u8; 32]>::from(Sha256::digest(b""))
}

/// 64 hexadecimal digits.
pub(super) fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_64_hexadecimal_digits() {
        let digits = "00Ff".repeat(16);
        assert_eq!(parse_sha256(&digits).unwrap()[..4], [0, 255, 0, 255]);
        assert!(["", &digits[1..], &"zz".repeat(32), &"+1".repeat(32)].iter().all(|text| parse_sha256(text).is_none()));
    }

    #[test]
    fn no_secret_is_shown() {
        let token = KnownToken { name: "ops".to_owned(), role: AccessRole::Operator, sha256: [7; 32] };
        let secret = TokenSecret::Sha256([7; 32]);
        assert!(!format!("{token:?} {secret:?}").contains('7'));
    }

    #[test]
    fn a_token_that_no_request_can_carry_is_a_mistake() {
        assert!(is_fit(b"do-everything_7+/=~"));
        assert!(["x ", " x", "x\n", "a b", "x\t", "\u{fc}"].iter().all(|token| !is_fit(token.as_bytes())));
    }

    #[test]
    fn a_variable_that_is_not_set_is_a_mistake() {
        let secret = TokenSecret::Env("CALLSHEET_TEST_SURELY_UNSET".to_owned());
        let tokens = vec![TokenConfig { name: "ops".to_owned(), role: AccessRole::Viewer, secret }];
        let error = known_tokens(&HttpConfig { tokens, ..HttpConfig::default() }).unwrap_err();
        assert!(error.to_string().contains("CALLSHEET_TEST_SURELY_UNSET"));
    }
}
