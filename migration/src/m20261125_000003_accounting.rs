//! What a run had read from and written to storage.

#![allow(elided_lifetimes_in_paths, reason = "the trait's own signature elides it, and async_trait wants the same")]

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let statements = match manager.get_database_backend() {
            DbBackend::Sqlite => SQLITE,
            DbBackend::Postgres => POSTGRES,
            DbBackend::MySql => return Ok(()), // all of it is in the step that brought MySQL
            other => return Err(DbErr::Migration(format!("{other:?} is not supported"))),
        };
        manager.get_connection().execute_unprepared(statements).await.map(drop)
    }
}

const SQLITE: &str = "
ALTER TABLE runs ADD COLUMN io_read_bytes INTEGER CHECK (typeof(io_read_bytes) IN ('integer', 'null'));
ALTER TABLE runs ADD COLUMN io_write_bytes INTEGER CHECK (typeof(io_write_bytes) IN ('integer', 'null'));
";

const POSTGRES: &str = "ALTER TABLE runs ADD COLUMN io_read_bytes bigint, ADD COLUMN io_write_bytes bigint;";
