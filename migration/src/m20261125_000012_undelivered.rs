//! An index of the deliveries that wait, in the order in which their events happened: so the oldest is found, and they are
//! counted, however many rows there are of those that have ended.

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
        let index = "CREATE INDEX deliveries_waiting ON deliveries (webhook, id) WHERE state = 'WAITING'";
        manager.get_connection().execute_unprepared(index).await?;
        Ok(())
    }
}
