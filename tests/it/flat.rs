//! What stays the same after many jobs: the time of a claim, also while an old snapshot keeps what all the claims before have
//! left behind, and what is read of indexes for each.

use std::time::{Duration, Instant};

use callsheet::domain::retention::Horizon;
use callsheet::domain::run::Next;
use callsheet::domain::{JobStatus, RunToken, Timestamp};
use callsheet::store::{Claim, ClaimedJob, JobFilter, NewJob, ProgressNote, Sent, Write, Written};
use sea_orm::{ConnectionTrait, DatabaseTransaction, TransactionTrait};

use crate::store::{Db, claim, claim_with, completed, confirm, failed, new, settlement, started, worker};
use crate::support::eventually;
use crate::support::service::On;

/// Another client's transaction that has read the table, and is open.
async fn old_snapshot(db: &Db) -> DatabaseTransaction {
    let level = (db.on != On::Sqlite).then_some(sea_orm::IsolationLevel::RepeatableRead);
    let transaction = db.foreign.begin_with_config(level, None).await.unwrap();
    transaction.execute_unprepared("SELECT 1 FROM jobs LIMIT 1").await.unwrap();
    transaction
}

async fn filled(db: &Db, rows: u32) {
    let (with, numbers) = db.numbers(rows);
    db.sql(&format!("INSERT INTO jobs (type, identifier) {with}SELECT 'RENDER', 'x' {numbers}")).await.unwrap();
    if db.on == On::Postgres {
        db.sql("ANALYZE").await.unwrap();
    }
}

fn tokens(from: u32, count: u32) -> Vec<RunToken> {
    let token = |n: u32| {
        let mut bytes = [7; 16];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        RunToken::from_bytes(bytes)
    };
    (from..from + count).map(token).collect()
}

/// Jobs that go through their whole life one after the other, or some at a time.
struct Working {
    at_a_time: u32,
    done: u32,
    open: Vec<ClaimedJob>,
}

impl Working {
    /// The ends of the last ones and the claim of the next, in one commit as a service has them, and their starts in another.
    ///
    /// How long the claim took, and when another one may bring more.
    async fn turn(&mut self, db: &Db) -> (Duration, Option<Timestamp>) {
        let mut writes: Vec<Write> = self.open.iter().map(|job| Write::Settle(completed(job))).collect();
        let tokens = tokens(self.done, self.at_a_time);
        let claim = Claim { concurrency: self.at_a_time, worker_concurrency: self.at_a_time, ..claim(&tokens) };
        writes.push(Write::Claim(claim));
        let start = Instant::now();
        let answer = db.store.apply(&writes).await.unwrap().pop();
        let took = start.elapsed();
        let Some(Written::Claimed(claimed)) = answer else { panic!("{answer:?}") };
        assert_eq!(claimed.jobs.len(), tokens.len(), "{claimed:?}");
        (self.open, self.done) = (claimed.jobs, self.done + self.at_a_time);
        let starts: Vec<Write> = self.open.iter().map(started).collect();
        db.store.apply(&starts).await.unwrap();
        (took, claimed.next_due)
    }
}

/// How many jobs have come and gone before.
const GONE: i64 = 10_000;

/// Jobs that have come and gone, by somebody's SQL: what is left of them in the indexes cannot be removed.
async fn come_and_gone(db: &Db) {
    let first = format!("id IN (SELECT id FROM jobs WHERE status <> 'COMPLETED' ORDER BY id LIMIT {GONE})");
    for step in ["status = 'INQUEUE'", "status = 'PROGRESS'", "status = 'COMPLETED', completed_time = 1"] {
        db.sql(&format!("UPDATE jobs SET {step} WHERE {first}")).await.unwrap();
    }
}

/// Entries of the indexes that claims read, as the server has counted them.
async fn entries_read(db: &Db) -> i64 {
    db.number(
        "SELECT CAST(sum(idx_tup_read) AS bigint) FROM pg_stat_user_indexes \
         WHERE indexrelname ~ '(jobs_claim|jobs_open|jobs_expiry|jobs_due|jobs_by_type_and_status)$'",
    )
    .await
}

async fn claims_do_not_come_by_what_an_old_snapshot_keeps(mut db: Db) {
    const CLAIMS: u32 = 100;
    filled(&db, 10_200).await;
    let snapshot = old_snapshot(&db).await;
    come_and_gone(&db).await;
    db.store.close().await;
    db.alone().await;
    db.store = db.another().await;
    let before = entries_read(&db).await;
    let mut working = Working { at_a_time: 1, done: 0, open: Vec::new() };
    while working.done < CLAIMS {
        working.turn(&db).await;
    }
    db.store.close().await;
    db.alone().await;
    let each = (entries_read(&db).await - before) / i64::from(CLAIMS);
    snapshot.rollback().await.unwrap();
    // Without care it is four of each row that is gone for the claim alone, and more for the end and the start.
    assert!(each < GONE / 2, "{each} entries are read for each job");
}

/// A store whose claims begin where the last one ended, since they are slow otherwise.
async fn behind_a_look(db: &Db, first: u32) -> Working {
    let mut working = Working { at_a_time: 1, done: first, open: Vec::new() };
    for _ in 0..1000 {
        if let (_, Some(whole)) = working.turn(db).await {
            let wait = whole.since(db.store.now().await.unwrap());
            assert!(wait < Duration::from_secs(60), "all is looked at again in {wait:?}");
            return working;
        }
    }
    panic!("no claim has begun where the one before ended");
}

async fn a_claim_behind_an_old_snapshot_misses_no_row_and_no_run(db: Db) {
    filled(&db, 12_000).await;
    let snapshot = old_snapshot(&db).await;
    come_and_gone(&db).await;
    let (other, mut number) = (db.another().await, 1_000_000);
    let mut fresh = || {
        number += 1;
        tokens(number, 1)
    };
    for round in 0..3 {
        let working = behind_a_look(&db, round * 10_000).await;
        // One run is open here; another worker begins one, so there is no room for a third, and ends it, so that there is.
        let two = |worker: &str, tokens: &[RunToken]| Claim {
            concurrency: 2,
            worker_concurrency: 2,
            beyond_share: true,
            worker: worker.parse().unwrap(),
            ..claim(tokens)
        };
        let theirs = claim_with(&other, two("node-b", &fresh())).await;
        assert_eq!((theirs.jobs.len(), theirs.open), (1, 2), "round {round}");
        let ours = claim_with(&db.store, two("node-a", &fresh())).await;
        assert_eq!((ours.jobs.len(), ours.open), (0, 2), "round {round}: {ours:?}");
        other.apply(&[started(&theirs.jobs[0])]).await.unwrap();
        let ours = claim_with(&db.store, two("node-a", &fresh())).await;
        assert_eq!((ours.jobs.len(), ours.open), (0, 2), "round {round}: {ours:?}");
        let end =
            if round == 1 { settlement(&theirs.jobs[0], Next::Requeue, None) } else { completed(&theirs.jobs[0]) };
        other.apply(&[Write::Settle(end)]).await.unwrap();
        let mut ours = claim_with(&db.store, two("node-a", &fresh())).await;
        assert_eq!((ours.jobs.len(), ours.open), (1, 2), "round {round}: {ours:?}");
        db.store.apply(&[Write::Settle(completed(&ours.jobs.remove(0)))]).await.unwrap();
        for job in &working.open {
            db.store.apply(&[Write::Settle(completed(job))]).await.unwrap();
        }
        // Rows that stand before the place where it begins: by their priority, by their time, by their id.
        db.sql(
            "INSERT INTO jobs (type, identifier, priority) VALUES ('RENDER', 'urgent', 7); \
             INSERT INTO jobs (type, identifier, run_at) VALUES ('RENDER', 'early', 1); \
             UPDATE jobs SET status = 'PENDING', identifier = 'again', completed_time = NULL \
             WHERE id = (SELECT min(id) FROM jobs WHERE status = 'COMPLETED')",
        )
        .await
        .unwrap();
        let (mut found, begun) = (Vec::new(), Instant::now());
        while found.len() < 3 {
            assert!(begun.elapsed() < Duration::from_secs(60), "{found:?} only");
            let mut claimed = claim_with(&db.store, two("node-a", &fresh())).await;
            if let Some(job) = claimed.jobs.pop() {
                let identifier = job.identifier.clone().unwrap();
                db.store.apply(&[Write::Settle(completed(&job))]).await.unwrap();
                if identifier != "x" {
                    found.push(identifier);
                }
            }
        }
        assert_eq!(found, ["urgent", "early", "again"]);
    }
    snapshot.rollback().await.unwrap();
}

/// All that is asked of the tables for a job, and what goes on beside, by the server's own count of reads of whole tables. What
/// SQLite plans for the same is held by `src/store/plans.rs`.
async fn no_statement_of_a_jobs_way_reads_a_table_from_its_start(mut db: Db) {
    const SCANS: &str = "SELECT CAST(sum(seq_scan) AS bigint) FROM pg_stat_user_tables \
        WHERE relname IN ('jobs', 'Job', 'runs', 'job_events')";
    filled(&db, 30_000).await;
    for insert in [
        "jobs (type, identifier, status, run_token, completed_time) \
         SELECT 'RENDER', 'old', CASE WHEN n % 3 = 0 THEN 'ERROR' ELSE 'COMPLETED' END, md5(n::text), n FROM n",
        "runs (job_id, attempt, run_token, outcome) SELECT n, 1, md5(n::text), 'COMPLETED' FROM n",
        "job_events (job_id, attempt, to_status, time) SELECT n, 1, 'COMPLETED', n FROM n",
    ] {
        db.sql(&format!("WITH n AS (SELECT n FROM generate_series(1, 30000) AS n) INSERT INTO {insert}"))
            .await
            .unwrap();
    }
    db.sql("ANALYZE").await.unwrap();
    db.store.close().await;
    db.alone().await;
    db.store = db.another().await;
    let before = db.number(SCANS).await;
    // More often than a prepared statement is planned for its values.
    for round in 0..7 {
        let claimed = db.claim(&tokens(round * 10, 4)).await;
        let [first, second, third, fourth] = claimed.jobs.as_slice() else { panic!("{claimed:?}") };
        db.store.request_cancel(third.id).await.unwrap();
        let note = ProgressNote { token: first.token.clone(), progress: Some(1), status_message: None };
        let writes = [
            started(first),
            started(first),
            confirm(&tokens(round * 10, 4)),
            Write::Progress(note),
            Write::Settle(completed(first)),
            Write::Settle(completed(first)),
            Write::Settle(failed(second, Next::RetryAfter(Duration::from_secs(600)))),
            Write::Settle(settlement(third, Next::Requeue, None)),
            Write::Settle(completed(fourth)),
        ];
        let answers = db.store.apply(&writes).await.unwrap();
        assert!(!answers.contains(&Written::Fenced), "{answers:?}");
        let idle = ["IDLE", "OTHER"].map(|flow| Write::Claim(Claim { flow: flow.parse().unwrap(), ..claim(&[]) }));
        db.store.apply(&idle).await.unwrap();
        let keyed = NewJob { unique_key: Some("key".to_owned()), ..new("k") };
        db.store.enqueue(std::slice::from_ref(&keyed)).await.unwrap();
        db.store.next_due(&keyed.flow).await.unwrap();
        db.store.open_jobs(&worker(), Some(&keyed.flow)).await.unwrap();
        db.store.jobs(&[first.id, second.id]).await.unwrap();
        db.store.known_runs(&[first.id, second.id]).await.unwrap();
        db.store.runs(first.id).await.unwrap();
        db.store.events(first.id).await.unwrap();
        db.store.events_after(5, 10).await.unwrap();
        let page = JobFilter { types: vec!["RENDER".to_owned()], limit: 10, ..JobFilter::default() };
        db.store.list(&page).await.unwrap();
        let ended = JobFilter { statuses: vec![JobStatus::Error], limit: 10, ..JobFilter::default() };
        db.store.list(&ended).await.unwrap();
    }
    db.store.close().await;
    db.alone().await;
    assert_eq!(db.number(SCANS).await - before, 0, "a table was read from end to end");
}

/// What a job's statements read of the table's indexes, planned while it was all but empty, does not grow with it.
async fn a_job_reads_as_little_of_the_indexes_of_a_table_that_has_grown(db: Db, analysed: bool) {
    const PAGES: &str = "SELECT CAST(idx_blks_hit + idx_blks_read AS bigint) FROM pg_statio_user_tables \
        WHERE relid = (SELECT indrelid FROM pg_index WHERE indexrelid::regclass::text ~ 'jobs_claim$' \
        AND indrelid::regclass::text !~ 'jobs_model')";
    const INSERTED: &str = "SELECT CAST(sum(n_tup_ins) AS bigint) FROM pg_stat_user_tables";
    const TURNS: u32 = 20;
    let (with, numbers) = db.numbers(TURNS * 2);
    db.sql(&format!("INSERT INTO jobs (type, identifier) {with}SELECT 'RENDER', 'x' {numbers}")).await.unwrap();
    if analysed {
        db.sql("ANALYZE").await.unwrap();
    }
    let mut working = Working { at_a_time: 1, done: 0, open: Vec::new() };
    let mut turn = async |db: &Db| {
        working.turn(db).await;
        let token = &working.open[0].token;
        let note = ProgressNote { token: token.clone(), progress: Some(1), status_message: None };
        db.store.apply(&[confirm(std::slice::from_ref(token)), Write::Progress(note)]).await.unwrap();
    };
    for _ in 0..TURNS {
        turn(&db).await;
    }
    let before = db.number(INSERTED).await;
    let (with, numbers) = db.numbers(50_000);
    let gone = "'RENDER', 'x', 'COMPLETED', 1";
    let insert = format!("INSERT INTO jobs (type, identifier, status, completed_time) {with}SELECT {gone} {numbers}");
    db.sql(&insert).await.unwrap();
    eventually("the server to have counted them", async || db.number(INSERTED).await >= before + 50_000).await;
    let before = db.number(PAGES).await;
    for _ in 0..TURNS {
        turn(&db).await;
    }
    db.store.close().await;
    db.alone().await;
    let each = (db.number(PAGES).await - before) / i64::from(TURNS);
    assert!((1..300).contains(&each), "{each} pages of indexes are read for each job, analysed: {analysed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_reads_as_little_of_the_indexes_of_a_table_that_has_grown_on_postgres() {
    for analysed in [false, true] {
        let Some(db) = Db::postgres().await else { return };
        db.sql("ALTER TABLE jobs SET (autovacuum_enabled = off)").await.unwrap();
        a_job_reads_as_little_of_the_indexes_of_a_table_that_has_grown(db, analysed).await;
    }
}

/// Where one type has next to all rows, and has them last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_by_status_read_few_rows_on_postgres() {
    const READ: &str =
        "SELECT CAST(seq_tup_read + idx_tup_fetch AS bigint) FROM pg_stat_user_tables WHERE relname = 'jobs'";
    let Some(db) = Db::postgres().await else { return };
    db.sql("ALTER TABLE jobs SET (autovacuum_enabled = off)").await.unwrap();
    for (flow, rows) in [("FEW", 5), ("RENDER", 20_000)] {
        let (with, numbers) = db.numbers(rows);
        let gone = format!("'{flow}', 'x', 'COMPLETED', 1");
        let insert =
            format!("INSERT INTO jobs (type, identifier, status, completed_time) {with}SELECT {gone} {numbers}");
        db.sql(&insert).await.unwrap();
    }
    // Statistics, and no map of the pages that every snapshot sees alike, without which an index alone does not do.
    db.sql("ANALYZE jobs").await.unwrap();
    let before = db.number(READ).await;
    let ended = JobFilter { statuses: vec![JobStatus::Completed], limit: 10, ..JobFilter::default() };
    for _ in 0..10 {
        assert_eq!(db.store.list(&ended).await.unwrap().rows.len(), 10);
    }
    db.store.close().await;
    db.alone().await;
    let each = (db.number(READ).await - before) / 10;
    assert!((1..1_000).contains(&each), "{each} rows are read for a list");
}

/// As it is when somebody fills a table that a service has worked on while it was small: nobody has analysed it since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_of_a_table_that_has_grown_read_few_rows() {
    const READ: &str =
        "SELECT CAST(seq_tup_read + idx_tup_fetch AS bigint) FROM pg_stat_user_tables WHERE relname = 'jobs'";
    const TURNS: u32 = 20;
    let Some(db) = Db::postgres().await else { return };
    db.sql("ALTER TABLE jobs SET (autovacuum_enabled = off)").await.unwrap();
    let mut working = Working { at_a_time: 1, done: 0, open: Vec::new() };
    for rows in [TURNS, 3_000] {
        let (with, numbers) = db.numbers(rows);
        db.sql(&format!("INSERT INTO jobs (type, identifier) {with}SELECT 'RENDER', 'x' {numbers}")).await.unwrap();
        for _ in 0..TURNS {
            working.turn(&db).await;
        }
    }
    // Nor do those that have a run to cancel, which they sort.
    db.sql("ANALYZE").await.unwrap();
    let id = working.open[0].id.0;
    db.sql(&format!("UPDATE jobs SET cancel_requested_time = 1 WHERE id = {id}")).await.unwrap();
    for _ in 0..TURNS {
        assert_eq!(db.claim(&[]).await.cancel_requested.len(), 1);
    }
    db.store.close().await;
    db.alone().await;
    let each = db.number(READ).await / i64::from(working.done + TURNS);
    assert!(each < 30, "{each} rows are read for each job");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_of_a_jobs_way_reads_a_table_from_its_start_on_postgres() {
    if let Some(db) = Db::postgres().await {
        no_statement_of_a_jobs_way_reads_a_table_from_its_start(db).await;
    }
}

/// Entries of all indexes of `jobs` that were read, as the server has counted them.
const READ_OF_JOBS: &str = "SELECT CAST(sum(idx_tup_read) AS bigint) FROM pg_stat_user_indexes WHERE relname = 'jobs'";

/// A database as it is when a long list has been enqueued and then analysed, before the first job of it: the server knows of no run,
/// and so holds the indexes that runs are in for empty, until it looks again. So many have run since.
async fn analysed_while_all_waited(run: u32) -> Option<Db> {
    let db = Db::postgres().await?;
    db.sql("ALTER TABLE jobs SET (autovacuum_enabled = off)").await.unwrap();
    let (with, numbers) = db.numbers(1_000);
    db.sql(&format!("INSERT INTO jobs (type, identifier) {with}SELECT 'RENDER', 'x' {numbers}")).await.unwrap();
    db.sql("ANALYZE").await.unwrap();
    let (with, numbers) = db.numbers(run);
    let values = "'RENDER', 'x', 'COMPLETED', md5(n::text), 1";
    let columns = "type, identifier, status, run_token, completed_time";
    db.sql(&format!("INSERT INTO jobs ({columns}) {with}SELECT {values} {numbers}")).await.unwrap();
    Some(db)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_was_analysed_while_all_waited_is_not_read_by_way_of_what_has_run() {
    const TURNS: u32 = 20;
    for at_a_time in [1, 8] {
        let Some(db) = analysed_while_all_waited(3_000).await else { return };
        let before = db.number(READ_OF_JOBS).await;
        let mut working = Working { at_a_time, done: 0, open: Vec::new() };
        while working.done < TURNS * at_a_time {
            working.turn(&db).await;
            let open: Vec<RunToken> = working.open.iter().map(|job| job.token.clone()).collect();
            let note = ProgressNote { token: open[0].clone(), progress: Some(1), status_message: None };
            db.store.apply(&[confirm(&open), Write::Progress(note)]).await.unwrap();
        }
        // As where no command was started.
        let back = settlement(&working.open[0], Next::Requeue, None);
        db.store.apply(&[Write::Settle(back)]).await.unwrap();
        db.store.close().await;
        db.alone().await;
        let each = (db.number(READ_OF_JOBS).await - before) / i64::from(working.done);
        assert!((1..100).contains(&each), "{each} entries of indexes are read for each job, {at_a_time} at a time");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_ended_is_removed_by_its_key_from_a_table_that_was_analysed_while_all_waited() {
    const ENDED: u32 = 12_000;
    let Some(db) = analysed_while_all_waited(ENDED).await else { return };
    let before = db.number(READ_OF_JOBS).await;
    let old = Some(Timestamp::from_unix_millis(2));
    let horizon = Horizon { completed: old, error: old, cancelled: old, deliveries: None, audit: None };
    let pruned = db.store.prune(&horizon, Duration::from_secs(120)).await.unwrap();
    assert_eq!(pruned.completed, u64::from(ENDED));
    db.store.close().await;
    db.alone().await;
    let each = (db.number(READ_OF_JOBS).await - before) / i64::from(ENDED);
    // By way of all that has ended it would be thirty more.
    assert!((1..12).contains(&each), "{each} entries of indexes are read for each job that goes");
}

/// A receiver was always there, and is gone: what waits for it was not there when the server looked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_is_written_about_by_its_key_however_many_wait() {
    const READ: &str =
        "SELECT CAST(sum(idx_tup_read) AS bigint) FROM pg_stat_user_indexes WHERE relname = 'deliveries'";
    const TRIES: i64 = 20;
    let Some(db) = Db::postgres().await else { return };
    db.sql("ALTER TABLE deliveries SET (autovacuum_enabled = off)").await.unwrap();
    let columns = "webhook, event_id, job_id, body, state, next_time, ended_time";
    let insert = async |values: &str, (first, last): (u32, u32)| {
        let rows = format!("SELECT 'w', n, n, '{{}}', {values} FROM generate_series({first}, {last}) AS n");
        db.sql(&format!("INSERT INTO deliveries ({columns}) {rows}")).await.unwrap();
    };
    insert("'DELIVERED', 1, 1", (1, 10_000)).await;
    db.sql("ANALYZE deliveries").await.unwrap();
    insert("'WAITING', 1, NULL", (10_001, 13_000)).await;
    let before = db.number(READ).await;
    for _ in 0..TRIES {
        let taken = db.store.take_deliveries("w", Duration::from_secs(600), 1).await.unwrap();
        let sent = Sent::Again(Duration::from_secs(600), "503".to_owned());
        db.store.delivered("w", &taken[0], &sent).await.unwrap();
    }
    db.store.close().await;
    db.alone().await;
    let each = (db.number(READ).await - before) / TRIES;
    assert!((1..200).contains(&each), "{each} entries of indexes are read for each try");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_do_not_come_by_what_an_old_snapshot_keeps_on_postgres() {
    if let Some(db) = Db::postgres().await {
        claims_do_not_come_by_what_an_old_snapshot_keeps(db).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_do_not_come_by_what_an_old_snapshot_keeps_on_an_adopted_table() {
    if let Some(db) = Db::adopted().await {
        claims_do_not_come_by_what_an_old_snapshot_keeps(db).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_behind_an_old_snapshot_misses_no_row_and_no_run_on_postgres() {
    if let Some(db) = Db::postgres().await {
        a_claim_behind_an_old_snapshot_misses_no_row_and_no_run(db).await;
    }
}

#[expect(clippy::print_stdout, reason = "a measurement")]
mod cost {
    use super::*;

    /// Prints the time of a claim, with the ends before it.
    async fn measure(name: &str, db: Db, at_a_time: u32, held: bool) {
        let most: u32 = std::env::var("CLAIMS").map_or(100_000, |most| most.parse().unwrap());
        filled(&db, most + 10_000).await;
        let snapshot = if held { Some(old_snapshot(&db).await) } else { None };
        let mut working = Working { at_a_time, done: 0, open: Vec::new() };
        let (mut times, mut first) = (Vec::new(), None);
        while working.done < most {
            times.push(working.turn(&db).await.0);
            if working.done % (most / 10) < at_a_time {
                let mean = times.iter().sum::<Duration>() / u32::try_from(times.len()).unwrap();
                times.sort_unstable();
                let of = |part: usize| times[(times.len() - 1) * part / 1000];
                let first = *first.get_or_insert(mean);
                println!(
                    "{name}, {at_a_time} at a time, {}, {:>6} claimed: mean {mean:?} ({:.2} of the first), p50 {:?} p99 {:?} most {:?}",
                    if held { "old snapshot" } else { "nobody looks" },
                    working.done,
                    mean.as_secs_f64() / first.as_secs_f64(),
                    of(500),
                    of(990),
                    of(1000)
                );
                times.clear();
            }
        }
        if let Some(snapshot) = snapshot {
            snapshot.rollback().await.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "a measurement"]
    async fn print() {
        let which = std::env::var("ONLY").unwrap_or_default();
        for held in [true, false] {
            for at_a_time in [8, 1] {
                let name = format!("{at_a_time}{}", if held { "held" } else { "free" });
                let wanted =
                    |database: &str| which.is_empty() || which == database || which == format!("{database}{name}");
                if wanted("postgres")
                    && let Some(db) = Db::postgres().await
                {
                    measure("postgres", db, at_a_time, held).await;
                }
                if wanted("adopted")
                    && let Some(db) = Db::adopted().await
                {
                    measure("adopted", db, at_a_time, held).await;
                }
                if wanted("mariadb")
                    && let Some(db) = Db::mariadb().await
                {
                    measure("mariadb", db, at_a_time, held).await;
                }
                if wanted("sqlite")
                    && let Some(db) = Db::sqlite().await
                {
                    measure("sqlite", db, at_a_time, held).await;
                }
            }
        }
    }
}
