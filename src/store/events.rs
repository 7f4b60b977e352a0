//! The stream of status changes: `job_events` in the order of its ids, nothing left out.
//!
//! On SQLite a row with a lower id is always there before one with a higher. On PostgreSQL it may come later, and then
//! [`Store::final_event`] stays below it until it has: see the migration's `callsheet_final_event`.

use sea_orm::ConnectionTrait;

use super::jobs::event_row;
use super::sql::{Doing, Row};
use super::{Error, EventRow, Store};

/// A status change, and what it is a change of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamedEvent {
    /// The row of `job_events`.
    pub event: EventRow,
    /// `jobs.type`
    pub job_type: String,
}

/// Some status changes, and where the next ones start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPage {
    /// The changes, oldest first.
    pub events: Vec<StreamedEvent>,
    /// What to read after next; none below it will ever come.
    pub next: i64,
    /// Whether there are more by now.
    pub more: bool,
}

const ACTION: &str = "read the status changes";

impl Store {
    /// The highest id at and below which no further row will appear.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn final_event(&self) -> Result<i64, Error> {
        let dialect = self.dialect();
        let select = dialect.pick(
            "SELECT COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'job_events'), 0) AS final",
            "SELECT callsheet_final_event() AS final",
        );
        let query = async {
            let result = self.reader().query_one_raw(self.statement(select, [])).await.doing(ACTION)?;
            result.map_or(Ok(0), |result| Row { result: &result, dialect }.int("final"))
        };
        self.in_time(ACTION, query).await
    }

    /// At most `limit` changes behind the id `after`, oldest first.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn events_after(&self, after: i64, limit: u32) -> Result<EventPage, Error> {
        let dialect = self.dialect();
        // Asked first: what is final then is there to be read in the next statement.
        let last = self.final_event().await?;
        let texts = ["from_status", "to_status", "worker_id", "message"]
            .map(|column| format!("CAST(e.{column} AS {0}) AS {column}", dialect.pick("BLOB", "text")));
        let select = format!(
            "SELECT e.id, e.job_id, e.attempt, e.time, {}, CAST(jobs.type AS {}) AS type FROM job_events AS e \
             JOIN jobs ON jobs.id = e.job_id WHERE e.id > $1 AND e.id <= $2 ORDER BY e.id LIMIT $3",
            texts.join(", "),
            dialect.pick("BLOB", "text"),
        );
        let values = [after.into(), last.into(), i64::from(limit).into()];
        let query = async {
            let results = self.reader().query_all_raw(self.statement(select, values)).await.doing(ACTION)?;
            let read = |row: Row<'_>| Ok(StreamedEvent { event: event_row(&row)?, job_type: row.some_text("type")? });
            let events =
                results.iter().map(|result| read(Row { result, dialect })).collect::<Result<Vec<_>, Error>>()?;
            let more = events.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
            let read_to = events.last().filter(|_| more).map(|last| last.event.id);
            Ok(EventPage { events, next: read_to.unwrap_or(last).max(after), more })
        };
        self.in_time(ACTION, query).await
    }
}
