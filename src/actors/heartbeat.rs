//! HeartbeatActor: confirms one run in the store, and learns there whether it is still ours and still wanted.
//!
//! Started by its JobActor once the command runs, ends with it, and tells it of cancel requests and lost ownership.
//! It compares instants and does not count ticks: after a stall ticks come in a burst.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;

use super::{AbortOnDrop, Port, Reply, Upward};
use crate::actors::status::StatusMessage;
use crate::domain::heartbeat::{confirmation_interval, is_overdue};
use crate::domain::{FlowType, RunToken};
use crate::metrics::Metrics;
use crate::store::{Write, Written};

/// The confirmer of one run.
pub struct HeartbeatActor;

/// What a HeartbeatActor is told.
pub enum HeartbeatMessage {
    /// It may be time to confirm.
    Tick,
    /// The store's answer to a confirmation, or `None` where the StatusActor died over it.
    Answered(Option<Vec<Written>>),
    /// Fail in the way that a test asks for.
    #[cfg(test)]
    Panic,
}

/// What a HeartbeatActor tells its JobActor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeartbeatEvent {
    /// Somebody has asked to cancel the job.
    CancelRequested,
    /// The store says that another token is current, or that the job has ended.
    OwnershipLost,
}

/// What a HeartbeatActor is started with.
#[derive(Clone)]
pub struct HeartbeatArgs {
    /// The run.
    pub token: RunToken,
    /// Its flow, for the metrics.
    pub flow: FlowType,
    /// How long the run may go unconfirmed.
    pub timeout: Duration,
    /// The way to the StatusActor.
    pub status: Port<StatusMessage>,
    /// Where confirmations are counted.
    pub metrics: Arc<Metrics>,
    /// What every line about the run stands in.
    pub span: tracing::Span,
    /// The JobActor's ear.
    pub parent: Upward<HeartbeatEvent>,
}

/// What a HeartbeatActor knows.
pub struct HeartbeatState {
    args: HeartbeatArgs,
    waiting: bool,
    overdue: bool,
    confirmed: Instant,
    _ticks: AbortOnDrop,
}

impl Actor for HeartbeatActor {
    type Msg = HeartbeatMessage;
    type State = HeartbeatState;
    type Arguments = HeartbeatArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: HeartbeatArgs,
    ) -> Result<HeartbeatState, ActorProcessingErr> {
        let ticks = myself.send_interval(confirmation_interval(args.timeout), || HeartbeatMessage::Tick);
        Ok(HeartbeatState { args, waiting: false, overdue: false, confirmed: Instant::now(), _ticks: ticks.into() })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: HeartbeatMessage,
        state: &mut HeartbeatState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            HeartbeatMessage::Tick => state.tick(&myself),
            HeartbeatMessage::Answered(None) => state.waiting = false,
            HeartbeatMessage::Answered(Some(answers)) => state.answered(&answers),
            #[cfg(test)]
            HeartbeatMessage::Panic => panic!("asked to by a test"),
        }
        Ok(())
    }
}

impl HeartbeatState {
    fn tick(&mut self, myself: &ActorRef<HeartbeatMessage>) {
        if !self.overdue && is_overdue(self.confirmed.elapsed(), self.args.timeout) {
            self.overdue = true;
            self.args.metrics.heartbeat_timeout(&self.args.flow);
            tracing::warn!(
                parent: &self.args.span,
                "a run has gone unconfirmed for longer than its heartbeat_timeout; its command runs on"
            );
        }
        // One confirmation at a time: while the database is away they must not pile up.
        if !self.waiting {
            let confirm = vec![Write::Confirm(vec![self.args.token.clone()])];
            self.waiting =
                self.args.status.cast(StatusMessage::Write(confirm, Reply::to(myself, HeartbeatMessage::Answered)));
        }
    }

    fn answered(&mut self, answers: &[Written]) {
        self.waiting = false;
        for answer in answers {
            let Written::Confirmed(current) = answer else { continue };
            match current.iter().find(|run| run.token == self.args.token) {
                Some(run) => {
                    self.confirmed = Instant::now();
                    self.overdue = false;
                    self.args.metrics.heartbeat(&self.args.flow);
                    if run.cancel_requested {
                        (self.args.parent)(HeartbeatEvent::CancelRequested);
                    }
                }
                None => (self.args.parent)(HeartbeatEvent::OwnershipLost),
            }
        }
    }
}
