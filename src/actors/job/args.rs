//! What a JobActor is started with, and the command that comes of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::actors::status::Pending;
use crate::actors::{Shared, Upward};
use crate::config::FlowConfig;
use crate::domain::heartbeat::Lease;
use crate::domain::run::Timeout;
use crate::domain::slots::Slot;
use crate::domain::template::{Placeholder, Template};
use crate::domain::trace::{JobTrace, TraceParent};
use crate::domain::{Attempt, JobId, JobStatus, RunToken, Timestamp};
use crate::process::{CancelSpec, CommandSpec, LeaseUntil};

/// The run that a JobActor owns.
#[derive(Clone, Debug)]
pub struct OwnedRun {
    /// The job.
    pub job: JobId,
    /// The run's token; what a foreign client wrote as a running row has none that is valid, and gets one here.
    pub token: RunToken,
    /// Which attempt it is.
    pub attempt: Attempt,
    /// The status that the store holds.
    pub status: JobStatus,
    /// The job's identifier; empty where it can't be read, and then nothing is launched.
    pub identifier: String,
    /// The job's payload.
    pub payload: Option<Vec<u8>>,
    /// How many attempts the job had had when somebody retried it by hand last.
    pub attempts_before: u32,
    /// How many attempts the job has since then.
    pub maximum_attempts: u32,
    /// When the job could run for the first time.
    pub schedule_time: Timestamp,
    /// Since when this attempt could run.
    pub runnable_since: Timestamp,
    /// The trace that the job is a part of.
    pub trace: JobTrace,
    /// When the job was enqueued.
    pub created_time: Timestamp,
    /// When this attempt was claimed.
    pub claimed_time: Timestamp,
    /// Whether somebody has asked to cancel the job.
    pub cancel_requested: bool,
}

/// How a JobActor begins.
#[derive(Clone, Debug)]
pub enum JobStart {
    /// Launch the command.
    Launch {
        /// When the dispatcher noticed that there may be work.
        noticed: Instant,
        /// The database's time of the claim.
        claimed: Timestamp,
        /// Whether the claim may be outdated by now: the launch had to wait for an earlier actor of the job to leave.
        waited: bool,
        /// When the claim was begun, by [`boottime`](crate::clock::boottime), where the database is shared; the command is
        /// started within `heartbeat_timeout` of it or not at all.
        begun: Option<Duration>,
        /// The lease that the claim wrote.
        lease: Lease,
    },
    /// Settle a row that can't be run as asked, with this reason.
    Refuse(String),
    /// Find out what became of the command.
    Recover {
        /// The database's time of the look at its row.
        looked: Timestamp,
    },
}

/// What a JobActor is started with.
#[derive(Clone)]
pub struct JobArgs {
    /// What all actors share.
    pub shared: Arc<Shared>,
    /// The run's flow.
    pub flow: Arc<FlowConfig>,
    /// The run.
    pub run: OwnedRun,
    /// How to begin.
    pub start: JobStart,
    /// Writes the run's end by way of the dispatcher.
    pub settle: Upward<Pending>,
    /// Told that the run's slot is about to be free, where the dispatcher does not know.
    pub slot_freed: Upward<JobId>,
}

impl JobArgs {
    /// The command that is ordered while the claim is being committed; `None` where none is to be started.
    pub(in crate::actors) fn ahead(&self) -> Option<CommandSpec> {
        let launches = matches!(self.start, JobStart::Launch { .. }) && !self.run.cancel_requested;
        launches.then(|| self.command_spec(None, Duration::ZERO))
    }

    /// The flow's command with this run's values in its placeholders, so long after its claim, on this device.
    pub(super) fn command_spec(&self, slot: Option<Slot>, since: Duration) -> CommandSpec {
        let (flow, run, shared) = (&self.flow, &self.run, &self.shared);
        let (job, attempt) = (run.job.to_string(), run.attempt.to_string());
        let run_dir = shared.launcher.run_dir(run.job, run.attempt, &run.token);
        let run_dir = run_dir.to_string_lossy();
        let value = |placeholder, signal| match placeholder {
            Placeholder::Identifier => run.identifier.as_str(),
            Placeholder::JobId => &job,
            Placeholder::Type => flow.flow.as_str(),
            Placeholder::Attempt => &attempt,
            Placeholder::RunToken => run.token.as_str(),
            Placeholder::WorkerId => shared.worker.as_str(),
            Placeholder::RunDir => &run_dir,
            Placeholder::Signal => signal,
        };
        let words = |words: &[Template], signal| -> Vec<String> {
            words.iter().map(|word| word.fill(|placeholder| value(placeholder, signal))).collect()
        };
        let text = |template: &Template| template.fill(|placeholder| value(placeholder, ""));
        let left = run.schedule_time.plus(flow.schedule_to_close_timeout).since(self.database_time(since));
        CommandSpec {
            flow: flow.flow.clone(),
            job: run.job,
            attempt: run.attempt,
            token: run.token.clone(),
            argv: words(&flow.command, ""),
            cancel: flow
                .cancel_command
                .as_ref()
                .map(|cancel| CancelSpec { term: words(cancel, "TERM"), kill: words(cancel, "KILL") }),
            working_dir: flow.working_dir.as_ref().map(|path| text(path).into()),
            env: flow.env.iter().map(|(name, value)| (name.clone(), text(value))).chain(self.trace_context()).collect(),
            slot,
            identifier: run.identifier.clone(),
            worker: shared.worker.clone(),
            payload: run.payload.clone(),
            time_limit: flow.start_to_close_timeout.min(left),
            time_limit_is: if left < flow.start_to_close_timeout {
                Timeout::ScheduleToClose
            } else {
                Timeout::StartToClose
            },
            watchdog: flow.watchdog.then_some(flow.heartbeat_timeout),
            silence_timeout: flow.silence_timeout,
            kill_grace: flow.kill_grace,
            start_by: match self.start {
                JobStart::Launch { begun: Some(begun), .. } => begun.saturating_add(flow.heartbeat_timeout),
                JobStart::Launch { begun: None, .. } | JobStart::Refuse(_) | JobStart::Recover { .. } => Duration::MAX,
            },
            lease: self.first_lease(),
            output_limit: flow.output_limit,
            limits: flow.limits,
        }
    }

    /// What it is so long after the claim, or after the look at the row, by the clock that the job's times are of: this machine's own
    /// may be another, or be set meanwhile.
    pub(super) fn database_time(&self, since: Duration) -> Timestamp {
        match self.start {
            JobStart::Launch { claimed, .. } => claimed.plus(since),
            JobStart::Recover { looked } => looked.plus(since),
            JobStart::Refuse(_) => self.shared.clock.now(),
        }
    }

    /// The variables that tell a command which trace it is a part of (W3C Trace Context, by their usual names in an
    /// environment). Without an exporter its parent is who asked for the job, since nobody would ever see our span.
    fn trace_context(&self) -> Vec<(String, String)> {
        let trace = &self.run.trace;
        let parent = match (self.shared.telemetry.is_on(), trace.parent) {
            (true, _) => trace.for_command(&self.run.token),
            (false, Some(span)) => TraceParent { trace: trace.id, span, sampled: trace.sampled },
            (false, None) => return Vec::new(),
        };
        let state = trace.state.as_ref().map(|state| ("TRACESTATE".to_owned(), state.as_str().to_owned()));
        [("TRACEPARENT".to_owned(), parent.to_string())].into_iter().chain(state).collect()
    }

    /// The lease that the command is started with.
    fn first_lease(&self) -> Option<LeaseUntil> {
        let JobStart::Launch { begun: Some(begun), lease, .. } = self.start else { return None };
        let timeout = self.flow.lease_terms().runs_on(lease)?;
        Some(LeaseUntil { until: begun.saturating_add(timeout), timeout })
    }
}
