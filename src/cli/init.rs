//! `init`: a configuration to start from.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Context;
use super::failure::{Exit, Failure, Result};
use crate::config::{DEFAULT_FILE, TEMPLATE};

/// Write a commented callsheet.toml to start from
///
/// Nothing is ever overwritten.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet init\n  callsheet --config /etc/callsheet/callsheet.toml init")]
pub(super) struct Args {}

pub(super) fn run(context: &Context, _: &Args) -> Result {
    let path = context.overrides.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    write(&path).map_err(|error| {
        let shown = path.display();
        match error.kind() {
            ErrorKind::AlreadyExists => {
                Failure::new(Exit::Usage, format!("{shown} exists already and was left as it is"))
                    .help("remove it first, or name another file with --config")
            }
            _ => Failure::new(Exit::Failed, format!("can't write {shown}: {error}")),
        }
    })?;
    if context.output.json {
        return Ok(context.output.json(&json!({ "config": path.display().to_string() }))?);
    }
    context.output.line(format_args!("wrote {}", path.display()))?;
    context.output.note("edit it, try it with `callsheet check`, then start the service with `callsheet serve`");
    Ok(())
}

fn write(path: &Path) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(TEMPLATE.as_bytes())
}
