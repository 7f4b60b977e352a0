//! Enqueueing: rows that somebody hands to Callsheet, all of a batch or none.

use std::collections::{BTreeMap, BTreeSet};

use sea_orm::{DbErr, Value};
use serde::Serialize;

use super::change::Parameters;
use super::connection::{Connection, Transaction};
use super::sql::{Dialect, Doing, OPEN_OR_PENDING, Row};
use super::{Due, Enqueued, Error, NewJob, Store, error};
use crate::crash::{self, Step};
use crate::domain::JobId;
use crate::domain::trace::TraceState;

const ENQUEUE: &str = "enqueue jobs";

/// Rows that one statement inserts at most. One of 5,000 rows takes PostgreSQL a fifth less for each than ten of 500.
const LARGEST_INSERT: usize = 5_000;
/// The same on MySQL, where each value is a parameter and a statement has 65,535 at most.
const LARGEST_MYSQL_INSERT: usize = 500;
/// Bytes of texts that one statement brings at most.
const CHUNK_BYTES: usize = 8 << 20;

/// A new row, as the element of a list that a statement inserts from. What is not said is left out: the databases take as long to
/// read a null as a value.
#[derive(Serialize)]
struct NewItem<'a> {
    r#type: &'a str,
    identifier: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    priority: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    maximum_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracestate: Option<&'a str>,
}

impl<'a> NewItem<'a> {
    fn of(job: &'a NewJob) -> Self {
        let (run_at, delay) = match job.due {
            Due::At(time) => (Some(time.unix_millis()), None),
            Due::After(delay) => (None, Some(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX / 4))),
        };
        Self {
            r#type: job.flow.as_str(),
            identifier: &job.identifier,
            payload: job.payload.as_deref(),
            priority: job.priority,
            run_at,
            delay,
            maximum_attempts: job.maximum_attempts,
            unique_key: job.unique_key.as_deref(),
            traceparent: job.trace.as_ref().map(|trace| trace.parent.to_string()),
            tracestate: job.trace.as_ref().and_then(|trace| trace.state.as_ref()).map(TraceState::as_str),
        }
    }
}

/// The columns of new rows, but for the one in which they differ.
const SAME: [(&str, &str); 9] = [
    ("type", "text"),
    ("payload", "text"),
    ("priority", "bigint"),
    ("run_at", "bigint"),
    ("delay", "bigint"),
    ("maximum_attempts", "bigint"),
    ("unique_key", "text"),
    ("traceparent", "text"),
    ("tracestate", "text"),
];

/// The new rows as a table `item`, and the values of its parameters; MySQL has a way of its own ([`Store::insert_values`]).
///
/// Rows that differ in nothing but their identifiers, as those of a file do, are a list of these: to read a list of rows takes
/// PostgreSQL 4 µs for each, a sixth of all that it does with a row.
fn source(dialect: Dialect, new: &[NewJob]) -> Result<(String, Vec<Value>), DbErr> {
    let json = |list: serde_json::Result<String>| list.map_err(|error| DbErr::Json(error.to_string()));
    let Some(first) = new.first().filter(|first| new.iter().all(|job| is_like(first, job))) else {
        let items: Vec<NewItem<'_>> = new.iter().map(NewItem::of).collect();
        let columns = [&[("identifier", "text")], &SAME[..]].concat();
        return Ok((dialect.items("$1", &columns), vec![json(serde_json::to_string(&items))?.into()]));
    };
    let same = NewItem::of(first);
    let identifiers = json(serde_json::to_string(&new.iter().map(|job| &job.identifier).collect::<Vec<_>>()))?;
    let values = vec![
        identifiers.into(),
        same.r#type.into(),
        same.payload.into(),
        i64::from(same.priority).into(),
        same.run_at.into(),
        same.delay.into(),
        same.maximum_attempts.map(i64::from).into(),
        same.unique_key.into(),
        same.traceparent.into(),
        same.tracestate.into(),
    ];
    let columns = SAME.iter().zip(2..).map(|((name, kind), number)| format!("CAST(${number} AS {kind}) AS {name}"));
    let list = dialect.pick("json_each($1)", "json_array_elements_text(CAST($1 AS json)) AS list(value)", "");
    let source =
        format!("(SELECT value AS identifier, {} FROM {list}) AS item", columns.collect::<Vec<_>>().join(", "));
    Ok((source, values))
}

/// Whether these differ in their identifiers at most; each key is its row's own.
fn is_like(one: &NewJob, other: &NewJob) -> bool {
    let NewJob { flow, identifier: _, payload, priority, due, maximum_attempts, unique_key, trace } = one;
    unique_key.is_none()
        && other.unique_key.is_none()
        && (flow, priority, due, maximum_attempts, payload, trace)
            == (&other.flow, &other.priority, &other.due, &other.maximum_attempts, &other.payload, &other.trace)
}

impl Store {
    /// Enqueues jobs, all of them or none, and answers in their order. Wakes this process too.
    ///
    /// # Errors
    /// [`Error::NulCharacter`] and [`Error::TooLarge`] before anything is written; else where the database fails.
    pub async fn enqueue(&self, new: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
        self.enqueue_after(new, &BTreeMap::new()).await
    }

    /// [`Store::enqueue`], with what jobs wait for by their places in `new`: one is runnable once all of those are
    /// COMPLETED, and ends as ERROR where one of them ends otherwise. One that is there already is left as it is.
    ///
    /// # Errors
    /// [`Error::NothingToWaitFor`] before anything is written; else those of [`Store::enqueue`].
    pub async fn enqueue_after(
        &self,
        new: &[NewJob],
        after: &BTreeMap<usize, Vec<JobId>>,
    ) -> Result<Vec<Enqueued>, Error> {
        for job in new {
            let texts = [
                ("identifier", Some(&job.identifier)),
                ("payload", job.payload.as_ref()),
                ("unique_key", job.unique_key.as_ref()),
            ];
            if let Some((field, _)) = texts.into_iter().find(|(_, text)| text.is_some_and(|text| text.contains('\0'))) {
                return Err(Error::NulCharacter { field });
            }
        }
        let enqueued = self.in_time(ENQUEUE, self.retrying(|| self.enqueue_once(new, after))).await?;
        self.changed_here();
        Ok(enqueued)
    }

    async fn enqueue_once(&self, new: &[NewJob], after: &BTreeMap<usize, Vec<JobId>>) -> Result<Vec<Enqueued>, Error> {
        let transaction = self.begin(ENQUEUE).await?;
        let awaited: Vec<JobId> = after.values().flatten().copied().collect::<BTreeSet<_>>().into_iter().collect();
        if let Some(job) = self.first_missing(&transaction, &awaited).await? {
            return Err(Error::NothingToWaitFor { job });
        }
        let keyed = new.iter().filter(|job| job.unique_key.is_some()).map(|job| job.flow.as_str()).collect();
        self.lock_keys(&transaction, keyed).await?;
        let mut enqueued = Vec::with_capacity(new.len());
        let most_rows = if self.dialect() == Dialect::MySql { LARGEST_MYSQL_INSERT } else { LARGEST_INSERT };
        let at_once = self.at_once(&transaction, new).await?;
        let mut rest = new;
        while !rest.is_empty() {
            let (jobs, others) = rest.split_at(of_one_statement(rest, most_rows, at_once));
            rest = others;
            let ids = self.insert(&transaction, jobs).await?;
            match jobs {
                [job] if ids.is_empty() => enqueued.push(self.holder_or_insert(&transaction, job).await?),
                _ => enqueued.extend(ids.into_iter().map(|id| Enqueued { id, existing: false })),
            }
        }
        let mut pairs = BTreeSet::new();
        for (place, after) in after {
            if let Some(job) = enqueued.get(*place).filter(|job| !job.existing) {
                pairs.extend(after.iter().map(|after| (job.id, *after)));
            }
        }
        self.make_wait(&transaction, &pairs).await?;
        self.deed(&transaction, "enqueue", &enqueued_target(new, &enqueued), "done").await?;
        crash::before(Step::EnqueueCommit);
        transaction.commit().await.doing(ENQUEUE)?;
        crash::after(Step::EnqueueCommit);
        Ok(enqueued)
    }

    /// How many bytes of texts may go into one statement. MySQL ends the connection that brings it more than it takes, which
    /// would look like a server that is not there.
    async fn at_once(&self, transaction: &Transaction, new: &[NewJob]) -> Result<usize, Error> {
        /// A batch of so little is never too much: the least that anybody sets in earnest.
        const LITTLE: usize = 512 << 10;
        /// What a row has beside its texts, by far.
        const BESIDE: usize = 4 << 10;
        if self.dialect() != Dialect::MySql || new.iter().map(bytes_of).sum::<usize>() < LITTLE {
            return Ok(CHUNK_BYTES);
        }
        let select = self.statement("SELECT CAST(@@max_allowed_packet AS bigint) AS most", []);
        let result = transaction.query_one(select).await.doing(ENQUEUE)?;
        let most = result.map_or(Ok(0), |result| Row { result: &result, dialect: self.dialect() }.int("most"))?;
        let most = usize::try_from(most).unwrap_or_default();
        match new.iter().map(bytes_of).find(|bytes| bytes + BESIDE > most) {
            Some(bytes) => Err(Error::TooLarge { bytes, most }),
            None => Ok(CHUNK_BYTES.min(most / 2)),
        }
    }

    /// Lets batches with keys of one flow follow one another on a server: two that have the same keys in another order would
    /// wait for each other until the server ends one of them, PostgreSQL a second later.
    pub(super) async fn lock_keys(&self, transaction: &Transaction, flows: BTreeSet<&str>) -> Result<(), Error> {
        for flow in flows {
            let (lock, name) = match self.dialect() {
                Dialect::Sqlite => return Ok(()),
                Dialect::Postgres => (
                    "SELECT CAST(pg_advisory_xact_lock(hashtextextended($1, 1)) AS text) AS locked",
                    format!("callsheet unique keys of {flow}"),
                ),
                // Its own locks by name outlast a transaction; that of a row does not.
                Dialect::MySql => {
                    ("INSERT INTO unique_keys (type) VALUES ($1) ON CONFLICT (type) DO NOTHING", flow.to_owned())
                }
            };
            transaction.execute(self.statement(lock, [name.into()])).await.doing(ENQUEUE)?;
        }
        Ok(())
    }

    pub(super) async fn insert(&self, transaction: &Transaction, new: &[NewJob]) -> Result<Vec<JobId>, Error> {
        let dialect = self.dialect();
        if dialect == Dialect::MySql {
            return self.insert_values(transaction, new).await;
        }
        let (source, values) = source(dialect, new).doing(ENQUEUE)?;
        // Only where it may be needed: PostgreSQL writes such a row twice, first as one that may be taken back.
        let conflict = if new.iter().any(|job| job.unique_key.is_some()) {
            format!(
                "WHERE true ON CONFLICT (type, unique_key) WHERE unique_key IS NOT NULL AND {OPEN_OR_PENDING} DO NOTHING"
            )
        } else {
            String::new()
        };
        let insert = format!(
            "INSERT INTO jobs (type, identifier, payload, priority, run_at, maximum_attempts, unique_key, \
             traceparent, tracestate) SELECT item.type, item.identifier, {}, item.priority, COALESCE(item.run_at, {} + item.delay), \
             item.maximum_attempts, item.unique_key, item.traceparent, item.tracestate FROM {source} {conflict} RETURNING id",
            dialect.pick("item.payload", "item.payload::json", "item.payload"),
            dialect.now(),
        );
        let results = transaction.query_all(self.statement(insert, values)).await.doing(ENQUEUE)?;
        let mut ids = Vec::with_capacity(results.len());
        for result in &results {
            ids.push(Row { result, dialect }.job("id")?);
        }
        // Neither database promises the order of what it returns, but both number rows in the order of the list.
        ids.sort_unstable();
        Ok(ids)
    }

    /// The same on MySQL, which tells only the first id of a statement; the others follow it at even distances, in all of its
    /// ways to number rows, if the statement says how many there are
    /// (<https://dev.mysql.com/doc/refman/8.0/en/innodb-auto-increment-handling.html>, "simple inserts").
    async fn insert_values(&self, transaction: &Transaction, new: &[NewJob]) -> Result<Vec<JobId>, Error> {
        let (mut values, mut rows) = (Parameters::default(), Vec::with_capacity(new.len()));
        for job in new {
            let run_at = match job.due {
                Due::At(time) => values.add(time.unix_millis()),
                Due::After(delay) => {
                    let delay = values.add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX / 4));
                    format!("{} + {delay}", self.dialect().now())
                }
            };
            let columns = [
                values.add(job.flow.as_str()),
                values.add(job.identifier.as_str()),
                values.add(job.payload.as_deref()),
                values.add(job.priority),
                run_at,
                values.add(job.maximum_attempts.map(i64::from)),
                values.add(job.unique_key.as_deref()),
                values.add(job.trace.as_ref().map(|trace| trace.parent.to_string())),
                values.add(job.trace.as_ref().and_then(|trace| trace.state.as_ref()).map(TraceState::as_str)),
            ];
            rows.push(format!("({})", columns.join(", ")));
        }
        let insert = format!(
            "INSERT INTO jobs (type, identifier, payload, priority, run_at, maximum_attempts, unique_key, \
             traceparent, tracestate) VALUES {}",
            rows.join(", ")
        );
        let inserted = match transaction.execute(self.statement(insert, values.values)).await.doing(ENQUEUE) {
            // Only the statement is taken back; and only a row with a key, which is alone, can meet another one.
            Err(error) if error::is_duplicate(&error) => return Ok(Vec::new()),
            inserted => inserted?,
        };
        let first = i64::try_from(inserted.last_insert_id).unwrap_or_default();
        let step = match new {
            [_] => 1,
            _ => {
                let select = self.statement("SELECT CAST(@@auto_increment_increment AS bigint) AS step", []);
                let result = transaction.query_one(select).await.doing(ENQUEUE)?;
                result.map_or(Ok(1), |result| Row { result: &result, dialect: self.dialect() }.int("step"))?
            }
        };
        Ok((0..)
            .step_by(usize::try_from(step).unwrap_or(1).max(1))
            .take(new.len())
            .map(|n: i64| JobId(first + n))
            .collect())
    }

    /// The open row with this key. It may end between the two statements on PostgreSQL; then its key is free again.
    async fn holder_or_insert(&self, transaction: &Transaction, job: &NewJob) -> Result<Enqueued, Error> {
        let dialect = self.dialect();
        let key = dialect.open_key();
        let select = format!("SELECT id FROM jobs WHERE type = $1 AND {key} = $2 AND {OPEN_OR_PENDING}");
        loop {
            let values = [job.flow.as_str().into(), job.unique_key.clone().into()];
            if let Some(result) = transaction.query_one(self.statement(select.clone(), values)).await.doing(ENQUEUE)? {
                return Ok(Enqueued { id: Row { result: &result, dialect }.job("id")?, existing: true });
            }
            if let Some(&id) = self.insert(transaction, std::slice::from_ref(job)).await?.first() {
                return Ok(Enqueued { id, existing: false });
            }
        }
    }
}

/// What an enqueue was about, for the audit trail.
fn enqueued_target(new: &[NewJob], enqueued: &[Enqueued]) -> String {
    match (new, enqueued) {
        ([job], [Enqueued { id, existing: false }]) => format!("job {id} ({} {})", job.flow, job.identifier),
        ([_], [Enqueued { id, existing: true }]) => format!("job {id}, which had the unique key already"),
        _ => {
            let made = enqueued.iter().filter(|job| !job.existing);
            let (first, last) = (made.clone().map(|job| job.id).min(), made.clone().map(|job| job.id).max());
            match first.zip(last) {
                Some((first, last)) => format!("{} jobs, {first} to {last}", made.count()),
                None => format!("no job: the {} were there already", enqueued.len()),
            }
        }
    }
}

/// How many of these, from the first on, go into one statement. A job with a key is alone in its own, since the rows that a
/// statement did not insert can't be told apart.
fn of_one_statement(jobs: &[NewJob], most_rows: usize, at_once: usize) -> usize {
    let mut bytes = 0;
    let mut fits = |job: &&NewJob| {
        bytes += bytes_of(job);
        job.unique_key.is_none() && bytes <= at_once
    };
    jobs.iter().take(most_rows).take_while(|job| fits(job)).count().max(1)
}

fn bytes_of(job: &NewJob) -> usize {
    job.identifier.len() + job.payload.as_ref().map_or(0, String::len)
}
