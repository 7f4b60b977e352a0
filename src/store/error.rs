//! What can go wrong with the database, told apart by what a caller can do about it.

use std::fmt;
use std::path::PathBuf;

use sea_orm::sqlx;
use sea_orm::sqlx::mysql::MySqlDatabaseError;
use sea_orm::sqlx::postgres::PgDatabaseError;
use sea_orm::sqlx::sqlite::SqliteError;
use sea_orm::{DbErr, RuntimeErr};

use super::sqlite::Refusal;
use crate::config::Withheld;
use crate::domain::JobId;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database can't be reached, is busy or has no room now; the same call may succeed later.
    #[error("the database is not available: could not {action}")]
    Unavailable {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: Said,
    },
    /// An answer did not come in time; what was asked for may have happened.
    #[error("the database is not available: it took too long to {action}")]
    Timeout {
        /// What was tried.
        action: &'static str,
    },
    /// Where the SQLite file was is none any more, or another one: what is written now would be lost with the old one.
    #[error(
        "the database {} was moved, deleted or replaced under the service; put it back, or restart the service on what is there now",
        path.display()
    )]
    Replaced {
        /// The file.
        path: PathBuf,
    },
    /// The log beside a SQLite file is another one than was opened, or none: what is in it, others don't see, and what is
    /// committed from now on would go with this process.
    #[error(
        "the database's log {} was moved, deleted or replaced under the service; stop the service in good order, which folds what it \
         has of the log into the database, and start it again",
        path.display()
    )]
    LogGone {
        /// The log.
        path: PathBuf,
    },
    /// There is no SQLite file, and the caller may not make one.
    #[error("there is no database at {}; `callsheet migrate up` or `callsheet serve` makes one", path.display())]
    NoDatabase {
        /// The file.
        path: PathBuf,
    },
    /// The SQLite file's directory is missing.
    #[error("the directory of the database {} does not exist", path.display())]
    NoDirectory {
        /// The file.
        path: PathBuf,
    },
    /// Another user keeps the SQLite file, or a directory on the way to it, to itself.
    #[error("can't read and write the database {}", path.display())]
    Withheld {
        /// The file.
        path: PathBuf,
        /// What is in the way.
        #[source]
        source: Withheld,
    },
    /// The database URL can't be used; it is not repeated, since it may hold a password.
    #[error("the database URL can't be used: {reason}")]
    InvalidUrl {
        /// What is wrong with it.
        reason: String,
    },
    /// The server would not let us in.
    #[error("the database refused the login")]
    Refused {
        /// What it said.
        #[source]
        source: Said,
    },
    /// A PostgreSQL database that does not keep text in UTF-8.
    #[error("the database keeps text as {encoding}; Callsheet needs a database with the encoding UTF8")]
    Encoding {
        /// What `SHOW server_encoding` says.
        encoding: String,
    },
    /// A MySQL or MariaDB that lacks what Callsheet is built on.
    #[error("the server is {server}; Callsheet needs MySQL 8.0.16 or MariaDB 10.6, or a later one")]
    ServerTooOld {
        /// What it says of itself.
        server: String,
    },
    /// Callsheet's tables are not there, or not all of them.
    #[error("the database has no Callsheet tables of this version; run `callsheet migrate up`")]
    SchemaMissing,
    /// The database has no Callsheet tables, and somebody else's table has the name of one of them.
    #[error("the database has a table {table} that is not Callsheet's, which needs that name for its own")]
    TableTaken {
        /// Its name.
        table: String,
        /// Whether `[store.jobs]` could use one there.
        adoptable: bool,
    },
    /// The role of this user may not do what a service does.
    #[error("the role {role} has no right to {lacks}")]
    Rights {
        /// Its name.
        role: String,
        /// What it may not do.
        lacks: String,
    },
    /// The table of `[store.jobs]` can't be used as it is described there.
    #[error("the table of [store.jobs] can't be used: {reason}")]
    Adopted {
        /// Why.
        reason: String,
    },
    /// The table of `[store.jobs]` has not all that Callsheet needs.
    #[error(
        "the table {table} of [store.jobs] lacks columns, indexes or triggers that Callsheet needs, or has old ones"
    )]
    AdoptionMissing {
        /// Its name.
        table: String,
    },
    /// The tables were made by a newer Callsheet.
    #[error("the database was migrated by a newer Callsheet (it has {migration}); use that version or a newer one")]
    SchemaTooNew {
        /// The first migration that this binary does not know.
        migration: String,
    },
    /// The file is damaged, or is no SQLite database.
    #[error("the database is damaged or is no SQLite database")]
    Corrupt {
        /// What SQLite said.
        #[source]
        source: Said,
    },
    /// A row holds what no migration allows.
    #[error("a row of the database can't be read: {reason}")]
    UnreadableRow {
        /// Which, and why.
        reason: String,
    },
    /// A text with a NUL character in it, which PostgreSQL can't keep.
    #[error("the {field} of a job holds a NUL character")]
    NulCharacter {
        /// `identifier`, `payload` or `unique_key`.
        field: &'static str,
    },
    /// A job that the server takes no statement for.
    #[error("a job of {bytes} bytes is more than this server takes at once (max_allowed_packet is {most})")]
    TooLarge {
        /// How large it is.
        bytes: usize,
        /// What the server takes.
        most: usize,
    },
    /// A job was to wait for one that is not there.
    #[error("there is no job {job} to wait for")]
    NothingToWaitFor {
        /// Its id.
        job: JobId,
    },
    /// Anything else that the database refused.
    #[error("the database could not {action}")]
    Statement {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: Said,
    },
}

/// What the driver said, without the line of the server's own source that it adds to the words of PostgreSQL.
#[derive(Debug)]
pub struct Said(DbErr);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        let line = server_line(&self.0).map(|line| format!(" at line {line}"));
        f.write_str(line.as_deref().and_then(|line| text.strip_suffix(line)).unwrap_or(&text))
    }
}

/// Its text holds what its causes say.
impl std::error::Error for Said {}

fn server_line(error: &DbErr) -> Option<usize> {
    let (DbErr::Conn(RuntimeErr::SqlxError(error))
    | DbErr::Exec(RuntimeErr::SqlxError(error))
    | DbErr::Query(RuntimeErr::SqlxError(error))) = error
    else {
        return None;
    };
    let sqlx::Error::Database(error) = &**error else { return None };
    error.try_downcast_ref::<PgDatabaseError>()?.line()
}

impl Error {
    /// Whether the same call may succeed later without anybody doing anything about it here.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Timeout { .. } | Self::Replaced { .. } | Self::LogGone { .. })
    }

    /// Whether some other transaction holds what this one needs, for longer than it is waited for; others may well succeed.
    #[must_use]
    pub fn is_contended(&self) -> bool {
        let Self::Unavailable { source, .. } = self else { return false };
        // lock_not_available, and query_canceled: a statement that was still waiting when its time was over. On MySQL
        // ER_LOCK_WAIT_TIMEOUT, which MariaDB says to NOWAIT too, and ER_LOCK_NOWAIT.
        database_code(&source.0).is_some_and(|code| matches!(&*code, "55P03" | "57014" | "1205" | "3572"))
    }

    /// Every answer of [`Self::kind`].
    pub const KINDS: [&str; 17] = [
        "unavailable",
        "timeout",
        "replaced",
        "no_database",
        "invalid_url",
        "refused",
        "encoding",
        "server_too_old",
        "schema_missing",
        "schema_too_new",
        "adopted_table",
        "corrupt",
        "unreadable_row",
        "nul_character",
        "too_large",
        "nothing_to_wait_for",
        "statement",
    ];

    /// A word for the `kind` label of `callsheet_store_errors_total`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "unavailable",
            Self::Timeout { .. } => "timeout",
            Self::Replaced { .. } | Self::LogGone { .. } => "replaced",
            Self::NoDatabase { .. } | Self::NoDirectory { .. } => "no_database",
            Self::InvalidUrl { .. } => "invalid_url",
            Self::Refused { .. } | Self::Withheld { .. } | Self::Rights { .. } => "refused",
            Self::Encoding { .. } => "encoding",
            Self::ServerTooOld { .. } => "server_too_old",
            Self::SchemaMissing | Self::TableTaken { .. } => "schema_missing",
            Self::SchemaTooNew { .. } => "schema_too_new",
            Self::Adopted { .. } | Self::AdoptionMissing { .. } => "adopted_table",
            Self::Corrupt { .. } => "corrupt",
            Self::UnreadableRow { .. } => "unreadable_row",
            Self::NulCharacter { .. } => "nul_character",
            Self::TooLarge { .. } => "too_large",
            Self::NothingToWaitFor { .. } => "nothing_to_wait_for",
            Self::Statement { .. } => "statement",
        }
    }

    /// Sorts what the database said into what a caller can do about it.
    pub(super) fn from_database(action: &'static str, source: DbErr) -> Self {
        let class = classify(&source);
        let source = Said(source);
        match class {
            Class::Unavailable => Self::Unavailable { action, source },
            Class::Refused => Self::Refused { source },
            Class::SchemaMissing => Self::SchemaMissing,
            Class::Corrupt => Self::Corrupt { source },
            Class::Other => Self::Statement { action, source },
        }
    }
}

enum Class {
    Unavailable,
    Refused,
    SchemaMissing,
    Corrupt,
    Other,
}

fn classify(error: &DbErr) -> Class {
    match error {
        DbErr::ConnectionAcquire(_) => Class::Unavailable,
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => classify_sqlx(error),
        _ => Class::Other,
    }
}

fn classify_sqlx(error: &sqlx::Error) -> Class {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => Class::Unavailable,
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            if error.try_downcast_ref::<Refusal>().is_some() || error.try_downcast_ref::<SqliteError>().is_some() {
                classify_sqlite(&code, error.message())
            } else if let Some(error) = error.try_downcast_ref::<MySqlDatabaseError>() {
                classify_mysql(error.number())
            } else {
                classify_postgres(&code)
            }
        }
        _ => Class::Other,
    }
}

/// SQLite's result codes: <https://www.sqlite.org/rescode.html>.
fn classify_sqlite(code: &str, message: &str) -> Class {
    // The low byte of an extended code is its primary code.
    match code.parse::<u32>().unwrap_or_default() & 0xff {
        // PERM, BUSY, LOCKED, READONLY, IOERR, FULL, CANTOPEN: a disk or its rights, which somebody will see to.
        3 | 5 | 6 | 7 | 8 | 10 | 13 | 14 | 15 => Class::Unavailable,
        11 | 26 => Class::Corrupt, // CORRUPT, NOTADB
        1 if message.starts_with("no such table") || message.starts_with("no such column") => Class::SchemaMissing,
        _ => Class::Other,
    }
}

/// PostgreSQL's SQLSTATEs: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn classify_postgres(code: &str) -> Class {
    match code {
        "42P01" | "42703" => Class::SchemaMissing, // undefined table, undefined column
        // Deadlock and serialization failure; cancelled by a timeout; lock not available; read-only after a failover; a
        // transaction that has done nothing for too long.
        "40001" | "40P01" | "57014" | "55P03" | "25006" | "25P03" => Class::Unavailable,
        _ => match code.get(..2).unwrap_or_default() {
            "08" | "53" | "57" | "58" => Class::Unavailable, // connection, resources, operator intervention, system error
            "28" | "3D" => Class::Refused,                   // authorization, no such database
            _ => Class::Other,
        },
    }
}

/// The numbers of MySQL (<https://dev.mysql.com/doc/mysql-errors/8.0/en/server-error-reference.html>) and MariaDB
/// (<https://mariadb.com/kb/en/mariadb-error-codes/>); its SQLSTATEs mostly say that there was an error.
const fn classify_mysql(number: u16) -> Class {
    match number {
        1146 | 1054 => Class::SchemaMissing, // no such table, unknown column
        // Access denied (to a database; by password; by the way of logging in), unknown database, host not allowed, password
        // expired.
        1044 | 1045 | 1698 | 1049 | 1130 | 1820 | 1862 => Class::Refused,
        // Deadlock; lock wait timeout; NOWAIT; a statement that took too long (MySQL, MariaDB) or was interrupted.
        1213 | 1205 | 3572 | 3024 | 1969 | 1317 | 1028
        // Disk full, table full, an error of the storage engine or at commit; out of memory.
        | 1021 | 1114 | 1030 | 1180 | 1037 | 1038 | 1041
        // Too many connections, of all or of this user; host blocked; shutting down; connection killed or given up.
        | 1040 | 1203 | 1226 | 1129 | 1053 | 1927 | 4031 | 1152 | 1158 | 1159 | 1160 | 1161
        // Read-only after a failover, or while somebody works on it.
        | 1290 | 1792 | 1836 => Class::Unavailable,
        _ => Class::Other,
    }
}

/// SQLite's and PostgreSQL's code, or MySQL's number.
fn database_code(error: &DbErr) -> Option<String> {
    let (DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error))) = error else {
        return None;
    };
    let sqlx::Error::Database(error) = &**error else { return None };
    match error.try_downcast_ref::<MySqlDatabaseError>() {
        Some(error) => Some(error.number().to_string()),
        None => error.code().map(|code| code.into_owned()),
    }
}

/// Whether a row was not inserted into MySQL since another one has its key: ER_DUP_ENTRY.
pub(super) fn is_duplicate(error: &Error) -> bool {
    let Error::Statement { source, .. } = error else { return false };
    database_code(&source.0).is_some_and(|code| code == "1062")
}

/// Whether the transaction lost against another one and should simply be tried again: it was chosen as the victim, or a
/// unique key that was free when it looked was not any more when it wrote.
pub(super) fn lost_a_race(error: &Error) -> bool {
    let (Error::Unavailable { source, .. } | Error::Statement { source, .. }) = error else { return false };
    matches!(database_code(&source.0).as_deref(), Some("40001" | "40P01" | "23505" | "1213" | "1062"))
}
