//! What operators do: have jobs tried again, cancel many, pause and resume flows, drain workers.
//!
//! Each call may be repeated after an error, and wakes this process and every other.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::connection::{Connection, Transaction};
use super::sql::{Dialect, Doing, OPEN_OR_PENDING, Row, storable};
use super::update::{Rows, Update};
use super::{CancelResult, DrainResult, Error, JobFilter, Page, PauseResult, RetryResult, Store};
use crate::crash::Step;
use crate::domain::{Attempt, FlowType, JobId, JobStatus, Timestamp, WorkerId};
use crate::process::text::made_safe;

const RETRY: &str = "retry jobs";
const CANCEL: &str = "cancel jobs";
const PAUSE: &str = "pause or resume a flow";
const DRAIN: &str = "drain a worker";

/// Jobs of one transaction, so that claims and settlements don't wait long behind it.
const CHUNK: usize = 500;
/// The most that is kept of who asked, in characters.
const LONGEST_NAME: usize = 200;

impl Store {
    /// Puts ended jobs back to PENDING with a fresh budget of attempts and time, and answers in their order. Their runs and
    /// logs are kept, attempts are numbered on, and the event names `who`, such as `alice@host (cli)`.
    ///
    /// # Errors
    /// Where the database fails; what was retried before that stays so.
    pub async fn retry(&self, jobs: &[JobId], who: &str) -> Result<Vec<RetryResult>, Error> {
        let mut results = Vec::with_capacity(jobs.len());
        for chunk in jobs.chunks(CHUNK) {
            results.extend(self.in_time(RETRY, self.retrying(|| self.retry_once(chunk, who))).await?);
            self.changed_here();
        }
        Ok(results)
    }

    /// [`Store::retry`] for at most `limit` of the jobs that `filter` means, newest first, and where the next ones start:
    /// each page is a transaction of its own. No status means ERROR.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn retry_page(&self, filter: &JobFilter, who: &str) -> Result<Page<(JobId, RetryResult)>, Error> {
        let mut filter = filter.clone();
        if filter.statuses.is_empty() {
            filter.statuses.push(JobStatus::Error);
        }
        let page = self.matching_ids(&filter).await?;
        let ids: Vec<JobId> = page.rows.iter().map(|(id, _)| *id).collect();
        let results = self.retry(&ids, who).await?;
        Ok(Page { rows: ids.into_iter().zip(results).collect(), next_cursor: page.next_cursor })
    }

    async fn retry_once(&self, jobs: &[JobId], who: &str) -> Result<Vec<RetryResult>, Error> {
        let transaction = self.begin(RETRY).await?;
        let now = self.time(&transaction).await?;
        self.lock_awaited(&transaction, jobs).await?;
        let keyed = self.retryable_keys(&transaction, jobs).await?;
        let flows: BTreeSet<&str> = keyed.values().map(|(flow, _)| flow.as_str()).collect();
        self.lock_keys(&transaction, flows).await?;
        let keyless: Vec<JobId> = jobs.iter().filter(|job| !keyed.contains_key(job)).copied().collect();
        let mut retried = self.retry_all(&transaction, &keyless, who, now).await?;
        let mut taken = BTreeMap::new();
        for job in jobs.iter().filter(|job| !retried.contains(job)).collect::<BTreeSet<_>>() {
            let Some((flow, key)) = keyed.get(job) else { continue };
            match self.key_holder(&transaction, flow, key).await? {
                Some(holder) => drop(taken.insert(*job, holder)),
                None => retried.extend(self.retry_all(&transaction, &[*job], who, now).await?),
            }
        }
        let statuses = self.statuses(&transaction, jobs).await?;
        if !retried.is_empty() {
            self.tell_everybody(&transaction).await?;
        }
        let outcome = format!("{} of {} retried", retried.len(), jobs.len());
        self.deed(&transaction, "retry", &target(jobs), &outcome).await?;
        self.commit(transaction, Step::RetryCommit, RETRY).await?;
        Ok(jobs
            .iter()
            .map(|job| match (statuses.get(job), taken.get(job)) {
                (None, _) => RetryResult::NotFound,
                _ if retried.contains(job) => RetryResult::Retried,
                (_, Some(holder)) => RetryResult::KeyTaken(*holder),
                (Some(status), None) => RetryResult::NotPossible(*status),
            })
            .collect())
    }

    /// Waits for whoever is just ending what these jobs wait for, and keeps others from it. The trigger of a retry notes how
    /// that has ended as of when its statement began, and would note over an end that is committed meanwhile that there was
    /// none, so that nobody looked at the job again.
    async fn lock_awaited(&self, transaction: &Transaction, jobs: &[JobId]) -> Result<(), Error> {
        let dialect = self.dialect();
        let awaited =
            format!("SELECT DISTINCT after_id AS id FROM job_dependencies WHERE {}", dialect.among_ids("job_id", "$1"));
        let awaited = self.ids(transaction, RETRY, awaited, vec![ids(jobs)]).await?;
        if dialect.is_shared() && !awaited.is_empty() {
            let share = dialect.pick("", "FOR SHARE", "LOCK IN SHARE MODE");
            let lock = format!("SELECT id FROM jobs WHERE {} ORDER BY id {share}", dialect.among_ids("id", "$1"));
            self.ids(transaction, RETRY, lock, vec![json!(awaited).to_string().into()]).await?;
        }
        Ok(())
    }

    /// Of these jobs those that may be retried and have a unique key, with their types and keys.
    async fn retryable_keys(
        &self,
        transaction: &Transaction,
        jobs: &[JobId],
    ) -> Result<BTreeMap<JobId, (String, String)>, Error> {
        let dialect = self.dialect();
        // As text, for comparing: a key that is none can't stand in a PostgreSQL table, and in a SQLite one compares equal
        // to itself only as what it is.
        let select = format!(
            "SELECT id, {}, {} FROM jobs WHERE {} AND {RETRYABLE} AND unique_key IS NOT NULL",
            dialect.text("type"),
            dialect.text("unique_key"),
            dialect.among_ids("id", "$1"),
        );
        let results = transaction.query_all(self.statement(select, [ids(jobs)])).await.doing(RETRY)?;
        let mut keys = BTreeMap::new();
        for result in &results {
            let row = Row { result, dialect };
            keys.insert(row.job("id")?, (row.some_text("type")?, row.some_text("unique_key")?));
        }
        Ok(keys)
    }

    async fn key_holder(&self, transaction: &Transaction, flow: &str, key: &str) -> Result<Option<JobId>, Error> {
        let open_key = self.dialect().open_key();
        let select = format!("SELECT id FROM jobs WHERE type = $1 AND {open_key} = $2 AND {OPEN_OR_PENDING}");
        let result = transaction.query_one(self.statement(select, [flow.into(), key.into()])).await.doing(RETRY)?;
        result.map(|result| Row { result: &result, dialect: self.dialect() }.job("id")).transpose()
    }

    /// Retries those of these jobs that can be. The event goes first, since it names the status that each comes from.
    async fn retry_all(
        &self,
        transaction: &Transaction,
        jobs: &[JobId],
        who: &str,
        now: Timestamp,
    ) -> Result<BTreeSet<JobId>, Error> {
        let dialect = self.dialect();
        let these = format!("{} AND {RETRYABLE}", dialect.among_ids("id", "$1"));
        let event = format!(
            "INSERT INTO job_events (job_id, attempt, from_status, to_status, time, message) \
             SELECT id, attempt, status, 'PENDING', $2, $3 FROM jobs WHERE {these} ORDER BY id",
        );
        let message = format!("retried by {}", name(who));
        let values = [ids(jobs), now.unix_millis().into(), message.into()];
        let mut retried = BTreeSet::new();
        if dialect == Dialect::MySql {
            let lock = format!("SELECT id FROM jobs {} WHERE {these} ORDER BY id FOR UPDATE", dialect.by_key());
            let locked = self.ids(transaction, RETRY, lock, vec![ids(jobs)]).await?;
            retried.extend(locked.into_iter().map(JobId));
            transaction.execute(self.statement(event, values)).await.doing(RETRY)?;
        } else {
            let lock = dialect.pick("", "FOR NO KEY UPDATE", "");
            let event = self.statement(format!("{event} {lock} RETURNING job_id"), values);
            for result in transaction.query_all(event).await.doing(RETRY)? {
                retried.insert(Row { result: &result, dialect }.job("job_id")?);
            }
        }
        // What the last attempt said stays readable until the next one is claimed, as between two attempts.
        let update = format!(
            "UPDATE jobs SET status = 'PENDING', run_at = $2, schedule_time = $2, attempts_before = attempt, worker_id = NULL, lease_time = NULL, \
             run_token = NULL, cancel_requested_time = NULL, progress = NULL, status_message = NULL, completed_time = NULL \
             WHERE {} AND {}",
            dialect.among_ids("id", "$1"),
            dialect.of_named(RETRYABLE)
        );
        let retried_ids: Vec<JobId> = retried.iter().copied().collect();
        let values = [ids(&retried_ids), now.unix_millis().into()];
        transaction.execute(self.statement(update, values)).await.doing(RETRY)?;
        Ok(retried)
    }

    async fn statuses(
        &self,
        connection: &impl Connection,
        jobs: &[JobId],
    ) -> Result<BTreeMap<JobId, JobStatus>, Error> {
        let dialect = self.dialect();
        let select = format!("SELECT id, {} FROM jobs WHERE {}", dialect.text("status"), dialect.among_ids("id", "$1"));
        let results = connection.query_all(self.statement(select, [ids(jobs)])).await.doing(RETRY)?;
        let mut statuses = BTreeMap::new();
        for result in &results {
            let row = Row { result, dialect };
            statuses.insert(row.job("id")?, row.status()?);
        }
        Ok(statuses)
    }

    /// Asks to cancel at most `limit` of the jobs that `filter` means, newest first, and says where the next ones start. No
    /// status means every open one. A job that has left the statuses of the filter meanwhile is left alone and out.
    ///
    /// # Errors
    /// Where the database fails; what was cancelled before that stays so.
    pub async fn cancel_page(&self, filter: &JobFilter) -> Result<Page<(JobId, CancelResult)>, Error> {
        let mut filter = filter.clone();
        if filter.statuses.is_empty() {
            filter.statuses.extend([JobStatus::Pending, JobStatus::InQueue, JobStatus::Progress]);
        }
        let page = self.matching_ids(&filter).await?;
        let reaches_open =
            filter.statuses.iter().any(|status| matches!(status, JobStatus::InQueue | JobStatus::Progress));
        let rows = self.cancel_known(&page.rows, reaches_open).await?;
        Ok(Page { rows, next_cursor: page.next_cursor })
    }

    /// Asks to cancel these jobs, which had these statuses when they were chosen, and leaves out those that have ended.
    ///
    /// # Errors
    /// Where the database fails; what was cancelled before that stays so.
    pub async fn cancel_chosen(&self, jobs: &[(JobId, JobStatus)]) -> Result<Vec<(JobId, CancelResult)>, Error> {
        let mut results = Vec::with_capacity(jobs.len());
        for chunk in jobs.chunks(CHUNK) {
            results.extend(self.cancel_known(chunk, true).await?);
        }
        Ok(results)
    }

    async fn cancel_known(
        &self,
        jobs: &[(JobId, JobStatus)],
        reaches_open: bool,
    ) -> Result<Vec<(JobId, CancelResult)>, Error> {
        let waiting: Vec<JobId> =
            jobs.iter().filter(|(_, status)| *status == JobStatus::Pending).map(|(id, _)| *id).collect();
        let cancelled = match waiting.is_empty() {
            true => BTreeSet::new(),
            false => self.in_time(CANCEL, self.retrying(|| self.cancel_waiting(&waiting))).await?,
        };
        let mut rows = Vec::new();
        for (id, _) in jobs {
            if cancelled.contains(id) {
                rows.push((*id, CancelResult::Cancelled));
            } else if reaches_open {
                // A transaction each: one that held many open rows could wait for a batch of confirmations, and that for it.
                match self.request_cancel(*id).await? {
                    CancelResult::NotFound | CancelResult::NotPossible(_) => {}
                    result @ (CancelResult::Cancelled | CancelResult::Requested | CancelResult::AlreadyRequested) => {
                        rows.push((*id, result));
                    }
                }
            }
        }
        self.changed_here();
        Ok(rows)
    }

    async fn cancel_waiting(&self, jobs: &[JobId]) -> Result<BTreeSet<JobId>, Error> {
        let dialect = self.dialect();
        let transaction = self.begin(CANCEL).await?;
        let now = self.time(&transaction).await?;
        let set =
            format!("{}, cancel_requested_time = COALESCE(cancel_requested_time, $2)", super::claim::CANCEL_PENDING);
        let these = format!("{} AND {}", dialect.among_ids("id", "$1"), dialect.of_named("status = 'PENDING'"));
        let update = Update { table: "jobs", set: &set, rows: Rows::Where(&these), returning: "id, attempt" };
        let values = vec![ids(jobs), now.unix_millis().into()];
        let results = self.update(&transaction, CANCEL, &update, values).await?;
        let mut cancelled: Vec<(JobId, Attempt)> = Vec::new();
        for result in &results {
            let row = Row { result, dialect };
            cancelled.push((row.job("id")?, row.attempt()?));
        }
        cancelled.sort_unstable();
        self.note_cancelled(&transaction, &cancelled, now).await?;
        self.tell_everybody(&transaction).await?;
        let outcome = format!("{} of {} cancelled", cancelled.len(), jobs.len());
        self.deed(&transaction, "cancel", &target(jobs), &outcome).await?;
        self.commit(transaction, Step::CancelCommit, CANCEL).await?;
        Ok(cancelled.into_iter().map(|(id, _)| id).collect())
    }

    /// Pauses a flow over all workers: nothing of it is claimed any more, and what runs runs on. `who` is kept with it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn pause(&self, flow: &FlowType, who: &str) -> Result<PauseResult, Error> {
        self.set_paused(flow, true, who).await
    }

    /// Lets a flow that was paused go on.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn resume(&self, flow: &FlowType, who: &str) -> Result<PauseResult, Error> {
        self.set_paused(flow, false, who).await
    }

    async fn set_paused(&self, flow: &FlowType, paused: bool, who: &str) -> Result<PauseResult, Error> {
        let dialect = self.dialect();
        let (no, yes) = (dialect.pick("0", "false", "false"), dialect.pick("1", "true", "true"));
        let (before, after) = if paused { (no, yes) } else { (yes, no) };
        let update = format!(
            "UPDATE flows SET paused = {after}, paused_time = {}, paused_by = $2 WHERE type = $1 AND paused = {before}",
            dialect.now()
        );
        let once = || async {
            let transaction = self.begin(PAUSE).await?;
            let values = [flow.as_str().into(), name(who).into()];
            let updated = transaction.execute(self.statement(update.as_str(), values)).await.doing(PAUSE)?;
            let result = if updated.rows_affected > 0 {
                PauseResult::Changed
            } else {
                let select = self.statement("SELECT 1 AS found FROM flows WHERE type = $1", [flow.as_str().into()]);
                let found = transaction.query_one(select).await.doing(PAUSE)?;
                found.map_or(PauseResult::NotFound, |_| PauseResult::Unchanged)
            };
            let action = if paused { "pause" } else { "resume" };
            self.deed(&transaction, action, &format!("flow {flow}"), result.as_str()).await?;
            self.commit(transaction, Step::PauseCommit, PAUSE).await?;
            Ok(result)
        };
        let result = self.in_time(PAUSE, self.retrying(once)).await?;
        self.changed_here();
        Ok(result)
    }

    /// Asks a worker to claim nothing new and to end when its runs have ended. The request ends with that start of it.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn request_drain(&self, worker: &WorkerId, who: &str) -> Result<DrainResult, Error> {
        let update = format!(
            "UPDATE workers SET drain_requested_time = {}, drain_requested_by = $2 \
             WHERE worker_id = $1 AND state <> 'STOPPED' AND drain_requested_time IS NULL",
            self.dialect().now()
        );
        let select = "SELECT CAST(CASE WHEN state = 'STOPPED' THEN 1 ELSE 0 END AS bigint) AS stopped FROM workers WHERE worker_id = $1";
        let once = || async {
            let transaction = self.begin(DRAIN).await?;
            let values = [worker.as_str().into(), name(who).into()];
            let updated = transaction.execute(self.statement(update.as_str(), values)).await.doing(DRAIN)?;
            let result = if updated.rows_affected > 0 {
                DrainResult::Requested
            } else {
                let found =
                    transaction.query_one(self.statement(select, [worker.as_str().into()])).await.doing(DRAIN)?;
                match found {
                    None => DrainResult::NotFound,
                    Some(result) if (Row { result: &result, dialect: self.dialect() }).flag("stopped")? => {
                        DrainResult::Stopped
                    }
                    Some(_) => DrainResult::AlreadyRequested,
                }
            };
            self.tell_everybody(&transaction).await?;
            self.deed(&transaction, "drain", &format!("worker {worker}"), result.as_str()).await?;
            self.commit(transaction, Step::DrainCommit, DRAIN).await?;
            Ok(result)
        };
        let result = self.in_time(DRAIN, self.retrying(once)).await?;
        self.changed_here();
        Ok(result)
    }

    /// Who has asked this start of a worker to drain; `None` where nobody has.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn drain_requested(&self, worker: &WorkerId, incarnation: &str) -> Result<Option<String>, Error> {
        let dialect = self.dialect();
        let select = format!(
            "SELECT {} FROM workers WHERE worker_id = $1 AND incarnation = $2 AND drain_requested_time IS NOT NULL",
            dialect.text("drain_requested_by")
        );
        let query = async {
            let values = [worker.as_str().into(), storable(incarnation).into()];
            let result = self.reader().query_one(self.statement(select, values)).await.doing(DRAIN)?;
            result.map(|result| Row { result: &result, dialect }.some_text("drain_requested_by")).transpose()
        };
        self.in_time(DRAIN, query).await
    }

    /// Has every service hear of this transaction, this process's own too, so the notice names no instance. On SQLite the
    /// file tells them, on MySQL what they look at.
    pub(super) async fn tell_everybody(&self, transaction: &Transaction) -> Result<(), Error> {
        if self.dialect() == Dialect::Postgres {
            let tell = self.statement("SELECT CAST(pg_notify('callsheet', '') AS text) AS told", []);
            transaction.query_one(tell).await.doing("wake the workers")?;
        }
        Ok(())
    }
}

/// The statuses that a job can be retried from.
const RETRYABLE: &str = "status IN ('ERROR', 'CANCELLED')";

fn ids(jobs: &[JobId]) -> sea_orm::Value {
    json!(jobs.iter().map(|job| job.0).collect::<Vec<_>>()).to_string().into()
}

/// Jobs as the audit trail names them.
fn target(jobs: &[JobId]) -> String {
    match (jobs, jobs.iter().min(), jobs.iter().max()) {
        ([job], _, _) => format!("job {job}"),
        (_, Some(first), Some(last)) => format!("{} jobs, {first} to {last}", jobs.len()),
        _ => "no job".to_owned(),
    }
}

/// Who asked, as it is kept: short, on one line, and with nothing in it that could move a terminal's cursor.
fn name(who: &str) -> String {
    let safe = made_safe(who.as_bytes()).replace(['\n', '\t'], " ");
    let name: String = safe.trim().chars().take(LONGEST_NAME).collect();
    if name.is_empty() { "somebody".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_fit_to_be_kept_and_shown() {
        assert_eq!(name("alice@host (cli)"), "alice@host (cli)");
        assert_eq!(name("a\0b\u{1b}[2J\nc"), "ab c");
        assert_eq!(name(&"x".repeat(10_000)).len(), LONGEST_NAME);
        assert_eq!(name(" \n"), "somebody");
    }
}
