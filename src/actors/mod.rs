//! The supervision tree: one actor per file, each a thin shell around a decision of `domain`.
//!
//! ```text
//! RootActor
//! ├── StatusActor          every write, in group commits
//! ├── RecoveryActor        settles open runs that nobody owns
//! ├── RetentionActor       compresses the logs of ended runs, and removes old ones and old rows
//! └── FlowActor            one per job type
//!     ├── SchedulerActor   the tick
//!     ├── DispatcherActor  claims and starts; one mailbox
//!     └── JobSupervisor
//!         └── JobActor     one per run
//!             └── HeartbeatActor
//! ```
//!
//! A file imports the files before it in that story and none after: a child tells its parent through an
//! [`Upward`], and actors find each other through [`Port`]s, which outlive any one incarnation.
//!
//! What no actor here does: own a process (its shim does), hold the only copy of a fact (the store or the run
//! directory does), or wait inside a handler for a command, a retry or the database.

pub mod ahead;
pub mod dispatcher;
pub mod flow;
pub mod gathering;
mod handle;
pub mod heartbeat;
pub mod job;
pub mod job_supervisor;
pub mod recovery;
pub mod retention;
pub mod root;
pub mod scheduler;
pub mod slots;
pub mod status;
pub mod strays;
mod tree;
mod webhooks;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use ractor::{ActorRef, Message};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::domain::labels::Labels;
use crate::domain::{Attempt, FlowType, JobId, JobStatus, RunToken, WorkerId};
use crate::metrics::{MailboxGauge, Metrics};
use crate::process::{self, CommandSpec, Disk, Evidence, HeldLaunch, Processes, RunLink};
use crate::store::Store;
use crate::telemetry::Telemetry;

pub use self::handle::Handle;
use self::retention::RetentionMessage;
use self::slots::SlotPool;
use self::status::StatusMessage;
use self::strays::Strays;
pub use self::tree::{ActorSnapshot, Tree, Watched, WatchedState};

/// How a child tells its parent of an event without importing it.
pub type Upward<E> = Arc<dyn Fn(E) + Send + Sync>;

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What all actors of one service share.
pub struct Shared {
    /// The tables.
    pub store: Store,
    /// The processes.
    pub launcher: Arc<dyn Launcher>,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Where traces go.
    pub telemetry: Telemetry,
    /// Who this worker is.
    pub worker: WorkerId,
    /// Which start of it this is.
    pub incarnation: String,
    /// What it has that flows may require.
    pub labels: Labels,
    /// The way to the StatusActor.
    pub status: Port<StatusMessage>,
    /// The way to the RetentionActor.
    pub retention: Port<RetentionMessage>,
    /// Which runs are being launched at this moment.
    pub launches: Launches,
    /// Which runs are being got ready while their claims are being committed.
    pub readying: Launches,
    /// Which run holds which device of this worker.
    pub slots: SlotPool,
    /// Commands that run though the database says otherwise.
    pub strays: Strays,
    /// What `readyz` tells.
    pub health: Health,
    /// Which actors there are, for people.
    pub tree: Tree,
    /// Told whenever the tables have changed, by us or by others.
    pub changed: watch::Sender<()>,
    /// Whether the service drains or is stopping, and nothing new may be claimed; outlives any dispatcher's memory of it.
    pub draining: AtomicBool,
    /// Whether another service has this worker's name by now.
    pub displaced: AtomicBool,
    /// Who has asked this worker to drain, once somebody has.
    pub drain_requested: watch::Sender<Option<String>>,
}

/// What starts and inspects processes; a seam, so that actors can be tested without any.
pub trait Launcher: Send + Sync + 'static {
    /// Starts a run; an error means that no command was or will be started.
    fn launch(&self, spec: CommandSpec) -> BoxFuture<'_, Result<RunLink, process::Error>>;
    /// Has everything of a run ready but its command; `None` where it is to be launched like any other. Blocks.
    fn hold(&self, spec: &CommandSpec) -> Option<Box<dyn HeldRun>>;
    /// A run that was held and has been released since, to the first who asks.
    fn released(&self, token: &RunToken) -> Option<RunLink>;
    /// Finds out what became of a run whose owner is gone.
    fn inspect(&self, job: JobId, attempt: Attempt, token: RunToken)
    -> BoxFuture<'_, Result<Evidence, process::Error>>;
    /// Whether nothing of a run is alive any more.
    fn is_over(&self, job: JobId, attempt: Attempt, token: RunToken) -> BoxFuture<'_, Result<bool, process::Error>>;
    /// Where a run's files are.
    fn run_dir(&self, job: JobId, attempt: Attempt, token: &RunToken) -> PathBuf;
    /// Kills what a run left alive whose shim is gone, and says how many processes that were; an error where any lives on, or
    /// nobody can tell.
    fn remove_leftovers(&self, token: RunToken) -> BoxFuture<'_, Result<usize, process::Error>>;
    /// Ends elsewhere what a run without a shim may have left there; an error follows "its cancel_command".
    fn clean_up(&self, spec: CommandSpec) -> BoxFuture<'_, Result<(), String>>;
    /// How full the disk of the runs is. Blocks for as long as the file system takes.
    fn disk(&self) -> Result<Disk, process::Error>;
}

/// A run of which everything is ready but its command; given up where it is dropped.
pub trait HeldRun: Send {
    /// Has the command started.
    fn release(self: Box<Self>);
    /// Has nothing started, ever. Blocks.
    fn give_up(self: Box<Self>);
}

impl HeldRun for HeldLaunch {
    fn release(self: Box<Self>) {
        (*self).release();
    }

    fn give_up(self: Box<Self>) {
        (*self).give_up();
    }
}

impl Launcher for Processes {
    fn launch(&self, spec: CommandSpec) -> BoxFuture<'_, Result<RunLink, process::Error>> {
        Box::pin(self.launch(spec))
    }

    fn hold(&self, spec: &CommandSpec) -> Option<Box<dyn HeldRun>> {
        self.hold(spec).map(|held| Box::new(held) as Box<dyn HeldRun>)
    }

    fn released(&self, token: &RunToken) -> Option<RunLink> {
        self.released(token)
    }

    fn inspect(
        &self,
        job: JobId,
        attempt: Attempt,
        token: RunToken,
    ) -> BoxFuture<'_, Result<Evidence, process::Error>> {
        Box::pin(async move { self.inspect(job, attempt, &token).await })
    }

    fn is_over(&self, job: JobId, attempt: Attempt, token: RunToken) -> BoxFuture<'_, Result<bool, process::Error>> {
        Box::pin(async move { self.is_over(job, attempt, &token).await })
    }

    fn run_dir(&self, job: JobId, attempt: Attempt, token: &RunToken) -> PathBuf {
        self.run_dir(job, attempt, token)
    }

    fn remove_leftovers(&self, token: RunToken) -> BoxFuture<'_, Result<usize, process::Error>> {
        Box::pin(async move { self.remove_leftovers(&token).await })
    }

    fn clean_up(&self, spec: CommandSpec) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.clean_up(spec))
    }

    fn disk(&self) -> Result<Disk, process::Error> {
        self.disk()
    }
}

/// The way to an actor that may be restarted: always to its newest incarnation.
pub struct Port<M>(Arc<RwLock<Option<Incarnation<M>>>>);

type Incarnation<M> = (ActorRef<M>, MailboxGauge);

impl<M> Clone for Port<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M> Default for Port<M> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<M: Message> Port<M> {
    /// From now on this incarnation is meant.
    pub fn connect(&self, actor: ActorRef<M>, mailbox: MailboxGauge) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some((actor, mailbox));
    }

    /// Puts a message into the actor's mailbox; `false` where there is no living actor to take it.
    ///
    /// A dropped message answers its [`Reply`], so that whoever waits for an answer learns of it either way.
    pub fn cast(&self, message: M) -> bool {
        let actor = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((actor, mailbox)) = actor else { return false };
        mailbox.entered();
        let taken = actor.cast(message).is_ok();
        if !taken {
            mailbox.left();
        }
        taken
    }

    /// The actor, where it has been started.
    pub fn actor(&self) -> Option<ActorRef<M>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(actor, _)| actor.clone())
    }

    /// The actor, and how many messages wait for it.
    fn depth(&self) -> Option<(ractor::ActorId, u64)> {
        let port = self.0.read().unwrap_or_else(PoisonError::into_inner);
        port.as_ref().map(|(actor, mailbox)| (actor.get_id(), mailbox.depth()))
    }

    /// The actor has taken a message out of its mailbox.
    pub fn taken(&self) {
        if let Some((_, mailbox)) = self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            mailbox.left();
        }
    }
}

/// Where the answer to a message goes. Dropped without an answer, it answers `None`: whoever was to answer died.
pub struct Reply<T>(Option<Box<dyn FnOnce(Option<T>) + Send + Sync>>);

impl<T> Reply<T> {
    /// Gives the answer to this function.
    pub fn new(answer: impl FnOnce(Option<T>) + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(answer)))
    }

    /// Puts the answer into an actor's mailbox, as the message that `message` makes of it.
    pub fn to<M: Message>(actor: &ActorRef<M>, message: impl FnOnce(Option<T>) -> M + Send + Sync + 'static) -> Self {
        let actor = actor.clone();
        Self::new(move |answer| {
            if actor.cast(message(answer)).is_err() {
                tracing::debug!("an answer came for an actor that is gone");
            }
        })
    }

    /// Answers.
    pub fn send(mut self, answer: T) {
        if let Some(reply) = self.0.take() {
            reply(Some(answer));
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(reply) = self.0.take() {
            reply(None);
        }
    }
}

/// A task that ends with whoever started it.
pub struct AbortOnDrop(JoinHandle<()>);

impl AbortOnDrop {
    /// Starts the task.
    pub fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(task))
    }
}

impl From<JoinHandle<()>> for AbortOnDrop {
    fn from(task: JoinHandle<()>) -> Self {
        Self(task)
    }
}

impl AbortOnDrop {
    /// Whether the task is over.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The runs that are being launched at this moment.
///
/// A launch can't be called back once it is under way, and it outlives the actor that asked for it. Whoever wants to
/// find out what became of a run waits here until its launch is over, or it would take "not yet" for "never".
#[derive(Clone)]
pub struct Launches(Arc<(Mutex<UnderWay>, watch::Sender<()>)>);

/// How many launches of each run are under way.
type UnderWay = HashMap<RunToken, usize>;

impl Default for Launches {
    fn default() -> Self {
        Self(Arc::new((Mutex::default(), watch::Sender::new(()))))
    }
}

/// A launch that is under way, until it is dropped.
pub struct LaunchGuard {
    launches: Launches,
    token: RunToken,
}

impl Launches {
    /// Marks a launch as under way.
    #[must_use]
    pub fn enter(&self, token: RunToken) -> LaunchGuard {
        *self.tokens().entry(token.clone()).or_default() += 1;
        LaunchGuard { launches: self.clone(), token }
    }

    /// Waits until no launch of this run is under way. Safe to cancel.
    pub async fn settled(&self, token: &RunToken) {
        self.until(|tokens| !tokens.contains_key(token)).await;
    }

    /// Waits until no launch at all is under way. Safe to cancel.
    pub async fn all_settled(&self) {
        self.until(HashMap::is_empty).await;
    }

    async fn until(&self, condition: impl Fn(&UnderWay) -> bool) {
        let mut changes = self.0.1.subscribe();
        while !condition(&self.tokens()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn tokens(&self) -> MutexGuard<'_, UnderWay> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LaunchGuard {
    fn drop(&mut self) {
        let mut tokens = self.launches.tokens();
        // A claim whose answer was lost may be made again while its first try is still under way.
        match tokens.get_mut(&self.token) {
            Some(under_way) if *under_way > 1 => *under_way -= 1,
            _ => drop(tokens.remove(&self.token)),
        }
        drop(tokens);
        self.launches.0.1.send_replace(());
    }
}

/// What `readyz` tells: is the database answering, and does every flow tick.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<HealthState>>);

#[derive(Default)]
struct HealthState {
    store_error: Option<String>,
    draining: Option<String>,
    flows: BTreeMap<FlowType, FlowHealth>,
    /// By the order in which they were made.
    runs: BTreeMap<u64, String>,
    next_complaint: u64,
}

/// What people are told about one run, until this is dropped.
pub struct RunComplaint {
    health: Health,
    number: u64,
}

impl Drop for RunComplaint {
    fn drop(&mut self) {
        self.health.state().runs.remove(&self.number);
    }
}

#[derive(Clone, Default)]
struct FlowHealth {
    /// By a clock that nobody can set; `None` before the first, and for a flow that does not tick.
    last_tick: Option<Instant>,
    failure: Option<String>,
    launch_error: Option<String>,
    recovery_error: Option<String>,
}

impl Health {
    /// The store took a write, or failed one.
    pub fn store(&self, error: Option<String>) {
        self.state().store_error = error;
    }

    /// The service claims nothing new, and waits for this before it ends.
    pub fn draining(&self, waits_for: String) {
        self.state().draining = Some(waits_for);
    }

    /// A flow's scheduler looked at its schedule.
    pub fn ticked(&self, flow: &FlowType) {
        self.flow(flow, |health| health.last_tick = Some(Instant::now()));
    }

    /// A flow's actors run.
    pub fn flow_started(&self, flow: &FlowType) {
        self.flow(flow, |health| health.failure = None);
    }

    /// A flow's actors failed, and it waits to be tried again.
    pub fn flow_failed(&self, flow: &FlowType, failure: String) {
        self.flow(flow, |health| health.failure = Some(failure));
    }

    /// A flow does not tick any more: it only finishes what runs.
    pub fn flow_retired(&self, flow: &FlowType) {
        self.flow(flow, |health| health.last_tick = None);
    }

    /// A flow is no more.
    pub fn flow_ended(&self, flow: &FlowType) {
        self.state().flows.remove(flow);
    }

    /// A command of a flow was launched, or could not be for a reason that is not the command's.
    pub fn launching(&self, flow: &FlowType, error: Option<String>) {
        self.flow(flow, |health| health.launch_error = error);
    }

    /// A flow's open runs were looked into, or could not be.
    pub fn recovering(&self, flow: &FlowType, error: Option<String>) {
        self.flow(flow, |health| health.recovery_error = error);
    }

    /// This is wrong with a run, for as long as what this returns is kept.
    #[must_use]
    pub fn about_run(&self, sentence: String) -> RunComplaint {
        let mut state = self.state();
        let number = state.next_complaint;
        state.next_complaint += 1;
        state.runs.insert(number, sentence);
        RunComplaint { health: self.clone(), number }
    }

    /// What is wrong, a sentence each; empty where the service is ready.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let state = self.state();
        let mut complaints = Vec::new();
        complaints.extend(state.draining.clone());
        complaints.extend(state.store_error.iter().map(|error| format!("the database does not take writes: {error}")));
        for (flow, health) in &state.flows {
            let silence =
                health.last_tick.map(|at| at.elapsed()).filter(|silence| *silence > scheduler::LONGEST_SILENCE);
            if let Some(failure) = &health.failure {
                complaints.push(format!("flow {flow} has failed and will be tried again: {failure}"));
            } else if let Some(silence) = silence {
                complaints.push(format!("the scheduler of flow {flow} has not ticked for {} s", silence.as_secs()));
            }
            if let Some(error) = &health.launch_error {
                complaints.push(format!("commands of flow {flow} can't be launched: {error}"));
            }
            if let Some(error) = &health.recovery_error {
                complaints.push(format!("open runs of flow {flow} can't be looked into: {error}"));
            }
        }
        complaints.extend(state.runs.values().take(strays::NAMED).cloned());
        if let Some(more) = state.runs.len().checked_sub(strays::NAMED).filter(|more| *more > 0) {
            complaints.push(format!("{more} more runs do not answer, or leave something alive"));
        }
        complaints
    }

    fn flow(&self, flow: &FlowType, change: impl FnOnce(&mut FlowHealth)) {
        change(self.state().flows.entry(flow.clone()).or_default());
    }

    fn state(&self) -> MutexGuard<'_, HealthState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One status change of one job, as it is told to logs and metrics.
struct Transition<'a> {
    flow: &'a FlowType,
    job: JobId,
    attempt: Attempt,
    token: Option<&'a RunToken>,
    from: JobStatus,
    to: JobStatus,
    message: &'a str,
}

impl Shared {
    /// What keeps the service from working, a sentence each; empty where it is ready.
    pub fn complaints(&self) -> Vec<String> {
        [self.health.complaints(), self.strays.complaints()].concat()
    }

    /// The one place where a status change becomes a log line and a metric.
    fn note(&self, transition: &Transition<'_>) {
        self.metrics.transition(transition.flow, transition.to);
        // Outside of every span: this line says all of it itself, and a machine finds each field in the same place.
        tracing::info!(
            parent: None,
            job = transition.job.0,
            r#type = %transition.flow,
            attempt = transition.attempt.0,
            run_token = transition.token.map(RunToken::as_str),
            workflow_id = %transition.flow.workflow_id(transition.job),
            from = %transition.from,
            to = %transition.to,
            "{}",
            transition.message.lines().next().unwrap_or_default(),
        );
    }
}

/// Puts a message into an actor's mailbox after a while, unless what this returns is dropped before.
fn after<M: Message>(
    actor: &ActorRef<M>,
    wait: std::time::Duration,
    message: impl FnOnce() -> M + Send + 'static,
) -> AbortOnDrop {
    let actor = actor.clone();
    AbortOnDrop::spawn(async move {
        tokio::time::sleep(wait).await;
        if actor.cast(message()).is_err() {
            tracing::debug!("a timer outlived its actor");
        }
    })
}

#[cfg(test)]
mod tests;
