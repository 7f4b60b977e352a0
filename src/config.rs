//! The configuration: read as it was written, then validated as a whole.
//!
//! Every complaint is collected, each with its place, so that one look at the answer is enough to put a file right. What
//! comes out is a [`Config`], which needs no further check: durations are in bounds, paths absolute, names well-formed.

mod adopted;
mod changes;
mod peers;
mod report;
mod secret;
mod telemetry;
mod template;
mod tokens;
mod validate;
mod webhooks;
mod withheld;
mod worker;
mod written;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::admission::IdentifierPattern;
use crate::domain::database_url::{DatabaseUrl, InvalidDatabaseUrl};
use crate::domain::heartbeat::LeaseTerms;
use crate::domain::labels::Labels;
use crate::domain::limits::Limits;
use crate::domain::recurring::{CatchUp, Overlap};
use crate::domain::retention::Horizon;
use crate::domain::retry::RetryPolicy;
use crate::domain::schedule::Schedule;
use crate::domain::slots::Slots;
use crate::domain::template::Template;
use crate::domain::{FlowType, Timestamp, WorkerId};

pub use adopted::AdoptedTable;
pub(crate) use adopted::{COLUMNS as JOB_COLUMNS, OWN_SCHEMA};
pub use changes::Changes;
pub use peers::PeersConfig;
pub use report::{Complaint, Complaints, Place, Places};
pub use secret::SecretPlace;
pub use telemetry::{InvalidEndpoint, OtlpEndpoint, otlp_endpoint};
pub use template::TEMPLATE;
pub use tokens::{AccessRole, KnownToken, TokenConfig, TokenSecret, known_tokens};
pub use webhooks::{InvalidWebhookUrl, WebhookConfig, WebhookUrl};
pub use withheld::Withheld;
pub use worker::{known_worker_id, local_key, worker_id};

/// The file that is read where none is named, in the current directory.
pub const DEFAULT_FILE: &str = "callsheet.toml";

/// A configuration that has been validated as a whole.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from, absolute; `None` where there was none, and then there are no flows.
    pub path: Option<PathBuf>,
    /// Run directories, logs and the embedded database; absolute.
    pub data_dir: PathBuf,
    /// Where the tables live; a SQLite path in it is absolute.
    pub database_url: DatabaseUrl,
    /// What this worker calls itself; `None` means the one that [`worker_id`] keeps in `data_dir`.
    pub worker_id: Option<WorkerId>,
    /// What this worker has that flows may require.
    pub labels: Labels,
    /// How the service behaves.
    pub service: ServiceConfig,
    /// What the service listens on.
    pub http: HttpConfig,
    /// What is kept for how long.
    pub retention: RetentionConfig,
    /// `[[webhooks]]`: who is told of status changes.
    pub webhooks: Vec<WebhookConfig>,
    /// `[store.jobs]`: the table that is used as `jobs`; `None` for Callsheet's own.
    pub adopted: Option<Arc<AdoptedTable>>,
    /// `[telemetry]`: where traces are sent as the file says; [`otlp_endpoint`] also asks the environment.
    pub otlp: Option<OtlpEndpoint>,
    /// The flows, by job type.
    pub flows: BTreeMap<FlowType, Arc<FlowConfig>>,
}

/// `[service]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    /// What a stop of the service does to running commands.
    pub on_stop: OnStop,
    /// How long a stop of the service may take.
    pub stop_deadline: Duration,
}

/// What a stop of the service (SIGTERM, Ctrl-C) does to running commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStop {
    /// They run on under their shims, and the next service takes them over.
    Leave,
    /// The service waits for them, at most `stop_deadline`.
    Wait,
    /// They are cancelled.
    Cancel,
}

/// `[http]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    /// The address to listen on; `None` means "off".
    pub listen: Option<SocketAddr>,
    /// Who is let in; where there is none, whoever comes from a loopback address is an operator.
    pub tokens: Vec<TokenConfig>,
    /// Certificate and key; `None` for plain HTTP.
    pub tls: Option<TlsConfig>,
    /// How the workers of one database reach each other; `None` where they don't.
    pub peers: Option<PeersConfig>,
}

/// `http.tls`: files in PEM, absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate, and those that lead to one that clients know.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// `[retention]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionConfig {
    /// How long a COMPLETED job is kept after its end, with its runs and events; `None` means for ever.
    pub completed: Option<Duration>,
    /// The same for an ERROR job.
    pub error: Option<Duration>,
    /// The same for a CANCELLED job.
    pub cancelled: Option<Duration>,
    /// How long a delivery to a webhook is kept after its end; `None` means for ever.
    pub deliveries: Option<Duration>,
    /// How long a row of the audit trail is kept; `None` means for ever.
    pub audit: Option<Duration>,
    /// How long the logs of a run are kept after its end; `None` means for ever.
    pub logs: Option<Duration>,
}

/// `[flows.TYPE]`, with `[defaults]` and the product's own defaults filled in.
#[derive(Clone, PartialEq)]
pub struct FlowConfig {
    /// The job type.
    pub flow: FlowType,
    /// The program and its arguments; never empty.
    pub command: Vec<Template>,
    /// What is run in place of SIGTERM to end a command; never empty.
    pub cancel_command: Option<Vec<Template>>,
    /// Where the command runs, absolute once filled in; `None` (only without a configuration file) means where the
    /// service runs.
    pub working_dir: Option<Template>,
    /// Additions to the command's environment, by name; a flow's own stand over those of `[defaults]`.
    pub env: Vec<(String, Template)>,
    /// When the scheduler ticks.
    pub schedule: Schedule,
    /// How many runs there may be at once, over all workers.
    pub concurrency: NonZeroU32,
    /// How many runs there may be at once on this worker; at most `concurrency`.
    pub worker_concurrency: NonZeroU32,
    /// The labels that a worker needs to claim any of its jobs.
    pub requires: Labels,
    /// The devices of which each run holds one; `None` where it holds none.
    pub slots: Option<Slots>,
    /// How long one run may take.
    pub start_to_close_timeout: Duration,
    /// How long a job may take from enqueue (or `run_at`) to its end, waiting and retries included.
    pub schedule_to_close_timeout: Duration,
    /// How long a run may go unconfirmed before its worker counts as lost.
    pub heartbeat_timeout: Duration,
    /// Whether the command itself has to say that it is alive within `heartbeat_timeout` (`WATCHDOG=1`, sd_notify(3)).
    pub watchdog: bool,
    /// How long a command may write nothing; `None` means for ever.
    pub silence_timeout: Option<Duration>,
    /// How long a command has between SIGTERM and SIGKILL; zero means SIGKILL at once.
    pub kill_grace: Duration,
    /// The identifiers that the flow takes.
    pub identifier_pattern: IdentifierPattern,
    /// How often and how soon a failed attempt is tried again.
    pub retry: RetryPolicy,
    /// How much is kept of each of standard output and standard error, in bytes; the oldest part is dropped.
    pub output_limit: u64,
    /// What one run may use of the machine.
    pub limits: Limits,
    /// The jobs that enqueue themselves, each by a name of its own.
    pub recurring: Vec<RecurringConfig>,
}

impl FlowConfig {
    /// What this flow says about the leases of its runs.
    #[must_use]
    pub fn lease_terms(&self) -> LeaseTerms {
        LeaseTerms {
            heartbeat_timeout: self.heartbeat_timeout,
            start_to_close_timeout: self.start_to_close_timeout,
            // Where the command was killed its `cancel_command` has as long again to end what it left elsewhere.
            kill_grace: self.kill_grace * if self.cancel_command.is_some() { 2 } else { 1 },
        }
    }
}

/// `[[flows.TYPE.recurring]]`: a job that is enqueued by the clock.
#[derive(Clone, Debug, PartialEq)]
pub struct RecurringConfig {
    /// What the database knows it by; unlike every other of the flow.
    pub name: String,
    /// When.
    pub schedule: Schedule,
    /// `jobs.identifier`, which the flow takes.
    pub identifier: String,
    /// `jobs.payload`: JSON text.
    pub payload: Option<String>,
    /// `jobs.priority`
    pub priority: i32,
    /// What becomes of fires that no service was there for.
    pub catch_up: CatchUp,
    /// What becomes of a fire while the job of an earlier one has not ended.
    pub overlap: Overlap,
}

/// What the command line and the environment say over the file.
#[derive(Clone, Default)]
pub struct Overrides {
    /// `--config` or `CALLSHEET_CONFIG`; relative to the current directory.
    pub config: Option<PathBuf>,
    /// `--database-url` or `DATABASE_URL`; a relative SQLite path in it is relative to the current directory.
    pub database_url: Option<String>,
    /// `--data-dir`; relative to the current directory.
    pub data_dir: Option<PathBuf>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file that was asked for does not exist.
    #[error("there is no configuration file {}", .0.display())]
    NotFound(PathBuf),
    /// What is there is a directory, a pipe or a device.
    #[error("the configuration {} is no regular file", .0.display())]
    NoFile(PathBuf),
    /// The file is there and can't be read.
    #[error("can't read the configuration file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The file was read and is not right.
    #[error("{0}")]
    Invalid(Complaints),
    /// A table was to be adopted in a database that can't do it.
    #[error(
        "[store.jobs] needs PostgreSQL, and the database is {database}: rows can't be written there through a view, under other \
         names, and still be locked one by one"
    )]
    AdoptedWithoutPostgres {
        /// What it is instead.
        database: &'static str,
    },
    /// The database URL of the command line or the environment is no database's.
    #[error("--database-url (or DATABASE_URL) can't be used")]
    DatabaseUrl(#[source] InvalidDatabaseUrl),
    /// Neither file nor option says where the database is.
    #[error("there is no {DEFAULT_FILE} here, and neither --database-url nor --data-dir says where the database is")]
    Nothing,
    /// The current directory can't be told, so nothing relative to it can be found.
    #[error("can't tell the current directory")]
    CurrentDir(#[source] std::io::Error),
    /// A variable of the environment says something about traces that can't be.
    #[error("the environment variable {variable} can't be used: {reason}")]
    Telemetry {
        /// The variable's name.
        variable: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// The file that keeps this worker's id can't be read or made.
    #[error("can't keep this worker's id in {}", path.display())]
    WorkerIdFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The file that keeps the key of the page's forms can't be read or made.
    #[error("can't keep the key of the page's forms in {}", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The file that keeps the key of the page's forms holds something else.
    #[error("{} does not hold a key; remove it to get a new one", .0.display())]
    KeyGarbage(PathBuf),
    /// A token of the configuration is in no variable of the environment.
    #[error("the environment variable {variable} of the token {name:?} is not set, or is empty")]
    TokenUnset {
        /// The token's name.
        name: String,
        /// The variable's name.
        variable: String,
    },
    /// A token of the configuration is one that no request can carry.
    #[error(
        "the environment variable {variable} of the token {name:?} holds a blank, a line break or another character that a \
         token can't have: only the visible characters of ASCII"
    )]
    TokenUnfit {
        /// The token's name.
        name: String,
        /// The variable's name.
        variable: String,
    },
    /// Another user keeps the data directory, and with it this worker's id, to itself.
    #[error("can't read this worker's id in {}", path.display())]
    Withheld {
        /// The file.
        path: PathBuf,
        /// What is in the way.
        #[source]
        source: Withheld,
    },
    /// The file that keeps this worker's id holds something else.
    #[error(
        "{} does not hold a worker id (1 to 100 letters, digits, '.', '_', ':' or '-'); remove it to get a new one, or set \
         worker_id in the configuration", .0.display()
    )]
    WorkerIdGarbage(PathBuf),
}

impl Config {
    /// Reads and validates the configuration that `overrides` points to, or `callsheet.toml` in the current directory.
    ///
    /// Without a file, a database URL or a data directory in `overrides` is enough for all that needs no flows.
    ///
    /// # Errors
    /// Where a file that was asked for is missing, can't be read, or is not right, and where nothing says where the
    /// database is.
    pub fn load(overrides: &Overrides) -> Result<Self, Error> {
        Self::load_with_places(overrides).map(|(config, _)| config)
    }

    /// [`Config::load`], and where in the file things stand.
    ///
    /// # Errors
    /// Those of [`Config::load`].
    pub fn load_with_places(overrides: &Overrides) -> Result<(Self, Places), Error> {
        let here = std::env::current_dir().map_err(Error::CurrentDir)?;
        let path = here.join(overrides.config.as_deref().unwrap_or_else(|| Path::new(DEFAULT_FILE)));
        // One that never ends, or that nobody writes to, would be read for ever.
        if std::fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
            return Err(Error::NoFile(path));
        }
        match std::fs::read(&path) {
            Ok(bytes) => Self::from_bytes(&bytes, &path, &here, overrides),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => match &overrides.config {
                Some(asked_for) => Err(Error::NotFound(asked_for.clone())),
                None => Ok((Self::without_file(&here, overrides)?, Places::default())),
            },
            Err(source) => Err(Error::Unreadable { path, source }),
        }
    }

    /// Validates `text` as if it had been read from the file `path`, which must be absolute.
    ///
    /// # Errors
    /// Every complaint about it at once.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let directory = path.parent().unwrap_or_else(|| Path::new("/"));
        Self::from_bytes(text.as_bytes(), path, directory, &Overrides::default()).map(|(config, _)| config)
    }

    fn from_bytes(bytes: &[u8], path: &Path, here: &Path, overrides: &Overrides) -> Result<(Self, Places), Error> {
        let given_url = given_database_url(here, overrides)?;
        let shown = path.strip_prefix(here).unwrap_or(path);
        let text = std::str::from_utf8(bytes).map_err(|error| Error::Invalid(report::not_utf8(shown, bytes, error)))?;
        let (written, notes) = written::read(text);
        let mut file =
            validate::validate(written, path, notes).map_err(|notes| Error::Invalid(notes.located(shown, text)))?;
        if given_url.is_some() {
            file.places.retain(|(key, _)| key != "database_url");
        }
        if let Some(data_dir) = &overrides.data_dir {
            file.data_dir = here.join(data_dir);
            file.places.retain(|(key, _)| key != "data_dir");
        }
        let config = Self {
            path: Some(path.to_owned()),
            database_url: given_url.or(file.database_url).unwrap_or_else(|| database_in(&file.data_dir)),
            data_dir: file.data_dir,
            worker_id: file.worker_id,
            labels: file.labels,
            service: file.service,
            http: file.http,
            retention: file.retention,
            webhooks: file.webhooks,
            adopted: file.adopted.map(Arc::new),
            otlp: file.otlp,
            flows: file.flows,
        };
        let other = match config.database_url {
            DatabaseUrl::Sqlite(_) => Some("SQLite"),
            DatabaseUrl::MySql(_) => Some("MySQL or MariaDB"),
            DatabaseUrl::Postgres(_) => None,
        };
        if let Some(database) = other.filter(|_| config.adopted.is_some()) {
            return Err(Error::AdoptedWithoutPostgres { database });
        }
        Ok((config, Places { file: shown.to_owned(), text: text.to_owned(), spans: file.places }))
    }

    fn without_file(here: &Path, overrides: &Overrides) -> Result<Self, Error> {
        let database_url = given_database_url(here, overrides)?;
        let data_dir = overrides.data_dir.as_ref().map(|data_dir| here.join(data_dir));
        if database_url.is_none() && data_dir.is_none() {
            return Err(Error::Nothing);
        }
        let data_dir = data_dir.unwrap_or_else(|| here.join(validate::DATA_DIR));
        Ok(Self {
            path: None,
            database_url: database_url.unwrap_or_else(|| database_in(&data_dir)),
            data_dir,
            worker_id: None,
            labels: Labels::default(),
            service: ServiceConfig::default(),
            http: HttpConfig::default(),
            retention: RetentionConfig::default(),
            webhooks: Vec::new(),
            adopted: None,
            otlp: None,
            flows: BTreeMap::new(),
        })
    }
}

fn given_database_url(here: &Path, overrides: &Overrides) -> Result<Option<DatabaseUrl>, Error> {
    let given = overrides.database_url.as_deref().map(DatabaseUrl::from_str).transpose();
    Ok(given.map_err(Error::DatabaseUrl)?.map(|url| url.resolved(here)))
}

fn database_in(data_dir: &Path) -> DatabaseUrl {
    DatabaseUrl::Sqlite(data_dir.join("callsheet.db"))
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self { on_stop: OnStop::Leave, stop_deadline: Duration::from_secs(30) }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::from(([127, 0, 0, 1], 8440))), tokens: Vec::new(), tls: None, peers: None }
    }
}

impl Default for RetentionConfig {
    fn default() -> Self {
        let days = |days: u64| Some(Duration::from_secs(days * 86_400));
        Self {
            completed: days(30),
            error: days(90),
            cancelled: days(30),
            deliveries: days(30),
            audit: days(365),
            logs: days(30),
        }
    }
}

impl RetentionConfig {
    /// What may go at `now`.
    #[must_use]
    pub fn horizon(&self, now: Timestamp) -> Horizon {
        let before = |kept: Option<Duration>| kept.map(|kept| now.minus(kept));
        Horizon {
            completed: before(self.completed),
            error: before(self.error),
            cancelled: before(self.cancelled),
            deliveries: before(self.deliveries),
            audit: before(self.audit),
        }
    }
}

impl fmt::Debug for FlowConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values of environment variables are often secrets; their names are enough to know what is set.
        let env: Vec<&str> = self.env.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("FlowConfig")
            .field("flow", &self.flow)
            .field("command", &self.command)
            .field("cancel_command", &self.cancel_command)
            .field("working_dir", &self.working_dir)
            .field("env", &env)
            .field("schedule", &self.schedule)
            .field("concurrency", &self.concurrency)
            .field("worker_concurrency", &self.worker_concurrency)
            .field("requires", &self.requires)
            .field("slots", &self.slots)
            .field("start_to_close_timeout", &self.start_to_close_timeout)
            .field("schedule_to_close_timeout", &self.schedule_to_close_timeout)
            .field("heartbeat_timeout", &self.heartbeat_timeout)
            .field("watchdog", &self.watchdog)
            .field("silence_timeout", &self.silence_timeout)
            .field("kill_grace", &self.kill_grace)
            .field("identifier_pattern", &self.identifier_pattern)
            .field("retry", &self.retry)
            .field("output_limit", &self.output_limit)
            .field("limits", &self.limits)
            .field("recurring", &self.recurring)
            .finish()
    }
}

impl fmt::Debug for Overrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL as it was typed may hold a password.
        f.debug_struct("Overrides")
            .field("config", &self.config)
            .field("data_dir", &self.data_dir)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
