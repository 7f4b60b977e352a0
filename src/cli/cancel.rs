//! `cancel`: ends jobs, whatever open status they have.

use serde_json::json;

use super::failure::Result;
use super::select::{Selection, all, not_possible};
use super::show::no_such_job;
use super::{Context, Output, live_workers};
use crate::config::Config;
use crate::domain::database_url::DatabaseUrl;
use crate::domain::{JobId, JobStatus};
use crate::store::{CancelResult, Store};

/// Cancel jobs: waiting ones at once, running ones by ending their command
///
/// A running command gets SIGTERM, and SIGKILL after the flow's kill_grace, with all that it started. Without --status,
/// --type and --identifier mean every job that has not ended. Works with the service down.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet cancel 42 43\n  \
    callsheet cancel --type VEO_3_GENERATION --status PENDING --dry-run\n  callsheet cancel --identifier abc")]
pub(super) struct Args {
    #[command(flatten)]
    selection: Selection,
}

const OPEN: [JobStatus; 3] = [JobStatus::Pending, JobStatus::InQueue, JobStatus::Progress];

pub(super) async fn run(context: &Context, args: &Args) -> Result {
    let mut filter = args.selection.filter("cancelled", &OPEN, &OPEN)?;
    let config = context.config()?;
    let store = context.store(&config).await?;
    if args.selection.dry_run {
        return args.selection.show(context, &store, filter, "cancelled", &OPEN).await;
    }
    let mut failures = Vec::new();
    for id in &args.selection.ids {
        let result = store.request_cancel(*id).await?;
        report(context.output, &config, &store, *id, result).await?;
        match result {
            CancelResult::NotFound => failures.push(no_such_job(*id)),
            CancelResult::NotPossible(status) => failures.push(not_possible(*id, status, "cancelled")),
            CancelResult::Cancelled | CancelResult::Requested | CancelResult::AlreadyRequested => {}
        }
    }
    let mut found = !args.selection.ids.is_empty();
    while args.selection.ids.is_empty() {
        let page = store.cancel_page(&filter).await?;
        for (id, result) in page.rows {
            report(context.output, &config, &store, id, result).await?;
            found = true;
        }
        filter.cursor = page.next_cursor;
        if filter.cursor.is_none() {
            break;
        }
    }
    if !found {
        context.output.note("no such open jobs");
    }
    all(context, failures)
}

/// Whether a worker is there that sees to this open job.
async fn has_live_worker(config: &Config, store: &Store, id: JobId) -> Result<bool> {
    let live = live_workers(store).await?;
    // An embedded database has one service, which takes over what any before it left.
    let owner = match config.database_url {
        DatabaseUrl::Sqlite(_) => None,
        DatabaseUrl::Postgres(_) | DatabaseUrl::MySql(_) => store.job(id).await?.and_then(|job| job.worker_id),
    };
    Ok(live.iter().any(|worker| owner.as_ref().is_none_or(|owner| *owner == worker.worker_id)))
}

/// Says what became of the request, and of an open job whether somebody is there to end its command.
async fn report(output: Output, config: &Config, store: &Store, id: JobId, result: CancelResult) -> Result {
    let live = match result {
        CancelResult::Requested | CancelResult::AlreadyRequested => has_live_worker(config, store, id).await?,
        CancelResult::NotFound | CancelResult::NotPossible(_) | CancelResult::Cancelled => false,
    };
    let (word, text) = match result {
        CancelResult::NotFound => ("not_found", None),
        CancelResult::NotPossible(_) => ("not_possible", None),
        CancelResult::Cancelled => ("cancelled", Some("cancelled before it started")),
        CancelResult::Requested if live => ("requested", Some("its command is being ended")),
        CancelResult::Requested => (
            "requested",
            Some("the request is recorded, but no live worker was seen; its command is ended once one is back"),
        ),
        CancelResult::AlreadyRequested if live => {
            ("already_requested", Some("somebody had asked already; its command is being ended"))
        }
        CancelResult::AlreadyRequested => (
            "already_requested",
            Some("somebody had asked already, but no live worker was seen; its command is ended once one is back"),
        ),
    };
    if output.json {
        output.json(&json!({ "id": id.0, "result": word }))?;
    } else if let Some(text) = text {
        output.line(format_args!("{id}: {text}"))?;
    }
    Ok(())
}
