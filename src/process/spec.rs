//! What a run's shim has to know about its command.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::domain::limits::Limits;
use crate::domain::run::Timeout;
use crate::domain::slots::Slot;
use crate::domain::{Attempt, FlowType, JobId, RunToken, WorkerId};

/// Until when a command may run without word from its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseUntil {
    /// By [`boottime`](crate::clock::boottime).
    pub until: Duration,
    /// How long that is after the last confirmation, to be told.
    pub timeout: Duration,
}

/// Everything that a shim needs; `Debug` shows neither environment nor payload.
#[derive(Clone)]
pub struct CommandSpec {
    /// The job's type.
    pub flow: FlowType,
    /// The job.
    pub job: JobId,
    /// Which attempt at the job this is.
    pub attempt: Attempt,
    /// What makes the run unlike every other.
    pub token: RunToken,
    /// The program and its arguments, filled in; never empty.
    pub argv: Vec<String>,
    /// What ends its work in place of SIGTERM; `None` means that SIGTERM does.
    pub cancel: Option<CancelSpec>,
    /// Where the command runs; `None` is where the service runs.
    pub working_dir: Option<PathBuf>,
    /// What the flow adds to the environment, filled in; later entries win.
    pub env: Vec<(String, String)>,
    /// The device that the run holds, which comes on top of `env`.
    pub slot: Option<Slot>,
    /// The job's identifier.
    pub identifier: String,
    /// The worker that claimed the job.
    pub worker: WorkerId,
    /// The job's payload, as JSON; the command finds it in a file.
    pub payload: Option<Vec<u8>>,
    /// How long the command may run.
    pub time_limit: Duration,
    /// What that is: [`Timeout::StartToClose`] or [`Timeout::ScheduleToClose`].
    pub time_limit_is: Timeout,
    /// How often the command has to say that it is alive (`WATCHDOG=1`, sd_notify(3)); `None` means that it need not.
    pub watchdog: Option<Duration>,
    /// How long the command may write nothing; `None` means for ever.
    pub silence_timeout: Option<Duration>,
    /// How long after SIGTERM SIGKILL follows.
    pub kill_grace: Duration,
    /// The command is not started later than this, by [`boottime`](crate::clock::boottime).
    pub start_by: Duration,
    /// Until when the command may run without word from the service; `None` where it may run as long as it does.
    pub lease: Option<LeaseUntil>,
    /// How many bytes each of standard output and standard error are kept; older output is dropped.
    pub output_limit: u64,
    /// What the run may use of the machine.
    pub limits: Limits,
}

/// Programs that end a run whose work is elsewhere, with their arguments, filled in; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelSpec {
    /// Run in place of SIGTERM.
    pub term: Vec<String>,
    /// Run when the command has died of a signal, so that it could end nothing itself.
    pub kill: Vec<String>,
}

impl fmt::Debug for CommandSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandSpec")
            .field("flow", &self.flow)
            .field("job", &self.job)
            .field("attempt", &self.attempt)
            .field("token", &self.token)
            .field("program", &self.argv.first())
            .field("working_dir", &self.working_dir)
            .field("slot", &self.slot)
            .field("worker", &self.worker)
            .field("time_limit", &self.time_limit)
            .field("watchdog", &self.watchdog)
            .field("silence_timeout", &self.silence_timeout)
            .field("kill_grace", &self.kill_grace)
            .field("output_limit", &self.output_limit)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
