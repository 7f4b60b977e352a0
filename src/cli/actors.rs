//! `actors`: the live supervision tree, asked of the running service.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use chrono::DateTime;
use comfy_table::Cell;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Context;
use super::failure::{Exit, Failure, Result};
use super::output::{age, duration_of, one_line};
use crate::clock;
use crate::config::{Config, TokenSecret};
use crate::domain::Timestamp;
use crate::http::json::{ActorJson, ActorsJson};

/// Show the live supervision tree of the running service
///
/// It is asked at http.listen, with the token in CALLSHEET_TOKEN where it wants one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet actors\n  callsheet actors --json")]
pub(super) struct Args {}

/// The variable that holds a token for the commands that ask the service.
const TOKEN: &str = "CALLSHEET_TOKEN";
/// A service that lives answers in milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// No tree is larger.
const LARGEST_ANSWER: u64 = 64 << 20;

pub(super) async fn run(context: &Context, _: &Args) -> Result {
    let config = context.config()?;
    let address = address(&config)?;
    let body = ask(&config, address, "/api/v1/actors").await?;
    if context.output.json {
        return Ok(context.output.line(body.trim_end())?);
    }
    let tree: ActorsJson = serde_json::from_str(&body).map_err(|error| {
        Failure::new(Exit::Failed, format!("{address} does not answer as a callsheet does: {error}"))
    })?;
    let mut depths: HashMap<u64, usize> = HashMap::new();
    let now = clock::now();
    let mut rows = Vec::new();
    for actor in &tree.actors {
        let depth = actor.parent_id.and_then(|parent| depths.get(&parent)).map_or(0, |depth| depth + 1);
        depths.insert(actor.id, depth);
        rows.push(row(actor, depth, now));
    }
    let header = ["ACTOR", "ROLE", "STARTED", "RESTARTS", "MAILBOX", "LAST MESSAGE"];
    Ok(context.output.table_of_lines(&header, &header[3..5], rows)?)
}

fn row(actor: &ActorJson, depth: usize, now: Timestamp) -> Vec<Cell> {
    let name = match &actor.job_type {
        Some(flow) if actor.name == actor.role => format!("{} of {flow}", actor.name),
        _ => actor.name.clone(),
    };
    let started = DateTime::parse_from_rfc3339(&actor.started_time).ok();
    let started = started.map(|time| age(Timestamp::from_unix_millis(time.timestamp_millis()).min(now), now));
    let last = actor.last_message_age_ms.map(|ms| duration_of(i64::try_from(ms).unwrap_or(i64::MAX)) + " ago");
    vec![
        Cell::new(format!("{:width$}{}", "", one_line(&name), width = 2 * depth)),
        Cell::new(one_line(&actor.role)),
        Cell::new(started.map(|started| started + " ago").unwrap_or_default()),
        Cell::new(actor.restarts),
        Cell::new(actor.mailbox_depth.map(|depth| depth.to_string()).unwrap_or_default()),
        Cell::new(last.unwrap_or_else(|| "none yet".to_owned())),
    ]
}

/// Where the service of this configuration answers on this machine.
fn address(config: &Config) -> Result<SocketAddr> {
    let Some(listen) = config.http.listen else {
        return Err(Failure::new(Exit::Usage, "the service can't be asked: http.listen is \"off\"")
            .help("set http.listen to an address such as \"127.0.0.1:8440\" and restart the service"));
    };
    if config.http.tls.is_some() {
        return Err(Failure::new(Exit::Usage, "the service speaks TLS (http.tls), which this command does not")
            .help(format!("ask it with `curl -H \"Authorization: Bearer $TOKEN\" https://{listen}/api/v1/actors`")));
    }
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
        .help("the actors live in a running service; `callsheet serve` starts one, `callsheet workers` shows where others run")
}

/// The body of the answer to a GET.
async fn ask(config: &Config, address: SocketAddr, path: &str) -> Result<String> {
    let mut request =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: application/json\r\nConnection: close\r\n");
    if let Some(token) = token(config)? {
        let _ = write!(request, "Authorization: Bearer {token}\r\n");
    }
    request.push_str("\r\n");
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(LARGEST_ANSWER).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = match timeout(PATIENCE, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(no_service(address, &error.to_string())),
        Err(_) => return Err(no_service(address, &format!("nothing came for {} s", PATIENCE.as_secs()))),
    };
    let answer = String::from_utf8_lossy(&answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return Err(no_service(address, "what answers there does not speak HTTP"));
    };
    let status = head.split(' ').nth(1).unwrap_or_default();
    match status {
        "200" => Ok(body.to_owned()),
        "401" => Err(Failure::new(Exit::Failed, "the service wants a token of [[http.tokens]]")
            .help(format!("put one in the environment variable {TOKEN}"))),
        _ => {
            let detail = serde_json::from_str::<serde_json::Value>(body).ok();
            let detail = detail.and_then(|problem| problem["detail"].as_str().map(one_line)).unwrap_or_default();
            Err(Failure::new(Exit::Failed, format!("the service at {address} answers {}: {detail}", one_line(status))))
        }
    }
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
