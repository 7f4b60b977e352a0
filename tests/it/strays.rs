//! Commands that run on while no service is there, and whose rows are changed or removed meanwhile.

use callsheet::domain::JobStatus;
use rustix::process::{Pid, Signal, kill_process};

use crate::on_each_database;
use crate::support::scrape::get;
use crate::support::service::{On, Service};
use crate::support::{eventually, processes};

const FLOWS: &str = "[flows.ONE]\n{job}\n[flows.TWO]\n{job}\nconcurrency = 2\n";

async fn a_command_whose_row_was_changed_meanwhile_is_gone_before_the_next_one_starts(on: On) {
    for change in [
        "status = 'CANCELLED', completed_time = 1795000000000",
        "status = 'PENDING', run_token = NULL, worker_id = NULL",
    ] {
        let Some(mut service) = Service::start(on, FLOWS).await else { return };
        let first = service.insert("ONE", &["run:600"]).await[0];
        let begun = service.begun(first, 1).await;
        service.until(first, JobStatus::Progress).await;
        let second = service.insert("ONE", &["run:0.1"]).await[0];
        // One that nobody touches is recovery's, as ever.
        let untouched = service.insert("TWO", &["wait"]).await[0];
        service.begun(untouched, 1).await;
        service.until(untouched, JobStatus::Progress).await;
        service.kill_9();
        service.sql(&format!("UPDATE jobs SET {change} WHERE id = {first}")).await;
        assert!(processes::is_alive(begun.pid));
        service.serve().await;
        let next = if change.contains("PENDING") { service.begun(first, 2) } else { service.begun(second, 1) }.await;
        assert!(!processes::is_alive(begun.pid), "two commands of a flow that runs one at a time: {}", next.pid);
        assert!(service.log().contains("the database says that this run is over"));
        service.cli(&["cancel", &first.to_string()]);
        service.go();
        service.until(second, JobStatus::Completed).await;
        service.until(untouched, JobStatus::Completed).await;
        service.until(first, JobStatus::Cancelled).await;
        service.nothing_alive().await;
    }
}
on_each_database!(a_command_whose_row_was_changed_meanwhile_is_gone_before_the_next_one_starts, mariadb);

async fn a_command_that_the_database_never_heard_of_is_left_alone_and_takes_up_room(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let jobs = [service.insert("ONE", &["run:600"]).await[0], service.insert("TWO", &["run:600"]).await[0]];
    let mut pids = Vec::new();
    for job in jobs {
        pids.push(service.begun(job, 1).await.pid);
        service.until(job, JobStatus::Progress).await;
    }
    service.kill_9();
    // As where an old copy of the database was brought back, or another one is asked.
    service.sql("DELETE FROM jobs").await;
    let held_up = service.insert("ONE", &["run:0.1"]).await[0];
    let others = service.insert("TWO", &["wait", "run:0.1"]).await;
    service.serve().await;
    service.begun(others[0], 1).await;
    let ready = || get(&service.address(), "/readyz");
    eventually("readyz to say so of both", async || {
        let (status, body) = ready();
        status == 503 && pids.iter().all(|pid| body.contains(&format!("pid {pid}")))
    })
    .await;
    for job in [held_up, others[1]] {
        assert_eq!(service.job(job).await.status, JobStatus::Pending, "there is no room for it");
    }
    assert!(pids.iter().all(|pid| processes::is_alive(*pid)));
    for pid in &pids {
        kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL).unwrap();
    }
    service.until(held_up, JobStatus::Completed).await;
    service.until(others[1], JobStatus::Completed).await;
    eventually("readyz to be content", async || ready().0 == 200).await;
    service.go();
    service.until(others[0], JobStatus::Completed).await;
    service.nothing_alive().await;
}
on_each_database!(a_command_that_the_database_never_heard_of_is_left_alone_and_takes_up_room, mariadb);
