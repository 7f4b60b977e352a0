//! `migrate`: the tables.

use comfy_table::Cell;
use serde_json::json;

use super::failure::Result;
use super::{Context, open_for_service};
use crate::store::{Store, Use};

/// Make or bring up to date the tables of the database
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  callsheet migrate up\n  callsheet --database-url postgres://callsheet@db/jobs migrate status"
)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Copy, Debug, clap::Subcommand)]
enum Action {
    /// Make the tables, or bring them up to date (`serve` does the same, unless --no-migrate)
    Up,
    /// Show which migrations the database has
    Status,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result {
    let config = context.config()?;
    let output = context.output;
    match args.action {
        Action::Up => {
            let applied = open_for_service(&config).await?.migrate().await?;
            if output.json {
                return Ok(output.json(&json!({ "applied": applied }))?);
            }
            if applied.is_empty() {
                output.note(format_args!("{} is up to date", config.database_url));
            }
            for name in &applied {
                output.line(format_args!("applied {name}"))?;
            }
        }
        Action::Status => {
            let status = Store::of(&config, Use::Tool).await?.migration_status().await?;
            if output.json {
                let migrations = status.iter().map(|(name, applied)| json!({ "name": name, "applied": applied }));
                return Ok(output.json(&json!({ "migrations": migrations.collect::<Vec<_>>() }))?);
            }
            let row = |(name, applied): &(String, bool)| {
                vec![Cell::new(name), Cell::new(if *applied { "applied" } else { "missing: `callsheet migrate up`" })]
            };
            output.table(&["MIGRATION", "STATE"], &[], status.iter().map(row).collect())?;
        }
    }
    Ok(())
}
