//! Leases on a shared database: how long a run is its worker's, and which runs of other workers are nobody's any more.
//!
//! On SQLite there is one worker, and `jobs.lease_time` stays empty.

use std::time::Duration;

use serde_json::json;

use super::connection::{Connection, Transaction};
use super::read::SILENCE;
use super::sql::{Dialect, Doing, OPEN, Row};
use super::{Claim, Claimed, Error, LapsedRun, Store};
use crate::domain::Timestamp;
use crate::domain::heartbeat::{Lease, LeaseTerms};
use crate::domain::labels::{Label, Labels};

const ACTION: &str = "look after leases";
/// How many runs are taken over by one claim at most.
const AT_MOST: usize = 500;
/// When to look again at a row that some other transaction holds.
const LOCKED_AGAIN: Duration = Duration::from_secs(1);

impl Store {
    /// Has the lease of rows that an earlier try has taken count from now, as that of the others does.
    pub(super) async fn renew(&self, transaction: &Transaction, claim: &Claim, claimed: &Claimed) -> Result<(), Error> {
        let dialect = self.dialect();
        if !dialect.is_shared() || claimed.jobs.is_empty() {
            return Ok(());
        }
        let tokens: Vec<_> = claimed.jobs.iter().map(|job| job.token.as_str()).collect();
        let (these, open) = (dialect.among("run_token", "$1"), dialect.of_named(OPEN));
        let update = format!("UPDATE jobs SET lease_time = $2 WHERE {these} AND {open}");
        let until = claimed.now.plus(claim.terms.untouched(claimed.lease));
        let values = [json!(tokens).to_string().into(), until.unix_millis().into()];
        transaction.execute(self.statement(update, values)).await.doing(ACTION)?;
        Ok(())
    }

    /// Open runs of other workers whose lease is over.
    pub(super) async fn lapsed(
        &self,
        transaction: &Transaction,
        claim: &Claim,
        now: Timestamp,
    ) -> Result<Vec<LapsedRun>, Error> {
        let dialect = self.dialect();
        let texts = ["run_token", "status", "worker_id"].map(|column| dialect.text(column));
        let select = format!(
            "SELECT id, attempt, attempts_before, maximum_attempts, created_time, run_at, schedule_time, heartbeat_time, \
             cancel_requested_time, {} FROM jobs {} WHERE type = $1 AND worker_id <> $2 AND {OPEN} AND lease_time < $3 \
             ORDER BY {} LIMIT {AT_MOST}",
            texts.join(", "),
            dialect.by_index("jobs_open"),
            dialect.sorted_by_id(),
        );
        let values = [claim.flow.as_str().into(), claim.worker.as_str().into(), now.unix_millis().into()];
        let results = transaction.query_all(self.statement(select, values)).await.doing(ACTION)?;
        let mut lapsed = Vec::new();
        for result in &results {
            let row = Row { result, dialect };
            // Without a token it is nobody's run, which is settled otherwise.
            let Some(token) = row.token()? else { continue };
            let first = row.time("created_time")?.max(row.time("run_at")?);
            lapsed.push(LapsedRun {
                job: row.job("id")?,
                token,
                attempt: row.attempt()?,
                attempts_before: row.count("attempts_before")?,
                maximum_attempts: row.maximum_attempts()?,
                worker: row.some_text("worker_id")?,
                status: row.status()?,
                schedule_time: row.maybe_time("schedule_time")?.unwrap_or(first),
                heartbeat_time: row.maybe_time("heartbeat_time")?,
                cancel_requested: row.maybe_int("cancel_requested_time")?.is_some(),
            });
        }
        Ok(lapsed)
    }
}

/// When to look again for leases that are over: when the next one will be as it stands now, or the first that may be
/// shortened from now on.
pub(super) fn next_lapse(
    now: Timestamp,
    lapse: Option<Timestamp>,
    shared: bool,
    terms: LeaseTerms,
) -> Option<Timestamp> {
    let soonest = now.plus(terms.untouched(Lease::Short));
    match lapse {
        // Whoever reads it here settles it, unless another client has it locked.
        Some(lapse) if lapse < now => Some(now.plus(LOCKED_AGAIN)),
        Some(lapse) => Some(lapse.min(soonest)),
        None => shared.then_some(soonest),
    }
}

/// Whether another worker than this one lives: an expression without parameters.
pub(super) fn others_live(dialect: Dialect, than: &str) -> String {
    format!("EXISTS (SELECT 1 {})", living(dialect, than))
}

/// How many other workers live, claim and have these labels: an expression without parameters.
pub(super) fn claimers(dialect: Dialect, than: &str, requires: &Labels) -> String {
    // As `workers.labels` has them, a list in JSON; a label has nothing in it that either would write otherwise.
    let has = |label: &Label| format!(" AND position('\"{}\"' IN other.labels) > 0", label.as_str());
    let able: String = requires.iter().map(has).collect();
    format!("(SELECT count(*) {} AND other.state = 'ACTIVE'{able})", living(dialect, than))
}

fn living(dialect: Dialect, than: &str) -> String {
    let (now, silence) = (dialect.now(), SILENCE.as_millis());
    format!(
        "FROM workers AS other WHERE other.worker_id <> {than} AND other.state <> 'STOPPED' \
         AND other.heartbeat_time > {now} - {silence}"
    )
}

/// In milliseconds; configured times are far shorter than what this could not hold.
pub(super) fn lease_millis(lease: Duration) -> i64 {
    i64::try_from(lease.as_millis()).unwrap_or(i64::MAX / 4)
}
