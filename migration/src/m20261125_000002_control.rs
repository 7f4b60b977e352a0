//! What operators need: retries by hand, the end of what waits too long, who paused, who drains.

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
        manager.get_connection().execute_unprepared(statements).await?;
        Ok(())
    }
}

/// `jobs.attempts_before`: how many attempts there were when somebody retried the job by hand last; `maximum_attempts`
/// counts from there, so that old attempts keep their numbers and the job gets its whole budget again.
///
/// `flows.paused_time`, `flows.paused_by`: when and by whom `paused` was changed last.
///
/// `jobs_expiry` finds the row that has waited longest by the time that `schedule_to_close_timeout` counts from, word for
/// word as `store::sql::Dialect::schedule_time` has it.
const SQLITE: &str = "
ALTER TABLE jobs ADD COLUMN attempts_before INTEGER NOT NULL DEFAULT 0
    CONSTRAINT attempts_before_is_0_or_more CHECK (typeof(attempts_before) = 'integer' AND attempts_before BETWEEN 0 AND 2147483647);
ALTER TABLE flows ADD COLUMN paused_time INTEGER CHECK (typeof(paused_time) IN ('integer', 'null'));
ALTER TABLE flows ADD COLUMN paused_by TEXT;
ALTER TABLE workers ADD COLUMN drain_requested_time INTEGER CHECK (typeof(drain_requested_time) IN ('integer', 'null'));
ALTER TABLE workers ADD COLUMN drain_requested_by TEXT;
CREATE INDEX jobs_expiry ON jobs (type, COALESCE(schedule_time, max(created_time, run_at))) WHERE status = 'PENDING';
";

const POSTGRES: &str = "
ALTER TABLE jobs ADD COLUMN attempts_before bigint NOT NULL DEFAULT 0
    CONSTRAINT attempts_before_is_0_or_more CHECK (attempts_before BETWEEN 0 AND 2147483647);
ALTER TABLE flows ADD COLUMN paused_time bigint;
ALTER TABLE flows ADD COLUMN paused_by text;
ALTER TABLE workers ADD COLUMN drain_requested_time bigint;
ALTER TABLE workers ADD COLUMN drain_requested_by text;
CREATE INDEX jobs_expiry ON jobs (type, (COALESCE(schedule_time, GREATEST(created_time, run_at)))) WHERE status = 'PENDING';
";
