//! Writes about runs: each is conditional on the run's token, and may be repeated.
//!
//! What a start or an end changes is told in [`super::change`].

use std::collections::{BTreeMap, BTreeSet};
use std::iter::repeat;
use std::time::Duration;

use sea_orm::Value;
use serde_json::json;

use super::change::{Change, ChangeText, Made, NextShape, RunChange, Shape};
use super::connection::{Connection, Transaction};
use super::leases::{lease_millis, others_live};
use super::sql::{Dialect, Doing, OPEN, Row, storable};
use super::update::{Rows, Update};
use super::{
    Confirm, ConfirmedRun, Error, ProgressNote, Settlement, Started, Store, Worker, WorkerNote, Write, Written,
};
use crate::domain::run::Next;
use crate::domain::slots::Slot;
use crate::domain::{JobStatus, RunToken, Timestamp, WorkerId};

/// A turn in a run's life.
#[derive(Clone, Copy)]
enum Turn<'a> {
    Start(&'a Started),
    End(&'a Settlement),
}

impl<'a> Turn<'a> {
    fn of(write: &'a Write) -> Option<Self> {
        match write {
            Write::Started(started) => Some(Self::Start(started)),
            Write::Settle(settlement) => Some(Self::End(settlement)),
            _ => None,
        }
    }

    fn slot(self) -> (&'a RunToken, Option<&'a Slot>) {
        match self {
            Self::Start(started) => (&started.token, started.slot.as_ref()),
            Self::End(settlement) => (&settlement.token, settlement.slot.as_ref()),
        }
    }
}

impl Store {
    /// Carries out the starts and ends that these writes begin with, as many as go into one statement, and answers them; and
    /// locks these flows.
    pub(super) async fn change(
        &self,
        transaction: &Transaction,
        writes: &[Write],
        flows: &BTreeSet<&str>,
    ) -> Result<Vec<Written>, Error> {
        let (alike, changes) = self.alike(writes);
        let action = match alike.first() {
            Some(Turn::Start(_)) => "record a start",
            Some(Turn::End(_)) => "settle a run",
            None => return Ok(Vec::new()),
        };
        let current = self.carry_out(transaction, action, &changes, flows).await?;
        let mut answers = Vec::with_capacity(alike.len());
        for (turn, is_current) in alike.into_iter().zip(current) {
            answers.push(match turn {
                _ if is_current => Written::Applied,
                Turn::Start(started) => self.started_before(transaction, started).await?,
                Turn::End(settlement) => self.settled_before(transaction, settlement).await?,
            });
            let (token, slot) = turn.slot();
            self.note_slot(transaction, token, slot).await?;
        }
        Ok(answers)
    }

    /// The starts and ends that these writes begin with, as far as one statement can carry them out.
    fn alike<'a>(&self, writes: &'a [Write]) -> (Vec<Turn<'a>>, Vec<Change>) {
        let most = if self.dialect() == Dialect::Postgres { writes.len() } else { 1 };
        let (mut turns, mut changes): (_, Vec<Change>) = (Vec::new(), Vec::new());
        let mut jobs = BTreeSet::new();
        for turn in writes.iter().take(most).map_while(Turn::of) {
            let (change, job) = match turn {
                Turn::Start(started) => (self.start(started), started.job),
                Turn::End(settlement) => (self.end(settlement), settlement.job),
            };
            // What becomes of a job by the second change depends on the first.
            if changes.first().is_some_and(|first| !first.is_like(&change)) || !jobs.insert(job) {
                break;
            }
            turns.push(turn);
            changes.push(change);
        }
        (turns, changes)
    }

    fn start(&self, started: &Started) -> Change {
        // In the order of the names in [`start_text`].
        let values = vec![
            started.job.0.into(),
            started.token.as_str().into(),
            started.worker.as_str().into(),
            start_message(started.pid).into(),
            started.started_time.unix_millis().into(),
            i64::from(started.attempt.0).into(),
            i64::from(started.pid).into(),
        ];
        let text = ChangeText::of(self.dialect(), Shape::Start, || start_text(self.dialect()));
        Change { token: started.token.clone(), text, values }
    }

    /// The start may have been written before: then the run is in progress, whether or not somebody has tidied up `runs`, or has
    /// been settled since, unless it was settled as lost, which is what another worker does with a run that it takes away.
    async fn started_before(&self, transaction: &Transaction, started: &Started) -> Result<Written, Error> {
        let query = "SELECT CAST(CASE WHEN EXISTS (SELECT 1 FROM jobs WHERE id = $2 AND run_token = $1 AND status = 'PROGRESS') \
             OR EXISTS (SELECT 1 FROM runs WHERE run_token = $1 AND job_id = $2 AND started_time IS NOT NULL AND outcome <> 'LOST') \
             THEN 1 ELSE 0 END AS bigint) AS found";
        self.applied_if(transaction, query, [started.token.as_str().into(), started.job.0.into()]).await
    }

    pub(super) async fn confirm(
        &self,
        transaction: &Transaction,
        confirms: &[Confirm],
        begun: Duration,
    ) -> Result<Vec<ConfirmedRun>, Error> {
        // A statement for each length of lease, of which there are as many as flows.
        let mut by_lease: BTreeMap<Duration, Vec<&RunToken>> = BTreeMap::new();
        for confirm in confirms {
            by_lease.entry(confirm.untouched).or_default().push(&confirm.token);
        }
        let mut confirmed = Vec::with_capacity(confirms.len());
        for (untouched, tokens) in by_lease {
            confirmed.extend(self.confirm_alike(transaction, &tokens, untouched, begun).await?);
        }
        confirmed.sort_by_key(|run| confirms.iter().position(|confirm| confirm.token == run.token));
        Ok(confirmed)
    }

    async fn confirm_alike(
        &self,
        transaction: &Transaction,
        tokens: &[&RunToken],
        untouched: Duration,
        begun: Duration,
    ) -> Result<Vec<ConfirmedRun>, Error> {
        const ACTION: &str = "confirm runs";
        let dialect = self.dialect();
        let these = format!("{} AND {}", dialect.among("run_token", "$1"), dialect.of_named(OPEN));
        let answer = format!(
            "{}, CAST(CASE WHEN cancel_requested_time IS NULL THEN 0 ELSE 1 END AS bigint) AS cancel_requested",
            dialect.text("run_token")
        );
        let set = format!("UPDATE jobs {} SET heartbeat_time = {}", dialect.by_index("jobs_run_token"), dialect.now());
        let names = json!(tokens.iter().map(|token| token.as_str()).collect::<Vec<_>>()).to_string();
        let shared =
            format!("CAST(CASE WHEN {} THEN 1 ELSE 0 END AS bigint) AS shared", others_live(dialect, "jobs.worker_id"));
        let results = match dialect {
            Dialect::Sqlite => {
                let update = format!("{set} WHERE {these} RETURNING {answer}");
                transaction.query_all(self.statement(update, [names.clone().into()])).await.doing(ACTION)?
            }
            // A row that some open transaction holds, maybe for ever, must not hold up the confirmation of all others.
            Dialect::Postgres | Dialect::MySql => {
                let (now, lock) = (dialect.now(), dialect.skip_locked());
                let by_token = dialect.pick("", "", "FORCE INDEX (jobs_run_token)");
                let update = Update {
                    table: "jobs",
                    set: &format!("heartbeat_time = {now}, lease_time = {now} + $2"),
                    rows: Rows::Selected { from: &format!("FROM jobs {by_token} WHERE {these} {lock}"), while_: OPEN },
                    returning: &format!("{answer}, {shared}"),
                };
                let values = vec![names.clone().into(), lease_millis(untouched).into()];
                self.update(transaction, ACTION, &update, values).await?
            }
        };
        let locked = if results.len() < tokens.len() && dialect.is_shared() {
            // Gone, or only locked: then it is as it was committed last.
            let select = format!("SELECT {answer}, CAST(0 AS bigint) AS shared FROM jobs WHERE {these}");
            transaction.query_all(self.statement(select, [names.into()])).await.doing(ACTION)?
        } else {
            Vec::new()
        };
        let mut current: BTreeMap<RunToken, ConfirmedRun> = BTreeMap::new();
        for (result, written) in results.iter().zip(repeat(true)).chain(locked.iter().zip(repeat(false))) {
            let row = Row { result, dialect };
            if let Some(token) = row.token()? {
                let cancel_requested = row.flag("cancel_requested")?;
                let shared = dialect.is_shared() && row.flag("shared")?;
                let run = ConfirmedRun { token: token.clone(), cancel_requested, written, shared, begun };
                current.entry(token).or_insert(run);
            }
        }
        Ok(current.into_values().collect())
    }

    pub(super) async fn progress(&self, transaction: &Transaction, note: &ProgressNote) -> Result<Written, Error> {
        const ACTION: &str = "record progress";
        let dialect = self.dialect();
        let set = "progress = COALESCE($2, progress), status_message = COALESCE($3, status_message)";
        let these = format!("run_token = $1 AND {}", dialect.of_named(OPEN));
        let values = [
            note.token.as_str().into(),
            note.progress.map(|progress| i64::from(progress.min(100))).into(),
            note.status_message.as_deref().map(storable).into(),
        ];
        if !dialect.is_shared() {
            let update = format!("UPDATE jobs {} SET {set} WHERE {these}", dialect.by_index("jobs_run_token"));
            return self.applied_where(transaction, ACTION, &update, values).await;
        }
        // Where the row is locked: the next note says more.
        let from = format!("FROM jobs WHERE {these} {}", dialect.skip_locked());
        let rows = Rows::Selected { from: &from, while_: OPEN };
        let update = Update { table: "jobs", set, rows, returning: "id" };
        let updated = self.update(transaction, ACTION, &update, values.into()).await?;
        Ok(if updated.is_empty() { Written::Fenced } else { Written::Applied })
    }

    fn end(&self, settlement: &Settlement) -> Change {
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let milliseconds = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let (usage, error) = (settlement.usage, settlement.error.as_deref().map(storable));
        // To be added to a time.
        let wait = if let Next::RetryAfter(wait) = settlement.next {
            Some(milliseconds(wait).min(i64::MAX / 2))
        } else {
            None
        };
        // In the order of the names in [`end_text`].
        let values = vec![
            settlement.job.0.into(),
            settlement.token.as_str().into(),
            settlement.next.status().as_str().into(),
            settlement.worker.as_str().into(),
            message(settlement).into(),
            settlement.started_time.and(settlement.pid).map(start_message).into(),
            error.into(),
            settlement.exit_code.map(i64::from).into(),
            settlement.execution_ms.into(),
            settlement.started_time.map(Timestamp::unix_millis).into(),
            settlement.completed_time.unix_millis().into(),
            wait.into(),
            i64::from(settlement.attempt.0).into(),
            settlement.pid.map(i64::from).into(),
            settlement.outcome.map(|outcome| outcome.as_str()).into(),
            settlement.signal.map(i64::from).into(),
            usage.map(|usage| milliseconds(usage.user_cpu)).into(),
            usage.map(|usage| milliseconds(usage.system_cpu)).into(),
            usage.map(|usage| bytes(usage.max_rss_bytes)).into(),
            usage.and_then(|usage| usage.io_read_bytes).map(bytes).into(),
            usage.and_then(|usage| usage.io_write_bytes).map(bytes).into(),
        ];
        let next = match settlement.next {
            Next::Final(JobStatus::Completed) => NextShape::Completed,
            Next::Final(_) => NextShape::Ended,
            Next::RetryAfter(_) => NextShape::RetryAfter,
            Next::Requeue => NextShape::Requeue,
        };
        let (has_run, lapsed) = (settlement.outcome.is_some(), settlement.lapsed);
        let text = ChangeText::of(self.dialect(), Shape::End { next, has_run, lapsed }, || {
            end_text(self.dialect(), next, has_run, lapsed)
        });
        Change { token: settlement.token.clone(), text, values }
    }

    /// Whether the row already says what this settlement would make it say.
    async fn settled_before(&self, transaction: &Transaction, settlement: &Settlement) -> Result<Written, Error> {
        let (job, token) = (settlement.job.0, settlement.token.as_str());
        match (settlement.outcome, settlement.next) {
            (Some(outcome), _) => {
                let query = "SELECT CAST(count(*) AS bigint) AS found FROM runs WHERE run_token = $1 AND job_id = $2 AND outcome = $3";
                self.applied_if(transaction, query, [token.into(), job.into(), outcome.as_str().into()]).await
            }
            (None, Next::Final(status)) => {
                let query = "SELECT CAST(count(*) AS bigint) AS found FROM jobs WHERE run_token = $1 AND id = $2 AND status = $3";
                self.applied_if(transaction, query, [token.into(), job.into(), status.as_str().into()]).await
            }
            (None, Next::RetryAfter(_) | Next::Requeue) => {
                // The token is gone from the row, but nobody has claimed it since: the attempt's number tells.
                let waits = self.dialect().of_named("status = 'PENDING'");
                let query = format!(
                    "SELECT CAST(count(*) AS bigint) AS found FROM jobs WHERE id = $1 AND {waits} AND run_token IS NULL AND attempt = $2"
                );
                let attempt = i64::from(settlement.attempt.0) - i64::from(settlement.next == Next::Requeue);
                self.applied_if(transaction, &query, [job.into(), attempt.into()]).await
            }
        }
    }

    /// A statement of its own, which costs those nothing who have no slots.
    pub(super) async fn note_slot(
        &self,
        transaction: &Transaction,
        token: &RunToken,
        slot: Option<&Slot>,
    ) -> Result<(), Error> {
        let Some(slot) = slot else { return Ok(()) };
        let update = self.statement(
            "UPDATE runs SET slot = $2 WHERE run_token = $1",
            [token.as_str().into(), slot.to_string().into()],
        );
        transaction.execute(update).await.doing("record a slot")?;
        Ok(())
    }

    pub(super) async fn register_worker(&self, transaction: &Transaction, worker: &Worker) -> Result<Written, Error> {
        if let Some(incarnation) = &worker.displaces {
            self.displace(transaction, &worker.worker, incarnation).await?;
        }
        let now = self.dialect().now();
        let upsert = format!(
            "INSERT INTO workers (worker_id, incarnation, hostname, version, state, started_time, heartbeat_time, labels, address) \
             VALUES ($1, $2, $3, $4, 'ACTIVE', {now}, {now}, $5, $6) ON CONFLICT (worker_id) DO UPDATE SET \
             hostname = excluded.hostname, version = excluded.version, labels = excluded.labels, address = excluded.address, \
             state = excluded.state, heartbeat_time = excluded.heartbeat_time, started_time = \
             CASE WHEN workers.incarnation = excluded.incarnation THEN workers.started_time ELSE excluded.started_time END, \
             drain_requested_time = CASE WHEN workers.incarnation = excluded.incarnation THEN workers.drain_requested_time END, \
             drain_requested_by = CASE WHEN workers.incarnation = excluded.incarnation THEN workers.drain_requested_by END, \
             incarnation = excluded.incarnation"
        );
        let values = [
            worker.worker.as_str().into(),
            storable(&worker.incarnation).into(),
            storable(&worker.hostname).into(),
            storable(&worker.version).into(),
            json!(worker.labels.to_words()).to_string().into(),
            worker.address.as_deref().map(storable).into(),
        ];
        // From now on the others look after the leases of its runs.
        self.tell_everybody(transaction).await?;
        self.applied_where(transaction, "register this worker", &upsert, values).await
    }

    /// Gives what a worker has left open, whose name is another's from now on, a name that nobody has: it is taken over once its
    /// leases are over. Where that worker comes back, its runs still are its own by their tokens.
    async fn displace(&self, transaction: &Transaction, worker: &WorkerId, incarnation: &str) -> Result<(), Error> {
        const ACTION: &str = "set another worker's runs apart";
        // The rest of a worker id's 100 characters.
        let name: String = worker.as_str().chars().take(80).collect();
        let apart = format!("{name}:{}", storable(incarnation));
        let columns = "incarnation, hostname, version, state, started_time, heartbeat_time, labels";
        let statements = [
            format!(
                "INSERT INTO workers (worker_id, {columns}) SELECT $2, {columns} FROM workers WHERE worker_id = $1 \
                 AND incarnation = $3 AND NOT EXISTS (SELECT 1 FROM workers WHERE worker_id = $2)"
            ),
            format!(
                "UPDATE runs SET worker_id = $2 WHERE completed_time IS NULL AND job_id IN (SELECT id FROM jobs {} \
                 WHERE worker_id = $1 AND {OPEN}) AND worker_id = $1 AND $3 IS NOT NULL",
                self.dialect().by_index("jobs_open"),
            ),
            format!("UPDATE jobs SET worker_id = $2 WHERE worker_id = $1 AND {OPEN} AND $3 IS NOT NULL"),
        ];
        for statement in statements {
            let values = [worker.as_str().into(), apart.as_str().into(), incarnation.into()];
            transaction.execute(self.statement(statement, values)).await.doing(ACTION)?;
        }
        Ok(())
    }

    /// A state is never taken back: a sign of life may be on its way while the worker says that it drains or has stopped.
    pub(super) async fn worker_state(&self, transaction: &Transaction, note: &WorkerNote) -> Result<Written, Error> {
        let update = format!(
            "UPDATE workers SET state = CASE WHEN state = 'STOPPED' OR state = 'DRAINING' AND $3 = 'ACTIVE' THEN state \
             ELSE $3 END, heartbeat_time = {} WHERE worker_id = $1 AND incarnation = $2",
            self.dialect().now()
        );
        let values = [note.worker.as_str().into(), storable(&note.incarnation).into(), note.state.as_str().into()];
        self.applied_where(transaction, "record what this worker does", &update, values).await
    }

    async fn applied_where<const N: usize>(
        &self,
        transaction: &Transaction,
        action: &'static str,
        update: &str,
        values: [Value; N],
    ) -> Result<Written, Error> {
        let updated = transaction.execute(self.statement(update, values)).await.doing(action)?.rows_affected;
        Ok(if updated == 0 { Written::Fenced } else { Written::Applied })
    }

    async fn applied_if<const N: usize>(
        &self,
        transaction: &Transaction,
        query: &str,
        values: [Value; N],
    ) -> Result<Written, Error> {
        let result = transaction.query_one(self.statement(query, values)).await.doing("look for an earlier write")?;
        let found = result.map_or(Ok(0), |result| Row { result: &result, dialect: self.dialect() }.int("found"))?;
        Ok(if found == 0 { Written::Fenced } else { Written::Applied })
    }
}

fn start_text(dialect: Dialect) -> ChangeText {
    let [job, token, worker, message, time, attempt, pid] = ChangeText::names(dialect);
    let now = dialect.now();
    ChangeText {
        current: format!(
            "id = {job} AND {} = {token} AND {}",
            dialect.token_of_named(),
            dialect.of_named("status = 'INQUEUE'")
        ),
        event: format!("SELECT id, attempt, status, 'PROGRESS', {now}, {worker}, {message} FROM"),
        event_rest: String::new(),
        job: format!("status = 'PROGRESS', started_time = {time}, heartbeat_time = {now}"),
        is_told: false,
        run: Some(RunChange::Written {
            insert: format!(
                "INSERT INTO runs (job_id, attempt, run_token, worker_id, pid, started_time) \
                 SELECT {job}, {attempt}, {token}, {worker}, {pid}, {time}"
            ),
            conflict: "ON CONFLICT (run_token) DO UPDATE SET pid = excluded.pid, started_time = excluded.started_time",
        }),
        made: Made::default(),
    }
}

fn end_text(dialect: Dialect, next: NextShape, has_run: bool, lapsed: bool) -> ChangeText {
    let [
        job,
        token,
        to,
        worker,
        message,
        start,
        error,
        exit_code,
        execution,
        started,
        completed,
        wait,
        attempt,
        pid,
        outcome,
        signal,
        usage @ ..,
    ]: [String; 21] = ChangeText::names(dialect);
    let now = dialect.now();
    // A run whose start was not written before its end (it was short, or nobody was there) gets both events here.
    let event = format!(
        "SELECT id, attempt, CASE WHEN step.last = 0 OR {start} IS NULL THEN status ELSE 'PROGRESS' END, \
         CASE WHEN step.last = 0 THEN 'PROGRESS' ELSE {to} END, {now}, {worker}, \
         CASE WHEN step.last = 0 THEN {start} ELSE {message} END \
         FROM (SELECT 0 AS last UNION ALL SELECT 1) AS step JOIN"
    );
    let event_rest =
        format!("ON step.last = 1 OR (current.status = 'INQUEUE' AND {start} IS NOT NULL) ORDER BY step.last");
    let of_attempt = format!(
        "error = {error}, exit_code = {exit_code}, execution_ms = {execution}, started_time = COALESCE({started}, started_time)"
    );
    // `cancel_requested_time` is not in it, so a request that came meanwhile is not lost.
    let set = match next {
        NextShape::Completed | NextShape::Ended => {
            let progress = if next == NextShape::Completed { ", progress = 100" } else { "" };
            format!("status = {to}, completed_time = {completed}, heartbeat_time = {now}, {of_attempt}{progress}")
        }
        NextShape::RetryAfter => format!(
            "status = 'PENDING', run_at = {now} + {wait}, worker_id = NULL, run_token = NULL, lease_time = NULL, {of_attempt}"
        ),
        NextShape::Requeue => {
            "status = 'PENDING', attempt = CASE WHEN jobs.attempt > 0 THEN jobs.attempt - 1 ELSE 0 END, worker_id = NULL, \
             run_token = NULL, lease_time = NULL, queued_time = NULL, started_time = NULL, heartbeat_time = NULL"
                .to_owned()
        }
    };
    let run = if has_run {
        let [user_cpu, system_cpu, max_rss, io_read, io_write] = &usage;
        Some(settled_run(&[
            ("job_id", &job),
            ("run_token", &token),
            ("worker_id", &worker),
            ("attempt", &attempt),
            ("pid", &pid),
            ("started_time", &started),
            ("completed_time", &completed),
            ("outcome", &outcome),
            ("exit_code", &exit_code),
            ("\"signal\"", &signal),
            ("error", &error),
            ("user_cpu_ms", user_cpu),
            ("system_cpu_ms", system_cpu),
            ("max_rss_bytes", max_rss),
            ("io_read_bytes", io_read),
            ("io_write_bytes", io_write),
        ]))
    } else if next == NextShape::Requeue {
        Some(RunChange::Forgotten { which: format!("run_token = {token} AND outcome IS NULL") })
    } else {
        None
    };
    let lapsed = if lapsed { format!(" AND lease_time < {now}") } else { String::new() };
    ChangeText {
        current: format!(
            "id = {job} AND {} = {token} AND {}{lapsed}",
            dialect.token_of_named(),
            dialect.of_named(OPEN)
        ),
        event,
        event_rest,
        job: set,
        is_told: true,
        run,
        made: Made::default(),
    }
}

/// Makes the row of `runs` say how the run ended, whether or not it has one: by its columns and what is in them.
fn settled_run(columns: &[(&str, &String)]) -> RunChange {
    let (names, values): (Vec<_>, Vec<_>) = columns.iter().map(|(name, value)| (*name, value.as_str())).unzip();
    let insert = format!("INSERT INTO runs ({}) SELECT {}", names.join(", "), values.join(", "));
    let conflict = "ON CONFLICT (run_token) DO UPDATE SET pid = COALESCE(excluded.pid, runs.pid), \
         started_time = COALESCE(excluded.started_time, runs.started_time), completed_time = excluded.completed_time, \
         outcome = excluded.outcome, exit_code = excluded.exit_code, \"signal\" = excluded.\"signal\", error = excluded.error, \
         user_cpu_ms = excluded.user_cpu_ms, system_cpu_ms = excluded.system_cpu_ms, \
         max_rss_bytes = excluded.max_rss_bytes, io_read_bytes = excluded.io_read_bytes, \
         io_write_bytes = excluded.io_write_bytes";
    RunChange::Written { insert, conflict }
}

/// What the event of a start says.
fn start_message(pid: i32) -> String {
    format!("its command was started with process id {pid}")
}

/// What the event of a settlement says.
fn message(settlement: &Settlement) -> String {
    if let Some(message) = &settlement.message {
        return storable(message);
    }
    let reason = settlement.error.as_deref().and_then(|error| error.lines().next()).map(storable);
    match settlement.next {
        Next::Final(JobStatus::Completed) => "its command ended with exit code 0".to_owned(),
        Next::Final(status) => reason.unwrap_or_else(|| format!("settled as {status}")),
        Next::RetryAfter(wait) => {
            let reason = reason.as_deref().unwrap_or("the attempt failed");
            format!("{reason}; the next attempt is due in {}", humantime::format_duration(wait))
        }
        Next::Requeue => reason.unwrap_or_else(|| "its command was never started; it waits again".to_owned()),
    }
}
