//! Updates that tell what they changed.
//!
//! SQLite and PostgreSQL answer in the same statement. MySQL has nothing of the kind, and to an update that names its rows by
//! a subquery it reads the whole table; so there the rows are locked first, then changed by their ids, then read.

use sea_orm::Value;
use serde_json::json;

use super::connection::{Connection, Record};
use super::sql::{Dialect, Doing, Row};
use super::{Error, Store};

/// What to change, and what of it to tell.
pub(super) struct Update<'a> {
    pub(super) table: &'a str,
    /// What comes after SET.
    pub(super) set: &'a str,
    pub(super) rows: Rows<'a>,
    /// The columns to tell, as they are then.
    pub(super) returning: &'a str,
}

/// Which rows to change.
pub(super) enum Rows<'a> {
    /// Those of this condition, which names few.
    Where(&'a str),
    /// Those that a selection of `id` finds, as it reads from its FROM on, while this condition holds.
    Selected { from: &'a str, while_: &'a str },
}

impl Store {
    /// Changes rows, in a transaction, and gives them in no order.
    pub(super) async fn update(
        &self,
        transaction: &impl Connection,
        action: &'static str,
        update: &Update<'_>,
        values: Vec<Value>,
    ) -> Result<Vec<Record>, Error> {
        let (dialect, Update { table, set, rows, returning }) = (self.dialect(), update);
        if dialect != Dialect::MySql {
            let these = match rows {
                Rows::Where(condition) => (*condition).to_owned(),
                Rows::Selected { from, while_ } => {
                    format!("{} AND {}", dialect.of_named(while_), dialect.one_of("id", &format!("SELECT id {from}")))
                }
            };
            let sql = format!("UPDATE {table} SET {set} WHERE {these} RETURNING {returning}");
            return transaction.query_all(self.statement(sql, values)).await.doing(action);
        }
        let select = match rows {
            Rows::Where(condition) => format!("SELECT id FROM {table} WHERE {condition} FOR UPDATE"),
            Rows::Selected { from, .. } => format!("SELECT id {from}"),
        };
        let ids = self.ids(transaction, action, select, values.clone()).await?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let list: Value = json!(ids).to_string().into();
        let place = format!("${}", values.len() + 1);
        let (by_key, these) = (dialect.by_key(), dialect.among_ids("id", &place));
        let sql = format!("UPDATE {table} {by_key} SET {set} WHERE {these}");
        let values = values.into_iter().chain([list.clone()]);
        transaction.execute(self.statement(sql, values)).await.doing(action)?;
        let these = dialect.among_ids("id", "$1");
        let sql = format!("SELECT {returning} FROM {table} {by_key} WHERE {these}");
        transaction.query_all(self.statement(sql, [list])).await.doing(action)
    }

    /// Removes the rows whose ids a selection finds, at once where the database can, and answers how many those are. On MySQL
    /// in a transaction of two statements; the selection locks what must not change in between.
    pub(super) async fn delete(
        &self,
        table: &str,
        action: &'static str,
        select: String,
        values: Vec<Value>,
    ) -> Result<u64, Error> {
        let dialect = self.dialect();
        if dialect != Dialect::MySql {
            let delete = format!("DELETE FROM {table} WHERE {}", dialect.one_of("id", &select));
            let deleted = self.writer().execute(self.statement(delete, values)).await.doing(action)?;
            return Ok(deleted.rows_affected);
        }
        let transaction = self.begin(action).await?;
        let ids = self.ids(&transaction, action, select, values).await?;
        let delete = format!("DELETE FROM {table} WHERE {}", dialect.among_ids("id", "$1"));
        let list: Value = json!(ids).to_string().into();
        let deleted = transaction.execute(self.statement(delete, [list])).await.doing(action)?;
        transaction.commit().await.doing(action)?;
        Ok(deleted.rows_affected)
    }

    /// The column `id` of a selection.
    pub(super) async fn ids(
        &self,
        connection: &impl Connection,
        action: &'static str,
        select: String,
        values: Vec<Value>,
    ) -> Result<Vec<i64>, Error> {
        let dialect = self.dialect();
        let results = connection.query_all(self.statement(select, values)).await.doing(action)?;
        results.iter().map(|result| Row { result, dialect }.int("id")).collect()
    }
}
