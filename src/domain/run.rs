//! How a run ends, and what becomes of its job: the one place where all ends meet.

use std::time::Duration;

use super::retry::{Jitter, RetryPolicy, TEMPORARY_FAILURE};
use super::{Attempt, JobStatus, Outcome, Timestamp};

/// How the command itself ended, as the kernel reported it to its parent (wait(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandEnd {
    /// It exited with this code, 0 to 255.
    Exited(i32),
    /// It was ended by this signal.
    Signaled(i32),
}

/// Why the shim thinks the command ended when it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// By itself: nobody had asked it to.
    Itself,
    /// The shim had been asked to end it.
    Requested,
    /// Its time was up; `None` from a shim of a release that knew only the one time for the whole run.
    TimedOut(Option<TimedOut>),
}

/// Which time was up, and how much it had been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut {
    /// Which.
    pub timeout: Timeout,
    /// How long it is; zero for a watchdog that the command set off itself (`WATCHDOG=trigger`, sd_notify(3)).
    pub limit: Duration,
}

/// What may end a run by the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timeout {
    /// One run may take so long.
    StartToClose,
    /// Its job may take so long, waiting and earlier attempts included.
    ScheduleToClose,
    /// The command has to say that it is alive so often.
    Watchdog,
    /// The command has to write something so often.
    Silence,
    /// The service has to confirm the run in the store so often, where other workers might take it over.
    Heartbeat,
}

impl Timeout {
    /// Every one.
    pub const ALL: [Self; 5] =
        [Self::StartToClose, Self::ScheduleToClose, Self::Watchdog, Self::Silence, Self::Heartbeat];

    /// The label's value in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StartToClose => "start_to_close",
            Self::ScheduleToClose => "schedule_to_close",
            Self::Watchdog => "watchdog",
            Self::Silence => "silence",
            Self::Heartbeat => "heartbeat",
        }
    }
}

/// What a run used, all its processes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time in user mode.
    pub user_cpu: Duration,
    /// CPU time in the kernel.
    pub system_cpu: Duration,
    /// The most memory that its processes held at a time, in bytes.
    ///
    /// Of its control group (page cache included, as `limits.memory` counts it) where it had one; else the resident sets of
    /// its processes as they were seen every few seconds, or the largest one of any, whichever is more.
    pub max_rss_bytes: u64,
    /// Bytes that it had read from storage, not from the page cache; `None` where nobody counted.
    pub io_read_bytes: Option<u64>,
    /// Bytes that it had written to storage.
    pub io_write_bytes: Option<u64>,
    /// Bytes that it had written to standard output and standard error, kept or not.
    pub output_bytes: u64,
}

impl Usage {
    /// Takes in what another process has used.
    pub fn add(&mut self, more: Self) {
        let sum = |one: Option<u64>, other: Option<u64>| match (one, other) {
            (Some(one), Some(other)) => Some(one.saturating_add(other)),
            (one, other) => one.or(other),
        };
        *self = Self {
            user_cpu: self.user_cpu.saturating_add(more.user_cpu),
            system_cpu: self.system_cpu.saturating_add(more.system_cpu),
            max_rss_bytes: self.max_rss_bytes.max(more.max_rss_bytes),
            io_read_bytes: sum(self.io_read_bytes, more.io_read_bytes),
            io_write_bytes: sum(self.io_write_bytes, more.io_write_bytes),
            output_bytes: self.output_bytes.saturating_add(more.output_bytes),
        };
    }
}

/// What the kernel withheld from a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shortage {
    /// For want of what memory it killed processes of the run.
    pub memory: Option<OutOfMemory>,
    /// How many forks it refused since the run had `limits.pids` processes already.
    pub refused_forks: u64,
}

/// Whose memory had run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfMemory {
    /// The run's own `limits.memory`, of so many bytes.
    Run(u64),
    /// The machine's, or that of a group around the service.
    Machine,
}

/// What a command has said about itself so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Per cent.
    pub progress: Option<u8>,
    /// Made safe to show, at most 1000 characters.
    pub status_message: Option<String>,
}

/// The truth about a command that ran, written by its shim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The command's process id.
    pub pid: i32,
    /// How it ended.
    pub end: CommandEnd,
    /// Why it ended.
    pub cause: EndCause,
    /// When the exec succeeded.
    pub started_time: Timestamp,
    /// When the command ended.
    pub completed_time: Timestamp,
    /// How long it ran by a clock that nobody can set.
    pub execution: Duration,
    /// What it used.
    pub usage: Usage,
    /// What it could not get.
    pub shortage: Shortage,
    /// The last of its standard error, made safe to show: at most 4 KiB of valid UTF-8, no control characters but newlines and tabs.
    pub stderr_tail: String,
    /// The last that it said of itself, which nobody else may have heard; `None` where it said nothing.
    pub said: Option<Box<Said>>,
}

impl Verdict {
    /// How long the command ran, in milliseconds: what lies between its two times where these are right, which are rounded each by
    /// itself, so that they add up; else by the clock that nobody can set.
    #[must_use]
    pub fn execution_ms(&self) -> i64 {
        let by_times = self.completed_time.unix_millis().saturating_sub(self.started_time.unix_millis());
        let by_clock = i64::try_from(self.execution.as_millis()).unwrap_or(i64::MAX);
        if by_times.abs_diff(by_clock) <= 1 { by_times.max(0) } else { by_clock }
    }
}

/// Every way in which a run can end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// The command ran, and this became of it.
    Ended(Verdict),
    /// The command could not be started; the sentence says why.
    SpawnFailed(String),
    /// The command was started or may have been, and nobody can say how it ended; the sentence says why.
    Lost(String),
    /// The row can't be run as asked and never reached a command; the sentence says why.
    Refused(String),
    /// Somebody asked to cancel before there was a command.
    CancelledBeforeStart,
    /// A claimed run whose command was certainly never started, by a crash of the service or by its stop.
    NeverStarted,
}

/// What the decision about an end depends on besides the end.
#[derive(Clone, Copy, Debug)]
pub struct RunContext<'a> {
    /// The attempt that ended, counted from the last retry by hand.
    pub attempt: Attempt,
    /// How many attempts the job has, from its row or its flow.
    pub maximum_attempts: u32,
    /// What spreads the waits of jobs that failed together.
    pub jitter: Jitter,
    /// The flow's retry policy.
    pub retry: &'a RetryPolicy,
    /// Whether somebody has asked to cancel the job.
    pub cancel_requested: bool,
    /// How long one run may take; named in the error of a run that took longer.
    pub start_to_close_timeout: Duration,
    /// When the job must have ended, retries included.
    pub schedule_deadline: Timestamp,
}

/// What becomes of the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It has ended with this status.
    Final(JobStatus),
    /// It waits for another attempt, which is due so long after this is written: by the clock of the database, which
    /// decides when a row is due.
    RetryAfter(Duration),
    /// It waits again as if it had never been claimed; the attempt does not count.
    Requeue,
}

impl Next {
    /// The status that the job has then.
    #[must_use]
    pub const fn status(self) -> JobStatus {
        match self {
            Self::Final(status) => status,
            Self::RetryAfter(_) | Self::Requeue => JobStatus::Pending,
        }
    }
}

/// What is written about an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conclusion {
    /// The attempt's outcome; `None` where there was no attempt to speak of.
    pub outcome: Option<Outcome>,
    /// What becomes of the job.
    pub next: Next,
    /// What happened, then the last lines of standard error; `None` where all went well.
    pub error: Option<String>,
    /// The command's exit code, where it had one.
    pub exit_code: Option<i32>,
    /// The signal that ended the command, where one did.
    pub signal: Option<i32>,
    /// Which time was up, where the outcome is [`Outcome::TimedOut`].
    pub timeout: Option<Timeout>,
}

/// Decides what is written about a run that has ended.
///
/// - A command that ended by itself is judged by its exit code, also where a cancel request was on its way:
///   what it did can't be undone by asking.
/// - A request to cancel ends the job whatever the attempt's outcome, except that success stays success.
/// - Otherwise a failed attempt is retried while attempts and time remain, unless its exit code forbids it.
#[must_use]
pub fn conclude(end: &RunEnd, context: &RunContext<'_>, now: Timestamp) -> Conclusion {
    let (outcome, mut error) = match end {
        RunEnd::Ended(verdict) => judge(verdict, context),
        RunEnd::SpawnFailed(reason) => {
            (Some(Outcome::SpawnFailed), Some(format!("the command could not be started: {reason}")))
        }
        RunEnd::Lost(reason) => (Some(Outcome::Lost), Some(format!("the run was lost: {reason}"))),
        RunEnd::Refused(reason) => (None, Some(reason.clone())),
        RunEnd::CancelledBeforeStart => (None, Some("cancelled before its command was started".to_owned())),
        RunEnd::NeverStarted => (None, None),
    };
    let (exit_code, signal) = match end {
        RunEnd::Ended(Verdict { end: CommandEnd::Exited(code), .. }) => (Some(*code), None),
        RunEnd::Ended(Verdict { end: CommandEnd::Signaled(signal), .. }) => (None, Some(*signal)),
        _ => (None, None),
    };
    let timed_out = if let RunEnd::Ended(verdict) = end { timed_out(verdict, context) } else { None };
    let timeout = timed_out.map(|timed_out| timed_out.timeout);
    let next = match (end, outcome) {
        (_, Some(Outcome::Completed)) => Next::Final(JobStatus::Completed),
        (RunEnd::Refused(_), _) => Next::Final(JobStatus::Error),
        (RunEnd::CancelledBeforeStart, _) | (_, Some(Outcome::Cancelled)) => Next::Final(JobStatus::Cancelled),
        _ if context.cancel_requested => Next::Final(JobStatus::Cancelled),
        (RunEnd::NeverStarted, _) => Next::Requeue,
        _ => match retry(exit_code, context, now) {
            Ok(wait) => Next::RetryAfter(wait),
            Err(no_more) => {
                error = error.map(|error| no_more.told_in(&error, timeout));
                Next::Final(JobStatus::Error)
            }
        },
    };
    Conclusion { outcome, next, error, exit_code, signal, timeout }
}

/// Why a failed attempt was the last one.
enum NoMore {
    /// The job has had all its attempts.
    Attempts,
    /// It ended with an exit code that forbids another.
    ExitCode(i32),
    /// The next one would begin after this wait, when the job must have ended.
    Time(Duration),
}

impl NoMore {
    /// The error with a sentence about it, at the end of its first line; what came of the last attempt needs none.
    fn told_in(&self, error: &str, timeout: Option<Timeout>) -> String {
        let why = match self {
            Self::Attempts => return error.to_owned(),
            // That time was up is what the error says.
            Self::Time(_) if timeout == Some(Timeout::ScheduleToClose) => return error.to_owned(),
            Self::ExitCode(code) => format!("{code} is one of retry.non_retryable_exit_codes"),
            Self::Time(wait) => {
                // To the second, where it is one.
                let whole = if *wait < Duration::from_secs(1) {
                    Duration::from_millis(u64::from(wait.subsec_millis()))
                } else {
                    Duration::from_secs(wait.as_secs())
                };
                let wait = humantime::format_duration(whole);
                format!("after the wait of {wait} schedule_to_close_timeout would be over")
            }
        };
        let (first, rest) = error.split_at(error.find('\n').unwrap_or(error.len()));
        format!("{first}; it is not tried again: {why}{rest}")
    }
}

/// How long to wait for the next attempt.
fn retry(exit_code: Option<i32>, context: &RunContext<'_>, now: Timestamp) -> Result<Duration, NoMore> {
    if context.attempt.0 >= context.maximum_attempts {
        return Err(NoMore::Attempts);
    }
    if let Some(code) = exit_code.filter(|code| !context.retry.is_retryable_exit_code(*code)) {
        return Err(NoMore::ExitCode(code));
    }
    let wait = context.retry.wait_after(context.attempt, context.jitter);
    if now.plus(wait) < context.schedule_deadline { Ok(wait) } else { Err(NoMore::Time(wait)) }
}

fn judge(verdict: &Verdict, context: &RunContext<'_>) -> (Option<Outcome>, Option<String>) {
    let ended = match verdict.end {
        CommandEnd::Exited(TEMPORARY_FAILURE) => {
            format!("exit code {TEMPORARY_FAILURE} (EX_TEMPFAIL, a temporary failure)")
        }
        CommandEnd::Exited(code) => format!("exit code {code}"),
        CommandEnd::Signaled(signal) => format!("signal {signal} ({})", signal_name(signal)),
    };
    let (outcome, mut sentence) = match (verdict.cause, verdict.end) {
        (EndCause::Itself, CommandEnd::Exited(0)) => return (Some(Outcome::Completed), None),
        (EndCause::Itself, CommandEnd::Exited(_)) => (Outcome::Failed, format!("the command failed with {ended}")),
        (EndCause::Itself, CommandEnd::Signaled(_)) => (Outcome::Failed, format!("the command was killed by {ended}")),
        (EndCause::Requested, _) => (Outcome::Cancelled, format!("cancelled; the command ended with {ended}")),
        (EndCause::TimedOut(_), _) => {
            let why = timed_out(verdict, context).map_or_else(String::new, |timed_out| told(timed_out, verdict));
            (Outcome::TimedOut, format!("timed out: {why} and was ended with {ended}"))
        }
    };
    sentence.push_str(&want(verdict.shortage));
    let tail = verdict.stderr_tail.trim_end();
    let error = if tail.is_empty() { sentence } else { format!("{sentence}\n{tail}") };
    (Some(outcome), Some(error))
}

/// Which time was up, also where the shim was of a release that did not tell.
fn timed_out(verdict: &Verdict, context: &RunContext<'_>) -> Option<TimedOut> {
    match verdict.cause {
        EndCause::TimedOut(Some(timed_out)) => Some(timed_out),
        EndCause::TimedOut(None) => {
            // A run gets no longer than is left of its job's time, which may be less than a run may take.
            let limit = context.start_to_close_timeout;
            let timeout = if verdict.execution < limit { Timeout::ScheduleToClose } else { Timeout::StartToClose };
            Some(TimedOut { timeout, limit })
        }
        EndCause::Itself | EndCause::Requested => None,
    }
}

fn told(timed_out: TimedOut, verdict: &Verdict) -> String {
    let limit = humantime::format_duration(timed_out.limit);
    let ran = humantime::format_duration(Duration::from_secs(verdict.execution.as_secs()));
    match timed_out.timeout {
        Timeout::StartToClose => format!("the command had run for {ran} (start_to_close_timeout is {limit})"),
        Timeout::ScheduleToClose => {
            format!("the command had run for {ran} (all that was left of schedule_to_close_timeout)")
        }
        Timeout::Watchdog if timed_out.limit.is_zero() => {
            "the command said itself that it hangs (WATCHDOG=trigger)".to_owned()
        }
        Timeout::Watchdog => {
            format!("the command had not sent WATCHDOG=1 for {limit} (watchdog = true, within heartbeat_timeout)")
        }
        Timeout::Silence => format!("the command had written nothing for {limit} (silence_timeout)"),
        Timeout::Heartbeat => {
            format!(
                "its worker had not confirmed the run for {limit} (heartbeat_timeout; its service was gone or cut off from the database)"
            )
        }
    }
}

/// What a run could not get, which may be why it ended as it did.
fn want(shortage: Shortage) -> String {
    let memory = match shortage.memory {
        Some(OutOfMemory::Run(limit)) => {
            format!("; out of memory: the kernel killed it at its limits.memory of {} MiB", limit >> 20)
        }
        Some(OutOfMemory::Machine) => "; out of memory: the kernel killed processes of it".to_owned(),
        None => String::new(),
    };
    let forks = match shortage.refused_forks {
        0 => String::new(),
        1 => "; it was refused a process by its limits.pids".to_owned(),
        times => format!("; it was refused a process by its limits.pids {times} times"),
    };
    memory + &forks
}

/// The name of a Linux signal (signal(7)), for people.
fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => "see signal(7)",
    }
}

/// Where a live run stands, as its `JobActor` sees it; the job's status in the store follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RunPhase {
    /// Claimed; whether its command starts is not known yet.
    Launching,
    /// Its command runs.
    Running,
    /// It has been asked to end before it was known whether its command starts.
    Cancelling,
    /// Its command runs and has been asked to end.
    Stopping,
    /// The run is no longer ours to write about; its command is being killed.
    Fenced,
    /// Its end is known and is being written.
    Settling,
    /// All is done.
    Closed,
}

/// What can happen to a live run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunEvent {
    /// The exec succeeded.
    Started,
    /// Somebody asked to cancel the job.
    CancelRequested,
    /// The store says that another token is current.
    OwnershipLost,
    /// The run has ended, in whichever way.
    Ended,
    /// The end stands in the store, or the store refused it because the run is no longer current.
    Settled,
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunOrder {
    /// Write that the command runs.
    RecordStart,
    /// End the command: SIGTERM, then SIGKILL once `kill_grace` has passed.
    Stop,
    /// End the command at once by SIGKILL.
    StopNow,
    /// Write the end.
    Settle,
    /// Leave: the actor's work is done.
    Leave,
}

impl RunPhase {
    /// Every phase, in the order of a run's life.
    pub const ALL: [Self; 7] =
        [Self::Launching, Self::Cancelling, Self::Running, Self::Stopping, Self::Fenced, Self::Settling, Self::Closed];

    /// The phase after `event`, and what is to be done.
    ///
    /// "Started" is recorded once and before "ended" in every order of arrival (a shim says it again to every service that
    /// takes the run over), a fenced run writes nothing, an end is settled once, and [`RunPhase::Closed`] stays closed.
    #[must_use]
    pub const fn step(self, event: RunEvent) -> (Self, Option<RunOrder>) {
        match (self, event) {
            (Self::Launching, RunEvent::Started) => (Self::Running, Some(RunOrder::RecordStart)),
            (Self::Cancelling, RunEvent::Started) => (Self::Stopping, Some(RunOrder::RecordStart)),
            (Self::Launching, RunEvent::CancelRequested) => (Self::Cancelling, Some(RunOrder::Stop)),
            (Self::Running, RunEvent::CancelRequested) => (Self::Stopping, Some(RunOrder::Stop)),
            (Self::Launching | Self::Cancelling | Self::Running | Self::Stopping, RunEvent::OwnershipLost) => {
                (Self::Fenced, Some(RunOrder::StopNow))
            }
            (Self::Launching | Self::Cancelling | Self::Running | Self::Stopping, RunEvent::Ended) => {
                (Self::Settling, Some(RunOrder::Settle))
            }
            (Self::Fenced, RunEvent::Ended) | (Self::Settling, RunEvent::Settled) => {
                (Self::Closed, Some(RunOrder::Leave))
            }
            (phase, _) => (phase, None),
        }
    }
}

impl RunEvent {
    /// Every event.
    pub const ALL: [Self; 5] = [Self::Started, Self::CancelRequested, Self::OwnershipLost, Self::Ended, Self::Settled];
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy() -> RetryPolicy {
        RetryPolicy::new(3, Duration::from_secs(1), 2.0, Duration::from_secs(100), vec![3]).unwrap()
    }

    fn verdict(end: CommandEnd, cause: EndCause) -> RunEnd {
        RunEnd::Ended(Verdict {
            pid: 42,
            end,
            cause,
            started_time: Timestamp::from_unix_millis(0),
            completed_time: Timestamp::from_unix_millis(5_000),
            execution: Duration::from_secs(5),
            usage: Usage::default(),
            shortage: Shortage::default(),
            stderr_tail: "last words\n".to_owned(),
            said: None,
        })
    }

    const NOW: Timestamp = Timestamp::from_unix_millis(10_000);

    fn context(retry: &RetryPolicy, attempt: u32, cancel_requested: bool) -> RunContext<'_> {
        RunContext {
            attempt: Attempt(attempt),
            maximum_attempts: retry.maximum_attempts(),
            jitter: Jitter::NONE,
            retry,
            cancel_requested,
            start_to_close_timeout: Duration::from_secs(2),
            schedule_deadline: NOW.plus(Duration::from_secs(990)),
        }
    }

    fn concluded(end: &RunEnd, attempt: u32, cancel_requested: bool) -> Conclusion {
        conclude(end, &context(&policy(), attempt, cancel_requested), NOW)
    }

    #[test]
    fn the_time_that_a_command_took_is_that_between_its_times_unless_the_clock_was_set() {
        let RunEnd::Ended(verdict) = verdict(CommandEnd::Exited(0), EndCause::Itself) else { unreachable!() };
        let took = |from: i64, to: i64, micros: u64| {
            let [started_time, completed_time] = [from, to].map(Timestamp::from_unix_millis);
            let execution = Duration::from_micros(micros);
            Verdict { started_time, completed_time, execution, ..verdict.clone() }.execution_ms()
        };
        assert_eq!(
            (took(1000, 5003, 4_002_999), took(1000, 5003, 4_003_400), took(1000, 5003, 4_004_000)),
            (4003, 4003, 4003)
        );
        assert_eq!((took(1000, 3_605_003, 4_002_999), took(5000, 1000, 4_002_999)), (4002, 4002));
        assert_eq!((took(1000, 999, 10), took(1000, 1000, 999)), (0, 0));
    }

    #[test]
    fn success_is_success_even_where_a_cancel_was_on_its_way() {
        let end = verdict(CommandEnd::Exited(0), EndCause::Itself);
        for cancel_requested in [false, true] {
            let conclusion = concluded(&end, 1, cancel_requested);
            assert_eq!((conclusion.next, conclusion.error), (Next::Final(JobStatus::Completed), None));
        }
    }

    #[test]
    fn failures_are_retried_until_the_last_attempt() {
        let end = verdict(CommandEnd::Exited(1), EndCause::Itself);
        assert_eq!(concluded(&end, 1, false).next, Next::RetryAfter(Duration::from_secs(1)));
        assert_eq!(concluded(&end, 2, false).next, Next::RetryAfter(Duration::from_secs(2)));
        assert_eq!(concluded(&end, 3, false).next, Next::Final(JobStatus::Error));
        assert_eq!(concluded(&end, 1, true).next, Next::Final(JobStatus::Cancelled));
        let temporary = verdict(CommandEnd::Exited(75), EndCause::Itself);
        assert!(matches!(concluded(&temporary, 2, false).next, Next::RetryAfter(_)));
        assert_eq!(concluded(&temporary, 3, false).next, Next::Final(JobStatus::Error));
        let forbidden = verdict(CommandEnd::Exited(3), EndCause::Itself);
        assert_eq!(concluded(&forbidden, 1, false).next, Next::Final(JobStatus::Error));
    }

    #[test]
    fn errors_say_what_happened_then_the_last_words() {
        let error = |end, cause| concluded(&verdict(end, cause), 3, false).error.unwrap();
        assert_eq!(error(CommandEnd::Exited(7), EndCause::Itself), "the command failed with exit code 7\nlast words");
        assert_eq!(
            error(CommandEnd::Signaled(9), EndCause::Itself),
            "the command was killed by signal 9 (SIGKILL)\nlast words"
        );
        assert_eq!(
            error(CommandEnd::Signaled(15), EndCause::TimedOut(None)),
            "timed out: the command had run for 5s (start_to_close_timeout is 2s) and was ended with signal 15 (SIGTERM)\nlast words"
        );
        assert_eq!(
            error(CommandEnd::Exited(0), EndCause::Requested),
            "cancelled; the command ended with exit code 0\nlast words"
        );
    }

    #[test]
    fn an_error_says_why_a_job_with_attempts_left_is_not_tried_again() {
        let retry = policy();
        let first = |end: &RunEnd, attempt, left| {
            let context = RunContext {
                schedule_deadline: NOW.plus(Duration::from_secs(left)),
                ..context(&retry, attempt, false)
            };
            conclude(end, &context, NOW).error.unwrap()
        };
        let failed = |code| verdict(CommandEnd::Exited(code), EndCause::Itself);
        let forbidden =
            "the command failed with exit code 3; it is not tried again: 3 is one of retry.non_retryable_exit_codes";
        assert_eq!(first(&failed(3), 1, 60), format!("{forbidden}\nlast words"));
        let late = "the command failed with exit code 1; it is not tried again: \
                    after the wait of 2s schedule_to_close_timeout would be over\nlast words";
        assert_eq!(first(&failed(1), 2, 2), late);
        let short = NoMore::Time(Duration::from_micros(51_700)).told_in("it failed", None);
        assert_eq!(
            short,
            "it failed; it is not tried again: after the wait of 51ms schedule_to_close_timeout would be over"
        );
        // Where it is tried again, or was the last attempt, or its time was up anyway, there is nothing to say.
        assert_eq!(first(&failed(1), 2, 3), "the command failed with exit code 1\nlast words");
        assert_eq!(first(&failed(3), 3, 60), "the command failed with exit code 3\nlast words");
        let limit = Duration::from_secs(5);
        let cause = EndCause::TimedOut(Some(TimedOut { timeout: Timeout::ScheduleToClose, limit }));
        assert!(!first(&verdict(CommandEnd::Signaled(15), cause), 1, 0).contains("again"));
    }

    #[test]
    fn each_timeout_has_its_own_error() {
        let concluded = |timeout, limit| {
            let cause = EndCause::TimedOut(Some(TimedOut { timeout, limit: Duration::from_secs(limit) }));
            let conclusion = concluded(&verdict(CommandEnd::Signaled(15), cause), 3, false);
            assert_eq!((conclusion.outcome, conclusion.timeout), (Some(Outcome::TimedOut), Some(timeout)));
            conclusion.error.unwrap().lines().next().unwrap().to_owned()
        };
        let all = [
            concluded(Timeout::StartToClose, 5),
            concluded(Timeout::ScheduleToClose, 5),
            concluded(Timeout::Watchdog, 20),
            concluded(Timeout::Watchdog, 0),
            concluded(Timeout::Silence, 600),
            concluded(Timeout::Heartbeat, 20),
        ];
        insta::assert_snapshot!(all.join("\n"), @r"
        timed out: the command had run for 5s (start_to_close_timeout is 5s) and was ended with signal 15 (SIGTERM)
        timed out: the command had run for 5s (all that was left of schedule_to_close_timeout) and was ended with signal 15 (SIGTERM)
        timed out: the command had not sent WATCHDOG=1 for 20s (watchdog = true, within heartbeat_timeout) and was ended with signal 15 (SIGTERM)
        timed out: the command said itself that it hangs (WATCHDOG=trigger) and was ended with signal 15 (SIGTERM)
        timed out: the command had written nothing for 10m (silence_timeout) and was ended with signal 15 (SIGTERM)
        timed out: its worker had not confirmed the run for 20s (heartbeat_timeout; its service was gone or cut off from the database) and was ended with signal 15 (SIGTERM)
        ");
    }

    #[test]
    fn want_of_memory_or_processes_is_told_apart_from_other_kills() {
        let error = |memory, refused_forks| {
            let RunEnd::Ended(verdict) = verdict(CommandEnd::Signaled(9), EndCause::Itself) else { unreachable!() };
            let shortage = Shortage { memory, refused_forks };
            concluded(&RunEnd::Ended(Verdict { shortage, ..verdict }), 3, false).error.unwrap()
        };
        assert_eq!(
            error(Some(OutOfMemory::Run(64 << 20)), 0),
            "the command was killed by signal 9 (SIGKILL); out of memory: the kernel killed it at its limits.memory of 64 MiB\nlast words"
        );
        assert!(error(Some(OutOfMemory::Machine), 0).contains("; out of memory: the kernel killed processes of it\n"));
        assert!(error(None, 3).contains("; it was refused a process by its limits.pids 3 times\n"));
        assert!(!error(None, 0).contains("memory"));
    }

    #[test]
    fn a_run_that_never_started_does_not_count() {
        assert_eq!(concluded(&RunEnd::NeverStarted, 3, false).next, Next::Requeue);
        assert_eq!(concluded(&RunEnd::NeverStarted, 3, true).next, Next::Final(JobStatus::Cancelled));
    }

    fn any_event() -> impl Strategy<Value = RunEvent> {
        proptest::sample::select(RunEvent::ALL.to_vec())
    }

    fn any_end() -> impl Strategy<Value = RunEnd> {
        let end = prop_oneof![(0..=255).prop_map(CommandEnd::Exited), (1..=64).prop_map(CommandEnd::Signaled)];
        let cause = prop_oneof![Just(EndCause::Itself), Just(EndCause::Requested), Just(EndCause::TimedOut(None))];
        prop_oneof![
            (end, cause).prop_map(|(end, cause)| verdict(end, cause)),
            Just(RunEnd::SpawnFailed("reason".to_owned())),
            Just(RunEnd::Lost("reason".to_owned())),
            Just(RunEnd::Refused("reason".to_owned())),
            Just(RunEnd::CancelledBeforeStart),
            Just(RunEnd::NeverStarted),
        ]
    }

    /// Every phase with every event: what no order of arrival can bring about need not be drawn to be seen.
    #[test]
    fn every_phase_knows_what_to_do_with_every_event() {
        for phase in RunPhase::ALL {
            for event in RunEvent::ALL {
                let (next, order) = phase.step(event);
                // Nothing is ordered without a step, so nothing can be ordered for ever.
                assert!(next != phase || order.is_none(), "{phase:?} + {event:?}");
                // A life has a direction.
                assert!(next >= phase, "{phase:?} + {event:?} goes back to {next:?}");
                // The end of the command is never passed over before somebody is to write it.
                if event == RunEvent::Ended {
                    assert!(matches!(next, RunPhase::Settling | RunPhase::Closed), "{phase:?}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_order_of_events_starts_stops_or_settles_twice(events in prop::collection::vec(any_event(), 0..40)) {
            let mut phase = RunPhase::Launching;
            let mut orders: Vec<RunOrder> = Vec::new();
            let mut fenced = false;
            for event in events {
                let (next, order) = phase.step(event);
                if phase == RunPhase::Closed {
                    prop_assert_eq!((next, order), (RunPhase::Closed, None));
                }
                if let Some(order) = order {
                    prop_assert!(!orders.contains(&order), "{order:?} for the second time, after {orders:?}");
                    // The start stands before the end, and after an end nothing is asked of the command any more.
                    let after_the_end = matches!(order, RunOrder::RecordStart | RunOrder::Stop | RunOrder::StopNow);
                    prop_assert!(!(after_the_end && orders.contains(&RunOrder::Settle)), "{order:?} after {orders:?}");
                    prop_assert!(!(fenced && matches!(order, RunOrder::Settle | RunOrder::RecordStart)));
                    orders.push(order);
                }
                fenced |= next == RunPhase::Fenced;
                phase = next;
            }
            prop_assert_eq!(phase == RunPhase::Closed, orders.contains(&RunOrder::Leave));
        }

        #[test]
        fn every_end_has_exactly_one_conclusion_that_fits_it(end in any_end(), attempt in 1_u32..6, cancel_requested: bool) {
            let conclusion = concluded(&end, attempt, cancel_requested);
            // A job that has ended says how, and one that went well has nothing to say.
            prop_assert_eq!(conclusion.error.is_none(), matches!(conclusion.next, Next::Final(JobStatus::Completed) | Next::Requeue) || end == RunEnd::NeverStarted);
            if let Next::Final(status) = conclusion.next {
                prop_assert!(status.is_final());
            }
            // Success is recorded for a command that ended by itself with 0, and for nothing else.
            let succeeded = matches!(&end, RunEnd::Ended(Verdict { end: CommandEnd::Exited(0), cause: EndCause::Itself, .. }));
            prop_assert_eq!(conclusion.next == Next::Final(JobStatus::Completed), succeeded);
            prop_assert_eq!(conclusion.outcome == Some(Outcome::Completed), succeeded);
            // What somebody asked to cancel does not run again.
            prop_assert!(!cancel_requested || matches!(conclusion.next, Next::Final(_)));
            // An attempt that may have run counts; only one that certainly did not is given back.
            prop_assert_eq!(conclusion.next == Next::Requeue, end == RunEnd::NeverStarted && !cancel_requested);
            // The exit code is the command's own, or none.
            let code = if let RunEnd::Ended(Verdict { end: CommandEnd::Exited(code), .. }) = &end { Some(*code) } else { None };
            prop_assert_eq!(conclusion.exit_code, code);
            // Attempts are bounded.
            if attempt >= policy().maximum_attempts() {
                prop_assert!(!matches!(conclusion.next, Next::RetryAfter(_)));
            }
        }
    }
}
