//! RecoveryActor: gives every open run that nobody owns a JobActor, which finds out what became of it.
//!
//! Started by the root; asked whenever a dispatcher starts (so at every start of the service), whenever a JobActor
//! has died, and where a [stray](super::strays) turns out to be a job's. A row counts as owned while an actor stands under
//! its workflow id, and nothing is concluded from age.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, ActorStatus, SpawnErr};
use tokio::sync::oneshot;

use super::dispatcher::{settle_through, wake_through};
use super::flow::RecoverRequest;
use super::job::{JobActor, JobArgs, JobStart, OwnedRun};
use super::status::{ErrorChain, StatusMessage};
use super::{Port, Reply, Watched};
use crate::domain::Timestamp;
use crate::metrics::{MailboxGauge, Role};
use crate::store::{self, OpenJob};

const TRY_AGAIN: Duration = Duration::from_millis(500);

/// The settler of unowned runs.
pub struct RecoveryActor;

/// What a RecoveryActor is told.
pub enum RecoveryMessage {
    /// See to these runs.
    Recover(RecoverRequest),
    /// Fail in the way that a test asks for.
    #[cfg(test)]
    Panic,
}

/// What a RecoveryActor is started with: how it is found.
pub type RecoveryArgs = (Port<RecoveryMessage>, MailboxGauge);

impl Actor for RecoveryActor {
    type Msg = RecoveryMessage;
    type State = Port<RecoveryMessage>;
    type Arguments = RecoveryArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (port, mailbox): RecoveryArgs,
    ) -> Result<Self::State, ActorProcessingErr> {
        port.connect(myself, mailbox);
        Ok(port)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: RecoveryMessage,
        port: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RecoveryMessage::Recover(request) => {
                port.taken();
                // A task each: a flow whose runs take long to look into must not hold up the others.
                tokio::spawn(recover(request));
            }
            #[cfg(test)]
            RecoveryMessage::Panic => panic!("asked to by a test"),
        }
        Ok(())
    }
}

/// Sees to the runs, and keeps trying while the database is away; a panic in here drops the reply, and is asked again.
async fn recover(request: RecoverRequest) {
    let (health, flow) = (request.site.shared.health.clone(), request.site.flow.flow.clone());
    // Once its JobSupervisor is gone nobody waits for the answer, and what it would find is somebody else's to settle.
    while request.jobs.get_status() < ActorStatus::Stopping {
        match try_recover(&request).await {
            Ok(()) => {
                health.recovering(&flow, None);
                request.done.send(());
                break;
            }
            Err(Failure::Again(why)) => {
                health.recovering(&flow, Some(why.clone()));
                tracing::warn!(r#type = %request.site.flow.flow, why, "open runs can't be looked into yet; will try again");
                tokio::time::sleep(TRY_AGAIN).await;
            }
            // The JobSupervisor is gone; the flow starts another and asks again.
            Err(Failure::Outdated) => break,
        }
    }
}

enum Failure {
    Again(String),
    Outdated,
}

async fn try_recover(request: &RecoverRequest) -> Result<(), Failure> {
    let site = &request.site;
    // A claim may still be on its way to the database, from a dispatcher that no longer lives: the rows are read only
    // after everything that was asked for before.
    let (answer, answered) = oneshot::channel();
    let barrier = Reply::new(move |passed: Option<()>| {
        if answer.send(passed).is_err() {
            tracing::debug!("a recovery was given up while it waited for the StatusActor");
        }
    });
    site.shared.status.cast(StatusMessage::Barrier(barrier));
    if !matches!(answered.await, Ok(Some(()))) {
        return Err(Failure::Again("the StatusActor is being restarted".to_owned()));
    }
    let store = &site.shared.store;
    let open = async {
        let open = store.open_jobs(&site.shared.worker, Some(&site.flow.flow)).await?;
        Ok::<_, store::Error>((open, store.now().await?))
    };
    let (open, looked) = open.await.map_err(|error| Failure::Again(ErrorChain(&error).to_string()))?;
    for job in open {
        let name = site.flow.flow.workflow_id(job.id);
        if request.only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        if let Some(owner) = ractor::registry::where_is(name.clone()) {
            let parent = owner.try_get_supervisor().map(|parent| parent.get_id());
            if parent == Some(request.jobs.get_id()) {
                continue;
            }
            // It died with an earlier JobSupervisor and has not quite gone; its run is nobody's in a moment.
            return Err(Failure::Again(format!("the last actor of {name} is still leaving")));
        }
        let Some(args) = job_args(request, &job, looked) else { continue };
        let actor = request.site.shared.tree.watch(Role::Job, Some(&request.site.flow.flow), JobActor);
        match Watched::spawn_linked(Some(name), actor, args, request.jobs.get_cell()).await {
            Ok(_) => {}
            Err(SpawnErr::ActorAlreadyRegistered(_)) => {
                return Err(Failure::Again(format!("another actor of job {} is just starting", job.id)));
            }
            Err(error) => {
                tracing::error!(job = job.id.0, %error, "the JobActor of an open run can't be started");
                return Err(Failure::Outdated);
            }
        }
    }
    Ok(())
}

fn job_args(request: &RecoverRequest, job: &OpenJob, looked: Timestamp) -> Option<JobArgs> {
    let site = &request.site;
    let Some(token) = job.token.clone() else {
        // Somebody else than Callsheet set its status. The next claim settles it, right after recovery; where the flow is
        // no longer configured there is no next claim.
        tracing::warn!(job = job.id.0, r#type = %site.flow.flow, status = %job.status, "an open row has no run");
        return None;
    };
    Some(JobArgs {
        shared: Arc::clone(&site.shared),
        flow: Arc::clone(&site.flow),
        run: OwnedRun {
            job: job.id,
            token,
            attempt: job.attempt,
            status: job.status,
            identifier: job.identifier.clone().unwrap_or_default(),
            payload: None,
            attempts_before: job.attempts_before,
            maximum_attempts: job.maximum_attempts.unwrap_or_else(|| site.flow.retry.maximum_attempts()),
            schedule_time: job.schedule_time,
            runnable_since: job.runnable_since,
            trace: job.trace.clone(),
            created_time: job.created_time,
            claimed_time: job.queued_time.unwrap_or(job.runnable_since),
            cancel_requested: job.cancel_requested,
        },
        start: JobStart::Recover { looked },
        settle: settle_through(&site.dispatcher),
        slot_freed: wake_through(&site.dispatcher),
    })
}

/// The gauge of a RecoveryActor's mailbox.
pub fn mailbox(metrics: &crate::metrics::Metrics) -> MailboxGauge {
    metrics.mailbox(Role::Recovery)
}
