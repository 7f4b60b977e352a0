//! FlowActor: the supervisor of one job type's scheduler, dispatcher and runs.
//!
//! Started by the root. It restarts what fails, with a wait that grows, and gives up where that does not help; then
//! the root starts the whole flow anew, and no other flow notices. Its runs' commands live on through all of this:
//! their shims own them, and recovery hands them to new JobActors.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::time::Instant;

use super::dispatcher::{DispatcherActor, DispatcherArgs, DispatcherEvent, DispatcherMessage};
use super::job_supervisor::{JobSupervisor, JobSupervisorMessage, RunOrphaned};
use super::scheduler::{SchedulerActor, SchedulerArgs, SchedulerMessage};
use super::{AbortOnDrop, Port, Reply, Shared, Upward, Watched, after};
use crate::config::FlowConfig;
use crate::domain::restart::{NamedBudgets, RestartBudget, RestartDecision, RestartPolicy};
use crate::metrics::Role;

const RESTARTS: RestartPolicy = RestartPolicy {
    intensity: 5,
    window: Duration::from_secs(60),
    initial_backoff: Duration::from_millis(100),
    maximum_backoff: Duration::from_secs(5),
};
/// The same for the actor of one run, which is never given up: its command may run for two days.
const ORPHANS: RestartPolicy = RestartPolicy {
    intensity: 10,
    window: Duration::from_secs(600),
    initial_backoff: Duration::from_millis(100),
    maximum_backoff: Duration::from_secs(60),
};
/// How long the end of a killed child may take.
const CHILD_ENDS: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How often a flow that is no longer configured looks whether its runs have ended.
const CHECK_OPEN: Duration = Duration::from_secs(1);
/// How a FlowActor ends whose flow is no longer configured and has no open runs.
pub const FINISHED: &str = "finished";

/// The supervisor of one flow.
pub struct FlowActor;

/// What a FlowActor is told.
pub enum FlowMessage {
    /// The dispatcher wants something.
    Dispatcher(DispatcherEvent),
    /// A run's actor has died.
    RunOrphaned(RunOrphaned),
    /// Have the run of this workflow id settled, if it is open and nobody's; `None` for every such run.
    SettleOrphan(Option<String>),
    /// Recovery has looked after that, or `None` where it died over it.
    OrphanSettled(Option<String>, Option<()>),
    /// Start this child again.
    Restart(Role),
    /// The flow is configured like this from now on, or no longer; answered once its names are free where it is not.
    Reconfigure(FlowSite, Reply<()>),
    /// Nothing of the flow is being claimed any more.
    ClaimingStopped(Reply<()>),
    /// Look whether a flow that is no longer configured has finished what ran.
    CheckOpen,
    /// No run of the flow is open on this worker.
    NothingOpen,
    /// Fail in the way that a test asks for.
    #[cfg(test)]
    Panic,
}

/// Which unowned runs are to be settled, and where their actors belong.
pub struct RecoverRequest {
    /// The flow.
    pub site: FlowSite,
    /// The parent of the JobActors.
    pub jobs: ActorRef<JobSupervisorMessage>,
    /// Only the run of this workflow id; `None` for all of the flow.
    pub only: Option<String>,
    /// Answered once every such run has an actor.
    pub done: Reply<()>,
}

/// One flow, and how its dispatcher is found.
#[derive(Clone)]
pub struct FlowSite {
    /// What all actors share.
    pub shared: Arc<Shared>,
    /// The flow.
    pub flow: Arc<FlowConfig>,
    /// The way to its dispatcher.
    pub dispatcher: Port<DispatcherMessage>,
    /// Whether it claims; a flow that is no longer configured only finishes what runs.
    pub claims: bool,
}

/// What a FlowActor is started with.
#[derive(Clone)]
pub struct FlowArgs {
    /// The flow.
    pub site: FlowSite,
    /// How recovery is asked for.
    pub recover: Upward<RecoverRequest>,
}

/// What a FlowActor knows.
pub struct FlowState {
    args: FlowArgs,
    jobs: ActorRef<JobSupervisorMessage>,
    scheduler: Option<ActorRef<SchedulerMessage>>,
    children: BTreeMap<ActorId, Role>,
    budgets: BTreeMap<Role, RestartBudget>,
    /// The runs whose actors died of late, by workflow id.
    orphans: NamedBudgets,
    since: Instant,
    timers: Vec<AbortOnDrop>,
}

impl Actor for FlowActor {
    type Msg = FlowMessage;
    type State = FlowState;
    type Arguments = FlowArgs;

    async fn pre_start(&self, myself: ActorRef<Self::Msg>, args: FlowArgs) -> Result<FlowState, ActorProcessingErr> {
        let jobs = start_job_supervisor(&args.site, &myself).await?;
        let mut state = FlowState {
            args,
            children: BTreeMap::from([(jobs.get_id(), Role::JobSupervisor)]),
            jobs,
            scheduler: None,
            budgets: BTreeMap::new(),
            orphans: NamedBudgets::default(),
            since: Instant::now(),
            timers: Vec::new(),
        };
        state.start(&myself, Role::Dispatcher).await?;
        state.start(&myself, Role::Scheduler).await?;
        if state.args.site.claims {
            let flow = &state.args.site.flow.flow;
            tracing::info!(r#type = %flow, master_task_queue = flow.master_task_queue(), task_queue = flow.task_queue(), "a flow has started");
        }
        state.args.site.shared.metrics.flow_up(&state.args.site.flow.flow, true);
        state.args.site.shared.health.flow_started(&state.args.site.flow.flow);
        if !state.args.site.claims {
            state.timers.push(after(&myself, CHECK_OPEN, || FlowMessage::CheckOpen));
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: FlowMessage,
        state: &mut FlowState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            FlowMessage::Dispatcher(DispatcherEvent::WantsRecovery(done)) => state.recover(None, done),
            FlowMessage::RunOrphaned(RunOrphaned { name, why }) => {
                let wait = state.orphans.wait_after_failure(&name, &ORPHANS, state.since.elapsed());
                tracing::error!(workflow_id = name, why, ?wait, "a JobActor died; its run is handed to a successor");
                state.args.site.shared.metrics.actor_restarted(Role::Job);
                if wait.is_zero() {
                    state.settle_orphan(&myself, Some(name));
                } else {
                    state.timers.push(after(&myself, wait, || FlowMessage::SettleOrphan(Some(name))));
                }
            }
            FlowMessage::SettleOrphan(name) => state.settle_orphan(&myself, name),
            FlowMessage::OrphanSettled(name, None) => {
                state.timers.push(after(&myself, ASK_AGAIN, || FlowMessage::SettleOrphan(name)));
            }
            // The run may turn out to have been settled already, and its slot to be free.
            FlowMessage::OrphanSettled(_, Some(())) => {
                state.args.site.dispatcher.cast(DispatcherMessage::Wake);
            }
            // Something else may have started it meanwhile.
            FlowMessage::Restart(role) if state.children.values().any(|child| *child == role) => {}
            FlowMessage::Restart(role) => state.start(&myself, role).await?,
            FlowMessage::Reconfigure(site, done) => state.reconfigure(&myself, site, done).await?,
            FlowMessage::ClaimingStopped(done) => {
                // It may be configured again by now.
                if !state.args.site.claims {
                    // The new one has no name, which another flow may want to have.
                    state.replace_dispatcher(&myself).await?;
                    state.timers.push(after(&myself, CHECK_OPEN, || FlowMessage::CheckOpen));
                }
                done.send(());
            }
            FlowMessage::CheckOpen => state.check_open(&myself),
            FlowMessage::NothingOpen => {
                if !state.args.site.claims && state.jobs.get_children().is_empty() {
                    myself.stop(Some(FINISHED.to_owned()));
                }
            }
            #[cfg(test)]
            FlowMessage::Panic => panic!("asked to by a test"),
        }
        state.timers.retain(|timer| !timer.is_finished());
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut FlowState,
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

impl FlowState {
    fn recover(&self, only: Option<String>, done: Reply<()>) {
        (self.args.recover)(RecoverRequest { site: self.args.site.clone(), jobs: self.jobs.clone(), only, done });
    }

    fn settle_orphan(&self, myself: &ActorRef<FlowMessage>, name: Option<String>) {
        let done = Reply::to(myself, {
            let name = name.clone();
            move |answer| FlowMessage::OrphanSettled(name, answer)
        });
        self.recover(name, done);
    }

    async fn start(&mut self, myself: &ActorRef<FlowMessage>, role: Role) -> Result<(), ActorProcessingErr> {
        let site = &self.args.site;
        let flow = &site.flow.flow;
        let id = match role {
            Role::JobSupervisor => {
                self.jobs = start_job_supervisor(&self.args.site, myself).await?;
                self.jobs.get_id()
            }
            Role::Dispatcher => {
                let args = DispatcherArgs {
                    shared: Arc::clone(&site.shared),
                    flow: Arc::clone(&site.flow),
                    port: site.dispatcher.clone(),
                    jobs: self.jobs.clone(),
                    claims: site.claims,
                    parent: upward(myself, FlowMessage::Dispatcher),
                };
                // A flow that is no longer configured may share a task queue with one that is.
                let name = site.claims.then(|| flow.task_queue());
                let actor = self.watch(role, DispatcherActor);
                Watched::spawn_linked(name, actor, args, myself.get_cell()).await?.0.get_id()
            }
            Role::Scheduler if site.claims => {
                let args = SchedulerArgs {
                    shared: Arc::clone(&site.shared),
                    flow: Arc::clone(&site.flow),
                    dispatcher: site.dispatcher.clone(),
                };
                let name = Some(flow.master_task_queue());
                let actor = self.watch(role, SchedulerActor);
                let (scheduler, _) = Watched::spawn_linked(name, actor, args, myself.get_cell()).await?;
                self.scheduler.insert(scheduler).get_id()
            }
            Role::Scheduler
            | Role::Root
            | Role::Status
            | Role::Recovery
            | Role::Retention
            | Role::Flow
            | Role::Job
            | Role::Heartbeat => {
                return Ok(());
            }
        };
        self.children.insert(id, role);
        Ok(())
    }

    fn watch<A: Actor>(&self, role: Role, actor: A) -> Watched<A> {
        self.args.site.shared.tree.watch(role, Some(&self.args.site.flow.flow), actor)
    }

    async fn child_ended(
        &mut self,
        myself: &ActorRef<FlowMessage>,
        id: ActorId,
        why: &str,
    ) -> Result<(), ActorProcessingErr> {
        let Some(role) = self.children.remove(&id) else { return Ok(()) };
        let flow = &self.args.site.flow.flow;
        match self.budgets.entry(role).or_default().on_failure(&RESTARTS, self.since.elapsed()) {
            RestartDecision::GiveUp => Err(format!("the {} keeps failing: {why}", role.as_str()).into()),
            RestartDecision::After(wait) => {
                tracing::error!(r#type = %flow, actor = role.as_str(), why, wait = ?wait, "an actor ended and is started again");
                self.args.site.shared.metrics.actor_restarted(role);
                if role == Role::JobSupervisor {
                    // All JobActors died with it; a dispatcher that knows the new one also has their runs recovered.
                    self.start(myself, role).await?;
                    self.replace_dispatcher(myself).await
                } else if wait.is_zero() {
                    self.start(myself, role).await
                } else {
                    self.timers.push(after(myself, wait, move || FlowMessage::Restart(role)));
                    Ok(())
                }
            }
        }
    }

    /// Hands new settings to those who hold the old ones. Runs are not among them: each ends as it was begun.
    async fn reconfigure(
        &mut self,
        myself: &ActorRef<FlowMessage>,
        site: FlowSite,
        done: Reply<()>,
    ) -> Result<(), ActorProcessingErr> {
        let claimed = std::mem::replace(&mut self.args.site, site).claims;
        let site = &self.args.site;
        match (claimed, site.claims) {
            (true, true) | (false, false) => {
                site.dispatcher.cast(DispatcherMessage::Reconfigure(Arc::clone(&site.flow)));
                if let Some(scheduler) = &self.scheduler
                    && scheduler.cast(SchedulerMessage::Reconfigure(Arc::clone(&site.flow))).is_err()
                {
                    tracing::debug!(r#type = %site.flow.flow, "a scheduler was reconfigured that is just being restarted");
                }
            }
            (false, true) => {
                self.replace_dispatcher(myself).await?;
                self.start(myself, Role::Scheduler).await?;
            }
            (true, false) => {
                self.end_scheduler().await?;
                self.args.site.shared.health.flow_retired(&self.args.site.flow.flow);
                let stopped = Reply::to(myself, |_: Option<()>| FlowMessage::ClaimingStopped(done));
                self.args.site.dispatcher.cast(DispatcherMessage::StopClaiming(stopped));
                return Ok(());
            }
        }
        done.send(());
        Ok(())
    }

    async fn end_scheduler(&mut self) -> Result<(), ActorProcessingErr> {
        self.children.retain(|_, role| *role != Role::Scheduler);
        if let Some(scheduler) = self.scheduler.take() {
            // It holds nothing that is worth its time, and never waits for this actor inside a handler.
            scheduler.kill_and_wait(Some(CHILD_ENDS)).await?;
        }
        Ok(())
    }

    /// A flow that is no longer configured ends with its last open run, as the store has it.
    fn check_open(&mut self, myself: &ActorRef<FlowMessage>) {
        if self.args.site.claims {
            return;
        }
        let (site, idle) = (self.args.site.clone(), self.jobs.get_children().is_empty());
        let myself = myself.clone();
        self.timers.push(AbortOnDrop::spawn(async move {
            let open = if idle {
                site.shared.store.open_jobs(&site.shared.worker, Some(&site.flow.flow)).await.ok()
            } else {
                None
            };
            // A row that somebody else has set to an open status has no token and is no run of ours.
            let message = match open {
                Some(open) if open.iter().all(|job| job.token.is_none()) => FlowMessage::NothingOpen,
                Some(_) | None => {
                    tokio::time::sleep(CHECK_OPEN).await;
                    FlowMessage::CheckOpen
                }
            };
            if myself.cast(message).is_err() {
                tracing::debug!("a look at the open runs of a flow outlived it");
            }
        }));
    }

    async fn replace_dispatcher(&mut self, myself: &ActorRef<FlowMessage>) -> Result<(), ActorProcessingErr> {
        let old = self.children.iter().find(|(_, role)| **role == Role::Dispatcher).map(|(id, _)| *id);
        if let (Some(old), Some(dispatcher)) = (old, self.args.site.dispatcher.actor()) {
            self.children.remove(&old);
            // It never waits for this actor inside a handler, so this does not deadlock.
            dispatcher.kill_and_wait(Some(CHILD_ENDS)).await?;
        }
        self.start(myself, Role::Dispatcher).await
    }
}

async fn start_job_supervisor(
    site: &FlowSite,
    myself: &ActorRef<FlowMessage>,
) -> Result<ActorRef<JobSupervisorMessage>, ActorProcessingErr> {
    let parent = upward(myself, FlowMessage::RunOrphaned);
    let actor = site.shared.tree.watch(Role::JobSupervisor, Some(&site.flow.flow), JobSupervisor);
    Ok(Watched::spawn_linked(None, actor, parent, myself.get_cell()).await?.0)
}

fn upward<E: 'static>(
    myself: &ActorRef<FlowMessage>,
    message: impl Fn(E) -> FlowMessage + Send + Sync + 'static,
) -> Upward<E> {
    let myself = myself.clone();
    Arc::new(move |event| {
        if myself.cast(message(event)).is_err() {
            tracing::debug!("a child's event came for a flow that is gone");
        }
    })
}
