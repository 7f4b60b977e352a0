//! Why a command did not do what was asked, and the exit code that says so.

use std::fmt;
use std::io;
use std::process::ExitCode;

use serde::Serialize;

use super::output::Output;
use crate::config::{self, Complaint, Complaints};
use crate::{app, http, process, store};

/// What a command came to.
pub(super) type Result<T = ()> = std::result::Result<T, Failure>;

/// CONTRACT §1's exit codes, other than 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// The operation, or the job that was waited for, failed.
    Failed = 1,
    /// Usage or configuration.
    Usage = 2,
    /// Not found.
    NotFound = 3,
    /// Not possible in the job's present status.
    NotPossible = 4,
    /// The database can't be reached or used.
    Database = 5,
}

/// Why a command did not do what was asked.
pub(super) struct Failure {
    exit: Exit,
    /// What failed; empty where it has been said already.
    message: String,
    help: Option<String>,
    complaints: Vec<Complaint>,
    /// Nobody reads standard output any more, which is no failure of ours.
    unread: bool,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), help: None, complaints: Vec::new(), unread: false }
    }

    /// A configuration that is wrong; `rest` says what was left undone for it.
    pub(super) fn invalid(complaints: Complaints, rest: &str) -> Self {
        let count = complaints.0.len();
        let problems = if count == 1 { "1 problem".to_owned() } else { format!("{count} problems") };
        let file = complaints.0.first().and_then(|complaint| complaint.place.as_ref());
        let file = file.map(|place| place.file.display().to_string()).unwrap_or_default();
        Self { complaints: complaints.0, ..Self::new(Exit::Usage, format!("{file} has {problems}; {rest}")) }
    }

    /// A failure that has been shown to the user in another way.
    pub(super) fn said(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    /// A failure before which this was done.
    pub(super) fn after(mut self, done: &str) -> Self {
        self.message = format!("{done}, but {}", self.message);
        self
    }

    /// The exit code that says so.
    pub(super) fn exit(&self) -> Exit {
        self.exit
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Says why, on standard error, and gives the exit code.
    pub(super) fn report(&self, output: Output) -> ExitCode {
        if self.unread {
            return ExitCode::SUCCESS;
        }
        let code = ExitCode::from(self.exit as u8);
        if self.message.is_empty() {
            return code;
        }
        if output.json {
            let json = ErrorJson {
                error: &self.message,
                help: self.help.as_deref(),
                exit_code: self.exit as u8,
                problems: self.complaints.iter().map(ProblemJson::from).collect(),
            };
            output.error(serde_json::to_string(&json).unwrap_or_else(|_| self.message.clone()));
            return code;
        }
        for complaint in &self.complaints {
            output.error(format_args!("{complaint}\n"));
        }
        output.error(format_args!("callsheet: {}", self.message));
        if let Some(help) = &self.help {
            output.error(format_args!("  {help}"));
        }
        code
    }
}

#[derive(Serialize)]
struct ErrorJson<'a> {
    error: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<&'a str>,
    exit_code: u8,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<ProblemJson>,
}

/// A complaint as JSON.
#[derive(Serialize)]
pub(super) struct ProblemJson {
    message: String,
    help: Option<String>,
    file: Option<String>,
    line: Option<usize>,
    column: Option<usize>,
}

impl From<&Complaint> for ProblemJson {
    fn from(complaint: &Complaint) -> Self {
        let place = complaint.place.as_ref();
        Self {
            message: complaint.message.clone(),
            help: complaint.help.clone(),
            file: place.map(|place| place.file.display().to_string()),
            line: place.map(|place| place.line),
            column: place.map(|place| place.column),
        }
    }
}

/// The error and its causes on one line, each once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// Arguments that are none; the first paragraph says what is wrong with them, the others what to write.
impl From<clap::Error> for Failure {
    fn from(error: clap::Error) -> Self {
        let text = error.render().to_string();
        let text = text.trim_end().trim_start_matches("error: ");
        let (message, help) = text.split_once("\n\n").unwrap_or((text, ""));
        let failure = Self::new(Exit::Usage, message);
        if help.is_empty() { failure } else { failure.help(help.trim_start()) }
    }
}

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Self {
        match error {
            config::Error::Invalid(complaints) => Self::invalid(complaints, "nothing was done"),
            config::Error::Nothing => Self::new(Exit::Usage, chain(&error))
                .help("`callsheet init` writes a callsheet.toml to start from; --config PATH names another one"),
            config::Error::NotFound(_) => Self::new(Exit::Usage, chain(&error))
                .help("check --config (or CALLSHEET_CONFIG); `callsheet init` writes a callsheet.toml to start from"),
            config::Error::DatabaseUrl(_) => Self::new(Exit::Usage, chain(&error)).help(
                "write sqlite://path/to/callsheet.db, postgres://user@host/database or mysql://user@host/database",
            ),
            config::Error::AdoptedWithoutPostgres { .. } => Self::new(Exit::Usage, chain(&error))
                .help("set database_url to the PostgreSQL that the table is in, or remove [store.jobs]"),
            config::Error::Unreadable { .. }
            | config::Error::NoFile(_)
            | config::Error::CurrentDir(_)
            | config::Error::KeyFile { .. }
            | config::Error::KeyGarbage(_)
            | config::Error::TokenUnset { .. }
            | config::Error::TokenUnfit { .. }
            | config::Error::Telemetry { .. }
            | config::Error::Withheld { .. }
            | config::Error::WorkerIdFile { .. }
            | config::Error::WorkerIdGarbage(_) => Self::new(Exit::Usage, chain(&error)),
        }
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        let exit = match &error {
            store::Error::NothingToWaitFor { .. } => Exit::NotFound,
            store::Error::Adopted { .. } | store::Error::AdoptionMissing { .. } => Exit::Usage,
            store::Error::InvalidUrl { .. } | store::Error::NulCharacter { .. } | store::Error::TooLarge { .. } => {
                Exit::Usage
            }
            store::Error::UnreadableRow { .. } | store::Error::Statement { .. } => Exit::Failed,
            store::Error::Unavailable { .. }
            | store::Error::Timeout { .. }
            | store::Error::Replaced { .. }
            | store::Error::LogGone { .. }
            | store::Error::NoDatabase { .. }
            | store::Error::NoDirectory { .. }
            | store::Error::Refused { .. }
            | store::Error::Withheld { .. }
            | store::Error::Encoding { .. }
            | store::Error::ServerTooOld { .. }
            | store::Error::SchemaMissing
            | store::Error::TableTaken { .. }
            | store::Error::Rights { .. }
            | store::Error::SchemaTooNew { .. }
            | store::Error::Corrupt { .. } => Exit::Database,
        };
        let failure = Self::new(exit, chain(&error));
        match what_to_do(&error) {
            Some(help) => failure.help(help),
            None => failure,
        }
    }
}

/// What to do about what the database, or its place, is not fit for.
pub(super) fn what_to_do(error: &store::Error) -> Option<&'static str> {
    match error {
        store::Error::AdoptionMissing { .. } => {
            Some("`callsheet check` prints the statements that add it; run them as the owner of the table")
        }
        store::Error::Withheld { .. } => {
            Some("run this as the user that the service runs as, such as: sudo -u callsheet callsheet …")
        }
        store::Error::TableTaken { adoptable: true, table } if table == "jobs" => Some(
            "name a database or a schema that is Callsheet's own, or have it use that table as its jobs: [store.jobs] of the \
             configuration (README, \"A table that you already have\")",
        ),
        store::Error::TableTaken { .. } => Some("name a database that is Callsheet's own"),
        store::Error::Rights { .. } => Some("grant it (docs/databases.md), or name another role by database_url"),
        store::Error::Unavailable { .. } | store::Error::Timeout { .. } | store::Error::Refused { .. } => {
            Some("check that the database runs and that --database-url, DATABASE_URL or the configuration names it")
        }
        _ => None,
    }
}

impl From<process::Error> for Failure {
    fn from(error: process::Error) -> Self {
        Self::new(Exit::Failed, chain(&error))
    }
}

impl From<app::Error> for Failure {
    fn from(error: app::Error) -> Self {
        match error {
            app::Error::Config(error) => error.into(),
            app::Error::Store(error) => error.into(),
            app::Error::DataDir { .. } => Self::new(Exit::Usage, chain(&error))
                .help("name another one by data_dir or --data-dir, or give this user the right to it"),
            app::Error::Process(process::Error::Limits { .. }) => Self::new(Exit::Usage, chain(&error)).help(
                "remove memory, cpus and pids from the limits of the flows; `callsheet check` says which they are",
            ),
            app::Error::Webhook(_) | app::Error::Peers(_) => Self::new(Exit::Usage, chain(&error)),
            app::Error::Http(http::Error::Tls { .. }) => Self::new(Exit::Usage, chain(&error)),
            app::Error::Http(http::Error::Bind { .. }) => {
                Self::new(Exit::Failed, chain(&error)).help("name another address by http.listen, or \"off\"")
            }
            app::Error::AlreadyRunning { .. }
            | app::Error::WorkerTaken { .. }
            | app::Error::Lock { .. }
            | app::Error::Process(_)
            | app::Error::Metrics(_)
            | app::Error::Signals(_)
            | app::Error::Random(_)
            | app::Error::Start(_)
            | app::Error::GaveUp => Self::new(Exit::Failed, chain(&error)),
        }
    }
}

/// Standard output could not be written.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let unread = error.kind() == io::ErrorKind::BrokenPipe;
        Self { unread, ..Self::new(Exit::Failed, format!("can't write to standard output: {error}")) }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.exit, self.message)
    }
}
