//! Events on their way to webhooks: `job_events` is the outbox, `deliveries` says how far each receiver has come.
//!
//! An event becomes a row for each webhook that wants it once its id is final, in the order of the ids; the place up to
//! where this is done moves in the same transaction. Of a job's rows only the first that waits is due, and who is done with it
//! lets the next one follow; both lock the webhook's row, so that neither misses the other. A row that somebody sends is not due
//! again before its lease is over, so that one whose sender has died is sent again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::json;

use super::connection::{Connection, Transaction};
use super::sql::{Doing, Row, storable};
use super::update::{Rows, Update};
use super::{Error, JobRow, Page, Store, StreamedEvent};
use crate::crash::Step;
use crate::domain::{JobId, Timestamp};

const ACTION: &str = "deliver events";
/// Events that are spread in one transaction.
const PAGE: u32 = 200;
/// When what waits for an earlier delivery is due: the end of the year 9999.
const FAR: i64 = 253_402_300_799_000;

/// An event that is to be sent now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// `deliveries.id`
    pub id: i64,
    /// The row of `job_events`.
    pub event_id: i64,
    /// Whose event.
    pub job: JobId,
    /// How often it has been tried, this time included.
    pub tries: u32,
    /// When it was tried first.
    pub first: Timestamp,
    /// The database's time.
    pub now: Timestamp,
    /// What is sent.
    pub body: String,
}

/// What came of a try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The receiver has it.
    Delivered,
    /// It did not, and is tried again after so long.
    Again(Duration, String),
    /// It did not, and is not tried again.
    Failed(String),
}

/// Which deliveries to list, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeliveryFilter {
    /// Only those to this webhook.
    pub webhook: Option<String>,
    /// Only those in this state: WAITING, DELIVERED or FAILED.
    pub state: Option<String>,
    /// Only rows older than this one: the `next_cursor` of the page before.
    pub cursor: Option<i64>,
    /// At most so many rows: 1 to 1000.
    pub limit: u32,
}

/// A row of `deliveries`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryRow {
    /// `id`
    pub id: i64,
    /// `webhook`
    pub webhook: String,
    /// `event_id`
    pub event_id: i64,
    /// `job_id`
    pub job_id: JobId,
    /// `state`
    pub state: String,
    /// `tries`
    pub tries: u32,
    /// `next_time`; `None` where it has ended, or waits for an earlier one of its job.
    pub next_time: Option<Timestamp>,
    /// `ended_time`
    pub ended_time: Option<Timestamp>,
    /// `error`: why the last try failed.
    pub error: Option<String>,
}

/// What waits for a webhook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Undelivered {
    /// How many events, up to a hundred thousand.
    pub events: u64,
    /// When the oldest of them happened; `None` where none waits.
    pub oldest: Option<Timestamp>,
}

/// More events than this that wait for a webhook are not counted: some milliseconds of the database's time.
const UNDELIVERED_COUNTED: u64 = 100_000;

/// What came of a wish to send a delivery again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgainResult {
    /// There is no such delivery.
    NotFound,
    /// It is WAITING or DELIVERED; only FAILED ones are sent again.
    NotPossible,
    /// It is sent again now.
    Waits,
}

impl Store {
    /// Makes deliveries of the next events, each as `describe` says: a body, or none where the webhook is not told of it. A
    /// webhook that is new is told of what happens from now on. Answers whether there are more events by now.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn spread_events(
        &self,
        webhook: &str,
        describe: &(dyn Fn(&StreamedEvent, Option<&JobRow>) -> Option<String> + Send + Sync),
    ) -> Result<bool, Error> {
        let select = "SELECT read_until FROM webhooks WHERE name = $1";
        let query = async { self.reader().query_one(self.statement(select, [webhook.into()])).await.doing(ACTION) };
        let Some(result) = self.in_time(ACTION, query).await? else {
            let insert = "INSERT INTO webhooks (name, read_until) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
            let values = [webhook.into(), self.final_event().await?.into()];
            let insert = async { self.writer().execute(self.statement(insert, values)).await.doing(ACTION) };
            self.in_time(ACTION, insert).await?;
            return Ok(true);
        };
        let from = Row { result: &result, dialect: self.dialect() }.int("read_until")?;
        let page = self.events_after(from, PAGE).await?;
        if page.next == from {
            return Ok(false);
        }
        let ids: BTreeSet<JobId> = page.events.iter().map(|event| event.event.job_id).collect();
        let jobs = self.jobs(&ids.into_iter().collect::<Vec<_>>()).await?;
        let jobs: BTreeMap<JobId, JobRow> = jobs.into_iter().map(|job| (job.id, job)).collect();
        let mut seen = BTreeSet::new();
        let mut items = Vec::new();
        for event in &page.events {
            let (id, job) = (event.event.id, event.event.job_id);
            let Some(body) = describe(event, jobs.get(&job)) else { continue };
            let behind = i64::from(!seen.insert(job));
            items.push(json!({ "event": id, "job": job.0, "behind": behind, "body": storable(&body) }));
        }
        let items = serde_json::Value::from(items).to_string();
        let once = || self.spread_once(webhook, from, page.next, &items);
        self.in_time(ACTION, self.retrying(once)).await?;
        Ok(page.more)
    }

    async fn spread_once(&self, webhook: &str, from: i64, next: i64, items: &str) -> Result<(), Error> {
        let dialect = self.dialect();
        let transaction = self.begin(ACTION).await?;
        // Another worker may have been here first.
        let update = "UPDATE webhooks SET read_until = $2 WHERE name = $1 AND read_until = $3";
        let values = [webhook.into(), next.into(), from.into()];
        if transaction.execute(self.statement(update, values)).await.doing(ACTION)?.rows_affected == 0 {
            return Ok(());
        }
        let now = self.time(&transaction).await?;
        let columns = [("event", "bigint"), ("job", "bigint"), ("behind", "bigint"), ("body", "text")];
        let insert = format!(
            "INSERT INTO deliveries (webhook, event_id, job_id, body, next_time) \
             SELECT $2, item.event, item.job, item.body, CASE WHEN item.behind = 1 OR EXISTS (SELECT 1 FROM deliveries AS d \
             WHERE d.webhook = $2 AND d.job_id = item.job AND d.state = 'WAITING') THEN {FAR} ELSE $3 END FROM {} WHERE true \
             ON CONFLICT (webhook, event_id) DO NOTHING",
            dialect.items("$1", &columns)
        );
        let values = [items.into(), webhook.into(), now.unix_millis().into()];
        transaction.execute(self.statement(insert, values)).await.doing(ACTION)?;
        self.commit(transaction, Step::SpreadCommit, ACTION).await
    }

    /// At most `limit` deliveries that are due, which are not due again before `lease` is over.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn take_deliveries(&self, webhook: &str, lease: Duration, limit: usize) -> Result<Vec<Delivery>, Error> {
        let dialect = self.dialect();
        let due = format!(
            "FROM deliveries {} WHERE webhook = $1 AND state = 'WAITING' AND next_time <= $2 \
             ORDER BY next_time LIMIT {limit} {}",
            dialect.by_index("deliveries_due"),
            dialect.skip_locked(),
        );
        let returning = format!("id, event_id, job_id, tries, first_time, {}", dialect.text("body"));
        let update = Update {
            table: "deliveries",
            set: "tries = tries + 1, first_time = COALESCE(first_time, $2), next_time = $3",
            rows: Rows::Selected { from: &due, while_: "state = 'WAITING'" },
            returning: &returning,
        };
        let once = || async {
            let transaction = self.begin(ACTION).await?;
            let now = self.time(&transaction).await?;
            let values = vec![webhook.into(), now.unix_millis().into(), now.plus(lease).unix_millis().into()];
            let results = self.update(&transaction, ACTION, &update, values).await?;
            self.commit(transaction, Step::TakeCommit, ACTION).await?;
            let read = |row: Row<'_>| {
                Ok(Delivery {
                    id: row.int("id")?,
                    event_id: row.int("event_id")?,
                    job: row.job("job_id")?,
                    tries: row.count("tries")?,
                    first: row.time("first_time")?,
                    now,
                    body: row.some_text("body")?,
                })
            };
            results.iter().map(|result| read(Row { result, dialect })).collect()
        };
        self.in_time(ACTION, self.retrying(once)).await
    }

    /// Writes what came of a try, unless somebody else has tried it since.
    ///
    /// # Errors
    /// Where the database fails; the delivery is then due again once its lease is over.
    pub async fn delivered(&self, webhook: &str, delivery: &Delivery, sent: &Sent) -> Result<(), Error> {
        self.in_time(ACTION, self.retrying(|| self.delivered_once(webhook, delivery, sent))).await
    }

    async fn delivered_once(&self, webhook: &str, delivery: &Delivery, sent: &Sent) -> Result<(), Error> {
        let still_mine = format!("WHERE id = $1 AND {} AND tries = $2", self.dialect().of_named("state = 'WAITING'"));
        let transaction = self.begin(ACTION).await?;
        let mine = [delivery.id.into(), i64::from(delivery.tries).into()];
        let now = self.time(&transaction).await?;
        let (state, error) = match sent {
            Sent::Again(wait, error) => {
                let update = format!("UPDATE deliveries SET next_time = $3, error = $4 {still_mine}");
                let [id, tries] = mine;
                let values = [id, tries, now.plus(*wait).unix_millis().into(), storable(error).into()];
                transaction.execute(self.statement(update, values)).await.doing(ACTION)?;
                return self.commit(transaction, Step::DeliveryCommit, ACTION).await;
            }
            Sent::Delivered => ("DELIVERED", None),
            Sent::Failed(error) => ("FAILED", Some(storable(error))),
        };
        // Whoever spreads events holds this too: what it adds behind this delivery is seen here, or sees that this has ended.
        let lock = "UPDATE webhooks SET read_until = read_until WHERE name = $1";
        transaction.execute(self.statement(lock, [webhook.into()])).await.doing(ACTION)?;
        let update = format!("UPDATE deliveries SET state = $3, ended_time = $4, error = $5 {still_mine}");
        let [id, tries] = mine;
        let values = [id, tries, state.into(), now.unix_millis().into(), error.into()];
        if transaction.execute(self.statement(update, values)).await.doing(ACTION)?.rows_affected > 0 {
            self.release_next(&transaction, webhook, delivery.job, now).await?;
        }
        self.commit(transaction, Step::DeliveryCommit, ACTION).await
    }

    /// Lets the next delivery of a job follow the one that has ended.
    async fn release_next(
        &self,
        transaction: &Transaction,
        webhook: &str,
        job: JobId,
        now: Timestamp,
    ) -> Result<(), Error> {
        let update = format!(
            // The inner one of the two is for MySQL, which else can't read what it updates.
            "UPDATE deliveries SET next_time = $3 WHERE next_time = {FAR} AND id = (SELECT first.id FROM \
             (SELECT min(id) AS id FROM deliveries WHERE webhook = $1 AND job_id = $2 AND state = 'WAITING') AS first)"
        );
        let values = [webhook.into(), job.0.into(), now.unix_millis().into()];
        transaction.execute(self.statement(update, values)).await.doing(ACTION)?;
        Ok(())
    }

    /// How long it is until a delivery to this webhook is due; `None` where none does.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn next_delivery(&self, webhook: &str) -> Result<Option<Duration>, Error> {
        let dialect = self.dialect();
        let select = format!(
            "SELECT min(next_time) AS due, {} AS now FROM deliveries {} WHERE webhook = $1 AND state = 'WAITING'",
            dialect.now(),
            dialect.by_index("deliveries_due"),
        );
        let query = async {
            let result = self.reader().query_one(self.statement(select, [webhook.into()])).await.doing(ACTION)?;
            let Some(result) = result else { return Ok(None) };
            let row = Row { result: &result, dialect };
            Ok(row.maybe_time("due")?.map(|due| (due, row.time("now"))).map(|(due, now)| now.map(|now| due.since(now))))
        };
        self.in_time(ACTION, query).await?.transpose()
    }

    /// What waits for this webhook, in a time that is bounded however much that is.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn undelivered(&self, webhook: &str) -> Result<Undelivered, Error> {
        let dialect = self.dialect();
        let waiting = format!(
            "FROM deliveries {} WHERE webhook = $1 AND state = 'WAITING'",
            dialect.by_index("deliveries_waiting")
        );
        let select = format!(
            "SELECT (SELECT count(*) FROM (SELECT 1 {waiting} LIMIT {UNDELIVERED_COUNTED}) AS w) AS events, \
             (SELECT COALESCE(e.time, d.first_time) FROM (SELECT event_id, first_time {waiting} ORDER BY id LIMIT 1) AS d \
             LEFT JOIN job_events AS e ON e.id = d.event_id) AS oldest"
        );
        let query = async {
            let result = self.reader().query_one(self.statement(select, [webhook.into()])).await.doing(ACTION)?;
            let Some(result) = result else { return Ok(Undelivered::default()) };
            let row = Row { result: &result, dialect };
            Ok(Undelivered {
                events: u64::try_from(row.int("events")?).unwrap_or(0),
                oldest: row.maybe_time("oldest")?,
            })
        };
        self.in_time(ACTION, query).await
    }

    /// Lists deliveries, newest first.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn deliveries(&self, filter: &DeliveryFilter) -> Result<Page<DeliveryRow, i64>, Error> {
        const ACTION: &str = "read the deliveries";
        let dialect = self.dialect();
        let limit = filter.limit.clamp(1, 1000);
        let select = format!(
            "SELECT id, event_id, job_id, tries, next_time, ended_time, {}, {}, {} FROM deliveries \
             WHERE id < $1 AND ($2 IS NULL OR webhook = $2) AND ($3 IS NULL OR state = $3) ORDER BY id DESC LIMIT {}",
            dialect.text("webhook"),
            dialect.text("state"),
            dialect.text("error"),
            u64::from(limit) + 1,
        );
        let values = [
            filter.cursor.unwrap_or(i64::MAX).into(),
            filter.webhook.as_deref().map(storable).into(),
            filter.state.clone().into(),
        ];
        let query = async {
            let results = self.reader().query_all(self.statement(select, values)).await.doing(ACTION)?;
            results.iter().map(|result| delivery_row(&Row { result, dialect })).collect::<Result<Vec<_>, Error>>()
        };
        Ok(Page::of(self.in_time(ACTION, query).await?, limit, |row| row.id))
    }

    /// Has a FAILED delivery sent again, with as much time as a new one, also where later ones of its job have come since.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn deliver_again(&self, id: i64) -> Result<AgainResult, Error> {
        let update = format!(
            "UPDATE deliveries SET state = 'WAITING', tries = 0, first_time = NULL, ended_time = NULL, next_time = {} \
             WHERE id = $1 AND {}",
            self.dialect().now(),
            self.dialect().of_named("state = 'FAILED'")
        );
        let once = || async {
            let transaction = self.begin(ACTION).await?;
            let updated = transaction.execute(self.statement(update.as_str(), [id.into()])).await.doing(ACTION)?;
            let result = if updated.rows_affected > 0 {
                AgainResult::Waits
            } else {
                let select = self.statement("SELECT id FROM deliveries WHERE id = $1", [id.into()]);
                let found = transaction.query_one(select).await.doing(ACTION)?;
                found.map_or(AgainResult::NotFound, |_| AgainResult::NotPossible)
            };
            let outcome = match result {
                AgainResult::NotFound => "not found",
                AgainResult::NotPossible => "refused: it has not failed",
                AgainResult::Waits => "done",
            };
            self.deed(&transaction, "deliver_again", &format!("delivery {id}"), outcome).await?;
            self.tell_everybody(&transaction).await?;
            self.commit(transaction, Step::AgainCommit, ACTION).await?;
            Ok(result)
        };
        let result = self.in_time(ACTION, self.retrying(once)).await?;
        self.changed_here();
        Ok(result)
    }

    /// Removes a batch of deliveries that ended up to then.
    pub(super) async fn prune_deliveries(&self, before: Timestamp, batch: u32) -> Result<u64, Error> {
        let oldest = format!(
            "SELECT id FROM deliveries {} WHERE ended_time IS NOT NULL AND ended_time <= $1 ORDER BY ended_time LIMIT {batch}",
            self.dialect().by_index("deliveries_ended")
        );
        self.delete("deliveries", ACTION, oldest, vec![before.unix_millis().into()]).await
    }
}

fn delivery_row(row: &Row<'_>) -> Result<DeliveryRow, Error> {
    let state = row.some_text("state")?;
    let next = row.time("next_time")?;
    Ok(DeliveryRow {
        id: row.int("id")?,
        webhook: row.some_text("webhook")?,
        event_id: row.int("event_id")?,
        job_id: row.job("job_id")?,
        tries: row.count("tries")?,
        next_time: (state == "WAITING" && next.unix_millis() < FAR).then_some(next),
        ended_time: row.maybe_time("ended_time")?,
        error: row.text("error")?,
        state,
    })
}
