//! The audit trail: who did what, when, from where, on what, and what came of it.
//!
//! A deed is written in the transaction that does it, so there is neither one without the other.

use entity::audit;
use sea_orm::ColumnTrait;
use sea_orm::sea_query::Order;

use super::connection::{Connection, Transaction};
use super::jobs::select;
use super::sql::{Doing, Row, storable};
use super::{AuditRow, Error, Page, Store};
use crate::crash::Step;

const ACTION: &str = "write the audit trail";

/// Who acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// `audit.actor`: a token's name, or a user's.
    pub actor: String,
    /// `audit.via`: `api`, `page` or `cli`.
    pub via: &'static str,
    /// `audit.address`: where from.
    pub address: Option<String>,
}

/// Which deeds to list, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Only those of this actor.
    pub actor: Option<String>,
    /// Only deeds of this kind.
    pub action: Option<String>,
    /// Only rows older than this one: the `next_cursor` of the page before.
    pub cursor: Option<i64>,
    /// At most so many rows: 1 to 1000.
    pub limit: u32,
}

impl Store {
    /// The same tables, with everything that is done through them put down to `who` in the audit trail.
    #[must_use]
    pub fn on_behalf_of(&self, who: Who) -> Self {
        Self { who: Some(std::sync::Arc::new(who)), ..self.clone() }
    }

    /// Puts a deed down that changes no other table, such as a sign-in; nothing where nobody acts.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn note_deed(&self, action: &str, target: &str, outcome: &str) -> Result<(), Error> {
        let write = || async {
            let transaction = self.begin(ACTION).await?;
            self.deed(&transaction, action, target, outcome).await?;
            self.commit(transaction, Step::DeedCommit, ACTION).await
        };
        self.in_time(ACTION, self.retrying(write)).await
    }

    /// Puts a deed down in the transaction that does it; nothing where nobody acts but the service itself.
    pub(super) async fn deed(
        &self,
        transaction: &Transaction,
        action: &str,
        target: &str,
        outcome: &str,
    ) -> Result<(), Error> {
        let Some(who) = &self.who else { return Ok(()) };
        let insert = format!(
            "INSERT INTO audit (time, actor, via, address, action, target, outcome) VALUES ({}, $1, $2, $3, $4, $5, $6)",
            self.dialect().now()
        );
        let values = [
            storable(&who.actor).into(),
            who.via.into(),
            who.address.as_deref().map(storable).into(),
            action.into(),
            storable(target).into(),
            storable(outcome).into(),
        ];
        transaction.execute(self.statement(insert, values)).await.doing(ACTION)?;
        Ok(())
    }

    /// Lists deeds, newest first.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn audit(&self, filter: &AuditFilter) -> Result<Page<AuditRow, i64>, Error> {
        let limit = filter.limit.clamp(1, 1000);
        let mut query = select::<audit::Entity>(self.dialect());
        if let Some(actor) = &filter.actor {
            query.and_where(audit::Column::Actor.eq(storable(actor)));
        }
        if let Some(action) = &filter.action {
            query.and_where(audit::Column::Action.eq(storable(action)));
        }
        if let Some(cursor) = filter.cursor {
            query.and_where(audit::Column::Id.lt(cursor));
        }
        query.order_by(audit::Column::Id, Order::Desc).limit(u64::from(limit) + 1);
        let rows = self.rows(&query, audit_row).await?;
        Ok(Page::of(rows, limit, |row| row.id))
    }
}

fn audit_row(row: &Row<'_>) -> Result<AuditRow, Error> {
    Ok(AuditRow {
        id: row.int("id")?,
        time: row.time("time")?,
        actor: row.some_text("actor")?,
        via: row.some_text("via")?,
        address: row.text("address")?,
        action: row.some_text("action")?,
        target: row.some_text("target")?,
        outcome: row.some_text("outcome")?,
    })
}
