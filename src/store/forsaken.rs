//! Open rows that no living worker looks after: they hold slots of their flows until their leases are over.

use super::connection::Connection;
use super::sql::{Doing, OPEN, Row};
use super::{Error, Store, WorkerState};
use crate::domain::Timestamp;

const ACTION: &str = "read who holds the slots";

/// Open rows of one flow and one worker that does not live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forsaken {
    /// `jobs.type`
    pub job_type: String,
    /// `jobs.worker_id`; `None` where somebody has opened the rows by hand and named no worker.
    pub worker_id: Option<String>,
    /// How many there are.
    pub rows: u64,
    /// What is known of that worker; `None` where there is no worker of that name.
    pub last_seen: Option<LastSeen>,
}

/// When a worker that does not live was last heard of, by the database's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastSeen {
    /// It has stopped.
    Stopped(Timestamp),
    /// It fell silent.
    Silent(Timestamp),
}

impl Store {
    /// What no living worker looks after, and the database's time; nothing where no worker lives at all, for then nothing waits for
    /// those rows but for a service.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn forsaken(&self) -> Result<(Vec<Forsaken>, Timestamp), Error> {
        let dialect = self.dialect();
        let select = format!(
            "SELECT {}, {}, CAST(count(*) AS bigint) AS held FROM jobs {} WHERE {OPEN} \
             GROUP BY jobs.type, jobs.worker_id ORDER BY jobs.type, jobs.worker_id",
            dialect.text("type"),
            dialect.text("worker_id"),
            dialect.by_index("jobs_open"),
        );
        let open = async { self.reader().query_all(self.statement(select, [])).await.doing(ACTION) };
        let (now, workers, open) = tokio::try_join!(self.now(), self.workers(), self.in_time(ACTION, open))?;
        if !workers.iter().any(|worker| worker.is_live(now)) {
            return Ok((Vec::new(), now));
        }
        let mut forsaken = Vec::new();
        for result in &open {
            let row = Row { result, dialect };
            let worker_id = row.text("worker_id")?;
            let worker = workers.iter().find(|worker| Some(&worker.worker_id) == worker_id.as_ref());
            if worker.is_some_and(|worker| worker.is_live(now)) {
                continue;
            }
            let last_seen = worker.map(|worker| match worker.state == WorkerState::Stopped.as_str() {
                true => LastSeen::Stopped(worker.heartbeat_time),
                false => LastSeen::Silent(worker.heartbeat_time),
            });
            let rows = u64::try_from(row.int("held")?).unwrap_or(0);
            forsaken.push(Forsaken { job_type: row.some_text("type")?, worker_id, rows, last_seen });
        }
        Ok((forsaken, now))
    }
}
