//! The database: the one place that knows sea-orm, entities and SQL.
//!
//! A [`Store`] is opened once and cloned. What runs do goes through [`Store::apply`], one transaction for a whole batch;
//! the rest is a call each. Nobody waits here for a change: [`Store::watch`] tells when to look again.

mod adopted;
mod audit;
mod change;
mod claim;
mod connection;
mod control;
mod deliveries;
mod dependencies;
mod enqueue;
mod error;
mod events;
mod folding;
mod forsaken;
mod gathered;
mod jobs;
mod leases;
mod log_watch;
mod looks;
mod overview;
mod place;
#[cfg(test)]
mod plans;
mod polled;
mod postgres;
mod prune;
mod read;
mod recurring;
mod rights;
mod runs;
mod schema;
mod search;
mod server;
mod sessions;
mod spelling;
mod sql;
mod sqlite;
mod standing;
mod take;
mod trial;
mod update;
mod wake;
mod write;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::Access;
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sea_orm::sqlx::{self, ConnectOptions};
use sea_orm::{
    DatabaseConnection, DbErr, RuntimeErr, SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait,
    Value,
};
use tokio::sync::watch;

pub use adopted::{Adoption, Unfit};
pub use audit::{AuditFilter, Who};
pub use claim::DISOWNED;
pub use deliveries::{AgainResult, Delivery, DeliveryFilter, DeliveryRow, Sent, Undelivered};
pub use dependencies::{AFTER_OTHERS, DependencyRow, FailedWaiter, Waited};
pub use error::{Error, Said};
pub use events::{EventPage, StreamedEvent};
pub use forsaken::{Forsaken, LastSeen};
pub use overview::*;
pub use prune::Pruned;
pub use read::*;
pub use recurring::{Fire, Fired, RecurringRow};
pub use search::*;
pub use sessions::Session;
pub use standing::{Standing, Waiting};
pub use wake::Wakes;
pub use write::*;

use crate::config::{AdoptedTable, Config, Withheld};
use crate::crash::{self, Step};
use crate::domain::Timestamp;
use crate::domain::database_url::DatabaseUrl;
use connection::{Connection, Database, Transaction};
use looks::{Look, Looks};
use place::{DatabaseFile, Place};
use sql::{Dialect, Doing, Row};
use sqlite::{BUSY_TIMEOUT, Sqlite, Where};

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The service, or a migration: a SQLite file is made where there is none.
    Service,
    /// A short command beside a service that may be running.
    Tool,
}

/// The tables; clones share one set of connections.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
    /// Who acts through this clone; `None` for the service itself, whose work is no deed of anybody's.
    who: Option<Arc<Who>>,
    /// Whose thread carries out what this clone writes to SQLite.
    carried_out: Where,
}

#[derive(Debug)]
struct Inner {
    dialect: Dialect,
    /// The only connection that writes where this is SQLite, so that `PRAGMA data_version` on it tells of others only.
    writer: Database,
    reader: Database,
    place: Place,
    /// The user's own table that is `jobs` here.
    adopted: Option<Arc<AdoptedTable>>,
    changed_here: watch::Sender<u64>,
    /// Where claims begin to look.
    looks: Looks,
}

const BATCH: &str = "commit a batch";
const OPEN: &str = "open it";
/// How long a connection may be waited for.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server's answer to a whole call is waited for: a peer that has vanished says nothing at all.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a transaction that lost against another one is tried again.
const RACES: u32 = 5;

impl Store {
    /// Opens a database; the schema is not looked at.
    ///
    /// # Errors
    /// Where it can't be reached or is none; see [`Error`].
    pub async fn connect(url: &DatabaseUrl, use_: Use) -> Result<Self, Error> {
        match url {
            DatabaseUrl::Sqlite(path) => Self::open_file(path, use_).await,
            DatabaseUrl::Postgres(url) => Self::open_postgres(url, use_, None).await,
            DatabaseUrl::MySql(url) => Self::open_mysql(url, use_).await,
        }
    }

    /// [`Store::connect`] to the database of this configuration, with the table that it has adopted, if any.
    ///
    /// # Errors
    /// Those of [`Store::connect`].
    pub async fn of(config: &Config, use_: Use) -> Result<Self, Error> {
        match (&config.database_url, &config.adopted) {
            (DatabaseUrl::Postgres(url), Some(adopted)) => {
                Self::open_postgres(url, use_, Some(Arc::clone(adopted))).await
            }
            (url, _) => Self::connect(url, use_).await,
        }
    }

    /// A migrated SQLite database in memory, which ends with its last clone: for tests.
    ///
    /// # Errors
    /// Where SQLite fails.
    pub async fn in_memory() -> Result<Self, Error> {
        static OPENED: AtomicU64 = AtomicU64::new(0);
        let name = format!("file:callsheet-{}", OPENED.fetch_add(1, Ordering::Relaxed));
        let sqlite = Sqlite::in_memory(&name).doing(OPEN)?;
        let connection = Database::Sqlite(sqlite.clone());
        let store = Self::new(Dialect::Sqlite, connection.clone(), connection, Place::Memory { name, sqlite }, None);
        store.migrate().await?;
        Ok(store)
    }

    async fn open_file(path: &Path, use_: Use) -> Result<Self, Error> {
        if let Some(source) = Withheld::on_the_way_to(path, Access::READ_OK | Access::WRITE_OK) {
            return Err(Error::Withheld { path: path.to_owned(), source });
        }
        if use_ == Use::Tool && !path.exists() {
            return Err(Error::NoDatabase { path: path.to_owned() });
        }
        if path.parent().is_some_and(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
            return Err(Error::NoDirectory { path: path.to_owned() });
        }
        let sqlite = Sqlite::open(path, use_ == Use::Service).await.doing(OPEN)?;
        let reading = sqlite_options().filename(path).pragma("query_only", "on");
        let readers = if use_ == Use::Service { 4 } else { 2 };
        let reader = sqlite_pool(readers).connect_lazy_with(reading);
        let place = Place::File { file: DatabaseFile::opened(path), sqlite: sqlite.clone() };
        Ok(Self::new(Dialect::Sqlite, Database::Sqlite(sqlite), Database::Pool(reader.into()), place, None))
    }

    fn new(
        dialect: Dialect,
        writer: Database,
        reader: Database,
        place: Place,
        adopted: Option<Arc<AdoptedTable>>,
    ) -> Self {
        let (changed_here, looks) = (watch::Sender::new(0), Looks::default());
        let inner = Inner { dialect, writer, reader, place, adopted, changed_here, looks };
        Self { inner: Arc::new(inner), who: None, carried_out: Where::Pool }
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// Where it does not.
    pub async fn ping(&self) -> Result<(), Error> {
        self.now().await.map(drop)
    }

    /// The time by the clock that the tables go by: the server's, or this machine's on SQLite.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn now(&self) -> Result<Timestamp, Error> {
        self.in_time("tell the time", self.time(self.reader())).await
    }

    /// Commits a batch of changes in one transaction, all or none, and answers them in their order.
    ///
    /// After an error nobody can know whether the transaction was committed. Repeating the same batch is safe and brings
    /// the same answers. Not cancel safe: a dropped call may or may not have happened.
    ///
    /// # Errors
    /// Where the database fails; [`Error::is_transient`] tells whether to repeat.
    pub async fn apply(&self, writes: &[Write]) -> Result<Vec<Written>, Error> {
        self.apply_foreseen(writes, None).await
    }

    /// The same, and somebody hears of the answers before they count.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub async fn apply_foreseen(
        &self,
        writes: &[Write],
        foresight: Option<Arc<dyn Foresight>>,
    ) -> Result<Vec<Written>, Error> {
        if writes.is_empty() {
            return Ok(Vec::new());
        }
        if self.place().sqlite().is_none() || self.carried_out == Where::Here {
            return self.in_time(BATCH, self.retrying(|| self.apply_once(writes, foresight.as_deref()))).await;
        }
        // All of it on one thread of the blocking pool, where no answer is waited for.
        let (here, writes) = (self.here(), writes.to_vec());
        let runtime = tokio::runtime::Handle::current();
        let batch = sqlite::on_a_thread(move || Ok(runtime.block_on(here.apply_once(&writes, foresight.as_deref()))));
        self.in_time(BATCH, async { batch.await.doing(BATCH)? }).await
    }

    /// One whose writes to SQLite are carried out by the thread that asks.
    fn here(&self) -> Self {
        Self { carried_out: Where::Here, ..self.clone() }
    }

    async fn apply_once(&self, writes: &[Write], foresight: Option<&dyn Foresight>) -> Result<Vec<Written>, Error> {
        // What is written below says how long from later on a run is this worker's.
        let begun = crate::clock::boottime();
        let transaction = match self.place() {
            Place::Server { runs, .. } => runs.begin().await.map(Transaction::Postgres).doing(BATCH)?,
            Place::Memory { .. } | Place::File { .. } | Place::SilentServer { .. } => self.begin(BATCH).await?,
        };
        let mut looks = Vec::new();
        let answers = match self.write_all(&transaction, writes, begun, &mut looks).await {
            Ok(answers) => answers,
            Err(error) => {
                // Where it can't be taken back, it is over with its connection.
                if let Err(error) = transaction.rollback().await {
                    tracing::debug!(%error, "taking back a transaction");
                }
                return Err(error);
            }
        };
        let steps: Vec<Step> = writes.iter().zip(&answers).filter_map(|(write, answer)| step(write, answer)).collect();
        let foreseen = foresight.and_then(|foresight| foresight.foresee(&answers));
        steps.iter().copied().for_each(crash::before);
        let (committed, aftermath) = transaction.commit_first().await;
        if committed.is_ok() {
            steps.into_iter().for_each(crash::after);
        }
        // Commands that wait for the commit come before anything else; those that are given up may take their time.
        let aftermath = aftermath.filter(|_| committed.is_ok());
        if let Some(foreseen) = foreseen {
            foreseen.committed(committed.is_ok()).await;
        }
        drop(aftermath);
        committed.doing(BATCH)?;
        self.inner.looks.keep(looks);
        if answers
            .iter()
            .any(|answer| matches!(answer, Written::Claimed(claimed) if claimed.waited != Waited::default()))
        {
            // Jobs of other flows may run now.
            self.changed_here();
        }
        Ok(answers)
    }

    async fn write_all(
        &self,
        transaction: &Transaction,
        mut writes: &[Write],
        begun: Duration,
        looks: &mut Vec<Look>,
    ) -> Result<Vec<Written>, Error> {
        let idle = self.idle_flows(transaction, writes).await?;
        let mut flows = self.flows_to_lock(writes, &idle);
        // PostgreSQL locks them together with the first changes.
        let change_first = matches!(writes.first(), Some(Write::Started(_) | Write::Settle(_)));
        if !(change_first && self.dialect() == Dialect::Postgres) {
            self.lock_flows(transaction, &std::mem::take(&mut flows)).await?;
        }
        let mut answers = Vec::with_capacity(writes.len());
        while let Some((first, rest)) = writes.split_first() {
            let answer = match first {
                Write::Started(_) | Write::Settle(_) => {
                    let changed = self.change(transaction, writes, &std::mem::take(&mut flows)).await?;
                    writes = writes.get(changed.len()..).unwrap_or_default();
                    answers.extend(changed);
                    continue;
                }
                Write::Claim(claim) => {
                    let idle = idle.get(&claim.flow).copied();
                    let mut look = match idle {
                        Some(_) => Look::whole(&claim.flow),
                        None => self.begin_look(transaction, claim).await?,
                    };
                    let mut claimed = self.claim(transaction, claim, begun, &mut look, idle).await?;
                    if idle.is_none() {
                        self.end_look(transaction, &mut look, &mut claimed).await?;
                        looks.push(look);
                    }
                    Written::Claimed(Box::new(claimed))
                }
                Write::Confirm(runs) => Written::Confirmed(self.confirm(transaction, runs, begun).await?),
                Write::Progress(note) => self.progress(transaction, note).await?,
                Write::RegisterFlows(flows) => {
                    self.register_flows(transaction, flows.iter().map(crate::domain::FlowType::as_str)).await?;
                    Written::Applied
                }
                Write::RegisterWorker(worker) => self.register_worker(transaction, worker).await?,
                Write::WorkerState(note) => self.worker_state(transaction, note).await?,
            };
            answers.push(answer);
            writes = rest;
        }
        Ok(answers)
    }

    /// Gives back what SQLite keeps of pages that were written, up to 2 MiB; a server has its own memory.
    pub async fn give_memory_back(&self) {
        if let Some(sqlite) = self.place().sqlite() {
            sqlite.give_memory_back().await;
        }
    }

    /// Closes the connections; on SQLite this also folds the log into the database file. Every clone is closed with it.
    pub async fn close(&self) {
        // The writing one last, which does the folding.
        self.reader().close().await;
        self.writer().close().await;
        if let Place::Server { runs, listeners, .. } = self.place() {
            runs.close().await;
            listeners.close().await;
        }
    }

    fn dialect(&self) -> Dialect {
        self.inner.dialect
    }

    fn reader(&self) -> &Database {
        &self.inner.reader
    }

    fn writer(&self) -> &Database {
        &self.inner.writer
    }

    fn place(&self) -> &Place {
        &self.inner.place
    }

    fn adopted(&self) -> Option<&AdoptedTable> {
        self.inner.adopted.as_deref()
    }

    fn changed_here(&self) {
        wake::tell(&self.inner.changed_here);
    }

    fn changes_here(&self) -> watch::Receiver<u64> {
        self.inner.changed_here.subscribe()
    }

    fn statement(&self, sql: impl Into<String>, values: impl IntoIterator<Item = Value>) -> Statement {
        self.dialect().statement(sql, values)
    }

    async fn time(&self, connection: &impl Connection) -> Result<Timestamp, Error> {
        let dialect = self.dialect();
        let statement = self.statement(format!("SELECT {} AS now", dialect.now()), []);
        match connection.query_one(statement).await.doing("tell the time")? {
            Some(result) => Row { result: &result, dialect }.time("now"),
            None => Err(Error::UnreadableRow { reason: "a query without a table gave no row".to_owned() }),
        }
    }

    /// Starts a transaction that will write.
    async fn begin(&self, action: &'static str) -> Result<Transaction, Error> {
        let transaction = self.begin_without_turn(action).await?;
        self.begin_turn(&transaction, action).await?;
        Ok(transaction)
    }

    /// The same for one that writes no event, or has no table to say so in yet.
    async fn begin_without_turn(&self, action: &'static str) -> Result<Transaction, Error> {
        self.writer().begin(self.carried_out).await.doing(action)
    }

    /// The same for sea-orm's migrations, which know its own connections only.
    async fn begin_migration(&self, action: &'static str) -> Result<Transaction, Error> {
        let options = match self.place() {
            Place::Memory { name, .. } => sqlite_options().filename(name).in_memory(true).shared_cache(true),
            Place::File { file, .. } => sqlite_options().filename(file.path()),
            Place::Server { .. } | Place::SilentServer { .. } => return self.begin_without_turn(action).await,
        };
        let pool = DatabaseConnection::from(sqlite_pool(1).connect_with(options).await.map_err(opening)?);
        // A deferred one would fail at its first write, without waiting, if another process has written since its first read.
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..Default::default()
        };
        pool.begin_with_options(options).await.map(Transaction::Pool).doing(action)
    }

    /// Commits, as the step that a test may want to die at.
    async fn commit(&self, transaction: Transaction, step: Step, action: &'static str) -> Result<(), Error> {
        crash::before(step);
        transaction.commit().await.doing(action)?;
        crash::after(step);
        Ok(())
    }

    /// Does it again where it lost against another transaction and so certainly did not happen.
    async fn retrying<T, F: Future<Output = Result<T, Error>>>(&self, work: impl Fn() -> F) -> Result<T, Error> {
        for _ in 1..RACES {
            match work().await {
                Err(error) if error::lost_a_race(&error) => {}
                answer => return answer,
            }
        }
        work().await
    }

    /// SQLite has no peer that could vanish, and its own busy timeout; but its file can be taken away.
    async fn in_time<T>(&self, action: &'static str, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        match self.place() {
            Place::Memory { .. } => call.await,
            Place::File { file, .. } => {
                file.check()?;
                let answer = call.await?;
                // It may have waited for its turn, and what it has written may be in a file that nobody will find.
                file.check()?;
                Ok(answer)
            }
            Place::Server { trust, .. } | Place::SilentServer { trust } => {
                let answer = tokio::time::timeout(CALL_TIMEOUT, call).await.unwrap_or(Err(Error::Timeout { action }));
                if answer.as_ref().is_err_and(|error| error.is_transient() && !error.is_contended()) {
                    trust.lost_now();
                }
                answer
            }
        }
    }
}

/// The step that a commit with this write in it is, for those that a test wants to die at.
fn step(write: &Write, answer: &Written) -> Option<Step> {
    Some(match (write, answer) {
        // Most claims find nothing to take.
        (Write::Claim(_), Written::Claimed(claimed))
            if !claimed.jobs.is_empty() || claimed.waited != Waited::default() =>
        {
            Step::ClaimCommit
        }
        (Write::Claim(_) | Write::RegisterFlows(_), _) => return None,
        (Write::Started(_), _) => Step::StartCommit,
        (Write::Confirm(_), _) => Step::ConfirmCommit,
        (Write::Progress(_), _) => Step::ProgressCommit,
        (Write::Settle(_), _) => Step::EndCommit,
        (Write::RegisterWorker(_), _) => Step::WorkerCommit,
        (Write::WorkerState(_), _) => Step::WorkerStateCommit,
    })
}

fn sqlite_options() -> SqliteConnectOptions {
    SqliteConnectOptions::new().busy_timeout(BUSY_TIMEOUT).foreign_keys(true).disable_statement_logging()
}

/// Without sqlx's task that looks after idle connections, for the reason given at [`place::Trust::kept_by`].
fn sqlite_pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .max_lifetime(None)
        .idle_timeout(None)
        .test_before_acquire(false)
}

fn connection_error(error: sqlx::Error) -> DbErr {
    DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error)))
}

fn opening(error: sqlx::Error) -> Error {
    match error {
        sqlx::Error::Configuration(_) => invalid_url(error),
        other => Error::from_database("open it", connection_error(other)),
    }
}

fn invalid_url(error: sqlx::Error) -> Error {
    let reason = match error {
        // What the URL parser says names the part that is wrong, not its text.
        sqlx::Error::Configuration(reason) => reason.to_string(),
        _ => "it does not parse".to_owned(),
    };
    Error::InvalidUrl { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sendable(_: &impl Send) {}

    #[tokio::test]
    async fn every_call_can_be_made_from_a_spawned_task() {
        let store = Store::in_memory().await.unwrap();
        sendable(&store.apply(&[]));
        sendable(&store.enqueue(&[]));
        sendable(&store.request_cancel(crate::domain::JobId(1)));
        sendable(&store.cancel_page(&JobFilter::default()));
        sendable(&store.retry(&[], ""));
        sendable(&store.retry_page(&JobFilter::default(), ""));
        sendable(&store.list(&JobFilter::default()));
        sendable(&store.flow_states());
        sendable(&store.forsaken());
        sendable(&store.migrate());
        sendable(&store.watch());
        sendable(&Store::connect(&"sqlite://x".parse().unwrap(), Use::Tool));
        tokio::spawn(async move { store.apply(&[Write::Confirm(Vec::new())]).await }).await.unwrap().unwrap();
    }
}
