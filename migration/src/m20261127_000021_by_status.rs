//! One index of `jobs` less: each change of a status wrote into it, and what it was for is found along `jobs_by_type_and_status`,
//! one type after the other, or, where it is open, along `jobs_open`.

#![allow(elided_lifetimes_in_paths, reason = "the trait's own signature elides it, and async_trait wants the same")]

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_database_backend() == DbBackend::MySql {
            return Ok(()); // it can't join a list of types with the newest rows of each: MariaDB knows no LATERAL
        }
        // Somebody may have seen that it is dear, and dropped it by hand.
        manager.get_connection().execute_unprepared("DROP INDEX IF EXISTS jobs_by_status").await?;
        Ok(())
    }
}
