//! What the database says about runs that are alive.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::connection::{Connection, Record};
use super::sql::{Doing, OPEN, OPEN_OR_PENDING, Row};
use super::{Error, Store};
use crate::domain::{JobId, RunToken};

const ACTION: &str = "read what is known of runs";

/// What the database says about a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is its job's.
    Open,
    /// It was, and its job has ended or gone on.
    Over,
    /// It has never been heard of, or was removed with its job.
    Unknown {
        /// Whether there is a job of that number that [waits](Waiting), which may be the run's.
        waits: bool,
    },
}

/// Which jobs count as waiting for a run that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// All that have not ended: what recovery finds of an open one may have it wait again.
    OpenToo,
    /// Those that are PENDING. One that runs by now has been started beside the other, and waits for nothing.
    PendingOnly,
}

impl Store {
    /// What is known of each of these runs of jobs.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn standings(
        &self,
        runs: &[(JobId, RunToken)],
        waiting: Waiting,
    ) -> Result<BTreeMap<RunToken, Standing>, Error> {
        let dialect = self.dialect();
        let (token, these) = (dialect.text("run_token"), dialect.among("run_token", "$1"));
        // Before what its job says now. Where the job is of an earlier attempt, another copy of the database was brought back; and
        // a client that does not keep foreign keys, as is SQLite's default, leaves what belonged to a job that it removes.
        let before = format!(
            "SELECT {token} FROM runs WHERE {these} \
             AND EXISTS (SELECT 1 FROM jobs WHERE jobs.id = runs.job_id AND jobs.attempt >= runs.attempt)"
        );
        let now = format!(
            "SELECT {token}, CAST(CASE WHEN {OPEN} THEN 1 ELSE 0 END AS bigint) AS open FROM jobs {} WHERE {these}",
            dialect.by_index("jobs_run_token")
        );
        let counts = if waiting == Waiting::OpenToo { OPEN_OR_PENDING } else { "status = 'PENDING'" };
        let waiting = format!("SELECT id FROM jobs WHERE {} AND {counts}", dialect.among_ids("id", "$1"));
        let tokens = json!(runs.iter().map(|(_, token)| token.as_str()).collect::<Vec<_>>()).to_string();
        let jobs = json!(runs.iter().map(|(job, _)| job.0).collect::<Vec<_>>()).to_string();
        let query = async {
            let ask = async |select: String, values: &str| -> Result<Vec<Record>, Error> {
                self.reader().query_all(self.statement(select, [values.into()])).await.doing(ACTION)
            };
            let mut known = BTreeMap::new();
            for result in &ask(before, &tokens).await? {
                known.extend(Row { result, dialect }.token()?.map(|token| (token, Standing::Over)));
            }
            for result in &ask(now, &tokens).await? {
                let row = Row { result, dialect };
                let standing = if row.flag("open")? { Standing::Open } else { Standing::Over };
                known.extend(row.token()?.map(|token| (token, standing)));
            }
            let mut waits = BTreeSet::new();
            for result in &ask(waiting, &jobs).await? {
                waits.insert(Row { result, dialect }.job("id")?);
            }
            let standing = |job: &JobId, token: &RunToken| {
                known.get(token).copied().unwrap_or(Standing::Unknown { waits: waits.contains(job) })
            };
            Ok(runs.iter().map(|(job, token)| (token.clone(), standing(job, token))).collect())
        };
        self.in_time(ACTION, query).await
    }
}
