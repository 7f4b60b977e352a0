//! JobSupervisor: the parent of a flow's JobActors. It does no other work, since its own end would kill them all.
//!
//! Started by the flow, before the dispatcher, and outlives it: a dispatcher that is started again finds the running
//! jobs here. It tells the flow of every JobActor's end, and how it ended.

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};

use super::job::JobState;
use super::{Upward, WatchedState};
use crate::domain::run::RunPhase;

/// The supervisor of one flow's runs.
pub struct JobSupervisor;

/// A JobSupervisor is told nothing but what its children's ends tell it.
pub enum JobSupervisorMessage {
    /// Fail in the way that a test asks for.
    #[cfg(test)]
    Panic,
}

/// A JobActor died, and its run may be without an owner: what a JobSupervisor tells its flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOrphaned {
    /// The JobActor's name, the workflow id.
    pub name: String,
    /// How it died.
    pub why: String,
}

impl Actor for JobSupervisor {
    type Msg = JobSupervisorMessage;
    type State = Upward<RunOrphaned>;
    type Arguments = Upward<RunOrphaned>;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        parent: Upward<RunOrphaned>,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(parent)
    }

    #[cfg(test)]
    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: JobSupervisorMessage,
        _parent: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            JobSupervisorMessage::Panic => panic!("asked to by a test"),
        }
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        parent: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(cell, Some(mut state), _) => {
                // A stop that came from outside looks like a clean end; only the state tells whether the work was done.
                let closed =
                    state.take::<WatchedState<JobState>>().is_ok_and(|job| job.inner().phase() == RunPhase::Closed);
                if !closed {
                    orphaned(parent, cell.get_name(), "it was stopped".to_owned());
                }
            }
            SupervisionEvent::ActorTerminated(cell, None, reason) => {
                orphaned(parent, cell.get_name(), reason.unwrap_or_else(|| "killed".to_owned()));
            }
            SupervisionEvent::ActorFailed(cell, error) => orphaned(parent, cell.get_name(), error.to_string()),
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {}
        }
        Ok(())
    }
}

fn orphaned(parent: &Upward<RunOrphaned>, name: Option<String>, why: String) {
    // Every JobActor is started under its workflow id.
    if let Some(name) = name {
        parent(RunOrphaned { name, why });
    }
}
