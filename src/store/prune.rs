//! What has ended long ago goes: jobs with their runs and events, the audit trail, sessions.
//!
//! In batches of their own transactions with rests between them, found along `jobs_ended`, so that neither a claim nor a
//! settlement waits long, however much is to go. A row that somebody has locked is left for the next time.

use std::time::Duration;

use sea_orm::ConnectionTrait;
use tokio::time::Instant;

use super::sql::{Doing, Row};
use super::{Error, Store};
use crate::domain::retention::Horizon;
use crate::domain::{JobStatus, Timestamp};

const ACTION: &str = "remove old rows";
/// Jobs of one transaction; runs and events go with each.
const BATCH: u32 = 200;
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
        self.completed + self.error + self.cancelled + self.audit + self.sessions
    }

    fn of(&mut self, status: JobStatus) -> &mut u64 {
        match status {
            JobStatus::Error => &mut self.error,
            JobStatus::Cancelled => &mut self.cancelled,
            JobStatus::Completed | JobStatus::Pending | JobStatus::InQueue | JobStatus::Progress => &mut self.completed,
        }
    }
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
            for status in FINAL {
                let Some(before) = horizon.of(status) else { continue };
                let mut from = Timestamp::from_unix_millis(i64::MIN);
                loop {
                    if Instant::now() >= until {
                        pruned.more = true;
                        return Ok(pruned);
                    }
                    let started = Instant::now();
                    let batch = || self.prune_jobs(&flow, status, from, before);
                    let (removed, last) = self.in_time(ACTION, self.retrying(batch)).await?;
                    *pruned.of(status) += removed;
                    let Some(last) = last else { break };
                    from = last;
                    rest(started).await;
                }
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
        let delete = async { self.writer().execute_raw(self.statement(sessions, [])).await.doing(ACTION) };
        pruned.sessions = self.in_time(ACTION, delete).await?.rows_affected();
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
            let result = self.reader().query_one_raw(self.statement(select, values)).await.doing(ACTION)?;
            result.map_or(Ok(0), |result| Row { result: &result, dialect: self.dialect() }.int("old"))
        };
        Ok(u64::try_from(self.in_time(ACTION, query).await?).unwrap_or(0))
    }

    /// The types that ended rows have, by one step along the index for each.
    async fn ended_types(&self) -> Result<Vec<String>, Error> {
        let dialect = self.dialect();
        let by_ended = dialect.by_index("jobs_ended");
        let select = format!(
            "WITH RECURSIVE ended(type) AS (SELECT min(type) FROM jobs {by_ended} WHERE {ENDED} UNION ALL \
             SELECT (SELECT min(type) FROM jobs {by_ended} WHERE {ENDED} AND type > ended.type) \
             FROM ended WHERE ended.type IS NOT NULL) SELECT {} FROM ended WHERE type IS NOT NULL",
            dialect.text("type"),
        );
        let query = async {
            let results = self.reader().query_all_raw(self.statement(select, [])).await.doing(ACTION)?;
            results.iter().map(|result| Row { result, dialect }.some_text("type")).collect()
        };
        self.in_time(ACTION, query).await
    }

    /// Removes a batch of the oldest from `from` on; answers how many, and where the next one starts if there may be more.
    async fn prune_jobs(
        &self,
        flow: &str,
        status: JobStatus,
        from: Timestamp,
        before: Timestamp,
    ) -> Result<(u64, Option<Timestamp>), Error> {
        let dialect = self.dialect();
        // From where the last batch ended: rows of other statuses that stay would else be passed over again by each.
        let oldest = format!(
            "SELECT id FROM jobs {} WHERE type = $1 AND {ENDED} AND completed_time >= $2 AND completed_time <= $3 \
             AND status = $4 AND {NOT_AWAITED} ORDER BY completed_time LIMIT {BATCH} {}",
            dialect.by_index("jobs_ended"),
            dialect.pick("", "FOR UPDATE SKIP LOCKED"),
        );
        let delete = format!(
            "DELETE FROM jobs WHERE status = $4 AND {} RETURNING completed_time",
            dialect.one_of("id", &oldest)
        );
        let values = [flow.into(), from.unix_millis().into(), before.unix_millis().into(), status.as_str().into()];
        let results = self.writer().query_all_raw(self.statement(delete, values)).await.doing(ACTION)?;
        let mut last = from;
        for result in &results {
            last = last.max(Row { result, dialect }.time("completed_time")?);
        }
        let removed = u64::try_from(results.len()).unwrap_or(u64::MAX);
        Ok((removed, (removed >= u64::from(BATCH)).then_some(last)))
    }

    /// Removes those of the oldest rows of the audit trail that are old enough; ids follow the clock closely enough.
    async fn prune_audit(&self, before: Timestamp) -> Result<u64, Error> {
        let delete = format!(
            "DELETE FROM audit WHERE id IN (SELECT id FROM (SELECT id, time FROM audit ORDER BY id LIMIT {BATCH}) AS oldest \
             WHERE time <= $1)"
        );
        let delete = self.statement(delete, [before.unix_millis().into()]);
        Ok(self.writer().execute_raw(delete).await.doing(ACTION)?.rows_affected())
    }
}

async fn rest(started: Instant) {
    tokio::time::sleep(LEAST_REST.max(started.elapsed() * REST)).await;
}
