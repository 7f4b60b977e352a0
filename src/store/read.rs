//! What can be read: plain rows with the columns of the tables, made safe to show.

use std::time::Duration;

use super::dependencies::AFTER_OTHERS;
use super::write::{Unreadable, WorkerState};
use crate::domain::labels::Labels;
use crate::domain::trace::JobTrace;
use crate::domain::{Attempt, JobId, JobStatus, RunToken, Timestamp};

/// A row of `jobs`; its texts are shown lossily where they are no valid UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRow {
    /// `id`
    pub id: JobId,
    /// `type`, which may be one that no flow has.
    pub job_type: String,
    /// `identifier`
    pub identifier: String,
    /// `payload`, as it was written: JSON, if whoever wrote it took care.
    pub payload: Option<String>,
    /// `status`
    pub status: JobStatus,
    /// `priority`
    pub priority: i64,
    /// `run_at`
    pub run_at: Timestamp,
    /// `attempt`
    pub attempt: Attempt,
    /// `maximum_attempts`
    pub maximum_attempts: Option<u32>,
    /// `unique_key`
    pub unique_key: Option<String>,
    /// `worker_id`
    pub worker_id: Option<String>,
    /// `run_token`
    pub run_token: Option<String>,
    /// `cancel_requested_time`
    pub cancel_requested_time: Option<Timestamp>,
    /// `progress`, 0 to 100.
    pub progress: Option<u8>,
    /// `status_message`
    pub status_message: Option<String>,
    /// `error`
    pub error: Option<String>,
    /// `exit_code`
    pub exit_code: Option<i64>,
    /// `created_time`
    pub created_time: Timestamp,
    /// `queued_time`
    pub queued_time: Option<Timestamp>,
    /// `started_time`
    pub started_time: Option<Timestamp>,
    /// `heartbeat_time`
    pub heartbeat_time: Option<Timestamp>,
    /// `completed_time`
    pub completed_time: Option<Timestamp>,
    /// `execution_ms`
    pub execution_ms: Option<i64>,
    /// `traceparent`, as it was written, which may be no valid one.
    pub traceparent: Option<String>,
    /// `tracestate`, the same.
    pub tracestate: Option<String>,
}

impl JobRow {
    /// Whether it waits for other jobs, which its `run_at` says and nothing else about when it is due.
    #[must_use]
    pub fn waits_for_others(&self) -> bool {
        self.status == JobStatus::Pending && self.run_at >= AFTER_OTHERS
    }
}

/// A row of `runs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRow {
    /// `id`
    pub id: i64,
    /// `job_id`
    pub job_id: JobId,
    /// `attempt`
    pub attempt: Attempt,
    /// `run_token`
    pub run_token: String,
    /// `worker_id`
    pub worker_id: Option<String>,
    /// `pid`
    pub pid: Option<i64>,
    /// `started_time`
    pub started_time: Option<Timestamp>,
    /// `completed_time`
    pub completed_time: Option<Timestamp>,
    /// `outcome`; `None` while it runs.
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRow {
    /// `id`, ascending.
    pub id: i64,
    /// `job_id`
    pub job_id: JobId,
    /// `attempt`
    pub attempt: Attempt,
    /// `from_status`
    pub from_status: Option<String>,
    /// `to_status`
    pub to_status: String,
    /// `time`
    pub time: Timestamp,
    /// `worker_id`
    pub worker_id: Option<String>,
    /// `message`
    pub message: Option<String>,
}

/// Which jobs to list, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Types to list; empty for all.
    pub types: Vec<String>,
    /// Statuses to list; empty for all.
    pub statuses: Vec<JobStatus>,
    /// Only with exactly this identifier.
    pub identifier: Option<String>,
    /// Only rows older than this one: the `next_cursor` of the page before.
    pub cursor: Option<JobId>,
    /// At most so many rows: 1 to 1000.
    pub limit: u32,
}

/// Some rows, and where the next ones start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T, C = JobId> {
    /// The rows.
    pub rows: Vec<T>,
    /// The cursor of the next page; `None` where this is the last.
    pub next_cursor: Option<C>,
}

impl<T, C> Page<T, C> {
    /// The page of the first `limit` of these rows, of which one more than that was asked for.
    pub(super) fn of(mut rows: Vec<T>, limit: u32, cursor: impl Fn(&T) -> C) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next_cursor = if more { rows.last().map(cursor) } else { None };
        Self { rows, next_cursor }
    }
}

/// An INQUEUE or PROGRESS row, with what is needed to find out what became of it.
///
/// A foreign client may have written it, so nothing in it is certain but its id and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenJob {
    /// `jobs.id`
    pub id: JobId,
    /// `jobs.type`
    pub job_type: String,
    /// `jobs.status`: INQUEUE or PROGRESS.
    pub status: JobStatus,
    /// `jobs.run_token`; `None` where there is none or it is no token.
    pub token: Option<RunToken>,
    /// `jobs.attempt`
    pub attempt: Attempt,
    /// `jobs.attempts_before`
    pub attempts_before: u32,
    /// `jobs.worker_id`
    pub worker_id: Option<String>,
    /// `jobs.identifier`
    pub identifier: Result<String, Unreadable>,
    /// `jobs.maximum_attempts`
    pub maximum_attempts: Option<u32>,
    /// When the job could first have run.
    pub schedule_time: Timestamp,
    /// `jobs.created_time`
    pub created_time: Timestamp,
    /// Since when this attempt could run.
    pub runnable_since: Timestamp,
    /// `jobs.queued_time`: when it was claimed.
    pub queued_time: Option<Timestamp>,
    /// The trace that it is a part of.
    pub trace: JobTrace,
    /// Whether somebody has asked to cancel it.
    pub cancel_requested: bool,
    /// `jobs.started_time`
    pub started_time: Option<Timestamp>,
    /// `runs.pid` of the run with this token.
    pub pid: Option<i32>,
}

/// A run, as far as matters for whether its files may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownRun {
    /// The job.
    pub job: JobId,
    /// `run_token`
    pub run_token: String,
    /// When it ended; `None` while it goes on.
    pub ended: Option<Timestamp>,
}

/// How a flow's queue stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowState {
    /// The type, which may be one that no flow has.
    pub job_type: String,
    /// Whether it is paused.
    pub paused: bool,
    /// Since when it is paused; `None` where it is not, or was paused by SQL.
    pub paused_time: Option<Timestamp>,
    /// Who paused it, as above.
    pub paused_by: Option<String>,
    /// Rows that wait, delayed ones included.
    pub pending: u64,
    /// Rows that wait and are due.
    pub runnable: u64,
    /// Rows that wait for other jobs.
    pub dependent: u64,
    /// Claimed rows.
    pub inqueue: u64,
    /// Running rows.
    pub progress: u64,
    /// `run_at` of the row that has been due for the longest time.
    pub oldest_pending: Option<Timestamp>,
}

/// A row of `workers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerRow {
    /// `worker_id`
    pub worker_id: String,
    /// `incarnation`
    pub incarnation: String,
    /// `hostname`
    pub hostname: String,
    /// `version`
    pub version: String,
    /// `state`
    pub state: String,
    /// `started_time`
    pub started_time: Timestamp,
    /// `heartbeat_time`
    pub heartbeat_time: Timestamp,
    /// `drain_requested_time`
    pub drain_requested_time: Option<Timestamp>,
    /// `drain_requested_by`
    pub drain_requested_by: Option<String>,
    /// `labels`; none where they can't be read.
    pub labels: Labels,
    /// `address`: where other workers reach it, as it was written.
    pub address: Option<String>,
    /// How many claimed and running rows it has.
    pub runs: u64,
}

/// A live service writes its worker's `heartbeat_time` three times in this long.
pub(super) const SILENCE: Duration = Duration::from_secs(30);

impl WorkerRow {
    /// Whether it has not stopped and has shown a sign of life lately; `now` is the database's time.
    #[must_use]
    pub fn is_live(&self, now: Timestamp) -> bool {
        !self.has_stopped() && now.since(self.heartbeat_time) <= SILENCE
    }

    /// Whether it has neither stopped nor shown a sign of life lately; `now` is the database's time.
    #[must_use]
    pub fn is_silent(&self, now: Timestamp) -> bool {
        !self.has_stopped() && !self.is_live(now)
    }

    fn has_stopped(&self) -> bool {
        self.state == WorkerState::Stopped.as_str()
    }
}

/// A row of `audit`: one deed of somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    /// `id`, ascending.
    pub id: i64,
    /// `time`
    pub time: Timestamp,
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
