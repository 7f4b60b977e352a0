//! `deliveries`: events on their way to webhooks.

use clap::ValueEnum;
use comfy_table::Cell;
use serde_json::json;

use super::Context;
use super::failure::{Exit, Failure, Result};
use super::output::cut;
use super::select::all;
use crate::http::json::DeliveryJson;
use crate::store::{AgainResult, DeliveryFilter};

/// Show what has been sent to webhooks, newest first, or send it again
///
/// A delivery is WAITING, DELIVERED, or FAILED once it was not taken for a day. One without a next time waits for an earlier
/// one of its job.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet deliveries --state failed\n  callsheet deliveries --again 17 18")]
pub(super) struct Args {
    /// Only those to this webhook
    #[arg(long, value_name = "NAME")]
    webhook: Option<String>,
    /// Only those in this state
    #[arg(long, value_name = "STATE")]
    state: Option<State>,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Send these again, which have failed
    #[arg(long, value_name = "ID", num_args = 1.., conflicts_with_all = ["webhook", "state", "limit"])]
    again: Vec<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum State {
    Waiting,
    Delivered,
    Failed,
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "WAITING",
            Self::Delivered => "DELIVERED",
            Self::Failed => "FAILED",
        }
    }
}

pub(super) async fn run(context: &Context, args: &Args) -> Result {
    let config = context.config()?;
    let store = context.store(&config).await?;
    if !args.again.is_empty() {
        let mut failures = Vec::new();
        for id in &args.again {
            match store.deliver_again(*id).await? {
                AgainResult::NotFound => {
                    failures.push(Failure::new(Exit::NotFound, format!("there is no delivery {id}")));
                }
                AgainResult::NotPossible => failures.push(Failure::new(
                    Exit::NotPossible,
                    format!("delivery {id} has not failed; only FAILED ones are sent again"),
                )),
                AgainResult::Waits if context.output.json => {
                    context.output.json(&json!({ "id": id, "state": "WAITING" }))?;
                }
                AgainResult::Waits => context.output.line(format_args!("{id}: is sent again"))?,
            }
        }
        return all(context, failures);
    }
    let filter = DeliveryFilter {
        webhook: args.webhook.clone(),
        state: args.state.map(|state| state.as_str().to_owned()),
        cursor: None,
        limit: args.limit,
    };
    let deliveries: Vec<_> = store.deliveries(&filter).await?.rows.into_iter().map(DeliveryJson::from).collect();
    if context.output.json {
        return Ok(context.output.json(&json!({ "deliveries": deliveries }))?);
    }
    if deliveries.is_empty() {
        context.output.note("there are no such deliveries");
        return Ok(());
    }
    let rows = deliveries.into_iter().map(|delivery| {
        vec![
            Cell::new(delivery.id),
            Cell::new(cut(&delivery.webhook, 30)),
            Cell::new(delivery.event_id),
            Cell::new(delivery.job_id),
            Cell::new(delivery.state),
            Cell::new(delivery.tries),
            Cell::new(delivery.next_time.or(delivery.ended_time).unwrap_or_default()),
            Cell::new(cut(&delivery.error.unwrap_or_default(), 60)),
        ]
    });
    let header = ["ID", "WEBHOOK", "EVENT", "JOB", "STATE", "TRIES", "NEXT OR ENDED", "ERROR"];
    Ok(context.output.table(&header, &["ID", "EVENT", "JOB", "TRIES"], rows.collect())?)
}
