//! The store's promises to operators, each shown on every database.

use std::time::Duration;

use callsheet::domain::run::Next;
use callsheet::domain::{Attempt, JobId, JobStatus};
use callsheet::store::{
    AuditFilter, CancelResult, Claim, DrainResult, Enqueued, JobFilter, LastSeen, NewJob, PauseResult, RetryResult,
    Store, Use, Who, Worker, WorkerNote, WorkerState, Write, Written,
};
use migration::{Migrator, MigratorTrait};
use sea_orm::ConnectionTrait;

use crate::store::{
    Db, at, claim, claim_with, completed, failed, flow, ids, new, on_every_database, steps, token, worker,
};

on_every_database!(
    a_retry_by_hand_gives_a_fresh_budget_and_keeps_what_was,
    only_what_has_ended_badly_is_retried,
    a_retry_does_not_double_a_unique_key,
    retries_of_one_key_at_once_open_it_once,
    many_jobs_are_retried_in_pages_while_claims_go_on,
    many_jobs_are_cancelled_in_pages,
    a_bulk_cancel_of_waiting_jobs_touches_no_running_one,
    what_waits_too_long_is_ended_wherever_it_stands_in_the_queue,
    a_retry_that_waits_too_long_is_ended_with_its_last_error,
    a_paused_flow_and_a_delayed_row_are_ended_in_time_too,
    a_flow_is_paused_and_resumed_by_somebody,
    a_drain_is_asked_of_one_start_of_a_worker,
    a_worker_that_has_stopped_stays_so,
    whose_rows_nobody_looks_after_is_told_where_a_worker_lives,
    what_operators_do_is_in_the_audit_trail,
);

/// Enqueues a job and has it end as ERROR after one attempt.
async fn ended(db: &Db, identifier: &str, n: u8) -> JobId {
    let job = db.running(identifier, n).await;
    assert_eq!(db.apply(Write::Settle(failed(&job, Next::Final(JobStatus::Error)))).await, Written::Applied);
    job.id
}

fn keyed(identifier: &str, key: &str) -> NewJob {
    NewJob { unique_key: Some(key.to_owned()), ..new(identifier) }
}

fn filter(statuses: &[JobStatus], limit: u32) -> JobFilter {
    JobFilter { types: vec!["RENDER".to_owned()], statuses: statuses.to_vec(), limit, ..JobFilter::default() }
}

async fn a_retry_by_hand_gives_a_fresh_budget_and_keeps_what_was(db: Db) {
    let first = db.running("x", 1).await;
    db.apply(Write::Settle(failed(&first, Next::RetryAfter(Duration::ZERO)))).await;
    let second = db.claim(&[token(2)]).await.jobs.remove(0);
    db.apply(Write::Settle(failed(&second, Next::Final(JobStatus::Error)))).await;
    assert_eq!((second.attempt, second.attempts_before), (Attempt(2), 0));
    let before = db.store.now().await.unwrap();
    assert_eq!(db.store.retry(&[first.id], "alice@host (cli)").await.unwrap(), [RetryResult::Retried]);
    let row = db.row(first.id).await;
    assert_eq!((row.status, row.attempt, row.exit_code), (JobStatus::Pending, Attempt(2), Some(3)));
    assert_eq!((row.run_token, row.worker_id, row.completed_time, row.progress), (None, None, None, None));
    assert!(row.error.unwrap().starts_with("the command failed"), "what happened stays readable while it waits");
    assert!(row.run_at >= before);
    let events = db.store.events(first.id).await.unwrap();
    assert_eq!(events.last().unwrap().message.as_deref(), Some("retried by alice@host (cli)"));
    assert_eq!(events.last().unwrap().attempt, Attempt(2));
    let again = db.claim(&[token(3)]).await.jobs.remove(0);
    assert_eq!((again.id, again.attempt, again.attempts_before), (first.id, Attempt(3), 2));
    assert!(again.schedule_time >= before, "schedule_to_close_timeout counts anew");
    db.apply(Write::Settle(completed(&again))).await;
    let runs = db.store.runs(first.id).await.unwrap();
    let outcomes: Vec<_> = runs.iter().map(|run| (run.attempt.0, run.outcome.as_deref().unwrap())).collect();
    assert_eq!(outcomes, [(1, "FAILED"), (2, "FAILED"), (3, "COMPLETED")]);
    // An answer to the end of the attempt before that was lost is given again all the same.
    assert_eq!(db.apply(Write::Settle(failed(&second, Next::Final(JobStatus::Error)))).await, Written::Applied);
    let path = [
        "PENDING",
        "INQUEUE",
        "PROGRESS",
        "PENDING",
        "INQUEUE",
        "ERROR",
        "PENDING",
        "INQUEUE",
        "PROGRESS",
        "COMPLETED",
    ];
    assert_eq!(db.steps(first.id).await, steps(&path));
}

async fn only_what_has_ended_badly_is_retried(db: Db) {
    let error = ended(&db, "error", 1).await;
    let done = db.running("done", 2).await;
    db.apply(Write::Settle(completed(&done))).await;
    let cancelled = ids(&db.store.enqueue(&[new("cancelled")]).await.unwrap())[0];
    db.store.request_cancel(cancelled).await.unwrap();
    let open = db.running("open", 3).await.id;
    let waiting = ids(&db.store.enqueue(&[new("waiting")]).await.unwrap())[0];
    let nobody = JobId(987_654);
    let asked = [nobody, waiting, open, cancelled, done.id, error];
    let results = db.store.retry(&asked, "a\u{1b}[2J\nb\0\u{202e}").await.unwrap();
    assert_eq!(
        results,
        [
            RetryResult::NotFound,
            RetryResult::NotPossible(JobStatus::Pending),
            RetryResult::NotPossible(JobStatus::Progress),
            RetryResult::Retried,
            RetryResult::NotPossible(JobStatus::Completed),
            RetryResult::Retried,
        ]
    );
    let message = db.store.events(cancelled).await.unwrap().pop().unwrap().message.unwrap();
    assert_eq!(message, "retried by a b");
    let row = db.row(cancelled).await;
    assert_eq!((row.status, row.cancel_requested_time), (JobStatus::Pending, None), "the request was answered");
    assert_eq!(db.claim(&[token(4), token(5), token(6)]).await.jobs.len(), 3);
}

async fn a_retry_does_not_double_a_unique_key(db: Db) {
    let old = ids(&db.store.enqueue(&[keyed("x", "k")]).await.unwrap())[0];
    let job = db.claim(&[token(1)]).await.jobs.remove(0);
    db.apply(Write::Settle(failed(&job, Next::Final(JobStatus::Error)))).await;
    let new = db.store.enqueue(&[keyed("x", "k")]).await.unwrap()[0];
    assert!(!new.existing && new.id != old);
    assert_eq!(db.store.retry(&[old], "me").await.unwrap(), [RetryResult::KeyTaken(new.id)]);
    assert_eq!(db.row(old).await.status, JobStatus::Error);
    db.store.request_cancel(new.id).await.unwrap();
    // Both have the key and have ended: the first of them takes it.
    assert_eq!(
        db.store.retry(&[new.id, old, new.id], "me").await.unwrap(),
        [RetryResult::KeyTaken(old), RetryResult::Retried, RetryResult::KeyTaken(old)]
    );
    assert_eq!(db.store.enqueue(&[keyed("y", "k")]).await.unwrap(), [Enqueued { id: old, existing: true }]);
}

async fn retries_of_one_key_at_once_open_it_once(db: Db) {
    let mut jobs = Vec::new();
    for n in 0..6 {
        jobs.push(ids(&db.store.enqueue(&[keyed("x", "k")]).await.unwrap())[0]);
        let job = db.claim(&[token(n)]).await.jobs.remove(0);
        db.apply(Write::Settle(failed(&job, Next::Final(JobStatus::Error)))).await;
    }
    let mut tasks = tokio::task::JoinSet::new();
    for job in jobs.clone() {
        let store = db.another().await;
        tasks.spawn(async move { store.retry(&[job], "me").await.unwrap().remove(0) });
        let store = db.another().await;
        tasks.spawn(async move {
            store.enqueue(&[keyed("new", "k")]).await.unwrap();
            RetryResult::NotFound
        });
    }
    let results = tasks.join_all().await;
    let retried = results.iter().filter(|result| **result == RetryResult::Retried).count();
    assert!(retried <= 1, "{results:?}");
    assert_eq!(db.number("SELECT count(*) FROM jobs WHERE status = 'PENDING'").await, 1, "{results:?}");
}

async fn insert_many(db: &Db, rows: u32, columns: &str, values: &str) {
    let (with, numbers) = db.numbers(rows);
    db.sql(&format!("INSERT INTO jobs (type, identifier, {columns}) {with}SELECT 'RENDER', 'x', {values} {numbers}"))
        .await
        .unwrap();
}

async fn many_jobs_are_retried_in_pages_while_claims_go_on(db: Db) {
    insert_many(&db, 2_500, "status, attempt", "'ERROR', 3").await;
    let completed = ids(&db.store.enqueue(&[new("good")]).await.unwrap())[0];
    let mut filter = filter(&[], 1000);
    let mut retried = 0;
    let mut pages = 0_u8;
    loop {
        let page = db.store.retry_page(&filter, "me").await.unwrap();
        retried += page.rows.iter().filter(|(_, result)| *result == RetryResult::Retried).count();
        assert!(page.rows.windows(2).all(|pair| pair[0].0 > pair[1].0), "newest first");
        let claimed = db.claim(&[token(pages)]).await;
        assert_eq!(claimed.jobs.len(), 1, "a claim between two pages");
        // One that fails at once is not met again.
        db.apply(Write::Settle(failed(&claimed.jobs[0], Next::Final(JobStatus::Error)))).await;
        pages += 1;
        filter.cursor = page.next_cursor;
        if filter.cursor.is_none() {
            break;
        }
    }
    assert_eq!((retried, pages), (2_500, 3));
    assert_eq!(db.row(completed).await.status, JobStatus::Error, "it was claimed first, and was never asked for");
    let events = db.number("SELECT count(*) FROM job_events WHERE message = 'retried by me' AND attempt = 3").await;
    assert_eq!(events, 2_500);
    let again = db.claim(&[token(200)]).await.jobs.remove(0);
    assert_eq!((again.attempt, again.attempts_before), (Attempt(4), 3));
}

async fn many_jobs_are_cancelled_in_pages(db: Db) {
    insert_many(&db, 1_200, "priority", "0").await;
    let open = db.claim(&[token(1)]).await.jobs.remove(0).id;
    let other = db.store.enqueue(&[NewJob { flow: "OTHER".parse().unwrap(), ..new("x") }]).await.unwrap()[0].id;
    let mut filter = filter(&[], 500);
    let mut results = Vec::new();
    loop {
        let page = db.store.cancel_page(&filter).await.unwrap();
        results.extend(page.rows);
        filter.cursor = page.next_cursor;
        if filter.cursor.is_none() {
            break;
        }
    }
    assert_eq!(results.len(), 1_200);
    assert_eq!(results.last(), Some(&(open, CancelResult::Requested)), "the oldest one comes last");
    assert_eq!(results.iter().filter(|(_, result)| *result == CancelResult::Cancelled).count(), 1_199);
    assert_eq!(db.number("SELECT count(*) FROM job_events WHERE to_status = 'CANCELLED'").await, 1_199);
    assert_eq!(db.row(other).await.status, JobStatus::Pending);
    assert!(db.row(open).await.cancel_requested_time.is_some());
}

async fn a_bulk_cancel_of_waiting_jobs_touches_no_running_one(db: Db) {
    let all = ids(&db.store.enqueue(&[new("a"), new("b"), new("c")]).await.unwrap());
    let running = db.claim(&[token(1)]).await.jobs.remove(0);
    let page = db.store.cancel_page(&filter(&[JobStatus::Pending], 10)).await.unwrap();
    assert_eq!(page.rows, [(all[2], CancelResult::Cancelled), (all[1], CancelResult::Cancelled)]);
    assert_eq!((running.id, db.row(all[0]).await.cancel_requested_time), (all[0], None));
    // The identifier of another job, of no job, and one that is hostile: nothing is cancelled.
    for identifier in ["b", "nothing", "' OR 1=1 --", "a\0"] {
        let filter = JobFilter { identifier: Some(identifier.to_owned()), ..filter(&[], 10) };
        assert_eq!(db.store.cancel_page(&filter).await.unwrap().rows, []);
    }
    let filter = JobFilter { identifier: Some("a".to_owned()), ..filter(&[], 10) };
    assert_eq!(db.store.cancel_page(&filter).await.unwrap().rows, [(all[0], CancelResult::Requested)]);
    assert_eq!(db.store.cancel_page(&filter).await.unwrap().rows, [(all[0], CancelResult::AlreadyRequested)]);
}

const HOUR: Duration = Duration::from_secs(3_600);

fn hourly(n: u8) -> Claim {
    Claim { schedule_to_close_timeout: HOUR, concurrency: 1, worker_concurrency: 1, ..claim(&[token(n)]) }
}

async fn what_waits_too_long_is_ended_wherever_it_stands_in_the_queue(db: Db) {
    let now = db.store.now().await.unwrap().unix_millis();
    let waited = |milliseconds: i64| format!("{0}, {0}", now - milliseconds);
    let hour = i64::try_from(HOUR.as_millis()).unwrap();
    insert_many(&db, 1, "priority, created_time, run_at", &format!("9, {}", waited(hour / 2))).await;
    insert_many(&db, 700, "priority, created_time, run_at", &format!("-5, {}", waited(hour + 1))).await;
    // Enqueued long ago, but due only since a moment: its time has just begun.
    insert_many(&db, 1, "priority, created_time, run_at", &format!("-6, {}, {}", now - 2 * hour, now - 1)).await;
    let first = claim_with(&db.store, hourly(1)).await;
    assert_eq!((first.jobs.len(), first.expired.len()), (0, 500), "many are ended in portions");
    assert_eq!(first.next_expiry, Some(first.now), "and the rest at once");
    let second = claim_with(&db.store, hourly(1)).await;
    assert_eq!((second.jobs.len(), second.expired.len()), (1, 200));
    assert_eq!(second.jobs[0].priority, 9);
    let third = claim_with(&db.store, hourly(2)).await;
    assert_eq!((third.jobs.len(), third.expired.len()), (0, 0), "the flow's one slot is taken");
    assert_eq!(
        third.next_expiry,
        Some(at(now - 1 + hour)),
        "it is known all the same when the next one is to be ended"
    );
    let row = db.row(second.expired[0].0).await;
    let error = "timed out: schedule_to_close_timeout (1h) passed before the command could be started";
    assert_eq!((row.status, row.error.as_deref(), row.attempt), (JobStatus::Error, Some(error), Attempt(0)));
    assert!(row.completed_time.is_some());
    assert_eq!(db.steps(row.id).await, steps(&["PENDING", "ERROR"]));
    assert_eq!(db.number("SELECT count(*) FROM job_events WHERE to_status = 'ERROR'").await, 700);
    // A retry by hand gives its time anew.
    db.store.retry(&[row.id], "me").await.unwrap();
    let fourth = claim_with(&db.store, hourly(3)).await;
    assert_eq!((fourth.expired.len(), db.row(row.id).await.status), (0, JobStatus::Pending));
}

async fn a_retry_that_waits_too_long_is_ended_with_its_last_error(db: Db) {
    let job = db.running("x", 1).await;
    db.apply(Write::Settle(failed(&job, Next::RetryAfter(HOUR)))).await;
    let soon = |n| Claim { schedule_to_close_timeout: Duration::from_millis(20), ..claim(&[token(n)]) };
    tokio::time::sleep(Duration::from_millis(30)).await;
    let claimed = claim_with(&db.store, soon(2)).await;
    assert_eq!((claimed.jobs.len(), claimed.expired), (0, vec![(job.id, Attempt(1))]));
    let error = db.row(job.id).await.error.unwrap();
    assert!(error.starts_with("timed out: schedule_to_close_timeout (20ms) passed while it waited for another attempt; the last one: the command failed with exit code 3"), "{error}");
    assert_eq!(claim_with(&db.store, soon(3)).await.expired, []);
}

async fn a_paused_flow_and_a_delayed_row_are_ended_in_time_too(db: Db) {
    db.apply(Write::RegisterFlows(vec![flow()])).await;
    db.store.pause(&flow(), "me").await.unwrap();
    let now = db.store.now().await.unwrap().unix_millis();
    insert_many(&db, 1, "created_time, run_at", &format!("{0}, {0}", now - 7_200_000)).await;
    insert_many(&db, 1, "created_time, run_at", &format!("{}, {}", now - 7_200_000, now + 60_000)).await;
    let claimed = claim_with(&db.store, hourly(1)).await;
    assert_eq!((claimed.paused, claimed.expired.len(), claimed.jobs.len()), (true, 1, 0));
    let claimed = claim_with(&db.store, hourly(1)).await;
    assert_eq!((claimed.expired.len(), claimed.next_expiry), (0, Some(at(now + 60_000 + 3_600_000))));
}

async fn a_flow_is_paused_and_resumed_by_somebody(db: Db) {
    assert_eq!(db.store.pause(&flow(), "me").await.unwrap(), PauseResult::NotFound);
    db.apply(Write::RegisterFlows(vec![flow()])).await;
    assert_eq!(db.store.resume(&flow(), "me").await.unwrap(), PauseResult::Unchanged);
    let running = db.running("x", 1).await;
    db.store.enqueue(&[new("y")]).await.unwrap();
    let mut wakes = db.another().await.watch().await.unwrap();
    assert_eq!(db.store.pause(&flow(), "alice@host (cli)").await.unwrap(), PauseResult::Changed);
    tokio::time::timeout(Duration::from_secs(60), wakes.next()).await.expect("another service hears of it at once");
    assert_eq!(db.store.pause(&flow(), "bob").await.unwrap(), PauseResult::Unchanged);
    let state = db.store.flow_states().await.unwrap().remove(0);
    assert_eq!((state.paused, state.paused_by.as_deref(), state.progress), (true, Some("alice@host (cli)"), 1));
    assert!(state.paused_time.is_some());
    let claimed = db.claim(&[token(2)]).await;
    assert!(claimed.paused && claimed.jobs.is_empty());
    assert_eq!(db.apply(Write::Settle(completed(&running))).await, Written::Applied, "what runs runs on");
    assert_eq!(db.store.resume(&flow(), "bob").await.unwrap(), PauseResult::Changed);
    let state = db.store.flow_states().await.unwrap().remove(0);
    assert_eq!((state.paused, state.paused_by, state.paused_time), (false, None, None));
    assert_eq!(db.claim(&[token(2)]).await.jobs.len(), 1);
}

fn me(incarnation: &str) -> Worker {
    Worker {
        worker: worker(),
        incarnation: incarnation.to_owned(),
        hostname: "host".to_owned(),
        version: "1.2".to_owned(),
        labels: callsheet::domain::labels::Labels::default(),
        displaces: None,
        address: None,
    }
}

fn note(incarnation: &str, state: WorkerState) -> Write {
    Write::WorkerState(WorkerNote { worker: worker(), incarnation: incarnation.to_owned(), state })
}

async fn a_drain_is_asked_of_one_start_of_a_worker(db: Db) {
    assert_eq!(db.store.request_drain(&worker(), "me").await.unwrap(), DrainResult::NotFound);
    db.apply(Write::RegisterWorker(me("1"))).await;
    assert_eq!(db.store.drain_requested(&worker(), "1").await.unwrap(), None);
    let mut wakes = db.another().await.watch().await.unwrap();
    assert_eq!(db.store.request_drain(&worker(), "alice").await.unwrap(), DrainResult::Requested);
    tokio::time::timeout(Duration::from_secs(60), wakes.next()).await.expect("the worker hears of it at once");
    assert_eq!(db.store.request_drain(&worker(), "bob").await.unwrap(), DrainResult::AlreadyRequested);
    assert_eq!(db.store.drain_requested(&worker(), "1").await.unwrap().as_deref(), Some("alice"));
    // Registering again after an answer was lost does not undo it; another start of the worker does.
    db.apply(Write::RegisterWorker(me("1"))).await;
    assert_eq!(db.store.drain_requested(&worker(), "1").await.unwrap().as_deref(), Some("alice"));
    let row = db.store.workers().await.unwrap().remove(0);
    assert_eq!((row.drain_requested_by.as_deref(), row.runs), (Some("alice"), 0));
    assert!(row.drain_requested_time.is_some());
    db.store.enqueue(&[new("y")]).await.unwrap();
    assert_eq!(db.claim(&[token(8)]).await.jobs, [], "from the request on, whatever the service knows of it");
    db.apply(Write::RegisterWorker(me("2"))).await;
    assert_eq!(db.claim(&[token(8)]).await.jobs.len(), 1);
    assert_eq!(db.store.drain_requested(&worker(), "2").await.unwrap(), None);
    assert_eq!(db.store.drain_requested(&worker(), "1").await.unwrap(), None);
    db.running("x", 1).await;
    assert_eq!(db.store.workers().await.unwrap()[0].runs, 2);
    db.apply(note("2", WorkerState::Stopped)).await;
    assert_eq!(db.store.request_drain(&worker(), "me").await.unwrap(), DrainResult::Stopped);
}

async fn whose_rows_nobody_looks_after_is_told_where_a_worker_lives(db: Db) {
    let forsaken = async || db.store.forsaken().await.unwrap().0;
    db.apply(Write::RegisterWorker(me("1"))).await;
    db.running("x", 1).await;
    assert_eq!(forsaken().await, [], "their worker lives");
    db.apply(note("1", WorkerState::Stopped)).await;
    assert_eq!(forsaken().await, [], "no worker lives");
    db.apply(Write::RegisterWorker(Worker { worker: "other".parse().unwrap(), ..me("2") })).await;
    let found = forsaken().await;
    let [rows] = &found[..] else { panic!("{found:?}") };
    assert_eq!((rows.job_type.as_str(), rows.worker_id.as_deref(), rows.rows), ("RENDER", Some(worker().as_str()), 1));
    assert!(matches!(rows.last_seen, Some(LastSeen::Stopped(_))), "{rows:?}");
}

async fn a_worker_that_has_stopped_stays_so(db: Db) {
    db.apply(Write::RegisterWorker(me("1"))).await;
    let states = [
        (WorkerState::Active, "ACTIVE"),
        (WorkerState::Draining, "DRAINING"),
        (WorkerState::Active, "DRAINING"),
        (WorkerState::Stopped, "STOPPED"),
        (WorkerState::Draining, "STOPPED"),
        (WorkerState::Active, "STOPPED"),
    ];
    for (written, kept) in states {
        assert_eq!(db.apply(note("1", written)).await, Written::Applied);
        assert_eq!(db.store.workers().await.unwrap()[0].state, kept);
    }
    db.apply(Write::RegisterWorker(me("2"))).await;
    assert_eq!(db.store.workers().await.unwrap()[0].state, "ACTIVE");
}

async fn what_operators_do_is_in_the_audit_trail(db: Db) {
    db.apply(Write::RegisterFlows(vec![flow()])).await;
    db.apply(Write::RegisterWorker(me("1"))).await;
    let job = ended(&db, "x", 1).await;
    let waiting = ids(&db.store.enqueue(&[new("a"), new("b")]).await.unwrap());
    let alice = Who { actor: "alice@host".to_owned(), via: "cli", address: None };
    let store = db.store.on_behalf_of(alice);
    store.pause(&flow(), "alice").await.unwrap();
    store.pause(&flow(), "alice").await.unwrap();
    store.resume(&flow(), "alice").await.unwrap();
    store.cancel_page(&filter(&[JobStatus::Pending], 10)).await.unwrap();
    store.retry(&[job, waiting[0], JobId(987_654)], "alice").await.unwrap();
    store.request_drain(&worker(), "alice").await.unwrap();
    let mut deeds = db.store.audit(&AuditFilter { limit: 100, ..AuditFilter::default() }).await.unwrap().rows;
    deeds.reverse();
    assert!(deeds.iter().all(|deed| (deed.actor.as_str(), deed.via.as_str()) == ("alice@host", "cli")));
    let deeds: Vec<_> = deeds.iter().map(|deed| format!("{} {}: {}", deed.action, deed.target, deed.outcome)).collect();
    assert_eq!(
        deeds,
        [
            "pause flow RENDER: done".to_owned(),
            "pause flow RENDER: was so already".to_owned(),
            "resume flow RENDER: done".to_owned(),
            format!("cancel 2 jobs, {} to {}: 2 of 2 cancelled", waiting[0], waiting[1]),
            format!("retry 3 jobs, {job} to 987654: 2 of 3 retried"),
            "drain worker node-a: done".to_owned(),
        ]
    );
}

mod rows_of_the_first_schema_are_brought_over {
    #[tokio::test]
    async fn sqlite() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("callsheet.db").display());
        super::brought_over(&url, &format!("{url}?mode=rwc"), "1").await;
    }

    #[tokio::test]
    async fn postgres() {
        let Some(url) = crate::support::postgres::database() else { return };
        super::brought_over(&url, &url, "true").await;
    }
}

async fn brought_over(url: &str, foreign: &str, yes: &str) {
    let foreign = crate::support::service::connect(foreign).await;
    Migrator::up(&foreign, Some(1)).await.unwrap();
    let rows = format!(
        "INSERT INTO jobs (type, identifier, attempt, schedule_time, run_at) VALUES ('RENDER', 'x', 2, 5, 7); \
         INSERT INTO jobs (type, identifier, status, attempt) VALUES ('RENDER', 'y', 'ERROR', 3); \
         INSERT INTO flows (type, paused) VALUES ('RENDER', {yes}); \
         INSERT INTO workers (worker_id, incarnation, hostname, version, state, started_time, heartbeat_time) \
         VALUES ('node-a', '1', 'host', '0.1', 'ACTIVE', 1, 2);"
    );
    foreign.execute_unprepared(&rows).await.unwrap();
    foreign.close().await.unwrap();
    let store = Store::connect(&url.parse().unwrap(), Use::Service).await.unwrap();
    assert!(store.migrate().await.unwrap().iter().any(|name| name.ends_with("000002_control")));
    let state = store.flow_states().await.unwrap().remove(0);
    assert_eq!((state.paused, state.paused_by, state.pending), (true, None, 1), "paused by nobody knows whom");
    assert_eq!(store.workers().await.unwrap()[0].drain_requested_time, None);
    assert_eq!(store.retry(&[JobId(2)], "me").await.unwrap(), [RetryResult::Retried]);
    store.resume(&flow(), "me").await.unwrap();
    let claimed = claim_with(&store, claim(&[token(1), token(2)])).await;
    let budgets: Vec<_> = claimed.jobs.iter().map(|job| (job.attempt.0, job.attempts_before)).collect();
    assert_eq!(budgets, [(3, 0), (4, 3)]);
}
