//! SQLite's writing connection: there is one, and whoever writes has it for a turn.
//!
//! The connection is rusqlite's: an answer is there when the call returns. That of sqlx lives on a thread of its own and
//! hands each result of each statement across to the runtime's, two wake-ups at a time, some seventeen times for a job that runs
//! `/bin/true`. Here a whole batch is carried out by one thread of the blocking pool, which has it [`Where::Here`]; whoever else
//! writes has each statement carried out on such a thread.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Batch, OpenFlags};
use sea_orm::sqlx;
use sea_orm::{DbErr, RuntimeErr, Statement, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::connection::{Connection, Executed, Record, SqliteRow};
use super::folding::Folding;
use super::log_watch::{LogWatch, log_of};
use super::wake::tell;
use super::{ACQUIRE_TIMEOUT, connection_error, gathered};

/// How long SQLite waits for another process that is writing.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// What is kept of the log's file, in bytes, once all of it is folded: that of an old snapshot may have grown to gigabytes.
const LOG_KEPT: u64 = 16 << 20;
/// Bytes of a page of a new file: half of SQLite's default, as what a commit changes is an entry here and there in the table and in each
/// index, and the whole page of each goes into the log and to the disk. A file that has pages keeps their size
/// (<https://www.sqlite.org/pragma.html#pragma_page_size>).
const NEW_PAGE: u32 = 2048;
/// More than the statements of a job's way, in all their forms.
const CACHED_STATEMENTS: usize = 200;

/// The writing connection to a SQLite database; clones are the same one.
#[derive(Clone)]
pub(super) struct Sqlite {
    writing: Arc<Mutex<Writing>>,
    turn: Arc<Semaphore>,
    changes_elsewhere: Arc<watch::Sender<u64>>,
}

struct Writing {
    /// `None` once it is closed.
    connection: Option<rusqlite::Connection>,
    /// The transaction that is open on it. A statement of another one, which comes after its transaction was given up, must
    /// not become part of this one, or one by itself.
    transaction: Option<u64>,
    /// How many there were.
    transactions: u64,
    /// What `PRAGMA data_version` said last. It changes when another connection has committed
    /// (<https://www.sqlite.org/pragma.html#pragma_data_version>).
    version: Option<i64>,
    /// Those who have word of what is written, and need none of our own transactions.
    watches: Vec<Weak<LogWatch>>,
    /// The log, and when it is folded; `None` where the database is in memory.
    log: Option<(PathBuf, Folding)>,
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqlite").finish_non_exhaustive()
    }
}

impl Sqlite {
    /// Opens a file, which `create` makes where there is none.
    ///
    /// # Errors
    /// What SQLite says.
    pub(super) async fn open(path: &Path, create: bool) -> Result<Self, DbErr> {
        let path = path.to_owned();
        on_a_thread(move || {
            let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            flags.set(OpenFlags::SQLITE_OPEN_CREATE, create);
            let opened = gathered::register();
            let opened =
                opened.and_then(|()| rusqlite::Connection::open_with_flags_and_vfs(&path, flags, gathered::NAME));
            let opened = opened.and_then(|connection| {
                connection.busy_timeout(BUSY_TIMEOUT)?;
                // An answered enqueue or a recorded exit code must outlive a power cut, which is among what `gathered` needs.
                connection.execute_batch(&format!(
                    "PRAGMA page_size = {NEW_PAGE}; PRAGMA journal_mode = WAL; {}; \
                     PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = {LOG_KEPT}",
                    gathered::NEEDED
                ))?;
                Ok(connection)
            });
            let sqlite = Self::of(opened)?;
            let log = log_of(&path).map_err(|error| connection_error(error.into()))?;
            sqlite.writing().log = Some((log, Folding::default()));
            Ok(sqlite)
        })
        .await
    }

    /// A database in memory, which ends with the last connection to one of this name; only a `file:` has one to share.
    ///
    /// # Errors
    /// What SQLite says.
    pub(super) fn in_memory(name: &str) -> Result<Self, DbErr> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_MEMORY
            | OpenFlags::SQLITE_OPEN_SHARED_CACHE;
        let opened = rusqlite::Connection::open_with_flags(name, flags).and_then(|connection| {
            connection.execute_batch("PRAGMA foreign_keys = ON")?;
            Ok(connection)
        });
        Self::of(opened)
    }

    fn of(connection: rusqlite::Result<rusqlite::Connection>) -> Result<Self, DbErr> {
        let connection = connection.map_err(|error| DbErr::Conn(failure(error)))?;
        connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
        let writing = Writing {
            connection: Some(connection),
            transaction: None,
            transactions: 0,
            version: None,
            watches: Vec::new(),
            log: None,
        };
        Ok(Self {
            writing: Arc::new(Mutex::new(writing)),
            turn: Arc::new(Semaphore::new(1)),
            changes_elsewhere: Arc::new(watch::Sender::new(0)),
        })
    }

    /// Starts a transaction that will write. A deferred one would fail at its first write, without waiting, if another process
    /// has written since its first read.
    ///
    /// # Errors
    /// What SQLite says, after [`BUSY_TIMEOUT`] where another process writes for so long; that no turn came in time.
    pub(super) async fn begin(&self, place: Where) -> Result<SqliteTransaction, DbErr> {
        let turn = self.turn().await?;
        let begin = move |sqlite: &Self| {
            let mut writing = sqlite.writing();
            plainly(writing.connection()?, "BEGIN IMMEDIATE")?;
            writing.began();
            // Given up before it was known where this call is no longer waited for.
            Ok(SqliteTransaction { sqlite: sqlite.clone(), number: writing.transactions, place, turn: Some(turn) })
        };
        self.at(place, begin).await
    }

    /// Counts what others have committed, as far as it was looked for.
    pub(super) fn changes_elsewhere(&self) -> watch::Receiver<u64> {
        self.changes_elsewhere.subscribe()
    }

    /// From now on this one has no word of our own transactions.
    pub(super) fn keeps_quiet(&self, log: &Arc<LogWatch>) {
        let mut writing = self.writing();
        writing.watches.retain(|other| other.strong_count() > 0);
        writing.watches.push(Arc::downgrade(log));
    }

    /// Looks whether others have committed anything since the last look; waits for a statement that is being carried out.
    ///
    /// # Errors
    /// What SQLite says.
    pub(super) fn look(&self) -> Result<bool, DbErr> {
        self.look_on(&mut self.writing())
    }

    /// [`Self::look`] on a thread of the blocking pool.
    ///
    /// # Errors
    /// What SQLite says.
    pub(super) async fn look_elsewhere(&self) -> Result<bool, DbErr> {
        self.at(Where::Pool, Self::look).await
    }

    /// Gives up the pages that it keeps, which the system may have, too (<https://www.sqlite.org/pragma.html#pragma_shrink_memory>).
    pub(super) async fn give_memory_back(&self) {
        let shrunk = self.at(Where::Pool, |sqlite| {
            sqlite.writing().connection()?.execute_batch("PRAGMA shrink_memory").map_err(failed)
        });
        if let Err(error) = shrunk.await {
            tracing::debug!(%error, "giving back the database's memory");
        }
    }

    /// [`Self::look`] where the connection is idle; a transaction that is open looks when it ends.
    pub(super) fn look_if_idle(&self) {
        if let Ok(mut writing) = self.writing.try_lock()
            && writing.transaction.is_none()
            && let Err(error) = self.look_on(&mut writing)
        {
            tracing::debug!(%error, "looking for changes");
        }
    }

    fn look_on(&self, writing: &mut Writing) -> Result<bool, DbErr> {
        let asked = writing.connection()?.prepare_cached("PRAGMA data_version");
        let version = asked.and_then(|mut asked| asked.query_row([], |row| row.get(0))).map_err(failed)?;
        let changed = writing.version.replace(version).is_some_and(|before| before != version);
        if changed {
            tell(&self.changes_elsewhere);
        }
        Ok(changed)
    }

    /// A transaction has ended, whichever way.
    fn ended(&self, writing: &mut Writing) {
        writing.transaction = None;
        if writing.watches.is_empty() {
            return;
        }
        writing.each_watch("listen", |watch| {
            watch.ended.notify_one();
            watch.listen()
        });
        if let Err(error) = self.look_on(writing) {
            tracing::debug!(%error, "looking for changes");
        }
    }

    /// Something was committed, maybe. Where it is time the log is folded, in a turn of its own: the answer does not wait for it.
    fn committed(&self, writing: &mut Writing) {
        let Some((log, folding)) = &mut writing.log else { return };
        let size = std::fs::metadata(log).map_or(0, |log| log.len());
        if !folding.is_due(size, Instant::now()) {
            return;
        }
        // Without a runtime the next commit sees to it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        folding.asked();
        let sqlite = self.clone();
        runtime.spawn(async move {
            let turn = sqlite.turn().await;
            let fold = move || {
                if let Err(error) = &turn {
                    tracing::debug!(%error, "no turn to fold the database's log");
                }
                sqlite.writing().fold(turn.is_ok(), size);
                drop(turn);
                Ok(())
            };
            if let Err(error) = on_a_thread(fold).await {
                tracing::debug!(%error, "folding the database's log");
            }
        });
    }

    /// Closes it: what is not closed already is folded into the file where this was the last connection to it.
    pub(super) async fn close(&self) {
        // Whoever has the turn is let finish; one who never does will be refused.
        let _turn = self.turn().await;
        let sqlite = self.clone();
        let closed = on_a_thread(move || {
            let connection = sqlite.writing().connection.take();
            connection.map_or(Ok(()), |connection| connection.close().map_err(|(_, error)| failed(error)))
        });
        if let Err(error) = closed.await {
            tracing::debug!(%error, "closing the database");
        }
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit, DbErr> {
        match tokio::time::timeout(ACQUIRE_TIMEOUT, Arc::clone(&self.turn).acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) => Err(connection_error(sqlx::Error::PoolClosed)),
            Err(_) => Err(connection_error(sqlx::Error::PoolTimedOut)),
        }
    }

    fn writing(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn at<T: Send + 'static>(
        &self,
        place: Where,
        work: impl FnOnce(&Self) -> Result<T, DbErr> + Send + 'static,
    ) -> Result<T, DbErr> {
        match place {
            Where::Here => work(self),
            Where::Pool => {
                let sqlite = self.clone();
                on_a_thread(move || work(&sqlite)).await
            }
        }
    }
}

impl Writing {
    fn connection(&self) -> Result<&rusqlite::Connection, DbErr> {
        self.connection.as_ref().ok_or_else(|| connection_error(sqlx::Error::PoolClosed))
    }

    /// A transaction has begun: nobody else can commit until it ends.
    fn began(&mut self) {
        self.transactions += 1;
        self.transaction = Some(self.transactions);
        self.each_watch("keep quiet", LogWatch::keep_quiet);
    }

    fn each_watch(&self, action: &'static str, tell: impl Fn(&LogWatch) -> std::io::Result<()>) {
        for watch in self.watches.iter().filter_map(Weak::upgrade) {
            if let Err(error) = tell(&watch) {
                // It is looked at without word of it, too, if not as soon.
                tracing::debug!(%error, "can't have the watch on the database's log {action}");
            }
        }
    }

    /// Folds as much of the log as nobody reads any more, where it is this one's turn; else that is one more try in vain.
    fn fold(&mut self, in_turn: bool, size: u64) {
        let (Some(connection), Some((_, folding))) = (&self.connection, &mut self.log) else { return };
        // Whether another connection is at it, how many pages there are, and how many of them are folded.
        let fold = || {
            connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
            })
        };
        let all = match in_turn.then(fold) {
            Some(Ok((busy, pages, folded))) => busy == 0 && folded == pages,
            Some(Err(error)) => {
                tracing::debug!(%error, "folding the database's log");
                false
            }
            None => false,
        };
        folding.tried(all, size, Instant::now());
    }

    /// The connection, on which this transaction is open.
    fn within(&self, transaction: u64) -> Result<&rusqlite::Connection, DbErr> {
        let connection = self.connection()?;
        // After some errors (https://www.sqlite.org/lang_transaction.html) SQLite itself has taken it back.
        if self.transaction != Some(transaction) || connection.is_autocommit() {
            return Err(DbErr::Exec(RuntimeErr::Internal("the transaction is over".to_owned())));
        }
        Ok(connection)
    }
}

/// Where a transaction's statements are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// On the thread that asks, which may be kept waiting.
    Here,
    /// On one of the blocking pool.
    Pool,
}

/// A transaction on the writing connection; one that is dropped is taken back.
pub(super) struct SqliteTransaction {
    sqlite: Sqlite,
    number: u64,
    place: Where,
    /// Nobody else has one before this is dropped; `None` once the transaction is over.
    turn: Option<OwnedSemaphorePermit>,
}

impl SqliteTransaction {
    /// Commits it. What is to be seen to after that is, once the second of these is dropped: on the thread that asks, for a
    /// transaction that is carried out there, which may have something more urgent to do.
    ///
    /// # Errors
    /// What SQLite says; then nothing of it happened.
    pub(super) async fn commit_first(mut self) -> (Result<(), DbErr>, Option<Aftermath>) {
        let (number, place, turn) = (self.number, self.place, self.turn.take());
        let commit = move |sqlite: &Sqlite| {
            let aftermath = Aftermath { sqlite: sqlite.clone(), _turn: turn };
            let mut writing = sqlite.writing();
            let committed = writing.within(number).and_then(|connection| plainly(connection, "COMMIT"));
            if committed.is_err() {
                take_back(&mut writing, number);
            }
            drop(writing);
            Ok((committed, (place == Where::Here).then_some(aftermath)))
        };
        self.sqlite.at(place, commit).await.unwrap_or_else(|error| (Err(error), None))
    }
}

/// What is to be seen to after a transaction, whichever way it has ended, and before the next one.
#[must_use]
pub(super) struct Aftermath {
    sqlite: Sqlite,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Drop for Aftermath {
    fn drop(&mut self) {
        let mut writing = self.sqlite.writing();
        self.sqlite.ended(&mut writing);
        self.sqlite.committed(&mut writing);
    }
}

impl Drop for SqliteTransaction {
    fn drop(&mut self) {
        let Some(turn) = self.turn.take() else { return };
        let (sqlite, number) = (self.sqlite.clone(), self.number);
        let take_back = move || {
            let mut writing = sqlite.writing();
            take_back(&mut writing, number);
            if writing.transaction == Some(number) {
                sqlite.ended(&mut writing);
            }
            drop(turn);
        };
        match (self.place, tokio::runtime::Handle::try_current()) {
            (Where::Pool, Ok(runtime)) => drop(runtime.spawn_blocking(take_back)),
            (Where::Here, _) | (_, Err(_)) => take_back(),
        }
    }
}

/// Carries out a statement that has no values and no answer, and is kept prepared.
fn plainly(connection: &rusqlite::Connection, statement: &str) -> Result<(), DbErr> {
    connection.prepare_cached(statement).and_then(|mut statement| statement.raw_execute()).map(drop).map_err(failed)
}

fn take_back(writing: &mut Writing, transaction: u64) {
    if let Ok(connection) = writing.within(transaction)
        && let Err(error) = connection.execute_batch("ROLLBACK")
    {
        // It is tried again by whoever begins the next one, who is told that there is one.
        tracing::warn!(%error, "can't take a transaction back");
    }
}

/// What takes statements, each of which is carried out in one go.
trait Ask: Sync {
    fn ask(&self, asked: Asked, wanted: Wanted) -> impl Future<Output = Result<Answer, DbErr>> + Send;
}

impl<A: Ask> Connection for A {
    async fn query_all(&self, statement: Statement) -> Result<Vec<Record>, DbErr> {
        Ok(self.ask(Asked::Statement(statement), Wanted::Rows).await?.rows)
    }

    async fn query_one(&self, statement: Statement) -> Result<Option<Record>, DbErr> {
        Ok(self.query_all(statement).await?.into_iter().next())
    }

    async fn execute(&self, statement: Statement) -> Result<Executed, DbErr> {
        let answer = self.ask(Asked::Statement(statement), Wanted::Count).await?;
        Ok(Executed { rows_affected: answer.changed, last_insert_id: 0 })
    }

    async fn run(&self, script: &str) -> Result<(), DbErr> {
        self.ask(Asked::Script(script.to_owned()), Wanted::Count).await.map(drop)
    }
}

impl Ask for Sqlite {
    /// In a turn of its own.
    async fn ask(&self, asked: Asked, wanted: Wanted) -> Result<Answer, DbErr> {
        let turn = self.turn().await?;
        let work = move |sqlite: &Self| {
            let _turn = turn;
            let mut writing = sqlite.writing();
            let answer = carry_out(writing.connection()?, &asked, wanted);
            sqlite.committed(&mut writing);
            answer
        };
        self.at(Where::Pool, work).await
    }
}

impl Ask for SqliteTransaction {
    async fn ask(&self, asked: Asked, wanted: Wanted) -> Result<Answer, DbErr> {
        let number = self.number;
        self.sqlite.at(self.place, move |sqlite| carry_out(sqlite.writing().within(number)?, &asked, wanted)).await
    }
}

enum Asked {
    /// One, or several with a `;` in between and one list of values. They are kept prepared.
    Statement(Statement),
    /// Statements without values, of which nothing is kept.
    Script(String),
}

/// What is made of a statement's rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Rows,
    Count,
}

#[derive(Default)]
struct Answer {
    rows: Vec<Record>,
    changed: u64,
}

fn carry_out(connection: &rusqlite::Connection, asked: &Asked, wanted: Wanted) -> Result<Answer, DbErr> {
    let mut answer = Answer::default();
    let done = match asked {
        Asked::Statement(Statement { sql, values, .. }) => pieces(sql).try_for_each(|piece| {
            let values = values.as_ref().map_or(&[][..], |values| &values.0);
            step(connection, &mut *connection.prepare_cached(piece)?, values, wanted, &mut answer)
        }),
        Asked::Script(sql) => Batch::new(connection, sql)
            .for_each(|mut statement| step(connection, &mut statement, &[], wanted, &mut answer)),
    };
    match (done, wanted) {
        (Ok(()), _) => Ok(answer),
        (Err(error), Wanted::Rows) => Err(DbErr::Query(failure(error))),
        (Err(error), Wanted::Count) => Err(failed(error)),
    }
}

/// Carries out one statement to its end.
fn step(
    connection: &rusqlite::Connection,
    statement: &mut rusqlite::Statement<'_>,
    values: &[Value],
    wanted: Wanted,
    answer: &mut Answer,
) -> rusqlite::Result<()> {
    for index in 1..=statement.parameter_count() {
        // SQLite numbers them as they come: `?` by its place, `$7` is one of that name.
        let number = match statement.parameter_name(index) {
            Some(name) => name.get(1..).and_then(|number| number.parse::<usize>().ok()),
            None => Some(index),
        };
        let value = number.and_then(|number| values.get(number.checked_sub(1)?));
        let value = value.ok_or(rusqlite::Error::InvalidParameterCount(values.len(), index))?;
        statement.raw_bind_parameter(index, bound(value)?)?;
    }
    let writes = !statement.readonly();
    let names: Arc<[String]> = match wanted {
        Wanted::Rows => statement.column_names().into_iter().map(str::to_owned).collect(),
        Wanted::Count => Arc::default(),
    };
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        if wanted == Wanted::Rows {
            let values = (0..names.len()).map(|index| row.get(index)).collect::<rusqlite::Result<_>>()?;
            answer.rows.push(Record::Sqlite(SqliteRow { names: Arc::clone(&names), values }));
        }
    }
    if writes {
        answer.changed += connection.changes();
    }
    Ok(())
}

fn bound(value: &Value) -> rusqlite::Result<ToSqlOutput<'_>> {
    let borrowed = |value| ToSqlOutput::Borrowed(value);
    let integer = |value: Option<i64>| borrowed(value.map_or(ValueRef::Null, ValueRef::Integer));
    Ok(match value {
        Value::Bool(value) => integer(value.map(i64::from)),
        Value::TinyInt(value) => integer(value.map(i64::from)),
        Value::SmallInt(value) => integer(value.map(i64::from)),
        Value::Int(value) => integer(value.map(i64::from)),
        Value::BigInt(value) => integer(*value),
        Value::TinyUnsigned(value) => integer(value.map(i64::from)),
        Value::SmallUnsigned(value) => integer(value.map(i64::from)),
        Value::Unsigned(value) => integer(value.map(i64::from)),
        Value::Double(value) => borrowed(value.map_or(ValueRef::Null, ValueRef::Real)),
        Value::String(value) => borrowed(value.as_ref().map_or(ValueRef::Null, |text| ValueRef::Text(text.as_bytes()))),
        Value::Bytes(value) => borrowed(value.as_ref().map_or(ValueRef::Null, |bytes| ValueRef::Blob(bytes))),
        other => {
            let reason = format!("no value for SQLite: {other:?}");
            return Err(rusqlite::Error::ToSqlConversionFailure(reason.into()));
        }
    })
}

/// The statements of a text of ours: what stands between semicolons that are not in quotes.
fn pieces(sql: &str) -> impl Iterator<Item = &str> {
    let mut rest = sql;
    std::iter::from_fn(move || {
        // By bytes, since kilobytes of text are looked through for each job; none of these is part of a longer character.
        let mut quote = None;
        let end = rest.bytes().position(|byte| match (quote, byte) {
            (None, b';') => true,
            (None, b'\'' | b'"') => {
                quote = Some(byte);
                false
            }
            (Some(open), _) => {
                quote = quote.filter(|_| open != byte);
                false
            }
            (None, _) => false,
        });
        let (piece, after) = match end.and_then(|end| rest.split_at_checked(end)) {
            Some((piece, after)) => (piece, after.get(1..).unwrap_or_default()),
            None if rest.is_empty() => return None,
            None => (rest, ""),
        };
        rest = after;
        Some(piece.trim())
    })
    .filter(|piece| !piece.is_empty())
}

fn failed(error: rusqlite::Error) -> DbErr {
    DbErr::Exec(failure(error))
}

fn failure(error: rusqlite::Error) -> RuntimeErr {
    match error {
        rusqlite::Error::SqliteFailure(error, message) => refused(error, message),
        other => RuntimeErr::Internal(other.to_string()),
    }
}

fn refused(error: rusqlite::ffi::Error, message: Option<String>) -> RuntimeErr {
    let message = message.unwrap_or_else(|| error.to_string());
    let refusal: Box<dyn sqlx::error::DatabaseError> = Box::new(Refusal { code: error.extended_code, message });
    RuntimeErr::SqlxError(Arc::new(sqlx::Error::Database(refusal)))
}

/// What SQLite said, in the form in which the other connections tell of it.
#[derive(Debug, thiserror::Error)]
#[error("(code: {code}) {message}")]
pub(super) struct Refusal {
    /// The extended result code: <https://www.sqlite.org/rescode.html>.
    code: i32,
    message: String,
}

impl sqlx::error::DatabaseError for Refusal {
    fn message(&self) -> &str {
        &self.message
    }

    fn code(&self) -> Option<std::borrow::Cow<'_, str>> {
        Some(self.code.to_string().into())
    }

    fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> sqlx::error::ErrorKind {
        sqlx::error::ErrorKind::Other
    }
}

/// A panic on the thread is one here.
pub(super) async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DbErr> + Send + 'static,
) -> Result<T, DbErr> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(failure) => match failure.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and this task with it.
            Err(_) => Err(connection_error(sqlx::Error::WorkerCrashed)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::folding::COMMITS;
    use crate::store::sql::{Dialect, Row};

    fn statement(sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
        Statement::from_sql_and_values(sea_orm::DbBackend::Sqlite, sql, values)
    }

    async fn table() -> (tempfile::TempDir, Sqlite) {
        let directory = tempfile::tempdir().unwrap();
        let sqlite = Sqlite::open(&directory.path().join("a.db"), true).await.unwrap();
        sqlite.run("CREATE TABLE t (a INTEGER, b TEXT); INSERT INTO t VALUES (1, 'one;two')").await.unwrap();
        (directory, sqlite)
    }

    async fn rows(sqlite: &Sqlite) -> i64 {
        let row = sqlite.query_one(statement("SELECT count(*) AS n FROM t", [])).await.unwrap().unwrap();
        row.get("n").unwrap()
    }

    #[test]
    fn statements_are_told_apart_and_what_is_in_quotes_is_not_looked_at() {
        let of = |sql| pieces(sql).collect::<Vec<_>>();
        assert_eq!(of("SELECT 1; SELECT 2;"), ["SELECT 1", "SELECT 2"]);
        assert_eq!(of("SELECT 'a;''b;', \"c;'d\""), ["SELECT 'a;''b;', \"c;'d\""]);
        assert_eq!(of(" ;\n; "), Vec::<&str>::new());
    }

    #[tokio::test]
    async fn statements_of_one_text_share_its_values_and_each_changed_row_is_counted() {
        let (_directory, sqlite) = table().await;
        let insert = "INSERT INTO t VALUES ($3, $1); SELECT a FROM t; UPDATE t SET a = $3 + 1 WHERE b = $1 OR b = $2";
        let executed = sqlite.execute(statement(insert, ["x".into(), "one;two".into(), 7_i64.into()])).await.unwrap();
        assert_eq!(executed.rows_affected, 3);
        let row = sqlite.query_one(statement("SELECT sum(a) AS n FROM t WHERE a = ?", [8_i64.into()])).await.unwrap();
        assert_eq!(row.unwrap().get("n"), Ok(16_i64));
        let missing = sqlite.execute(statement("INSERT INTO t VALUES ($1, $2)", [1_i64.into()])).await.unwrap_err();
        assert!(missing.to_string().contains("parameters"), "{missing}");
    }

    #[tokio::test]
    async fn what_is_of_another_kind_than_was_asked_for_is_an_error_and_not_nothing() {
        let (_directory, sqlite) = table().await;
        sqlite.run("INSERT INTO t VALUES ('no number', x'ff')").await.unwrap();
        let row = sqlite.query_one(statement("SELECT * FROM t WHERE a = 'no number'", [])).await.unwrap().unwrap();
        let row = Row { result: &row, dialect: Dialect::Sqlite };
        row.maybe_int("a").unwrap_err();
        row.int("c").unwrap_err();
        assert_eq!(row.bytes("b").unwrap(), Some(vec![0xff]));
    }

    #[tokio::test]
    async fn a_transaction_that_is_given_up_is_taken_back_before_the_next_one_begins() {
        let (_directory, sqlite) = table().await;
        for place in [Where::Here, Where::Pool] {
            let transaction = sqlite.begin(place).await.unwrap();
            transaction.execute(statement("DELETE FROM t", [])).await.unwrap();
            drop(transaction);
            assert_eq!(rows(&sqlite).await, 1);
            let transaction = sqlite.begin(place).await.unwrap();
            transaction.execute(statement("INSERT INTO t VALUES (2, 'two')", [])).await.unwrap();
            transaction.execute(statement("DELETE FROM t WHERE a = 2", [])).await.unwrap();
            transaction.commit_first().await.0.unwrap();
        }
    }

    #[tokio::test]
    async fn a_statement_of_a_transaction_that_is_over_is_part_of_no_other() {
        let (_directory, sqlite) = table().await;
        let first = sqlite.begin(Where::Here).await.unwrap();
        let late = SqliteTransaction { sqlite: sqlite.clone(), number: first.number, place: Where::Here, turn: None };
        drop(first);
        late.execute(statement("DELETE FROM t", [])).await.unwrap_err();
        let second = sqlite.begin(Where::Here).await.unwrap();
        late.execute(statement("DELETE FROM t", [])).await.unwrap_err();
        // SQLite itself may end a transaction over an error.
        sqlite.writing().connection().unwrap().execute_batch("ROLLBACK").unwrap();
        second.execute(statement("DELETE FROM t", [])).await.unwrap_err();
        second.commit_first().await.0.unwrap_err();
        assert_eq!(sqlite.writing().transaction, None);
        assert_eq!(rows(&sqlite).await, 1);
    }

    #[tokio::test]
    async fn single_statements_wait_for_a_transaction_and_a_closed_connection_refuses_all() {
        let (_directory, sqlite) = table().await;
        let transaction = sqlite.begin(Where::Pool).await.unwrap();
        transaction.execute(statement("DELETE FROM t", [])).await.unwrap();
        let asked = Instant::now();
        let (rows, ()) = tokio::join!(rows(&sqlite), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            transaction.commit_first().await.0.unwrap();
        });
        assert_eq!((rows, asked.elapsed() >= Duration::from_millis(50)), (0, true));
        sqlite.close().await;
        let error = sqlite.execute(statement("DELETE FROM t", [])).await.unwrap_err();
        assert!(crate::store::Error::from_database("delete", error).is_transient());
    }

    #[tokio::test]
    async fn the_log_is_folded_after_some_commits_unless_somebody_reads_an_old_snapshot() {
        let (directory, sqlite) = table().await;
        let path = directory.path().join("a.db");
        let reader = rusqlite::Connection::open(&path).unwrap();
        for held in [false, true] {
            if held {
                reader.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
            }
            let before = std::fs::metadata(&path).unwrap().len();
            sqlite.run("INSERT INTO t VALUES (1, hex(zeroblob(1000000)))").await.unwrap();
            for n in 0..COMMITS * if held { 3 } else { 1 } {
                let transaction = sqlite.begin(if n % 2 == 0 { Where::Here } else { Where::Pool }).await.unwrap();
                transaction.execute(statement("INSERT INTO t VALUES (2, 'two')", [])).await.unwrap();
                transaction.commit_first().await.0.unwrap();
            }
            let folded = || std::fs::metadata(&path).unwrap().len() > before + 1_000_000;
            let tried = || sqlite.writing().log.as_ref().is_some_and(|(_, folding)| folding.is_in_vain());
            for _ in 0..1000 {
                if folded() || tried() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!((folded(), tried()), (!held, held));
        }
        // Nor is the room for it kept for ever.
        let log_size = || std::fs::metadata(directory.path().join("a.db-wal")).unwrap().len();
        sqlite.run("INSERT INTO t VALUES (1, hex(zeroblob(10000000)))").await.unwrap();
        assert!(log_size() > LOG_KEPT);
        reader.execute_batch("COMMIT").unwrap();
        sqlite.writing().fold(true, log_size());
        sqlite.run("INSERT INTO t VALUES (2, 'two')").await.unwrap();
        assert!(log_size() <= LOG_KEPT);
    }

    #[tokio::test]
    async fn a_new_file_has_small_pages_and_one_that_is_there_keeps_its_own() {
        let (directory, sqlite) = table().await;
        let page_size = |name: &str| {
            let other = rusqlite::Connection::open(directory.path().join(name)).unwrap();
            other.query_row("PRAGMA page_size", [], |row| row.get::<_, u32>(0)).unwrap()
        };
        assert_eq!(page_size("a.db"), NEW_PAGE);
        drop(sqlite);
        let older = rusqlite::Connection::open(directory.path().join("older.db")).unwrap();
        older.execute_batch("PRAGMA page_size = 4096; CREATE TABLE t (id INTEGER, name TEXT)").unwrap();
        let sqlite = Sqlite::open(&directory.path().join("older.db"), true).await.unwrap();
        sqlite.run("INSERT INTO t VALUES (1, 'one')").await.unwrap();
        assert_eq!((page_size("older.db"), rows(&sqlite).await), (4096, 1));
    }

    /// As it is left by one that was killed.
    #[tokio::test]
    async fn a_large_log_that_was_left_behind_is_folded_with_the_first_commit() {
        let (directory, sqlite) = table().await;
        let path = directory.path().join("a.db");
        let killed = rusqlite::Connection::open(&path).unwrap();
        killed
            .execute_batch("PRAGMA wal_autocheckpoint = 0; INSERT INTO t VALUES (1, hex(zeroblob(3000000)))")
            .unwrap();
        drop(sqlite);
        let before = std::fs::metadata(&path).unwrap().len();
        let sqlite = Sqlite::open(&path, false).await.unwrap();
        sqlite.run("INSERT INTO t VALUES (2, 'two')").await.unwrap();
        for _ in 0..1000 {
            if std::fs::metadata(&path).unwrap().len() > before + 6_000_000 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it is not folded");
    }

    #[tokio::test]
    async fn what_sqlite_refuses_is_told_apart_by_its_code() {
        use crate::store::Error;
        let (directory, sqlite) = table().await;
        let other = rusqlite::Connection::open(directory.path().join("a.db")).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        sqlite.writing().connection().unwrap().busy_timeout(Duration::from_millis(1)).unwrap();
        let busy = sqlite.begin(Where::Pool).await.err().unwrap();
        assert!(matches!(Error::from_database("begin", busy), Error::Unavailable { .. }));
        let missing = sqlite.query_all(statement("SELECT 1 FROM missing", [])).await.err().unwrap();
        let missing = Error::from_database("read", missing);
        assert!(matches!(missing, Error::SchemaMissing), "{missing:?}");
        std::fs::write(directory.path().join("b.db"), [b'x'; 4096]).unwrap();
        let damaged = Sqlite::open(&directory.path().join("b.db"), false).await.unwrap_err();
        assert!(matches!(Error::from_database("open it", damaged), Error::Corrupt { .. }));
        let none = Sqlite::open(&directory.path().join("c.db"), false).await.unwrap_err();
        assert!(matches!(Error::from_database("open it", none), Error::Unavailable { .. }));
    }
}
