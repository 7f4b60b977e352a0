//! RootActor: the supervisor of all. It starts the StatusActor, recovery and the flows in this order.
//!
//! Started by `app`. It restarts whatever fails; a flow that keeps failing takes down only itself, shows in `readyz`
//! and the metrics, and is tried again for ever. Only where the StatusActor or recovery can't be kept alive does the
//! root give up, and the process exits: commands run on, and the next start finds them.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::dispatcher::DispatcherMessage;
use super::flow::{FlowActor, FlowArgs, FlowSite, RecoverRequest};
use super::job::JobMessage;
use super::recovery::{RecoveryActor, RecoveryMessage, mailbox};
use super::status::{ErrorChain, StatusActor, StatusArgs, StatusMessage};
use super::{AbortOnDrop, Port, Reply, Shared, Upward, after};
use crate::config::FlowConfig;
use crate::domain::FlowType;
use crate::domain::restart::{RestartBudget, RestartDecision, RestartPolicy};
use crate::metrics::{Backlog, Role};
use crate::store::{self, FlowState, WorkerNote, WorkerState, Write};

/// For the StatusActor and recovery, without which nothing works.
const CORE_RESTARTS: RestartPolicy = RestartPolicy {
    intensity: 10,
    window: Duration::from_secs(60),
    initial_backoff: Duration::from_millis(50),
    maximum_backoff: Duration::from_secs(1),
};
/// For flows: more restarts than the window has room for at its longest wait, so the root never gives a flow up.
const FLOW_RESTARTS: RestartPolicy = RestartPolicy {
    intensity: 100,
    window: Duration::from_secs(600),
    initial_backoff: Duration::from_secs(1),
    maximum_backoff: Duration::from_secs(60),
};
const NAMES_ARE_FREE: Duration = Duration::from_millis(20);
/// How often a worker shows that it lives.
const LIFE_INTERVAL: Duration = Duration::from_secs(10);
const WATCH_AGAIN: Duration = Duration::from_secs(1);
/// How often the gauges of the backlog are read at most, and at least.
const BACKLOG_PAUSE: Duration = Duration::from_millis(500);
const BACKLOG_INTERVAL: Duration = Duration::from_secs(15);
/// How often the free space is read: no sooner than it is scraped.
const DISK_INTERVAL: Duration = Duration::from_secs(15);

/// The supervisor of all.
pub struct RootActor;

/// What a RootActor is told.
pub enum RootMessage {
    /// Somebody else may have changed something in the database.
    Wake,
    /// A flow wants unowned runs settled.
    Recover(RecoverRequest),
    /// Start this child again.
    Restart(Child),
    /// Have every dispatcher claim nothing more; answered once none does.
    StopClaiming(Reply<()>),
    /// End every run, as if somebody had asked to cancel its job.
    CancelRuns,
    /// Fail in the way that a test asks for.
    #[cfg(test)]
    Panic,
}

/// A child of the root.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Child {
    /// The StatusActor.
    Status,
    /// The RecoveryActor.
    Recovery,
    /// The FlowActor of this type.
    Flow(FlowType),
}

/// What a RootActor is started with.
#[derive(Clone)]
pub struct RootArgs {
    /// What all actors share.
    pub shared: Arc<Shared>,
    /// The flows of the configuration.
    pub flows: Vec<Arc<FlowConfig>>,
    /// This start of this worker, for its sign of life.
    pub worker: WorkerNote,
    /// Flows that are no longer configured but have open runs: they finish what runs and claim nothing.
    pub retired: Vec<Arc<FlowConfig>>,
}

/// What a RootActor knows.
pub struct RootState {
    shared: Arc<Shared>,
    status: StatusArgs,
    recovery: Port<RecoveryMessage>,
    flows: BTreeMap<FlowType, FlowSite>,
    children: BTreeMap<ActorId, Child>,
    budgets: BTreeMap<Child, RestartBudget>,
    since: Instant,
    timers: Vec<AbortOnDrop>,
    _background: [AbortOnDrop; 4],
}

impl Actor for RootActor {
    type Msg = RootMessage;
    type State = RootState;
    type Arguments = RootArgs;

    async fn pre_start(&self, myself: ActorRef<Self::Msg>, args: RootArgs) -> Result<RootState, ActorProcessingErr> {
        let shared = args.shared;
        let sites =
            args.flows.into_iter().map(|flow| (flow, true)).chain(args.retired.into_iter().map(|flow| (flow, false)));
        let flows: BTreeMap<FlowType, FlowSite> = sites
            .map(|(flow, claims)| {
                shared.metrics.add_flow(&flow.flow, flow.concurrency.get());
                let site = FlowSite { shared: Arc::clone(&shared), flow, dispatcher: Port::default(), claims };
                (site.flow.flow.clone(), site)
            })
            .collect();
        let background = [
            watch_database(&shared, &myself),
            watch_backlog(&shared, flows.values().map(|site| (site.flow.flow.clone(), site.claims)).collect()),
            watch_disk(&shared),
            show_life(&shared, args.worker),
        ];
        let mut state = RootState {
            status: StatusArgs {
                store: shared.store.clone(),
                port: shared.status.clone(),
                gate: Arc::default(),
                metrics: Arc::clone(&shared.metrics),
                health: shared.health.clone(),
                changed: shared.changed.clone(),
            },
            shared,
            recovery: Port::default(),
            children: BTreeMap::new(),
            budgets: BTreeMap::new(),
            since: Instant::now(),
            timers: Vec::new(),
            _background: background,
            flows,
        };
        state.start(&myself, Child::Status).await?;
        state.start(&myself, Child::Recovery).await?;
        for flow in state.flows.keys().cloned().collect::<Vec<_>>() {
            // One flow that can't be started is no reason not to start the others.
            if let Err(error) = state.start(&myself, Child::Flow(flow.clone())).await {
                state.flow_failed(&myself, flow, &error.to_string());
            }
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: RootMessage,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RootMessage::Wake => state.dispatchers(|| DispatcherMessage::Wake),
            RootMessage::Recover(request) => {
                state.recovery.cast(RecoveryMessage::Recover(request));
            }
            RootMessage::Restart(child) => {
                let flow = if let Child::Flow(flow) = &child { Some(flow.clone()) } else { None };
                if let Err(error) = state.start(&myself, child.clone()).await {
                    let Some(flow) = flow else { return Err(error) };
                    state.flow_failed(&myself, flow, &error.to_string());
                }
            }
            RootMessage::StopClaiming(reply) => {
                // The last of the clones to be dropped answers.
                let all = Arc::new(AnswerAtLast(Some(reply)));
                state.dispatchers(|| {
                    let all = Arc::clone(&all);
                    DispatcherMessage::StopClaiming(Reply::new(move |_| drop(all)))
                });
            }
            RootMessage::CancelRuns => state.cancel_runs(),
            #[cfg(test)]
            RootMessage::Panic => panic!("asked to by a test"),
        }
        state.timers.retain(|timer| !timer.is_finished());
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                state.child_ended(&myself, cell.get_id(), &reason.unwrap_or_else(|| "stopped".to_owned())).await
            }
            SupervisionEvent::ActorFailed(cell, error) => {
                state.child_ended(&myself, cell.get_id(), &error.to_string()).await
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => Ok(()),
        }
    }
}

/// Answers when it is dropped: when all who held it have done what they were asked, or have died.
struct AnswerAtLast(Option<Reply<()>>);

impl Drop for AnswerAtLast {
    fn drop(&mut self) {
        if let Some(reply) = self.0.take() {
            reply.send(());
        }
    }
}

impl RootState {
    fn dispatchers(&self, message: impl Fn() -> DispatcherMessage) {
        for site in self.flows.values() {
            site.dispatcher.cast(message());
        }
    }

    fn cancel_runs(&self) {
        for name in ractor::registry::registered() {
            // A job's name is the only one with a parenthesis in it; see `FlowType::workflow_id`.
            if name.ends_with(')')
                && let Some(job) = ractor::registry::where_is(name)
                && job.send_message(JobMessage::Cancel).is_err()
            {
                tracing::debug!("a run to be cancelled has just ended");
            }
        }
    }

    async fn start(&mut self, myself: &ActorRef<RootMessage>, child: Child) -> Result<(), ActorProcessingErr> {
        let id = match &child {
            Child::Status => {
                StatusActor::spawn_linked(None, StatusActor, self.status.clone(), myself.get_cell()).await?.0.get_id()
            }
            Child::Recovery => {
                let args = (self.recovery.clone(), mailbox(&self.shared.metrics));
                RecoveryActor::spawn_linked(None, RecoveryActor, args, myself.get_cell()).await?.0.get_id()
            }
            Child::Flow(flow) => {
                let Some(site) = self.flows.get(flow) else { return Ok(()) };
                let args = FlowArgs { site: site.clone(), recover: self.recover(myself) };
                FlowActor::spawn_linked(None, FlowActor, args, myself.get_cell()).await?.0.get_id()
            }
        };
        self.children.insert(id, child);
        Ok(())
    }

    fn recover(&self, myself: &ActorRef<RootMessage>) -> Upward<RecoverRequest> {
        let myself = myself.clone();
        Arc::new(move |request| {
            if myself.cast(RootMessage::Recover(request)).is_err() {
                tracing::debug!("a flow asked for recovery while the service was ending");
            }
        })
    }

    async fn child_ended(
        &mut self,
        myself: &ActorRef<RootMessage>,
        id: ActorId,
        why: &str,
    ) -> Result<(), ActorProcessingErr> {
        let Some(child) = self.children.remove(&id) else { return Ok(()) };
        let role = match &child {
            Child::Flow(flow) => {
                self.flow_failed(myself, flow.clone(), why);
                return Ok(());
            }
            Child::Status => Role::Status,
            Child::Recovery => Role::Recovery,
        };
        match self.budgets.entry(child.clone()).or_default().on_failure(&CORE_RESTARTS, self.since.elapsed()) {
            RestartDecision::GiveUp => Err(format!("the {} actor keeps failing: {why}", role.as_str()).into()),
            RestartDecision::After(wait) => {
                tracing::error!(actor = role.as_str(), why, ?wait, "an actor ended and is started again");
                self.shared.metrics.actor_restarted(role);
                if wait.is_zero() {
                    return self.start(myself, child).await;
                }
                self.timers.push(after(myself, wait, move || RootMessage::Restart(child)));
                Ok(())
            }
        }
    }

    fn flow_failed(&mut self, myself: &ActorRef<RootMessage>, flow: FlowType, why: &str) {
        let child = Child::Flow(flow.clone());
        let decision = self.budgets.entry(child.clone()).or_default().on_failure(&FLOW_RESTARTS, self.since.elapsed());
        let wait = match decision {
            // Its children's names are free only a moment after its own end.
            RestartDecision::After(wait) => wait.max(NAMES_ARE_FREE),
            RestartDecision::GiveUp => FLOW_RESTARTS.maximum_backoff,
        };
        tracing::error!(r#type = %flow, why, ?wait, "a flow failed and is started again; its commands run on");
        self.shared.metrics.actor_restarted(Role::Flow);
        self.shared.metrics.flow_up(&flow, false);
        self.shared.health.flow_failed(&flow, why.to_owned());
        self.timers.push(after(myself, wait, move || RootMessage::Restart(child)));
    }
}

/// Passes the store's wake-ups on, and starts over where watching fails.
fn watch_database(shared: &Arc<Shared>, myself: &ActorRef<RootMessage>) -> AbortOnDrop {
    let (shared, myself) = (Arc::clone(shared), myself.clone());
    keep_running("watching the database", move || {
        let (shared, myself) = (Arc::clone(&shared), myself.clone());
        async move {
            match shared.store.watch().await {
                Ok(mut wakes) => loop {
                    // Before the first wait too: rows may have come while nobody watched.
                    shared.changed.send_replace(());
                    if myself.cast(RootMessage::Wake).is_err() {
                        return;
                    }
                    wakes.next().await;
                },
                Err(error) => tracing::warn!(error = %ErrorChain(&error), "the database can't be watched yet"),
            }
        }
    })
}

/// Keeps the gauges of the backlog fresh without a scrape ever waiting for the database.
fn watch_backlog(shared: &Arc<Shared>, flows: BTreeMap<FlowType, bool>) -> AbortOnDrop {
    let shared = Arc::clone(shared);
    // With each flow, whether it claims; one that does not ends with its last run.
    let flows = Arc::new(Mutex::new(flows));
    keep_running("counting the backlog", move || {
        let (shared, flows) = (Arc::clone(&shared), Arc::clone(&flows));
        async move {
            let mut changes = shared.changed.subscribe();
            loop {
                let started = Instant::now();
                let read = async { Ok((shared.store.flow_states().await?, shared.store.workers().await?)) };
                let read: Result<_, store::Error> = read.await;
                shared.metrics.store_up(read.is_ok());
                match read {
                    Ok((states, workers)) => {
                        show_backlog(&shared, &mut flows.lock().unwrap_or_else(PoisonError::into_inner), &states);
                        let live = workers.into_iter().filter(|worker| worker.state != WorkerState::Stopped.as_str());
                        let live = live.map(|worker| (worker.worker_id, worker.heartbeat_time));
                        shared.metrics.workers(shared.clock.now(), live);
                    }
                    Err(error) => tracing::debug!(error = %ErrorChain(&error), "the backlog can't be counted"),
                }
                // Counting a large backlog must stay a small part of the database's work.
                tokio::time::sleep(BACKLOG_PAUSE.max(started.elapsed() * 20)).await;
                // Whether something changed or the time is over, the gauges are read again.
                drop(tokio::time::timeout(BACKLOG_INTERVAL, changes.changed()).await);
            }
        }
    })
}

fn show_backlog(shared: &Shared, flows: &mut BTreeMap<FlowType, bool>, states: &[FlowState]) {
    let served = |state: &&FlowState| flows.keys().any(|flow| flow.as_str() == state.job_type);
    let open = |state: &FlowState| state.pending + state.inqueue + state.progress;
    let unserved = states.iter().filter(|state| !served(state)).map(open).sum();
    flows.retain(|flow, claims| {
        let state = states.iter().find(|state| state.job_type == flow.as_str());
        let backlog = state.map_or_else(Backlog::default, |state| Backlog {
            pending: state.pending,
            inqueue: state.inqueue,
            progress: state.progress,
            oldest: state.oldest_pending,
            paused: state.paused,
        });
        let kept = *claims || backlog.inqueue + backlog.progress > 0;
        if kept {
            shared.metrics.backlog(flow, backlog);
        } else {
            shared.metrics.remove_flow(flow);
        }
        kept
    });
    shared.metrics.backlog_read(shared.clock.now(), unserved);
}

/// Keeps the gauges of the run directories' disk fresh; a network file system may take its time to answer.
fn watch_disk(shared: &Arc<Shared>) -> AbortOnDrop {
    let shared = Arc::clone(shared);
    keep_running("watching the disk", move || {
        let shared = Arc::clone(&shared);
        async move {
            loop {
                let launcher = Arc::clone(&shared.launcher);
                match tokio::task::spawn_blocking(move || launcher.disk()).await {
                    Ok(Ok(disk)) => shared.metrics.disk(disk.size, disk.free),
                    Ok(Err(error)) => {
                        tracing::warn!(error = %ErrorChain(&error), "can't tell how full the disk of the runs is");
                    }
                    Err(failure) => tracing::error!(%failure, "looking at the disk of the runs panicked"),
                }
                tokio::time::sleep(DISK_INTERVAL).await;
            }
        }
    })
}

/// Writes this worker's sign of life, so that people see which workers live.
fn show_life(shared: &Arc<Shared>, worker: WorkerNote) -> AbortOnDrop {
    let shared = Arc::clone(shared);
    keep_running("the sign of life", move || {
        let (shared, worker) = (Arc::clone(&shared), worker.clone());
        async move {
            loop {
                tokio::time::sleep(LIFE_INTERVAL).await;
                // While the service stops it says itself what it is doing.
                if shared.draining.load(Ordering::Relaxed) {
                    return std::future::pending().await;
                }
                let (answer, answered) = oneshot::channel();
                let reply = Reply::new(move |_| drop(answer));
                shared.status.cast(StatusMessage::Write(vec![Write::WorkerState(worker.clone())], reply));
                // One at a time, however long the database is away; it is the answer's coming that counts.
                let _: Result<(), _> = answered.await;
            }
        }
    })
}

/// Runs a background task, and runs it again where it ends or panics.
fn keep_running<F>(what: &'static str, make: impl Fn() -> F + Send + 'static) -> AbortOnDrop
where
    F: Future<Output = ()> + Send + 'static,
{
    AbortOnDrop::spawn(async move {
        loop {
            // A set of one: it aborts its task when this loop is aborted.
            let mut task = JoinSet::new();
            task.spawn(make());
            if let Some(Err(failure)) = task.join_next().await {
                tracing::error!(%failure, "{what} failed and is started again");
            }
            tokio::time::sleep(WATCH_AGAIN).await;
        }
    })
}
