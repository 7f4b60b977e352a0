//! Rows as JSON, for the API and for `--json`: keys are the column names, times RFC 3339 in UTC to the millisecond.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::actors::ActorSnapshot;
use crate::config::{Config, FlowConfig};
use crate::domain::Timestamp;
use crate::domain::labels::Labels;
use crate::store::{
    AuditRow, DeliveryRow, DependencyRow, EventRow, FlowState, JobRow, Page, Pruned, RecurringRow, RunRow,
    StreamedEvent, WorkerRow, WorkerState,
};

/// A row of `jobs`.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct JobJson {
    /// `id`
    pub id: i64,
    /// `type`
    #[serde(rename = "type")]
    pub job_type: String,
    /// `identifier`
    pub identifier: String,
    /// `payload`: the JSON that was written, or a text where what was written is no JSON.
    #[schema(value_type = Option<Value>, nullable)]
    pub payload: Option<Value>,
    /// `status`
    #[schema(value_type = StatusWord)]
    pub status: &'static str,
    /// `priority`
    pub priority: i64,
    /// `run_at`
    #[schema(format = DateTime)]
    pub run_at: String,
    /// `attempt`
    pub attempt: u32,
    /// `maximum_attempts`
    pub maximum_attempts: Option<u32>,
    /// `unique_key`
    pub unique_key: Option<String>,
    /// `worker_id`
    pub worker_id: Option<String>,
    /// `run_token`
    pub run_token: Option<String>,
    /// `cancel_requested_time`
    #[schema(format = DateTime)]
    pub cancel_requested_time: Option<String>,
    /// `progress`
    pub progress: Option<u8>,
    /// `status_message`
    pub status_message: Option<String>,
    /// `error`
    pub error: Option<String>,
    /// `exit_code`
    pub exit_code: Option<i64>,
    /// `created_time`
    #[schema(format = DateTime)]
    pub created_time: String,
    /// `queued_time`
    #[schema(format = DateTime)]
    pub queued_time: Option<String>,
    /// `started_time`
    #[schema(format = DateTime)]
    pub started_time: Option<String>,
    /// `heartbeat_time`
    #[schema(format = DateTime)]
    pub heartbeat_time: Option<String>,
    /// `completed_time`
    #[schema(format = DateTime)]
    pub completed_time: Option<String>,
    /// `execution_ms`
    pub execution_ms: Option<i64>,
    /// `traceparent`
    pub traceparent: Option<String>,
    /// `tracestate`
    pub tracestate: Option<String>,
}

/// A row of `runs`.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct RunJson {
    /// `id`
    pub id: i64,
    /// `job_id`
    pub job_id: i64,
    /// `attempt`
    pub attempt: u32,
    /// `run_token`
    pub run_token: String,
    /// `worker_id`
    pub worker_id: Option<String>,
    /// `pid`
    pub pid: Option<i64>,
    /// `started_time`
    #[schema(format = DateTime)]
    pub started_time: Option<String>,
    /// `completed_time`
    #[schema(format = DateTime)]
    pub completed_time: Option<String>,
    /// `outcome`
    pub outcome: Option<String>,
    /// `exit_code`
    pub exit_code: Option<i64>,
    /// `signal`
    pub signal: Option<i64>,
    /// `error`
    pub error: Option<String>,
    /// `user_cpu_ms`
    pub user_cpu_ms: Option<i64>,
    /// `system_cpu_ms`
    pub system_cpu_ms: Option<i64>,
    /// `max_rss_bytes`
    pub max_rss_bytes: Option<i64>,
    /// `io_read_bytes`
    pub io_read_bytes: Option<i64>,
    /// `io_write_bytes`
    pub io_write_bytes: Option<i64>,
    /// `slot`: the device that it had, such as `CUDA_VISIBLE_DEVICES=1`.
    pub slot: Option<String>,
}

/// A row of `job_events`.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct EventJson {
    /// `id`
    pub id: i64,
    /// `job_id`
    pub job_id: i64,
    /// `attempt`
    pub attempt: u32,
    /// `from_status`
    pub from_status: Option<String>,
    /// `to_status`
    pub to_status: String,
    /// `time`
    #[schema(format = DateTime)]
    pub time: String,
    /// `worker_id`
    pub worker_id: Option<String>,
    /// `message`
    pub message: Option<String>,
}

/// A job with every run and every event.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct JobDetailJson {
    /// The job.
    #[serde(flatten)]
    pub job: JobJson,
    /// Its runs, oldest first.
    pub runs: Vec<RunJson>,
    /// Its events, oldest first.
    pub events: Vec<EventJson>,
    /// The jobs that it waits for, or has waited for.
    pub after: Vec<DependencyJson>,
}

/// A job that another one waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DependencyJson {
    /// Its id; it may have been removed since.
    pub job_id: i64,
    /// The status that it ended with, or `DELETED`; null where it has not ended.
    pub ended: Option<String>,
}

impl From<DependencyRow> for DependencyJson {
    fn from(row: DependencyRow) -> Self {
        Self { job_id: row.after.0, ended: row.ended }
    }
}

/// A row of `workers`.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct WorkerJson {
    /// `worker_id`
    pub worker_id: String,
    /// `incarnation`
    pub incarnation: String,
    /// `hostname`
    pub hostname: String,
    /// `version`
    pub version: String,
    /// `state`, or MISSING where it has not stopped and shows no sign of life.
    pub state: &'static str,
    /// `started_time`
    #[schema(format = DateTime)]
    pub started_time: String,
    /// `heartbeat_time`
    #[schema(format = DateTime)]
    pub heartbeat_time: String,
    /// How long ago that was by the database's clock, in seconds.
    pub heartbeat_age_seconds: u64,
    /// `drain_requested_time`
    #[schema(format = DateTime)]
    pub drain_requested_time: Option<String>,
    /// `drain_requested_by`
    pub drain_requested_by: Option<String>,
    /// `labels`: what it has that flows may require.
    pub labels: Vec<String>,
    /// How many claimed and running jobs it has.
    pub runs: u64,
}

/// The workers.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct WorkersJson {
    /// In the order of their names.
    pub workers: Vec<WorkerJson>,
}

/// How a flow's queue stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FlowJson {
    /// `type`
    #[serde(rename = "type")]
    pub job_type: String,
    /// Whether the configuration has a flow of this type.
    pub configured: bool,
    /// Whether nothing of it is claimed.
    pub paused: bool,
    /// Since when.
    #[schema(format = DateTime)]
    pub paused_time: Option<String>,
    /// Who paused it.
    pub paused_by: Option<String>,
    /// How many runs there may be at once, over all workers.
    pub concurrency: Option<u32>,
    /// How many runs there may be at once on one worker.
    pub worker_concurrency: Option<u32>,
    /// The labels that a worker needs to run its jobs.
    pub requires: Option<Vec<String>>,
    /// How many living workers have all of them; none of its jobs is started while that is 0.
    pub able_workers: Option<u64>,
    /// Jobs that wait, delayed ones included.
    pub pending: u64,
    /// Jobs that wait and are due.
    pub runnable: u64,
    /// Claimed jobs.
    pub inqueue: u64,
    /// Running jobs.
    pub progress: u64,
    /// `run_at` of the job that has been due for the longest time.
    #[schema(format = DateTime)]
    pub oldest_pending_time: Option<String>,
}

/// The flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FlowsJson {
    /// In the order of their types.
    pub flows: Vec<FlowJson>,
}

impl FlowJson {
    /// The flow of this type, as far as it is configured and has rows; `alive` are the labels of each living worker.
    #[must_use]
    pub fn new(name: &str, flow: Option<&FlowConfig>, state: Option<&FlowState>, alive: &[Labels]) -> Self {
        let able = |flow: &FlowConfig| alive.iter().filter(|labels| labels.satisfy(&flow.requires)).count() as u64;
        Self {
            job_type: name.to_owned(),
            configured: flow.is_some(),
            paused: state.is_some_and(|state| state.paused),
            paused_time: state.and_then(|state| state.paused_time).map(rfc3339),
            paused_by: state.and_then(|state| state.paused_by.clone()),
            concurrency: flow.map(|flow| flow.concurrency.get()),
            worker_concurrency: flow.map(|flow| flow.worker_concurrency.get()),
            requires: flow.map(|flow| flow.requires.to_words()),
            able_workers: flow.map(able),
            pending: state.map_or(0, |state| state.pending),
            runnable: state.map_or(0, |state| state.runnable),
            inqueue: state.map_or(0, |state| state.inqueue),
            progress: state.map_or(0, |state| state.progress),
            oldest_pending_time: state.and_then(|state| state.oldest_pending).map(rfc3339),
        }
    }
}

impl WorkerJson {
    /// The row as it is at `now`, the database's time.
    #[must_use]
    pub fn new(row: &WorkerRow, now: Timestamp) -> Self {
        let states = [WorkerState::Active, WorkerState::Draining, WorkerState::Stopped];
        let state = states.into_iter().map(WorkerState::as_str).find(|state| *state == row.state);
        let live = row.is_live(now) || row.state == WorkerState::Stopped.as_str();
        Self {
            worker_id: row.worker_id.clone(),
            incarnation: row.incarnation.clone(),
            hostname: row.hostname.clone(),
            version: row.version.clone(),
            state: state.filter(|_| live).unwrap_or("MISSING"),
            started_time: rfc3339(row.started_time),
            heartbeat_time: rfc3339(row.heartbeat_time),
            heartbeat_age_seconds: now.since(row.heartbeat_time).as_secs(),
            drain_requested_time: row.drain_requested_time.map(rfc3339),
            drain_requested_by: row.drain_requested_by.clone(),
            labels: row.labels.to_words(),
            runs: row.runs,
        }
    }
}

/// A page of jobs.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct JobsJson {
    /// The jobs, newest first.
    pub jobs: Vec<JobJson>,
    /// What to give as `cursor` for the next page; `None` where this is the last.
    pub next_cursor: Option<String>,
}

/// `jobs.status`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schema(as = JobStatus)]
pub enum StatusWord {
    /// Waiting to be claimed.
    Pending,
    /// Claimed by a worker; its command has not started yet.
    InQueue,
    /// Its command runs.
    Progress,
    /// Its command ended with exit code 0.
    Completed,
    /// It ended otherwise, and no attempt is left.
    Error,
    /// It was cancelled.
    Cancelled,
}

/// A job that was enqueued.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct EnqueuedJson {
    /// The job.
    #[serde(flatten)]
    pub job: JobJson,
    /// Whether it was there before: an open job has the same `unique_key`.
    pub existing: bool,
}

/// A status change, as it is streamed.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct StreamedEventJson {
    /// The change.
    #[serde(flatten)]
    pub event: EventJson,
    /// `jobs.type`
    #[serde(rename = "type")]
    pub job_type: String,
}

/// A row of `audit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditJson {
    /// `id`
    pub id: i64,
    /// `time`
    #[schema(format = DateTime)]
    pub time: String,
    /// `actor`: a token's name, a user's, or `local` where no token was asked for.
    pub actor: String,
    /// `via`: `api`, `page` or `cli`.
    pub via: String,
    /// `address`: where from.
    pub address: Option<String>,
    /// `action`, such as `cancel`.
    pub action: String,
    /// `target`, such as `job 42`.
    pub target: String,
    /// `outcome`: `done`, or why not.
    pub outcome: String,
}

/// A page of the audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditsJson {
    /// The deeds, newest first.
    pub audit: Vec<AuditJson>,
    /// What to give as `cursor` for the next page; `None` where this is the last.
    pub next_cursor: Option<String>,
}

/// A row of `deliveries`: an event on its way to a webhook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeliveryJson {
    /// `id`
    pub id: i64,
    /// `webhook`: its name.
    pub webhook: String,
    /// `event_id`
    pub event_id: i64,
    /// `job_id`
    pub job_id: i64,
    /// `state`: `WAITING`, `DELIVERED` or `FAILED`.
    pub state: String,
    /// `tries`
    pub tries: u32,
    /// When it is tried next; null where it has ended, or waits for an earlier one of its job.
    #[schema(format = DateTime)]
    pub next_time: Option<String>,
    /// When it was delivered or given up.
    #[schema(format = DateTime)]
    pub ended_time: Option<String>,
    /// `error`: why the last try failed.
    pub error: Option<String>,
}

/// A page of deliveries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeliveriesJson {
    /// The deliveries, newest first.
    pub deliveries: Vec<DeliveryJson>,
    /// What to give as `cursor` for the next page; null where this is the last.
    pub next_cursor: Option<String>,
}

impl From<DeliveryRow> for DeliveryJson {
    fn from(row: DeliveryRow) -> Self {
        Self {
            id: row.id,
            webhook: row.webhook,
            event_id: row.event_id,
            job_id: row.job_id.0,
            state: row.state,
            tries: row.tries,
            next_time: row.next_time.map(rfc3339),
            ended_time: row.ended_time.map(rfc3339),
            error: row.error,
        }
    }
}

/// A recurring job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct RecurringJson {
    /// The flow's job type.
    #[serde(rename = "type")]
    pub job_type: String,
    /// What the database knows it by.
    pub name: String,
    /// The cron line.
    pub schedule: String,
    /// The time zone that it is meant in.
    pub timezone: String,
    /// `jobs.identifier` of its jobs.
    pub identifier: String,
    /// What becomes of fires that no service was there for: `skip`, `one` or `all`.
    pub catch_up: String,
    /// What becomes of a fire while the last job has not ended: `allow` or `skip`.
    pub overlap: String,
    /// The last fire that enqueued a job.
    #[schema(format = DateTime)]
    pub last_fire_time: Option<String>,
    /// That job; it may have been removed since.
    pub last_job_id: Option<i64>,
    /// When it fires next, by the clock of the database.
    #[schema(format = DateTime)]
    pub next_fire_time: Option<String>,
}

/// The recurring jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct RecurringsJson {
    /// In the order of their types, then as they are written.
    pub recurring: Vec<RecurringJson>,
}

impl RecurringsJson {
    /// Those of this configuration, with what the database knows of them at `now`.
    #[must_use]
    pub fn new(config: &Config, rows: &[RecurringRow], now: Timestamp) -> Self {
        let entries =
            config.flows.values().flat_map(|flow| flow.recurring.iter().map(move |entry| (&flow.flow, entry)));
        let recurring = entries.map(|(flow, entry)| {
            let row = rows.iter().find(|row| row.job_type == flow.as_str() && row.name == entry.name);
            let after = row.map_or(now, |row| row.fired_until.max(now));
            RecurringJson {
                job_type: flow.as_str().to_owned(),
                name: entry.name.clone(),
                schedule: entry.schedule.line().to_owned(),
                timezone: entry.schedule.timezone().to_owned(),
                identifier: entry.identifier.clone(),
                catch_up: entry.catch_up.as_str().to_owned(),
                overlap: entry.overlap.as_str().to_owned(),
                last_fire_time: row.and_then(|row| row.last_fire_time).map(rfc3339),
                last_job_id: row.and_then(|row| row.last_job).map(|job| job.0),
                next_fire_time: entry.schedule.next_fire(after).map(rfc3339),
            }
        });
        Self { recurring: recurring.collect() }
    }
}

/// What old rows went, or would go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct PrunedJson {
    /// COMPLETED jobs, with their runs and events.
    pub completed: u64,
    /// ERROR jobs.
    pub error: u64,
    /// CANCELLED jobs.
    pub cancelled: u64,
    /// Deliveries to webhooks.
    pub deliveries: u64,
    /// Rows of the audit trail.
    pub audit: u64,
    /// Sessions of the page that are over.
    pub sessions: u64,
    /// Logs of runs on this machine; null where they are looked for later.
    pub logs: Option<u64>,
    /// Whether there are more: the service goes on with them within the hour.
    pub more: bool,
    /// Whether nothing was removed.
    pub dry_run: bool,
}

impl PrunedJson {
    /// These rows, and logs of so many runs where that is known.
    #[must_use]
    pub const fn new(rows: Pruned, logs: Option<u64>, dry_run: bool) -> Self {
        let Pruned { completed, error, cancelled, deliveries, audit, sessions, more } = rows;
        Self { completed, error, cancelled, deliveries, audit, sessions, logs, more, dry_run }
    }
}

/// A live actor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActorJson {
    /// What tells it from every other actor of this service.
    pub id: u64,
    /// The `id` of its supervisor; null for the root.
    pub parent_id: Option<u64>,
    /// Its name; its role where it has none.
    pub name: String,
    /// What it does, such as `dispatcher`.
    pub role: String,
    /// The job type of its flow.
    #[serde(rename = "type")]
    pub job_type: Option<String>,
    /// When it was started.
    #[schema(format = DateTime)]
    pub started_time: String,
    /// How often it was started again after it had failed.
    pub restarts: u32,
    /// Messages that wait for it; null where they are not counted.
    pub mailbox_depth: Option<u64>,
    /// How long ago it took its last message, in milliseconds; null where it has had none.
    pub last_message_age_ms: Option<u64>,
}

/// The live supervision tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActorsJson {
    /// Whose.
    pub worker_id: String,
    /// A supervisor before those under it.
    pub actors: Vec<ActorJson>,
}

impl From<&ActorSnapshot> for ActorJson {
    fn from(actor: &ActorSnapshot) -> Self {
        Self {
            id: actor.id,
            parent_id: actor.parent,
            name: actor.name.clone(),
            role: actor.role.as_str().to_owned(),
            job_type: actor.flow.as_ref().map(|flow| flow.as_str().to_owned()),
            started_time: rfc3339(actor.since),
            restarts: actor.restarts,
            mailbox_depth: actor.mailbox,
            last_message_age_ms: actor.last_message.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

impl From<&StreamedEvent> for StreamedEventJson {
    fn from(streamed: &StreamedEvent) -> Self {
        Self { event: EventJson::from(&streamed.event), job_type: streamed.job_type.clone() }
    }
}

impl From<&AuditRow> for AuditJson {
    fn from(row: &AuditRow) -> Self {
        Self {
            id: row.id,
            time: rfc3339(row.time),
            actor: row.actor.clone(),
            via: row.via.clone(),
            address: row.address.clone(),
            action: row.action.clone(),
            target: row.target.clone(),
            outcome: row.outcome.clone(),
        }
    }
}

/// The time as RFC 3339 in UTC to the millisecond, such as `2026-11-23T10:00:00.000Z`; the end of the calendar for what
/// lies beyond it.
#[must_use]
pub fn rfc3339(time: Timestamp) -> String {
    let end = if time.unix_millis() < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC };
    DateTime::from_timestamp_millis(time.unix_millis()).unwrap_or(end).to_rfc3339_opts(SecondsFormat::Millis, true)
}

impl From<&JobRow> for JobJson {
    fn from(row: &JobRow) -> Self {
        let as_json = |text: &String| serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()));
        Self {
            id: row.id.0,
            job_type: row.job_type.clone(),
            identifier: row.identifier.clone(),
            payload: row.payload.as_ref().map(as_json),
            status: row.status.as_str(),
            priority: row.priority,
            run_at: rfc3339(row.run_at),
            attempt: row.attempt.0,
            maximum_attempts: row.maximum_attempts,
            unique_key: row.unique_key.clone(),
            worker_id: row.worker_id.clone(),
            run_token: row.run_token.clone(),
            cancel_requested_time: row.cancel_requested_time.map(rfc3339),
            progress: row.progress,
            status_message: row.status_message.clone(),
            error: row.error.clone(),
            exit_code: row.exit_code,
            created_time: rfc3339(row.created_time),
            queued_time: row.queued_time.map(rfc3339),
            started_time: row.started_time.map(rfc3339),
            heartbeat_time: row.heartbeat_time.map(rfc3339),
            completed_time: row.completed_time.map(rfc3339),
            execution_ms: row.execution_ms,
            traceparent: row.traceparent.clone(),
            tracestate: row.tracestate.clone(),
        }
    }
}

impl From<&RunRow> for RunJson {
    fn from(row: &RunRow) -> Self {
        Self {
            id: row.id,
            job_id: row.job_id.0,
            attempt: row.attempt.0,
            run_token: row.run_token.clone(),
            worker_id: row.worker_id.clone(),
            pid: row.pid,
            started_time: row.started_time.map(rfc3339),
            completed_time: row.completed_time.map(rfc3339),
            outcome: row.outcome.clone(),
            exit_code: row.exit_code,
            signal: row.signal,
            error: row.error.clone(),
            user_cpu_ms: row.user_cpu_ms,
            system_cpu_ms: row.system_cpu_ms,
            max_rss_bytes: row.max_rss_bytes,
            io_read_bytes: row.io_read_bytes,
            io_write_bytes: row.io_write_bytes,
            slot: row.slot.clone(),
        }
    }
}

impl From<&EventRow> for EventJson {
    fn from(row: &EventRow) -> Self {
        Self {
            id: row.id,
            job_id: row.job_id.0,
            attempt: row.attempt.0,
            from_status: row.from_status.clone(),
            to_status: row.to_status.clone(),
            time: rfc3339(row.time),
            worker_id: row.worker_id.clone(),
            message: row.message.clone(),
        }
    }
}

impl From<&Page<JobRow>> for JobsJson {
    fn from(page: &Page<JobRow>) -> Self {
        Self {
            jobs: page.rows.iter().map(JobJson::from).collect(),
            next_cursor: page.next_cursor.map(|cursor| cursor.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_to_the_millisecond() {
        assert_eq!(rfc3339(Timestamp::from_unix_millis(1_795_428_000_007)), "2026-11-23T10:00:00.007Z");
        assert_eq!(rfc3339(Timestamp::from_unix_millis(0)), "1970-01-01T00:00:00.000Z");
        assert!(rfc3339(Timestamp::from_unix_millis(i64::MAX)).starts_with("+262142-"));
    }
}
