//! `workers.labels`: what each worker has that flows may require.

#![allow(elided_lifetimes_in_paths, reason = "the trait's own signature elides it, and async_trait wants the same")]

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_database_backend() == DbBackend::MySql {
            return Ok(()); // it is in the step that brought MySQL
        }
        // A JSON list of words; null where an earlier release has started the worker, which has none.
        manager.get_connection().execute_unprepared("ALTER TABLE workers ADD COLUMN labels text").await?;
        Ok(())
    }
}
