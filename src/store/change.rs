//! What a start or an end of a run changes: an event, the job and the run, each only where the run is still current.
//!
//! A change is one round trip to the database. The event is selected from the row as it stands, which names the status it comes
//! from. PostgreSQL gets all changes of a batch that are alike as one statement that locks the rows first; SQLite, where nobody
//! else can write meanwhile, a change as statements one after the other. MySQL takes one statement at a time, so there it is a
//! round trip each.

use std::collections::BTreeSet;

use sea_orm::{DbErr, Value};
use serde_json::json;

use super::claim::lock_flows_sql;
use super::connection::{Connection, Transaction};
use super::sql::{Dialect, Doing, Row};
use super::{Error, Store};
use crate::domain::{JobId, RunToken};

/// What is written about a run that is still current.
pub(super) struct Change {
    pub(super) token: RunToken,
    /// Which row of `jobs` it is, where the run is current.
    pub(super) current: String,
    /// A selection of the event's columns up to where that row, called `current`, is to be named; and what comes after.
    pub(super) event: String,
    pub(super) event_rest: String,
    /// What is set in `jobs`.
    pub(super) job: String,
    /// Whether the other workers of a shared database are woken: what this row was holding up may go on.
    pub(super) is_told: bool,
    pub(super) run: Option<RunChange>,
    pub(super) values: Parameters,
}

/// What becomes of the row of `runs`.
#[derive(PartialEq)]
pub(super) enum RunChange {
    /// It is inserted, by what a selection begins with, or changed where it is there.
    Written { insert: String, conflict: &'static str },
    /// It is removed, by this condition.
    Forgotten { which: String },
}

/// The values of a statement, each by the name that it has in the text.
#[derive(Debug)]
pub(super) struct Parameters {
    pub(super) values: Vec<Value>,
    /// What such a name begins with.
    name: char,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { values: Vec::new(), name: '$' }
    }
}

impl Parameters {
    /// For a change, with the names of its run's job and token: [`JOB`] and [`TOKEN`] on PostgreSQL, where a statement has the values
    /// of several changes, so that they are columns.
    pub(super) fn of(dialect: Dialect, job: JobId, token: &RunToken) -> (Self, [String; 2]) {
        let name = if dialect == Dialect::Postgres { 'v' } else { '$' };
        let mut values = Self { name, ..Self::default() };
        let names = [values.add(job.0), values.add(token.as_str())];
        (values, names)
    }

    pub(super) fn add(&mut self, value: impl Into<Value>) -> String {
        self.values.push(value.into());
        self.name(self.values.len())
    }

    fn name(&self, number: usize) -> String {
        format!("{}{number}", self.name)
    }

    /// Each by its name.
    fn named(&self) -> impl Iterator<Item = (String, &Value)> {
        self.values.iter().zip(1..).map(|(value, number)| (self.name(number), value))
    }

    /// As the columns of a table.
    fn columns(&self) -> Vec<(String, &'static str)> {
        let kind = |value: &Value| if matches!(value, Value::String(_)) { "text" } else { "bigint" };
        self.named().map(|(name, value)| (name, kind(value))).collect()
    }

    /// As a row of that table.
    fn row(&self) -> Result<serde_json::Value, DbErr> {
        let columns = self.named().map(|(name, value)| match value {
            Value::String(text) => Ok((name, json!(text))),
            Value::BigInt(number) => Ok((name, json!(number))),
            other => Err(DbErr::Type(format!("no column for {other:?}"))),
        });
        columns.collect::<Result<serde_json::Map<_, _>, _>>().map(serde_json::Value::Object)
    }
}

/// The first two columns of PostgreSQL's list of changes.
const JOB: &str = "v1";
const TOKEN: &str = "v2";

/// Up to where its values are selected.
pub(super) const EVENT: &str =
    "INSERT INTO job_events (job_id, attempt, from_status, to_status, time, worker_id, message)";

impl Change {
    /// Whether one statement can carry out both.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.job == other.job && self.current == other.current && self.event == other.event && self.run == other.run
    }

    /// The statements one after the other; the last one, about the run, on this condition too.
    fn statements(&self, condition: &str) -> Vec<String> {
        let Self { current, event, event_rest, job, run, .. } = self;
        let row = format!("(SELECT id, attempt, status FROM jobs WHERE {current}) AS current");
        let mut statements =
            vec![format!("{EVENT} {event} {row} {event_rest}"), format!("UPDATE jobs SET {job} WHERE {current}")];
        statements.extend(run.as_ref().map(|run| match run {
            RunChange::Written { insert, conflict } => format!("{insert} WHERE true{condition} {conflict}"),
            RunChange::Forgotten { which } => format!("DELETE FROM runs WHERE {which}{condition}"),
        }));
        statements
    }

    /// One statement for PostgreSQL that carries out every change that is like this one, of the list in `$1`, and tells the tokens
    /// of the runs that were current. Where `locks` is set it locks the flows of the list in `$2` before, and counts them in each row.
    fn of_all(&self, locks: bool) -> String {
        let Self { current, event, event_rest, job, is_told, run, values, token: _ } = self;
        let columns = values.columns();
        let columns: Vec<_> = columns.iter().map(|(name, kind)| (name.as_str(), *kind)).collect();
        let items = Dialect::Postgres.items("$1", &columns);
        let run = match run {
            Some(RunChange::Written { insert, conflict }) => {
                format!(", run AS ({insert} FROM current WHERE true {conflict})")
            }
            Some(RunChange::Forgotten { which }) => format!(", run AS (DELETE FROM runs USING current WHERE {which})"),
            None => String::new(),
        };
        let told = if *is_told {
            ", CAST(pg_notify('callsheet', COALESCE(current_setting('callsheet.instance', true), '')) AS text) AS told"
        } else {
            ""
        };
        // The flows first, as everybody locks them before rows of jobs: a condition on no row is looked at before any row.
        let (lock, first, locked) = if locks {
            let lock = lock_flows_sql(Dialect::Postgres, "$2");
            let first = "(SELECT count(*) FROM flow) >= 0 AND ";
            (format!("flow AS MATERIALIZED ({lock}), "), first, ", (SELECT count(*) FROM flow) AS locked")
        } else {
            (String::new(), "", "")
        };
        // A transaction that somebody has forgotten must not hold up the writes about all other runs: what finds its
        // row locked fails at once, and is asked for again.
        // The rows are named by their keys once more: what they are joined with is unknown to the planner.
        format!(
            "WITH {lock}item AS MATERIALIZED (SELECT * FROM {items}), \
             current AS MATERIALIZED (SELECT id, attempt, status, item.* FROM jobs JOIN item ON {current} \
             WHERE {first}id = ANY (ARRAY(SELECT {JOB} FROM item)) FOR NO KEY UPDATE OF jobs NOWAIT), \
             event AS ({EVENT} {event} current {event_rest}), \
             job AS (UPDATE jobs SET {job} FROM current WHERE jobs.id = current.id \
             AND jobs.id = ANY (ARRAY(SELECT id FROM current))){run} SELECT {TOKEN} AS run_token{told}{locked} FROM current"
        )
    }
}

impl Store {
    /// Carries out changes that are alike, only one but on PostgreSQL, and says of each whether its run was current. PostgreSQL
    /// locks these flows, too.
    pub(super) async fn carry_out(
        &self,
        transaction: &Transaction,
        action: &'static str,
        changes: &[Change],
        flows: &BTreeSet<&str>,
    ) -> Result<Vec<bool>, Error> {
        let dialect = self.dialect();
        let Some(first) = changes.first() else { return Ok(Vec::new()) };
        let values = || first.values.values.clone();
        let is_current = match dialect {
            Dialect::Postgres => {
                let items = changes.iter().map(|change| change.values.row()).collect::<Result<Vec<_>, _>>();
                let mut values = vec![serde_json::Value::from(items.doing(action)?).to_string().into()];
                if !flows.is_empty() {
                    values.push(json!(flows).to_string().into());
                }
                let statement = self.statement(first.of_all(!flows.is_empty()), values);
                let results = transaction.query_all(statement).await.doing(action)?;
                let locked = match results.first() {
                    Some(result) if !flows.is_empty() => Row { result, dialect }.count("locked")?,
                    _ => 0,
                };
                if usize::try_from(locked).unwrap_or(usize::MAX) < flows.len() {
                    self.lock_flows(transaction, flows).await?;
                }
                let tokens = results.iter().map(|result| Row { result, dialect }.token());
                let current = tokens.collect::<Result<Vec<_>, _>>()?;
                let is_current = |change: &Change| current.iter().flatten().any(|token| *token == change.token);
                return Ok(changes.iter().map(is_current).collect());
            }
            // changes(): how many rows the update has changed.
            Dialect::Sqlite => {
                let statement = self.statement(first.statements(" AND changes() > 0").join("; "), values());
                transaction.execute(statement).await.doing(action)?.rows_affected > 0
            }
            Dialect::MySql => {
                // What finds its row locked fails at once, as above.
                let lock = format!("SELECT id FROM jobs WHERE {} FOR UPDATE NOWAIT", first.current);
                let is_current = !self.ids(transaction, action, lock, values()).await?.is_empty();
                if is_current {
                    for sql in first.statements("") {
                        transaction.execute(self.statement(sql, values())).await.doing(action)?;
                    }
                }
                is_current
            }
        };
        Ok(vec![is_current])
    }
}
