//! Wake-ups: how the service learns at once that somebody else has changed something.
//!
//! PostgreSQL tells by NOTIFY, from triggers. SQLite tells nobody, but its files change: the directory is watched, and
//! `PRAGMA data_version` on the writing connection says whether another connection's commit is behind it. MySQL tells nobody
//! either, and is asked.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use sea_orm::sqlx::postgres::{PgListener, PgPool};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::sql::{Dialect, Doing, Row};
use super::{Error, Place, Store};

/// Tells that somebody else may have changed something; it watches until it is dropped.
#[derive(Debug)]
pub struct Wakes {
    here: watch::Receiver<u64>,
    elsewhere: Arc<Notify>,
    task: Option<JoinHandle<()>>,
}

impl Wakes {
    /// Waits until anything but [`Store::apply`] on this store may have changed jobs or flows since the last call.
    ///
    /// Many changes may be told as one, and some are told though nothing of interest has changed. Cancel safe.
    pub async fn next(&mut self) {
        tokio::select! {
            biased;
            () = self.elsewhere.notified() => {}
            changed = self.here.changed() => if changed.is_err() {
                // The store is gone; only the other side can tell anything now.
                self.elsewhere.notified().await;
            }
        }
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Store {
    /// Starts to watch for changes by others. What happened before is not told: look once after this.
    ///
    /// # Errors
    /// Where the database can't be reached; once this has succeeded it is watched for again by itself.
    pub async fn watch(&self) -> Result<Wakes, Error> {
        let elsewhere = Arc::new(Notify::new());
        let wake = Arc::clone(&elsewhere);
        let task = match self.place() {
            Place::Memory => None,
            Place::File(file) => {
                let (path, version) = (file.path().to_owned(), data_version(self.writer()).await?);
                Some(tokio::spawn(watch_file(path, self.writer().clone(), self.own_writes(), version, wake)))
            }
            Place::Server { listeners, instance, .. } => {
                let listener = listen(listeners).await?;
                Some(tokio::spawn(watch_server(listeners.clone(), instance.clone(), listener, wake)))
            }
            Place::SilentServer { .. } => {
                let seen = super::polled::look(self.reader()).await?;
                Some(tokio::spawn(super::polled::watch(self.reader().clone(), seen, wake)))
            }
        };
        Ok(Wakes { here: self.changes_here(), elsewhere, task })
    }
}

const ACTION: &str = "watch for changes";

/// When to look again after the files have changed and been looked at. A commit writes the log before it becomes visible,
/// and becoming visible (a change of shared memory, after an fsync where the client wants one) is no event.
const LOOK_AFTER: [Duration; 13] = [
    Duration::from_micros(250),
    Duration::from_micros(250),
    Duration::from_micros(250),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(4),
    Duration::from_millis(12),
    Duration::from_millis(40),
    Duration::from_millis(120),
    Duration::from_millis(320),
];
/// The first of them that the runtime's timers, which count whole milliseconds, are fine enough for.
const COARSE: usize = 6;
/// How long the watcher rests after an event. A commit writes the log page by page, each page is an event, and a watcher that
/// waits for it takes the processor from whoever is writing; one that rests finds them all together, most of them as one.
const REST: Duration = Duration::from_micros(500);
/// Events that come closer to each other than this were found together.
const TOGETHER: Duration = Duration::from_micros(50);
/// How long after an event to look where it is most likely of no interest: this store itself is writing, or so many looks in
/// a row have found nothing. Each look takes a little time from this store's own commits.
const LOOK_LATER: Duration = Duration::from_millis(5);
const MANY_IN_VAIN: u32 = 32;
/// How often to look without any event: where the directory can't be watched, and as a safety net where it can.
const LOOK_ANYWAY_UNWATCHED: Duration = Duration::from_millis(500);
const LOOK_ANYWAY: Duration = Duration::from_secs(5);

async fn watch_file(
    path: PathBuf,
    writer: DatabaseConnection,
    own_writes: Arc<OwnWrites>,
    mut version: i64,
    wake: Arc<Notify>,
) {
    let touched = Arc::new(Notify::new());
    let watcher = file_watcher(&path, Arc::clone(&touched));
    if let Err(error) = &watcher {
        tracing::warn!(%error, "can't watch the database's directory; looking for new jobs every 500 ms instead");
    }
    let anyway = if watcher.is_ok() { LOOK_ANYWAY } else { LOOK_ANYWAY_UNWATCHED };
    let mut step = LOOK_AFTER.len();
    let mut in_vain: u32 = 0;
    loop {
        if step == LOOK_AFTER.len() {
            in_vain = 0;
        }
        let pause = LOOK_AFTER.get(step).copied().unwrap_or(anyway);
        if step < COARSE {
            exactly(pause).await;
            step += 1;
        } else if timeout(pause, touched.notified()).await.is_err() {
            step = (step + 1).min(LOOK_AFTER.len());
        } else {
            // However fast the files change, there are not more looks than this.
            step = if own_writes.any() || in_vain >= MANY_IN_VAIN { COARSE } else { 0 };
            if step == COARSE {
                sleep(LOOK_LATER).await;
            }
            in_vain = in_vain.saturating_add(1);
        }
        // A database that can't be asked can't be worked with either: whoever works with it will notice.
        if let Ok(now) = data_version(&writer).await
            && now != version
        {
            version = now;
            in_vain = 0;
            wake.notify_one();
            // What comes next comes with events of its own; until then the processor is for what has just come.
            step = step.max(COARSE);
        }
    }
}

/// How many batches this store is committing.
#[derive(Debug, Default)]
pub(super) struct OwnWrites(AtomicUsize);

impl OwnWrites {
    /// Counts one until it is dropped.
    pub(super) fn begin(&self) -> OwnWrite<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        OwnWrite(&self.0)
    }

    fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

/// A batch that is being committed.
pub(super) struct OwnWrite<'a>(&'a AtomicUsize);

impl Drop for OwnWrite<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits for less than the runtime's timers can.
async fn exactly(pause: Duration) {
    // It fails only where the runtime ends, and this task with it.
    let _ = tokio::task::spawn_blocking(move || std::thread::sleep(pause)).await;
}

fn file_watcher(path: &std::path::Path, touched: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let name = path.file_name().unwrap_or_default().to_owned();
    let mut log = name.clone();
    log.push("-wal");
    let mut rested = Instant::now();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let ours = |path: &PathBuf| path.file_name().is_some_and(|file| *file == name || *file == log);
        let is_ours = event.map_or(true, |event| {
            !matches!(event.kind, EventKind::Access(_)) && (event.need_rescan() || event.paths.iter().any(ours))
        });
        if is_ours {
            touched.notify_one();
            if rested.elapsed() > TOGETHER {
                std::thread::sleep(REST);
                rested = Instant::now();
            }
        }
    })?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    watcher.watch(directory, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// Changes when another connection has committed (<https://www.sqlite.org/pragma.html#pragma_data_version>).
async fn data_version(writer: &DatabaseConnection) -> Result<i64, Error> {
    let statement = Dialect::Sqlite.statement("PRAGMA data_version", []);
    let result = writer.query_one_raw(statement).await.doing(ACTION)?;
    result.map_or(Ok(0), |result| Row { result: &result, dialect: Dialect::Sqlite }.int("data_version"))
}

/// A connection that has died without a word is found out by asking it, this often.
const ASK_AFTER: Duration = Duration::from_secs(30);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

async fn listen(pool: &PgPool) -> Result<PgListener, Error> {
    let listening = async {
        let mut listener = PgListener::connect_with(pool).await?;
        listener.listen("callsheet").await?;
        Ok(listener)
    };
    listening.await.map_err(|error| Error::from_database(ACTION, super::connection_error(error)))
}

async fn watch_server(pool: PgPool, instance: String, mut listener: PgListener, wake: Arc<Notify>) {
    loop {
        while let Some(told) = notified(&mut listener).await {
            if told.is_none_or(|payload| payload != instance) {
                wake.notify_one();
            }
        }
        drop(listener);
        let mut pause = Duration::from_millis(100);
        listener = loop {
            match listen(&pool).await {
                Ok(listener) => break listener,
                Err(_) => sleep(pause).await,
            }
            pause = (pause * 2).min(Duration::from_secs(5));
        };
        // Nobody knows what was missed.
        wake.notify_one();
    }
}

/// The next notice; `Some(None)` where notices may have been lost on the way, `None` where the connection is of no use
/// any more.
async fn notified(listener: &mut PgListener) -> Option<Option<String>> {
    loop {
        match timeout(ASK_AFTER, listener.try_recv()).await {
            Ok(Ok(Some(notice))) => return Some(Some(notice.payload().to_owned())),
            Ok(Ok(None)) => return Some(None),
            Ok(Err(_)) => return None,
            Err(_) => {
                use sea_orm::sqlx::Executor;
                let answer = timeout(ANSWER_WITHIN, (&mut *listener).execute("SELECT 1")).await;
                if !matches!(answer, Ok(Ok(_))) {
                    return None;
                }
            }
        }
    }
}
