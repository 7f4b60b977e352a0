//! Two workers on one database: whose a run is, while services die, freeze, stop and lose the database.

use std::time::{Duration, Instant};

use callsheet::domain::{JobId, JobStatus};
use rustix::process::Signal;

use crate::on_each_server;
use crate::support::processes::is_alive;
use crate::support::proxy::{Proxy, Weather};
use crate::support::service::{On, Service};
use crate::support::{eventually, postgres as server};

/// What lives has to confirm its runs in time, on a machine that stands still for some seconds, too.
const FLOW: &str = "[flows.ONE]\n{job}\nheartbeat_timeout = \"5s\"\nkill_grace = \"1s\"\nretry = { maximum_attempts = 2, initial_interval = \"0s\" }\n";

/// In milliseconds: how long nobody may take an open run over.
pub async fn lease_left(service: &Service, job: JobId) -> i64 {
    use sea_orm::{ConnectionTrait, Statement};
    let now = service.store.now().await.unwrap().unix_millis();
    let client = service.foreign().await;
    let select = format!("SELECT lease_time FROM jobs WHERE id = {}", job.0);
    let select = Statement::from_string(client.get_database_backend(), select);
    let row = client.query_one_raw(select).await.unwrap().unwrap();
    client.close().await.unwrap();
    row.try_get::<Option<i64>>("", "lease_time").unwrap().expect("a lease") - now
}

/// Has the commands of this worker hold a thing that only one command of all workers may hold at a time; see [`alone`].
fn share_one_thing(service: &Service, first: &Service) {
    let env = format!("[flows.ONE]\nenv.ALONE = \"{}\"\n", first.path("evidence/thing").display());
    std::fs::write(service.path("callsheet.toml"), service.config().replace("[flows.ONE]\n", &env)).unwrap();
}

/// Checks that no command began while one of another worker was alive, as the commands tell.
fn alone(services: &[&Service]) {
    for service in services {
        let log = std::fs::read_to_string(service.path("evidence/log")).unwrap_or_default();
        assert!(!log.contains("crowded"), "{log}");
    }
}

/// One worker runs a job, then there is another one.
async fn two_workers(on: On, more: &str) -> Option<(Service, Service, JobId)> {
    let mut first = Service::prepare(on, FLOW).await?;
    first.configure(more);
    let mut second = Service::prepare_at(Some(first.url.clone()), FLOW).await;
    share_one_thing(&first, &first);
    share_one_thing(&second, &first);
    first.serve().await;
    let job = first.insert("ONE", &["note-term+wait"]).await[0];
    first.begun(job, 1).await;
    assert!(lease_left(&first, job).await > 100_000_000, "nobody else is there, so it may run for two days");
    second.serve().await;
    eventually("the lease to be short", async || lease_left(&first, job).await < 20_000).await;
    Some((first, second, job))
}

fn heartbeats(service: &Service) -> f64 {
    let metrics = service.get("/metrics").text();
    let line = metrics.lines().find_map(|line| line.strip_prefix("callsheet_heartbeats_total{type=\"ONE\"} "));
    line.unwrap().parse().unwrap()
}

async fn a_dead_workers_command_is_ended_and_its_job_taken_over(on: On) {
    let Some((mut first, second, job)) = two_workers(on, "").await else { return };
    // While both live it is confirmed four times within its heartbeat_timeout, and no more often for being acknowledged.
    let since = Instant::now();
    let before = heartbeats(&first);
    eventually("two confirmations", async || heartbeats(&first) >= before + 2.0).await;
    let confirmed = heartbeats(&first) - before;
    assert!(confirmed <= since.elapsed().as_secs_f64() * 4.0 / 5.0 + 2.0, "{confirmed} in {:?}", since.elapsed());
    let command = first.begun(job, 1).await;
    first.kill_9();
    second.begun(job, 2).await;
    // The first one's shim has ended it by itself, in good time.
    assert!(!is_alive(command.pid));
    alone(&[&first, &second]);
    second.go();
    second.until(job, JobStatus::Completed).await;
    let outcomes: Vec<_> = second.runs(job).await.into_iter().map(|run| run.outcome.unwrap()).collect();
    assert_eq!(outcomes, ["LOST", "COMPLETED"]);
    let error = second.runs(job).await[0].error.clone().unwrap();
    assert!(error.contains("has taken the job over"), "{error}");
    eventually("the metrics to tell of it", async || {
        second.get("/metrics").text().contains("callsheet_heartbeat_timeouts_total{type=\"ONE\"} 1")
    })
    .await;
    // What the first one finds when it is back changes nothing.
    first.serve().await;
    assert_eq!(second.runs(job).await.len(), 2);
    assert_eq!(second.job(job).await.status, JobStatus::Completed);
    first.nothing_alive().await;
}
on_each_server!(a_dead_workers_command_is_ended_and_its_job_taken_over);

async fn a_frozen_worker_that_wakes_up_finds_its_job_taken_over_and_writes_nothing(on: On) {
    let Some((first, second, job)) = two_workers(on, "").await else { return };
    let command = first.begun(job, 1).await;
    first.signal(Signal::STOP);
    second.begun(job, 2).await;
    assert!(!is_alive(command.pid));
    alone(&[&first, &second]);
    first.signal(Signal::CONT);
    eventually("the first one to see it", async || first.log().contains("no longer current")).await;
    second.until(job, JobStatus::Progress).await;
    second.go();
    second.until(job, JobStatus::Completed).await;
    assert_eq!(second.evidence().len(), 1);
    first.nothing_alive().await;
}
on_each_server!(a_frozen_worker_that_wakes_up_finds_its_job_taken_over_and_writes_nothing);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_stop_gives_the_command_time_until_its_service_is_back() {
    let Some((mut first, second, job)) = two_workers(On::Postgres, "[service]\non_stop = \"leave\"\n").await else {
        return;
    };
    let command = first.begun(job, 1).await;
    first.stop().await;
    let left = lease_left(&second, job).await;
    assert!((500_000..700_000).contains(&left), "{left}");
    // Longer than it would have lived without its service, and than the other one would have waited.
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(is_alive(command.pid));
    first.serve().await;
    first.go();
    first.until(job, JobStatus::Completed).await;
    assert_eq!(first.runs(job).await.len(), 1);
    assert_eq!(second.evidence().len(), 0);
}

/// Whatever moment of its launch the stop comes in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_stop_right_after_a_claim_keeps_that_run_too() {
    let Some(mut first) = Service::prepare(On::Postgres, FLOW).await else { return };
    first.serve().await;
    let mut second = Service::prepare_at(Some(first.url.clone()), "[flows.OTHER]\n{job}\n").await;
    second.serve().await;
    for after in [1, 2, 4, 6, 8, 10, 13, 16] {
        let job = first.insert("ONE", &["run:600"]).await[0];
        tokio::time::sleep(Duration::from_millis(after)).await;
        first.stop().await;
        let row = second.job(job).await;
        if row.status != JobStatus::Pending {
            let left = lease_left(&second, job).await;
            assert_eq!(row.status, JobStatus::Progress, "after {after} ms, {left} ms left");
            assert!((500_000..700_000).contains(&left), "after {after} ms: {left}");
        }
        first.serve().await;
        first.until(job, JobStatus::Progress).await;
        assert!(first.cli(&["cancel", &job.to_string()]).status.success());
        first.until(job, JobStatus::Cancelled).await;
        assert_eq!(first.runs(job).await.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_outlasts_a_stop_that_waits_is_kept_too() {
    let more = "[service]\non_stop = \"wait\"\nstop_deadline = \"1s\"\n";
    let Some((mut first, second, job)) = two_workers(On::Postgres, more).await else { return };
    let command = first.begun(job, 1).await;
    first.stop().await;
    let left = lease_left(&second, job).await;
    assert!((500_000..700_000).contains(&left), "{left}");
    assert!(is_alive(command.pid));
    first.serve().await;
    first.go();
    first.until(job, JobStatus::Completed).await;
    assert_eq!((first.runs(job).await.len(), second.evidence().len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_lives_on_without_its_service_while_there_is_no_other_worker() {
    let Some((mut first, mut second, job)) = two_workers(On::Postgres, "").await else { return };
    second.stop().await;
    eventually("the lease to be long", async || lease_left(&first, job).await > 100_000_000).await;
    // Its shim is told after the row: before the service confirms it another time.
    let told = heartbeats(&first) + 2.0;
    eventually("the shim to know of it", async || heartbeats(&first) >= told).await;
    let command = first.begun(job, 1).await;
    first.kill_9();
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(is_alive(command.pid));
    // Also while there is one that came later: it can't know, and waits.
    second.serve().await;
    first.serve().await;
    first.go();
    first.until(job, JobStatus::Completed).await;
    assert_eq!((first.runs(job).await.len(), second.evidence().len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_whose_worker_is_cut_off_from_the_database_is_ended_with_its_own_error() {
    let Some(server) = server::Server::start() else { return };
    let proxy = Proxy::start(server.socket()).await;
    let mut first = Service::prepare_at(Some(proxy.url()), FLOW).await;
    first.serve().await;
    let job = first.insert("ONE", &["note-term+wait"]).await[0];
    let command = first.begun(job, 1).await;
    // One that has no such flow, and so takes nothing over.
    let mut second = Service::prepare_at(Some(server.url()), "[flows.OTHER]\n{job}\n").await;
    second.serve().await;
    eventually("the lease to be short", async || lease_left(&second, job).await < 20_000).await;
    proxy.set(Weather::Hanging);
    eventually("the command to be ended", async || !is_alive(command.pid)).await;
    proxy.set(Weather::Fair);
    // It is tried again, since its flow says so.
    first.begun(job, 2).await;
    let run = &first.runs(job).await[0];
    assert_eq!(run.outcome.as_deref(), Some("TIMED_OUT"));
    let error = run.error.clone().unwrap();
    let expected = "timed out: its worker had not confirmed the run for 5s (heartbeat_timeout;";
    assert!(error.starts_with(expected), "{error}");
    eventually("the metrics to tell of it", async || {
        let metrics = first.get("/metrics").text();
        metrics.lines().any(|line| line.contains("cause=\"heartbeat\"") && line.ends_with(" 1"))
    })
    .await;
    first.go();
    first.until(job, JobStatus::Completed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_goes_in_the_middle_of_a_claim_keeps_nobody_from_claiming() {
    let Some(server) = server::Server::start() else { return };
    let proxy = Proxy::start(server.socket()).await;
    let mut first = Service::prepare_at(Some(proxy.url()), FLOW).await;
    first.serve().await;
    let mut second = Service::prepare_at(Some(server.url()), FLOW).await;
    second.serve().await;
    // Its connection stays open, as a frozen worker's does, with the flow's row locked.
    proxy.halt_at("FROM flows WHERE");
    eventually("the first one to claim", async || {
        first.insert("ONE", &["exit:0"]).await;
        proxy.halted() == 1
    })
    .await;
    let job = second.insert("ONE", &["exit:0"]).await[0];
    second.until(job, JobStatus::Completed).await;
}

async fn a_living_workers_name_is_refused_to_a_service_with_another_data_directory(on: On) {
    let Some(mut first) = Service::prepare(on, FLOW).await else { return };
    first.configure("worker_id = \"gpu-1\"\n");
    first.serve().await;
    let mut second = Service::prepare_at(Some(first.url.clone()), FLOW).await;
    second.configure("worker_id = \"gpu-1\"\n");
    second.spawn();
    eventually("the second one to end", async || second.is_dead()).await;
    let log = second.log();
    assert!(log.contains("is worker gpu-1 of this database") && log.contains("a worker_id of its own"), "{log}");
    // Its own start from its own directory is no other one's, however it ended.
    for _ in 0..2 {
        first.kill_9();
        first.serve().await;
    }
    let job = first.insert("ONE", &["exit:0"]).await[0];
    first.until(job, JobStatus::Completed).await;
    // One that has stopped has left its name.
    first.stop().await;
    second.serve().await;
}
on_each_server!(a_living_workers_name_is_refused_to_a_service_with_another_data_directory);

async fn a_claim_whose_worker_dies_at_once_is_taken_over(on: On) {
    let Some(second) = Service::start(on, FLOW).await else { return };
    let mut first = Service::prepare_at(Some(second.url.clone()), FLOW).await;
    first.env = vec![("CALLSHEET_CRASH_AT".to_owned(), "after-claim-commit".to_owned())];
    first.serve().await;
    // So that the first one claims it.
    second.signal(Signal::STOP);
    let job = first.insert("ONE", &["exit:0"]).await[0];
    eventually("the first one to die", async || first.is_dead()).await;
    second.signal(Signal::CONT);
    second.until(job, JobStatus::Completed).await;
    // Nobody but the first one could know that its command was never started.
    let outcomes: Vec<_> = second.runs(job).await.into_iter().map(|run| run.outcome.unwrap()).collect();
    assert_eq!(outcomes, ["LOST", "COMPLETED"]);
    assert!(first.evidence().is_empty());
}
on_each_server!(a_claim_whose_worker_dies_at_once_is_taken_over);

/// Makes the last sign of life of every worker so old that none counts as living.
async fn silence_all(service: &Service) {
    service.sql("UPDATE workers SET heartbeat_time = heartbeat_time - 40000").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_name_is_used_again_is_another_one_and_its_runs_stay_its_own() {
    let Some(mut first) = Service::prepare(On::Postgres, FLOW).await else { return };
    first.configure("worker_id = \"gpu-1\"\n");
    first.serve().await;
    let job = first.insert("ONE", &["wait"]).await[0];
    first.until(job, JobStatus::Progress).await;
    first.signal(Signal::STOP);
    silence_all(&first).await;
    let mut second = Service::prepare_at(Some(first.url.clone()), FLOW).await;
    second.configure("worker_id = \"gpu-1\"\n");
    second.serve().await;
    let next = second.insert("ONE", &["exit:0"]).await[0];
    // A restart of the second one finds nothing of its own either.
    second.kill_9();
    second.serve().await;
    tokio::time::sleep(crate::support::service::A_MOMENT).await;
    assert_eq!(second.job(job).await.status, JobStatus::Progress, "nobody may think it lost while it runs");
    assert!(second.job(job).await.worker_id.unwrap().starts_with("gpu-1:"));
    assert_eq!(second.job(next).await.status, JobStatus::Pending, "it is strictly one at a time");
    assert!(second.log().contains("this worker's name was another one's"), "{}", second.log());
    let workers = second.get("/api/v1/workers").json();
    assert_eq!(workers["workers"].as_array().unwrap().len(), 2, "{workers}");
    // The first one comes back, claims nothing under the name that is not its own, and settles what it has.
    first.signal(Signal::CONT);
    eventually("the first one to see it", async || first.log().contains("another service has this worker's name"))
        .await;
    first.go();
    first.until(job, JobStatus::Completed).await;
    first.ended().await;
    second.until(next, JobStatus::Completed).await;
    assert!(second.evidence().contains_key(&(next.0, 1)) && first.evidence().len() == 1);
    assert_eq!(second.runs(job).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_worker_left_open_under_a_name_that_is_used_again_is_settled_by_lease() {
    let Some((mut first, mut second, job)) = two_workers(On::Postgres, "worker_id = \"gpu-1\"\n").await else { return };
    let command = first.begun(job, 1).await;
    // So that it is the newcomer under the old name who finds the run.
    second.kill_9();
    first.kill_9();
    silence_all(&second).await;
    let mut third = Service::prepare_at(Some(first.url.clone()), FLOW).await;
    third.configure("worker_id = \"gpu-1\"\n");
    share_one_thing(&third, &first);
    // It dies before it has the name, and when it has just taken it; the run is set apart once.
    std::fs::create_dir(third.path("marks")).unwrap();
    let points = ["before-worker-commit", "after-worker-commit"];
    third.env = vec![
        ("CALLSHEET_CRASH_AT".to_owned(), points.join(",")),
        ("CALLSHEET_CRASH_MARKS".to_owned(), third.path("marks").display().to_string()),
    ];
    for point in points {
        assert!(!third.try_serve().await && third.path("marks").join(point).exists(), "{point}");
        let owner = third.job(job).await.worker_id.unwrap();
        assert_eq!(owner.starts_with("gpu-1:"), point.starts_with("after"), "{point}: {owner}");
    }
    third.serve().await;
    let workers = third.store.workers().await.unwrap();
    assert_eq!(workers.iter().filter(|worker| worker.worker_id.starts_with("gpu-1")).count(), 2, "{workers:?}");
    third.begun(job, 2).await;
    assert!(!is_alive(command.pid));
    alone(&[&first, &third]);
    third.go();
    third.until(job, JobStatus::Completed).await;
    let outcomes: Vec<_> = third.runs(job).await.into_iter().map(|run| run.outcome.unwrap()).collect();
    assert_eq!(outcomes, ["LOST", "COMPLETED"]);
}
