//! `actors`: the live supervision tree, asked of the running service.

use std::collections::HashMap;

use chrono::DateTime;
use comfy_table::Cell;

use super::Context;
use super::ask::{TOKEN, ask};
use super::failure::{Exit, Failure, Result};
use super::output::{age, duration_of, one_line};
use crate::clock;
use crate::domain::Timestamp;
use crate::http::json::{ActorJson, ActorsJson};

/// Show the live supervision tree of the running service
///
/// It is asked at http.listen, with the token in CALLSHEET_TOKEN where it wants one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet actors\n  callsheet actors --json")]
pub(super) struct Args {}

pub(super) async fn run(context: &Context, _: &Args) -> Result {
    let config = context.config()?;
    let asked = ask(&config, "/api/v1/actors").await?;
    let body = match asked.status {
        200 => asked.body,
        401 => {
            return Err(Failure::new(Exit::Failed, "the service wants a token of [[http.tokens]]")
                .help(format!("put one in the environment variable {TOKEN}")));
        }
        status => {
            let detail = serde_json::from_str::<serde_json::Value>(&asked.body).ok();
            let detail = detail.and_then(|problem| problem["detail"].as_str().map(one_line)).unwrap_or_default();
            let message = format!("the service at {} answers {status}: {detail}", asked.address);
            return Err(Failure::new(Exit::Failed, message));
        }
    };
    if context.output.json {
        return Ok(context.output.line(body.trim_end())?);
    }
    let tree: ActorsJson = serde_json::from_str(&body).map_err(|error| {
        Failure::new(Exit::Failed, format!("{} does not answer as a callsheet does: {error}", asked.address))
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
