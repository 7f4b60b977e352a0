//! PostgreSQL's connection for what runs do: one transaction follows the other on it, of this store at least.
//!
//! It is no pool's. A pool hands out its connections in turn, so that each has to learn every statement and its plan, and asks
//! each for a sign of life when it is given back, which the next transaction waits for where it is the only one. And what runs
//! do is known, so this session's planner is told what it can't know of tables that grow from nothing to millions of rows
//! before it has statistics of them: see [`PLANS`].

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection, PgQueryResult, PgRow, Postgres as Driver};
use sea_orm::sqlx::query::Query;
use sea_orm::sqlx::{self, AssertSqlSafe, Connection as _, Executor};
use sea_orm::{DbErr, RuntimeErr, Statement, Values};
use sea_query_sqlx::SqlxValues;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::connection::{Connection, Executed, Record};
use super::place::Trust;
use super::{ACQUIRE_TIMEOUT, connection_error};

/// Every statement of a job's way has its index, and is planned once. The planner holds a table that was never analysed for one of
/// ten pages, and would rather read all of those and sort them: each claim then took as long as there were rows that waited. What
/// has to be sorted all the same must not be by a key, see [`super::sql::Dialect::sorted_by_id`].
const PLANS: [(&str, &str); 4] = [
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_sort", "off"),
    ("plan_cache_mode", "force_generic_plan"),
];

/// The connection; clones are the same one.
#[derive(Clone)]
pub(super) struct Postgres {
    options: PgConnectOptions,
    trust: Trust,
    between: Arc<Mutex<Between>>,
}

/// The options have the password in them.
impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").finish_non_exhaustive()
    }
}

/// What there is between two transactions.
#[derive(Default)]
struct Between {
    kept: Option<Kept>,
    is_closed: bool,
}

struct Kept {
    connection: PgConnection,
    since: Instant,
}

impl Postgres {
    /// One that is made once it is needed.
    pub(super) fn new(options: PgConnectOptions, trust: Trust) -> Self {
        Self { options: options.options(PLANS), trust, between: Arc::default() }
    }

    /// Starts a transaction, once the one before it is over.
    ///
    /// # Errors
    /// What the server says, or that it does not answer.
    pub(super) async fn begin(&self) -> Result<PostgresTransaction, DbErr> {
        let mut turn = Arc::clone(&self.between).lock_owned().await;
        if turn.is_closed {
            return Err(connection_error(sqlx::Error::PoolClosed));
        }
        let kept = turn.kept.take().filter(|kept| self.trust.holds(kept.since.elapsed()));
        let mut kept = match kept {
            Some(kept) => kept,
            None => self.connect().await?,
        };
        kept.connection.execute("BEGIN").await.map_err(failed)?;
        Ok(PostgresTransaction { turn, kept: Mutex::new(kept) })
    }

    async fn connect(&self) -> Result<Kept, DbErr> {
        let connecting = PgConnection::connect_with(&self.options);
        match tokio::time::timeout(ACQUIRE_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => Ok(Kept { connection, since: Instant::now() }),
            Ok(Err(error)) => Err(connection_error(error)),
            Err(_) => Err(connection_error(sqlx::Error::PoolTimedOut)),
        }
    }

    /// Ends the connection, once the transaction on it is over; there is no other one.
    pub(super) async fn close(&self) {
        let mut between = self.between.lock().await;
        between.is_closed = true;
        let kept = between.kept.take();
        if let Some(Kept { connection, .. }) = kept
            && let Err(error) = connection.close().await
        {
            tracing::debug!(%error, "closing the database");
        }
    }
}

/// A transaction; one that is dropped takes its connection with it, upon which the server takes it back.
pub(super) struct PostgresTransaction {
    turn: OwnedMutexGuard<Between>,
    kept: Mutex<Kept>,
}

impl PostgresTransaction {
    /// Commits it.
    ///
    /// # Errors
    /// What the server says.
    pub(super) async fn commit(self) -> Result<(), DbErr> {
        self.end("COMMIT").await
    }

    /// Takes it back.
    ///
    /// # Errors
    /// What the server says.
    pub(super) async fn rollback(self) -> Result<(), DbErr> {
        self.end("ROLLBACK").await
    }

    async fn end(self, how: &'static str) -> Result<(), DbErr> {
        let Self { mut turn, kept } = self;
        let mut kept = kept.into_inner();
        kept.connection.execute(how).await.map_err(failed)?;
        turn.kept = Some(kept);
        Ok(())
    }
}

impl Connection for PostgresTransaction {
    async fn query_all(&self, statement: Statement) -> Result<Vec<Record>, DbErr> {
        let rows: Vec<PgRow> = self.kept.lock().await.connection.fetch_all(query(statement)).await.map_err(failed)?;
        Ok(rows.into_iter().map(|row| Record::Server(row.into())).collect())
    }

    async fn query_one(&self, statement: Statement) -> Result<Option<Record>, DbErr> {
        let row = self.kept.lock().await.connection.fetch_optional(query(statement)).await.map_err(failed)?;
        Ok(row.map(|row| Record::Server(row.into())))
    }

    async fn execute(&self, statement: Statement) -> Result<Executed, DbErr> {
        let done: PgQueryResult = self.kept.lock().await.connection.execute(query(statement)).await.map_err(failed)?;
        Ok(Executed { rows_affected: done.rows_affected(), last_insert_id: 0 })
    }

    async fn run(&self, script: &str) -> Result<(), DbErr> {
        let script = AssertSqlSafe(script.to_owned());
        self.kept.lock().await.connection.execute(script).await.map(drop).map_err(failed)
    }
}

fn query(Statement { sql, values, .. }: Statement) -> Query<'static, Driver, SqlxValues> {
    sqlx::query_with(AssertSqlSafe(sql), SqlxValues(values.unwrap_or_else(|| Values(Vec::new()))))
}

fn failed(error: sqlx::Error) -> DbErr {
    DbErr::Exec(RuntimeErr::SqlxError(Arc::new(error)))
}
