//! `workers`: the services that use this database.

use comfy_table::Cell;

use super::Context;
use super::failure::Result;
use super::output::{age, cut};
use crate::http::json::{WorkerJson, rfc3339};

/// Show the services that have used this database, and which of them live
///
/// A worker that has not stopped and shows no sign of life is MISSING. Times are by the database's clock.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet workers\n  callsheet workers --json")]
pub(super) struct Args {}

pub(super) async fn run(context: &Context, _: &Args) -> Result {
    let config = context.config()?;
    let store = context.store(&config).await?;
    let now = store.now().await?;
    let workers = store.workers().await?;
    if context.output.json {
        let workers: Vec<WorkerJson> = workers.iter().map(|worker| WorkerJson::new(worker, now)).collect();
        return Ok(context.output.json(&serde_json::json!({ "workers": workers }))?);
    }
    if workers.is_empty() {
        context.output.note("no service has used this database yet");
        return Ok(());
    }
    let header = ["WORKER", "STATE", "VERSION", "HOST", "STARTED", "HEARTBEAT", "RUNS", "LABELS", "REMARK"];
    let rows = workers.iter().map(|worker| {
        let json = WorkerJson::new(worker, now);
        let remark = match (&worker.drain_requested_by, json.state) {
            (Some(who), "ACTIVE" | "DRAINING") => format!("drained by {who}"),
            _ => String::new(),
        };
        vec![
            Cell::new(cut(&worker.worker_id, 40)),
            Cell::new(json.state),
            Cell::new(cut(&worker.version, 20)),
            Cell::new(cut(&worker.hostname, 40)),
            Cell::new(rfc3339(worker.started_time)),
            Cell::new(format!("{} ago", age(worker.heartbeat_time.min(now), now))),
            Cell::new(worker.runs),
            Cell::new(cut(&worker.labels.to_string(), 60)),
            Cell::new(cut(&remark, 60)),
        ]
    });
    Ok(context.output.table(&header, &["RUNS"], rows.collect())?)
}
