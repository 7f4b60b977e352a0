//! `recurring`: the jobs that are enqueued by the clock.

use comfy_table::Cell;

use super::Context;
use super::failure::Result;
use super::output::cut;
use crate::http::json::RecurringsJson;

/// Show the recurring jobs: when each fired last, and when it fires next
///
/// They are the entries [[flows.TYPE.recurring]] of the configuration; the last fire is in the database.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet recurring\n  callsheet recurring --json")]
pub(super) struct Args {}

pub(super) async fn run(context: &Context, _: &Args) -> Result {
    let config = context.config()?;
    let store = context.store(&config).await?;
    let json = RecurringsJson::new(&config, &store.recurring().await?, store.now().await?);
    if context.output.json {
        return Ok(context.output.json(&json)?);
    }
    if json.recurring.is_empty() {
        context.output.note("no flow of the configuration has recurring jobs");
        return Ok(());
    }
    let rows = json.recurring.into_iter().map(|entry| {
        vec![
            Cell::new(cut(&entry.job_type, 40)),
            Cell::new(cut(&entry.name, 40)),
            Cell::new(cut(&entry.schedule, 30)),
            Cell::new(entry.timezone),
            Cell::new(entry.last_fire_time.unwrap_or_default()),
            Cell::new(entry.last_job_id.map(|job| job.to_string()).unwrap_or_default()),
            Cell::new(entry.next_fire_time.unwrap_or_default()),
        ]
    });
    let header = ["TYPE", "NAME", "SCHEDULE", "TIME ZONE", "LAST FIRE", "JOB", "NEXT FIRE"];
    Ok(context.output.table(&header, &["JOB"], rows.collect())?)
}
