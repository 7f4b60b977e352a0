//! How another process's commit to a SQLite file is noticed: it tells nobody, but it writes the write-ahead log.
//!
//! The kernel is asked for word of that by a thread (inotify(7)), which then asks `PRAGMA data_version` on the writing
//! connection until the commit is there to be seen: that it is (a change of shared memory, after an fsync where the client
//! wants one) is no event. The writes of our own transactions, one event for each page, would keep that thread and this
//! processor busy. While one is open nobody else can commit, so the kernel is told to keep quiet for as long; what slipped in
//! between its end and the first word after it is found by a look right then, and by one [`LOOK_LATER`] for a commit that was
//! being written in that moment.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use sea_orm::DbErr;
use tokio::sync::Notify;

use super::connection_error;
use super::sqlite::Sqlite;

/// When to look again after the log was written and looked at.
const LOOK_AFTER: [Duration; 19] = [
    Duration::from_micros(100),
    Duration::from_micros(100),
    Duration::from_micros(100),
    Duration::from_micros(100),
    Duration::from_micros(150),
    Duration::from_micros(150),
    Duration::from_micros(200),
    Duration::from_micros(200),
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
/// Up to this one no new word is waited for: the commit that it is about has most likely not been seen yet.
const CLOSELY: usize = 12;
/// How long to wait with a look that most likely finds nothing: many in a row have not.
const LOOK_LATER: Duration = Duration::from_millis(5);
const MANY_IN_VAIN: u32 = 32;
/// How often to look without any word: where there is none, and as a safety net where there is.
const LOOK_ANYWAY_UNWATCHED: Duration = Duration::from_millis(500);
const LOOK_ANYWAY: Duration = Duration::from_secs(5);

/// The write-ahead log of a file, of which the kernel gives word when it is written.
#[derive(Debug)]
pub(super) struct LogWatch {
    #[cfg(target_os = "linux")]
    inotify: rustix::fd::OwnedFd,
    #[cfg(target_os = "linux")]
    log: std::path::PathBuf,
    /// Told of the end of each of our transactions.
    pub(super) ended: Notify,
}

/// Where SQLite has a database's log: beside the file itself, whatever link led to it.
///
/// # Errors
/// Where the file can't be looked up.
pub(super) fn log_of(database: &Path) -> io::Result<PathBuf> {
    let mut log = database.canonicalize()?.into_os_string();
    log.push("-wal");
    Ok(log.into())
}

#[cfg(target_os = "linux")]
impl LogWatch {
    /// Asks for word. The log has to be there, which it is once the database has been read.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn of(database: &Path) -> io::Result<Self> {
        use rustix::fs::inotify::{CreateFlags, init};
        let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let watch = Self { inotify, log: log_of(database)?, ended: Notify::new() };
        watch.listen()?;
        Ok(watch)
    }

    /// Has the kernel give word of each write.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn listen(&self) -> io::Result<()> {
        self.want(rustix::fs::inotify::WatchFlags::MODIFY)
    }

    /// Has it give none until [`Self::listen`].
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn keep_quiet(&self) -> io::Result<()> {
        // There has to be something; and a watch that is removed and added again gives word of that.
        self.want(rustix::fs::inotify::WatchFlags::DELETE_SELF)
    }

    fn want(&self, flags: rustix::fs::inotify::WatchFlags) -> io::Result<()> {
        rustix::fs::inotify::add_watch(&self.inotify, &self.log, flags)?;
        Ok(())
    }

    /// Forgets the word that has come.
    fn drain(&self) {
        let mut events = [0; 4096];
        while rustix::io::read(&self.inotify, &mut events).is_ok_and(|length| length > 0) {}
    }

    fn word(&self) -> Option<PollFd<'_>> {
        Some(PollFd::new(&self.inotify, PollFlags::IN))
    }
}

#[cfg(not(target_os = "linux"))]
impl LogWatch {
    /// There is no word to be had here.
    ///
    /// # Errors
    /// Always.
    pub(super) fn of(_: &Path) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Nothing is to be done.
    ///
    /// # Errors
    /// None.
    pub(super) fn listen(&self) -> io::Result<()> {
        Ok(())
    }

    /// Nothing is to be done.
    ///
    /// # Errors
    /// None.
    pub(super) fn keep_quiet(&self) -> io::Result<()> {
        Ok(())
    }

    fn drain(&self) {}

    fn word(&self) -> Option<PollFd<'_>> {
        None
    }
}

/// What ends a watch when it is dropped.
#[derive(Debug)]
pub(super) struct Watching {
    _stop: io::PipeWriter,
    after_own: Option<tokio::task::JoinHandle<()>>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(task) = &self.after_own {
            task.abort();
        }
    }
}

/// Starts to look for commits of others, of which [`Sqlite::changes_elsewhere`] tells.
///
/// # Errors
/// Where there is no thread or pipe to be had.
pub(super) fn start(sqlite: &Sqlite, database: &Path) -> Result<Watching, DbErr> {
    let watch = match LogWatch::of(database) {
        Ok(watch) => Some(Arc::new(watch)),
        Err(error) => {
            tracing::warn!(%error, "can't watch the database's log; looking for new jobs every 500 ms instead");
            None
        }
    };
    let failed = |error: io::Error| connection_error(error.into());
    let (stopped, stop) = io::pipe().map_err(failed)?;
    let after_own = watch.as_ref().map(|watch| tokio::spawn(look_after_own(sqlite.clone(), Arc::clone(watch))));
    let looking = Looking { sqlite: sqlite.clone(), watch, stopped };
    std::thread::Builder::new().name("sqlite-watch".to_owned()).spawn(move || looking.go_on()).map_err(failed)?;
    Ok(Watching { _stop: stop, after_own })
}

async fn look_after_own(sqlite: Sqlite, watch: Arc<LogWatch>) {
    loop {
        watch.ended.notified().await;
        tokio::time::sleep(LOOK_LATER).await;
        sqlite.look_if_idle();
    }
}

struct Looking {
    sqlite: Sqlite,
    watch: Option<Arc<LogWatch>>,
    stopped: io::PipeReader,
}

enum Waited {
    Stopped,
    Word,
    Nothing,
}

impl Looking {
    fn go_on(self) {
        if let Some(watch) = &self.watch {
            self.sqlite.keeps_quiet(watch);
        }
        let anyway = if self.watch.is_some() { LOOK_ANYWAY } else { LOOK_ANYWAY_UNWATCHED };
        let mut step = LOOK_AFTER.len();
        let mut in_vain: u32 = 0;
        loop {
            if step == LOOK_AFTER.len() {
                in_vain = 0;
            }
            let pause = LOOK_AFTER.get(step).copied().unwrap_or(anyway);
            match self.wait(pause, step >= CLOSELY) {
                Waited::Stopped => return,
                Waited::Nothing => step = (step + 1).min(LOOK_AFTER.len()),
                Waited::Word => {
                    // However fast the log is written, there are not more looks than this.
                    step = if in_vain < MANY_IN_VAIN { 0 } else { CLOSELY };
                    if step > 0 && matches!(self.wait(LOOK_LATER, false), Waited::Stopped) {
                        return;
                    }
                    in_vain = in_vain.saturating_add(1);
                }
            }
            // First, so that what comes after the look is not forgotten.
            if let Some(watch) = &self.watch {
                watch.drain();
            }
            match self.sqlite.look() {
                // What comes next comes with word of its own; until then the processor is for what has just come.
                Ok(true) => (in_vain, step) = (0, step.max(CLOSELY)),
                Ok(false) => {}
                // A database that can't be asked can't be worked with either: whoever works with it will notice.
                Err(error) => tracing::debug!(%error, "looking for changes"),
            }
        }
    }

    fn wait(&self, pause: Duration, for_word: bool) -> Waited {
        let word = self.watch.as_ref().filter(|_| for_word).and_then(|watch| watch.word());
        let mut waited_for = vec![PollFd::new(&self.stopped, PollFlags::empty())];
        waited_for.extend(word);
        let timeout = Timespec::try_from(pause).map_err(|_| Errno::INVAL);
        if let Err(error) = timeout.and_then(|timeout| poll(&mut waited_for, Some(&timeout)))
            && error != Errno::INTR
        {
            // Nobody else looks, so it goes on, if without word.
            tracing::warn!(%error, "can't wait for word of the database's log");
            std::thread::sleep(pause);
            return Waited::Nothing;
        }
        let mut came = waited_for.iter().map(|fd| !fd.revents().is_empty());
        match (came.next(), came.next()) {
            // The other end of the pipe is gone.
            (Some(true), _) => Waited::Stopped,
            (_, Some(true)) => Waited::Word,
            _ => Waited::Nothing,
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::store::connection::Connection as _;
    use crate::store::sqlite::Where;

    fn has_word(watch: &LogWatch) -> bool {
        let mut events = [0; 4096];
        rustix::io::read(&watch.inotify, &mut events).is_ok_and(|length| length > 0)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_kernel_has_no_word_of_our_own_transactions_and_every_commit_of_others_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        let sqlite = Sqlite::open(&path, true).await.unwrap();
        sqlite.run("CREATE TABLE t (a TEXT)").await.unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let link = elsewhere.path().join("link.db");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let watch = Arc::new(LogWatch::of(&link).unwrap());
        sqlite.keeps_quiet(&watch);
        let insert = "INSERT INTO t VALUES (hex(randomblob(100)))";
        for place in [Where::Here, Where::Pool] {
            let transaction = sqlite.begin(place).await.unwrap();
            transaction.run(insert).await.unwrap();
            transaction.commit_first().await.0.unwrap();
        }
        assert!(!has_word(&watch));
        let other = rusqlite::Connection::open(&path).unwrap();
        other.busy_timeout(Duration::from_secs(20)).unwrap();
        other.execute_batch(insert).unwrap();
        assert!(has_word(&watch));

        let mut changes = sqlite.changes_elsewhere();
        sqlite.look().unwrap();
        let watching = start(&sqlite, &path).unwrap();
        let busy = tokio::spawn({
            let sqlite = sqlite.clone();
            async move {
                loop {
                    let transaction = sqlite.begin(Where::Pool).await.unwrap();
                    transaction.run(insert).await.unwrap();
                    transaction.commit_first().await.0.unwrap();
                    tokio::time::sleep(Duration::from_micros(500)).await;
                }
            }
        });
        for round in 0..200 {
            if round == 100 {
                busy.abort();
            }
            changes.mark_unchanged();
            tokio::task::block_in_place(|| other.execute_batch(insert)).unwrap();
            // Sooner than by the look that comes anyway.
            let told = tokio::time::timeout(LOOK_ANYWAY / 2, changes.changed()).await;
            assert!(told.is_ok(), "commit {round} was not told");
        }
        drop(watching);
    }
}
