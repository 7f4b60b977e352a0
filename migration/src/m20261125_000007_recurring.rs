//! `recurring`: up to where the fires of each recurring entry have been dealt with.

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
        manager.get_connection().execute_unprepared(TABLE).await?;
        Ok(())
    }
}

/// With the line that `fired_until` was reached by, since a line that is changed has missed nothing.
const TABLE: &str = "
CREATE TABLE recurring (
    type text NOT NULL,
    name text NOT NULL,
    schedule text NOT NULL,
    timezone text NOT NULL,
    fired_until bigint NOT NULL,
    last_fire_time bigint,
    last_job_id bigint,
    PRIMARY KEY (type, name)
);
";
