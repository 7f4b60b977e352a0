//! `serve`: the service, in the foreground.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use super::failure::{Exit, Failure, Result};
use super::places::{Obstacle, obstacle};
use super::{Context, LogFormat, make_place_of_database};
use crate::app::{self, ServeOptions};

/// Run the service in the foreground
///
/// Brings the tables up to date, settles what an earlier service left behind, then runs what is enqueued. SIGTERM and
/// Ctrl-C stop it; what becomes of running commands then is service.on_stop of the configuration. SIGHUP has it read the
/// flows of the configuration again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet serve\n  callsheet serve --no-migrate --log-format json\n\n\
    RUST_LOG sets what is logged in more detail than -v and -q, such as RUST_LOG=callsheet=debug.")]
pub(super) struct Args {
    /// Leave the tables as they are, and fail where they are not up to date
    #[arg(long)]
    no_migrate: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> Result {
    let config = context.config()?;
    if config.path.is_none() {
        return Err(Failure::new(Exit::Usage, "no configuration file, so there are no flows to serve")
            .help("run `callsheet init` to write a callsheet.toml, or name one with --config PATH"));
    }
    // In the words of `check`, before anything is made.
    if let Some(Obstacle { key: _, message, help }) = obstacle(&config) {
        return Err(Failure::new(Exit::Usage, message).help(help));
    }
    make_place_of_database(&config)?;
    start_logging(context, context.verbosity);
    let options = ServeOptions { migrate: !args.no_migrate, overrides: Some(context.overrides.clone()) };
    Ok(service_runtime()?.block_on(app::serve(config, options))?)
}

/// The runtime of a service: a thread for every other core. The database, the shims and the commands need the rest, and
/// an actor that hands its word to one on another core wakes that core up first, which costs more than most of what is said
/// (docs/performance.md).
pub(super) fn service_runtime() -> Result<tokio::runtime::Runtime> {
    crate::process::allocate_in_two_places();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads((cores / 2).max(1)).enable_all().build();
    runtime.map_err(|error| Failure::new(Exit::Failed, format!("can't start: {error}")))
}

/// Sends log lines to standard error; `verbosity` counts the `-v`, and is below zero for little.
pub(super) fn start_logging(context: &Context, verbosity: i8) {
    let level = match verbosity {
        ..0 => "warn",
        0 => "info,ractor=warn,sqlx=warn,sea_orm=warn,sea_orm_migration=warn,tokio_cron_scheduler=warn",
        1 => "debug,ractor=info,sqlx=warn,sea_orm=info,hyper=info,tokio_cron_scheduler=warn",
        2.. => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(FmtSpan::NONE)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && !unwanted);
    // A subscriber that is there already (in a test) does as well.
    let _ = match context.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
