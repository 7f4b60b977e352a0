//! The database refuses, hangs, dies, fills up; commands run on, results wait, and everything is written in the end.

use std::time::{Duration, Instant};

use callsheet::domain::JobStatus;
use callsheet::store::{Store, Use};
use rustix::process::Signal;
use sea_orm::{ConnectionTrait as _, TransactionTrait as _};

use crate::support::eventually;
use crate::support::postgres::Server;
use crate::support::proxy::{Proxy, Weather};
use crate::support::scrape::{Scrape, get};
use crate::support::service::{A_MOMENT, On, Service};
use crate::support::small_disk::SmallDisk;
use crate::support::truth::untruths;

/// The first lines go to `[defaults]`.
const FLOWS: &str = "heartbeat_timeout = \"10s\"\nkill_grace = \"200ms\"\n\
    retry = { maximum_attempts = 2, initial_interval = \"20ms\", non_retryable_exit_codes = [5, 7] }\n\
    [flows.ONE]\n{job}\nenv = { SLOTS = \"1\", BINARY = \"{binary}\" }\n\
    [flows.FOUR]\n{job}\nconcurrency = 4\nenv = { SLOTS = \"4\", BINARY = \"{binary}\" }\n";

fn flows() -> String {
    FLOWS.replace("{binary}", env!("CARGO_BIN_EXE_callsheet"))
}

/// Bytes of the service that are resident.
fn resident(service: &Service) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

async fn unready(service: &Service) {
    eventually("readyz to say that the database is away", async || {
        let (status, body) = get(&service.address(), "/readyz");
        status == 503 && body.contains("database")
    })
    .await;
}

async fn ready(service: &Service) {
    eventually("readyz to be well again", async || get(&service.address(), "/readyz").0 == 200).await;
}

/// What an outage must look like from outside, whoever causes it: `fail` takes the database away, `mend` brings it back.
async fn an_outage(service: &Service, name: &str, fail: impl AsyncFnOnce(), mend: impl AsyncFnOnce()) {
    let ends = service.insert("FOUR", &[&format!("wait:{name}+exit:5"), &format!("wait:{name}")]).await;
    let runs_on = service.insert("ONE", &[&format!("progress:40+wait:{name}.later")]).await[0];
    for job in ends.iter().chain([&runs_on]) {
        service.begun(*job, 1).await;
        service.until(*job, JobStatus::Progress).await;
    }
    let waiting = service.insert("ONE", &["say:next"]).await[0];
    let before = resident(service);
    fail().await;
    service.go_on(name);
    for job in &ends {
        service.command_ended(*job, 1).await;
    }
    unready(service).await;
    eventually("the metrics to say so", async || {
        Scrape::of(service).all("callsheet_store_errors_total").map(|(_, errors)| errors).sum::<f64>() > 0.0
    })
    .await;
    // The slot of a sequential flow is free now, but nobody can claim it.
    service.go_on(&format!("{name}.later"));
    service.command_ended(runs_on, 1).await;
    tokio::time::sleep(A_MOMENT).await;
    assert!(!service.evidence().contains_key(&(waiting.0, 1)), "something new was started");
    let grown = resident(service).saturating_sub(before);
    assert!(grown < 24 << 20, "the service grew by {grown} bytes");
    mend().await;
    assert_eq!(service.until(ends[0], JobStatus::Error).await.exit_code, Some(5));
    service.until(ends[1], JobStatus::Completed).await;
    service.until(runs_on, JobStatus::Completed).await;
    service.until(waiting, JobStatus::Completed).await;
    ready(service).await;
}

async fn all_is_true(service: &Service) {
    service.nothing_alive().await;
    let (tally, wrong) = untruths(service, |_| false).await;
    assert!(wrong.is_empty(), "{tally:?}: {}\n{}", wrong.join("\n"), service.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_is_stopped_or_killed_loses_nothing() {
    let Some(server) = Server::start() else { return };
    let mut service = Service::prepare_at(Some(server.url()), &flows()).await;
    service.serve().await;
    let server = std::sync::Mutex::new(server);
    for (name, signal) in [("stopped", Signal::INT), ("killed", Signal::KILL)] {
        let fail = async || server.lock().unwrap().end(signal);
        let mend = async || server.lock().unwrap().start_again();
        an_outage(&service, name, fail, mend).await;
    }
    // Restarted while runs come and go.
    let jobs: Vec<String> =
        (0..24).map(|n| format!("run:0.0{}+exit:{}", n % 10, if n % 3 == 0 { 7 } else { 0 })).collect();
    let jobs = service.insert("FOUR", &jobs.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for signal in [Signal::INT, Signal::KILL, Signal::KILL] {
        server.lock().unwrap().end(signal);
        server.lock().unwrap().start_again();
        tokio::time::sleep(A_MOMENT).await;
    }
    for (n, job) in jobs.iter().enumerate() {
        service.until(*job, if n % 3 == 0 { JobStatus::Error } else { JobStatus::Completed }).await;
    }
    all_is_true(&service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_refuses_hangs_or_cuts_loses_nothing() {
    let Some(server) = Server::start() else { return };
    let proxy = Proxy::start(server.socket()).await;
    let mut service = Service::prepare_at(Some(server.url()), &flows()).await;
    service.env = vec![("DATABASE_URL".to_owned(), proxy.url())];
    service.serve().await;
    an_outage(&service, "refused", async || proxy.set(Weather::Refused), async || proxy.set(Weather::Fair)).await;
    // A connection that hangs is no error for a while; once it is cut there is one.
    let hang = async || {
        proxy.set(Weather::Hanging);
        unready(&service).await;
        proxy.set(Weather::Refused);
    };
    an_outage(&service, "hanging", hang, async || proxy.set(Weather::Fair)).await;
    // Cut in the middle of whatever is going on.
    let jobs: Vec<String> =
        (0..24).map(|n| format!("run:0.0{}+exit:{}", n % 10, if n % 3 == 0 { 7 } else { 0 })).collect();
    let jobs = service.insert("FOUR", &jobs.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        proxy.cut();
    }
    for (n, job) in jobs.iter().enumerate() {
        service.until(*job, if n % 3 == 0 { JobStatus::Error } else { JobStatus::Completed }).await;
    }
    all_is_true(&service).await;
}

/// Somebody has typed a cancel, and gone home without a COMMIT.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_transaction_holds_up_only_its_own_rows() {
    let Some(server) = Server::start() else { return };
    let mut service = Service::prepare_at(Some(server.url()), &flows()).await;
    service.serve().await;
    let held = service.insert("FOUR", &["wait:held+exit:5", "wait:cancelled"]).await;
    for job in &held {
        service.until(*job, JobStatus::Progress).await;
    }
    let foreign = service.foreign().await;
    let forgotten = foreign.begin().await.unwrap();
    forgotten.execute_unprepared("UPDATE jobs SET cancel_requested_time = 1").await.unwrap();
    // One of them ends meanwhile, and that can't be written.
    service.go_on("held");
    service.command_ended(held[0], 1).await;
    for flow in ["ONE", "FOUR"] {
        for job in service.insert(flow, &["say:through", "say:through"]).await {
            service.until(job, JobStatus::Completed).await;
        }
    }
    eventually("the log to say what holds it up", async || service.log().contains("could not obtain lock on row"))
        .await;
    assert_eq!(service.job(held[0]).await.status, JobStatus::Progress);
    forgotten.commit().await.unwrap();
    // It had ended by itself before anybody asked.
    assert_eq!(service.until(held[0], JobStatus::Error).await.exit_code, Some(5));
    service.until(held[1], JobStatus::Cancelled).await;
    all_is_true(&service).await;
}

/// As after a failover to a standby that was not promoted yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_is_read_only_loses_nothing() {
    let Some(server) = Server::start() else { return };
    let mut service = Service::prepare_at(Some(server.url()), &flows()).await;
    service.serve().await;
    let admin = service.foreign().await;
    let set = async |sql: &[&str]| {
        for statement in sql {
            admin.execute_unprepared(statement).await.unwrap();
        }
    };
    let fail = async || set(&["ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"]).await;
    let mend = async || set(&["ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"]).await;
    an_outage(&service, "read-only", fail, mend).await;
    all_is_true(&service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_file_that_is_read_only_is_refused_at_start_and_loses_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(small) = SmallDisk::mount("a_sqlite_file_that_is_read_only", scratch.path().join("database"), "6m") else {
        return;
    };
    let url = format!("sqlite://{}/database/callsheet.db", scratch.path().display());
    let mut service = Service::prepare_at(Some(url), &flows()).await;
    service.serve().await;
    let ends = service.insert("FOUR", &["wait:read-only+exit:5"]).await[0];
    service.until(ends, JobStatus::Progress).await;
    service.kill_9();
    let _view = small.read_only_view(scratch.path().join("view"));
    let url = format!("sqlite://{}/view/callsheet.db", scratch.path().display());
    let refused = service.command().env("DATABASE_URL", url).arg("serve").output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("Read-only file system"), "{said}");
    service.go_on("read-only");
    service.command_ended(ends, 1).await;
    service.serve().await;
    assert_eq!(service.until(ends, JobStatus::Error).await.exit_code, Some(5));
    all_is_true(&service).await;
    service.stop().await;
}

/// Each kind of status write commits once, and is told that it failed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_counts_once() {
    let Some(server) = Server::start() else { return };
    let proxy = Proxy::start(server.socket()).await;
    let mut service = Service::prepare_at(Some(server.url()), &flows()).await;
    service.env = vec![("DATABASE_URL".to_owned(), proxy.url())];
    service.serve().await;
    let straight = ["INQUEUE", "PROGRESS", "COMPLETED"];
    let retried = ["INQUEUE", "PROGRESS", "PENDING", "INQUEUE", "PROGRESS", "ERROR"];
    let kinds: [(&str, &str, &str, &[&str]); 8] = [
        ("a claim", "SET status = 'INQUEUE'", "run:0.1", &straight),
        ("a start", "SET status = 'PROGRESS'", "wait:1", &straight),
        ("a heartbeat", "SET heartbeat_time = ", "wait:2", &straight),
        ("a progress note", "SET progress = COALESCE", "progress:40+wait:3", &straight),
        ("an end", ", completed_time = v", "run:0.1", &straight),
        ("a failure", ", completed_time = v", "run:0.1+exit:7", &["INQUEUE", "PROGRESS", "ERROR"]),
        ("a retry", "SET status = 'PENDING', run_at", "run:0.1+exit:3", &retried),
        ("the run's row", "INSERT INTO runs", "run:0.1", &straight),
    ];
    for (n, (kind, statement, todo, changes)) in kinds.into_iter().enumerate() {
        proxy.lose_answer_to_commit_of(statement);
        let job = service.insert("ONE", &[todo]).await[0];
        let last = if changes.ends_with(&["ERROR"]) { JobStatus::Error } else { JobStatus::Completed };
        eventually(&format!("the answer to {kind} to be lost"), async || proxy.commits_cut() == n + 1).await;
        // Those that wait do so until then.
        service.go_on(&n.to_string());
        service.until(job, last).await;
        assert_eq!(service.changes(job).await, changes, "{kind}");
        assert_eq!(service.runs(job).await.len(), changes.iter().filter(|to| **to == "INQUEUE").count(), "{kind}");
    }
    all_is_true(&service).await;
    // And the last of all: what this worker is doing, when it stops.
    proxy.lose_answer_to_commit_of("UPDATE workers SET state");
    service.stop().await;
    assert_eq!(proxy.commits_cut(), kinds.len() + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_file_that_a_competing_writer_locks_loses_nothing() {
    let mut service = Service::start(On::Sqlite, &flows()).await.unwrap();
    let foreign = service.foreign().await;
    let ends = service.insert("FOUR", &["wait:locked+exit:5"]).await[0];
    service.until(ends, JobStatus::Progress).await;
    let begun = Instant::now();
    foreign.execute_unprepared("BEGIN IMMEDIATE").await.unwrap();
    service.go_on("locked");
    // The busy timeout is five seconds; then it is an error, and tried again.
    eventually("the lock to be noticed", async || {
        let (status, body) = get(&service.address(), "/readyz");
        status == 503 && body.contains("does not take writes")
    })
    .await;
    assert_eq!(service.job(ends).await.status, JobStatus::Progress);
    eprintln!("noticed after {:?}", begun.elapsed());
    foreign.execute_unprepared("ROLLBACK").await.unwrap();
    assert_eq!(service.until(ends, JobStatus::Error).await.exit_code, Some(5));
    ready(&service).await;
    all_is_true(&service).await;
    service.stop().await;
}

/// SQLite itself would write on into a file that nobody can find any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_file_that_is_taken_away_loses_nothing() {
    let service = Service::start(On::Sqlite, &flows()).await.unwrap();
    let (file, aside) = (service.path("data/callsheet.db"), service.path("aside.db"));
    let fail = async || std::fs::rename(&file, &aside).unwrap();
    let mend = async || std::fs::rename(&aside, &file).unwrap();
    an_outage(&service, "away", fail, mend).await;
    all_is_true(&service).await;
}

/// What is committed to a log that nobody can find would go with the service, answered or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_log_that_is_taken_away_is_told_of_and_a_clean_stop_keeps_what_was_in_it() {
    let mut service = Service::start(On::Sqlite, &flows()).await.unwrap();
    let before = service.insert("ONE", &["say:before"]).await[0];
    service.until(before, JobStatus::Completed).await;
    service.store.close().await;
    std::fs::remove_file(service.path("data/callsheet.db-wal")).unwrap();
    let job = br#"{"type": "ONE", "identifier": "say:lost"}"#;
    let refused = service.request("POST", "/api/v1/jobs", &["Content-Type: application/json"], job);
    assert_eq!(refused.status, 503, "{}", refused.text());
    unready(&service).await;
    assert!(get(&service.address(), "/readyz").1.contains("stop the service in good order"));
    service.stop().await;
    service.store = Store::connect(&service.url.parse().unwrap(), Use::Service).await.unwrap();
    service.serve().await;
    assert_eq!(service.job(before).await.status, JobStatus::Completed);
    assert_eq!(service.changes(before).await, ["INQUEUE", "PROGRESS", "COMPLETED"]);
    let after = service.insert("ONE", &["say:after"]).await[0];
    service.until(after, JobStatus::Completed).await;
    ready(&service).await;
}

/// What has cut one connection off has cut off all: one call finds it out for the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_error_is_enough_to_replace_all_connections() {
    let Some(server) = Server::start() else { return };
    let proxy = Proxy::start(server.socket()).await;
    let store = Store::connect(&proxy.url().parse().unwrap(), Use::Service).await.unwrap();
    let at_once = (0..8).map(|_| {
        let store = store.clone();
        tokio::spawn(async move { store.now().await })
    });
    for call in futures_util::future::join_all(at_once).await {
        call.unwrap().unwrap();
    }
    proxy.cut_all().await;
    store.now().await.unwrap_err();
    for _ in 0..8 {
        store.now().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_sqlite_loses_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(small) = SmallDisk::mount("a_full_disk_under_sqlite", scratch.path().join("database"), "6m") else {
        return;
    };
    let url = format!("sqlite://{}/database/callsheet.db", scratch.path().display());
    let mut service = Service::prepare_at(Some(url), &flows()).await;
    service.serve().await;
    let ends = service.insert("FOUR", &["wait:full+exit:5", "wait:full"]).await;
    for job in &ends {
        service.until(*job, JobStatus::Progress).await;
    }
    small.fill();
    service.go_on("full");
    // Some writes still find room in what the log has already, so it is not said which of them fails.
    eventually("the full disk to be noticed", async || service.log().contains("database or disk is full")).await;
    small.clear();
    assert_eq!(service.until(ends[0], JobStatus::Error).await.exit_code, Some(5));
    service.until(ends[1], JobStatus::Completed).await;
    ready(&service).await;
    all_is_true(&service).await;
    service.stop().await;
}
