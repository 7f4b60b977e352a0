//! The shim: one small process a run, which owns the command from its start to the end of all that it started.
//!
//! Forked from the zygote by an order of the service; ends by itself when the verdict is on disk, or has another run after a
//! short one. One thread, one poll(2). It needs nobody: a service that is gone, hangs or does not read costs it nothing but
//! the link. Only a disk can hold it up, for which a [`Guard`] stands beside it while there may be something to write.

mod service;
mod start;

use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use self::service::tell;
use super::arrival::Arrival;
use super::canceller::Canceller;
use super::cgroup::RunGroup;
use super::environment::Environment;
use super::guard::{Guard, Guarded, Struck};
use super::link::{LeaseOrder, Order, ToService};
use super::logs::Stream;
use super::notify::Inbox;
use super::output::Log;
use super::run_dir::{Journal, Record, StartedRecord};
use super::spawn::{self, Refusal};
use super::{oom, tree};
use crate::clock::boottime;
use crate::crash::{self, Step};
use crate::domain::Timestamp;
use crate::domain::run::{CommandEnd, EndCause, OutOfMemory, Said, Shortage, TimedOut, Timeout, Usage, Verdict};

/// The socket in the run directory on which a shim without a service waits for one.
pub(super) const CONTROL_SOCKET: &str = "ctl";

/// How often at most the service hears of progress.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);
/// How long output is waited for when nobody of the run is left who could write any.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// How long after the first SIGKILL the service is told that somebody doesn't die.
const NOT_DYING_AFTER: Duration = Duration::from_secs(60);
const FIRST_SWEEP_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_SWEEP_PAUSE: Duration = Duration::from_secs(1);
/// A run that is over by then has its start told together with its end, which wakes the service once.
const TELL_START_AFTER: Duration = Duration::from_millis(5);
/// A run that is over by then leaves no record of its start but the verdict, and saves that write.
const RECORD_START_AFTER: Duration = Duration::from_millis(20);
/// How often a verdict that can't be written (a full disk) is tried again.
const VERDICT_PAUSE: Duration = Duration::from_secs(1);
/// The wait after a poll(2) that could not wait.
const POLL_PAUSE: Duration = Duration::from_millis(50);
/// How often a new service is waited for again where there was no socket, descriptor or room for that.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);

/// What the zygote found out once for all shims.
#[derive(Debug)]
pub(super) struct Surroundings {
    /// The environment that every command inherits.
    pub(super) environment: Environment,
    /// Where runs may have control groups.
    pub(super) groups: Option<PathBuf>,
    /// When the shim started, found out for the first of its runs.
    pub(super) start_ticks: OnceCell<u64>,
}

/// Runs one command from its start to its verdict, in the forked child of the zygote. Returns the link where the service has
/// been told that another order may come over it.
pub(super) fn run(order: Order, mut journal: Journal, link: OwnedFd, surroundings: &Surroundings) -> Option<OwnedFd> {
    match Shim::start(order, &mut journal, link, surroundings) {
        Ok(mut shim) => {
            shim.watch(&mut journal);
            shim.conclude(&mut journal)
        }
        Err((link, refusal)) => {
            refuse(&mut journal, link, refusal);
            None
        }
    }
}

/// Records that the command was not started. Where it can't be, that is reported; where it only can't be now, the closed
/// link has the service look into the journal.
pub(super) fn refuse(journal: &mut Journal, link: OwnedFd, Refusal { reason, shortage }: Refusal) {
    if shortage {
        crash::before(Step::SpawnFailedRecord);
        let _ = journal.append(&Record::NotStarted { reason });
        crash::after(Step::SpawnFailedRecord);
        return drop(link);
    }
    // Where the journal can't be written (a full disk may be the reason itself), the link still tells.
    crash::before(Step::SpawnFailedRecord);
    let _ = journal.append(&Record::SpawnFailed { reason: reason.clone() });
    crash::after(Step::SpawnFailedRecord);
    tell(&link, &ToService::SpawnFailed { reason });
}

/// How far the ending of the run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nobody was asked to end.
    Running,
    /// Everybody was sent SIGTERM; SIGKILL follows then.
    Terminating { kill_at: Duration },
    /// SIGKILL is sent again and again.
    Killing { since: Duration, next_sweep: Duration, pause: Duration, told: bool },
    /// Nobody is left here, and `cancel_command` ends what may be left elsewhere; it is killed then.
    CleaningUp { until: Duration },
    /// Nobody is left; what they have written is read to its end.
    Draining { until: Duration },
}

/// Ends the run where nothing is heard for so long.
#[derive(Clone, Copy, Debug)]
struct Watch {
    timeout: Timeout,
    limit: Duration,
    /// When something was heard last, by [`awake_time`].
    heard: Duration,
}

impl Watch {
    fn new(timeout: Timeout, limit_ms: Option<u64>) -> Option<Self> {
        limit_ms.map(|limit| Self { timeout, limit: Duration::from_millis(limit), heard: awake_time() })
    }

    fn left(self, now: Duration) -> Duration {
        (self.heard + self.limit).saturating_sub(now)
    }
}

/// Looks now and then at how much memory the run holds, where no control group counts it.
///
/// The kernel itself only knows the most that any one process held.
#[derive(Clone, Copy, Debug)]
struct MemoryWatch {
    peak: u64,
    next: Duration,
    pause: Duration,
}

impl MemoryWatch {
    /// A run that is over by then is not worth a look.
    const FIRST: Duration = Duration::from_secs(1);
    /// For a run of hours, and for thousands of them at a time.
    const LONGEST: Duration = Duration::from_secs(30);

    fn from(now: Duration) -> Self {
        Self { peak: 0, next: now + Self::FIRST, pause: Self::FIRST }
    }

    fn go_on(&mut self, root: i32, now: Duration) {
        if now >= self.next {
            self.peak = self.peak.max(tree::resident(root));
            self.pause = (self.pause * 2).min(Self::LONGEST);
            self.next = now + self.pause;
        }
    }
}

/// How much longer than it wanted this process may sleep before it must think that it, and maybe its command, was stopped.
const OVERSLEPT: Duration = Duration::from_secs(1);

/// How the command itself ended.
#[derive(Clone, Copy, Debug)]
struct CommandEnded {
    end: CommandEnd,
    time: Timestamp,
    execution: Duration,
}

struct Shim {
    own_pid: i32,
    /// The run directory itself, whatever its command does to the name; held open by `_directory`.
    run_dir: PathBuf,
    command: Pid,
    started_time: Timestamp,
    started: Duration,
    /// The same by [`awake_time`], which the kernel's log goes by.
    started_awake: Duration,
    kill_grace: Duration,
    phase: Phase,
    cause: Option<EndCause>,
    ended: Option<CommandEnded>,
    link: Option<OwnedFd>,
    /// What a new service connects to; there since the link broke for the first time.
    control: Option<OwnedFd>,
    /// No new service can be waited for, or be taken in, until then.
    deaf_until: Option<Duration>,
    children: OwnedFd,
    /// When the command has to end, until that is seen to.
    alarm_at: Option<Duration>,
    /// Wakes this process up then, also where the machine has slept meanwhile, as poll(2)'s clock has; `None` where there was none
    /// to be had.
    alarm: Option<OwnedFd>,
    /// As the service has said; see [`Self::lease`].
    lease: Option<LeaseOrder>,
    guarded: Guarded,
    guard: Option<Guard>,
    canceller: Option<Canceller>,
    /// What is to be recorded about the start, until it is.
    start: Option<StartedRecord>,
    time_is_up: TimedOut,
    watchdog: Option<Watch>,
    silence: Option<Watch>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    stdout_log: Log,
    stderr_log: Log,
    arrival: Arrival,
    inbox: Option<Inbox>,
    said: Said,
    /// Whether the service, where there is one, has yet to hear of the start.
    start_untold: bool,
    /// When the service last heard of progress, and whether there is more to tell.
    progress_told: Duration,
    progress_untold: bool,
    not_dying: Option<String>,
    group: Option<RunGroup>,
    /// `None` where the group counts it.
    memory: Option<MemoryWatch>,
    /// What those have used that have been waited for.
    used: Usage,
    buffer: Vec<u8>,
    /// Dropped last: what is removed in the end is reached through it.
    _directory: OwnedFd,
}

impl Shim {
    /// Until nothing that the command started is alive, and all that it wrote is in its files.
    fn watch(&mut self, journal: &mut Journal) {
        while !self.is_over() {
            let ready = self.wait();
            if ready.children {
                self.reap();
            }
            if ready.stdout {
                self.read_output(Stream::Stdout);
            }
            if ready.stderr {
                self.read_output(Stream::Stderr);
            }
            if ready.inbox {
                self.hear();
            }
            if ready.link {
                self.obey();
            }
            if ready.control {
                self.welcome();
            }
            self.go_on();
            if boottime() >= self.started + RECORD_START_AFTER {
                self.record_start(journal);
            }
        }
        self.arrival.finish(crate::clock::now);
        // What was said right before the end counts, too.
        self.hear();
        self.tell_start();
        self.tell_progress();
    }

    fn is_over(&self) -> bool {
        match self.phase {
            Phase::Draining { until } => (self.stdout.is_none() && self.stderr.is_none()) || boottime() >= until,
            Phase::Running | Phase::Terminating { .. } | Phase::Killing { .. } | Phase::CleaningUp { .. } => false,
        }
    }

    fn wait(&mut self) -> Ready {
        let watched = self.next_watch().map(|watch| watch.left(awake_time()));
        let patience = self.next_deadline().map(|at| at.saturating_sub(boottime())).into_iter().chain(watched).min();
        let slept_from = watched.map(|_| awake_time());
        let timeout = patience.map(timespec);
        let sources = [
            Some(self.children.as_fd()),
            self.alarm.as_ref().map(AsFd::as_fd),
            self.stdout.as_ref().map(AsFd::as_fd),
            self.stderr.as_ref().map(AsFd::as_fd),
            self.inbox.as_ref().map(Inbox::as_fd),
            self.link.as_ref().map(AsFd::as_fd),
            self.awaited(),
        ];
        // That the alarm has gone off, the clock says as well.
        let [children, _, stdout, stderr, inbox, link, control] = readable(sources, timeout.as_ref());
        if children {
            let mut signals = [0_u8; 1024];
            let _ = rustix::io::read(&self.children, &mut signals);
        }
        if let (Some(from), Some(patience)) = (slept_from, patience) {
            let now = awake_time();
            if now.saturating_sub(from) > patience + OVERSLEPT {
                // Stopped, or on a machine that stood still, and then its command may have been, too: nothing was proved.
                for watch in [&mut self.watchdog, &mut self.silence].into_iter().flatten() {
                    watch.heard = now;
                }
            }
        }
        Ready { children, stdout, stderr, inbox, link, control }
    }

    /// The watch that will be the first to end the run, where none is heard of.
    fn next_watch(&self) -> Option<Watch> {
        let watches = self.watchdog.into_iter().chain(self.silence).filter(|_| self.phase == Phase::Running);
        watches.min_by_key(|watch| watch.heard + watch.limit)
    }

    /// When to wake up without an event.
    fn next_deadline(&self) -> Option<Duration> {
        let phase = match self.phase {
            Phase::Running => None,
            Phase::Terminating { kill_at } => Some(kill_at),
            Phase::Killing { next_sweep, .. } => Some(next_sweep),
            Phase::CleaningUp { until } | Phase::Draining { until } => Some(until),
        };
        let start = self.start.is_some().then(|| self.started + RECORD_START_AFTER);
        let untold = self.start_untold.then(|| self.started + TELL_START_AFTER);
        let progress = self.progress_untold.then(|| self.progress_told + PROGRESS_PAUSE);
        let memory = self.memory.map(|memory| memory.next);
        let arrival = self.arrival.next_deadline();
        let sources = [phase, start, untold, progress, memory, arrival, self.alarm_at, self.deaf_until];
        sources.into_iter().flatten().min()
    }

    /// Until when the command may run without word from the service.
    fn lease(&self) -> Option<LeaseOrder> {
        self.guard.as_ref().map_or(self.lease, Guard::leased)
    }

    /// Wakes up when the command has to end.
    fn set_alarm(&mut self) {
        let lease = self.lease().map(|lease| Duration::from_millis(lease.until_ms));
        let at = lease.map_or(self.guarded.limit_at, |until| until.min(self.guarded.limit_at));
        self.alarm_at = Some(at);
        self.alarm = alarm_after(at.saturating_sub(boottime()));
    }

    fn heed_alarm(&mut self, now: Duration) {
        (self.alarm_at, self.alarm) = (None, None);
        let lease = self.lease().filter(|lease| now >= Duration::from_millis(lease.until_ms));
        if now >= self.guarded.limit_at {
            self.end(EndCause::TimedOut(Some(self.time_is_up)), false);
        } else if let Some(lease) = lease {
            let limit = Duration::from_millis(lease.timeout_ms);
            self.end(EndCause::TimedOut(Some(TimedOut { timeout: Timeout::Heartbeat, limit })), false);
        } else {
            self.set_alarm();
        }
    }

    fn renew(&mut self, lease: Option<LeaseOrder>) {
        self.lease = lease;
        if let Some(guard) = &self.guard {
            guard.lease(lease);
        }
        self.set_alarm();
        self.report_lease();
    }

    fn report_lease(&mut self) {
        if let Some(lease) = self.lease() {
            self.report(&ToService::Leased { until_ms: lease.until_ms });
        }
    }

    /// Before anything is written while the command runs: a disk may hang.
    fn stand_guard(&mut self) {
        if self.guard.is_none() && !matches!(self.phase, Phase::Draining { .. }) {
            self.guard = Guard::start(self.guarded);
            if let Some(guard) = &self.guard {
                guard.listen_to(self.link.as_ref());
                guard.lease(self.lease);
                if let Phase::Terminating { kill_at: at } | Phase::CleaningUp { until: at } = self.phase {
                    guard.ending(at);
                }
            }
        }
    }

    fn record_start(&mut self, journal: &mut Journal) {
        let Some(mut record) = self.start.take() else { return };
        self.stand_guard();
        // Only while it is not reaped is the number its own.
        if self.ended.is_none() {
            record.start_ticks = tree::Stat::of(record.pid).map_or(0, |stat| stat.start_ticks);
        }
        crash::before(Step::StartedRecord);
        // Not worth ending the command for: `starting` already says that it may run.
        let _ = journal.append(&Record::Started(record));
        crash::after(Step::StartedRecord);
    }

    /// What is due by the clock.
    fn go_on(&mut self) {
        let now = boottime();
        match self.phase {
            Phase::Terminating { kill_at: at } | Phase::CleaningUp { until: at } if now >= at => {
                self.start_killing(now);
            }
            Phase::Killing { since, next_sweep, pause, told } if now >= next_sweep => {
                self.sweep();
                let late = now.saturating_sub(since) >= NOT_DYING_AFTER;
                if late && !told {
                    self.report_not_dying();
                }
                let pause = (pause * 2).min(LONGEST_SWEEP_PAUSE);
                self.phase = Phase::Killing { since, next_sweep: now + pause, pause, told: told || late };
            }
            Phase::Running
            | Phase::Terminating { .. }
            | Phase::Killing { .. }
            | Phase::CleaningUp { .. }
            | Phase::Draining { .. } => {}
        }
        if now >= self.started + TELL_START_AFTER {
            self.tell_start();
        }
        if self.progress_untold && now >= self.progress_told + PROGRESS_PAUSE {
            self.tell_progress();
        }
        self.arrival.go_on(now, crate::clock::now);
        if self.alarm_at.is_some_and(|at| now >= at) {
            self.heed_alarm(now);
        }
        self.listen_again(now);
        if let Some(memory) = &mut self.memory {
            memory.go_on(self.own_pid, now);
        }
        if let Some(Watch { timeout, limit, .. }) = self.next_watch().filter(|watch| watch.left(awake_time()).is_zero())
        {
            self.end(EndCause::TimedOut(Some(TimedOut { timeout, limit })), false);
        }
    }

    /// Takes note of every child that has ended: the command, or one of its orphans.
    fn reap(&mut self) {
        let mut anybody_left = false;
        crash::before(Step::CommandReap);
        loop {
            match spawn::reaped() {
                Ok(Some((pid, end, used))) => {
                    self.used.add(used);
                    // Once only: an orphan may be given the number of a command that is gone.
                    if pid == self.command && self.ended.is_none() {
                        self.command_ended(end);
                    } else if let Some(canceller) = &mut self.canceller {
                        canceller.reaped(pid, end);
                    }
                }
                Err(Errno::INTR) => {}
                Ok(None) => {
                    anybody_left = true;
                    break;
                }
                Err(_) => break,
            }
        }
        let ended = self.ended.is_some();
        if anybody_left && self.canceller.as_mut().is_some_and(|canceller| canceller.leaves_it_to_sigterm(ended)) {
            self.send_sigterm();
        }
        if !ended {
            return;
        }
        if !anybody_left {
            if !matches!(self.phase, Phase::Draining { .. }) {
                self.nobody_is_left();
            }
        } else if self.phase == Phase::Running {
            self.start_terminating();
        }
    }

    fn nobody_is_left(&mut self) {
        let by_signal = self.ended.is_some_and(|ended| matches!(ended.end, CommandEnd::Signaled(_)));
        let said = self.stderr.as_ref();
        self.phase = if by_signal && self.canceller.as_mut().is_some_and(|canceller| canceller.clean_up(said)) {
            let until = boottime() + self.kill_grace;
            if let Some(guard) = &self.guard {
                guard.ending(until);
            }
            Phase::CleaningUp { until }
        } else {
            Phase::Draining { until: boottime() + DRAIN_LIMIT }
        };
    }

    fn command_ended(&mut self, end: CommandEnd) {
        let execution = boottime().saturating_sub(self.started);
        if let Some(struck) = self.guard.as_ref().and_then(Guard::struck) {
            self.cause.get_or_insert(match struck {
                Struck::TimeIsUp => EndCause::TimedOut(Some(self.time_is_up)),
                Struck::Unconfirmed(limit) => EndCause::TimedOut(Some(TimedOut { timeout: Timeout::Heartbeat, limit })),
                Struck::Requested => EndCause::Requested,
            });
        }
        crash::after(Step::CommandReap);
        self.ended = Some(CommandEnded { end, time: crate::clock::now(), execution });
    }

    /// Ends the run for this reason, unless the command has ended already or another reason came first.
    fn end(&mut self, cause: EndCause, at_once: bool) {
        // It may have ended before the request came; then nobody ended it.
        self.reap();
        if self.ended.is_none() {
            self.cause.get_or_insert(cause);
            if self.phase == Phase::Running && at_once && self.canceller.is_some() {
                // It has no time to be asked; what it leaves elsewhere is ended after it.
                let now = boottime();
                if let Some(guard) = &self.guard {
                    guard.ending(now);
                }
                self.start_killing(now);
            } else if self.phase == Phase::Running {
                self.start_terminating();
            }
        }
        if at_once && matches!(self.phase, Phase::Terminating { .. }) {
            self.start_killing(boottime());
        }
    }

    fn start_terminating(&mut self) {
        crash::before(Step::Terminate);
        let (alive, said) = (self.ended.is_none(), self.stderr.as_ref());
        if !self.canceller.as_mut().is_some_and(|canceller| alive && canceller.ask(said)) {
            self.send_sigterm();
        }
        crash::after(Step::Terminate);
        let kill_at = boottime() + self.kill_grace;
        self.phase = Phase::Terminating { kill_at };
        if let Some(guard) = &self.guard {
            guard.ending(kill_at);
        }
    }

    fn send_sigterm(&self) {
        tree::signal_all(self.own_pid, Signal::TERM);
        // One that is stopped would never see it.
        tree::signal_all(self.own_pid, Signal::CONT);
    }

    fn start_killing(&mut self, now: Duration) {
        self.sweep();
        let pause = FIRST_SWEEP_PAUSE;
        self.phase = Phase::Killing { since: now, next_sweep: now + pause, pause, told: false };
    }

    fn sweep(&self) {
        crash::before(Step::Kill);
        if let Some(group) = &self.group {
            group.kill();
        }
        tree::kill_all(self.own_pid);
        crash::after(Step::Kill);
    }

    fn read_output(&mut self, stream: Stream) {
        let pipe = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let Some(open) = pipe.as_ref() else { return };
        if self.buffer.is_empty() {
            self.buffer.resize(4096, 0);
        }
        match rustix::io::read(open, &mut self.buffer[..]) {
            Ok(0) => *pipe = None,
            Ok(length) => {
                self.stand_guard();
                let is_full = length == self.buffer.len();
                let bytes = self.buffer.get(..length).unwrap_or_default();
                self.arrival.note(stream, bytes, boottime, crate::clock::now);
                match stream {
                    Stream::Stdout => self.stdout_log.take(bytes),
                    Stream::Stderr => self.stderr_log.take(bytes),
                }
                if let Some(silence) = &mut self.silence {
                    silence.heard = awake_time();
                }
                // As much as a pipe holds, but only for a command that prints much: touching fresh memory costs more than the
                // rest of a short run's reading.
                if is_full {
                    self.buffer.resize(64 * 1024, 0);
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => *pipe = None,
        }
    }

    fn hear(&mut self) {
        let Some(inbox) = &self.inbox else { return };
        let heard = inbox.drain_into(&mut self.said);
        self.progress_untold |= heard.changed;
        let Some(watchdog) = &mut self.watchdog else { return };
        if heard.alive {
            watchdog.heard = awake_time();
        }
        if heard.stuck {
            let timed_out = TimedOut { timeout: Timeout::Watchdog, limit: Duration::ZERO };
            self.end(EndCause::TimedOut(Some(timed_out)), false);
        }
    }

    /// What the run used and could not get; its group still has to be there.
    fn account(&self, ended: CommandEnded) -> (Usage, Shortage) {
        let mut usage = self.used;
        usage.max_rss_bytes = usage.max_rss_bytes.max(self.memory.map_or(0, |memory| memory.peak));
        usage.output_bytes = self.stdout_log.length() + self.stderr_log.length();
        let mut shortage = Shortage::default();
        if let Some(group) = &self.group {
            group.correct(&mut usage);
            shortage = group.shortage();
        }
        if shortage.memory.is_none() && self.cause.is_none() && ended.end == CommandEnd::Signaled(libc::SIGKILL) {
            let since = u64::try_from(self.started_awake.as_micros()).unwrap_or(u64::MAX);
            let killed = oom::was_killed(self.command.as_raw_nonzero().get(), since);
            shortage.memory = killed.then_some(OutOfMemory::Machine);
        }
        (usage, shortage)
    }

    /// Whether this process is as it was before this run, and its service there, so that it may have another one: its run was
    /// over before there was a start to record or output to write meanwhile, for which there would be a guard, and ended by
    /// itself.
    fn may_have_another(&self) -> bool {
        let as_before =
            self.guard.is_none() && self.canceller.is_none() && self.group.is_none() && self.cause.is_none();
        as_before && self.link.is_some() && self.control.is_none()
    }

    /// Writes the verdict, tells it, and tidies up. Returns the link where this process waits for another order.
    fn conclude(mut self, journal: &mut Journal) -> Option<OwnedFd> {
        let ended = self.ended?;
        let waits = self.may_have_another();
        self.guard = None;
        let (usage, shortage) = self.account(ended);
        if let Some(group) = self.group.take() {
            group.remove();
        }
        let verdict = Verdict {
            pid: self.command.as_raw_nonzero().get(),
            end: ended.end,
            cause: self.cause.unwrap_or(EndCause::Itself),
            started_time: self.started_time,
            completed_time: ended.time,
            execution: ended.execution,
            usage,
            shortage,
            stderr_tail: self.stderr_log.safe_tail(),
            said: (self.said != Said::default()).then(|| Box::new(self.said.clone())),
        };
        let record = Record::Verdict((&verdict).into());
        let (mut appended, mut told, mut link) = (false, false, None);
        loop {
            crash::before(Step::VerdictRecord);
            appended = appended || journal.append(&record).is_ok();
            crash::after(Step::VerdictRecord);
            crash::before(Step::VerdictReport);
            if !told && waits && appended && self.control.is_none() {
                told = self.report(&ToService::EndedAndWaits((&verdict).into()));
                link = self.link.take().filter(|_| told);
            }
            told = told || self.report(&ToService::Ended((&verdict).into()));
            crash::after(Step::VerdictReport);
            // A service that has been told commits it to its database within the millisecond, and a sync here would hold
            // that commit up, since both wait for the same disk. Should it die first, the journal has the verdict; should
            // the machine die first too, nobody can say how the command ended, as if that had come a moment earlier.
            // Without a service only the disk can keep the verdict, so it is synced. Until the journal has it (a full
            // disk) it is tried again, and the lock keeps everybody from thinking that the run is lost.
            if appended && (told || synced(journal)) {
                break;
            }
            self.listen_again(boottime());
            let pause = timespec(VERDICT_PAUSE);
            let [waiting] = readable([self.awaited()], Some(&pause));
            if waiting {
                self.welcome();
            }
        }
        if self.control.take().is_some() {
            crash::before(Step::ControlUnlink);
            let _ = std::fs::remove_file(self.run_dir.join(CONTROL_SOCKET));
            crash::after(Step::ControlUnlink);
        }
        link
    }
}

fn synced(journal: &Journal) -> bool {
    crash::before(Step::VerdictSync);
    let synced = journal.sync().is_ok();
    crash::after(Step::VerdictSync);
    synced
}

/// What can be read from without waiting.
struct Ready {
    children: bool,
    stdout: bool,
    stderr: bool,
    inbox: bool,
    link: bool,
    control: bool,
}

/// Waits until one of these can be read from (or has been closed by the other side), or the time is up.
fn readable<const N: usize>(sources: [Option<BorrowedFd<'_>>; N], timeout: Option<&Timespec>) -> [bool; N] {
    let mut polled: Vec<PollFd<'_>> =
        sources.iter().flatten().map(|source| PollFd::from_borrowed_fd(*source, PollFlags::IN)).collect();
    // An interruption is taken for nothing being ready: the caller asks again.
    let any = match poll(&mut polled, timeout) {
        Ok(ready) => ready > 0,
        Err(Errno::INTR) => false,
        // No memory, or fewer descriptors allowed than are waited for: it would fail again at once.
        Err(_) => {
            std::thread::sleep(POLL_PAUSE);
            false
        }
    };
    let mut results = polled.iter();
    sources.map(|source| source.is_some() && results.next().is_some_and(|polled| any && !polled.revents().is_empty()))
}

/// Time since boot without that during which the machine slept: what counts where a command has to do something in time.
fn awake_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// A descriptor that becomes readable after this time, which goes on while the machine sleeps.
fn alarm_after(time: Duration) -> Option<OwnedFd> {
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK).ok()?;
    // Zero would mean never.
    let it_value = timespec(time.max(Duration::from_millis(1)));
    let setting = Itimerspec { it_interval: timespec(Duration::ZERO), it_value };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &setting).ok()?;
    Some(timer)
}
