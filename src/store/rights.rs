//! Whether a service can work here at all, asked before anything is written: whose the tables are, and what this role may do.

use super::connection::Connection;
use super::sql::{Dialect, Doing, Row};
use super::{Error, Store};

const ACTION: &str = "read whose the tables are";

/// The names that the tables have, `jobs` first, and last the one that there is on MySQL only.
const TABLES: [&str; 12] = [
    "jobs",
    "runs",
    "job_events",
    "flows",
    "workers",
    "audit",
    "sessions",
    "recurring",
    "webhooks",
    "deliveries",
    "job_dependencies",
    "unique_keys",
];
/// Those in which a service can't do without writing.
const WRITTEN: &str = "'jobs', 'runs', 'flows', 'workers'";

impl Store {
    /// Refuses a role that may not do what a service does. It is asked of PostgreSQL only; elsewhere it comes out with the first
    /// write, as it does with a table that has been adopted.
    ///
    /// # Errors
    /// [`Error::Rights`], or where the database fails.
    pub async fn check_rights(&self) -> Result<(), Error> {
        if self.dialect() != Dialect::Postgres || self.adopted().is_some() {
            return Ok(());
        }
        // No more than it can't do without: rows of jobs may be inserted by others, and rights be had of columns.
        let complete = self.migration_status().await?.iter().all(|(_, applied)| *applied);
        let select = format!(
            "SELECT CAST(current_user AS text) AS role, \
             CAST(COALESCE(current_schema(), 'public') AS text) AS place, \
             CAST(CASE WHEN has_schema_privilege(COALESCE(current_schema(), 'public'), 'CREATE') THEN 1 ELSE 0 END AS bigint) AS makes, \
             (SELECT CAST(min(name) AS text) FROM unnest(ARRAY[{WRITTEN}]) AS name WHERE to_regclass(name) IS NOT NULL \
             AND NOT (has_any_column_privilege(to_regclass(name), 'SELECT') AND has_any_column_privilege(to_regclass(name), 'UPDATE') \
             AND (name = 'jobs' OR has_any_column_privilege(to_regclass(name), 'INSERT')))) AS locked"
        );
        let asked = async {
            let Some(result) = self.reader().query_one(self.statement(select, [])).await.doing(ACTION)? else {
                return Ok(());
            };
            let row = Row { result: &result, dialect: self.dialect() };
            let lacks = match row.text("locked")? {
                Some(table) => format!("read and write the table {table}"),
                None if !complete && !row.flag("makes")? => {
                    format!("make tables in the schema {}", row.some_text("place")?)
                }
                None => return Ok(()),
            };
            Err(Error::Rights { role: row.some_text("role")?, lacks })
        };
        self.in_time(ACTION, asked).await
    }

    /// Refuses a database in which somebody else's table has the name of one of ours; only to be asked where no migration was
    /// begun.
    pub(super) async fn refuse_strangers(&self, connection: &impl Connection) -> Result<(), Error> {
        let dialect = self.dialect();
        let ours = if dialect == Dialect::MySql { &TABLES[..] } else { &TABLES[..TABLES.len() - 1] };
        let names = ours.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
        let (name, from) = match dialect {
            Dialect::Sqlite => ("lower(name)", "sqlite_schema WHERE type IN ('table', 'view')"),
            // Not the view of the standard, which leaves out what this role may not look at.
            Dialect::Postgres => (
                "relname",
                "pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE nspname = current_schema() \
                 AND relkind IN ('r', 'p', 'v', 'm', 'f')",
            ),
            Dialect::MySql => ("table_name", "information_schema.tables WHERE table_schema = DATABASE()"),
        };
        let select = format!(
            "SELECT {} AS taken FROM {from} AND {name} IN ({names}) \
             ORDER BY CASE WHEN {name} = 'jobs' THEN 0 ELSE 1 END, {name} LIMIT 1",
            dialect.as_text(name)
        );
        let found = connection.query_one(self.statement(select, [])).await.doing(ACTION)?;
        match found.map(|result| Row { result: &result, dialect }.some_text("taken")).transpose()? {
            Some(table) => Err(Error::TableTaken { table, adoptable: dialect == Dialect::Postgres }),
            None => Ok(()),
        }
    }
}
