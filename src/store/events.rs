//! The stream of status changes: `job_events` in the order of its ids, nothing left out.
//!
//! On SQLite a row with a lower id is always there before one with a higher. On PostgreSQL it may come later, and then
//! [`Store::final_event`] stays below it until it has: see the migration's `callsheet_final_event`. On MySQL every
//! transaction that writes puts down first, in a row of `event_writers` for its connection, up to which id all had been drawn
//! by then; who reads uncommitted rows sees that, and that it is not committed.

use std::collections::BTreeSet;

use sea_orm::{IsolationLevel, TransactionOptions};

use super::connection::{Connection, Transaction};
use super::jobs::event_row;
use super::sql::{Dialect, Doing, Row};
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
        if dialect == Dialect::MySql {
            return self.in_time(ACTION, self.final_event_of_writers()).await;
        }
        let select = dialect.pick(
            "SELECT COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'job_events'), 0) AS final",
            "SELECT callsheet_final_event() AS final",
            "",
        );
        let query = async {
            let result = self.reader().query_one(self.statement(select, [])).await.doing(ACTION)?;
            result.map_or(Ok(0), |result| Row { result: &result, dialect }.int("final"))
        };
        self.in_time(ACTION, query).await
    }

    async fn final_event_of_writers(&self) -> Result<i64, Error> {
        // In this order. A transaction that has drawn an id below the highest one began before that was read: either it is seen
        // among the uncommitted, or it has been committed or taken back since, and what it wrote is there to be read.
        let highest = "SELECT COALESCE(max(id), 0) AS id FROM job_events".to_owned();
        let highest = self.ids(self.reader(), ACTION, highest, Vec::new()).await?;
        let highest = highest.first().copied().unwrap_or(0);
        let options = TransactionOptions {
            isolation_level: Some(IsolationLevel::ReadUncommitted),
            ..TransactionOptions::default()
        };
        let uncommitted = self.reader().begin_with(options).await.doing(ACTION)?;
        let begun = self.writers_of(&uncommitted).await?;
        uncommitted.commit().await.doing(ACTION)?;
        let ended = self.writers_of(self.reader()).await?;
        let open = begun.into_iter().filter(|writer| !ended.contains(writer)).map(|(_, _, drawn)| drawn);
        Ok(open.min().unwrap_or(highest).min(highest))
    }

    /// The rows of `event_writers`: connection, transaction, and the id above which it draws.
    async fn writers_of(&self, connection: &impl Connection) -> Result<BTreeSet<(i64, i64, i64)>, Error> {
        let select = self.statement("SELECT writer, turn, drawn FROM event_writers", []);
        let results = connection.query_all(select).await.doing(ACTION)?;
        let read = |row: Row<'_>| Ok((row.int("writer")?, row.int("turn")?, row.int("drawn")?));
        results.iter().map(|result| read(Row { result, dialect: self.dialect() })).collect()
    }

    /// Begins the turn of this transaction on MySQL; nothing elsewhere.
    pub(super) async fn begin_turn(&self, transaction: &Transaction, action: &'static str) -> Result<(), Error> {
        if self.dialect() != Dialect::MySql {
            return Ok(());
        }
        let turn = format!(
            "INSERT INTO event_writers (writer, turn, drawn, time) \
             SELECT CONNECTION_ID(), 1, COALESCE((SELECT max(id) FROM job_events), 0), {} \
             ON DUPLICATE KEY UPDATE turn = turn + 1, drawn = VALUES(drawn), time = VALUES(time)",
            self.dialect().now()
        );
        transaction.execute(self.statement(turn, [])).await.doing(action)?;
        Ok(())
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
            .map(|column| format!("{} AS {column}", dialect.as_text(&format!("e.{column}"))));
        let select = format!(
            "SELECT e.id, e.job_id, e.attempt, e.time, {}, {} AS type FROM job_events AS e \
             JOIN jobs ON jobs.id = e.job_id WHERE e.id > $1 AND e.id <= $2 ORDER BY e.id LIMIT $3",
            texts.join(", "),
            dialect.as_text("jobs.type"),
        );
        let values = [after.into(), last.into(), i64::from(limit).into()];
        let query = async {
            let results = self.reader().query_all(self.statement(select, values)).await.doing(ACTION)?;
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
