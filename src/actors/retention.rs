//! RetentionActor: compresses the logs of runs that have ended, and removes logs and rows that are old enough.
//!
//! Started by the root; told of each end by the run's JobActor, and looks through all run directories once when it starts
//! (for what a crash left undone) and then each hour. It does one thing at a time, on threads for blocking work, and
//! nothing waits for it: what it has not done yet can be read all the same.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;

use super::status::ErrorChain;
use super::{AbortOnDrop, Shared};
use crate::config::RetentionConfig;
use crate::domain::retention::{Known, may_go};
use crate::domain::{JobId, Timestamp};
use crate::metrics::MailboxGauge;
use crate::process::upkeep::{RunDirectories, RunDirectory};
use crate::store::{KnownRun, Pruned, Store};

/// How often old logs and rows are looked for.
const PASS_INTERVAL: Duration = Duration::from_secs(3600);
/// The rest between two batches of a pass, which is in no hurry.
const REST: Duration = Duration::from_millis(20);
/// Runs that wait to be compressed; what is beyond that is found at the next start.
const MOST_QUEUED: usize = 10_000;

/// The keeper of run directories.
pub struct RetentionActor;

/// What a RetentionActor is told.
#[derive(Debug)]
pub enum RetentionMessage {
    /// A run has ended, and its logs are worth compressing.
    RunEnded(RunDirectory),
    /// It is time to look through all run directories.
    Pass,
    /// What was being done is done.
    Worked,
    /// Fail in the way that a test asks for.
    #[cfg(test)]
    Panic,
    /// Have the work fail in that way.
    #[cfg(test)]
    PanicAtWork,
    /// Whether something is being done.
    #[cfg(test)]
    GetAtWork(tokio::sync::oneshot::Sender<bool>),
}

/// What a RetentionActor is started with.
#[derive(Clone)]
pub struct RetentionArgs {
    /// What all actors share; [`Shared::retention`] is connected to the actor.
    pub shared: Arc<Shared>,
    /// The run directories of this worker.
    pub directories: RunDirectories,
    /// How long what is kept.
    pub kept: RetentionConfig,
    /// Counts its mailbox.
    pub mailbox: MailboxGauge,
}

/// What a RetentionActor knows.
pub struct RetentionState {
    args: RetentionArgs,
    ended: VecDeque<RunDirectory>,
    pass_is_due: bool,
    /// Whether everything has been looked through once.
    looked_through: bool,
    work: Option<AbortOnDrop>,
    _ticks: AbortOnDrop,
}

impl Actor for RetentionActor {
    type Msg = RetentionMessage;
    type State = RetentionState;
    type Arguments = RetentionArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: RetentionArgs,
    ) -> Result<RetentionState, ActorProcessingErr> {
        args.shared.retention.connect(myself.clone(), args.mailbox.clone());
        args.shared.retention.cast(RetentionMessage::Pass);
        let port = args.shared.retention.clone();
        let ticks = AbortOnDrop::spawn(async move {
            loop {
                tokio::time::sleep(PASS_INTERVAL).await;
                port.cast(RetentionMessage::Pass);
            }
        });
        Ok(RetentionState {
            args,
            ended: VecDeque::new(),
            pass_is_due: false,
            looked_through: false,
            work: None,
            _ticks: ticks,
        })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: RetentionMessage,
        state: &mut RetentionState,
    ) -> Result<(), ActorProcessingErr> {
        state.args.shared.retention.taken();
        match message {
            RetentionMessage::RunEnded(directory) if state.ended.len() < MOST_QUEUED => {
                state.ended.push_back(directory);
            }
            RetentionMessage::RunEnded(_) => {}
            RetentionMessage::Pass => state.pass_is_due = true,
            RetentionMessage::Worked => state.work = None,
            #[cfg(test)]
            RetentionMessage::Panic => panic!("asked to by a test"),
            #[cfg(test)]
            RetentionMessage::PanicAtWork => state.begin(async { panic!("asked to by a test") }),
            #[cfg(test)]
            RetentionMessage::GetAtWork(reply) => drop(reply.send(state.work.is_some())),
        }
        state.go_on();
        Ok(())
    }
}

impl RetentionState {
    /// Begins what comes next, where nothing is being done.
    fn go_on(&mut self) {
        if self.work.is_some() {
            return;
        }
        let args = self.args.clone();
        if let Some(directory) = self.ended.pop_front() {
            self.begin(async move { compress(&args.directories, directory).await });
        } else if std::mem::take(&mut self.pass_is_due) {
            let everything = !std::mem::replace(&mut self.looked_through, true);
            self.begin(async move {
                if everything || args.kept.logs.is_some() {
                    pass(&args, everything).await;
                }
                remove_rows(&args).await;
            });
        }
    }

    fn begin(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        let port = self.args.shared.retention.clone();
        self.work = Some(AbortOnDrop::spawn(async move {
            // Nothing of it is used again, and what comes next is to be done all the same.
            if AssertUnwindSafe(work).catch_unwind().await.is_err() {
                tracing::error!("the upkeep of logs and rows panicked; what is left of it is done by the next pass");
            }
            port.cast(RetentionMessage::Worked);
        }));
    }
}

/// Does what blocks on a thread for that; a panic there is told like an error.
async fn blocking<T: Send + 'static>(what: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
    tokio::task::spawn_blocking(what).await.unwrap_or_else(|failure| Err(std::io::Error::other(failure)))
}

async fn compress(directories: &RunDirectories, directory: RunDirectory) {
    let (directories, job, attempt) = (directories.clone(), directory.job.0, directory.attempt.0);
    if let Err(error) = blocking(move || directories.compress(&directory)).await {
        tracing::warn!(job, attempt, error = %ErrorChain(&error), "the logs of a run could not be compressed");
    }
}

/// Looks through the run directories that may be old enough, or through all.
async fn pass(args: &RetentionArgs, everything: bool) {
    let now = args.shared.clock.now();
    let before = match (everything, args.kept.logs) {
        (false, Some(kept)) => now.minus(kept),
        (true, _) | (false, None) => now,
    };
    let (batches, mut found) = mpsc::channel(1);
    let directories = args.directories.clone();
    let search = tokio::spawn(blocking(move || {
        // Where nobody wants to know any more, the service ends.
        directories.older_than(before, |batch| drop(batches.blocking_send(batch)))
    }));
    let mut removed = 0_u64;
    while let Some(batch) = found.recv().await {
        match known(&args.shared.store, &batch).await {
            Ok(known) => {
                for directory in batch {
                    let known = of(&directory, &known);
                    removed += u64::from(see_to(args, directory, known, now).await);
                }
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "which runs have ended can't be read; their logs are kept for now");
                break;
            }
        }
        tokio::time::sleep(REST).await;
    }
    drop(found);
    match search.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(error = %ErrorChain(&error), "the run directories can't be looked through"),
        Err(failure) => tracing::error!(%failure, "the search for old logs panicked"),
    }
    if removed > 0 {
        tracing::info!(removed, "the logs of runs that ended long ago were removed (retention.logs)");
    }
}

/// Removes a directory or compresses its logs, whichever applies; tells whether it was removed.
async fn see_to(args: &RetentionArgs, directory: RunDirectory, known: Known, now: Timestamp) -> bool {
    if args.kept.logs.is_some_and(|kept| may_go(known, directory.modified, now, kept)) {
        let (directories, job, attempt) = (args.directories.clone(), directory.job.0, directory.attempt.0);
        return blocking(move || directories.remove(&directory)).await.unwrap_or_else(|error| {
            tracing::warn!(job, attempt, error = %ErrorChain(&error), "the logs of a run could not be removed");
            false
        });
    }
    if let Known::Ended(_) = known {
        compress(&args.directories, directory).await;
    }
    false
}

/// Removes the rows that are old enough by the database's clock, as far as there is time until the next pass.
async fn remove_rows(args: &RetentionArgs) {
    let store = &args.shared.store;
    let removing = async { store.prune(&args.kept.horizon(store.now().await?), PASS_INTERVAL).await };
    match removing.await {
        Ok(pruned) if pruned.total() > 0 => {
            let Pruned { completed, error, cancelled, deliveries, audit, sessions, more } = pruned;
            tracing::info!(
                completed,
                error,
                cancelled,
                deliveries,
                audit,
                sessions,
                more,
                "old rows were removed (retention)"
            );
        }
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(error = %ErrorChain(&error), "old rows can't be removed now; they are looked for again in an hour");
        }
    }
}

/// The run directories whose logs are old enough; a connection that fails ends the search with what was found.
///
/// # Errors
/// Where the directories can't be read, or the database fails.
pub async fn old_logs(
    store: &Store,
    directories: &RunDirectories,
    kept: Duration,
    now: Timestamp,
) -> std::io::Result<Vec<RunDirectory>> {
    let (search, before) = (directories.clone(), now.minus(kept));
    let found = blocking(move || {
        let mut found = Vec::new();
        search.older_than(before, |batch| found.push(batch))?;
        Ok(found)
    });
    let mut old = Vec::new();
    for batch in found.await? {
        let known = known(store, &batch).await.map_err(std::io::Error::other)?;
        old.extend(batch.into_iter().filter(|directory| may_go(of(directory, &known), directory.modified, now, kept)));
    }
    Ok(old)
}

async fn known(store: &Store, batch: &[RunDirectory]) -> Result<Vec<KnownRun>, crate::store::Error> {
    let mut jobs: Vec<JobId> = batch.iter().map(|directory| directory.job).collect();
    jobs.sort_unstable();
    jobs.dedup();
    store.known_runs(&jobs).await
}

/// What is known of the run in this directory; where several rows could mean it, the one that keeps it.
fn of(directory: &RunDirectory, known: &[KnownRun]) -> Known {
    let rows = known.iter().filter(|run| run.job == directory.job && run.run_token.starts_with(&directory.token_start));
    rows.fold(Known::Nothing, |so_far, run| match (so_far, run.ended) {
        (Known::Open, _) | (_, None) => Known::Open,
        (Known::Ended(earlier), Some(ended)) => Known::Ended(earlier.max(ended)),
        (Known::Nothing, Some(ended)) => Known::Ended(ended),
    })
}
