//! JobActor: one run, from its launch (or its recovery) to its end in the store.
//!
//! Started by the dispatcher or by recovery, under the JobSupervisor and the job's workflow id, so that a job has one
//! live run at most. Its shim owns the process: a JobActor that dies is replaced by one that takes the same command
//! over. It ends once the run's end stands in the store, and tells the dispatcher when a slot is about to be free.
//!
//! Order of effects, and what a kill between any two leaves behind: the claim is committed (recovery: never started) →
//! the run directory is made and locked (never started) → the shim notes that it starts the command (lost, and swept)
//! → the command runs (re-attached) → the shim writes the verdict (finished while away) → the end is committed.
//!
//! The first two go on at the same time where nothing is in the way ([`super::ahead`]): then the shim waits for word that the
//! claim is committed, and a run directory may be left that is no claim's, which goes with the old ones (`retention.logs`).

mod args;
mod record;

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::time::Instant;
use tracing::Instrument;

pub use self::args::{JobArgs, JobStart, OwnedRun};
use super::heartbeat::{HeartbeatActor, HeartbeatArgs, HeartbeatEvent, HeartbeatMessage, Kept};
use super::slots::HeldSlot;
use super::status::{ErrorChain, StatusMessage};
use super::{AbortOnDrop, Launcher, Reply, RunComplaint, Watched, after};
use crate::domain::heartbeat::{Lease, LeaseTerms, Leasing};
use crate::domain::restart::{RestartBudget, RestartDecision, RestartPolicy};
use crate::domain::retry::Jitter;
use crate::domain::run::{Conclusion, RunContext, RunEnd, RunEvent, RunOrder, RunPhase, conclude};
use crate::domain::slots::Slot;
use crate::domain::{Attempt, JobStatus, Timestamp};
use crate::metrics::{RecoveryVerdict, Role, WatchedRun};
use crate::process::{self, CommandSpec, Evidence, LeaseUntil, RunControl, RunLink, RunReport};
use crate::store::{Confirm, ProgressNote, Write, Written};

/// The wait before a write that the store did not take is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// The wait before a launch that failed for reasons of our own is tried again, or a run looked into again.
const WORK_AGAIN: Duration = Duration::from_secs(1);
/// A start that the shim has told of waits so long for the run's end, which writes both in one commit: most of a short
/// command's cost is commits. Whoever dies meanwhile leaves a claimed row and a shim that says when the command started.
const START_HELD: Duration = Duration::from_millis(5);
/// A run that is over by then needs nobody to confirm it; its start is its first confirmation.
const FIRST_HEARTBEAT: Duration = Duration::from_millis(100);
/// How long the slot of a run is held whose command was not started, for no fault of its own.
const NEVER_STARTED_WAIT: Duration = Duration::from_secs(1);
/// The longest of these waits; each is twice the one before.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

const HEARTBEAT_RESTARTS: RestartPolicy = RestartPolicy {
    intensity: 5,
    window: Duration::from_secs(60),
    initial_backoff: Duration::from_millis(100),
    maximum_backoff: Duration::from_secs(5),
};

/// The owner of one run.
pub struct JobActor;

/// What a JobActor is told.
pub enum JobMessage {
    /// Ask whether the claim still stands (again).
    ConfirmClaim,
    /// The store says whether the claim still stands, before a launch that had to wait.
    ClaimConfirmed(Option<Vec<Written>>),
    /// Launch the command (again).
    Launch,
    /// The launch is over, or `None` where it panicked.
    Launched(Option<Result<RunLink, process::Error>>),
    /// Recovery has looked into the run directory.
    Inspected(Option<Result<Evidence, process::Error>>),
    /// Look into the run directory.
    Inspect,
    /// The shim reports.
    Reported(RunReport),
    /// What the run had left alive is dead; its end is this.
    Swept(RunEnd),
    /// End the command, for good.
    Cancel,
    /// The heartbeat learned something.
    Heartbeat(HeartbeatEvent),
    /// The service stops and leaves the command running.
    Keep(Kept),
    /// The store's answer to the start.
    StartRecorded(Option<Vec<Written>>),
    /// The store's answer to the end.
    EndRecorded(Option<Vec<Written>>),
    /// Ask for the start to be written (again).
    RecordStart,
    /// Ask for the end to be written (again).
    RecordEnd,
    /// The store's answer to a progress note.
    ProgressRecorded,
    /// Start the HeartbeatActor (again).
    StartHeartbeat,
    /// Fail in the way that a test asks for.
    #[cfg(test)]
    Panic,
    /// Make the HeartbeatActor fail.
    #[cfg(test)]
    PanicHeartbeat,
}

/// What a JobActor knows.
pub struct JobState {
    args: JobArgs,
    phase: RunPhase,
    control: Option<RunControl>,
    started: Option<(i32, Timestamp)>,
    start_recorded: bool,
    start_noted: bool,
    end: Option<(RunEnd, Conclusion, Timestamp)>,
    heartbeat: Option<ActorRef<HeartbeatMessage>>,
    heartbeat_restarts: RestartBudget,
    spawned: Instant,
    reports: Option<AbortOnDrop>,
    /// When this actor was started, by [`boottime`](crate::clock::boottime).
    since: Duration,
    /// An inspection or a sweep, or the wait for another: a run does one of these at a time.
    work: Option<AbortOnDrop>,
    work_wait: Duration,
    /// The wait before a write is asked for again.
    ask: Option<AbortOnDrop>,
    ask_wait: Duration,
    start_timer: Option<AbortOnDrop>,
    heartbeat_timer: Option<AbortOnDrop>,
    /// The device that its command has, held until nothing of the run is alive.
    held: Option<HeldSlot>,
    slot: Option<Slot>,
    /// What the shim was told of its lease, and whether it has one.
    told: Told,
    leased: bool,
    /// Whoever waits until this run can be left, as long as it is being launched.
    keeping: Option<Kept>,
    progress: Progress,
    /// What people are told while the run can't be reached.
    out_of_reach: Option<RunComplaint>,
    watched: WatchedRun,
    /// Every line about the run stands in it.
    span: tracing::Span,
}

/// What a shim was told last of its lease by this actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Lease(Option<LeaseUntil>),
}

/// What a command said last about itself, on its way to the store: one note at a time, so that none pile up there.
enum Progress {
    Written,
    OnItsWay,
    /// One is on its way, and this has been said since.
    Waiting(ProgressNote),
}

impl Actor for JobActor {
    type Msg = JobMessage;
    type State = JobState;
    type Arguments = JobArgs;

    async fn pre_start(&self, _myself: ActorRef<Self::Msg>, args: JobArgs) -> Result<JobState, ActorProcessingErr> {
        let watched = args.shared.metrics.watch_run(&args.flow.flow);
        let held = args.shared.slots.own(&args.run.token, args.run.job, args.run.attempt);
        let span = tracing::info_span!(
            parent: None,
            "run",
            job = args.run.job.0,
            r#type = %args.flow.flow,
            attempt = args.run.attempt.0,
            run_token = %args.run.token,
        );
        Ok(JobState {
            args,
            phase: RunPhase::Launching,
            control: None,
            started: None,
            start_recorded: false,
            start_noted: false,
            end: None,
            heartbeat: None,
            heartbeat_restarts: RestartBudget::default(),
            spawned: Instant::now(),
            reports: None,
            since: crate::clock::boottime(),
            work: None,
            work_wait: WORK_AGAIN,
            ask: None,
            ask_wait: ASK_AGAIN,
            start_timer: None,
            heartbeat_timer: None,
            slot: held.as_ref().map(|held| held.slot().clone()),
            held,
            told: Told::Nothing,
            leased: false,
            keeping: None,
            progress: Progress::Written,
            out_of_reach: None,
            watched,
            span,
        })
    }

    async fn post_start(&self, myself: ActorRef<Self::Msg>, state: &mut JobState) -> Result<(), ActorProcessingErr> {
        state.span.clone().in_scope(|| match state.args.start.clone() {
            // One that was got ready has been started with the commit of its claim, and needs an owner whatever has come since.
            JobStart::Launch { .. } if let Some(link) = state.args.shared.launcher.released(&state.args.run.token) => {
                state.launched(&myself, Some(Ok(link)));
            }
            JobStart::Launch { waited: true, .. } => state.confirm_claim(&myself),
            JobStart::Launch { waited: false, .. } => state.launch(&myself),
            JobStart::Refuse(reason) => state.ended(&myself, RunEnd::Refused(reason)),
            JobStart::Recover { .. } => state.inspect(&myself),
        });
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: JobMessage,
        state: &mut JobState,
    ) -> Result<(), ActorProcessingErr> {
        let span = state.span.clone();
        state.handle(&myself, message).instrument(span).await
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut JobState,
    ) -> Result<(), ActorProcessingErr> {
        state.span.clone().in_scope(|| match event {
            SupervisionEvent::ActorTerminated(..) => state.heartbeat_ended(&myself, "killed"),
            SupervisionEvent::ActorFailed(_, error) => state.heartbeat_ended(&myself, &error.to_string()),
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => Ok(()),
        })
    }
}

impl JobState {
    async fn handle(&mut self, myself: &ActorRef<JobMessage>, message: JobMessage) -> Result<(), ActorProcessingErr> {
        match message {
            JobMessage::ConfirmClaim => self.confirm_claim(myself),
            JobMessage::ClaimConfirmed(answer) => self.claim_confirmed(myself, answer),
            JobMessage::Launch => self.launch(myself),
            JobMessage::Launched(launched) => self.launched(myself, launched),
            JobMessage::Inspect => self.inspect(myself),
            JobMessage::Inspected(evidence) => self.inspected(myself, evidence),
            JobMessage::Reported(report) => self.reported(myself, report),
            JobMessage::Swept(end) => self.ended(myself, end),
            JobMessage::Cancel | JobMessage::Heartbeat(HeartbeatEvent::CancelRequested) => {
                self.args.run.cancel_requested = true;
                self.step(myself, RunEvent::CancelRequested);
            }
            JobMessage::Heartbeat(HeartbeatEvent::OwnershipLost) => self.step(myself, RunEvent::OwnershipLost),
            JobMessage::Heartbeat(HeartbeatEvent::Lease(lease, kept)) => {
                self.tell_lease(lease);
                drop(kept);
            }
            JobMessage::Keep(kept) => self.keep(myself, kept).await?,
            JobMessage::RecordStart => self.record_start(myself),
            JobMessage::StartRecorded(answer) => self.start_recorded(myself, answer),
            JobMessage::RecordEnd => self.record_end(myself),
            JobMessage::ProgressRecorded => self.progress_recorded(myself),
            JobMessage::EndRecorded(answer) => self.end_recorded(myself, answer),
            JobMessage::StartHeartbeat => self.start_heartbeat(myself).await?,
            #[cfg(test)]
            JobMessage::Panic => panic!("asked to by a test"),
            #[cfg(test)]
            JobMessage::PanicHeartbeat => {
                if let Some(heartbeat) = &self.heartbeat {
                    heartbeat.cast(HeartbeatMessage::Panic)?;
                }
            }
        }
        match self.keeping.take() {
            Some(kept) => self.keep(myself, kept).await,
            None => Ok(()),
        }
    }

    /// Where the run stands.
    pub(super) fn phase(&self) -> RunPhase {
        self.phase
    }

    /// A claim whose actor had to wait may have been given up meanwhile: this launches nothing for a token that is not
    /// current.
    fn confirm_claim(&mut self, myself: &ActorRef<JobMessage>) {
        let untouched = self.terms().untouched(self.claimed_lease());
        let confirm = vec![Write::Confirm(vec![Confirm { token: self.args.run.token.clone(), untouched }])];
        self.args.shared.status.cast(StatusMessage::Write(confirm, Reply::to(myself, JobMessage::ClaimConfirmed)));
    }

    fn claim_confirmed(&mut self, myself: &ActorRef<JobMessage>, answer: Option<Vec<Written>>) {
        match answer.as_deref() {
            None => self.ask_again(myself, JobMessage::ConfirmClaim),
            Some([Written::Confirmed(current)])
                if let Some(run) = current.iter().find(|run| run.token == self.args.run.token) =>
            {
                if run.written
                    && let JobStart::Launch { begun: Some(begun), .. } = &mut self.args.start
                {
                    *begun = run.begun;
                }
                self.launch(myself);
            }
            Some(_) => {
                tracing::warn!("a claim was outdated before its launch");
                self.release();
                self.phase = RunPhase::Closed;
                myself.stop(None);
            }
        }
    }

    /// Starts the launch as a task of its own: it can't be called back, so it must outlive this actor.
    fn launch(&mut self, myself: &ActorRef<JobMessage>) {
        if self.args.run.cancel_requested {
            return self.ended(myself, RunEnd::CancelledBeforeStart);
        }
        let guard = self.args.shared.launches.enter(self.args.run.token.clone());
        let (launcher, readying) = (Arc::clone(&self.args.shared.launcher), self.args.shared.readying.clone());
        let spec = self.command_spec();
        self.leased = spec.lease.is_some();
        // A panic in there drops it, which answers `None`; the guard, declared after it, is dropped first.
        let launched = Reply::to(myself, JobMessage::Launched);
        tokio::spawn(
            async move {
                let launched = launched;
                let guard = guard;
                // What was not ready at the commit of its claim is released once it is.
                readying.settled(&spec.token).await;
                let result = match launcher.released(&spec.token) {
                    Some(link) => Ok(link),
                    None => launcher.launch(spec).await,
                };
                // Over before anybody hears of it: whoever inspects the run from here on sees what there is to see.
                drop(guard);
                launched.send(result);
            }
            .in_current_span(),
        );
    }

    fn launched(&mut self, myself: &ActorRef<JobMessage>, launched: Option<Result<RunLink, process::Error>>) {
        match launched {
            Some(Ok(link)) => {
                self.args.shared.health.launching(&self.args.flow.flow, None);
                // It may be large, and the run may take days.
                self.args.run.payload = None;
                self.watch(myself, link);
            }
            // Whatever was started, if anything was, has left its trace there.
            None | Some(Err(process::Error::AlreadyExists { .. })) => self.again(myself, JobMessage::Inspect),
            // A fault of this service or its machine (a full disk, no more processes), not of the job: its slot is
            // held, so that it does not cost the rest of the queue as well, until it is launched or cancelled.
            Some(Err(error)) => {
                let error = ErrorChain(&error).to_string();
                self.args.shared.metrics.launch_failed(&self.args.flow.flow);
                tracing::error!(error, "a command can't be launched; will try again");
                self.args.shared.health.launching(&self.args.flow.flow, Some(error));
                match self.phase {
                    RunPhase::Cancelling | RunPhase::Stopping => self.ended(myself, RunEnd::CancelledBeforeStart),
                    RunPhase::Fenced => self.ended(myself, RunEnd::NeverStarted),
                    RunPhase::Launching | RunPhase::Running | RunPhase::Settling | RunPhase::Closed => {
                        self.launch_again(myself);
                    }
                }
            }
        }
    }

    /// Tries once more later, while the job's time is not up.
    fn launch_again(&mut self, myself: &ActorRef<JobMessage>) {
        if self.command_spec().time_limit.is_zero() {
            let timeout = humantime::format_duration(self.args.flow.schedule_to_close_timeout);
            let reason =
                format!("timed out: schedule_to_close_timeout ({timeout}) passed before the command could be launched");
            return self.ended(myself, RunEnd::Refused(reason));
        }
        // By then the claim may be another worker's.
        self.again(myself, JobMessage::ConfirmClaim);
    }

    /// Has this done after a wait that grows from time to time.
    fn again(&mut self, myself: &ActorRef<JobMessage>, what: JobMessage) {
        self.work = Some(after(myself, self.work_wait, || what));
        self.work_wait = longer(self.work_wait);
    }

    fn command_spec(&self) -> CommandSpec {
        self.args.command_spec(self.slot.clone(), self.elapsed())
    }

    fn elapsed(&self) -> Duration {
        crate::clock::boottime().saturating_sub(self.since)
    }

    fn terms(&self) -> LeaseTerms {
        self.args.flow.lease_terms()
    }

    fn claimed_lease(&self) -> Lease {
        if let JobStart::Launch { lease, .. } = self.args.start { lease } else { Lease::Long }
    }

    fn tell_lease(&mut self, lease: Option<LeaseUntil>) {
        self.told = Told::Lease(lease);
        if lease.is_none() {
            self.leased = false;
        }
        if let Some(control) = &self.control {
            control.lease(lease);
        }
    }

    /// The shim has said until when it lets its command run. What answers an earlier word than the last one counts for nothing.
    fn lease_acknowledged(&mut self, until: Duration) {
        match self.told {
            // One that has been adopted.
            Told::Nothing => self.leased = true,
            Told::Lease(Some(lease)) if lease.until.as_millis() == until.as_millis() => {
                self.leased = true;
                if let Some(heartbeat) = &self.heartbeat
                    && heartbeat.cast(HeartbeatMessage::Leased).is_err()
                {
                    tracing::debug!("a heartbeat ended before it heard of its lease");
                }
            }
            Told::Lease(_) => {}
        }
    }

    /// Has the run's lease made long enough for a service that is away for a while, where it has one, and its start written.
    async fn keep(&mut self, myself: &ActorRef<JobMessage>, kept: Kept) -> Result<(), ActorProcessingErr> {
        if self.phase == RunPhase::Launching {
            // Whether it has one, and of what, turns out once it runs; or it has nothing to keep.
            self.keeping = Some(kept);
            return Ok(());
        }
        if self.start_timer.take().is_some_and(|timer| !timer.is_finished()) {
            self.record_start(myself);
        }
        self.heartbeat_timer = None;
        if self.heartbeat.is_none() && self.leased {
            self.start_heartbeat(myself).await?;
        }
        if let Some(heartbeat) = &self.heartbeat {
            heartbeat.cast(HeartbeatMessage::Leave(kept))?;
        }
        Ok(())
    }

    fn schedule_deadline(&self) -> Timestamp {
        self.args.run.schedule_time.plus(self.args.flow.schedule_to_close_timeout)
    }

    fn inspect(&mut self, myself: &ActorRef<JobMessage>) {
        let shared = Arc::clone(&self.args.shared);
        let (myself, run) = (myself.clone(), self.args.run.clone());
        self.work = Some(AbortOnDrop::spawn(
            async move {
                shared.launches.settled(&run.token).await;
                shared.readying.settled(&run.token).await;
                let launcher = Arc::clone(&shared.launcher);
                let inspection = tokio::spawn(async move { evidence_of(launcher.as_ref(), &run).await });
                if myself.cast(JobMessage::Inspected(inspection.await.ok())).is_err() {
                    tracing::debug!("an inspection outlived its JobActor");
                }
            }
            .in_current_span(),
        ));
    }

    fn inspected(&mut self, myself: &ActorRef<JobMessage>, evidence: Option<Result<Evidence, process::Error>>) {
        let verdict = match evidence {
            Some(Ok(Evidence::Alive(link))) => {
                self.watch(myself, link);
                RecoveryVerdict::Reattached
            }
            Some(Ok(Evidence::Finished(verdict))) => {
                self.ended(myself, RunEnd::Ended(verdict));
                RecoveryVerdict::FinishedWhileAway
            }
            Some(Ok(Evidence::SpawnFailed(reason))) => {
                self.ended(myself, RunEnd::SpawnFailed(reason));
                RecoveryVerdict::FinishedWhileAway
            }
            Some(Ok(Evidence::NeverStarted))
                if self.started.is_some() || self.args.run.status == JobStatus::Progress =>
            {
                // The store knows that it started, so whoever took the run directory away can't make that undone.
                self.sweep(myself, "its run directory is gone, so nobody can say how its command ended".to_owned());
                RecoveryVerdict::Lost
            }
            // Launched a moment ago: its helper or shim died, or the machine had nothing to start it with (the journal says
            // which). The slot is held for a while, or it would be claimed and fail again a hundred times a second.
            Some(Ok(Evidence::NeverStarted)) if matches!(self.args.start, JobStart::Launch { .. }) => {
                let error = "its command was not started: no process, memory or descriptor was to be had, or its helper was killed";
                self.args.shared.metrics.launch_failed(&self.args.flow.flow);
                self.args.shared.health.launching(&self.args.flow.flow, Some(error.to_owned()));
                tracing::error!("{error}; it is claimed again");
                self.work = Some(after(myself, NEVER_STARTED_WAIT, || JobMessage::Swept(RunEnd::NeverStarted)));
                return;
            }
            Some(Ok(Evidence::NeverStarted)) => {
                self.ended(myself, RunEnd::NeverStarted);
                RecoveryVerdict::NeverStarted
            }
            Some(Ok(Evidence::Gone { reason })) => {
                self.sweep(myself, reason);
                RecoveryVerdict::Lost
            }
            Some(Err(error)) => return self.inspect_again(myself, &ErrorChain(&error).to_string()),
            None => return self.inspect_again(myself, "the inspection panicked"),
        };
        if !matches!(self.args.start, JobStart::Recover { .. }) {
            return;
        }
        self.args.shared.metrics.recovered(&self.args.flow.flow, verdict);
        tracing::info!(verdict = verdict.as_str(), "an open run without an owner was looked into");
    }

    fn inspect_again(&mut self, myself: &ActorRef<JobMessage>, why: &str) {
        tracing::error!(why, "can't find out what became of a run; will look again");
        self.again(myself, JobMessage::Inspect);
    }

    /// Listens to the shim, and passes on what was asked of the run before there was one.
    fn watch(&mut self, myself: &ActorRef<JobMessage>, link: RunLink) {
        let RunLink { mut reports, control } = link;
        match self.phase {
            RunPhase::Cancelling | RunPhase::Stopping => control.stop(),
            RunPhase::Fenced => control.stop_now(),
            RunPhase::Launching | RunPhase::Running | RunPhase::Settling | RunPhase::Closed => {}
        }
        if let Told::Lease(lease) = self.told {
            control.lease(lease);
        }
        self.control = Some(control);
        let listener = myself.clone();
        self.reports = Some(AbortOnDrop::spawn(async move {
            while let Some(report) = reports.recv().await {
                if listener.cast(JobMessage::Reported(report)).is_err() {
                    return;
                }
            }
        }));
        if self.args.run.cancel_requested {
            self.step(myself, RunEvent::CancelRequested);
        }
    }

    fn reported(&mut self, myself: &ActorRef<JobMessage>, report: RunReport) {
        match report {
            RunReport::Started { pid, started_time } => {
                self.started = Some((pid, started_time));
                let left = self.schedule_deadline().since(started_time);
                self.watched.started(started_time, self.args.flow.start_to_close_timeout.min(left));
                self.step(myself, RunEvent::Started);
            }
            RunReport::SpawnFailed { reason } => self.ended(myself, RunEnd::SpawnFailed(reason)),
            RunReport::Progress { progress, status_message } => {
                self.record_progress(
                    myself,
                    ProgressNote { token: self.args.run.token.clone(), progress, status_message },
                );
            }
            RunReport::NotDying { reason } => {
                tracing::error!(reason, "processes of a run outlive SIGKILL; the run has not ended");
            }
            RunReport::OutOfReach { reason } => {
                tracing::warn!(reason, "a run does not answer, or not do what it is asked; it is tried further");
                let (job, flow) = (self.args.run.job, &self.args.flow.flow);
                let sentence = format!("the run of job {job} of flow {flow} does not answer: {reason}");
                self.out_of_reach = Some(self.args.shared.health.about_run(sentence));
            }
            RunReport::WithinReach => {
                tracing::info!("a run answers again");
                self.out_of_reach = None;
            }
            RunReport::Leased { until } => self.lease_acknowledged(until),
            RunReport::Ended(verdict) => self.ended(myself, RunEnd::Ended(verdict)),
            RunReport::LinkLost { reason } => {
                tracing::warn!(reason, "a run's shim is gone");
                self.out_of_reach = None;
                self.inspect(myself);
            }
        }
    }

    fn record_progress(&mut self, myself: &ActorRef<JobMessage>, note: ProgressNote) {
        self.progress = match self.progress {
            Progress::Written => {
                // An answer of `None` counts as written too: the next note says more, and the last one comes again
                // where a successor takes the run over.
                let reply = Reply::to(myself, |_| JobMessage::ProgressRecorded);
                self.args.shared.status.cast(StatusMessage::Write(vec![Write::Progress(note)], reply));
                Progress::OnItsWay
            }
            Progress::OnItsWay | Progress::Waiting(_) => Progress::Waiting(note),
        };
    }

    fn progress_recorded(&mut self, myself: &ActorRef<JobMessage>) {
        if let Progress::Waiting(note) = std::mem::replace(&mut self.progress, Progress::Written) {
            self.record_progress(myself, note);
        }
    }

    /// Kills what a run without a shim has left alive, and has its `cancel_command` end what is elsewhere; only then has it
    /// ended.
    fn sweep(&mut self, myself: &ActorRef<JobMessage>, reason: String) {
        let (launcher, token) = (Arc::clone(&self.args.shared.launcher), self.args.run.token.clone());
        let elsewhere = self.args.flow.cancel_command.is_some().then(|| self.command_spec());
        let myself = myself.clone();
        let (health, job) = (self.args.shared.health.clone(), self.args.run.job);
        self.work = Some(AbortOnDrop::spawn(async move {
            // As long as anything of it lives, or may live, the run is not over: nothing else is started in its place.
            let mut complaint = None;
            loop {
                match launcher.remove_leftovers(token.clone()).await {
                    Ok(0) => break,
                    Ok(killed) => tracing::warn!(killed, "killed what a lost run had left alive"),
                    Err(error) => {
                        tracing::error!(error = %ErrorChain(&error), "can't clean up after a lost run; will try again");
                        let sentence = format!("a run of job {job} is lost, and {}", ErrorChain(&error));
                        complaint = Some(health.about_run(sentence));
                        tokio::time::sleep(WORK_AGAIN).await;
                    }
                }
            }
            drop(complaint);
            let reason = match elsewhere {
                None => reason,
                // Once: that it fails may as well mean that nothing is there to be ended.
                Some(spec) => match launcher.clean_up(spec).await {
                    Ok(()) => format!("{reason}; its cancel_command was run"),
                    Err(why) => {
                        tracing::error!(why, "the cancel_command of a lost run did not end well");
                        format!("{reason}; its cancel_command {why}")
                    }
                },
            };
            if myself.cast(JobMessage::Swept(RunEnd::Lost(reason))).is_err() {
                tracing::debug!("a sweep outlived its JobActor");
            }
        }.in_current_span()));
    }

    fn ended(&mut self, myself: &ActorRef<JobMessage>, end: RunEnd) {
        // Before the end is written, so that the claim which goes with that finds it free.
        self.release();
        self.out_of_reach = None;
        let now = self.args.shared.clock.now();
        if matches!(end, RunEnd::CancelledBeforeStart | RunEnd::Refused(_)) {
            // Whatever kept it from being launched: nobody tries any more, and the next job will say so itself.
            self.args.shared.health.launching(&self.args.flow.flow, None);
        }
        if let RunEnd::Ended(verdict) = &end {
            // A command that ended has started, whether or not anybody was there to hear of it.
            self.started.get_or_insert((verdict.pid, verdict.started_time));
        }
        let context = RunContext {
            attempt: Attempt(self.args.run.attempt.0.saturating_sub(self.args.run.attempts_before)),
            maximum_attempts: self.args.run.maximum_attempts,
            jitter: Jitter::of(&self.args.run.token),
            retry: &self.args.flow.retry,
            cancel_requested: self.args.run.cancel_requested,
            start_to_close_timeout: self.args.flow.start_to_close_timeout,
            schedule_deadline: self.schedule_deadline(),
        };
        // Whether there is time for another attempt is a matter of the database's clock.
        let conclusion = conclude(&end, &context, self.args.database_time(self.elapsed()));
        self.end = Some((end, conclusion, now));
        self.step(myself, RunEvent::Ended);
    }

    /// Nothing of the run is alive, or nothing of it has been started.
    fn release(&mut self) {
        if let Some(held) = self.held.take() {
            held.release();
        }
    }

    fn step(&mut self, myself: &ActorRef<JobMessage>, event: RunEvent) {
        let (phase, order) = self.phase.step(event);
        self.phase = phase;
        match order {
            None => {}
            Some(RunOrder::RecordStart) => {
                self.start_timer = Some(after(myself, START_HELD, || JobMessage::RecordStart));
                self.note_dispatch();
                self.heartbeat_timer = Some(after(myself, FIRST_HEARTBEAT, || JobMessage::StartHeartbeat));
            }
            Some(RunOrder::Stop) => {
                if let Some(control) = &self.control {
                    control.stop();
                }
            }
            Some(RunOrder::StopNow) => {
                tracing::warn!(
                    "this run is no longer current in the store; its command is killed and nothing is written about it"
                );
                if let Some(control) = &self.control {
                    control.stop_now();
                }
            }
            Some(RunOrder::Settle) => {
                if let Some(end) = self.pending_end(myself) {
                    (self.args.settle)(end);
                }
            }
            Some(RunOrder::Leave) => myself.stop(None),
        }
    }

    fn ask_again(&mut self, myself: &ActorRef<JobMessage>, what: JobMessage) {
        self.ask = Some(after(myself, self.ask_wait, || what));
        self.ask_wait = longer(self.ask_wait);
    }

    async fn start_heartbeat(&mut self, myself: &ActorRef<JobMessage>) -> Result<(), ActorProcessingErr> {
        if !matches!(self.phase, RunPhase::Running | RunPhase::Stopping) {
            return Ok(());
        }
        let parent = myself.clone();
        let args = HeartbeatArgs {
            token: self.args.run.token.clone(),
            flow: self.args.flow.flow.clone(),
            terms: self.terms(),
            leasing: if self.leased { Leasing::Short } else { Leasing::Long },
            status: self.args.shared.status.clone(),
            metrics: Arc::clone(&self.args.shared.metrics),
            span: self.span.clone(),
            parent: Arc::new(move |event| {
                if parent.cast(JobMessage::Heartbeat(event)).is_err() {
                    tracing::debug!("a heartbeat outlived its JobActor");
                }
            }),
        };
        let actor = self.args.shared.tree.watch(Role::Heartbeat, Some(&self.args.flow.flow), HeartbeatActor);
        let (heartbeat, _) = Watched::spawn_linked(None, actor, args, myself.get_cell()).await?;
        self.heartbeat = Some(heartbeat);
        Ok(())
    }

    fn heartbeat_ended(&mut self, myself: &ActorRef<JobMessage>, why: &str) -> Result<(), ActorProcessingErr> {
        self.heartbeat = None;
        if !matches!(self.phase, RunPhase::Running | RunPhase::Stopping) {
            return Ok(());
        }
        match self.heartbeat_restarts.on_failure(&HEARTBEAT_RESTARTS, self.spawned.elapsed()) {
            RestartDecision::After(wait) => {
                tracing::error!(why, "a HeartbeatActor ended and is started again");
                self.args.shared.metrics.actor_restarted(Role::Heartbeat);
                self.heartbeat_timer = Some(after(myself, wait, || JobMessage::StartHeartbeat));
                Ok(())
            }
            RestartDecision::GiveUp => Err(format!("the HeartbeatActor keeps failing: {why}").into()),
        }
    }
}

/// What became of a run. That its command never started is believed only where nothing of it is alive: somebody may have
/// removed the run directory under it.
async fn evidence_of(launcher: &dyn Launcher, run: &OwnedRun) -> Result<Evidence, process::Error> {
    let evidence = launcher.inspect(run.job, run.attempt, run.token.clone()).await?;
    if !matches!(evidence, Evidence::NeverStarted) || launcher.remove_leftovers(run.token.clone()).await? == 0 {
        return Ok(evidence);
    }
    Ok(Evidence::Gone { reason: "its run directory was removed while its command was alive".to_owned() })
}

/// The wait after one that was not long enough.
fn longer(wait: Duration) -> Duration {
    (wait * 2).min(LONGEST_WAIT)
}
