//! What has ended long ago goes: jobs with their runs and events, the audit trail, sessions.
//!
//! In batches of their own transactions with rests between them, found along `jobs_ended`, so that neither a claim nor a
//! settlement waits long, however much is to go. A row that somebody has locked is left for the next time.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::connection::Connection;
use super::sql::{Dialect, Doing, Row};
use super::{Error, Store};
use crate::crash::{self, Step};
use crate::domain::retention::Horizon;
use crate::domain::{JobStatus, Timestamp};

const ACTION: &str = "remove old rows";
/// Jobs of one transaction; runs and events go with each.
const BATCH: u32 = 200;
/// Ended jobs that are looked at together.
const STEP: u32 = 2000;
/// The rest after a batch is this much longer than the batch, so that most of the time belongs to others.
const REST: u32 = 4;
const LEAST_REST: Duration = Duration::from_millis(20);
/// The statuses of ended rows, word for word as the partial index has them.
const ENDED: &str = "status IN ('COMPLETED', 'ERROR', 'CANCELLED')";

/// Whether no job that has not ended names it as one that it waits for.
const NOT_AWAITED: &str = "NOT EXISTS (SELECT 1 FROM job_dependencies AS d JOIN jobs AS waiting ON waiting.id = d.job_id \
    WHERE d.after_id = jobs.id AND waiting.status IN ('PENDING', 'INQUEUE', 'PROGRESS'))";

/// How many rows of each kind went, or would go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// COMPLETED jobs.
    pub completed: u64,
    /// ERROR jobs.
    pub error: u64,
    /// CANCELLED jobs.
    pub cancelled: u64,
    /// Deliveries to webhooks.
    pub deliveries: u64,
    /// Rows of the audit trail.
    pub audit: u64,
    /// Sessions of the page that are over.
    pub sessions: u64,
    /// Whether the time was over before all had gone.
    pub more: bool,
}

impl Pruned {
    /// How many that is altogether.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.completed + self.error + self.cancelled + self.deliveries + self.audit + self.sessions
    }

    fn of(&mut self, status: JobStatus) -> &mut u64 {
        match status {
            JobStatus::Error => &mut self.error,
            JobStatus::Cancelled => &mut self.cancelled,
            JobStatus::Completed | JobStatus::Pending | JobStatus::InQueue | JobStatus::Progress => &mut self.completed,
        }
    }
}

/// An ended job, as far as matters here.
struct Ended {
    id: i64,
    status: JobStatus,
    time: Timestamp,
}

const FINAL: [JobStatus; 3] = [JobStatus::Completed, JobStatus::Error, JobStatus::Cancelled];

impl Store {
    /// Removes what is beyond `horizon`, for at most `within`. May be dropped at any time: what has gone by then is gone.
    ///
    /// Jobs without a `completed_time` have no age, and stay; so do those that one waits for which has not ended.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn prune(&self, horizon: &Horizon, within: Duration) -> Result<Pruned, Error> {
        let until = Instant::now() + within;
        let mut pruned = Pruned::default();
        for flow in self.ended_types().await? {
            if !self.prune_type(&flow, horizon, until, &mut pruned).await? {
                pruned.more = true;
                return Ok(pruned);
            }
        }
        if let Some(before) = horizon.deliveries {
            loop {
                let started = Instant::now();
                let removed = self.in_time(ACTION, self.prune_deliveries(before, BATCH)).await?;
                pruned.deliveries += removed;
                if removed < u64::from(BATCH) {
                    break;
                }
                if Instant::now() >= until {
                    pruned.more = true;
                    return Ok(pruned);
                }
                rest(started).await;
            }
        }
        if let Some(before) = horizon.audit {
            loop {
                let started = Instant::now();
                let removed = self.in_time(ACTION, self.prune_audit(before)).await?;
                pruned.audit += removed;
                if removed < u64::from(BATCH) {
                    break;
                }
                if Instant::now() >= until {
                    pruned.more = true;
                    return Ok(pruned);
                }
                rest(started).await;
            }
        }
        let sessions = format!("DELETE FROM sessions WHERE expires_time <= {}", self.dialect().now());
        let delete = async { self.writer().execute(self.statement(sessions, [])).await.doing(ACTION) };
        pruned.sessions = self.in_time(ACTION, delete).await?.rows_affected;
        Ok(pruned)
    }

    /// How many rows [`Store::prune`] would remove.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn prunable(&self, horizon: &Horizon) -> Result<Pruned, Error> {
        let mut pruned = Pruned::default();
        for flow in self.ended_types().await? {
            for status in FINAL {
                let Some(before) = horizon.of(status) else { continue };
                let select = format!(
                    "SELECT count(*) AS old FROM jobs {} WHERE type = $1 AND {ENDED} AND completed_time <= $2 AND status = $3 AND {NOT_AWAITED}",
                    self.dialect().by_index("jobs_ended")
                );
                let values = [flow.as_str().into(), before.unix_millis().into(), status.as_str().into()];
                *pruned.of(status) += self.count_old(&select, values).await?;
            }
        }
        if let Some(before) = horizon.deliveries {
            let select = "SELECT count(*) AS old FROM deliveries WHERE ended_time IS NOT NULL AND ended_time <= $1";
            pruned.deliveries = self.count_old(select, [before.unix_millis().into()]).await?;
        }
        if let Some(before) = horizon.audit {
            let select = "SELECT count(*) AS old FROM audit WHERE time <= $1";
            pruned.audit = self.count_old(select, [before.unix_millis().into()]).await?;
        }
        let sessions = format!("SELECT count(*) AS old FROM sessions WHERE expires_time <= {}", self.dialect().now());
        pruned.sessions = self.count_old(&sessions, []).await?;
        Ok(pruned)
    }

    async fn count_old<const N: usize>(&self, select: &str, values: [sea_orm::Value; N]) -> Result<u64, Error> {
        let query = async {
            let result = self.reader().query_one(self.statement(select, values)).await.doing(ACTION)?;
            result.map_or(Ok(0), |result| Row { result: &result, dialect: self.dialect() }.int("old"))
        };
        Ok(u64::try_from(self.in_time(ACTION, query).await?).unwrap_or(0))
    }

    /// The types that ended rows have, by one step along the index for each.
    async fn ended_types(&self) -> Result<Vec<String>, Error> {
        let dialect = self.dialect();
        if dialect == Dialect::MySql {
            return self.in_time(ACTION, self.types_of(&FINAL)).await;
        }
        let by_ended = dialect.by_index("jobs_ended");
        let select = format!(
            "WITH RECURSIVE ended(type) AS (SELECT min(type) FROM jobs {by_ended} WHERE {ENDED} UNION ALL \
             SELECT (SELECT min(type) FROM jobs {by_ended} WHERE {ENDED} AND type > ended.type) \
             FROM ended WHERE ended.type IS NOT NULL) SELECT {} FROM ended WHERE type IS NOT NULL",
            dialect.text("type"),
        );
        let query = async {
            let results = self.reader().query_all(self.statement(select, [])).await.doing(ACTION)?;
            results.iter().map(|result| Row { result, dialect }.some_text("type")).collect()
        };
        self.in_time(ACTION, query).await
    }

    /// Removes the old jobs of a type; `false` where the time was over before.
    async fn prune_type(
        &self,
        flow: &str,
        horizon: &Horizon,
        until: Instant,
        pruned: &mut Pruned,
    ) -> Result<bool, Error> {
        let Some(latest) = FINAL.into_iter().filter_map(|status| horizon.of(status)).max() else { return Ok(true) };
        let mut from: Option<Ended> = None;
        loop {
            if Instant::now() >= until {
                return Ok(false);
            }
            let step = self.in_time(ACTION, self.ended_jobs(flow, from.as_ref(), latest)).await?;
            for status in FINAL {
                let Some(before) = horizon.of(status) else { continue };
                let old = step.iter().filter(|job| job.status == status && job.time <= before);
                let old: Vec<i64> = old.map(|job| job.id).collect();
                for ids in old.chunks(BATCH as usize) {
                    let started = Instant::now();
                    let batch = || self.prune_jobs(ids, status, before);
                    *pruned.of(status) += self.in_time(ACTION, self.retrying(batch)).await?;
                    rest(started).await;
                }
            }
            from = step.into_iter().next_back();
            if from.is_none() {
                return Ok(true);
            }
        }
    }

    /// The next of the ended jobs of a type in the order of their ends, whatever their status. Read along the index, apart
    /// from any write: those that are kept may be many more than those that go.
    async fn ended_jobs(&self, flow: &str, from: Option<&Ended>, latest: Timestamp) -> Result<Vec<Ended>, Error> {
        let dialect = self.dialect();
        let select = format!(
            "SELECT id, completed_time, {} FROM jobs {} WHERE type = $1 AND {ENDED} AND completed_time >= $2 \
             AND (completed_time, status, id) > ($2, $3, $4) AND completed_time <= $5 \
             ORDER BY completed_time, jobs.status, id LIMIT {STEP}",
            dialect.text("status"),
            dialect.by_index("jobs_ended"),
        );
        let (time, status, id) =
            from.map_or((i64::MIN, "", i64::MIN), |job| (job.time.unix_millis(), job.status.as_str(), job.id));
        let values = [flow.into(), time.into(), status.into(), id.into(), latest.unix_millis().into()];
        let results = self.reader().query_all(self.statement(select, values)).await.doing(ACTION)?;
        let read =
            |row: Row<'_>| Ok(Ended { id: row.int("id")?, status: row.status()?, time: row.time("completed_time")? });
        results.iter().map(|result| read(Row { result, dialect })).collect()
    }

    /// Removes those of these jobs that still are what they were; answers how many.
    async fn prune_jobs(&self, ids: &[i64], status: JobStatus, before: Timestamp) -> Result<u64, Error> {
        let dialect = self.dialect();
        let is_status = dialect.of_named("status = $2");
        let these = format!("{} AND {is_status} AND completed_time <= $3", dialect.among_ids("id", "$1"));
        let values = [json!(ids).to_string().into(), status.as_str().into(), before.unix_millis().into()];
        if dialect == Dialect::MySql {
            return self.prune_locked(&these, values.into()).await;
        }
        let lock = dialect.pick("", "FOR UPDATE SKIP LOCKED", "");
        let old = format!("SELECT id FROM jobs WHERE {these} AND {NOT_AWAITED} {lock}");
        crash::before(Step::PruneCommit);
        let removed = self.delete("jobs", ACTION, old, values.into()).await?;
        crash::after(Step::PruneCommit);
        Ok(removed)
    }

    /// The same on MySQL, which would pass over what is locked in a subquery too: locked first, nobody can begin to wait for
    /// them any more.
    async fn prune_locked(&self, these: &str, values: Vec<sea_orm::Value>) -> Result<u64, Error> {
        let dialect = self.dialect();
        let transaction = self.begin(ACTION).await?;
        let lock = format!("SELECT id FROM jobs {} WHERE {these} FOR UPDATE SKIP LOCKED", dialect.by_key());
        let locked = self.ids(&transaction, ACTION, lock, values).await?;
        let old = format!("SELECT id FROM jobs WHERE {} AND {NOT_AWAITED}", dialect.among_ids("id", "$1"));
        let old = self.ids(&transaction, ACTION, old, vec![json!(locked).to_string().into()]).await?;
        let delete = format!("DELETE FROM jobs WHERE {}", dialect.among_ids("id", "$1"));
        let delete = self.statement(delete, [json!(old).to_string().into()]);
        let removed = transaction.execute(delete).await.doing(ACTION)?.rows_affected;
        self.commit(transaction, Step::PruneCommit, ACTION).await?;
        Ok(removed)
    }

    /// Removes those of the oldest rows of the audit trail that are old enough; ids follow the clock closely enough.
    async fn prune_audit(&self, before: Timestamp) -> Result<u64, Error> {
        let oldest =
            format!("SELECT id FROM (SELECT id, time FROM audit ORDER BY id LIMIT {BATCH}) AS oldest WHERE time <= $1");
        self.delete("audit", ACTION, oldest, vec![before.unix_millis().into()]).await
    }
}

async fn rest(started: Instant) {
    tokio::time::sleep(LEAST_REST.max(started.elapsed() * REST)).await;
}
