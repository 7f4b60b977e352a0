//! `job_dependencies`: which jobs a job waits for, written by anybody.

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

/// A job that waits stands at the end of the year 9999 in the queue, where a claim never comes: no index and no query of a
/// claim knows of dependencies. `run_at_wanted` is where it belongs. The triggers note what has ended, whoever ended it, and
/// the next claim of any flow looks at what is noted and not `looked_at`.
///
/// A job waits only for jobs with lower ids: whoever enqueues it knows those, and there can be no cycle.
const SQLITE: &str = "
CREATE TABLE job_dependencies (
    job_id integer NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    after_id integer NOT NULL,
    ended text,
    looked_at integer NOT NULL DEFAULT 0,
    PRIMARY KEY (job_id, after_id),
    CONSTRAINT a_job_waits_only_for_jobs_with_lower_ids_so_there_are_no_cycles CHECK (after_id < job_id)
);
CREATE INDEX job_dependencies_after ON job_dependencies (after_id);
CREATE INDEX job_dependencies_ended ON job_dependencies (job_id) WHERE ended IS NOT NULL AND looked_at = 0;
ALTER TABLE jobs ADD COLUMN run_at_wanted integer CHECK (typeof(run_at_wanted) IN ('integer', 'null'));
CREATE TRIGGER job_dependencies_inserted AFTER INSERT ON job_dependencies BEGIN
    SELECT RAISE(ABORT, 'there is no job with this after_id') WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE id = NEW.after_id);
    SELECT RAISE(ABORT, 'only a job that is PENDING can be made to wait')
        WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE id = NEW.job_id AND status = 'PENDING');
    UPDATE jobs SET run_at_wanted = COALESCE(run_at_wanted, run_at), run_at = 253402300799000 WHERE id = NEW.job_id;
    UPDATE job_dependencies SET looked_at = 0, ended =
        (SELECT status FROM jobs WHERE id = NEW.after_id AND status IN ('COMPLETED', 'ERROR', 'CANCELLED'))
        WHERE job_id = NEW.job_id AND after_id = NEW.after_id;
END;
CREATE TRIGGER jobs_ended_for_those_that_wait AFTER UPDATE OF status ON jobs
WHEN NEW.status IN ('COMPLETED', 'ERROR', 'CANCELLED') AND OLD.status <> NEW.status BEGIN
    UPDATE job_dependencies SET ended = NEW.status, looked_at = 0 WHERE after_id = NEW.id AND ended IS NULL;
END;
CREATE TRIGGER jobs_deleted_for_those_that_wait AFTER DELETE ON jobs BEGIN
    UPDATE job_dependencies SET ended = 'DELETED', looked_at = 0 WHERE after_id = OLD.id AND ended IS NULL;
END;
CREATE TRIGGER jobs_that_wait_again AFTER UPDATE OF status ON jobs
WHEN NEW.status = 'PENDING' AND OLD.status IN ('COMPLETED', 'ERROR', 'CANCELLED') BEGIN
    UPDATE job_dependencies SET looked_at = 0, ended = CASE
        WHEN EXISTS (SELECT 1 FROM jobs WHERE id = after_id AND status IN ('PENDING', 'INQUEUE', 'PROGRESS')) THEN NULL
        ELSE COALESCE((SELECT status FROM jobs WHERE id = after_id), ended) END WHERE job_id = NEW.id;
    UPDATE jobs SET run_at_wanted = run_at, run_at = 253402300799000, schedule_time = NULL
        WHERE id = NEW.id AND EXISTS (SELECT 1 FROM job_dependencies WHERE job_id = NEW.id);
END;
";

/// A row that is waited for is locked against its end until the wait is committed: one of the two sees the other.
const POSTGRES: &str = "
CREATE TABLE job_dependencies (
    job_id bigint NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    after_id bigint NOT NULL,
    ended text,
    looked_at bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (job_id, after_id),
    CONSTRAINT a_job_waits_only_for_jobs_with_lower_ids_so_there_are_no_cycles CHECK (after_id < job_id)
);
CREATE INDEX job_dependencies_after ON job_dependencies (after_id);
CREATE INDEX job_dependencies_ended ON job_dependencies (job_id) WHERE ended IS NOT NULL AND looked_at = 0;
ALTER TABLE jobs ADD COLUMN run_at_wanted bigint;
CREATE FUNCTION callsheet_waits() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    now_is text;
BEGIN
    -- The one that waits first, as a service does it that looks at both: else each could wait for the other.
    UPDATE jobs SET run_at_wanted = COALESCE(run_at_wanted, run_at), run_at = 253402300799000
        WHERE id = NEW.job_id AND status = 'PENDING';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'only a job that is PENDING can be made to wait, and job % is not', NEW.job_id;
    END IF;
    SELECT status INTO now_is FROM jobs WHERE id = NEW.after_id FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no job %, for which job % is to wait', NEW.after_id, NEW.job_id;
    END IF;
    NEW.looked_at := 0;
    NEW.ended := CASE WHEN now_is IN ('COMPLETED', 'ERROR', 'CANCELLED') THEN now_is END;
    RETURN NEW;
END
$$;
CREATE TRIGGER job_dependencies_inserted BEFORE INSERT ON job_dependencies
    FOR EACH ROW EXECUTE FUNCTION callsheet_waits();
CREATE FUNCTION callsheet_ended() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    end_is text := 'DELETED';
BEGIN
    IF TG_OP = 'UPDATE' THEN
        end_is := NEW.status;
    END IF;
    UPDATE job_dependencies SET ended = end_is, looked_at = 0 WHERE after_id = OLD.id AND ended IS NULL;
    IF FOUND THEN
        -- Nobody hears of a deletion otherwise.
        PERFORM pg_notify('callsheet', coalesce(current_setting('callsheet.instance', true), ''));
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER jobs_ended_for_those_that_wait AFTER UPDATE OF status ON jobs FOR EACH ROW
    WHEN (NEW.status IN ('COMPLETED', 'ERROR', 'CANCELLED') AND OLD.status <> NEW.status)
    EXECUTE FUNCTION callsheet_ended();
CREATE TRIGGER jobs_deleted_for_those_that_wait AFTER DELETE ON jobs FOR EACH ROW EXECUTE FUNCTION callsheet_ended();
CREATE FUNCTION callsheet_waits_again() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE job_dependencies AS d SET looked_at = 0, ended = CASE
        WHEN EXISTS (SELECT 1 FROM jobs WHERE id = d.after_id AND status IN ('PENDING', 'INQUEUE', 'PROGRESS')) THEN NULL
        ELSE COALESCE((SELECT status FROM jobs WHERE id = d.after_id), d.ended) END WHERE d.job_id = NEW.id;
    IF FOUND THEN
        UPDATE jobs SET run_at_wanted = run_at, run_at = 253402300799000, schedule_time = NULL WHERE id = NEW.id;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER jobs_that_wait_again AFTER UPDATE OF status ON jobs FOR EACH ROW
    WHEN (NEW.status = 'PENDING' AND OLD.status IN ('COMPLETED', 'ERROR', 'CANCELLED'))
    EXECUTE FUNCTION callsheet_waits_again();
";
