//! The overview for everybody who looks: read once in a while, however many look, and counted on in the background.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::actors::status::ErrorChain;
use crate::store::{Error, History, Overview, RecurringRow, Store};

/// What was read is good for so long.
const FRESH: Duration = Duration::from_millis(400);
/// A look waits so long for a count of the whole day; then it goes without.
const PATIENCE: Duration = Duration::from_millis(30);
/// A long backlog is counted exactly this often, and never for more than a twentieth of the time.
const COUNT_EVERY: Duration = Duration::from_secs(10);

/// The overview as it was read last.
#[derive(Clone)]
pub(super) struct Snapshot {
    pub(super) overview: Arc<Overview>,
    /// `None` while the last day is being counted for the first time.
    pub(super) history: Option<Arc<History>>,
    /// How many wait of each type, exactly, a while ago; for types with more than are counted at each look.
    pub(super) waiting: Arc<BTreeMap<String, u64>>,
    /// What has been enqueued by the clock.
    pub(super) recurring: Arc<Vec<RecurringRow>>,
    read: Instant,
}

/// Reads the overview, at most once in [`FRESH`].
#[derive(Default)]
pub(super) struct Overviews {
    last: Mutex<Option<Snapshot>>,
    counted: Arc<Counted>,
    counting: Mutex<Option<JoinHandle<()>>>,
}

/// What a task in the background has counted.
#[derive(Default)]
struct Counted(RwLock<Counts>);

#[derive(Clone, Default)]
struct Counts {
    history: Option<Arc<History>>,
    waiting: Arc<BTreeMap<String, u64>>,
    next: Option<Instant>,
}

impl Counted {
    fn read(&self) -> Counts {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Overviews {
    /// The overview; `now` means as it is after what the caller has just done.
    ///
    /// # Errors
    /// Where the database fails.
    pub(super) async fn read(&self, store: &Store, now: bool) -> Result<Snapshot, Error> {
        let mut last = self.last.lock().await;
        if let Some(last) = last.as_ref().filter(|last| !now && last.read.elapsed() < FRESH) {
            return Ok(last.clone());
        }
        let (overview, recurring) = tokio::try_join!(store.overview(), store.recurring())?;
        let (overview, recurring) = (Arc::new(overview), Arc::new(recurring));
        self.count(store, &overview).await?;
        let Counts { history, waiting, .. } = self.counted.read();
        let snapshot = Snapshot { overview, history, waiting, recurring, read: Instant::now() };
        *last = Some(snapshot.clone());
        Ok(snapshot)
    }

    /// Brings the counts up to date: at once where that is a matter of minutes, else in the background.
    async fn count(&self, store: &Store, overview: &Overview) -> Result<(), Error> {
        let types: BTreeSet<String> = overview.queues.iter().map(|queue| queue.job_type.clone()).collect();
        let counts = self.counted.read();
        let far_behind = counts.history.as_ref().is_none_or(|history| history.is_far_behind(overview.now, &types));
        let backlog = overview.queues.iter().any(|queue| queue.waiting.or_more);
        let count_backlog = backlog && counts.next.is_none_or(|next| next <= Instant::now());
        if let Some(history) = counts.history.as_ref().filter(|_| !far_behind) {
            let mut history = History::clone(history);
            history.update(store, overview.now, &types).await?;
            self.counted.change(|counts| counts.history = Some(Arc::new(history)));
        }
        if !far_behind && !count_backlog {
            return Ok(());
        }
        let mut counting = self.counting.lock().await;
        if counting.as_ref().is_none_or(JoinHandle::is_finished) {
            let (store, counted, now) = (store.clone(), Arc::clone(&self.counted), overview.now);
            *counting = Some(tokio::spawn(async move {
                let started = Instant::now();
                if far_behind {
                    let mut history =
                        counted.read().history.map_or_else(History::default, |history| History::clone(&history));
                    match history.update(&store, now, &types).await {
                        Ok(()) => counted.change(|counts| counts.history = Some(Arc::new(history))),
                        Err(error) => tracing::warn!(error = %ErrorChain(&error), "what has ended can't be counted"),
                    }
                }
                if count_backlog {
                    match store.count_waiting().await {
                        Ok(waiting) => counted.change(|counts| counts.waiting = Arc::new(waiting)),
                        Err(error) => tracing::warn!(error = %ErrorChain(&error), "the backlog can't be counted"),
                    }
                    let pause = COUNT_EVERY.max(started.elapsed() * 20);
                    counted.change(|counts| counts.next = Some(Instant::now() + pause));
                }
            }));
        }
        if let Some(task) = counting.as_mut() {
            // Most databases have counted by then, and a page without a script shows it at once.
            drop(tokio::time::timeout(PATIENCE, task).await);
        }
        Ok(())
    }
}
