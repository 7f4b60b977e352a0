//! `jobs.tracestate`: what goes along with `jobs.traceparent` (W3C Trace Context), as whoever enqueued it wrote it.

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
        // What is no valid one counts as none when it is read: a foreign client's insert must not fail over it.
        manager.get_connection().execute_unprepared("ALTER TABLE jobs ADD COLUMN tracestate text").await?;
        Ok(())
    }
}
