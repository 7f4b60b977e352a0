//! Wake-ups: how the service learns at once that somebody else has changed something.
//!
//! PostgreSQL tells by NOTIFY, from triggers. SQLite tells nobody, but its files change, see [`super::log_watch`]. MySQL tells nobody
//! either, and is asked.

use std::time::Duration;

use sea_orm::sqlx::postgres::{PgListener, PgPool};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::log_watch::{self, Watching};
use super::sql::Doing;
use super::{Error, Place, Store};

/// Tells that somebody else may have changed something; it watches until it is dropped.
#[derive(Debug)]
pub struct Wakes {
    here: watch::Receiver<u64>,
    elsewhere: watch::Receiver<u64>,
    watcher: Watcher,
}

#[derive(Debug)]
enum Watcher {
    /// There is nobody else.
    None,
    Task(JoinHandle<()>),
    Log(#[expect(dead_code, reason = "it watches until it is dropped")] Watching),
}

impl Wakes {
    /// Waits until anything but [`Store::apply`] on this store may have changed jobs or flows since the last call.
    ///
    /// Many changes may be told as one, and some are told though nothing of interest has changed. Cancel safe.
    pub async fn next(&mut self) {
        tokio::select! {
            biased;
            // Where one of them is gone only the other can tell anything.
            Ok(()) = self.elsewhere.changed() => {}
            Ok(()) = self.here.changed() => {}
            else => std::future::pending().await,
        }
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        if let Watcher::Task(task) = &self.watcher {
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
        let (changes, elsewhere) = watch::channel(0);
        let (elsewhere, watcher) = match self.place() {
            Place::Memory { .. } => (elsewhere, Watcher::None),
            Place::File { file, sqlite } => {
                let elsewhere = sqlite.changes_elsewhere();
                // What came before is no change; and now there is a log to watch.
                sqlite.look_elsewhere().await.doing(ACTION)?;
                (elsewhere, Watcher::Log(log_watch::start(sqlite, file.path()).doing(ACTION)?))
            }
            Place::Server { listeners, instance, .. } => {
                let listener = listen(listeners).await?;
                (
                    elsewhere,
                    Watcher::Task(tokio::spawn(watch_server(listeners.clone(), instance.clone(), listener, changes))),
                )
            }
            Place::SilentServer { .. } => {
                let seen = super::polled::look(self.reader()).await?;
                (elsewhere, Watcher::Task(tokio::spawn(super::polled::go_on(self.reader().clone(), seen, changes))))
            }
        };
        Ok(Wakes { here: self.changes_here(), elsewhere, watcher })
    }
}

/// Counts one more change, which wakes whoever has an eye on the count.
pub(super) fn tell(changes: &watch::Sender<u64>) {
    changes.send_modify(|changes| *changes = changes.wrapping_add(1));
}

const ACTION: &str = "watch for changes";

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

async fn watch_server(pool: PgPool, instance: String, mut listener: PgListener, changes: watch::Sender<u64>) {
    loop {
        while let Some(told) = notified(&mut listener).await {
            if told.is_none_or(|payload| payload != instance) {
                tell(&changes);
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
        tell(&changes);
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
