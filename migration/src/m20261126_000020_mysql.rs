//! Everything that the steps before this one do, for MySQL and MariaDB, which came with it.
//!
//! No statement about tables can be taken back there, each is committed at once: so each may be run again, and a migration
//! that was killed is done once more from its start.

#![allow(elided_lifetimes_in_paths, reason = "the trait's own signature elides it, and async_trait wants the same")]

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{DbBackend, Statement};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_database_backend() != DbBackend::MySql {
            return Ok(());
        }
        let connection = manager.get_connection();
        let version = Statement::from_string(DbBackend::MySql, "SELECT VERSION() AS version");
        let row = connection.query_one_raw(version).await?;
        let version: String = row.map(|row| row.try_get("", "version")).transpose()?.unwrap_or_default();
        // A text equals only itself: not in other letters, not with blanks at its end. They have different names for that.
        let collation = if version.contains("MariaDB") { "utf8mb4_nopad_bin" } else { "utf8mb4_0900_bin" };
        refuse_foreign(connection).await?;
        for table in TABLES {
            let options =
                format!("ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {collation} COMMENT = '{COMMENT}'");
            connection.execute_unprepared(&format!("CREATE TABLE IF NOT EXISTS {table} {options}")).await?;
        }
        connection.execute_unprepared("DROP FUNCTION IF EXISTS callsheet_due_priority").await?;
        connection.execute_unprepared(&DUE_PRIORITY.replace("{collation}", collation)).await?;
        for (name, trigger) in TRIGGERS {
            connection.execute_unprepared(&format!("DROP TRIGGER IF EXISTS {name}")).await?;
            connection.execute_unprepared(&format!("CREATE TRIGGER {name} {trigger}")).await?;
        }
        Ok(())
    }
}

/// By what a table is known for ours: what is there already may also be somebody else's.
const COMMENT: &str = "Callsheet";

async fn refuse_foreign(connection: &SchemaManagerConnection<'_>) -> Result<(), DbErr> {
    let names: Vec<_> =
        TABLES.iter().filter_map(|table| table.split(' ').next()).map(|name| format!("'{name}'")).collect();
    let select = format!(
        "SELECT table_name AS name FROM information_schema.tables WHERE table_schema = DATABASE() \
         AND table_comment <> '{COMMENT}' AND table_name IN ({}) ORDER BY table_name LIMIT 1",
        names.join(", ")
    );
    match connection.query_one_raw(Statement::from_string(DbBackend::MySql, select)).await? {
        None => Ok(()),
        Some(row) => {
            let name: String = row.try_get("", "name")?;
            Err(DbErr::Migration(format!(
                "the database has a table {name} that is not Callsheet's; use another database"
            )))
        }
    }
}

/// The present time as the other databases' defaults have it; no session's time zone or summer time is in it.
macro_rules! now {
    () => {
        "(TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(3)) DIV 1000)"
    };
}

/// There are no partial indexes: where the others have `WHERE status = …`, an index here has `status` in front, and a key
/// that only open rows have is a column of its own, NULL in the others. Old MariaDB orders no index downwards, so there is a
/// priority that counts the other way.
///
/// `unique_keys`: a row a type, which whoever writes unique keys of the type locks, so that one waits for another and not each
/// for the other.
///
/// `event_writers`: from which id on each connection may have drawn ids of `job_events` in its present transaction; see
/// `store::events`.
const TABLES: [&str; 13] = [
    concat!(
        "jobs (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    type VARCHAR(255) NOT NULL,
    identifier VARCHAR(700) NOT NULL,
    payload LONGTEXT,
    status VARCHAR(16) NOT NULL DEFAULT 'PENDING',
    priority BIGINT NOT NULL DEFAULT 0,
    run_at BIGINT NOT NULL DEFAULT ",
        now!(),
        ",
    attempt BIGINT NOT NULL DEFAULT 0,
    attempts_before BIGINT NOT NULL DEFAULT 0,
    maximum_attempts BIGINT,
    unique_key VARCHAR(500),
    worker_id VARCHAR(255),
    run_token VARCHAR(255),
    cancel_requested_time BIGINT,
    progress BIGINT,
    status_message TEXT,
    error LONGTEXT,
    exit_code BIGINT,
    created_time BIGINT NOT NULL DEFAULT ",
        now!(),
        ",
    schedule_time BIGINT,
    queued_time BIGINT,
    started_time BIGINT,
    heartbeat_time BIGINT,
    completed_time BIGINT,
    execution_ms BIGINT,
    traceparent TEXT,
    tracestate TEXT,
    run_at_wanted BIGINT,
    lease_time BIGINT,
    priority_down BIGINT GENERATED ALWAYS AS (-priority) STORED,
    open_key VARCHAR(500) GENERATED ALWAYS AS
        (CASE WHEN status IN ('PENDING', 'INQUEUE', 'PROGRESS') THEN unique_key END) STORED,
    schedule_from BIGINT GENERATED ALWAYS AS (COALESCE(schedule_time, GREATEST(created_time, run_at))) STORED,
    CONSTRAINT status_is_PENDING_INQUEUE_PROGRESS_COMPLETED_ERROR_or_CANCELLED
        CHECK (status IN ('PENDING', 'INQUEUE', 'PROGRESS', 'COMPLETED', 'ERROR', 'CANCELLED')),
    CONSTRAINT priority_is_a_whole_number CHECK (priority BETWEEN -2147483648 AND 2147483647),
    CONSTRAINT attempt_is_0_or_more CHECK (attempt BETWEEN 0 AND 2147483647),
    CONSTRAINT attempts_before_is_0_or_more CHECK (attempts_before BETWEEN 0 AND 2147483647),
    CONSTRAINT maximum_attempts_is_1_or_more CHECK (maximum_attempts BETWEEN 1 AND 2147483647),
    CONSTRAINT progress_is_0_to_100 CHECK (progress BETWEEN 0 AND 100),
    INDEX jobs_claim (type, status, priority_down, run_at, id),
    INDEX jobs_due (status, type, run_at, priority_down),
    INDEX jobs_open (status, type, worker_id),
    UNIQUE INDEX jobs_run_token (run_token),
    INDEX jobs_cancel_requested (type, status, cancel_requested_time),
    UNIQUE INDEX jobs_unique_key (type, open_key),
    INDEX jobs_expiry (type, status, schedule_from),
    INDEX jobs_ended (type, completed_time, status),
    INDEX jobs_failed (status, completed_time),
    INDEX jobs_by_type_and_status (type, status, id),
    INDEX jobs_by_status (status, id),
    INDEX jobs_by_identifier (identifier, id)
)"
    ),
    "runs (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    job_id BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    run_token VARCHAR(255) NOT NULL,
    worker_id VARCHAR(255),
    pid BIGINT,
    started_time BIGINT,
    completed_time BIGINT,
    outcome VARCHAR(16),
    exit_code BIGINT,
    `signal` BIGINT,
    error LONGTEXT,
    user_cpu_ms BIGINT,
    system_cpu_ms BIGINT,
    max_rss_bytes BIGINT,
    io_read_bytes BIGINT,
    io_write_bytes BIGINT,
    slot TEXT,
    UNIQUE INDEX runs_run_token (run_token),
    INDEX runs_by_job (job_id),
    CONSTRAINT runs_of_job FOREIGN KEY (job_id) REFERENCES jobs (id) ON DELETE CASCADE
)",
    "job_events (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    job_id BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    from_status VARCHAR(16),
    to_status VARCHAR(16) NOT NULL,
    time BIGINT NOT NULL,
    worker_id VARCHAR(255),
    message LONGTEXT,
    INDEX job_events_by_job (job_id),
    CONSTRAINT job_events_of_job FOREIGN KEY (job_id) REFERENCES jobs (id) ON DELETE CASCADE
)",
    "event_writers (
    writer BIGINT NOT NULL PRIMARY KEY,
    turn BIGINT NOT NULL,
    drawn BIGINT NOT NULL,
    time BIGINT NOT NULL
)",
    "flows (
    type VARCHAR(255) NOT NULL PRIMARY KEY,
    paused BOOLEAN NOT NULL DEFAULT false,
    paused_time BIGINT,
    paused_by TEXT,
    CONSTRAINT paused_is_0_or_1 CHECK (paused IN (0, 1))
)",
    "workers (
    worker_id VARCHAR(255) NOT NULL PRIMARY KEY,
    incarnation VARCHAR(255) NOT NULL,
    hostname VARCHAR(255) NOT NULL,
    version VARCHAR(255) NOT NULL,
    state VARCHAR(16) NOT NULL,
    started_time BIGINT NOT NULL,
    heartbeat_time BIGINT NOT NULL,
    drain_requested_time BIGINT,
    drain_requested_by TEXT,
    labels TEXT,
    address TEXT
)",
    "audit (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    time BIGINT NOT NULL,
    actor TEXT NOT NULL,
    via TEXT NOT NULL,
    address TEXT,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    outcome TEXT NOT NULL
)",
    "sessions (
    session_sha256 VARCHAR(255) NOT NULL PRIMARY KEY,
    token_name TEXT NOT NULL,
    token_mark TEXT NOT NULL,
    created_time BIGINT NOT NULL,
    expires_time BIGINT NOT NULL
)",
    "recurring (
    type VARCHAR(255) NOT NULL,
    name VARCHAR(255) NOT NULL,
    schedule TEXT NOT NULL,
    timezone TEXT NOT NULL,
    fired_until BIGINT NOT NULL,
    last_fire_time BIGINT,
    last_job_id BIGINT,
    PRIMARY KEY (type, name)
)",
    "job_dependencies (
    job_id BIGINT NOT NULL,
    after_id BIGINT NOT NULL,
    ended VARCHAR(16),
    looked_at BIGINT NOT NULL DEFAULT 0,
    noted BIGINT GENERATED ALWAYS AS (CASE WHEN ended IS NOT NULL AND looked_at = 0 THEN 1 END) STORED,
    PRIMARY KEY (job_id, after_id),
    INDEX job_dependencies_after (after_id),
    INDEX job_dependencies_ended (noted, job_id),
    CONSTRAINT job_dependencies_of_job FOREIGN KEY (job_id) REFERENCES jobs (id) ON DELETE CASCADE,
    CONSTRAINT a_job_waits_only_for_jobs_with_lower_ids_so_there_are_no_cycles CHECK (after_id < job_id)
)",
    "unique_keys (
    type VARCHAR(255) NOT NULL PRIMARY KEY
)",
    "webhooks (
    name VARCHAR(255) NOT NULL PRIMARY KEY,
    read_until BIGINT NOT NULL
)",
    "deliveries (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    webhook VARCHAR(255) NOT NULL,
    event_id BIGINT NOT NULL,
    job_id BIGINT NOT NULL,
    state VARCHAR(16) NOT NULL DEFAULT 'WAITING' CHECK (state IN ('WAITING', 'DELIVERED', 'FAILED')),
    tries BIGINT NOT NULL DEFAULT 0,
    next_time BIGINT NOT NULL,
    first_time BIGINT,
    ended_time BIGINT,
    error TEXT,
    body LONGTEXT NOT NULL,
    UNIQUE INDEX deliveries_of_event (webhook, event_id),
    INDEX deliveries_due (webhook, state, next_time),
    INDEX deliveries_of_job (webhook, job_id, state, id),
    INDEX deliveries_failed (state, id),
    INDEX deliveries_ended (ended_time),
    INDEX deliveries_waiting (webhook, state, id)
)",
];

/// The highest priority whose first row is due, of those above `above` on the scale that counts the other way; see
/// `store::claim`. A recursive query would be one statement too, but one that does not jump along the index.
const DUE_PRIORITY: &str = "
CREATE FUNCTION callsheet_due_priority(
    flow VARCHAR(255) CHARACTER SET utf8mb4 COLLATE {collation}, above BIGINT, time_is BIGINT
) RETURNS BIGINT READS SQL DATA BEGIN
    DECLARE none BOOLEAN DEFAULT FALSE;
    DECLARE due, created BIGINT;
    DECLARE CONTINUE HANDLER FOR NOT FOUND SET none = TRUE;
    LOOP
        SELECT priority_down, run_at, created_time INTO above, due, created FROM jobs FORCE INDEX (jobs_claim)
            WHERE type = flow AND status = 'PENDING' AND priority_down > above ORDER BY priority_down, run_at, id LIMIT 1;
        IF none THEN
            RETURN NULL;
        END IF;
        IF due <= time_is OR due <= created THEN
            RETURN -above;
        END IF;
    END LOOP;
END";

/// What those of the other databases do. A trigger here may not write the table that it is on, so a job that waits again is
/// given its new times before they are written.
const TRIGGERS: [(&str, &str); 4] = [
    (
        "job_dependencies_inserted",
        "BEFORE INSERT ON job_dependencies FOR EACH ROW BEGIN
    DECLARE now_is VARCHAR(16) DEFAULT NULL;
    -- The one that waits first, as a service does it that looks at both: else each could wait for the other.
    SELECT status INTO now_is FROM jobs WHERE id = NEW.job_id FOR UPDATE;
    IF now_is IS NULL OR now_is <> 'PENDING' THEN
        SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'only a job that is PENDING can be made to wait';
    END IF;
    UPDATE jobs SET run_at_wanted = COALESCE(run_at_wanted, run_at), run_at = 253402300799000 WHERE id = NEW.job_id;
    SET now_is = NULL;
    SELECT status INTO now_is FROM jobs WHERE id = NEW.after_id LOCK IN SHARE MODE;
    IF now_is IS NULL THEN
        SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'there is no job with this after_id';
    END IF;
    SET NEW.looked_at = 0;
    SET NEW.ended = CASE WHEN now_is IN ('COMPLETED', 'ERROR', 'CANCELLED') THEN now_is END;
END",
    ),
    (
        "jobs_ended_for_those_that_wait",
        "AFTER UPDATE ON jobs FOR EACH ROW BEGIN
    IF NEW.status IN ('COMPLETED', 'ERROR', 'CANCELLED') AND OLD.status <> NEW.status THEN
        UPDATE job_dependencies SET ended = NEW.status, looked_at = 0 WHERE after_id = NEW.id AND ended IS NULL;
    END IF;
END",
    ),
    (
        "jobs_deleted_for_those_that_wait",
        "AFTER DELETE ON jobs FOR EACH ROW
    UPDATE job_dependencies SET ended = 'DELETED', looked_at = 0 WHERE after_id = OLD.id AND ended IS NULL",
    ),
    (
        "jobs_that_wait_again",
        "BEFORE UPDATE ON jobs FOR EACH ROW BEGIN
    IF NEW.status = 'PENDING' AND OLD.status IN ('COMPLETED', 'ERROR', 'CANCELLED')
        AND EXISTS (SELECT 1 FROM job_dependencies WHERE job_id = NEW.id) THEN
        UPDATE job_dependencies AS d SET d.looked_at = 0, d.ended = CASE
            WHEN EXISTS (SELECT 1 FROM jobs AS j WHERE j.id = d.after_id AND j.status IN ('PENDING', 'INQUEUE', 'PROGRESS')) THEN NULL
            ELSE COALESCE((SELECT j.status FROM jobs AS j WHERE j.id = d.after_id), d.ended) END WHERE d.job_id = NEW.id;
        SET NEW.run_at_wanted = NEW.run_at;
        SET NEW.run_at = 253402300799000;
        SET NEW.schedule_time = NULL;
    END IF;
END",
    ),
];
