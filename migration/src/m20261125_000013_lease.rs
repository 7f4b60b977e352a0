//! `jobs.lease_time`: when another worker of a shared database may take an open run over, by the database's clock.

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
        // Null where nobody ever may: on SQLite, and in rows that an earlier release has claimed.
        manager.get_connection().execute_unprepared("ALTER TABLE jobs ADD COLUMN lease_time bigint").await?;
        Ok(())
    }
}
