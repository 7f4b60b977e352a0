//! SchedulerActor: the tick of one flow, "there may be work".
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
use super::{AbortOnDrop, Port, Shared};
use crate::config::FlowConfig;
use crate::domain::Timestamp;

/// The start of every minute, with the seconds that tokio-cron-scheduler wants in front.
const EVERY_MINUTE: &str = "0 * * * * *";
const WATCHDOG_INTERVAL: Duration = Duration::from_secs(10);
/// A minute's tick and some seconds more.
const SILENCE: Duration = Duration::from_secs(70);
/// A scheduler that has not ticked for so long is not working, whatever its watchdog does.
pub const LONGEST_SILENCE: Duration = Duration::from_secs(180);

/// The ticker of one flow.
pub struct SchedulerActor;

/// What a SchedulerActor is told.
pub enum SchedulerMessage {
    /// A minute has begun.
    Tick,
    /// Look whether ticks still come.
    CheckTicks,
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
        Ok(SchedulerState { args, evaluated: now, ticked: Instant::now(), _ticks: ticks, _watchdog: watchdog.into() })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: SchedulerMessage,
        state: &mut SchedulerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SchedulerMessage::Tick => state.tick(),
            SchedulerMessage::Reconfigure(flow) => state.args.flow = flow,
            SchedulerMessage::CheckTicks => {
                if state.ticked.elapsed() > SILENCE {
                    tracing::warn!(
                        r#type = %state.args.flow.flow,
                        "the cron scheduler has fallen silent, as it does when the clock is set back; it is started anew"
                    );
                    state._ticks = start_ticks(&myself).await?;
                    state.tick();
                }
            }
            #[cfg(test)]
            SchedulerMessage::Panic => panic!("asked to by a test"),
        }
        Ok(())
    }
}

impl SchedulerState {
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
