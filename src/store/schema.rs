//! The schema: brought up to date by one process at a time, and never run against a newer one.

use migration::{Migrator, MigratorTrait};

use super::connection::{Connection, Transaction};
use super::sql::{Dialect, Doing, Row};
use super::{Error, Store};
use crate::crash::{self, Step};

/// Any number will do, as long as every Callsheet takes the same: "callshee" in ASCII.
const ADVISORY_LOCK: i64 = 0x6361_6c6c_7368_6565;

const ACTION: &str = "migrate";
const APPLIED: &str = "read which migrations are applied";
/// A change of a table waits for whoever reads it, a backup say, and has everybody else wait behind it, heartbeats too: for less
/// than any lease. It fails then, and is tried again by the next start.
pub(super) const WAIT_BRIEFLY: &str = "SET LOCAL lock_timeout = '5s'";
/// How long another process's migration is waited for on MySQL, in seconds; elsewhere it is the connection's own limits.
const LOCK_TIMEOUT: u32 = 30;

impl Store {
    /// Brings the schema up to date and names the migrations that it took, oldest first.
    ///
    /// # Errors
    /// [`Error::SchemaTooNew`] where a newer Callsheet was here before, [`Error::TableTaken`] where somebody else's table has the name
    /// of one of ours, [`Error::Adopted`] and [`Error::AdoptionMissing`] where
    /// a table that is to be adopted is not fit or complete; then nothing is changed.
    pub async fn migrate(&self) -> Result<Vec<String>, Error> {
        let transaction = self.begin_migration(ACTION).await?;
        let pending = match self.dialect() {
            Dialect::Sqlite | Dialect::Postgres => self.migrate_in(&transaction).await?,
            Dialect::MySql => self.migrate_locked(&transaction).await?,
        };
        if let Some(adopted) = self.adopted() {
            self.adopt(&transaction, adopted).await?;
        }
        crash::before(Step::MigrationCommit);
        transaction.commit().await.doing(ACTION)?;
        crash::after(Step::MigrationCommit);
        Ok(pending)
    }

    /// [`Self::migrate_in`] on MySQL, whose statements about tables end a transaction, and all that it has locked with it. What
    /// was done before an error stays done, and each step may be done again.
    async fn migrate_locked(&self, transaction: &Transaction) -> Result<Vec<String>, Error> {
        // Such a lock is the server's, not the database's.
        const NAME: &str = "CONCAT('callsheet ', MD5(DATABASE()))";
        let lock = format!("SELECT CAST(COALESCE(GET_LOCK({NAME}, {LOCK_TIMEOUT}), 0) AS bigint) AS locked");
        let result = transaction.query_one(self.statement(lock, [])).await.doing(ACTION)?;
        let locked =
            result.map(|result| Row { result: &result, dialect: self.dialect() }.flag("locked")).transpose()?;
        if !locked.unwrap_or(false) {
            return Err(Error::Timeout { action: ACTION });
        }
        let pending = self.migrate_in(transaction).await;
        let unlock = self.statement(format!("DO RELEASE_LOCK({NAME})"), []);
        let unlocked = transaction.execute(unlock).await.doing(ACTION);
        let pending = pending?;
        unlocked.map(|_| pending)
    }

    /// Names what it applied. Where a table has been adopted there is no table `jobs` after this, but one of another name.
    pub(super) async fn migrate_in(&self, transaction: &Transaction) -> Result<Vec<String>, Error> {
        if self.dialect() == Dialect::Postgres {
            let lock = self.statement("SELECT pg_advisory_xact_lock($1)", [ADVISORY_LOCK.into()]);
            transaction.execute(lock).await.doing(ACTION)?;
        }
        if self.adopted().is_some() {
            self.make_own_schema(transaction).await?;
        }
        if self.adopted().is_none() && !self.has_migrations(transaction).await? {
            self.refuse_strangers(transaction).await?;
        }
        let applied = self.applied(transaction).await?;
        refuse_newer(&applied)?;
        let pending: Vec<String> = known().into_iter().filter(|name| !applied.contains(name)).collect();
        if pending.is_empty() {
            return Ok(pending);
        }
        if self.dialect() == Dialect::Postgres {
            transaction.run(WAIT_BRIEFLY).await.doing(ACTION)?;
        }
        if self.adopted().is_some() {
            self.show_model(transaction).await?;
        }
        Migrator::up(transaction.pooled().doing(ACTION)?, None).await.doing(ACTION)?;
        if self.adopted().is_some() {
            self.hide_model(transaction).await?;
        }
        Ok(pending)
    }

    /// Every migration that this binary knows, oldest first, and whether it is applied.
    ///
    /// # Errors
    /// [`Error::SchemaTooNew`] where a newer Callsheet was here before.
    pub async fn migration_status(&self) -> Result<Vec<(String, bool)>, Error> {
        let applied = self.applied(self.reader()).await?;
        refuse_newer(&applied)?;
        Ok(known().into_iter().map(|name| (name.clone(), applied.contains(&name))).collect())
    }

    /// Checks that the schema is exactly this binary's.
    ///
    /// # Errors
    /// [`Error::SchemaMissing`] where a migration is to be applied, [`Error::TableTaken`] where none can be; the others as above.
    /// Of an adopted table only its columns are looked at.
    pub async fn check_schema(&self) -> Result<(), Error> {
        let status = self.migration_status().await?;
        if !status.iter().all(|(_, applied)| *applied) {
            if self.adopted().is_none() && !self.has_migrations(self.reader()).await? {
                self.refuse_strangers(self.reader()).await?;
            }
            return Err(Error::SchemaMissing);
        }
        match self.adopted() {
            Some(adopted) => self.check_view(adopted).await,
            None => Ok(()),
        }
    }

    /// Whether a migration was ever begun here.
    async fn has_migrations(&self, connection: &impl Connection) -> Result<bool, Error> {
        let dialect = self.dialect();
        let exists = dialect.pick(
            "SELECT count(*) AS tables FROM sqlite_schema WHERE type = 'table' AND name = 'seaql_migrations'",
            "SELECT count(to_regclass('seaql_migrations')) AS tables",
            "SELECT count(*) AS tables FROM information_schema.tables \
             WHERE table_schema = DATABASE() AND table_name = 'seaql_migrations'",
        );
        let row = connection.query_one(self.statement(exists, [])).await.doing(APPLIED)?;
        let tables = row.map(|result| Row { result: &result, dialect }.int("tables")).transpose()?;
        Ok(tables.unwrap_or_default() > 0)
    }

    async fn applied(&self, connection: &impl Connection) -> Result<Vec<String>, Error> {
        // Asked first: on PostgreSQL a failed statement would spoil the transaction.
        if !self.has_migrations(connection).await? {
            return Ok(Vec::new());
        }
        let dialect = self.dialect();
        let versions = format!("SELECT {} FROM seaql_migrations ORDER BY version", dialect.text("version"));
        let rows = connection.query_all(self.statement(versions, [])).await.doing(APPLIED)?;
        rows.iter().map(|result| Row { result, dialect }.some_text("version")).collect()
    }
}

fn known() -> Vec<String> {
    Migrator::migrations().iter().map(|migration| migration.name().to_owned()).collect()
}

fn refuse_newer(applied: &[String]) -> Result<(), Error> {
    let known = known();
    match applied.iter().find(|name| !known.contains(name)) {
        Some(migration) => Err(Error::SchemaTooNew { migration: migration.clone() }),
        None => Ok(()),
    }
}
