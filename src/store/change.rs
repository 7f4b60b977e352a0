//! What a start or an end of a run changes: an event, the job and the run, each only where the run is still current.
//!
//! A change is one round trip to the database. The event is selected from the row as it stands, which names the status it comes
//! from. PostgreSQL gets all changes of a batch that are alike as one statement that locks the rows first; SQLite, where nobody
//! else can write meanwhile, a change as statements one after the other. MySQL takes one statement at a time, so there it is a
//! round trip each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use sea_orm::{DbErr, Value};
use serde_json::json;

use super::claim::lock_flows_sql;
use super::connection::{Connection, Transaction};
use super::sql::{Dialect, Doing, Row};
use super::{Error, Store};
use crate::domain::RunToken;

/// What is written about a run that is still current.
pub(super) struct Change {
    pub(super) token: RunToken,
    pub(super) text: Arc<ChangeText>,
    /// As the text names them; the first two are job and token.
    pub(super) values: Vec<Value>,
}

/// What all changes of one shape say in words.
pub(super) struct ChangeText {
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
    /// Once they are put together: the statements for one, and the statement for all, which locks flows or not.
    pub(super) made: Made,
}

#[derive(Default)]
pub(super) struct Made {
    each: OnceLock<String>,
    all: OnceLock<String>,
    all_and_flows: OnceLock<String>,
}

/// What becomes of the row of `runs`.
pub(super) enum RunChange {
    /// It is inserted, by what a selection begins with, or changed where it is there.
    Written { insert: String, conflict: &'static str },
    /// It is removed, by this condition.
    Forgotten { which: String },
}

/// What the words of a change depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shape {
    /// A start.
    Start,
    /// An end.
    End {
        /// What becomes of the job.
        next: NextShape,
        /// Whether `runs` has a row of it.
        has_run: bool,
        /// Whether it is another worker's, whose lease has to be over.
        lapsed: bool,
    },
}

/// What becomes of a job, as far as words depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum NextShape {
    Completed,
    Ended,
    RetryAfter,
    Requeue,
}

impl ChangeText {
    /// That of this shape, which is put together once: there are a few, each of kilobytes, for every job that there is.
    pub(super) fn of(dialect: Dialect, shape: Shape, make: impl FnOnce() -> Self) -> Arc<Self> {
        static ALL: Mutex<BTreeMap<(Dialect, Shape), Arc<ChangeText>>> = Mutex::new(BTreeMap::new());
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry((dialect, shape)).or_insert_with(|| Arc::new(make())))
    }

    /// The names of a change's values: of columns on PostgreSQL, where a statement has the values of several changes.
    pub(super) fn names<const N: usize>(dialect: Dialect) -> [String; N] {
        std::array::from_fn(|index| name(if dialect == Dialect::Postgres { COLUMN } else { '$' }, index))
    }
}

/// What the names of PostgreSQL's columns begin with.
const COLUMN: char = 'v';
/// The first two columns of its list of changes.
const JOB: &str = "v1";
const TOKEN: &str = "v2";

fn name(prefix: char, index: usize) -> String {
    format!("{prefix}{}", index + 1)
}

/// The values of a statement, each by the name that it has in the text.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    pub(super) values: Vec<Value>,
}

impl Parameters {
    pub(super) fn add(&mut self, value: impl Into<Value>) -> String {
        self.values.push(value.into());
        name('$', self.values.len() - 1)
    }
}

/// As the columns of a table.
fn columns(values: &[Value]) -> Vec<(String, &'static str)> {
    let kind = |value: &Value| if matches!(value, Value::String(_)) { "text" } else { "bigint" };
    values.iter().enumerate().map(|(index, value)| (name(COLUMN, index), kind(value))).collect()
}

/// As a row of that table.
fn row(values: &[Value]) -> Result<serde_json::Value, DbErr> {
    let columns = values.iter().enumerate().map(|(index, value)| match value {
        Value::String(text) => Ok((name(COLUMN, index), json!(text))),
        Value::BigInt(number) => Ok((name(COLUMN, index), json!(number))),
        other => Err(DbErr::Type(format!("no column for {other:?}"))),
    });
    columns.collect::<Result<serde_json::Map<_, _>, _>>().map(serde_json::Value::Object)
}

/// Up to where its values are selected.
pub(super) const EVENT: &str =
    "INSERT INTO job_events (job_id, attempt, from_status, to_status, time, worker_id, message)";

impl Change {
    /// Whether one statement can carry out both.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.text, &other.text)
    }
}

impl ChangeText {
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
    fn of_all(&self, values: &[Value], locks: bool) -> String {
        let Self { current, event, event_rest, job, is_told, run, made: _ } = self;
        let columns = columns(values);
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
        // The rows to lock are named by their keys once more: what they are joined with is unknown to the planner. Not so those to
        // update, which it knows to be few: with such a list on top it would rather read all of another index that has the key
        // somewhere, as long as the table is small, and goes on with that when it is large.
        format!(
            "WITH {lock}item AS MATERIALIZED (SELECT * FROM {items}), \
             current AS MATERIALIZED (SELECT id, attempt, status, item.* FROM jobs JOIN item ON {current} \
             WHERE {first}id = ANY (ARRAY(SELECT {JOB} FROM item)) FOR NO KEY UPDATE OF jobs NOWAIT), \
             event AS ({EVENT} {event} current {event_rest}), \
             job AS (UPDATE jobs SET {job} FROM current WHERE jobs.id = current.id){run} SELECT {TOKEN} AS run_token{told}{locked} FROM current"
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
        let (values, text) = (|| first.values.clone(), &first.text);
        let is_current = match dialect {
            Dialect::Postgres => {
                let items = changes.iter().map(|change| row(&change.values)).collect::<Result<Vec<_>, _>>();
                let mut values = vec![serde_json::Value::from(items.doing(action)?).to_string().into()];
                if !flows.is_empty() {
                    values.push(json!(flows).to_string().into());
                }
                let locks = !flows.is_empty();
                let made = if locks { &text.made.all_and_flows } else { &text.made.all };
                let sql = made.get_or_init(|| text.of_all(&first.values, locks));
                let statement = self.statement(sql.as_str(), values);
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
                let sql = text.made.each.get_or_init(|| text.statements(" AND changes() > 0").join("; "));
                let statement = self.statement(sql.as_str(), values());
                transaction.execute(statement).await.doing(action)?.rows_affected > 0
            }
            Dialect::MySql => {
                // What finds its row locked fails at once, as above.
                let lock = format!("SELECT id FROM jobs WHERE {} FOR UPDATE NOWAIT", text.current);
                let is_current = !self.ids(transaction, action, lock, values()).await?.is_empty();
                if is_current {
                    for sql in text.statements("") {
                        transaction.execute(self.statement(sql, values())).await.doing(action)?;
                    }
                }
                is_current
            }
        };
        Ok(vec![is_current])
    }
}
