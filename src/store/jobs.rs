//! Enqueueing, cancelling, and everything that is read for people.

use std::collections::{BTreeMap, BTreeSet};

use entity::{job_events, jobs, runs, workers};
use sea_orm::sea_query::{Alias, Expr, ExprTrait, Order, Query, SelectStatement};
use sea_orm::{ColumnTrait, ColumnType, DbErr, EntityTrait, Iterable, Value};
use serde::Serialize;

use super::change::Parameters;
use super::connection::{Connection, Transaction};
use super::sql::{Dialect, Doing, OPEN, OPEN_OR_PENDING, Row};
use super::update::{Rows, Update};
use super::{
    CancelResult, Due, Enqueued, Error, EventRow, FlowState, JobFilter, JobRow, KnownRun, NewJob, OpenJob, Page,
    RunRow, Store, WorkerRow, error,
};
use crate::crash::{self, Step};
use crate::domain::labels::{Label, Labels};
use crate::domain::trace::{JobTrace, TraceContext, TraceState};
use crate::domain::{FlowType, JobId, JobStatus, Timestamp, WorkerId};

/// Rows that are asked for by one statement.
const CHUNK: usize = 500;
/// Rows that one statement inserts at most. One of 5,000 rows takes PostgreSQL a fifth less for each than ten of 500.
const LARGEST_INSERT: usize = 5_000;
/// The same on MySQL, where each value is a parameter and a statement has 65,535 at most.
const LARGEST_MYSQL_INSERT: usize = 500;
/// Bytes of texts that one statement brings at most.
const CHUNK_BYTES: usize = 8 << 20;

/// A new row, as the element of a list that a statement inserts from. What is not said is left out: the databases take as long to
/// read a null as a value.
#[derive(Serialize)]
struct NewItem<'a> {
    r#type: &'a str,
    identifier: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    priority: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    maximum_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracestate: Option<&'a str>,
}

impl<'a> NewItem<'a> {
    fn of(job: &'a NewJob) -> Self {
        let (run_at, delay) = match job.due {
            Due::At(time) => (Some(time.unix_millis()), None),
            Due::After(delay) => (None, Some(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX / 4))),
        };
        Self {
            r#type: job.flow.as_str(),
            identifier: &job.identifier,
            payload: job.payload.as_deref(),
            priority: job.priority,
            run_at,
            delay,
            maximum_attempts: job.maximum_attempts,
            unique_key: job.unique_key.as_deref(),
            traceparent: job.trace.as_ref().map(|trace| trace.parent.to_string()),
            tracestate: job.trace.as_ref().and_then(|trace| trace.state.as_ref()).map(TraceState::as_str),
        }
    }
}

/// The columns of new rows, but for the one in which they differ.
const SAME: [(&str, &str); 9] = [
    ("type", "text"),
    ("payload", "text"),
    ("priority", "bigint"),
    ("run_at", "bigint"),
    ("delay", "bigint"),
    ("maximum_attempts", "bigint"),
    ("unique_key", "text"),
    ("traceparent", "text"),
    ("tracestate", "text"),
];

/// The new rows as a table `item`, and the values of its parameters; MySQL has a way of its own ([`Store::insert_values`]).
///
/// Rows that differ in nothing but their identifiers, as those of a file do, are a list of these: to read a list of rows takes
/// PostgreSQL 4 µs for each, a sixth of all that it does with a row.
fn source(dialect: Dialect, new: &[NewJob]) -> Result<(String, Vec<Value>), DbErr> {
    let json = |list: serde_json::Result<String>| list.map_err(|error| DbErr::Json(error.to_string()));
    let Some(first) = new.first().filter(|first| new.iter().all(|job| is_like(first, job))) else {
        let items: Vec<NewItem<'_>> = new.iter().map(NewItem::of).collect();
        let columns = [&[("identifier", "text")], &SAME[..]].concat();
        return Ok((dialect.items("$1", &columns), vec![json(serde_json::to_string(&items))?.into()]));
    };
    let same = NewItem::of(first);
    let identifiers = json(serde_json::to_string(&new.iter().map(|job| &job.identifier).collect::<Vec<_>>()))?;
    let values = vec![
        identifiers.into(),
        same.r#type.into(),
        same.payload.into(),
        i64::from(same.priority).into(),
        same.run_at.into(),
        same.delay.into(),
        same.maximum_attempts.map(i64::from).into(),
        same.unique_key.into(),
        same.traceparent.into(),
        same.tracestate.into(),
    ];
    let columns = SAME.iter().zip(2..).map(|((name, kind), number)| format!("CAST(${number} AS {kind}) AS {name}"));
    let list = dialect.pick("json_each($1)", "json_array_elements_text(CAST($1 AS json)) AS list(value)", "");
    let source =
        format!("(SELECT value AS identifier, {} FROM {list}) AS item", columns.collect::<Vec<_>>().join(", "));
    Ok((source, values))
}

/// Whether these differ in their identifiers at most; each key is its row's own.
fn is_like(one: &NewJob, other: &NewJob) -> bool {
    let NewJob { flow, identifier: _, payload, priority, due, maximum_attempts, unique_key, trace } = one;
    unique_key.is_none()
        && other.unique_key.is_none()
        && (flow, priority, due, maximum_attempts, payload, trace)
            == (&other.flow, &other.priority, &other.due, &other.maximum_attempts, &other.payload, &other.trace)
}

impl Store {
    /// Enqueues jobs, all of them or none, and answers in their order. Wakes this process too.
    ///
    /// # Errors
    /// [`Error::NulCharacter`] and [`Error::TooLarge`] before anything is written; else where the database fails.
    pub async fn enqueue(&self, new: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
        self.enqueue_after(new, &BTreeMap::new()).await
    }

    /// [`Store::enqueue`], with what jobs wait for by their places in `new`: one is runnable once all of those are
    /// COMPLETED, and ends as ERROR where one of them ends otherwise. One that is there already is left as it is.
    ///
    /// # Errors
    /// [`Error::NothingToWaitFor`] before anything is written; else those of [`Store::enqueue`].
    pub async fn enqueue_after(
        &self,
        new: &[NewJob],
        after: &BTreeMap<usize, Vec<JobId>>,
    ) -> Result<Vec<Enqueued>, Error> {
        for job in new {
            let texts = [
                ("identifier", Some(&job.identifier)),
                ("payload", job.payload.as_ref()),
                ("unique_key", job.unique_key.as_ref()),
            ];
            if let Some((field, _)) = texts.into_iter().find(|(_, text)| text.is_some_and(|text| text.contains('\0'))) {
                return Err(Error::NulCharacter { field });
            }
        }
        let enqueued = self.in_time(ENQUEUE, self.retrying(|| self.enqueue_once(new, after))).await?;
        self.changed_here();
        Ok(enqueued)
    }

    async fn enqueue_once(&self, new: &[NewJob], after: &BTreeMap<usize, Vec<JobId>>) -> Result<Vec<Enqueued>, Error> {
        let transaction = self.begin(ENQUEUE).await?;
        let awaited: Vec<JobId> = after.values().flatten().copied().collect::<BTreeSet<_>>().into_iter().collect();
        if let Some(job) = self.first_missing(&transaction, &awaited).await? {
            return Err(Error::NothingToWaitFor { job });
        }
        let keyed = new.iter().filter(|job| job.unique_key.is_some()).map(|job| job.flow.as_str()).collect();
        self.lock_keys(&transaction, keyed).await?;
        let mut enqueued = Vec::with_capacity(new.len());
        let most_rows = if self.dialect() == Dialect::MySql { LARGEST_MYSQL_INSERT } else { LARGEST_INSERT };
        let at_once = self.at_once(&transaction, new).await?;
        let mut rest = new;
        while !rest.is_empty() {
            let (jobs, others) = rest.split_at(of_one_statement(rest, most_rows, at_once));
            rest = others;
            let ids = self.insert(&transaction, jobs).await?;
            match jobs {
                [job] if ids.is_empty() => enqueued.push(self.holder_or_insert(&transaction, job).await?),
                _ => enqueued.extend(ids.into_iter().map(|id| Enqueued { id, existing: false })),
            }
        }
        let mut pairs = BTreeSet::new();
        for (place, after) in after {
            if let Some(job) = enqueued.get(*place).filter(|job| !job.existing) {
                pairs.extend(after.iter().map(|after| (job.id, *after)));
            }
        }
        self.make_wait(&transaction, &pairs).await?;
        self.deed(&transaction, "enqueue", &enqueued_target(new, &enqueued), "done").await?;
        crash::before(Step::EnqueueCommit);
        transaction.commit().await.doing(ENQUEUE)?;
        crash::after(Step::EnqueueCommit);
        Ok(enqueued)
    }

    /// How many bytes of texts may go into one statement. MySQL ends the connection that brings it more than it takes, which
    /// would look like a server that is not there.
    async fn at_once(&self, transaction: &Transaction, new: &[NewJob]) -> Result<usize, Error> {
        /// A batch of so little is never too much: the least that anybody sets in earnest.
        const LITTLE: usize = 512 << 10;
        /// What a row has beside its texts, by far.
        const BESIDE: usize = 4 << 10;
        if self.dialect() != Dialect::MySql || new.iter().map(bytes_of).sum::<usize>() < LITTLE {
            return Ok(CHUNK_BYTES);
        }
        let select = self.statement("SELECT CAST(@@max_allowed_packet AS bigint) AS most", []);
        let result = transaction.query_one(select).await.doing(ENQUEUE)?;
        let most = result.map_or(Ok(0), |result| Row { result: &result, dialect: self.dialect() }.int("most"))?;
        let most = usize::try_from(most).unwrap_or_default();
        match new.iter().map(bytes_of).find(|bytes| bytes + BESIDE > most) {
            Some(bytes) => Err(Error::TooLarge { bytes, most }),
            None => Ok(CHUNK_BYTES.min(most / 2)),
        }
    }

    /// Lets batches with keys of one flow follow one another on a server: two that have the same keys in another order would
    /// wait for each other until the server ends one of them, PostgreSQL a second later.
    pub(super) async fn lock_keys(&self, transaction: &Transaction, flows: BTreeSet<&str>) -> Result<(), Error> {
        for flow in flows {
            let (lock, name) = match self.dialect() {
                Dialect::Sqlite => return Ok(()),
                Dialect::Postgres => (
                    "SELECT CAST(pg_advisory_xact_lock(hashtextextended($1, 1)) AS text) AS locked",
                    format!("callsheet unique keys of {flow}"),
                ),
                // Its own locks by name outlast a transaction; that of a row does not.
                Dialect::MySql => {
                    ("INSERT INTO unique_keys (type) VALUES ($1) ON CONFLICT (type) DO NOTHING", flow.to_owned())
                }
            };
            transaction.execute(self.statement(lock, [name.into()])).await.doing(ENQUEUE)?;
        }
        Ok(())
    }

    pub(super) async fn insert(&self, transaction: &Transaction, new: &[NewJob]) -> Result<Vec<JobId>, Error> {
        let dialect = self.dialect();
        if dialect == Dialect::MySql {
            return self.insert_values(transaction, new).await;
        }
        let (source, values) = source(dialect, new).doing(ENQUEUE)?;
        // Only where it may be needed: PostgreSQL writes such a row twice, first as one that may be taken back.
        let conflict = if new.iter().any(|job| job.unique_key.is_some()) {
            format!(
                "WHERE true ON CONFLICT (type, unique_key) WHERE unique_key IS NOT NULL AND {OPEN_OR_PENDING} DO NOTHING"
            )
        } else {
            String::new()
        };
        let insert = format!(
            "INSERT INTO jobs (type, identifier, payload, priority, run_at, maximum_attempts, unique_key, \
             traceparent, tracestate) SELECT item.type, item.identifier, {}, item.priority, COALESCE(item.run_at, {} + item.delay), \
             item.maximum_attempts, item.unique_key, item.traceparent, item.tracestate FROM {source} {conflict} RETURNING id",
            dialect.pick("item.payload", "item.payload::json", "item.payload"),
            dialect.now(),
        );
        let results = transaction.query_all(self.statement(insert, values)).await.doing(ENQUEUE)?;
        let mut ids = Vec::with_capacity(results.len());
        for result in &results {
            ids.push(Row { result, dialect }.job("id")?);
        }
        // Neither database promises the order of what it returns, but both number rows in the order of the list.
        ids.sort_unstable();
        Ok(ids)
    }

    /// The same on MySQL, which tells only the first id of a statement; the others follow it at even distances, in all of its
    /// ways to number rows, if the statement says how many there are
    /// (<https://dev.mysql.com/doc/refman/8.0/en/innodb-auto-increment-handling.html>, "simple inserts").
    async fn insert_values(&self, transaction: &Transaction, new: &[NewJob]) -> Result<Vec<JobId>, Error> {
        let (mut values, mut rows) = (Parameters::default(), Vec::with_capacity(new.len()));
        for job in new {
            let run_at = match job.due {
                Due::At(time) => values.add(time.unix_millis()),
                Due::After(delay) => {
                    let delay = values.add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX / 4));
                    format!("{} + {delay}", self.dialect().now())
                }
            };
            let columns = [
                values.add(job.flow.as_str()),
                values.add(job.identifier.as_str()),
                values.add(job.payload.as_deref()),
                values.add(job.priority),
                run_at,
                values.add(job.maximum_attempts.map(i64::from)),
                values.add(job.unique_key.as_deref()),
                values.add(job.trace.as_ref().map(|trace| trace.parent.to_string())),
                values.add(job.trace.as_ref().and_then(|trace| trace.state.as_ref()).map(TraceState::as_str)),
            ];
            rows.push(format!("({})", columns.join(", ")));
        }
        let insert = format!(
            "INSERT INTO jobs (type, identifier, payload, priority, run_at, maximum_attempts, unique_key, \
             traceparent, tracestate) VALUES {}",
            rows.join(", ")
        );
        let inserted = match transaction.execute(self.statement(insert, values.values)).await.doing(ENQUEUE) {
            // Only the statement is taken back; and only a row with a key, which is alone, can meet another one.
            Err(error) if error::is_duplicate(&error) => return Ok(Vec::new()),
            inserted => inserted?,
        };
        let first = i64::try_from(inserted.last_insert_id).unwrap_or_default();
        let step = match new {
            [_] => 1,
            _ => {
                let select = self.statement("SELECT CAST(@@auto_increment_increment AS bigint) AS step", []);
                let result = transaction.query_one(select).await.doing(ENQUEUE)?;
                result.map_or(Ok(1), |result| Row { result: &result, dialect: self.dialect() }.int("step"))?
            }
        };
        Ok((0..)
            .step_by(usize::try_from(step).unwrap_or(1).max(1))
            .take(new.len())
            .map(|n: i64| JobId(first + n))
            .collect())
    }

    /// The open row with this key. It may end between the two statements on PostgreSQL; then its key is free again.
    async fn holder_or_insert(&self, transaction: &Transaction, job: &NewJob) -> Result<Enqueued, Error> {
        let dialect = self.dialect();
        let key = dialect.open_key();
        let select = format!("SELECT id FROM jobs WHERE type = $1 AND {key} = $2 AND {OPEN_OR_PENDING}");
        loop {
            let values = [job.flow.as_str().into(), job.unique_key.clone().into()];
            if let Some(result) = transaction.query_one(self.statement(select.clone(), values)).await.doing(ENQUEUE)? {
                return Ok(Enqueued { id: Row { result: &result, dialect }.job("id")?, existing: true });
            }
            if let Some(&id) = self.insert(transaction, std::slice::from_ref(job)).await?.first() {
                return Ok(Enqueued { id, existing: false });
            }
        }
    }

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
             CAST(sum(runnable) AS bigint) AS runnable, min(oldest) AS oldest, CAST(sum(inqueue) AS bigint) AS inqueue, \
             CAST(sum(progress) AS bigint) AS progress FROM (\
             SELECT type, CASE WHEN paused THEN 1 ELSE 0 END AS paused, CASE WHEN paused THEN paused_time END AS paused_time, \
             CASE WHEN paused THEN paused_by END AS paused_by, 0 AS pending, 0 AS runnable, CAST(NULL AS bigint) AS oldest, 0 AS inqueue, 0 AS progress FROM flows \
             UNION ALL SELECT type, 0, NULL, NULL, count(*), sum(CASE WHEN run_at <= $1 THEN 1 ELSE 0 END), min(run_at), 0, 0 \
             FROM jobs {} WHERE status = 'PENDING' GROUP BY type \
             UNION ALL SELECT type, 0, NULL, NULL, 0, 0, NULL, sum(CASE WHEN status = 'INQUEUE' THEN 1 ELSE 0 END), \
             sum(CASE WHEN status = 'PROGRESS' THEN 1 ELSE 0 END) FROM jobs {} WHERE {OPEN} GROUP BY type) AS parts \
             GROUP BY type ORDER BY type",
            dialect.as_text("type"),
            dialect.as_text("max(paused_by)"),
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

/// What an enqueue was about, for the audit trail.
fn enqueued_target(new: &[NewJob], enqueued: &[Enqueued]) -> String {
    match (new, enqueued) {
        ([job], [Enqueued { id, existing: false }]) => format!("job {id} ({} {})", job.flow, job.identifier),
        ([_], [Enqueued { id, existing: true }]) => format!("job {id}, which had the unique key already"),
        _ => {
            let made = enqueued.iter().filter(|job| !job.existing);
            let (first, last) = (made.clone().map(|job| job.id).min(), made.clone().map(|job| job.id).max());
            match first.zip(last) {
                Some((first, last)) => format!("{} jobs, {first} to {last}", made.count()),
                None => format!("no job: the {} were there already", enqueued.len()),
            }
        }
    }
}

const ENQUEUE: &str = "enqueue jobs";
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

/// How many of these, from the first on, go into one statement. A job with a key is alone in its own, since the rows that a
/// statement did not insert can't be told apart.
fn of_one_statement(jobs: &[NewJob], most_rows: usize, at_once: usize) -> usize {
    let mut bytes = 0;
    let mut fits = |job: &&NewJob| {
        bytes += bytes_of(job);
        job.unique_key.is_none() && bytes <= at_once
    };
    jobs.iter().take(most_rows).take_while(|job| fits(job)).count().max(1)
}

fn bytes_of(job: &NewJob) -> usize {
    job.identifier.len() + job.payload.as_ref().map_or(0, String::len)
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
