//! `[http]`: where it listens, how it is encrypted, who may ask, and the peers that are asked.

use std::net::{IpAddr, SocketAddr};

use toml::Spanned;

use super::{LONGEST_TOKEN_NAME, SecretWords, Validator};
use crate::config::tokens::{is_of_nothing, parse_sha256};
use crate::config::written::{Peers, Tls, Token};
use crate::config::{AccessRole, HttpConfig, PeersConfig, TlsConfig, TokenConfig, TokenSecret, WebhookUrl};

const OF_PEERS: SecretWords = SecretWords {
    both: "the workers have either `secret_env` or `secret_file`, not both",
    neither: "`http.peers` has neither `secret_env` nor `secret_file`",
    what_it_is: "the workers know each other by it; at least 32 characters, the same for all of them",
};

impl Validator<'_> {
    pub(super) fn listen(&mut self, written: Option<&Spanned<String>>, no_tokens: bool) -> Option<SocketAddr> {
        let Some(written) = written else { return HttpConfig::default().listen };
        self.place("http.listen", written.span());
        let text = written.get_ref();
        if text == "off" {
            return None;
        }
        match text.parse::<SocketAddr>() {
            Ok(address) => {
                let reachable_by_others = match address.ip() {
                    IpAddr::V4(ip) => !ip.is_loopback(),
                    IpAddr::V6(ip) => !ip.is_loopback(),
                };
                if reachable_by_others && no_tokens {
                    self.notes
                        .add(
                            written.span(),
                            format!("`listen` = {text:?} can be reached by other machines, and there are no tokens"),
                        )
                        .help(
                            "without [[http.tokens]] only a loopback address is accepted, such as \"127.0.0.1:8440\"",
                        );
                }
                Some(address)
            }
            Err(_) => {
                let help =
                    "write an IP address and a port, such as \"127.0.0.1:8440\" or \"[::1]:8440\", or \"off\" for none";
                self.notes.add(written.span(), format!("`listen` can't be {text:?}")).help(help);
                None
            }
        }
    }

    pub(super) fn tls(&mut self, written: &Tls) -> Option<TlsConfig> {
        let mut file = |key: &str, file: Option<&Spanned<String>>| match file {
            Some(file) => {
                self.place(format!("http.tls.{key}"), file.span());
                self.path(key, file);
                Some(self.directory.join(file.get_ref()))
            }
            None => {
                self.notes.add(written.span.clone(), format!("`http.tls` has no `{key}`")).missing();
                None
            }
        };
        let (certificate, key) = (file("certificate", written.certificate.as_ref()), file("key", written.key.as_ref()));
        Some(TlsConfig { certificate: certificate?, key: key? })
    }

    pub(super) fn peers(&mut self, written: &Peers) -> Option<PeersConfig> {
        let Peers { span, secret_env, secret_file, advertise, certificate_authority } = written;
        let secret = self.secret_place((secret_env.as_ref(), secret_file.as_ref()), span.clone(), &OF_PEERS);
        let advertise = match advertise {
            None => None,
            Some(url) => match url.get_ref().parse::<WebhookUrl>() {
                Ok(address) if address.path == "/" => Some(address),
                Ok(_) | Err(_) => {
                    let message = format!("`advertise` can't be {:?}", url.get_ref());
                    self.notes
                        .add(url.span(), message)
                        .help("write \"http://10.0.0.5:8440\", or https, without a path");
                    None
                }
            },
        };
        let certificate_authority = certificate_authority.as_ref().map(|file| {
            self.path("certificate_authority", file);
            self.directory.join(file.get_ref())
        });
        Some(PeersConfig { secret: secret?, advertise, certificate_authority })
    }

    pub(super) fn tokens(&mut self, written: &[Spanned<Token>]) -> Vec<TokenConfig> {
        let mut tokens: Vec<TokenConfig> = Vec::new();
        for token in written {
            let Some(config) = self.token(token) else { continue };
            if tokens.iter().any(|other| other.name == config.name) {
                // The audit trail names people by it.
                let message = format!("two tokens have the name {:?}", config.name);
                self.notes.add(token.span(), message).help("give each its own, so that one can tell who did what");
            }
            tokens.push(config);
        }
        tokens
    }

    fn token(&mut self, token: &Spanned<Token>) -> Option<TokenConfig> {
        const ROLES: &str = "\"viewer\" reads, \"operator\" also writes";
        let Token { name, role, token_sha256, token_env } = token.get_ref();
        let name = name.as_ref().filter(|name| !name.get_ref().is_empty());
        match name {
            None => {
                self.notes.add(token.span(), "this token has no `name`").missing();
            }
            Some(name) if name.get_ref().len() > LONGEST_TOKEN_NAME || name.get_ref().contains(char::is_control) => {
                let message =
                    format!("a token's `name` has at most {LONGEST_TOKEN_NAME} bytes, none of a control character");
                self.notes.add(name.span(), message);
            }
            Some(_) => {}
        }
        let role = match role {
            None => {
                self.notes.add(token.span(), "this token has no `role`").help(ROLES).missing();
                None
            }
            Some(written) => {
                let role = AccessRole::ALL.into_iter().find(|role| role.as_str() == written.get_ref());
                if role.is_none() {
                    self.notes.add(written.span(), format!("`role` can't be {:?}", written.get_ref())).help(ROLES);
                }
                role
            }
        };
        let secret = match (token_sha256, token_env) {
            (Some(hash), None) => {
                let parsed = parse_sha256(hash.get_ref());
                match parsed {
                    None => {
                        let message = "`token_sha256` is a SHA-256 hash of 64 hexadecimal digits";
                        self.notes.add(hash.span(), message).private();
                    }
                    Some(hashed) if is_of_nothing(&hashed) => {
                        let message = "`token_sha256` is the hash of an empty text, which is no token";
                        self.notes.add(hash.span(), message).help("was $TOKEN set when it was hashed?");
                    }
                    Some(_) => {}
                }
                parsed.map(TokenSecret::Sha256)
            }
            (None, Some(variable)) => {
                self.variable_name(variable, false);
                Some(TokenSecret::Env(variable.get_ref().clone()))
            }
            (Some(_), Some(second)) => {
                self.notes.add(second.span(), "a token has either `token_sha256` or `token_env`, not both").private();
                None
            }
            (None, None) => {
                self.notes.add(token.span(), "this token has neither `token_sha256` nor `token_env`").missing();
                None
            }
        };
        Some(TokenConfig { name: name?.get_ref().clone(), role: role?, secret: secret? })
    }
}
