//! SchedulerActor: the tick of one flow, "there may be work", and its recurring jobs.
//!
//! Started by the flow. tokio-cron-scheduler wakes it at the start of each minute; whether the flow's schedule is due
//! is decided here, from the schedule and the clock, because that library stalls when the clock is set back and is an
//! hour off after a DST change (its issue 107). A watchdog on the monotonic clock rebuilds it where it falls silent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

use super::dispatcher::DispatcherMessage;
use super::status::ErrorChain;
use super::{AbortOnDrop, Port, Shared, after};
use crate::config::FlowConfig;
use crate::domain::Timestamp;

/// The start of every minute, with the seconds that tokio-cron-scheduler wants in front.
const EVERY_MINUTE: &str = "0 * * * * *";
const WATCHDOG_INTERVAL: Duration = Duration::from_secs(10);
/// A minute's tick and some seconds more.
const SILENCE: Duration = Duration::from_secs(70);
/// A scheduler that has not ticked for so long is not working, whatever its watchdog does.
pub const LONGEST_SILENCE: Duration = Duration::from_secs(180);

/// No wait for the next fire of a recurring job is longer, since clocks are set; the tick comes about as often.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A little more than the wait, so that a clock that counts a little slower finds the fire due.
const A_LITTLE: Duration = Duration::from_millis(2);
/// The wait before the recurring jobs are looked at again where the database failed.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// The ticker of one flow.
pub struct SchedulerActor;

/// What a SchedulerActor is told.
pub enum SchedulerMessage {
    /// A minute has begun.
    Tick,
    /// Look whether ticks still come.
    CheckTicks,
    /// A recurring job may be due.
    LookAtRecurring,
    /// They were looked at; this is how long to wait.
    LookedAtRecurring(Duration),
    /// The flow's settings are these from now on.
    Reconfigure(Arc<FlowConfig>),
    /// Fail in the way that a test asks for.
    #[cfg(test)]
    Panic,
}

/// What a SchedulerActor is started with.
#[derive(Clone)]
pub struct SchedulerArgs {
    /// What all actors share.
    pub shared: Arc<Shared>,
    /// The flow.
    pub flow: Arc<FlowConfig>,
    /// Who is told.
    pub dispatcher: Port<DispatcherMessage>,
}

/// What a SchedulerActor knows.
pub struct SchedulerState {
    args: SchedulerArgs,
    evaluated: Timestamp,
    ticked: Instant,
    _ticks: Ticks,
    _watchdog: AbortOnDrop,
    /// The look at the recurring jobs that is under way.
    look: Option<AbortOnDrop>,
    next_look: Option<AbortOnDrop>,
}

/// A running cron scheduler, ended when it is dropped: dropping the library's own handle leaves it firing for ever.
struct Ticks(Arc<AtomicBool>);

impl Drop for Ticks {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Actor for SchedulerActor {
    type Msg = SchedulerMessage;
    type State = SchedulerState;
    type Arguments = SchedulerArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: SchedulerArgs,
    ) -> Result<SchedulerState, ActorProcessingErr> {
        let ticks = start_ticks(&myself).await?;
        let watchdog = myself.send_interval(WATCHDOG_INTERVAL, || SchedulerMessage::CheckTicks);
        let now = args.shared.clock.now();
        args.shared.health.ticked(&args.flow.flow);
        args.shared.metrics.scheduler_tick(&args.flow.flow, now, false);
        let mut state = SchedulerState {
            args,
            evaluated: now,
            ticked: Instant::now(),
            _ticks: ticks,
            _watchdog: watchdog.into(),
            look: None,
            next_look: None,
        };
        state.look_at_recurring(&myself);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: SchedulerMessage,
        state: &mut SchedulerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SchedulerMessage::Tick => {
                state.tick();
                state.look_at_recurring(&myself);
            }
            SchedulerMessage::LookAtRecurring => state.look_at_recurring(&myself),
            SchedulerMessage::LookedAtRecurring(wait) => {
                state.look = None;
                state.next_look = Some(after(&myself, wait, || SchedulerMessage::LookAtRecurring));
            }
            SchedulerMessage::Reconfigure(flow) => {
                state.args.flow = flow;
                // One that is under way looks at what there was before.
                state.look = None;
                state.look_at_recurring(&myself);
            }
            SchedulerMessage::CheckTicks => {
                if state.ticked.elapsed() > SILENCE {
                    tracing::warn!(
                        r#type = %state.args.flow.flow,
                        "the cron scheduler has fallen silent, as it does when the clock is set back; it is started anew"
                    );
                    state._ticks = start_ticks(&myself).await?;
                    state.tick();
                    state.look_at_recurring(&myself);
                }
            }
            #[cfg(test)]
            SchedulerMessage::Panic => panic!("asked to by a test"),
        }
        Ok(())
    }
}

impl SchedulerState {
    /// Enqueues what is due, on a task: the database may take its time.
    fn look_at_recurring(&mut self, myself: &ActorRef<SchedulerMessage>) {
        if self.args.flow.recurring.is_empty() || self.look.is_some() {
            return;
        }
        self.next_look = None;
        let (shared, flow, myself) = (Arc::clone(&self.args.shared), Arc::clone(&self.args.flow), myself.clone());
        self.look = Some(AbortOnDrop::spawn(async move {
            // A panic in it must not be the last look; a set of one aborts its task when this one is aborted.
            let mut task = tokio::task::JoinSet::new();
            task.spawn(fire(shared, flow));
            let wait = match task.join_next().await {
                Some(Ok(wait)) => wait,
                Some(Err(failure)) => {
                    tracing::error!(%failure, "a look at the recurring jobs panicked");
                    LOOK_AGAIN
                }
                None => LOOK_AGAIN,
            };
            if myself.cast(SchedulerMessage::LookedAtRecurring(wait)).is_err() {
                tracing::debug!("a look at the recurring jobs outlived its scheduler");
            }
        }));
    }

    fn tick(&mut self) {
        let now = self.args.shared.clock.now();
        let due = self.args.flow.schedule.is_due(self.evaluated, now);
        self.evaluated = now;
        self.ticked = Instant::now();
        self.args.shared.health.ticked(&self.args.flow.flow);
        self.args.shared.metrics.scheduler_tick(&self.args.flow.flow, now, due);
        if due {
            self.args.dispatcher.cast(DispatcherMessage::Wake);
        }
    }
}

/// Enqueues the recurring jobs of a flow that are due, and says when to look again.
async fn fire(shared: Arc<Shared>, flow: Arc<FlowConfig>) -> Duration {
    let fired = match shared.store.fire(&flow).await {
        Ok(fired) => fired,
        Err(error) => {
            tracing::warn!(r#type = %flow.flow, error = %ErrorChain(&error), "the recurring jobs can't be looked at now");
            return LOOK_AGAIN;
        }
    };
    for fire in fired.fires {
        let (name, due) = (fire.name, rfc3339(fire.time));
        match fire.job {
            Some(job) => {
                tracing::info!(r#type = %flow.flow, recurring = name, due, job = job.0, missed = fire.missed, "a recurring job was enqueued");
            }
            None => {
                tracing::info!(r#type = %flow.flow, recurring = name, due, "a recurring job is left out, since its last one has not ended");
            }
        }
    }
    fired.next.map_or(LONGEST_WAIT, |next| (next + A_LITTLE).min(LONGEST_WAIT))
}

fn rfc3339(time: Timestamp) -> String {
    chrono::DateTime::from_timestamp_millis(time.unix_millis()).unwrap_or_default().to_rfc3339()
}

async fn start_ticks(myself: &ActorRef<SchedulerMessage>) -> Result<Ticks, JobSchedulerError> {
    let scheduler = JobScheduler::new().await?;
    let myself = myself.clone();
    let job = Job::new_async(EVERY_MINUTE, move |_, _| {
        let myself = myself.clone();
        Box::pin(async move {
            if myself.cast(SchedulerMessage::Tick).is_err() {
                tracing::debug!("a tick came for a scheduler that is gone");
            }
        })
    })?;
    scheduler.add(job).await?;
    scheduler.start().await?;
    let shutdown = scheduler.scheduler.read().await.shutdown.clone();
    Ok(Ticks(shutdown))
}
