//! What the overview shows, read so that its cost grows neither with the backlog nor with what has ended.
//!
//! Waiting rows are counted up to [`COUNTED_UP_TO`] and then called more; what has ended is counted minute by minute,
//! once ([`History`]); everything else reads the few rows that it shows, each by an index.

use std::collections::{BTreeMap, BTreeSet};

use sea_orm::Value;
use serde_json::json;

use super::connection::Connection;
use super::sql::{Dialect, Doing, OPEN, Row};
use super::{AFTER_OTHERS, Error, Store, WorkerRow};
use crate::domain::{Attempt, JobId, JobStatus, Timestamp};

/// Up to so many waiting rows of a flow are counted at each look.
pub const COUNTED_UP_TO: u64 = 1000;
/// So many open rows are read at the most; more are only counted.
const MOST_OPEN: u64 = 500;
/// So many of the last failures are read.
const FAILURES: u64 = 8;
/// So many ended jobs are read for the lanes of all flows, and so many of each flow at the most.
const LANES: usize = 240;
const LANE: usize = 40;
/// So many flows are looked at the most; a table of types that somebody has filled with noise must stay readable.
const MOST_FLOWS: usize = 200;
/// So much of an error is read, in characters: its sentence and the end of the output, 4 KiB at the most, whose last line often
/// says why.
const ERROR_LENGTH: usize = 5000;

/// How many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// At least so many.
    pub at_least: u64,
    /// Whether there may be more.
    pub or_more: bool,
}

/// How a flow's queue stands; by default as that of a flow that nobody has used yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// The type, which may be one that no flow has.
    pub job_type: String,
    /// Whether it is paused.
    pub paused: bool,
    /// Since when it is paused; `None` where it is not, or was paused by SQL.
    pub paused_time: Option<Timestamp>,
    /// Who paused it, as above.
    pub paused_by: Option<String>,
    /// Rows that wait and are due.
    pub waiting: Count,
    /// Rows that wait for their `run_at`.
    pub delayed: Count,
    /// Rows that wait for other jobs.
    pub dependent: Count,
    /// `run_at` of the row that has been due for the longest time.
    pub oldest_waiting: Option<Timestamp>,
    /// The first `run_at` of the delayed rows.
    pub next_due: Option<Timestamp>,
    /// Claimed and running rows.
    pub open: u64,
}

/// A claimed or running job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRow {
    /// `jobs.id`
    pub id: JobId,
    /// `jobs.type`
    pub job_type: String,
    /// `jobs.identifier`
    pub identifier: String,
    /// `jobs.status`: INQUEUE or PROGRESS.
    pub status: JobStatus,
    /// `jobs.attempt`
    pub attempt: Attempt,
    /// `jobs.worker_id`
    pub worker_id: Option<String>,
    /// `jobs.progress`
    pub progress: Option<u8>,
    /// `jobs.status_message`
    pub status_message: Option<String>,
    /// `jobs.queued_time`
    pub queued_time: Option<Timestamp>,
    /// `jobs.started_time`, of this attempt where it is PROGRESS.
    pub started_time: Option<Timestamp>,
    /// `jobs.heartbeat_time`
    pub heartbeat_time: Option<Timestamp>,
    /// Whether somebody has asked to cancel it.
    pub cancel_requested: bool,
}

/// A job that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedRow {
    /// `jobs.id`
    pub id: JobId,
    /// `jobs.type`
    pub job_type: String,
    /// `jobs.identifier`
    pub identifier: String,
    /// `jobs.status`: COMPLETED, ERROR or CANCELLED.
    pub status: JobStatus,
    /// `jobs.attempt`
    pub attempt: Attempt,
    /// When its last run started; `None` where it never ran.
    pub started_time: Option<Timestamp>,
    /// `jobs.completed_time`
    pub completed_time: Timestamp,
    /// `jobs.execution_ms`
    pub execution_ms: Option<i64>,
    /// The start of `jobs.error`; read for failures only.
    pub error: Option<String>,
}

/// A run that a later attempt of the same job followed, or will.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlierRun {
    /// `runs.job_id`
    pub job: JobId,
    /// `runs.attempt`
    pub attempt: Attempt,
    /// `runs.started_time`
    pub started_time: Timestamp,
    /// `runs.completed_time`
    pub completed_time: Timestamp,
}

/// What has ended within a stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// COMPLETED
    pub completed: u64,
    /// ERROR
    pub failed: u64,
    /// CANCELLED
    pub cancelled: u64,
}

impl Ended {
    /// All of them.
    #[must_use]
    pub fn all(self) -> u64 {
        self.completed + self.failed + self.cancelled
    }

    fn add(&mut self, other: Self) {
        self.completed += other.completed;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
    }
}

/// The state of everything at one moment, as far as an operator needs it first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    /// When this was read, by the database's clock.
    pub now: Timestamp,
    /// The queues, by type.
    pub queues: Vec<Queue>,
    /// Claimed and running jobs, by type and then id.
    pub open: Vec<OpenRow>,
    /// The jobs that failed last, the last one first.
    pub failures: Vec<EndedRow>,
    /// The jobs of each type that ended last, the last one first.
    pub ended: Vec<EndedRow>,
    /// The runs before the last one of the open and ended jobs above.
    pub earlier: Vec<EarlierRun>,
    /// The workers, in the order of their names.
    pub workers: Vec<WorkerRow>,
}

const ACTION: &str = "read the overview";

impl Store {
    /// Reads everything of the overview but its [`History`].
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn overview(&self) -> Result<Overview, Error> {
        let (now, types) = tokio::try_join!(self.now(), self.types())?;
        // None needs another one's answer, and a server works on several at a time.
        let (queues, open, failures, ended, workers) = tokio::try_join!(
            self.in_time(ACTION, self.queues(now)),
            self.in_time(ACTION, self.open_rows()),
            self.in_time(ACTION, self.failures()),
            self.in_time(ACTION, self.last_ended(&types)),
            self.workers(),
        )?;
        let several = open.iter().map(|row| (row.id, row.attempt)).chain(ended.iter().map(|row| (row.id, row.attempt)));
        let several: Vec<JobId> = several.filter(|(_, attempt)| attempt.0 > 1).map(|(id, _)| id).collect();
        let earlier = self.in_time(ACTION, self.earlier_runs(&several)).await?;
        Ok(Overview { now, queues, open, failures, ended, earlier, workers })
    }

    /// The types of flows, and of rows that have not ended, in their order; no more than the overview shows.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn types(&self) -> Result<Vec<String>, Error> {
        let dialect = self.dialect();
        if dialect == Dialect::MySql {
            return self.in_time(ACTION, self.types_by_steps()).await;
        }
        let select = format!(
            "{} SELECT {} AS type FROM types ORDER BY types.type LIMIT {MOST_FLOWS}",
            self.with_types(),
            dialect.as_text("types.type"),
        );
        let query = async {
            let results = self.reader().query_all(self.statement(select, [])).await.doing(ACTION)?;
            results.iter().map(|result| Row { result, dialect }.some_text("type")).collect()
        };
        self.in_time(ACTION, query).await
    }

    /// [`Self::types`] on MySQL, for which a jump is a statement: in a recursive one it would read all rows in between.
    async fn types_by_steps(&self) -> Result<Vec<String>, Error> {
        let waiting = self.types_of(&[JobStatus::Pending]).await?;
        let others = format!(
            "SELECT type FROM flows UNION SELECT type FROM jobs {} WHERE {OPEN}",
            self.dialect().by_index("jobs_open")
        );
        let results = self.reader().query_all(self.statement(others, [])).await.doing(ACTION)?;
        let read = |result| Row { result, dialect: self.dialect() }.some_text("type");
        let others = results.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let types: BTreeSet<String> = waiting.into_iter().chain(others).collect();
        Ok(types.into_iter().take(MOST_FLOWS).collect())
    }

    /// The types that rows of these statuses have on MySQL, by one look into an index for each.
    pub(super) async fn types_of(&self, statuses: &[JobStatus]) -> Result<Vec<String>, Error> {
        let dialect = self.dialect();
        let by_due = dialect.by_index("jobs_due");
        let mut types = BTreeSet::new();
        for status in statuses {
            let mut last: Option<String> = None;
            loop {
                let behind = if last.is_some() { "AND type > $2" } else { "" };
                let next = format!("SELECT min(type) AS type FROM jobs {by_due} WHERE status = $1 {behind}");
                let values = [status.as_str().into(), last.as_deref().into()];
                let result = self.reader().query_one(self.statement(next, values)).await.doing(ACTION)?;
                last = result.map_or(Ok(None), |result| Row { result: &result, dialect }.text("type"))?;
                let Some(found) = &last else { break };
                types.insert(found.clone());
            }
        }
        Ok(types.into_iter().collect())
    }

    /// The table `types`. Those of waiting rows are found by jumping through the index from one to the next, however many
    /// rows each has. Nothing says that a type in it is valid text, so what is compared is what is stored.
    fn with_types(&self) -> String {
        let [by_due, by_open] = ["jobs_due", "jobs_open"].map(|index| self.dialect().by_index(index));
        format!(
            "WITH RECURSIVE waiting(type) AS (\
             SELECT min(type) FROM jobs {by_due} WHERE status = 'PENDING' UNION ALL \
             SELECT (SELECT min(type) FROM jobs {by_due} WHERE status = 'PENDING' AND type > waiting.type) \
             FROM waiting WHERE waiting.type IS NOT NULL), \
             types(type) AS (SELECT type FROM flows UNION SELECT type FROM waiting WHERE type IS NOT NULL \
             UNION SELECT type FROM jobs {by_open} WHERE {OPEN})"
        )
    }

    async fn queues(&self, now: Timestamp) -> Result<Vec<Queue>, Error> {
        let dialect = self.dialect();
        let [by_due, by_open] = ["jobs_due", "jobs_open"].map(|index| dialect.by_index(index));
        let one_more = COUNTED_UP_TO + 1;
        let after_others = AFTER_OTHERS.unix_millis();
        // Each type by itself on MySQL, which else reads all that waits to find what is due first.
        let one = dialect == Dialect::MySql;
        let (with, from) = if one {
            (String::new(), String::new())
        } else {
            (self.with_types(), format!("FROM types ORDER BY types.type LIMIT {MOST_FLOWS}"))
        };
        // In their order the rows are counted along the index, which PostgreSQL else leaves for a bitmap of all of them.
        let select = format!(
            "{with} SELECT {} AS type, \
             CAST(COALESCE((SELECT CASE WHEN paused THEN 1 ELSE 0 END FROM flows WHERE flows.type = types.type), 0) AS bigint) AS paused, \
             (SELECT CASE WHEN paused THEN paused_time END FROM flows WHERE flows.type = types.type) AS paused_time, \
             {} AS paused_by, \
             CAST((SELECT count(*) FROM (SELECT 1 FROM jobs {by_due} WHERE status = 'PENDING' AND jobs.type = types.type \
             AND run_at <= $1 ORDER BY run_at LIMIT {one_more}) AS due) AS bigint) AS waiting, \
             CAST((SELECT count(*) FROM (SELECT 1 FROM jobs {by_due} WHERE status = 'PENDING' AND jobs.type = types.type \
             AND run_at > $1 AND run_at < {after_others} ORDER BY run_at LIMIT {one_more}) AS later) AS bigint) AS postponed, \
             CAST((SELECT count(*) FROM (SELECT 1 FROM jobs {by_due} WHERE status = 'PENDING' AND jobs.type = types.type \
             AND run_at >= {after_others} ORDER BY run_at LIMIT {one_more}) AS behind) AS bigint) AS dependent, \
             (SELECT min(run_at) FROM jobs {by_due} WHERE status = 'PENDING' AND jobs.type = types.type) AS oldest, \
             (SELECT min(run_at) FROM jobs {by_due} WHERE status = 'PENDING' AND jobs.type = types.type \
             AND run_at > $1 AND run_at < {after_others}) AS next_due, \
             CAST((SELECT count(*) FROM jobs {by_open} WHERE {OPEN} AND jobs.type = types.type) AS bigint) AS open \
             {from}",
            dialect.as_text("types.type"),
            dialect.as_text("(SELECT CASE WHEN paused THEN paused_by END FROM flows WHERE flows.type = types.type)"),
        );
        if !one {
            let statement = self.statement(select, [now.unix_millis().into()]);
            let results = self.reader().query_all(statement).await.doing(ACTION)?;
            return results.iter().map(|result| queue(&Row { result, dialect }, now)).collect();
        }
        let select = select.replace("types.type", "$2");
        let mut queues = Vec::new();
        for name in self.types_by_steps().await? {
            let values = [now.unix_millis().into(), name.into()];
            let result = self.reader().query_one(self.statement(select.as_str(), values)).await.doing(ACTION)?;
            queues.extend(result.map(|result| queue(&Row { result: &result, dialect }, now)).transpose()?);
        }
        Ok(queues)
    }

    async fn open_rows(&self) -> Result<Vec<OpenRow>, Error> {
        let dialect = self.dialect();
        let texts = ["type", "identifier", "status", "worker_id", "status_message"].map(|column| dialect.text(column));
        let select = format!(
            "SELECT id, attempt, progress, queued_time, started_time, heartbeat_time, \
             CAST(CASE WHEN cancel_requested_time IS NULL THEN 0 ELSE 1 END AS bigint) AS cancel_requested, {} \
             FROM jobs {} WHERE {OPEN} ORDER BY jobs.type, id LIMIT {MOST_OPEN}",
            texts.join(", "),
            dialect.by_index("jobs_open"),
        );
        let results = self.reader().query_all(self.statement(select, [])).await.doing(ACTION)?;
        results.iter().map(|result| open_row(&Row { result, dialect })).collect()
    }

    async fn failures(&self) -> Result<Vec<EndedRow>, Error> {
        let dialect = self.dialect();
        let select = format!(
            "SELECT {}, {} AS error FROM jobs {} \
             WHERE status = 'ERROR' AND completed_time IS NOT NULL ORDER BY completed_time DESC LIMIT {FAILURES}",
            self.ended_columns(),
            dialect.as_text(&format!("substr(error, 1, {ERROR_LENGTH})")),
            dialect.by_index("jobs_failed"),
        );
        let results = self.reader().query_all(self.statement(select, [])).await.doing(ACTION)?;
        results.iter().map(|result| ended_row(&Row { result, dialect }, true)).collect()
    }

    /// The jobs of each of these types that ended last.
    async fn last_ended(&self, types: &[String]) -> Result<Vec<EndedRow>, Error> {
        let dialect = self.dialect();
        if types.is_empty() {
            return Ok(Vec::new());
        }
        let each = (LANES / types.len()).clamp(2, LANE);
        let lane = |wanted: &str| {
            format!(
                "SELECT {} FROM jobs {} WHERE jobs.type = {wanted} AND {ENDED} AND completed_time IS NOT NULL \
                 ORDER BY completed_time DESC LIMIT {each}",
                self.ended_columns(),
                dialect.by_index("jobs_ended"),
            )
        };
        let (select, values): (String, Vec<Value>) = match dialect {
            // Planned anew each time as one part a type, it would cost PostgreSQL more to plan than to do.
            Dialect::Postgres => {
                let lane = lane("wanted.type");
                let wanted = "json_array_elements_text($1::json) AS wanted(type)";
                let select = format!("SELECT lane.* FROM {wanted} CROSS JOIN LATERAL ({lane}) AS lane");
                (select, vec![json!(types).to_string().into()])
            }
            Dialect::Sqlite | Dialect::MySql => {
                let lanes = (1..=types.len())
                    .map(|place| format!("SELECT * FROM ({}) AS lane{place}", lane(&format!("${place}"))));
                let values = types.iter().map(|name| name.as_str().into()).collect();
                (lanes.collect::<Vec<_>>().join(" UNION ALL "), values)
            }
        };
        let results = self.reader().query_all(self.statement(select, values)).await.doing(ACTION)?;
        results.iter().map(|result| ended_row(&Row { result, dialect }, false)).collect()
    }

    async fn earlier_runs(&self, jobs: &[JobId]) -> Result<Vec<EarlierRun>, Error> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let dialect = self.dialect();
        let select = format!(
            "SELECT runs.job_id, runs.attempt, runs.started_time, runs.completed_time FROM {} \
             JOIN jobs ON jobs.id = item.id JOIN runs ON runs.job_id = jobs.id \
             WHERE runs.attempt < jobs.attempt AND runs.started_time IS NOT NULL AND runs.completed_time IS NOT NULL \
             ORDER BY runs.id DESC LIMIT {MOST_OPEN}",
            dialect.items("$1", &[("id", "bigint")]),
        );
        let items = json!(jobs.iter().map(|job| json!({ "id": job.0 })).collect::<Vec<_>>()).to_string();
        let results = self.reader().query_all(self.statement(select, [items.into()])).await.doing(ACTION)?;
        results
            .iter()
            .map(|result| {
                let row = Row { result, dialect };
                Ok(EarlierRun {
                    job: row.job("job_id")?,
                    attempt: row.attempt()?,
                    started_time: row.time("started_time")?,
                    completed_time: row.time("completed_time")?,
                })
            })
            .collect()
    }

    fn ended_columns(&self) -> String {
        let texts = ["type", "identifier", "status"].map(|column| self.dialect().text(column));
        format!("id, attempt, started_time, completed_time, execution_ms, {}", texts.join(", "))
    }

    /// How many waiting rows there are of each type, exactly: reads all of them.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn count_waiting(&self) -> Result<BTreeMap<String, u64>, Error> {
        let states = self.flow_states().await?;
        Ok(states.into_iter().map(|state| (state.job_type, state.runnable)).collect())
    }

    /// How many jobs of each type ended in each minute of `from..until`, which is cut to whole minutes.
    async fn ended_by_minute(
        &self,
        types: &BTreeSet<String>,
        from: i64,
        until: i64,
    ) -> Result<BTreeMap<(String, i64), Ended>, Error> {
        const ACTION: &str = "count what has ended";
        let dialect = self.dialect();
        // Elsewhere a whole number divided by one is one.
        let minute = dialect.pick("completed_time / 60000", "completed_time / 60000", "completed_time DIV 60000");
        let select = format!(
            "SELECT {}, {}, CAST({minute} AS bigint) AS minute, CAST(count(*) AS bigint) AS ended FROM jobs {} WHERE {} \
             AND {ENDED} AND completed_time >= $2 AND completed_time < $3 GROUP BY jobs.type, jobs.status, {minute}",
            dialect.text("type"),
            dialect.text("status"),
            dialect.by_index("jobs_ended"),
            dialect.among("type", "$1"),
        );
        let items = json!(types).to_string();
        let values = [items.into(), (from * MINUTE).into(), (until * MINUTE).into()];
        let query = async {
            let results = self.reader().query_all(self.statement(select, values)).await.doing(ACTION)?;
            let mut minutes: BTreeMap<(String, i64), Ended> = BTreeMap::new();
            for result in &results {
                let row = Row { result, dialect };
                let count = u64::try_from(row.int("ended")?).unwrap_or(0);
                let ended = match row.status()? {
                    JobStatus::Completed => Ended { completed: count, ..Ended::default() },
                    JobStatus::Error => Ended { failed: count, ..Ended::default() },
                    JobStatus::Cancelled => Ended { cancelled: count, ..Ended::default() },
                    JobStatus::Pending | JobStatus::InQueue | JobStatus::Progress => continue,
                };
                minutes.entry((row.some_text("type")?, row.int("minute")?)).or_default().add(ended);
            }
            Ok(minutes)
        };
        self.in_time(ACTION, query).await
    }
}

/// The statuses of an ended row, word for word as the partial index has them.
const ENDED: &str = "status IN ('COMPLETED', 'ERROR', 'CANCELLED')";

/// In milliseconds.
const MINUTE: i64 = 60_000;
/// How many minutes are kept: a day.
const KEPT: i64 = 24 * 60;
/// So many minutes may still change: an end is written soon after it came about.
const UNSETTLED: i64 = 3;
/// After so many minutes everything is counted anew: runs that ended while their service was away are written late.
const RECOUNT: i64 = 15;

/// How many jobs of each type have ended in each of the last 1440 minutes: each minute is counted once it has passed.
#[derive(Clone, Debug, Default)]
pub struct History {
    minutes: BTreeMap<i64, BTreeMap<String, Ended>>,
    types: BTreeSet<String>,
    counted_until: Option<i64>,
    all_counted: i64,
}

impl History {
    /// Whether bringing it up to date at `now` means to count a whole day, which takes a while after a busy one.
    #[must_use]
    pub fn is_far_behind(&self, now: Timestamp, types: &BTreeSet<String>) -> bool {
        let now = now.unix_millis() / MINUTE;
        let clock_was_set_back = self.counted_until.is_some_and(|counted| counted > now + 1);
        self.counted_until.is_none_or(|counted| now - counted > RECOUNT)
            || now - self.all_counted > RECOUNT
            || clock_was_set_back
            || !types.is_subset(&self.types)
    }

    /// Counts what has ended since the last time, or all of the last day where it is far behind.
    ///
    /// # Errors
    /// Where the database fails; then it stands as before.
    pub async fn update(&mut self, store: &Store, now: Timestamp, types: &BTreeSet<String>) -> Result<(), Error> {
        let everything = self.is_far_behind(now, types);
        let now = now.unix_millis() / MINUTE;
        let oldest = now - KEPT + 1;
        let from =
            self.counted_until.filter(|_| !everything).map_or(oldest, |counted| (counted - UNSETTLED).max(oldest));
        let counted = store.ended_by_minute(types, from, now + 1).await?;
        self.minutes.retain(|minute, _| (oldest..from).contains(minute));
        for ((name, minute), ended) in counted {
            self.minutes.entry(minute).or_default().insert(name, ended);
        }
        self.counted_until = Some(now);
        self.types.clone_from(types);
        if everything {
            self.all_counted = now;
        }
        Ok(())
    }

    /// What of this type (of all where `None`) ended in the last `minutes`, cut into `parts` stretches, the oldest first.
    #[must_use]
    pub fn ended(&self, of: Option<&str>, now: Timestamp, minutes: i64, parts: usize) -> Vec<Ended> {
        let end = now.unix_millis() / MINUTE + 1;
        let start = end - minutes;
        let mut stretches = vec![Ended::default(); parts.max(1)];
        for (minute, types) in self.minutes.range(start..end) {
            let part = usize::try_from((minute - start) * i64::try_from(parts).unwrap_or(1) / minutes).unwrap_or(0);
            let Some(stretch) = stretches.get_mut(part) else { continue };
            for (_, ended) in types.iter().filter(|(name, _)| of.is_none_or(|of| of == name.as_str())) {
                stretch.add(*ended);
            }
        }
        stretches
    }

    /// All of this type (of all where `None`) that ended in the last 24 hours.
    #[must_use]
    pub fn last_day(&self, of: Option<&str>, now: Timestamp) -> Ended {
        self.ended(of, now, KEPT, 1).first().copied().unwrap_or_default()
    }
}

fn counted(row: &Row<'_>, column: &str) -> Result<Count, Error> {
    let counted = u64::try_from(row.int(column)?).unwrap_or(0);
    Ok(Count { at_least: counted.min(COUNTED_UP_TO), or_more: counted > COUNTED_UP_TO })
}

fn queue(row: &Row<'_>, now: Timestamp) -> Result<Queue, Error> {
    Ok(Queue {
        job_type: row.some_text("type")?,
        paused: row.flag("paused")?,
        paused_time: row.maybe_time("paused_time")?,
        paused_by: row.text("paused_by")?,
        waiting: counted(row, "waiting")?,
        delayed: counted(row, "postponed")?,
        dependent: counted(row, "dependent")?,
        oldest_waiting: row.maybe_time("oldest")?.filter(|oldest| *oldest <= now),
        next_due: row.maybe_time("next_due")?,
        open: u64::try_from(row.int("open")?).unwrap_or(0),
    })
}

fn open_row(row: &Row<'_>) -> Result<OpenRow, Error> {
    Ok(OpenRow {
        id: row.job("id")?,
        job_type: row.some_text("type")?,
        identifier: row.some_text("identifier")?,
        status: row.status()?,
        attempt: row.attempt()?,
        worker_id: row.text("worker_id")?,
        progress: row.maybe_int("progress")?.map(|progress| u8::try_from(progress).unwrap_or(0)),
        status_message: row.text("status_message")?,
        queued_time: row.maybe_time("queued_time")?,
        started_time: row.maybe_time("started_time")?,
        heartbeat_time: row.maybe_time("heartbeat_time")?,
        cancel_requested: row.flag("cancel_requested")?,
    })
}

fn ended_row(row: &Row<'_>, with_error: bool) -> Result<EndedRow, Error> {
    Ok(EndedRow {
        id: row.job("id")?,
        job_type: row.some_text("type")?,
        identifier: row.some_text("identifier")?,
        status: row.status()?,
        attempt: row.attempt()?,
        started_time: row.maybe_time("started_time")?,
        completed_time: row.time("completed_time")?,
        execution_ms: row.maybe_int("execution_ms")?,
        error: if with_error { row.text("error")? } else { None },
    })
}
