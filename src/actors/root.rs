//! RootActor: the supervisor of all. It starts the StatusActor, recovery and the flows in this order.
//!
//! Started by `app`. It restarts whatever fails; a flow that keeps failing takes down only itself, shows in `readyz`
//! and the metrics, and is tried again for ever. Only where the StatusActor or recovery can't be kept alive does the
//! root give up, and the process exits: commands run on, and the next start finds them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::dispatcher::DispatcherMessage;
use super::flow::{FINISHED, FlowActor, FlowArgs, FlowMessage, FlowSite, RecoverRequest};
use super::heartbeat::Kept;
use super::job::JobMessage;
use super::recovery::{RecoveryActor, RecoveryMessage, mailbox};
use super::retention::{RetentionActor, RetentionArgs};
use super::status::{ErrorChain, StatusActor, StatusArgs, StatusMessage};
use super::{AbortOnDrop, Port, Reply, Shared, Upward, Watched, after};
use super::{slots, strays, webhooks};
use crate::config::{FlowConfig, RetentionConfig};
use crate::domain::restart::{RestartBudget, RestartDecision, RestartPolicy};
use crate::domain::{FlowType, WorkerId};
use crate::metrics::{Backlog, Role};
use crate::outgoing::Receiver;
use crate::process::upkeep::RunDirectories;
use crate::store::{self, FlowState, WorkerNote, WorkerState, Write, Written};

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
/// How often a worker shows that it lives, and looks for a request to drain at least.
const LIFE_INTERVAL: Duration = Duration::from_secs(10);
/// How often it looks for that at most.
const DRAIN_PAUSE: Duration = Duration::from_millis(100);
/// How long nothing may have been started before memory is given back, at least; up to twice as long.
const REST_AFTER: Duration = Duration::from_secs(5);
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
    /// This flow has an open run that nobody looks after.
    Found(FlowType),
    /// Start this child again.
    Restart(Child),
    /// Have every dispatcher claim nothing more; answered once none does.
    StopClaiming(Reply<()>),
    /// These are the flows from now on; answered once those that are no longer among them claim nothing.
    Reconfigure(Vec<Arc<FlowConfig>>, Reply<()>),
    /// Start the flows that are configured and do not run.
    StartFlows(Reply<()>),
    /// End every run, as if somebody had asked to cancel its job.
    CancelRuns,
    /// The service stops and leaves its commands running: have every run keep its lease until it is back. The channel is
    /// closed once all do.
    KeepRuns(Kept),
    /// Answer, if you still do.
    GetAlive(Reply<()>),
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
    /// The RetentionActor.
    Retention,
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
    /// The run directories, and how long what is kept; `None` for a service without any.
    pub kept: Option<(RunDirectories, RetentionConfig)>,
    /// Who is told of status changes.
    pub receivers: Vec<Arc<Receiver>>,
}

/// What a RootActor knows.
pub struct RootState {
    shared: Arc<Shared>,
    status: StatusArgs,
    recovery: Port<RecoveryMessage>,
    kept: Option<(RunDirectories, RetentionConfig)>,
    /// What the configuration says last; `flows` has those too that only finish what runs.
    configured: BTreeMap<FlowType, Arc<FlowConfig>>,
    flows: BTreeMap<FlowType, FlowSite>,
    actors: BTreeMap<FlowType, ActorRef<FlowMessage>>,
    /// Whose backlog is counted. Locked while the gauges are set, so that none is set after its flow has ended.
    counted: Counted,
    children: BTreeMap<ActorId, Child>,
    budgets: BTreeMap<Child, RestartBudget>,
    since: Instant,
    timers: Vec<AbortOnDrop>,
    _webhooks: Vec<AbortOnDrop>,
    _background: [AbortOnDrop; 8],
}

impl Actor for RootActor {
    type Msg = RootMessage;
    type State = RootState;
    type Arguments = RootArgs;

    async fn pre_start(&self, myself: ActorRef<Self::Msg>, args: RootArgs) -> Result<RootState, ActorProcessingErr> {
        let shared = args.shared;
        let configured = args.flows.iter().map(|flow| (flow.flow.clone(), Arc::clone(flow))).collect();
        let sites =
            args.flows.into_iter().map(|flow| (flow, true)).chain(args.retired.into_iter().map(|flow| (flow, false)));
        let flows: BTreeMap<FlowType, FlowSite> = sites
            .map(|(flow, claims)| {
                shared.metrics.add_flow(&flow.flow, flow.concurrency.get());
                let site = FlowSite { shared: Arc::clone(&shared), flow, dispatcher: Port::default(), claims };
                (site.flow.flow.clone(), site)
            })
            .collect();
        let counted: Counted = Arc::new(Mutex::new(flows.keys().cloned().collect()));
        let background = [
            watch_database(&shared, &myself),
            watch_backlog(&shared, &counted),
            watch_disk(&shared),
            watch_slots(&shared),
            watch_strays(&shared, &myself),
            show_life(&shared, args.worker.clone()),
            watch_drain(&shared, args.worker),
            rest_when_idle(&shared),
        ];
        let webhooks = args.receivers.iter().map(|receiver| webhooks::deliver(&shared, receiver)).collect();
        let mut state = RootState {
            status: StatusArgs {
                store: shared.store.clone(),
                launcher: Arc::clone(&shared.launcher),
                readying: shared.readying.clone(),
                port: shared.status.clone(),
                gate: Arc::default(),
                metrics: Arc::clone(&shared.metrics),
                health: shared.health.clone(),
                changed: shared.changed.clone(),
            },
            shared,
            recovery: Port::default(),
            kept: args.kept,
            configured,
            actors: BTreeMap::new(),
            counted,
            children: BTreeMap::new(),
            budgets: BTreeMap::new(),
            since: Instant::now(),
            timers: Vec::new(),
            _webhooks: webhooks,
            _background: background,
            flows,
        };
        state.shared.tree.count(&state.shared.status);
        state.shared.tree.count(&state.recovery);
        state.shared.tree.count(&state.shared.retention);
        for site in state.flows.values() {
            state.shared.tree.count(&site.dispatcher);
        }
        state.start(&myself, Child::Status).await?;
        state.start(&myself, Child::Recovery).await?;
        state.start(&myself, Child::Retention).await?;
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
            RootMessage::Found(flow) => match state.actors.get(&flow) {
                Some(actor) => {
                    if let Err(error) = actor.cast(FlowMessage::SettleOrphan(None)) {
                        // The flow is being started again, and sees to all that is open.
                        tracing::debug!(r#type = %flow, %error, "a run was found while its flow was away");
                    }
                }
                // The next start has one for each flow with open runs.
                None => {
                    tracing::error!(r#type = %flow, "a flow that is not configured has an open run again; nobody looks after it before the next start of this service");
                }
            },
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
            RootMessage::Reconfigure(flows, done) => state.reconfigure(&myself, flows, done),
            RootMessage::StartFlows(done) => {
                state.start_flows(&myself).await;
                done.send(());
            }
            RootMessage::CancelRuns => tell_runs(|| JobMessage::Cancel),
            RootMessage::KeepRuns(kept) => tell_runs(|| JobMessage::Keep(kept.clone())),
            RootMessage::GetAlive(reply) => reply.send(()),
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

    /// Hands each flow its settings. Flows that are new are started last: one may have the names of one that goes.
    fn reconfigure(&mut self, myself: &ActorRef<RootMessage>, flows: Vec<Arc<FlowConfig>>, done: Reply<()>) {
        self.configured = flows.into_iter().map(|flow| (flow.flow.clone(), flow)).collect();
        let start = Reply::to(myself, |_: Option<()>| RootMessage::StartFlows(done));
        let all = Arc::new(AnswerAtLast(Some(start)));
        for (name, site) in &mut self.flows {
            match self.configured.get(name) {
                Some(flow) if site.claims && *flow == site.flow => continue,
                Some(flow) => {
                    (site.flow, site.claims) = (Arc::clone(flow), true);
                    self.shared.metrics.add_flow(name, flow.concurrency.get());
                }
                None if site.claims => site.claims = false,
                None => continue,
            }
            // One that is just being restarted is started with these settings anyway.
            if let Some(actor) = self.actors.get(name) {
                let all = Arc::clone(&all);
                if actor.cast(FlowMessage::Reconfigure(site.clone(), Reply::new(move |_| drop(all)))).is_err() {
                    tracing::debug!(r#type = %name, "a flow was reconfigured that is just ending");
                }
            }
        }
    }

    async fn start_flows(&mut self, myself: &ActorRef<RootMessage>) {
        let new: Vec<_> = self.configured.iter().filter(|(name, _)| !self.flows.contains_key(*name)).collect();
        let new: Vec<_> = new.into_iter().map(|(name, flow)| (name.clone(), Arc::clone(flow))).collect();
        for (name, flow) in new {
            self.shared.metrics.add_flow(&name, flow.concurrency.get());
            lock(&self.counted).push(name.clone());
            let (shared, dispatcher) = (Arc::clone(&self.shared), Port::default());
            shared.tree.count(&dispatcher);
            self.flows.insert(name.clone(), FlowSite { shared, flow, dispatcher, claims: true });
            if let Err(error) = self.start(myself, Child::Flow(name.clone())).await {
                self.flow_failed(myself, name, &error.to_string());
            }
        }
    }

    /// A flow that was taken out of the configuration has finished its runs: nothing is told of it any more.
    fn flow_ended(&mut self, flow: &FlowType) {
        tracing::info!(r#type = %flow, "a flow that is no longer configured has finished its runs");
        self.flows.remove(flow);
        self.budgets.remove(&Child::Flow(flow.clone()));
        let mut counted = lock(&self.counted);
        counted.retain(|other| other != flow);
        self.shared.metrics.remove_flow(flow);
        self.shared.health.flow_ended(flow);
    }

    async fn start(&mut self, myself: &ActorRef<RootMessage>, child: Child) -> Result<(), ActorProcessingErr> {
        let id = match &child {
            Child::Status => {
                let actor = self.shared.tree.watch(Role::Status, None, StatusActor);
                Watched::spawn_linked(None, actor, self.status.clone(), myself.get_cell()).await?.0.get_id()
            }
            Child::Recovery => {
                let args = (self.recovery.clone(), mailbox(&self.shared.metrics));
                let actor = self.shared.tree.watch(Role::Recovery, None, RecoveryActor);
                Watched::spawn_linked(None, actor, args, myself.get_cell()).await?.0.get_id()
            }
            Child::Retention => {
                let Some((directories, kept)) = self.kept.clone() else { return Ok(()) };
                let (shared, mailbox) = (Arc::clone(&self.shared), self.shared.metrics.mailbox(Role::Retention));
                let args = RetentionArgs { shared, directories, kept, mailbox };
                let actor = self.shared.tree.watch(Role::Retention, None, RetentionActor);
                Watched::spawn_linked(None, actor, args, myself.get_cell()).await?.0.get_id()
            }
            Child::Flow(flow) => {
                let Some(site) = self.flows.get(flow) else { return Ok(()) };
                let args = FlowArgs { site: site.clone(), recover: self.recover(myself) };
                let actor = self.shared.tree.watch(Role::Flow, Some(flow), FlowActor);
                let (actor, _) = Watched::spawn_linked(None, actor, args, myself.get_cell()).await?;
                let id = actor.get_id();
                self.actors.insert(flow.clone(), actor);
                id
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
                self.actors.remove(flow);
                match self.flows.get(flow) {
                    Some(site) if why == FINISHED && site.claims => {
                        // It was configured again while it ended.
                        let child = child.clone();
                        self.timers.push(after(myself, NAMES_ARE_FREE, move || RootMessage::Restart(child)));
                    }
                    Some(_) if why == FINISHED => self.flow_ended(flow),
                    _ => self.flow_failed(myself, flow.clone(), why),
                }
                return Ok(());
            }
            Child::Status => Role::Status,
            Child::Recovery => Role::Recovery,
            Child::Retention => Role::Retention,
        };
        match self.budgets.entry(child.clone()).or_default().on_failure(&CORE_RESTARTS, self.since.elapsed()) {
            // Logs and rows that are kept for too long are no reason to end a service.
            RestartDecision::GiveUp if child == Child::Retention => {
                tracing::error!(actor = role.as_str(), why, "an actor keeps failing and rests for a while");
                self.timers.push(after(myself, FLOW_RESTARTS.maximum_backoff, move || RootMessage::Restart(child)));
                Ok(())
            }
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

type Counted = Arc<Mutex<Vec<FlowType>>>;

fn lock(counted: &Counted) -> MutexGuard<'_, Vec<FlowType>> {
    counted.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sees to what the last service has left running, so that flows have their room back.
fn watch_strays(shared: &Arc<Shared>, myself: &ActorRef<RootMessage>) -> AbortOnDrop {
    let myself = myself.clone();
    strays::watch(shared, move |message| {
        if myself.cast(message).is_err() {
            tracing::debug!("there was word of a stray while the service was ending");
        }
    })
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
fn watch_backlog(shared: &Arc<Shared>, counted: &Counted) -> AbortOnDrop {
    let (shared, counted) = (Arc::clone(shared), Arc::clone(counted));
    keep_running("counting the backlog", move || {
        let (shared, counted) = (Arc::clone(&shared), Arc::clone(&counted));
        async move {
            let mut changes = shared.changed.subscribe();
            let mut told = BTreeSet::new();
            loop {
                let started = Instant::now();
                let read = async { Ok((shared.store.flow_states().await?, shared.store.workers().await?)) };
                let read: Result<_, store::Error> = read.await;
                shared.metrics.store_up(read.is_ok());
                match read {
                    Ok((states, workers)) => {
                        show_backlog(&shared, &lock(&counted), &states, &mut told);
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

/// Types that are told of at most, and letters of each: anybody may write any there.
const MOST_TOLD: usize = 100;
const MOST_OF_A_TYPE: usize = 200;

/// `told` are the types without a flow of which the log has told.
fn show_backlog(shared: &Shared, flows: &[FlowType], states: &[FlowState], told: &mut BTreeSet<String>) {
    let served = |state: &&FlowState| flows.iter().any(|flow| flow.as_str() == state.job_type);
    let open = |state: &FlowState| state.pending + state.inqueue + state.progress;
    let unserved = || states.iter().filter(|state| !served(state) && open(state) > 0);
    for state in unserved() {
        let name: String = state.job_type.chars().take(MOST_OF_A_TYPE).collect();
        if told.len() < MOST_TOLD && told.insert(name.clone()) {
            tracing::warn!(r#type = ?name, open = open(state), "jobs of a type that no flow of this worker has are left alone");
        }
    }
    told.retain(|name| unserved().any(|state| state.job_type.starts_with(name.as_str())));
    let unserved = unserved().map(open).sum();
    for flow in flows {
        let state = states.iter().find(|state| state.job_type == flow.as_str());
        let backlog = state.map_or_else(Backlog::default, |state| Backlog {
            pending: state.pending,
            inqueue: state.inqueue,
            progress: state.progress,
            oldest: state.oldest_pending,
            paused: state.paused,
        });
        shared.metrics.backlog(flow, backlog);
    }
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

/// Gives slots back whose runs are over and that nobody looked after.
fn watch_slots(shared: &Arc<Shared>) -> AbortOnDrop {
    let shared = Arc::clone(shared);
    keep_running("looking after slots", move || {
        let (pool, launcher) = (shared.slots.clone(), Arc::clone(&shared.launcher));
        slots::watch(pool, launcher, shared.launches.clone())
    })
}

/// Tells every run's actor.
fn tell_runs(message: impl Fn() -> JobMessage) {
    for name in ractor::registry::registered() {
        // A job's name is the only one with a parenthesis in it; see `FlowType::workflow_id`.
        if name.ends_with(')')
            && let Some(job) = ractor::registry::where_is(name)
            && job.send_message(message()).is_err()
        {
            tracing::debug!("a run that was to be told something has just ended");
        }
    }
}

/// Writes this worker's sign of life, so that people see which workers live.
fn show_life(shared: &Arc<Shared>, worker: WorkerNote) -> AbortOnDrop {
    let shared = Arc::clone(shared);
    keep_running("the sign of life", move || {
        let (shared, worker) = (Arc::clone(&shared), worker.clone());
        async move {
            loop {
                tokio::time::sleep(LIFE_INTERVAL).await;
                let draining = shared.draining.load(Ordering::Relaxed);
                let state = if draining { WorkerState::Draining } else { WorkerState::Active };
                let worker = WorkerNote { state, ..worker.clone() };
                let (answer, answered) = oneshot::channel();
                let reply = Reply::new(move |written: Option<Vec<Written>>| drop(answer.send(written)));
                let (name, incarnation) = (worker.worker.clone(), worker.incarnation.clone());
                shared.status.cast(StatusMessage::Write(vec![Write::WorkerState(worker)], reply));
                // One at a time, however long the database is away.
                if matches!(answered.await.ok().flatten().as_deref(), Some([Written::Fenced])) {
                    look_for_another(&shared, &name, &incarnation).await;
                }
            }
        }
    })
}

/// Where another service has taken this worker's name, as it may after a long silence of this one, nothing is claimed under it
/// any more: the service ends once the runs have that it looks after.
async fn look_for_another(shared: &Shared, name: &WorkerId, incarnation: &str) {
    let Ok(workers) = shared.store.workers().await else { return };
    // A row that somebody has removed is nobody's.
    let another = workers.into_iter().find(|row| row.worker_id == name.as_str() && row.incarnation != incarnation);
    if let Some(row) = another
        && !shared.displaced.swap(true, Ordering::Relaxed)
    {
        tracing::error!(worker_id = %name, hostname = row.hostname, "another service has this worker's name by now; this one ends once its runs have");
        shared.drain_requested.send_replace(Some(format!("the service on {} that has its name", row.hostname)));
    }
}

/// Gives memory back once nothing was started for a while: what is kept for work that is over, or was needed to come up.
fn rest_when_idle(shared: &Arc<Shared>) -> AbortOnDrop {
    let shared = Arc::clone(shared);
    keep_running("giving memory back", move || {
        let shared = Arc::clone(&shared);
        async move {
            let (mut before, mut rested) = (None, None);
            loop {
                tokio::time::sleep(REST_AFTER).await;
                let started = Some(shared.tree.started());
                if started == before && started != rested {
                    rested = started;
                    shared.store.give_memory_back().await;
                    if let Err(failure) = tokio::task::spawn_blocking(crate::process::give_memory_back).await {
                        tracing::error!(%failure, "memory was not given back");
                    }
                }
                before = started;
            }
        }
    })
}

/// Looks whether somebody has asked this worker to drain, and tells it until the service has heard.
fn watch_drain(shared: &Arc<Shared>, worker: WorkerNote) -> AbortOnDrop {
    let shared = Arc::clone(shared);
    keep_running("looking for a request to drain", move || {
        let (shared, worker) = (Arc::clone(&shared), worker.clone());
        async move {
            let mut changes = shared.changed.subscribe();
            loop {
                match shared.store.drain_requested(&worker.worker, &worker.incarnation).await {
                    Ok(Some(who)) => {
                        shared.drain_requested.send_replace(Some(who));
                        return std::future::pending().await;
                    }
                    Ok(None) => {}
                    Err(error) => tracing::debug!(error = %ErrorChain(&error), "can't look for a request to drain"),
                }
                // However often anybody writes, there are not more looks than this.
                tokio::time::sleep(DRAIN_PAUSE).await;
                drop(tokio::time::timeout(LIFE_INTERVAL, changes.changed()).await);
            }
        }
    })
}

/// Runs a background task, and runs it again where it ends or panics.
pub(super) fn keep_running<F>(what: &'static str, make: impl Fn() -> F + Send + 'static) -> AbortOnDrop
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
