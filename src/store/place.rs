//! Where the database is, and how it is noticed that it is not there any more.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sea_orm::sqlx::pool::PoolOptions;
use sea_orm::sqlx::postgres::PgPool;

use super::Error;
use super::log_watch::log_of;
use super::postgres::Postgres;
use super::sqlite::Sqlite;

/// How long a connection to a server is used: what it remembers there grows with what it has been asked.
const LONGEST_LIFE: Duration = Duration::from_secs(1800);

#[derive(Debug)]
pub(super) enum Place {
    Memory {
        name: String,
        sqlite: Sqlite,
    },
    File {
        file: DatabaseFile,
        sqlite: Sqlite,
    },
    /// A server that tells of changes.
    Server {
        /// What runs do goes through this one.
        runs: Box<Postgres>,
        listeners: PgPool,
        instance: String,
        trust: Trust,
    },
    /// A server that has to be asked for them.
    SilentServer {
        trust: Trust,
    },
}

impl Place {
    pub(super) const fn sqlite(&self) -> Option<&Sqlite> {
        match self {
            Self::Memory { sqlite, .. } | Self::File { sqlite, .. } => Some(sqlite),
            Self::Server { .. } | Self::SilentServer { .. } => None,
        }
    }
}

/// A SQLite file and its log, by what they were when they were opened: SQLite itself writes on into what was deleted, and never
/// knows.
#[derive(Debug)]
pub(super) struct DatabaseFile {
    path: PathBuf,
    log: Option<PathBuf>,
    /// Device and inode of both; `None` where it could not be asked for then, and nothing is checked.
    identities: [Option<(u64, u64)>; 2],
}

impl DatabaseFile {
    /// What is there now, and stays there for as long as a connection is open to it.
    pub(super) fn opened(path: &Path) -> Self {
        let log = log_of(path).ok();
        let identities = [identity(path), log.as_deref().and_then(identity)];
        Self { path: path.to_owned(), log, identities }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether what is at their paths is still what was opened; two system calls.
    ///
    /// # Errors
    /// [`Error::Replaced`] or [`Error::LogGone`] where it is not.
    pub(super) fn check(&self) -> Result<(), Error> {
        let is_there = |path: &Path, was: Option<(u64, u64)>| was.is_none() || identity(path) == was;
        let [database, log] = self.identities;
        if !is_there(&self.path, database) {
            return Err(Error::Replaced { path: self.path.clone() });
        }
        match &self.log {
            Some(path) if !is_there(path, log) => Err(Error::LogGone { path: path.clone() }),
            Some(_) | None => Ok(()),
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Until when connections of a pool were made that are not to be used any more.
///
/// When a server restarts or a network falls silent, all connections are dead at once. Without this each would be found
/// out by a call of its own, and where the peer has vanished that call would wait for its whole time.
#[derive(Clone, Debug, Default)]
pub(super) struct Trust(Arc<Mutex<Option<Instant>>>);

impl Trust {
    /// Something has just gone wrong that may concern every connection.
    pub(super) fn lost_now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Has the pool replace what was connected before trust was lost, or longer ago than [`LONGEST_LIFE`], or has been idle for
    /// longer than this, instead of handing it out.
    ///
    /// sqlx's own task for that is not to be had: its count of idle connections is below zero for a moment where one is taken
    /// while another is given back (sqlx-core 0.9.0, `PoolInner::release`), and a task that reads it then counts up to 2^64, on a
    /// thread of the runtime.
    pub(super) fn kept_by<D: sea_orm::sqlx::Database>(
        &self,
        options: PoolOptions<D>,
        idle: Duration,
    ) -> PoolOptions<D> {
        let trust = self.clone();
        options.idle_timeout(None).max_lifetime(None).before_acquire(move |_, connection| {
            let fresh = trust.holds(connection.age) && connection.idle_for < idle;
            Box::pin(async move { Ok(fresh) })
        })
    }

    /// Whether a connection of this age is to be used, which was made since trust was lost, and is younger than [`LONGEST_LIFE`].
    pub(super) fn holds(&self, age: Duration) -> bool {
        let lost = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lost.is_none_or(|lost| age < lost.elapsed()) && age < LONGEST_LIFE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_itself_and_not_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("callsheet.db");
        std::fs::write(&path, "").unwrap();
        let file = DatabaseFile::opened(&path);
        file.check().unwrap();
        let aside = directory.path().join("aside");
        std::fs::rename(&path, &aside).unwrap();
        assert!(matches!(file.check(), Err(Error::Replaced { .. })));
        std::fs::write(&path, "").unwrap();
        assert!(matches!(file.check(), Err(Error::Replaced { .. })), "another one of that name");
        std::fs::rename(&aside, &path).unwrap();
        file.check().unwrap();
        let log = directory.path().join("callsheet.db-wal");
        std::fs::write(&log, "").unwrap();
        let file = DatabaseFile::opened(&path);
        file.check().unwrap();
        std::fs::remove_file(&log).unwrap();
        assert!(matches!(file.check(), Err(Error::LogGone { .. })));
    }
}
