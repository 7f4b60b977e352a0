//! Asking the service of this configuration on this machine, as those commands do that are about what only it knows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::time::timeout;

use super::failure::{Exit, Failure, Result};
use crate::config::{Config, TokenSecret};
use crate::http::client;

/// The variable that holds a token for the commands that ask the service.
pub(super) const TOKEN: &str = "CALLSHEET_TOKEN";
/// A service that lives answers in milliseconds; a container's health check has 5 s.
const PATIENCE: Duration = Duration::from_secs(4);
/// No answer is larger.
const LARGEST_ANSWER: u64 = 64 << 20;

/// What the service has answered.
pub(super) struct Asked {
    /// Where it answered.
    pub(super) address: SocketAddr,
    pub(super) status: u16,
    pub(super) body: String,
}

/// Asks the service for what is at this path, with the token that the environment holds.
pub(super) async fn ask(config: &Config, path: &str) -> Result<Asked> {
    let address = address(config)?;
    let token = token(config)?;
    let asked = client::get(address, config.http.tls.as_ref(), path, token.as_deref(), LARGEST_ANSWER);
    match timeout(PATIENCE, asked).await {
        Ok(Ok((status, body))) => Ok(Asked { address, status, body }),
        Ok(Err(error)) => Err(no_service(address, &error.to_string())),
        Err(_) => Err(no_service(address, &format!("nothing came for {} s", PATIENCE.as_secs()))),
    }
}

/// Where the service of this configuration answers on this machine.
fn address(config: &Config) -> Result<SocketAddr> {
    let Some(listen) = config.http.listen else {
        return Err(Failure::new(Exit::Usage, "the service can't be asked: http.listen is \"off\"")
            .help("set http.listen to an address such as \"127.0.0.1:8440\" and restart the service"));
    };
    let mut address = listen;
    if listen.port() == 0 {
        // The system chose the port, and the service wrote it down.
        let noted = std::fs::read_to_string(config.data_dir.join(crate::app::ADDRESS_FILE)).ok();
        address = noted
            .and_then(|text| text.trim().parse().ok())
            .ok_or_else(|| no_service(listen, "it has left no address"))?;
    }
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    Ok(address)
}

fn no_service(address: SocketAddr, why: &str) -> Failure {
    Failure::new(Exit::Failed, format!("no service answers at {address} (http.listen): {why}"))
        .help("`callsheet serve` starts one; `callsheet workers` shows where others run")
}

/// A token that the environment holds: one for this command, or one of the configuration's own.
fn token(config: &Config) -> Result<Option<String>> {
    let variables = config.http.tokens.iter().filter_map(|token| match &token.secret {
        TokenSecret::Env(variable) => Some(variable.as_str()),
        TokenSecret::Sha256(_) => None,
    });
    let found = std::iter::once(TOKEN).chain(variables).find_map(|variable| {
        std::env::var(variable).ok().filter(|value| !value.is_empty()).map(|value| (variable.to_owned(), value))
    });
    match found {
        Some((variable, value)) if !value.bytes().all(|b| b.is_ascii_graphic()) => {
            Err(Failure::new(Exit::Usage, format!("the token in {variable} holds a character that no header can hold")))
        }
        found => Ok(found.map(|(_, value)| value)),
    }
}
