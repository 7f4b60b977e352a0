//! What differs between the databases, and how rows are read without trusting them.

use sea_orm::{DbBackend, DbErr, QueryResult, Statement, TryGetable, Value};

use super::{Error, Unreadable};
use crate::domain::{Attempt, JobId, JobStatus, RunToken, Timestamp};

/// The statuses that have not ended, word for word as the partial indexes have them.
pub(super) const OPEN_OR_PENDING: &str = "status IN ('PENDING', 'INQUEUE', 'PROGRESS')";
/// The statuses of a claimed row, word for word as the partial index has them.
pub(super) const OPEN: &str = "status IN ('INQUEUE', 'PROGRESS')";

/// Which SQL is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    pub(super) const fn backend(self) -> DbBackend {
        match self {
            Self::Sqlite => DbBackend::Sqlite,
            Self::Postgres => DbBackend::Postgres,
        }
    }

    /// The present time in Unix milliseconds, by the same rule as the defaults of the tables.
    pub(super) const fn now(self) -> &'static str {
        match self {
            Self::Sqlite => "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)",
            Self::Postgres => "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
        }
    }

    /// A text column to be read with [`Row::bytes`]. SQLite keeps any bytes in it, and reading them as text would fail.
    pub(super) fn text(self, column: &str) -> String {
        match self {
            Self::Sqlite => format!("CAST({column} AS BLOB) AS {column}"),
            Self::Postgres => format!("CAST({column} AS text) AS {column}"),
        }
    }

    /// Makes SQLite use this index or fail: its planner guesses by rules where it has no statistics.
    pub(super) fn by_index(self, index: &str) -> String {
        match self {
            Self::Sqlite => format!("INDEXED BY {index}"),
            Self::Postgres => String::new(),
        }
    }

    /// `sqlite` or `postgres`, whichever applies.
    pub(super) const fn pick<'a>(self, sqlite: &'a str, postgres: &'a str) -> &'a str {
        match self {
            Self::Sqlite => sqlite,
            Self::Postgres => postgres,
        }
    }

    /// Whether `column` is one of the texts of the JSON array in `parameter`.
    ///
    /// As an array rather than a subquery on PostgreSQL, whose planner would guess a hundred rows of the subquery and, to
    /// find just one match, read the table from its start.
    pub(super) fn among(self, column: &str, parameter: &str) -> String {
        match self {
            Self::Sqlite => format!("{column} IN (SELECT value FROM json_each({parameter}))"),
            Self::Postgres => format!("{column} = ANY (ARRAY(SELECT json_array_elements_text({parameter}::json)))"),
        }
    }

    /// Whether `column` is one of the whole numbers of the JSON array in `parameter`; an array for the reason above.
    pub(super) fn among_ids(self, column: &str, parameter: &str) -> String {
        match self {
            Self::Sqlite => format!("{column} IN (SELECT value FROM json_each({parameter}))"),
            Self::Postgres => {
                format!("{column} = ANY (ARRAY(SELECT json_array_elements_text({parameter}::json)::bigint))")
            }
        }
    }

    /// Whether `column` is one of the ids that this subquery gives, which is run once: joined to the table, PostgreSQL may
    /// run it again for each row, and its LIMIT would limit nothing.
    pub(super) fn one_of(self, column: &str, subquery: &str) -> String {
        match self {
            Self::Sqlite => format!("{column} IN ({subquery})"),
            Self::Postgres => format!("{column} = ANY (ARRAY({subquery}))"),
        }
    }

    /// The time that `schedule_to_close_timeout` counts from, word for word as the index `jobs_expiry` has it.
    pub(super) const fn schedule_time(self) -> &'static str {
        match self {
            Self::Sqlite => "COALESCE(schedule_time, max(created_time, run_at))",
            Self::Postgres => "COALESCE(schedule_time, GREATEST(created_time, run_at))",
        }
    }

    /// The objects of the JSON array in `parameter`, as a table `item` with these columns of the given SQL types.
    ///
    /// One parameter for any number of rows keeps the statement's text, and so its prepared form, always the same.
    pub(super) fn items(self, parameter: &str, columns: &[(&str, &str)]) -> String {
        match self {
            Self::Sqlite => {
                let columns: Vec<_> = columns.iter().map(|(name, _)| format!("value ->> '{name}' AS {name}")).collect();
                format!("(SELECT {} FROM json_each({parameter})) AS item", columns.join(", "))
            }
            Self::Postgres => {
                let columns: Vec<_> = columns.iter().map(|(name, kind)| format!("{name} {kind}")).collect();
                format!("json_to_recordset({parameter}::json) AS item({})", columns.join(", "))
            }
        }
    }

    pub(super) fn statement(self, sql: impl Into<String>, values: impl IntoIterator<Item = Value>) -> Statement {
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        #[cfg(test)]
        super::plans::seen(&statement);
        statement
    }
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
    pub(super) result: &'a QueryResult,
    pub(super) dialect: Dialect,
}

impl Row<'_> {
    fn get<T: TryGetable>(&self, column: &str) -> Result<T, Error> {
        self.result.try_get("", column).map_err(|error| Error::UnreadableRow { reason: error.to_string() })
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
            Dialect::Sqlite => self.get(column),
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
