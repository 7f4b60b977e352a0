//! Commands that run on while no service is there, and whose rows are changed or removed meanwhile.

use callsheet::domain::JobStatus;
use rustix::process::{Pid, Signal, kill_process};

use crate::on_each_database;
use crate::support::scrape::get;
use crate::support::service::{A_MOMENT, On, Service};
use crate::support::{eventually, processes};

/// A command that finds another one of its flow alive says so, in PAIR too, where the test has one job at a time.
const FLOWS: &str = "[flows.ONE]\n{job}\nenv = { SLOTS = \"1\" }\n\
    [flows.PAIR]\n{job}\nconcurrency = 2\nenv = { SLOTS = \"1\" }\n\
    [flows.TWO]\n{job}\nconcurrency = 2\nenv = { SLOTS = \"2\" }\n";

fn nobody_was_crowded(service: &Service) {
    let log = std::fs::read_to_string(service.path("evidence/log")).unwrap();
    assert!(!log.contains("crowded"), "two commands where one may run:\n{log}");
}

async fn a_command_whose_row_was_changed_meanwhile_is_gone_before_the_next_one_starts(on: On) {
    for change in [
        "status = 'CANCELLED', completed_time = 1795000000000",
        // With room for two it would be claimed at once.
        "status = 'PENDING', run_token = NULL, worker_id = NULL",
    ] {
        let Some(mut service) = Service::start(on, FLOWS).await else { return };
        let mut pids = Vec::new();
        let [first, pair] =
            [service.insert("ONE", &["run:600"]).await[0], service.insert("PAIR", &["run:600"]).await[0]];
        for job in [first, pair] {
            pids.push(service.begun(job, 1).await.pid);
            service.until(job, JobStatus::Progress).await;
        }
        let second = service.insert("ONE", &["run:0.1"]).await[0];
        // One that nobody touches is recovery's, as ever, and does not count twice.
        let untouched = service.insert("TWO", &["wait"]).await[0];
        let pid = service.begun(untouched, 1).await.pid;
        service.until(untouched, JobStatus::Progress).await;
        service.kill_9();
        let beside = service.insert("TWO", &["run:0.1"]).await[0];
        service.sql(&format!("UPDATE jobs SET {change} WHERE id IN ({first}, {pair})")).await;
        assert!(pids.iter().all(|pid| processes::is_alive(*pid)));
        // They can't be killed yet.
        let shims = pids.iter().map(|pid| Pid::from_raw(processes::parent_of(*pid)).unwrap()).collect::<Vec<_>>();
        shims.iter().for_each(|shim| kill_process(*shim, Signal::STOP).unwrap());
        service.serve().await;
        service.until(beside, JobStatus::Completed).await;
        tokio::time::sleep(A_MOMENT).await;
        assert_eq!(service.job(second).await.status, JobStatus::Pending);
        assert_eq!(service.evidence().len(), 4, "nothing was started beside a command that is to be gone");
        shims.iter().for_each(|shim| kill_process(*shim, Signal::CONT).unwrap());
        if change.contains("PENDING") {
            for job in [first, pair] {
                service.begun(job, 2).await;
                service.cli(&["cancel", &job.to_string()]);
            }
        }
        service.until(second, JobStatus::Completed).await;
        assert!(!pids.iter().any(|pid| processes::is_alive(*pid)));
        assert_eq!(service.log().matches("the database says that this run is over").count(), 2);
        assert!(processes::is_alive(pid), "the untouched one");
        service.go();
        assert_eq!(service.until(untouched, JobStatus::Completed).await.attempt.0, 1);
        for job in [first, pair] {
            service.until(job, JobStatus::Cancelled).await;
        }
        nobody_was_crowded(&service);
        service.nothing_alive().await;
    }
}
on_each_database!(a_command_whose_row_was_changed_meanwhile_is_gone_before_the_next_one_starts, mariadb);

/// Whether this number is in the text, as one.
fn names(text: &str, number: i32) -> bool {
    text.split(|c: char| !c.is_ascii_digit()).any(|found| found == number.to_string())
}

async fn a_command_that_the_database_never_heard_of_is_left_alone_and_takes_up_room(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let mut pids = Vec::new();
    for flow in ["ONE", "TWO"] {
        let job = service.insert(flow, &["run:600"]).await[0];
        pids.push(service.begun(job, 1).await.pid);
        service.until(job, JobStatus::Progress).await;
    }
    service.kill_9();
    // As where an old copy of the database was brought back, or another one is asked. SQLite's clients do not keep foreign keys
    // unless they are told to, so what belongs to the jobs may stay.
    let leave = if on == On::Sqlite { "PRAGMA foreign_keys = OFF; " } else { "" };
    service.sql(&format!("{leave}DELETE FROM jobs")).await;
    let held_up = service.insert("ONE", &["run:0.1"]).await[0];
    let others = service.insert("TWO", &["wait", "run:0.1"]).await;
    service.serve().await;
    service.begun(others[0], 1).await;
    let ready = || get(&service.address(), "/readyz");
    eventually("readyz to say so of both", async || {
        let (status, body) = ready();
        status == 503 && pids.iter().all(|pid| names(&body, *pid))
    })
    .await;
    tokio::time::sleep(A_MOMENT).await;
    for job in [held_up, others[1]] {
        assert_eq!(service.job(job).await.status, JobStatus::Pending, "there is no room for it");
    }
    assert!(pids.iter().all(|pid| processes::is_alive(*pid)));
    // Nor does the next start think otherwise.
    service.kill_9();
    service.serve().await;
    eventually("readyz to say so again", async || {
        pids.iter().all(|pid| names(&get(&service.address(), "/readyz").1, *pid))
    })
    .await;
    for pid in &pids {
        kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL).unwrap();
    }
    service.until(held_up, JobStatus::Completed).await;
    service.until(others[1], JobStatus::Completed).await;
    eventually("readyz to be content", async || get(&service.address(), "/readyz").0 == 200).await;
    service.go();
    service.until(others[0], JobStatus::Completed).await;
    nobody_was_crowded(&service);
    service.nothing_alive().await;
}
on_each_database!(a_command_that_the_database_never_heard_of_is_left_alone_and_takes_up_room, mariadb);

async fn a_flow_waits_for_a_command_that_may_be_of_a_job_that_waits(on: On) {
    waits_for_what_may_be_a_jobs(on, false).await;
}
on_each_database!(a_flow_waits_for_a_command_that_may_be_of_a_job_that_waits);

async fn a_flow_waits_no_longer_once_that_job_is_cancelled(on: On) {
    waits_for_what_may_be_a_jobs(on, true).await;
}
on_each_database!(a_flow_waits_no_longer_once_that_job_is_cancelled);

async fn waits_for_what_may_be_a_jobs(on: On, is_seen_to: bool) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let job = service.insert("PAIR", &["run:600"]).await[0];
    let pid = service.begun(job, 1).await.pid;
    service.until(job, JobStatus::Progress).await;
    service.kill_9();
    // The copy that was brought back is from before the claim.
    service.sql(&format!("DELETE FROM runs WHERE job_id = {job}")).await;
    service
        .sql("UPDATE jobs SET status = 'PENDING', run_token = NULL, worker_id = NULL, attempt = 0, started_time = NULL")
        .await;
    service.serve().await;
    eventually("readyz to say so", async || names(&get(&service.address(), "/readyz").1, pid)).await;
    tokio::time::sleep(A_MOMENT).await;
    assert_eq!(service.job(job).await.status, JobStatus::Pending);
    assert!(processes::is_alive(pid));
    if is_seen_to {
        // Then it is nobody's job, and there is room for one more.
        let next = service.insert("PAIR", &["run:0.1"]).await[0];
        service.cli(&["cancel", &job.to_string()]);
        service.until(next, JobStatus::Completed).await;
        assert!(processes::is_alive(pid));
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        eventually("readyz to be content", async || get(&service.address(), "/readyz").0 == 200).await;
    } else {
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        eventually("its second start", async || service.job(job).await.status == JobStatus::Progress).await;
        service.cli(&["cancel", &job.to_string()]);
        service.until(job, JobStatus::Cancelled).await;
        nobody_was_crowded(&service);
    }
    service.nothing_alive().await;
}

async fn a_command_whose_row_is_brought_back_is_its_jobs_again(on: On) {
    for (change, ends) in [("", false), ("", true), ("status = 'ERROR', completed_time = 1795000000000", false)] {
        let Some(mut service) = Service::start(on, FLOWS).await else { return };
        let job = service.insert("ONE", &["run:600"]).await[0];
        let pid = service.begun(job, 1).await.pid;
        service.until(job, JobStatus::Progress).await;
        service.kill_9();
        for table in ["jobs", "runs"] {
            service.sql(&format!("CREATE TABLE kept_{table} AS SELECT * FROM {table}")).await;
        }
        service.sql("DELETE FROM jobs").await;
        let next = service.insert("ONE", &["run:0.1"]).await[0];
        service.serve().await;
        eventually("readyz to say so", async || names(&get(&service.address(), "/readyz").1, pid)).await;
        assert_eq!(service.job(next).await.status, JobStatus::Pending);
        if !change.is_empty() {
            service.sql(&format!("UPDATE kept_jobs SET {change}")).await;
        }
        // What belongs to it may not have been brought back with it.
        let runs = if change.is_empty() { "" } else { "INSERT INTO runs SELECT * FROM kept_runs; " };
        service.sql(&format!("BEGIN; INSERT INTO jobs SELECT * FROM kept_jobs; {runs}COMMIT")).await;
        if ends {
            // Before the database is asked again.
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
            service.until(job, JobStatus::Error).await;
            assert!(service.job(job).await.error.unwrap().contains("SIGKILL"), "how it ended");
        } else if change.is_empty() {
            eventually("its actor", async || service.log().contains("the database knows this run again")).await;
            eventually("readyz to be content", async || get(&service.address(), "/readyz").0 == 200).await;
            assert!(processes::is_alive(pid));
            assert_eq!(service.job(next).await.status, JobStatus::Pending);
            service.cli(&["cancel", &job.to_string()]);
            service.until(job, JobStatus::Cancelled).await;
        }
        service.until(next, JobStatus::Completed).await;
        assert!(!processes::is_alive(pid));
        nobody_was_crowded(&service);
        service.nothing_alive().await;
    }
}
on_each_database!(a_command_whose_row_is_brought_back_is_its_jobs_again);

async fn a_flow_goes_on_beside_a_command_that_is_its_jobs_again(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let job = service.insert("PAIR", &["run:600"]).await[0];
    let pid = service.begun(job, 1).await.pid;
    service.until(job, JobStatus::Progress).await;
    service.kill_9();
    service.sql("CREATE TABLE kept AS SELECT * FROM jobs").await;
    service.sql("DELETE FROM runs").await;
    service.sql("UPDATE jobs SET status = 'PENDING', run_token = NULL, worker_id = NULL, attempt = 0").await;
    service.serve().await;
    eventually("readyz to say so", async || names(&get(&service.address(), "/readyz").1, pid)).await;
    let next = service.insert("PAIR", &["run:0.1"]).await[0];
    tokio::time::sleep(A_MOMENT).await;
    assert_eq!(service.job(next).await.status, JobStatus::Pending, "the flow waits");
    service
        .sql(&format!("BEGIN; DELETE FROM jobs WHERE id = {job}; INSERT INTO jobs SELECT * FROM kept; COMMIT"))
        .await;
    service.until(next, JobStatus::Completed).await;
    assert!(processes::is_alive(pid));
    service.cli(&["cancel", &job.to_string()]);
    service.until(job, JobStatus::Cancelled).await;
    service.nothing_alive().await;
}
on_each_database!(a_flow_goes_on_beside_a_command_that_is_its_jobs_again);
