//! How a change is noticed on MySQL, which tells nobody of one: by a short look at what a worker would act on.
//!
//! A row that can be claimed now, or sooner than any other, is the first of its flow by `run_at`: all that were before it have
//! been claimed, or the flow has no room or is paused, which is looked at too. Each part of a look is one row of an index.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::Error;
use super::connection::{Connection, Database};
use super::sql::{Dialect, Doing, Row};
use super::wake::tell;

/// How often to look, which is how late a change may be noticed.
const EVERY: Duration = Duration::from_millis(250);

const ACTION: &str = "watch for changes";
const CANCELLED: &[&str] = &["cancelled", "queued_cancelled", "running_cancelled"];

/// What there is to be acted on, as far as it tells one state from another.
pub(super) type Seen = Vec<Option<i64>>;

pub(super) async fn go_on(reader: Database, mut seen: Seen, changes: watch::Sender<u64>) {
    loop {
        sleep(EVERY).await;
        // A database that can't be asked can't be worked with either: whoever works with it will notice.
        if let Ok(now) = look(&reader).await
            && now != seen
        {
            seen = now;
            tell(&changes);
        }
    }
}

/// Looks once.
///
/// # Errors
/// Where the database fails.
pub(super) async fn look(reader: &Database) -> Result<Seen, Error> {
    let dialect = Dialect::MySql;
    // One status at a time: among several the planner would read all rows of the type.
    let of = |index: &str, status: &str| {
        format!("FROM jobs {} WHERE status = '{status}' AND type = flows.type", dialect.by_index(index))
    };
    let due = of("jobs_due", "PENDING");
    let flows = format!(
        "SELECT CASE WHEN paused THEN 1 ELSE 0 END AS paused, \
         (SELECT run_at {due} ORDER BY run_at LIMIT 1) AS run_at, (SELECT id {due} ORDER BY run_at LIMIT 1) AS first, \
         (SELECT count(*) {}) AS queued, (SELECT count(*) {}) AS running, \
         (SELECT cancel_requested_time {} ORDER BY cancel_requested_time DESC LIMIT 1) AS cancelled, \
         (SELECT count(cancel_requested_time) {}) AS queued_cancelled, \
         (SELECT count(cancel_requested_time) {}) AS running_cancelled FROM flows ORDER BY type",
        of("jobs_open", "INQUEUE"),
        of("jobs_open", "PROGRESS"),
        of("jobs_cancel_requested", "PENDING"),
        of("jobs_cancel_requested", "INQUEUE"),
        of("jobs_cancel_requested", "PROGRESS"),
    );
    let others = format!(
        "SELECT (SELECT max(id) FROM jobs) AS job, (SELECT max(id) FROM job_events) AS event, \
         (SELECT job_id FROM job_dependencies {} WHERE {} ORDER BY job_id LIMIT 1) AS dependency, \
         (SELECT max(drain_requested_time) FROM workers) AS drained, \
         (SELECT count(*) FROM (SELECT 1 FROM deliveries WHERE state = 'FAILED' LIMIT 1000) AS failed) AS failed",
        dialect.by_index("job_dependencies_ended"),
        dialect.noted(),
    );
    let mut seen = Vec::new();
    for (select, columns) in [
        (flows, [&["paused", "run_at", "first", "queued", "running"][..], CANCELLED].concat()),
        (others, ["job", "event", "dependency", "drained", "failed"].to_vec()),
    ] {
        for result in reader.query_all(dialect.statement(select, [])).await.doing(ACTION)? {
            let row = Row { result: &result, dialect };
            for column in &columns {
                seen.push(row.maybe_int(column)?);
            }
        }
    }
    Ok(seen)
}
