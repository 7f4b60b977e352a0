//! Flows whose runs hold a device each: one holder at a time, whatever dies, by the commands' own locks.

use callsheet::domain::JobStatus;

use crate::leases::lease_left;
use crate::on_each_database;
use crate::support::eventually;
use crate::support::service::{A_MOMENT, On, Service, most_at_once};
use crate::support::truth::untruths;

const FLOWS: &str = "slots = { name = \"DEVICE\", values = [\"0\", \"1\"] }\nconcurrency = 4\nkill_grace = \"1s\"\n\
    heartbeat_timeout = \"5s\"\nretry = { maximum_attempts = 2, initial_interval = \"0s\" }\n\
    [flows.ONE]\n{job}\n[flows.TWO]\n{job}\n";

async fn a_device_has_one_holder_over_all_flows_and_over_a_crash(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let (first, second) = (service.insert("ONE", &["wait:a"]).await[0], service.insert("TWO", &["wait:b"]).await[0]);
    for job in [first, second] {
        service.begun(job, 1).await;
        service.until(job, JobStatus::Progress).await;
    }
    let mut jobs = service.insert("ONE", &["run:0.1"; 4]).await;
    jobs.extend(service.insert("TWO", &["run:0.1"; 4]).await);
    service.kill_9();
    service.serve().await;
    tokio::time::sleep(A_MOMENT).await;
    assert_eq!(service.evidence().len(), 2, "what was found running holds both");
    service.go_on("a");
    for job in &jobs {
        service.until(*job, JobStatus::Completed).await;
    }
    service.go_on("b");
    service.until(second, JobStatus::Completed).await;
    assert_eq!(most_at_once(&service.evidence()), 2);
    let (tally, wrong) = untruths(&service, |_| false).await;
    assert!(wrong.is_empty(), "{tally:?}: {wrong:?}");
    let mut held = Vec::new();
    for job in [first, second] {
        held.extend(service.runs(job).await[0].slot.clone());
    }
    held.sort();
    assert_eq!(held, ["DEVICE=0", "DEVICE=1"]);
    let shown = String::from_utf8(service.cli(&["show", &first.to_string()]).stdout).unwrap();
    assert!(shown.contains("DEVICE="), "{shown}");
    assert!(service.get(&format!("/jobs/{first}")).text().contains("DEVICE="));
    let json = service.get(&format!("/api/v1/jobs/{first}")).json();
    assert!(json["runs"][0]["slot"].as_str().unwrap().starts_with("DEVICE="), "{json}");
}
on_each_database!(a_device_has_one_holder_over_all_flows_and_over_a_crash);

async fn a_device_is_held_until_nothing_of_its_run_is_alive(on: On) {
    let flows = FLOWS.replace("\"0\", \"1\"", "\"7\"");
    let Some(mut service) = Service::start(on, &flows).await else { return };
    let stubborn = service.insert("ONE", &["ignore-term+wait"]).await[0];
    service.begun(stubborn, 1).await;
    let next = service.insert("TWO", &["run:0"]).await[0];
    assert!(service.cli(&["cancel", &stubborn.to_string()]).status.success());
    // The service dies while the shim still waits for its command to heed SIGTERM.
    service.kill_9();
    service.serve().await;
    service.until(next, JobStatus::Completed).await;
    service.until(stubborn, JobStatus::Cancelled).await;
    let (tally, wrong) = untruths(&service, |_| false).await;
    assert!(wrong.is_empty(), "{tally:?}: {wrong:?}");
    // One whose command can't be started has let go of it, too.
    let config = service.config();
    let directory = "working_dir = \"/nowhere\"\n[flows.TWO]";
    service.reload(&config.replace("[flows.TWO]", directory)).await;
    let fails = service.insert("ONE", &["run:0"]).await[0];
    service.until(fails, JobStatus::Error).await;
    service.reload(&config).await;
    let last = service.insert("ONE", &["run:0"]).await[0];
    service.until(last, JobStatus::Completed).await;
}
on_each_database!(a_device_is_held_until_nothing_of_its_run_is_alive);

async fn devices_can_change_while_commands_hold_some(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let jobs = service.insert("ONE", &["wait:a", "wait:b", "wait:c", "wait:d"]).await;
    let held = async |service: &Service, job| {
        service.until(job, JobStatus::Progress).await;
        service.runs(job).await[0].slot.clone().unwrap()
    };
    let before = [held(&service, jobs[0]).await, held(&service, jobs[1]).await];
    assert!(before.contains(&"DEVICE=0".to_owned()) && before.contains(&"DEVICE=1".to_owned()), "{before:?}");
    // Another one is there, one is there no more, and one is held on.
    let config = service.config();
    service.reload(&config.replace("\"0\", \"1\"", "\"1\", \"2\"")).await;
    assert!(service.log().contains("slots DEVICE of 0 1 -> DEVICE of 1 2"), "{}", service.log());
    assert_eq!(held(&service, jobs[2]).await, "DEVICE=2");
    let (gone, stays) = if before[0] == "DEVICE=0" { ("a", "b") } else { ("b", "a") };
    service.go_on(gone);
    service.until(jobs[usize::from(gone == "b")], JobStatus::Completed).await;
    tokio::time::sleep(A_MOMENT).await;
    assert_eq!(service.job(jobs[3]).await.status, JobStatus::Pending, "nobody is given what is there no more");
    // The next service finds them held, too.
    service.kill_9();
    service.serve().await;
    tokio::time::sleep(A_MOMENT).await;
    assert_eq!(service.job(jobs[3]).await.status, JobStatus::Pending);
    service.go_on(stays);
    assert_eq!(held(&service, jobs[3]).await, "DEVICE=1");
    // Without any, whoever waits goes.
    let slots = config.lines().find(|line| line.starts_with("slots = ")).unwrap();
    service.reload(&config.replace(slots, "")).await;
    let free = service.insert("TWO", &["exit:0"]).await[0];
    service.until(free, JobStatus::Completed).await;
    assert_eq!(service.runs(free).await[0].slot, None);
    service.go_on("c");
    service.go_on("d");
    for job in &jobs {
        assert_eq!(service.until(*job, JobStatus::Completed).await.attempt.0, 1);
    }
    let (tally, wrong) = untruths(&service, |_| false).await;
    assert!(wrong.is_empty(), "{tally:?}: {wrong:?}");
}
on_each_database!(devices_can_change_while_commands_hold_some);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_was_taken_over_holds_no_device_of_its_old_worker_once_it_is_over() {
    let flows = FLOWS.replace("\"0\", \"1\"", "\"0\"");
    let Some(mut first) = Service::start(On::Postgres, &flows).await else { return };
    let mut second = Service::prepare_at(Some(first.url.clone()), &flows).await;
    let job = first.insert("ONE", &["note-term+wait"]).await[0];
    first.until(job, JobStatus::Progress).await;
    second.serve().await;
    eventually("the lease to be short", async || lease_left(&first, job).await < 20_000).await;
    first.kill_9();
    // Each worker has devices of its own, so it is tried again there.
    second.begun(job, 2).await;
    first.serve().await;
    let other = first.insert("ONE", &["run:0"]).await[0];
    first.until(other, JobStatus::Completed).await;
    assert!(first.evidence().contains_key(&(other.0, 1)), "its device is free, and the second one's is not");
    second.go();
    second.until(job, JobStatus::Completed).await;
}
