//! Jobs that wait for others: triggers note what has ended, and claims act on what is noted.
//!
//! A claim of any flow does it, in its own transaction, so that what a job was waiting for and the job itself can be the end
//! and the claim of one batch. A row is locked first and looked at in a later statement, which sees what other transactions
//! had noted by then; what they note after that is looked at once more.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::connection::{Connection, Transaction};
use super::sql::{Dialect, Doing, Row};
use super::update::{Rows, Update};
use super::{Error, Store};
use crate::domain::{Attempt, JobId, Timestamp};

const ACTION: &str = "look at the jobs that wait for others";
/// Jobs that are looked at together.
const AT_MOST: usize = 500;
/// The links of a chain that fail in one claim; the rest follows with the next.
const ROUNDS: usize = 20;
/// Jobs that are looked at in one claim: 500 take some tens of milliseconds, and other claims and settlements wait meanwhile.
const PORTION: usize = 1000;

/// Where a job that waits for others stands in the queue: the end of the year 9999, where the triggers of `job_dependencies`
/// put it.
pub const AFTER_OTHERS: Timestamp = Timestamp::from_unix_millis(253_402_300_799_000);

/// What became of jobs that waited for others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// How many wait no more.
    pub released: u64,
    /// Those that are ERROR now.
    pub failed: Vec<FailedWaiter>,
    /// Whether there are more to be looked at.
    pub more: bool,
}

/// A job that is ERROR because one that it waited for did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedWaiter {
    /// Which.
    pub job: JobId,
    /// `jobs.type`
    pub job_type: String,
    /// How often it had been tried.
    pub attempt: Attempt,
    /// `jobs.error`
    pub error: String,
}

/// A job that another one waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DependencyRow {
    /// Which; it may have been removed since.
    pub after: JobId,
    /// The status that it ended with, or DELETED; `None` where it has not ended.
    pub ended: Option<String>,
}

impl Store {
    /// Lets the first job of each pair wait for the second; the triggers refuse what can't be.
    pub(super) async fn make_wait(
        &self,
        transaction: &Transaction,
        pairs: &BTreeSet<(JobId, JobId)>,
    ) -> Result<(), Error> {
        let pairs: Vec<_> = pairs.iter().map(|(job, after)| json!({ "job": job.0, "awaited": after.0 })).collect();
        let insert = format!(
            "INSERT INTO job_dependencies (job_id, after_id) SELECT item.job, item.awaited FROM {} ORDER BY 1, 2",
            self.dialect().items("$1", &[("job", "bigint"), ("awaited", "bigint")])
        );
        for items in pairs.chunks(AT_MOST) {
            let items = serde_json::Value::from(items).to_string();
            let insert = self.statement(insert.as_str(), [items.into()]);
            transaction.execute(insert).await.doing("enqueue jobs")?;
        }
        Ok(())
    }

    /// The first of these that is no job.
    pub(super) async fn first_missing(
        &self,
        transaction: &Transaction,
        jobs: &[JobId],
    ) -> Result<Option<JobId>, Error> {
        let dialect = self.dialect();
        let select = format!("SELECT id FROM jobs WHERE {}", dialect.among_ids("id", "$1"));
        let ids = json!(jobs.iter().map(|job| job.0).collect::<Vec<_>>()).to_string();
        let results = transaction.query_all(self.statement(select, [ids.into()])).await.doing(ACTION)?;
        let found = results.iter().map(|result| Row { result, dialect }.job("id")).collect::<Result<Vec<_>, _>>()?;
        Ok(jobs.iter().find(|job| !found.contains(job)).copied())
    }

    /// The jobs that this one waits for, or has waited for.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn dependencies(&self, job: JobId) -> Result<Vec<DependencyRow>, Error> {
        let dialect = self.dialect();
        let select = format!(
            "SELECT after_id, {} FROM job_dependencies WHERE job_id = $1 ORDER BY after_id",
            dialect.text("ended")
        );
        let query = async {
            let results = self.reader().query_all(self.statement(select, [job.0.into()])).await.doing(ACTION)?;
            let read = |row: Row<'_>| Ok(DependencyRow { after: row.job("after_id")?, ended: row.text("ended")? });
            results.iter().map(|result| read(Row { result, dialect })).collect()
        };
        self.in_time(ACTION, query).await
    }

    /// Releases the jobs all of whose dependencies are COMPLETED, and ends those one of whose dependencies ended otherwise.
    pub(super) async fn settle_waiting(&self, transaction: &Transaction, now: Timestamp) -> Result<Waited, Error> {
        let mut waited = Waited::default();
        let mut looked_at = 0;
        for _ in 0..ROUNDS {
            if looked_at >= PORTION {
                break;
            }
            let jobs = self.lock_waiting(transaction).await?;
            if jobs.is_empty() {
                return Ok(waited);
            }
            looked_at += jobs.len();
            let ids: sea_orm::Value = json!(jobs).to_string().into();
            // First of all, so that what is noted after this is looked at again.
            let looked = format!(
                "UPDATE job_dependencies SET looked_at = $2 WHERE {} AND {}",
                self.dialect().noted(),
                self.dialect().among_ids("job_id", "$1"),
            );
            let values = [ids.clone(), now.unix_millis().max(1).into()];
            transaction.execute(self.statement(looked, values)).await.doing(ACTION)?;
            let failed = self.fail_waiting(transaction, &ids, now).await?;
            waited.failed.extend(failed);
            let these = format!(
                "{} AND {} AND NOT EXISTS (SELECT 1 FROM job_dependencies AS d WHERE d.job_id = jobs.id \
                 AND (d.ended IS NULL OR d.ended <> 'COMPLETED'))",
                self.dialect().among_ids("id", "$1"),
                self.dialect().of_named(WAITS),
            );
            let greatest = self.dialect().pick("max", "GREATEST", "GREATEST");
            let set = format!("run_at = {greatest}(run_at_wanted, $2), run_at_wanted = NULL");
            let update = Update { table: "jobs", set: &set, rows: Rows::Where(&these), returning: "id" };
            let released = self.update(transaction, ACTION, &update, vec![ids, now.unix_millis().into()]).await?;
            waited.released += u64::try_from(released.len()).unwrap_or(0);
        }
        waited.more = true;
        Ok(waited)
    }

    /// The jobs of which something is noted, locked. What another transaction has locked is left for the claim after its
    /// commit.
    async fn lock_waiting(&self, transaction: &Transaction) -> Result<Vec<i64>, Error> {
        let dialect = self.dialect();
        let noted = format!(
            "SELECT DISTINCT job_id AS id FROM job_dependencies {} WHERE {} ORDER BY job_id LIMIT {AT_MOST}",
            dialect.by_index("job_dependencies_ended"),
            dialect.noted(),
        );
        let (these, values) = if dialect == Dialect::MySql {
            // It would lock the rows of a subquery too.
            let noted = self.ids(transaction, ACTION, noted, Vec::new()).await?;
            (dialect.among_ids("id", "$1"), vec![json!(noted).to_string().into()])
        } else {
            (dialect.one_of("id", &noted), Vec::new())
        };
        let select =
            format!("SELECT id FROM jobs {} WHERE {these} ORDER BY id {}", dialect.by_key(), dialect.skip_locked());
        self.ids(transaction, ACTION, select, values).await
    }

    async fn fail_waiting(
        &self,
        transaction: &Transaction,
        ids: &sea_orm::Value,
        now: Timestamp,
    ) -> Result<Vec<FailedWaiter>, Error> {
        if self.dialect() == Dialect::MySql {
            return self.fail_waiting_by_reason(transaction, ids, now).await;
        }
        const OTHERWISE: &str =
            "FROM job_dependencies AS d WHERE d.job_id = jobs.id AND d.ended IS NOT NULL AND d.ended <> 'COMPLETED'";
        let dialect = self.dialect();
        let update = format!(
            "UPDATE jobs SET status = 'ERROR', completed_time = $2, run_at = run_at_wanted, run_at_wanted = NULL, \
             error = (SELECT 'job ' || d.after_id || ', which this one waits for, ' || \
             CASE d.ended WHEN 'DELETED' THEN 'was deleted' ELSE 'ended as ' || d.ended END {OTHERWISE} ORDER BY d.after_id LIMIT 1) \
             WHERE {} AND {} AND EXISTS (SELECT 1 {OTHERWISE}) RETURNING id, attempt, {}, {}",
            dialect.among_ids("id", "$1"),
            dialect.of_named(WAITS),
            dialect.text("type"),
            dialect.text("error"),
        );
        let values = [ids.clone(), now.unix_millis().into()];
        let results = transaction.query_all(self.statement(update, values)).await.doing(ACTION)?;
        let mut failed = Vec::with_capacity(results.len());
        for result in &results {
            let row = Row { result, dialect };
            failed.push(FailedWaiter {
                job: row.job("id")?,
                job_type: row.some_text("type")?,
                attempt: row.attempt()?,
                error: row.some_text("error")?,
            });
        }
        failed.sort_by_key(|waiter| waiter.job);
        self.note_failed(transaction, &failed, now).await?;
        Ok(failed)
    }

    /// The same on MySQL, where no statement may read `job_dependencies` whose triggers may write it.
    async fn fail_waiting_by_reason(
        &self,
        transaction: &Transaction,
        ids: &sea_orm::Value,
        now: Timestamp,
    ) -> Result<Vec<FailedWaiter>, Error> {
        let dialect = self.dialect();
        let select = format!(
            "SELECT jobs.id, jobs.attempt, jobs.type, d.after_id, d.ended FROM jobs {} JOIN job_dependencies AS d \
             ON d.job_id = jobs.id WHERE {} AND {WAITS} AND d.ended IS NOT NULL AND d.ended <> 'COMPLETED' \
             ORDER BY jobs.id, d.after_id",
            dialect.by_key(),
            dialect.among_ids("jobs.id", "$1"),
        );
        let results = transaction.query_all(self.statement(select, [ids.clone()])).await.doing(ACTION)?;
        let mut failed: Vec<FailedWaiter> = Vec::new();
        let mut reasons: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for result in &results {
            let row = Row { result, dialect };
            let (job, after, ended) = (row.job("id")?, row.int("after_id")?, row.some_text("ended")?);
            if failed.last().is_some_and(|last| last.job == job) {
                continue;
            }
            let how = if ended == "DELETED" { "was deleted".to_owned() } else { format!("ended as {ended}") };
            let error = format!("job {after}, which this one waits for, {how}");
            reasons.entry(error.clone()).or_default().push(job.0);
            failed.push(FailedWaiter { job, job_type: row.some_text("type")?, attempt: row.attempt()?, error });
        }
        let update = format!(
            "UPDATE jobs {} SET status = 'ERROR', completed_time = $2, run_at = run_at_wanted, run_at_wanted = NULL, \
             error = $3 WHERE {}",
            dialect.by_key(),
            dialect.among_ids("id", "$1"),
        );
        for (error, jobs) in reasons {
            let values = [json!(jobs).to_string().into(), now.unix_millis().into(), error.into()];
            transaction.execute(self.statement(update.as_str(), values)).await.doing(ACTION)?;
        }
        self.note_failed(transaction, &failed, now).await?;
        Ok(failed)
    }

    /// Writes the events of those, which are in the order of their ids.
    async fn note_failed(
        &self,
        transaction: &Transaction,
        failed: &[FailedWaiter],
        now: Timestamp,
    ) -> Result<(), Error> {
        if failed.is_empty() {
            return Ok(());
        }
        let event =
            |waiter: &FailedWaiter| json!({ "id": waiter.job.0, "attempt": waiter.attempt.0, "message": waiter.error });
        let items = serde_json::Value::from(failed.iter().map(event).collect::<Vec<_>>()).to_string();
        let events = format!(
            "INSERT INTO job_events (job_id, attempt, from_status, to_status, time, message) \
             SELECT item.id, item.attempt, 'PENDING', 'ERROR', $2, item.message FROM {}",
            self.dialect().items("$1", &[("id", "bigint"), ("attempt", "bigint"), ("message", "text")])
        );
        transaction.execute(self.statement(events, [items.into(), now.unix_millis().into()])).await.doing(ACTION)?;
        Ok(())
    }
}

/// Whether a row waits for another one; somebody may have cancelled it meanwhile.
const WAITS: &str = "status = 'PENDING' AND run_at_wanted IS NOT NULL";
