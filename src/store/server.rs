//! Opening databases that are servers, and what each connection to them is told.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlPoolOptions};
use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sea_orm::sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row as _};

use super::connection::{Connection as _, Database};
use super::place::{Place, Trust};
use super::postgres::Postgres;
use super::sql::{Dialect, Doing, Row};
use super::{ACQUIRE_TIMEOUT, Error, Store, Use, invalid_url, opening};
use crate::config::{AdoptedTable, OWN_SCHEMA};
use crate::domain::database_url::ServerUrl;

/// How long a server may work on one statement.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long MySQL waits for a row that somebody has locked; a transaction that waits for one of ours loses at once.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a transaction of ours may stand still. A worker that freezes, or whose machine or network goes, in the middle of
/// one leaves its locks behind, and no other worker gets past them: no claim of a flow whose row is locked, and no takeover.
/// Less than what a lease lasts beyond its `heartbeat_timeout`, with some time to spare for the claim that waited.
const STANDSTILL: Duration = Duration::from_secs(3);
/// After so long without a word MySQL ends a connection, whether or not a transaction is open on it: a standstill is longer
/// there.
const SILENCE: Duration = Duration::from_secs(60);
/// The pool is the first to give up an idle connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

impl Store {
    pub(super) async fn open_postgres(
        url: &ServerUrl,
        use_: Use,
        adopted: Option<Arc<AdoptedTable>>,
    ) -> Result<Self, Error> {
        let options: PgConnectOptions = url.expose().parse().map_err(invalid_url)?;
        let application = if use_ == Use::Service { "callsheet" } else { "callsheet-tool" };
        let mut options = options
            .application_name(application)
            .options([("statement_timeout", STATEMENT_TIMEOUT.as_millis().to_string())])
            .options([("idle_in_transaction_session_timeout", STANDSTILL.as_millis().to_string())])
            // What looks dear to the planner reads a few thousand rows here; compiling it first took 0.25 s of each look.
            .options([("jit", "off")])
            .disable_statement_logging();
        let instance = if use_ == Use::Service { random_name() } else { String::new() };
        if use_ == Use::Service {
            options = options.options([("callsheet.instance", &instance)]);
        }
        if adopted.is_some() {
            // Its neighbours may have the names of ours, and no other client is to trip over them either.
            options = options.options([("search_path", OWN_SCHEMA)]);
        }
        // A pool goes on asking a server that refuses, and in the end tells of the waiting only; one connection tells why.
        match tokio::time::timeout(ACQUIRE_TIMEOUT, PgConnection::connect_with(&options)).await {
            Ok(connection) => connection.map_err(opening)?.close().await.map_err(opening)?,
            Err(_) => return Err(Error::Timeout { action: "open it" }),
        }
        let trust = Trust::default();
        let pool = trust
            .kept_by(PgPoolOptions::new(), Duration::MAX)
            .max_connections(if use_ == Use::Service { 7 } else { 2 })
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A ping before every use would be a round trip for each write; a dead connection is an error to retry.
            .test_before_acquire(false)
            .connect_with(options.clone())
            .await
            .map_err(opening)?;
        let runs = Box::new(Postgres::new(options.clone(), trust.clone()));
        let listeners = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(options);
        let connection = Database::Pool(pool.into());
        let place = Place::Server { runs, listeners, instance, trust };
        let store = Self::new(Dialect::Postgres, connection.clone(), connection, place, adopted);
        let encoding = store.reader().query_one(store.statement("SHOW server_encoding", [])).await.doing("open it")?;
        let encoding = encoding
            .map(|result| Row { result: &result, dialect: Dialect::Postgres }.some_text("server_encoding"))
            .transpose()?
            .unwrap_or_default();
        if encoding == "UTF8" { Ok(store) } else { Err(Error::Encoding { encoding }) }
    }

    pub(super) async fn open_mysql(url: &ServerUrl, use_: Use) -> Result<Self, Error> {
        let options: MySqlConnectOptions = url.expose().parse().map_err(invalid_url)?;
        if options.get_database().is_none_or(str::is_empty) {
            return Err(Error::InvalidUrl {
                reason: "it names no database; write mysql://user@host/database".to_owned(),
            });
        }
        let options = options
            // Set below, with the rest.
            .pipes_as_concat(false)
            .no_engine_substitution(false)
            .timezone(None)
            .disable_statement_logging();
        // As for PostgreSQL; it also tells what server this is.
        let asking = async {
            let mut connection = MySqlConnection::connect_with(&options).await?;
            let row = connection.fetch_one("SELECT VERSION()").await?;
            connection.close().await?;
            row.try_get::<String, _>(0)
        };
        let server = match tokio::time::timeout(ACQUIRE_TIMEOUT, asking).await {
            Ok(server) => server.map_err(opening)?,
            Err(_) => return Err(Error::Timeout { action: "open it" }),
        };
        if !is_new_enough(&server) {
            return Err(Error::ServerTooOld { server });
        }
        let settings = session(&server);
        let trust = Trust::default();
        let pool = trust
            .kept_by(MySqlPoolOptions::new(), IDLE_TIMEOUT)
            .max_connections(if use_ == Use::Service { 8 } else { 2 })
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                let settings = settings.clone();
                Box::pin(async move {
                    for setting in settings {
                        connection.execute(AssertSqlSafe(setting)).await?;
                    }
                    Ok(())
                })
            })
            .connect_with(options)
            .await
            .map_err(opening)?;
        let connection = Database::Pool(pool.into());
        Ok(Self::new(Dialect::MySql, connection.clone(), connection, Place::SilentServer { trust }, None))
    }
}

/// What every connection says first, whatever the server's own settings are.
fn session(server: &str) -> Vec<String> {
    let seconds = STATEMENT_TIMEOUT.as_secs();
    let limit = if is_mariadb(server) {
        let idle = STANDSTILL.as_secs();
        format!("max_statement_time = {seconds}, idle_transaction_timeout = {idle}")
    } else {
        format!("max_execution_time = {}", STATEMENT_TIMEOUT.as_millis())
    };
    vec![
        // The default is a snapshot for a whole transaction, which does not see what it had to wait for.
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED".to_owned(),
        format!(
            "SET SESSION sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION,\
             NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT,ANSI_QUOTES', time_zone = '+00:00', \
             innodb_lock_wait_timeout = {}, wait_timeout = {}, {limit}",
            LOCK_TIMEOUT.as_secs(),
            SILENCE.as_secs(),
        ),
    ]
}

fn is_mariadb(server: &str) -> bool {
    server.contains("MariaDB")
}

/// SKIP LOCKED, JSON_TABLE and constraints that are checked are there from MariaDB 10.6 and MySQL 8.0.16 on.
fn is_new_enough(server: &str) -> bool {
    // Some MariaDBs say that they are a 5.5.5 first, for old clients.
    let version = server.strip_prefix("5.5.5-").unwrap_or(server);
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let [major, minor, patch] = [(); 3].map(|()| numbers.next().unwrap_or(0));
    let least = if is_mariadb(server) { (10, 6, 0) } else { (8, 0, 16) };
    (major, minor, patch) >= least
}

/// A name that no other service has; the time will do where the machine has no random numbers.
fn random_name() -> String {
    let mut bytes = [0; 16];
    if getrandom::fill(&mut bytes).is_err() {
        bytes[..8].copy_from_slice(&crate::clock::now().unix_millis().to_be_bytes());
        bytes[8..12].copy_from_slice(&std::process::id().to_be_bytes());
    }
    crate::domain::RunToken::from_bytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_too_old_is_told_by_what_it_says_of_itself() {
        for (server, enough) in [
            ("10.11.19-MariaDB-0+deb12u1", true),
            ("5.5.5-10.6.4-MariaDB", true),
            ("11.4.2-MariaDB-log", true),
            ("10.5.29-MariaDB", false),
            ("8.0.16", true),
            ("8.4.0-commercial", true),
            ("9.1.0", true),
            ("8.0.15", false),
            ("5.7.44-log", false),
            ("", false),
        ] {
            assert_eq!(is_new_enough(server), enough, "{server}");
        }
    }
}
