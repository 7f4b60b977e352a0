//! What statements are given to, whichever driver has the database: sqlx's, by way of sea-orm or not, or SQLite's own calls.

use std::future::Future;
use std::sync::Arc;

use rusqlite::types::{FromSql, Value as SqliteValue, ValueRef};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, QueryResult, Statement,
    TransactionOptions, TransactionTrait, TryGetable,
};

use super::postgres::PostgresTransaction;
use super::sqlite::{Aftermath, Sqlite, SqliteTransaction, Where};

/// A database, or a transaction on it.
pub(super) trait Connection: Sync {
    /// All rows of the answer.
    ///
    /// # Errors
    /// What the database says.
    fn query_all(&self, statement: Statement) -> impl Future<Output = Result<Vec<Record>, DbErr>> + Send;

    /// The first row of the answer.
    ///
    /// # Errors
    /// What the database says.
    fn query_one(&self, statement: Statement) -> impl Future<Output = Result<Option<Record>, DbErr>> + Send;

    /// What it did, where no rows are wanted.
    ///
    /// # Errors
    /// What the database says.
    fn execute(&self, statement: Statement) -> impl Future<Output = Result<Executed, DbErr>> + Send;

    /// Carries out statements that are kept prepared nowhere, one after the other.
    ///
    /// # Errors
    /// What the database says.
    fn run(&self, script: &str) -> impl Future<Output = Result<(), DbErr>> + Send;
}

/// What a statement did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Executed {
    /// How many rows it has inserted, updated or deleted.
    pub(super) rows_affected: u64,
    /// The id of the first row that it has inserted, on MySQL; 0 elsewhere.
    pub(super) last_insert_id: u64,
}

/// A row of an answer.
pub(super) enum Record {
    /// Through sea-orm.
    Server(QueryResult),
    /// From SQLite's own calls.
    Sqlite(SqliteRow),
}

/// A row: the names of its columns, and what is in them.
pub(super) struct SqliteRow {
    pub(super) names: Arc<[String]>,
    pub(super) values: Vec<SqliteValue>,
}

impl Record {
    /// What is in a column.
    ///
    /// # Errors
    /// Why it can't be read as that.
    pub(super) fn get<T: TryGetable + FromSql>(&self, column: &str) -> Result<T, String> {
        match self {
            Self::Server(row) => row.try_get("", column).map_err(|error| error.to_string()),
            Self::Sqlite(row) => {
                let at = row.names.iter().position(|name| name == column);
                let value =
                    at.and_then(|at| row.values.get(at)).ok_or_else(|| format!("there is no column {column}"))?;
                T::column_result(ValueRef::from(value)).map_err(|error| format!("the column {column}: {error}"))
            }
        }
    }
}

/// A database.
#[derive(Clone, Debug)]
pub(super) enum Database {
    /// A pool of connections.
    Pool(DatabaseConnection),
    /// The writing connection to SQLite.
    Sqlite(Sqlite),
}

/// A transaction; one that is dropped is taken back.
pub(super) enum Transaction {
    /// On a connection of a pool.
    Pool(DatabaseTransaction),
    /// On the writing connection to SQLite.
    Sqlite(SqliteTransaction),
    /// On PostgreSQL's connection for what runs do.
    Postgres(PostgresTransaction),
}

impl Database {
    /// Starts a transaction that will write; where that is SQLite, its statements are carried out at `place`.
    ///
    /// # Errors
    /// What the database says.
    pub(super) async fn begin(&self, place: Where) -> Result<Transaction, DbErr> {
        match self {
            Self::Pool(pool) => pool.begin().await.map(Transaction::Pool),
            Self::Sqlite(sqlite) => sqlite.begin(place).await.map(Transaction::Sqlite),
        }
    }

    /// The same with these options, which SQLite does not have.
    ///
    /// # Errors
    /// What the database says.
    pub(super) async fn begin_with(&self, options: TransactionOptions) -> Result<Transaction, DbErr> {
        match self {
            Self::Pool(pool) => pool.begin_with_options(options).await.map(Transaction::Pool),
            Self::Sqlite(_) => self.begin(Where::Pool).await,
        }
    }

    /// Closes it, with every clone.
    pub(super) async fn close(&self) {
        match self {
            // What could fail here is the end of connections that nobody needs any more.
            Self::Pool(pool) => drop(pool.close_by_ref().await),
            Self::Sqlite(sqlite) => sqlite.close().await,
        }
    }
}

impl Transaction {
    /// Commits it.
    ///
    /// # Errors
    /// What the database says.
    pub(super) async fn commit(self) -> Result<(), DbErr> {
        self.commit_first().await.0
    }

    /// The same for whoever has something to do at once; what is to be seen to before the next transaction is when the second
    /// of these is dropped.
    pub(super) async fn commit_first(self) -> (Result<(), DbErr>, Option<Aftermath>) {
        match self {
            Self::Pool(transaction) => (transaction.commit().await, None),
            Self::Sqlite(transaction) => transaction.commit_first().await,
            Self::Postgres(transaction) => (transaction.commit().await, None),
        }
    }

    /// Takes it back.
    ///
    /// # Errors
    /// What the database says.
    pub(super) async fn rollback(self) -> Result<(), DbErr> {
        match self {
            Self::Pool(transaction) => transaction.rollback().await,
            Self::Sqlite(transaction) => {
                drop(transaction);
                Ok(())
            }
            Self::Postgres(transaction) => transaction.rollback().await,
        }
    }

    /// As sea-orm's migrations want it.
    ///
    /// # Errors
    /// That it is none of sea-orm's.
    pub(super) fn pooled(&self) -> Result<&DatabaseTransaction, DbErr> {
        match self {
            Self::Pool(transaction) => Ok(transaction),
            Self::Sqlite(_) | Self::Postgres(_) => {
                Err(DbErr::Custom("no migration on a connection that is not sea-orm's".to_owned()))
            }
        }
    }
}

/// Every one of these is a [`Connection`], by the one in the variant.
macro_rules! connection {
    ($($of:ident: $($variant:ident)+;)+) => {$(
        impl Connection for $of {
            async fn query_all(&self, statement: Statement) -> Result<Vec<Record>, DbErr> {
                match self { $(Self::$variant(connection) => Connection::query_all(connection, statement).await,)+ }
            }

            async fn query_one(&self, statement: Statement) -> Result<Option<Record>, DbErr> {
                match self { $(Self::$variant(connection) => Connection::query_one(connection, statement).await,)+ }
            }

            async fn execute(&self, statement: Statement) -> Result<Executed, DbErr> {
                match self { $(Self::$variant(connection) => Connection::execute(connection, statement).await,)+ }
            }

            async fn run(&self, script: &str) -> Result<(), DbErr> {
                match self { $(Self::$variant(connection) => connection.run(script).await,)+ }
            }
        }
    )+};
}

connection! {
    Database: Pool Sqlite;
    Transaction: Pool Sqlite Postgres;
}

/// The same for what sea-orm has.
macro_rules! sea_orms {
    ($($of:ident)+) => {$(
        impl Connection for $of {
            async fn query_all(&self, statement: Statement) -> Result<Vec<Record>, DbErr> {
                Ok(self.query_all_raw(statement).await?.into_iter().map(Record::Server).collect())
            }

            async fn query_one(&self, statement: Statement) -> Result<Option<Record>, DbErr> {
                Ok(self.query_one_raw(statement).await?.map(Record::Server))
            }

            async fn execute(&self, statement: Statement) -> Result<Executed, DbErr> {
                let executed = self.execute_raw(statement).await?;
                // The others have no such number, and sea-orm panics where PostgreSQL is asked for one.
                let is_mysql = self.get_database_backend() == DbBackend::MySql;
                let last_insert_id = if is_mysql { executed.last_insert_id() } else { 0 };
                Ok(Executed { rows_affected: executed.rows_affected(), last_insert_id })
            }

            async fn run(&self, script: &str) -> Result<(), DbErr> {
                self.execute_unprepared(script).await.map(drop)
            }
        }
    )+};
}

sea_orms!(DatabaseConnection DatabaseTransaction);
