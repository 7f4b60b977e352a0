//! `jobs`, `runs`, `job_events`, `flows` and `workers`.
//!
//! Written as SQL for each database, since defaults that call functions, partial indexes and triggers are most of it.

#![allow(elided_lifetimes_in_paths, reason = "the trait's own signature elides it, and async_trait wants the same")]

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let (tables, triggers) = match manager.get_database_backend() {
            DbBackend::Sqlite => (SQLITE_TABLES, SQLITE_TRIGGERS),
            DbBackend::Postgres => (POSTGRES_TABLES, POSTGRES_TRIGGERS),
            DbBackend::MySql => return Ok(()), // all of it is in the step that brought MySQL
            other => return Err(DbErr::Migration(format!("{other:?} is not supported"))),
        };
        for statements in [tables, INDEXES, triggers] {
            manager.get_connection().execute_unprepared(statements).await?;
        }
        Ok(())
    }
}

/// Each partial index serves exactly one question, so its `WHERE` stands word for word in that question's query.
const INDEXES: &str = "
-- which row is next
CREATE INDEX jobs_claim ON jobs (type, priority DESC, run_at, id) WHERE status = 'PENDING';
-- when will there be a next row; how many wait, and since when
CREATE INDEX jobs_due ON jobs (type, run_at) WHERE status = 'PENDING';
-- how many runs are open, and on which worker
CREATE INDEX jobs_open ON jobs (type, worker_id) WHERE status IN ('INQUEUE', 'PROGRESS');
-- is this run's token current
CREATE UNIQUE INDEX jobs_run_token ON jobs (run_token) WHERE run_token IS NOT NULL;
-- which open rows has somebody asked to cancel
CREATE INDEX jobs_cancel_requested ON jobs (type)
    WHERE cancel_requested_time IS NOT NULL AND status IN ('PENDING', 'INQUEUE', 'PROGRESS');
-- at most one open row has a key
CREATE UNIQUE INDEX jobs_unique_key ON jobs (type, unique_key)
    WHERE unique_key IS NOT NULL AND status IN ('PENDING', 'INQUEUE', 'PROGRESS');
-- lists
CREATE INDEX jobs_by_type ON jobs (type, id);
CREATE INDEX jobs_by_status ON jobs (status, id);
CREATE INDEX jobs_by_identifier ON jobs (identifier, id);
CREATE INDEX runs_by_job ON runs (job_id);
CREATE INDEX job_events_by_job ON job_events (job_id);
";

/// Evaluated by the library of whoever inserts, so only functions that SQLite has always had: `unixepoch('subsec')`
/// would need 3.42. `julianday` counts whole milliseconds inside, which `round` brings back exactly.
const SQLITE_TABLES: &str = "
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    type TEXT NOT NULL,
    identifier TEXT NOT NULL,
    payload TEXT,
    status TEXT NOT NULL DEFAULT 'PENDING',
    priority INTEGER NOT NULL DEFAULT 0,
    run_at INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)),
    attempt INTEGER NOT NULL DEFAULT 0,
    maximum_attempts INTEGER,
    unique_key TEXT,
    worker_id TEXT,
    run_token TEXT,
    cancel_requested_time INTEGER,
    progress INTEGER,
    status_message TEXT,
    error TEXT,
    exit_code INTEGER,
    created_time INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)),
    schedule_time INTEGER,
    queued_time INTEGER,
    started_time INTEGER,
    heartbeat_time INTEGER,
    completed_time INTEGER,
    execution_ms INTEGER,
    CONSTRAINT status_is_PENDING_INQUEUE_PROGRESS_COMPLETED_ERROR_or_CANCELLED
        CHECK (status IN ('PENDING', 'INQUEUE', 'PROGRESS', 'COMPLETED', 'ERROR', 'CANCELLED')),
    CONSTRAINT priority_is_a_whole_number
        CHECK (typeof(priority) = 'integer' AND priority BETWEEN -2147483648 AND 2147483647),
    CONSTRAINT attempt_is_0_or_more CHECK (typeof(attempt) = 'integer' AND attempt BETWEEN 0 AND 2147483647),
    CONSTRAINT maximum_attempts_is_1_or_more
        CHECK (maximum_attempts IS NULL OR typeof(maximum_attempts) = 'integer' AND maximum_attempts BETWEEN 1 AND 2147483647),
    CONSTRAINT progress_is_0_to_100 CHECK (progress IS NULL OR typeof(progress) = 'integer' AND progress BETWEEN 0 AND 100),
    CONSTRAINT exit_code_is_a_whole_number CHECK (typeof(exit_code) IN ('integer', 'null')),
    CONSTRAINT times_are_whole_milliseconds_since_1970_in_UTC CHECK (
        typeof(schedule_time) IN ('integer', 'null') AND typeof(queued_time) IN ('integer', 'null')
        AND typeof(started_time) IN ('integer', 'null') AND typeof(heartbeat_time) IN ('integer', 'null')
        AND typeof(completed_time) IN ('integer', 'null') AND typeof(execution_ms) IN ('integer', 'null'))
);
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    attempt INTEGER NOT NULL CHECK (typeof(attempt) = 'integer'),
    run_token TEXT NOT NULL UNIQUE,
    worker_id TEXT,
    pid INTEGER CHECK (typeof(pid) IN ('integer', 'null')),
    started_time INTEGER CHECK (typeof(started_time) IN ('integer', 'null')),
    completed_time INTEGER CHECK (typeof(completed_time) IN ('integer', 'null')),
    outcome TEXT,
    exit_code INTEGER CHECK (typeof(exit_code) IN ('integer', 'null')),
    signal INTEGER CHECK (typeof(signal) IN ('integer', 'null')),
    error TEXT,
    user_cpu_ms INTEGER CHECK (typeof(user_cpu_ms) IN ('integer', 'null')),
    system_cpu_ms INTEGER CHECK (typeof(system_cpu_ms) IN ('integer', 'null')),
    max_rss_bytes INTEGER CHECK (typeof(max_rss_bytes) IN ('integer', 'null'))
);
CREATE TABLE job_events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    attempt INTEGER NOT NULL CHECK (typeof(attempt) = 'integer'),
    from_status TEXT,
    to_status TEXT NOT NULL,
    time INTEGER NOT NULL CHECK (typeof(time) = 'integer'),
    worker_id TEXT,
    message TEXT
);
CREATE TABLE flows (
    type TEXT NOT NULL PRIMARY KEY,
    paused INTEGER NOT NULL DEFAULT 0 CONSTRAINT paused_is_0_or_1 CHECK (typeof(paused) = 'integer' AND paused IN (0, 1))
);
CREATE TABLE workers (
    worker_id TEXT NOT NULL PRIMARY KEY,
    incarnation TEXT NOT NULL,
    hostname TEXT NOT NULL,
    version TEXT NOT NULL,
    state TEXT NOT NULL,
    started_time INTEGER NOT NULL CHECK (typeof(started_time) = 'integer'),
    heartbeat_time INTEGER NOT NULL CHECK (typeof(heartbeat_time) = 'integer')
);
";

macro_rules! milliseconds {
    ($time:literal) => {
        concat!(
            "CASE typeof(",
            $time,
            ") WHEN 'integer' THEN ",
            $time,
            " WHEN 'real' THEN CAST(round(",
            $time,
            ") AS INTEGER)",
            " WHEN 'text' THEN CASE WHEN ",
            $time,
            " GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*'",
            " THEN CAST(round((julianday(",
            $time,
            ") - 2440587.5) * 86400000.0) AS INTEGER) END END"
        )
    };
}

macro_rules! normalise {
    ($name:literal, $when:literal) => {
        concat!(
            "CREATE TRIGGER ", $name, " AFTER ", $when, " ON jobs",
            " WHEN typeof(NEW.run_at) <> 'integer' OR typeof(NEW.created_time) <> 'integer'",
            " OR typeof(NEW.cancel_requested_time) NOT IN ('integer', 'null') BEGIN",
            " SELECT RAISE(ABORT, 'run_at is no time: write milliseconds since 1970, or a UTC date and time like 2026-11-23T16:00:00Z')",
            " WHERE ", milliseconds!("NEW.run_at"), " IS NULL;",
            " SELECT RAISE(ABORT, 'created_time is no time: write milliseconds since 1970, or a UTC date and time like 2026-11-23T16:00:00Z')",
            " WHERE ", milliseconds!("NEW.created_time"), " IS NULL;",
            " SELECT RAISE(ABORT, 'cancel_requested_time is no time: write milliseconds since 1970, or a UTC date and time like 2026-11-23T16:00:00Z')",
            " WHERE NEW.cancel_requested_time IS NOT NULL AND ", milliseconds!("NEW.cancel_requested_time"), " IS NULL;",
            " UPDATE jobs SET run_at = ", milliseconds!("NEW.run_at"),
            ", created_time = ", milliseconds!("NEW.created_time"),
            ", cancel_requested_time = ", milliseconds!("NEW.cancel_requested_time"),
            " WHERE id = NEW.id; END;\n"
        )
    };
}

/// Times that foreign clients write may come as text, which would sort after every number; they become milliseconds
/// before the client's statement ends, or the statement fails with a sentence.
const SQLITE_TRIGGERS: &str = concat!(
    normalise!("jobs_times_are_milliseconds_when_inserted", "INSERT"),
    normalise!("jobs_times_are_milliseconds_when_updated", "UPDATE OF run_at, created_time, cancel_requested_time")
);

/// The claim index churns with every job, so dead rows must go early, and updates that touch no index find room on
/// their own page.
const POSTGRES_TABLES: &str = r#"
CREATE TABLE jobs (
    id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    type text NOT NULL,
    identifier text NOT NULL,
    payload json,
    status text NOT NULL DEFAULT 'PENDING',
    priority bigint NOT NULL DEFAULT 0,
    run_at bigint NOT NULL DEFAULT (floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint),
    attempt bigint NOT NULL DEFAULT 0,
    maximum_attempts bigint,
    unique_key text,
    worker_id text,
    run_token text,
    cancel_requested_time bigint,
    progress bigint,
    status_message text,
    error text,
    exit_code bigint,
    created_time bigint NOT NULL DEFAULT (floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint),
    schedule_time bigint,
    queued_time bigint,
    started_time bigint,
    heartbeat_time bigint,
    completed_time bigint,
    execution_ms bigint,
    CONSTRAINT "status_is_PENDING_INQUEUE_PROGRESS_COMPLETED_ERROR_or_CANCELLED"
        CHECK (status IN ('PENDING', 'INQUEUE', 'PROGRESS', 'COMPLETED', 'ERROR', 'CANCELLED')),
    CONSTRAINT priority_is_a_whole_number CHECK (priority BETWEEN -2147483648 AND 2147483647),
    CONSTRAINT attempt_is_0_or_more CHECK (attempt BETWEEN 0 AND 2147483647),
    CONSTRAINT maximum_attempts_is_1_or_more CHECK (maximum_attempts BETWEEN 1 AND 2147483647),
    CONSTRAINT progress_is_0_to_100 CHECK (progress BETWEEN 0 AND 100)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
CREATE TABLE runs (
    id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    job_id bigint NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    attempt bigint NOT NULL,
    run_token text NOT NULL UNIQUE,
    worker_id text,
    pid bigint,
    started_time bigint,
    completed_time bigint,
    outcome text,
    exit_code bigint,
    signal bigint,
    error text,
    user_cpu_ms bigint,
    system_cpu_ms bigint,
    max_rss_bytes bigint
);
CREATE TABLE job_events (
    id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    job_id bigint NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    attempt bigint NOT NULL,
    from_status text,
    to_status text NOT NULL,
    time bigint NOT NULL,
    worker_id text,
    message text
);
CREATE TABLE flows (
    type text PRIMARY KEY,
    paused boolean NOT NULL DEFAULT false
);
CREATE TABLE workers (
    worker_id text PRIMARY KEY,
    incarnation text NOT NULL,
    hostname text NOT NULL,
    version text NOT NULL,
    state text NOT NULL,
    started_time bigint NOT NULL,
    heartbeat_time bigint NOT NULL
);
"#;

/// A service names itself in the setting `callsheet.instance`, so that it can tell its own changes from others'; what
/// it updates as it runs jobs is no news to anybody, and where it is (a slot has become free) the service says so.
const POSTGRES_TRIGGERS: &str = "
CREATE FUNCTION callsheet_notify() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    instance text := coalesce(current_setting('callsheet.instance', true), '');
BEGIN
    IF instance = '' OR TG_OP = 'INSERT' OR TG_TABLE_NAME = 'flows' THEN
        PERFORM pg_notify('callsheet', instance);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER jobs_inserted AFTER INSERT ON jobs FOR EACH STATEMENT EXECUTE FUNCTION callsheet_notify();
CREATE TRIGGER jobs_updated AFTER UPDATE OF status, run_at, priority, cancel_requested_time ON jobs
    FOR EACH STATEMENT EXECUTE FUNCTION callsheet_notify();
CREATE TRIGGER flows_updated AFTER UPDATE OF paused ON flows FOR EACH STATEMENT EXECUTE FUNCTION callsheet_notify();
";
