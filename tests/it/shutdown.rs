//! The service is asked to stop while runs come and go; whatever ended meanwhile is told truthfully.

use std::time::Duration;

use callsheet::domain::JobStatus;
use rustix::process::Signal;
use sea_orm::ConnectionTrait as _;

use crate::on_each_database;
use crate::support::eventually;
use crate::support::processes::gone;
use crate::support::service::{On, Service};
use crate::support::truth::{all_jobs, untruths};

/// The first lines go to `[defaults]`.
const FLOWS: &str = "kill_grace = \"300ms\"\n[flows.EIGHT]\n{job}\nconcurrency = 8\nenv = { SLOTS = \"8\" }\n";

/// A service under load, which begins with these, and asked to stop in the middle of it.
async fn stopped_under_load(on: On, on_stop: &str, first: &[&str]) -> Option<Service> {
    let mut service = Service::prepare(on, FLOWS).await?;
    service.configure(&format!("[service]\non_stop = \"{on_stop}\"\n"));
    service.serve().await;
    service.insert("EIGHT", first).await;
    let jobs: Vec<String> = (first.len()..60).map(|n| format!("run:0.{:02}+exit:{}", 7 * n % 40, n % 3)).collect();
    service.insert("EIGHT", &jobs.iter().map(String::as_str).collect::<Vec<_>>()).await;
    eventually("the load", async || service.evidence().len() >= 12).await;
    service.stop().await;
    Some(service)
}

/// A fresh service does what is left; then all of it has to be true.
async fn finished_truthfully(mut service: Service) {
    service.serve().await;
    eventually("every job to end", async || all_jobs(&service).await.iter().all(|job| job.status.is_final())).await;
    service.nothing_alive().await;
    let (tally, wrong) = untruths(&service, |_| false).await;
    assert!(wrong.is_empty(), "{tally:?}: {}\n{}", wrong.join("\n"), service.log());
    assert_eq!((tally.jobs, tally.attempts), (60, 60));
    service.stop().await;
}

async fn left_runs_keep_their_own_ends(on: On) {
    let Some(service) = stopped_under_load(on, "leave", &[]).await else { return };
    finished_truthfully(service).await;
}
on_each_database!(left_runs_keep_their_own_ends, mariadb);

async fn awaited_runs_are_all_told_before_the_service_ends(on: On) {
    let Some(service) = stopped_under_load(on, "wait", &[]).await else { return };
    assert!(service.alive().is_empty(), "{:?}", service.alive());
    let started = service.evidence();
    for job in all_jobs(&service).await {
        let expected =
            if started.contains_key(&(job.id.0, 1)) { job.status.is_final() } else { job.status == JobStatus::Pending };
        assert!(expected, "{job:?}");
    }
    finished_truthfully(service).await;
}
on_each_database!(awaited_runs_are_all_told_before_the_service_ends);

async fn cancelled_runs_are_all_told_before_the_service_ends(on: On) {
    let Some(service) = stopped_under_load(on, "cancel", &["wait"; 3]).await else { return };
    assert!(service.alive().is_empty(), "{:?}", service.alive());
    let started = service.evidence();
    // Some others may have run just then, too.
    let mut cancelled = 0;
    for job in all_jobs(&service).await {
        cancelled += usize::from(job.status == JobStatus::Cancelled);
        assert!(job.status.is_final() || !started.contains_key(&(job.id.0, 1)), "{job:?}");
    }
    assert!(cancelled >= 3, "{cancelled} were running when all were to be cancelled");
}
on_each_database!(cancelled_runs_are_all_told_before_the_service_ends);

/// A claim that waits for the database is no reason to let commands run on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_ended_while_the_database_is_away() {
    let mut service = Service::prepare(On::Sqlite, FLOWS).await.unwrap();
    service.configure("[service]\non_stop = \"cancel\"\nstop_deadline = \"10m\"\n");
    service.serve().await;
    let jobs = service.insert("EIGHT", &["wait", "run:600"]).await;
    for job in &jobs {
        service.until(*job, JobStatus::Progress).await;
    }
    let command = service.begun(jobs[1], 1).await;
    let foreign = service.foreign().await;
    foreign.execute_unprepared("BEGIN IMMEDIATE").await.unwrap();
    // Its end and the claim of another job can't be written now.
    service.go();
    service.command_ended(jobs[0], 1).await;
    service.signal(Signal::TERM);
    gone(command.pid).await;
    assert!(!service.is_dead(), "it waits for what is still to be written");
    foreign.execute_unprepared("ROLLBACK").await.unwrap();
    foreign.close().await.unwrap();
    service.ended().await;
    assert_eq!(service.job(jobs[0]).await.status, JobStatus::Completed);
    assert_eq!(service.job(jobs[1]).await.status, JobStatus::Cancelled);
}

async fn a_second_signal_hastens_the_stop(on: On) {
    let Some(mut service) = Service::prepare(on, FLOWS).await else { return };
    service.configure("[service]\non_stop = \"wait\"\nstop_deadline = \"10m\"\n");
    service.serve().await;
    let job = service.insert("EIGHT", &["wait+exit:5"]).await[0];
    service.until(job, JobStatus::Progress).await;
    service.signal(Signal::TERM);
    eventually("the stop to begin", async || service.log().contains("the service stops")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!service.is_dead(), "it waits for its run");
    let ready = service.get("/readyz");
    assert!(ready.status == 503 && ready.text().contains("the service stops"), "{} {}", ready.status, ready.text());
    assert_eq!(service.cli(&["check", "--ready"]).status.code(), Some(1));
    // The deadline is ten minutes away, and a stop is waited for one.
    service.stop().await;
    assert_eq!(service.job(job).await.status, JobStatus::Progress);
    service.serve().await;
    service.go();
    assert_eq!(service.until(job, JobStatus::Error).await.exit_code, Some(5));
}
on_each_database!(a_second_signal_hastens_the_stop);
