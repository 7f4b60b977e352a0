//! Why a job that is due has not been claimed: what holds its flow, and which jobs a claim takes before it.

use super::connection::Connection;
use super::sql::{Dialect, Doing, Row};
use super::{Count, Error, JobRow, Store};
use crate::domain::Timestamp;

const ACTION: &str = "read why a job waits";
/// So many jobs before one are looked at, however many there are.
const LOOKED_AT: u64 = 1000;

/// That a flow is paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// Since when; `None` where it was paused by SQL.
    pub since: Option<Timestamp>,
    /// By whom, as above.
    pub by: Option<String>,
}

impl Store {
    /// Who has paused the flow of this type; `None` where nobody has.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn pause_of(&self, job_type: &str) -> Result<Option<Pause>, Error> {
        let dialect = self.dialect();
        let select = format!("SELECT paused_time, {} FROM flows WHERE type = $1 AND paused", dialect.text("paused_by"));
        let query = async {
            let result = self.reader().query_one(self.statement(select, [job_type.into()])).await.doing(ACTION)?;
            let Some(result) = result else { return Ok(None) };
            let row = Row { result: &result, dialect };
            Ok(Some(Pause { since: row.maybe_time("paused_time")?, by: row.text("paused_by")? }))
        };
        self.in_time(ACTION, query).await
    }

    /// How many due jobs of its flow a claim takes before this one.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn ahead_of(&self, job: &JobRow, now: Timestamp) -> Result<Count, Error> {
        let dialect = self.dialect();
        // MySQL's index has the priority with its sign turned.
        let (priority, higher, sign) =
            if dialect == Dialect::MySql { ("priority_down", "<", -1) } else { ("priority", ">", 1) };
        // Each is a stretch of the index that claims read, and none is read further than is counted.
        let stretch = |these: String, place: u32| {
            format!(
                "SELECT run_at FROM (SELECT run_at FROM jobs {} WHERE type = $1 AND status = 'PENDING' AND {these} \
                 ORDER BY {priority} {}, run_at, id LIMIT {}) AS stretch{place}",
                dialect.by_index("jobs_claim"),
                if sign < 0 { "ASC" } else { "DESC" },
                LOOKED_AT + 1,
            )
        };
        let stretches = [
            stretch(format!("{priority} {higher} $2"), 1),
            stretch(format!("{priority} = $2 AND run_at < $3"), 2),
            stretch(format!("{priority} = $2 AND run_at = $3 AND id < $4"), 3),
        ];
        // Those that are delayed are no more before it than others that come later.
        let select = format!(
            "SELECT CAST(count(*) AS bigint) AS looked_at, \
             CAST(COALESCE(sum(CASE WHEN run_at <= $5 THEN 1 ELSE 0 END), 0) AS bigint) AS due FROM ({}) AS before_it",
            stretches.join(" UNION ALL ")
        );
        let values = [
            job.job_type.as_str().into(),
            (job.priority * sign).into(),
            job.run_at.unix_millis().into(),
            job.id.0.into(),
            now.unix_millis().into(),
        ];
        let query = async {
            let result = self.reader().query_one(self.statement(select, values)).await.doing(ACTION)?;
            let Some(result) = result else { return Ok(Count::default()) };
            let row = Row { result: &result, dialect };
            let count = |column| Ok::<_, Error>(u64::try_from(row.int(column)?).unwrap_or(0));
            Ok(Count { at_least: count("due")?.min(LOOKED_AT), or_more: count("looked_at")? > LOOKED_AT })
        };
        self.in_time(ACTION, query).await
    }
}
