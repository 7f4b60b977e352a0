//! What the database says about runs that are alive.

use std::collections::BTreeMap;

use serde_json::json;

use super::connection::Connection;
use super::sql::{Doing, OPEN, Row};
use super::{Error, Store};
use crate::domain::RunToken;

const ACTION: &str = "read what is known of runs";

/// What the database says about a run that it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It is not its job's any more.
    Over,
    /// It is.
    Open,
}

impl Store {
    /// What is known of these runs; one that is missing in the answer has never been heard of, or was removed with its job.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn standings(&self, tokens: &[RunToken]) -> Result<BTreeMap<RunToken, Standing>, Error> {
        let dialect = self.dialect();
        let names = json!(tokens.iter().map(RunToken::as_str).collect::<Vec<_>>()).to_string();
        let (token, these) = (dialect.text("run_token"), dialect.among("run_token", "$1"));
        let of_jobs = format!(
            "SELECT {token}, CAST(CASE WHEN {OPEN} THEN 1 ELSE 0 END AS bigint) AS open FROM jobs {} WHERE {these}",
            dialect.by_index("jobs_run_token")
        );
        let of_runs = format!("SELECT {token}, CAST(0 AS bigint) AS open FROM runs WHERE {these}");
        let query = async {
            let mut standings = BTreeMap::new();
            for select in [of_runs, of_jobs] {
                let statement = self.statement(select, [names.as_str().into()]);
                for result in &self.reader().query_all(statement).await.doing(ACTION)? {
                    let row = Row { result, dialect };
                    if let Some(token) = row.token()? {
                        let standing = if row.flag("open")? { Standing::Open } else { Standing::Over };
                        standings
                            .entry(token)
                            .and_modify(|known: &mut Standing| *known = standing.max(*known))
                            .or_insert(standing);
                    }
                }
            }
            Ok(standings)
        };
        self.in_time(ACTION, query).await
    }
}
