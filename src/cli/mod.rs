//! The command line: arguments, what each command prints, and exit codes (CONTRACT §1).

mod actors;
mod ask;
mod cancel;
mod check;
mod completions;
mod deliveries;
mod demo;
mod doctor;
mod drain;
mod enqueue;
mod events;
mod failure;
mod flows;
mod init;
mod list;
mod logs;
mod migrate;
mod notify;
mod output;
mod pause;
mod places;
mod prune;
mod recurring;
mod retry;
mod select;
mod serve;
mod show;
mod top;
mod wait;
mod workers;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use self::failure::{Exit, Failure, Result};
use self::output::Output;
use crate::config::{Config, Overrides};
use crate::domain::database_url::DatabaseUrl;
use crate::store::{self, Store, Use, Who, WorkerRow};

/// Runs the rows of a jobs table as supervised commands
///
/// A row of the table `jobs`, written by anybody, becomes a run of its type's command, watched over until it ends; what
/// became of it is written back. Commands survive a crash or an upgrade of the service.
#[derive(Debug, Parser)]
#[command(name = "callsheet", version, max_term_width = 100)]
#[command(after_help = "Start with `callsheet demo`, or with `callsheet init` and `callsheet serve`.\n\n\
    Exit codes: 0 done, 1 the operation or the job waited for failed, 2 usage or configuration,\n\
    3 not found, 4 not possible in the job's present status, 5 database unreachable.")]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// The configuration file [default: ./callsheet.toml]
    #[arg(long, global = true, value_name = "PATH", env = "CALLSHEET_CONFIG", hide_env_values = true)]
    config: Option<OsString>,
    /// Where the jobs are: sqlite://PATH, postgres://… or mysql://…; stands over the configuration
    #[arg(long, global = true, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
    /// Run directories, logs and the embedded database; stands over the configuration
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Print JSON: one document, or one object a line where there are many
    #[arg(long, global = true)]
    json: bool,
    /// Log more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
    /// Print and log only what was asked for, and errors
    #[arg(short, long, global = true)]
    quiet: bool,
    /// How the service's log lines look
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Init(init::Args),
    Check(check::Args),
    Serve(serve::Args),
    Enqueue(enqueue::Args),
    List(list::Args),
    Show(show::Args),
    Logs(logs::Args),
    Cancel(cancel::Args),
    Retry(retry::Args),
    Pause(pause::PauseArgs),
    Resume(pause::ResumeArgs),
    Drain(drain::Args),
    Flows(flows::Args),
    Recurring(recurring::Args),
    Workers(workers::Args),
    Top(top::Args),
    Actors(actors::Args),
    Events(events::Args),
    Deliveries(deliveries::Args),
    Migrate(migrate::Args),
    Prune(prune::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
    Notify(notify::Args),
    #[command(name = "__demo-job", hide = true)]
    DemoJob(demo::JobArgs),
}

/// What every command is given besides its own arguments.
struct Context {
    overrides: Overrides,
    output: Output,
    verbosity: i8,
    log_format: LogFormat,
}

/// Runs the command line that this process was started with.
#[must_use]
pub fn run() -> ExitCode {
    let Cli { global, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(error),
    };
    let output = Output::new(global.json, global.quiet);
    // An empty variable of the environment is one that is not set, as everywhere else.
    let config = global.config.filter(|path| !path.is_empty()).map(PathBuf::from);
    let database_url = global.database_url.filter(|url| !url.is_empty());
    let context = Context {
        overrides: Overrides { config, database_url, data_dir: global.data_dir },
        output,
        verbosity: if global.quiet { -1 } else { i8::try_from(global.verbose).unwrap_or(i8::MAX) },
        log_format: global.log_format,
    };
    match context.run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(output),
    }
}

/// Help that was asked for, or arguments that are wrong; where they ask for JSON, a refusal is JSON too.
fn refuse(error: clap::Error) -> ExitCode {
    let asks_for_json = std::env::args_os().skip(1).take_while(|word| word != "--").any(|word| word == "--json");
    if error.use_stderr() && asks_for_json {
        return Failure::from(error).report(Output::new(true, false));
    }
    error.exit()
}

impl Context {
    fn run(&self, command: Command) -> Result {
        match command {
            Command::Demo(args) => demo::run(self, &args),
            Command::Init(args) => init::run(self, &args),
            Command::Check(args) => tool(check::run(self, &args)),
            Command::Serve(args) => serve::run(self, &args),
            Command::Enqueue(args) => tool(enqueue::run(self, &args)),
            Command::List(args) => tool(list::run(self, &args)),
            Command::Show(args) => tool(show::run(self, &args)),
            Command::Logs(args) => tool(logs::run(self, &args)),
            Command::Cancel(args) => tool(cancel::run(self, &args)),
            Command::Retry(args) => tool(retry::run(self, &args)),
            Command::Pause(args) => tool(pause::pause(self, &args)),
            Command::Resume(args) => tool(pause::resume(self, &args)),
            Command::Drain(args) => tool(drain::run(self, &args)),
            Command::Flows(args) => tool(flows::run(self, &args)),
            Command::Recurring(args) => tool(recurring::run(self, &args)),
            Command::Workers(args) => tool(workers::run(self, &args)),
            Command::Top(args) => tool(top::run(self, &args)),
            Command::Actors(args) => tool(actors::run(self, &args)),
            Command::Events(args) => tool(events::run(self, &args)),
            Command::Deliveries(args) => tool(deliveries::run(self, &args)),
            Command::Migrate(args) => tool(migrate::run(self, &args)),
            Command::Prune(args) => tool(prune::run(self, &args)),
            Command::Doctor(args) => tool(doctor::run(self, &args)),
            Command::Completions(args) => completions::run(self, &args),
            Command::Notify(args) => notify::run(&args),
            Command::DemoJob(args) => demo::run_job(self, &args),
        }
    }

    fn config(&self) -> Result<Config> {
        Ok(Config::load(&self.overrides)?)
    }

    /// The tables, for a short look or write beside a service that may be running; what is done is put down to whoever runs
    /// this command.
    async fn store(&self, config: &Config) -> Result<Store> {
        let store = Store::of(config, Use::Tool).await?;
        store.check_schema().await?;
        Ok(store.on_behalf_of(this_user()))
    }
}

/// Runs a command that needs no more than one thread.
fn tool(command: impl Future<Output = Result>) -> Result {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Failed, format!("can't start: {error}")))?;
    runtime.block_on(command)
}

/// Opens the database of `config` to change its tables, making directory and file of an embedded one.
async fn open_for_service(config: &Config) -> Result<Store> {
    make_place_of_database(config)?;
    Ok(Store::of(config, Use::Service).await?)
}

/// Makes the directory of an embedded database.
fn make_place_of_database(config: &Config) -> Result {
    match &config.database_url {
        DatabaseUrl::Sqlite(path) => path.parent().map_or(Ok(()), make_private_directory),
        DatabaseUrl::Postgres(_) | DatabaseUrl::MySql(_) => Ok(()),
    }
}

/// The workers that have shown a sign of life lately and have not ended, by the clock of the database.
async fn live_workers(store: &Store) -> Result<Vec<WorkerRow>> {
    let now = store.now().await?;
    let mut workers = store.workers().await?;
    workers.retain(|worker| worker.is_live(now));
    Ok(workers)
}

/// Whoever runs this command, for what is kept of who asked.
fn who() -> String {
    let Who { actor, address, .. } = this_user();
    format!("{actor}@{} (cli)", address.unwrap_or_default())
}

/// Who runs this command, for the audit trail.
fn this_user() -> Who {
    let uid = rustix::process::geteuid().as_raw().to_string();
    // passwd(5): name, password, user id. Read from the file rather than from $USER, which says what its owner likes.
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = users.lines().find(|line| line.split(':').nth(2) == Some(&uid)).and_then(|line| line.split(':').next());
    let actor = named.map_or_else(|| format!("uid {uid}"), str::to_owned);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Who { actor, via: "cli", address: Some(host) }
}

fn make_private_directory(directory: &std::path::Path) -> Result {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| {
        Failure::new(Exit::Usage, format!("can't make the directory {}: {error}", directory.display()))
    })
}

/// Whether the database is an embedded one whose file has not been made yet.
fn is_missing_file(error: &store::Error) -> bool {
    matches!(error, store::Error::NoDatabase { .. } | store::Error::NoDirectory { .. })
}

impl std::fmt::Debug for Global {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL may hold a password.
        f.debug_struct("Global").field("config", &self.config).field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        Cli::command().debug_assert();
    }
}
