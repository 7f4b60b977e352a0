//! StatusActor: the one writer of statuses, in group commits.
//!
//! Started by the root, before everything that writes. What has queued up while a transaction was in flight goes into
//! the next one. A write is acknowledged only after its commit; one whose transaction failed is tried again, and one
//! whose StatusActor died answers `None`, upon which whoever asked for it asks again: every write is safe to repeat.
//!
//! The transaction itself is a task that owns its writes, so that a panic or a kill of this actor never leaves a
//! committed write unacknowledged for ever. [`StatusArgs::gate`] keeps the tasks of two incarnations apart.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::Instant;

use super::ahead::{Ahead, Readying};
use super::{AbortOnDrop, Health, Launcher, Launches, Port, Reply, after};
use crate::metrics::{Metrics, Role};
use crate::store::{ConfirmedRun, Error, Store, Write, Written};

/// The most writes that share one transaction, so that none waits long behind the others.
const LARGEST_BATCH: usize = 500;
const FIRST_RETRY: Duration = Duration::from_millis(50);
const SLOWEST_RETRY: Duration = Duration::from_secs(2);

/// The writer of statuses.
pub struct StatusActor;

/// What a StatusActor is told.
pub enum StatusMessage {
    /// Write these in one transaction, in this order, and answer once they are committed.
    Write(Vec<Write>, Reply<Vec<Written>>),
    /// Write all of these in one transaction, in this order, and answer each.
    WriteTogether(Vec<Pending>),
    /// Answer once everything that was asked for before this is committed.
    Barrier(Reply<()>),
    /// A transaction has ended.
    BatchEnded(BatchEnd),
    /// The wait after a failed transaction is over.
    TryAgain,
    /// Fail in the way that a test asks for.
    #[cfg(test)]
    Panic,
}

/// How a transaction ended.
pub enum BatchEnd {
    /// All of it was answered.
    Answered,
    /// The store could not be reached; these are still to be written.
    Unavailable(Vec<Pending>),
}

/// Writes that are not committed yet, and who is told once they are.
pub struct Pending {
    /// What is to be written, in this order.
    pub writes: Vec<Write>,
    /// Told what the store answered to each.
    pub reply: Reply<Vec<Written>>,
    /// What is got ready for each claim of these while it is being committed.
    pub ahead: Option<Readying>,
}

impl Pending {
    fn claims(&self) -> bool {
        self.writes.iter().any(|write| matches!(write, Write::Claim(_)))
    }
}

enum Entry {
    Write(Pending),
    Barrier(Reply<()>),
}

/// What a StatusActor is started with.
#[derive(Clone)]
pub struct StatusArgs {
    /// Where the writes go.
    pub store: Store,
    /// What gets runs ready while their claims are being committed.
    pub launcher: Arc<dyn Launcher>,
    /// Which runs that are.
    pub readying: Launches,
    /// How it is found.
    pub port: Port<StatusMessage>,
    /// Held by each transaction while it runs.
    pub gate: Arc<tokio::sync::Mutex<()>>,
    /// Where batch sizes and times are counted.
    pub metrics: Arc<Metrics>,
    /// Told whether the store takes writes.
    pub health: Health,
    /// Told of every commit.
    pub changed: watch::Sender<()>,
}

/// What a StatusActor knows.
pub struct StatusState {
    args: StatusArgs,
    queue: VecDeque<Entry>,
    busy: bool,
    retry: Duration,
    retry_timer: Option<AbortOnDrop>,
}

impl Actor for StatusActor {
    type Msg = StatusMessage;
    type State = StatusState;
    type Arguments = StatusArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: StatusArgs,
    ) -> Result<StatusState, ActorProcessingErr> {
        args.port.connect(myself, args.metrics.mailbox(Role::Status));
        Ok(StatusState { args, queue: VecDeque::new(), busy: false, retry: FIRST_RETRY, retry_timer: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: StatusMessage,
        state: &mut StatusState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            StatusMessage::Write(writes, reply) => {
                state.args.port.taken();
                state.queue.push_back(Entry::Write(Pending { writes, reply, ahead: None }));
            }
            StatusMessage::WriteTogether(together) => {
                state.args.port.taken();
                state.queue.extend(together.into_iter().map(Entry::Write));
            }
            StatusMessage::Barrier(reply) => {
                state.args.port.taken();
                state.queue.push_back(Entry::Barrier(reply));
            }
            StatusMessage::BatchEnded(BatchEnd::Answered) => {
                state.busy = false;
                state.retry = FIRST_RETRY;
            }
            StatusMessage::BatchEnded(BatchEnd::Unavailable(pending)) => {
                for entry in pending.into_iter().rev() {
                    state.queue.push_front(Entry::Write(entry));
                }
                // Still busy: nothing else goes ahead of what failed.
                state.retry_timer = Some(after(&myself, state.retry, || StatusMessage::TryAgain));
                state.retry = (state.retry * 2).min(SLOWEST_RETRY);
            }
            StatusMessage::TryAgain => {
                state.retry_timer = None;
                state.busy = false;
            }
            #[cfg(test)]
            StatusMessage::Panic => panic!("asked to by a test"),
        }
        if !state.busy {
            state.start_batch(&myself);
        }
        Ok(())
    }
}

impl StatusState {
    fn start_batch(&mut self, myself: &ActorRef<StatusMessage>) {
        let mut batch: Vec<Pending> = Vec::new();
        let mut size = 0;
        while let Some(entry) = self.queue.pop_front() {
            match entry {
                // Everything before the barrier is committed where nothing of it is left to write.
                Entry::Barrier(reply) if batch.is_empty() => {
                    let gate = Arc::clone(&self.args.gate);
                    tokio::spawn(async move {
                        // A transaction of an earlier incarnation may still be in flight.
                        drop(gate.lock().await);
                        reply.send(());
                    });
                }
                Entry::Barrier(reply) => {
                    self.queue.push_front(Entry::Barrier(reply));
                    break;
                }
                Entry::Write(pending) => {
                    size += pending.writes.len();
                    batch.push(pending);
                    if size >= LARGEST_BATCH {
                        break;
                    }
                }
            }
        }
        if batch.is_empty() {
            return;
        }
        // A claim sees each end that shares its transaction; dispatchers count on it.
        batch.sort_by_key(Pending::claims);
        self.busy = true;
        let (args, myself) = (self.args.clone(), myself.clone());
        // Taken here where it is free, so that no barrier of a successor gets in between.
        let gate = Arc::clone(&args.gate).try_lock_owned().ok();
        tokio::spawn(async move {
            // A task in a task, so that a panic in the store is an end like any other.
            let ended = tokio::spawn(commit(args, batch, gate)).await;
            let end = ended.unwrap_or_else(|failure| {
                tracing::error!(%failure, "a transaction of status writes panicked; whoever asked will ask again");
                BatchEnd::Answered
            });
            // Who was answered goes first: a dispatcher's next claim then shares a transaction with the ends that have come.
            tokio::task::yield_now().await;
            if myself.cast(StatusMessage::BatchEnded(end)).is_err() {
                tracing::debug!("a transaction outlived its StatusActor");
            }
        });
    }
}

async fn commit(args: StatusArgs, batch: Vec<Pending>, gate: Option<OwnedMutexGuard<()>>) -> BatchEnd {
    let _gate = match gate {
        Some(gate) => gate,
        None => Arc::clone(&args.gate).lock_owned().await,
    };
    match write(&args, &batch).await {
        Ok(written) => {
            answer(batch, written);
            BatchEnd::Answered
        }
        Err(error) if error.is_transient() && !error.is_contended() => {
            tracing::warn!(error = %ErrorChain(&error), "the database took no status writes; they will be tried again");
            BatchEnd::Unavailable(batch)
        }
        Err(error) if batch.len() == 1 => {
            // Dropping it answers `None`, and its owner asks again later.
            tracing::error!(error = %ErrorChain(&error), "the database refused a status write; it will be tried again");
            BatchEnd::Answered
        }
        // One bad write, or one whose row somebody else has locked, must not hold up those that happened to share its
        // transaction.
        Err(_) => {
            let mut alone = batch.into_iter();
            while let Some(pending) = alone.next() {
                match write(&args, std::slice::from_ref(&pending)).await {
                    Ok(written) => answer(vec![pending], written),
                    Err(error) if error.is_transient() && !error.is_contended() => {
                        return BatchEnd::Unavailable(std::iter::once(pending).chain(alone).collect());
                    }
                    Err(error) => {
                        tracing::error!(error = %ErrorChain(&error), "the database refused a status write; it will be tried again");
                    }
                }
            }
            BatchEnd::Answered
        }
    }
}

async fn write(args: &StatusArgs, batch: &[Pending]) -> Result<Vec<Written>, Error> {
    let (writes, confirmed) = combine(batch);
    let started = Instant::now();
    let ahead = batch.iter().flat_map(|pending| pending.writes.iter().map(|write| (write, &pending.ahead)));
    let ahead = ahead.filter(|(write, _)| matches!(write, Write::Claim(_))).map(|(_, ahead)| ahead.clone());
    let ahead = Ahead::of(&args.launcher, &args.readying, ahead.collect());
    let result = args.store.apply_foreseen(&writes, ahead).await;
    args.metrics.store_up(result.is_ok());
    match &result {
        Ok(_) => {
            args.metrics.store_written(started.elapsed(), writes.len());
            args.health.store(None);
            args.changed.send_replace(());
        }
        Err(error) => {
            args.metrics.store_failed(error.kind());
            args.health.store(Some(error.to_string()));
        }
    }
    result.map(|written| separate(batch, written, confirmed))
}

/// The writes of a batch, with all confirmations of runs made one: a thousand runs are confirmed in one statement.
fn combine(batch: &[Pending]) -> (Vec<Write>, bool) {
    let mut writes = Vec::new();
    let mut confirms = Vec::new();
    for write in batch.iter().flat_map(|pending| &pending.writes) {
        match write {
            Write::Confirm(more) => confirms.extend(more.iter().cloned()),
            other => writes.push(other.clone()),
        }
    }
    let confirmed = !confirms.is_empty();
    if confirmed {
        writes.push(Write::Confirm(confirms));
    }
    (writes, confirmed)
}

/// Gives the answers back in the order of the batch; the combined confirmation came last.
fn separate(batch: &[Pending], mut written: Vec<Written>, confirmed: bool) -> Vec<Written> {
    let current = match confirmed.then(|| written.pop()).flatten() {
        Some(Written::Confirmed(current)) => current,
        _ => Vec::new(),
    };
    let mut others = written.into_iter();
    let answers = batch.iter().flat_map(|pending| &pending.writes).map(|write| match write {
        Write::Confirm(confirms) => {
            let mine = |run: &&ConfirmedRun| confirms.iter().any(|confirm| confirm.token == run.token);
            Some(Written::Confirmed(current.iter().filter(mine).cloned().collect()))
        }
        _ => others.next(),
    });
    answers.map_while(|answer| answer).collect()
}

fn answer(batch: Vec<Pending>, written: Vec<Written>) {
    let mut written = written.into_iter();
    for pending in batch {
        let count = pending.writes.len();
        let answers: Vec<Written> = written.by_ref().take(count).collect();
        if answers.len() == count {
            pending.reply.send(answers);
        } else {
            tracing::error!("the store gave fewer answers than it was given writes");
        }
    }
}

/// An error with all its causes in one line.
pub struct ErrorChain<'a>(pub &'a (dyn std::error::Error + 'static));

impl std::fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
