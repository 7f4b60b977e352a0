//! How rows that a claim has found become INQUEUE, each with its event.

use std::sync::OnceLock;
use std::time::Duration;

use serde_json::json;

use super::change::EVENT;
use super::connection::{Connection, Transaction};
use super::leases::lease_millis;
use super::sql::{Dialect, Doing};
use super::{Claim, ClaimedJob, Error, Store};
use crate::domain::Timestamp;
use crate::domain::trace::TraceState;

const ACTION: &str = "claim jobs";

/// What is taken.
pub(super) struct Taking<'a> {
    pub(super) claim: &'a Claim,
    /// The rows, which are locked.
    pub(super) jobs: &'a [ClaimedJob],
    pub(super) now: Timestamp,
    /// For how long no other worker may take them over.
    pub(super) lease: Duration,
}

impl Store {
    /// Takes all of these rows, or fails.
    pub(super) async fn take(&self, transaction: &Transaction, taking: &Taking<'_>) -> Result<(), Error> {
        match self.dialect() {
            Dialect::Postgres => self.take_all(transaction, taking).await,
            Dialect::Sqlite | Dialect::MySql => self.take_each(transaction, taking).await,
        }
    }

    async fn take_all(&self, transaction: &Transaction, taking: &Taking<'_>) -> Result<(), Error> {
        let &Taking { claim, jobs, now, lease } = taking;
        let item = |job: &ClaimedJob| {
            json!({
                "id": job.id.0,
                "token": job.token.as_str(),
                "attempt": job.attempt.0,
                "schedule_time": job.schedule_time.unix_millis(),
                "parent": traceparent(job),
                "state": tracestate(job),
            })
        };
        let items: Vec<_> = jobs.iter().map(item).collect();
        let values = [
            serde_json::Value::from(items).to_string().into(),
            claim.worker.as_str().into(),
            now.unix_millis().into(),
            lease_millis(lease).into(),
            message(claim).into(),
        ];
        let taken = transaction.execute(self.statement(take_all_sql(), values)).await.doing(ACTION)?;
        all_taken(usize::try_from(taken.rows_affected) == Ok(jobs.len()))
    }

    /// A statement for each row: joined with a list, the planner may choose to read all pending rows. The event goes with it: on
    /// SQLite as a second statement, where changes() is how many rows the first one has changed. On MySQL, which takes one
    /// statement at a time, the events of all rows follow in one.
    async fn take_each(&self, transaction: &Transaction, taking: &Taking<'_>) -> Result<(), Error> {
        let &Taking { claim, jobs, now, lease } = taking;
        let (dialect, worker, message) = (self.dialect(), claim.worker.as_str(), message(claim));
        let taken = |lease: &str| {
            let names = ["$2", "$3", "$4", "$5", "$6", "$7", "$9"];
            format!("UPDATE jobs SET {}{lease} WHERE id = $1 AND status = 'PENDING'", taken_sql(names))
        };
        let statement = if dialect.is_shared() {
            taken(&format!(", lease_time = $5 + {}", lease_millis(lease)))
        } else {
            static TAKEN: OnceLock<String> = OnceLock::new();
            let event = "SELECT $1, $4, 'PENDING', 'INQUEUE', $5, $2, $8 WHERE changes() > 0";
            TAKEN.get_or_init(|| format!("{}; {EVENT} {event}", taken(""))).clone()
        };
        for job in jobs {
            let values = [
                job.id.0.into(),
                worker.into(),
                job.token.as_str().into(),
                i64::from(job.attempt.0).into(),
                now.unix_millis().into(),
                job.schedule_time.unix_millis().into(),
                traceparent(job).into(),
                message.as_str().into(),
                tracestate(job).into(),
            ];
            let taken = transaction.execute(self.statement(statement.as_str(), values)).await.doing(ACTION)?;
            all_taken(taken.rows_affected > 0)?;
        }
        if dialect == Dialect::MySql {
            let taken: Vec<_> = jobs.iter().map(|job| json!({ "id": job.id.0, "attempt": job.attempt.0 })).collect();
            let events = format!(
                "{EVENT} SELECT item.id, item.attempt, 'PENDING', 'INQUEUE', $2, $3, $4 FROM {}",
                dialect.items("$1", &[("id", "bigint"), ("attempt", "bigint")])
            );
            let taken = serde_json::Value::from(taken).to_string();
            let values = [taken.into(), now.unix_millis().into(), worker.into(), message.into()];
            transaction.execute(self.statement(events, values)).await.doing(ACTION)?;
        }
        Ok(())
    }
}

/// What a claimed row becomes; its trace goes from the payload to where whoever finds the run later looks for it. By the names of
/// worker, token, attempt, time, schedule time, traceparent and tracestate.
fn taken_sql([worker, token, attempt, now, schedule_time, parent, state]: [&str; 7]) -> String {
    format!(
        "status = 'INQUEUE', worker_id = {worker}, run_token = {token}, attempt = {attempt}, queued_time = {now}, \
         schedule_time = {schedule_time}, tracestate = CASE WHEN traceparent IS NULL THEN {state} ELSE tracestate END, \
         traceparent = COALESCE(traceparent, {parent}), progress = NULL, status_message = NULL, error = NULL, exit_code = NULL, \
         execution_ms = NULL, started_time = NULL, heartbeat_time = NULL, completed_time = NULL"
    )
}

/// All rows of the list in `$1`, with their events, on PostgreSQL. They are named by their keys once more, since the planner would
/// not know how few the list has.
fn take_all_sql() -> String {
    let dialect = Dialect::Postgres;
    let columns = [
        ("id", "bigint"),
        ("token", "text"),
        ("attempt", "bigint"),
        ("schedule_time", "bigint"),
        ("parent", "text"),
        ("state", "text"),
    ];
    format!(
        "WITH item AS MATERIALIZED (SELECT * FROM {}), job AS (UPDATE jobs SET {}, lease_time = $3 + $4 FROM item \
         WHERE jobs.id = item.id AND jobs.id = ANY (ARRAY(SELECT id FROM item)) AND {} RETURNING jobs.id, jobs.attempt) \
         {EVENT} SELECT id, attempt, 'PENDING', 'INQUEUE', $3, $2, $5 FROM job",
        dialect.items("$1", &columns),
        taken_sql(["$2", "item.token", "item.attempt", "$3", "item.schedule_time", "item.parent", "item.state"]),
        dialect.of_named("status = 'PENDING'"),
    )
}

fn traceparent(job: &ClaimedJob) -> Option<String> {
    job.trace.as_ref().map(|trace| trace.parent.to_string())
}

fn tracestate(job: &ClaimedJob) -> Option<&str> {
    job.trace.as_ref().and_then(|trace| trace.state.as_ref()).map(TraceState::as_str)
}

/// The rows are locked, or nobody else writes: where one was not taken it would be a fault of ours, and nothing may be started.
fn all_taken(taken: bool) -> Result<(), Error> {
    if taken { Ok(()) } else { Err(Error::from_database(ACTION, sea_orm::DbErr::RecordNotUpdated)) }
}

fn message(claim: &Claim) -> String {
    format!("claimed by {}", claim.worker.as_str())
}
