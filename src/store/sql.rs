//! What differs between the databases, and how rows are read without trusting them.

use rusqlite::types::FromSql;
use sea_orm::sea_query::SelectStatement;
use sea_orm::{DbBackend, DbErr, Statement, TryGetable, Value};

use super::connection::Record;
use super::spelling::{LIST, spelled};
use super::{Error, Unreadable};
use crate::domain::{Attempt, JobId, JobStatus, RunToken, Timestamp};

/// The statuses that have not ended, word for word as the partial indexes have them.
pub(super) const OPEN_OR_PENDING: &str = "status IN ('PENDING', 'INQUEUE', 'PROGRESS')";
/// The statuses of a claimed row, word for word as the partial index has them.
pub(super) const OPEN: &str = "status IN ('INQUEUE', 'PROGRESS')";

/// Which SQL is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
    /// MySQL and MariaDB.
    MySql,
}

impl Dialect {
    pub(super) const fn backend(self) -> DbBackend {
        match self {
            Self::Sqlite => DbBackend::Sqlite,
            Self::Postgres => DbBackend::Postgres,
            Self::MySql => DbBackend::MySql,
        }
    }

    /// Whether several workers may use the database at a time. Where not, nobody else can write during a transaction.
    pub(super) const fn is_shared(self) -> bool {
        match self {
            Self::Sqlite => false,
            Self::Postgres | Self::MySql => true,
        }
    }

    /// The present time in Unix milliseconds, by the same rule as the defaults of the tables.
    pub(super) const fn now(self) -> &'static str {
        match self {
            Self::Sqlite => "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)",
            Self::Postgres => "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
            Self::MySql => "(TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(3)) DIV 1000)",
        }
    }

    /// A text column to be read with [`Row::bytes`]. SQLite keeps any bytes in it, and reading them as text would fail.
    pub(super) fn text(self, column: &str) -> String {
        format!("{} AS {column}", self.as_text(column))
    }

    /// An expression as a text to be read with [`Row::bytes`].
    pub(super) fn as_text(self, expression: &str) -> String {
        match self {
            Self::Sqlite => format!("CAST({expression} AS BLOB)"),
            Self::Postgres => format!("CAST({expression} AS text)"),
            Self::MySql => expression.to_owned(),
        }
    }

    /// Makes SQLite use this index or fail, and MySQL if it can: their planners guess, SQLite's by rules where it has no
    /// statistics, MySQL's by a look at a few pages.
    pub(super) fn by_index(self, index: &str) -> String {
        match self {
            Self::Sqlite => format!("INDEXED BY {index}"),
            Self::Postgres => String::new(),
            Self::MySql => format!("FORCE INDEX ({index})"),
        }
    }

    /// Has MySQL find rows by their primary key, also where a table is so small that it would rather read all of it: a
    /// locking read waits for every row that it comes by.
    pub(super) const fn by_key(self) -> &'static str {
        match self {
            Self::Sqlite | Self::Postgres => "",
            Self::MySql => "FORCE INDEX (PRIMARY)",
        }
    }

    /// A condition on rows that are named by their keys besides, which begins with their status. PostgreSQL's planner is kept from
    /// proving by it that they are in a partial index: one that it holds for nearly empty it would read from end to end, with all runs
    /// that are open and all that have been.
    pub(super) fn of_named(self, condition: &str) -> String {
        match (self, condition.split_once(' ')) {
            (Self::Postgres, Some((status, rest))) => format!("({status} || '') {rest}"),
            (Self::Sqlite | Self::Postgres | Self::MySql, _) => condition.to_owned(),
        }
    }

    /// The token of rows that are named by their keys besides, kept from PostgreSQL's planner likewise: it holds `jobs_run_token` for
    /// empty where the table was analysed while all its rows waited. From what is strict it would prove that there is a token.
    pub(super) const fn token_of_named(self) -> &'static str {
        self.pick("run_token", "COALESCE(run_token, '')", "run_token")
    }

    /// What to order few rows by that another index finds. Where it may not sort, see [`super::postgres`], PostgreSQL would read the
    /// whole table by its key to have them in that order.
    pub(super) const fn sorted_by_id(self) -> &'static str {
        self.pick("id", "id + 0", "id")
    }

    /// Whichever applies.
    pub(super) const fn pick<'a>(self, sqlite: &'a str, postgres: &'a str, mysql: &'a str) -> &'a str {
        match self {
            Self::Sqlite => sqlite,
            Self::Postgres => postgres,
            Self::MySql => mysql,
        }
    }

    /// Locks the rows of a selection, and passes over those that some other transaction has locked.
    pub(super) const fn skip_locked(self) -> &'static str {
        self.pick("", "FOR NO KEY UPDATE SKIP LOCKED", "FOR UPDATE SKIP LOCKED")
    }

    /// Which dependencies have ended and not been looked at, word for word as the index `job_dependencies_ended` has it.
    pub(super) const fn noted(self) -> &'static str {
        self.pick("ended IS NOT NULL AND looked_at = 0", "ended IS NOT NULL AND looked_at = 0", "noted = 1")
    }

    /// The `unique_key` of a row that has not ended, to be compared.
    pub(super) const fn open_key(self) -> &'static str {
        self.pick("unique_key", "unique_key", "open_key")
    }

    /// Whether `column` is one of the texts of the JSON array in `parameter`.
    ///
    /// As an array rather than a subquery on PostgreSQL, whose planner would guess a hundred rows of the subquery and, to
    /// find just one match, read the table from its start.
    pub(super) fn among(self, column: &str, parameter: &str) -> String {
        match self {
            Self::Sqlite => format!("{column} IN (SELECT value FROM json_each({parameter}))"),
            Self::Postgres => format!("{column} = ANY (ARRAY(SELECT json_array_elements_text({parameter}::json)))"),
            Self::MySql => list(column, parameter),
        }
    }

    /// Whether `column` is one of the whole numbers of the JSON array in `parameter`; an array for the reason above.
    pub(super) fn among_ids(self, column: &str, parameter: &str) -> String {
        match self {
            Self::Sqlite => format!("{column} IN (SELECT value FROM json_each({parameter}))"),
            Self::Postgres => {
                format!("{column} = ANY (ARRAY(SELECT json_array_elements_text({parameter}::json)::bigint))")
            }
            Self::MySql => list(column, parameter),
        }
    }

    /// Whether `column` is one of the ids that this subquery gives, which is run once: joined to the table, PostgreSQL may
    /// run it again for each row, and its LIMIT would limit nothing. MySQL would read the whole table; see [`super::update`].
    pub(super) fn one_of(self, column: &str, subquery: &str) -> String {
        match self {
            Self::Sqlite | Self::MySql => format!("{column} IN ({subquery})"),
            Self::Postgres => format!("{column} = ANY (ARRAY({subquery}))"),
        }
    }

    /// The time that `schedule_to_close_timeout` counts from, word for word as the index `jobs_expiry` has it.
    pub(super) const fn schedule_time(self) -> &'static str {
        match self {
            Self::Sqlite => "COALESCE(schedule_time, max(created_time, run_at))",
            Self::Postgres => "COALESCE(schedule_time, GREATEST(created_time, run_at))",
            Self::MySql => "schedule_from",
        }
    }

    /// The objects of the JSON array in `parameter`, as a table `item` with these columns of the given SQL types.
    ///
    /// One parameter for any number of rows keeps the statement's text, and so its prepared form, always the same.
    pub(super) fn items(self, parameter: &str, columns: &[(&str, &str)]) -> String {
        match self {
            Self::Sqlite => {
                let columns: Vec<_> = columns.iter().map(|(name, _)| format!("value ->> '{name}' AS {name}")).collect();
                // Kept, or each column would have the element written out as text for itself alone.
                format!(
                    "(WITH list AS MATERIALIZED (SELECT value FROM json_each({parameter})) SELECT {} FROM list) AS item",
                    columns.join(", ")
                )
            }
            Self::Postgres => {
                let columns: Vec<_> = columns.iter().map(|(name, kind)| format!("{name} {kind}")).collect();
                format!("json_to_recordset({parameter}::json) AS item({})", columns.join(", "))
            }
            Self::MySql => {
                let kind = |kind: &str| if kind == "text" { "LONGTEXT CHARACTER SET utf8mb4" } else { "BIGINT" };
                let columns: Vec<_> =
                    columns.iter().map(|(name, of)| format!("{name} {} PATH '$.{name}'", kind(of))).collect();
                format!("JSON_TABLE({parameter}, '$[*]' COLUMNS ({})) AS item", columns.join(", "))
            }
        }
    }

    pub(super) fn statement(self, sql: impl Into<String>, values: impl IntoIterator<Item = Value>) -> Statement {
        let statement = match self {
            Self::Sqlite | Self::Postgres => Statement::from_sql_and_values(self.backend(), sql, values),
            Self::MySql => {
                let (sql, values) = spelled(&sql.into(), &values.into_iter().collect::<Vec<_>>());
                Statement::from_sql_and_values(self.backend(), sql, values)
            }
        };
        #[cfg(test)]
        super::plans::seen(&statement);
        statement
    }

    pub(super) fn built(self, query: &SelectStatement) -> Statement {
        let statement = self.backend().build(query);
        #[cfg(test)]
        super::plans::seen(&statement);
        statement
    }
}

/// See [`spelled`].
fn list(column: &str, parameter: &str) -> String {
    format!("{column} IN {LIST}{})", parameter.trim_start_matches('$'))
}

/// Names what was tried when the database failed.
pub(super) trait Doing<T> {
    fn doing(self, action: &'static str) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, DbErr> {
    fn doing(self, action: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::from_database(action, source))
    }
}

/// A text for the database: PostgreSQL can't keep NUL characters.
pub(super) fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// A row that anybody may have written.
pub(super) struct Row<'a> {
    pub(super) result: &'a Record,
    pub(super) dialect: Dialect,
}

impl Row<'_> {
    fn get<T: TryGetable + FromSql>(&self, column: &str) -> Result<T, Error> {
        self.result.get(column).map_err(|reason| Error::UnreadableRow { reason })
    }

    pub(super) fn int(&self, column: &str) -> Result<i64, Error> {
        self.get(column)
    }

    pub(super) fn maybe_int(&self, column: &str) -> Result<Option<i64>, Error> {
        self.get(column)
    }

    pub(super) fn flag(&self, column: &str) -> Result<bool, Error> {
        Ok(self.int(column)? != 0)
    }

    pub(super) fn count(&self, column: &str) -> Result<u32, Error> {
        Ok(u32::try_from(self.int(column)?).unwrap_or(u32::MAX))
    }

    pub(super) fn job(&self, column: &str) -> Result<JobId, Error> {
        self.int(column).map(JobId)
    }

    pub(super) fn attempt(&self) -> Result<Attempt, Error> {
        self.count("attempt").map(Attempt)
    }

    pub(super) fn maximum_attempts(&self) -> Result<Option<u32>, Error> {
        Ok(self.maybe_int("maximum_attempts")?.map(|most| u32::try_from(most).unwrap_or(1)))
    }

    pub(super) fn time(&self, column: &str) -> Result<Timestamp, Error> {
        self.int(column).map(Timestamp::from_unix_millis)
    }

    pub(super) fn maybe_time(&self, column: &str) -> Result<Option<Timestamp>, Error> {
        Ok(self.maybe_int(column)?.map(Timestamp::from_unix_millis))
    }

    /// The bytes of a column that was selected with [`Dialect::text`].
    pub(super) fn bytes(&self, column: &str) -> Result<Option<Vec<u8>>, Error> {
        match self.dialect {
            Dialect::Sqlite | Dialect::MySql => self.get(column),
            Dialect::Postgres => Ok(self.get::<Option<String>>(column)?.map(String::into_bytes)),
        }
    }

    /// The same as text to be shown.
    pub(super) fn text(&self, column: &str) -> Result<Option<String>, Error> {
        Ok(self.bytes(column)?.map(|bytes| match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }))
    }

    pub(super) fn some_text(&self, column: &str) -> Result<String, Error> {
        Ok(self.text(column)?.unwrap_or_default())
    }

    pub(super) fn identifier(&self) -> Result<Result<String, Unreadable>, Error> {
        Ok(String::from_utf8(self.bytes("identifier")?.unwrap_or_default())
            .map_err(|_| Unreadable("the identifier is not valid UTF-8".to_owned())))
    }

    pub(super) fn token(&self) -> Result<Option<RunToken>, Error> {
        Ok(self.text("run_token")?.and_then(|text| text.parse().ok()))
    }

    pub(super) fn status(&self) -> Result<JobStatus, Error> {
        self.some_text("status")?
            .parse()
            .map_err(|error: crate::domain::InvalidStatus| Error::UnreadableRow { reason: error.to_string() })
    }
}
