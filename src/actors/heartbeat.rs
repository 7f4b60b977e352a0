//! HeartbeatActor: confirms one run in the store, and learns there whether it is still ours and still wanted.
//!
//! Started by its JobActor once the command runs, ends with it, and tells it of cancel requests and lost ownership.
//! It compares instants and does not count ticks: after a stall ticks come in a burst.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{AbortOnDrop, Port, Reply, Upward};
use crate::actors::status::StatusMessage;
use crate::domain::heartbeat::{Lease, LeaseTerms, Leasing, Tell, confirmation_interval, is_overdue};
use crate::domain::{FlowType, RunToken};
use crate::metrics::Metrics;
use crate::process::LeaseUntil;
use crate::store::{Confirm, Write, Written};

/// The confirmer of one run.
pub struct HeartbeatActor;

/// What a HeartbeatActor is told.
pub enum HeartbeatMessage {
    /// It may be time to confirm.
    Tick,
    /// The store's answer to a confirmation that wrote this lease, or `None` where the StatusActor died over it.
    Answered(Lease, Option<Vec<Written>>),
    /// The shim has acknowledged the lease that it was told of last.
    Leased,
    /// The service stops and leaves the command running: have it keep its run for a while.
    Leave(Kept),
    /// Fail in the way that a test asks for.
    #[cfg(test)]
    Panic,
}

/// Dropped once a run's lease is long enough for its service to be away, or where it needs none.
pub type Kept = mpsc::UnboundedSender<()>;

/// What a HeartbeatActor tells its JobActor.
#[derive(Clone, Debug)]
pub enum HeartbeatEvent {
    /// The shim is to be told of this lease, or that it needs none; then whoever waits may go on.
    Lease(Option<LeaseUntil>, Option<Kept>),
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
    pub terms: LeaseTerms,
    /// How its lease stands.
    pub leasing: Leasing,
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
    leasing: Leasing,
    kept: Option<Kept>,
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
        let interval = confirmation_interval(args.terms.heartbeat_timeout);
        let ticks = myself.send_interval(interval, || HeartbeatMessage::Tick);
        let mut state = HeartbeatState {
            leasing: args.leasing,
            args,
            kept: None,
            waiting: false,
            overdue: false,
            confirmed: Instant::now(),
            _ticks: ticks.into(),
        };
        if state.leasing != Leasing::Long {
            // Who has just come back may have little time left.
            state.tick(&myself);
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: HeartbeatMessage,
        state: &mut HeartbeatState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            HeartbeatMessage::Tick => state.tick(&myself),
            HeartbeatMessage::Answered(_, None) => state.waiting = false,
            HeartbeatMessage::Answered(wrote, Some(answers)) => state.answered(wrote, &answers),
            HeartbeatMessage::Leased => {
                // Each renewal is acknowledged, too.
                if state.leasing == Leasing::Shortening {
                    state.leasing = state.leasing.acknowledged();
                    state.tick(&myself);
                }
            }
            HeartbeatMessage::Leave(kept) => {
                let (leasing, tell) = state.leasing.left();
                state.leasing = leasing;
                if leasing == Leasing::Planned {
                    // Also where another one is under way: they are written in their order.
                    state.kept = Some(kept);
                    state.confirm(&myself);
                } else if tell == Tell::Freely {
                    (state.args.parent)(HeartbeatEvent::Lease(None, Some(kept)));
                }
            }
            #[cfg(test)]
            HeartbeatMessage::Panic => panic!("asked to by a test"),
        }
        Ok(())
    }
}

impl HeartbeatState {
    fn tick(&mut self, myself: &ActorRef<HeartbeatMessage>) {
        if !self.overdue && is_overdue(self.confirmed.elapsed(), self.args.terms.heartbeat_timeout) {
            self.overdue = true;
            self.args.metrics.heartbeat_timeout(&self.args.flow);
            let what = match self.leasing {
                Leasing::Long | Leasing::Shortening | Leasing::Planned | Leasing::Left => "its command runs on",
                Leasing::Short | Leasing::Lengthening => "other workers live, so its shim ends its command",
            };
            tracing::warn!(
                parent: &self.args.span,
                "a run has gone unconfirmed for longer than its heartbeat_timeout; {what}"
            );
        }
        // One confirmation at a time: while the database is away they must not pile up.
        if !self.waiting {
            self.confirm(myself);
        }
    }

    fn confirm(&mut self, myself: &ActorRef<HeartbeatMessage>) {
        let lease = self.leasing.to_write();
        let untouched = self.args.terms.untouched(lease);
        let confirm = vec![Write::Confirm(vec![Confirm { token: self.args.token.clone(), untouched }])];
        let reply = Reply::to(myself, move |answer| HeartbeatMessage::Answered(lease, answer));
        self.waiting = self.args.status.cast(StatusMessage::Write(confirm, reply));
    }

    fn answered(&mut self, wrote: Lease, answers: &[Written]) {
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
                    // Where the row was locked the lease is as it was, and so the shim's has to stay.
                    if run.written {
                        let (leasing, tell) = self.leasing.confirmed(wrote, run.shared);
                        self.leasing = leasing;
                        self.tell(tell, run.begun);
                    }
                }
                None => (self.args.parent)(HeartbeatEvent::OwnershipLost),
            }
        }
    }

    fn tell(&mut self, tell: Tell, begun: Duration) {
        let lease = match tell {
            Tell::Nothing => return,
            Tell::Freely => None,
            Tell::Until(lease) => self
                .args
                .terms
                .runs_on(lease)
                .map(|timeout| LeaseUntil { until: begun.saturating_add(timeout), timeout }),
        };
        let kept = if tell == Tell::Until(Lease::Planned) { self.kept.take() } else { None };
        (self.args.parent)(HeartbeatEvent::Lease(lease, kept));
    }
}
