//! Cancelling a job, and everything that is read for people.

use std::collections::BTreeMap;

use entity::{job_events, jobs, runs, workers};
use sea_orm::sea_query::{Alias, Expr, ExprTrait, Order, Query, SelectStatement};
use sea_orm::{ColumnTrait, ColumnType, EntityTrait, Iterable};

use super::connection::{Connection, Transaction};
use super::sql::{Dialect, Doing, OPEN, Row};
use super::update::{Rows, Update};
use super::{
    AFTER_OTHERS, CancelResult, Error, EventRow, FlowState, JobFilter, JobRow, KnownRun, OpenJob, Page, RunRow, Store,
    WorkerRow,
};
use crate::crash::{self, Step};
use crate::domain::labels::{Label, Labels};
use crate::domain::trace::{JobTrace, TraceContext};
use crate::domain::{FlowType, JobId, JobStatus, Timestamp, WorkerId};

/// Rows that are asked for by one statement.
const CHUNK: usize = 500;

impl Store {
    /// Asks to cancel a job: one that waits is CANCELLED at once, an open one by its worker. Wakes this process too.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn request_cancel(&self, job: JobId) -> Result<CancelResult, Error> {
        let result = self.in_time(CANCEL, self.retrying(|| self.cancel_once(job))).await?;
        self.changed_here();
        Ok(result)
    }

    async fn cancel_once(&self, job: JobId) -> Result<CancelResult, Error> {
        let transaction = self.begin(CANCEL).await?;
        let result = self.cancel_in(&transaction, job).await?;
        let outcome = match result {
            CancelResult::NotFound => "refused: there is no such job".to_owned(),
            CancelResult::Cancelled | CancelResult::Requested => "done".to_owned(),
            CancelResult::AlreadyRequested => "done: somebody had asked already".to_owned(),
            CancelResult::NotPossible(status) => format!("refused: it is {status}"),
        };
        self.deed(&transaction, "cancel", &format!("job {job}"), &outcome).await?;
        crash::before(Step::CancelCommit);
        transaction.commit().await.doing(CANCEL)?;
        crash::after(Step::CancelCommit);
        Ok(result)
    }

    async fn cancel_in(&self, transaction: &Transaction, job: JobId) -> Result<CancelResult, Error> {
        let dialect = self.dialect();
        let now = self.time(transaction).await?;
        // Every service is to hear of it, this one's own too, so the notice names no instance.
        let tell = dialect.pick("attempt", "attempt, CAST(pg_notify('callsheet', '') AS text) AS told", "attempt");
        let values = || vec![job.0.into(), now.unix_millis().into()];
        let set =
            format!("{}, cancel_requested_time = COALESCE(cancel_requested_time, $2)", super::claim::CANCEL_PENDING);
        let waiting = format!("id = $1 AND {}", dialect.of_named("status = 'PENDING'"));
        let pending = Update { table: "jobs", set: &set, rows: Rows::Where(&waiting), returning: tell };
        if let Some(result) = self.update(transaction, CANCEL, &pending, values()).await?.first() {
            let attempt = Row { result, dialect }.attempt()?;
            self.note_cancelled(transaction, &[(job, attempt)], now).await?;
            return Ok(CancelResult::Cancelled);
        }
        let unasked = format!("id = $1 AND {} AND cancel_requested_time IS NULL", dialect.of_named(OPEN));
        let rows = Rows::Where(&unasked);
        let open = Update { table: "jobs", set: "cancel_requested_time = $2", rows, returning: tell };
        if !self.update(transaction, CANCEL, &open, values()).await?.is_empty() {
            return Ok(CancelResult::Requested);
        }
        let select = format!("SELECT {} FROM jobs WHERE id = $1", dialect.text("status"));
        let Some(result) = transaction.query_one(self.statement(select, [job.0.into()])).await.doing(CANCEL)? else {
            return Ok(CancelResult::NotFound);
        };
        let status = Row { result: &result, dialect }.status()?;
        Ok(if status.is_final() { CancelResult::NotPossible(status) } else { CancelResult::AlreadyRequested })
    }

    /// One job.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn job(&self, id: JobId) -> Result<Option<JobRow>, Error> {
        let mut query = select::<jobs::Entity>(self.dialect());
        query.and_where(jobs::Column::Id.eq(id.0));
        Ok(self.rows(&query, job_row).await?.pop())
    }

    /// These jobs, as far as there are such, in no order.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn jobs(&self, ids: &[JobId]) -> Result<Vec<JobRow>, Error> {
        let mut rows = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(CHUNK) {
            let mut query = select::<jobs::Entity>(self.dialect());
            query.and_where(jobs::Column::Id.is_in(chunk.iter().map(|id| id.0)));
            rows.extend(self.rows(&query, job_row).await?);
        }
        Ok(rows)
    }

    /// The runs of a job, the first attempt first.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn runs(&self, job: JobId) -> Result<Vec<RunRow>, Error> {
        let mut query = select::<runs::Entity>(self.dialect());
        query.and_where(runs::Column::JobId.eq(job.0)).order_by(runs::Column::Id, Order::Asc);
        self.rows(&query, run_row).await
    }

    /// What is known of the runs of these jobs, as far as matters for whether their files may go; claimed ones, which may have
    /// files and no row yet, are among them.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn known_runs(&self, jobs: &[JobId]) -> Result<Vec<KnownRun>, Error> {
        let ids: Vec<i64> = jobs.iter().map(|job| job.0).collect();
        let mut query = select::<runs::Entity>(self.dialect());
        query.and_where(runs::Column::JobId.is_in(ids.clone()));
        let mut known = self.rows(&query, known_run).await?;
        // Read after the runs: what is claimed meanwhile is then certainly seen.
        let mut query = select::<jobs::Entity>(self.dialect());
        query.and_where(jobs::Column::Id.is_in(ids)).and_where(Expr::cust(OPEN));
        for job in self.rows(&query, job_row).await? {
            known.extend(job.run_token.map(|run_token| KnownRun { job: job.id, run_token, ended: None }));
        }
        Ok(known)
    }

    /// The status changes of a job, the first one first.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn events(&self, job: JobId) -> Result<Vec<EventRow>, Error> {
        let mut query = select::<job_events::Entity>(self.dialect());
        query.and_where(job_events::Column::JobId.eq(job.0)).order_by(job_events::Column::Id, Order::Asc);
        self.rows(&query, event_row).await
    }

    /// The workers, in the order of their names.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn workers(&self) -> Result<Vec<WorkerRow>, Error> {
        let mut query = select::<workers::Entity>(self.dialect());
        let mut runs = Query::select();
        runs.expr(Expr::col(jobs::Column::Id).count()).from(jobs::Entity);
        // In words, or SQLite does not see that the index of open rows has them all.
        runs.and_where(Expr::cust(OPEN));
        runs.and_where(
            Expr::col((jobs::Entity, jobs::Column::WorkerId)).equals((workers::Entity, workers::Column::WorkerId)),
        );
        query.expr_as(Expr::SubQuery(None, Box::new(runs.into())), Alias::new("runs"));
        query.order_by(workers::Column::WorkerId, Order::Asc);
        self.rows(&query, worker_row).await
    }

    /// The labels of each worker that lives.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn labels_alive(&self) -> Result<Vec<Labels>, Error> {
        let (now, workers) = tokio::try_join!(self.now(), self.workers())?;
        Ok(workers.into_iter().filter(|worker| worker.is_live(now)).map(|worker| worker.labels).collect())
    }

    /// Lists jobs, newest first. Rows that are added meanwhile move no page: the cursor is an id, not a count.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn list(&self, filter: &JobFilter) -> Result<Page<JobRow>, Error> {
        self.page(filter, select::<jobs::Entity>(self.dialect()), job_row).await
    }

    /// Id and status of the jobs that `filter` means, as [`Store::list`] gives them.
    pub(super) async fn matching_ids(&self, filter: &JobFilter) -> Result<Page<(JobId, JobStatus)>, Error> {
        let mut query = Query::select();
        query.from(jobs::Entity).column(jobs::Column::Id);
        match text_type(self.dialect()) {
            Some(cast) => query.expr_as(Expr::col(jobs::Column::Status).cast_as(cast), jobs::Column::Status),
            None => query.column(jobs::Column::Status),
        };
        self.page(filter, query, |row| Ok((row.job("id")?, row.status()?))).await
    }

    /// The rows that a filter means, as `query` reads them: their ids are found along indexes first, since no plan for all
    /// of it at once reads less than all rows of a type. One whose status has changed in between is left out.
    async fn page<T>(
        &self,
        filter: &JobFilter,
        mut query: SelectStatement,
        read: fn(&Row<'_>) -> Result<T, Error>,
    ) -> Result<Page<T>, Error> {
        let limit = filter.limit.clamp(1, 1000);
        // One more than asked for says whether there is another page.
        let mut ids = self.in_time("list jobs", self.ids_matching(filter, limit + 1)).await?;
        let whole = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = ids.len() > whole;
        ids.truncate(whole);
        let next_cursor = ids.last().copied().map(JobId).filter(|_| more);
        query.and_where(jobs::Column::Id.is_in(ids));
        if !filter.statuses.is_empty() {
            let statuses = filter.statuses.iter().map(|&status| entity_status(status));
            query.and_where(jobs::Column::Status.is_in(statuses));
        }
        query.order_by(jobs::Column::Id, Order::Desc);
        Ok(Page { rows: self.rows(&query, read).await?, next_cursor })
    }

    /// The claimed and running rows that a worker has to account for when it starts: its own and nobody's; on SQLite,
    /// which has one worker, all.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn open_jobs(&self, worker: &WorkerId, flow: Option<&FlowType>) -> Result<Vec<OpenJob>, Error> {
        const ACTION: &str = "read the open jobs";
        let dialect = self.dialect();
        let columns = ["type", "status", "run_token", "worker_id", "identifier", "traceparent", "tracestate"]
            .map(|column| format!("{} AS {column}", dialect.as_text(&format!("jobs.{column}"))));
        let by_open = dialect.by_index("jobs_open");
        let select = format!(
            "SELECT jobs.id, jobs.attempt, jobs.attempts_before, jobs.maximum_attempts, jobs.run_at, jobs.created_time, jobs.schedule_time, \
             jobs.queued_time, jobs.cancel_requested_time, jobs.started_time, runs.pid, {} \
             FROM jobs {by_open} LEFT JOIN runs ON runs.run_token = jobs.run_token AND runs.job_id = jobs.id \
             WHERE jobs.{OPEN} AND {} AND {} ORDER BY jobs.id",
            columns.join(", "),
            if flow.is_some() { "jobs.type = $2" } else { "$2 IS NULL" },
            if dialect.is_shared() { "(jobs.worker_id = $1 OR jobs.worker_id IS NULL)" } else { "$1 IS NOT NULL" },
        );
        let values = [worker.as_str().into(), flow.map(FlowType::as_str).into()];
        let query = async {
            let results = self.reader().query_all(self.statement(select, values)).await.doing(ACTION)?;
            results.iter().map(|result| open_job(&Row { result, dialect })).collect()
        };
        self.in_time(ACTION, query).await
    }

    /// How the queues stand: every type that has a row in `flows` or a row that has not ended. Reads no ended row.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn flow_states(&self) -> Result<Vec<FlowState>, Error> {
        const ACTION: &str = "read how the queues stand";
        let dialect = self.dialect();
        let select = format!(
            "SELECT {} AS type, CAST(max(paused) AS bigint) AS paused, max(paused_time) AS paused_time, \
             {} AS paused_by, CAST(sum(pending) AS bigint) AS pending, \
             CAST(sum(runnable) AS bigint) AS runnable, CAST(sum(dependent) AS bigint) AS dependent, min(oldest) AS oldest, CAST(sum(inqueue) AS bigint) AS inqueue, \
             CAST(sum(progress) AS bigint) AS progress FROM (\
             SELECT type, CASE WHEN paused THEN 1 ELSE 0 END AS paused, CASE WHEN paused THEN paused_time END AS paused_time, \
             CASE WHEN paused THEN paused_by END AS paused_by, 0 AS pending, 0 AS runnable, 0 AS dependent, CAST(NULL AS bigint) AS oldest, 0 AS inqueue, 0 AS progress FROM flows \
             UNION ALL SELECT type, 0, NULL, NULL, count(*), sum(CASE WHEN run_at <= $1 THEN 1 ELSE 0 END), \
             sum(CASE WHEN run_at >= {} THEN 1 ELSE 0 END), min(run_at), 0, 0 \
             FROM jobs {} WHERE status = 'PENDING' GROUP BY type \
             UNION ALL SELECT type, 0, NULL, NULL, 0, 0, 0, NULL, sum(CASE WHEN status = 'INQUEUE' THEN 1 ELSE 0 END), \
             sum(CASE WHEN status = 'PROGRESS' THEN 1 ELSE 0 END) FROM jobs {} WHERE {OPEN} GROUP BY type) AS parts \
             GROUP BY type ORDER BY type",
            dialect.as_text("type"),
            dialect.as_text("max(paused_by)"),
            AFTER_OTHERS.unix_millis(),
            dialect.by_index("jobs_due"),
            dialect.by_index("jobs_open"),
        );
        let query = async {
            let now = self.time(self.reader()).await?;
            let statement = self.statement(select, [now.unix_millis().into()]);
            let results = self.reader().query_all(statement).await.doing(ACTION)?;
            results.iter().map(|result| flow_state(&Row { result, dialect }, now)).collect()
        };
        self.in_time(ACTION, query).await
    }

    /// The types that rows which wait have as bytes (a BLOB of SQLite) rather than as a text, and how many have each: no claim
    /// finds them, since bytes equal no text.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn types_in_bytes(&self) -> Result<BTreeMap<String, u64>, Error> {
        const ACTION: &str = "look for types that are no texts";
        let dialect = self.dialect();
        if dialect != Dialect::Sqlite {
            return Ok(BTreeMap::new());
        }
        // Bytes come behind all texts, so the index leads there at once (<https://www.sqlite.org/datatype3.html#sort_order>).
        let select = format!(
            "SELECT {}, CAST(count(*) AS bigint) AS waiting FROM jobs {} WHERE status = 'PENDING' AND type >= x'' GROUP BY jobs.type",
            dialect.text("type"),
            dialect.by_index("jobs_due")
        );
        let query = async {
            let results = self.reader().query_all(self.statement(select, [])).await.doing(ACTION)?;
            let read = |result| {
                let row = Row { result, dialect };
                Ok((row.some_text("type")?, u64::try_from(row.int("waiting")?).unwrap_or(0)))
            };
            results.iter().map(read).collect()
        };
        self.in_time(ACTION, query).await
    }

    pub(super) async fn rows<T>(
        &self,
        query: &SelectStatement,
        read: fn(&Row<'_>) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        const ACTION: &str = "read rows";
        let query = async {
            let results = self.reader().query_all(self.dialect().built(query)).await.doing(ACTION)?;
            results.iter().map(|result| read(&Row { result, dialect: self.dialect() })).collect()
        };
        self.in_time(ACTION, query).await
    }
}

const CANCEL: &str = "cancel a job";

/// All columns of a table, its texts in the shape that [`Row::text`] reads.
pub(super) fn select<E: EntityTrait>(dialect: Dialect) -> SelectStatement {
    select_but::<E>(dialect, None)
}

/// The same, with NULL for the column that is not wanted.
pub(super) fn select_but<E: EntityTrait>(dialect: Dialect, unwanted: Option<E::Column>) -> SelectStatement {
    let unwanted = unwanted.map(|column| sea_orm::IdenStatic::as_str(&column));
    let mut query = Query::select();
    query.from(E::default());
    for column in E::Column::iter() {
        let column_name = sea_orm::IdenStatic::as_str(&column);
        let name = Alias::new(column_name);
        if unwanted == Some(column_name) {
            query.expr_as(Expr::cust("NULL"), name);
            continue;
        }
        match column.def().get_column_type() {
            ColumnType::Text | ColumnType::String(_) => match text_type(dialect) {
                Some(cast) => query.expr_as(Expr::col(name.clone()).cast_as(cast), name),
                None => query.column(name),
            },
            _ => query.column(name),
        };
    }
    query
}

/// The type that a text is read as, see [`Dialect::as_text`]; `None` for its own.
fn text_type(dialect: Dialect) -> Option<Alias> {
    match dialect {
        Dialect::Sqlite => Some(Alias::new("BLOB")),
        Dialect::Postgres => Some(Alias::new("text")),
        Dialect::MySql => None,
    }
}

pub(super) fn entity_status(status: JobStatus) -> jobs::Status {
    match status {
        JobStatus::Pending => jobs::Status::Pending,
        JobStatus::InQueue => jobs::Status::InQueue,
        JobStatus::Progress => jobs::Status::Progress,
        JobStatus::Completed => jobs::Status::Completed,
        JobStatus::Error => jobs::Status::Error,
        JobStatus::Cancelled => jobs::Status::Cancelled,
    }
}

pub(super) fn job_row(row: &Row<'_>) -> Result<JobRow, Error> {
    Ok(JobRow {
        id: row.job("id")?,
        job_type: row.some_text("type")?,
        identifier: row.some_text("identifier")?,
        payload: row.text("payload")?,
        status: row.status()?,
        priority: row.int("priority")?,
        run_at: row.time("run_at")?,
        attempt: row.attempt()?,
        maximum_attempts: row.maximum_attempts()?,
        unique_key: row.text("unique_key")?,
        worker_id: row.text("worker_id")?,
        run_token: row.text("run_token")?,
        cancel_requested_time: row.maybe_time("cancel_requested_time")?,
        progress: row.maybe_int("progress")?.map(|progress| u8::try_from(progress).unwrap_or(0)),
        status_message: row.text("status_message")?,
        error: row.text("error")?,
        exit_code: row.maybe_int("exit_code")?,
        created_time: row.time("created_time")?,
        queued_time: row.maybe_time("queued_time")?,
        started_time: row.maybe_time("started_time")?,
        heartbeat_time: row.maybe_time("heartbeat_time")?,
        completed_time: row.maybe_time("completed_time")?,
        execution_ms: row.maybe_int("execution_ms")?,
        traceparent: row.text("traceparent")?,
        tracestate: row.text("tracestate")?,
    })
}

fn known_run(row: &Row<'_>) -> Result<KnownRun, Error> {
    let run = run_row(row)?;
    // One that has ended has both; one that anybody wrote otherwise counts as open, which keeps its files.
    let ended = run.outcome.and(run.completed_time);
    Ok(KnownRun { job: run.job_id, run_token: run.run_token, ended })
}

fn run_row(row: &Row<'_>) -> Result<RunRow, Error> {
    Ok(RunRow {
        id: row.int("id")?,
        job_id: row.job("job_id")?,
        attempt: row.attempt()?,
        run_token: row.some_text("run_token")?,
        worker_id: row.text("worker_id")?,
        pid: row.maybe_int("pid")?,
        started_time: row.maybe_time("started_time")?,
        completed_time: row.maybe_time("completed_time")?,
        outcome: row.text("outcome")?,
        exit_code: row.maybe_int("exit_code")?,
        signal: row.maybe_int("signal")?,
        error: row.text("error")?,
        user_cpu_ms: row.maybe_int("user_cpu_ms")?,
        system_cpu_ms: row.maybe_int("system_cpu_ms")?,
        max_rss_bytes: row.maybe_int("max_rss_bytes")?,
        io_read_bytes: row.maybe_int("io_read_bytes")?,
        io_write_bytes: row.maybe_int("io_write_bytes")?,
        slot: row.text("slot")?,
    })
}

pub(super) fn event_row(row: &Row<'_>) -> Result<EventRow, Error> {
    Ok(EventRow {
        id: row.int("id")?,
        job_id: row.job("job_id")?,
        attempt: row.attempt()?,
        from_status: row.text("from_status")?,
        to_status: row.some_text("to_status")?,
        time: row.time("time")?,
        worker_id: row.text("worker_id")?,
        message: row.text("message")?,
    })
}

fn worker_row(row: &Row<'_>) -> Result<WorkerRow, Error> {
    Ok(WorkerRow {
        worker_id: row.some_text("worker_id")?,
        incarnation: row.some_text("incarnation")?,
        hostname: row.some_text("hostname")?,
        version: row.some_text("version")?,
        state: row.some_text("state")?,
        started_time: row.time("started_time")?,
        heartbeat_time: row.time("heartbeat_time")?,
        drain_requested_time: row.maybe_time("drain_requested_time")?,
        drain_requested_by: row.text("drain_requested_by")?,
        labels: labels(row.text("labels")?.as_deref()),
        address: row.text("address")?,
        runs: u64::try_from(row.int("runs")?).unwrap_or(0),
    })
}

/// The list that a worker has written; what somebody else wrote there counts for nothing.
fn labels(list: Option<&str>) -> Labels {
    let words = list.and_then(|list| serde_json::from_str::<Vec<String>>(list).ok()).unwrap_or_default();
    words.iter().filter_map(|word| word.parse::<Label>().ok()).collect()
}

fn open_job(row: &Row<'_>) -> Result<OpenJob, Error> {
    let (run_at, created_time) = (row.time("run_at")?, row.time("created_time")?);
    let id = row.job("id")?;
    let trace = TraceContext::read(row.text("traceparent")?.as_deref(), row.text("tracestate")?.as_deref());
    Ok(OpenJob {
        id,
        job_type: row.some_text("type")?,
        status: row.status()?,
        token: row.token()?,
        attempt: row.attempt()?,
        attempts_before: row.count("attempts_before")?,
        worker_id: row.text("worker_id")?,
        identifier: row.identifier()?,
        maximum_attempts: row.maximum_attempts()?,
        schedule_time: row.maybe_time("schedule_time")?.unwrap_or(created_time.max(run_at)),
        created_time,
        runnable_since: created_time.max(run_at),
        queued_time: row.maybe_time("queued_time")?,
        trace: JobTrace::of(id, created_time, trace),
        cancel_requested: row.maybe_int("cancel_requested_time")?.is_some(),
        started_time: row.maybe_time("started_time")?,
        pid: row.maybe_int("pid")?.and_then(|pid| i32::try_from(pid).ok()),
    })
}

fn flow_state(row: &Row<'_>, now: Timestamp) -> Result<FlowState, Error> {
    let count = |column| Ok::<_, Error>(u64::try_from(row.int(column)?).unwrap_or(0));
    Ok(FlowState {
        job_type: row.some_text("type")?,
        paused: row.flag("paused")?,
        paused_time: row.maybe_time("paused_time")?,
        paused_by: row.text("paused_by")?,
        pending: count("pending")?,
        runnable: count("runnable")?,
        dependent: count("dependent")?,
        inqueue: count("inqueue")?,
        progress: count("progress")?,
        oldest_pending: row.maybe_time("oldest")?.filter(|oldest| *oldest <= now),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sea_orm::ActiveEnum;

    #[test]
    fn the_stored_word_of_every_status_is_the_one_of_the_contract() {
        for status in JobStatus::ALL {
            let word = entity_status(status).to_value();
            assert_eq!(word, status.as_str());
            assert_eq!(jobs::Status::try_from_value(&word).unwrap(), entity_status(status));
        }
        assert_eq!(jobs::Status::iter().count(), JobStatus::ALL.len());
    }
}
