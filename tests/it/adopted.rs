//! A table that its owner had before Callsheet (`[store.jobs]`), with names, types and words of its own, on PostgreSQL.

use std::process::Output;

use callsheet::domain::{JobId, JobStatus};
use sea_orm::{ConnectionTrait, DbBackend, Statement};

use crate::support::service::Service;
use crate::support::{eventually, processes};

/// As Prisma makes it, with rows from before and neighbours that have names of ours.
pub const PRISMA: &str = r#"
CREATE TYPE "JobStatus" AS ENUM ('DRAFT', 'WAITING', 'RUNNING', 'DONE', 'FAILED');
CREATE TABLE "User" ("id" TEXT NOT NULL PRIMARY KEY);
CREATE TABLE "workers" ("id" INTEGER PRIMARY KEY);
CREATE TABLE "Job" (
    "id" SERIAL NOT NULL,
    "kind" TEXT NOT NULL,
    "screenId" TEXT NOT NULL,
    "status" "JobStatus" NOT NULL DEFAULT 'WAITING',
    "params" JSONB,
    "priority" INTEGER NOT NULL DEFAULT 0,
    "startedTime" TIMESTAMP(3),
    "completedTime" TIMESTAMP(3),
    "duration" INTEGER,
    "errorMessage" TEXT,
    "userId" TEXT REFERENCES "User" ("id"),
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" TIMESTAMP(3) NOT NULL,
    CONSTRAINT "Job_pkey" PRIMARY KEY ("id")
);
CREATE TABLE "Artifact" ("id" SERIAL PRIMARY KEY, "jobId" INTEGER NOT NULL REFERENCES "Job" ("id") ON DELETE CASCADE);
"#;

pub const MAPPING: &str = r#"
columns = { type = "kind", identifier = "screenId", payload = "params", created_time = "createdAt", started_time = "startedTime", completed_time = "completedTime", execution_ms = "duration", error = "errorMessage" }
statuses = { PENDING = "WAITING", INQUEUE = "QUEUED", PROGRESS = "RUNNING", COMPLETED = "DONE", ERROR = "FAILED", CANCELLED = "CANCELED" }
"#;

const FLOWS: &str = "[flows.ONE]\n{job}\n[flows.TWO]\n{job}\nconcurrency = 4\n\
    [flows.TWICE]\n{job}\nretry = { maximum_attempts = 2, initial_interval = \"10ms\" }\n";

const OLD_ROWS: &str = r#"
INSERT INTO "Job" ("kind", "screenId", "status", "completedTime", "updatedAt")
    SELECT 'ONE', 'old' || n, 'DONE', TIMESTAMP '2020-01-01' + n * interval '1 day', now() FROM generate_series(1, 3) AS n;
INSERT INTO "Job" ("kind", "screenId", "status", "updatedAt") VALUES ('ONE', 'draft', 'DRAFT', now());
INSERT INTO "Artifact" ("jobId") VALUES (1);
"#;

fn section() -> String {
    format!("[store.jobs]\ntable = \"Job\"\n{MAPPING}")
}

/// What `check --json` says.
fn check(service: &Service) -> (Option<i32>, serde_json::Value) {
    let output = service.cli(&["check", "--json"]);
    let told = serde_json::from_slice(&output.stdout);
    (output.status.code(), told.unwrap_or_else(|error| panic!("{error}: {output:?}")))
}

/// Does what `check` says, as the table's owner.
async fn add_what_is_missing(service: &Service) {
    let (code, told) = check(service);
    assert_eq!(code, Some(2), "{told}");
    service.sql(told["ddl"].as_str().unwrap()).await;
    let (code, told) = check(service);
    assert_eq!((code, &told["ok"]), (Some(0), &true.into()), "{told}");
}

/// A service on a table that is complete.
async fn adopted(tables: &str, section: &str) -> Option<Service> {
    let mut service = Service::prepare_adopted(FLOWS, tables, section).await?;
    add_what_is_missing(&service).await;
    service.serve().await;
    Some(service)
}

/// One value of one row, as text; nothing for NULL.
async fn value(service: &Service, select: &str) -> String {
    let foreign = service.foreign().await;
    let row = foreign.query_one_raw(Statement::from_string(DbBackend::Postgres, select)).await.unwrap();
    foreign.close().await.unwrap();
    row.and_then(|row| row.try_get_by_index::<Option<String>>(0).unwrap()).unwrap_or_default()
}

/// Enqueues as the owner's application does.
async fn insert(service: &Service, kind: &str, screen: &str, more: &[(&str, &str)]) -> JobId {
    let (names, values): (Vec<_>, Vec<_>) = more.iter().copied().unzip();
    let comma = if more.is_empty() { "" } else { ", " };
    let insert = format!(
        "INSERT INTO \"Job\" (\"kind\", \"screenId\", \"updatedAt\"{comma}{}) VALUES ('{kind}', '{screen}', now(){comma}{}) \
         RETURNING \"id\"::text",
        names.join(", "),
        values.join(", ")
    );
    JobId(value(service, &insert).await.parse().unwrap())
}

async fn of(service: &Service, job: JobId, what: &str) -> String {
    value(service, &format!("SELECT ({what})::text FROM \"Job\" WHERE \"id\" = {job}")).await
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_starts_before_the_table_has_what_it_needs() {
    let Some(mut service) = Service::prepare_adopted(FLOWS, PRISMA, &section()).await else { return };
    service.sql(OLD_ROWS).await;
    for arguments in [&["serve"][..], &["migrate", "up"], &["serve", "--no-migrate"]] {
        let output = service.cli(arguments);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(said(&output).contains("lacks columns, indexes or triggers"), "{output:?}");
        assert!(said(&output).contains("`callsheet check` prints the statements"), "{output:?}");
    }
    assert_eq!(service.cli(&["list"]).status.code(), Some(5));
    let (_, told) = check(&service);
    assert_eq!(told["problems"][0]["message"], "the table \"public\".\"Job\" lacks what Callsheet needs");
    assert!(told["problems"][0]["line"].is_number());
    // For people it goes where it can be redirected, and nothing else does.
    let output = service.cli(&["check"]);
    let ddl = told["ddl"].as_str().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), ddl);
    for part in [
        "ADD COLUMN callsheet_run_token text",
        "CREATE INDEX \"callsheet_jobs_claim\"",
        "ADD VALUE IF NOT EXISTS 'QUEUED'",
    ] {
        assert!(ddl.contains(part), "{part} is not in {ddl}");
    }
    let left = "SELECT count(*)::text FROM pg_namespace WHERE nspname = 'callsheet'";
    assert_eq!(value(&service, left).await, "0", "nothing is left behind by looking");

    add_what_is_missing(&service).await;
    // Whoever has added it and has no service yet goes on as before.
    service.sql("UPDATE \"Job\" SET \"status\" = 'WAITING' WHERE \"screenId\" = 'old3'").await;
    service.sql("UPDATE \"Job\" SET \"status\" = 'DONE' WHERE \"screenId\" = 'old3'").await;
    service.serve().await;
    assert_eq!(
        of(&service, JobId(1), "\"status\"::text || ' ' || \"completedTime\"").await,
        "DONE 2020-01-02 00:00:00"
    );
    let row = service.job(JobId(1)).await;
    assert_eq!((row.status, row.completed_time.unwrap().unix_millis()), (JobStatus::Completed, 1_577_923_200_000));
    // A word that is nobody's business here.
    assert_eq!(service.store.job(JobId(4)).await.unwrap(), None);
    assert_eq!(of(&service, JobId(4), "\"status\"").await, "DRAFT");
    // Rows of theirs are kept, unless somebody says otherwise.
    let output = service.cli(&["prune", "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["completed"], 0, "{told}");
    service.stop().await;

    // Words that are changed in the configuration are refused until the table goes by them too.
    let config = std::fs::read_to_string(service.path("callsheet.toml")).unwrap();
    std::fs::write(service.path("callsheet.toml"), config.replace("\"CANCELED\"", "\"STOPPED\"")).unwrap();
    assert_eq!(service.cli(&["serve"]).status.code(), Some(2));
    add_what_is_missing(&service).await;
    // Nor can another table take the place of this one.
    let config = std::fs::read_to_string(service.path("callsheet.toml")).unwrap();
    service.sql("CREATE TABLE public.\"Other\" (LIKE public.\"Job\" INCLUDING DEFAULTS INCLUDING INDEXES)").await;
    std::fs::write(service.path("callsheet.toml"), config.replace("\"Job\"", "\"Other\"")).unwrap();
    let (_, told) = check(&service);
    assert!(told["problems"][0]["message"].as_str().unwrap().contains("about the rows of public.\"Job\""), "{told}");
    std::fs::write(service.path("callsheet.toml"), config).unwrap();
    // A step of the schema that comes later is made beside the table, and the view is put back.
    service
        .sql(
            "SET search_path = callsheet; DROP TABLE deliveries; DROP TABLE webhooks; \
             DELETE FROM seaql_migrations WHERE version LIKE '%000010_webhooks'",
        )
        .await;
    let output = service.cli(&["migrate", "up"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1, "{output:?}");
    service.serve().await;
    let job = insert(&service, "ONE", "say:hello", &[]).await;
    service.until(job, JobStatus::Completed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_of_a_prisma_table_run_and_say_so_in_its_words() {
    let Some(mut service) = adopted(PRISMA, &section()).await else { return };
    // Noticed at once (the tick of these tests is yearly), and every column of theirs is written.
    let good = insert(&service, "ONE", "run:1", &[("params", "'{\"seed\": 7}'")]).await;
    service.until(good, JobStatus::Completed).await;
    assert_eq!(of(&service, good, "\"status\"").await, "DONE");
    let times = "\"createdAt\" <= \"startedTime\" AND \"completedTime\" - \"startedTime\" BETWEEN '0.9 s' AND '600 s' \
        AND \"startedTime\" > (clock_timestamp() AT TIME ZONE 'UTC') - interval '1 hour' \
        AND \"duration\" BETWEEN 900 AND 600000 AND \"errorMessage\" IS NULL";
    assert_eq!(of(&service, good, times).await, "true", "{}", of(&service, good, "\"Job\"").await);
    assert_eq!(service.job(good).await.payload.as_deref(), Some("{\"seed\": 7}"));
    assert_eq!(service.changes(good).await, ["INQUEUE", "PROGRESS", "COMPLETED"]);
    let bad = insert(&service, "ONE", "complain:oh+exit:3", &[]).await;
    service.until(bad, JobStatus::Error).await;
    assert_eq!(of(&service, bad, "\"status\"").await, "FAILED");
    assert_eq!(of(&service, bad, "\"errorMessage\"").await, "the command failed with exit code 3\noh");
    // Tried again: the error of the first attempt is gone from their column, too.
    let twice = insert(&service, "TWICE", "exit:1", &[]).await;
    service.until(twice, JobStatus::Error).await;
    assert_eq!(service.runs(twice).await.len(), 2);
    assert!(service.cli(&["retry", &bad.to_string()]).status.success());
    eventually("the second attempt", async || service.runs(bad).await.len() == 2).await;
    service.until(bad, JobStatus::Error).await;

    // One at a time, in the order of their priority, which is theirs to change while a row waits.
    let held = insert(&service, "ONE", "wait", &[]).await;
    service.until(held, JobStatus::Progress).await;
    assert_eq!(of(&service, held, "\"status\"").await, "RUNNING");
    let low = insert(&service, "ONE", "say:low", &[]).await;
    let high = insert(&service, "ONE", "say:high", &[("\"priority\"", "5")]).await;
    let raised = insert(&service, "ONE", "say:raised", &[]).await;
    service.sql(&format!("UPDATE \"Job\" SET \"priority\" = 9 WHERE \"id\" = {raised}")).await;
    let keyed = service.cli(&["enqueue", "ONE", "say:keyed", "--unique-key", "k", "--priority", "-1"]);
    let keyed = JobId(String::from_utf8_lossy(&keyed.stdout).trim().parse().unwrap());
    let again = service.cli(&["enqueue", "ONE", "say:keyed", "--unique-key", "k"]);
    assert_eq!(String::from_utf8_lossy(&again.stdout).trim(), keyed.to_string(), "{again:?}");
    let filled = "\"updatedAt\" BETWEEN \"createdAt\" - interval '1 min' AND \"createdAt\" + interval '1 min' AND \"priority\" = -1";
    assert_eq!(of(&service, keyed, filled).await, "true");
    let after = service.cli(&["enqueue", "TWO", "say:after", "--after", &keyed.to_string()]);
    let after = JobId(String::from_utf8_lossy(&after.stdout).trim().parse().unwrap());
    service.go();
    for job in [held, low, high, raised, keyed, after] {
        service.until(job, JobStatus::Completed).await;
    }
    let evidence = service.evidence();
    let began = |job: JobId| evidence[&(job.0, 1)].start;
    let order = [held, raised, high, low, keyed, after];
    assert!(order.windows(2).all(|pair| began(pair[0]) < began(pair[1])), "{evidence:?}");

    // Ended by the owner's own word for it, by ours, and by a row that goes.
    let jobs = [
        insert(&service, "TWO", "run:600", &[]).await,
        insert(&service, "TWO", "run:600+ignore-term", &[]).await,
        insert(&service, "TWO", "run:600", &[]).await,
    ];
    for job in jobs {
        service.begun(job, 1).await;
        service.until(job, JobStatus::Progress).await;
    }
    service.sql(&format!("UPDATE \"Job\" SET \"status\" = 'CANCELED' WHERE \"id\" = {}", jobs[0])).await;
    assert!(service.cli(&["cancel", &jobs[1].to_string()]).status.success());
    service.sql(&format!("DELETE FROM \"Job\" WHERE \"id\" = {}", jobs[2])).await;
    service.until(jobs[1], JobStatus::Cancelled).await;
    service.nothing_alive().await;
    for job in &jobs[..2] {
        assert_eq!(of(&service, *job, "\"status\"").await, "CANCELED");
    }
    assert_eq!(
        value(&service, &format!("SELECT count(*)::text FROM callsheet.runs WHERE job_id = {}", jobs[2])).await,
        "0"
    );

    // The service dies, and the command does not notice.
    let survivor = insert(&service, "TWO", "wait:later+exit:4", &[]).await;
    let pid = service.begun(survivor, 1).await.pid;
    service.until(survivor, JobStatus::Progress).await;
    service.kill_9();
    // Waited for while nobody is there, and enqueued then.
    let missed = insert(&service, "TWO", "say:missed", &[]).await;
    service.serve().await;
    service.until(missed, JobStatus::Completed).await;
    assert!(processes::is_alive(pid));
    service.go_on("later");
    service.until(survivor, JobStatus::Error).await;
    assert_eq!((service.job(survivor).await.exit_code, service.evidence()[&(survivor.0, 1)].pid), (Some(4), pid));
    assert_eq!(of(&service, survivor, "\"status\"").await, "FAILED");
}

/// Names and words that would break out of SQL that is put together carelessly; ids that are texts.
const HOSTILE: &str = r#"
CREATE SCHEMA "my ""app""";
CREATE TABLE "my ""app"""."jobs" (
    "id" UUID NOT NULL PRIMARY KEY,
    "a""b'; DROP TABLE x; --" VARCHAR(20) NOT NULL,
    "sta'tus" VARCHAR(30) DEFAULT 'it''s $callsheet$ \',
    "error" VARCHAR(12),
    "attempt" SMALLINT NOT NULL DEFAULT 0,
    "type" TEXT,
    "end" TIMESTAMPTZ,
    "payload" JSON NOT NULL DEFAULT '{}'
);
INSERT INTO "my ""app"""."jobs" VALUES (gen_random_uuid(), 'say:before', 'it''s $callsheet$ \', NULL, 0, 'TWO');
"#;

const HOSTILE_SECTION: &str = r#"
[store.jobs]
schema = 'my "app"'
table = "jobs"
columns = { identifier = "a\"b'; DROP TABLE x; --", status = "sta'tus", completed_time = "end" }
statuses = { PENDING = "it's $callsheet$ \\", ERROR = "@\"" }
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_words_and_ids_may_be_anything() {
    let Some(service) = adopted(HOSTILE, HOSTILE_SECTION).await else { return };
    let before = service.store.list(&callsheet::store::JobFilter { limit: 1, ..Default::default() }).await.unwrap();
    service.until(before.rows[0].id, JobStatus::Completed).await;
    let output = service.cli(&["enqueue", "TWO", "complain:longer-than-that+exit:9"]);
    assert_eq!(output.status.code(), Some(1), "an identifier is not cut: {output:?}");
    let output = service.cli(&["enqueue", "TWO", "exit:9", "--payload", "[1]"]);
    let job = JobId(String::from_utf8_lossy(&output.stdout).trim().parse().unwrap());
    let row = service.until(job, JobStatus::Error).await;
    assert_eq!(row.error.as_deref(), Some("the command failed with exit code 9"), "ours is whole");
    let theirs = "SELECT \"sta'tus\" || ' ' || \"error\" || ' ' || \"attempt\" || ' ' || \"payload\" FROM \"my \"\"app\"\"\".\"jobs\" \
        WHERE callsheet_exit_code = 9 AND \"end\" > clock_timestamp() - interval '1 hour'";
    assert_eq!(value(&service, theirs).await, "@\" the command  1 [1]");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_is_refused_with_the_reason() {
    let Some(service) = Service::prepare_adopted(FLOWS, PRISMA, &section()).await else { return };
    service
        .sql(
            "CREATE VIEW a_view AS SELECT 1 AS id; CREATE TABLE parts (id bigint) PARTITION BY RANGE (id); \
             CREATE TABLE bare (id bigint PRIMARY KEY, type text NOT NULL, status integer, progress jsonb, \
             number bigint, twice bigint GENERATED ALWAYS AS (number * 2) STORED, short varchar(5))",
        )
        .await;
    let config = std::fs::read_to_string(service.path("callsheet.toml")).unwrap();
    let (before, _) = config.split_once("[store.jobs]").unwrap();
    let refused = |section: &str| {
        std::fs::write(service.path("callsheet.toml"), format!("{before}[store.jobs]\n{section}\n")).unwrap();
        let (code, told) = check(&service);
        assert_eq!(code, Some(2), "{section}: {told}");
        assert!(told.get("ddl").is_none(), "{told}");
        let problems = told["problems"].as_array().unwrap().iter();
        problems.map(|problem| format!("{} ({})\n", problem["message"], problem["help"])).collect::<String>()
    };
    for (section, reason) in [
        ("table = \"job\"", "there is no table"),
        ("table = \"Job\"\nschema = \"other\"", "there is no table"),
        ("table = \"a_view\"", "is a view"),
        ("table = \"parts\"", "is a partitioned table"),
        ("table = \"Job\"", "the table has no column `identifier`"),
        ("table = \"Job\"\ncolumns = { identifier = \"screenid\" }", "the table has no column"),
        ("table = \"Job\"\ncolumns = { identifier = \"screenId\" }", "there is more than one flow"),
        ("table = \"Job\"\ncolumns = { started_time = \"duration\" }", "of the type integer; a time is a timestamp"),
        ("table = \"Job\"\ncolumns = { payload = \"duration\" }", "a payload is jsonb, json or text"),
        (
            "table = \"bare\"\ncolumns = { identifier = \"short\" }",
            "of the type integer; a status is a text or an enum",
        ),
        ("table = \"bare\"\ncolumns = { status = \"short\" }", "too short for its words"),
        ("table = \"bare\"\ncolumns = { id = \"number\" }", "an id has to be NOT NULL and unique"),
        ("table = \"bare\"\ncolumns = { exit_code = \"twice\" }", "a generated column"),
        ("table = \"bare\"", "of the type jsonb, not a number"),
    ] {
        let told = refused(section);
        assert!(told.contains(reason), "{section}: {told}");
    }
    // The service refuses it as well.
    let output = service.cli(&["serve"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("of the type jsonb, not a number"), "{output:?}");
    // A column with a name of ours that is something else can be left alone.
    let told = refused("table = \"bare\"\ncolumns = { progress = \"callsheet_progress\", identifier = \"short\" }");
    assert!(!told.contains("progress"), "{told}");
    // A database that is Callsheet's own already in that schema.
    service.sql("CREATE SCHEMA callsheet; CREATE TABLE callsheet.jobs (id bigint)").await;
    std::fs::write(service.path("callsheet.toml"), &config).unwrap();
    let output = service.cli(&["check"]);
    assert!(said(&output).contains("in a table of their own"), "{output:?}");
    let sqlite = service.command().env("DATABASE_URL", "sqlite://x.db").arg("check").output().unwrap();
    assert_eq!(sqlite.status.code(), Some(2));
    assert!(said(&sqlite).contains("[store.jobs] needs PostgreSQL"), "{sqlite:?}");
}
