//! Indexes for the overview and the lists of the page: what has ended, and every combination of type and status.

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
        manager.get_connection().execute_unprepared(INDEXES).await?;
        Ok(())
    }
}

const INDEXES: &str = "
-- how many have ended in each minute, and which were the last of a flow
CREATE INDEX jobs_ended ON jobs (type, completed_time, status) WHERE status IN ('COMPLETED', 'ERROR', 'CANCELLED');
-- which were the last to fail
CREATE INDEX jobs_failed ON jobs (completed_time) WHERE status = 'ERROR';
-- lists by type, alone or with a status; what jobs_by_type did as well
CREATE INDEX jobs_by_type_and_status ON jobs (type, status, id);
DROP INDEX jobs_by_type;
";
