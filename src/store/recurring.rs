//! Recurring jobs: the last fire of each entry, and the job that it enqueues, in one transaction.
//!
//! Whoever looks locks the entry's row first, and finds in it up to where all fires were dealt with: two services that look
//! at the same moment, a crash at any moment and a clock that is set all lead to one job for each fire.

use std::time::Duration;

use super::connection::{Connection, Transaction};
use super::sql::{Doing, Row, storable};
use super::{Due, Error, NewJob, Store};
use crate::config::{FlowConfig, RecurringConfig};
use crate::crash::Step;
use crate::domain::recurring::{self, ON_TIME, Overlap};
use crate::domain::{FlowType, JobId, Timestamp};

const ACTION: &str = "enqueue recurring jobs";

/// What a look at the recurring entries of a flow has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fired {
    /// The fires, in the order of the entries, then of their times.
    pub fires: Vec<Fire>,
    /// How long it is until the next one; `None` where none comes any more.
    pub next: Option<Duration>,
}

/// A fire of a recurring entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fire {
    /// The entry's name.
    pub name: String,
    /// When it was due.
    pub time: Timestamp,
    /// The job; `None` where the entry's last one has not ended, and is not to be overlapped.
    pub job: Option<JobId>,
    /// Whether others before it were left out, since no service was there for them.
    pub missed: bool,
}

/// A row of `recurring`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecurringRow {
    /// `type`
    pub job_type: String,
    /// `name`
    pub name: String,
    /// Up to where all fires were dealt with.
    pub fired_until: Timestamp,
    /// The last fire that enqueued a job.
    pub last_fire_time: Option<Timestamp>,
    /// That job.
    pub last_job: Option<JobId>,
}

/// Where an entry stands.
struct Cursor {
    until: Timestamp,
    /// Whether that was reached by the line that the entry has now.
    same_line: bool,
}

impl Store {
    /// Enqueues a job for each fire of the flow's recurring entries that is due by the database's clock. Safe to repeat.
    ///
    /// # Errors
    /// Where the database fails; what was enqueued before that stays so.
    pub async fn fire(&self, flow: &FlowConfig) -> Result<Fired, Error> {
        let mut fired = Fired::default();
        let mut waits = Vec::new();
        for entry in &flow.recurring {
            let once = || self.fire_entry(&flow.flow, entry);
            let (fires, next) = self.in_time(ACTION, self.retrying(once)).await?;
            if fires.iter().any(|fire| fire.job.is_some()) {
                self.changed_here();
            }
            fired.fires.extend(fires);
            waits.extend(next);
        }
        fired.next = waits.into_iter().min();
        Ok(fired)
    }

    async fn fire_entry(
        &self,
        flow: &FlowType,
        entry: &RecurringConfig,
    ) -> Result<(Vec<Fire>, Option<Duration>), Error> {
        // Most looks find nothing due, and need no transaction to find it.
        let now = self.time(self.reader()).await?;
        if let Some(cursor) = self.cursor(self.reader(), flow, entry, "").await?.filter(|cursor| cursor.same_line) {
            let due = recurring::due(&entry.schedule, entry.catch_up, cursor.until, now);
            if due.until == cursor.until {
                return Ok((Vec::new(), wait(entry, cursor.until, now)));
            }
        }
        let transaction = self.begin(ACTION).await?;
        self.lock_keys(&transaction, [flow.as_str()].into()).await?;
        let insert = format!(
            "INSERT INTO recurring (type, name, schedule, timezone, fired_until) VALUES ($1, $2, $3, $4, {}) \
             ON CONFLICT (type, name) DO NOTHING",
            self.dialect().now()
        );
        let line = [entry.schedule.line().into(), entry.schedule.timezone().into()];
        let [schedule, timezone] = line.clone();
        let values = [flow.as_str().into(), storable(&entry.name).into(), schedule, timezone];
        transaction.execute(self.statement(insert, values)).await.doing(ACTION)?;
        let lock = self.dialect().pick("", "FOR UPDATE", "FOR UPDATE");
        let Some(cursor) = self.cursor(&transaction, flow, entry, lock).await? else {
            return Err(Error::UnreadableRow {
                reason: "a row of recurring was removed while it was locked".to_owned(),
            });
        };
        // Read after the lock: whoever held it may have fired what was not due yet by an earlier look at the clock.
        let now = self.time(&transaction).await?;
        // A line that was changed has missed nothing but what has just come due by it.
        let until = if cursor.same_line { cursor.until } else { cursor.until.max(now.minus(ON_TIME)) };
        let due = recurring::due(&entry.schedule, entry.catch_up, until, now);
        let mut fires = Vec::with_capacity(due.fires.len());
        for time in &due.fires {
            let job = self.enqueue_fire(&transaction, flow, entry, *time).await?;
            fires.push(Fire { name: entry.name.clone(), time: *time, job, missed: due.missed });
        }
        let last = fires.iter().rev().find_map(|fire| Some((fire.time, fire.job?)));
        let update = "UPDATE recurring SET schedule = $3, timezone = $4, fired_until = $5, \
             last_fire_time = COALESCE($6, last_fire_time), last_job_id = COALESCE($7, last_job_id) WHERE type = $1 AND name = $2";
        let [schedule, timezone] = line;
        let values = [
            flow.as_str().into(),
            storable(&entry.name).into(),
            schedule,
            timezone,
            due.until.unix_millis().into(),
            last.map(|(time, _)| time.unix_millis()).into(),
            last.map(|(_, job)| job.0).into(),
        ];
        transaction.execute(self.statement(update, values)).await.doing(ACTION)?;
        self.commit(transaction, Step::RecurringCommit, ACTION).await?;
        Ok((fires, if due.more { Some(Duration::ZERO) } else { wait(entry, due.until, now) }))
    }

    async fn cursor(
        &self,
        connection: &impl Connection,
        flow: &FlowType,
        entry: &RecurringConfig,
        lock: &str,
    ) -> Result<Option<Cursor>, Error> {
        let dialect = self.dialect();
        let select = format!(
            "SELECT fired_until, {}, {} FROM recurring WHERE type = $1 AND name = $2 {lock}",
            dialect.text("schedule"),
            dialect.text("timezone"),
        );
        let values = [flow.as_str().into(), storable(&entry.name).into()];
        let Some(result) = connection.query_one(self.statement(select, values)).await.doing(ACTION)? else {
            return Ok(None);
        };
        let row = Row { result: &result, dialect };
        let same_line = row.some_text("schedule")? == entry.schedule.line()
            && row.some_text("timezone")? == entry.schedule.timezone();
        Ok(Some(Cursor { until: row.time("fired_until")?, same_line }))
    }

    /// The job of a fire; `None` where one with its key is open, which for an entry that is not to overlap is its last one.
    async fn enqueue_fire(
        &self,
        transaction: &Transaction,
        flow: &FlowType,
        entry: &RecurringConfig,
        time: Timestamp,
    ) -> Result<Option<JobId>, Error> {
        let key = match entry.overlap {
            Overlap::Skip => format!("recurring {}", entry.name),
            Overlap::Allow => {
                let time = chrono::DateTime::from_timestamp_millis(time.unix_millis()).unwrap_or_default();
                format!("recurring {} {}", entry.name, time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true))
            }
        };
        let job = NewJob {
            flow: flow.clone(),
            identifier: entry.identifier.clone(),
            payload: entry.payload.clone(),
            priority: entry.priority,
            due: Due::At(time),
            maximum_attempts: None,
            unique_key: Some(key),
            trace: None,
        };
        Ok(self.insert(transaction, &[job]).await?.first().copied())
    }

    /// Where every entry stands that has ever been looked at.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn recurring(&self) -> Result<Vec<RecurringRow>, Error> {
        const ACTION: &str = "read the recurring jobs";
        let dialect = self.dialect();
        let select = format!(
            "SELECT {}, {}, fired_until, last_fire_time, last_job_id FROM recurring ORDER BY type, name",
            dialect.text("type"),
            dialect.text("name"),
        );
        let query = async {
            let results = self.reader().query_all(self.statement(select, [])).await.doing(ACTION)?;
            let read = |row: Row<'_>| {
                Ok(RecurringRow {
                    job_type: row.some_text("type")?,
                    name: row.some_text("name")?,
                    fired_until: row.time("fired_until")?,
                    last_fire_time: row.maybe_time("last_fire_time")?,
                    last_job: row.maybe_int("last_job_id")?.map(JobId),
                })
            };
            results.iter().map(|result| read(Row { result, dialect })).collect()
        };
        self.in_time(ACTION, query).await
    }
}

fn wait(entry: &RecurringConfig, until: Timestamp, now: Timestamp) -> Option<Duration> {
    entry.schedule.next_fire(until.max(now)).map(|next| next.since(now))
}
