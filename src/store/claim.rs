//! Claims: PENDING rows become INQUEUE, in order and never more than the flow may have open.
//!
//! On PostgreSQL the flow's row in `flows` is locked first, so claims of one flow follow one another over all workers
//! and each counts what the one before has taken; on MySQL likewise. On SQLite every writing transaction excludes every other anyway.
//! Where they begin to look on PostgreSQL is told in [`super::looks`].

use std::collections::{BTreeSet, HashMap};
use std::sync::OnceLock;
use std::time::Duration;

use sea_orm::Value;
use serde_json::json;

use super::connection::{Connection, Transaction};
use super::leases::{claimers, next_lapse, others_live};
use super::looks::{FOUND_SQL, IdleFlow, Look, Place, open_since_sql};
use super::sql::{Dialect, Doing, OPEN, OPEN_OR_PENDING, Row};
use super::take::Taking;
use super::update::{Rows, Update};
use super::{Claim, Claimed, ClaimedJob, Error, Store, Unreadable, Waited, Write};
use crate::domain::heartbeat::Lease;
use crate::domain::labels::Labels;
use crate::domain::retry::MOST_ATTEMPTS;
use crate::domain::trace::TraceContext;
use crate::domain::{Attempt, FlowType, JobId, JobStatus, RunToken, Timestamp, trace};

const ACTION: &str = "claim jobs";

/// How many rows one claim takes or cancels at most, so that no transaction holds up the others for long.
const AT_MOST: usize = 500;
/// When to look again at a row that some other transaction holds.
const LOCKED_AGAIN: Duration = Duration::from_secs(1);

impl Store {
    /// Locks the flows of all claims of a batch, in one order for everybody, so that two batches can't wait for each
    /// other. It must be a statement before the one that counts, which would else not see what it had to wait for.
    pub(super) async fn lock_flows(&self, transaction: &Transaction, flows: &BTreeSet<&str>) -> Result<(), Error> {
        if flows.is_empty() {
            return Ok(());
        }
        let lock = self.statement(lock_flows_sql(self.dialect(), "$1"), [json!(flows).to_string().into()]);
        if transaction.query_all(lock.clone()).await.doing(ACTION)?.len() < flows.len() {
            self.register_flows(transaction, flows.iter().copied()).await?;
            transaction.query_all(lock).await.doing(ACTION)?;
        }
        Ok(())
    }

    /// The flows to lock for these writes: none on SQLite, and none of the `idle` ones, which nothing is taken of.
    pub(super) fn flows_to_lock<'a>(
        &self,
        writes: &'a [Write],
        idle: &HashMap<FlowType, IdleFlow>,
    ) -> BTreeSet<&'a str> {
        let flow = |write: &'a Write| if let Write::Claim(claim) = write { Some(&claim.flow) } else { None };
        let locked = writes.iter().filter(|_| self.dialect().is_shared()).filter_map(flow);
        locked.filter(|flow| !idle.contains_key(*flow)).map(FlowType::as_str).collect()
    }

    pub(super) async fn register_flows<'a>(
        &self,
        transaction: &Transaction,
        flows: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), Error> {
        let names = json!(flows.into_iter().collect::<Vec<_>>()).to_string();
        let insert = self.dialect().pick(
            "INSERT INTO flows (type) SELECT value FROM json_each($1) WHERE true ON CONFLICT (type) DO NOTHING",
            "INSERT INTO flows (type) SELECT value FROM json_array_elements_text($1::json) AS value ORDER BY value \
             ON CONFLICT (type) DO NOTHING",
            "INSERT INTO flows (type) SELECT item.name FROM JSON_TABLE($1, '$[*]' COLUMNS (name VARCHAR(255) CHARACTER SET utf8mb4 PATH '$')) AS item \
             ORDER BY item.name ON CONFLICT (type) DO NOTHING",
        );
        transaction.execute(self.statement(insert, [names.into()])).await.doing("register flows")?;
        Ok(())
    }

    pub(super) async fn claim(
        &self,
        transaction: &Transaction,
        claim: &Claim,
        begun: Duration,
        look: &mut Look,
        idle: Option<IdleFlow>,
    ) -> Result<Claimed, Error> {
        let mut tokens = claim.tokens.iter().take(AT_MOST).cloned().collect::<Vec<_>>();
        let (state, first_rows) = match idle {
            Some(idle) => (FlowNow::of_idle(idle), None),
            None => self.flow_now(transaction, claim, &tokens, look).await?,
        };
        let mut claimed = Claimed {
            jobs: Vec::new(),
            cancelled_pending: Vec::new(),
            expired: Vec::new(),
            disowned: Vec::new(),
            waited: Waited::default(),
            cancel_requested: Vec::new(),
            next_due: None,
            next_expiry: None,
            lapsed: Vec::new(),
            next_lapse: next_lapse(state.now, state.lapse, state.shared, claim.terms),
            lease: if state.shared { Lease::Short } else { Lease::Long },
            begun: self.dialect().is_shared().then_some(begun),
            held_back: false,
            paused: state.paused,
            open: state.open,
            now: state.now,
        };
        if state.tokens_used {
            claimed.jobs = self.claimed_before(transaction, &mut tokens).await?;
            self.renew(transaction, claim, &claimed).await?;
        }
        if state.lapse.is_some_and(|lapse| lapse < state.now) {
            claimed.lapsed = self.lapsed(transaction, claim, state.now).await?;
        }
        if state.dependency_ended {
            claimed.waited = self.settle_waiting(transaction, state.now).await?;
            if claimed.waited != Waited::default() {
                self.tell_everybody(transaction).await?;
            }
            claimed.next_due = claimed.waited.more.then_some(state.now);
        }
        if state.disowned {
            claimed.disowned = self.settle_disowned(transaction, claim, state.now).await?;
            // Their slots are free, which the next claim counts; none, where another client has them locked.
            claimed.next_due = (!claimed.disowned.is_empty()).then_some(state.now);
        }
        if state.cancel_requested {
            claimed.cancelled_pending = self.cancel_pending(transaction, claim, state.now).await?;
            claimed.cancel_requested = self.cancel_requested(transaction, claim).await?;
            if claimed.cancelled_pending.len() == AT_MOST {
                claimed.next_due = Some(state.now);
                return Ok(claimed);
            }
        }
        let expiry = state.oldest.map(|oldest| oldest.plus(claim.schedule_to_close_timeout));
        if expiry.is_some_and(|expiry| expiry <= state.now) {
            claimed.expired = self.expire(transaction, claim, state.now).await?;
            // There may be more; where there are none, the next claim finds when the next one has waited too long. Where
            // somebody has it locked, there is no use in looking again at once.
            let wait = if claimed.expired.is_empty() { LOCKED_AGAIN } else { Duration::ZERO };
            claimed.next_expiry = Some(state.now.plus(wait));
            if claimed.expired.len() == AT_MOST {
                return Ok(claimed);
            }
        } else {
            claimed.next_expiry = expiry;
        }
        // A drain counts from its request on, not from when the service has read it.
        if state.paused || state.draining {
            return Ok(claimed);
        }
        let here = claim.worker_concurrency.saturating_sub(state.open_here);
        let room = claim.concurrency.saturating_sub(state.open).min(here);
        let share = fair_share(claim.concurrency, state.claimers).saturating_sub(state.open_here);
        let may_take = if claim.beyond_share { room } else { room.min(share) };
        let wanted = tokens.len().min(usize::try_from(may_take).unwrap_or(usize::MAX));
        if wanted == 0 {
            claimed.held_back = may_take < room && state.oldest.is_some();
            return Ok(claimed);
        }
        // Nothing waits; what comes now comes with word of it. Where not all of them were looked at, nobody knows.
        if state.oldest.is_none() && look.behind().is_none() {
            return Ok(claimed);
        }
        // What has been ended just now may be among them, and what has been let go is not.
        let changed = !claimed.cancelled_pending.is_empty() || !claimed.expired.is_empty();
        let first_rows = first_rows.filter(|_| !changed && claimed.waited == Waited::default());
        let mut taken = self.next_rows(transaction, claim, state.now, wanted, first_rows, look.place()).await?;
        look.found(&taken);
        for (job, token) in taken.iter_mut().zip(tokens) {
            job.token = token;
        }
        claimed.held_back = if claim.beyond_share {
            taken.len() > usize::try_from(share).unwrap_or(usize::MAX)
        } else {
            may_take < room && taken.len() == wanted
        };
        if taken.len() < wanted && claimed.disowned.is_empty() {
            claimed.next_due = self.due_after(transaction, &claim.flow, Some(state.now)).await?;
        }
        if !taken.is_empty() {
            let lease = claim.terms.untouched(claimed.lease);
            self.take(transaction, &Taking { claim, jobs: &taken, now: state.now, lease }).await?;
            claimed.open = claimed.open.saturating_add(u32::try_from(taken.len()).unwrap_or(u32::MAX));
            claimed.jobs.append(&mut taken);
        }
        Ok(claimed)
    }

    /// Everything that decides how many rows may be taken, in one round trip; not on MySQL also the first rows that there
    /// would be room for.
    async fn flow_now(
        &self,
        transaction: &Transaction,
        claim: &Claim,
        tokens: &[RunToken],
        look: &mut Look,
    ) -> Result<(FlowNow, Option<Vec<ClaimedJob>>), Error> {
        let dialect = self.dialect();
        let mut values = vec![
            claim.flow.as_str().into(),
            claim.worker.as_str().into(),
            json!(tokens.iter().map(RunToken::as_str).collect::<Vec<_>>()).to_string().into(),
        ];
        if dialect.is_shared() {
            values.push(claim.incarnation.as_str().into());
        }
        values.extend(look.behind().into_iter().flatten());
        // No other claim of the flow can come between; where this one begins behind others, so do its rows.
        let with_rows = dialect == Dialect::Sqlite || dialect == Dialect::Postgres && look.behind().is_none();
        if with_rows {
            let wanted = i64::try_from(tokens.len()).unwrap_or(i64::MAX);
            values.extend([wanted, claim.concurrency.into(), claim.worker_concurrency.into()].map(Value::from));
        }
        let statement = match dialect {
            Dialect::Sqlite => {
                // It is the same for all claims: nobody requires anything of other workers there, nor looks behind others.
                static WITH_ROWS: OnceLock<String> = OnceLock::new();
                let flow_now = || flow_now_sql(dialect, &claim.requires, look);
                WITH_ROWS.get_or_init(|| format!("{}; {}", flow_now(), first_rows_sql())).clone()
            }
            Dialect::Postgres if with_rows => {
                values.push(i64::from(claim.beyond_share).into());
                with_first_rows_sql(&flow_now_sql(dialect, &claim.requires, look))
            }
            Dialect::Postgres | Dialect::MySql => flow_now_sql(dialect, &claim.requires, look),
        };
        let results = transaction.query_all(self.statement(statement, values)).await.doing(ACTION)?;
        let Some((result, rest)) = results.split_first() else {
            return Err(Error::UnreadableRow { reason: "a query without a table gave no row".to_owned() });
        };
        let row = Row { result, dialect };
        let first_rows = match dialect {
            Dialect::Sqlite => rest,
            // Each stands beside the rest, which stands alone where there is none.
            Dialect::Postgres if with_rows && row.maybe_int("id")?.is_some() => results.as_slice(),
            Dialect::Postgres | Dialect::MySql => &[],
        };
        if !look.goes_on(&row)? {
            return Box::pin(self.flow_now(transaction, claim, tokens, look)).await;
        }
        let state = FlowNow {
            now: row.time("now")?,
            paused: row.flag("paused")?,
            draining: row.flag("draining")?,
            open: row.count("open")?,
            open_here: row.count("open_here")?,
            cancel_requested: row.flag("cancel_requested")?,
            disowned: row.flag("disowned")?,
            dependency_ended: row.flag("dependency_ended")?,
            tokens_used: row.flag("tokens_used")?,
            oldest: row.maybe_time("oldest")?,
            shared: row.flag("shared")?,
            claimers: row.count("claimers")?,
            lapse: row.maybe_time("lapse")?,
        };
        let jobs = first_rows.iter().map(|result| claimed_job(&Row { result, dialect }));
        let first_rows = if with_rows { Some(jobs.collect::<Result<_, _>>()?) } else { None };
        Ok((state, first_rows))
    }

    /// The rows that an earlier try at this very claim took; their tokens are used up.
    async fn claimed_before(
        &self,
        transaction: &Transaction,
        tokens: &mut Vec<RunToken>,
    ) -> Result<Vec<ClaimedJob>, Error> {
        let names = json!(tokens.iter().map(RunToken::as_str).collect::<Vec<_>>()).to_string();
        let dialect = self.dialect();
        let select = format!(
            "SELECT {}, {}, {} FROM jobs {} WHERE {} ORDER BY priority DESC, run_at, id",
            claimed_columns(dialect),
            dialect.text("run_token"),
            dialect.text("status"),
            dialect.by_index("jobs_run_token"),
            dialect.among("run_token", "$1")
        );
        let results = transaction.query_all(self.statement(select, [names.into()])).await.doing(ACTION)?;
        let mut jobs = Vec::new();
        for result in &results {
            let row = Row { result, dialect };
            let Some(token) = row.token()? else { continue };
            tokens.retain(|other| *other != token);
            if row.status()? == JobStatus::InQueue {
                let attempt = row.attempt()?;
                jobs.push(ClaimedJob { token, attempt, ..claimed_job(&row)? });
            }
        }
        Ok(jobs)
    }

    /// The next due rows in claim order. Rows of one priority are ordered by `run_at`, so the first one that is not
    /// due ends its priority, however many are behind it: the search goes on at the next lower one that has a due row.
    async fn next_rows(
        &self,
        transaction: &Transaction,
        Claim { flow, .. }: &Claim,
        now: Timestamp,
        wanted: usize,
        mut first_rows: Option<Vec<ClaimedJob>>,
        mut behind: Option<Place>,
    ) -> Result<Vec<ClaimedJob>, Error> {
        let dialect = self.dialect();
        let mut taken = Vec::new();
        let mut below = i64::MAX;
        'priorities: while taken.len() < wanted {
            let limit = wanted - taken.len();
            let (first_rows, place) = (first_rows.take(), behind.take());
            let jobs = match (first_rows, place) {
                (Some(mut jobs), _) => {
                    jobs.truncate(limit);
                    jobs
                }
                (None, Some(place)) => {
                    below = place.priority;
                    let values = [
                        flow.as_str().into(),
                        place.priority.into(),
                        place.run_at.unix_millis().into(),
                        place.id.into(),
                    ];
                    let select = rows_sql(dialect, "AND priority = $2 AND (run_at, id) > ($3, $4)", &limit.to_string());
                    let results = transaction.query_all(self.statement(select, values)).await.doing(ACTION)?;
                    results.iter().map(|result| claimed_job(&Row { result, dialect })).collect::<Result<_, _>>()?
                }
                (None, None) => {
                    // By the index that counts the other way, on MySQL.
                    let bound = if dialect == Dialect::MySql { -below } else { below };
                    let select = self.statement(next_rows_sql(dialect, limit), [flow.as_str().into(), bound.into()]);
                    let results = transaction.query_all(select).await.doing(ACTION)?;
                    results.iter().map(|result| claimed_job(&Row { result, dialect })).collect::<Result<_, _>>()?
                }
            };
            for job in jobs {
                // A row that was due when it was written stays due where the clock was set back since.
                if job.run_at > now.max(job.created_time) {
                    let Some(priority) = self.due_priority(transaction, flow, now, job.priority).await? else {
                        break 'priorities;
                    };
                    below = priority.saturating_add(1);
                    continue 'priorities;
                }
                taken.push(job);
            }
            if place.is_none() {
                break;
            }
        }
        Ok(taken)
    }

    /// The highest priority below `below` whose first row is due. One statement, as there may be as many priorities as
    /// rows that wait for their time.
    async fn due_priority(
        &self,
        transaction: &Transaction,
        flow: &FlowType,
        now: Timestamp,
        below: i64,
    ) -> Result<Option<i64>, Error> {
        let (select, bound) = match self.dialect() {
            // In a recursive statement it would read each priority's rows from the first one on.
            Dialect::MySql => ("SELECT callsheet_due_priority($1, $2, $3) AS priority".to_owned(), -below),
            dialect @ (Dialect::Sqlite | Dialect::Postgres) => (due_priority_sql(dialect), below),
        };
        let select = self.statement(select, [flow.as_str().into(), bound.into(), now.unix_millis().into()]);
        let result = transaction.query_one(select).await.doing(ACTION)?;
        result.map_or(Ok(None), |result| Row { result: &result, dialect: self.dialect() }.maybe_int("priority"))
    }

    async fn cancel_pending(
        &self,
        transaction: &Transaction,
        claim: &Claim,
        now: Timestamp,
    ) -> Result<Vec<JobId>, Error> {
        let dialect = self.dialect();
        let requested = format!(
            "FROM jobs {} WHERE type = $1 AND cancel_requested_time IS NOT NULL AND {OPEN_OR_PENDING} \
             AND {} ORDER BY {} LIMIT {AT_MOST} {}",
            dialect.by_index("jobs_cancel_requested"),
            // Not by an index of all that wait.
            dialect.of_named("status = 'PENDING'"),
            dialect.sorted_by_id(),
            dialect.skip_locked(),
        );
        let update = Update {
            table: "jobs",
            set: CANCEL_PENDING,
            rows: Rows::Selected { from: &requested, while_: "status = 'PENDING'" },
            returning: "id, attempt",
        };
        let values = vec![claim.flow.as_str().into(), now.unix_millis().into()];
        let results = self.update(transaction, ACTION, &update, values).await?;
        let mut cancelled = Vec::new();
        for result in &results {
            let row = Row { result, dialect };
            cancelled.push((row.job("id")?, row.attempt()?));
        }
        cancelled.sort_unstable();
        self.note_cancelled(transaction, &cancelled, now).await?;
        Ok(cancelled.into_iter().map(|(id, _)| id).collect())
    }

    /// Ends rows that have waited for longer than they may, those that have waited longest first.
    async fn expire(
        &self,
        transaction: &Transaction,
        claim: &Claim,
        now: Timestamp,
    ) -> Result<Vec<(JobId, Attempt)>, Error> {
        let (dialect, timeout) = (self.dialect(), claim.schedule_to_close_timeout);
        let schedule_time = dialect.schedule_time();
        let longest_waiting = format!(
            "FROM jobs {} WHERE type = $1 AND status = 'PENDING' AND {schedule_time} <= $3 \
             ORDER BY {schedule_time} LIMIT {AT_MOST} {}",
            dialect.by_index("jobs_expiry"),
            dialect.skip_locked(),
        );
        let update = Update {
            table: "jobs",
            set: "status = 'ERROR', completed_time = $2, error = CASE WHEN attempt = 0 THEN $4 \
                  ELSE $5 || COALESCE('; the last one: ' || error, '') END",
            rows: Rows::Selected { from: &longest_waiting, while_: "status = 'PENDING'" },
            returning: "id, attempt",
        };
        let passed = format!("timed out: schedule_to_close_timeout ({}) passed", humantime::format_duration(timeout));
        let waiting = format!("{passed} before the command could be started");
        let between = format!("{passed} while it waited for another attempt");
        let latest = now.unix_millis().saturating_sub(i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX));
        let values = vec![
            claim.flow.as_str().into(),
            now.unix_millis().into(),
            latest.into(),
            waiting.as_str().into(),
            between.as_str().into(),
        ];
        let results = self.update(transaction, ACTION, &update, values).await?;
        let mut expired = Vec::new();
        for result in &results {
            let row = Row { result, dialect };
            expired.push((row.job("id")?, row.attempt()?));
        }
        expired.sort_unstable();
        self.note_ended(transaction, &expired, JobStatus::Error, [&waiting, &between], now).await?;
        Ok(expired)
    }

    /// Writes the events of rows that were cancelled while they waited.
    pub(super) async fn note_cancelled(
        &self,
        transaction: &Transaction,
        cancelled: &[(JobId, Attempt)],
        now: Timestamp,
    ) -> Result<(), Error> {
        let messages = ["cancelled before its command was started", "cancelled while it waited for another attempt"];
        self.note_ended(transaction, cancelled, JobStatus::Cancelled, messages, now).await
    }

    /// Writes the events of rows that ended while they waited: before their first attempt, or for another one.
    async fn note_ended(
        &self,
        transaction: &Transaction,
        ended: &[(JobId, Attempt)],
        to: JobStatus,
        messages: [&str; 2],
        now: Timestamp,
    ) -> Result<(), Error> {
        if ended.is_empty() {
            return Ok(());
        }
        let items: Vec<_> = ended
            .iter()
            .map(|(id, attempt)| {
                let message = messages[usize::from(attempt.0 > 0)];
                json!({ "id": id.0, "attempt": attempt.0, "message": message })
            })
            .collect();
        let events = format!(
            "INSERT INTO job_events (job_id, attempt, from_status, to_status, time, message) \
             SELECT item.id, item.attempt, 'PENDING', $3, $2, item.message FROM {}",
            self.dialect().items("$1", &[("id", "bigint"), ("attempt", "bigint"), ("message", "text")])
        );
        let items = serde_json::Value::from(items).to_string();
        let values = [items.into(), now.unix_millis().into(), to.as_str().into()];
        transaction.execute(self.statement(events, values)).await.doing(ACTION)?;
        Ok(())
    }

    /// Settles rows that somebody else than Callsheet has set to an open status: no run has their token, so nobody could
    /// ever tell how they ended, and each would hold a slot of its flow for ever.
    async fn settle_disowned(
        &self,
        transaction: &Transaction,
        claim: &Claim,
        now: Timestamp,
    ) -> Result<Vec<JobId>, Error> {
        let dialect = self.dialect();
        let select = format!(
            "SELECT id, attempt, {} FROM jobs {} WHERE type = $1 AND {OPEN} AND {} ORDER BY {} LIMIT {AT_MOST} {}",
            dialect.text("status"),
            dialect.by_index("jobs_open"),
            nobodys(dialect),
            dialect.sorted_by_id(),
            dialect.skip_locked(),
        );
        let values = [claim.flow.as_str().into(), claim.worker.as_str().into()];
        let results = transaction.query_all(self.statement(select, values)).await.doing(ACTION)?;
        let (mut disowned, mut items) = (Vec::new(), Vec::new());
        for result in &results {
            let row = Row { result, dialect };
            let id = row.job("id")?;
            items.push(json!({ "id": id.0, "attempt": row.attempt()?.0, "was": row.status()?.as_str() }));
            disowned.push(id);
        }
        let items = serde_json::Value::from(items).to_string();
        let events = format!(
            "INSERT INTO job_events (job_id, attempt, from_status, to_status, time, worker_id, message) \
             SELECT item.id, item.attempt, item.was, 'ERROR', $2, $3, $4 FROM {}",
            dialect.items("$1", &[("id", "bigint"), ("attempt", "bigint"), ("was", "text")])
        );
        let values = [items.into(), now.unix_millis().into(), claim.worker.as_str().into(), DISOWNED.into()];
        transaction.execute(self.statement(events, values)).await.doing(ACTION)?;
        let update = format!(
            "UPDATE jobs SET status = 'ERROR', completed_time = $2, error = $3 WHERE {}",
            dialect.among_ids("id", "$1")
        );
        let ids = json!(disowned.iter().map(|id: &JobId| id.0).collect::<Vec<_>>()).to_string();
        let values = [ids.into(), now.unix_millis().into(), DISOWNED.into()];
        transaction.execute(self.statement(update, values)).await.doing(ACTION)?;
        Ok(disowned)
    }

    async fn cancel_requested(
        &self,
        transaction: &Transaction,
        claim: &Claim,
    ) -> Result<Vec<(JobId, RunToken)>, Error> {
        let dialect = self.dialect();
        // A SQLite database has one worker, whatever it calls itself today.
        let select = format!(
            "SELECT id, {} FROM jobs {} WHERE type = $1 AND cancel_requested_time IS NOT NULL AND {OPEN_OR_PENDING} \
             AND status <> 'PENDING' AND {} ORDER BY {}",
            dialect.text("run_token"),
            dialect.by_index("jobs_cancel_requested"),
            if dialect.is_shared() { "worker_id = $2" } else { "$2 IS NOT NULL" },
            dialect.sorted_by_id(),
        );
        let values = [claim.flow.as_str().into(), claim.worker.as_str().into()];
        let results = transaction.query_all(self.statement(select, values)).await.doing(ACTION)?;
        let mut requested = Vec::new();
        for result in &results {
            let row = Row { result, dialect };
            if let Some(token) = row.token()? {
                requested.push((row.job("id")?, token));
            }
        }
        Ok(requested)
    }

    /// When the first waiting row of a flow is due, of those that are due after `after`.
    pub(super) async fn due_after(
        &self,
        connection: &impl Connection,
        flow: &FlowType,
        after: Option<Timestamp>,
    ) -> Result<Option<Timestamp>, Error> {
        let dialect = self.dialect();
        let select = format!(
            "SELECT min(run_at) AS due FROM jobs {} WHERE type = $1 AND status = 'PENDING' AND run_at > $2",
            dialect.by_index("jobs_due")
        );
        let after = after.map_or(i64::MIN, Timestamp::unix_millis);
        let result =
            connection.query_one(self.statement(select, [flow.as_str().into(), after.into()])).await.doing(ACTION)?;
        result.map_or(Ok(None), |result| Row { result: &result, dialect }.maybe_time("due"))
    }

    /// When the first waiting row of a flow is due, which may be in the past; `None` where none waits.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn next_due(&self, flow: &FlowType) -> Result<Option<Timestamp>, Error> {
        self.in_time(ACTION, self.due_after(self.reader(), flow, None)).await
    }
}

/// The lock of the flows in the list in `names`.
pub(super) fn lock_flows_sql(dialect: Dialect, names: &str) -> String {
    format!(
        "SELECT 1 AS locked FROM {} WHERE {} ORDER BY type FOR UPDATE",
        dialect.pick("flows", "flows", "flows FORCE INDEX (PRIMARY)"),
        dialect.among("type", names)
    )
}

/// How many runs of a flow are one worker's where others could have some: an equal part, rounded up. More than that it
/// takes only after the others have had their time to.
fn fair_share(concurrency: u32, others: u32) -> u32 {
    concurrency.div_ceil(others.saturating_add(1))
}

struct FlowNow {
    now: Timestamp,
    paused: bool,
    /// Whether somebody has asked this worker to drain, or has its name by now.
    draining: bool,
    open: u32,
    open_here: u32,
    cancel_requested: bool,
    disowned: bool,
    /// Whether something that jobs wait for has ended, and nobody has looked at them since.
    dependency_ended: bool,
    tokens_used: bool,
    /// The earliest time that `schedule_to_close_timeout` counts from, of the rows that wait.
    oldest: Option<Timestamp>,
    /// Whether other workers live.
    shared: bool,
    /// How many of them claim.
    claimers: u32,
    /// The earliest end of a lease, of the open runs of other workers.
    lapse: Option<Timestamp>,
}

impl FlowNow {
    fn of_idle(IdleFlow { now, paused, shared }: IdleFlow) -> Self {
        Self {
            now,
            paused,
            draining: false,
            open: 0,
            open_here: 0,
            cancel_requested: false,
            disowned: false,
            dependency_ended: false,
            tokens_used: false,
            oldest: None,
            shared,
            // For rows that are claimed, and there are none.
            claimers: 0,
            lapse: None,
        }
    }
}

/// What a row says that somebody else than Callsheet had set to INQUEUE or PROGRESS.
pub const DISOWNED: &str = "its status was set to that of a running job by somebody else than Callsheet, so no run belongs \
    to it; set its status to PENDING to have it run";

/// What a waiting row becomes when it is cancelled; `$2` is the time. The error of an earlier attempt stays readable.
pub(super) const CANCEL_PENDING: &str = "status = 'CANCELLED', completed_time = $2, \
    error = CASE WHEN attempt = 0 THEN 'cancelled before its command was started' \
    ELSE 'cancelled while it waited for another attempt' || COALESCE('; the last one: ' || error, '') END";

/// Behind a look, `$5` are the open runs that it found, `$6` is the last event that it saw, `$7` the oldest row that waits.
fn flow_now_sql(dialect: Dialect, requires: &Labels, look: &Look) -> String {
    let (open, schedule_time) = (dialect.by_index("jobs_open"), dialect.schedule_time());
    // Nobody else can have had the name where there is one worker.
    let displaced = if dialect.is_shared() { " OR $4 <> '' AND incarnation <> $4" } else { "" };
    let (shared, claimers, lapse) = match dialect {
        // A SQLite database has one worker.
        Dialect::Sqlite => ("1 = 0".to_owned(), "0".to_owned(), "NULL".to_owned()),
        Dialect::Postgres | Dialect::MySql => (
            others_live(dialect, "$2"),
            claimers(dialect, "$2", requires),
            "min(CASE WHEN worker_id <> $2 THEN lease_time END)".to_owned(),
        ),
    };
    let count = |condition: &str| format!("CAST(COALESCE(sum(CASE WHEN {condition} THEN 1 ELSE 0 END), 0) AS bigint)");
    // All about the open runs in one look at them.
    let (which, oldest) = if look.behind().is_some() {
        (open_since_sql(dialect), format!("AND {schedule_time} >= $7"))
    } else {
        (format!("type = $1 AND {OPEN}"), String::new())
    };
    let (found, told) =
        if look.is_kept() { (FOUND_SQL, "open_runs.ids AS ids, open_runs.event AS event, ") } else { ("", "") };
    let open_runs = format!(
        "SELECT count(*) AS open, {} AS open_here, {} AS disowned, CAST({lapse} AS bigint) AS lapse{found} \
         FROM jobs {open} WHERE {which}",
        count("worker_id = $2"),
        count(&nobodys(dialect)),
    );
    format!(
        "SELECT {} AS now, \
         CAST(COALESCE((SELECT CASE WHEN paused THEN 1 ELSE 0 END FROM flows WHERE type = $1), 0) AS bigint) AS paused, \
         (SELECT count(*) FROM workers WHERE worker_id = $2 AND (drain_requested_time IS NOT NULL{displaced})) AS draining, \
         open_runs.open AS open, open_runs.open_here AS open_here, open_runs.disowned AS disowned, open_runs.lapse AS lapse, \
         CAST(CASE WHEN EXISTS (SELECT 1 FROM jobs {} WHERE type = $1 AND cancel_requested_time IS NOT NULL \
         AND {OPEN_OR_PENDING}) THEN 1 ELSE 0 END AS bigint) AS cancel_requested, \
         CAST(CASE WHEN EXISTS (SELECT 1 FROM jobs {} WHERE {}) THEN 1 ELSE 0 END AS bigint) AS tokens_used, \
         CAST(CASE WHEN EXISTS (SELECT 1 FROM job_dependencies {} WHERE {}) \
         THEN 1 ELSE 0 END AS bigint) AS dependency_ended, \
         CAST(CASE WHEN {shared} THEN 1 ELSE 0 END AS bigint) AS shared, CAST({claimers} AS bigint) AS claimers, \
         {told}(SELECT {schedule_time} FROM jobs {} WHERE type = $1 AND status = 'PENDING' {oldest} ORDER BY {schedule_time} LIMIT 1) AS oldest \
         FROM ({open_runs}) AS open_runs",
        dialect.now(),
        dialect.by_index("jobs_cancel_requested"),
        dialect.by_index("jobs_run_token"),
        dialect.among("run_token", "$3"),
        dialect.by_index("job_dependencies_ended"),
        dialect.noted(),
        dialect.by_index("jobs_expiry"),
    )
}

/// Whether no run can belong to an open row: it has nothing that is a run token, and no other worker's name. `$2` is
/// this worker's; a SQLite database has one worker, whatever it calls itself today.
///
/// To be counted, not to be asked for one: PostgreSQL's planner would expect to meet one soon, and read all the table.
fn nobodys(dialect: Dialect) -> String {
    match dialect {
        Dialect::Sqlite => {
            format!("(run_token IS NULL OR run_token NOT GLOB '{}') AND $2 IS NOT NULL", "[0-9a-f]".repeat(32))
        }
        Dialect::Postgres => "(worker_id IS NULL OR worker_id = $2) \
            AND (run_token IS NULL OR run_token !~ '^[0-9a-f]{32}$')"
            .to_owned(),
        // A line break at the end is no end to it.
        Dialect::MySql => "(worker_id IS NULL OR worker_id = $2) \
            AND (run_token IS NULL OR run_token NOT REGEXP '^[0-9a-f]{32}$' OR CHAR_LENGTH(run_token) <> 32)"
            .to_owned(),
    }
}

fn claimed_columns(dialect: Dialect) -> String {
    format!(
        "id, priority, run_at, attempt, attempts_before, maximum_attempts, created_time, schedule_time, cancel_requested_time, {}, {}, {}, {}",
        dialect.text("identifier"),
        dialect.text("payload"),
        dialect.text("traceparent"),
        dialect.text("tracestate")
    )
}

/// `limit` stands in the text: with a parameter there PostgreSQL's generic plan would assume a tenth of the table.
fn next_rows_sql(dialect: Dialect, limit: usize) -> String {
    rows_sql(
        dialect,
        dialect.pick("AND priority < $2", "AND priority < $2", "AND priority_down > $2"),
        &limit.to_string(),
    )
}

/// `$2` is the priority below which to look, `$3` the time.
fn due_priority_sql(dialect: Dialect) -> String {
    let from = format!("FROM jobs {} WHERE type = $1 AND status = 'PENDING'", dialect.by_index("jobs_claim"));
    format!(
        "WITH RECURSIVE step(priority) AS (\
         SELECT max(priority) {from} AND priority < $2 UNION ALL \
         SELECT (SELECT max(priority) {from} AND jobs.priority < step.priority) FROM step \
         WHERE (SELECT CASE WHEN run_at <= $3 OR run_at <= created_time THEN 0 ELSE 1 END {from} \
         AND jobs.priority = step.priority ORDER BY run_at, id LIMIT 1) = 1) \
         SELECT CAST(CASE WHEN count(*) = count(priority) THEN min(priority) END AS bigint) AS priority FROM step"
    )
}

/// A row that some open transaction is changing is passed over rather than waited for; its commit is a wake-up.
fn rows_sql(dialect: Dialect, which: &str, limit: &str) -> String {
    format!(
        "SELECT {} FROM jobs {} WHERE type = $1 AND status = 'PENDING' {which} AND cancel_requested_time IS NULL \
         ORDER BY {}, run_at, id LIMIT {limit} {}",
        claimed_columns(dialect),
        dialect.by_index("jobs_claim"),
        dialect.pick("priority DESC", "priority DESC", "priority_down"),
        dialect.skip_locked(),
    )
}

/// The first rows, as many as there is room for: `$4` is how many are wanted, `$5` and `$6` how many may be open, in all
/// and on this worker.
fn first_rows_sql() -> String {
    let open = Dialect::Sqlite.by_index("jobs_open");
    let room = format!(
        "(SELECT max(0, min($4, $5 - count(*), $6 - COALESCE(sum(worker_id = $2), 0))) \
         FROM jobs {open} WHERE type = $1 AND {OPEN})"
    );
    rows_sql(Dialect::Sqlite, "", &room)
}

/// The same on PostgreSQL beside what decides how many may be taken: `$5` is how many are wanted, `$6` and `$7` how many may be
/// open, in all and on this worker, and `$8` is 1 where more than an equal part may be taken.
///
/// `LIMIT` is an expression, for which the planner assumes a tenth of the rows; but in this session it would do much not to sort.
fn with_first_rows_sql(flow_now: &str) -> String {
    let room = "LEAST($5, $6 - now.open, $7 - now.open_here)";
    let share = "($6 + now.claimers) / (now.claimers + 1) - now.open_here";
    let limit = format!(
        "(CASE WHEN now.paused <> 0 OR now.draining <> 0 THEN 0 WHEN $8 = 1 THEN GREATEST(0, {room}) \
         ELSE GREATEST(0, LEAST({room}, {share})) END)"
    );
    format!(
        "SELECT now.*, first.* FROM ({flow_now}) AS now LEFT JOIN LATERAL ({}) AS first ON true",
        rows_sql(Dialect::Postgres, "", &limit)
    )
}

/// A row as it will be once claimed; its token is to be filled in.
fn claimed_job(row: &Row<'_>) -> Result<ClaimedJob, Error> {
    let (run_at, created_time) = (row.time("run_at")?, row.time("created_time")?);
    // The table's own limit: a hostile attempt must not make the claim of every other row fail.
    let attempt = row.attempt()?.0.saturating_add(1).min(MOST_ATTEMPTS);
    let payload = readable_payload(row.bytes("payload")?);
    let trace = match row.text("traceparent")? {
        Some(parent) => TraceContext::read(Some(&parent), row.text("tracestate")?.as_deref()),
        None => payload.as_ref().ok().and_then(|payload| trace::in_payload(payload.as_deref()?)),
    };
    Ok(ClaimedJob {
        id: row.job("id")?,
        token: RunToken::from_bytes([0; 16]),
        attempt: Attempt(attempt),
        attempts_before: row.count("attempts_before")?,
        identifier: row.identifier()?,
        payload,
        maximum_attempts: row.maximum_attempts()?,
        priority: row.int("priority")?,
        run_at,
        created_time,
        schedule_time: row.maybe_time("schedule_time")?.unwrap_or(created_time.max(run_at)),
        cancel_requested: row.maybe_int("cancel_requested_time")?.is_some(),
        trace,
    })
}

fn readable_payload(payload: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, Unreadable> {
    let Some(bytes) = payload else { return Ok(None) };
    match serde_json::from_slice::<serde::de::IgnoredAny>(&bytes) {
        Ok(_) => Ok(Some(bytes)),
        Err(error) => Err(Unreadable(format!("the payload is no valid JSON: {error}"))),
    }
}
