//! DispatcherActor: claims a flow's due rows and starts a JobActor for each; one mailbox, one claim at a time.
//!
//! Started by the flow, and again after a failure. It first has the flow's unowned runs settled, and claims nothing
//! until that is done: a claim whose answer died with the last dispatcher is among them. How many runs are open is
//! the store's to count, within the claim, so a sequential flow stays sequential whatever this actor has forgotten.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr};
use tokio::sync::watch;
use tokio::time::Instant;

use super::gathering::{Gathering, PATIENCE};
use super::job::{JobActor, JobArgs, JobMessage, JobStart, OwnedRun};
use super::job_supervisor::JobSupervisorMessage;
use super::status::{Pending, StatusMessage};
use super::{AbortOnDrop, Port, Reply, Shared, Transition, Upward, Watched, after};
use crate::clock;
use crate::config::FlowConfig;
use crate::domain::admission::{Request, admit};
use crate::domain::retry::Jitter;
use crate::domain::run::{Conclusion, Next, RunContext, RunEnd, conclude};
use crate::domain::trace::JobTrace;
use crate::domain::{Attempt, JobId, JobStatus, Outcome, RunToken, Timestamp};
use crate::metrics::{RecoveryVerdict, Role};
use crate::process::{self, CommandSpec};
use crate::store::{Claim, Claimed, ClaimedJob, DISOWNED, FailedWaiter, LapsedRun, Settlement, Write, Written};

/// The most rows that one claim asks for, so that its transaction stays short.
const LARGEST_CLAIM: u32 = 64;
/// The largest payload that is written before the claim of its job counts, in bytes.
const LARGEST_AHEAD: usize = 64 * 1024;
/// The wait before a claim or a recovery that was not answered is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// The longest of these waits; each is twice the one before.
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// The first wait before a job whose last JobActor has not quite left gets its next; twice as long each time, at most
/// [`LONGEST_SPAWN_WAIT`].
const SPAWN_AGAIN: Duration = Duration::from_millis(5);
const LONGEST_SPAWN_WAIT: Duration = Duration::from_secs(1);
/// How long a worker leaves what is more than its share of a flow to others that may be idle.
const OTHERS_FIRST: Duration = Duration::from_millis(100);
/// No timer sleeps longer; the scheduler's tick comes sooner anyway.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// The claimer of one flow.
pub struct DispatcherActor;

/// What a DispatcherActor is told.
pub enum DispatcherMessage {
    /// There may be work.
    Wake,
    /// Every unowned run of the flow has a JobActor, or `None` where recovery died over it.
    Recovered(Option<()>),
    /// Ask for recovery (again).
    Recover,
    /// The store's answer to a claim, and how many ends had been answered by then.
    Claimed(Option<Vec<Written>>, u64),
    /// Send the claim (again).
    Claim,
    /// Write the end of a run; its slot is free with that, so the next claim goes into the same transaction.
    Settle(Pending),
    /// The ends that are held have waited for others long enough.
    Gathered,
    /// The store's answer to the takeover of a run, and what was to become of its job.
    TakenOver(Box<(LapsedRun, Next)>, Option<Vec<Written>>),
    /// Start this run's JobActor (again), after so long a wait.
    Start(Box<JobArgs>, Duration),
    /// The flow's settings are these from now on; runs that have been claimed keep those that they were claimed with.
    Reconfigure(Arc<FlowConfig>),
    /// Claim nothing from here on; answered once no claim is under way.
    StopClaiming(Reply<()>),
    /// Fail in the way that a test asks for.
    #[cfg(test)]
    Panic,
}

/// What a DispatcherActor tells its flow.
pub enum DispatcherEvent {
    /// It wants the flow's unowned runs settled, and to be told when that is done.
    WantsRecovery(Reply<()>),
}

/// What a DispatcherActor is started with.
#[derive(Clone)]
pub struct DispatcherArgs {
    /// What all actors share.
    pub shared: Arc<Shared>,
    /// The flow.
    pub flow: Arc<FlowConfig>,
    /// How it is found.
    pub port: Port<DispatcherMessage>,
    /// The parent of the JobActors.
    pub jobs: ActorRef<JobSupervisorMessage>,
    /// Whether it claims; a flow that is no longer configured only finishes what runs.
    pub claims: bool,
    /// The flow's ear.
    pub parent: Upward<DispatcherEvent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Recovering,
    Idle,
    Claiming,
}

/// What a DispatcherActor knows.
pub struct DispatcherState {
    args: DispatcherArgs,
    phase: Phase,
    /// Whether it takes no rows any more; what is to be cancelled it still looks for.
    stopped: bool,
    woken: bool,
    /// Ends of runs that it has not passed on yet.
    gathering: Gathering,
    /// Ends their wait for others.
    gathered: Option<AbortOnDrop>,
    /// How many ends of runs it was given, and how many of them are committed or were given back.
    ends: u64,
    ended: Arc<AtomicU64>,
    noticed: Instant,
    tokens: Vec<RunToken>,
    /// The settings that the claim under way was made with; what it brings is run with them.
    claiming: Arc<FlowConfig>,
    /// How many runs it leaves room for that are none to the database.
    strays: u32,
    /// Tells of slots that were given back since the claim was made.
    freed: watch::Receiver<()>,
    wait_for_slot: Option<AbortOnDrop>,
    /// Since when there has been work for more than this worker's share, which is the others' first.
    held_back: Option<Instant>,
    wait_for_others: Option<AbortOnDrop>,
    stop_replies: Vec<Reply<()>>,
    timer: Option<AbortOnDrop>,
    retry: Option<AbortOnDrop>,
    retry_wait: Duration,
    spawn_again: Vec<AbortOnDrop>,
}

/// What makes runs of the rows that a claim brings.
struct Claims {
    shared: Arc<Shared>,
    flow: Arc<FlowConfig>,
    port: Port<DispatcherMessage>,
    noticed: Instant,
}

impl Claims {
    /// Whether a row's command may start as soon as the claim is committed. Where an earlier run of the job has an actor, its
    /// command may be alive, whatever the row says: then the next one waits until that actor has left.
    fn may_go_ahead(&self, job: &ClaimedJob) -> bool {
        let is_small = |payload: &Vec<u8>| payload.len() <= LARGEST_AHEAD;
        let is_handy = job.payload.as_ref().is_ok_and(|payload| payload.as_ref().is_none_or(is_small));
        is_handy
            && self.flow.slots.is_none()
            && ractor::registry::where_is(self.flow.flow.workflow_id(job.id)).is_none()
    }

    fn job_args(&self, job: ClaimedJob, claimed: &Claimed) -> JobArgs {
        let (flow, now) = (&self.flow, claimed.now);
        let request = Request {
            identifier: job.identifier.as_deref().map_err(|unreadable| unreadable.0.as_str()),
            payload: job.payload.as_ref().map(|_| ()).map_err(|unreadable| unreadable.0.as_str()),
            schedule_deadline: job.schedule_time.plus(flow.schedule_to_close_timeout),
        };
        let start = match admit(request, &flow.identifier_pattern, now) {
            Ok(()) => JobStart::Launch {
                noticed: self.noticed,
                claimed: now,
                waited: false,
                begun: claimed.begun,
                lease: claimed.lease,
            },
            Err(reason) => JobStart::Refuse(reason),
        };
        JobArgs {
            shared: Arc::clone(&self.shared),
            flow: Arc::clone(flow),
            run: OwnedRun {
                job: job.id,
                token: job.token,
                attempt: job.attempt,
                status: JobStatus::InQueue,
                identifier: job.identifier.unwrap_or_default(),
                payload: job.payload.unwrap_or_default(),
                attempts_before: job.attempts_before,
                maximum_attempts: job.maximum_attempts.unwrap_or_else(|| flow.retry.maximum_attempts()),
                schedule_time: job.schedule_time,
                runnable_since: job.run_at.max(job.created_time),
                trace: JobTrace::of(job.id, job.created_time, job.trace),
                created_time: job.created_time,
                claimed_time: now,
                cancel_requested: job.cancel_requested,
            },
            start,
            settle: settle_through(&self.port),
            slot_freed: wake_through(&self.port),
        }
    }
}

impl Actor for DispatcherActor {
    type Msg = DispatcherMessage;
    type State = DispatcherState;
    type Arguments = DispatcherArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: DispatcherArgs,
    ) -> Result<DispatcherState, ActorProcessingErr> {
        args.port.connect(myself, args.shared.metrics.mailbox(Role::Dispatcher));
        let (claiming, freed) = (Arc::clone(&args.flow), args.shared.slots.freed());
        Ok(DispatcherState {
            args,
            phase: Phase::Recovering,
            stopped: false,
            woken: true,
            gathering: Gathering::default(),
            gathered: None,
            ends: 0,
            ended: Arc::default(),
            noticed: Instant::now(),
            tokens: Vec::new(),
            claiming,
            strays: 0,
            freed,
            wait_for_slot: None,
            held_back: None,
            wait_for_others: None,
            stop_replies: Vec::new(),
            timer: None,
            retry: None,
            retry_wait: ASK_AGAIN,
            spawn_again: Vec::new(),
        })
    }

    async fn post_start(
        &self,
        myself: ActorRef<Self::Msg>,
        state: &mut DispatcherState,
    ) -> Result<(), ActorProcessingErr> {
        state.recover(&myself);
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: DispatcherMessage,
        state: &mut DispatcherState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DispatcherMessage::Wake => {
                state.args.port.taken();
                state.wake(&myself)?;
            }
            DispatcherMessage::Settle(end) => {
                state.args.port.taken();
                state.settle(&myself, end)?;
            }
            DispatcherMessage::Gathered => {
                state.gathered = None;
                if state.phase == Phase::Idle && !state.gathering.is_empty() {
                    state.wake(&myself)?;
                }
            }
            DispatcherMessage::Recover => state.recover(&myself),
            DispatcherMessage::Recovered(None) => {
                state.again(&myself, DispatcherMessage::Recover);
            }
            DispatcherMessage::Recovered(Some(())) => {
                if state.phase == Phase::Recovering {
                    state.phase = Phase::Idle;
                    state.args.shared.slots.give_back_of(&state.args.flow.flow);
                }
                state.wake(&myself)?;
            }
            DispatcherMessage::Claim => state.claim(&myself),
            DispatcherMessage::Claimed(None, _) => {
                state.pass_on(Vec::new());
                // The claim may have been committed all the same: asked again with the same tokens, it brings the same rows.
                state.again(&myself, DispatcherMessage::Claim);
            }
            DispatcherMessage::Claimed(Some(answers), seen) => {
                state.retry_wait = ASK_AGAIN;
                for answer in answers {
                    if let Written::Claimed(claimed) = answer {
                        state.claimed(&myself, *claimed).await?;
                    }
                }
                state.claim_over(&myself, seen)?;
            }
            DispatcherMessage::TakenOver(taken, answer) => {
                let (run, next) = *taken;
                state.taken_over(&run, next, answer.as_deref());
                state.wake(&myself)?;
            }
            DispatcherMessage::Start(job, waited) => state.start(&myself, job, waited).await?,
            DispatcherMessage::Reconfigure(flow) => {
                state.args.port.taken();
                state.args.flow = flow;
                // There may be more room now; where a claim is under way with the old settings, there is another after it.
                state.wake(&myself)?;
            }
            DispatcherMessage::StopClaiming(reply) => {
                state.args.port.taken();
                state.stop_replies.push(reply);
                if state.phase != Phase::Claiming {
                    state.stop_claiming();
                }
            }
            #[cfg(test)]
            DispatcherMessage::Panic => panic!("asked to by a test"),
        }
        Ok(())
    }
}

impl DispatcherState {
    fn recover(&mut self, myself: &ActorRef<DispatcherMessage>) {
        (self.args.parent)(DispatcherEvent::WantsRecovery(Reply::to(myself, DispatcherMessage::Recovered)));
    }

    fn again(&mut self, myself: &ActorRef<DispatcherMessage>, what: DispatcherMessage) {
        self.retry = Some(after(myself, self.retry_wait, || what));
        self.retry_wait = (self.retry_wait * 2).min(LONGEST_RETRY);
    }

    fn wake(&mut self, myself: &ActorRef<DispatcherMessage>) -> Result<(), ActorProcessingErr> {
        if self.prepare_claim()? {
            self.claim(myself);
        }
        Ok(())
    }

    fn settle(&mut self, myself: &ActorRef<DispatcherMessage>, end: Pending) -> Result<(), ActorProcessingErr> {
        let ended = Arc::clone(&self.ended);
        self.ends += 1;
        let reply = Reply::new(move |answer| {
            ended.fetch_add(1, Ordering::Release);
            match answer {
                Some(answer) => end.reply.send(answer),
                None => drop(end.reply),
            }
        });
        self.gathering.ended(Pending { writes: end.writes, reply, ahead: None });
        match self.phase {
            Phase::Idle => self.claim_once_gathered(myself)?,
            // It is written together with the claim that follows the one under way, unless that has to be asked for again.
            Phase::Claiming if !self.stopped && self.gathering.may_wait() && self.retry_wait == ASK_AGAIN => {}
            // It may share the transaction of the claim that is under way; if not, there is another after it.
            Phase::Claiming | Phase::Recovering => self.pass_on(Vec::new()),
        }
        Ok(())
    }

    /// Claims once the ends that are held, whose slots are free with that, have been joined by others that are about to come.
    fn claim_once_gathered(&mut self, myself: &ActorRef<DispatcherMessage>) -> Result<(), ActorProcessingErr> {
        if self.stopped || !self.gathering.waits(Instant::now()) {
            return self.wake(myself);
        }
        if self.gathered.is_none() {
            self.gathered = Some(after(myself, PATIENCE, || DispatcherMessage::Gathered));
        }
        Ok(())
    }

    /// Has the ends that are held written, and this with them.
    fn pass_on(&mut self, claim: Vec<Pending>) {
        self.gathered = None;
        let mut together = self.gathering.take();
        together.extend(claim);
        if !together.is_empty() {
            self.args.shared.status.cast(StatusMessage::WriteTogether(together));
        }
    }

    /// Whether a claim is to be made now; where one is under way or can't be yet, there will be another after it.
    fn prepare_claim(&mut self) -> Result<bool, ActorProcessingErr> {
        match self.phase {
            Phase::Idle => {
                self.noticed = Instant::now();
                self.woken = false;
                self.claiming = Arc::clone(&self.args.flow);
                self.strays = self.args.shared.strays.of(&self.claiming.flow);
                let most = if self.takes_rows() { self.worker_concurrency().min(LARGEST_CLAIM) } else { 0 };
                self.tokens = fresh_tokens(most)?;
                self.ask_for_slots();
                self.phase = Phase::Claiming;
                Ok(true)
            }
            Phase::Recovering | Phase::Claiming => {
                self.woken = true;
                Ok(false)
            }
        }
    }

    /// Claims no more rows than there are free slots, where each of its runs holds one.
    fn ask_for_slots(&mut self) {
        self.wait_for_slot = None;
        let (pool, flow) = (&self.args.shared.slots, &self.claiming);
        if let Some(slots) = &flow.slots {
            self.freed = pool.freed();
            self.tokens.truncate(pool.ask(&flow.flow, slots, &self.tokens));
        }
    }

    /// Gives back what is not needed; where every slot was, there may be rows for the next one that is free.
    fn settle_slots(&mut self, jobs: &[ClaimedJob]) {
        if self.claiming.slots.is_none() {
            return;
        }
        let needed = |token: &RunToken| jobs.iter().any(|job| job.token == *token);
        self.args.shared.slots.give_back(self.tokens.iter().filter(|token| !needed(token)));
        if jobs.len() == self.tokens.len() && self.takes_rows() {
            let (mut freed, port) = (self.freed.clone(), self.args.port.clone());
            self.wait_for_slot = Some(AbortOnDrop::spawn(async move {
                // Its sender lives as long as the pool, and that as long as the service.
                if freed.changed().await.is_ok() {
                    port.cast(DispatcherMessage::Wake);
                }
            }));
        }
    }

    /// What is more than this worker's share it takes only if nobody else has for a moment.
    fn leave_to_others(&mut self, held_back: bool) {
        self.wait_for_others = None;
        if !held_back {
            self.held_back = None;
        } else if self.held_back.is_none_or(|since| since.elapsed() < OTHERS_FIRST) {
            let since = *self.held_back.get_or_insert_with(Instant::now);
            let port = self.args.port.clone();
            self.wait_for_others = Some(AbortOnDrop::spawn(async move {
                tokio::time::sleep_until(since + OTHERS_FIRST).await;
                port.cast(DispatcherMessage::Wake);
            }));
        }
    }

    /// Without it a claim brings no rows, but is how running jobs that somebody wants cancelled are found at once.
    fn takes_rows(&self) -> bool {
        self.serves() && self.args.shared.labels.satisfy(&self.args.flow.requires)
    }

    /// Whether it sees to the flow's waiting rows: also where it lacks a label, since nobody else may have it.
    fn serves(&self) -> bool {
        self.args.claims && !self.stopped && !self.args.shared.draining.load(Ordering::Relaxed)
    }

    /// How many runs of the flow may be open over all workers, for the database.
    fn concurrency(&self) -> u32 {
        self.claiming.concurrency.get().saturating_sub(self.strays)
    }

    /// How many may be on this one.
    fn worker_concurrency(&self) -> u32 {
        self.claiming.worker_concurrency.get().saturating_sub(self.strays)
    }

    fn claim(&mut self, myself: &ActorRef<DispatcherMessage>) {
        let claim = self.pending_claim(myself);
        self.pass_on(vec![claim]);
    }

    fn pending_claim(&self, myself: &ActorRef<DispatcherMessage>) -> Pending {
        let claim = Write::Claim(Claim {
            flow: self.claiming.flow.clone(),
            worker: self.args.shared.worker.clone(),
            incarnation: self.args.shared.incarnation.clone(),
            concurrency: self.concurrency(),
            worker_concurrency: self.worker_concurrency(),
            requires: self.claiming.requires.clone(),
            beyond_share: self.held_back.is_some_and(|since| since.elapsed() >= OTHERS_FIRST),
            // Who stops leaves it to others to end what has waited too long.
            schedule_to_close_timeout: if self.serves() {
                self.claiming.schedule_to_close_timeout
            } else {
                Duration::MAX
            },
            terms: self.claiming.lease_terms(),
            tokens: self.tokens.clone(),
        });
        // Answered after every end in its transaction or an earlier one.
        let ended = Arc::clone(&self.ended);
        let claimed = move |answer| DispatcherMessage::Claimed(answer, ended.load(Ordering::Acquire));
        let claims = self.claims();
        let ahead = move |claimed: &Claimed| -> Vec<CommandSpec> {
            let jobs = claimed.jobs.iter().filter(|job| claims.may_go_ahead(job));
            jobs.filter_map(|job| claims.job_args(job.clone(), claimed).ahead()).collect()
        };
        Pending { writes: vec![claim], reply: Reply::to(myself, claimed), ahead: Some(Arc::new(ahead)) }
    }

    async fn claimed(
        &mut self,
        myself: &ActorRef<DispatcherMessage>,
        mut claimed: Claimed,
    ) -> Result<(), ActorProcessingErr> {
        for job in &claimed.cancelled_pending {
            self.note(*job, Attempt(0), None, JobStatus::Cancelled, "cancelled before its command was started");
        }
        for job in &claimed.disowned {
            tracing::error!(job = job.0, r#type = %self.args.flow.flow, "{DISOWNED}");
            self.args.shared.metrics.transition(&self.args.flow.flow, JobStatus::Error);
        }
        for (job, _) in &claimed.cancel_requested {
            self.cancel(*job);
        }
        self.settle_slots(&claimed.jobs);
        self.leave_to_others(claimed.held_back);
        // Where every token was used, and there is still room, there may be more at once; else the next row says when.
        let used_up = !claimed.jobs.is_empty() && claimed.jobs.len() == self.tokens.len();
        let is_full = claimed.open >= self.concurrency();
        let asked_for_all = self.tokens.len() >= usize::try_from(self.worker_concurrency()).unwrap_or(usize::MAX);
        self.woken |= used_up && !is_full && !asked_for_all;
        self.gathering.claimed(claimed.jobs.iter().map(|job| &job.token), is_full, Instant::now());
        if self.args.claims {
            for run in std::mem::take(&mut claimed.lapsed) {
                self.take_over(myself, run, claimed.now);
            }
        }
        let claims = self.claims();
        for job in std::mem::take(&mut claimed.jobs) {
            self.note(job.id, job.attempt, Some(&job.token), JobStatus::InQueue, "claimed");
            self.start(myself, Box::new(claims.job_args(job, &claimed)), Duration::ZERO).await?;
        }
        for waiter in &claimed.waited.failed {
            self.note_failed(waiter);
        }
        for (job, attempt) in &claimed.expired {
            self.note(
                *job,
                *attempt,
                None,
                JobStatus::Error,
                "timed out: schedule_to_close_timeout passed while it waited",
            );
        }
        let next = claimed.next_due.into_iter().chain(claimed.next_expiry).chain(claimed.next_lapse).min();
        self.timer = next.map(|due| {
            let wait = due.since(claimed.now).clamp(Duration::from_millis(1), LONGEST_SLEEP);
            let port = self.args.port.clone();
            AbortOnDrop::spawn(async move {
                tokio::time::sleep(wait).await;
                port.cast(DispatcherMessage::Wake);
            })
        });
        Ok(())
    }

    /// The claim that had seen so many ends is over. Each since may have left room.
    fn claim_over(&mut self, myself: &ActorRef<DispatcherMessage>, seen: u64) -> Result<(), ActorProcessingErr> {
        self.phase = Phase::Idle;
        self.tokens.clear();
        self.stop_claiming();
        if self.woken || self.ends > seen && self.gathering.is_empty() {
            self.wake(myself)
        } else if !self.gathering.is_empty() {
            self.claim_once_gathered(myself)
        } else {
            Ok(())
        }
    }

    fn stop_claiming(&mut self) {
        if self.stop_replies.is_empty() {
            return;
        }
        self.stopped = true;
        // Whoever is answered counts on it that what has ended by now is on its way to the store.
        self.pass_on(Vec::new());
        for reply in self.stop_replies.drain(..) {
            reply.send(());
        }
    }

    /// Tells a running job's actor that it is cancelled; one that has no actor is being settled by recovery, which knows.
    fn cancel(&self, job: JobId) {
        let actor = ractor::registry::where_is(self.args.flow.flow.workflow_id(job));
        if let Some(actor) = actor
            && actor.send_message(JobMessage::Cancel).is_err()
        {
            tracing::debug!(job = job.0, "a job to be cancelled has just ended");
        }
    }

    fn claims(&self) -> Claims {
        let (shared, port) = (Arc::clone(&self.args.shared), self.args.port.clone());
        Claims { shared, flow: Arc::clone(&self.claiming), port, noticed: self.noticed }
    }

    /// Settles a run as lost whose worker has not confirmed it for so long that its command has been ended wherever it was.
    fn take_over(&self, myself: &ActorRef<DispatcherMessage>, run: LapsedRun, now: Timestamp) {
        let (flow, shared) = (&self.args.flow, &self.args.shared);
        let reason = format!(
            "its worker {} has not confirmed it for so long (heartbeat_timeout is {}) that its command has been ended; \
             {} has taken the job over",
            run.worker,
            humantime::format_duration(flow.heartbeat_timeout),
            shared.worker
        );
        let context = RunContext {
            attempt: Attempt(run.attempt.0.saturating_sub(run.attempts_before)),
            maximum_attempts: run.maximum_attempts.unwrap_or_else(|| flow.retry.maximum_attempts()),
            jitter: Jitter::of(&run.token),
            retry: &flow.retry,
            cancel_requested: run.cancel_requested,
            start_to_close_timeout: flow.start_to_close_timeout,
            schedule_deadline: run.schedule_time.plus(flow.schedule_to_close_timeout),
        };
        let Conclusion { next, outcome, error, .. } = conclude(&RunEnd::Lost(reason), &context, now);
        let settlement = Settlement {
            job: run.job,
            token: run.token.clone(),
            attempt: run.attempt,
            worker: run.worker.parse().unwrap_or_else(|_| shared.worker.clone()),
            next,
            outcome,
            message: error.clone(),
            error,
            exit_code: None,
            signal: None,
            pid: None,
            started_time: None,
            completed_time: now,
            execution_ms: None,
            usage: None,
            lapsed: true,
            slot: None,
        };
        let reply = Reply::to(myself, move |answer| DispatcherMessage::TakenOver(Box::new((run, next)), answer));
        shared.status.cast(StatusMessage::Write(vec![Write::Settle(settlement)], reply));
    }

    /// A run was taken over, unless its worker has come back meanwhile; where nobody knows, the next claim looks again.
    fn taken_over(&self, run: &LapsedRun, next: Next, answer: Option<&[Written]>) {
        if !matches!(answer, Some([Written::Applied])) {
            return;
        }
        let (flow, shared) = (&self.args.flow.flow, &self.args.shared);
        shared.metrics.heartbeat_timeout(flow);
        shared.metrics.recovered(flow, RecoveryVerdict::Lost);
        shared.metrics.run_ended(flow, Outcome::Lost, Duration::ZERO, None);
        shared.note(&Transition {
            flow,
            job: run.job,
            attempt: run.attempt,
            token: Some(&run.token),
            from: run.status,
            to: next.status(),
            message: &format!("taken over from {}, which has not confirmed it for too long", run.worker),
        });
    }

    async fn start(
        &mut self,
        myself: &ActorRef<DispatcherMessage>,
        mut job: Box<JobArgs>,
        wait: Duration,
    ) -> Result<(), ActorProcessingErr> {
        self.spawn_again.retain(|timer| !timer.is_finished());
        let name = self.args.flow.flow.workflow_id(job.run.job);
        // Looked at first, since a try takes a copy of the job with its payload.
        if ractor::registry::where_is(name.clone()).is_none() {
            let actor = self.args.shared.tree.watch(Role::Job, Some(&self.args.flow.flow), JobActor);
            let args = JobArgs::clone(&job);
            match Watched::spawn_linked(Some(name), actor, args, self.args.jobs.get_cell()).await {
                Ok(_) => return Ok(()),
                Err(SpawnErr::ActorAlreadyRegistered(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // The job's last attempt has settled, or this claim could not have been, but its actor is still leaving.
        if let JobStart::Launch { waited, .. } = &mut job.start {
            *waited = true;
        }
        let wait = spawn_wait(wait);
        self.spawn_again.push(after(myself, wait, move || DispatcherMessage::Start(job, wait)));
        Ok(())
    }

    /// A job of any flow has ended because one that it waited for ended otherwise than it should.
    fn note_failed(&self, waiter: &FailedWaiter) {
        let Ok(flow) = waiter.job_type.parse() else { return };
        let (job, attempt, message) = (waiter.job, waiter.attempt, waiter.error.as_str());
        let (from, to) = (JobStatus::Pending, JobStatus::Error);
        self.args.shared.note(&Transition { flow: &flow, job, attempt, token: None, from, to, message });
    }

    fn note(&self, job: JobId, attempt: Attempt, token: Option<&RunToken>, to: JobStatus, message: &str) {
        let flow = &self.args.flow.flow;
        self.args.shared.note(&Transition { flow, job, attempt, token, from: JobStatus::Pending, to, message });
    }
}

/// The wait after one that was not long enough.
fn spawn_wait(before: Duration) -> Duration {
    (before * 2).clamp(SPAWN_AGAIN, LONGEST_SPAWN_WAIT)
}

/// How the end of a run is written: by way of its flow's dispatcher, so that the next claim shares its transaction.
pub fn settle_through(port: &Port<DispatcherMessage>) -> Upward<Pending> {
    let port = port.clone();
    // Where there is no dispatcher just now the reply is dropped, which has the JobActor write it by itself.
    Arc::new(move |end| {
        port.cast(DispatcherMessage::Settle(end));
    })
}

/// Tells a flow's dispatcher that there may be work.
pub fn wake_through(port: &Port<DispatcherMessage>) -> Upward<JobId> {
    let port = port.clone();
    Arc::new(move |_| {
        port.cast(DispatcherMessage::Wake);
    })
}

/// Each begins with milliseconds of the clock, or the number after that of the last one: eight digits, which with job and attempt
/// name a run's directory, are not given twice within seven weeks.
fn fresh_tokens(count: u32) -> Result<Vec<RunToken>, getrandom::Error> {
    static LAST: AtomicU64 = AtomicU64::new(0);
    // One question to the kernel for all of them.
    let mut random = vec![[0; 8]; usize::try_from(count).unwrap_or(0)];
    getrandom::fill(random.as_flattened_mut())?;
    let now = u64::try_from(clock::now().unix_millis()).unwrap_or_default();
    let first = |last: u64| now.max(last + 1);
    let last = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(first(last) + u64::from(count)));
    let first = first(last.unwrap_or_else(|last| last));
    let numbers = (first..).map(|number| number as u32);
    Ok(numbers.zip(random).map(|(number, random)| RunToken::new(number, random, process::boot_mark())).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_job_whose_last_actor_does_not_leave_is_tried_once_a_second_in_the_end() {
        let waits = std::iter::successors(Some(spawn_wait(Duration::ZERO)), |wait| Some(spawn_wait(*wait)));
        let waits: Vec<_> = waits.take(10).map(|wait| wait.as_millis()).collect();
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    }

    #[test]
    fn tokens_are_made_in_order_and_each_begins_unlike_the_others() {
        let tokens: Vec<RunToken> = (0..100).flat_map(|count| fresh_tokens(count % 9).unwrap()).collect();
        assert!(tokens.is_sorted());
        let beginnings: BTreeSet<&str> = tokens.iter().map(|token| &token.as_str()[..8]).collect();
        assert_eq!(beginnings.len(), tokens.len());
        let rest: BTreeSet<&str> = tokens.iter().map(|token| &token.as_str()[8..24]).collect();
        assert_eq!(rest.len(), tokens.len());
    }
}
