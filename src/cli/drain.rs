//! `drain`: a worker claims nothing new, and ends when its runs have ended.

use std::time::Duration;

use serde_json::json;

use super::failure::{Exit, Failure, Result};
use super::{Context, live_workers, who};
use crate::config::known_worker_id;
use crate::domain::{JobId, WorkerId};
use crate::store::{DrainResult, Store, WorkerState};

/// Have a worker claim nothing new, and end when its runs have ended
///
/// By default the service that runs on this data directory. Asking again does no harm; a worker that was started anew
/// is not drained. What it waits for is in its log, in /readyz and in the answer.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet drain\n  callsheet drain --wait\n  callsheet drain --worker node-b\n\n\
    It ends with exit code 0, so systemd starts it again with Restart=always and not with Restart=on-failure.")]
pub(super) struct Args {
    /// Another worker of the same database
    #[arg(long, value_name = "ID")]
    worker: Option<WorkerId>,
    /// Wait until it has ended
    #[arg(long)]
    wait: bool,
}

/// How often a waiting command looks.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

pub(super) async fn run(context: &Context, args: &Args) -> Result {
    let config = context.config()?;
    let worker = match &args.worker {
        Some(worker) => worker.clone(),
        None => known_worker_id(&config)?.ok_or_else(|| {
            Failure::new(Exit::NotFound, format!("no service has run on {} yet", config.data_dir.display())).help(
                "name the service's --config or --data-dir, or the worker by --worker; `callsheet workers` shows them",
            )
        })?,
    };
    let store = context.store(&config).await?;
    let live = live_workers(&store).await?.into_iter().find(|live| live.worker_id == worker.as_str());
    let Some(live) = live else {
        return Err(Failure::new(Exit::NotFound, format!("no running service of worker {worker} was seen"))
            .help("`callsheet workers` shows the workers of this database"));
    };
    let word = match store.request_drain(&worker, &who()).await? {
        DrainResult::Requested => "requested",
        DrainResult::AlreadyRequested => "already_requested",
        // It ended between the two looks, which is what was asked for.
        DrainResult::NotFound | DrainResult::Stopped => "stopped",
    };
    let runs = runs(&store, &worker).await?;
    if context.output.json {
        let ids: Vec<i64> = runs.iter().map(|id| id.0).collect();
        context.output.json(&json!({ "worker_id": worker.as_str(), "result": word, "waits_for": ids }))?;
    } else {
        let asked = if word == "already_requested" { "was asked already; it " } else { "" };
        let waits = waits_for(&runs);
        context.output.line(format_args!("{worker}: {asked}claims nothing new, and ends {waits}"))?;
    }
    if args.wait { until_ended(&store, &worker, &live.incarnation).await } else { Ok(()) }
}

/// The jobs that a worker runs.
async fn runs(store: &Store, worker: &WorkerId) -> Result<Vec<JobId>> {
    let open = store.open_jobs(worker, None).await?;
    let own = open.into_iter().filter(|job| job.worker_id.as_deref() == Some(worker.as_str()));
    Ok(own.map(|job| job.id).collect())
}

fn waits_for(runs: &[JobId]) -> String {
    const SHOWN: usize = 10;
    let ids: Vec<String> = runs.iter().take(SHOWN).map(JobId::to_string).collect();
    let more = if runs.len() > SHOWN { ", …" } else { "" };
    match runs {
        [] => "at once".to_owned(),
        [job] => format!("when its run has ended (job {job})"),
        _ => format!("when its {} runs have ended (jobs {}{more})", runs.len(), ids.join(", ")),
    }
}

async fn until_ended(store: &Store, worker: &WorkerId, incarnation: &str) -> Result {
    let gone = |how: &str| Failure::new(Exit::Failed, format!("worker {worker} {how} before its runs had ended"));
    loop {
        let workers = store.workers().await?;
        let found = workers.iter().find(|row| row.worker_id == worker.as_str());
        match found {
            Some(row) if row.incarnation != incarnation => return Err(gone("was started anew")),
            Some(row) if row.state == WorkerState::Stopped.as_str() => return Ok(()),
            Some(row) if !row.is_live(store.now().await?) => return Err(gone("fell silent")),
            Some(_) => tokio::time::sleep(LOOK_AGAIN).await,
            None => return Err(gone("vanished from the database")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_it_waits_for() {
        let ids: Vec<JobId> = (1..=12).map(JobId).collect();
        assert_eq!(waits_for(&[]), "at once");
        assert_eq!(waits_for(&ids[..1]), "when its run has ended (job 1)");
        assert_eq!(waits_for(&ids[..2]), "when its 2 runs have ended (jobs 1, 2)");
        assert_eq!(waits_for(&ids), "when its 12 runs have ended (jobs 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …)");
    }
}
