//! `prune`: what retention removes, now.

use std::time::Duration;

use comfy_table::Cell;

use super::Context;
use super::failure::{Exit, Failure, Result};
use crate::actors::retention::old_logs;
use crate::clock;
use crate::config::{Config, RetentionConfig};
use crate::http::json::PrunedJson;
use crate::process::upkeep::RunDirectories;
use crate::store::{Pruned, Store};

/// Remove now what retention lets go: old jobs, audit rows, logs
///
/// The service does this by itself each hour. Jobs go with their runs and events, in small batches that claims don't wait
/// for; logs are those in this data directory. Jobs that have not ended are never removed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet prune --dry-run\n  callsheet prune")]
pub(super) struct Args {
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
}

/// Longer than anybody waits; Ctrl-C ends it between two batches.
const NO_END: Duration = Duration::from_secs(7 * 86_400);

pub(super) async fn run(context: &Context, args: &Args) -> Result {
    let config = context.config()?;
    let store = context.store(&config).await?;
    let horizon = config.retention.horizon(store.now().await?);
    let pruned = if args.dry_run { store.prunable(&horizon).await? } else { store.prune(&horizon, NO_END).await? };
    let logs = logs(&config, &store, args.dry_run).await?;
    if !args.dry_run && pruned.total() + logs > 0 {
        let outcome = format!("{} rows and the logs of {logs} runs removed", pruned.total());
        store.note_deed("prune", "what retention lets go", &outcome).await?;
    }
    if context.output.json {
        return Ok(context.output.json(&PrunedJson::new(pruned, Some(logs), args.dry_run))?);
    }
    print(context, &config.retention, pruned, logs, args.dry_run)
}

/// How many run directories went, or would go.
async fn logs(config: &Config, store: &Store, dry_run: bool) -> Result<u64> {
    let (Some(kept), true) = (config.retention.logs, config.data_dir.join("runs").is_dir()) else { return Ok(0) };
    let failed = |error: std::io::Error| Failure::new(Exit::Failed, format!("the old logs can't be removed: {error}"));
    let directories = RunDirectories::of(&config.data_dir);
    let old = old_logs(store, &directories, kept, clock::now()).await.map_err(failed)?;
    let mut count = 0;
    for directory in old {
        count += u64::from(dry_run || directories.remove(&directory).map_err(failed)?);
    }
    Ok(count)
}

fn print(context: &Context, kept: &RetentionConfig, pruned: Pruned, logs: u64, dry_run: bool) -> Result {
    let rows = [
        ("COMPLETED jobs", kept.completed, pruned.completed),
        ("ERROR jobs", kept.error, pruned.error),
        ("CANCELLED jobs", kept.cancelled, pruned.cancelled),
        ("deliveries", kept.deliveries, pruned.deliveries),
        ("audit rows", kept.audit, pruned.audit),
        ("logs of runs", kept.logs, logs),
    ];
    let kept = |kept: Option<Duration>| kept.map_or_else(|| "for ever".to_owned(), in_days);
    let rows = rows.map(|(what, age, count)| vec![Cell::new(what), Cell::new(kept(age)), Cell::new(count)]);
    let header = ["WHAT", "KEPT", if dry_run { "WOULD GO" } else { "REMOVED" }];
    Ok(context.output.table(&header, &header[2..], rows.into())?)
}

/// The duration as it is written: months of 30.44 days are nobody's.
fn in_days(kept: Duration) -> String {
    const DAY: u64 = 86_400;
    let seconds = kept.as_secs();
    if seconds.is_multiple_of(DAY) {
        format!("{}d", seconds / DAY)
    } else {
        humantime::format_duration(kept).to_string()
    }
}
