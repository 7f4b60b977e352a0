//! What is kept for how long: jobs by their status, logs, the audit trail; and what is never removed.

#![allow(clippy::print_stdout, reason = "a measurement prints")]

use callsheet::domain::{JobId, JobStatus};
use callsheet::store::{DeliveryFilter, JobFilter};

use crate::on_each_database;
use crate::support::eventually;
use crate::support::service::{On, Service};

const FLOWS: &str = "[flows.ONE]\n{job}\nconcurrency = 4\n";
const DAY: i64 = 86_400_000;

/// Makes a job look as if it had ended this many days ago, with everything that is its own.
async fn age(service: &Service, job: JobId, days: i64) {
    let by = days * DAY;
    service.sql(&format!("UPDATE jobs SET completed_time = completed_time - {by} WHERE id = {job}")).await;
    service.sql(&format!("UPDATE runs SET completed_time = completed_time - {by} WHERE job_id = {job}")).await;
}

async fn is_there(service: &Service, job: JobId) -> bool {
    service.store.job(job).await.unwrap().is_some()
}

/// A COMPLETED, an ERROR and a CANCELLED job of each of these ages in days, then one that runs and one that waits.
async fn jobs(service: &Service, days: &[i64]) -> (Vec<[JobId; 3]>, [JobId; 2]) {
    let mut ended = Vec::new();
    for days in days {
        let jobs = service.insert("ONE", &["say:done", "exit:1", "run:60"]).await;
        service.until(jobs[0], JobStatus::Completed).await;
        service.until(jobs[1], JobStatus::Error).await;
        service.store.request_cancel(jobs[2]).await.unwrap();
        service.until(jobs[2], JobStatus::Cancelled).await;
        for job in &jobs {
            age(service, *job, *days).await;
        }
        ended.push([jobs[0], jobs[1], jobs[2]]);
    }
    let running = service.insert("ONE", &["wait"]).await[0];
    service.until(running, JobStatus::Progress).await;
    let waiting = service.insert_row("type, identifier, run_at", "'ONE', 'say:later', 99999999999999").await;
    // However old they look.
    service
        .sql(&format!("UPDATE jobs SET created_time = 0, completed_time = 0 WHERE id IN ({running}, {waiting})"))
        .await;
    (ended, [running, waiting])
}

async fn what_ended_long_ago_goes_by_its_status_and_nothing_else(on: On) {
    let Some(mut service) = Service::prepare(on, FLOWS).await else { return };
    service.configure("[retention]\ncompleted = \"10d\"\nerror = \"20d\"\ncancelled = \"off\"\naudit = \"10d\"\ndeliveries = \"10d\"\n");
    // Something to do for the pass at the start, so that it tells when it is over; the next one is an hour away.
    service.sql("INSERT INTO jobs (type, identifier, status, completed_time) VALUES ('OLD', 'x', 'ERROR', 1)").await;
    service.serve().await;
    eventually("the pass at the start", async || service.log().contains("old rows were removed")).await;
    let (ended, open) = jobs(&service, &[9, 11, 21]).await;
    let deed = |days: i64| {
        let time = format!("(SELECT max(created_time) FROM jobs) - {}", days * DAY);
        format!(
            "INSERT INTO audit (time, actor, via, action, target, outcome) VALUES ({time}, 'x', 'cli', 'x', 'x', 'x')"
        )
    };
    for days in [11, 11, 9] {
        service.sql(&deed(days)).await;
    }
    // Those that have ended; one that is still to be sent has no age.
    for (event, state, days) in [(1, "DELIVERED", 11), (2, "FAILED", 11), (3, "DELIVERED", 9), (4, "WAITING", 99)] {
        let ended = format!("(SELECT max(created_time) FROM jobs) - {}", days * DAY);
        let ended = if state == "WAITING" { "NULL" } else { &ended };
        service
            .sql(&format!(
                "INSERT INTO deliveries (webhook, event_id, job_id, state, next_time, ended_time, body) \
                 VALUES ('x', {event}, 1, '{state}', 0, {ended}, '{{}}')"
            ))
            .await;
    }
    service.sql("INSERT INTO sessions VALUES ('x', 'x', 'x', 0, 1)").await;

    // Asked first, then done: by the command line, and told in the audit trail.
    let told = |output: std::process::Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let asked = told(service.cli(&["prune", "--dry-run", "--json"]));
    let wanted = serde_json::json!({
        "completed": 2, "error": 1, "cancelled": 0, "deliveries": 2, "audit": 2, "sessions": 1, "logs": 0, "more": false, "dry_run": true,
    });
    assert_eq!(asked, wanted);
    assert_eq!(service.store.list(&Default::default()).await.unwrap().rows.len(), 1, "nothing has gone by asking");
    assert!(is_there(&service, ended[2][0]).await);
    let by_http = service.request("POST", "/api/v1/prune?dry_run=true", &[], b"");
    assert_eq!(by_http.json()["completed"], 2, "{}", by_http.text());
    service.request("POST", "/api/v1/prune?dry_run=perhaps", &[], b"").problem(400);
    assert_eq!(told(service.cli(&["prune", "--json"]))["completed"], 2);
    let audit = callsheet::store::AuditFilter { limit: 10, ..Default::default() };
    let deeds = service.store.audit(&audit).await.unwrap().rows;
    assert_eq!(
        (deeds[0].action.as_str(), deeds[0].outcome.as_str()),
        ("prune", "8 rows and the logs of 0 runs removed")
    );

    let left = service.store.deliveries(&DeliveryFilter { limit: 10, ..Default::default() }).await.unwrap().rows;
    assert_eq!(left.iter().map(|row| row.event_id).collect::<Vec<_>>(), [4, 3]);
    let gone = [ended[1][0], ended[2][0], ended[2][1]];
    for job in ended.iter().flatten().chain(&open) {
        assert_eq!(is_there(&service, *job).await, !gone.contains(job), "{job} of {ended:?}");
    }
    // What belongs to them went with them.
    for job in gone {
        assert!(service.runs(job).await.is_empty() && service.store.events(job).await.unwrap().is_empty());
    }
    assert_eq!(told(service.cli(&["prune", "--json"]))["completed"], 0);
    service.go();
    service.until(open[0], JobStatus::Completed).await;

    // By itself, when the service starts.
    age(&service, ended[0][0], 2).await;
    service.stop().await;
    service.serve().await;
    eventually("the old job to go", async || !is_there(&service, ended[0][0]).await).await;
    assert!(is_there(&service, ended[0][1]).await && is_there(&service, open[1]).await);
    let line = "old rows were removed (retention) completed=1";
    eventually("the log line about it", async || service.log().contains(line)).await;
}
on_each_database!(what_ended_long_ago_goes_by_its_status_and_nothing_else, mariadb);

async fn a_long_history_goes_in_batches_while_jobs_run(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    service.stop().await;
    service.sql("INSERT INTO jobs (type, identifier, status, completed_time) VALUES ('OLD', 'x', 'ERROR', 1)").await;
    service.serve().await;
    // The next one is an hour away, and takes nothing from what is counted here.
    eventually("the service's own pass", async || service.log().contains("old rows were removed")).await;
    // Of two types, one of which no flow has, and far more than one batch of each.
    let numbers = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 1500)";
    for (kind, time) in [("ONE", "n"), ("OLD", "1000")] {
        let rows = format!("'{kind}', 'x', CASE WHEN n % 3 = 0 THEN 'ERROR' ELSE 'COMPLETED' END, {time}");
        let columns = "type, identifier, status, completed_time";
        let insert = match on {
            On::Sqlite => format!("INSERT INTO jobs ({columns}) {numbers} SELECT {rows} FROM n"),
            On::Postgres => format!("INSERT INTO jobs ({columns}) SELECT {rows} FROM generate_series(1, 1500) AS n"),
            On::MariaDb => {
                format!("INSERT INTO jobs ({columns}) SELECT {rows} FROM (SELECT seq AS n FROM seq_1_to_1500) AS n")
            }
        };
        service.sql(&insert).await;
    }
    service.sql("INSERT INTO job_events (job_id, attempt, to_status, time) SELECT id, 1, status, 0 FROM jobs").await;
    service
        .sql(
            "INSERT INTO deliveries (webhook, event_id, job_id, state, next_time, ended_time, body) \
             SELECT 'x', id, job_id, 'DELIVERED', 0, id, '{}' FROM job_events",
        )
        .await;
    let answer = service.request("POST", "/api/v1/prune", &[], b"").json();
    let job = service.insert("ONE", &["say:hello"]).await[0];
    service.until(job, JobStatus::Completed).await;
    // A request goes on for some seconds only. Where these are too few the service removes the rest by itself.
    if answer["more"] == false {
        let removed = ["completed", "error", "deliveries"].map(|kind| answer[kind].as_u64());
        assert_eq!(removed, [2000, 1000, 3000].map(Some), "{answer}");
    }
    let rows = async || service.store.list(&JobFilter { limit: 10, ..Default::default() }).await.unwrap().rows.len();
    let events = async || service.store.events_after(0, 10).await.unwrap().events.len();
    eventually("all to be removed", async || (rows().await, events().await) == (1, 3)).await;
    let left = service.store.list(&JobFilter { limit: 10, ..Default::default() }).await.unwrap();
    assert_eq!(left.rows.iter().map(|row| row.id).collect::<Vec<_>>(), [job]);
    assert_eq!(service.store.events_after(0, 10).await.unwrap().events.len(), 3, "the events of the one that is left");
}
on_each_database!(a_long_history_goes_in_batches_while_jobs_run, mariadb);

/// Not a test: prints what claims cost beside a million rows, and while a million old ones are removed.
/// `cargo test --test it -- --ignored --nocapture retention::cost`
mod cost {
    use std::time::{Duration, Instant};

    use callsheet::domain::RunToken;
    use callsheet::domain::retention::Horizon;
    use callsheet::store::Write;

    use crate::store::{Db, at, completed, new};

    fn say(name: &str, what: &str, mut times: Vec<Duration>) {
        times.sort_unstable();
        let of = |part: usize| times[(times.len() - 1) * part / 1000];
        println!("{name}, {what}: {} times, p50 {:?} p99 {:?} most {:?}", times.len(), of(500), of(990), of(1000));
    }

    /// Enqueues, claims and settles one job after the other, and notes how long each claim took.
    async fn claims(db: &Db, first: usize, goes_on: impl Fn(usize) -> bool) -> Vec<Duration> {
        let mut times = Vec::new();
        while goes_on(times.len()) {
            db.store.enqueue(&[new("x")]).await.unwrap();
            let mut token = [7; 16];
            token[..8].copy_from_slice(&(first + times.len()).to_be_bytes());
            let start = Instant::now();
            let job = db.claim(&[RunToken::from_bytes(token)]).await.jobs.remove(0);
            times.push(start.elapsed());
            db.apply(Write::Settle(completed(&job))).await;
        }
        times
    }

    fn numbered(db: &Db, insert: &str, select: &str) -> String {
        let (with, numbers) = db.numbers(1_000_000);
        format!("INSERT INTO {insert} {with}SELECT {select} {numbers}")
    }

    async fn measure(name: &str, db: Db) {
        say(name, "claim in an empty table", claims(&db, 0, |done| done < 300).await);
        let columns = "jobs (type, identifier, status, run_at, created_time, completed_time)";
        let rows = "'RENDER', 'old', CASE WHEN n % 10 = 0 THEN 'ERROR' ELSE 'COMPLETED' END, 1, 1, n";
        db.sql(&numbered(&db, columns, rows)).await.unwrap();
        for insert in [
            "runs (job_id, attempt, run_token, outcome) SELECT id, 1, 'old ' || id, 'COMPLETED' FROM jobs WHERE identifier = 'old'",
            "job_events (job_id, attempt, to_status, time) SELECT id, 1, 'INQUEUE', 1 FROM jobs WHERE identifier = 'old'",
            "job_events (job_id, attempt, to_status, time) SELECT id, 1, 'COMPLETED', 1 FROM jobs WHERE identifier = 'old'",
        ] {
            db.sql(&format!("INSERT INTO {insert}")).await.unwrap();
        }
        db.sql("ANALYZE").await.unwrap();
        say(name, "claim beside 1 M ended jobs", claims(&db, 1000, |done| done < 300).await);
        let (store, start) = (db.store.clone(), Instant::now());
        let old = Some(at(2_000_000));
        let horizon = Horizon { completed: old, error: old, cancelled: old, deliveries: None, audit: None };
        let pruning = tokio::spawn(async move { store.prune(&horizon, Duration::from_secs(60)).await.unwrap() });
        say(name, "claim while they are removed", claims(&db, 2000, |_| !pruning.is_finished()).await);
        println!("{name}, removed: {:?} in {:?}", pruning.await.unwrap(), start.elapsed());

        let columns = "jobs (type, identifier, priority, run_at)";
        // Half of them not due for years, in a hundred priorities.
        let rows = "'RENDER', 'waits', n % 100, CASE WHEN n % 2 = 0 THEN 90000000000000 ELSE 9000000000000 END";
        db.sql(&numbered(&db, columns, rows)).await.unwrap();
        db.sql("ANALYZE").await.unwrap();
        say(name, "claim behind 1 M jobs that are not due", claims(&db, 100_000, |done| done < 300).await);
        let awaited = db.store.enqueue(&[new("first")]).await.unwrap()[0].id;
        let mut after = Vec::new();
        for _ in 0..20_000 {
            after.push(new("after"));
        }
        let all = (0..after.len()).map(|place| (place, vec![awaited])).collect();
        let start = Instant::now();
        db.store.enqueue_after(&after, &all).await.unwrap();
        println!("{name}, 20,000 jobs that wait for one enqueued in {:?}", start.elapsed());
        let job = db.claim(&[RunToken::from_bytes([9; 16])]).await.jobs.remove(0);
        assert_eq!(job.id, awaited);
        let start = Instant::now();
        db.apply(Write::Settle(completed(&job))).await;
        println!("{name}, the end of that one in {:?}", start.elapsed());
        let start = Instant::now();
        let claimed = db.claim(&[]).await;
        println!("{name}, the first claim after that in {:?}: {} released", start.elapsed(), claimed.waited.released);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "a measurement"]
    async fn print() {
        measure("sqlite", Db::sqlite().await.unwrap()).await;
        if let Some(db) = Db::postgres().await {
            measure("postgres", db).await;
        }
        if let Some(db) = Db::adopted().await {
            measure("adopted", db).await;
        }
        if let Some(db) = Db::mariadb().await {
            measure("mariadb", db).await;
        }
    }
}
