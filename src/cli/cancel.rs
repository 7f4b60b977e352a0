//! `cancel`: ends jobs, whatever open status they have.

use serde_json::json;

use super::failure::{Exit, Failure, Result};
use super::list;
use super::show::{job_id, no_such_job};
use super::{Context, Output, live_workers};
use crate::config::Config;
use crate::domain::database_url::DatabaseUrl;
use crate::domain::{JobId, JobStatus};
use crate::store::{CancelResult, JobFilter, Store};

/// Cancel jobs: waiting ones at once, running ones by ending their command
///
/// A running command gets SIGTERM, and SIGKILL after the flow's kill_grace, with all that it started.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  callsheet cancel 42 43\n  callsheet cancel --type VEO_3_GENERATION --status PENDING"
)]
pub(super) struct Args {
    /// The jobs
    #[arg(value_name = "ID", value_parser = job_id, required_unless_present_any = ["types", "statuses"])]
    ids: Vec<JobId>,
    /// Instead: all open jobs of this type; may be repeated
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "ids")]
    types: Vec<String>,
    /// Instead: all jobs of this status (PENDING, INQUEUE or PROGRESS); may be repeated
    #[arg(long = "status", value_name = "STATUS", value_parser = list::status, conflicts_with = "ids")]
    statuses: Vec<JobStatus>,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result {
    if let Some(status) = args.statuses.iter().find(|status| status.is_final()) {
        return Err(Failure::new(Exit::Usage, format!("a job that is {status} has ended and can't be cancelled"))
            .help("--status takes PENDING, INQUEUE and PROGRESS here"));
    }
    let config = context.config()?;
    let store = context.store(&config).await?;
    let ids = if args.ids.is_empty() { chosen(&store, args).await? } else { args.ids.clone() };
    if ids.is_empty() {
        context.output.note("no such open jobs");
    }
    let mut failures = Vec::new();
    for id in ids {
        let result = store.request_cancel(id).await?;
        let live = match result {
            CancelResult::Requested | CancelResult::AlreadyRequested => has_live_worker(&config, &store, id).await?,
            CancelResult::NotFound | CancelResult::NotPossible(_) | CancelResult::Cancelled => false,
        };
        report(context.output, id, result, live)?;
        match result {
            CancelResult::NotFound => failures.push(no_such_job(id)),
            // One that was chosen by its status and has ended since is none that anybody asked for.
            CancelResult::NotPossible(status) if !args.ids.is_empty() => failures.push(not_possible(id, status)),
            CancelResult::NotPossible(_)
            | CancelResult::Cancelled
            | CancelResult::Requested
            | CancelResult::AlreadyRequested => {}
        }
    }
    let Some(last) = failures.pop() else { return Ok(()) };
    let mut first = last;
    for failure in failures.into_iter().rev() {
        first.report(context.output);
        first = failure;
    }
    Err(first)
}

fn not_possible(id: JobId, status: JobStatus) -> Failure {
    Failure::new(Exit::NotPossible, format!("job {id} can't be cancelled: it has ended and is {status}"))
}

async fn chosen(store: &Store, args: &Args) -> Result<Vec<JobId>> {
    let open = [JobStatus::Pending, JobStatus::InQueue, JobStatus::Progress];
    let statuses = if args.statuses.is_empty() { open.to_vec() } else { args.statuses.clone() };
    let mut filter = JobFilter { types: args.types.clone(), statuses, identifier: None, cursor: None, limit: 1000 };
    let mut ids = Vec::new();
    loop {
        let page = store.list(&filter).await?;
        ids.extend(page.rows.iter().map(|row| row.id));
        filter.cursor = page.next_cursor;
        if filter.cursor.is_none() {
            return Ok(ids);
        }
    }
}

/// Whether a worker is there that sees to this open job.
async fn has_live_worker(config: &Config, store: &Store, id: JobId) -> Result<bool> {
    let live = live_workers(store).await?;
    // An embedded database has one service, which takes over what any before it left.
    let owner = match config.database_url {
        DatabaseUrl::Sqlite(_) => None,
        DatabaseUrl::Postgres(_) => store.job(id).await?.and_then(|job| job.worker_id),
    };
    Ok(live.iter().any(|worker| owner.as_ref().is_none_or(|owner| *owner == worker.worker_id)))
}

/// Says what became of the request; `live` tells whether somebody is there to end the command of an open job.
fn report(output: Output, id: JobId, result: CancelResult, live: bool) -> Result {
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
