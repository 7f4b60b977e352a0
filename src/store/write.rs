//! What can be written, and what the store answers: the words between the status actor and the database.

use std::pin::Pin;
use std::time::Duration;

use super::Waited;
use crate::domain::heartbeat::{Lease, LeaseTerms};
use crate::domain::labels::Labels;
use crate::domain::run::{Next, Usage};
use crate::domain::slots::Slot;
use crate::domain::trace::TraceContext;
use crate::domain::{Attempt, FlowType, JobId, JobStatus, Outcome, RunToken, Timestamp, WorkerId};

/// One change, to be committed with others in [`Store::apply`](super::Store::apply).
///
/// Every one may be repeated after a commit whose answer was lost, and is then answered as the first time.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// PENDING → INQUEUE for the next rows of a flow; answered by [`Written::Claimed`].
    Claim(Claim),
    /// INQUEUE → PROGRESS.
    Started(Started),
    /// These runs are still watched over; answered by [`Written::Confirmed`].
    Confirm(Vec<Confirm>),
    /// What a command said about itself.
    Progress(ProgressNote),
    /// A run has ended, or will not start.
    Settle(Settlement),
    /// These flows exist.
    RegisterFlows(Vec<FlowType>),
    /// This worker exists, and was started anew.
    RegisterWorker(Worker),
    /// What this worker is doing now; also its sign of life.
    WorkerState(WorkerNote),
}

/// An answer to one [`Write`].
#[derive(Clone, Debug, PartialEq)]
pub enum Written {
    /// The answer to [`Write::Claim`].
    Claimed(Box<Claimed>),
    /// It stands in the database.
    Applied,
    /// The run's token is no longer current, or the run is settled otherwise: nothing was written.
    Fenced,
    /// The answer to [`Write::Confirm`]: the runs that are still this worker's; one that is missing here is not.
    Confirmed(Vec<ConfirmedRun>),
}

/// Hears of the answers to a batch while it is being committed, so that what they call for can be got ready meanwhile.
pub trait Foresight: Send + Sync + 'static {
    /// These will be the answers if the commit succeeds. Must not wait.
    fn foresee(&self, answers: &[Written]) -> Option<Box<dyn Foreseen>>;
}

/// What was got ready for answers that are yet to count.
pub trait Foreseen: Send {
    /// They count now; or the commit failed, or nobody knows, as where this is dropped.
    fn committed(self: Box<Self>, committed: bool) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Confirms a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirm {
    /// Which.
    pub token: RunToken,
    /// For how long from now on no other worker may take it over. Counts where the database is shared.
    pub untouched: Duration,
}

/// Asks for rows of a flow to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whose rows.
    pub flow: FlowType,
    /// Who asks.
    pub worker: WorkerId,
    /// Which start of it; one whose name is another's by now gets no rows. Empty for whoever has not registered.
    pub incarnation: String,
    /// How many runs of the flow may be open over all workers.
    pub concurrency: u32,
    /// How many runs of the flow may be open on this worker.
    pub worker_concurrency: u32,
    /// What a worker has to have to claim rows of the flow.
    pub requires: Labels,
    /// Whether more than an equal part of `concurrency` may be taken while other workers claim, too.
    pub beyond_share: bool,
    /// How long a job may take from the time when it could first run; a row that has waited so long is ended.
    pub schedule_to_close_timeout: Duration,
    /// How long the runs are this worker's.
    pub terms: LeaseTerms,
    /// A fresh token for each row wanted; at most 500 are used.
    pub tokens: Vec<RunToken>,
}

/// What a claim brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The rows, now INQUEUE, in the order in which they are to be started.
    pub jobs: Vec<ClaimedJob>,
    /// Pending rows that somebody had asked to cancel: they are CANCELLED now.
    pub cancelled_pending: Vec<JobId>,
    /// Pending rows that had waited for longer than `schedule_to_close_timeout`: they are ERROR now.
    pub expired: Vec<(JobId, Attempt)>,
    /// Rows that somebody else than Callsheet had set to an open status: they are in ERROR now.
    pub disowned: Vec<JobId>,
    /// What became of jobs, of any flow, that waited for others.
    pub waited: Waited,
    /// Open runs of this flow on this worker that somebody has asked to cancel.
    pub cancel_requested: Vec<(JobId, RunToken)>,
    /// When another claim may bring more, looked up where this one ran out of due rows; `None` where nothing waits.
    pub next_due: Option<Timestamp>,
    /// When the next waiting row will have waited too long; `None` where nothing waits.
    pub next_expiry: Option<Timestamp>,
    /// Open runs of other workers whose lease is over.
    pub lapsed: Vec<LapsedRun>,
    /// When to look again for runs of other workers whose lease is over.
    pub next_lapse: Option<Timestamp>,
    /// The lease of the claimed rows: short where other workers live.
    pub lease: Lease,
    /// When this claim was begun, by [`boottime`](crate::clock::boottime): no later than its lease. `None` where the database
    /// is not shared, and there are no leases.
    pub begun: Option<Duration>,
    /// Whether there may be rows and room for them beyond this worker's equal part, or some of these are.
    pub held_back: bool,
    /// Whether the flow is paused; then nothing is claimed.
    pub paused: bool,
    /// Open runs of the flow over all workers, those of this claim included.
    pub open: u32,
    /// The database's time of the claim.
    pub now: Timestamp,
}

/// An open run of a worker that has not confirmed it for so long that another one may take its job over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LapsedRun {
    /// Whose.
    pub job: JobId,
    /// The run's token.
    pub token: RunToken,
    /// Which attempt.
    pub attempt: Attempt,
    /// `jobs.attempts_before`
    pub attempts_before: u32,
    /// `jobs.maximum_attempts`
    pub maximum_attempts: Option<u32>,
    /// The worker whose run it is.
    pub worker: String,
    /// INQUEUE or PROGRESS.
    pub status: JobStatus,
    /// What `schedule_to_close_timeout` counts from.
    pub schedule_time: Timestamp,
    /// When it was confirmed last.
    pub heartbeat_time: Option<Timestamp>,
    /// Whether somebody has asked to cancel the job.
    pub cancel_requested: bool,
}

/// A value of a row that can't be used; the sentence says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub String);

/// A row that was claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedJob {
    /// Which.
    pub id: JobId,
    /// The token that it was given.
    pub token: RunToken,
    /// Which attempt this is.
    pub attempt: Attempt,
    /// `jobs.attempts_before`: how many of them an earlier budget of attempts had.
    pub attempts_before: u32,
    /// `jobs.identifier`.
    pub identifier: Result<String, Unreadable>,
    /// `jobs.payload`: valid JSON.
    pub payload: Result<Option<Vec<u8>>, Unreadable>,
    /// `jobs.maximum_attempts`; `None` leaves it to the flow.
    pub maximum_attempts: Option<u32>,
    /// `jobs.priority`
    pub priority: i64,
    /// `jobs.run_at`
    pub run_at: Timestamp,
    /// `jobs.created_time`
    pub created_time: Timestamp,
    /// When the job could first have run: what `schedule_to_close_timeout` counts from. Retries don't change it.
    pub schedule_time: Timestamp,
    /// Whether somebody has asked to cancel it since it was claimed.
    pub cancel_requested: bool,
    /// What it is a part of, by its `traceparent` and `tracestate` or its payload's.
    pub trace: Option<TraceContext>,
}

/// A command runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Whose.
    pub job: JobId,
    /// The run's token.
    pub token: RunToken,
    /// Which attempt.
    pub attempt: Attempt,
    /// On which worker.
    pub worker: WorkerId,
    /// The command's process id.
    pub pid: i32,
    /// When the exec succeeded.
    pub started_time: Timestamp,
    /// The device that it has.
    pub slot: Option<Slot>,
}

/// What a command said about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgressNote {
    /// The run's token.
    pub token: RunToken,
    /// 0 to 100; `None` leaves it as it was, more counts as 100.
    pub progress: Option<u8>,
    /// `None` leaves it as it was.
    pub status_message: Option<String>,
}

/// What became of a run and of its job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// Whose run.
    pub job: JobId,
    /// The run's token.
    pub token: RunToken,
    /// Which attempt.
    pub attempt: Attempt,
    /// On which worker.
    pub worker: WorkerId,
    /// What becomes of the job.
    pub next: Next,
    /// What became of the run; `None` where there was none to speak of, and then `runs` gets no row.
    pub outcome: Option<Outcome>,
    /// What happened, for people.
    pub error: Option<String>,
    /// The command's exit code, where it had one.
    pub exit_code: Option<i32>,
    /// The signal that ended the command, where one did.
    pub signal: Option<i32>,
    /// The command's process id, where it had started.
    pub pid: Option<i32>,
    /// When it started, where it did.
    pub started_time: Option<Timestamp>,
    /// When the run ended.
    pub completed_time: Timestamp,
    /// How long the command ran, in milliseconds.
    pub execution_ms: Option<i64>,
    /// What the command used.
    pub usage: Option<Usage>,
    /// The event's message; `None` makes one of `next` and the first line of `error`.
    pub message: Option<String>,
    /// Whether this is another worker's run, which may be settled only while its lease is over.
    pub lapsed: bool,
    /// The device that it had; `None` where it had none, or nobody knows.
    pub slot: Option<Slot>,
}

/// A run that is still the worker's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfirmedRun {
    /// Which.
    pub token: RunToken,
    /// Whether somebody has asked to cancel its job.
    pub cancel_requested: bool,
    /// Whether the confirmation was written: not, where another client has the row locked.
    pub written: bool,
    /// Whether other workers live that could take it over.
    pub shared: bool,
    /// When this confirmation was begun, by [`boottime`](crate::clock::boottime): no later than it was written.
    pub begun: Duration,
}

/// A worker, as it presents itself when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Its name.
    pub worker: WorkerId,
    /// What makes this start of it unlike every other.
    pub incarnation: String,
    /// Its machine.
    pub hostname: String,
    /// Its Callsheet's version.
    pub version: String,
    /// What it has that flows may require.
    pub labels: Labels,
    /// The last start under its name, where that was another worker: its open runs are not this one's.
    pub displaces: Option<String>,
    /// Where other workers reach it: a URL without a path.
    pub address: Option<String>,
}

/// What a worker is doing; `workers.state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// It claims rows and runs them.
    Active,
    /// It claims nothing new and waits for its runs.
    Draining,
    /// It has ended in good order.
    Stopped,
}

impl WorkerState {
    /// The word in `workers.state`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Draining => "DRAINING",
            Self::Stopped => "STOPPED",
        }
    }
}

/// What a worker is doing now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerNote {
    /// Its name.
    pub worker: WorkerId,
    /// Which start of it; a note of an earlier one is fenced.
    pub incarnation: String,
    /// What it is doing.
    pub state: WorkerState,
}

/// A row to be enqueued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJob {
    /// `jobs.type`
    pub flow: FlowType,
    /// `jobs.identifier`
    pub identifier: String,
    /// `jobs.payload`: JSON text.
    pub payload: Option<String>,
    /// `jobs.priority`: higher first, 0 where nothing is said.
    pub priority: i32,
    /// When it may start.
    pub due: Due,
    /// `jobs.maximum_attempts`: at least 1; `None` leaves it to the flow.
    pub maximum_attempts: Option<u32>,
    /// `jobs.unique_key`: while an open row of the flow has it, no second one is made.
    pub unique_key: Option<String>,
    /// `jobs.traceparent` and `jobs.tracestate`: what it is a part of; `None` leaves that to the payload.
    pub trace: Option<TraceContext>,
}

/// When a new row may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// So long after now, by the database's clock; zero for at once.
    After(Duration),
    /// At this time.
    At(Timestamp),
}

/// A row that is in the table now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enqueued {
    /// Which.
    pub id: JobId,
    /// Whether it was there before: an open row has the same `unique_key`.
    pub existing: bool,
}

/// What came of a wish to cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelResult {
    /// There is no such job.
    NotFound,
    /// It was waiting, and is CANCELLED now.
    Cancelled,
    /// It is open, and its worker will see the request.
    Requested,
    /// It is open, and somebody had asked before.
    AlreadyRequested,
    /// It has ended with this status.
    NotPossible(JobStatus),
}

/// What came of a wish to have a job tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryResult {
    /// There is no such job.
    NotFound,
    /// It waits to be tried again, with as many attempts and as much time as a new one.
    Retried,
    /// It has this status; only ERROR and CANCELLED jobs are retried.
    NotPossible(JobStatus),
    /// An open job of its flow, this one, has its `unique_key` by now.
    KeyTaken(JobId),
}

/// What came of a wish to pause or resume a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseResult {
    /// No service has ever had such a flow.
    NotFound,
    /// It was otherwise, and is as was asked for now.
    Changed,
    /// It was so before.
    Unchanged,
}

impl PauseResult {
    /// What the audit trail says came of it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not found",
            Self::Changed => "done",
            Self::Unchanged => "was so already",
        }
    }
}

/// What came of a wish to drain a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainResult {
    /// There is no such worker.
    NotFound,
    /// It has ended.
    Stopped,
    /// It will claim nothing new, and end when its runs have ended.
    Requested,
    /// Somebody had asked before.
    AlreadyRequested,
}

impl DrainResult {
    /// What the audit trail says came of it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not found",
            Self::Stopped => "it had stopped",
            Self::Requested => "done",
            Self::AlreadyRequested => "was asked already",
        }
    }
}
